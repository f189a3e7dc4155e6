"""Figures of the studies of attribution graphs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.graph_measures import (
    ACTIVATION,
    COUNTS,
    FLOW,
    GRADIENT,
    PATH,
    PLUS,
    POSITIVE,
    RANDOM,
    RELEVANCE,
    SINGLE,
)

_LINES: Mapping[str, tuple[str, str]] = {
    RELEVANCE: (LIGHT[1], "-"),
    POSITIVE: (LIGHT[5], "-"),
    SINGLE: (LIGHT[0], (0, (1, 1))),  # type: ignore[dict-item]
    FLOW: (LIGHT[4], "--"),
    PLUS: (LIGHT[4], ":"),
    GRADIENT: (LIGHT[6], "-."),
    PATH: (LIGHT[2], "--"),
    ACTIVATION: (LIGHT[3], "-"),
    COUNTS: (LIGHT[3], "--"),
    RANDOM: ("#8a8a8a", "-"),
}

Values = NDArray[np.float64]


def draw_falls(
    found: Mapping[str, Mapping[str, Values]], shares: Sequence[float], path: Path
) -> None:
    """Draw, for every model, the fall of the output [seeds, shares] over the share ablated."""
    with figures.drawing(path, 0.4 + 3.1 * len(found), 4.2) as figure:
        grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, (name, curves) in zip(grid, found.items(), strict=True):
            for by, each in curves.items():
                colour, dash = _LINES[by]
                figures.band(
                    axes, [100 * share for share in shares], 100 * each, spread=False,
                    color=colour, linestyle=dash, label=by, marker="o", markersize=2.5,
                )  # fmt: skip
            seeds = len(next(iter(curves.values())))
            axes.set_title(f"{name} ({seeds} seed{'s' if seeds > 1 else ''})")
            axes.set_xlabel("units of each hidden layer ablated (%)")
        grid[0].set_ylabel("fall of the target logit (%)")
        handles, labels = grid[0].get_legend_handles_labels()
        for axes in grid[1:]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, 1 + len(found)))


def draw_agreement(found: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw, for every model, the rank correlations of the methods' nodes, by pair "a | b"."""
    with figures.drawing(path, 0.8 + 3.6 * len(found), 3.9) as figure:
        grid = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (name, pairs) in zip(grid, found.items(), strict=True):
            names = list(dict.fromkeys(each for key in pairs for each in key.split(" | ")))
            square = np.eye(len(names))
            for key, value in pairs.items():
                a, b = (names.index(each) for each in key.split(" | "))
                square[a, b] = square[b, a] = value
            heat(axes, square, names, rows=True, low=0.0)
            axes.set_title(name)


def heat(
    axes: Any, square: Values, names: Sequence[str], *, rows: bool, low: float, digits: bool = True
) -> None:
    """Draw a matrix with its numbers; from `low`, white, to 1, the darkest."""
    shades = _shades(square, low)
    axes.imshow(shades, interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names if rows else [""] * len(names))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(square):
        if digits and np.isfinite(value):
            dark = (value - low) / (1 - low) > 0.55
            axes.text(
                column, row, f"{value:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}"),
                ha="center", va="center", fontsize=7.5, color="white" if dark else "#1a1a1a",
            )  # fmt: skip


def _shades(square: Values, low: float) -> Values:
    """Return colours [rows, columns, 3] from white to blue; grey where there is no number."""
    blue = 1 - figures.paler([LIGHT[2]], 1.0)[0]
    share = np.clip((square - low) / (1 - low), 0, 1)
    shades: Values = 1 - np.nan_to_num(share)[..., None] * blue
    shades[~np.isfinite(square)] = 0.85
    return shades


def draw_classes(
    matrices: Mapping[str, Values], classes: Sequence[str], subject: str, path: Path
) -> None:
    """Draw matrices [classes, classes], off their diagonal, each from its least to its largest."""
    with figures.drawing(path, 1.0 + 2.6 * len(matrices), 4.0) as figure:
        grid = figure.subplots(1, len(matrices), squeeze=False)[0]
        for place, (axes, (name, square)) in enumerate(zip(grid, matrices.items(), strict=True)):
            other = np.where(np.eye(len(square), dtype=bool), np.nan, square)
            low, high = np.nanmin(other), np.nanmax(other)
            scaled = (other - low) / ((high - low) or 1.0)
            heat(axes, scaled, classes, rows=place == 0, low=0.0, digits=False)
            told = f"{name}\n({low:.3f} to {high:.3f})"
            axes.set_title(told.replace("-", "\N{MINUS SIGN}"))
        figure.suptitle(subject, fontsize=9.5)
