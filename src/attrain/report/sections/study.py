"""A study: its figures, and in what it differs from the paper."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attrain.report.folder import Run, listing
from attrain.report.numbers import plural
from attrain.report.section import Filled, Section

# Nothing outside the folder is ever put into a page.
_OWN = re.compile(r"figures/[\w.-]+\.svg")


@dataclass(frozen=True)
class Picture:
    """A figure as a data address, or None where its file is missing."""

    name: str
    address: str | None


def fill(run: Run) -> Filled | None:
    """Fill the figures and deviations of a study; None for other runs."""
    if run.results.get("kind") != "study":
        return None
    pictures = list(_pictures(run))
    deviations = [str(each) for each in listing(run.results.get("deviations"))]
    told = str(run.results.get("title") or run.results.get("id") or "A study")
    differs = plural(len(deviations), "point") if deviations else "nothing"
    return Filled(
        sentence=f"{told}. It differs from the paper in {differs}, named below.",
        values={
            "source": str(run.results.get("source") or ""),
            "pictures": pictures,
            "deviations": deviations,
        },
    )


SECTION = Section("study", "Figures", fill)


def _pictures(run: Run) -> Iterator[Picture]:
    for each in listing(run.results.get("figures")):
        name = str(each)
        file = run.folder / name
        known = _OWN.fullmatch(name) is not None and file.is_file()
        yield Picture(Path(name).stem, _address(file) if known else None)


def _address(file: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
