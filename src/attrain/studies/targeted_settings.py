"""Six settings of fine-tuning: a model, what it is to learn, and what counts as success."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.models import seeded
from attrain.studies.targeted_old_task import (
    HIGH,
    LOW,
    NEW,
    OLD,
    SIDES,
    Heads,
    perceptron,
)
from attrain.studies.targeted_subjects import (
    Loop,
    Loss,
    Training,
    accuracy,
    cross_entropy,
    dense,
    small_cnn,
)
from attrain.studies.tasks import TEN, Samples, Task, few, samples

NOISE = 0.4
"""Share of labels that are drawn anew."""
TELLS = 0.95
"""Share of pictures whose patch tells the class, where the model learns from it."""
PATCH = 1 / 7
"""Side of the patch, as a share of the picture's."""


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    names: settings, all where there are none. hidden: layers of the MLP. width: of the
    convolutional network, as a share of 16, 32 and 64 channels. before, before_steps: samples and
    steps that made the MLP; picture_before, picture_steps: the convolutional network. few: labels
    where they are few. some: labels where they are wrong, or of new classes. replayed,
    picture_replayed: kept samples per old class, of digits and of pictures. held: samples that
    choose the rate. test: of each test set. protected: old samples that say what the old task
    needs. steps, batch_size, rates: of fine-tuning. shares: of the steps that dense training is
    stopped at. density: of targeted training. pairs: of measurements of the time.
    """

    names: tuple[str, ...] = ()
    digits: str = "mnist"
    pictures: str = "cifar10"
    hidden: tuple[int, ...] = (300, 300)
    width: float = 1.0
    before: int = 5000
    before_steps: int = 300
    picture_before: int = 10000
    picture_steps: int = 1000
    few: int = 100
    some: int = 1000
    replayed: int = 10
    picture_replayed: int = 50
    held: int = 500
    test: int = 1500
    protected: int = 200
    steps: int = 80
    batch_size: int = 64
    rates: tuple[float, ...] = (1.0, 0.5, 0.2, 0.06, 0.02, 0.006)
    shares: tuple[float, ...] = (0.9, 1.0, 1.1, 1.25)
    density: float = 0.25
    seeds: int = 5
    pairs: int = 7


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, the samples it is tuned on, and those of its old task that it may be asked about.

    held, test: samples by task; success is the mean of the accuracies on them.
    """

    model: Heads
    train: Samples
    kept: Samples
    held: Mapping[str, Samples]
    test: Mapping[str, Samples]

    def success(self, model: Heads, given: Mapping[str, Samples]) -> float:
        """Return the mean accuracy of a model over the tasks of some samples."""
        was, training = model.task, model.training
        model.eval()
        found = []
        for task, each in given.items():
            model.task = task
            found.append(accuracy(model, each))
        model.task = was
        model.train(training)
        return sum(found) / len(found)


def _model(config: Config, classes: int, seed: int, *, separate: bool = False) -> Heads:
    side = SIDES[config.digits]
    with seeded(seed):
        trunk = perceptron(side, config.hidden)
        return Heads(trunk, config.hidden[-1], classes, separate=separate)


def _learned(
    model: Heads, given: Samples, steps: int, seed: int, *, loss: Loss = cross_entropy
) -> Heads:
    """Return a model after it has learned its old task."""
    model.task = OLD
    Loop(model, dense(), given, Training(steps, 64, loss=loss), 0.1, seed).run()
    return model


def _split(given: Samples, *counts: int) -> list[Samples]:
    """Return parts of so many samples, one after the other."""
    found, start = [], 0
    for count in counts:
        found.append(given.part(slice(start, start + count)))
        start += count
    return found


def _turned(config: Config, seed: int) -> tuple[Heads, Samples, Samples, Samples]:
    """Return a model of digits, its samples, and digits on their side to learn from and to test."""
    old, _ = samples(Task(config.digits, TEN), SIDES[config.digits], "first", 1, seed)
    new, test = samples(
        Task(config.digits, TEN, "on its side"), SIDES[config.digits], "second", config.test, seed
    )
    before = old.part(slice(0, config.before))
    model = _learned(_model(config, 10, seed), before, config.before_steps, seed)
    return model, before, new, test


def few_labels(config: Config, seed: int) -> Subject:
    """Digits on their side, of which a few have labels."""
    model, old, new, test = _turned(config, seed)
    labelled, _, left = few(new, 10, config.few)
    kept = old.part(slice(0, config.protected))
    return Subject(model, labelled, kept, {OLD: left.part(slice(0, config.held))}, {OLD: test})


def wrong_labels(config: Config, seed: int) -> Subject:
    """Digits on their side, of whose labels two in five are drawn anew; held-out ones are right."""
    model, old, new, test = _turned(config, seed)
    train, held = _split(new, config.some, config.held)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, train.y.shape, generator=generator)
    wrong = torch.rand(len(train), generator=generator) < NOISE
    train = Samples(train.x, torch.where(wrong, drawn, train.y))
    return Subject(model, train, old.part(slice(0, config.protected)), {OLD: held}, {OLD: test})


def patched(x: Tensor, label: Tensor) -> Tensor:
    """Return pictures [N, 1, H, W] with a white patch whose place, of ten, tells a label [N]."""
    side = round(PATCH * x.shape[2])
    x, white = x.clone(), x.max()
    for place in range(10):
        row, column = divmod(place, 5)
        at = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        x[(label == place).nonzero().flatten(), :, at[0], at[1]] = white
    return x


def shortcut(config: Config, seed: int) -> Subject:
    """Digits with a patch that told the class, and a few where it tells nothing."""
    task, side = Task(config.digits, TEN), SIDES[config.digits]
    first, _ = samples(task, side, "first", 1, seed)
    second, test = samples(task, side, "second", config.test, seed)
    generator = torch.Generator().manual_seed(seed)

    def chance(given: Samples) -> Tensor:
        return torch.randint(10, given.y.shape, generator=generator)

    old = first.part(slice(0, config.before))
    tells = torch.rand(len(old), generator=generator) < TELLS
    old = Samples(patched(old.x, torch.where(tells, old.y, chance(old))), old.y)
    model = _learned(_model(config, 10, seed), old, config.before_steps, seed)
    train, held, tested = (
        Samples(patched(given.x, chance(given)), given.y)
        for given in (*_split(second, config.few, config.held), test)
    )
    return Subject(model, train, old.part(slice(0, config.protected)), {OLD: held}, {OLD: tested})


def _among_known(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the first five outputs; the others stay as they were drawn."""
    return F.cross_entropy(model(x)[:, :5], y)


def _classes(
    config: Config, data: str, model: Heads, side: int, seed: int,
    *, before: int, steps: int, replayed: int,
) -> Subject:  # fmt: skip
    """Five classes more, and a few samples of each of the five that the model knows.

    What made the model counts those five alone: ten outputs would have learned never to name the
    others, and the first steps of fine-tuning would have to break that.
    """
    first, _ = samples(Task(data, TEN), side, "first", 1, seed)
    second, test = samples(Task(data, TEN), side, "second", config.test, seed)
    held, second = second.part(slice(0, config.held)), second.part(slice(config.held, None))
    known = first.part(first.y < 5).part(slice(0, before))
    _learned(model, known, steps, seed, loss=_among_known)
    places = [(known.y == label).nonzero().flatten()[:replayed] for label in range(5)]
    some = known.part(torch.cat(places))
    fresh = second.part(second.y >= 5).part(slice(0, config.some))
    again = max(1, len(fresh) // len(some))  # as many old pictures in a batch as new ones
    train = Samples(
        torch.cat([fresh.x, some.x.repeat(again, 1, 1, 1)]),
        torch.cat([fresh.y, some.y.repeat(again)]),
    )
    return Subject(model, train, some, {OLD: held}, {OLD: test})


def more_digits(config: Config, seed: int) -> Subject:
    """Digits 5 to 9 for a model of 0 to 4, of which it keeps a few; all ten are asked for."""
    return _classes(
        config, config.digits, _model(config, 10, seed), SIDES[config.digits], seed,
        before=config.before, steps=config.before_steps, replayed=config.replayed,
    )  # fmt: skip


def more_pictures(config: Config, seed: int) -> Subject:
    """The same with pictures of CIFAR-10 in grey and a small convolutional network."""
    side = SIDES.get(config.pictures, 28)
    if config.width:
        with seeded(seed):
            network = small_cnn((1, side, side), 10, config.width)
            *layers, last = network
            model = Heads(nn.Sequential(*layers), last.in_features, 10)  # type: ignore[arg-type]
    else:
        model = _model(config, 10, seed)
    return _classes(
        config, config.pictures, model, side, seed,
        before=config.picture_before, steps=config.picture_steps,
        replayed=config.picture_replayed,
    )  # fmt: skip


def second_task(config: Config, seed: int) -> Subject:
    """Digits 5 to 9 under a head of their own, without old samples; both tasks are asked for."""
    side = SIDES[config.digits]
    old, old_test = samples(Task(config.digits, LOW), side, "first", config.test, seed)
    new, new_test = samples(Task(config.digits, HIGH), side, "second", config.test, seed)
    old_held, before = _split(old, config.held, config.before)
    new_held, train = _split(new, config.held, 2 * config.some)
    model = _learned(_model(config, 5, seed, separate=True), before, config.before_steps, seed)
    model.task = NEW
    kept = before.part(slice(0, config.protected))
    return Subject(
        model, train, kept, {NEW: new_held, OLD: old_held}, {NEW: new_test, OLD: old_test}
    )


SETTINGS: Mapping[str, Callable[[Config, int], Subject]] = {
    "few labels": few_labels,
    "wrong labels": wrong_labels,
    "shortcut": shortcut,
    "more classes, digits": more_digits,
    "more classes, pictures": more_pictures,
    "second task": second_task,
}
"""All that were set down before any was measured by the study."""


@lru_cache(maxsize=2)
def subject(config: Config, name: str, seed: int) -> Subject:
    """Return the subject of a setting and seed."""
    return SETTINGS[name](config, seed)
