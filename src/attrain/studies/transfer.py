"""Transfer to a task with few labels: by a linear probe of frozen features, and by fine-tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.models import build
from attrain.studies.tasks import Samples, World

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the linear probe's penalty, of which the held-out labels choose one."""
BATCH = 20
"""Of the few labels."""


def untrained(world: World, classes: int, seed: int) -> nn.Sequential:
    """Return an untrained LeNet, whose last layer is the head and all before it the encoder."""
    return cast(nn.Sequential, build("lenet", (1, world.side, world.side), classes, seed=seed))


def encoder(model: nn.Sequential) -> nn.Sequential:
    """Return all of a model but its head; the weights are the same ones."""
    return nn.Sequential(*list(model)[:-1])


def with_head(source: nn.Sequential, fresh: nn.Sequential) -> nn.Sequential:
    """Return `fresh` with the encoder of `source` and its own head."""
    encoder(fresh).load_state_dict(encoder(source).state_dict())
    return fresh


def fit(
    model: nn.Sequential, given: Samples, rate: float, epochs: int, batch: int, seed: int
) -> None:
    """Train by Adam on the cross-entropy."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(given), generator=generator)
        for start in range(0, len(order), batch):
            some = given.part(order[start : start + batch])
            optimizer.zero_grad()
            loss = F.cross_entropy(model(some.x), some.y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@torch.no_grad()
def outputs(model: nn.Sequential, x: Tensor) -> Tensor:
    """Return what a model makes of x [N, ...], in parts, without gradients."""
    return torch.cat([model(x[start : start + 500]) for start in range(0, len(x), 500)])


def accuracy(model: nn.Sequential, given: Samples) -> float:
    """Return the share of samples whose largest output is that of their class."""
    return float((outputs(model, given.x).argmax(1) == given.y).double().mean())


@dataclass(frozen=True, eq=False)
class Target:
    """A target's few labelled samples, those held out, and a test set."""

    labelled: Samples
    held: Samples
    test: Samples


def tuned(
    start: Callable[[], nn.Sequential],
    target: Target,
    rates: Sequence[float],
    epochs: int,
    seed: int,
) -> nn.Sequential:
    """Return a model trained on the few labels, at the rate that the held-out ones choose.

    `start` makes the model that training begins with, anew for each rate.
    """
    tried = []
    for rate in rates:
        model = start()
        fit(model, target.labelled, rate, epochs, BATCH, seed)
        loss = float(F.cross_entropy(outputs(model, target.held.x), target.held.y))
        tried.append((-accuracy(model, target.held), loss, rate, model))
    return min(tried, key=lambda each: each[:3])[3]


def probed(source: nn.Sequential, target: Target) -> tuple[float, float]:
    """Return the accuracies of a linear probe of frozen features, on held-out and test samples."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    frozen = encoder(source)
    parts = [
        (outputs(frozen, part.x).double().numpy(), part.y.numpy())
        for part in (target.labelled, target.held, target.test)
    ]
    scaler = StandardScaler().fit(parts[0][0])
    (x, y), held, test = ((scaler.transform(x), y) for x, y in parts)
    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        linear = LogisticRegression(C=penalty, max_iter=5000).fit(x, y)
        found = float(linear.score(*held)), float(linear.score(*test))
        best = found if found[0] > best[0] else best
    return best
