"""Write numbers with the digits that the seeds support."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
SIGNIFICANT = 3
MOST_SIGNIFICANT = 4


@dataclass(frozen=True)
class Unit:
    """A unit to print in: a stored value times `factor` is what is shown."""

    name: str
    factor: float


PERCENT = (Unit("%", 100.0),)
PLAIN = (Unit("", 1.0),)
STEP_TIME = (Unit("\N{MICRO SIGN}s", 1e6), Unit("ms", 1e3), Unit("s", 1.0))
RUN_TIME = (Unit("s", 1.0), Unit("min", 1 / 60), Unit("h", 1 / 3600))
MEMORY = (Unit("kB", 1e-3), Unit("MB", 1e-6), Unit("GB", 1e-9))


def unit_for(units: Sequence[Unit], values: Sequence[float]) -> Unit:
    """Return the largest of the ascending `units` in which the smallest value is at least 1."""
    smallest = min((abs(value) for value in values if value), default=0.0)
    fitting = [unit for unit in units if smallest * unit.factor >= 1]
    return fitting[-1] if fitting else units[0]


def decimals(value: float, spread: float | None) -> int:
    """Return how many decimals of `value` its `spread` supports.

    The spread shows one significant digit, for a few seeds do not tell it better than that; the
    value never shows more than four. Without a spread it shows three.
    """
    if not value or not math.isfinite(value):
        return 0
    if not spread or not math.isfinite(spread):
        return max(0, SIGNIFICANT - 1 - _exponent(value))
    return max(0, min(-_exponent(spread), MOST_SIGNIFICANT - 1 - _exponent(value)))


def fixed(value: float, places: int, signed: bool = False) -> str:
    """Return `value` with `places` decimals and a true minus; e-notation beyond a million."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    sign = "+" if signed else ""
    if abs(value) >= 1e6 or (value and places > 6):
        text = f"{value:{sign}.2e}"
    else:
        rounded = round(value, places) + 0.0  # turns -0.0 into 0.0
        text = f"{rounded:{sign},.{places}f}"
    return text.replace("-", MINUS)


def short(value: float) -> str:
    """Return `value` with three significant digits."""
    return fixed(value, decimals(value, None))


def percentage(value: float) -> str:
    """Return a number of percent with one decimal: 97.4%."""
    return f"{fixed(value, 1)}%"


def spread(mean: float, std: float | None, unit: Unit) -> str:
    """Return `mean +- std` in `unit`, without the unit's name."""
    value = mean * unit.factor
    if std is None:
        return short(value)
    wide = std * unit.factor
    places = decimals(value, wide)
    return f"{fixed(value, places)} \N{PLUS-MINUS SIGN} {fixed(wide, places)}"


def interval(mean: float, low: float, high: float, unit: Unit) -> tuple[str, str]:
    """Return a signed difference and its interval, with the digits that the interval supports.

    An end that is not 0 is not written as 0: whether the interval holds 0 is what it is for.
    """
    mean, low, high = (value * unit.factor for value in (mean, low, high))
    half = (high - low) / 2
    places = decimals(max(abs(low), abs(high)), half)
    nearest = min(abs(low), abs(high))
    if nearest and round(nearest, places) == 0:
        places = min(places + 2, -_exponent(nearest))
    ends = f"{fixed(low, places, signed=True)} to {fixed(high, places, signed=True)}"
    return fixed(mean, places, signed=True), ends


def joined(words: Sequence[str]) -> str:
    """Return the words as a phrase: a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 seed, 3 seeds."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))
