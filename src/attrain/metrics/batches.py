"""Functions of samples, computed part by part so that memory has a bound."""

from collections.abc import Callable

import torch
from torch import Tensor

from attrain.attribution.conditions import check_classes
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
        return torch.cat([_tensor(predict(part)) for part in torch.split(x, batch_size)])

    return parts


def answers(predict: Predict, x: Tensor) -> Tensor:
    """Return what `predict` says of x [N, ...], [N, C], without gradients.

    Raises InputError for anything but numbers of two or more classes of each sample.
    """
    with torch.no_grad():
        out = _tensor(predict(x))
    if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 2:
        raise InputError(
            f"the model turns {len(x)} samples into {tuple(out.shape)}: one output per class, "
            "[N, C] with two or more classes, is wanted."
        )
    check_told(out)
    return out


def check_told(out: Tensor) -> None:
    """Raise InputError where outputs [N, C] are NaN: the largest of them is no answer."""
    broken = out.isnan().any(1)
    if broken.any():
        raise InputError(
            f"the model's outputs are NaN for {int(broken.sum())} of {len(out)} samples, the first "
            f"is sample {int(broken.nonzero()[0])}: look at the data, at what replaces features, "
            "and at whether training diverged."
        )


def hits(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Return for which samples the largest output is that of label y [N], booleans [N].

    Raises InputError as `answers`, and for labels that the model has no output for.
    """
    out = answers(predict, x)
    check_classes(y, out.shape[1])
    return out.argmax(1) == y


def spread_over(value: Tensor | float, x: Tensor, name: str) -> Tensor:
    """Return a number or tensor in the shape of x; raises InputError where it does not broadcast.

    In the type of x as well, where that has fractions.
    """
    kind = x.dtype if x.is_floating_point() else None
    found = torch.as_tensor(value, dtype=kind, device=x.device)
    if found.ndim <= x.ndim and all(
        mine in (1, whole)
        for mine, whole in zip(reversed(found.shape), reversed(x.shape), strict=False)
    ):
        return found.expand(x.shape)
    raise InputError(
        f"{name} has the shape {tuple(found.shape)}, and x {tuple(x.shape)}: give a number, or a "
        "tensor that broadcasts to x."
    )


def _tensor(out: object) -> Tensor:
    if isinstance(out, Tensor):
        return out
    raise InputError(
        f"the model returns {type(out).__name__}: give a function that returns its scores, [N, C]."
    )


def check_batch_size(batch_size: int) -> None:
    """Raise InputError for a size below 1."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise InputError unless there is one label of each sample, a whole number, and a sample."""
    if not isinstance(y, Tensor):
        raise InputError(f"labels are a tensor [N] of whole numbers, got {type(y).__name__}.")
    if len(x) == 0 or y.shape != (len(x),):
        raise InputError(
            f"a label of each sample is wanted, and at least one sample: got {len(x)} samples and "
            f"labels of the shape {tuple(y.shape)}."
        )
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise InputError(f"labels are whole numbers, got {y.dtype}: give y.long().")


def check_numbers(x: Tensor) -> None:
    """Raise InputError for inputs that are not finite, or that no small amount can be added to."""
    if not x.is_floating_point():
        raise InputError(
            f"inputs are changed by small amounts, and x is {x.dtype}: give x.float()."
        )
    broken = ~torch.isfinite(x).flatten(1).all(1)
    if broken.any():
        raise InputError(
            f"{int(broken.sum())} of {len(x)} samples have values that are NaN or infinite, the "
            f"first is sample {int(broken.nonzero()[0])}: leave them out."
        )
