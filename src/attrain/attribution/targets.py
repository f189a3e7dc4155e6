"""Which output of a model is explained: targets as captum takes them, checked before anything runs.

A target is None for outputs [N] or [N, 1]; a class for outputs [N, C]; a tuple of indices for
outputs of more axes; or one of these for each sample, as a tensor [N] or a list of length N.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from attrain.errors import InputError

Target = tuple[int, ...] | Tensor | list[tuple[int, ...]] | None
"""A checked target: the same indices for all samples, a class of each, or indices of each."""


def scores(out: Any) -> Tensor:
    """Return what a model computed as one tensor: itself, its `logits`, or the first of several.

    Raises InputError where there is no such tensor.
    """
    found = out
    if isinstance(out, Mapping):
        found = out.get("logits")
    elif hasattr(out, "logits"):
        found = out.logits
    elif isinstance(out, (tuple, list)) and out:
        found = out[0]
    if not isinstance(found, Tensor):
        raise InputError(
            f"the model returns {type(out).__name__}, and a tensor is explained: let it return "
            "its scores, first of a tuple or as .logits."
        )
    return found


def check_target(target: Any, shape: Sequence[int], samples: int, device: torch.device) -> Target:
    """Return `target` for a model that returns [samples, *shape].

    Raises InputError for a target of the wrong kind, length or range, and for one that selects
    more than one number of each sample.
    """
    shape = tuple(shape)
    if target is None:
        if shape not in ((), (1,)):
            raise InputError(
                f"target=None is for a model that returns one number per sample; this one returns "
                f"{_shown(shape)}: give a class, or one of each sample."
            )
        return None
    if isinstance(target, Tensor) or hasattr(target, "__array__"):
        target = torch.as_tensor(target)
        if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
            raise InputError(
                f"target holds {target.dtype}, and classes are integers: give target.long()."
            )
        if target.numel() == 1 and (target.ndim == 0 or samples != 1):
            target = int(target)
        elif target.ndim != 1 or len(target) != samples:
            raise InputError(
                f"target has the shape {tuple(target.shape)}, and x {samples} samples: give one "
                f"class, or a tensor of shape ({samples},)."
            )
        else:
            return _classes(target.to(device).long(), shape)
    if isinstance(target, list):
        return _listed(target, shape, samples, device)
    indices = _indices(target)
    _in_range(indices, shape)
    return indices


def _listed(
    target: list[Any], shape: tuple[int, ...], samples: int, device: torch.device
) -> Target:
    if len(target) != samples:
        raise InputError(
            f"target has {len(target)} entries, and x {samples} samples: give one for each."
        )
    found = [_indices(each) for each in target]
    if all(isinstance(each, Integral) for each in target):
        return _classes(torch.tensor([each[0] for each in found], device=device), shape)
    for each in found:
        _in_range(each, shape)
    return found


def _indices(target: Any) -> tuple[int, ...]:
    indices = target if isinstance(target, tuple) else (target,)
    # A number of NumPy is an integer as well.
    if not indices or not all(
        isinstance(each, Integral) and not isinstance(each, bool) for each in indices
    ):
        raise InputError(
            f"target={target!r} is no class: give an integer, a tuple of integers, a tensor or "
            "list with one for each sample, or None."
        )
    return tuple(map(int, indices))


def _classes(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    for value in sorted(set(target.tolist())):
        _in_range((value,), shape)
    return target


def _in_range(indices: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if len(indices) != len(shape):
        wanted = "None" if not shape else f"a tuple of {len(shape)} indices"
        raise InputError(
            f"target {_named(indices)} does not select one number of what the model returns, "
            f"{_shown(shape)}: give {'a class' if len(shape) == 1 else wanted}."
        )
    for index, size in zip(indices, shape, strict=True):
        if not 0 <= index < size:
            raise InputError(
                f"target {_named(indices)} is out of range: the model returns {_shown(shape)}, so "
                f"give 0..{size - 1}."
            )


def _named(indices: tuple[int, ...]) -> str:
    return str(indices[0]) if len(indices) == 1 else str(indices)


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


def select(out: Tensor, target: Target) -> Tensor:
    """Return the explained output [N] of each sample."""
    if target is None:
        return out.reshape(len(out))
    if isinstance(target, Tensor):
        return out.gather(1, target[:, None])[:, 0]
    if isinstance(target, list):
        return torch.stack([out[n, *each] for n, each in enumerate(target)])
    index: Any = (slice(None), *target)
    return out[index]


def part(target: Target, start: int, stop: int) -> Target:
    """Return the target of samples start to stop."""
    return target[start:stop] if isinstance(target, (Tensor, list)) else target


def repeated(target: Target, times: int) -> Target:
    """Return the target of samples that are each repeated `times` times in a row."""
    if isinstance(target, Tensor):
        return target.repeat_interleave(times)
    if isinstance(target, list):
        return [each for each in target for _ in range(times)]
    return target


def for_captum(target: Target) -> Any:
    """Return the target in the form that captum takes."""
    return target[0] if isinstance(target, tuple) and len(target) == 1 else target
