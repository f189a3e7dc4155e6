"""Shortcuts for most of a network's calls: a ReLU, a pool or a reshape of one plain activation.

They do what `activation.relu` and `linear.passed` do there, without sorting the call's arguments,
which costs as much as the call itself where a model is small. Any other call they leave to these.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attrain.marks import Kind, Mark
from attrain.rules.call import Settings

Shortcut = Callable[[Settings, Any, Sequence[Any], dict[str, Any]], Tensor | None]


def relu(
    settings: Settings, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return ReLU of a plain activation, None where the call is another."""
    mark = _mark_of_only(args, kwargs)
    if mark is None or len(args) > 1 or kwargs.get("inplace"):
        return None
    z: Tensor = args[0]
    out = torch.relu(z)
    root = mark.root(z)
    return _finished(
        settings,
        out,
        Mark(epsilon=mark.epsilon, root=z if root is None else root, audit=mark.audit),
    )


def move(
    settings: Settings, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return a plain activation pooled or in another shape, None where the call is another."""
    mark = _mark_of_only(args, kwargs)
    if mark is None or kwargs.get("return_indices"):
        return None
    out: Tensor = func(*args, **kwargs)
    return out if out is args[0] else _finished(settings, out, settings.owing(mark.epsilon))


def _mark_of_only(args: Sequence[Any], kwargs: dict[str, Any]) -> Mark | None:
    """Return the mark of the one activation among the arguments, None where there is more to it."""
    x = args[0] if args else None
    if type(x) is not Tensor or not x.requires_grad:
        return None
    mark: Mark | None = getattr(x, "_attrain", None)
    if mark is None or mark.kind is not Kind.ACTIVATION or mark.raw:
        return None
    for value in args[1:]:
        if isinstance(value, Tensor):
            return None
    for value in kwargs.values():
        if isinstance(value, Tensor):
            return None
    return mark


def _finished(settings: Settings, out: Tensor, mark: Mark) -> Tensor:
    out._attrain = mark  # type: ignore[attr-defined]
    settings.last = out
    settings.calls += 1
    return out
