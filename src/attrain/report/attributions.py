"""Attributions of some samples as one HTML page: each input beside what it contributed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from attrain.report import raster
from attrain.report.folder import Array
from attrain.report.page import environment, installed, policy, source
from attrain.runs import replacing

SHOWN = 12
"""Values of a sample without rows and columns that are drawn as bars, the largest first."""

# Blue below 0, red above, told apart with every common colour blindness; light in the middle.
_BELOW, _MIDDLE, _ABOVE = (5, 80, 160), (247, 247, 245), (178, 24, 43)
_LEVELS = 101


@dataclass(frozen=True)
class Explanation:
    """What the page shows. values: [n, ...]; inputs: [n, ...], pictures in 0..1.

    goal: what the attributions are to add up to, empty where they are no shares of anything.
    warnings: what makes them doubtful.
    words: [n][...], of texts, the word that each value belongs to.
    """

    title: str
    data: str
    values: Array
    inputs: Array
    classes: Sequence[str]
    index: Sequence[int]
    labels: Sequence[int]
    predicted: Sequence[int]
    targets: Sequence[int]
    scores: Sequence[float]
    errors: Sequence[float]
    goal: str
    warnings: Sequence[str] = ()
    words: Sequence[Sequence[str]] = ()


def write_page(path: Path, found: Explanation) -> None:
    """Write the page; raises AttrainError where it cannot be written."""
    page = render(found).encode()
    with replacing(path) as file:
        file.write(page)


def render(found: Explanation) -> str:
    """Return the page as HTML; it loads nothing and runs nothing."""
    found = replace(found, values=_without_places(found.values))
    style = source("report.css") + source("attributions.css")
    signed = bool((found.values < 0).any())
    return (
        environment()
        .get_template("attributions.html")
        .render(
            title=f"{found.title} on {found.data}",
            policy=policy(style, ""),
            style=Markup(style),
            version=installed(),
            signed=signed,
            scale=raster.address(np.arange(_LEVELS, dtype=np.uint8)[None], diverging())
            if signed
            else raster.scale_bar(),
            cards=[_card(found, k, signed) for k in range(len(found.values))],
            goal=found.goal,
            warnings=found.warnings,
            largest=f"{max(map(abs, found.errors)):.3g}",
            mapped=_is_map(found.values),
        )
    )


def diverging() -> raster.Bytes:
    """Return the colour scale `(levels, 3)` from the most negative to the most positive value."""
    share = np.abs(np.linspace(-1, 1, _LEVELS))[:, None]
    ends = np.where(np.arange(_LEVELS)[:, None] < _LEVELS // 2, _BELOW, _ABOVE)
    scale: raster.Bytes = (_MIDDLE + (ends - np.array(_MIDDLE)) * share).round().astype(np.uint8)
    return scale


def _without_places(values: Array) -> Array:
    """Return one value per channel where a method gave all places of a channel the same."""
    if values.ndim == 4 and values.shape[1] > 1 and (values == values[:, :, :1, :1]).all():
        return values[:, :, 0, 0]
    return values


def _is_map(values: Array) -> bool:
    return values.ndim >= 3 and min(values.shape[-2:]) > 1


def _card(found: Explanation, k: int, signed: bool) -> Mapping[str, Any]:
    values, pixels = found.values[k], found.inputs[k]
    top = float(np.abs(values).max())
    card: dict[str, Any] = {
        "index": found.index[k],
        "label": _class(found, found.labels[k]),
        "predicted": _class(found, found.predicted[k]),
        "right": found.labels[k] == found.predicted[k],
        "target": _class(found, found.targets[k]),
        "score": f"{found.scores[k]:.3g}",
        "error": f"{found.errors[k]:.2g}",
        "picture": raster.photograph(pixels) if pixels.ndim == 3 and len(pixels) in (1, 3) else "",
        "map": "",
        "bars": [],
    }
    if _is_map(found.values):
        # Contributions of the channels of a place add up; sizes of gradients do not.
        flat = values.reshape(-1, *values.shape[-2:])
        flat = flat.sum(0) if signed else flat.max(0)
        top = float(np.abs(flat).max())
        card["map"] = _signed_map(flat, top) if signed else raster.heat_map(flat, top)
    else:
        card["bars"] = _bars(values.reshape(-1), top, found.words[k] if found.words else ())
    card["top"] = f"{top:.2g}"
    return card


def _signed_map(values: Array, top: float) -> str:
    share = values / top if top > 0 else np.zeros_like(values)
    levels = ((share + 1) / 2 * (_LEVELS - 1)).round().astype(np.uint8)
    return raster.address(levels, diverging())


def _bars(values: Array, top: float, words: Sequence[str]) -> list[Mapping[str, Any]]:
    order = np.argsort(-np.abs(values), kind="stable")[:SHOWN]
    return [
        {
            "name": f"{words[place]} #{place}" if words else f"#{place}",
            "value": f"{values[place]:.2g}",
            "negative": bool(values[place] < 0),
            "width": f"{50 * abs(values[place]) / top if top > 0 else 0:.1f}",
        }
        for place in order
    ]


def _class(found: Explanation, place: int) -> str:
    return found.classes[place] if 0 <= place < len(found.classes) else str(place)
