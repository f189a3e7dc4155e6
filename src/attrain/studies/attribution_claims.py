"""Table 1 of the proposal, sentence by sentence: what was measured, and whether it holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attrain.attribution import METHODS
from attrain.metrics.faithfulness import area
from attrain.metrics.stability import rank_correlation
from attrain.metrics.statistics import paired_difference
from attrain.studies.attribution_subject import VARIANTS, Config
from attrain.studies.study import Claim, Result

LOW = 1.5
"""Gradients of the same batch that a method of low cost takes at most."""
SAME = 0.9
"""Rank correlation from which on two attributions count as having the same order."""
SMALL = 0.05
"""A relative difference that counts as small."""
COMPLETE = 0.01
EXACT = 1e-3
"""A relative difference that single precision may leave."""

IG, LRP, RULES = "integrated gradients", "LRP", [n for n in VARIANTS if n.startswith("LRP,")]
Verdict = bool | Literal["unclear"]
SHARES = tuple(
    name
    for name, variant in VARIANTS.items()
    if METHODS[variant.method].sums or METHODS[variant.method].masked
)
"""Methods whose values are shares of the output, in its units; others are in units of their own."""
OF_SHARES = ("completeness", "shapley_error")
"""Measures that mean something for shares alone."""


@dataclass(frozen=True)
class Findings:
    """The results of all rows, read as values per seed."""

    config: Config
    results: Mapping[str, Result]

    def method(self, name: str, key: str) -> list[float]:
        """Return a number of a method per seed."""
        return [_number(self.of(name, seed)[key]) for seed in range(self.config.seeds)]

    def has(self, name: str, key: str) -> bool:
        """Tell whether a method was measured in this, and its values are of a kind that can be."""
        return key in self.of(name, 0) and (key not in OF_SHARES or name in SHARES)

    def of(self, name: str, seed: int) -> Result:
        """Return the row of a method and seed."""
        return self.results[f"{name}, seed {seed}"]

    def model(self, key: str) -> list[Any]:
        """Return what was measured of the model itself, per seed."""
        return [self.results[f"model, seed {seed}"][key] for seed in range(self.config.seeds)]

    def axioms(self, *keys: str) -> list[Any]:
        """Return what was measured of axioms per seed, found by nested keys."""
        found = [self.results[f"axioms, seed {seed}"] for seed in range(self.config.seeds)]
        for key in keys:
            found = [each[key] for each in found]
        return found

    def area(self, name: str, curve: str) -> list[float]:
        """Return the area under a curve of removal per seed; "random" is the random order."""
        if name == "random":
            return [area(each[curve]) for each in self.model("random")]
        return [area(self.of(name, seed)[curve]) for seed in range(self.config.seeds)]

    def random(self, key: str) -> list[float]:
        """Return a number of the random order per seed."""
        return [_number(each[key]) for each in self.model("random")]

    def cost(self, name: str) -> list[float]:
        """Return the cost in gradients of the same batch, a value per pair of measurements."""
        return [_number(each) for each in self.results[f"cost, {name}"]["ratios"]]

    def agreement(self) -> NDArray[np.float64]:
        """Return the median rank correlation of the sizes of cells, [methods, methods]."""
        import torch

        names = list(VARIANTS)
        found = np.ones((len(names), len(names)))
        cells = {
            name: torch.tensor(
                [row for seed in range(self.config.seeds) for row in self.of(name, seed)["cells"]]
            )
            for name in names
        }
        for i, one in enumerate(names):
            for j in range(i):
                each = rank_correlation(cells[one], cells[names[j]])
                found[i, j] = found[j, i] = float(each.nanquantile(0.5))
        return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def claims(found: Findings) -> list[Claim]:
    """Return the claims of the table's five lines."""
    return [
        *_saliency(found),
        *_integrated_gradients(found),
        *_lime(found),
        *_shap(found),
        *_lrp(found),
    ]


# Verdicts -----------------------------------------------------------------------------------------


def beyond(values: Sequence[float], threshold: float, *, above: bool) -> Verdict:
    """Tell whether the mean over seeds is above (or below) a threshold.

    Unclear where the threshold lies within the 95% interval, and for one seed.
    """
    gap = paired_difference(list(values), [threshold] * len(values))
    if not gap["clear"]:
        return "unclear"
    return bool((gap["mean"] > 0) == above)


def each_pair(values: Sequence[float], threshold: float, *, above: bool) -> Verdict:
    """Tell whether all repetitions are above (or below) a threshold; unclear where they differ."""
    told = {(value > threshold) == above for value in values}
    return told.pop() if len(told) == 1 else "unclear"


def less(values: Sequence[float], others: Sequence[float]) -> Verdict:
    """Tell whether values are below others, by paired seeds."""
    gap = paired_difference(list(values), list(others))
    return bool(gap["mean"] < 0) if gap["clear"] else "unclear"


def both(*verdicts: Verdict) -> Verdict:
    """Return whether all hold; one that does not decides, then one that is unclear."""
    if False in verdicts:
        return False
    return "unclear" if "unclear" in verdicts else True


def told(values: Sequence[float], unit: str = "") -> str:
    """Return mean and half of the 95% interval of values per seed."""
    gap = paired_difference(list(values), [0.0] * len(values))
    if gap["mean"] is None:
        return "unknown"
    scale = 100 if unit == "%" else 1
    spread = ""
    if gap["low"] is not None:
        spread = f" ± {scale * (gap['high'] - gap['low']) / 2:.2g}"
    return f"{scale * gap['mean']:.3g}{spread}{unit}"


def _claim(line: str, claim: str, holds: Verdict, figure: str) -> Claim:
    return {"claim": claim, "source": f"table 1, {line}", "holds": holds, "figure": figure}


def _ratio(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} ({low:.3g} to {high:.3g}) gradients"


# Lines of the table -------------------------------------------------------------------------------


def _saliency(found: Findings) -> list[Claim]:
    line, cost = "saliency maps", found.cost("saliency")
    noise = {
        name: found.method(name, "noise_change") for name in ("saliency", "SmoothGrad", IG, LRP)
    }
    signs = [_number(each) for each in found.axioms("wrong_signs")]
    gradient, path = (
        [_number(each) for each in found.axioms("saturation", kind)]
        for kind in ("gradient", "integrated")
    )
    mine, random = found.area("saliency", "accuracy"), found.area("random", "accuracy")
    return [
        _claim(
            line,
            f"Computationally efficient, low cost (here: at most {LOW} gradients)",
            each_pair(cost, LOW, above=False),
            _ratio(cost),
        ),
        _claim(
            line,
            "Noisy, sensitive to perturbations (here: noise on the input changes saliency more "
            "than integrated gradients)",
            less(noise[IG], noise["saliency"]),
            "relative change, " + _listed(noise) + "; of the input itself "
            f"{told(found.method('saliency', 'input_change'))}",
        ),
        _claim(
            line,
            "The sign of the gradient is not always interpretable (here: of the pixels of the "
            "largest gradient, raising 5% or more by a standard deviation moves the logit the "
            "other way)",
            beyond(signs, SMALL, above=True),
            f"{told(signs, '%')} of the pixels",
        ),
        _claim(
            line,
            "Saturates (here: the gradient accounts for less than half of the change of the "
            "probability from black to the sample, integrated gradients for more)",
            both(beyond(gradient, 0.5, above=False), beyond(path, 0.5, above=True)),
            f"share accounted for: gradient {told(gradient)}, integrated gradients {told(path)}",
        ),
        _claim(
            line,
            "Shows important regions (here: removing its top pixels lowers the accuracy more than "
            "a random order)",
            less(mine, random),
            f"area {told(mine, '%')}, random order {told(random, '%')}",
        ),
    ]


def _listed(values: Mapping[str, Sequence[float]], unit: str = "") -> str:
    return ", ".join(f"{name} {told(each, unit)}" for name, each in values.items())


def _integrated_gradients(found: Findings) -> list[Claim]:
    line, cost = "integrated gradients", found.cost(IG)
    error = found.method(IG, "completeness")
    missed, false, mattered = (
        [int(each) for each in found.axioms("missed", kind)]
        for kind in ("integrated", "false", "mattered")
    )
    invariant = [_number(each) for each in found.axioms("rewritten", IG, "change")]
    rank, change = (found.method(IG, f"baseline_{kind}") for kind in ("rank", "change"))
    dearer = {name: found.cost(name) for name in ("LIME", "Kernel SHAP")}
    lowest = min(float(np.min(each)) for each in dearer.values())
    return [
        _claim(
            line,
            "Satisfies completeness (here: the median error is at most 1% of f(x) - f(baseline))",
            beyond(error, COMPLETE, above=False),
            f"{told(error, '%')}, 50 steps; DeepLIFT "
            f"{told(found.method('DeepLIFT', 'completeness'), '%')}, LRP "
            f"{told(found.method(LRP, 'completeness'), '%')} of f(x)",
        ),
        _claim(
            line,
            "Satisfies sensitivity (here: a pixel that alone changes the output never gets 0, and "
            "a pixel equal to its baseline always does)",
            sum(missed) == 0 and sum(false) == 0,
            f"{sum(missed)} of {sum(mattered)} pixels that matter are missed, the gradient misses "
            f"{sum(found.axioms('missed', 'gradient'))}; {sum(false)} other pixels are not at 0",
        ),
        _claim(
            line,
            "Implementation invariance (here: the same function in other words changes it by less "
            "than 0.1%)",
            beyond(invariant, EXACT, above=False),
            f"relative change {told(invariant)}; "
            + _listed({
                name: [_number(each) for each in found.axioms("rewritten", name, "change")]
                for name in ("DeepLIFT", LRP, RULES[0])
            }),
        ),
        _claim(
            line,
            "Sensitive to the choice of the baseline (here: rank correlation below 0.9 between "
            "black, mean, blurred and noise)",
            beyond(rank, SAME, above=False),
            f"rank correlation {told(rank)}, relative change from black {told(change)}",
        ),
        _claim(
            line,
            "Costs more than basic gradients",
            each_pair(cost, LOW, above=True),
            _ratio(cost),
        ),
        _claim(
            line,
            "Moderate cost (here: below LIME and Kernel SHAP)",
            each_pair(cost, lowest, above=False),
            "; ".join(f"{name} {_ratio(each)}" for name, each in {IG: cost, **dearer}.items()),
        ),
    ]  # fmt: skip


def _agnostic(found: Findings, line: str, name: str) -> Claim:
    rank = [_number(each) for each in found.axioms("agnostic", name, "rank")]
    gradient = max(float(each) for each in found.axioms("agnostic", name, "gradient"))
    return _claim(
        line,
        "Model-agnostic (here: rounding the outputs, which leaves no gradient, keeps the order, "
        "with a rank correlation above 0.9)",
        beyond(rank, SAME, above=True),
        f"rank correlation {told(rank)}; largest gradient {gradient:g}",
    )


def _high(found: Findings, line: str, name: str) -> Claim:
    cost, other = found.cost(name), found.cost(IG)
    return _claim(
        line,
        "Computationally expensive, high cost (here: more than twice integrated gradients)",
        each_pair(cost, 2 * float(np.median(other)), above=True),
        f"{_ratio(cost)}; {1e3 * found.results[f'cost, {name}']['seconds']:.0f} ms a sample",
    )


def _lime(found: Findings) -> list[Claim]:
    line = "LIME"
    rank, spread = (found.method("LIME", f"seed_{kind}") for kind in ("rank", "spread"))
    local = found.method("LIME", "local_rank")
    names = list(VARIANTS)
    agreement = dict(zip(names, found.agreement()[names.index("LIME")], strict=True))
    del agreement["LIME"]
    nearest, furthest = (
        max(agreement, key=agreement.__getitem__),
        min(agreement, key=agreement.__getitem__),
    )
    return [
        _agnostic(found, line, "LIME"),
        _claim(
            line,
            "Local explanations (here: rank correlation of a sample's map with the mean map below "
            "0.9)",
            beyond(local, SAME, above=False),
            f"rank correlation {told(local)}",
        ),
        _high(found, line, "LIME"),
        _claim(
            line,
            "Unstable from sampling (here: rank correlation of two seeds below 0.9)",
            beyond(rank, SAME, above=False),
            f"rank correlation {told(rank)}, spread {told(spread, '%')} of the mean; "
            + _listed({
                name: found.method(name, "seed_rank")
                for name in ("Kernel SHAP", "GradientSHAP", "SmoothGrad")
            }),
        ),
        _claim(
            line,
            "Can disagree with other methods (here: median rank correlation of the sizes of cells "
            "below 0.9 with every other method)",
            max(agreement.values()) < SAME,
            f"nearest {nearest} {agreement[nearest]:.2f}, furthest {furthest} "
            f"{agreement[furthest]:.2f}",
        ),
    ]  # fmt: skip


def _shap(found: Findings) -> list[Claim]:
    line, name = "SHAP", "Kernel SHAP"
    fell, cells = (
        sum(int(each) for each in found.axioms("inconsistent", name, kind))
        for kind in ("fell", "cells")
    )
    local, overall = found.method(name, "local_rank"), found.method(name, "global_rank")
    error = {
        each: found.method(each, "shapley_error")
        for each in (name, "LIME", "DeepSHAP", "GradientSHAP")
    }
    rank = {each: found.method(each, "shapley_rank") for each in (name, "DeepSHAP", "GradientSHAP")}
    mixed = [_number(each) for each in found.model("interaction")]
    return [
        _agnostic(found, line, name),
        _claim(
            line,
            "Consistent (here: no cell's share falls when the model gains a term that the cell "
            "only adds to)",
            fell == 0,
            f"{fell} of {cells} cells; LIME "
            f"{sum(int(each) for each in found.axioms('inconsistent', 'LIME', 'fell'))}",
        ),
        _claim(
            line,
            "Local and global (here: rank correlation of a sample's map with the mean map below "
            "0.9, and of the mean map with what removing a cell everywhere changes above 0.5)",
            both(beyond(local, SAME, above=False), beyond(overall, 0.5, above=True)),
            f"local with mean {told(local)}, mean with removal {told(overall)}",
        ),
        _claim(
            line,
            "Handles interactions (here: within 5% of the exact Shapley values of ten cells, of a "
            "function of which sums leave more than 5% of the variance)",
            both(beyond(error[name], SMALL, above=False), beyond(mixed, SMALL, above=True)),
            f"relative error {_listed(error, '%')}; variance from interactions {told(mixed, '%')}",
        ),
        _claim(
            line,
            "Approximations are often used (here: DeepSHAP and GradientSHAP, with training samples "
            "as baselines, have the order of exact Shapley values from black, with rank "
            "correlations above 0.9)",
            both(*(beyond(each, SAME, above=True) for key, each in rank.items() if key != name)),
            f"rank correlation {_listed(rank)}",
        ),
        _high(found, line, name),
    ]


def _lrp(found: Findings) -> list[Claim]:
    line, cost = "LRP", found.cost(LRP)
    mine, random = found.area(LRP, "positive"), found.area("random", "probability")
    lost = {kind: _most_lost(found.axioms("conservation", LRP, kind)) for kind in KINDS}
    rewritten = {
        name: [_number(each) for each in found.axioms("rewritten", name, "change")]
        for name in (LRP, *RULES)
    }
    names = list(VARIANTS)
    agreement = found.agreement()[names.index(LRP)]
    ranks = {name: float(agreement[names.index(name)]) for name in RULES}
    areas = {name: found.area(name, "accuracy") for name in (LRP, *RULES)}
    means = {name: float(np.mean(each)) for name, each in areas.items()}
    spread = max(means.values()) - min(means.values())
    return [
        _claim(
            line,
            "Highlights positive contributions (here: removing the pixels of the largest positive "
            "relevance lowers the probability more than a random order)",
            less(mine, random),
            f"area {told(mine, '%')}, random order {told(random, '%')}",
        ),
        _claim(
            line,
            "Relevance is conserved from layer to layer (here: at every layer within 5% of the "
            "output)",
            beyond(lost["biases"], SMALL, above=False),
            f"most lost at a layer {told(lost['biases'], '%')}, where biases took it",
        ),
        _claim(
            line,
            "The same, in a model without biases (here: within 0.1%)",
            beyond(lost["no biases"], EXACT, above=False),
            f"most lost at a layer {told(lost['no biases'], '%')}",
        ),
        _claim(
            line,
            f"Computationally efficient, low cost (here: at most {LOW} gradients)",
            each_pair(cost, LOW, above=False),
            "; ".join(f"{name} {_ratio(found.cost(name))}" for name in (LRP, *RULES)),
        ),
        *(
            _claim(
                line,
                f"Depends on the network's structure (here: the same function in other words "
                f"changes {name} by 5% or more)",
                beyond(rewritten[name], SMALL, above=True),
                f"relative change {told(rewritten[name])}",
            )
            for name in (LRP, RULES[0])
        ),
        _claim(
            line,
            "Sensitive to the rules (here: median rank correlation of the sizes of cells with the "
            "epsilon rule's below 0.9, for every other composition)",
            max(ranks.values()) < SAME,
            ", ".join(f"{name} {each:.2f}" for name, each in ranks.items()),
        ),
        _claim(
            line,
            "Choosing the rules can be challenging (here: 5 points or more of the accuracy's area "
            "between the best and the worst of four)",
            spread >= SMALL,
            f"area {_listed(areas, '%')}",
        ),
    ]


KINDS = ("biases", "no biases")


def _most_lost(each: Sequence[Sequence[float | None]]) -> list[float]:
    return [max(_number(value) for value in layers) for layers in each]
