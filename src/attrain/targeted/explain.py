"""A pass of its own that explains outputs by units, without a gradient of any weight."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrain import marks
from attrain.attribution.conditions import as_in_evaluation
from attrain.attribution.lrp import frozen
from attrain.attribution.targets import scores
from attrain.credit import LFP, is_active
from attrain.errors import InputError
from attrain.rules.call import stabilise
from attrain.targeted.layers import KINDS, Layer
from attrain.targeted.scores import Function
from attrain.targeted.watching import Measuring, Watching


class Batch(NamedTuple):
    """What a model is called with, which outputs are explained, and whether the loss was finite.

    wanted: of each output, whether it is explained; None for all of them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    wanted: Tensor | None = None
    finite: bool = True

    def as_of(self, model: nn.Module) -> "Batch":
        """Return inputs in half precision, as mixed precision makes them, in the model's type."""
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

        def cast(value: Any) -> Any:
            half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
            return value.to(kind) if half and kind is not None else value

        kwargs = {name: cast(value) for name, value in self.kwargs.items()}
        return self._replace(args=tuple(map(cast, self.args)), kwargs=kwargs)


AXES = (1, -1)
"""The axes on which outputs may have their classes."""

FEW = 32
"""Places whose signs could agree by chance."""


def wanted(slopes: Tensor, classes: int | None) -> Tensor | None:
    """Return the outputs whose rise lowers the loss most, from dL/do: a class of each place.

    classes: the axis on which they are, where it is known. Places that the loss does not look at,
    such as padding, have none. None where a place has one output.

    Raises InputError where nothing tells the axis.
    """
    axis = _usual(slopes, classes)
    if axis is None and not bool(slopes.any()):
        return torch.zeros_like(slopes, dtype=torch.bool)
    if axis is None:
        single = [each for each in AXES if slopes.shape[each] == 1]
        axis = single[0] if len(single) == 1 else _convention(slopes, "the loss does")
    if slopes.ndim < 2 or slopes.shape[axis] == 1:
        return None
    found = chosen(slopes, slopes.argmin(axis, keepdim=True), axis)
    return found if slopes.ndim == 2 else found & (slopes != 0).any(axis, keepdim=True)


def chosen(out: Tensor, classes: Tensor, axis: int) -> Tensor:
    """Return of each output whether it is that of a class, `classes` of length 1 on `axis`."""
    return torch.zeros_like(out, dtype=torch.bool).scatter_(axis, classes, True)


def class_axis(slopes: Tensor) -> int | None:
    """Return the axis on which a loss has its classes, by dL/do, None where that cannot be told.

    Slopes of a cross entropy add up to zero over the classes of a place. Those of a likelihood are
    zero for all classes but one. Where a model is so sure that sums are mere rounding, signs are
    left, if there are enough of them: one class is wanted to rise, and all others to fall.
    """
    if slopes.ndim < 3 or not bool(slopes.any()):
        return None
    rounding = max(1e-4, 4 * torch.finfo(slopes.dtype).eps)
    wide = torch.promote_types(slopes.dtype, torch.float32)

    def balanced(axis: int) -> bool:
        size = torch.linalg.vector_norm(slopes, 1, axis, dtype=wide)
        return bool((slopes.sum(axis, dtype=wide).abs() <= rounding * size.max()).all())

    def alone(axis: int) -> bool:
        return not bool((slopes > 0).any()) and int(slopes.count_nonzero(axis).max()) <= 1

    def one_rises(axis: int) -> bool:
        rising = (slopes < 0).sum(axis)
        return int(rising.max()) <= 1 and int(rising.sum()) >= FEW

    for fits in (balanced, alone, one_rises):
        fitting = [axis for axis in AXES if slopes.shape[axis] > 1 and fits(axis)]
        if len(fitting) == 1:
            return fitting[0]
    return None


def labelled(out: Tensor, y: Tensor | None, classes: int | None) -> int:
    """Return the axis of outputs on which classes are, by labels: the one that they do without.

    Raises InputError where nothing tells it.
    """
    axis = _usual(out, classes)
    if axis is not None:
        return axis
    fitting = [] if y is None else [each for each in AXES if _without(out, each) == list(y.shape)]
    if len(fitting) == 1:
        return fitting[0]
    if y is not None and not fitting:
        return 1 if out.ndim > 3 else -1  # by which the labels are found at fault
    return _convention(out, "the labels do" if y is not None else "a batch without labels does")


def _usual(out: Tensor, classes: int | None) -> int | None:
    """Return the axis of classes where it is known or there is but one."""
    return -1 if out.ndim <= 2 else classes


def _without(out: Tensor, axis: int) -> list[int]:
    return [size for place, size in enumerate(out.shape) if place != axis % out.ndim]


def _convention(out: Tensor, told: str) -> int:
    """Return the axis of classes of outputs like pictures; raises InputError for other ones."""
    if out.ndim > 3:
        return 1
    raise InputError(
        f"outputs {list(out.shape)} may have their classes on axis 1, as torch's cross entropy "
        f"takes them, or on the last one, and {told} not tell: say Targeted(..., classes=1) or "
        "classes=-1."
    )


def output_layer(model: nn.Module, x: Tensor) -> str | None:
    """Return the name of the linear or convolution layer that a pass of inputs x calls last.

    None where there is none, or its weight is computed from others.
    """
    watching = Watching({}, {}, substitute=False)
    first = next(model.parameters(), x)
    with as_in_evaluation(model, x), torch.no_grad(), watching:
        model(x.to(first.device))
    return name_of(model, watching.last)


def name_of(model: nn.Module, weight: Tensor | None) -> str | None:
    """Return the name of the linear or convolution layer that owns a weight, the last of them."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, KINDS) and module._parameters.get("weight") is weight
    ]
    return names[-1] if names and weight is not None else None


def measure(
    model: nn.Module,
    layers: dict[int, Layer],
    norms: dict[int, Layer | None],
    batch: Batch,
    function: Function,
    *,
    flow: bool,
    forward: Callable[..., Any] | None = None,
) -> dict[str, tuple[Tensor, int]]:
    """Return scores [units] of layers, and from how many calls, for the explained outputs.

    layers, norms: as `Watching` takes them. flow: by the rules of credit, which make them
    relevances of nodes of the attribution graph; else by the gradient. forward: what is called, the
    model if not given, which runs in evaluation and is afterwards as it was.
    """
    if is_active():
        raise InputError(
            "units are explained by a pass of their own, and a credit context is active here: "
            "leave it before this call."
        )
    batch = batch.as_of(model)
    measuring = Measuring(function)
    watching = Watching(layers, norms, substitute=False, cut=True, measuring=measuring)
    example = next((each for each in batch.args if isinstance(each, Tensor)), torch.empty(0))
    with as_in_evaluation(model, example), frozen(model):
        with LFP(model, epsilon=0.0) if flow else nullcontext(), watching:
            out = scores((forward or model)(*batch.args, **batch.kwargs))
        if not out.requires_grad:
            raise InputError(
                "no gradient leads from the model's outputs to its layers, so that their units "
                "cannot be explained: use a score that needs no explanation, 'random' say."
            )
        start = torch.ones_like(out)
        if batch.wanted is not None:
            start = batch.wanted.to(out.dtype)
        mark = marks.get(out)
        if mark is not None and mark.epsilon:
            start = stabilise(start, out.detach(), mark.epsilon)
        torch.autograd.backward([out], [start])
    return measuring.found
