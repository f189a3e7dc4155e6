"""Means, spreads, paired differences over seeds, rank correlation; needs no torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from attrain.errors import InputError

CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, the sample standard deviation and the values, one value per seed.

    The deviation is None for one value; both are None where a value is NaN or infinite.
    Raises InputError for no values.
    """
    if len(values) == 0:
        raise InputError("no values to summarise: at least one seed is needed.")
    array = np.asarray(values, dtype=np.float64)
    finite = bool(np.isfinite(array).all())
    return {
        "mean": float(array.mean()) if finite else None,
        "std": float(array.std(ddof=1)) if finite and len(array) > 1 else None,
        "values": [float(value) for value in array],
    }


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, comparisons: int = 1
) -> dict[str, Any]:
    """Return the mean of `values - baseline`, pair by pair, with its 95% t interval.

    comparisons: how many it is one of, such as those that the best is chosen from; the intervals of
    all of them hold together with 95% (Bonferroni). `clear` is true where the interval excludes 0.
    With one pair there is no interval: `low` and `high` are None and `clear` is False. With a NaN
    or an infinite value there is no mean either. Raises InputError unless there are as many values
    on both sides, and at least one.
    """
    if len(values) != len(baseline) or len(values) == 0:
        raise InputError(
            f"paired values wanted, one of each per seed: got {len(values)} and {len(baseline)}."
        )
    count = len(values)
    left, right = (np.asarray(side, dtype=np.float64) for side in (values, baseline))
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return {"mean": None, "low": None, "high": None, "n": count, "clear": False}
    difference = left - right
    mean = float(difference.mean())
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1, "clear": False}
    quantile = float(stdtrit(count - 1, 1 - (1 - CONFIDENCE) / (2 * comparisons)))
    reach = quantile * float(difference.std(ddof=1)) / math.sqrt(count)
    low, high = mean - reach, mean + reach
    return {"mean": mean, "low": low, "high": high, "n": count, "clear": low > 0 or high < 0}


def rank_correlation(
    x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]
) -> float:
    """Return Spearman's rank correlation of pairs of values, in -1..1; equal values share a rank.

    Raises InputError unless there are as many values on both sides and at least two, for values
    that are not finite, and where one side is constant, which has no ranking.
    """
    from scipy.stats import rankdata  # takes long to import, and few need it

    if len(x) != len(y) or len(x) < 2:
        raise InputError(
            f"a rank correlation is of two or more pairs: got {len(x)} and {len(y)} values."
        )
    sides = [np.asarray(side, dtype=np.float64) for side in (x, y)]
    for side in sides:
        if not np.isfinite(side).all():
            raise InputError("a rank correlation is of finite values, got NaN or infinite ones.")
        if side.min() == side.max():
            raise InputError(
                f"the rank correlation with a constant is undefined: all {len(side)} values are "
                f"{side[0]:g}."
            )
    ranks = [rankdata(side) - (len(x) + 1) / 2 for side in sides]
    return float(ranks[0] @ ranks[1] / np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
