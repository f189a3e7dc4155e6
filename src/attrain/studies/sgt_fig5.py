"""Saliency maps of MNIST read as a time series, regular and guided: paper 003, Figure 5."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from torch.utils.data import TensorDataset

from attrain.data import Data, load
from attrain.metrics.sparsity import gini
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, REGULAR, SALIENCIES
from attrain.studies.series_measures import explained
from attrain.studies.series_subjects import Stop, fit
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import told, verdict

ARMS = (REGULAR, GUIDED)
MODELS: Mapping[str, str] = {
    "lstm": "LSTM",
    "lstm-input-cell": "LSTM + input",
    "tcn": "TCN",
    "transformer": "Transformer",
}
SHOWN: Mapping[str, str] = {
    "gradient": "Grad",
    "integrated gradients": "IG",
    "DeepLIFT": "DL",
    "GradientSHAP": "GS",
    "DeepSHAP": "DLS",
    "SmoothGrad": "SG",
}
MEASURES = ("ink", "gini")
HELD = 500
"""Training pictures, after those that are trained on, that show how well they were learned."""


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    models, epochs: which networks, and how long each is trained on the first `samples` training
    pictures. explained: test pictures. maps: of them, of the first seed, how many are drawn.
    """

    data: str = "mnist-series"
    models: tuple[str, ...] = tuple(MODELS)
    epochs: tuple[int, ...] = (40, 20, 20, 6)
    samples: int = 10_000
    seeds: int = 5
    explained: int = 40
    maps: int = 2


def rows(config: Config) -> list[Row]:
    """Return a row per seed, network and way to train."""
    return [
        Row(_name(model, arm, seed), partial(_measure, config, model, arm, seed))
        for seed in range(config.seeds)
        for model in config.models
        for arm in ARMS
    ]


def _name(model: str, arm: str, seed: int) -> str:
    return f"{model}, {arm}, seed {seed}"


@lru_cache(maxsize=2)
def _pictures(name: str, samples: int) -> Data:
    """Return pictures whose rows are steps, [N, H, W]: `samples` to train on, and held-out ones."""
    data = load(name)
    if len(data.input_shape) == 3:  # a channel of grey
        train, test = (
            TensorDataset(part.tensors[0][:, 0], part.tensors[1])
            for part in (data.train, data.test)
        )
        data = replace(data, train=train, test=test, input_shape=data.input_shape[1:])
    x, y = data.train.tensors
    held = slice(samples, samples + HELD)
    x_test, y_test = data.test.tensors
    return replace(
        data,
        train=TensorDataset(x[:samples], y[:samples]),
        validation=TensorDataset(x[held], y[held]),
        test=TensorDataset(x_test[:1000], y_test[:1000]),
    )


def _measure(config: Config, name: str, arm: str, seed: int) -> Result:
    """Train a network and look at its maps of the first test pictures."""
    data = _pictures(config.data, config.samples)
    model = build(name, data.input_shape, data.num_classes, seed=seed)
    only = config.epochs[config.models.index(name)]
    stop = Stop(accuracy=2.0, every=only, epochs=only, patience=only, keep_best=False)
    trained = fit(model, data, arm, stop, seed)
    x, y = (each[: config.explained] for each in data.test.tensors)
    ink = x != x[:, :1, :1]
    found: Result = {"test": trained.test, "methods": {}, "maps": {}}
    for method in SALIENCIES:
        values, _ = explained(trained.model, data, x, y, method)
        size = values.abs().double()
        share = (size * ink).sum((1, 2)) / size.sum((1, 2))
        found["methods"][method] = {
            "ink": float(share.mean()),
            "gini": float(np.mean([gini(each) for each in size])),
        }
        if seed == 0:
            top = size.amax((1, 2), keepdim=True)
            some = (size / top)[: config.maps]
            found["maps"][method] = [np.round(each.numpy(), 3).tolist() for each in some]
    found["ink"] = float(ink.double().mean())
    if seed == 0:
        found["pictures"] = [np.round(each.numpy(), 2).tolist() for each in x[: config.maps]]
    return found


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]
_TITLES = {"ink": "share of |saliency| on the digit", "gini": "Gini of |saliency|"}
_UNITS = {"ink": "share", "gini": ""}
_CLAIMS = {
    "ink": "puts more of the saliency on the digit",
    "gini": "makes the saliency sparser (Gini)",
}


def _values(
    config: Config, results: Results, model: str, arm: str, measure: str, method: str | None = None
) -> list[float]:
    """Return a measure per seed, of a method or the mean of all six."""
    methods = list(SALIENCIES) if method is None else [method]
    return [
        float(
            np.mean(
                [results[_name(model, arm, seed)]["methods"][each][measure] for each in methods]
            )
        )
        for seed in range(config.seeds)
    ]


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    folder = out / "figures"
    drawn = [folder / "sgt-fig5-maps.svg", folder / "sgt-fig5.svg"]
    _draw_maps(config, results, drawn[0])
    _draw_measures(config, results, drawn[1])
    return Conclusion(_table(config, results), _claims(config, results), drawn)


def _table(config: Config, results: Results) -> list[TableRow]:
    table = []
    for model in config.models:
        for arm in ARMS:
            tests = [results[_name(model, arm, seed)]["test"] for seed in range(config.seeds)]
            label = f"{MODELS[model]}, {arm}: test accuracy"
            table.append(measured(label, tests, unit="accuracy"))
    covered = [results[_name(config.models[0], REGULAR, 0)]["ink"]]
    table.append(measured("share of the pixels that are on the digit", covered, unit="share"))
    for measure in MEASURES:
        for model in config.models:
            for method in SALIENCIES:
                for arm in ARMS:
                    label = f"{MODELS[model]}, {method}, {arm}: {_TITLES[measure]}"
                    values = _values(config, results, model, arm, measure, method)
                    table.append(measured(label, values, unit=_UNITS[measure]))
    return table


def _claims(config: Config, results: Results) -> list[Claim]:
    return [
        _improves(config, results, model, measure)
        for measure in MEASURES
        for model in config.models
    ]


def _improves(config: Config, results: Results, model: str, measure: str) -> Claim:
    guided, regular = (_values(config, results, model, arm, measure) for arm in (GUIDED, REGULAR))
    gap = paired_difference(guided, regular)
    return {
        "claim": f"Guided training {_CLAIMS[measure]} in {MODELS[model]}, mean of six methods",
        "source": "figure 5, by eye",
        "holds": verdict(gap),
        "figure": f"{np.mean(guided):.3f} against {np.mean(regular):.3f}; difference "
        f"{told(gap, digits=3)}",
    }


# Figures ------------------------------------------------------------------------------------------


def _draw_maps(config: Config, results: Results, path: Path) -> None:
    """Draw |saliency| of the first test pictures, of seed 0; each step is a row of pixels."""
    pictures = results[_name(config.models[0], REGULAR, 0)]["pictures"]
    lines = [(model, arm) for model in config.models for arm in ARMS]
    width = 1 + len(SHOWN)
    with figures.drawing(
        path, 0.9 + 0.6 * width * len(pictures), 0.3 + 0.62 * len(lines)
    ) as figure:
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
        grid = figure.subplots(len(lines), width * len(pictures), squeeze=False)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for line, (model, arm) in zip(grid, lines, strict=True):
            line[0].set_ylabel(
                f"{MODELS[model]}\n{arm}", fontsize=8, rotation=0, ha="right", va="center"
            )
            for number, picture in enumerate(pictures):
                here = line[number * width : (number + 1) * width]
                _show(here[0], picture, "gray_r")
                for axes, method in zip(here[1:], SHOWN, strict=True):
                    values = np.array(results[_name(model, arm, 0)]["maps"][method][number])
                    _show(axes, values, _SIZES, vmin=0, vmax=np.quantile(values, DARKEST) or 1)
        for number in range(len(pictures)):
            for axes, short in zip(grid[0, number * width + 1 :], SHOWN.values(), strict=False):
                axes.set_title(short, fontsize=8, pad=2)


_SIZES = LinearSegmentedColormap.from_list("sizes", ["#ffffff", LIGHT[2], "#00213d"])
DARKEST = 0.99
"""Quantile of a map from which on it is drawn darkest."""


def _show(axes: Any, values: Any, colours: Any, **limits: Any) -> None:
    axes.imshow(np.array(values), cmap=colours, interpolation="none", **limits)


def _draw_measures(config: Config, results: Results, path: Path) -> None:
    """Draw both measures of each network and method, regular and guided, a mark per seed."""
    with figures.drawing(path, 1.4 + 2.1 * len(config.models), 4.6) as figure:
        grid = figure.subplots(
            len(MEASURES), len(config.models), sharey=True, sharex="row", squeeze=False
        )
        for line, measure in zip(grid, MEASURES, strict=True):
            for axes, model in zip(line, config.models, strict=True):
                for arm, colour, mark in ((REGULAR, LIGHT[2], "o"), (GUIDED, LIGHT[1], "D")):
                    for place, method in enumerate(SALIENCIES):
                        values = _values(config, results, model, arm, measure, method)
                        height = place + (0.16 if arm == GUIDED else -0.16)
                        axes.plot(
                            values, [height] * len(values), mark, color=colour, markersize=4,
                            alpha=0.8, label=arm if place == 0 else None,
                        )  # fmt: skip
                axes.set(title=MODELS[model], xlabel=_TITLES[measure])
                axes.set_yticks(range(len(SALIENCIES)), SALIENCIES)
                axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        grid[0, 0].invert_yaxis()
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


STUDY = Study(
    id="sgt-fig5",
    title="MNIST as a time series: regular and guided saliency maps",
    source="paper 2111.14338, figure 5 and section 5.3",
    deviations=(
        "The figure is judged by eye in the paper; here by the share of |saliency| on pixels that "
        "differ from the background, and by the Gini coefficient of |saliency|.",
        "The networks are those of sgt-table2 in their sizes; the paper does not state its own.",
        "The networks see a part of the training set for a few epochs.",
        "Integrated gradients and DeepLIFT start from the mean of the training pictures: from a "
        "black one they would be 0 off the digit whatever the network.",
        "Half of the pixels are masked.",
        "The smoke budget takes the 8x8 digits of scikit-learn.",
    ),
    budgets={
        "smoke": Config(
            data="digits", models=("lstm", "tcn"), epochs=(1, 1), samples=300, seeds=1,
            explained=6,
        ),
        "quick": Config(epochs=(30, 12, 8, 2), samples=2000, seeds=3),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
