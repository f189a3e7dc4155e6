"""Which neurons learned in a run: `selection.jsonl`, a line for each choice."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attrain.errors import InputError

MOST_UNITS = 10_000_000
"""Neurons of a layer, beyond which a file is not believed."""


@dataclass(frozen=True)
class LayerChoices:
    """Which of a layer's units learn after each choice.

    kept: the share of them that learned before, too. concentration: their share of all scores,
    None where there is none.
    """

    name: str
    units: int
    rows: tuple[tuple[int, ...], ...]
    kept: tuple[float, ...]
    concentration: tuple[float | None, ...]


@dataclass(frozen=True)
class Choices:
    """Every choice of a run: the steps after which they were made, and each layer's.

    trained_share: of all parameters, after the last choice; optimizer_bytes: what the optimizer
    then held.
    """

    steps: tuple[int, ...]
    layers: tuple[LayerChoices, ...]
    trained_share: float
    optimizer_bytes: int


def choices_of(lines: Sequence[str]) -> Choices | None:
    """Return what the lines of the file hold, None for no line; raises InputError for damage."""
    try:
        raw = [json.loads(line) for line in lines if line.strip()]
        if not raw:
            return None
        names = list(raw[0]["layers"])
        steps = tuple(int(each["step"]) for each in raw)
        if list(steps) != sorted(set(steps)) or any(list(e["layers"]) != names for e in raw):
            raise ValueError("its lines do not follow one another")
        layers = tuple(_layer(name, [each["layers"][name] for each in raw]) for name in names)
        share, held = _share(raw[-1]["trained_share"]), int(raw[-1]["optimizer_bytes"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"its choices cannot be read ({error})") from error
    return Choices(steps, layers, share, held)


def _layer(name: str, raw: Sequence[Any]) -> LayerChoices:
    units = int(raw[0]["units"])
    rows = tuple(tuple(int(unit) for unit in each["rows"]) for each in raw)
    if not 0 < units <= MOST_UNITS or any(unit < 0 or unit >= units for r in rows for unit in r):
        raise ValueError(f"layer {name!r} has units that it cannot have")
    found = (each["concentration"] for each in raw)
    concentration = tuple(None if each is None else _share(each) for each in found)
    return LayerChoices(name, units, rows, tuple(_share(e["kept"]) for e in raw), concentration)


def _share(value: Any) -> float:
    share = float(value)
    if not (math.isfinite(share) and -1e-9 <= share <= 1 + 1e-9):
        raise ValueError(f"{value!r} is no share")
    return share
