"""Credit rules by family, and the registry that says which torch function follows which."""

from attrain.rules.call import Call
from attrain.rules.registry import REGISTRY, elementwise, register

__all__ = ["REGISTRY", "Call", "elementwise", "register"]
