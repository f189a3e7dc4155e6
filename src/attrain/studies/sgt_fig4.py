"""Paper 003, figure 4: the accuracy drop under three ways to replace the salient features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.data import Data
from attrain.metrics.faithfulness import (
    FRACTIONS,
    accuracy_drop,
    area,
    corner,
    random_attribution,
)
from attrain.metrics.roar import roar_sets
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.graph_subjects import images, part
from attrain.studies.guided_subjects import REGULAR, Recipe, maps, predicted, trained
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import told, verdict
from attrain.training import evaluate, train

IID, OOD, ROAR = "IID", "OOD", "ROAR"
REPLACEMENTS = {
    IID: "by the background",
    OOD: "by the mean pixel",
    ROAR: "by the mean pixel, with training again",
}
SALIENCY, RANDOM = "saliency", "random order"
ORDERS = (SALIENCY, RANDOM)


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    seeds, retrained_seeds: of the models, and the first of them for which ROAR trains again. test:
    test images. retrained: shares of the pixels, among FRACTIONS, for which it does.
    """

    recipe: Recipe = Recipe(samples=2000, epochs=5, batch_size=64)
    seeds: int = 3
    retrained_seeds: int = 3
    test: int = 1000
    retrained: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def rows(config: Config) -> list[Row]:
    """Return a row per seed, and another one per seed for which ROAR trains again."""
    found = []
    for seed in range(config.seeds):
        found.append(Row(_replaced(seed), partial(measure, config, seed)))
        if seed < config.retrained_seeds:  # next to the row whose model it shares
            found.append(Row(_roar(seed), partial(measure_roar, config, seed)))
    return found


def _replaced(seed: int) -> str:
    return f"seed {seed}"


def _roar(seed: int) -> str:
    return f"{ROAR}, seed {seed}"


@dataclass(frozen=True, eq=False)
class _Subject:
    """A trained model, its data, and by order attributions to training and test images."""

    model: nn.Module
    data: Data
    attributions: Mapping[str, tuple[Tensor, Tensor]]


def _subject(config: Config, seed: int) -> _Subject:
    whole = images(config.recipe.data)
    test = TensorDataset(*(each[: config.test] for each in whole.test.tensors))
    data = replace(part(whole, config.recipe.samples), test=test)
    model = trained(config.recipe, REGULAR, seed)
    of_train, of_test = (
        maps(model, x, predicted(model, x), "gradient")
        for x in (data.train.tensors[0], test.tensors[0])
    )
    random = (
        random_attribution(of_train, seed=2 * seed),
        random_attribution(of_test, seed=2 * seed + 1),
    )
    return _Subject(model, data, {SALIENCY: (of_train, of_test), RANDOM: random})


def measure(config: Config, seed: int) -> Result:
    """Return accuracies of a regularly trained model over FRACTIONS, by replacement and order."""
    of = _subject(config, seed)
    x, y = of.data.test.tensors
    mean = of.data.train.tensors[0].mean((0, 2, 3), keepdim=True)  # what ROAR takes as well
    return {
        name: {
            order: accuracy_drop(of.model, x, y, of.attributions[order][1], background)
            for order in ORDERS
        }
        for name, background in ((IID, corner(x)), (OOD, mean))
    }


def measure_roar(config: Config, seed: int) -> Result:
    """Return accuracies over 0 and the fractions for which models are trained again, by order."""
    of = _subject(config, seed)
    whole = evaluate(of.model, of.data.test)["accuracy"]
    return {
        order: [whole]
        + [
            _retrained(config.recipe, of.data, *of.attributions[order], fraction, seed)
            for fraction in config.retrained
        ]
        for order in ORDERS
    }


def _retrained(
    recipe: Recipe, data: Data, on_train: Tensor, on_test: Tensor, fraction: float, seed: int
) -> float:
    """Return the accuracy of a model that was trained and is tested without its top features."""
    (x_train, y_train), (x, y) = data.train.tensors, data.test.tensors
    changed = roar_sets(x_train, x, on_train, on_test, fraction)
    data = replace(
        data, train=TensorDataset(changed.train, y_train), test=TensorDataset(changed.test, y)
    )
    model = build(recipe.model, data.input_shape, data.num_classes, seed=seed)
    done = train(model, data, recipe.method(REGULAR), recipe.training, seed=seed)
    return float(done.epochs[-1]["test_accuracy"])


# What it adds up to -------------------------------------------------------------------------------

Curves = Mapping[tuple[str, str], figures.Values]
"""Accuracy [seeds, fractions] by replacement and order, at the fractions that all three have."""


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return table, claims and the figure."""
    at = [0, *(FRACTIONS.index(each) for each in config.retrained)]
    common = (0.0, *config.retrained)
    whole = _curves(config, results)
    curves = {key: each if key[0] == ROAR else each[:, at] for key, each in whole.items()}
    path = out / "figures" / "sgt-fig4.svg"
    _draw(whole, common, path)
    return Conclusion(_table(curves, common), _claims(curves, common), [path])


def _curves(config: Config, results: Mapping[str, Result]) -> Curves:
    """Return every curve at all the fractions that it has."""
    replaced = [results[_replaced(seed)] for seed in range(config.seeds)]
    again = [results[_roar(seed)] for seed in range(config.retrained_seeds)]
    return {
        (name, order): np.array(
            [row[order] for row in again]
            if name == ROAR
            else [row[name][order] for row in replaced]
        )
        for name in REPLACEMENTS
        for order in ORDERS
    }


def _areas(curves: Curves, fractions: tuple[float, ...], name: str, order: str) -> list[float]:
    return [area(each, fractions) for each in curves[name, order].tolist()]


def _table(curves: Curves, fractions: tuple[float, ...]) -> list[TableRow]:
    table = [measured("accuracy with all pixels", curves[IID, SALIENCY][:, 0], unit="accuracy")]
    for (name, order), each in curves.items():
        values = _areas(curves, fractions, name, order)
        table.append(measured(f"{name}, {order}: area", values, unit="accuracy"))
        table += [
            measured(f"{name}, {order}: {share:.0%} replaced", each[:, index], unit="accuracy")
            for index, share in enumerate(fractions)
            if index
        ]
    return table


def _claims(curves: Curves, fractions: tuple[float, ...]) -> list[Claim]:
    claims = [_differs(curves, fractions, name) for name in (OOD, ROAR)]
    return claims + [_informed(curves, fractions, name) for name in REPLACEMENTS]


def _differs(curves: Curves, fractions: tuple[float, ...], name: str) -> Claim:
    """Compare the curve of a replacement with the IID curve, by their areas."""
    ours, truth = (_areas(curves, fractions, each, SALIENCY) for each in (name, IID))
    truth = truth[: len(ours)]
    gap = paired_difference(ours, truth)
    apart = (curves[name, SALIENCY] - curves[IID, SALIENCY][: len(ours)]).mean(0)
    worst = int(np.abs(apart).argmax())
    return {
        "claim": f"Replacing {REPLACEMENTS[name]} ({name}) does not give the curve of replacing "
        f"{REPLACEMENTS[IID]} ({IID}): the areas differ",
        "source": "figure 4",
        "holds": True if gap["clear"] else "unclear",
        "figure": f"{100 * np.mean(ours):.1f} % against {100 * np.mean(truth):.1f} %; difference "
        f"{told(gap, scale=100, digits=1, unit='points')}; largest with {fractions[worst]:.0%} "
        f"replaced: {100 * apart[worst]:+.1f} points",
    }


def _informed(curves: Curves, fractions: tuple[float, ...], name: str) -> Claim:
    saliency, random = (_areas(curves, fractions, name, order) for order in ORDERS)
    gap = paired_difference(random, saliency)
    return {
        "claim": f"Judged by {name}, the gradient finds pixels that matter more than random ones",
        "source": "not in the paper",
        "holds": verdict(gap),
        "figure": f"area {100 * np.mean(saliency):.1f} % against {100 * np.mean(random):.1f} %; "
        f"lower by {told(gap, scale=100, digits=1, unit='points')}",
    }


_STYLES = {
    IID: (LIGHT[0], "-", "o"),
    OOD: (LIGHT[1], "--", "s"),
    ROAR: (LIGHT[2], "-.", "D"),
}


def _draw(curves: Curves, common: tuple[float, ...], path: Path) -> None:
    """Draw accuracy over the share replaced, in both orders: mean and deviation of the seeds."""
    titles = {SALIENCY: "largest |gradient| first", RANDOM: "in random order"}
    with figures.drawing(path, 8.2, 3.6) as figure:
        grid = figure.subplots(1, len(ORDERS), sharey=True)
        for axes, order in zip(grid, ORDERS, strict=True):
            for name, (colour, dash, mark) in _STYLES.items():
                shares = common if name == ROAR else FRACTIONS
                figures.band(
                    axes, [100 * share for share in shares], 100 * curves[name, order],
                    color=colour,
                    linestyle=dash, marker=mark, markersize=3.5,
                    label=f"{name}: {REPLACEMENTS[name].removeprefix('by ')}",
                )  # fmt: skip
            axes.set(title=titles[order], xlabel="pixels replaced (%)", ylim=(0, 101))
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("test accuracy (%)")
        named = grid[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=3, fontsize=8.5)


STUDY = Study(
    id="sgt-fig4",
    title="Accuracy drop by what replaces salient pixels: background, mean, or mean and retraining",
    source="paper 2111.14338, figure 4",
    deviations=(
        "ROAR trains a model anew for every fraction, order and seed, so the training set is "
        "small (quick: 2,000 images, three seeds) and ROAR has five fractions; areas are over "
        "these fractions for all.",
        "The logit of the predicted class is explained, by the size of its gradient. The paper "
        "does not say which output; its network ends in log-softmax.",
        "The background is an image's own corner pixel. The mean is that of all pixels of the "
        "training images; the paper says the mean pixel.",
        "Curves in random order are ours; the paper shows saliency alone.",
        "The optimizer is momentum SGD with one cycle; the paper's appendix, which has its "
        "settings, is not at hand.",
        "The smoke budget takes the 8x8 digits of scikit-learn, an MLP, two seeds, two fractions.",
    ),
    budgets={
        "smoke": Config(
            Recipe(data="digits", model="mlp", samples=600, epochs=6, batch_size=32),
            seeds=2, retrained_seeds=2, test=200, retrained=(0.3, 0.9),
        ),
        "quick": Config(),
        "full": Config(
            Recipe(samples=12_000, epochs=5), seeds=5, retrained_seeds=5, test=10_000,
            retrained=FRACTIONS[1:],
        ),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
