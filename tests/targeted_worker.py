"""Targeted updates by two processes on the CPU; `run` leaves a file of parameters each."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed_worker import WORLD, in_processes, join, last_only
from safetensors.torch import save_file
from small_models import batch, build
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import attrain

STEPS = 6


@dataclass(frozen=True)
class Case:
    """What is trained, by which score; with `parts` > 1 gradients are accumulated."""

    model: str
    score: str
    warmup: int = 2
    credit: bool = False
    parts: int = 1
    views: bool = False

    def __str__(self) -> str:
        credit = "LFP" if self.credit else "gradient"
        return f"{self.model}, {self.score}, {self.warmup}, {credit}, {self.parts}, {self.views}"


def cases() -> list[Case]:
    return [
        *(Case("mlp", score) for score in ("flow", "error", "relevance", "random")),
        *(Case("convolutions", score) for score in ("flow", "error")),
        Case("transformer", "error"),
        Case("mlp", "fixed", warmup=0),
        Case("mlp", "error", credit=True),
        Case("mlp", "error", parts=2),
        Case("mlp", "error", views=True),
    ]


def train(case: Case, rank: int, world: int = WORLD) -> dict[str, Tensor]:
    """Return the weights and rows after every step, by "step/name"; a world of 1 is not wrapped."""
    model = build(case.model, torch.float64)
    training = model.training
    targeted = attrain.Targeted(
        model, 0.5, case.score, refresh=2, warmup=case.warmup, exploration=0.25
    )
    wrapped = targeted
    if world > 1:
        wrapped = DistributedDataParallel(targeted, gradient_as_bucket_view=case.views)
    wrapped.train()
    model.train(training)
    credit = attrain.LFP(model) if case.credit else None
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    found = {}
    for step in range(STEPS):
        images, labels = batch(step, dtype=torch.float64)
        mine = slice(rank * len(images) // world, (rank + 1) * len(images) // world)
        optimizer.zero_grad()
        for part, (x, y) in enumerate(
            zip(images[mine].chunk(case.parts), labels[mine].chunk(case.parts), strict=True)
        ):
            last = part == case.parts - 1
            with last_only(wrapped, last) if world > 1 else torch.enable_grad():
                if credit is None:
                    loss = F.cross_entropy(wrapped(x), y)
                else:
                    with credit:
                        out = wrapped(x)
                    loss = attrain.rewards.softmax(out, y)
                (loss / case.parts).backward()
        optimizer.step()
        targeted.step(optimizer)
        for name, value in model.state_dict().items():
            found[f"{step}/{name}"] = value.detach().clone()
        for name, rows in targeted.selection().items():
            found[f"{step}/rows of {name}"] = rows
    return found


def work(rank: int, folder: str) -> None:
    join(rank, folder)
    for case in cases():
        try:
            found = train(case, rank)
        except Exception as error:
            raise RuntimeError(f"{case}") from error
        save_file(found, Path(folder, f"{case}.{rank}.safetensors"))
    dist.destroy_process_group()


def run(folder: Path) -> None:
    """Train every case with two processes; the results are files in `folder`."""
    in_processes(work, folder)
