"""Paper 003, figure 2: how gradients are distributed after saliency guided training."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attrain.metrics.distribution import gradient_distribution, object_of
from attrain.metrics.statistics import paired_difference
from attrain.studies.graph_subjects import images
from attrain.studies.guided_subjects import (
    GUIDED,
    RANDOM,
    REGULAR,
    UNMASKED,
    Recipe,
    maps,
    predicted,
    trained,
)
from attrain.studies.sgt_fig2_figures import draw_examples, draw_means, draw_spreads
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import no_worse, told, verdict

FIGURES = {
    "interquartile": "interquartile range",
    "low": "1% quantile",
    "high": "99% quantile",
    "kurtosis": "kurtosis",
    "on_object": "share of |gradient| on the object",
}
SHARPER = {"interquartile": -1, "kurtosis": 1, "on_object": 1}
"""Figures by which a map is sharper, and where they go then."""


@dataclass(frozen=True)
class Task:
    """Images, how models are trained on them, and under which arms.

    test: test images. bounded: whether an object is told from the background by the corner pixel.
    shown: of the first test images, those that all arms of seed 0 tell are drawn.
    """

    recipe: Recipe
    arms: tuple[str, ...] = (REGULAR, GUIDED, RANDOM, UNMASKED)
    seeds: int = 5
    test: int = 500
    bounded: bool = True
    shown: int = 10


@dataclass(frozen=True)
class Config:
    """Settings of the study: its tasks, by their titles."""

    tasks: Mapping[str, Task]


def rows(config: Config) -> list[Row]:
    """Return a row per task, arm and seed."""
    return [
        Row(_name(title, arm, seed), partial(measure, task, arm, seed))
        for title, task in config.tasks.items()
        for seed in range(task.seeds)
        for arm in task.arms
    ]


def _name(title: str, arm: str, seed: int) -> str:
    return f"{title}, {arm}, seed {seed}"


def measure(task: Task, arm: str, seed: int) -> Result:
    """Return how the gradients of the predicted logits are spread, image by image.

    accuracy: on the test images. correct [N]: which of them it tells. Of FIGURES, [N]; `mean`:
    scaled gradients [C, H, W], their mean over the images that it tells. With seed 0 also the
    first gradients and, of regular training, the images themselves, with pixels in 0..1.
    """
    data = images(task.recipe.data)
    x, y = (each[: task.test] for each in data.test.tensors)
    model = trained(task.recipe, arm, seed)
    told_N = predicted(model, x)
    gradient = maps(model, x, told_N, "gradient", abs=False)
    spread = gradient_distribution(gradient, object_of(x) if task.bounded else None)._asdict()
    scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    correct_N = told_N == y
    mean = scaled[correct_N & ~scaled.isnan().flatten(1).any(1)].mean(0)
    found: Result = {
        "accuracy": float(correct_N.double().mean()),
        "correct": correct_N.tolist(),
        "mean": _rounded(mean),
        **{name: _rounded(spread[name]) for name in FIGURES if spread[name] is not None},
    }
    if seed == 0:
        found["maps"] = _rounded(scaled[: task.shown])
        if arm == REGULAR:
            found["images"] = _rounded(data.restore(x[: task.shown]).clamp(0, 1), 3)
    return found


def _rounded(values: torch.Tensor, digits: int = 5) -> Any:
    return np.round(values.double().numpy(), digits).tolist()


# What it adds up to -------------------------------------------------------------------------------

Means = Mapping[tuple[str, str], list[float]]
"""By arm and figure, a mean over images for each seed."""


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return table, claims, and three figures for each task."""
    table: list[TableRow] = []
    claims: list[Claim] = []
    drawn: list[Path] = []
    for title, task in config.tasks.items():
        each = {
            (arm, seed): results[_name(title, arm, seed)]
            for arm in task.arms
            for seed in range(task.seeds)
        }
        means = _means(task, each)
        table += _table(title, task, means)
        claims += _claims(title, task, means)
        stem = f"sgt-fig2-{title.lower().replace(', ', '-')}"
        folder = out / "figures"
        first = {arm: each[arm, 0] for arm in task.arms}
        drawn += [
            draw_examples(first, folder / f"{stem}-examples.svg"),
            draw_means(first, folder / f"{stem}-means.svg"),
            draw_spreads(means, FIGURES, folder / f"{stem}-spread.svg"),
        ]
    return Conclusion(table, claims, drawn)


def _means(task: Task, each: Mapping[tuple[str, int], Result]) -> Means:
    """Return means over the images that the models of all arms of a seed tell."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(task.seeds):
        by_all = np.all([each[arm, seed]["correct"] for arm in task.arms], axis=0)
        for arm in task.arms:
            row = each[arm, seed]
            found.setdefault((arm, "accuracy"), []).append(row["accuracy"])
            for name in FIGURES:
                if name in row:
                    values = np.array(row[name], dtype=np.float64)[by_all]
                    mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
                    found.setdefault((arm, name), []).append(mean)
    return found


def _table(title: str, task: Task, means: Means) -> list[TableRow]:
    table = []
    for arm in task.arms:
        table.append(measured(f"{title}, {arm}: accuracy", means[arm, "accuracy"], unit="accuracy"))
        table += [
            measured(
                f"{title}, {arm}: {label}", means[arm, name],
                unit="share" if name == "on_object" else "",
            )
            for name, label in FIGURES.items()
            if (arm, name) in means
        ]  # fmt: skip
    return table


def _claims(title: str, task: Task, means: Means) -> list[Claim]:
    claims = []
    for name, sign in SHARPER.items():
        if (GUIDED, name) in means:
            claims += [
                _sharper(title, rival, name, sign, means) for rival in task.arms if rival != GUIDED
            ]
    return [*claims, _as_accurate(title, means)]


def _sharper(title: str, rival: str, name: str, sign: int, means: Means) -> Claim:
    """Compare a figure of guided training with that of another arm."""
    ours, theirs = means[GUIDED, name], means[rival, name]
    gap = paired_difference(ours, theirs)
    way = "larger" if sign > 0 else "smaller"
    percent = name == "on_object"
    scale, digits, unit = (100.0, 1, "points") if percent else (1.0, 3, "")
    values = " against ".join(
        f"{scale * np.mean(each):.{digits}f}{' %' if percent else ''}" for each in (ours, theirs)
    )
    return {
        "claim": f"{title}: the {FIGURES[name]} is {way} after guided training than after "
        f"{'regular training' if rival == REGULAR else f'training with {rival}'}",
        "source": "figure 2" if rival == REGULAR else "not in the paper",
        "holds": verdict(gap, sign),
        "figure": f"{values}; difference {told(gap, scale=scale, digits=digits, unit=unit)}",
    }


def _as_accurate(title: str, means: Means) -> Claim:
    """Say whether the accuracy is kept: less than a point is lost, and no clear loss."""
    ours, theirs = means[GUIDED, "accuracy"], means[REGULAR, "accuracy"]
    gap = paired_difference(ours, theirs)
    clearly_lower = verdict(gap, -1) is True
    return {
        "claim": f"{title}: guided training keeps the accuracy (no clear loss, and less than a "
        "point at the end of the interval)",
        "source": "abstract",
        "holds": False if clearly_lower else no_worse(gap, 0.01),
        "figure": f"{100 * np.mean(ours):.1f} % against {100 * np.mean(theirs):.1f} %; difference "
        f"{told(gap, scale=100, digits=1, unit='points')}",
    }


STUDY = Study(
    id="sgt-fig2",
    title="How gradients are distributed after saliency guided training",
    source="paper 2111.14338, figure 2",
    deviations=(
        "Quick: LeNet on 3,000 images of MNIST under every arm, five seeds; the paper's CNN on "
        "1,500, regular and guided, three seeds; LeNet on 2,000 of CIFAR-10, three seeds, in place "
        "of ResNet-18, which the full budget has. The paper trains on all images.",
        "BIRD with VGG-16 is left out: the data are not at hand.",
        "The logit of the predicted class is explained. The paper's MNIST network ends in "
        "log-softmax, so that there it is log p.",
        "Figures of an image are means over those test images that the models of all arms of a "
        "seed tell; the paper shows box plots alone, and gives no numbers.",
        "Two controls are ours: random masks in place of those of lowest gradient, and the second "
        "pass without a mask.",
        "The optimizer is momentum SGD with one cycle; the paper's appendix, which has its "
        "settings, is not at hand.",
        "The smoke budget takes the 8x8 digits of scikit-learn, LeNet, and two seeds.",
    ),
    budgets={
        "smoke": Config({
            "Digits, LeNet": Task(
                Recipe(data="digits", model="lenet", samples=600, epochs=4, batch_size=32),
                seeds=2, test=100, arms=(REGULAR, GUIDED, RANDOM),
            ),
        }),
        "quick": Config({
            "MNIST, LeNet": Task(Recipe(model="lenet", samples=3000, epochs=4, batch_size=32)),
            "MNIST, CNN": Task(
                Recipe(samples=1500, epochs=4, batch_size=32), arms=(REGULAR, GUIDED), seeds=3
            ),
            "CIFAR-10, LeNet": Task(
                Recipe(data="cifar10", model="lenet", samples=2000, epochs=5, batch_size=32),
                arms=(REGULAR, GUIDED), seeds=3, bounded=False,
            ),
        }),
        "full": Config({
            "MNIST, CNN": Task(Recipe(epochs=10), test=10_000),
            "CIFAR-10, ResNet-18": Task(
                Recipe(data="cifar10", model="resnet18-small", epochs=30),
                test=2000, bounded=False,
            ),
        }),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
