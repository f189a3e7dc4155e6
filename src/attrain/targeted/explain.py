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
from attrain.targeted.layers import Layer
from attrain.targeted.scores import Function
from attrain.targeted.watching import Measuring, Watching


class Batch(NamedTuple):
    """What a model is called with, which outputs are explained, and whether the loss was finite."""

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


def wanted(slopes: Tensor) -> Tensor | None:
    """Return the outputs whose rise lowers the loss most, from dL/do: the class of each sample.

    Outputs [N, C] or [N, ..., C] have their classes on the last axis, [N, C, H, W, ...] on the
    second, as torch's cross entropy takes them; None where there is one output per sample.
    """
    axis = class_axis(slopes)
    if slopes.ndim < 2 or slopes.shape[axis] == 1:
        return None
    return slopes.argmin(axis, keepdim=True)


def class_axis(out: Tensor) -> int:
    """Return the axis on which outputs have their classes."""
    return 1 if out.ndim > 3 else -1


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
            start = torch.zeros_like(out).scatter_(class_axis(out), batch.wanted, 1.0)
        mark = marks.get(out)
        if mark is not None and mark.epsilon:
            start = stabilise(start, out.detach(), mark.epsilon)
        torch.autograd.backward([out], [start])
    return measuring.found
