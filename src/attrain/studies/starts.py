"""Starting weights that are kept from zero, where feedback scaled by |w| has nothing to say."""

import math

import torch
from torch import nn

from attrain.errors import InputError
from attrain.metrics.sparsity import connection_weights


@torch.no_grad()
def keep_from_zero_(model: nn.Module, least: float) -> nn.Module:
    """Draw the sizes of torch's starting weights towards each other, in place.

    Linear and convolution layers start with |w| uniform from 0 to b = 1 / sqrt(fan-in). Here it
    is uniform from `least` b c to b c, c = 1 / sqrt(1 + least + least^2): with the same signs,
    order and mean square, so that the signal is as strong as before. 0 changes nothing, and with
    1 all weights of a layer have the size b / sqrt(3).

    Returns the model. Raises InputError for a share that is not within 0..1.
    """
    if not 0.0 <= least <= 1.0:
        raise InputError(f"least={least} is no share of the largest weight: give one in 0..1.")
    if least:
        shrunk = 1.0 / math.sqrt(1.0 + least + least * least)
        for weight in connection_weights(model).values():
            bound = 1.0 / math.sqrt(weight[0].numel())
            sizes = weight.abs().mul_(1.0 - least).add_(least * bound)
            weight.copy_(sizes.mul_(weight.sign()).mul_(shrunk))
    return model
