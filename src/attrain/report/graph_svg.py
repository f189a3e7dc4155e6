"""An attribution graph as a small static picture: for the report, for print, without script.

It looks as the page does; colours come from graph-svg.css where that is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from attrain.report.graph_data import Places, kept_nodes, smallest
from attrain.report.graph_input import Array, ClassGraph
from attrain.report.numbers import plural
from attrain.report.palette import LIGHT

UP, DOWN = LIGHT[1], LIGHT[2]
MOST_DRAWN = 150
SWEEPS = 6

# Size of a node, distance between the middles of two, room under it for its label.
_TIERS = ((22.0, 28.0, 12.0), (16.0, 21.0, 12.0), (10.0, 13.0, 0.0), (6.0, 8.0, 0.0))
_GAP, _DEEP_GAP, _DEEP = 42.0, 17.0, 12
_TOP, _SIDE, _LANE, _MOST_LANES = 8.0, 8.0, 5.0, 8
_CHARACTER = 6.4


@dataclass(frozen=True)
class _Row:
    """A layer as it is laid out: units from left to right, their places and sizes."""

    units: Places
    x: Array
    y: Array
    sides: Array
    labelled: bool
    top: float
    height: float


_Drawn = tuple[int, int, int, int, float, float]
"""Source layer, target layer, source unit, target unit, message, strength."""


def graph_svg(
    graph: ClassGraph, width: float = 460.0, nodes: float = 0.8, edges: float = 0.9
) -> Markup:
    """Return the graph as inline SVG, `width` pixels wide, the output at the top.

    Of each layer the smallest set of nodes is drawn that holds the share `nodes` of |R|, and of
    the edges into it that which holds `edges` of |message|, at most 150 in all.
    """
    kept = [kept_nodes(relevance, nodes) for relevance in graph.relevance]
    drawn = _drawn(graph, kept, edges)
    order = _ordered(graph, kept)
    gutter = min(0.28 * width, 14 + _CHARACTER * max(len(layer.name) for layer in graph.layers))
    lanes = _lanes(drawn)
    count = min(_MOST_LANES, max(lanes.values(), default=-1) + 1)
    right = width - _SIDE - (10 + _LANE * count if count else 0)
    rows = _rows(graph, order, gutter, right)
    height = max(row.top + row.height for row in rows) + _TOP
    shown, units = sum(map(len, kept)), sum(layer.units for layer in graph.layers)
    text = (
        f"Attribution graph of class {graph.name}, from {graph.layers[0].name} at the bottom to "
        f"{graph.layers[-1].name} at the top: {shown} of {plural(units, 'node')}, "
        f"{plural(len(drawn), 'edge')}."
    )
    side = max(float((row.x + row.sides / 2).max(initial=0)) for row in rows)
    parts = [
        _edge(edge, rows, side + 10 + _LANE * (lanes.get(edge[:2], 0) % _MOST_LANES))
        for edge in drawn
    ]
    for layer, row, relevance in zip(graph.layers, rows, graph.relevance, strict=True):
        name = _cut(layer.name, gutter - 8)
        middle = row.top + (row.height - (_TIERS[0][2] if row.labelled else 0)) / 2
        parts.append(
            f'<text class="layer" x="0" y="{middle + 4:.1f}" font-size="11" font-weight="600">'
            f"{escape(name)}</text>"
        )
        labels = layer.labels if layer.labels is not None else range(layer.units)
        parts += _nodes(row, relevance, [str(label) for label in labels])
    return Markup(
        '<svg class="attribution" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" '
        'height="{}" font-family="system-ui, sans-serif" fill="currentColor">{}</svg>'
    ).format(
        text, f"{width:g}", f"{height:.0f}", f"{width:g}", f"{height:.0f}", Markup("".join(parts))
    )


def _drawn(graph: ClassGraph, kept: Sequence[Places], share: float) -> list[_Drawn]:
    """Return the edges to draw, the weakest first."""
    found: list[_Drawn] = []
    for target in dict.fromkeys(each.target for each in graph.edges):
        parts = []
        for source, above, messages in graph.edges:
            if above != target:
                continue
            block = np.asarray(messages, dtype=float)[np.ix_(kept[target], kept[source])]
            rows, columns = np.nonzero(block)
            to, from_ = kept[target][rows], kept[source][columns]
            parts.append((np.full(len(rows), source), from_, to, block[rows, columns]))
        sources, from_, to, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        sizes = np.abs(values)
        order = np.argsort(-sizes, kind="stable")
        count = smallest(sizes[order], share) if len(order) else 0
        for k in order[: min(count, MOST_DRAWN)]:
            strength = float(sizes[k] / sizes[order[0]])
            ends = int(sources[k]), target, int(from_[k]), int(to[k])
            found.append((*ends, float(values[k]), strength))
    found.sort(key=lambda edge: -edge[-1])
    return found[:MOST_DRAWN][::-1]


def _lanes(drawn: Sequence[_Drawn]) -> dict[tuple[int, int], int]:
    """Return a lane at the side for each pair of layers whose edges skip others, inner to outer."""
    pairs = {edge[:2] for edge in drawn if edge[1] - edge[0] > 1}
    lanes: dict[tuple[int, int], int] = {}
    for source, target in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair)):
        taken = {lane for (low, high), lane in lanes.items() if low < target and high > source}
        lanes[source, target] = next(k for k in range(len(pairs)) if k not in taken)
    return lanes


def _ordered(graph: ClassGraph, kept: Sequence[Places]) -> list[Places]:
    """Return the kept units of each layer, each near the middle of those that it is linked to."""
    order = [np.sort(units) for units in kept]
    place = [_spread(units, layer.units) for units, layer in zip(order, graph.layers, strict=True)]
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        layers = range(len(order) - 1, -1, -1) if down else range(len(order))
        for k in layers:
            total, weight = np.zeros(graph.layers[k].units), np.zeros(graph.layers[k].units)
            for source, target, messages in graph.edges:
                if (source if down else target) != k:
                    continue
                far = target if down else source
                sizes = np.abs(messages).T if down else np.abs(messages)
                sizes = sizes[:, order[far]] / (sizes.sum() or 1.0)
                total += sizes @ place[far][order[far]]
                weight += sizes.sum(1)
            middle = np.where(weight > 0, total / np.where(weight > 0, weight, 1), place[k])
            units = order[k]
            order[k] = units[np.lexsort((units, place[k][units], middle[units]))]
            place[k] = _spread(order[k], graph.layers[k].units)
    return order


def _spread(units: Places, count: int) -> Array:
    place = np.zeros(count)
    place[units] = (np.arange(len(units)) + 0.5) / max(1, len(units))
    return place


def _rows(graph: ClassGraph, order: Sequence[Places], left: float, right: float) -> list[_Row]:
    rows: list[_Row] = []
    top, room = _TOP, right - left
    deep = len(order) > _DEEP
    gap, tiers = (_DEEP_GAP, _TIERS[2:]) if deep else (_GAP, _TIERS)
    for layer, units, relevance in reversed(
        list(zip(graph.layers, order, graph.relevance, strict=True))
    ):
        size, pitch, below = next((t for t in tiers if len(units) * t[1] <= room), tiers[-1])
        lines = max(1, int(np.ceil(len(units) * pitch / room)))
        names = [str(layer.labels[k]) if layer.labels is not None else str(k) for k in units]
        widest = _CHARACTER * max(map(len, names), default=0) + 4
        single = lines == 1
        spread = min(room / max(1, len(units)), max(1.3 * pitch, widest)) if single else pitch
        columns = int(np.ceil(len(units) / lines)) if len(units) else 1
        where = np.arange(len(units))
        x = np.float64(left + room / 2) + (where // lines - (columns - 1) / 2) * spread
        y = np.float64(top) + (where % lines + 0.5) * pitch
        sizes = np.abs(relevance)
        sides = size * (0.62 + 0.38 * np.sqrt(sizes[units] / (sizes.max() or 1.0)))
        labelled = single and below > 0 and widest <= max(spread, widest if columns == 1 else 0)
        height = lines * pitch + (below if labelled else 0)
        rows.append(_Row(units, x, y, sides, labelled, top, height))
        top += height + gap
    return rows[::-1]


def _edge(edge: _Drawn, rows: Sequence[_Row], lane: float) -> str:
    source, target, from_, to, message, strength = edge
    low, high = rows[source], rows[target]
    a, b = int(np.flatnonzero(low.units == from_)[0]), int(np.flatnonzero(high.units == to)[0])
    x, y = low.x[a], low.y[a] - low.sides[a] / 2
    u, v = high.x[b], high.y[b] + high.sides[b] / 2
    if high.labelled:
        v = high.top + high.height
    turn = min(16.0, 0.3 * (y - v))
    if target - source == 1:
        path = (
            f"M{x:.1f} {y:.1f}C{x:.1f} {(y + v) / 2:.1f} {u:.1f} {(y + v) / 2:.1f} {u:.1f} {v:.1f}"
        )
    else:
        path = (
            f"M{x:.1f} {y:.1f}C{x:.1f} {y - turn:.1f} {lane:.1f} {y - 4:.1f} "
            f"{lane:.1f} {y - 1.4 * turn:.1f}V{v + 1.4 * turn:.1f}"
            f"C{lane:.1f} {v + 4:.1f} {u:.1f} {v + turn:.1f} {u:.1f} {v:.1f}"
        )
    kind, colour, dash = (
        ("down", DOWN, ' stroke-dasharray="5 3"') if message < 0 else ("up", UP, "")
    )
    width, opacity = 0.6 + 3.4 * strength**0.6, 0.25 + 0.45 * strength
    return (
        f'<path class="{kind}" d="{path}" fill="none" stroke="{colour}"{dash} '
        f'stroke-width="{width:.2f}" stroke-opacity="{opacity:.2f}"/>'
    )


def _nodes(row: _Row, relevance: Array, labels: Sequence[str]) -> list[str]:
    parts = []
    top = float(np.abs(relevance).max()) or 1.0
    for unit, x, y, side in zip(row.units, row.x, row.y, row.sides, strict=True):
        value = float(relevance[unit])
        kind, colour = ("down", DOWN) if value < 0 else ("up", UP)
        dash = ' stroke-dasharray="3 2"' if value < 0 else ""
        corner = (
            f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"'
        )
        rounded = f'rx="{min(4, 0.22 * side):.1f}"'
        # An opaque ground first: lines must not show through a light node.
        parts.append(f'<rect class="ground" {corner} {rounded} fill="#ffffff"/>')
        parts.append(
            f'<rect class="{kind}" {corner} {rounded} fill="{colour}" stroke="{colour}"{dash} '
            f'fill-opacity="{0.08 + 0.52 * abs(value) / top:.2f}"/>'
        )
        if row.labelled:
            text = _cut(labels[unit], 120)
            parts.append(
                f'<text x="{x:.1f}" y="{row.top + row.height - 3:.1f}" font-size="10" '
                f'text-anchor="middle">{escape(text)}</text>'
            )
    return parts


def _cut(text: str, room: float) -> str:
    most = max(3, int(room / _CHARACTER))
    if len(text) <= most:
        return text
    return f"{text[: (most - 1) // 2]}\N{HORIZONTAL ELLIPSIS}{text[-(most // 2) :]}"
