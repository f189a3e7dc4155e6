"""What a section of the report is: a name, a function that fills it and a template.

To add one: write `sections/<name>.py` with a `SECTION`, write `templates/sections/<name>.html`,
and put it in its place in `sections.SECTIONS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attrain.report.folder import Run


@dataclass(frozen=True)
class Filled:
    """A section with its data: the sentence that says what to see, and the template's values."""

    sentence: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A kind of section: `fill` returns None where a run has nothing for it to show.

    The name is the anchor in the page and the name of the template.
    """

    name: str
    title: str
    fill: Callable[[Run], Filled | None]
