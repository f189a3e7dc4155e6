"""Models in wrappers: the module inside, and two forward passes before one backward pass."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def inside(model: nn.Module) -> nn.Module:
    """Return the module that DistributedDataParallel or Lightning Fabric wraps, or the model."""
    fabric = sys.modules.get("lightning_fabric.wrappers")
    wrappers = (DistributedDataParallel, *([fabric._FabricModule] if fabric else []))
    while isinstance(model, wrappers):
        model = model.module
    return model


@contextmanager
def without_reducing(model: nn.Module) -> Iterator[None]:
    """Run the first of two forward passes, whose gradients the second one prepares to reduce.

    DistributedDataParallel then broadcasts buffers before the first pass alone, as it must: the
    first pass's graph holds them. Its reducer is prepared once, by the second pass.
    """
    found = [each for each in model.modules() if isinstance(each, DistributedDataParallel)]
    before = [each.require_backward_grad_sync for each in found]
    for each in found:
        each.require_backward_grad_sync = False
    try:
        yield
    finally:
        for each, synced in zip(found, before, strict=True):
            each.require_backward_grad_sync = synced


def has_static_graph(model: nn.Module) -> bool:
    """Tell whether a DistributedDataParallel counts the uses of parameters in its first step."""
    return any(
        isinstance(each, DistributedDataParallel) and each.static_graph for each in model.modules()
    )
