"""Linear and convolution layers of which some rows learn: a gradient for these rows alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LINEAR = F.linear
CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
"""Convolutions of torch -> how many axes their places have."""


class Rows(NamedTuple):
    """A layer's parameters: whole and frozen, and the rows of them [k, ...] that learn.

    `truncated`: whether the inputs get their gradient through these rows alone, as in meProp.
    """

    weight: Tensor
    bias: Tensor | None
    rows: Tensor
    of_weight: Tensor
    of_bias: Tensor | None
    truncated: bool


class _Linear(torch.autograd.Function):
    """`F.linear` by the whole weight; on the way back dW[rows] = s[:, rows]^T x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, of_weight: Tensor, of_bias: Tensor | None, given: Rows
    ) -> Tensor:
        ctx.rows, ctx.truncated = given.rows, given.truncated
        ctx.save_for_backward(x, of_weight if given.truncated else given.weight)
        return F.linear(x, given.weight, given.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, s: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        flat = s.reshape(-1, s.shape[-1])
        chosen = flat.index_select(1, ctx.rows)
        back = of_weight = of_bias = None
        if wants_x:
            if ctx.truncated:
                back = (chosen @ weight).view(x.shape)
            else:
                back = s @ weight
        if wants_weight:
            of_weight = chosen.t() @ x.reshape(-1, x.shape[-1])
        if wants_bias:
            of_bias = chosen.sum(0)
        return back, of_weight, of_bias, None


class _How(NamedTuple):
    """Stride, padding and so on of a convolution, as torch's own way back takes them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class _Convolution(torch.autograd.Function):
    """A convolution by the whole weight; on the way back the gradient of the chosen channels.

    With groups, whose channels may be chosen unevenly, all are computed and the rest is dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, of_weight: Tensor, of_bias: Tensor | None, given: Rows, how: _How
    ) -> Tensor:
        ctx.rows, ctx.truncated, ctx.how = given.rows, given.truncated, how
        partly = given.truncated and how.groups == 1
        ctx.save_for_backward(x, of_weight if partly else given.weight)
        out: Tensor = torch.convolution(
            x, given.weight, given.bias, how.stride, how.padding, how.dilation,
            False, [0] * len(how.stride), how.groups,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, s: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
        rows, how = ctx.rows, ctx.how
        chosen = s.index_select(1, rows)
        back = of_weight = None
        if how.groups > 1:
            if wants_x:
                passed = torch.zeros_like(s).index_copy_(1, rows, chosen) if ctx.truncated else s
                back = _way_back(passed, x, weight, how, (True, False))[0]
            if wants_weight:
                of_weight = _way_back(s, x, weight, how, (False, True))[1].index_select(0, rows)
        elif ctx.truncated and wants_x:
            back, of_weight = _way_back(chosen, x, weight, how, (True, wants_weight))
        else:
            if wants_x:
                back = _way_back(s, x, weight, how, (True, False))[0]
            if wants_weight:
                part = weight[: len(rows)]  # its shape is all that is needed
                of_weight = _way_back(chosen, x, part, how, (False, True))[1]
        of_bias = chosen.sum((0, *range(2, s.ndim))) if wants_bias else None
        return back, of_weight, of_bias, None, None


def _way_back(s: Tensor, x: Tensor, weight: Tensor, how: _How, wanted: tuple[bool, bool]) -> Any:
    """Return the gradients of the input and of the weight, each where it is wanted."""
    return torch.ops.aten.convolution_backward(
        s, x, weight, None, how.stride, how.padding, how.dilation,
        False, [0] * len(how.stride), how.groups, [*wanted, False],
    )[:2]  # fmt: skip


def linear(x: Tensor, given: Rows) -> Tensor:
    """Return the outputs [..., units] of a linear layer whose rows learn."""
    x, given = _cast(x, given)
    out: Tensor = _Linear.apply(x, given.of_weight, given.of_bias, given)
    return out


def convolution(func: Any, x: Tensor, given: Rows, options: dict[str, Any]) -> Tensor:
    """Return the outputs [N, channels, ...] of a convolution whose channels learn.

    options: stride, padding, dilation and groups, as `func` takes them.
    """
    x, given = _cast(x, given)
    axes = CONVOLUTIONS[func]
    stride, dilation = (_each(options.get(name, 1), axes) for name in ("stride", "dilation"))
    padding: Any = options.get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        sizes = given.weight.shape[2:]
        whole = [d * (k - 1) for d, k in zip(dilation, sizes, strict=True)]
        padding = [total // 2 for total in whole]
        if any(total % 2 for total in whole):
            x = F.pad(x, [side for total in reversed(whole) for side in (0, total % 2)])
    how = _How(stride, _each(padding, axes), dilation, options.get("groups", 1))
    single = x.ndim == axes + 1
    out: Tensor = _Convolution.apply(
        x.unsqueeze(0) if single else x, given.of_weight, given.of_bias, given, how
    )
    return out.squeeze(0) if single else out


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    if isinstance(value, int):
        return [value] * axes
    return [*value] * axes if len(value) == 1 else [*value]


def _cast(x: Tensor, given: Rows) -> tuple[Tensor, Rows]:
    """Return input and parameters in the type in which autocast would compute."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, given
    to = torch.get_autocast_dtype(kind)
    bias = None if given.bias is None else given.bias.to(to)
    of_bias = None if given.of_bias is None else given.of_bias.to(to)
    return x.to(to), given._replace(
        weight=given.weight.to(to), bias=bias, of_weight=given.of_weight.to(to), of_bias=of_bias
    )
