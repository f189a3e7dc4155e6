"""Spikes: what the neurons of each layer do for one input, and the membranes of the outputs."""

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup, escape

from attrain.report import numbers
from attrain.report.axis import Axis, linear_axis
from attrain.report.chart import picture, tag
from attrain.report.folder import Firing, FiringLayer, Run, Spikes
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

WIDTH, LEFT, RIGHT, TOP = 460.0, 62.0, 70.0, 8.0
ROW, CLASS_ROW, LEAST_LAYER, GAP = 3.2, 14.0, 28.0, 18.0
MEMBRANES, FOOT = 110.0, 42.0


def fill(run: Run) -> Filled | None:
    """Fill the rasters and membranes, for runs of spiking models alone."""
    spikes = run.spikes
    if spikes is None:
        return None
    models = [(m.name, spikes.methods[m.name]) for m in run.methods if m.name in spikes.methods]
    if not models:
        return Filled("spikes.json holds no model whose spikes can be drawn.")
    membranes = np.concatenate([firing.membranes.ravel() for _, firing in models])
    y = linear_axis("membrane", np.append(membranes, spikes.threshold))
    return Filled(
        sentence=_sentence(models),
        values={
            "panels": [
                {
                    "method": run.position(name),
                    "title": label(name),
                    "svg": _panel(spikes, firing, y, label(name)),
                    "answer": _answer(spikes, firing),
                }
                for name, firing in models
            ],
            "input": f"test example {spikes.index}, class {_class(spikes, spikes.label)}",
            "samples": numbers.plural(spikes.samples, "test example"),
            "tables": [_rates(models), _costs(models)],
            "csv": download("spikes.csv", _CSV, _rows(models)),
        },
    )


SECTION = Section("spikes", "Spikes", fill)

_CSV = ("method", "layer", "neuron", "steps in which it fired")

Models = Sequence[tuple[str, Firing]]


def _sentence(models: Models) -> str:
    each = [
        f"{label(name)} fires {firing.spikes:,.0f} spikes, which make "
        f"{_thousands(firing.operations)} additions"
        for name, firing in models
    ]
    text = f"Per example, {'; '.join(each)} (one model of each)."
    dead = [
        f"{layer.name} of {label(name)}"
        for name, firing in models
        for layer in firing.layers
        if layer.rate == 0.0
    ]
    return f"{text} Silent: {numbers.joined(dead)}." if dead else text


def _thousands(count: float) -> str:
    return f"{count / 1e6:.2f} million" if count >= 1e6 else f"{count:,.0f}"


def _class(spikes: Spikes, place: int) -> str:
    return spikes.classes[place] if 0 <= place < len(spikes.classes) else str(place)


def _answer(spikes: Spikes, firing: Firing) -> str:
    right = "rightly" if firing.prediction == spikes.label else "wrongly"
    return f"answers {_class(spikes, firing.prediction)}, {right}"


def _rates(models: Models) -> Table:
    rows = [
        (
            label(name),
            layer.name,
            f"{layer.neurons:,}",
            f"{100 * layer.rate:.1f}%",
            f"{100 * layer.silent:.1f}%",
        )
        for name, firing in models
        for layer in firing.layers
    ]
    head = ("method", "layer", "neurons", "firing rate", "never fired")
    return Table("Firing rates per step", head, tuple(rows))


def _costs(models: Models) -> Table:
    rows = [
        (
            label(name),
            *(f"{v:,.0f}" for v in (firing.spikes, firing.operations, firing.multiplications)),
        )
        for name, firing in models
    ]
    head = ("method", "spikes", "synaptic operations", "multiplications of the input layer")
    return Table("Cost of one example", head, tuple(rows))


def _rows(models: Models) -> Iterator[tuple[object, ...]]:
    for name, firing in models:
        for layer in firing.layers:
            for neuron, fired in zip(layer.shown, layer.fired, strict=True):
                yield name, layer.name, neuron, " ".join(map(str, fired))


def _panel(spikes: Spikes, firing: Firing, y: Axis, name: str) -> Markup:
    right = WIDTH - RIGHT
    step = (right - LEFT) / spikes.steps
    parts: list[Markup] = []
    top = TOP
    for place, layer in enumerate(firing.layers):
        last = place == len(firing.layers) - 1
        classes = [_class(spikes, neuron) for neuron in layer.shown] if last else None
        height = max(LEAST_LAYER, (CLASS_ROW if last else ROW) * len(layer.shown))
        parts.extend(_raster(layer, f"layer {place + 1}", top, height, step, right, classes))
        top += height + GAP
    parts.extend(_membranes(spikes, firing, y, top, step, right))
    bottom = top + MEMBRANES
    parts.extend(_times(spikes.steps, bottom, step, right))
    title = f"Spikes of {name} in {spikes.steps} steps, layer by layer, and output membranes"
    return picture(title, (WIDTH, bottom + FOOT), *parts)


def _raster(
    layer: FiringLayer,
    title: str,
    top: float,
    height: float,
    step: float,
    right: float,
    classes: Sequence[str] | None,
) -> Iterator[Markup]:
    pitch = height / max(1, len(layer.shown))
    yield tag("path", {"class": "grid", "d": f"M{LEFT:.1f} {top + height:.1f}H{right:.1f}"})
    bars = []
    for row, fired in enumerate(layer.fired):
        middle = top + (row + 0.5) * pitch
        thick = min(0.8 * pitch, 6.0)
        bars += [
            f"M{LEFT + (t + 0.15) * step:.1f} {middle - thick / 2:.1f}h{0.7 * step:.1f}"
            f"v{thick:.1f}h{-0.7 * step:.1f}Z"
            for t in fired
        ]
    yield tag("path", {"class": "spike", "d": "".join(bars) or "M0 0"})
    if classes:
        for row, text in enumerate(classes):
            shown = text if len(text) <= 9 else text[:8] + "\N{HORIZONTAL ELLIPSIS}"
            yield _text(LEFT - 6, top + (row + 0.5) * pitch + 3.5, "end", shown)
    else:
        yield _text(LEFT - 6, top + height / 2 + 4, "end", title)
    yield _text(right + 6, top + height / 2, "start", f"{100 * layer.rate:.1f}%")
    yield _text(right + 6, top + height / 2 + 13, "start", f"of {layer.neurons:,}")


def _membranes(
    spikes: Spikes, firing: Firing, y: Axis, top: float, step: float, right: float
) -> Iterator[Markup]:
    bottom = top + MEMBRANES
    for value, text in y.ticks:
        place = float(y.place(np.array([value]), bottom, top)[0])
        yield tag("path", {"class": "grid", "d": f"M{LEFT:.1f} {place:.1f}H{right:.1f}"})
        yield _text(LEFT - 6, place + 4, "end", text)
    line = float(y.place(np.array([spikes.threshold]), bottom, top)[0])
    yield tag("path", {"class": "edge", "d": f"M{LEFT:.1f} {line:.1f}H{right:.1f}"})
    yield _text(right + 6, line + 4, "start", "threshold")
    times = LEFT + (np.arange(spikes.steps) + 0.5) * step
    marked = {spikes.label, firing.prediction}
    for output, values in enumerate(firing.membranes):
        heights = y.place(values, bottom, top)
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(times, heights, strict=True))
        kind = "membrane chosen" if output in marked else "membrane"
        yield tag("path", {"class": kind, "d": path})
    turn = f"translate(13 {(top + bottom) / 2:.1f}) rotate(-90)"
    yield tag(
        "text", {"class": "axis", "text-anchor": "middle", "transform": turn}, escape(y.label)
    )


def _times(steps: int, bottom: float, step: float, right: float) -> Iterator[Markup]:
    yield tag("path", {"class": "base", "d": f"M{LEFT:.1f} {bottom:.1f}H{right:.1f}"})
    every = max(1, round(steps / 8))
    for t in range(0, steps, every):
        yield _text(LEFT + (t + 0.5) * step, bottom + 17, "middle", str(t + 1))
    axis = {"class": "axis", "x": (LEFT + right) / 2, "y": bottom + 36, "text-anchor": "middle"}
    yield tag("text", axis, Markup("time step"))


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return tag("text", {"x": x, "y": y, "text-anchor": anchor}, escape(text))
