"""Robustness: the accuracy that is left under noise, FGSM and PGD of growing size."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attrain.report import numbers
from attrain.report.axis import linear_axis
from attrain.report.chart import Line, line_chart
from attrain.report.folder import Array, Run
from attrain.report.means import mean_of
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

KINDS = {"noise": "Gaussian noise", "fgsm": "FGSM, one step", "pgd": "PGD, many steps"}
AXES = {
    "noise": "standard deviation (% of an input's range)",
    "fgsm": "largest change (% of an input's range)",
    "pgd": "largest change (% of an input's range)",
}
CSV = ("method", "seed", "change", "size", "accuracy", "accuracy of those right without")

BLIND = 0.01


def fill(run: Run) -> Filled | None:
    """Fill the curves under noise and attacks, for runs that have any."""
    kinds = [k for k in KINDS if any(k in s.robustness for runs in run.runs.values() for s in runs)]
    if not kinds:
        return None
    missing = [
        label(m.name) for m in run.methods if not any(s.robustness for s in run.runs[m.name])
    ]
    notes = [*_blind(run), *([f"Not measured yet: {numbers.joined(missing)}."] if missing else [])]
    return Filled(
        sentence=_sentence(run, kinds[-1]),
        values={
            "charts": [_chart(run, kind) for kind in kinds],
            "tables": [_table(run, kind) for kind in kinds],
            "csv": download("robustness.csv", CSV, _rows(run)),
            "about": _about(run, kinds),
            "notes": notes,
        },
    )


SECTION = Section("robustness", "Robustness", fill)


def mean_robustness(run: Run, method: str, kind: str) -> tuple[Array, Array]:
    """Return the mean curve of the seeds: sizes, and accuracy of all inputs."""
    runs = run.runs[method]
    return mean_of([seed.robustness[kind].overall for seed in runs if kind in seed.robustness])


def _sentence(run: Run, kind: str) -> str:
    """Tell the accuracies at the first size at which some method has lost half of its own."""
    curves = [(label(m.name), *mean_robustness(run, m.name, kind)) for m in run.methods]
    curves = [(name, x, y) for name, x, y in curves if x.size]
    shared = sorted(set.intersection(*(set(x.tolist()) for _, x, _ in curves)))
    if not shared:
        return f"Accuracy under {KINDS[kind]} of growing size."
    at = next(
        (size for size in shared if any(y[x == size][0] < y[0] / 2 for _, x, y in curves)),
        shared[-1],
    )
    each = [f"{name} {numbers.percentage(100 * y[x == at][0])}" for name, x, y in curves]
    size = f"{100 * at:g}% of an input's range"
    start = (
        f"Under {KINDS[kind].partition(',')[0]} of up to" if kind != "noise" else "Under noise of"
    )
    return f"{start} {size}, accuracy is {numbers.joined(each)}."


def _about(run: Run, kinds: list[str]) -> str:
    seeds = [seed for runs in run.runs.values() for seed in runs if seed.robustness]
    samples = max(int(seed.judged.get("samples", 0)) for seed in seeds)
    told = [f"On {numbers.plural(samples, 'test example')}"] if samples else []
    pgd = next((s.robustness["pgd"].told for s in seeds if "pgd" in s.robustness), {})
    if "pgd" in kinds and pgd.get("steps"):
        starts = numbers.plural(int(pgd.get("restarts", 1)), "random start")
        told.append(f"PGD takes {pgd['steps']:.0f} steps from {starts}")
    told.append("changed inputs stay within what inputs can be")
    text = "; ".join(told)
    return (
        f"{text[0].upper()}{text[1:]}. Inputs that are wrong without a change count as wrong under "
        "every attack. What an attack does not find may still be there: accuracy under it is the "
        "most that can be hoped for."
    )


def _blind(run: Run) -> Iterator[str]:
    for method in run.methods:
        shares = [
            seed.robustness[kind].told["without_gradient"]
            for seed in run.runs[method.name]
            for kind in ("pgd", "fgsm")
            if kind in seed.robustness and "without_gradient" in seed.robustness[kind].told
        ]
        if shares and float(np.mean(shares)) >= BLIND:
            yield (
                f"{label(method.name)}: the gradient is 0 for "
                f"{numbers.percentage(100 * float(np.mean(shares)))} of the inputs, so attacks by "
                "gradients find nothing there, and their curves do not show robustness."
            )


def _chart(run: Run, kind: str) -> Mapping[str, Any]:
    lines = list(_lines(run, kind))
    values = np.concatenate([line.y for line in lines])
    most = max(float(line.x.max()) for line in lines)
    svg = line_chart(
        f"Accuracy under {KINDS[kind]}",
        lines,
        linear_axis(AXES[kind], np.zeros(0), 0.0, most),
        linear_axis("accuracy (%)", values, low=0.0, high=100.0 if values.max() > 90 else None),
        lambda v: f"{v:g}% of the range",
        numbers.percentage,
    )
    return {"title": KINDS[kind], "svg": svg}


def _lines(run: Run, kind: str) -> Iterator[Line]:
    for place, method in enumerate(run.methods):
        runs = [s.robustness[kind].overall for s in run.runs[method.name] if kind in s.robustness]
        for x, y in runs if len(runs) > 1 else ():
            yield Line(place, label(method.name), 100 * x, 100 * y, thick=False)
        if runs:
            x, y = mean_of(runs)
            yield Line(place, label(method.name), 100 * x, 100 * y)


def _table(run: Run, kind: str) -> Table:
    head, columns = ["size"], []
    for method in run.methods:
        runs = [s.robustness[kind] for s in run.runs[method.name] if kind in s.robustness]
        for part, name in (("overall", ""), ("of_correct", ", of those right without")):
            x, y = mean_of([getattr(each, part) for each in runs if getattr(each, part)[0].size])
            if x.size:
                head.append(label(method.name) + name)
                columns.append(dict(zip(x.tolist(), y.tolist(), strict=True)))
    rows = [
        (
            f"{100 * size:g}%",
            *(
                numbers.percentage(100 * column[size]) if size in column else "\N{EN DASH}"
                for column in columns
            ),
        )
        for size in sorted({size for column in columns for size in column})
    ]
    return Table(f"Accuracy under {KINDS[kind]}", tuple(head), tuple(rows))


def _rows(run: Run) -> Iterator[tuple[object, ...]]:
    for method in run.methods:
        for seed in run.runs[method.name]:
            for kind, each in seed.robustness.items():
                right = dict(zip(*(part.tolist() for part in each.of_correct), strict=True))
                for size, value in zip(*(part.tolist() for part in each.overall), strict=True):
                    yield method.name, seed.seed, kind, size, value, right.get(size, "")
