"""Train PyTorch models with attribution."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrain import graph, optim, pruning, rewards, rules, spiking
    from attrain.attribution import attribute
    from attrain.credit import LFP
    from attrain.graph import AttributionGraph, ClassGraphs
    from attrain.guided import SaliencyGuided
    from attrain.targeted import Targeted

__version__ = "0.1.0"

# What a name is and where it lives; importing torch takes seconds, so it waits until it is needed.
_HOMES = {
    "AttributionGraph": "attrain.graph",
    "ClassGraphs": "attrain.graph",
    "LFP": "attrain.credit",
    "SaliencyGuided": "attrain.guided",
    "Targeted": "attrain.targeted",
    "attribute": "attrain.attribution",
    "graph": None,
    "optim": None,
    "pruning": None,
    "rewards": None,
    "rules": None,
    "spiking": None,
}

__all__ = [
    "AttributionGraph", "ClassGraphs", "LFP", "SaliencyGuided", "Targeted", "attribute", "graph",
    "optim", "pruning", "rewards", "rules", "spiking",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attrain' has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f"attrain.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
