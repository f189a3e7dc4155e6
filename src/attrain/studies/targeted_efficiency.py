"""Targeted updates from scratch: what they cost, and what they come to beside plain controls."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attrain.metrics.robustness import noise_curve
from attrain.metrics.statistics import paired_difference
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.targeted_subjects import (
    SHOWN,
    Arm,
    Setup,
    Training,
    accuracy,
    best_rate,
    dense,
    kept,
    loop,
    parts,
    time_ratios,
    trained,
    tried,
)

WARM = 0.1
"""Share of the steps that train all neurons first."""
DENSITIES = (0.25, 0.1)
EQUAL: Mapping[float, float] = {0.25: 0.82, 0.1: 0.78}
"""Density -> share of its steps after which a dense run has taken the time of a targeted one."""
SOONER = (0.5,)
"""Further shares of the steps that dense runs are stopped at."""
SMALLER = (0.8, 0.5)
"""Further shares of the neurons that dense networks are made of: 0.8 takes about the time of a
targeted one of density 0.25."""
KEPT, SIGMA = 0.1, 0.3
"""Share of the neurons that are left, and noise as a share of the range of a pixel."""

FLOW, ERROR, RELEVANCE, GRADIENT = "flow", "error", "relevance", "gradient norm"
RANDOM, FIXED = "random", "fixed random"
SCORES: Mapping[str, str] = {
    FLOW: "flow",
    ERROR: "error",
    RELEVANCE: "relevance",
    GRADIENT: "gradient",
    RANDOM: "random",
    FIXED: "fixed",
}
"""What selects neurons, as the tables call it and as `attrain.Targeted` does; the proposal's own
idea is the first."""
COLD = (FLOW, ERROR, FIXED)
"""Those that are measured without a warm-up, too."""
TRUNCATED = (FLOW, GRADIENT)
"""Those whose input gradient is taken through the selected neurons alone, too; the gradient norm
with it is much like meProp (Sun et al., 2017)."""
DENSE = "dense"
FASTER = 0.2
"""A rate at which dense training is measured, too: what is left with few neurons depends on it."""
FAST = f"dense, rate {FASTER}"


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    hidden: widths of the MLP. steps: of batches of `batch_size`, of half as many samples for the
    CNN. rates, tuning: what each arm tries, on that many seeds; cnn_rates: with the CNN, on one.
    seeds, cnn_seeds: of the results; 0 leaves the CNN out. pairs: of blocks of steps that are
    timed.
    """

    data: str = "mnist"
    hidden: tuple[int, ...] = (500, 500)
    steps: int = 300
    batch_size: int = 128
    rates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    cnn_rates: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1)
    tuning: int = 1
    seeds: int = 5
    cnn_seeds: int = 3
    pairs: int = 7
    block: int = 50


def named(score: str, density: float, *, cold: bool = False, truncated: bool = False) -> str:
    """Return the name of a targeted arm."""
    more = (", no warm-up" if cold else "") + (", truncated" if truncated else "")
    return f"{score} at density {density}{more}"


def _targeted(score: str, density: float, *, cold: bool = False, truncated: bool = False) -> Arm:
    return Arm(
        named(score, density, cold=cold, truncated=truncated),
        SCORES[score],
        density,
        warmup=0.0 if cold else WARM,
        input_gradient="selected" if truncated else "full",
    )


def _warm(name: str) -> str:
    """Return the arm with a warm-up that has the same steps after it."""
    return name.removesuffix(", no warm-up")


def equal(density: float) -> str:
    """Return the name of the dense arm that takes as long as a targeted one of that density."""
    return f"dense, {EQUAL[density]:.0%} of the steps"


def small(share: float) -> str:
    """Return the name of the dense arm with that share of the neurons."""
    return f"dense, {share:.0%} of the neurons"


def arms() -> dict[str, Arm]:
    """Return what trains the MLP, by name."""
    plain = [dense(DENSE)]
    for share in sorted((*EQUAL.values(), *SOONER), reverse=True):
        plain.append(dense(f"dense, {share:.0%} of the steps", steps=share))
    plain += [dense(small(share), width=share) for share in (*SMALLER, *DENSITIES)]
    chosen = [
        arm
        for density in DENSITIES
        for arm in (
            *(_targeted(score, density) for score in SCORES),
            *(_targeted(score, density, truncated=True) for score in TRUNCATED),
            *(_targeted(score, density, cold=True) for score in COLD),
        )
    ]
    return {arm.name: arm for arm in (*plain, *chosen)}


def cnn_arms() -> dict[str, Arm]:
    """Return what trains the CNN, by name."""
    chosen = [_targeted(score, DENSITIES[0]) for score in (FLOW, GRADIENT, FIXED)]
    plain = [dense(DENSE), dense(equal(DENSITIES[0]), steps=EQUAL[DENSITIES[0]])]
    return {f"CNN, {arm.name}": replace(arm, name=f"CNN, {arm.name}") for arm in (*plain, *chosen)}


def rows(config: Config) -> list[Row]:
    """Return a row for every arm, then the times of those that are not plainly dense."""
    found = [Row(name, partial(_measure, _setup(config), arm, config.seeds))
             for name, arm in arms().items()]  # fmt: skip
    fast = replace(_setup(config), rates=(FASTER,))
    found.append(Row(FAST, partial(_measure, fast, dense(FAST), config.seeds)))
    if config.cnn_seeds:
        found += [Row(name, partial(_measure, _cnn(config), arm, config.cnn_seeds))
                  for name, arm in cnn_arms().items()]  # fmt: skip
    return [*found, *_timed(config)]


def _timed(config: Config) -> list[Row]:
    of = [
        (name, arm, _setup(config))
        for name, arm in arms().items()
        if arm.steps == 1.0 and _warm(name) == name
    ]
    if config.cnn_seeds:
        of += [(name, arm, _cnn(config)) for name, arm in cnn_arms().items() if arm.score]
    return [
        Row(f"time, {name}", partial(_time, config, setup, arm), timed=True)
        for name, arm, setup in of
        if name != DENSE
    ]


def _setup(config: Config) -> Setup:
    training = Training(config.steps, config.batch_size)
    return Setup(config.data, config.hidden, training, config.rates, config.tuning)


def _cnn(config: Config) -> Setup:
    training = Training(config.steps, max(1, config.batch_size // 2))
    return Setup(config.data, "cnn", training, config.cnn_rates, 1)


# A row --------------------------------------------------------------------------------------------


def _measure(setup: Setup, arm: Arm, seeds: int) -> Result:
    """Choose the rate, train with every seed, and measure on the test set."""
    of, by_rate = parts(setup.data), tried(setup, arm)
    rate = best_rate(by_rate)
    shown = of.train.part(slice(0, SHOWN))
    found: dict[str, list[float]] = {"accuracy": [], "noise": [], "kept": []}
    state = 0
    for seed in range(seeds):
        end = trained(setup, arm, rate, seed)
        noisy = noise_curve(
            end.model, of.test.x, of.test.y, of.high - of.low, of.low, of.high,
            sigmas=(SIGMA,), draws=1, batch_size=SHOWN,
        )  # fmt: skip
        found["accuracy"].append(accuracy(end.model, of.test))
        found["noise"].append(noisy.overall[0])
        found["kept"].append(kept(end.model, shown, of.test, KEPT))
        state = end.state_bytes
    tuning = {"rates": list(by_rate), "validation": list(by_rate.values()), "rate": rate}
    return {**tuning, **found, "state_bytes": state}


def _time(config: Config, setup: Setup, arm: Arm) -> Result:
    """Return the CPU time of an arm's step by that of a dense one, in and after the warm-up.

    Each block of steps has a selection in it. Both learn at the lowest rate.
    """
    rate = min(setup.rates)
    ours, plain = loop(setup, arm, rate, 0), loop(setup, dense(), rate, 0)
    warm: list[float] = []
    for each in (ours, plain):
        each.step()
    length = round(arm.warmup * ours.steps)
    if length > 2:
        warm = time_ratios(ours, plain, max(1, (length - 2) // 4), 3)
    while ours.done < length + 1:
        ours.step()
    plain_step = plain.seconds
    ratios = time_ratios(ours, plain, config.block, config.pairs)
    return {
        "ratios": ratios,
        "warm": warm,
        "dense_ms": 1e3 * (plain.seconds - plain_step) / (config.block * config.pairs),
    }


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


def step_time(results: Results, name: str) -> float:
    """Return the median time of an arm's step, of a dense one, selection included; 1 for dense."""
    row = results.get(f"time, {_warm(name)}")
    return 1.0 if row is None else float(statistics.median(row["ratios"]))


def whole_time(results: Results, arm: Arm) -> float:
    """Return the time of an arm's whole training, warm-up included, by that of a dense one."""
    step = step_time(results, arm.name)
    if not arm.warmup:
        return arm.steps * step
    warm = results[f"time, {arm.name}"]["warm"] or [1.0]
    return arm.warmup * float(statistics.median(warm)) + (1 - arm.warmup) * step


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return the table, the claims with their intervals, and the figures."""
    folder = out / "figures"
    drawn = [folder / "targeted-efficiency.svg", folder / "targeted-efficiency-differences.svg"]
    _draw_times(results, drawn[0])
    _draw_differences(results, drawn[1])
    return Conclusion(_table(config, results), _claims(config, results), drawn)


def _table(config: Config, results: Results) -> list[TableRow]:
    table: list[TableRow] = []
    several = arms() | {FAST: dense(FAST)} | (cnn_arms() if config.cnn_seeds else {})
    for name, arm in several.items():
        row = results[name]
        table.append(measured(f"{name}: accuracy", row["accuracy"], unit="accuracy"))
        table.append(measured(f"{name}: accuracy in noise", row["noise"], unit="accuracy"))
        told = f"{name}: accuracy with {KEPT:.0%} of the neurons"
        table.append(measured(told, row["kept"], unit="accuracy"))
        table.append(measured(f"{name}: learning rate", [row["rate"]]))
        table.append(measured(f"{name}: optimizer state", [row["state_bytes"] / 1e6], unit="MB"))
        table.append(measured(f"{name}: time of the training", [whole_time(results, arm)]))
    for name, row in results.items():
        if name.startswith("time, "):
            told = name.removeprefix("time, ")
            table.append(measured(f"{told}: time of a step, of a dense one", row["ratios"]))
    return table


def _claims(config: Config, results: Results) -> list[Claim]:
    claims = [_within(results, density) for density in DENSITIES]
    for density in DENSITIES:
        flow, error = (named(score, density) for score in (FLOW, ERROR))
        pairs = [(flow, named(rival, density)) for rival in (FIXED, RANDOM, GRADIENT, ERROR)]
        pairs += [(error, named(rival, density)) for rival in (FIXED, GRADIENT)]
        pairs += [(each, rival(density)) for each in (flow, error) for rival in (equal, small)]
        pairs.append((flow, small(SMALLER[0])))
        pairs.append((named(FLOW, density, truncated=True), equal(density)))
        cold = [named(score, density, cold=True) for score in (FLOW, ERROR, FIXED)]
        pairs += [(cold[0], cold[2]), (cold[1], cold[2]), (flow, cold[0]), (flow, cold[2])]
        pairs += [(named(score, density, truncated=True), named(score, density))
                  for score in TRUNCATED]  # fmt: skip
        claims += [_ahead(results, *pair) for pair in pairs]
        claims += [
            _keeps(results, named(score, density, cold=cold), plain)
            for score in (FLOW, ERROR, FIXED)
            for cold in (False, True)
            for plain in (DENSE, FAST)
        ]
        claims.append(_faster(results, named(FLOW, density)))
    if config.cnn_seeds:
        first = f"CNN, {named(FLOW, DENSITIES[0])}"
        rivals = (*(named(score, DENSITIES[0]) for score in (FIXED, GRADIENT)),
                  equal(DENSITIES[0]), DENSE)  # fmt: skip
        claims += [_ahead(results, first, f"CNN, {rival}") for rival in rivals]
        claims.append(_faster(results, first))
    return claims


def _within(results: Results, density: float) -> Claim:
    ours, plain = (results[name]["accuracy"] for name in (named(FLOW, density), DENSE))
    gap = paired_difference(ours, plain)
    holds: Any = "unclear"
    if gap["low"] is not None and (gap["low"] > -0.01 or gap["high"] < -0.01):
        holds = bool(gap["low"] > -0.01)
    return {
        "claim": f"Targeted updates by flow at density {density}, after a warm-up of {WARM:.0%}, "
        "come within one point of dense training",
        "source": "a goal of this library",
        "holds": holds,
        "figure": f"{_percent(ours)} against {_percent(plain)}; difference {points(gap)}",
    }


def _ahead(results: Results, one: str, other: str, key: str = "accuracy") -> Claim:
    ours, theirs = results[one][key], results[other][key]
    gap = paired_difference(ours, theirs)
    return {
        "claim": f"{one} is ahead of {other}",
        "source": "the proposal: critical neurons alone",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"{_percent(ours)} against {_percent(theirs)}; difference {points(gap)}",
    }


def _keeps(results: Results, name: str, plain: str) -> Claim:
    claim = _ahead(results, name, plain, "kept")
    return claim | {
        "claim": f"With {KEPT:.0%} of its neurons left, {name} is ahead of {plain}",
        "source": "a goal of this library",
    }


def _faster(results: Results, name: str) -> Claim:
    """Return whether a step takes less time than a dense one: each of the pairs, selection too."""
    ratios = results[f"time, {name}"]["ratios"]
    below = [ratio < 1 for ratio in ratios]
    return {
        "claim": f"A step of {name} takes less time than a dense one, selection included",
        "source": "the proposal: efficiency",
        "holds": True if all(below) else "unclear" if any(below) else False,
        "figure": f"{quartiles(ratios)} of a dense step",
    }


def quartiles(ratios: Sequence[float]) -> str:
    """Return the median with the quartiles."""
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread}%"


def points(gap: Mapping[str, Any]) -> str:
    """Return a paired difference of shares, in points, with its interval."""
    if gap["mean"] is None:
        return "unknown"
    if gap["low"] is None:
        return f"{100 * gap['mean']:+.2f} points, one seed"
    return f"{100 * gap['mean']:+.2f} points ({100 * gap['low']:+.2f} to {100 * gap['high']:+.2f})"


# The figures --------------------------------------------------------------------------------------

_COLOURS: Mapping[str, tuple[str, str]] = {
    FLOW: (LIGHT[1], "o"),
    ERROR: (LIGHT[2], "s"),
    RELEVANCE: (LIGHT[4], "D"),
    GRADIENT: (LIGHT[3], "^"),
    RANDOM: ("#8a8a8a", "v"),
    FIXED: ("#8a8a8a", "X"),
}


def _draw_times(results: Results, path: Path) -> None:
    """Draw the accuracy over the time of the whole training, dense runs as a line."""
    several = arms()
    plain = [arm for arm in several.values() if not arm.score]
    line = _line(results, [arm for arm in plain if arm.width == 1.0])
    narrow = _line(results, [arm for arm in plain if arm.steps == 1.0])
    with figures.drawing(path, 8.4, 3.9) as figure:
        grid = figure.subplots(1, len(DENSITIES), sharey=True, sharex=True)
        for axes, density in zip(grid, DENSITIES, strict=True):
            axes.plot(*line, "-o", color=LIGHT[0], markersize=3, label="dense, fewer steps")
            axes.plot(*narrow, ":o", color=LIGHT[0], markersize=3, label="dense, fewer neurons")
            for score, (colour, mark) in _COLOURS.items():
                for kind in ({}, {"truncated": True}):
                    name = named(score, density, **kind)
                    if name not in several:
                        continue
                    values = 100 * np.array(results[name]["accuracy"])
                    axes.errorbar(
                        whole_time(results, several[name]),
                        values.mean(),
                        values.std(ddof=1) if len(values) > 1 else 0,
                        fmt=mark,
                        color=colour,
                        markersize=5,
                        elinewidth=0.8,
                        fillstyle="none" if kind else "full",
                        label=f"{score}, truncated" if kind else score,
                    )
            axes.set(title=f"density {density}", xlabel="time of the training, of a dense one")
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("test accuracy (%)")
        named_ = grid[0].get_legend_handles_labels()
        figure.legend(*named_, loc="outside right center")


def _line(results: Results, several: Sequence[Arm]) -> tuple[list[float], list[float]]:
    """Return the times of trainings, rising, and their mean accuracies in percent."""
    found = sorted(
        (whole_time(results, arm), 100 * float(np.mean(results[arm.name]["accuracy"])))
        for arm in several
    )
    return [time for time, _ in found], [height for _, height in found]


def _draw_differences(results: Results, path: Path) -> None:
    """Draw the paired differences to dense training, of all neurons and of a tenth of them."""
    with figures.drawing(path, 8.4, 5.6) as figure:
        grid = figure.subplots(2, 2, sharex="col", sharey=True)
        for line, density in zip(grid, DENSITIES, strict=True):
            shown = {
                "dense, equal time": equal(density),
                "small dense": small(density),
                **{score: named(score, density) for score in SCORES},
                **{f"{score}, no warm-up": named(score, density, cold=True) for score in COLD},
            }
            for axes, key in zip(line, ("accuracy", "kept"), strict=True):
                for height, name in enumerate(shown.values()):
                    if key == "kept" and name == small(density):
                        continue  # a tenth of a smaller network
                    gap = paired_difference(results[name][key], results[DENSE][key])
                    reach = 0.0 if gap["low"] is None else 100 * (gap["high"] - gap["mean"])
                    axes.errorbar(100 * gap["mean"], height, xerr=reach, fmt="o", markersize=4,
                                  color=LIGHT[2 if height < 2 else 1], elinewidth=1)  # fmt: skip
                axes.axvline(0, color="#8a8a8a", linewidth=0.8, linestyle="--")
                axes.set_yticks(range(len(shown)), list(shown))
                axes.grid(color="#e5e5e5", linewidth=0.6, axis="x")
                what = "all neurons" if key == "accuracy" else f"{KEPT:.0%} of the neurons"
                axes.set_title(f"density {density}, {what}")
        for axes in grid[-1]:
            axes.set_xlabel("points ahead of dense training")
        grid[0][0].invert_yaxis()


STUDY = Study(
    id="targeted-efficiency",
    title="Targeted updates from scratch: time, accuracy, and plain controls",
    source="A Novel Training Method for Deep Neural Networks Leveraging Attribution Graphs, the "
    "proposed method",
    deviations=(
        "The proposal has words and no numbers: every threshold in a claim is ours.",
        "An MLP of two hidden layers on MNIST, a few hundred steps; a small CNN with fewer seeds.",
        "Every arm tries the same learning rates on a part of the training set that none is "
        "trained on; momentum is 0.9 and the rate falls to 0 along a line.",
        "Neurons are selected from one batch every 50 steps; the output layer always trains.",
        "Dense training at equal time has fewer steps, by shares that were set beforehand from "
        "measured times; the table has the times beside them.",
        "The neurons that are left of ten are those of the largest relevance to the right class "
        "on 1,000 training samples; the others give 0.",
        "The smoke budget takes the 8x8 digits of scikit-learn and few steps.",
    ),
    budgets={
        "smoke": Config(
            data="digits", hidden=(32, 32), steps=40, batch_size=64, rates=(0.1, 0.2),
            cnn_rates=(0.05, 0.1), tuning=1, seeds=2, cnn_seeds=2, pairs=2, block=10,
        ),
        "quick": Config(seeds=2, cnn_seeds=0, pairs=5),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
