"""What is asked of targeted updates, checked before time is spent: one sentence for each fault."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from attrain.attribution.conditions import check_values
from attrain.errors import InputError

IGNORED = -100
"""The label of what a cross entropy leaves out, in torch."""


def options(
    density: Any, refresh: Any, warmup: Any, exploration: Any, memory: Any, seed: Any
) -> None:
    """Raise InputError for numbers out of range."""
    if not _number(density) or not 0 < density <= 1:
        raise InputError(
            f"density={density!r} is the share of units whose rows learn: it lies in (0, 1]."
        )
    if not _integer(refresh) or refresh < 1:
        raise InputError(
            f"refresh must be an integer >= 1, got {refresh!r}: rows are chosen again every "
            "refresh-th step."
        )
    if not _integer(warmup) or warmup < 0:
        raise InputError(
            f"warmup must be an integer >= 0, got {warmup!r}: so many steps train all rows."
        )
    if not _number(exploration) or not 0 <= exploration < 1:
        raise InputError(
            f"exploration={exploration!r} is the share of rows that are chosen by chance: it lies "
            "in [0, 1); for chance alone use score='random'."
        )
    if not _number(memory) or not 0 <= memory < 1:
        raise InputError(
            f"memory={memory!r} is the share of earlier refreshes in a score: it lies in [0, 1)."
        )
    if not _integer(seed) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed must be an integer of 64 bits, got {seed!r}.")


def axis(classes: Any) -> None:
    """Raise InputError for what is no axis that classes may be on."""
    if classes is not None and (not _integer(classes) or classes not in (1, -1)):
        raise InputError(
            f"classes is 1 or -1, the axis of outputs on which classes are, got {classes!r}."
        )


def names(dense: Any, on_refresh: Any) -> None:
    """Raise InputError for what is no name, nor several, and for what cannot be called."""
    several = isinstance(dense, (list, tuple)) and all(isinstance(each, str) for each in dense)
    if dense is not None and not isinstance(dense, str) and not several:
        raise InputError(f"dense takes names or patterns of layers, got {dense!r}.")
    if on_refresh is not None and not callable(on_refresh):
        raise InputError(
            f"on_refresh is called with a Refresh, and {type(on_refresh).__name__} cannot be."
        )


def batches(given: Any) -> None:
    """Raise InputError for one batch in place of several, and for what is neither."""
    one = isinstance(given, tuple) and len(given) == 2 and all(map(_maybe_tensor, given))
    if one or isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise InputError(
            f"protect takes batches, a loader or a list of (x, y), got {type(given).__name__}: for "
            "one batch, [(x, y)] or [x]."
        )


def pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return inputs and class indices of a batch; raises InputError for what is neither."""
    given = tuple(batch) if isinstance(batch, (tuple, list)) else (batch, None)
    kinds = [type(each).__name__ for each in given]
    if len(given) != 2 or not isinstance(given[0], Tensor) or not _maybe_tensor(given[1]):
        raise InputError(
            f"a batch for protect is (x, y) or x, tensors both, got {', '.join(kinds)}: to call "
            "the model otherwise, give forward=."
        )
    return given


def _maybe_tensor(value: Any) -> bool:
    return value is None or isinstance(value, Tensor)


def labels(y: Tensor | None, out: Tensor, axis: int) -> None:
    """Raise InputError for labels that name no outputs."""
    if y is None:
        return
    wanted = [size for place, size in enumerate(out.shape) if place != axis % out.ndim]
    classes = out.shape[axis]
    if y.dtype != torch.int64 or list(y.shape) != wanted:
        raise InputError(
            f"class indices for outputs {list(out.shape)} are int64 {wanted}, got {y.dtype} "
            f"{list(y.shape)}."
        )
    y = y[y != IGNORED]
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InputError(
            f"labels go from {int(y.min())} to {int(y.max())}, and the model names {classes} "
            f"classes, 0 to {classes - 1}: give forward= where the old task has another head."
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def model(given: Any) -> None:
    """Raise InputError for what is no module, has no values yet, or is wrapped or sharded."""
    check_values(given)
    if isinstance(given, nn.parallel.DistributedDataParallel):
        raise InputError(
            "the model is in DistributedDataParallel already: give Targeted the module inside, and "
            "wrap Targeted."
        )
    for name, each in given.named_parameters():
        if type(each).__name__ == "DTensor" or type(each.data).__name__ == "DTensor":
            raise InputError(
                f"{name!r} of the model is sharded, and rows are taken of whole weights: use "
                "DistributedDataParallel around Targeted."
            )


def scores(found: Any, units: int, name: str, function: Callable[..., Any]) -> None:
    """Raise InputError unless a score function returned one number per unit."""
    if isinstance(found, Tensor) and found.shape == (units,):
        return
    got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    told = getattr(function, "__name__", type(function).__name__)
    raise InputError(
        f"the score {told} returned {got} for layer {name!r}, and one number per unit, [{units}], "
        "is wanted."
    )


def optimizers(given: Any, parts: Iterable[Tensor]) -> None:
    """Raise InputError unless the optimizers hold every parameter that learns."""
    if not given:
        raise InputError("step takes the optimizer that has just made its step: step(optimizer).")
    for each in given:
        if not isinstance(each, torch.optim.Optimizer):
            raise InputError(f"step takes a torch.optim.Optimizer, got {type(each).__name__}.")
        if isinstance(each, torch.optim.LBFGS):
            raise InputError(
                "LBFGS remembers all parameters as one, so that rows cannot come and go: use an "
                "optimizer that remembers each by itself, such as SGD or AdamW."
            )
    held = {id(p) for each in given for group in each.param_groups for p in group["params"]}
    missing = sum(id(part) not in held for part in parts)
    if missing:
        raise InputError(
            f"the optimizer lacks {missing} of the parameters that hold rows: build it on "
            "targeted.parameters(), not on those of the model."
        )


def recomputed(name: str) -> None:
    """Raise InputError inside an activation checkpoint, whose second pass knows of no rows."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    inside = hooks is not None and hooks[0].__module__ == checkpoint.__name__
    if hooks is None and not torch.is_grad_enabled():  # a reentrant one, or torch.no_grad
        frame: FrameType | None = sys._getframe()
        while frame is not None and not inside:
            inside = frame.f_code.co_filename == checkpoint.__file__
            frame = frame.f_back
    if inside:
        raise InputError(
            f"layer {name!r} is called in an activation checkpoint, and the pass that computes it "
            f"again does not know which rows learn: train it as ever, dense=[{name!r}, ...], or "
            "leave the checkpoint out."
        )


def output(last: str | None, assumed: str) -> None:
    """Raise InputError where another layer than the one assumed makes the output."""
    if last is not None and last != assumed:
        raise InputError(
            f"the forward pass ends with layer {last!r}, and {assumed!r}, which the model "
            f"registers last, was taken for its output layer: name it, dense=[{last!r}]."
        )
