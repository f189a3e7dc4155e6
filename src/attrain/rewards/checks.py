"""Checks of what users hand to an objective: each fault gives one sentence."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attrain.errors import InputError


@dataclass(frozen=True)
class Labels:
    """Class indices `index` (0 where ignored) and what is to be known about their samples.

    `valid` is 1 where a sample counts and 0 where it is ignored, `sample` its weight, `total` the
    sum of the weights; `alike` says that every weight is 1.
    """

    index: Tensor
    valid: Tensor
    sample: Tensor
    total: Tensor | float
    alike: bool


def outputs(out: Tensor) -> Tensor:
    """Return `out` detached, at least in float32, so that ratios keep their digits."""
    if not isinstance(out, Tensor):
        raise InputError(
            f"out is a {type(out).__name__}, not a tensor: pass the model's outputs themselves, "
            "for instance its .logits."
        )
    if not out.is_floating_point():
        raise InputError(
            f"out has dtype {out.dtype}: wanted the model's real-valued outputs (logits), not "
            "predicted classes."
        )
    if out.numel() == 0:
        raise InputError(f"out of shape {tuple(out.shape)} holds no samples: skip empty batches.")
    o = out.detach()
    if o.dtype in (torch.float16, torch.bfloat16):
        o = o.float()
    return o


def finite(o: Tensor) -> None:
    """Raise if an output is NaN or infinite."""
    # The sum of finite numbers may overflow, so it can only acquit.
    if visible(o) and not math.isfinite(o.sum()):
        finite = torch.isfinite(o)
        if not finite.all():
            place = finite.logical_not().nonzero()[0].tolist()
            raise InputError(
                f"out holds {int(finite.numel() - finite.sum())} values of {o.numel()} that are "
                f"NaN or infinite, the first at {place}: look for such values in the inputs, or "
                "lower the learning rate or clip the gradients."
            )


def visible(values: Tensor) -> bool:
    """Tell whether values can be looked at without making the host wait or breaking a graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def refuse(values: Tensor, bad: Tensor, noun: str, fault: str) -> None:
    """Raise for the first of the `values` that are `bad`, naming it, its place and the `fault`."""
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        at = f" at {list(place)}" if place else ""
        value = values[place].item()
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        raise InputError(
            f"the {noun} {shown}{at} is {fault} ({int(bad.sum())} of {bad.numel()} are)."
        )


def same_device(o: Tensor, values: Tensor, noun: str) -> None:
    """Raise if `values` are on another device than the outputs."""
    if values.device != o.device:
        raise InputError(
            f"{noun} is on {values.device} but out is on {o.device}: move one of them with .to()."
        )


def class_dim(o: Tensor) -> int:
    """Return the dimension of the outputs that holds the classes, as in `F.cross_entropy`."""
    if o.dim() == 0:
        raise InputError(
            "out is a single number: wanted one output per class, shape [C], [N, C] or "
            "[N, C, d1, ...]."
        )
    return 0 if o.dim() == 1 else 1


def along(per_class: Tensor, dim: int, o: Tensor) -> Tensor:
    """Shape one value per class so that it broadcasts along dimension `dim` of the outputs."""
    return per_class.reshape([-1 if d == dim else 1 for d in range(o.dim())])


def labels(o: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Labels:
    """Check class indices and say how much each sample weighs."""
    dim = class_dim(o)
    wanted = o.shape[:dim] + o.shape[dim + 1 :]
    if not isinstance(target, Tensor):
        raise InputError(f"target is a {type(target).__name__}: wanted a tensor.")
    if target.shape != wanted:
        raise InputError(
            f"target has shape {tuple(target.shape)} where out of shape {tuple(o.shape)}, whose "
            f"classes stand in dimension {dim}, wants class indices of shape {tuple(wanted)} or "
            "floating-point values in the shape of out."
        )
    if target.is_floating_point() or target.is_complex():
        raise InputError(
            f"target has dtype {target.dtype} where class indices were wanted: use target.long()."
        )
    same_device(o, target, "target")
    classes = o.shape[dim]
    target = target.long()
    if visible(o) and not 0 <= ignore_index < classes:
        least, most = torch.aminmax(target)
        if least >= 0 and most < classes:
            ones = o.new_ones(target.shape)
            if weight is None:
                return Labels(target, ones, ones, float(ones.numel()), True)
            sample = weight[target]
            return Labels(target, ones, sample, sample.sum(), False)
    valid = target != ignore_index
    if visible(o):
        bad = valid & ((target < 0) | (target >= classes))
        fault = f"outside 0..{classes - 1} (out has {classes} classes)"
        if ignore_index != -100:
            fault += f" and not ignore_index={ignore_index}"
        refuse(target, bad, "label", fault)
    index = torch.where(valid, target, 0)
    held = valid.to(o.dtype)
    sample = held if weight is None else held * weight[index]
    return Labels(index, held, sample, sample.sum(), False)


def counted(total: float) -> None:
    """Raise if the labels of a batch weigh nothing in `total`."""
    if total == 0:
        raise InputError(
            "no label counts: all of them are ignore_index or their class weights are 0, so a "
            'mean is not defined. Skip this batch, or use reduction="sum".'
        )


def class_weight(o: Tensor, weight: Tensor | None, noun: str = "weight") -> Tensor | None:
    """Check and return one weight per class, in the outputs' precision."""
    if weight is None:
        return None
    classes = o.shape[class_dim(o)]
    if not isinstance(weight, Tensor) or weight.shape != (classes,):
        came = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(
            f"{noun} must be a tensor with one number per class, shape ({classes},), but {came} "
            "came."
        )
    same_device(o, weight, noun)
    weight = weight.detach().to(o.dtype)
    if visible(o):
        refuse(weight, ~(torch.isfinite(weight) & (weight >= 0)), noun, "negative or not finite")
    return weight


def smoothing(label_smoothing: float) -> None:
    """Raise if the share of the label to be moved lies outside 0..1."""
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing={label_smoothing} must lie in 0..1.")


def like_outputs(o: Tensor, target: Tensor, noun: str) -> Tensor:
    """Check and return a finite value for every output."""
    if not isinstance(target, Tensor) or target.shape != o.shape:
        came = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise InputError(
            f"{noun} must be a tensor in the shape of out, {tuple(o.shape)}, but {came} came: "
            "reshape one of them so that every output has its own value."
        )
    same_device(o, target, noun)
    target = target.detach().to(o.dtype)
    if visible(o):
        refuse(target, ~torch.isfinite(target), noun, "not finite")
    return target


def probabilities(o: Tensor, target: Tensor) -> Tensor:
    """Check and return a value in 0..1 for every output."""
    wanted = like_outputs(o, target, "target")
    if visible(o):
        refuse(wanted, (wanted < 0) | (wanted > 1), "target", "outside 0..1")
    return wanted


def factor(o: Tensor, weight: Tensor, noun: str) -> Tensor:
    """Check a weight of elementwise losses, which expands to the outputs as torch's do."""
    expands = isinstance(weight, Tensor) and weight.dim() <= o.dim()
    if expands:
        tail = o.shape[o.dim() - weight.dim() :]
        expands = all(w in (1, d) for w, d in zip(weight.shape, tail, strict=True))
    if not expands:
        came = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(
            f"{noun} must be a tensor that expands to the shape of out, {tuple(o.shape)}, but "
            f"{came} came."
        )
    same_device(o, weight, noun)
    weight = weight.detach().to(o.dtype)
    if visible(o):
        refuse(weight, ~(torch.isfinite(weight) & (weight >= 0)), noun, "negative or not finite")
    return weight


def per_output(o: Tensor, values: Tensor | float, noun: str) -> Tensor:
    """Check rewards that a user computed; one value too few dimensions must not pass silently."""
    if not isinstance(values, Tensor):
        if not isinstance(values, int | float):
            raise InputError(f"{noun} is a {type(values).__name__}: wanted a tensor or a number.")
        if not math.isfinite(values):
            raise InputError(f"{noun} is {values}: it must be finite.")
        return torch.full((), float(values), dtype=o.dtype, device=o.device)
    if values.dim() > 0 and (
        values.dim() != o.dim()
        or any(v not in (1, d) for v, d in zip(values.shape, o.shape, strict=True))
    ):
        raise InputError(
            f"{noun} of shape {tuple(values.shape)} does not fit out of shape {tuple(o.shape)}: it "
            f"needs as many dimensions, each equal or 1 ({noun}[:, None] gives every output of a "
            "sample the same)."
        )
    same_device(o, values, noun)
    values = values.detach().to(o.dtype)
    if visible(o):
        refuse(values, ~torch.isfinite(values), noun, "not finite")
    return values
