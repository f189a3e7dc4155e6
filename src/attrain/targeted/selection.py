"""How many units of a layer learn, and which."""

import torch
from torch import Tensor

MULTIPLE = 8
"""Counts of channels are multiples of this, where a layer has at least twice as many."""


def count(units: int, density: float, multiple: int = 1) -> int:
    """Return how many of `units` learn: at least 1, the nearest multiple if they are enough."""
    if density == 1:
        return units
    if units < 2 * multiple:
        multiple = 1
    return min(units // multiple, max(1, round(density * units / multiple))) * multiple


def part(share: float, k: int, generator: torch.Generator) -> int:
    """Return how many of k places a share of them is, on average: a fraction by a throw."""
    exact = share * k
    if abs(exact - round(exact)) < 1e-9:
        return round(exact)
    return int(exact) + int(torch.rand((), generator=generator) < exact % 1)


def choose(scores: Tensor, k: int, explored: int, generator: torch.Generator) -> Tensor:
    """Return the numbers [k], in order, of the units with the highest scores [units].

    The last `explored` of the k places go to others, drawn evenly. Of equal scores the earlier
    unit comes first.
    """
    order = scores.argsort(descending=True, stable=True)
    best, rest = order[: k - explored], order[k - explored :]
    if explored:
        drawn = torch.randperm(len(rest), generator=generator)[:explored].to(rest.device)
        best = torch.cat([best, rest.sort().values[drawn]])
    return best.sort().values


def draw(units: int, generator: torch.Generator) -> Tensor:
    """Return scores [units] by chance."""
    return torch.rand(units, generator=generator)
