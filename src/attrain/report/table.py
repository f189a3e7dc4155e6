"""Tables, and the CSV files that hold the data behind every plot."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

MOST_ROWS = 60


@dataclass(frozen=True)
class Table:
    """A table of ready strings; its first column names the rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Download:
    """A CSV file that travels inside the page."""

    name: str
    address: str


def download(name: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Download:
    """Return a CSV file as a data address, so that saving it needs neither network nor script."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    return Download(name, "data:text/csv;charset=utf-8," + quote(text.getvalue(), safe=",.-_"))


def thinned(rows: Sequence[tuple[str, ...]], most: int = MOST_ROWS) -> tuple[tuple[str, ...], ...]:
    """Return at most about `most` rows, evenly spaced, with the last one."""
    every = -(-len(rows) // most)
    if every < 2:
        return tuple(rows)
    kept = list(rows[::every])
    if kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return tuple(kept)


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
