"""Shortcuts for most of a network's calls: a layer, a ReLU, a pool or a reshape of one activation.

They do what `linear.weighted`, `activation.relu` and `linear.passed` do there, without sorting the
call's arguments, which costs as much as the call itself where a model is small. Any other call they
leave to these.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrain.marks import Kind, Mark
from attrain.rules.call import Action, Credit, Settings, saving_is_watched
from attrain.rules.linear import Linear

Shortcut = Callable[[Settings, Any, Sequence[Any], dict[str, Any]], Tensor | None]


def layer(
    settings: Settings, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return a linear or convolution layer of data or a plain activation, None for another call."""
    if kwargs or len(args) < 3:
        return None
    x, weight, bias = args[:3]
    if not (_is_own(settings, weight) and (bias is None or _is_own(settings, bias))):
        return None
    owed = 0.0
    mark = getattr(x, "_attrain", None)
    if type(x) is not Tensor:
        return None
    if not x.requires_grad:
        if mark is not None:
            return None
    elif mark is None or mark.kind is not Kind.ACTIVATION:
        return None
    elif mark.epsilon:
        paid = settings.paid(x)
        if paid is None:
            owed = mark.epsilon
        else:
            x = paid
    out: Tensor
    again = id(weight) in settings.used and not saving_is_watched()
    if again or func is not _LINEAR or torch.is_autocast_enabled(x.device.type):
        out = func(*_entered(settings, (x, weight, bias), owed, again), *args[3:])
    else:
        out = Linear.apply(x, weight, bias, owed, settings.scale)
    settings.used[id(weight)] = weight
    return _finished(settings, out, settings.pending)


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


def _is_own(settings: Settings, tensor: Any) -> bool:
    """Tell whether a tensor is a parameter of the model that learns, just as it stands there."""
    kind = type(tensor)
    return (
        (kind is nn.Parameter or (kind is Tensor and id(tensor) in settings.parameters))
        and tensor.requires_grad
        and getattr(tensor, "_attrain", None) is None
    )


def _entered(
    settings: Settings, tensors: Sequence[Tensor | None], owed: float, again: bool
) -> Sequence[Tensor | None]:
    """Return activation, weight and bias past one `Credit` node, or as what this pass shares."""
    entered = list(tensors)
    places, plan = [], []
    for place, tensor in enumerate(tensors):
        if tensor is None or (place == 0 and not owed):
            continue
        if place and again:
            entered[place] = settings.shared(tensor)
            continue
        places.append(place)
        plan.append(settings.scaled_own if place else Action(epsilon=owed, own=True))
    if places:
        past = Credit.apply(plan, *[tensors[place] for place in places])
        for place, each in zip(places, past if len(places) > 1 else (past,), strict=True):
            entered[place] = each
        if owed:
            assert tensors[0] is not None and entered[0] is not None
            settings.pay(tensors[0], entered[0], plan, 0)
    return entered


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


_LINEAR = torch.nn.functional.linear
