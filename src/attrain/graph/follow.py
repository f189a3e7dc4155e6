"""Follows the plan of a graph while its model runs, call by call."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrain.errors import InputError
from attrain.graph import steps, units
from attrain.graph.plan import Plan
from attrain.graph.units import Units
from attrain.rules import linear, product
from attrain.rules.call import name_of
from attrain.rules.registry import REGISTRY, bookkeeping

SEEN = Units(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
"""Marks what carries values of the inputs, whichever units these are."""


class Follower(TorchFunctionMode):
    """Sees the calls that the plan has, in its order; all others go by.

    The inputs must be marked by SEEN, and require grad where they are floating point numbers.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.next = plan, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = REGISTRY.get(func)
        family = getattr(rule, "func", rule)
        if family is linear.embedded:
            self._due(func)
            return self._seen(steps.as_leaf(func(*args, **kwargs)))
        if family is bookkeeping or next(steps.carrying(args, kwargs), None) is None:
            return func(*args, **kwargs)
        if family is product.opened:
            with self:
                return product.body_of(func)(*args, **kwargs)
        return self._seen(self.made(self._due(func), func, args, kwargs))

    def made(
        self, due: Sequence[steps.Step], func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Return what a call makes; `due` is what the plan has for it."""
        raise NotImplementedError

    def end(self) -> None:
        """Raise InputError where the model made fewer calls than the plan has."""
        if self.next != len(self.plan.calls):
            raise InputError(
                "the model makes fewer calls than before: a graph is made of models that make the "
                "same calls for all inputs."
            )

    def _due(self, func: Any) -> Sequence[steps.Step]:
        if self.next == len(self.plan.calls) or self.plan.calls[self.next][0] is not func:
            raise InputError(
                f"the model calls {name_of(func)} where it did not before: a graph is made of "
                "models that make the same calls for all inputs."
            )
        self.next += 1
        return self.plan.calls[self.next - 1][1]

    def _seen(self, out: Any) -> Any:
        for each in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(each, Tensor) and each.requires_grad:
                units.put(each, SEEN)
        return out


class Taking(NamedTuple):
    """An argument that units hand their values to.

    where: its place. unit: the units of its values, of one sample: it has as many axes as the
    argument (stretched as the call does it) but that of the samples, `batch`, and may be of
    length 1 along any.
    """

    where: steps.Where
    unit: Tensor
    batch: int


@singledispatch
def takes(step: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Taking]:
    """Return the arguments in which a step of the plan takes the values of units; by its type."""
    return []


@singledispatch
def makes(step: Any, out: Tensor) -> Taking | None:
    """Return the units of what a step of the plan makes of them, None where it makes none."""
    return None


@takes.register
def _(step: steps.Layer, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Taking]:
    where: steps.Where = 0 if args else "input"
    a = steps.at(where, args, kwargs)
    return [Taking(where, _along(step.columns, step.kind.axis(a.ndim), a.ndim, step.samples.axis),
                   step.samples.axis)]  # fmt: skip


@makes.register
def _(step: steps.Layer, out: Tensor) -> Taking | None:
    axis = step.kind.axis(out.ndim)
    numbers = torch.arange(out.shape[axis], device=out.device)
    return Taking(0, _along(numbers, axis, out.ndim, step.samples.axis), step.samples.axis)


def _along(numbers: Tensor, axis: int, ndim: int, batch: int) -> Tensor:
    form = [1] * ndim
    form[axis] = len(numbers)
    return numbers.reshape(form).squeeze(batch)


@takes.register
def _(step: steps.Meeting, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Taking]:
    shape = _stretched(args, kwargs)
    pair = _met(step, shape)
    return [
        Taking(where, step.pairs[:, branch][pair], step.by.samples.axis)
        for branch, where in enumerate(step.wheres)
    ]


@makes.register
def _(step: steps.Meeting, out: Tensor) -> Taking | None:
    return Taking(0, _met(step, out.shape), step.by.samples.axis)


def _met(step: steps.Meeting, shape: Sequence[int]) -> Tensor:
    """Return which of a meeting's units each value of one sample is."""
    form = [size for axis, size in enumerate(shape) if axis != step.by.samples.axis]
    for axis in step.by.axes:  # counted with the samples first
        form[axis - 1] = 1
    return step.by.unit.reshape(form)


def stretched(step: Any, where: steps.Where, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return the argument at a place, stretched to the shape in which its units are told."""
    value = steps.at(where, args, kwargs)
    if isinstance(step, steps.Meeting):
        return value.expand(_stretched(args, kwargs))
    return value


def _stretched(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Size:
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    shape: torch.Size = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        *[each.shape for each in given]
    )
    return shape
