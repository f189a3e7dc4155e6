"""Figures of the study of the order by which guided training masks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_evidence import BY_CHANCE, BY_SIZE, FAR, INK, RIM, SIGNED, TOP
from attrain.studies.guided_subjects import REGULAR

if TYPE_CHECKING:
    from attrain.studies.sgt_order import Found

_ZONES: Mapping[str, tuple[str, str]] = {
    INK: ("on the ink", LIGHT[1]),
    RIM: ("its rim, 2 pixels", LIGHT[5]),
    FAR: ("farther off", "#c4c4c4"),
}
_ORDERS: Mapping[str, tuple[str, str]] = {
    SIGNED: (LIGHT[1], "o"),
    BY_SIZE: (LIGHT[2], "s"),
    BY_CHANCE: (LIGHT[3], "^"),
    TOP: (LIGHT[4], "D"),
}


def draw_measures(found: Mapping[str, "Found"], path: Path) -> None:
    """Draw areas, the zones of |g|, what the noise does, and whose doing a change of area is."""
    arms = list(found)
    with figures.drawing(path, 8.4, 6.0) as figure:
        grid = figure.subplots(2, 2, sharey=True)
        areas, zones, leads, split = grid.flat
        for shift, (title, colour, mark) in zip(
            (-0.15, 0.15), (("gradient", LIGHT[1], "o"), ("DeepLIFT", LIGHT[2], "s")), strict=True
        ):
            for place, each in enumerate(found.values()):
                values = 100 * np.array(each.areas(title))
                _dots(areas, values, place + shift, colour, mark, title if place == 0 else None)
        areas.set(title="area under the accuracy", xlabel="%, the lower, the steeper the drop")
        left = np.zeros(len(arms))
        for zone, (name, colour) in _ZONES.items():
            share = np.array([100 * np.mean(found[arm].of("masses", zone)) for arm in arms])
            zones.barh(range(len(arms)), share, left=left, height=0.6, color=colour, label=name)
            left += share
        zones.set(title="where the gradient is", xlabel="share of its size (%)", xlim=(0, 100))
        for shift, (order, (colour, mark)) in zip(
            (-0.27, -0.09, 0.09, 0.27), _ORDERS.items(), strict=True
        ):
            for place, each in enumerate(found.values()):
                values = np.array(each.of("noise", order, "margin"))
                _dots(leads, values, place + shift, colour, mark, order if place == 0 else None)
        leads.axvline(0, color="#8a8a8a", linewidth=0.8)
        leads.set(title="noise in half of the pixels", xlabel="change of the label's lead (logits)")
        for shift, which, colour, mark in (
            (-0.15, 0, LIGHT[3], "^"), (0.15, 1, LIGHT[4], "D")
        ):  # fmt: skip
            for place, (arm, each) in enumerate(found.items()):
                if arm != REGULAR:
                    values = 100 * np.array(each.split("gradient")[which])
                    told = ("by its answers", "by its map")[which] if place == 1 else None
                    _dots(split, values, place + shift, colour, mark, told)
        split.axvline(0, color="#8a8a8a", linewidth=0.8)
        split.set(title="change of the area by gradient", xlabel="points, from regular training")
        areas.set_yticks(range(len(arms)), arms)
        areas.invert_yaxis()
        for axes in (areas, leads, split):
            axes.grid(color="#e5e5e5", linewidth=0.6, axis="x")
        for axes in grid.flat:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=7.5,
                handletextpad=0.3, columnspacing=1.0,
            )  # fmt: skip


def _dots(axes: Any, values: Any, height: float, colour: str, mark: str, label: str | None) -> None:
    axes.plot(
        values, [height] * len(values), mark, color=colour, markersize=4, alpha=0.75, label=label
    )
    axes.plot([values.mean()] * 2, [height - 0.11, height + 0.11], color=colour, linewidth=1.8)


def draw_gradients(
    shown: Mapping[str, Sequence[Any]], half: Callable[..., torch.Tensor], path: Path
) -> None:
    """Draw digits, the signed and the absolute half by a regular model, gradients of all arms.

    shown: by arm, digits and their gradients, both [n, H, W].
    """
    x, g = (np.array(each) for each in shown[REGULAR])
    taken = {order: half(torch.tensor(g), order).numpy() for order in (SIGNED, BY_SIZE)}
    columns: list[tuple[str, Any]] = [("digit", x)]
    columns += [(f"{order} half", drop) for order, drop in taken.items()]
    columns += [(f"gradient,\n{arm}", np.array(each[1])) for arm, each in shown.items()]
    with figures.drawing(path, 1.05 * len(columns), 1.12 * len(x) + 0.5) as figure:
        grid = figure.subplots(len(x), len(columns), squeeze=False)
        for column, (title, values) in zip(grid.T, columns, strict=True):
            column[0].set_title(title, fontsize=8)
            for axes, digit, each in zip(column, x, values, strict=True):
                if title == "digit":
                    style: dict[str, Any] = {"cmap": "gray_r"}
                elif "half" in title:
                    style = {"cmap": "Purples", "vmin": 0, "vmax": 1.6}
                    each = each.astype(float)
                else:
                    top = max(float(np.abs(each).max()), 1e-12)
                    style = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
                axes.imshow(each, interpolation="none", **style)
                if title != "digit":
                    axes.contour(digit, [(digit.min() + digit.max()) / 2], colors="#444444",
                                 linewidths=0.4)  # fmt: skip
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
