"""Attribution graphs: which units earned an output, and what they handed to one another."""

from attrain.graph.build import METHODS
from attrain.graph.classes import ClassGraphs
from attrain.graph.graph import AttributionGraph

__all__ = ["METHODS", "AttributionGraph", "ClassGraphs"]
