"""Does saliency guided training keep saliency from vanishing in an LSTM? Paper 003, Figure 6."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attrain.data.series import VANISHING
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, REGULAR
from attrain.studies.series_measures import ALL, explained, located
from attrain.studies.series_subjects import Stop, fit, series
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import told, verdict

PLACES = ("early", "middle", "late")
ARMS = (REGULAR, GUIDED)
METHODS = ("gradient", "integrated gradients")
"""The first is the one that verdicts are about."""
PARTS: Mapping[str, int] = {"AUP": 0, "AUR": 1}
LEARNED = 0.9
"""Test accuracy under which a network does not know the box, and its saliency shows nothing."""


@dataclass(frozen=True)
class Config:
    """Settings of the study: epochs of training, seeds, and test series that are explained."""

    epochs: int = 400
    seeds: int = 3
    samples: int = 100


def rows(config: Config) -> list[Row]:
    """Return a row per seed, place of the box and way to train."""
    return [
        Row(_name(place, arm, seed), partial(_measure, config, place, arm, seed))
        for seed in range(config.seeds)
        for place in PLACES
        for arm in ARMS
    ]


def _name(place: str, arm: str, seed: int) -> str:
    return f"{place}, {arm}, seed {seed}"


def _measure(config: Config, place: str, arm: str, seed: int) -> Result:
    """Train an LSTM, and see where and when its saliency is."""
    data = series(f"vanishing:{place}", seed)
    model = build("lstm", data.input_shape, data.num_classes, seed=seed)
    only = config.epochs
    stop = Stop(accuracy=2.0, every=only, epochs=only, patience=only, keep_best=False)
    trained = fit(model, data, arm, stop, seed)
    x, y = (each[: config.samples] for each in data.test.tensors)
    box = data.evidence["test"][: config.samples]
    found: Result = {"test": trained.test, "methods": {}}
    for method in METHODS:
        values, _ = explained(trained.model, data, x, y, method)
        mass = values.abs().sum(2) / values.abs().sum((1, 2), keepdim=True)[:, 0]
        found["methods"][method] = {**located(values, box), "time": mass.mean(0).tolist()}
    return found


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


def _areas(
    config: Config, results: Results, place: str, arm: str, method: str, part: str, of: str
) -> list[float]:
    """Return AUP or AUR per seed, of what was `measured` or of a random attribution."""
    return [
        float(results[_name(place, arm, seed)]["methods"][method][of][PARTS[part]])
        for seed in range(config.seeds)
    ]


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and the figure."""
    drawn = out / "figures" / "sgt-fig6.svg"
    _draw(config, results, drawn)
    return Conclusion(_table(config, results), _claims(config, results), [drawn])


def _table(config: Config, results: Results) -> list[TableRow]:
    table = []
    for place in PLACES:
        for arm in ARMS:
            tests = [results[_name(place, arm, seed)]["test"] for seed in range(config.seeds)]
            table.append(measured(f"{place}, {arm}: test accuracy", tests, unit="accuracy"))
    for method in METHODS:
        for part in PARTS:
            for place in PLACES:
                for arm in ARMS:
                    own, chance = (
                        _areas(config, results, place, arm, method, part, of)
                        for of in ("measured", ALL)
                    )
                    label = f"{part}, {method}, {place}, {arm}"
                    table.append(measured(label, own))
                    table.append(measured(f"{label}, of a uniform order", chance))
    return table


def _claims(config: Config, results: Results) -> list[Claim]:
    claims = []
    learned = all(
        results[_name(place, arm, seed)]["test"] >= LEARNED
        for place in ("early", "late")
        for arm in ARMS
        for seed in range(config.seeds)
    )
    for part in PARTS:
        for claim, values in (
            (
                f"A regularly trained LSTM has a higher {part} where the box comes late than early",
                partial(_bias, config, results, REGULAR),
            ),
            (
                f"Guided training makes the {part} depend less on the box coming late or early",
                partial(_bias_removed, config, results),
            ),
            (
                f"Guided training raises the {part} of an early box",
                partial(_gain, config, results, "early"),
            ),
        ):
            gaps = {method: _difference(values(method, part)) for method in METHODS}
            first = gaps[METHODS[0]]
            claims.append(
                Claim(
                    claim=claim,
                    source="figure 6",
                    holds=verdict(first) if learned else "unclear",
                    figure="; ".join(
                        f"{method} {told(gap, digits=3)}" for method, gap in gaps.items()
                    )
                    + f"; test accuracy early {_early(config, results)}",
                )
            )
    return claims


def _bias(config: Config, results: Results, arm: str, method: str, part: str) -> list[float]:
    """Return late minus early, per seed; both boxes have the same size."""
    late, early = (
        _areas(config, results, place, arm, method, part, "measured") for place in ("late", "early")
    )
    return [a - b for a, b in zip(late, early, strict=True)]


def _bias_removed(config: Config, results: Results, method: str, part: str) -> list[float]:
    regular, guided = (_bias(config, results, arm, method, part) for arm in ARMS)
    return [a - b for a, b in zip(regular, guided, strict=True)]


def _gain(config: Config, results: Results, place: str, method: str, part: str) -> list[float]:
    guided, regular = (
        _areas(config, results, place, arm, method, part, "measured") for arm in (GUIDED, REGULAR)
    )
    return [a - b for a, b in zip(guided, regular, strict=True)]


def _difference(values: Sequence[float]) -> dict[str, Any]:
    return paired_difference(values, [0.0] * len(values))


def _early(config: Config, results: Results) -> str:
    means = [
        np.mean([results[_name("early", arm, seed)]["test"] for seed in range(config.seeds)])
        for arm in ARMS
    ]
    return f"{means[0]:.1%} regular, {means[1]:.1%} guided"


# The figure ---------------------------------------------------------------------------------------

_STYLE: Mapping[str, dict[str, Any]] = {
    REGULAR: {"color": figures.GRADIENT, "linestyle": "--"},
    GUIDED: {"color": figures.LFP, "linestyle": "-"},
}


def _draw(config: Config, results: Results, path: Path) -> None:
    """Draw AUP and AUR by the place of the box, and how much saliency each step has."""
    with figures.drawing(path, 10.6, 3.2) as figure:
        grid = figure.subplots(1, len(PARTS) + len(PLACES))
        for axes, part in zip(grid, PARTS, strict=False):
            for arm in ARMS:
                of = (METHODS[0], part)
                each = np.array([_areas(config, results, p, arm, *of, "measured") for p in PLACES])
                axes.plot(range(len(PLACES)), each, ".", color=_STYLE[arm]["color"], markersize=5)
                axes.plot(range(len(PLACES)), each.mean(1), label=arm, **_STYLE[arm])
            chance = [_areas(config, results, p, REGULAR, *of, ALL) for p in PLACES]
            axes.plot(
                range(len(PLACES)), np.mean(chance, 1), ":", color=figures.START,
                label="uniform order",
            )  # fmt: skip
            axes.set(title=f"{part}, gradient", xlim=(-0.2, 2.2), ylim=(0, None))
            axes.set_xticks(range(len(PLACES)), PLACES)
        for axes, place in zip(grid[len(PARTS) :], PLACES, strict=True):
            box = VANISHING[place]
            assert isinstance(box.step, int)
            axes.axvspan(box.step, box.step + box.steps, color="#efefef", lw=0, label="box")
            for arm in ARMS:
                rows_of = [results[_name(place, arm, seed)] for seed in range(config.seeds)]
                each = np.array([row["methods"][METHODS[0]]["time"] for row in rows_of])
                figures.band(axes, np.arange(each.shape[1], dtype=float), 100 * each, **_STYLE[arm])
            axes.set(title=f"{place} box", xlabel="step", ylim=(0, None))
        grid[len(PARTS)].set_ylabel("share of |gradient| (%)")
        handles, labels = grid[0].get_legend_handles_labels()
        shade = grid[-1].get_legend_handles_labels()
        figure.legend(
            [*handles, shade[0][0]], [*labels, "steps of the box"],
            loc="outside lower center", ncols=4,
        )  # fmt: skip


STUDY = Study(
    id="sgt-fig6",
    title="Does guided training keep an LSTM's saliency from vanishing over time?",
    source="paper 2111.14338, figure 6",
    deviations=(
        "A tenth of the 1,000 training series is held out, as in sgt-table2, and not looked at.",
        "The paper does not name the saliency method of the figure: the gradient decides here, and "
        "integrated gradients (20 steps, from the mean of the training series) are beside it.",
        "Half of the entries of a series are masked; what the paper takes is not known to us.",
        "The quick budget trains for 40 epochs in place of 400.",
    ),
    budgets={
        "smoke": Config(epochs=1, seeds=1, samples=5),
        "quick": Config(epochs=40, seeds=3, samples=50),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
