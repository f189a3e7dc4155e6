"""Attribution graphs: which units earned an output, and what they handed to one another."""

from attrain.graph.build import METHODS, NODES
from attrain.graph.classes import ClassGraphs
from attrain.graph.depara import (
    DeparaGraph,
    Similarity,
    compare_graphs,
    compare_models,
    depara_graph,
    transferability,
)
from attrain.graph.graph import AttributionGraph
from attrain.graph.measured import measured
from attrain.graph.page import to_html

__all__ = [
    "METHODS",
    "NODES",
    "AttributionGraph",
    "ClassGraphs",
    "DeparaGraph",
    "Similarity",
    "compare_graphs",
    "compare_models",
    "depara_graph",
    "measured",
    "to_html",
    "transferability",
]
