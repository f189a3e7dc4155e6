"""Texts, a bidirectional LSTM trained on them with saliency guidance or without, and its words."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.attribution import attribute
from attrain.data import load
from attrain.guided import SaliencyGuided
from attrain.metrics.batches import in_batches
from attrain.metrics.words import comprehensiveness, sufficiency
from attrain.models import seeded
from attrain.recurrent_models import WordBiLSTM
from attrain.studies.guided_subjects import ARMS, maps

MADE = "made"
"""Texts that are made up here, for tests and the smoke budget."""
VALIDATION = 1 / 8
"""Share of the training texts that chooses the epoch."""
ROWS = 64
"""Texts that go through a model at once where nothing is learned."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on texts, under any arm.

    data: a name of attrain.data.load, or MADE. words: the first of a text, what comes later is
    cut off. hidden: units in each direction. fraction, weight: of the guidance, as
    attrain.SaliencyGuided has them; its form is "exact". Training is by Adam, with gradients
    clipped to a norm of 1.
    """

    data: str
    words: int
    epochs: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    hidden: int = 64
    fraction: float = 0.5
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Texts:
    """Labelled texts: numbers of words x [N, L] and classes y [N] of each part."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    words: tuple[str, ...]
    vectors: Tensor


def is_there(data: str) -> bool:
    """Tell whether texts can be read without the hub, from $ATTRAIN_DATA."""
    folder = os.environ.get("ATTRAIN_DATA")
    return folder is not None and (Path(folder) / data).is_dir()


@lru_cache(maxsize=1)
def texts(data: str, words: int) -> Texts:
    """Return texts cut to their first `words` words."""
    if data == MADE:
        return _made(words)
    found = load(data, validation=VALIDATION)
    assert found.validation is not None and found.vectors is not None

    def cut(part: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return part[0][:, :words].contiguous(), part[1]

    return Texts(
        cut(found.train.tensors), cut(found.validation.tensors), cut(found.test.tensors),
        found.classes, found.words, found.vectors,
    )  # fmt: skip


def _made(words: int) -> Texts:
    """Return texts of twelve to `words` words, among them three of their class and one other."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, generator=generator)
    names = ["<padding>", "<unknown>", "<between>"]
    names += [f"bad{k}" for k in range(10)] + [f"good{k}" for k in range(10)]
    names += [f"word{k}" for k in range(60)]

    def part(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 2
        x = draw(23, len(names), (count, words))
        x[torch.arange(words) >= draw(12, words + 1, (count, 1))] = 0
        telling = 3 + 10 * y[:, None] + draw(0, 10, (count, 3))
        other = 3 + 10 * (1 - y[:, None]) + draw(0, 10, (count, 1))
        places = torch.rand((count, 12), generator=generator).argsort(1)[:, :4]
        return x.scatter(1, places, torch.cat([telling, other], 1)), y

    vectors = torch.randn((len(names), 16), generator=generator)
    vectors[0] = 0.0
    return Texts(part(256), part(64), part(64), ("bad", "good"), tuple(names), vectors)


# Training -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as it was after its best epoch, 1 for the first, and its validation loss [epochs]."""

    model: WordBiLSTM
    epoch: int
    losses: list[float]


def trained(recipe: Recipe, arm: str, seed: int) -> Trained:
    """Return a model trained under an arm of `guided_subjects.ARMS`; twice gives equal weights.

    The epoch with the lowest cross-entropy on the validation texts is kept. The arms of a seed
    start with equal weights and see the texts in one order.
    """
    given = texts(recipe.data, recipe.words)
    x, y = given.train
    order = torch.Generator().manual_seed(seed)
    with seeded(seed):
        model = WordBiLSTM(given.vectors, len(given.classes), recipe.hidden)
        loss_of = _loss(model, recipe, arm)
        optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
        losses: list[float] = []
        best = model.state_dict()
        for _ in range(recipe.epochs):
            model.train()
            for some in batches(lengths(x), recipe.batch_size, order):
                optimizer.zero_grad()
                loss_of(x[some], y[some]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            model.eval()
            held, held_y = given.validation
            losses.append(float(F.cross_entropy(logits(model, held), held_y)))
            if losses[-1] == min(losses):
                best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return Trained(model.eval(), 1 + losses.index(min(losses)), losses)


def _loss(model: nn.Module, recipe: Recipe, arm: str) -> Any:
    """Return the function from a batch to the loss of an arm."""
    own = ARMS[arm]
    if own is None:
        return lambda x, y: F.cross_entropy(model(x), y)
    options: dict[str, Any] = {"fraction": recipe.fraction, "weight": recipe.weight, **own}
    return SaliencyGuided(model, F.cross_entropy, data="text", embedding="embedding", **options)


def lengths(x: Tensor) -> Tensor:
    """Return how many words texts [N, L] have, [N]."""
    return (x != 0).sum(1)


def batches(words: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers of texts with so many words [N] in batches, each text once.

    Texts of a batch are of like length, since all are read to the end of the longest: drawn at
    random, sorted within a run of 20 batches, and the batches of it are shuffled.
    """
    drawn = torch.randperm(len(words), generator=generator)
    for some in torch.split(drawn, 20 * size):
        parts = torch.split(some[words[some].argsort(stable=True)], size)
        yield from (parts[int(k)] for k in torch.randperm(len(parts), generator=generator))


# What is measured of it ---------------------------------------------------------------------------


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a model in evaluation, [N, classes], without gradients."""
    with torch.no_grad():
        return in_batches(model, ROWS)(x)


GRADIENT, PATH, SMOOTH = "gradient", "integrated gradients", "SmoothGrad"
SIGNED, PRODUCT, RANDOM = "gradient, signed", "gradient times input", "random words"


def scores(model: nn.Module, x: Tensor, target: Tensor, seed: int) -> dict[str, Tensor]:
    """Return scores of the words of texts [N, L] for a class of each, by saliency method.

    The sum over the values of a word's vector: of |gradient| for "gradient" and "SmoothGrad", as
    they are for integrated gradients (from vectors of zeros), the signed gradient, and the
    gradient times the vector.
    """
    at: dict[str, Any] = {"layer": "embedding", "batch_size": ROWS}
    found = {
        title: maps(model, x, target, title, seed=seed, **at).sum(2)
        for title in (GRADIENT, PATH, SMOOTH)
    }
    signed = attribute(model, x, target, method="saliency", abs=False, **at)
    product = attribute(model, x, target, method="input_x_gradient", **at)
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return found | {SIGNED: signed.sum(2), PRODUCT: product.sum(2), RANDOM: drawn}


def faithfulness(
    model: nn.Module, x: Tensor, found: Mapping[str, Tensor], seed: int
) -> dict[str, dict[str, Tensor]]:
    """Return comprehensiveness and sufficiency [N] of texts by each method's scores [N, L]."""
    predict = in_batches(lambda some: model(some).softmax(1), ROWS)
    return {
        title: {
            "comprehensiveness": comprehensiveness(predict, x, each, seed=seed),
            "sufficiency": sufficiency(predict, x, each, seed=seed),
        }
        for title, each in found.items()
    }
