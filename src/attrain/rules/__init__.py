"""Credit rules by family, and the registry that says which torch function follows which."""

from attrain.rules.call import Call
from attrain.rules.decomposition import (
    RULES,
    AlphaBeta,
    Box,
    Decomposition,
    Epsilon,
    Flat,
    Gamma,
    Part,
    Signed,
    Zero,
    ZPlus,
    ZPlusZMinus,
)
from attrain.rules.presets import PRESETS
from attrain.rules.recurrent import gated
from attrain.rules.registry import REGISTRY, elementwise, register

__all__ = [
    "PRESETS",
    "REGISTRY",
    "RULES",
    "AlphaBeta",
    "Box",
    "Call",
    "Decomposition",
    "Epsilon",
    "Flat",
    "Gamma",
    "Part",
    "Signed",
    "ZPlus",
    "ZPlusZMinus",
    "Zero",
    "elementwise",
    "gated",
    "register",
]
