"""The mean of curves over seeds, where all of them have a value."""

from collections.abc import Sequence

import numpy as np

from attrain.report.folder import Array, Curve


def mean_of(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """Return the mean of the curves (x, y), at the values of x that all of them have."""
    if not curves:
        return np.zeros(0), np.zeros(0)
    tables = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    means = [float(np.mean([table[value] for table in tables])) for value in shared]
    return np.array(shared), np.array(means)
