"""What makes a unit critical: scores by name, the higher the sooner it learns."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

SMALLEST = 0.05
"""Share of its layer's mean relevance that is added to every unit's in `ratio`."""


@dataclass(frozen=True)
class Units:
    """What a score is computed from: a layer's units in one batch.

    name: of the layer. weight: its weight [units, ...]. z: what the units make [N, units, places],
    before the activation and after a BatchNorm; linear layers of one vector per sample have one
    place. s: dL/dz [N, units, places]; under credit minus the credit per unit of z.
    """

    name: str
    weight: Tensor
    z: Tensor
    s: Tensor


Function = Callable[[Units], Tensor]
"""A score of your own: from the `Units` of a layer to one number for each [units]."""


@dataclass(frozen=True)
class Score:
    """A score: what it is computed from, and where it comes from.

    needs: "training", `function` of the last training pass; "relevance", `function` of a pass of
    its own that explains outputs; "flow", the same under the rules of credit; "nothing".
    signed: the size of the function's mean over calls and processes counts. drawn: scores are
    chance. once: rows are chosen once and stay. final: from the smoothed scores and the
    relevance for an old task (`Targeted.protect`) to the score.
    """

    source: str
    needs: str = "nothing"
    function: Function | None = None
    signed: bool = False
    drawn: bool = False
    once: bool = False
    final: Callable[[Tensor, Tensor], Tensor] | None = None


def share(units: Units) -> Tensor:
    """Return mean_n |z_nj s_nj|, the sizes added up over places."""
    return (units.z * units.s).abs_().sum(2).mean(0)


def node(units: Units) -> Tensor:
    """Return mean_n z_nj s_nj, the relevance of a node of the attribution graph."""
    return (units.z * units.s).sum(2).mean(0)


def slope(units: Units) -> Tensor:
    """Return mean_n |s_nj|, the sizes added up over places."""
    return units.s.abs().sum(2).mean(0)


def size(units: Units) -> Tensor:
    """Return the mean of max(z_nj, 0) over samples and places."""
    return units.z.clamp_min(0).mean((0, 2))


def _least(_: Tensor, protected: Tensor) -> Tensor:
    return -protected


def _ratio(error: Tensor, protected: Tensor) -> Tensor:
    return error / (protected + SMALLEST * protected.mean()).clamp_min(1e-30)


SCORES: dict[str, Score] = {
    "flow": Score(
        "|R_j|, the relevance of the unit's node in the attribution graph of the batch, of the "
        "outputs that the loss wants to rise most",
        "flow",
        node,
        signed=True,
    ),
    "error": Score(
        "mean_n |z_nj dL/dz_nj|: the unit's share in predicted minus target attribution",
        "training",
        share,
    ),
    "relevance": Score(
        "mean_n |z_nj do_n/dz_nj| of the outputs that the loss wants to rise most",
        "relevance",
        share,
    ),
    "low_relevance": Score(
        "minus the relevance for an old task, given to Targeted.protect", final=_least
    ),
    "ratio": Score(
        "error / (relevance for an old task + .05 of its mean over the layer)",
        "training",
        share,
        final=_ratio,
    ),
    "gradient": Score("mean_n |dL/dz_nj|", "training", slope),
    "activation": Score("mean of max(z_nj, 0), what a ReLU hands on", "training", size),
    "random": Score("chance, drawn anew at each refresh", drawn=True),
    "fixed": Score("chance, drawn once", drawn=True, once=True),
}
"""Scores by name."""
