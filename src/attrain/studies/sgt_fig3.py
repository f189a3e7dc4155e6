"""Figure 3 of paper 003: does accuracy drop faster by the maps of guided models?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.metrics.distribution import gradient_distribution, object_of
from attrain.metrics.faithfulness import (
    FRACTIONS,
    accuracy_drop,
    area,
    corner,
    random_attribution,
)
from attrain.metrics.statistics import paired_difference
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.graph_subjects import accuracy, images
from attrain.studies.guided_subjects import (
    GUIDED,
    RANDOM,
    REGULAR,
    SALIENCIES,
    UNMASKED,
    Recipe,
    judged,
    maps,
    predicted,
    trained,
    typical,
)
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import no_worse, verdict

COMPARED = (REGULAR, GUIDED, RANDOM, UNMASKED)
CONTROLS = (RANDOM, UNMASKED)
ORDERS = 2
"""Random orders of the features that the maps are held against."""
MARGIN = 0.005
"""By how much guided training may lower the accuracy and count as preserving it."""
NO_MAP = "a random order"


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    images: test images that maps are made of, others for each seed. The accuracy is taken on the
    whole test set. seeds: of regular and of guided training; control_seeds: the first of them, of
    the controls.
    """

    recipe: Recipe = field(default_factory=Recipe)
    images: int = 400
    seeds: int = 5
    control_seeds: int = 3

    def seeds_of(self, arm: str) -> int:
        """Return how many seeds an arm has."""
        return min(self.seeds, self.control_seeds) if arm in CONTROLS else self.seeds


def rows(config: Config) -> list[Row]:
    """Return a row per seed and arm, seed by seed, the controls last."""
    return [
        Row(_name(arm, seed), partial(_measure, config, arm, seed))
        for arms in ((REGULAR, GUIDED), CONTROLS)
        for seed in range(config.seeds_of(arms[0]))
        for arm in arms
    ]


def _name(arm: str, seed: int) -> str:
    return f"{arm}, seed {seed}"


def _measure(config: Config, arm: str, seed: int) -> Result:
    """Train a model, and remove pixels by each of its maps."""
    data = images(config.recipe.data)
    model = trained(config.recipe, arm, seed)
    x, y = judged(data, config.images, seed)
    target, background = predicted(model, x), corner(x)
    curves, on_object = {}, {}
    for title in SALIENCIES:
        found = maps(
            model, x, target, title,
            baseline=float(data.train.tensors[0].min()), typical=typical(data, seed), seed=seed,
        ).mean(1, keepdim=True)  # fmt: skip
        curves[title] = accuracy_drop(model, x, y, found, background, seed=seed)
        share = gradient_distribution(found, object_of(x)[:, :1]).on_object
        assert share is not None
        on_object[title] = float(share.nanmean())
    drawn = [
        accuracy_drop(model, x, y, random_attribution(x[:, :1], seed=100 * seed + draw), background)
        for draw in range(ORDERS)
    ]
    return {
        "accuracy": accuracy(model, *data.test.tensors),
        "curves": curves | {NO_MAP: np.mean(drawn, axis=0).tolist()},
        "on object": on_object,
    }


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the models of an arm came to, seed by seed.

    accuracy: on the whole test set. curves: by title, the accuracy [seeds, FRACTIONS] with the top
    pixels removed. on_object: by title, the share of the map's mass on the object.
    """

    accuracy: Sequence[float]
    curves: Mapping[str, Values]
    on_object: Mapping[str, Sequence[float]]

    def areas(self, title: str) -> list[float]:
        """Return the area under a curve, one per seed."""
        return [area(curve.tolist()) for curve in self.curves[title]]

    def mean_areas(self) -> list[float]:
        """Return the mean area of the saliency methods, one per seed."""
        return [float(each) for each in np.mean([self.areas(one) for one in SALIENCIES], axis=0)]


def found_of(arm: str, seeds: int, results: Results) -> Found:
    """Return what the rows of an arm came to."""
    each = [results[_name(arm, seed)] for seed in range(seeds)]
    return Found(
        [one["accuracy"] for one in each],
        {name: np.array([one["curves"][name] for one in each]) for name in each[0]["curves"]},
        {name: [one["on object"][name] for one in each] for name in each[0]["on object"]},
    )


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    found = {arm: found_of(arm, config.seeds_of(arm), results) for arm in COMPARED}
    drawn = [out / "figures" / "sgt-fig3.svg", out / "figures" / "sgt-fig3-areas.svg"]
    draw_curves(found, drawn[0])
    draw_areas(found, drawn[1])
    claims = [
        _keeps_accuracy(found),
        *(_steeper(found, title) for title in SALIENCIES),
        *(_ahead_of(found, control) for control in CONTROLS),
        _without_maps(found),
    ]
    return Conclusion(_table(found), claims, drawn)


def _table(found: Mapping[str, Found]) -> list[TableRow]:
    table = [
        measured(f"{arm}: test accuracy", each.accuracy, unit="accuracy")
        for arm, each in found.items()
    ]
    for title in (*SALIENCIES, NO_MAP):
        table += [
            measured(f"{arm}: area of the accuracy by {title}", each.areas(title), unit="accuracy")
            for arm, each in found.items()
        ]
    for title in SALIENCIES:
        table += [
            measured(f"{arm}: share of {title} on the digit", each.on_object[title], unit="share")
            for arm, each in found.items()
        ]
    return table


def _keeps_accuracy(found: Mapping[str, Found]) -> Claim:
    ours, plain = found[GUIDED].accuracy, found[REGULAR].accuracy
    gap = paired_difference(ours, plain)
    return {
        "claim": f"Guided training preserves the test accuracy, to {100 * MARGIN:g} point",
        "source": "abstract",
        "holds": no_worse(gap, MARGIN),
        "figure": f"{percent(ours)} against {percent(plain)}; difference {points(gap)}",
    }


def _steeper(found: Mapping[str, Found], title: str) -> Claim:
    ours, plain = found[GUIDED].areas(title), found[REGULAR].areas(title)
    gap = paired_difference(ours, plain)
    return {
        "claim": f"With pixels removed by {title}, the accuracy of guided models drops faster",
        "source": "figure 3",
        "holds": verdict(gap, -1),
        "figure": f"area {percent(ours)} against {percent(plain)}; difference {points(gap)}",
    }


def _ahead_of(found: Mapping[str, Found], control: str) -> Claim:
    """Return whether guidance does more than its control, by the mean over saliency methods."""
    theirs = found[control].mean_areas()
    ours = found[GUIDED].mean_areas()[: len(theirs)]
    gap = paired_difference(ours, theirs)
    single = ", ".join(
        f"{title} {points(_by(title, found[GUIDED], found[control]))}" for title in SALIENCIES
    )
    return {
        "claim": f"The accuracy of guided models drops faster than that of models trained with "
        f"{control}, mean of the {len(SALIENCIES)} saliency methods",
        "source": "not in the paper",
        "holds": verdict(gap, -1),
        "figure": f"area {percent(ours)} against {percent(theirs)}; difference {points(gap)}; "
        f"of each: {single}",
    }


def _by(title: str, ours: Found, theirs: Found) -> dict[str, Any]:
    """Return the difference of the areas of the seeds that both have."""
    pairs = zip(ours.areas(title), theirs.areas(title), strict=False)
    left, right = zip(*pairs, strict=True)
    return paired_difference(left, right)


def _without_maps(found: Mapping[str, Found]) -> Claim:
    ours, plain = found[GUIDED].areas(NO_MAP), found[REGULAR].areas(NO_MAP)
    gap = paired_difference(ours, plain)
    return {
        "claim": "Guided models are as robust as regular ones to the loss of random pixels, so "
        "that a faster drop is due to their maps",
        "source": "not in the paper",
        "holds": verdict(gap),
        "figure": f"area {percent(ours)} against {percent(plain)}; difference {points(gap)}",
    }


def percent(values: Sequence[float]) -> str:
    """Return mean ± standard deviation in percent."""
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread}%"


def points(gap: Mapping[str, Any]) -> str:
    """Return a difference in points, with its interval."""
    if gap["mean"] is None:
        return "undefined"
    if gap["low"] is None:
        return f"{100 * gap['mean']:+.2f}, one seed"
    return (
        f"{100 * gap['mean']:+.2f} ({100 * gap['low']:+.2f} to {100 * gap['high']:+.2f}, "
        f"{gap['n']} seeds)"
    )


# The figures --------------------------------------------------------------------------------------

LINES: Mapping[str, tuple[str, Any, str]] = {
    REGULAR: (LIGHT[2], "--", "s"),
    GUIDED: (LIGHT[1], "-", "o"),
    RANDOM: (LIGHT[3], "-.", "^"),
    UNMASKED: (LIGHT[4], (0, (1, 1)), "D"),
}
"""Colour, dash and mark of an arm."""


def draw_curves(found: Mapping[str, Found], path: Path) -> None:
    """Draw the accuracy over the share of pixels removed, a panel per saliency method."""
    x = [100 * each for each in FRACTIONS]
    with figures.drawing(path, 7.4, 5.2) as figure:
        grid = figure.subplots(2, 3, sharex=True, sharey=True)
        for axes, title in zip(grid.flat, SALIENCIES, strict=True):
            for arm, each in found.items():
                colour, dash, _ = LINES[arm]
                figures.band(
                    axes, x, 100 * each.curves[title], spread=arm in (REGULAR, GUIDED),
                    color=colour, linestyle=dash, label=arm,
                )  # fmt: skip
            chance = 100 * found[REGULAR].curves[NO_MAP].mean(0)
            axes.plot(x, chance, color="#8a8a8a", linewidth=1.0, label="regular, random order")
            axes.set(title=title, ylim=(0, 102), xticks=(0, 30, 60, 90))
            axes.grid(color="#e5e5e5", linewidth=0.6)
        for axes in grid[-1]:
            axes.set_xlabel("pixels removed (%)")
        for axes in grid[:, 0]:
            axes.set_ylabel("test accuracy (%)")
        named = grid[0, 0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=3)


def draw_areas(found: Mapping[str, Found], path: Path) -> None:
    """Draw the area of every seed and arm, a row per saliency method."""
    titles = list(SALIENCIES)
    with figures.drawing(path, 7.2, 3.9) as figure:
        axes = figure.subplots()
        for shift, (arm, each) in zip((-0.27, -0.09, 0.09, 0.27), found.items(), strict=True):
            colour, _, mark = LINES[arm]
            for place, title in enumerate(titles):
                values = 100 * np.array(each.areas(title))
                axes.plot(
                    values, [place + shift] * len(values), mark, color=colour, markersize=4,
                    alpha=0.75, label=arm if place == 0 else None,
                )  # fmt: skip
                height = [place + shift - 0.09, place + shift + 0.09]
                axes.plot([values.mean()] * 2, height, color=colour, linewidth=1.8)
        axes.set_yticks(range(len(titles)), titles)
        axes.invert_yaxis()
        axes.set_xlabel("area under the accuracy (%): the lower, the steeper the drop")
        axes.grid(color="#e5e5e5", linewidth=0.6, axis="x")
        figure.legend(loc="outside lower center", ncols=4)


_FEW = Recipe("digits", epochs=1, samples=400)

STUDY = Study(
    id="sgt-fig3",
    title="Saliency guided training: accuracy drop by six saliency methods, with controls",
    source="paper 2111.14338, figure 3 and section 5.1",
    deviations=(
        "20,000 of the 60,000 training images and 6 epochs of SGD, in the quick budget 2 (rate "
        "0.1, momentum 0.9, OneCycle, clip-norm 3, batches of 128); the authors take all, Adadelta "
        "and more epochs. The rate was not tuned, for no arm.",
        "Maps of 2,000 test images per seed, in the quick budget of 400, other ones for each seed; "
        "they are of the predicted class.",
        "Integrated gradients, SmoothGrad and GradientSHAP take 20 steps or draws, GradientSHAP "
        "and DeepSHAP 5 training images as baselines, integrated gradients and DeepLIFT a black "
        "one.",
        "The figure has no numbers, so that none of the paper's stand in the table; its six "
        "methods are read as those of table 2.",
        "Two controls are not in the paper: random masks, and the same passes without masks, "
        "where two draws of dropout have to agree. They have three of the five seeds.",
        "The smoke budget takes the 8x8 digits of scikit-learn.",
    ),
    budgets={
        "smoke": Config(_FEW, images=20, seeds=2, control_seeds=1),
        "quick": Config(Recipe(samples=20_000, epochs=2)),
        "full": Config(Recipe(samples=20_000, epochs=6), images=2000),
    },
    rows=rows,
    conclude=conclude,
)
