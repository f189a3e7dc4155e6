"""A data set as every job wants it: split, normalised, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from attrain.errors import InputError

# The same samples are held out whatever the seed of a run, so that runs can be compared.
TEST_SPLIT_SEED = 0
VALIDATION_SPLIT_SEED = 1
TEST_FRACTION = 0.2

Split = tuple[NDArray[np.generic], NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set for classification.

    Attributes:
        name: what was asked for.
        train: x float32 [N, *input_shape], normalised, and y int64 [N]; of texts, x int64 [N, L].
        test: likewise.
        validation: likewise, taken from train; None unless asked for.
        classes: name of each class, by its number.
        input_shape: shape of one sample.
        mean: what was subtracted from x, broadcastable to a sample.
        std: what x was then divided by, broadcastable to a sample.
        notes: where it comes from and what a reader of the figures should know.
        evidence: masks [N, ...] of "train", "test" and "validation", where they are known: what of
            each sample its label rests on, the box of a series or the rationale of a text.
        words: of texts, the word that each number in x stands for; number 0 is padding.
        vectors: of texts, float32 [words, D], one vector per word; that of padding is 0.
    """

    name: str
    train: TensorDataset
    test: TensorDataset
    validation: TensorDataset | None
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    notes: str
    evidence: Mapping[str, Tensor] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    vectors: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def restore(self, x: Tensor) -> Tensor:
        """Undo the normalisation of samples `x`, [..., *input_shape]; pixels come back in 0..1."""
        return x * self.std + self.mean


def assemble(
    name: str,
    train: Split,
    test: Split | None,
    classes: Sequence[str],
    *,
    axes: tuple[int, ...] | None,
    to: Literal["standard", "range", "tokens"] = "standard",
    scale: float = 1.0,
    validation: float = 0.0,
    notes: str = "",
    evidence: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Data:
    """Make a data set of arrays x [N, *input_shape] and y [N], the numbers of the classes.

    Without a test set, a stratified fifth of train becomes one. `axes` are those over which x
    (times `scale`) is normalised: `to` mean 0 and standard deviation 1 of train, or the range of
    train to 0..1; None leaves it as it is. Tokens stay whole numbers. `evidence` are masks [N, ...]
    of "train" and "test".

    Raises InputError for data that no classifier can be trained or tested on.
    """
    if not 0 <= validation < 1:
        raise InputError(f"validation is a share of the train set, in 0..1: got {validation}.")
    if train[0].size == 0 or (test is not None and test[0].size == 0):
        raise InputError(f"data set {name!r} has no samples in its train or its test set.")
    if test is None:
        train, test = hold_out(name, train, TEST_FRACTION, TEST_SPLIT_SEED)
    _check(name, train, test, classes)
    held, masks = None, {part: torch.from_numpy(mask) for part, mask in (evidence or {}).items()}
    if validation:
        x, y = train
        (kept, y_kept), (out, y_out) = hold_out(
            name, (np.arange(len(y)), y), validation, VALIDATION_SPLIT_SEED
        )
        train, held = (x[kept], y_kept), (x[out], y_out)
        if masks:
            masks |= {"train": masks["train"][kept], "validation": masks["train"][out]}
    x_train = _scaled(train, scale, to)
    mean, std = _fitted(x_train, axes, to)

    def normalised(x: Tensor, split: Split) -> TensorDataset:
        if x.is_floating_point():
            x.sub_(mean).div_(std)
        return TensorDataset(x, torch.from_numpy(split[1].astype(np.int64)))

    return Data(
        name=name,
        train=normalised(x_train, train),
        test=normalised(_scaled(test, scale, to), test),
        validation=None if held is None else normalised(_scaled(held, scale, to), held),
        classes=tuple(classes),
        input_shape=tuple(x_train.shape[1:]),
        mean=mean,
        std=std,
        notes=notes,
        evidence=masks,
    )


def _fitted(x: Tensor, axes: tuple[int, ...] | None, to: str) -> tuple[Tensor, Tensor]:
    """Return what to subtract from samples like `x` and what to divide them by."""
    if axes is None:
        return torch.zeros(x.shape[1:], dtype=x.dtype), torch.ones(x.shape[1:], dtype=x.dtype)
    if to == "range":
        start, width = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        width = width - start
    else:
        width, start = torch.std_mean(x, dim=axes, correction=0, keepdim=True)
    # A constant stays 0 instead of 0 / 0.
    return start[0], torch.where(width[0] > 0, width[0], 1.0)


def hold_out(name: str, split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a stratified `fraction`; `seed` alone decides which samples.

    Raises InputError where a class or the held out part is too small for every class to be in both.
    """
    from sklearn.model_selection import train_test_split

    x, y = split
    classes, counts = np.unique(y, return_counts=True)
    held_count = int(np.ceil(fraction * len(y)))
    if counts.min() < 2 or min(held_count, len(y) - held_count) < len(classes):
        raise InputError(
            f"data set {name!r} is too small to hold out {fraction:.0%} of its {len(y)} samples "
            f"with every one of its {len(classes)} classes on both sides (the smallest class has "
            f"{counts.min()} samples). If these are no classes, another column is the label."
        )
    kept, held = train_test_split(
        np.arange(len(y)), test_size=fraction, stratify=y, random_state=seed
    )
    return (x[kept], y[kept]), (x[held], y[held])


def encode(
    name: str, train: NDArray[np.generic], test: NDArray[np.generic] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, tuple[str, ...]]:
    """Number the labels in sorted order; return the numbers of both splits and the labels as text.

    Raises InputError if the test set has labels that train has not.
    """
    values, y_train = np.unique(train, return_inverse=True)
    y_test = None
    if test is not None:
        strangers = np.setdiff1d(test, values)
        if len(strangers):
            raise InputError(_strangers(name, [str(value) for value in strangers]))
        y_test = np.searchsorted(values, test)
    return y_train.reshape(-1), y_test, tuple(str(value) for value in values)


def _check(name: str, train: Split, test: Split, classes: Sequence[str]) -> None:
    known = set(np.unique(train[1]).tolist())
    if len(known) < 2:
        only = ", ".join(repr(classes[number]) for number in known)
        raise InputError(
            f"data set {name!r} has only one class ({only}): a classifier needs two or more."
        )
    strangers = sorted(set(np.unique(test[1]).tolist()) - known)
    if strangers:
        raise InputError(_strangers(name, [classes[number] for number in strangers]))


def _strangers(name: str, labels: list[str]) -> str:
    return (
        f"the test set of data set {name!r} has labels that its train set lacks "
        f"({', '.join(map(repr, labels[:5]))}): nothing could be learned about them."
    )


def _scaled(split: Split, scale: float, to: str) -> Tensor:
    if to == "tokens":
        return torch.from_numpy(split[0].astype(np.int64))
    return torch.from_numpy(split[0]).contiguous().to(torch.float32, copy=True).mul_(scale)
