"""Elementwise arithmetic that stays in a CPU core's cache."""

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = 1 << 18  # values; a megabyte of float32


def blockwise(function: Callable[..., object], out: Tensor, *tensors: Tensor) -> Tensor:
    """Fill `out` with `function(out, scratch, *tensors)`, block by block where that pays.

    A chain of elementwise operations writes a temporary of the tensor's size for each of its
    links; fresh memory of that size costs a CPU page faults, and cached memory nothing. On other
    devices, and for memory that is not laid out alike, the function sees the whole tensors.
    """
    if torch.is_grad_enabled():
        tensors = tuple(each.detach() for each in tensors)
    if (
        out.numel() > _BLOCK
        and out.is_cpu
        and all(each.is_contiguous() and each.shape == out.shape for each in (out, *tensors))
    ):
        scratch = torch.empty(_BLOCK, dtype=out.dtype)
        parts = [torch.split(each.view(-1), _BLOCK) for each in (out, *tensors)]
        for part, *others in zip(*parts, strict=True):
            function(part, scratch[: part.numel()], *others)
    else:
        function(out, torch.empty_like(out), *tensors)
    return out
