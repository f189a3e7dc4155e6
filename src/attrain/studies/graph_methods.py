"""Graphs from different attributions: do they agree, do they conserve, and which is faithful?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attrain.graph.rank import hidden
from attrain.metrics.sparsity import gini
from attrain.metrics.statistics import paired_difference
from attrain.studies import graph_figures
from attrain.studies.graph_measures import (
    ACTIVATION,
    COUNTS,
    FLOW,
    GRADIENT,
    METHODS,
    PATH,
    RANDOM,
    RELEVANCE,
    SINGLE,
    agreement,
    area,
    falls,
    graphs,
    rankings,
)
from attrain.studies.graph_subjects import Recipe, accuracy, halves, images, trained
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured

LENET, VGG = "LeNet, MNIST", "VGG-like, CIFAR-10"
SOURCE = "the design of this library"
EDGES = 5000
"""Messages of a layer that are drawn to compare edges."""


@dataclass(frozen=True)
class Subject:
    """A model that is studied.

    recipe: how it is trained; seeds: how often. images: of each class that choose units, and as
    many others that measure. singles: as `graph_measures.rankings` takes it.
    """

    recipe: Recipe
    seeds: int
    images: int
    singles: int = 0


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    shares: of the units of each hidden layer that are ablated together. hows: what they hand on
    instead, the claims are about the first. draws: random orders. tested: test images that the
    accuracy is taken on.
    """

    subjects: Mapping[str, Subject]
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    hows: tuple[str, ...] = ("mean", "zero")
    draws: int = 5
    tested: int = 2000


def rows(config: Config) -> list[Row]:
    """Return a row per model and seed."""
    return [
        Row(_name(name, seed), partial(_measure, config, subject, seed))
        for name, subject in config.subjects.items()
        for seed in range(subject.seeds)
    ]


def _name(subject: str, seed: int) -> str:
    return f"{subject}, seed {seed}"


def _measure(config: Config, subject: Subject, seed: int) -> Result:
    """Return what the graphs of all classes of one trained model come to, class by class."""
    model = trained(subject.recipe, seed)
    data = images(subject.recipe.data)
    x, y = data.test.tensors
    parts = halves(x, y, data.num_classes, subject.images)
    each = [_of_class(config, subject, model, parts, label) for label in range(data.num_classes)]
    return {
        "accuracy": accuracy(model, x[: config.tested], y[: config.tested]),
        **_together(config, each),
    }


def _of_class(
    config: Config,
    subject: Subject,
    model: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    label: int,
) -> Result:
    """Return what the graphs of a class come to; `parts` are the two parts of every class."""
    chosen_by, measured_by = parts[label]
    reference = torch.cat([first for first, _ in parts])
    made = graphs(model, chosen_by, label)
    ranked = rankings(made, model, chosen_by, label, reference, subject.singles)
    first = made[next(iter(METHODS))]
    fallen = {
        how: falls(
            first, model, measured_by, label, ranked, reference, config.shares, how, config.draws
        )
        for how in config.hows
    }
    return {
        **agreement(made, ranked, EDGES),
        "leaks": {name: leaked(graph.leaks(), graph.output) for name, graph in made.items()},
        "error": {name: max(graph.error().values()) for name, graph in made.items()},
        "gini": float(np.nanmean([gini(first.relevance[name]) for name in hidden(first)])),
        "output": fallen[config.hows[0]][0],
        "falls": {how: curves for how, (_, curves) in fallen.items()},
    }


def _together(config: Config, each: Sequence[Result]) -> Result:
    """Return the results of the classes in lists; of errors the largest."""
    return {
        **{key: [one[key] for one in each] for key in ("nodes", "edges", "gini", "output")},
        "leaks": {name: [one["leaks"][name] for one in each] for name in METHODS},
        "error": {name: max(one["error"][name] for one in each) for name in METHODS},
        "falls": {how: [one["falls"][how] for one in each] for how in config.hows},
    }


def leaked(leaks: Mapping[str, float], output: float) -> dict[str, float]:
    """Return what each sink took, as a share of the size of the output."""
    return {sink: value / abs(output) for sink, value in leaks.items()}


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


def _of(subject: str, config: Config, results: Results) -> list[Result]:
    return [results[_name(subject, seed)] for seed in range(config.subjects[subject].seeds)]


def areas(each: Sequence[Result], how: str, by: str) -> list[float]:
    """Return the area over the curve of a ranking, one per seed."""
    return [area([one[by] for one in result["falls"][how]], result["output"]) for result in each]


def curves(each: Sequence[Result], how: str, by: str) -> NDArray[np.float64]:
    """Return the drop for every share, as a share of the output [seeds, shares]."""
    return np.array(
        [
            np.mean([one[by] for one in result["falls"][how]], axis=0) / np.mean(result["output"])
            for result in each
        ]
    )


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    found = {name: _of(name, config, results) for name in config.subjects}
    table: list[TableRow] = []
    claims: list[Claim] = []
    for name, each in found.items():
        table += _table(config, name, each)
        claims += _claims(config, name, each)
    folder = out / "figures"
    drawn = [folder / "graph-methods.svg", folder / "graph-methods-agreement.svg"]
    first = config.hows[0]
    graph_figures.draw_falls(
        {
            name: {by: curves(each, first, by) for by in each[0]["falls"][first][0]}
            for name, each in found.items()
        },
        config.shares,
        drawn[0],
    )
    graph_figures.draw_agreement(
        {name: _mean_pairs(each, "nodes") for name, each in found.items()}, drawn[1]
    )
    return Conclusion(table, claims, drawn)


def pair(each: Result, kind: str, name: str) -> float:
    """Return the rank correlation of two methods, the mean over classes."""
    known = [one[name] for one in each[kind] if one[name] is not None]
    return float(np.mean(known)) if known else float("nan")


def _mean_pairs(each: Sequence[Result], kind: str) -> dict[str, float]:
    return {
        name: float(np.mean([pair(result, kind, name) for result in each]))
        for name in each[0][kind][0]
    }


def _table(config: Config, subject: str, each: Sequence[Result]) -> list[TableRow]:
    table = [
        measured(
            f"{subject}: test accuracy", [result["accuracy"] for result in each], unit="accuracy"
        ),
        measured(
            f"{subject}: Gini coefficient of |relevance| within hidden layers",
            [float(np.mean(result["gini"])) for result in each],
        ),
    ]
    for how in config.hows:
        for by in each[0]["falls"][how][0]:
            values = areas(each, how, by)
            table.append(measured(f"{subject}: area over the curve, {how}, by {by}", values))
    for kind in ("nodes", "edges"):
        for name in each[0][kind][0]:
            values = [pair(result, kind, name) for result in each]
            both = " and ".join(name.split(" | "))
            table.append(measured(f"{subject}: Spearman of {kind}, {both}", values))
    for method in METHODS:
        sinks = dict.fromkeys(sink for one in each[0]["leaks"][method] for sink in one)
        for sink in sinks:
            # The median: by integrated gradients a class may be explained that has hardly changed.
            values = [
                float(np.median([abs(one.get(sink, 0.0)) for one in result["leaks"][method]]))
                for result in each
            ]
            if any(values):
                told_of = (
                    f"{subject}: {method}, size of the sink {sink} / output, median of classes"
                )
                table.append(measured(told_of, values))
        errors = [result["error"][method] for result in each]
        table.append(measured(f"{subject}: {method}, largest error of conservation", errors))
    return table


RIVALS = (RANDOM, ACTIVATION, COUNTS, FLOW, PATH, GRADIENT, SINGLE)


def _claims(config: Config, subject: str, each: Sequence[Result]) -> list[Claim]:
    return [
        _ahead(subject, each, how, rival)
        for how in config.hows
        for rival in (RIVALS if how == config.hows[0] else RIVALS[:3])
        if rival in each[0]["falls"][how][0]
    ]


def _ahead(subject: str, each: Sequence[Result], how: str, rival: str) -> Claim:
    ours, theirs = areas(each, how, RELEVANCE), areas(each, how, rival)
    gap = paired_difference(ours, theirs)
    what = {RANDOM: "random units", SINGLE: "units ranked by ablating one at a time"}
    return {
        "claim": f"{subject}: ablating ({how}) the top units by relevance lowers the target logit "
        f"more than by {what.get(rival, rival)}",
        "source": SOURCE,
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"area {np.mean(ours):.3f} against {np.mean(theirs):.3f} of the output; "
        f"difference {told(gap)}",
    }


def told(gap: Mapping[str, Any]) -> str:
    """Return a difference with its interval in words."""
    if gap["mean"] is None:
        return "undefined"
    if gap["low"] is None:
        return f"{gap['mean']:+.3f}, one seed"
    return f"{gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}, {gap['n']} seeds)"


_MNIST = Recipe("mnist", "lenet", epochs=2)
_CIFAR = Recipe(
    "cifar10", "vgg-like", samples=10_000, epochs=4, batch_size=32, learning_rate=0.01, he=True
)
RECIPES = {LENET: _MNIST, VGG: _CIFAR}

STUDY = Study(
    id="graph-methods",
    title="Attribution graphs by different methods: agreement, leaks, faithfulness",
    source="A Novel Training Method for Deep Neural Networks Leveraging Attribution Graphs; "
    "SUMMIT (1904.02323)",
    deviations=(
        "Neither text has these figures: what is claimed is what this library expects of its own "
        "rankings. On one toy network, in a prototype, the areas were .541 by relevance, .411 by "
        "activation, .402 by SUMMIT's counts and .261 at random.",
        "SUMMIT's counts without its PageRank, and of LeNet and VGG-like in place of InceptionV1.",
        "CIFAR-10 is read from JPEG files, which are slightly lossy; VGG-like sees the first "
        "10,000 of its training images, with weights drawn by He's rule.",
        "Of each class, one part of the test images chooses the units and another measures; all "
        "images of a class count, also those that the model gets wrong.",
        "Learning rates and epochs were not tuned; a look at the first 100 steps chose He's rule.",
        "The smoke budget takes the 8x8 digits of scikit-learn and an MLP.",
    ),
    budgets={
        "smoke": Config(
            subjects={
                "MLP, digits": Subject(Recipe("digits", "mlp", epochs=5), 2, images=8, singles=4)
            },
            shares=(0.1, 0.4),
            draws=2,
            tested=100,
        ),
        "quick": Config(
            subjects={
                LENET: Subject(RECIPES[LENET], 2, images=50, singles=20),
                VGG: Subject(RECIPES[VGG], 1, images=20),
            },
            tested=1000,
        ),
        "full": Config(
            subjects={
                LENET: Subject(RECIPES[LENET], 5, images=100, singles=20),
                VGG: Subject(RECIPES[VGG], 3, images=30),
            },
            tested=1000,
        ),
    },
    rows=rows,
    conclude=conclude,
)
