"""What training costs in memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
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

    Parameters, buffers, gradients, the optimizer's state, and `saved`, what autograd keeps for the
    backward pass; memory that several of them share counts once.
    """
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    held = [*parameters, *model.buffers(), *gradients, *state, *saved]
    storages = {}
    for tensor in held:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.layout is torch.strided:
            storage = local.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
