"""Steps around `optimizer.step()`: clipping before it, the course of the decay after it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from attrain.errors import InputError, unknown

Course = Callable[[float], float]


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clipping: float = 0.02, *, floor: float = 1e-3
) -> None:
    """Shorten each neuron's gradient (or feedback) to `clipping` times the norm of its weights.

    A neuron is a row of a weight [out, ...]; vectors and single numbers are one unit as a whole.
    g <- g * min(1, clipping * max(|w|, floor) / |g|), in place (Brock et al. 2021,
    arXiv:2102.06171, equation 3). Call it after `backward()` and before `optimizer.step()`.

    Args:
        parameters: tensors with their `.grad`; those without one are left out.
        clipping: largest |g| / |w|.
        floor: least norm that weights count with, so that those at zero can move.

    Raises InputError for numbers that are not above 0 and finite.
    """
    for name, value in (("clipping", clipping), ("floor", floor)):
        if not 0.0 < value < math.inf:
            raise InputError(f"{name}={value} is not possible: give a finite number above 0.")
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        longest = _unit_norms(parameter.detach()).clamp_(min=floor).mul_(clipping)
        # A neuron without a gradient is divided by what keeps 0 / 0 away.
        length = _unit_norms(gradient).clamp_(min=torch.finfo(gradient.dtype).tiny)
        gradient.mul_(longest.div_(length).clamp_(max=1.0).to(gradient.dtype))


def _unit_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each row, shaped so that it broadcasts to `tensor`; of vectors, one."""
    over = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=over, keepdim=True)
    return norms


def constant(progress: float) -> float:
    """Return 1: the full strength all the time."""
    return 1.0


def ramp(progress: float, begin: float = 0.2, end: float = 0.7) -> float:
    """Return a strength that rises from 0 to 1 between two shares of the training.

    1 - (1 - u)^3, u being the way from `begin` to `end`: steep at first, as in gradual pruning (Zhu
    and Gupta 2017, arXiv:1710.01878, equation 1). The model learns first what it needs; what stays
    small is then drawn to zero.
    """
    return 1.0 - (1.0 - _way(progress, begin, end)) ** 3


def release(progress: float, begin: float = 0.5, end: float = 0.9) -> float:
    """Return a strength that falls from 1 to 0, along a cosine, between two shares of the training.

    What is left at the end recovers the size that the penalty took from it; under scaling by |w|
    what has become small stays small meanwhile.
    """
    return (1.0 + math.cos(math.pi * _way(progress, begin, end))) / 2


def _way(progress: float, begin: float, end: float) -> float:
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)


COURSES: dict[str, Course] = {"constant": constant, "ramp": ramp, "release": release}


def find_course(name: str | Course) -> Course:
    """Return a course, from 0..1 of the training to a strength, by its name in `COURSES`.

    Raises InputError for an unknown name, with the nearest known one.
    """
    if callable(name):
        return name
    if name not in COURSES:
        raise unknown("course of the weight decay", str(name), COURSES)
    return COURSES[name]


class DecaySchedule:
    """The course of an optimizer's weight decay, used as torch's schedulers are.

    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=6e-3)
    schedule = DecaySchedule(optimizer, steps=len(loader) * epochs)
    ...
    optimizer.step()
    schedule.step()

    Each parameter group's weight decay, as it is when the schedule is made, is its full strength.
    Under LFP this is the strength of an L1 penalty.

    Args:
        optimizer: any torch optimizer whose groups have a `weight_decay`.
        steps: updates of the whole training; after them the strength stays.
        course: a name in `COURSES`, or a function from 0..1 to a factor >= 0.

    Raises InputError for no steps, an unknown course, a factor below 0 or not finite, and an
    optimizer without weight decay.
    """

    def __init__(self, optimizer: Optimizer, steps: int, course: str | Course = "ramp") -> None:
        if steps < 1:
            raise InputError(f"steps={steps} is not possible: give the updates of the training.")
        self.optimizer, self.steps, self.done = optimizer, steps, 0
        self.course = find_course(course)
        if not any(group.get("weight_decay") for group in optimizer.param_groups):
            raise InputError(
                "no parameter group has a weight decay above 0, so there is nothing to schedule: "
                "make the optimizer with weight_decay=..., its full strength."
            )
        self.full = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        self._set()

    @property
    def strength(self) -> float:
        """The factor of the full weight decay that the next update is made with."""
        factor = float(self.course(min(self.done / max(self.steps - 1, 1), 1.0)))
        if not 0.0 <= factor < math.inf:
            raise InputError(f"the course gave {factor} after {self.done} steps: give >= 0.")
        return factor

    def step(self) -> None:
        """Go on to the next update: call it after `optimizer.step()`."""
        self.done += 1
        self._set()

    def _set(self) -> None:
        factor = self.strength
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            if full:
                group["weight_decay"] = full * factor

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as plain values."""
        return {"done": self.done, "full": list(self.full)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.done, self.full = int(state["done"]), list(state["full"])
        self._set()
