"""What two processes train together on the CPU; `run` leaves one file of parameters per case."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import small_models
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from small_models import batch, build
from small_runs import processes
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import attrain
from attrain import rewards
from attrain.errors import CreditWarning

WORLD = 2
STEPS = 3


class Spare(nn.Module):
    """A model with a layer that it does not use."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.used = model
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def blocks(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield the parts that hold parameters: where they are, their name, and themselves."""
    parent = getattr(model, "blocks", model)
    for name, child in list(parent.named_children()):
        if any(True for _ in child.parameters()):
            yield parent, name, child


def ddp(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def fsdp(nested: bool = True, **options: Any) -> Callable[[nn.Module], nn.Module]:
    def shard(model: nn.Module) -> nn.Module:
        mesh = init_device_mesh("cpu", (WORLD,))
        if nested:
            for _, _, block in blocks(model):
                fully_shard(block, mesh=mesh, **options)
        return fully_shard(model, mesh=mesh, **options)

    return shard


def checkpointed(kind: CheckpointImpl, wrap: Callable[[nn.Module], nn.Module]) -> Any:
    def both(model: nn.Module) -> nn.Module:
        for parent, name, block in blocks(model):
            setattr(parent, name, checkpoint_wrapper(block, kind))
        return wrap(model)

    return both


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": ddp(),
    "ddp, unused parameters": lambda model: ddp(find_unused_parameters=True)(Spare(model)),
    "ddp, static graph": ddp(static_graph=True),
    "ddp, bucket views": ddp(gradient_as_bucket_view=True),
    "ddp, checkpoints": checkpointed(CheckpointImpl.NO_REENTRANT, ddp()),
    "ddp, reentrant checkpoints": checkpointed(CheckpointImpl.REENTRANT, ddp(static_graph=True)),
    "fsdp": fsdp(),
    "fsdp, kept after forward": fsdp(reshard_after_forward=False),
    "fsdp, one group": fsdp(nested=False, reshard_after_forward=True),
    "fsdp, checkpoints": checkpointed(CheckpointImpl.NO_REENTRANT, fsdp()),
}


@dataclass(frozen=True)
class Case:
    """How a model is wrapped and trained; with `parts` > 1 gradients are accumulated."""

    model: str
    wrap: str
    epsilon: float
    scale: str = "abs"
    dtype: str = "float64"
    parts: int = 1

    def __str__(self) -> str:
        epsilon = f"epsilon {self.epsilon:g}"
        return f"{self.wrap}, {self.model}, {epsilon}, {self.scale}, {self.dtype}, {self.parts}"


def cases() -> list[Case]:
    found = [
        Case(model, wrap, epsilon, scale)
        for model in small_models.MODELS
        for wrap in WRAPS
        for epsilon, scale in ((1e-6, "relative"), (0.0, "abs"))
        # A part of the first layer alone has no input that reentrant checkpoints take gradients to.
        if not (wrap == "ddp, reentrant checkpoints" and model != "transformer")
    ]
    found += [
        Case(model, wrap, 1e-6, dtype=dtype, parts=2)
        for model in small_models.MODELS
        for wrap in ("ddp", "ddp, unused parameters", "ddp, bucket views", "fsdp")
        for dtype in ("float64", "float32")
    ]
    return found


def last_only(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Exchange gradients in the last part of a batch only."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    elif not last:
        return model.no_sync()
    return contextlib.nullcontext()


def train(case: Case, rank: int) -> dict[str, Tensor]:
    """Return the parameters after every step, by "step/name"."""
    dtype = getattr(torch, case.dtype)
    model = build(case.model, dtype)
    training = model.training
    model = WRAPS[case.wrap](model).train(training)
    credit = attrain.LFP(model, epsilon=case.epsilon, scale=case.scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = {}
    for step in range(STEPS):
        images, labels = batch(step, dtype=dtype)
        mine = slice(rank * len(images) // WORLD, (rank + 1) * len(images) // WORLD)
        optimizer.zero_grad()
        for part, (x, y) in enumerate(
            zip(images[mine].chunk(case.parts), labels[mine].chunk(case.parts), strict=True)
        ):
            with last_only(model, part == case.parts - 1):
                with credit:
                    out = model(x)
                (rewards.softmax(out, y) / case.parts).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            if "spare" not in name:
                value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
                found[f"{step}/{plain(name)}"] = value.detach().clone()
    return found


def plain(name: str) -> str:
    """Return the parameter's name in the model that was wrapped."""
    kept = [part for part in name.split(".") if part not in ("module", "used")]
    return ".".join(part for part in kept if part != "_checkpoint_wrapped_module")


def join(rank: int, folder: str) -> None:
    """Make this process one of the WORLD, on one thread, to which warnings are errors."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", CreditWarning)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )


def work(rank: int, folder: str) -> None:
    join(rank, folder)
    for case in cases():
        found = train(case, rank)
        if rank == 0:
            save_file(found, Path(folder, f"{case}.safetensors"))
    dist.destroy_process_group()


def in_processes(function: Callable[[int, str], None], folder: Path) -> None:
    """Call `function(rank, folder)` in each of WORLD processes.

    A fork server's children leave without finalizing the interpreter. While it finalizes, a thread
    of gloo that still wants the interpreter's lock aborts the process, although its work is done
    (as in pytorch/pytorch#190489).
    """
    processes()
    mp.start_processes(function, (str(folder),), nprocs=WORLD, start_method="forkserver")


def run(folder: Path) -> None:
    """Train every case with two processes; the results are files in `folder`."""
    in_processes(work, folder)
