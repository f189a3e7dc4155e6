"""Functions of samples, computed part by part so that memory has a bound."""

from collections.abc import Callable

import torch
from torch import Tensor

from attrain.errors import InputError

Predict = Callable[[Tensor], Tensor]
"""From inputs [N, ...] to scores or probabilities [N, C]."""


def in_batches(predict: Predict, batch_size: int) -> Predict:
    """Return `predict` as a function that shows it at most `batch_size` samples at once.

    For functions that treat each sample by itself. Raises InputError for a size below 1, and, when
    called, for no samples.
    """
    check_batch_size(batch_size)

    def parts(x: Tensor) -> Tensor:
        if len(x) == 0:
            raise InputError("zero samples: there is nothing to predict.")
        return torch.cat([predict(part) for part in torch.split(x, batch_size)])

    return parts


def check_batch_size(batch_size: int) -> None:
    """Raise InputError for a size below 1."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise InputError unless there is one label of each sample, and a sample."""
    if len(x) == 0 or y.shape != (len(x),):
        raise InputError(
            f"a label of each sample is wanted, and at least one sample: got {len(x)} samples and "
            f"labels of the shape {tuple(y.shape)}."
        )
