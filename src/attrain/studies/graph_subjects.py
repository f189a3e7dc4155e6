"""The trained models whose graphs are studied, and the images the graphs are made of."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig
from attrain.data import Data, load
from attrain.methods import METHODS
from attrain.models import build
from attrain.training import predict, train

_WATCHED = 500
"""Test images that the accuracy is taken on while a model is trained."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    samples: the first so many training images; 0 takes all. he: draw the weights anew by He et al.
    2015, as suits VGG-like, which with torch's own was at chance after 60 steps; else torch's.
    """

    data: str
    model: str
    method: str = "sgd"
    samples: int = 0
    epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 0.1
    he: bool = False


@lru_cache(maxsize=2)
def images(name: str) -> Data:
    """Return a data set, read once per process."""
    return load(name)


@lru_cache(maxsize=2)
def trained(recipe: Recipe, seed: int) -> nn.Module:
    """Return a model trained by `recipe`, in evaluation mode; training twice gives equal weights.

    Kept, so that the rows of a study that share a model train it once per process.
    """
    data = images(recipe.data)
    model = build(recipe.model, data.input_shape, data.num_classes, seed=seed)
    if recipe.he:
        redraw(model, seed)
    method = replace(METHODS[recipe.method], learning_rate=recipe.learning_rate)
    config = TrainingConfig(
        epochs=recipe.epochs, batch_size=recipe.batch_size, threads=1, device="cpu"
    )
    train(model, part(data, recipe.samples), method, config, seed=seed)
    return model.eval()


def redraw(model: nn.Module, seed: int) -> None:
    """Draw the weights of linear and convolution layers by He's rule; set biases to zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def part(data: Data, samples: int) -> Data:
    """Return the first training samples, and as many test samples as a look at training takes."""
    train_x, train_y = data.train.tensors
    test_x, test_y = data.test.tensors
    count = samples or len(train_x)
    return replace(
        data,
        train=TensorDataset(train_x[:count], train_y[:count]),
        test=TensorDataset(test_x[:_WATCHED], test_y[:_WATCHED]),
    )


def halves(x: Tensor, y: Tensor, classes: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return for every class the first `count` images, and the next `count`.

    x [N, ...] and y [N]. Where a class has fewer than 2 * `count` images, each half has half of
    them. Nothing that is chosen by the first half has seen the second.
    """
    found = []
    for label in range(classes):
        mine = x[y == label]
        half = min(count, len(mine) // 2)
        found.append((mine[:half], mine[half : 2 * half]))
    return found


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images whose class a model tells."""
    return float((predict(model, TensorDataset(x, y)).argmax(1) == y).double().mean())
