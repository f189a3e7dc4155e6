"""Elementwise arithmetic that stays in a CPU core's cache."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1 << 17  # values; half a megabyte of float32

Arithmetic = Callable[..., Tensor]
"""A function of (out, scratch, *tensors) that returns its result, in `out` unless that is None."""


class _Scratch(threading.local):
    """One block of memory per thread and type, kept: fresh memory costs page faults."""

    def __init__(self) -> None:
        self.blocks: dict[torch.dtype, Tensor] = {}

    def __call__(self, size: int, dtype: torch.dtype) -> Tensor:
        block = self.blocks.get(dtype)
        if block is None:
            block = self.blocks[dtype] = torch.empty(BLOCK, dtype=dtype)
        return block if size == BLOCK else block.narrow(0, 0, size)


scratch = _Scratch()


def blockwise(function: Arithmetic, *tensors: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `function(out, scratch, *tensors)`, block by block where that pays.

    A chain of elementwise operations writes a temporary of the tensor's size for each of its
    links; fresh memory of that size costs a CPU page faults, and cached memory nothing. On other
    devices, for small tensors, and for memory that is not laid out alike, the function sees the
    whole tensors, and None where it may take fresh memory. `out` may be one of the tensors.
    """
    if torch.is_grad_enabled():
        tensors = tuple(each.detach() for each in tensors)
    first = tensors[0]
    if first.numel() <= BLOCK or not _alike(tensors if out is None else (*tensors, out)):
        return function(out, None, *tensors)
    if out is None:
        out = torch.empty_like(first)
    flat = [each.view(-1) for each in (out, *tensors)]
    size = first.numel()
    for start in range(0, size, BLOCK):
        length = min(BLOCK, size - start)
        part, *others = [each.narrow(0, start, length) for each in flat]
        function(part, scratch(length, part.dtype), *others)
    return out


def _alike(tensors: tuple[Tensor, ...]) -> bool:
    """Tell whether all are laid out as the first, in one run of a CPU's memory."""
    first = tensors[0]
    return type(first) is Tensor and all(
        each.is_cpu
        and each.is_contiguous()
        and each.shape == first.shape
        and each.dtype == first.dtype
        for each in tensors
    )
