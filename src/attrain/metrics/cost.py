"""What training costs in memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
