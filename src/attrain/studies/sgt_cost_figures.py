"""The figures of the study of what guided training costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, REGULAR

_GRID: dict[str, Any] = {"color": "#e5e5e5", "linewidth": 0.6}
_COLOURS = {REGULAR: LIGHT[2], GUIDED: LIGHT[1]}


def draw_steps(
    ratios: Mapping[tuple[str, str], Sequence[float]], theory: Mapping[str, float], path: Path
) -> Path:
    """Draw a panel per model: each round as a dot, median and quartiles, multiply-adds as a bar."""
    titles = list(dict.fromkeys(title for title, _ in ratios))
    with figures.drawing(path, 0.8 + 3.5 * len(titles), 0.8 + 0.42 * len(theory)) as figure:
        grid = figure.subplots(1, len(titles), sharey=True, sharex=True, squeeze=False)[0]
        for axes, title in zip(grid, titles, strict=True):
            for place, form in enumerate(theory):
                values = ratios[title, form]
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                axes.plot(
                    values, [place] * len(values), "o", color=LIGHT[2], alpha=0.25, markersize=3.5
                )
                axes.plot([low, high], [place] * 2, color=LIGHT[2], linewidth=2.4)
                axes.plot([middle], [place], "D", color=LIGHT[2], markersize=5.5)
                axes.plot(
                    [theory[form]] * 2, [place - 0.32, place + 0.32], color=LIGHT[0], linewidth=1.2
                )
            axes.set(title=title, xlabel="CPU time over a plain step's (bars: multiply-adds)")
            axes.margins(y=0.15)
            axes.grid(**_GRID)
            axes.set_axisbelow(True)
        grid[0].set_yticks(range(len(theory)), list(theory))
        grid[0].invert_yaxis()
    return path


def draw_convergence(
    curves: Mapping[str, Sequence[Sequence[float]]],
    epochs: Mapping[str, Sequence[int]],
    path: Path,
) -> Path:
    """Draw validation accuracies, each seed and their mean; a mark where each seed converged."""
    with figures.drawing(path, 5.6, 3.6) as figure:
        axes = figure.subplots()
        for (arm, each), mark in zip(curves.items(), "oD", strict=True):
            values, colour = 100 * np.array(each), _COLOURS[arm]
            x = np.arange(1, values.shape[1] + 1)
            axes.plot(x, values.T, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(x, values.mean(0), color=colour, label=f"{arm} (marks: converged)")
            at = [
                (epoch, curve[epoch - 1]) for epoch, curve in zip(epochs[arm], values, strict=True)
            ]
            axes.plot(*np.array(at).T, mark, color=colour, markersize=5, markeredgecolor="white")
        axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
        axes.locator_params(axis="x", integer=True)
        axes.grid(**_GRID)
        axes.legend(loc="lower right")
    return path


def draw_quality(
    quality: Mapping[tuple[str, str], Sequence[float]], forms: Sequence[str], path: Path
) -> Path:
    """Draw accuracy and area by form: each seed as a dot, their mean as a diamond."""
    panels = {"accuracy": "accuracy (%)", "area": "area under the accuracy drop (%)"}
    with figures.drawing(path, 6.4, 0.9 + 0.4 * len(forms)) as figure:
        grid = figure.subplots(1, 2, sharey=True)
        for axes, (key, label) in zip(grid, panels.items(), strict=True):
            for place, form in enumerate(forms):
                values = 100 * np.array(quality[form, key])
                colour = _COLOURS[REGULAR if form == REGULAR else GUIDED]
                axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4)
                axes.plot([values.mean()], [place], "D", color=colour, markersize=5.5)
            axes.set_xlabel(label)
            axes.margins(y=0.2)
            axes.grid(**_GRID)
            axes.set_axisbelow(True)
        grid[0].set_yticks(range(len(forms)), forms)
        grid[0].invert_yaxis()
    return path
