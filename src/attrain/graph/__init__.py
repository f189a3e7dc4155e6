"""Attribution graphs: of a model, and of what two models see in the same samples."""

from attrain.graph.depara import (
    DeparaGraph,
    Similarity,
    compare_graphs,
    compare_models,
    depara_graph,
    transferability,
)

__all__ = [
    "DeparaGraph",
    "Similarity",
    "compare_graphs",
    "compare_models",
    "depara_graph",
    "transferability",
]
