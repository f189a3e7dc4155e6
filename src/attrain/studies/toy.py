"""What the studies on points in the plane share: data, network, and sweeps of the learning rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attrain.data import toy
from attrain.data.dataset import Data
from attrain.models import ACTIVATIONS, build
from attrain.report.palette import CLASSES as COLOURS
from attrain.studies import figures
from attrain.studies.stack import Training, accuracy
from attrain.studies.study import Result

Array = NDArray[np.float64]

SETS: Mapping[str, Callable[[int], Data]] = {
    "blobs": toy.blobs,
    "circles": toy.circles,
    "swirl": toy.swirl,
}
CLASSES = {"blobs": 2, "circles": 2, "swirl": 3}
# Paper 001, A.6.1.
EPOCHS = {"blobs": 10, "circles": 10, "swirl": 15}
SEEDS = (
    "Draw k has its data, initial weights and order of the samples from seed k, the same at every "
    "learning rate and for everything that is compared; the paper did not seed."
)
DIVERGING = "A network with a weight of 10,000 or more counts as diverged and answers one class."
CURVES = "Training accuracy is that of the batches as they were trained on, not of the whole set."
CHANCE = {data: 1 / classes for data, classes in CLASSES.items()}
GRID = 160
SHOWN = 180


@dataclass(frozen=True)
class Config:
    """Settings of a sweep; the defaults are the paper's (A.6.1).

    Learning rates are a * 10^b for each a of `factors` and b of `exponents`. Every draw has data,
    initial weights and an order of the samples of its own. `samples` and `epochs` cut training
    short; None is the paper's.
    """

    factors: tuple[int, ...] = tuple(range(1, 11))
    exponents: tuple[int, ...] = tuple(range(-10, 4))
    draws: int = 5
    samples: int | None = None
    epochs: int | None = None

    @property
    def rates(self) -> list[float]:
        """All learning rates, in ascending order."""
        return sorted({float(f"{a}e{b}") for a in self.factors for b in self.exponents})


BUDGETS = {
    "smoke": Config(factors=(1,), exponents=(-3, -2, -1), draws=2, samples=600, epochs=2),
    "quick": Config(factors=(1, 3), exponents=tuple(range(-7, 3)), draws=3),
    "full": Config(),
}


def network(classes: int, draw: int, activation: str = "relu", last: bool = False) -> nn.Sequential:
    """Return the network of A.6.1, 2-32-16-classes; `last`: an activation also after the end."""
    model = build("toy-mlp", (2,), classes, activation=activation, seed=draw)
    layers = [*model.children(), *([ACTIVATIONS[activation]()] if last else [])]
    return nn.Sequential(*layers)


def swept(
    config: Config,
    data: str,
    training: Callable[[int], Training],
    *,
    activation: str = "relu",
    last: bool = False,
) -> Result:
    """Train at every learning rate and draw; keep all accuracies, and the best rate's models.

    `training` makes the way to train from the number of epochs. Returns `accuracy` on the test set
    [draws, rates], the place of the `best` rate by the mean over the draws (the middle one, where
    several are as good), and of the models at that rate their `curve` of training accuracy
    [draws, points] and their `parameters` [draws][weight, bias, ...], weights [outputs, inputs].
    """
    epochs = config.epochs or EPOCHS[data]
    accuracies, trained = [], []
    for draw in range(config.draws):
        points = SETS[data](draw)
        x, y = (each[: config.samples] for each in points.train.tensors)
        model = network(points.num_classes, draw, activation, last)
        trained.append(training(epochs).run(model, config.rates, x, y, draw))
        accuracies.append(accuracy(trained[-1].stack, *points.test.tensors))
    each = torch.stack(accuracies)
    best = _middle_of_best(each.mean(0))
    return {
        "accuracy": each.tolist(),
        "best": best,
        "curve": [one.curve[:, best].tolist() for one in trained],
        "parameters": [_parameters(one.stack.copied(best)) for one in trained],
    }


def _middle_of_best(means: Tensor) -> int:
    best = (means == means.max()).nonzero().flatten()
    return int(best[len(best) // 2])


def _parameters(layers: list[tuple[Tensor, Tensor]]) -> list[Any]:
    return [tensor.tolist() for layer in layers for tensor in layer]


# Reading results ----------------------------------------------------------------------------------


def best_accuracies(result: Result) -> list[float]:
    """Return the test accuracies at the best rate, one per draw."""
    return [float(each[result["best"]]) for each in result["accuracy"]]


def late_fall(result: Result) -> float:
    """Return how far training accuracy falls below its best so far, in the second half.

    The largest fall of the mean curve over the draws, at the best rate; in 0..1.
    """
    curve = np.mean(result["curve"], axis=0)
    late = curve[len(curve) // 2 :]
    return float((np.maximum.accumulate(late) - late).max())


def restored(
    parameters: list[Any], classes: int, activation: str = "relu", last: bool = False
) -> nn.Sequential:
    """Return the network that has these `parameters`."""
    model = network(classes, 0, activation, last)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), parameters, strict=True):
            parameter.copy_(torch.tensor(value))
    return model


def weights(model: nn.Sequential) -> list[Array]:
    """Return the weights of each layer, without the biases."""
    return [
        module.weight.detach().double().numpy() for module in model if isinstance(module, nn.Linear)
    ]


# Figures ------------------------------------------------------------------------------------------


def draw_rates(axes: Any, config: Config, result: Result, *, marker: str, **style: Any) -> None:
    """Draw test accuracy over the learning rate, with a marker at the best one."""
    each, place = np.array(result["accuracy"]), result["best"]
    figures.band(axes, config.rates, each, **style)
    axes.plot(
        config.rates[place],
        each[:, place].mean(),
        marker,
        color=style["color"],
        markeredgecolor="black",
        markersize=6,
    )
    axes.set(xlabel="learning rate", xscale="log", ylim=(0, 1.04))


def draw_training(axes: Any, result: Result, **style: Any) -> None:
    """Draw training accuracy at the best rate over the course of training."""
    curves = np.array(result["curve"])
    figures.band(axes, (np.arange(curves.shape[1]) + 1) / curves.shape[1], curves, **style)
    axes.set(xlabel="share of training done", ylim=(0, 1.04))


def draw_boundary(axes: Any, model: nn.Sequential, data: Data, shown: int = SHOWN) -> None:
    """Draw the class `model` gives every point of the plane, and `shown` points of the test set."""
    x, y = (tensor.numpy() for tensor in data.test.tensors)
    (left, below), (right, above) = x.min(0) - 0.15, x.max(0) + 0.15
    plane = np.meshgrid(np.linspace(left, right, GRID), np.linspace(below, above, GRID))
    with torch.no_grad():
        out = model(torch.from_numpy(np.stack(plane, axis=-1).reshape(-1, 2)).float())
    colours = COLOURS[: data.num_classes]
    axes.imshow(
        figures.paler(colours)[out.argmax(-1).reshape(GRID, GRID).numpy()],
        extent=(left, right, below, above),
        origin="lower",
        aspect="auto",
        interpolation="none",
    )
    for number, (colour, marker) in enumerate(zip(colours, "osD", strict=False)):
        own = x[:shown][y[:shown] == number]
        axes.plot(
            *own.T,
            marker,
            color=colour,
            markersize=2.6,
            markeredgewidth=0.4,
            markeredgecolor="#333333",
        )
    axes.set(xticks=[], yticks=[])
