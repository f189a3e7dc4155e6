"""Which unit of which layer each value of a tensor belongs to, as a model moves its values about.

Units are numbered through all layers. A map of units is an integer tensor of the shape of what it
describes; a second one says which sample each value belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NOBODY = -1
"""The unit of a value that is made of parameters and constants."""
MIXED = -2
"""The unit of a value in which several units met in a way that has no node."""


class Units(NamedTuple):
    """The unit and the sample of every value of a tensor, both of its shape.

    why: for mixed values, the call that mixed them.
    """

    unit: Tensor
    sample: Tensor
    why: str = ""

    @property
    def mixed(self) -> bool:
        """Whether some values belong to no one unit."""
        return bool((self.unit == MIXED).any())


_ATTRIBUTE = "_attrain_units"


def of(tensor: Any) -> Units | None:
    """Return the units of a tensor, None where it is none or carries nothing of the inputs."""
    return getattr(tensor, _ATTRIBUTE, None)


def put(tensor: Tensor, units: Units) -> None:
    """Say which units the values of `tensor` belong to."""
    setattr(tensor, _ATTRIBUTE, units)


def forget(tensor: Tensor) -> None:
    """Take the units from a tensor that lives on."""
    if hasattr(tensor, _ATTRIBUTE):
        delattr(tensor, _ATTRIBUTE)


def is_constant(numbers: Tensor, axis: int) -> bool:
    """Tell whether a map does not change along an axis; most are stretched there, which shows."""
    if numbers.shape[axis] == 1 or numbers.stride(axis) == 0:
        return True
    return bool((numbers == numbers.narrow(axis, 0, 1)).all())


def constant_axes(numbers: Tensor) -> tuple[int, ...]:
    """Return the axes along which a map does not change."""
    return tuple(axis for axis in range(numbers.ndim) if is_constant(numbers, axis))


@dataclass(frozen=True)
class Samples:
    """Which axis of a tensor counts the samples, alone or with something else.

    outer: a place of the axis is a sample and then `inner` others; else the others come first.
    """

    axis: int
    inner: int = 1
    outer: bool = True

    def split(self, values: Tensor, samples: int) -> Tensor:
        """Return values as [N, others, ...], without the others where there are none."""
        values = values.movedim(self.axis, 0)
        if self.inner == 1:
            return values
        if self.outer:
            return values.reshape(samples, self.inner, *values.shape[1:])
        return values.reshape(self.inner, samples, *values.shape[1:]).movedim(1, 0)

    def spread(self, numbers: Tensor) -> Tensor:
        """Return what belongs to each sample [N] along the axis."""
        if self.inner == 1:
            return numbers
        return numbers.repeat_interleave(self.inner) if self.outer else numbers.repeat(self.inner)


def samples_of(units: Units) -> Samples | None:
    """Return where the samples stand in a tensor of a run on two, None where no axis has them."""
    numbers = units.sample
    constant = constant_axes(numbers)
    varying = [axis for axis in range(numbers.ndim) if axis not in constant]
    if len(varying) != 1:
        return None
    axis = varying[0]
    for other in reversed(range(numbers.ndim)):
        if other != axis:
            numbers = numbers.select(other, 0)
    inner = len(numbers) // 2
    two = torch.arange(2, device=numbers.device)
    for outer in (True, False):
        found = Samples(axis, inner, outer)
        if len(numbers) == 2 * inner and torch.equal(found.spread(two), numbers):
            return found
    return None


@dataclass(frozen=True)
class Sums:
    """Adds up values by sample and unit: `total` is [N, K], of the units `unit` [K].

    axes: those that are summed over, after the samples have come first.
    """

    samples: Samples
    axes: tuple[int, ...]
    unit: Tensor

    def total(self, values: Tensor, samples: int) -> Tensor:
        """Return the sums [N, K] of values shaped as the tensor that this was made for."""
        values = self.samples.split(values, samples)
        if self.axes:
            values = values.sum(self.axes)
        return values.reshape(len(values), -1)


def sums(units: Units) -> Sums | None:
    """Return how values of these units are added up, None where samples have no axis."""
    samples = samples_of(units)
    if samples is None:
        return None
    first = samples.split(units.unit, 2)[0]
    constant = constant_axes(first)
    for axis in reversed(constant):
        first = first.select(axis, 0)
    return Sums(samples, tuple(axis + 1 for axis in constant), first.flatten())


def along(units: Units, axis: int) -> Tensor | None:
    """Return the units along one axis, None where they change along any other but the batch's."""
    numbers = units.unit
    for other in reversed(range(numbers.ndim)):
        if other == axis:
            continue
        if not is_constant(numbers, other):
            return None
        numbers = numbers.select(other, 0)
        axis -= other < axis
    return numbers


def shrunk(numbers: Tensor) -> Tensor:
    """Return a map with length 1 along every axis along which it does not change."""
    for axis in constant_axes(numbers):
        numbers = numbers.narrow(axis, 0, 1)
    return numbers


def paired(numbers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a map of new units, one per combination of old ones, and the combinations [K, n]."""
    shape = numbers[0].shape
    spread = torch.broadcast_tensors(*map(shrunk, numbers))  # type: ignore[no-untyped-call]
    stacked = torch.stack(spread, -1)
    combinations, places = torch.unique(
        stacked.reshape(-1, len(numbers)), dim=0, return_inverse=True
    )
    return places.reshape(stacked.shape[:-1]).expand(shape), combinations
