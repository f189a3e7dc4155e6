"""An old task and a new one: what a model knows, what it is to learn, and what it must not lose."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attrain.models import MLP, seeded
from attrain.studies.targeted_subjects import Loop, Training, accuracy, dense
from attrain.studies.tasks import TEN, Samples, Task, samples

OLD, NEW = "old", "new"
SEPARATE, SHARED, ROTATED = "separate heads", "shared head", "rotated digits"
LOW = tuple((each,) for each in range(5))
HIGH = tuple((each,) for each in range(5, 10))


@dataclass(frozen=True)
class World:
    """Two tasks of one data set: classes of each, what is done to the new pictures, and heads."""

    old: tuple[tuple[int, ...], ...]
    new: tuple[tuple[int, ...], ...]
    change: str = "none"
    separate: bool = False


WORLDS: Mapping[str, World] = {
    SEPARATE: World(LOW, HIGH, separate=True),
    SHARED: World(LOW, HIGH),
    ROTATED: World(TEN, TEN, "on its side"),
}
SIDES = {"mnist": 28, "digits": 8}


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    old, new: training samples of the tasks. held: samples of each that choose settings. test: of
    each test set. old_steps, steps: of training on them. stops: at how many points of the course
    both accuracies are measured. protected: old samples that say what the old task needs.
    """

    data: str = "mnist"
    worlds: tuple[str, ...] = tuple(WORLDS)
    hidden: tuple[int, ...] = (200, 200)
    old: int = 5000
    new: int = 2000
    held: int = 1000
    test: int = 2000
    old_steps: int = 400
    steps: int = 200
    stops: int = 4
    batch_size: int = 64
    protected: int = 200
    seeds: int = 5


class Heads(nn.Module):
    """Hidden layers `trunk`, [N, ...] -> [N, features], under a head per task or one for all.

    `task` says whose head answers.
    """

    def __init__(
        self, trunk: nn.Module, features: int, classes: int, *, separate: bool = False
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.old = nn.Linear(features, classes)
        self.new = nn.Linear(features, classes) if separate else None
        self.task = OLD

    @property
    def names(self) -> list[str]:
        """The names of the heads."""
        return [OLD] if self.new is None else [OLD, NEW]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, classes] of the head of the task."""
        head = self.new if self.task == NEW and self.new is not None else self.old
        found: Tensor = head(self.trunk(x))
        return found


def perceptron(side: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Return hidden layers of ReLU for pictures of a side."""
    *layers, _ = MLP(side * side, hidden, 1).named_children()
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that knows the old task, and the samples of both: to train, to choose, to test.

    before: the old accuracy on what is held out and on the test set.
    """

    world: World
    model: Heads
    train: Mapping[str, Samples]
    held: Mapping[str, Samples]
    test: Mapping[str, Samples]
    before: tuple[float, float]

    def of(self, model: Heads, given: Mapping[str, Samples]) -> list[float]:
        """Return the accuracies of a model on the samples of the new and of the old task."""
        was, training = model.task, model.training
        model.eval()
        found = []
        for task in (NEW, OLD):
            model.task = task
            found.append(accuracy(model, given[task]))
        model.task = was
        model.train(training)
        return found


@lru_cache(maxsize=2)
def subject(config: Config, name: str, seed: int) -> Subject:
    """Return the model of a world and seed, trained on its old task."""
    world = WORLDS[name]
    side = SIDES[config.data]
    train, held, test = {}, {}, {}
    for task, half, count in ((OLD, "first", config.old), (NEW, "second", config.new)):
        given = (
            Task(config.data, world.old)
            if task == OLD
            else Task(config.data, world.new, world.change)
        )
        found, test[task] = samples(given, side, half, config.test, seed)  # type: ignore[arg-type]
        held[task] = found.part(slice(0, config.held))
        train[task] = found.part(slice(config.held, config.held + count))
    with seeded(seed):
        trunk = perceptron(side, config.hidden)
        model = Heads(trunk, config.hidden[-1], len(world.old), separate=world.separate)
    training = Training(config.old_steps, config.batch_size)
    Loop(model, dense(), train[OLD], training, 0.1, seed).run()
    model.task = NEW
    made = Subject(world, model, train, held, test, (0.0, 0.0))
    return replace(made, before=(made.of(model, held)[1], made.of(model, test)[1]))


def relu_means(model: Heads, x: Tensor) -> dict[str, Tensor]:
    """Return of each hidden layer, by name, what its units hand on on average over x, [units]."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in model.trunk.named_children():
            x = module(x)
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                found[f"trunk.{name}"] = x.clamp_min(0).transpose(0, 1).flatten(1).mean(1)
    return found


def least(means: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
    """Return a score that puts units first that hand on least, by layer and unit."""
    return lambda units: -means[units.name]
