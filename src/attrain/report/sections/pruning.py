"""Accuracy that is left when the smallest weights are removed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attrain.report import numbers
from attrain.report.axis import Axis, kept_axis, linear_axis
from attrain.report.chart import Line, line_chart
from attrain.report.folder import Array, Run, SeedRun
from attrain.report.means import mean_of
from attrain.report.palette import label
from attrain.report.table import Table

KINDS = {
    "magnitude-global": "all layers together",
    "magnitude-local": "each layer alike",
}
CSV = ("method", "seed", "criterion", "removed", "accuracy")


def mean_pruning(runs: Sequence[SeedRun], kind: str) -> tuple[Array, Array]:
    """Return the mean pruning curve of the seeds, at the removed shares that all of them have."""
    return mean_of([seed.pruning[kind] for seed in runs if kind in seed.pruning])


def views(run: Run) -> list[Mapping[str, Any]]:
    """Return a chart and a table for every criterion by which weights were removed."""
    kinds = [k for k in KINDS if any(k in s.pruning for runs in run.runs.values() for s in runs)]
    others = {k for runs in run.runs.values() for s in runs for k in s.pruning} - set(KINDS)
    found: list[Mapping[str, Any]] = []
    for kind in [*kinds, *sorted(others)]:
        lines = list(_lines(run, kind))
        if not any(line.thick for line in lines):
            continue
        x = kept_axis(
            "weights removed (%), log scale of what is kept",
            np.concatenate([line.x for line in lines]),
        )
        y = _axis(np.concatenate([line.y for line in lines]))
        svg = line_chart(
            f"Accuracy after pruning, {kind}",
            lines,
            x,
            y,
            _write_removed,
            numbers.percentage,
            ends=False,
        )
        found.append(
            {
                "key": kind,
                "title": KINDS.get(kind, kind),
                "caption": _caption(run, kind),
                "svg": svg,
                "table": _table(run, kind),
            }
        )
    return found


def _caption(run: Run, kind: str, at: float = 0.9) -> str:
    each = []
    for method in run.methods:
        removed, accuracy = mean_pruning(run.runs[method.name], kind)
        here = np.flatnonzero(np.isclose(removed, at))
        if here.size:
            each.append(f"{label(method.name)} {numbers.percentage(100 * accuracy[here[0]])}")
    kept = f"With {100 * at:g}% removed: {', '.join(each)}" if each else "Without retraining"
    return f"{kept} (smallest weights of {KINDS[kind]})" if kind in KINDS else kept


def _lines(run: Run, kind: str) -> Iterator[Line]:
    for place, method in enumerate(run.methods):
        runs = run.runs[method.name]
        for seed in runs if len(runs) > 1 else ():
            if kind in seed.pruning:
                yield from _line(place, label(method.name), *seed.pruning[kind], thick=False)
        yield from _line(place, label(method.name), *mean_pruning(runs, kind), thick=True)


def _line(place: int, name: str, removed: Array, accuracy: Array, thick: bool) -> Iterator[Line]:
    # With nothing kept the logarithm has no place; that point is chance and tells nothing.
    some = removed < 1
    if some.any():
        yield Line(place, name, removed[some], 100 * accuracy[some], thick)


def _axis(values: Array) -> Axis:
    return linear_axis("test accuracy (%)", values, high=100.0 if values.max() > 90 else None)


def _table(run: Run, kind: str) -> Table:
    curves = [(m, *mean_pruning(run.runs[m.name], kind)) for m in run.methods]
    curves = [(m, removed, accuracy) for m, removed, accuracy in curves if removed.size]
    shares = sorted({share for _, removed, _ in curves for share in removed.tolist()})
    rows = []
    for share in shares:
        cells = []
        for _, removed, accuracy in curves:
            at = np.flatnonzero(removed == share)
            cells.append(numbers.percentage(100 * accuracy[at[0]]) if at.size else "\N{EN DASH}")
        rows.append((f"{100 * share:g}%", *cells))
    head = ("weights removed", *(label(m.name) for m, _, _ in curves))
    return Table(f"Test accuracy after pruning, {KINDS.get(kind, kind)}", head, tuple(rows))


def _write_removed(value: float) -> str:
    return f"{100 * value:g}% removed"


def csv_rows(run: Run) -> Iterator[tuple[object, ...]]:
    """Return every point of every seed's curves, as `CSV` names them."""
    for method in run.methods:
        for seed in run.runs[method.name]:
            for kind, (removed, accuracy) in seed.pruning.items():
                for share, value in zip(removed.tolist(), accuracy.tolist(), strict=True):
                    yield method.name, seed.seed, kind, share, value
