"""A part of a batch on its way through a method, and the model as a function of its values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import layers
from attrain.attribution.targets import Target, for_captum, repeated, scores, select


class Scored(nn.Module):
    """A model as captum calls it: inputs to one tensor of scores, each forward pass counted.

    From a layer on, the inputs stand for the output of that layer and the first additional
    argument is what the model itself takes. single: it returns [N, 1], and [N] is wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: tuple[str, nn.Module] | None,
        counted: Callable[[int], None],
        single: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no second name of a part of the model.
        self.layer, self.counted, self.single = layer, counted, single

    def forward(self, values: Tensor, *args: Any) -> Tensor:
        """Return the scores of `values` [N, ...]."""
        if self.layer is None:
            out = scores(self.model(values, *args))
        else:
            with layers.replacing(*self.layer, lambda z: values):
                out = scores(self.model(*args))
        self.counted(len(values))
        return out.reshape(len(out)) if self.single else out


@dataclass
class Part:
    """Samples that go through a method together; `stop` of the batch are done after them.

    values: what is attributed to, inputs or outputs of a layer, [n, ...]. args: what the model
    takes besides, tensors [n, ...] or anything. baselines: [1 or n, ...], or for methods that
    take a distribution of them [B, ...]. mask: [1 or n, ...]. whole, x, x_args, x_baselines:
    the model from its inputs on, for what captum does at a layer itself.
    """

    stop: int
    forward: Scored
    values: Tensor
    args: tuple[Any, ...]
    target: Target
    options: dict[str, Any]
    batch_size: int
    whole: Scored
    x: Tensor
    x_args: tuple[Any, ...]
    layer: tuple[str, nn.Module] | None
    baselines: Tensor | None = None
    x_baselines: Tensor | None = None
    distribution: bool = False
    mask: Tensor | None = None

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that all of captum's methods share."""
        return {
            "target": for_captum(self.target),
            "additional_forward_args": self.args or None,
        }

    def outputs(self) -> Tensor:
        """Return the explained output [n]."""
        with torch.no_grad():
            return select(self.forward(self.values, *self.args), self.target)

    def outputs_at_baseline(self) -> Tensor:
        """Return the explained output [n] at the baseline, or its mean over several."""
        base = torch.zeros_like(self.values[:1]) if self.baselines is None else self.baselines
        n = len(self.values)
        if not self.distribution:
            base = base.expand(self.values.shape)
            with torch.no_grad():
                return select(self.forward(base, *self.args), self.target)
        many = len(base)
        args = tuple(
            each.repeat_interleave(many, 0) if _per_sample(each, n) else each for each in self.args
        )
        with torch.no_grad():
            out = self.forward(base.repeat(n, *[1] * (base.ndim - 1)), *args)
            return select(out, repeated(self.target, many)).reshape(n, many).mean(1)


def _per_sample(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def sliced(args: tuple[Any, ...], samples: int, start: int, stop: int) -> tuple[Any, ...]:
    """Return additional arguments of samples start to stop: tensors [samples, ...] are cut."""
    return tuple(each[start:stop] if _per_sample(each, samples) else each for each in args)
