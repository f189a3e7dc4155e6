"""Targeted neuron updates: find the units that matter by attribution, train their rows alone."""

from attrain.targeted.explain import output_layer
from attrain.targeted.module import INPUT_GRADIENTS, STATISTICS, Refresh, Targeted
from attrain.targeted.scores import SCORES, Score, Units

__all__ = [
    "INPUT_GRADIENTS",
    "SCORES",
    "STATISTICS",
    "Refresh",
    "Score",
    "Targeted",
    "Units",
    "output_layer",
]
