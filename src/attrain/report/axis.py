"""Scales of charts: where a value lies, and which values are marked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from attrain.report.folder import Array
from attrain.report.numbers import fixed

Warp = Callable[[Array], Array]


@dataclass(frozen=True)
class Axis:
    """A scale: its label with the unit, its ends and ticks, and the warp that makes it linear."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    warp: Warp = lambda values: values

    def place(self, values: Array, start: float, end: float) -> Array:
        """Return where the values lie between the positions `start` and `end`."""
        low, high = self.warp(np.array([self.low, self.high]))
        share: Array = (self.warp(np.asarray(values, dtype=float)) - low) / (high - low)
        return start + share * (end - start)


def linear_axis(
    label: str, values: Array, low: float | None = None, high: float | None = None
) -> Axis:
    """Return a linear axis over the values, with a margin where no end is given."""
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.04 * (most - least) or 0.5 * abs(most) or 0.5
    low = least - margin if low is None else low
    high = most + margin if high is None else high
    if high <= low:
        high = low + 1.0
    step = _nice_step((high - low) / 6)
    places = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((k * step, fixed(k * step, places)) for k in range(first, last + 1))
    return Axis(label, low, high, ticks)


def log_axis(label: str, values: Array, low: float | None = None) -> Axis:
    """Return a logarithmic axis over the positive values."""
    positive = values[values > 0]
    least, most = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 10.0)
    low = least / 1.15 if low is None else low
    high = max(most * 1.15, low * 10**0.3)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2.3 else (1,)
    every = max(1, (last - first) // 6)
    values_ = [f * 10.0**k for k in range(first, last + 1, every) for f in factors]
    ticks = tuple((v, _power(v)) for v in values_ if low <= v <= high)
    return Axis(label, low, high, ticks, lambda v: np.log10(np.maximum(v, low)))


def error_axis(label: str, percents: Array) -> Axis:
    """Return an axis of shares in percent, even in the logarithm of what is missing to 100.

    Where all methods come close to 100, a linear axis shows them as one line.
    """
    missing = 100 - percents
    least = max(float(missing[missing > 0].min(initial=50.0)) / 1.5, 0.04)
    low = 100 - min(1.1 * float(missing.max(initial=least * 4)), 100.0)
    high = 100 - least
    marks = (0, 20, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
    ticks = [(float(m), f"{m:g}") for m in marks if low <= m < high]
    if (missing <= 0).any():
        ticks.append((high, "100"))
    axis = Axis(label, low, high, tuple(ticks), lambda v: -np.log10(np.maximum(100 - v, least)))
    # The top is what such an axis is for, so marks that come too close give way from below.
    places = axis.place(np.array([value for value, _ in ticks[::-1]]), 1.0, 0.0)
    kept = [ticks[::-1][k] for k in apart(places, 0.06)]
    return replace(axis, ticks=tuple(kept[::-1]))


def kept_axis(label: str, removed: Array) -> Axis:
    """Return an axis of removed shares, even in the logarithm of what is kept.

    Between 90% and 99% removed, where methods part, a linear axis has no room.
    """
    high = float(min(max(removed.max(initial=0.5), 0.5), 0.9999))
    marks = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
    ticks = tuple((m, f"{100 * m:g}") for m in marks if m <= high)
    return Axis(label, 0.0, high, ticks, lambda v: -np.log10(1 - np.clip(v, 0, 0.9999)))


def apart(places: Array, gap: float) -> list[int]:
    """Return which of the ascending places to mark so that marks stay `gap` apart."""
    kept: list[int] = []
    for k, place in enumerate(places.tolist()):
        if not kept or place - places[kept[-1]] >= gap:
            kept.append(k)
    return kept


def _nice_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)


def _power(value: float) -> str:
    """Return a tick of a logarithmic axis in few characters: 0.01, 1,000, 20k, 5M, 1e-5."""
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    if 1e4 <= value < 1e9:
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+", "e")
