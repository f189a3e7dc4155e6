"""What a study is: budgets, rows that are measured one by one, and what they add up to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from attrain.metrics.statistics import summary

Config = TypeVar("Config")
Result = dict[str, Any]


class TableRow(TypedDict):
    """A line of the table: the paper's number, or None, beside ours."""

    name: str
    paper: float | None
    ours: dict[str, Any]
    unit: str


class Claim(TypedDict):
    """A statement of the paper in our words, whether it holds here, and the figures behind that."""

    claim: str
    source: str
    holds: bool | Literal["unclear"]
    figure: str


@dataclass(frozen=True)
class Row:
    """A part of a study that is measured, written and resumed as a whole.

    `run` takes nothing and returns what JSON can hold. Its seeds are fixed: run again, it returns
    the same, but for a row that is `timed`, whose figures are times. It is called in a process of
    its own, with one thread, where rows run side by side.
    """

    name: str
    run: Callable[[], Result]
    timed: bool = False


@dataclass(frozen=True)
class Conclusion:
    """What the rows of a study add up to; `figures` are the SVG files that were written."""

    rows: Sequence[TableRow]
    claims: Sequence[Claim]
    figures: Sequence[Path] = ()


@dataclass(frozen=True)
class Study(Generic[Config]):
    """A table or figure of a paper, to be measured again.

    id: name on the command line.
    title: what it is about, in a line.
    source: paper and figure.
    deviations: in what it differs from the paper, a sentence each.
    budgets: settings, a frozen dataclass, by budget: "smoke" (at most 20 seconds), "quick" (at
        most 15 minutes on two cores) and "full" (the paper's).
    rows: the rows under some settings, each with a name of its own.
    conclude: from the settings, the results by the rows' names (as JSON gives them back: NaN is
        None, tuples are lists) and the folder of the study to its conclusion; figures go to
        `figures/` in that folder.
    """

    id: str
    title: str
    source: str
    deviations: tuple[str, ...]
    budgets: Mapping[str, Config]
    rows: Callable[[Config], list[Row]]
    conclude: Callable[[Config, Mapping[str, Result], Path], Conclusion]


def measured(
    name: str,
    values: Sequence[float] | NDArray[np.float64],
    *,
    paper: float | None = None,
    unit: str = "",
) -> TableRow:
    """Return a line of the table for `values`, one per seed or draw.

    `unit` is "accuracy" or "share" for numbers in 0..1, else a unit or nothing. Raises
    `InputError` for no values.
    """
    ours = summary([float(value) for value in values])
    return {"name": name, "paper": paper, "ours": ours | {"n": len(values)}, "unit": unit}
