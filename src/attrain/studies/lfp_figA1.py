"""Paper 001, figure A.1: LFP on the toy sets with activations that are not ReLU."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from attrain.errors import CreditWarning
from attrain.report.palette import LIGHT
from attrain.studies import figures, lfp_fig3
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.toy import (
    BUDGETS,
    CHANCE,
    DIVERGING,
    SEEDS,
    SETS,
    Config,
    best_accuracies,
    draw_boundary,
    draw_rates,
    restored,
    swept,
)

# The sigmoid has the sign of a negative input wrong. Footnote 12 turns the reward's sign there.
FLIPPED = "sigmoid, flipped"
ACTIVATIONS = ("silu", "elu", "tanh", "sigmoid", FLIPPED, "step")
SOURCE = "A.1"
GOAL = 0.9
"""Test accuracy that counts as trained."""
CLEARLY, CONSIDERABLY = 0.1, 0.03
"""Differences of accuracy that count as clearly better and as considerably worse."""

Results = Mapping[str, Result]


def rows(config: Config) -> list[Row]:
    """Return a row per toy set and activation."""
    return [
        Row(_name(data, activation), partial(_measure, config, data, activation))
        for data in SETS
        for activation in ACTIVATIONS
    ]


def _name(data: str, activation: str) -> str:
    return f"{data}, {activation}"


def _measure(config: Config, data: str, activation: str) -> Result:
    sign = "flip" if activation == FLIPPED else "keep"
    training = partial(lfp_fig3.training, "LFP", "sum", opposite_sign=sign)
    with warnings.catch_warnings():
        # Sigmoid does not keep the sign of its input: whether it learns all the same is measured.
        warnings.simplefilter("ignore", CreditWarning)
        return swept(config, data, training, activation=_function(activation), last=True)


def _function(activation: str) -> str:
    return "sigmoid" if activation == FLIPPED else activation


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    folder = out / "figures"
    drawn = [
        _draw_boundaries(results, folder / "lfp-figA1-boundaries.svg"),
        _draw_rates(config, results, folder / "lfp-figA1-rates.svg"),
    ]
    return Conclusion(_table(config, results), _claims(results), drawn)


def _table(config: Config, results: Results) -> list[TableRow]:
    table = []
    for name, result in results.items():
        accuracies = best_accuracies(result)
        table.append(
            measured(f"{name}: test accuracy at the best rate", accuracies, unit="accuracy")
        )
        table.append(measured(f"{name}: best rate", [config.rates[result["best"]]]))
    return table


def _claims(results: Results) -> list[Claim]:
    smooth = [activation for activation in ACTIVATIONS if activation not in ("step", FLIPPED)]
    return [
        *(_trains(results, activation) for activation in smooth),
        _above_chance(results),
        _worse(results, smooth),
        _depends_on_start(results, smooth),
    ]


def _means(results: Results, activation: str) -> dict[str, float]:
    return {
        data: float(np.mean(best_accuracies(results[_name(data, activation)]))) for data in SETS
    }


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in values.items())


def _reaches(
    results: Results, activation: str, goals: Mapping[str, float]
) -> bool | Literal["unclear"]:
    """Tell whether mean accuracies reach the goals; unclear where a standard deviation would."""
    verdict: bool | Literal["unclear"] = True
    for data, goal in goals.items():
        values = best_accuracies(results[_name(data, activation)])
        if np.mean(values) < goal:
            verdict = "unclear"
            if np.mean(values) + np.std(values, ddof=1) < goal:
                return False
    return verdict


def _trains(results: Results, activation: str) -> Claim:
    return {
        "claim": f"LFP trains networks with {activation} on all three sets (here: {GOAL:.0%})",
        "source": "figure A.1",
        "holds": _reaches(results, activation, dict.fromkeys(SETS, GOAL)),
        "figure": "test accuracy at the best rate, mean of the draws: "
        + _told(_means(results, activation)),
    }


def _above_chance(results: Results) -> Claim:
    goals = {data: chance + CLEARLY for data, chance in CHANCE.items()}
    return {
        "claim": "With the step function, accuracy is clearly better than chance (here: by 10 "
        "points or more on every set)",
        "source": SOURCE,
        "holds": _reaches(results, "step", goals),
        "figure": f"{_told(_means(results, 'step'))}; chance {_told(CHANCE)}",
    }


def _worse(results: Results, smooth: list[str]) -> Claim:
    step = _means(results, "step")
    others = [_means(results, activation) for activation in smooth]
    gaps = {data: min(each[data] for each in others) - step[data] for data in SETS}
    return {
        "claim": "With the step function, accuracy is considerably worse than with every other "
        "activation (here: by 3 points or more on every set)",
        "source": SOURCE,
        "holds": min(gaps.values()) >= CONSIDERABLY,
        "figure": "worst other activation minus step, points: "
        + ", ".join(f"{data} {100 * gap:+.1f}" for data, gap in gaps.items()),
    }


def _depends_on_start(results: Results, smooth: list[str]) -> Claim:
    spread = {
        activation: {
            data: float(np.std(best_accuracies(results[_name(data, activation)]), ddof=1))
            for data in SETS
        }
        for activation in (*smooth, "step")
    }
    most = {data: max(spread[activation][data] for activation in smooth) for data in SETS}
    return {
        "claim": "With the step function, the result depends strongly on the initial weights "
        "(here: its spread over the draws is the largest on every set)",
        "source": SOURCE,
        "holds": all(spread["step"][data] > most[data] for data in SETS),
        "figure": "standard deviation over the draws, points, step against the largest other: "
        + ", ".join(f"{d} {100 * spread['step'][d]:.1f} / {100 * most[d]:.1f}" for d in SETS),
    }


# Figures ------------------------------------------------------------------------------------------


def _draw_boundaries(results: Results, path: Path) -> Path:
    with figures.drawing(path, 11.4, 6.0) as figure:
        grid = figure.subplots(len(SETS), len(ACTIVATIONS))
        for line, (data, load) in zip(grid, SETS.items(), strict=True):
            points = load(0)
            for axes, activation in zip(line, ACTIVATIONS, strict=True):
                result = results[_name(data, activation)]
                parameters = result["parameters"][0]
                model = restored(parameters, points.num_classes, _function(activation), last=True)
                draw_boundary(axes, model, points, shown=70)
                axes.set_title(f"{activation}: {best_accuracies(result)[0]:.1%}")
            line[0].set_ylabel(data)
    return path


_LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "Dso^v*"
_COLOURS = (LIGHT[1], LIGHT[2], LIGHT[3], LIGHT[4], LIGHT[5], LIGHT[0])


def _draw_rates(config: Config, results: Results, path: Path) -> Path:
    with figures.drawing(path, 9.6, 3.1) as figure:
        for axes, data in zip(figure.subplots(1, len(SETS), sharey=True), SETS, strict=True):
            for k, activation in enumerate(ACTIVATIONS):
                draw_rates(
                    axes,
                    config,
                    results[_name(data, activation)],
                    marker=_MARKERS[k],
                    color=_COLOURS[k],
                    linestyle=_LINES[k],
                    label=activation,
                    spread=False,
                )
            axes.set_title(data)
        figure.axes[0].set_ylabel("test accuracy")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6
        )
    return path


STUDY = Study(
    id="lfp-figA1",
    title="Toy sets: LFP with SiLU, ELU, tanh, sigmoid and the step function",
    source="paper 2308.12053, figure A.1",
    deviations=(
        SEEDS,
        "The feedback of a batch is summed; figure 3 has both, and they differ in the rate alone.",
        "The swirl is drawn by our own formula; the paper only names a set like it.",
        DIVERGING,
        "The sigmoid is also here with the heuristic of footnote 12, which the paper only names.",
        "The paper prints its accuracies in the figure alone, so the table has none of them.",
    ),
    budgets=BUDGETS,
    rows=rows,
    conclude=conclude,
)
