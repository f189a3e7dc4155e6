"""The arguments of a call that belong to units: where they stand, and what they are."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attrain.graph import units

Where = int | str | tuple[int | str, int]
"""The place of an argument: position, name, or one of these and the index in its list."""


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Where, Tensor]]:
    """Yield all tensors among the arguments, and where they stand."""
    placed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in placed:
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                if isinstance(each, Tensor):
                    yield (key, index), each


def carrying(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Where, Tensor]]:
    """Yield the arguments, and where they stand, that belong to units."""
    for where, tensor in tensors_of(args, kwargs):
        if units.of(tensor) is not None:
            yield where, tensor


def carries(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether any argument belongs to units."""
    return next(carrying(args, kwargs), None) is not None


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what `scaled_dot_product_attention` does, as a product with constant weights."""
    repeats = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if repeats > 1:
        key, value = (each.repeat_interleave(repeats, -3) for each in (key, value))
    with torch.no_grad():
        _, weights = torch.ops.aten._scaled_dot_product_attention_math(
            query.detach(), key.detach(), value.detach(), attn_mask, 0.0, is_causal, scale=scale
        )
    return torch.matmul(weights.detach(), value)


def at(where: Where, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return the argument that stands at a place."""
    if isinstance(where, tuple):
        key, index = where
        held: Tensor = (args[key] if isinstance(key, int) else kwargs[key])[index]
        return held
    found: Tensor = args[where] if isinstance(where, int) else kwargs[where]
    return found


def as_leaf(out: Tensor) -> Tensor:
    """Return a tensor at which credit ends, though nothing before it carries any."""
    return out.detach().requires_grad_()
