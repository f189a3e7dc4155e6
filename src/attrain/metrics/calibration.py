"""How well a classifier's confidence agrees with how often it is right."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrain.errors import InputError

BINS = 15
_ROUNDING = 1e-5


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = BINS
) -> list[dict[str, Any]]:
    """Return mean confidence, accuracy and count in bins of equal width over 0..1.

    Args:
        confidence: probability of the predicted class, [N], in 0..1.
        correct: whether the prediction is right, [N], boolean.
        bins: number of bins; the lower edge of a bin belongs to the one below it.

    Empty bins have count 0, and None for confidence and accuracy. Raises InputError for shapes
    that differ, no samples, or confidences outside 0..1 (NaN included).
    """
    confidence_N, correct_N = _checked(confidence, correct, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index_N = np.searchsorted(edges[1:-1], confidence_N, side="left")
    table: list[dict[str, Any]] = []
    for index in range(bins):
        inside = index_N == index
        count = int(inside.sum())
        table.append(
            {
                "confidence": float(confidence_N[inside].mean()) if count else None,
                "accuracy": float(correct_N[inside].mean()) if count else None,
                "count": count,
            }
        )
    return table


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = BINS
) -> float:
    """Return the mean of |accuracy - confidence| over the bins, weighted by their counts.

    Arguments and errors as in `reliability_bins`. Naeini et al., 2015; Guo et al., 2017, equation
    3, with 15 bins.
    """
    return _error(reliability_bins(confidence, correct, bins))


def calibration(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """Return the `calibration` section of analysis.json: expected error and reliability bins."""
    table = reliability_bins(confidence, correct, bins)
    return {"ece": _error(table), "bins": table}


def _error(table: list[dict[str, Any]]) -> float:
    full = [entry for entry in table if entry["count"]]
    total = sum(entry["count"] for entry in full)
    gaps = [entry["count"] * abs(entry["accuracy"] - entry["confidence"]) for entry in full]
    return float(sum(gaps) / total)


def _checked(
    confidence: ArrayLike, correct: ArrayLike, bins: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    confidence_N = np.asarray(confidence, dtype=np.float64)
    correct_N = np.asarray(correct)
    if confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape or not len(confidence_N):
        raise InputError(
            "confidence and correct must be one value per sample and at least one: got shapes "
            f"{list(confidence_N.shape)} and {list(correct_N.shape)}."
        )
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}.")
    # Softmax in single precision may exceed 1 in its last digit.
    if not ((confidence_N >= 0) & (confidence_N <= 1 + _ROUNDING)).all():
        raise InputError("confidence must be a probability in 0..1: got values outside, or NaN.")
    return np.minimum(confidence_N, 1.0), correct_N.astype(bool)
