"""Does an attribution depend on what the model has learned? Adebayo et al., 2018."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.metrics.stability import rank_correlation
from attrain.models import seeded

# Models are usually made from small seeds: the same one would bring back the start of training,
# which what was learned is still close to.
_FAR = 1_000_003

Explain = Callable[[nn.Module], Tensor]
"""From a model to the attributions [N, ...] of the same samples."""


@dataclass(frozen=True)
class Similarity:
    """How alike attributions are once a layer, and all behind it, have random parameters.

    layer: its name in the model. mean: the mean over the samples of the rank correlation of
    |attribution| with that of the trained model, in -1..1; None where no sample has an order in
    both. samples: over how many it is.
    """

    layer: str
    mean: float | None
    samples: int


def randomised(model: nn.Module, *, seed: int = 0, cascade: bool = True) -> Iterator[
    tuple[str, nn.Module]
]:  # fmt: skip
    """Yield copies of the model with random parameters, from the last layer to the first.

    A layer is a module with parameters of its own, in the order of model.named_modules(). cascade:
    each copy keeps what was randomised before, so that the last has nothing of what was learned;
    else one layer alone. Layers with reset_parameters() start anew by it, others draw from a normal
    distribution with the mean and deviation of their values. The model stays as it is. Raises
    InputError for a model without parameters.
    """
    names = layers_of(model)
    if not names:
        raise InputError("the model has no parameters: there is nothing to randomise.")
    current = copy.deepcopy(model)
    for place, name in enumerate(reversed(names)):
        if not cascade:
            current = copy.deepcopy(model)
        with seeded(_FAR * (seed + 1) + place), torch.no_grad():
            _reset(current.get_submodule(name))
        yield name, copy.deepcopy(current) if cascade else current


def layers_of(model: nn.Module) -> list[str]:
    """Return the names of the modules with parameters of their own, from the first to the last."""
    return [n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]


def model_randomisation(
    model: nn.Module, explain: Explain, *, seed: int = 0, cascade: bool = True
) -> list[Similarity]:
    """Return how much attributions keep of their order as the model's parameters turn random.

    explain: from a model to attributions of the same samples. An attribution that stays the same
    (a mean near 1) shows the data, not the model. Adebayo et al., 2018, section 3, on absolute
    values. Raises InputError as `randomised`.
    """
    trained = explain(model).detach().abs()
    found = []
    for name, other in randomised(model, seed=seed, cascade=cascade):
        each = rank_correlation(trained, explain(other).detach().abs())
        kept = each[~each.isnan()]
        mean = float(kept.mean()) if len(kept) else None
        found.append(Similarity(name, mean, len(kept)))
    return found


def _reset(layer: nn.Module) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        values = parameter.double()
        spread = float(values.std(correction=0))
        parameter.normal_(float(values.mean()), spread)
