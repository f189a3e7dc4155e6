"""Small data, models and runs for the tests of training; importable by child processes."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig
from attrain.data import Data

PRELOADED = [
    "attrain.compare",
    "lightning_fabric.strategies.model_parallel",
    "sklearn.datasets",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
]
FAST = TrainingConfig(epochs=2, batch_size=16, device="cpu", threads=1, learning_rate=0.05)


def small_data(samples: int = 72, classes: int = 3, name: str = "small") -> Data:
    """Return noisy pictures of 1x4x4 whose class is the row that is bright."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % classes
    x = torch.randn(samples, 1, 4, 4, generator=generator) * 0.5
    x[torch.arange(samples), 0, y] += 1.0
    half = samples // 3
    return Data(
        name=name,
        train=TensorDataset(x[half:], y[half:]),
        test=TensorDataset(x[:half], y[:half]),
        validation=None,
        classes=tuple(str(label) for label in range(classes)),
        input_shape=(1, 4, 4),
        mean=torch.zeros(1, 1, 1),
        std=torch.ones(1, 1, 1),
        notes="",
    )


def small_model(seed: int = 0) -> nn.Module:
    """Return a model whose training draws random numbers and moves buffers."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.bias, std=0.1)  # LFP warns of a parameter that is 0
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        norm,
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 3),
    )


def processes() -> Any:
    """Return a context whose children start in milliseconds, with the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def kill_after(process: Any, seconds: float) -> bool:
    """Wait for `process`, at most `seconds`, then SIGKILL it; return whether it was killed."""
    process.join(seconds)
    if process.exitcode is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return True


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_ranks(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Run `function` in several processes that find each other as torchrun's do."""
    context, port = processes(), free_port()
    children = [
        context.Process(target=_as_rank, args=(function, arguments, rank, ranks, port))
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    deadline = time.monotonic() + 120
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    codes = [child.exitcode for child in children]
    for child in children:
        if child.exitcode is None:
            child.kill()
            child.join()
    assert codes == [0] * ranks, codes


def _as_rank(
    function: Callable[..., None], arguments: tuple[Any, ...], rank: int, ranks: int, port: int
) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    torch.set_num_threads(1)
    function(*arguments)
    torch.distributed.destroy_process_group()


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Wait until `path` exists."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)
