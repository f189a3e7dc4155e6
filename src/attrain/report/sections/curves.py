"""Learning curves by step and by time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attrain.report import numbers
from attrain.report.axis import Axis, error_axis, linear_axis, log_axis
from attrain.report.chart import Line, Write, line_chart
from attrain.report.folder import Array, Run, SeedRun
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download, thinned


@dataclass(frozen=True)
class Panel:
    """One measure of the learning curves."""

    key: str
    title: str
    percent: bool


PANELS = (
    Panel("test_accuracy", "Test accuracy", True),
    Panel("train_accuracy", "Training accuracy", True),
    Panel("test_loss", "Test loss", False),
    Panel("train_loss", "Training loss", False),
)

VIEWS = (("step", "by step", "training step"), ("wall_s", "by time", "training time (s)"))

_CSV = (
    "epoch", "step", "wall_s", "cpu_s", "learning_rate", "train_loss", "train_accuracy",
    "test_loss", "test_accuracy", "update_density",
)  # fmt: skip


def fill(run: Run) -> Filled | None:
    """Fill the learning curves; methods without metrics get a sentence."""
    if not run.methods:
        return None
    trained = {name: runs for name, runs in run.runs.items() if any(r.epochs for r in runs)}
    if not trained:
        return Filled("No method has learning curves yet: there is no metrics.jsonl in the folder.")
    views = [
        {
            "key": key,
            "title": title,
            "charts": [c for p in PANELS if (c := _chart(run, p, key, axis))],
        }
        for key, title, axis in VIEWS
    ]
    return Filled(
        sentence=_sentence(run),
        values={
            "views": [view for view in views if view["charts"]],
            "table": _table(run),
            "csv": download("learning-curves.csv", ("method", "seed", *_CSV), _csv_rows(run)),
            "thin": any(len(seeds) > 1 for seeds in run.runs.values()),
            "notes": [*_uneven(run), *_waiting(run, set(trained))],
        },
    )


SECTION = Section("curves", "Learning curves", fill)


def seed_curve(run: SeedRun, x: str, y: str) -> tuple[Array, Array]:
    """Return one seed's finite points of `y` over `x`."""
    points = [(epoch[x], epoch[y]) for epoch in run.epochs if x in epoch and y in epoch]
    values = np.array(points, dtype=float).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def mean_curve(runs: Sequence[SeedRun], x: str, y: str) -> tuple[Array, Array]:
    """Return the mean of `x` and `y` over seeds, at the epochs that every started seed reached."""
    by_epoch = [_by_epoch(run, x, y) for run in runs]
    by_epoch = [points for points in by_epoch if points]
    if not by_epoch:
        return np.zeros(0), np.zeros(0)
    shared = sorted(set.intersection(*(set(points) for points in by_epoch)))
    values = np.array([[points[epoch] for points in by_epoch] for epoch in shared])
    means = values.reshape(len(shared), len(by_epoch), 2).mean(axis=1)
    return means[:, 0], means[:, 1]


def _by_epoch(run: SeedRun, x: str, y: str) -> dict[int, tuple[float, float]]:
    return {
        int(epoch["epoch"]): (epoch[x], epoch[y])
        for epoch in run.epochs
        if "epoch" in epoch and x in epoch and y in epoch
    }


def _chart(run: Run, panel: Panel, x: str, x_label: str) -> Mapping[str, object] | None:
    scale = 100.0 if panel.percent else 1.0
    lines = []
    for place, method in enumerate(run.methods):
        runs = run.runs[method.name]
        name = label(method.name)
        for seed in runs if len(runs) > 1 else ():
            px, py = seed_curve(seed, x, panel.key)
            if px.size:
                lines.append(Line(place, name, px, py * scale, thick=False))
        px, py = mean_curve(runs, x, panel.key)
        if px.size:
            lines.append(Line(place, name, px, py * scale))
    if not any(line.thick for line in lines):
        return None
    values = np.concatenate([line.y for line in lines])
    y_axis, note = _y_axis(panel, values)
    y_text: Write = numbers.percentage if panel.percent else numbers.short
    x_axis = linear_axis(x_label, np.concatenate([line.x for line in lines]), low=0.0)
    x_text = _write_step if x == "step" else _write_seconds
    title = f"{panel.title} {dict((k, t) for k, t, _ in VIEWS)[x]}"
    svg = line_chart(title, lines, x_axis, y_axis, x_text, y_text)
    return {"title": panel.title, "note": note, "svg": svg}


def _y_axis(panel: Panel, values: Array) -> tuple[Axis, str]:
    """Return the axis that keeps the methods apart, and what to say about its scale."""
    name = panel.title.lower()
    if panel.percent:
        if values.max() > 90:
            return error_axis(f"{name} (%)", values), "log scale of the error"
        return linear_axis(f"{name} (%)", values), ""
    if values.min() > 0 and values.max() > 8 * values.min():
        return log_axis(name, values), "log scale"
    return linear_axis(name, values), ""


def _write_step(value: float) -> str:
    return f"step {value:,.0f}"


def _write_seconds(value: float) -> str:
    return f"{numbers.short(value)} s"


def _sentence(run: Run) -> str:
    """Say when each method first reaches an accuracy that all reach."""
    curves = {}
    for method in run.methods:
        epochs, accuracy = mean_curve(run.runs[method.name], "epoch", "test_accuracy")
        if epochs.size:
            curves[method.name] = (epochs, accuracy)
    if not curves:
        return "The curves hold no test accuracy; they show the training figures."
    goal = np.floor(100 * min(accuracy.max() for _, accuracy in curves.values())) - 1
    if len(curves) == 1 or all(100 * accuracy[0] >= goal for _, accuracy in curves.values()):
        ends = [
            f"{label(name)} {numbers.percentage(100 * accuracy[-1])} after "
            f"{numbers.plural(int(epochs[-1]), 'epoch')}"
            for name, (epochs, accuracy) in curves.items()
        ]
        return f"Test accuracy at the end: {numbers.joined(ends)}."
    each = []
    for name, (epochs, accuracy) in curves.items():
        reached = int(np.argmax(100 * accuracy >= goal))
        seconds, _ = mean_curve(run.runs[name], "wall_s", "test_accuracy")
        after = f" ({numbers.short(float(seconds[reached]))} s)" if seconds.size > reached else ""
        each.append(f"{numbers.plural(int(epochs[reached]), 'epoch')}{after} by {label(name)}")
    return f"{goal:.0f}% test accuracy is first reached after {numbers.joined(each)}."


def _table(run: Run) -> Table:
    head = ["epoch"]
    columns: list[dict[int, str]] = []
    for method in run.methods:
        runs = run.runs[method.name]
        for panel in PANELS:
            epochs, values = mean_curve(runs, "epoch", panel.key)
            if not epochs.size:
                continue
            write = numbers.percentage if panel.percent else numbers.short
            values = values * (100.0 if panel.percent else 1.0)
            head.append(f"{label(method.name)} {panel.title.lower()}")
            columns.append({int(e): write(float(v)) for e, v in zip(epochs, values, strict=True)})
    epochs_ = sorted(set().union(*columns))
    rows = [(str(e), *(column.get(e, "\N{EN DASH}") for column in columns)) for e in epochs_]
    return Table("Learning curves, mean over seeds", tuple(head), thinned(rows))


def _csv_rows(run: Run) -> Iterator[tuple[object, ...]]:
    for method in run.methods:
        for seed in run.runs[method.name]:
            for epoch in seed.epochs:
                yield (method.name, seed.seed, *(epoch.get(key, "") for key in _CSV))


def _uneven(run: Run) -> Iterator[str]:
    for method in run.methods:
        counts = {len(seed.epochs) for seed in run.runs[method.name]}
        if len(counts) > 1:
            yield (
                f"The seeds of {label(method.name)} have {min(counts)} to {max(counts)} epochs; "
                "its mean is drawn over the epochs that every started seed reached."
            )


def _waiting(run: Run, trained: set[str]) -> Iterator[str]:
    names = [label(method.name) for method in run.methods if method.name not in trained]
    if names:
        yield f"No learning curves yet for {numbers.joined(names)}."
