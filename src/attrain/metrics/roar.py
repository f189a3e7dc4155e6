"""ROAR: take what is called important away from training and test set alike, and train again."""

from typing import NamedTuple

from torch import Tensor

from attrain.errors import InputError
from attrain.metrics.faithfulness import removed


class Modified(NamedTuple):
    """Training and test inputs without their top features, shaped as they were."""

    train: Tensor
    test: Tensor


def roar_sets(
    train: Tensor,
    test: Tensor,
    train_attribution: Tensor,
    test_attribution: Tensor,
    fraction: float,
    background: Tensor | float | None = None,
    *,
    seed: int = 0,
) -> Modified:
    """Return both sets of inputs [N, ...] with the top `fraction` of their features replaced.

    background: a number or a tensor that broadcasts to a sample; None takes the mean of the
    training set: of images one for each channel, as the authors do, else one for each feature.
    A model that is trained on the first set and tested on the second has seen what replaces
    features, so what it loses is not owed to inputs of another kind; where features say the same
    twice it may lose nothing. Hooker et al., 2019, section 3. Raises InputError as `removed` does,
    and for samples of two shapes.
    """
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"samples of both sets have one shape: got {tuple(train.shape[1:])} to train on and "
            f"{tuple(test.shape[1:])} to test on."
        )
    if background is None:
        # The columns of a table, and the features of a time series, are not pixels of one channel.
        axes = [0, *range(2, train.ndim)] if train.ndim > 3 else 0
        background = train.mean(axes, keepdim=True)
    return Modified(
        removed(train, train_attribution, fraction, background, seed=seed),
        removed(test, test_attribution, fraction, background, seed=seed),
    )
