"""What training costs in memory and time."""

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


@contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    """Collect the tensors that autograd keeps for the backward pass of what runs inside."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def training_bytes(model: nn.Module, optimizer: Optimizer, saved: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors that a training step of this process holds at once.

    Parameters, buffers, the optimizer's state, `saved`, what autograd keeps for the backward pass
    (memory that several of them share counts once), and one gradient per parameter.
    """
    state = [
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    storages = {}
    for tensor in [*model.parameters(), *model.buffers(), *state, *saved]:
        storage = _local(tensor).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    trained = [_local(entry) for entry in model.parameters() if entry.requires_grad]
    return sum(storages.values()) + sum(entry.numel() * entry.element_size() for entry in trained)


def saved_at_once(step: Callable[[], object]) -> int:
    """Return the most bytes that autograd holds at once while `step` runs, for the way back.

    Distinct storage, parameters left out. What is freed before something else is kept counts once
    alone, as where a step makes two passes, one after the way back of the other.
    """
    holders: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    highest = 0

    class Held:
        """A saved tensor, counted for as long as it is held."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            self.place = tensor.untyped_storage().data_ptr()
            sizes[self.place] = tensor.untyped_storage().nbytes()
            holders[self.place] += 1
            weakref.finalize(self, holders.subtract, [self.place])

    def pack(tensor: Tensor) -> Tensor | Held:
        nonlocal highest
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        held = Held(tensor.detach())
        highest = max(highest, sum(sizes[place] for place, n in holders.items() if n > 0))
        return held

    def unpack(held: Any) -> Tensor:
        found: Tensor = held.tensor if isinstance(held, Held) else held
        return found

    with saved_tensors_hooks(pack, unpack):
        step()
    return highest


def cpu_time(step: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of `repeats` steps, of all threads of this process."""
    began = time.process_time()
    for _ in range(repeats):
        step()
    return time.process_time() - began


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Return the CPU seconds of a step in each round, by the steps' names.

    A round takes every step `repeats` times, beginning with another one each time, so that the
    drift of a noisy machine falls on all; the steps are taken twice before anything is timed.
    Times of one round compare, as ratios; those of two rounds need not.
    """
    for step in (*steps.values(), *steps.values()):
        step()
    names = list(steps)
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for place in range(len(names)):
            name = names[(index + place) % len(names)]
            found[name].append(cpu_time(steps[name], repeats) / repeats)
    return found


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
