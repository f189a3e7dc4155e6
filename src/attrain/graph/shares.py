"""What each of two tensors contributes where they meet, and what is added that is of no unit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrain.graph.arguments import Where, at
from attrain.rules import norm
from attrain.rules.decomposition import stabilised


def shares_of(name: str, kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return what each of two tensors contributes to their sum or product."""
    if kind == "product":
        return lambda args, kwargs, a, b: (a * b / 2, a * b / 2)
    if name == "where":
        return _chosen
    if name == "lerp":
        return _blended
    sign = -1.0 if "sub" in name else 1.0

    def summed(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        factor = kwargs.get("alpha", 1.0)
        return (-factor * a, b) if "rsub" in name else (a, sign * factor * b)

    return summed


def _blended(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    share = args[2] if len(args) > 2 else kwargs["weight"]
    return (1 - share) * a, share * b


def _chosen(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    condition = args[0] if args else kwargs["condition"]
    condition = condition.detach()
    return torch.where(condition, a, torch.zeros_like(a)), torch.where(
        condition, torch.zeros_like(b), b
    )


def added(
    owed: float, name: str, where: Where, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    """Return what a sum adds to the share of the argument at `where`."""
    value = at(where, args, kwargs).detach()
    if name in ("maximum", "minimum", "fmax", "fmin"):
        return torch.where(out == value, torch.zeros_like(out), stabilised(out, owed))
    second = where in (2, "other") if name == "where" else where in (1, "other", "end")
    zero = torch.zeros_like(value)
    pair = (zero, value) if second else (value, zero)
    return out - shares_of(name, "sum")(args, kwargs, *pair)[second]


def filled(owed: float, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    """Return what `masked_fill` puts in place of the values that it takes out."""
    names = ("input", "mask", "value")
    given = dict(zip(names, args, strict=False)) | kwargs
    return torch.where(given["mask"], stabilised(out, owed), torch.zeros_like(out))


def padded(
    owed: float, where: Where, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    """Return what padding puts around the values that it takes."""
    sides = args[1] if len(args) > 1 else kwargs["pad"]
    inner = torch.nn.functional.pad(torch.ones_like(at(where, args, kwargs)), sides)
    return stabilised(out, owed) * (1 - inner)


def _affine(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


def _statistics(args: Sequence[Any], switch: str) -> tuple[str, ...]:
    """Return the positions' names: torch's own functions take all of them by position."""
    running, affine = ("running_mean", "running_var"), ("weight", "bias")
    first = (*running, *affine) if len(args) <= 3 else (*affine, *running)
    return ("input", *first, switch, "momentum", "eps")


def _batch_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(_statistics(args, "training"), args, kwargs)
    x = given["input"].detach()
    form = (1, -1, *[1] * (x.ndim - 2))
    if given.get("training", False) or given.get("running_var") is None:
        axes = (0, *range(2, x.ndim))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    else:
        variance, mean = (given[key].reshape(form) for key in ("running_var", "running_mean"))
    return _offset(given, variance, mean, form)


def _layer_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(("input", "shape", "weight", "bias", "eps"), args, kwargs)
    x = given["input"].detach()
    shape = given["shape"] if "shape" in given else given["normalized_shape"]
    axes = tuple(range(-len(shape), 0))
    return _offset(given, *torch.var_mean(x, axes, correction=0, keepdim=True), ())


def _group_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(("input", "groups", "weight", "bias", "eps"), args, kwargs)
    groups = given.get("groups", given.get("num_groups"))
    x = given["input"].detach()
    parts = x.reshape(len(x), groups, -1)
    form = (len(x), x.shape[1], *[1] * (x.ndim - 2))
    variance, mean = (
        each.repeat_interleave(x.shape[1] // groups, 1).reshape(form)
        for each in torch.var_mean(parts, 2, correction=0, keepdim=True)
    )
    return _offset(given, variance, mean, (1, -1, *[1] * (x.ndim - 2)))


def _instance_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(_statistics(args, "use_input_stats"), args, kwargs)
    x = given["input"].detach()
    form = (1, -1, *[1] * (x.ndim - 2))
    if given.get("use_input_stats", True):
        axes = tuple(range(2, x.ndim))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    else:
        variance, mean = (given[key].reshape(form) for key in ("running_var", "running_mean"))
    return _offset(given, variance, mean, form)


def _offset(given: dict[str, Any], variance: Tensor, mean: Tensor, form: tuple[int, ...]) -> Tensor:
    slope = (variance + given.get("eps", 1e-5)).rsqrt()
    for key in ("weight", "bias"):
        if given.get(key) is not None and form:
            given = {**given, key: given[key].detach().reshape(form)}
    if given.get("weight") is not None:
        slope = slope * given["weight"]
    offset: Tensor = -mean * slope
    if given.get("bias") is not None:
        offset = offset + given["bias"]
    return offset


OFFSETS: dict[Any, Callable[[Sequence[Any], dict[str, Any], Tensor], Tensor]] = {
    norm.batch_norm: _batch_norm_offset,
    norm.layer_norm: _layer_norm_offset,
    norm.group_norm: _group_norm_offset,
    norm.instance_norm: _instance_norm_offset,
}
"""Rule of a normalisation -> what it adds, its statistics being constant."""
