"""The figures of the study of gradient distributions: maps, values of each sample, spreads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, RANDOM, REGULAR, UNMASKED
from attrain.studies.study import Result

COLOURS = {REGULAR: LIGHT[2], GUIDED: LIGHT[1], RANDOM: LIGHT[3], UNMASKED: LIGHT[4]}
MOST = 5
"""Examples that are drawn."""
_SIGNED = LinearSegmentedColormap.from_list(
    "signed", [figures.NEGATIVE, "#ffffff", figures.POSITIVE]
)
_ENDS = (1, 99)
"""Percentiles at the ends of a box plot's whiskers."""


def draw_examples(first: Mapping[str, Result], path: Path) -> Path:
    """Draw images that all arms tell, their maps by regular and guided training, and box plots.

    first: the rows of seed 0 by arm. A map is the mean over channels, a box plot has all values.
    """
    pair = (REGULAR, GUIDED)
    by_all = np.all([row["correct"] for row in first.values()], axis=0)
    shown = len(first[REGULAR]["maps"])
    chosen = [index for index in range(shown) if by_all[index]][:MOST]
    columns = max(len(chosen), 1)
    with figures.drawing(path, 1.2 + 1.45 * columns, 6.0) as figure:
        grid = figure.subplots(4, columns, squeeze=False, height_ratios=[1, 1, 1, 1.5])
        for axes in grid[:3].flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for line, label in zip(grid[:, 0], ("image", *pair, "scaled gradient"), strict=True):
            line.set_ylabel(label)
        for column, index in zip(grid.T, chosen, strict=False):
            image = np.array(first[REGULAR]["images"][index]).transpose(1, 2, 0)
            column[0].imshow(image, cmap="gray_r", interpolation="none")
            values = [np.array(first[arm]["maps"][index]) for arm in pair]
            for axes, each in zip(column[1:3], values, strict=True):
                heat = each.mean(0)
                top = max(float(np.abs(heat).max()), 1e-12)
                axes.imshow(heat, cmap=_SIGNED, vmin=-top, vmax=top, interpolation="none")
            _boxes(column[3], [each.ravel() for each in values], pair)
            column[3].set_ylim(-1.05, 1.05)
        for axes in grid[3, 1:]:
            axes.set_yticklabels([])
    return path


def draw_means(first: Mapping[str, Result], path: Path) -> Path:
    """Draw box plots of the mean over images of the scaled gradient, a value for each input."""
    with figures.drawing(path, 1.0 + 1.2 * len(first), 3.2) as figure:
        axes = figure.subplots()
        _boxes(axes, [np.array(row["mean"]).ravel() for row in first.values()], list(first))
        axes.axhline(0, color="#8a8a8a", linewidth=0.6, zorder=0)
        axes.set_ylabel("mean scaled gradient of a pixel")
    return path


def _boxes(axes: Any, values: Sequence[figures.Values], arms: Sequence[str]) -> None:
    """Draw a box plot for each arm: quartiles, 1 and 99%, and the values beyond as dots."""
    finite = [each[np.isfinite(each)] for each in values]
    drawn = axes.boxplot(
        finite, whis=_ENDS, widths=0.6, patch_artist=True,
        flierprops={"marker": ".", "markersize": 3.5, "markeredgewidth": 0},
        medianprops={"color": "#1a1a1a"},
    )  # fmt: skip
    for box, dots, arm in zip(drawn["boxes"], drawn["fliers"], arms, strict=True):
        box.set(facecolor=COLOURS[arm], alpha=0.55)
        dots.set(markerfacecolor=COLOURS[arm])
    axes.set_xticks(range(1, len(arms) + 1), [arm.replace(" without", "\nwithout") for arm in arms])
    axes.tick_params(labelsize=7.5)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_spreads(
    means: Mapping[tuple[str, str], Sequence[float]], labels: Mapping[str, str], path: Path
) -> Path:
    """Draw a panel per figure and a line per arm: each seed as a dot, their mean as a diamond."""
    known = {name: label for name, label in labels.items() if (REGULAR, name) in means}
    arms = [arm for arm, name in means if name == next(iter(known))]
    with figures.drawing(path, 0.6 + 1.85 * len(known), 0.9 + 0.4 * len(arms)) as figure:
        grid = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, (name, label) in zip(grid, known.items(), strict=True):
            for place, arm in enumerate(arms):
                values, colour = means[arm, name], COLOURS[arm]
                axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4)
                axes.plot([np.mean(values)], [place], "D", color=colour, markersize=5.5)
            axes.set_title(label.replace(" on", "\non"), fontsize=8.5)
            axes.tick_params(axis="x", labelsize=7.5)
            axes.locator_params(axis="x", nbins=4)
            axes.margins(y=0.2)
            axes.grid(color="#e5e5e5", linewidth=0.6)
            axes.set_axisbelow(True)
        grid[0].set_yticks(range(len(arms)), arms)
        grid[0].invert_yaxis()
    return path
