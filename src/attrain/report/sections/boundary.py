"""Decision boundaries side by side, for two-dimensional data."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from attrain.report import numbers
from attrain.report.axis import linear_axis
from attrain.report.chart import picture, tag
from attrain.report.folder import Boundary, Run
from attrain.report.palette import CLASSES, label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

SIDE = 320.0
LEFT, RIGHT, BOTTOM, EDGE = 58.0, 20.0, 42.0, 6.0

Cells = npt.NDArray[np.int64]


def fill(run: Run) -> Filled | None:
    """Fill the decision boundaries, for runs on two-dimensional data alone."""
    boundary = run.boundary
    if boundary is None:
        return None
    maps = [(m, boundary.maps[m.name]) for m in run.methods if m.name in boundary.maps]
    if not maps:
        return Filled("boundary.json holds no decision map that can be drawn.")
    panels = [
        {
            "method": run.position(method.name),
            "title": label(method.name),
            "svg": _panel(boundary, cells, label(method.name)),
            "right": _right(boundary, cells),
        }
        for method, cells in maps
    ]
    return Filled(
        sentence=_sentence([(label(method.name), cells) for method, cells in maps]),
        values={
            "panels": panels,
            "classes": [
                {"name": name, "key": _key(place)} for place, name in enumerate(boundary.classes)
            ],
            "table": _table(boundary, [(label(m.name), cells) for m, cells in maps]),
            "csv": download(
                "boundary.csv", ("method", "y", "classes by rising x"), _rows(boundary)
            ),
            "points": len(boundary.points),
        },
    )


SECTION = Section("boundary", "Decision boundary", fill)


def _sentence(maps: list[tuple[str, Cells]]) -> str:
    first, base = maps[0]
    if len(maps) == 1:
        share = np.bincount(base.ravel() - base.min()).max() / base.size
        return f"{first} gives {100 * share:.0f}% of the area to its largest class."
    each = [f"{name} on {100 * float((cells != base).mean()):.1f}%" for name, cells in maps[1:]]
    return (
        f"Of the area shown, the answer differs from {first}'s for {numbers.joined(each)} "
        "(one model of each)."
    )


def _table(boundary: Boundary, maps: list[tuple[str, Cells]]) -> Table:
    kinds = sorted({int(value) for _, cells in maps for value in np.unique(cells)})
    rows = []
    for kind in kinds:
        name = boundary.classes[kind] if 0 <= kind < len(boundary.classes) else str(kind)
        rows.append((name, *(f"{100 * float((c == kind).mean()):.1f}%" for _, c in maps)))
    head = ("class", *(name for name, _ in maps))
    return Table("Share of the area that each class gets", head, tuple(rows))


def _right(boundary: Boundary, cells: Cells) -> str:
    """Return the share of the drawn points that lie in a cell of their own class."""
    if not boundary.points:
        return ""
    points = np.array(boundary.points)
    last = len(cells) - 1
    column = (points[:, 0] - boundary.x[0]) / (boundary.x[1] - boundary.x[0]) * last
    row = (points[:, 1] - boundary.y[0]) / (boundary.y[1] - boundary.y[0]) * last
    inside = (column >= 0) & (column <= last) & (row >= 0) & (row <= last)
    if not inside.any():
        return ""
    found = cells[row[inside].round().astype(int), column[inside].round().astype(int)]
    share = float((found == points[inside, 2]).mean())
    return f"{100 * share:.1f}% of {numbers.plural(int(inside.sum()), 'point')} on their side"


def _panel(boundary: Boundary, cells: Cells, name: str) -> Markup:
    # The first and the last cell are centred on the ends of the axes; what is beyond is cut off.
    step = SIDE / max(1, len(cells) - 1)
    parts = [
        tag(
            "path", {"class": f"region k{value % len(CLASSES)}", "d": _region(cells == value, step)}
        )
        for value in np.unique(cells).tolist()
    ]
    parts.append(tag("path", {"class": "edge", "d": _edges(cells, step)}))
    parts += [_point(boundary, x, y, kind) for x, y, kind in boundary.points]
    inner = tag(
        "svg",
        {"x": LEFT, "y": EDGE, "width": SIDE, "height": SIDE, "viewBox": f"0 0 {SIDE:g} {SIDE:g}"},
        *parts,
    )
    size = (LEFT + SIDE + RIGHT, EDGE + SIDE + BOTTOM)
    return picture(f"Decision boundary of {name}", size, inner, *_ticks(boundary))


def _region(inside: npt.NDArray[np.bool_], step: float) -> str:
    """Return the cells as one path: a bar for every run of neighbours in a row."""
    bars = []
    for row, line in enumerate(inside):
        changes = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        top = SIDE - (row + 0.5) * step
        for start, end in zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True):
            left, width = _n((start - 0.5) * step), _n((end - start) * step)
            bars.append(f"M{left} {_n(top)}h{width}v{_n(step)}H{left}Z")
    return "".join(bars)


def _edges(cells: Cells, step: float) -> str:
    """Return the lines between neighbouring cells of different classes."""
    lines = []
    for row, column in np.argwhere(cells[:, 1:] != cells[:, :-1]).tolist():
        bottom = SIDE - (row - 0.5) * step
        lines.append(f"M{_n((column + 0.5) * step)} {_n(bottom)}v{_n(-step)}")
    for row, column in np.argwhere(cells[1:] != cells[:-1]).tolist():
        height = SIDE - (row + 0.5) * step
        lines.append(f"M{_n((column - 0.5) * step)} {_n(height)}h{_n(step)}")
    return "".join(lines)


def _point(boundary: Boundary, x: float, y: float, kind: int) -> Markup:
    px = (x - boundary.x[0]) / (boundary.x[1] - boundary.x[0]) * SIDE
    py = SIDE - (y - boundary.y[0]) / (boundary.y[1] - boundary.y[0]) * SIDE
    return _mark(kind, px, py)


def _mark(kind: int, px: float, py: float) -> Markup:
    """Return the point of a class: its own shape as well as its own colour."""
    shapes = (
        f"M{_n(px - 3)} {_n(py)}a3 3 0 1 0 6 0a3 3 0 1 0-6 0Z",
        f"M{_n(px - 2.6)} {_n(py - 2.6)}h5.2v5.2h-5.2Z",
        f"M{_n(px)} {_n(py - 3.6)}l3.4 6h-6.8Z",
        f"M{_n(px)} {_n(py - 3.8)}l3.8 3.8l-3.8 3.8l-3.8-3.8Z",
    )
    path = {"class": f"point k{kind % len(CLASSES)}", "d": shapes[kind % len(shapes)]}
    return tag("path", path)


def _key(kind: int) -> Markup:
    """Return the mark of a class for the legend."""
    frame = {"class": "swatch", "viewBox": "0 0 12 12", "width": 16, "height": 16}
    return tag("svg", {**frame, "aria-hidden": "true"}, _mark(kind, 6.0, 6.0))


def _ticks(boundary: Boundary) -> Iterator[Markup]:
    x_axis = linear_axis("first input", np.zeros(0), *boundary.x)
    y_axis = linear_axis("second input", np.zeros(0), *boundary.y)
    for value, text in x_axis.ticks:
        place = float(x_axis.place(np.array(value), LEFT, LEFT + SIDE))
        yield _text(place, EDGE + SIDE + 16, "middle", text)
    for value, text in y_axis.ticks:
        place = float(y_axis.place(np.array(value), EDGE + SIDE, EDGE))
        yield _text(LEFT - 6, place + 4, "end", text)
    yield _text(LEFT + SIDE / 2, EDGE + SIDE + 36, "middle", "first input")
    turn = f"translate(12 {EDGE + SIDE / 2:g}) rotate(-90)"
    yield tag("text", {"text-anchor": "middle", "transform": turn}, Markup("second input"))


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return tag("text", {"x": x, "y": y, "text-anchor": anchor}, Markup.escape(text))


def _rows(boundary: Boundary) -> Iterator[tuple[object, ...]]:
    for name, cells in boundary.maps.items():
        heights = np.linspace(*boundary.y, len(cells)).tolist()
        for y, line in zip(heights, cells.tolist(), strict=True):
            yield name, y, " ".join(map(str, line))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
