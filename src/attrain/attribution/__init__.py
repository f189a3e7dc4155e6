"""Attribution of a model's output to its inputs, or to the units of a layer."""

from attrain.attribution.features import grid
from attrain.attribution.function import attribute, saliency
from attrain.attribution.methods import METHODS, Method
from attrain.attribution.segments import superpixels, words

__all__ = ["METHODS", "Method", "attribute", "grid", "saliency", "superpixels", "words"]
