"""SVG figures of studies: one style, colours that all can tell apart, text that stays text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attrain.report.palette import LIGHT
from attrain.runs import replacing

# Okabe and Ito's colours, as in the report; a line has a dash of its own as well.
LFP, GRADIENT, START = LIGHT[1], LIGHT[2], "#6e6e6e"
POSITIVE, NEGATIVE, NEUTRAL = LIGHT[3], "#8a5fa8", "#c4c4c4"

Values = NDArray[np.float64]

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "attrain",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "text.color": "#1a1a1a",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    # White also behind the axes: the figure stays readable on a dark page.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty matplotlib Figure of `width` x `height` inches; write it to `path` as SVG.

    Nothing of matplotlib's global state is touched. The file has no date and no random names, so
    that equal figures are equal files. Raises AttrainError where it cannot be written.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def band(
    axes: Any, x: Sequence[float] | Values, each: Values, *, spread: bool = True, **style: Any
) -> None:
    """Draw the mean of `each` [draws, points] over `x`; `spread`: and one standard deviation."""
    mean = each.mean(0)
    axes.plot(x, mean, **style)
    if spread and len(each) > 1:
        deviation = each.std(0, ddof=1)
        axes.fill_between(
            x, mean - deviation, mean + deviation, color=style["color"], alpha=0.12, lw=0
        )


def paler(colours: Sequence[str], share: float = 0.55) -> Values:
    """Return `share` of each colour, written as #rrggbb, on white: numbers in 0..1, [colours, 3].

    Mixed here, since a picture with transparency is ten times the size in an SVG file.
    """
    pure = np.array([[int(each[k : k + 2], 16) / 255 for k in (1, 3, 5)] for each in colours])
    return 1 - share * (1 - pure)
