"""Gradients that are known already, handed on when the loss is called backward on."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Carry(torch.autograd.Function):
    """A number whose gradients are given: the identity of it forward, them backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        # To look costs a wait on a GPU, and saves on a CPU a pass over all parameters.
        if upstream.device.type == "cpu" and float(upstream) == 1.0:
            return None, None, *known
        return None, None, *(upstream.to(each.dtype) * each for each in known)


def carry(value: Tensor, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return `value` with d value / d leaf = its gradient; None where a leaf has no part in it.

    What reaches the leaves goes through autograd, so that accumulation, loss scaling and
    DistributedDataParallel work as ever.
    """
    used = [(a, g) for a, g in zip(leaves, gradients, strict=True) if g is not None]
    known = [g for _, g in used]
    return cast(Tensor, _Carry.apply(value.detach(), known, *(a for a, _ in used)))
