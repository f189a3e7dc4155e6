"""Exact Shapley values of a game with few players, to measure what estimates them against."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attrain.errors import InputError

MOST = 16


def shapley_values(worth: Callable[[Tensor], Tensor], players: int) -> Tensor:
    """Return each player's share [players] of worth(all) - worth(none), from all coalitions.

    worth: from coalitions [M, players] (booleans) to their values [M]; called once with all of
    them. The mean over all orders of what a player adds on joining. Shapley, 1953. Raises
    InputError for less than one player or more than 16.
    """
    if not 1 <= players <= MOST:
        raise InputError(
            f"exact Shapley values need 2^players values: 1..{MOST} players are possible, got "
            f"{players}. Join features, or sample (kernel_shap)."
        )
    number_M = torch.arange(2**players)
    member_MP = (number_M[:, None] >> torch.arange(players)) & 1 == 1
    worth_M = worth(member_MP).double().cpu()
    if worth_M.shape != number_M.shape:
        raise InputError(
            f"worth must return one value for each of {len(number_M)} coalitions, got the shape "
            f"{tuple(worth_M.shape)}."
        )
    size_M = member_MP.sum(1)
    # Of the orders, the share in which exactly these s players come before the next one.
    share = [1 / (players * math.comb(players - 1, s)) for s in range(players)]
    weight_M = torch.tensor([*share, 0.0], dtype=torch.float64)[size_M]
    found = []
    for player in range(players):
        before_M = number_M[~member_MP[:, player]]
        added = worth_M[before_M | (1 << player)] - worth_M[before_M]
        found.append((weight_M[before_M] * added).sum())
    return torch.stack(found)
