"""Saliency guided training by two processes on the CPU; `run` leaves a file of parameters each."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed_worker import STEPS, WORLD, WRAPS, in_processes, join, last_only, plain
from safetensors.torch import save_file
from small_models import batch, build
from torch import Tensor, nn

import attrain


@dataclass(frozen=True)
class Case:
    """How a model is wrapped and guided; with `parts` > 1 gradients are accumulated."""

    model: str
    wrap: str
    form: str
    credit: bool = False
    parts: int = 1

    def __str__(self) -> str:
        credit = "LFP" if self.credit else "gradient"
        return f"{self.wrap}, {self.model}, {self.form}, {credit}, {self.parts}"


def cases() -> list[Case]:
    wraps = ("ddp", "ddp, unused parameters", "ddp, bucket views", "ddp, checkpoints")
    found = [
        Case(model, wrap, form)
        for model in ("mlp", "convolutions")
        for wrap in wraps
        for form in ("exact", "shared", "fast")
    ]
    found += [Case("mlp", "ddp", form, parts=2) for form in ("exact", "shared", "fast")]
    found += [Case("mlp", "ddp", form, credit=True) for form in ("exact", "shared", "fast")]
    found += [Case("mlp", wrap, "exact") for wrap in ("ddp, static graph", "fsdp")]
    found += [Case("mlp", "fsdp", "shared")]
    return found


def blank(x: Tensor, drop: Tensor) -> Tensor:
    """Replace masked places by 0: random numbers would differ between processes."""
    return x.masked_fill(drop[:, None], 0.0)


def wrapped_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    ).double()


def train(case: Case, rank: int, world: int = WORLD) -> dict[str, Tensor]:
    """Return the parameters after every step, by "step/name"; a world of 1 is not wrapped."""
    model = wrapped_norm() if case.model == "norm" else build(case.model, torch.float64)
    if world > 1:
        training = model.training
        model = WRAPS[case.wrap](model).train(training)
    credit = attrain.LFP(model, epsilon=1e-6) if case.credit else None
    loss_fn = attrain.rewards.softmax if case.credit else F.cross_entropy
    guided = attrain.SaliencyGuided(
        model, loss_fn, form=case.form, mask=blank, credit=credit  # type: ignore[arg-type]
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = {}
    for step in range(STEPS):
        images, labels = batch(step, dtype=torch.float64)
        mine = slice(rank * len(images) // world, (rank + 1) * len(images) // world)
        optimizer.zero_grad()
        for part, (x, y) in enumerate(
            zip(images[mine].chunk(case.parts), labels[mine].chunk(case.parts), strict=True)
        ):
            last = part == case.parts - 1
            with last_only(model, last) if world > 1 else torch.enable_grad():
                (guided(x, y) / case.parts).backward()
        optimizer.step()
        for name, parameter in model.state_dict().items():
            if "spare" not in name:
                value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
                found[f"{step}/{plain(name)}"] = value.detach().clone()
    return found


def work(rank: int, folder: str) -> None:
    join(rank, folder)
    for case in [*cases(), *norms()]:
        try:
            found = train(case, rank)
        except Exception as error:
            raise RuntimeError(f"{case}") from error
        save_file(found, Path(folder, f"{case}.{rank}.safetensors"))
    dist.destroy_process_group()


def norms() -> list[Case]:
    """Return the cases with BatchNorm, whose statistics are each process's own."""
    return [Case("norm", "ddp", form) for form in ("exact", "shared", "fast")]


def run(folder: Path) -> None:
    """Train every case with two processes; the results are files in `folder`."""
    in_processes(work, folder)
