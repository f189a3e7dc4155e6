"""Paper 001, figure 3: LFP and gradient descent on three toy sets, over all learning rates."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from attrain import rewards
from attrain.studies import figures
from attrain.studies.stack import Training
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.toy import (
    BUDGETS,
    CLASSES,
    CURVES,
    DIVERGING,
    SEEDS,
    SETS,
    Array,
    Config,
    best_accuracies,
    draw_boundary,
    draw_rates,
    draw_training,
    late_fall,
    network,
    restored,
    swept,
    weights,
)

METHODS = ("LFP", "gradient descent")
REDUCTIONS = ("sum", "mean")
# What a batch's feedback and gradient are reduced by, side by side.
PAIRINGS = (("sum", "sum"), ("mean", "mean"), ("sum", "mean"))
SOURCE = "section 3.3"
THETA = 0.25
THETAS = np.linspace(0, 1, 51)
GOAL = 0.97
"""Test accuracy that counts as having learned a toy set."""
CLOSE = 0.01
"""Difference of accuracies that counts as none."""
PAPERS_RATIO, ABOUT = 0.01, 5
"""The paper's ratio of rates, and the factor within which another is about the same."""

Results = Mapping[str, Result]


def rows(config: Config) -> list[Row]:
    """Return a row per toy set, method and reduction over the batch."""
    return [
        Row(
            _name(data, method, reduction),
            partial(swept, config, data, partial(training, method, reduction)),
        )
        for data in SETS
        for method in METHODS
        for reduction in REDUCTIONS
    ]


def _name(data: str, method: str, reduction: str) -> str:
    return f"{data}, {method}, {reduction}"


def training(method: str, reduction: str, epochs: int, **options: Any) -> Training:
    """Return the way to train: LFP with reward #3, or gradient descent on the cross entropy."""
    lfp = method == "LFP"
    objective = partial(rewards.softmax if lfp else F.cross_entropy, reduction="sum")
    return Training(objective, lfp, reduction == "mean", epochs, options=options)


# What it adds up to -------------------------------------------------------------------------------


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    folder = out / "figures"
    drawn = [
        _draw_rates(config, results, folder / "lfp-fig3-rates.svg"),
        _draw_boundaries(results, folder / "lfp-fig3-boundaries.svg"),
        _draw_training(results, folder / "lfp-fig3-training.svg"),
        _draw_weights(results, folder / "lfp-fig3-weights.svg"),
    ]
    return Conclusion(_table(config, results), _claims(config, results), drawn)


def _table(config: Config, results: Results) -> list[TableRow]:
    table = []
    for data in SETS:
        for method in METHODS:
            for reduction in REDUCTIONS:
                result = results[_name(data, method, reduction)]
                label = f"{data}, {method}, {reduction}"
                paper = 1.0 if (data, method) == ("blobs", "LFP") else None
                table.append(
                    measured(
                        f"{label}: test accuracy at the best rate",
                        best_accuracies(result),
                        paper=paper,
                        unit="accuracy",
                    )
                )
                table.append(measured(f"{label}: best rate", [config.rates[result["best"]]]))
        for pairing in PAIRINGS:
            ratios = _ratios(config, results, data, *pairing)
            if ratios:
                label = f"{data}: rate of LFP ({pairing[0]}) / of gradient descent ({pairing[1]})"
                table.append(measured(label, ratios, paper=PAPERS_RATIO))
        table += [
            measured(f"{data}, {who}: neutral weights, theta {THETA}", values, unit="share")
            for who, values in _neutral(results, data).items()
        ]
    return table


def _ratios(config: Config, results: Results, data: str, lfp: str, gradient: str) -> list[float]:
    """Return, per draw, LFP's learning rate over gradient descent's for the same accuracy.

    A method's rate is the middle, on a logarithmic axis, of the span of rates that come within 1
    point of the best, which is the lower of the two methods' best mean accuracies. A draw in which
    a method does not come as close is left out.
    """
    two = [
        results[_name(data, "LFP", lfp)],
        results[_name(data, "gradient descent", gradient)],
    ]
    goal = min(float(np.mean(best_accuracies(each))) for each in two) - CLOSE
    ratios = []
    for draw in range(config.draws):
        good = [np.flatnonzero(np.array(each["accuracy"][draw]) >= goal) for each in two]
        if all(map(len, good)):
            first, second = (
                math.sqrt(config.rates[places[0]] * config.rates[places[-1]]) for places in good
            )
            ratios.append(first / second)
    return ratios


def shares(layers: list[Array]) -> Array:
    """Return the shares of large positive, neutral and large negative weights at each of THETAS.

    Each layer is divided by its largest |w| first (footnote 8). [3, thetas]
    """
    relative = np.concatenate([(layer / np.abs(layer).max()).ravel() for layer in layers])
    positive = (relative[:, None] > THETAS).mean(0)
    negative = (relative[:, None] < -THETAS).mean(0)
    return np.stack([positive, 1 - positive - negative, negative])


def _shares_of(results: Results, data: str, who: str) -> list[Array]:
    """Return the shares of every draw's weights, before training or after it (summed batches)."""
    result = results[_name(data, "LFP" if who == "start" else who, "sum")]
    classes = CLASSES[data]
    found = []
    for draw, parameters in enumerate(result["parameters"]):
        model = network(classes, draw) if who == "start" else restored(parameters, classes)
        found.append(shares(weights(model)))
    return found


def _neutral(results: Results, data: str) -> dict[str, list[float]]:
    place = int(np.argmin(np.abs(THETAS - THETA)))
    return {
        who: [float(each[1, place]) for each in _shares_of(results, data, who)]
        for who in ("start", *METHODS)
    }


def _claims(config: Config, results: Results) -> list[Claim]:
    best = {name: best_accuracies(result) for name, result in results.items()}
    return [
        *(_learns(best, data) for data in SETS),
        *(_as_good(best, data) for data in SETS),
        *(_rates_differ(config, results, *pairing) for pairing in PAIRINGS),
        *(_stable(results, data) for data in SETS),
        *(_sparser(results, data) for data in SETS),
        _several_rates(config, results),
    ]


def _learns(best: Mapping[str, list[float]], data: str) -> Claim:
    means = [float(np.mean(best[_name(data, "LFP", reduction)])) for reduction in REDUCTIONS]
    told = ", ".join(
        f"{mean:.1%} ({reduction})" for mean, reduction in zip(means, REDUCTIONS, strict=True)
    )
    return {
        "claim": f"LFP learns {data} with a high test accuracy (here: {GOAL:.0%} or more)",
        "source": SOURCE,
        "holds": min(means) >= GOAL,
        "figure": f"at the best rate {told}, mean of {len(best[_name(data, 'LFP', 'sum')])} draws",
    }


def _as_good(best: Mapping[str, list[float]], data: str) -> Claim:
    gaps = []
    for reduction in REDUCTIONS:
        two = [np.mean(best[_name(data, method, reduction)]) for method in METHODS]
        gaps.append(float(two[0] - two[1]))
    told = ", ".join(
        f"{100 * gap:+.2f} points ({reduction})"
        for gap, reduction in zip(gaps, REDUCTIONS, strict=True)
    )
    return {
        "claim": f"LFP and gradient descent are equally accurate on {data} (within 1 point)",
        "source": SOURCE,
        "holds": all(abs(gap) <= CLOSE for gap in gaps),
        "figure": f"LFP minus gradient descent, each at its best rate: {told}",
    }


def _rates_differ(config: Config, results: Results, lfp: str, gradient: str) -> Claim:
    ratios = {data: _ratios(config, results, data, lfp, gradient) for data in SETS}
    middle = {data: float(np.median(values)) for data, values in ratios.items() if values}
    within = [1 / ABOUT <= ratio / PAPERS_RATIO <= ABOUT for ratio in middle.values()]
    told = ", ".join(f"{data} {ratio:.3g}" for data, ratio in middle.items())
    return {
        "claim": "LFP needs about a hundredth of gradient descent's learning rate, here: to a "
        f"factor of {ABOUT} (batch: {lfp} for LFP, {gradient} for gradient descent)",
        "source": SOURCE,
        "holds": len(within) == len(SETS) and all(within),
        "figure": "middle of the rates within 1 point of the best, LFP's over gradient descent's, "
        f"median of the draws: {told or 'not reached; 0 draws'}",
    }


def _stable(results: Results, data: str) -> Claim:
    falls = {}
    for method in METHODS:
        falls[method] = late_fall(results[_name(data, method, "sum")])
    return {
        "claim": f"LFP's training accuracy converges stably on {data}",
        "source": "figure 3",
        "holds": falls["LFP"] <= 2 * CLOSE,
        "figure": "largest fall below the best so far in the second half of training, mean curve "
        f"at the best rate: LFP {100 * falls['LFP']:.1f} points, gradient descent "
        f"{100 * falls['gradient descent']:.1f}",
    }


def _sparser(results: Results, data: str) -> Claim:
    neutral = {who: float(np.mean(values)) for who, values in _neutral(results, data).items()}
    return {
        "claim": f"LFP's solutions on {data} have more neutral weights than the start and than "
        "gradient descent's",
        "source": "figure 3",
        "holds": neutral["LFP"] > max(neutral["start"], neutral["gradient descent"]),
        "figure": f"share with |w| at most {THETA} of the layer's largest, mean over the draws: "
        + ", ".join(f"{who} {share:.1%}" for who, share in neutral.items()),
    }


def _several_rates(config: Config, results: Results) -> Claim:
    means = np.mean(results[_name("blobs", "LFP", "sum")]["accuracy"], axis=0)
    perfect = [rate for rate, mean in zip(config.rates, means, strict=True) if mean == 1]
    spans = f", from {perfect[0]:g} to {perfect[-1]:g}" if perfect else ""
    return {
        "claim": "LFP reaches 100% on blobs at more than one learning rate",
        "source": "A.3",
        "holds": len(perfect) > 1,
        "figure": f"100% in every draw at {len(perfect)} of {len(means)} rates{spans} (sum)",
    }


# Figures ------------------------------------------------------------------------------------------

_COLOURS = {"LFP": figures.LFP, "gradient descent": figures.GRADIENT}
_DASHES = {"sum": "-", "mean": "--"}
_REDUCED = {"sum": "summed", "mean": "averaged"}
_MARKERS = {"LFP": "D", "gradient descent": "s"}


def _draw_rates(config: Config, results: Results, path: Path) -> Path:
    with figures.drawing(path, 9.6, 3.1) as figure:
        for axes, data in zip(figure.subplots(1, len(SETS), sharey=True), SETS, strict=True):
            for method in METHODS:
                for reduction in REDUCTIONS:
                    draw_rates(
                        axes,
                        config,
                        results[_name(data, method, reduction)],
                        marker=_MARKERS[method],
                        color=_COLOURS[method],
                        linestyle=_DASHES[reduction],
                        label=f"{method}, batch {_REDUCED[reduction]}",
                        spread=reduction == "sum",
                    )
            axes.set_title(data)
        figure.axes[0].set_ylabel("test accuracy")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
        )
    return path


def _draw_boundaries(results: Results, path: Path) -> Path:
    with figures.drawing(path, 7.6, 5.2) as figure:
        grid = figure.subplots(len(METHODS), len(SETS))
        for line, method in zip(grid, METHODS, strict=True):
            for axes, (data, load) in zip(line, SETS.items(), strict=True):
                result = results[_name(data, method, "sum")]
                points = load(0)
                model = restored(result["parameters"][0], points.num_classes)
                draw_boundary(axes, model, points)
                axes.set_title(f"{data}, {method}: {best_accuracies(result)[0]:.1%}")
    return path


def _draw_training(results: Results, path: Path) -> Path:
    with figures.drawing(path, 9.6, 2.9) as figure:
        for axes, data in zip(figure.subplots(1, len(SETS), sharey=True), SETS, strict=True):
            for method in METHODS:
                draw_training(
                    axes,
                    results[_name(data, method, "sum")],
                    color=_COLOURS[method],
                    linestyle="-" if method == "LFP" else "--",
                    label=method,
                )
            axes.set_title(data)
        figure.axes[0].set_ylabel("training accuracy")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
        )
    return path


def _draw_weights(results: Results, path: Path) -> Path:
    with figures.drawing(path, 9.0, 6.4) as figure:
        grid = figure.subplots(len(SETS), 3, sharex=True, sharey=True)
        for line, data in zip(grid, SETS, strict=True):
            for axes, who in zip(line, ("start", *METHODS), strict=True):
                positive, neutral, negative = np.mean(_shares_of(results, data, who), axis=0)
                axes.stackplot(
                    THETAS,
                    negative,
                    neutral,
                    positive,
                    colors=(figures.NEGATIVE, figures.NEUTRAL, figures.POSITIVE),
                    labels=("large negative", "neutral", "large positive"),
                    edgecolor="white",
                    linewidth=0.6,
                )
                axes.axvline(THETA, color="black", linewidth=0.8, linestyle=":")
                share = neutral[np.argmin(np.abs(THETAS - THETA))]
                axes.set(title=f"{data}, {who}: {share:.0%} neutral", xlim=(0, 1), ylim=(0, 1))
        for axes in grid[-1]:
            axes.set_xlabel("threshold \N{GREEK SMALL LETTER THETA}")
        for line in grid:
            line[0].set_ylabel("share of the weights")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
        )
    return path


STUDY = Study(
    id="lfp-fig3",
    title="Toy sets: LFP and gradient descent over all learning rates",
    source="paper 2308.12053, figure 3 and A.6.1",
    deviations=(
        SEEDS,
        "The paper does not say whether a batch's feedback is averaged or summed: both are here, "
        "for both methods.",
        "The swirl is drawn by our own formula; the paper only names a set like it.",
        DIVERGING,
        CURVES,
    ),
    budgets=BUDGETS,
    rows=rows,
    conclude=conclude,
)
