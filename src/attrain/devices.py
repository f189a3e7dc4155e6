"""Where a run computes: devices, processes, threads, and its random numbers."""

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from attrain.config import TrainingConfig
from attrain.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SMALL_MODEL = 20_000


def threads_of(config: TrainingConfig, model: nn.Module) -> int:
    """Return the number of CPU threads: small models run fastest on one."""
    if config.threads:
        return config.threads
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL
    return 1 if small else torch.get_num_threads()


@contextmanager
def torch_settings(config: TrainingConfig, model: nn.Module) -> Iterator[None]:
    """Set threads and determinism while a run lasts."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads_of(config, model))
    torch.use_deterministic_algorithms(config.deterministic or deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def make_fabric(config: TrainingConfig) -> "Fabric":
    """Return a launched Fabric; under torchrun it takes as many processes as torchrun started.

    Raises InputError where a GPU is needed and there is none.
    """
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu" and config.precision == "16-mixed":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32-true.")
    devices, nodes = config.devices, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if kind == "cuda":
        found = torch.cuda.device_count()
        if devices > found:
            raise InputError(
                f"{devices} GPU{'s are' if devices > 1 else ' is'} asked for and torch sees "
                f"{found}: give --device cpu or fewer --devices."
            )
        if config.deterministic:
            # cuBLAS reads it when it starts; without it torch refuses to be deterministic.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Imported late: evaluating and pruning need none of it.
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets every process
    fabric = Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config.strategy, devices * nodes),
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def _strategy(name: str, processes: int) -> Any:
    if processes == 1:
        return "auto"
    if name != "fsdp2":
        return "ddp"
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Shard each member of a Sequential or ModuleList on its own, then what is left."""
    from torch.distributed.fsdp import fully_shard

    blocks = [
        block
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for block in module
        if any(True for _ in block.parameters())
    ]
    for block in reversed(blocks):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def seed_everything(seed: int, process: int = 0) -> None:
    """Seed torch, NumPy and Python; processes that share a run get numbers of their own."""
    mixed = int(np.random.SeedSequence([seed, process]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all random number generators as tensors and plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
