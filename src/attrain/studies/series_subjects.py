"""Networks over time series that are trained regularly or guided, until they are good enough.

The stop rule is that of the benchmark of Ismail et al., 2020, which looks at the test set; here a
held-out part of the training set is looked at.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.data import Data, load
from attrain.guided import SaliencyGuided
from attrain.models import seeded
from attrain.studies.guided_subjects import ARMS

FRACTION = 0.5
"""Share of the entries that are masked, as in our studies of MNIST; set beforehand."""
BATCH, RATE = 50, 1e-3


@dataclass(frozen=True)
class Stop:
    """When training ends: at `accuracy` on the validation set, looked at every `every` epochs.

    At the latest after `epochs`, or when for `patience` epochs the validation accuracy has not
    risen. An accuracy above 1 is never reached: all epochs are trained. keep_best: go back to the
    weights of the best validation accuracy that was seen, of equals the latest.
    """

    accuracy: float = 0.99
    every: int = 3
    epochs: int = 500
    patience: int = 200
    keep_best: bool = True


@dataclass(frozen=True, eq=False)
class Trained:
    """A model in evaluation mode, after how many epochs it stopped, and what it can do."""

    model: nn.Module
    epochs: int
    validation: float
    test: float


@lru_cache(maxsize=16)
def series(name: str, seed: int) -> Data:
    """Return a data set with a tenth of its training set held out; it is not to be changed."""
    return load(name, seed=seed, validation=0.1)


def fit(
    model: nn.Module, data: Data, arm: str, stop: Stop, seed: int, fraction: float = FRACTION
) -> Trained:
    """Train by Adam, in batches of 50, under one of ARMS; `seed` decides order, masks, dropout.

    fraction: of the entries of a series, how many are masked.
    """
    assert data.validation is not None
    loss = loss_of(model, arm, fraction)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    x, y = data.train.tensors
    best, since, kept, epoch = -1.0, 0, deepcopy(model.state_dict()), 0
    with seeded(seed):
        for epoch in range(1, stop.epochs + 1):
            model.train()
            for some in torch.split(torch.randperm(len(y)), BATCH):
                optimizer.zero_grad()
                loss(x[some], y[some]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if epoch % stop.every and epoch < stop.epochs:
                continue
            found = accuracy(model, *data.validation.tensors)
            if found > best:
                since = epoch
            if found >= best:
                best, kept = found, deepcopy(model.state_dict())
            if best >= stop.accuracy or epoch - since >= stop.patience:
                break
    if stop.keep_best:
        model.load_state_dict(kept)
    model.eval()
    held, test = (accuracy(model, *part.tensors) for part in (data.validation, data.test))
    return Trained(model, epoch, held, test)


def loss_of(model: nn.Module, arm: str, fraction: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a batch under an arm: x [N, T, F] and y [N] to a scalar."""
    options = ARMS[arm]
    if options is None:
        return lambda x, y: F.cross_entropy(model(x), y)
    return SaliencyGuided(model, F.cross_entropy, fraction, data="series", **options)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples x [N, T, F] whose largest output is that of their class y [N]."""
    model.eval()
    right = [
        model(a).argmax(1) == b
        for a, b in zip(*(torch.split(each, 500) for each in (x, y)), strict=True)
    ]
    return float(torch.cat(right).double().mean())
