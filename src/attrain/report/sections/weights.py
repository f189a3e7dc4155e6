"""The weights: how they are distributed, how sparse each layer is, what pruning leaves."""

import numpy as np

from attrain.report import numbers
from attrain.report.folder import Run
from attrain.report.measures import percent
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.sections import distribution, pruning
from attrain.report.table import download

FEW_LAYERS = 3


def fill(run: Run) -> Filled | None:
    """Fill the weights; methods without an analysis get a sentence."""
    if not run.methods:
        return None
    analysed = [m for m in run.methods if any(r.weights or r.pruning for r in run.runs[m.name])]
    if not analysed:
        return Filled("The weights are not analysed yet: there is no analysis.json in the folder.")
    names = [label(m.name) for m in run.methods if m not in analysed]
    histograms, left_out = distribution.histograms(run)
    return Filled(
        sentence=_sentence(run),
        values={
            "histograms": histograms[: 1 + FEW_LAYERS],
            "more_histograms": histograms[1 + FEW_LAYERS :],
            "left_out": left_out,
            "histogram_table": distribution.histogram_table(run),
            "histogram_csv": download(
                "weights.csv", distribution.WEIGHTS_CSV, distribution.weight_rows(run)
            ),
            "gini": distribution.gini_chart(run),
            "several_seeds": any(len(seeds) > 1 for seeds in run.runs.values()),
            "gini_tables": distribution.gini_tables(run),
            "gini_csv": download("gini.csv", distribution.GINI_CSV, distribution.gini_rows(run)),
            "pruning": pruning.views(run),
            "pruning_csv": download("pruning.csv", pruning.CSV, pruning.csv_rows(run)),
            "notes": [f"No analysis yet for {numbers.joined(names)}."] if names else [],
        },
    )


SECTION = Section("weights", "Weights", fill)


def _sentence(run: Run) -> str:
    """Say how much of its weights each method can lose before it loses a point of accuracy."""
    each = []
    for method in run.methods:
        removed, accuracy = pruning.mean_pruning(run.runs[method.name], "magnitude-global")
        if removed.size and removed[0] == 0:
            fallen = np.flatnonzero(accuracy < accuracy[0] - 0.01)
            last = removed[fallen[0] - 1] if fallen.size else removed[-1]
            each.append(f"{label(method.name)} {100 * last:g}%")
    if not each:
        return "How the final weights are distributed, layer by layer."
    ginis = [
        f"{label(m.name)} {numbers.short(m.estimates['gini'].mean)}"
        for m in run.methods
        if "gini" in m.estimates
    ]
    tail = f"; Gini of all weights: {numbers.joined(ginis)}" if ginis else ""
    signs = [
        f"{label(m.name)} {percent(m, 'signs_changed')}"
        for m in run.methods
        if "signs_changed" in m.estimates
    ]
    tail += f"; weights that changed their sign: {numbers.joined(signs)}" if signs else ""
    lost = "Share of the smallest weights that can go before a point of accuracy is lost: "
    return f"{lost}{numbers.joined(each)}{tail}."
