"""Tasks on grey pictures, to learn from and to transfer to: parts and changes of data sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attrain.data import load

Half = Literal["first", "second"]
"""Of a training set: sources learn from the first half, targets have labels from the second."""

_GREY = torch.tensor([0.299, 0.587, 0.114])  # the luma of ITU-R BT.601


@dataclass(frozen=True)
class Task:
    """A classification of pictures.

    data: the data set the pictures are from. groups: which of its classes make each class of the
    task. change: what is done to the pictures. labels: "true", "random" (drawn once for each
    picture), or "none" for what nothing is learned from.
    """

    data: str
    groups: tuple[tuple[int, ...], ...]
    change: str = "none"
    labels: Literal["true", "random", "none"] = "true"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.groups)


def _each(*classes: int) -> tuple[tuple[int, ...], ...]:
    return tuple((each,) for each in classes)


TEN = _each(*range(10))
ODD_OR_EVEN = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
ANIMALS, VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)  # of CIFAR-10


def _parts(data: str) -> dict[str, Task]:
    return {
        "digits 0 to 4": Task(data, _each(*range(5))),
        "digits 5 to 9": Task(data, _each(*range(5, 10))),
        "odd or even": Task(data, ODD_OR_EVEN),
        "permuted pixels": Task(data, TEN, "permuted"),
        "random labels": Task(data, TEN, labels="random"),
        "untrained": Task(data, TEN, labels="none"),
    }


@dataclass(frozen=True)
class World:
    """Sources and targets, by name, and the side of their pictures."""

    side: int
    sources: Mapping[str, Task]
    targets: Mapping[str, Task]


WORLDS: Mapping[str, World] = {
    "pictures": World(
        28,
        {
            **_parts("mnist"),
            "digits on their side": Task("mnist", TEN, "on its side"),
            "inverted digits": Task("mnist", TEN, "inverted"),
            "grey animals": Task("cifar10", _each(*ANIMALS)),
            "grey vehicles": Task("cifar10", _each(*VEHICLES)),
        },
        {
            "MNIST upside down": Task("mnist", TEN, "upside down"),
            "digits of scikit-learn": Task("digits", TEN),
            "animal or vehicle": Task("cifar10", (ANIMALS, VEHICLES)),
        },
    ),
    "digits": World(
        8,
        _parts("digits"),
        {
            "upside down": Task("digits", TEN, "upside down"),
            "inverted": Task("digits", TEN, "inverted"),
        },
    ),
}


def _permuted(x: Tensor) -> Tensor:
    places = x[0].numel()
    order = torch.randperm(places, generator=torch.Generator().manual_seed(0))
    return x.flatten(1)[:, order].reshape(x.shape)


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "inverted": lambda x: 1 - x,
    "on its side": lambda x: x.rot90(1, (2, 3)),
    "upside down": lambda x: x.rot90(2, (2, 3)),
    "permuted": _permuted,
}


@cache
def _pictures(data: str, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return grey pixels in 0..1 [N, 1, side, side] and classes, of the training and test set."""
    loaded = load(data)
    found = []
    for split in (loaded.train, loaded.test):
        x, y = split.tensors
        x = loaded.restore(x)
        if data == "digits":
            x = x.reshape(-1, 1, 8, 8) / 16
        if x.shape[1] == 3:
            x = torch.einsum("nchw,c->nhw", x, _GREY)[:, None]
        if x.shape[2] > side:  # the middle of it
            start = (x.shape[2] - side) // 2
            x = x[:, :, start : start + side, start : start + side]
        elif x.shape[2] < side:
            x = F.interpolate(x, size=(side, side), mode="bilinear")
        found += [x.contiguous(), y]
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures x [N, 1, H, W], normalised, and their classes y [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def part(self, index: Tensor | slice) -> "Samples":
        """Return the samples of an index."""
        return Samples(self.x[index], self.y[index])


def samples(task: Task, side: int, half: Half, test: int, seed: int) -> tuple[Samples, Samples]:
    """Return the training samples of a task from half of its data set, shuffled, and `test` more.

    The test samples are the first of the data set's own test set. Both are normalised by mean and
    deviation of all training pictures of the task.
    """
    x, y, x_test, y_test = _pictures(task.data, side)
    middle = len(x) // 2
    chosen = slice(0, middle) if half == "first" else slice(middle, len(x))
    order = torch.randperm(middle, generator=torch.Generator().manual_seed(seed))
    train = _grouped(task, Samples(x[chosen][order], y[chosen][order]), seed)
    held = _grouped(task, Samples(x_test, y_test), seed + 1).part(slice(0, test))
    mean, deviation = train.x.mean(), train.x.std()
    return (
        Samples((train.x - mean) / deviation, train.y),
        Samples((held.x - mean) / deviation, held.y),
    )


def _grouped(task: Task, found: Samples, seed: int) -> Samples:
    """Return the pictures that belong to a task, changed, with its labels."""
    label = torch.full((10,), -1)
    for number, group in enumerate(task.groups):
        label[list(group)] = number
    y = label[found.y]
    x, y = found.x[y >= 0], y[y >= 0]
    if task.labels == "random":
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(task.classes, y.shape, generator=generator)
    return Samples(CHANGES[task.change](x), y)


def few(given: Samples, classes: int, labels: int) -> tuple[Samples, Samples, Samples]:
    """Return `labels` samples, equally many of each class, as many others, and what is left."""
    each = labels // classes
    places = [(given.y == number).nonzero().flatten() for number in range(classes)]
    shares = [torch.cat([place[start : start + each] for place in places]) for start in (0, each)]
    left = torch.cat([place[2 * each :] for place in places]).sort().values
    return given.part(shares[0]), given.part(shares[1]), given.part(left)
