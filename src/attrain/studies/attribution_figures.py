"""The figures of the study of attribution methods: maps, measures, curves, agreement."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from attrain.metrics.faithfulness import FRACTIONS
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.attribution_claims import Findings
from attrain.studies.attribution_subject import VARIANTS

_FAMILIES: Mapping[str, Sequence[str]] = {
    "gradients": ("saliency", "input x gradient", "SmoothGrad", "integrated gradients"),
    "switching on and off": ("LIME", "Kernel SHAP", "occlusion"),
    "DeepLIFT and SHAP": ("DeepLIFT", "DeepSHAP", "GradientSHAP"),
    "LRP": tuple(name for name, variant in VARIANTS.items() if variant.method == "lrp"),
}
_COLOURS = dict(zip(_FAMILIES, (LIGHT[2], LIGHT[1], LIGHT[5], LIGHT[3]), strict=True))
_DASHES = ("-", "--", ":", "-.")
_SIGNED = LinearSegmentedColormap.from_list(
    "signed", [figures.NEGATIVE, "#ffffff", figures.POSITIVE]
)
_GRID = {"color": "#e5e5e5", "linewidth": 0.6}


def _family(name: str) -> str:
    return next(family for family, names in _FAMILIES.items() if name in names)


def draw_maps(found: Findings, path: Path) -> Path:
    """Draw the maps of the first samples of seed 0 by every method, and their means of sizes."""
    pictures = [np.array(each) for each in found.results["model, seed 0"]["pictures"]]
    titles = ["input", *VARIANTS]
    lines = len(pictures) + 1
    with figures.drawing(path, 11.4, 0.72 * lines + 0.6) as figure:
        grid = figure.subplots(lines, len(titles))
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, title in zip(grid[0], titles, strict=True):
            label = title.replace(", ", ",\n").replace("epsilon-", "ε-").replace(" ", "\n", 1)
            axes.set_title(label, fontsize=6.5, rotation=0, va="bottom")
        for line, picture in zip(grid, pictures, strict=False):
            _show(line[0], picture, cmap="gray_r")
        for column, name in zip(grid.T[1:], VARIANTS, strict=True):
            row = found.of(name, 0)
            for axes, heat in zip(column, [*row["maps"], row["global_map"]], strict=True):
                values = np.array(heat)
                top = max(float(np.abs(values).max()), 1e-12)
                _show(axes, values, cmap=_SIGNED, vmin=-top, vmax=top)
        grid[-1, 0].text(
            0.5, 0.5, "global:\nmean of\nsizes", ha="center", va="center", fontsize=7,
            transform=grid[-1, 0].transAxes,
        )  # fmt: skip
    return path


def _show(axes: Any, values: Any, **style: Any) -> None:
    axes.imshow(values, interpolation="none", **style)


_PANELS: Sequence[tuple[str, str, bool]] = (
    ("cost", "cost\n(gradients)", True),
    ("completeness", "completeness\nerror", True),
    ("noise_change", "change under\nnoise", False),
    ("seed_rank", "agreement of\nseeds (rank)", False),
    ("baseline_rank", "agreement of\nbaselines (rank)", False),
    ("shapley_rank", "agreement with\nexact Shapley", False),
    ("accuracy", "accuracy area\n(dashed: random)", False),
)
_FLOOR = 1e-7
"""The smallest error that is drawn; single precision leaves no less."""


def draw_measures(found: Findings, path: Path) -> Path:
    """Draw a panel per measure and a line per method: each seed, and their mean."""
    names = list(VARIANTS)
    with figures.drawing(path, 11.4, 3.9) as figure:
        grid = figure.subplots(1, len(_PANELS), sharey=True)
        for axes, (key, title, logarithmic) in zip(grid, _PANELS, strict=True):
            for place, name in enumerate(names):
                values = _values(found, name, key)
                if values is None:
                    continue
                colour = _COLOURS[_family(name)]
                axes.plot(
                    values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=3
                )
                axes.plot([np.mean(values)], [place], "D", color=colour, markersize=4.5)
            if key == "accuracy":
                axes.axvline(
                    np.mean(found.area("random", key)), color="#6e6e6e", linestyle="--", lw=0.9
                )
            axes.set_title(title, fontsize=8)
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(axis="both", **_GRID)
            axes.set_axisbelow(True)
            if logarithmic:
                axes.set_xscale("log")
        grid[0].set_yticks(range(len(names)), names, fontsize=8)
        grid[0].invert_yaxis()
    return path


def _values(found: Findings, name: str, key: str) -> list[float] | None:
    if key == "cost":
        return found.cost(name)
    if key == "accuracy":
        return found.area(name, key)
    if not found.has(name, key):
        return None
    values = found.method(name, key)
    return [max(value, _FLOOR) for value in values] if key == "completeness" else values


def draw_removal(found: Findings, path: Path) -> Path:
    """Draw the accuracy over the share of pixels removed, a panel per family."""
    removed = [100 * fraction for fraction in FRACTIONS]
    random = np.array([each["accuracy"] for each in found.model("random")])
    seeds = range(found.config.seeds)
    with figures.drawing(path, 9.6, 3.7) as figure:
        grid = figure.subplots(1, len(_FAMILIES), sharey=True)
        for axes, (family, names) in zip(grid, _FAMILIES.items(), strict=True):
            axes.plot(removed, 100 * random.mean(0), color="#6e6e6e", lw=1.0, label="random order")
            colours = (LIGHT[1], LIGHT[2], LIGHT[3], LIGHT[4])
            for name, colour, dash in zip(names, colours, _DASHES, strict=False):
                each = np.array([found.of(name, seed)["accuracy"] for seed in seeds])
                label = name.removeprefix("LRP, ")
                figures.band(axes, removed, 100 * each, color=colour, linestyle=dash, label=label)
            axes.set(title=family, xlabel="pixels blackened (%)", ylim=(0, 100))
            axes.grid(**_GRID)
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.24), fontsize=7.5, handlelength=2.4
            )
        grid[0].set_ylabel("test accuracy (%)")
    return path


def draw_agreement(found: Findings, path: Path) -> Path:
    """Draw the rank correlation between the sizes of cells of every two methods."""
    names, values = list(VARIANTS), found.agreement()
    with figures.drawing(path, 6.6, 5.6) as figure:
        axes = figure.subplots()
        shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            colour = "black" if value > 0.55 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7.5)
        axes.set_yticks(range(len(names)), names, fontsize=7.5)
        axes.spines[:].set_visible(False)
        figure.colorbar(shown, ax=axes, label="rank correlation of 64 cells", shrink=0.8)
    return path
