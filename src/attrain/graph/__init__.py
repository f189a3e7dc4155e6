"""Attribution graphs: which units earned an output, and what they handed to one another."""

from attrain.graph.build import METHODS
from attrain.graph.classes import ClassGraphs
from attrain.graph.graph import AttributionGraph
from attrain.graph.measured import measured
from attrain.graph.page import to_html

__all__ = ["METHODS", "AttributionGraph", "ClassGraphs", "measured", "to_html"]
