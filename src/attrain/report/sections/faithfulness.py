"""Faithfulness: the accuracy that is left while what explanations call important is replaced."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attrain.report import numbers
from attrain.report.axis import linear_axis
from attrain.report.chart import Line, line_chart
from attrain.report.folder import Array, Run
from attrain.report.means import mean_of
from attrain.report.measures import UNCLEAR, is_clear, percent, single_seed
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

KINDS = {
    "corner": "replaced by the image's own corner pixel",
    "mean": "replaced by the mean of the training data",
}
CSV = ("method", "seed", "replaced by", "order", "replaced", "accuracy")

WARNING = (
    "An input with values replaced is none of those that the model was trained on, so accuracy may "
    "fall for that alone: read the gap between a curve and the rings of its own random order, not "
    "the curve. The corner pixel is close to the data where the background of an image is one "
    "colour; the mean is a value that may never occur. Hooker et al., 2019; Ismail et al., 2021."
)


def fill(run: Run) -> Filled | None:
    """Fill the accuracy drops, for runs that have any."""
    kinds = {k for runs in run.runs.values() for seed in runs for k in seed.removals}
    if not kinds:
        return None
    ordered = [kind for kind in KINDS if kind in kinds] + sorted(kinds - set(KINDS))
    missing = [label(m.name) for m in run.methods if not any(s.removals for s in run.runs[m.name])]
    return Filled(
        sentence=_sentence(run),
        values={
            "charts": [_chart(run, kind) for kind in ordered],
            "tables": [_table(run, kind) for kind in ordered],
            "csv": download("accuracy-drop.csv", CSV, _rows(run)),
            "about": _about(run),
            "warning": WARNING,
            "notes": [f"Not measured yet: {numbers.joined(missing)}."] if missing else [],
        },
    )


SECTION = Section("faithfulness", "Faithfulness", fill)


def mean_removal(run: Run, method: str, kind: str, order: str) -> tuple[Array, Array]:
    """Return the mean curve of the seeds; order: accuracy (most salient first) or random."""
    found = [seed.removals[kind] for seed in run.runs[method] if kind in seed.removals]
    return mean_of([getattr(each, order) for each in found])


def _sentence(run: Run) -> str:
    told = [m for m in run.methods if "faithfulness" in m.estimates]
    if not told:
        return "Accuracy while the features with the largest gradient are replaced."
    each = [f"{label(m.name)} {percent(m, 'faithfulness').rstrip('%')} points" for m in told]
    start = (
        "While the features with the largest gradient are replaced, most salient first, accuracy "
        f"lies below that of a random order, in the mean, by: {numbers.joined(each)}"
    )
    if len(told) < 2 or single_seed(run.methods):
        return f"{start}."
    first, *others = told
    clear = [label(m.name) for m in others if is_clear(m, "faithfulness")]
    if not clear:
        return f"{start} ({UNCLEAR} to {label(first.name)})."
    return f"{start} (clearly different from {label(first.name)}: {numbers.joined(clear)})."


def _about(run: Run) -> str:
    judged = [seed.judged for runs in run.runs.values() for seed in runs if seed.removals]
    samples = max(int(each.get("samples", 0)) for each in judged)
    method = str(judged[0].get("method", "saliency"))
    inputs = f" on {numbers.plural(samples, 'test example')}" if samples else ""
    return (
        f"Order by the size of the attribution ({method.replace('_', ' ')}) for the predicted "
        f"class{inputs}; a feature of an image is a pixel. Rings: the same share of features "
        "replaced in a random order."
    )


def _chart(run: Run, kind: str) -> Mapping[str, Any]:
    lines = list(_lines(run, kind))
    values = np.concatenate([line.y for line in lines])
    svg = line_chart(
        f"Accuracy with features {KINDS.get(kind, kind)}",
        lines,
        linear_axis("features replaced (%)", np.zeros(0), 0.0, 90.0),
        linear_axis("accuracy (%)", values, low=0.0, high=100.0 if values.max() > 90 else None),
        lambda v: f"{v:.0f}% replaced",
        numbers.percentage,
    )
    title = KINDS.get(kind, kind)
    return {"title": title[0].upper() + title[1:], "svg": svg}


def _lines(run: Run, kind: str) -> Iterator[Line]:
    for place, method in enumerate(run.methods):
        name = label(method.name)
        runs = [seed.removals[kind] for seed in run.runs[method.name] if kind in seed.removals]
        for each in runs if len(runs) > 1 else ():
            yield Line(place, name, 100 * each.accuracy[0], 100 * each.accuracy[1], thick=False)
        if runs:
            for order, rings in (("random", True), ("accuracy", False)):
                x, y = mean_removal(run, method.name, kind, order)
                told = f"{name}, random order" if rings else name
                yield Line(place, told, 100 * x, 100 * y, rings=rings)


def _table(run: Run, kind: str) -> Table:
    head, columns = ["features replaced"], []
    for method in run.methods:
        for order in ("accuracy", "random"):
            x, y = mean_removal(run, method.name, kind, order)
            if x.size:
                head.append(label(method.name) + (", random order" if order == "random" else ""))
                columns.append(dict(zip(x.tolist(), y.tolist(), strict=True)))
    shares = sorted({share for column in columns for share in column})
    rows = [
        (
            f"{100 * share:.0f}%",
            *(
                numbers.percentage(100 * column[share]) if share in column else "\N{EN DASH}"
                for column in columns
            ),
        )
        for share in shares
    ]
    return Table(f"Accuracy, features {KINDS.get(kind, kind)}", tuple(head), tuple(rows))


def _rows(run: Run) -> Iterator[tuple[object, ...]]:
    for method in run.methods:
        for seed in run.runs[method.name]:
            for kind, each in seed.removals.items():
                for order, (x, y) in (("salient", each.accuracy), ("random", each.random)):
                    for share, value in zip(x.tolist(), y.tolist(), strict=True):
                        yield method.name, seed.seed, kind, order, share, value
