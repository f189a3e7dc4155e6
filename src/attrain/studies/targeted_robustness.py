"""Targeted updates and robustness: noise and attacks against dense training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attrain.metrics.attacks import fgsm, pgd
from attrain.metrics.robustness import EPSILONS, SIGMAS, Curve, attack_curve, noise_curve
from attrain.metrics.statistics import paired_difference
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.targeted_efficiency import (
    DENSE,
    DENSITIES,
    ERROR,
    FAST,
    FASTER,
    FIXED,
    FLOW,
    GRADIENT,
    arms,
    named,
    points,
)
from attrain.studies.targeted_subjects import (
    Arm,
    Setup,
    Training,
    best_rate,
    parts,
    trained,
    tried,
)

TARGETED = (FLOW, ERROR, GRADIENT, FIXED)
NOISE, ONE, MANY = "noise", "FGSM", "PGD"
SIZES: Mapping[str, tuple[float, ...]] = {NOISE: SIGMAS, ONE: EPSILONS, MANY: EPSILONS}
TUNED, SAME = "its own rate", "the dense rate"
"""Which learning rate a model was trained at: robustness depends on it, whatever else is done."""


@dataclass(frozen=True)
class Config:
    """Settings of the study; those of training are `targeted-efficiency`'s.

    rates: those that it chose, the lower one for dense training.
    test: the first so many test samples. pgd_steps: of the attack in many steps.
    """

    data: str = "mnist"
    hidden: tuple[int, ...] = (500, 500)
    steps: int = 300
    batch_size: int = 128
    rates: tuple[float, ...] = (0.1, 0.2)
    tuning: int = 1
    seeds: int = 5
    test: int = 500
    pgd_steps: int = 10

    @property
    def setup(self) -> Setup:
        """What is trained on."""
        training = Training(self.steps, self.batch_size)
        return Setup(self.data, self.hidden, training, self.rates, self.tuning)


def compared() -> dict[str, Arm]:
    """Return what is compared, by name: dense first."""
    density, every = DENSITIES[0], arms()
    names = (DENSE, *(named(score, density) for score in TARGETED))
    return {name: every[name] for name in names}


def rows(config: Config) -> list[Row]:
    """Return a row for every arm, of all seeds, and one for dense training at the faster rate."""
    found = [Row(name, partial(_measure, config, arm)) for name, arm in compared().items()]
    fast = replace(config, rates=(FASTER,))
    return [*found, Row(FAST, partial(_measure, fast, compared()[DENSE]))]


# A row --------------------------------------------------------------------------------------------


@cache
def _dense_rate(setup: Setup) -> float:
    return best_rate(tried(setup, compared()[DENSE]))


def _measure(config: Config, arm: Arm) -> Result:
    """Train at the arm's own rate and at that of the dense arm; measure what is left of each."""
    setup = config.setup
    rates = {TUNED: best_rate(tried(setup, arm)), SAME: _dense_rate(setup)}
    by_rate = {
        rate: [_curves(config, arm, rate, seed) for seed in range(config.seeds)]
        for rate in sorted(set(rates.values()))
    }
    return {
        which: {
            "rate": rate,
            **{kind: [each[kind] for each in by_rate[rate]] for kind in SIZES},
        }
        for which, rate in rates.items()
    }


def _curves(config: Config, arm: Arm, rate: float, seed: int) -> dict[str, list[float]]:
    """Return the accuracy of a model under noise and attacks of each size."""
    of = parts(config.data)
    model = trained(config.setup, arm, rate, seed).model
    given = of.test.part(slice(0, config.test))
    scale, low, high = of.high - of.low, of.low, of.high
    size = config.test

    def one(x: Tensor, y: Tensor, epsilon: Any) -> Tensor:
        return fgsm(model, x, y, epsilon, low, high, batch_size=size)

    def many(x: Tensor, y: Tensor, epsilon: Any) -> Tensor:
        return pgd(
            model, x, y, epsilon, low, high, steps=config.pgd_steps, seed=seed, batch_size=size
        )

    found: dict[str, Curve] = {
        NOISE: noise_curve(model, given.x, given.y, scale, low, high, seed=seed, batch_size=size),
        ONE: attack_curve(model, given.x, given.y, scale, one, nested=False, batch_size=size),
        MANY: attack_curve(model, given.x, given.y, scale, many, batch_size=size),
    }
    return {kind: curve.overall for kind, curve in found.items()}


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


def curve(results: Results, name: str, which: str, kind: str) -> NDArray[np.float64]:
    """Return the accuracies of an arm, [seeds, sizes]."""
    return np.array(results[name][which][kind], dtype=np.float64)


def left(results: Results, name: str, which: str, kind: str) -> list[float]:
    """Return the accuracy that is left, the mean of all sizes above 0, one per seed."""
    return [float(each) for each in curve(results, name, which, kind)[:, 1:].mean(1)]


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return the table, the claims with their intervals, and the figure."""
    drawn = out / "figures" / "targeted-robustness.svg"
    _draw(results, drawn)
    return Conclusion(_table(results), _claims(results), [drawn])


def _table(results: Results) -> list[TableRow]:
    table: list[TableRow] = []
    for name in (*compared(), FAST):
        table.append(measured(f"{name}: learning rate", [results[name][TUNED]["rate"]]))
        clean = curve(results, name, TUNED, NOISE)[:, 0].tolist()
        table.append(measured(f"{name}: accuracy", clean, unit="accuracy"))
        for kind, sizes in SIZES.items():
            for place, size in enumerate(sizes[1:], start=1):
                values = curve(results, name, TUNED, kind)[:, place].tolist()
                table.append(measured(f"{name}: {kind} of {size}", values, unit="accuracy"))
        for kind in SIZES:
            for which in (TUNED, SAME):
                told = f"{name}: {kind}, mean of the sizes, at {which}"
                table.append(measured(told, left(results, name, which, kind), unit="accuracy"))
    return table


def _claims(results: Results) -> list[Claim]:
    names = [named(score, DENSITIES[0]) for score in TARGETED]
    claims = [
        _sturdier(results, name, DENSE, which, kind)
        for which in (TUNED, SAME)
        for name in names
        for kind in SIZES
    ]
    claims += [_sturdier(results, name, FAST, TUNED, kind) for name in names for kind in SIZES]
    return claims + [_sturdier(results, names[0], names[-1], TUNED, kind) for kind in SIZES]


def _sturdier(results: Results, one: str, other: str, which: str, kind: str) -> Claim:
    ours, theirs = (left(results, name, which, kind) for name in (one, other))
    gap = paired_difference(ours, theirs)
    return {
        "claim": f"{one} keeps more accuracy under {kind} than {other}, at {which}",
        "source": "the proposal: robustness",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"{_mean(ours)} against {_mean(theirs)}; difference {points(gap)}",
    }


def _mean(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f}%"


_DASHES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))


def _draw(results: Results, path: Path) -> None:
    """Draw the accuracy over the size of noise and attacks, a line per arm."""
    styles = dict(zip(compared(), zip(LIGHT, _DASHES, strict=False), strict=False))
    with figures.drawing(path, 9.2, 5.4) as figure:
        grid = figure.subplots(2, len(SIZES), sharey=True, sharex="col")
        for line, which in zip(grid, (TUNED, SAME), strict=True):
            for axes, (kind, sizes) in zip(line, SIZES.items(), strict=True):
                for name, (colour, dash) in styles.items():
                    each = 100 * curve(results, name, which, kind)
                    figures.band(axes, sizes, each, color=colour, linestyle=dash, label=name)
                axes.set_title(f"{kind}, at {which}")
                axes.grid(color="#e5e5e5", linewidth=0.6)
            line[0].set_ylabel("test accuracy (%)")
        for axes, kind in zip(grid[-1], SIZES, strict=True):
            what = "deviation" if kind == NOISE else "largest change"
            axes.set_xlabel(f"{what}, share of a pixel's range")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


STUDY = Study(
    id="targeted-robustness",
    title="Targeted updates and robustness: noise and attacks",
    source="A Novel Training Method for Deep Neural Networks Leveraging Attribution Graphs, the "
    "proposed method",
    deviations=(
        "The proposal has words and no numbers: what counts here is the accuracy that is left, "
        "the mean of all sizes of noise or attack above 0.",
        "An MLP of two hidden layers on MNIST, trained as in targeted-efficiency: density 0.25 "
        "after a dense warm-up of a tenth of the steps.",
        "Every arm is measured at the one of two learning rates that its validation accuracy "
        "chooses, and again at that of dense training: the rate changes robustness by itself.",
        "PGD has 10 steps and one start; no attack was fitted to targeted updates, which leave an "
        "ordinary network behind.",
        "The smoke budget takes the 8x8 digits of scikit-learn and few steps.",
    ),
    budgets={
        "smoke": Config(
            data="digits", hidden=(32, 32), steps=40, batch_size=64, rates=(0.1, 0.2), tuning=1,
            seeds=2, test=60, pgd_steps=3,
        ),
        "quick": Config(seeds=3),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
