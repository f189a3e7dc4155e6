"""The reward for the spikes of a spiking network's outputs."""

from typing import Any

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.rewards import checks
from attrain.rewards.formulas import Reward
from attrain.rewards.objective import Reduction, objective

_LOOKED_AT = 64


def spike_count(spikes: Tensor, y: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Let the labelled output fire in more than half of the steps, the others in fewer.

    With n steps, every spike of the labelled output earns 1 - sigmoid(sum_t S - n/2) and every
    step of another one sigmoid(sum_t |S - 1| - n/2) - 1 (Weber et al., equation A.4). Outputs are
    silent or not, so the reward itself is handed to them, not divided by the output: the last
    layer's `attrain.spiking.secant_spike(output=True)` divides it by the membrane.

    The authors' code differs: there another output earns its reward in the steps in which it fires
    alone, n/2 is rounded down, and in one place the reward is divided by n.

    Args:
        spikes: spikes of the outputs, 0 or 1, [T, N, C]: T time steps, N samples, C classes.
        y: class indices [N].
        reduction: "none" returns minus the reward of every sample, summed over steps and classes,
            "sum" adds them up, "mean" divides the sum by N.

    Raises:
        InputError: shapes, labels or numbers are not as above, or the spikes come from a
            secant_spike that is meant for hidden layers.
        CreditError: the forward pass ran outside a credit context.
    """
    if isinstance(spikes, Tensor) and spikes.dim() != 3:
        raise InputError(
            f"spikes of shape {tuple(spikes.shape)} came: [time steps, samples, classes] was "
            "wanted, for instance torch.stack(spikes_of_each_step)."
        )
    _check_outputs(spikes)
    return objective(spikes, lambda o: rewarded(o, y), reduction)


def rewarded(o: Tensor, y: Tensor) -> Reward:
    """Give A.4's reward for the spikes `o` [T, N, C] and class indices `y` [N]."""
    if checks.visible(o):
        checks.refuse(o, (o != 0) & (o != 1), "spike", "neither 0 nor 1")
    steps = o.shape[0]
    counts = o.sum(0)
    known = checks.labels(counts, y, None, -100)
    # sum_t |S - 1| is the number of silent steps, n - sum_t S.
    r = torch.sigmoid(steps / 2 - counts) - 1
    target = known.index.unsqueeze(1)
    r.scatter_(1, target, 1 - torch.sigmoid(counts.gather(1, target) - steps / 2))
    r = r * known.valid.unsqueeze(1)
    return Reward(o, known.total, (0, 2), judged=r.expand_as(o))


def _check_outputs(spikes: Any) -> None:
    """Refuse spikes that were made by a hidden layer's rule, which passes silence no reward."""
    waiting = [getattr(spikes, "grad_fn", None)]
    for _ in range(_LOOKED_AT):
        if not waiting:
            return
        node = waiting.pop()
        if node is None:
            continue
        name = node.name()
        if name == "SpikeBackward":
            raise InputError(
                "these spikes come from a secant_spike for hidden layers, under which a silent "
                "output earns nothing and never learns to fire: build the last layer with "
                "attrain.spiking.secant_spike(output=True)."
            )
        if not name.endswith("SpikeBackward"):
            waiting.extend(below for below, _ in node.next_functions)
