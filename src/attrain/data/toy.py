"""Digits that ship inside scikit-learn, and the two-dimensional sets of paper 001, A.6.1."""

import numpy as np
from numpy.typing import NDArray

from attrain.data.dataset import Data, Split, assemble
from attrain.errors import InputError

_SWIRL_ARMS = 3


def digits(validation: float = 0.0) -> Data:
    """Return 1,797 real handwritten digits, [1, 8, 8] (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = found.images[:, None], found.target
    return assemble(
        "digits",
        (x, y),
        None,
        [str(digit) for digit in range(10)],
        axes=(0, 2, 3),
        scale=1 / 16,
        validation=validation,
        notes="1,797 handwritten digits of 8x8 pixels that ship with scikit-learn",
    )


def blobs(seed: int = 0, validation: float = 0.0) -> Data:
    """Return two Gaussian clusters around [1, 1] and [2, 2]: 1,000 to train on, 100 to test."""
    from sklearn.datasets import make_blobs

    def draw(count: int) -> Split:
        return make_blobs(  # type: ignore[no-any-return]
            count, centers=[[1.0, 1.0], [2.0, 2.0]], cluster_std=0.2, random_state=random
        )

    random = _random(seed)
    return _toy("blobs", draw(1000), draw(100), 2, seed, validation)


def circles(seed: int = 0, validation: float = 0.0) -> Data:
    """Return a noisy disc inside a noisy ring: 10,000 to train on, 500 to test."""
    from sklearn.datasets import make_circles

    def draw(count: int) -> Split:
        return make_circles(  # type: ignore[no-any-return]
            count, noise=0.2, factor=0.05, random_state=random
        )

    random = _random(seed)
    return _toy("circles", draw(10_000), draw(500), 2, seed, validation)


def swirl(seed: int = 0, validation: float = 0.0) -> Data:
    """Return three arms of a swirl: 10,000 to train on, 500 to test."""
    random = _random(seed)
    train, test = _swirl(10_000, random), _swirl(500, random)
    return _toy("swirl", train, test, _SWIRL_ARMS, seed, validation)


def _swirl(count: int, random: np.random.RandomState) -> Split:
    """Draw `count` points: radius 0..1 along an arm, angle 4j..4j + 4 along arm j, noise .2."""
    x_parts: list[NDArray[np.float64]] = []
    y_parts: list[NDArray[np.int64]] = []
    for arm in range(_SWIRL_ARMS):
        size = (count + _SWIRL_ARMS - 1 - arm) // _SWIRL_ARMS
        radius = np.linspace(0, 1, size)
        angle = np.linspace(4 * arm, 4 * arm + 4, size) + 0.2 * random.standard_normal(size)
        x_parts.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
        y_parts.append(np.full(size, arm))
    order = random.permutation(count)
    return np.concatenate(x_parts)[order], np.concatenate(y_parts)[order]


def _random(seed: int) -> np.random.RandomState:
    try:
        return np.random.RandomState(seed)
    except ValueError:
        raise InputError(f"the seed of a toy set must be in 0..{2**32 - 1}: got {seed}.") from None


def _toy(name: str, train: Split, test: Split, count: int, seed: int, validation: float) -> Data:
    return assemble(
        name,
        train,
        test,
        [str(number) for number in range(count)],
        axes=None,
        validation=validation,
        notes=f"toy set of paper 001, A.6.1, drawn with seed {seed}; not normalised",
    )
