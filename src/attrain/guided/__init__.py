"""Saliency guided training: what the model finds unimportant is masked, its answer is to stay."""

from attrain.guided.step import DATA, FORMS, ORDERS, OUTPUTS, TARGETS, SaliencyGuided, Step

__all__ = ["DATA", "FORMS", "ORDERS", "OUTPUTS", "TARGETS", "SaliencyGuided", "Step"]
