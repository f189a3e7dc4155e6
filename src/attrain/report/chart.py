"""Charts as inline SVG, drawn here so that they print and need no script.

Colours and dashes come from the style sheet by the class of the method (`m0`, `m1`, ...). What
the script needs for tooltips travels in `data-` attributes: the place and text of each point.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from attrain.report.axis import Axis, apart
from attrain.report.folder import Array
from attrain.report.numbers import fixed

WIDTH = 460.0
HEIGHT = 285.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 14.0, 10.0, 44.0
END_LABELS = 74.0
LABEL_HEIGHT = 14.0
MOST_POINTS, MOST_THIN_POINTS = 250, 120

Write = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One curve of a method; the mean over seeds is thick, a single seed is thin.

    A reference of the method's own is drawn as rings without a line.
    """

    method: int
    name: str
    x: Array
    y: Array
    thick: bool = True
    rings: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    x_text: Write,
    y_text: Write,
    *,
    ends: bool = True,
) -> Markup:
    """Return a chart of curves; `x_text` and `y_text` write the numbers of a point."""
    right = WIDTH - (END_LABELS if ends else RIGHT)
    bottom = HEIGHT - BOTTOM
    parts = [_frame(x, y, right, bottom)]
    for line in sorted(lines, key=lambda line: line.thick):
        kept = _thin(len(line.x), MOST_POINTS if line.thick else MOST_THIN_POINTS)
        px, py = x.place(line.x[kept], LEFT, right), y.place(line.y[kept], bottom, TOP)
        parts.append(_series(line, px, py, line.x[kept], line.y[kept], x_text, y_text))
    if ends:
        parts.append(
            _end_labels(
                [line for line in lines if line.thick and not line.rings], x, y, right, y_text
            )
        )
    last = [f"{line.name} {y_text(line.y[-1])}" for line in lines if line.thick and line.x.size]
    return _svg(f"{title}. At the right end: {'; '.join(last)}.", HEIGHT, parts)


def step_chart(
    title: str, lines: Sequence[Line], edges: Array, x: Axis, y: Axis, y_text: Write
) -> Markup:
    """Return a chart of histograms as outlines; each line holds one count per bin."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    ex = x.place(edges, LEFT, right)
    centres = (edges[:-1] + edges[1:]) / 2
    parts = [_frame(x, y, right, bottom)]
    for line in lines:
        py = y.place(line.y, bottom, TOP)
        path = f"M{ex[0]:.1f} {bottom:.1f}" + "".join(
            f"V{height:.1f}H{edge:.1f}" for height, edge in zip(py, ex[1:], strict=True)
        )
        px = x.place(centres, LEFT, right)
        points = _points(px, py, centres, line.y, lambda v: fixed(v, 2), y_text)
        parts.append(
            tag(
                "g",
                {"class": f"series toggled m{line.method}", "data-name": line.name, **points},
                tag("path", {"class": "thick outline", "d": f"{path}V{bottom:.1f}"}),
            )
        )
    return _svg(f"{title}. One outline per method.", HEIGHT, parts)


def dot_chart(
    title: str,
    rows: Sequence[str],
    dots: Sequence[tuple[int, str, Sequence[tuple[int, float, Sequence[float]]]]],
    x: Axis,
    x_text: Write,
) -> Markup:
    """Return a chart with a row per name and a dot per method.

    `dots` holds, per method: its position, its label and (row, mean, values of the seeds).
    """
    left = min(150.0, 16.0 + 7.0 * max(map(len, rows)))
    right, pitch = WIDTH - RIGHT, min(52.0, max(26.0, 230 / len(rows)))
    bottom = TOP + pitch * len(rows)
    height = bottom + BOTTOM
    places = [TOP + pitch * (k + 0.5) for k in range(len(rows))]
    parts = [_horizontal(x, left, right, bottom)]
    for name, py in zip(rows, places, strict=True):
        parts.append(tag("path", {"class": "grid", "d": f"M{left:.1f} {py:.1f}H{right:.1f}"}))
        shown = name if len(name) <= 18 else name[:17] + "\N{HORIZONTAL ELLIPSIS}"
        parts.append(tag("text", {"x": left - 8, "y": py + 4, "text-anchor": "end"}, escape(shown)))
    summary = []
    for order, (method, name, values) in enumerate(dots):
        # Methods lie a little above each other so that equal values stay visible.
        shift = 4.0 * (order - (len(dots) - 1) / 2) if len(dots) < 5 else 0.0
        marks, points = [], []
        for row, mean, seeds in values:
            py = places[row] + shift
            for px in x.place(np.array(seeds), left, right):
                marks.append(tag("circle", {"class": "seed", "cx": px, "cy": py, "r": 2}))
            px = float(x.place(np.array([mean]), left, right)[0])
            marks.append(_shape(method, px, py))
            points.append(f"{px:.1f},{places[row]:.1f},{_clean(rows[row])},{x_text(mean)}")
        parts.append(
            tag(
                "g",
                {
                    "class": f"series dots toggled m{method}",
                    "data-name": name,
                    "data-points": ";".join(points),
                },
                *marks,
            )
        )
        if values:
            row, mean, _ = values[0]
            summary.append(f"{name} {x_text(mean)} ({rows[row]})")
    return _svg(f"{title}. {'; '.join(summary)}.", height, parts, orient="y")


def swatch(method: int) -> Markup:
    """Return the short line in a method's colour and dash that stands for it in a legend."""
    line = tag("path", {"class": "thick", "d": "M1 5H33"})
    return tag(
        "svg",
        {
            "class": f"swatch m{method}",
            "viewBox": "0 0 34 10",
            "aria-hidden": "true",
            "width": 34,
            "height": 10,
        },
        line,
    )


def picture(title: str, size: tuple[float, float], *parts: Markup) -> Markup:
    """Return an SVG of its own with a text alternative."""
    view = f"0 0 {size[0]:g} {size[1]:g}"
    return tag(
        "svg", {"class": "chart", "viewBox": view, "role": "img", "aria-label": title}, *parts
    )


def tag(name: str, attributes: Mapping[str, object], *children: Markup) -> Markup:
    """Return one element with every attribute escaped."""
    text = "".join(f' {key}="{escape(_short(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{text}>{Markup('').join(children)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def _svg(label: str, height: float, parts: Sequence[Markup], orient: str = "x") -> Markup:
    return tag(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {WIDTH:g} {height:g}",
            "role": "img",
            "aria-label": label,
            "tabindex": 0,
            "data-orient": orient,
        },
        *parts,
    )


def _frame(x: Axis, y: Axis, right: float, bottom: float) -> Markup:
    parts = [_horizontal(x, LEFT, right, bottom)]
    heights = y.place(np.array([value for value, _ in y.ticks]), bottom, TOP)
    for (_, text), py in zip(y.ticks, heights, strict=True):
        parts.append(tag("path", {"class": "grid", "d": f"M{LEFT:.1f} {py:.1f}H{right:.1f}"}))
        parts.append(tag("text", {"x": LEFT - 7, "y": py + 4, "text-anchor": "end"}, escape(text)))
    middle = (TOP + bottom) / 2
    parts.append(
        tag(
            "text",
            {
                "class": "axis",
                "text-anchor": "middle",
                "transform": f"translate(13 {middle:.1f}) rotate(-90)",
            },
            escape(y.label),
        )
    )
    return Markup("").join(parts)


def _horizontal(x: Axis, left: float, right: float, bottom: float) -> Markup:
    parts = [tag("path", {"class": "base", "d": f"M{left:.1f} {bottom:.1f}H{right:.1f}"})]
    positions = x.place(np.array([value for value, _ in x.ticks]), left, right)
    for (_, text), px in zip(x.ticks, positions, strict=True):
        parts.append(tag("path", {"class": "base", "d": f"M{px:.1f} {bottom:.1f}v4"}))
        parts.append(
            tag("text", {"x": px, "y": bottom + 17, "text-anchor": "middle"}, escape(text))
        )
    parts.append(
        tag(
            "text",
            {
                "class": "axis",
                "x": (left + right) / 2,
                "y": bottom + 38,
                "text-anchor": "middle",
            },
            escape(x.label),
        )
    )
    return Markup("").join(parts)


def _series(
    line: Line, px: Array, py: Array, x: Array, y: Array, x_text: Write, y_text: Write
) -> Markup:
    if line.rings:
        rings = [
            tag("circle", {"class": "ring", "cx": a, "cy": b, "r": 3.2})
            for a, b in zip(px.tolist(), py.tolist(), strict=True)
        ]
        about = {"class": f"series toggled m{line.method}", "data-name": line.name}
        return tag("g", about | _points(px, py, x, y, x_text, y_text), *rings)
    weight = "thick" if line.thick else "thin"
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
    marks = [tag("path", {"class": weight, "d": path})] if len(px) > 1 else []
    if line.thick and len(px) <= 16:
        marks += [tag("circle", {"cx": px[k], "cy": py[k], "r": 3}) for k in apart(px, 11.0)]
    elif len(px) == 1:
        marks.append(tag("circle", {"class": "seed", "cx": px[0], "cy": py[0], "r": 2}))
    attributes: dict[str, object] = {"class": f"series toggled m{line.method}"}
    if line.thick:
        attributes |= {"data-name": line.name, **_points(px, py, x, y, x_text, y_text)}
    return tag("g", attributes, *marks)


def _points(
    px: Array, py: Array, x: Array, y: Array, x_text: Write, y_text: Write
) -> dict[str, object]:
    each = (
        f"{a:.1f},{b:.1f},{_clean(x_text(u))},{_clean(y_text(v))}"
        for a, b, u, v in zip(px, py, x, y, strict=True)
    )
    return {"data-points": ";".join(each)}


def _clean(text: str) -> str:
    # Commas and semicolons separate the fields of `data-points`.
    return text.replace(",", "\N{THIN SPACE}").replace(";", " ")


def _end_labels(lines: Sequence[Line], x: Axis, y: Axis, right: float, y_text: Write) -> Markup:
    bottom = HEIGHT - BOTTOM
    ending = [line for line in lines if line.x.size]
    wanted = [(float(y.place(line.y[-1:], bottom, TOP)[0]), line) for line in ending]
    wanted.sort(key=lambda pair: pair[0])
    parts = []
    heights = spread_apart([height for height, _ in wanted], LABEL_HEIGHT, TOP, bottom)
    for (py, line), height in zip(wanted, heights, strict=True):
        px = float(x.place(line.x[-1:], LEFT, right)[0])
        parts.append(
            tag(
                "g",
                {"class": f"end toggled m{line.method}"},
                tag(
                    "path",
                    {"class": "leader", "d": f"M{px:.1f} {py:.1f}L{right + 8:.1f} {height:.1f}"},
                ),
                tag(
                    "text",
                    {"x": right + 11, "y": height + 4},
                    escape(y_text(line.y[-1]).rstrip("%")),
                ),
            )
        )
    return Markup("").join(parts)


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ascending places moved as little as needed to lie at least `gap` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    limit = high
    for k in range(len(moved) - 1, -1, -1):
        moved[k] = min(moved[k], limit)
        limit = moved[k] - gap
    return moved


def _shape(method: int, px: float, py: float) -> Markup:
    """Return the mark of a method: the shapes tell methods apart without colour."""
    r = 4.5
    shapes = (
        f"M{px - r:.1f} {py:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{px - r:.1f} {py - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{px:.1f} {py - 5.5:.1f}l5.5 9.5h-11Z",
        f"M{px:.1f} {py - 6:.1f}l6 6l-6 6l-6 -6Z",
    )
    return tag("path", {"class": "mark", "d": shapes[method % len(shapes)]})


def _thin(length: int, most: int) -> npt.NDArray[np.int64]:
    """Return which points to draw: all, or `most` of them with both ends."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round()).astype(np.int64)
