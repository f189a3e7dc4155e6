"""The neurons that learn: which ones over the steps, what relevance they have, what is saved."""

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup, escape

from attrain.report import numbers
from attrain.report.axis import linear_axis
from attrain.report.chart import picture, tag
from attrain.report.folder import Run, SeedRun
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.selection_file import Choices, LayerChoices
from attrain.report.table import Table, download

WIDTH, LEFT, RIGHT, TOP = 460.0, 62.0, 84.0, 8.0
MOST_ROWS, MOST_HEIGHT, LEAST_HEIGHT, GAP, FOOT = 120, 180.0, 36.0, 16.0, 42.0
MOST_LAYERS = 5

Seen = tuple[str, SeedRun, Choices]


def fill(run: Run) -> Filled | None:
    """Fill the neurons that learn, for methods that choose them."""
    found = [
        (method.name, seeds[0], seeds[0].choices)
        for method in run.methods
        if (seeds := [each for each in run.runs[method.name] if each.choices])
    ]
    seen = [(name, seed, choices) for name, seed, choices in found if choices]
    if not seen:
        return None
    return Filled(
        sentence=" ".join(_sentence(run, name, choices) for name, _, choices in seen),
        values={
            "panels": [
                {
                    "method": run.position(name),
                    "title": label(name),
                    "seed": seed.seed,
                    "left_out": max(0, len(choices.layers) - MOST_LAYERS),
                    "svg": _panel(choices, _last_step(seed, choices), label(name)),
                }
                for name, seed, choices in seen
            ],
            "tables": [_table(seen)],
            "csv": download("neurons.csv", _CSV, _rows(seen)),
        },
    )


SECTION = Section("targeted", "Neurons that learn", fill)

_CSV = ("method", "layer", "step", "units", "learning", "kept", "concentration", "rows")


def _sentence(run: Run, name: str, choices: Choices) -> str:
    learning = sum(len(layer.rows[-1]) for layer in choices.layers)
    units = sum(layer.units for layer in choices.layers)
    text = (
        f"From step {choices.steps[0]:,} on, {label(name)} trains {learning:,} of {units:,} "
        f"targeted neurons, {numbers.percentage(100 * choices.trained_share)} of all parameters"
    )
    stayed = [share for layer in choices.layers for share in layer.kept[1:]]
    if stayed:
        text += f"; {numbers.percentage(100 * float(np.mean(stayed)))} of them stay at a new choice"
    return f"{text}.{_time(run, name)}"


def _time(run: Run, name: str) -> str:
    """Say what a step takes beside one of the first method, selection included."""
    first, this = run.methods[0], run.methods[run.position(name)]
    if first is this or "step_cpu_s" not in first.estimates or "step_cpu_s" not in this.estimates:
        return ""
    ratio = this.estimates["step_cpu_s"].mean / first.estimates["step_cpu_s"].mean
    return (
        f" A step takes {ratio:.2f} of the CPU time that {label(first.name)} needs (medians); in "
        "models as small as this one, finding rows can cost more than it saves."
        if ratio > 1
        else f" A step takes {ratio:.2f} of the CPU time that {label(first.name)} needs (medians)."
    )


def _table(seen: Sequence[Seen]) -> Table:
    rows = [
        (
            label(name),
            layer.name,
            f"{layer.units:,}",
            f"{len(layer.rows[-1]):,}",
            _percent(float(np.mean(layer.kept[1:])) if layer.kept[1:] else None),
            _percent(len({unit for rows in layer.rows for unit in rows}) / layer.units),
            _percent(layer.concentration[0]),
            _percent(layer.concentration[-1]),
        )
        for name, _, choices in seen
        for layer in choices.layers
    ]
    head = (
        "method", "layer", "units", "learn", "stay at a choice", "learned at some time",
        "their share of the scores, first choice", "last choice",
    )  # fmt: skip
    return Table("The neurons that learn after the warm-up, layer by layer", head, tuple(rows))


def _percent(share: float | None) -> str:
    return "\N{EN DASH}" if share is None else numbers.percentage(100 * share)


def _rows(seen: Sequence[Seen]) -> Iterator[tuple[object, ...]]:
    for name, _, choices in seen:
        for layer in choices.layers:
            each = zip(choices.steps, layer.rows, layer.kept, layer.concentration, strict=True)
            for step, rows, kept, share in each:
                told = "" if share is None else share
                yield (
                    name, layer.name, step, layer.units, len(rows), kept, told,
                    " ".join(map(str, rows)),
                )  # fmt: skip


def _last_step(seed: SeedRun, choices: Choices) -> int:
    ends = [int(epoch["step"]) for epoch in seed.epochs if "step" in epoch]
    return max([choices.steps[-1] + 1, *ends])


def _panel(choices: Choices, last: int, name: str) -> Markup:
    """Draw a line for each neuron, over the steps in which it learns."""
    right = WIDTH - RIGHT
    axis = linear_axis("training step", np.zeros(0), 0.0, float(last))
    edges = axis.place(np.array([0.0, *choices.steps, last]), LEFT, right)
    parts: list[Markup] = []
    top = TOP
    layers = choices.layers[:MOST_LAYERS]
    most = max(layer.units for layer in layers)
    for layer in layers:
        height = max(LEAST_HEIGHT, MOST_HEIGHT * min(1.0, layer.units / max(most, MOST_ROWS)))
        parts.extend(_strip(layer, edges, top, height, right))
        top += height + GAP
    bottom = top - GAP
    for value, text in axis.ticks:
        mark = float(axis.place(np.array([value]), LEFT, right)[0])
        parts.append(_text(mark, bottom + 17, "middle", text))
    place = {"class": "axis", "x": (LEFT + right) / 2, "y": bottom + 36, "text-anchor": "middle"}
    parts.append(tag("text", place, Markup("training step")))
    title = f"Which neurons of {name} learn, layer by layer, over the training steps"
    return picture(title, (WIDTH, bottom + FOOT), *parts)


def _strip(
    layer: LayerChoices, edges: np.ndarray, top: float, height: float, right: float
) -> Iterator[Markup]:
    shown = min(layer.units, MOST_ROWS)
    units = [unit * layer.units // shown for unit in range(shown)]
    pitch = height / shown
    thick = pitch * (0.8 if pitch > 2 else 1.0)
    chosen = [set(rows) for rows in layer.rows]
    bars = [f"M{edges[0]:.1f} {top:.1f}H{edges[1]:.1f}V{top + height:.1f}H{edges[0]:.1f}Z"]
    for row, unit in enumerate(units):
        y = top + row * pitch
        for begin, end in _stretches([unit in each for each in chosen]):
            x, width = edges[1 + begin], edges[1 + end] - edges[1 + begin]
            bars.append(f"M{x:.1f} {y:.1f}h{width:.1f}v{thick:.2f}h{-width:.1f}Z")
    yield tag("path", {"class": "spike", "d": "".join(bars)})
    yield tag("path", {"class": "base", "d": f"M{LEFT:.1f} {top + height:.1f}H{right:.1f}"})
    shortened = layer.name if len(layer.name) <= 9 else "\N{HORIZONTAL ELLIPSIS}" + layer.name[-8:]
    yield _text(LEFT - 6, top + height / 2 + 4, "end", shortened)
    share = layer.concentration[-1]
    yield _text(right + 6, top + height / 2, "start", f"{len(layer.rows[-1])} of {layer.units}")
    if share is not None:
        yield _text(right + 6, top + height / 2 + 13, "start", f"have {100 * share:.0f}%")


def _stretches(learns: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each run of choices that let a unit learn."""
    begin = None
    for place, each in enumerate([*learns, False]):
        if each and begin is None:
            begin = place
        elif not each and begin is not None:
            yield begin, place
            begin = None


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return tag("text", {"x": x, "y": y, "text-anchor": anchor}, escape(text))
