"""Attribution graphs: for a few classes, what each method's model makes its output of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attrain.report import numbers
from attrain.report.folder import Run
from attrain.report.graph_data import kept_nodes
from attrain.report.graph_file import Graphs
from attrain.report.graph_input import ClassGraph
from attrain.report.graph_svg import graph_svg
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

MOST_CLASSES = 4
"""Classes that are drawn, for which the style of the page has a choice."""

SHARES = (0.8, 0.5, 0.3, 0.1)
MOST_NODES = 40
"""Nodes of a layer that a picture has room for; a smaller share of |R| is drawn beyond."""

COUNTED = 0.8
"""The share of |R| that nodes are counted for."""

Found = Sequence[tuple[str, Sequence[Graphs]]]


def fill(run: Run) -> Filled | None:
    """Fill the graphs, for runs whose folder has some."""
    found = [
        (method.name, [seed.graphs for seed in run.runs[method.name] if seed.graphs is not None])
        for method in run.methods
    ]
    known = [(name, [each for each in seeds if each.graphs]) for name, seeds in found]
    known = [(name, seeds) for name, seeds in known if seeds]
    if not known:
        reasons = {each.missing for _, seeds in found for each in seeds}
        return Filled(f"There is no attribution graph: {reasons.pop()}") if reasons else None
    first = [(name, seeds[0]) for name, seeds in known]
    classes = _classes(first)
    share = _share(first, classes)
    views = [
        {
            "title": name,
            "empty": False,
            "panels": [_panel(run, method, graphs, name, share) for method, graphs in first],
        }
        for name in classes
    ]
    return Filled(
        sentence=_sentence(known),
        values={
            "views": views,
            "share": f"{100 * share:g}%",
            "left_out": len(first[0][1].graphs) - len(classes),
            "table": _table(known),
            "nodes_csv": download("graph-nodes.csv", _NODES_CSV, _nodes(first)),
            "edges_csv": download("graph-edges.csv", _EDGES_CSV, _edges(first)),
        },
    )


SECTION = Section("graph", "Attribution graph", fill)

_NODES_CSV = ("method", "class", "layer", "unit", "relevance")
_EDGES_CSV = ("method", "class", "from layer", "from unit", "to layer", "to unit", "message")


def counted(graph: ClassGraph) -> tuple[int, int]:
    """Return how many hidden units hold 80% of |R| of their layers, and how many there are."""
    hidden = graph.relevance[1:-1]
    return sum(len(kept_nodes(each, COUNTED)) for each in hidden), sum(map(len, hidden))


def _classes(first: Sequence[tuple[str, Graphs]]) -> list[str]:
    """Return the classes to draw, in their order: those that the models get wrong most."""
    names = [graph.name for graph in first[0][1].graphs]
    right = {name: [_named(each, name) for _, each in first] for name in names}

    def mean(name: str) -> float:
        known = [g.accuracy for g in right[name] if g is not None and g.accuracy is not None]
        return float(np.mean(known)) if known else 1.0

    worst = sorted(names, key=mean)[:MOST_CLASSES]
    return [name for name in names if name in worst]


def _named(graphs: Graphs, name: str) -> ClassGraph | None:
    return next((graph for graph in graphs.graphs if graph.name == name), None)


def _share(first: Sequence[tuple[str, Graphs]], classes: Sequence[str]) -> float:
    """Return the largest share of |R| whose nodes fit into the pictures."""
    drawn = [graph for _, graphs in first for graph in graphs.graphs if graph.name in classes]
    for share in SHARES:
        most = max(len(kept_nodes(each, share)) for graph in drawn for each in graph.relevance)
        if most <= MOST_NODES:
            return share
    return SHARES[-1]


def _panel(run: Run, method: str, graphs: Graphs, name: str, share: float) -> Mapping[str, Any]:
    graph = _named(graphs, name)
    panel: dict[str, Any] = {"method": run.position(method), "title": label(method)}
    if graph is None:
        return panel | {"svg": None, "facts": "explains no sample of this class"}
    count, units = counted(graph)
    facts = [f"{count} of {numbers.plural(units, 'hidden unit')} hold {COUNTED:.0%} of |R|"]
    if graph.accuracy is not None:
        facts.insert(0, f"accuracy {numbers.percentage(100 * graph.accuracy)}")
    return panel | {"svg": graph_svg(graph, nodes=share), "facts": ", ".join(facts)}


def _counts(graphs: Graphs) -> float:
    """Return how many hidden units hold 80% of |R|, the mean over classes."""
    return float(np.mean([counted(graph)[0] for graph in graphs.graphs]))


def _drops(graphs: Graphs) -> tuple[float, float] | None:
    """Return by which share ablating the strongest, and random units, lowers the output."""
    known = [g for g in graphs.graphs if g.validation is not None]
    output = sum(abs(graph.output) for graph in known)
    if not output:
        return None
    drop = sum(g.validation.drop for g in known if g.validation is not None)
    random = sum(g.validation.random for g in known if g.validation is not None)
    return drop / output, random / output


def _estimate(values: Sequence[float], unit: numbers.Unit) -> str:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return numbers.spread(float(np.mean(values)), std, unit)


def _sentence(known: Found) -> str:
    """Say how few units hold most relevance under each method, and whether ablation agrees."""
    units = counted(known[0][1][0].graphs[0])[1]
    each = [f"{label(n)} {_estimate([*map(_counts, s)], numbers.PLAIN[0])}" for n, s in known]
    several = any(len(seeds) > 1 for _, seeds in known)
    over = "mean over classes and seeds" if several else "mean over classes, one seed"
    text = (
        f"Of {numbers.plural(units, 'hidden unit')}, those that hold {COUNTED:.0%} of the "
        f"relevance of their layers: {numbers.joined(each)} ({over})"
    )
    fallen = []
    for name, seeds in known:
        drops = [drop for graphs in seeds if (drop := _drops(graphs)) is not None]
        if drops:
            top, random = (_estimate([d[k] for d in drops], numbers.PERCENT[0]) for k in (0, 1))
            fallen.append(f"{label(name)} {top}% (random units {random}%)")
    if not fallen:
        return f"{text}."
    return (
        f"{text}. What the output loses when the tenth of each layer with most relevance is "
        f"ablated: {numbers.joined(fallen)}."
    )


def _table(known: Found) -> Table:
    rows = []
    names = [graph.name for graph in known[0][1][0].graphs]
    for name in names:
        row = [name]
        for _, seeds in known:
            graphs = [g for each in seeds if (g := _named(each, name)) is not None]
            row.append(
                _estimate([counted(g)[0] for g in graphs], numbers.PLAIN[0]) if graphs else ""
            )
            drops = [
                (g.validation.drop / abs(g.output), g.validation.random / abs(g.output))
                for g in graphs
                if g.validation is not None and g.output
            ]
            for k in (0, 1):
                found = _estimate([d[k] for d in drops], numbers.PERCENT[0]) if drops else ""
                row.append(f"{found}%" if found else "")
        rows.append(tuple(row))
    head = ["class"]
    for name, _ in known:
        head += [f"{label(name)} units", f"{label(name)} ablated", f"{label(name)} random"]
    return Table(
        "Hidden units that hold 80% of |R|, and by how much ablating a tenth of each layer lowers "
        "the output",
        tuple(head),
        tuple(rows),
    )


def _nodes(first: Sequence[tuple[str, Graphs]]) -> Iterator[tuple[object, ...]]:
    """Yield the nodes that hold 80% of |R| of their layer, the largest first."""
    for method, graphs in first:
        for graph in graphs.graphs:
            for layer, relevance in zip(graph.layers, graph.relevance, strict=True):
                for unit in kept_nodes(relevance, COUNTED).tolist():
                    yield method, graph.name, layer.name, unit, float(f"{relevance[unit]:.4g}")


def _edges(first: Sequence[tuple[str, Graphs]]) -> Iterator[tuple[object, ...]]:
    """Yield the edges of the file between these nodes."""
    for method, graphs in first:
        for graph in graphs.graphs:
            kept = [set(kept_nodes(each, COUNTED).tolist()) for each in graph.relevance]
            for source, target, messages in graph.edges:
                names = graph.layers[source].name, graph.layers[target].name
                for to, from_ in zip(
                    *(each.tolist() for each in np.nonzero(messages)), strict=True
                ):
                    if to in kept[target] and from_ in kept[source]:
                        value = float(messages[to, from_])
                        yield method, graph.name, names[0], from_, names[1], to, value
