"""Follows the plan of a graph while its model runs, call by call."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrain.errors import InputError
from attrain.graph import arguments, steps, stream, units
from attrain.graph.plan import Plan
from attrain.graph.units import NOBODY, Samples, Units
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
            return self._embedded(func, args, kwargs)
        if family is bookkeeping or next(arguments.carrying(args, kwargs), None) is None:
            return func(*args, **kwargs)
        if family is product.opened:
            with self:
                return product.body_of(func)(*args, **kwargs)
        if self.plan.blocks and family is product.attention:
            with self:
                return arguments.attended(*args, **kwargs)
        held = self.plan.constants.get(self.next)
        due = self._due(func)
        if held is not None:
            args = (*args[:held], args[held].detach(), *args[held + 1 :])
        out = self.made(due, func, args, kwargs)
        if any(isinstance(step, steps.Written) for step in due):
            units.put(args[0], SEEN)
        return self._seen(out)

    def _embedded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        due, out = self._due(func), func(*args, **kwargs)
        if any(isinstance(step, steps.Constant) for step in due):
            return out
        out = self._seen(arguments.as_leaf(out))
        self.entered(due, args, kwargs, out)
        return out

    def entered(
        self, due: Sequence[steps.Step], args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Look at what an embedding made of the inputs."""

    def made(
        self, due: Sequence[steps.Step], func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Return what a call makes; `due` is what the plan has for it."""
        return func(*args, **kwargs)

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

    where: its place. unit: the units of its values, for one sample: as `split` tells them apart,
    and of length 1 along axes on which they do not change.
    """

    where: arguments.Where
    unit: Tensor
    samples: Samples

    def split(self, value: Tensor) -> Tensor:
        """Return the values by sample [N, ...]."""
        return self.samples.split(value, value.shape[self.samples.axis] // self.samples.inner)

    def joined(self, values: Tensor) -> Tensor:
        """Return values that were told apart by sample as they were."""
        axis, inner, outer = self.samples.axis, self.samples.inner, self.samples.outer
        if inner > 1:
            values = (values if outer else values.movedim(1, 0)).flatten(0, 1)
        return values.movedim(0, axis)


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
    where = step.kind.place_of_input(args)
    a = arguments.at(where, args, kwargs)
    unit = _along(step.columns, step.kind.axis(a.ndim), a.ndim, step.samples)
    return [Taking(where, unit, step.samples)]


@takes.register
def _(step: stream.Write, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Taking]:
    where = step.kind.place_of_input(args)
    a = arguments.at(where, args, kwargs)
    columns = torch.full((a.shape[-1],), NOBODY, device=a.device)
    for group, unit in zip(step.groups, step.units, strict=True):
        columns[group] = unit
    return [Taking(where, _along(columns, a.ndim - 1, a.ndim, step.samples), step.samples)]


@makes.register
def _(step: steps.Layer, out: Tensor) -> Taking | None:
    axis = step.kind.axis(out.ndim)
    numbers = torch.arange(out.shape[axis], device=out.device)
    return Taking(0, _along(numbers, axis, out.ndim, step.samples), step.samples)


def _along(numbers: Tensor, axis: int, ndim: int, samples: Samples) -> Tensor:
    form = [1] * ndim
    form[axis] = len(numbers)
    del form[samples.axis]
    return numbers.reshape(*([1] if samples.inner > 1 else []), *form)


@takes.register
def _(step: steps.Meeting, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Taking]:
    pair = _met(step, _stretched(args, kwargs))
    return [
        Taking(where, step.pairs[:, branch][pair], step.by.samples)
        for branch, where in enumerate(step.wheres)
    ]


@makes.register
def _(step: steps.Meeting, out: Tensor) -> Taking | None:
    return Taking(0, _met(step, out.shape), step.by.samples)


def _met(step: steps.Meeting, shape: Sequence[int]) -> Tensor:
    """Return which of a meeting's units each value of one sample is."""
    samples = step.by.samples
    form = list(shape)
    inner = [samples.inner] if samples.inner > 1 else []
    del form[samples.axis]
    form = [*inner, *form]
    for axis in step.by.axes:  # counted with the samples first
        form[axis - 1] = 1
    return step.by.unit.reshape(form)


def stretched(
    step: Any, where: arguments.Where, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """Return the argument at a place, stretched to the shape in which its units are told."""
    value = arguments.at(where, args, kwargs)
    if isinstance(step, steps.Meeting):
        return value.expand(_stretched(args, kwargs))
    return value


def _stretched(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Size:
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    shape: torch.Size = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        *[each.shape for each in given]
    )
    return shape
