"""The attribution graphs of a run in its folder: the largest edges, enough for a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attrain.errors import InputError
from attrain.report.graph_data import graph_json
from attrain.report.graph_input import ClassGraph, Edges, Layer, Validation, check_graph

MOST_EDGES = 300
"""Edges of a graph that are kept; a picture draws at most 150 of them."""

MOST_MESSAGES = 20_000_000
"""Messages between two layers, beyond which a file is not believed."""


@dataclass(frozen=True)
class Graphs:
    """The graphs of the classes of one model, or why there are none.

    method: how messages were computed.
    """

    method: str
    graphs: tuple[ClassGraph, ...] = ()
    missing: str = ""


def described(graphs: Sequence[ClassGraph], method: str) -> dict[str, Any]:
    """Return graphs as the file holds them: all nodes, and of each graph its largest edges."""
    classes = []
    for graph in graphs:
        told = json.loads(graph_json(graph, MOST_EDGES))
        del told["examples"]
        classes.append(told | {"accuracy": graph.accuracy})
    return {"schema": 1, "method": method, "classes": classes}


def absent(why: str) -> dict[str, Any]:
    """Return what the file of a model without a graph holds."""
    return {"schema": 1, "missing": why}


def graphs_of(raw: Mapping[str, Any]) -> Graphs:
    """Return the graphs that a file holds. Raises InputError where it is damaged."""
    if raw.get("missing"):
        return Graphs("", missing=str(raw["missing"]))
    try:
        graphs = tuple(map(_graph, raw["classes"]))
        for graph in graphs:
            check_graph(graph)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"its graphs cannot be read ({error})") from error
    if not graphs or len({graph.name for graph in graphs}) < len(graphs):
        raise InputError("it holds no graphs, or two of one class")
    return Graphs(str(raw.get("method", "")), graphs)


def _graph(raw: Mapping[str, Any]) -> ClassGraph:
    layers = [
        Layer(
            str(layer["name"]),
            str(layer["kind"]),
            len(layer["relevance"]),
            {str(name): float(value) for name, value in layer["sinks"].items()},
            [str(label) for label in layer["labels"]] if "labels" in layer else None,
        )
        for layer in raw["layers"]
    ]
    accuracy = raw.get("accuracy")
    validation = raw.get("validation")
    return ClassGraph(
        name=str(raw["name"]),
        samples=int(raw["samples"]),
        output=float(raw["output"]),
        layers=layers,
        relevance=[np.asarray(layer["relevance"], dtype=np.float64) for layer in raw["layers"]],
        edges=[_edges(each, layers) for each in raw["edges"]],
        validation=None if validation is None else _validation(validation),
        accuracy=None if accuracy is None else float(accuracy),
    )


def _validation(raw: Mapping[str, Any]) -> Validation:
    return Validation(
        share=float(raw["share"]),
        drop=float(raw["drop"]),
        random=float(raw["random"]),
        spread=float(raw["spread"]),
        seeds=int(raw["seeds"]),
    )


def _edges(raw: Mapping[str, Any], layers: Sequence[Layer]) -> Edges:
    source, target = int(raw["source"]), int(raw["target"])
    if min(source, target) < 0:
        raise ValueError(f"edges lead from layer {source} to layer {target}")
    shape = (layers[target].units, layers[source].units)
    if shape[0] * shape[1] > MOST_MESSAGES:
        raise ValueError(f"two layers have {shape[0]} and {shape[1]} units")
    messages = np.zeros(shape)
    places = (np.asarray(raw["to"], dtype=np.intp), np.asarray(raw["from"], dtype=np.intp))
    if any(each.size and each.min() < 0 for each in places):
        raise ValueError("an edge leads to a unit below 0")
    messages[places] = np.asarray(raw["message"], dtype=np.float64)
    return Edges(source, target, messages)
