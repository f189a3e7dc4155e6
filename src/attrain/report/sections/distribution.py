"""How the final weights are distributed: histograms and the Gini coefficient per layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from attrain.report import numbers
from attrain.report.axis import linear_axis, log_axis
from attrain.report.chart import Line, dot_chart, step_chart
from attrain.report.folder import Array, Method, Run, Weights
from attrain.report.palette import label
from attrain.report.table import Table

MOST_LAYERS = 24
# Below one weight per bin, on the mean over seeds, an outline is but noise.
LEAST_COUNT = 0.9

WEIGHTS_CSV = ("method", "seed", "layer", "from", "to", "count")
GINI_CSV = ("method", "seed", "layer", "weights", "gini")

_GINI = numbers.PLAIN[0]


def _weights(run: Run, method: Method) -> list[Weights]:
    """Return the weights of the seeds whose layers and bins agree with the first one's."""
    found = [seed.weights for seed in run.runs[method.name] if seed.weights]
    return [w for w in found if _like(w, found[0])]


def _like(one: Weights, other: Weights) -> bool:
    return np.array_equal(one.edges, other.edges) and [x.name for x in one.layers] == [
        x.name for x in other.layers
    ]


def _reference(run: Run) -> Weights | None:
    for method in run.methods:
        for weights in _weights(run, method):
            return weights
    return None


def _comparable(run: Run) -> list[tuple[int, Method, list[Weights]]]:
    """Return place, method and weights of every method with the first one's layers and bins."""
    reference = _reference(run)
    found = []
    for place, method in enumerate(run.methods):
        weights = _weights(run, method)
        if weights and reference and _like(weights[0], reference):
            found.append((place, method, weights))
    return found


def _counts(weights: Sequence[Weights], layer: int | None) -> Array:
    """Return counts per bin, mean over seeds; of one layer, or of all together."""
    each = [
        np.sum([x.counts for x in w.layers], axis=0) if layer is None else w.layers[layer].counts
        for w in weights
    ]
    mean: Array = np.mean(each, axis=0)
    return mean


def histograms(run: Run) -> tuple[list[Mapping[str, Any]], int]:
    """Return a titled histogram per layer, all together first, and how many are left out."""
    reference = _reference(run)
    if reference is None:
        return [], 0
    layers = reference.layers
    shown: list[tuple[str, int | None]] = [(x.name, k) for k, x in enumerate(layers[:MOST_LAYERS])]
    if len(layers) > 1:
        shown.insert(0, ("All layers", None))
    figures: list[Mapping[str, Any]] = []
    for title, layer in shown:
        lines = []
        for place, method, weights in _comparable(run):
            counts = _counts(weights, layer)
            lines.append(Line(place, label(method.name), reference.edges, counts))
        values = np.concatenate([line.y for line in lines])
        x = linear_axis("weight / largest |weight| of the layer", reference.edges, -1.0, 1.0)
        y = log_axis("weights per bin (log scale)", values, low=LEAST_COUNT)
        svg = step_chart(f"Weights of {title}", lines, reference.edges, x, y, numbers.short)
        figures.append({"title": title, "svg": svg})
    return figures, len(layers) - min(len(layers), MOST_LAYERS)


def histogram_table(run: Run) -> Table | None:
    """Return the counts per bin over all layers."""
    reference = _reference(run)
    if reference is None:
        return None
    found = _comparable(run)
    columns = [_counts(weights, None) for _, _, weights in found]
    rows = []
    for k in range(reference.edges.size - 1):
        low, high = reference.edges[k], reference.edges[k + 1]
        span = f"{numbers.fixed(low, 3)} to {numbers.fixed(high, 3)}"
        rows.append((span, *(numbers.short(float(column[k])) for column in columns)))
    head = ("weight / largest |weight|", *(label(method.name) for _, method, _ in found))
    return Table("Weights per bin over all layers, mean over seeds", head, tuple(rows))


def _ginis(weights: Sequence[Weights], layer: int | None) -> list[float]:
    values = [w.gini if layer is None else w.layers[layer].gini for w in weights]
    return [value for value in values if value is not None]


def _rows_of_gini(run: Run) -> list[tuple[str, int | None]]:
    reference = _reference(run)
    if reference is None:
        return []
    rows: list[tuple[str, int | None]] = [(x.name, k) for k, x in enumerate(reference.layers)]
    if len(rows) > 1 and reference.gini is not None:
        rows.insert(0, ("All layers", None))
    return rows[: 1 + 2 * MOST_LAYERS]


def gini_chart(run: Run) -> Markup | None:
    """Return the chart of Gini coefficients per layer, or None where there are none."""
    rows = _rows_of_gini(run)
    dots = []
    for place, method, weights in _comparable(run):
        values = []
        for row, (_, layer) in enumerate(rows):
            seeds = _ginis(weights, layer)
            if seeds:
                values.append((row, float(np.mean(seeds)), seeds if len(seeds) > 1 else []))
        dots.append((place, label(method.name), values))
    if not any(values for _, _, values in dots):
        return None
    x = linear_axis("Gini coefficient of |weight| (0 even, 1 sparse)", np.zeros(0), 0.0, 1.0)
    names = [name for name, _ in rows]
    return dot_chart("Gini coefficient per layer", names, dots, x, lambda v: numbers.fixed(v, 3))


def gini_tables(run: Run) -> list[Table]:
    """Return the Gini coefficients and the shares of small weights, layer by layer."""
    found = _comparable(run)
    ginis, shares = [], []
    for name, layer in _rows_of_gini(run):
        cells = []
        for _, _, weights in found:
            seeds = _ginis(weights, layer)
            std = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
            value = numbers.spread(float(np.mean(seeds)), std, _GINI) if seeds else "\N{EN DASH}"
            cells.append(value)
        ginis.append((name, *cells))
        if layer is not None:
            shares.append((name, *(_small_shares(weights, layer) for _, _, weights in found)))
    head = ("layer", *(label(method.name) for _, method, _ in found))
    small = "Share of weights below 1% / 5% / 25% of the layer's largest"
    return [
        Table("Gini coefficient", head, tuple(ginis)),
        Table(small, head, tuple(shares)),
    ]


def _small_shares(weights: Sequence[Weights], layer: int) -> str:
    """Return the shares of weights below 1%, 5% and 25% of the layer's largest."""
    each = []
    for theta in ("0.01", "0.05", "0.25"):
        found = [w.layers[layer].below.get(theta) for w in weights]
        known = [value for value in found if value is not None]
        each.append(f"{100 * np.mean(known):.0f}%" if known else "\N{EN DASH}")
    return " / ".join(each)


def weight_rows(run: Run) -> Iterator[tuple[object, ...]]:
    """Return the counts of every seed, layer and bin, as `WEIGHTS_CSV` names them."""
    for method in run.methods:
        for seed in run.runs[method.name]:
            if seed.weights:
                edges = seed.weights.edges.tolist()
                for layer in seed.weights.layers:
                    for k, count in enumerate(layer.counts.tolist()):
                        yield method.name, seed.seed, layer.name, edges[k], edges[k + 1], int(count)


def gini_rows(run: Run) -> Iterator[tuple[object, ...]]:
    """Return the Gini coefficient of every seed and layer, as `GINI_CSV` names them."""
    for method in run.methods:
        for seed in run.runs[method.name]:
            if seed.weights:
                yield method.name, seed.seed, "all layers", "", seed.weights.gini
                for layer in seed.weights.layers:
                    yield method.name, seed.seed, layer.name, layer.count, layer.gini
