"""How well attributions to time series find the box that tells the class, beside chance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import METHODS
from attrain.data import Data
from attrain.metrics.localisation import Reference, all_permuted, aup_aur, features_permuted
from attrain.studies.guided_subjects import SALIENCIES, TYPICAL, maps

FEATURES, ALL = "features permuted", "all permuted"
REFERENCES: Mapping[str, tuple[Reference, int]] = {
    FEATURES: (features_permuted, 6),
    # One draw hardly differs from the next: each sample has its own.
    ALL: (all_permuted, 2),
}
"""Random attributions: the benchmark's own and an order that knows nothing; and their draws."""


def explained(
    model: nn.Module, data: Data, x: Tensor, y: Tensor, title: str
) -> tuple[Tensor, float | None]:
    """Return the saliency [N, T, F] of the logits y [N] by one of SALIENCIES, and what it misses.

    The baseline of integrated gradients and DeepLIFT is the mean of the training series, that of
    GradientSHAP and DeepSHAP the first of them. What is missed is the mean |completeness error|
    over the mean |f(x) - f(baselines)|; None for a method that promises no sum.
    """
    known = data.train.tensors[0]
    mean, typical = known.mean(0, keepdim=True), known[:TYPICAL]
    values = maps(model, x, y, title, baseline=mean, typical=typical)
    chosen = METHODS[SALIENCIES[title][0]]
    if not chosen.sums:
        return values, None
    with torch.no_grad():
        base = model(mean if chosen.baselines == "one" else typical).mean(0)
        change = (model(x) - base).gather(1, y[:, None])[:, 0]
    missed = values.flatten(1).sum(1) - change
    return values, float(missed.abs().mean() / change.abs().mean())


def located(values: Tensor, box: Tensor) -> dict[str, list[float]]:
    """Return [AUP, AUR] of attributions [N, T, F], and the mean ones of each of REFERENCES."""
    found = {"measured": list(aup_aur(values, box)[:2])}
    for name, (reference, draws) in REFERENCES.items():
        each = [aup_aur(reference(values, draw), box) for draw in range(draws)]
        found[name] = [sum(areas[part] for areas in each) / draws for part in (0, 1)]
    return found


def measure(model: nn.Module, data: Data, samples: int) -> dict[str, dict[str, Any]]:
    """Return for each of SALIENCIES what `located` finds in the first test series, and its error.

    The true class is explained.
    """
    x, y = (each[:samples] for each in data.test.tensors)
    box = data.evidence["test"][:samples]
    found: dict[str, dict[str, Any]] = {}
    for title in SALIENCIES:
        values, error = explained(model, data, x, y, title)
        found[title] = {**located(values, box), "error": error}
    return found
