"""SUMMIT's class view: are classes with similar graphs the ones that a model confuses?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from attrain.errors import InputError
from attrain.graph import ClassGraphs
from attrain.graph.rank import hidden
from attrain.metrics.statistics import paired_difference, rank_correlation
from attrain.studies import graph_figures
from attrain.studies.graph_methods import LENET, RECIPES, SOURCE, VGG, told
from attrain.studies.graph_subjects import Recipe, images, trained
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.training import predict

RELEVANCE, COUNTS, ACTIVATION = "relevance", "SUMMIT's counts", "mean activation"
SIMILARITIES = (RELEVANCE, COUNTS, ACTIVATION)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A model that is studied.

    recipe: how it is trained; seeds: how often. images: the first so many training images, of which
    the class graphs are made; tested: test images on which classes are confused.
    """

    recipe: Recipe
    seeds: int
    images: int
    tested: int


@dataclass(frozen=True)
class Config:
    """Settings of the study. permutations: of the classes, for the p-values."""

    subjects: Mapping[str, Subject]
    permutations: int = 5000


def rows(config: Config) -> list[Row]:
    """Return a row per model and seed."""
    return [
        Row(_name(name, seed), partial(_measure, subject, seed))
        for name, subject in config.subjects.items()
        for seed in range(subject.seeds)
    ]


def _name(subject: str, seed: int) -> str:
    return f"{subject}, seed {seed}"


def _measure(subject: Subject, seed: int) -> Result:
    """Return how alike the classes of one trained model are, and how it confuses them."""
    model = trained(subject.recipe, seed)
    data = images(subject.recipe.data)
    x, y = (each[: subject.images] for each in data.train.tensors)
    view = ClassGraphs.from_data(model, (x, y), classes=data.classes, examples=0)
    scores: dict[str, list[Mapping[str, Tensor]]] = {COUNTS: [], ACTIVATION: []}
    for label, name in enumerate(data.classes):
        mine, graph = x[y == label], view[name]
        names = hidden(graph)
        for kind, by in ((COUNTS, "summit"), (ACTIVATION, "activation")):
            scores[kind].append(graph.rank(by, model=model, x=mine, layers=names))
    tested, labels = (each[: subject.tested] for each in data.test.tensors)
    outputs = predict(model, TensorDataset(tested, labels))
    return {
        "classes": list(data.classes),
        "accuracy": float((outputs.argmax(1) == labels).double().mean()),
        "confusion": confusion(labels, outputs.argmax(1), data.num_classes).tolist(),
        RELEVANCE: view.similarity().tolist(),
        **{kind: likeness(each).tolist() for kind, each in scores.items()},
    }


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the share of each class's samples that a model takes for each class, [label, told]."""
    counts = torch.zeros(classes, classes, dtype=torch.double)
    counts.index_put_((labels, predicted), torch.ones(len(labels)).double(), accumulate=True)
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def likeness(scores: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the cosine of classes' scores by layer, each layer first scaled to length 1.

    As `ClassGraphs.similarity` does it with relevances: [classes, classes].
    """
    joined = []
    for each in scores:
        parts = [values.double() for values in each.values()]
        scaled = [part / part.norm().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]
        joined.append(torch.cat(scaled) / len(scaled) ** 0.5)
    stacked = torch.stack(joined)
    return stacked @ stacked.t()


def pairs(square: Values) -> Values:
    """Return the mean of both directions of every two classes, [C (C - 1) / 2]."""
    both = (square + square.T) / 2
    found: Values = both[np.triu_indices(len(both), 1)]
    return found


def mantel(one: Values, other: Values, permutations: int) -> tuple[float, float]:
    """Return the rank correlation of two matrices over pairs of classes, and its p-value.

    p is the share of permutations of the classes of one matrix, the identity among them, that
    agree as well or better (one-sided; Mantel 1967). NaN where one of them is constant.
    """
    draw = np.random.default_rng(0)
    try:
        found = rank_correlation(pairs(one), pairs(other))
    except InputError:
        return float("nan"), float("nan")
    ranks = _ranks(pairs(other))
    both = (one + one.T) / 2
    places = np.triu_indices(len(one), 1)
    as_well = 1
    for _ in range(permutations):
        order = draw.permutation(len(one))
        mixed = _ranks(both[np.ix_(order, order)][places])
        value = mixed @ ranks / np.sqrt((mixed @ mixed) * (ranks @ ranks))
        as_well += bool(value >= found - 1e-12)
    return found, as_well / (permutations + 1)


def _ranks(values: Values) -> Values:
    from scipy.stats import rankdata  # takes long to import, and few need it

    found: Values = rankdata(values) - (len(values) + 1) / 2
    return found


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    table: list[TableRow] = []
    claims: list[Claim] = []
    drawn = []
    for name, subject in config.subjects.items():
        each = [results[_name(name, seed)] for seed in range(subject.seeds)]
        found = {
            kind: [
                mantel(np.array(result[kind]), np.array(result["confusion"]), config.permutations)
                for result in each
            ]
            for kind in SIMILARITIES
        }
        accuracies = [result["accuracy"] for result in each]
        table.append(measured(f"{name}: test accuracy", accuracies, unit="accuracy"))
        for kind, values in found.items():
            told_of = f"{name}: Spearman of likeness by {kind} and confusion"
            table.append(measured(told_of, [value for value, _ in values]))
            table.append(measured(f"{told_of}, p by permutation", [p for _, p in values]))
        claims.append(_confused(name, found[RELEVANCE]))
        claims += [_ahead(name, found, rival) for rival in SIMILARITIES[1:]]
        drawn.append(out / "figures" / f"summit-classes-{subject.recipe.data}.svg")
        matrices = {"confusion": _mean(each, "confusion", both=True)}
        matrices |= {f"likeness by {kind}": _mean(each, kind) for kind in SIMILARITIES[:2]}
        graph_figures.draw_classes(matrices, each[0]["classes"], name, drawn[-1])
    return Conclusion(table, claims, drawn)


def _mean(each: Sequence[Result], kind: str, *, both: bool = False) -> Values:
    found: Values = np.mean([np.array(result[kind]) for result in each], axis=0)
    return (found + found.T) / 2 if both else found


Found = Mapping[str, Sequence[tuple[float, float]]]


def _confused(subject: str, values: Sequence[tuple[float, float]]) -> Claim:
    gap = paired_difference([value for value, _ in values], [0.0] * len(values))
    chances = ", ".join(f"{p:.2g}" for _, p in values)
    return {
        "claim": f"{subject}: classes whose graphs are alike are confused (Spearman > 0)",
        "source": SOURCE,
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"{told(gap)}; p by permutation {chances}",
    }


def _ahead(subject: str, found: Found, rival: str) -> Claim:
    sides = [[value for value, _ in found[kind]] for kind in (RELEVANCE, rival)]
    gap = paired_difference(*sides)
    return {
        "claim": f"{subject}: likeness by relevance tells confusion better than by {rival}",
        "source": SOURCE,
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"Spearman {np.mean(sides[0]):+.2f} against {np.mean(sides[1]):+.2f}; difference "
        f"{told(gap)}",
    }


STUDY = Study(
    id="summit-classes",
    title="SUMMIT's class view: are classes with similar graphs confused?",
    source="SUMMIT (1904.02323), by relevance in place of its counts",
    deviations=(
        "SUMMIT shows class similarity and claims no figure for it; it takes InceptionV1 on "
        "ImageNet, and here it is LeNet on MNIST and VGG-like on CIFAR-10.",
        "Its counts without its PageRank, and classes compared by the cosine of the counts of all "
        "hidden layers, in place of UMAP of one layer's.",
        "CIFAR-10 is read from JPEG files, which are slightly lossy; VGG-like sees the first "
        "10,000 of its training images, with weights drawn by He's rule.",
        "The class graphs are of training images, the confusion is of test images.",
        "The smoke budget takes the 8x8 digits of scikit-learn and an MLP.",
    ),
    budgets={
        "smoke": Config(
            {"MLP, digits": Subject(Recipe("digits", "mlp", epochs=2), 2, 300, 300)}, 200
        ),
        "quick": Config(
            {
                LENET: Subject(RECIPES[LENET], 2, 10_000, 10_000),
                VGG: Subject(RECIPES[VGG], 1, 2000, 2000),
            },
            1000,
        ),
        "full": Config(
            {
                LENET: Subject(RECIPES[LENET], 5, 20_000, 10_000),
                VGG: Subject(RECIPES[VGG], 3, 2000, 4000),
            }
        ),
    },
    rows=rows,
    conclude=conclude,
)
