"""An attribution graph as other tools take it: networkx, pandas, GraphML, GEXF."""

import io
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import networkx
import torch

from attrain import runs
from attrain.errors import AttrainError, InputError
from attrain.graph.graph import AttributionGraph

MOST_LINKS = 1_000_000
"""More edges than this are not handed to tools that keep each as an object."""


class Link(NamedTuple):
    """What one node, or the sink of a layer, hands to a unit: ids and the message."""

    source: str
    target: str
    weight: float


def node_id(layer: str, part: int | str) -> str:
    """Return the id of a unit, or of a layer's sink by its name: "conv1:3", "conv1:bias"."""
    return f"{layer}:{part}"


def count_links(graph: AttributionGraph) -> int:
    """Return how many edges, and sinks of units that are kept, are not 0."""
    found = sum(int(each.count_nonzero()) for each in graph.edges.values())
    for name, sinks in graph.sinks.items():
        kept = graph.kept(name)
        found += sum(int(each[kept].count_nonzero()) for each in sinks.values())
    return found


def links(graph: AttributionGraph, least: float = 0.0) -> Iterator[Link]:
    """Yield the edges, and sinks of units that are kept, of size >= least that are not 0."""
    for name in graph.layers:
        if name in graph.edges:
            yield from _edges(graph, name, least)
        kept = graph.kept(name)
        for sink, values in graph.sinks.get(name, {}).items():
            for out in (kept & (values != 0) & (values.abs() >= least)).nonzero()[:, 0].tolist():
                yield Link(node_id(name, sink), node_id(name, out), float(values[out]))


def _edges(graph: AttributionGraph, name: str, least: float) -> Iterator[Link]:
    ids = [node_id(source, unit) for source in graph.sources[name]
           for unit in range(len(graph.relevance[source]))]  # fmt: skip
    edges = graph.edges[name]
    found = ((edges != 0) & (edges.abs() >= least)).nonzero()
    weights = edges[found[:, 0], found[:, 1]].tolist()
    for (out, source), weight in zip(found.tolist(), weights, strict=True):
        yield Link(ids[source], node_id(name, out), weight)


def to_networkx(graph: AttributionGraph) -> "networkx.DiGraph":
    """Return a networkx.DiGraph of the units that are kept, and of the sinks that took anything.

    Nodes are called "conv1:3" and "conv1:bias" and have layer, depth (its place among the layers),
    unit (-1 of sinks), kind ("sink" of sinks) and relevance, of sinks what they took in all. Edges
    lead from the inputs up and have weight, the message. Raises InputError for more than a million
    edges.
    """
    count = count_links(graph)
    if count > MOST_LINKS:
        raise InputError(
            f"the graph has {count:,} edges, and at most {MOST_LINKS:,} are handed to other tools: "
            "prune it first, graph.prune(nodes=.8, edges=.9)."
        )
    made = networkx.DiGraph(
        method=graph.method, target=graph.target, output=graph.output, samples=graph.samples
    )
    for depth, name in enumerate(graph.layers):
        kept = graph.kept(name)
        for unit, value in enumerate(graph.relevance[name].tolist()):
            if kept[unit]:
                made.add_node(node_id(name, unit), layer=name, depth=depth, unit=unit,
                              kind=graph.kinds[name], relevance=value)  # fmt: skip
        for sink, values in graph.sinks.get(name, {}).items():
            if bool((values[kept] != 0).any()):
                made.add_node(node_id(name, sink), layer=name, depth=depth, unit=-1, kind="sink",
                              relevance=float(values[kept].sum()))  # fmt: skip
    made.add_weighted_edges_from(links(graph))
    return made


def to_dataframe(graph: AttributionGraph) -> tuple[Any, Any]:
    """Return two pandas.DataFrames: nodes by their id, and edges (source, target, weight).

    The columns of nodes are the attributes that `to_networkx` tells. Raises AttrainError where
    pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise AttrainError(
            "to_dataframe needs pandas, which is not installed: pip install pandas, or take "
            "to_networkx()."
        ) from error
    made = to_networkx(graph)
    columns = ["layer", "depth", "unit", "kind", "relevance"]
    nodes = pandas.DataFrame(
        [[each[name] for name in columns] for _, each in made.nodes(data=True)],
        index=pandas.Index([*made.nodes], name="id"),
        columns=columns,
    )
    edges = pandas.DataFrame(
        [(source, target, each["weight"]) for source, target, each in made.edges(data=True)],
        columns=["source", "target", "weight"],
    )
    return nodes, edges


def to_graphml(graph: AttributionGraph, path: str | os.PathLike[str]) -> None:
    """Write what `to_networkx` returns as GraphML, in one step; it raises what that raises."""
    _write(graph, path, networkx.write_graphml_xml)


def to_gexf(graph: AttributionGraph, path: str | os.PathLike[str]) -> None:
    """Write what `to_networkx` returns as GEXF, in one step; it raises what that raises."""
    _write(graph, path, networkx.write_gexf)


def _write(
    graph: AttributionGraph, path: str | os.PathLike[str], write: Callable[..., None]
) -> None:
    content = io.BytesIO()
    write(to_networkx(graph), content)
    with runs.replacing(path) as file:
        file.write(content.getvalue())


def check_finite(graph: AttributionGraph) -> None:
    """Raise InputError for a graph that holds NaN or infinite values, which files cannot."""
    for name in graph.layers:
        parts = [graph.relevance[name], *graph.sinks.get(name, {}).values()]
        parts += [graph.edges[name]] if name in graph.edges else []
        if not all(bool(torch.isfinite(each).all()) for each in parts):
            raise InputError(
                f"layer {name!r} of the graph has values that are not finite, which a file cannot "
                "hold: look for overflow in the model, or raise epsilon."
            )
