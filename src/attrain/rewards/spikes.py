"""The reward for the spikes of a spiking network's outputs."""

from typing import Any, Literal

import torch
from torch import Tensor

from attrain.errors import InputError, unknown
from attrain.rewards import checks
from attrain.rewards.formulas import Reward
from attrain.rewards.objective import Reduction, objective

VARIANTS = ("paper", "code")
_LOOKED_AT = 64


def spike_count(
    spikes: Tensor,
    y: Tensor,
    *,
    variant: Literal["paper", "code"] = "paper",
    reduction: Reduction = "mean",
) -> Tensor:
    """Let the labelled output fire in more than half of the steps, the others in fewer.

    With n steps, every spike of the labelled output earns 1 - sigmoid(sum_t S - n/2) and every
    step of another one sigmoid(sum_t |S - 1| - n/2) - 1 (Weber et al., equation A.4). Outputs are
    silent or not, so the reward itself is handed to them, not divided by the output: the last
    layer's `attrain.spiking.secant_spike(output=True)` divides it by the membrane.

    The authors' code differs, and variant="code" is its reward: another output earns in the steps
    in which it fires alone, and n/2 is rounded down. (In one place it also divides by n.) With few
    steps this matters: under the equation a silent wrong output goes on earning -sigmoid(-n/2) a
    step, 0.08 for n = 5, which drives the activity of the layers before it up without an end.

    Args:
        spikes: spikes of the outputs, 0 or 1, [T, N, C]: T time steps, N samples, C classes.
        y: class indices [N].
        variant: "paper", equation A.4 as printed, or "code".
        reduction: "none" returns minus the reward of every sample, summed over steps and classes,
            "sum" adds them up, "mean" divides the sum by N.

    Raises:
        InputError: shapes, labels, numbers or options are not as above, or the spikes come from a
            secant_spike that is meant for hidden layers.
        CreditError: the forward pass ran outside a credit context.
    """
    if variant not in VARIANTS:
        raise unknown("variant of the reward", str(variant), VARIANTS)
    if isinstance(spikes, Tensor) and spikes.dim() != 3:
        raise InputError(
            f"spikes of shape {tuple(spikes.shape)} came: [time steps, samples, classes] was "
            "wanted, for instance torch.stack(spikes_of_each_step)."
        )
    _check_outputs(spikes)
    return objective(spikes, lambda o: rewarded(o, y, variant), reduction)


def rewarded(o: Tensor, y: Tensor, variant: str = "paper") -> Reward:
    """Give A.4's reward for the spikes `o` [T, N, C] and class indices `y` [N]."""
    if checks.visible(o):
        checks.refuse(o, (o != 0) & (o != 1), "spike", "neither 0 nor 1")
    steps = o.shape[0]
    counts = o.sum(0)
    known = checks.labels(counts, y, None, -100)
    half = steps // 2 if variant == "code" else steps / 2
    # sum_t |S - 1| is the number of silent steps, n - sum_t S.
    others = torch.sigmoid(steps - counts - half) - 1
    r = others * o if variant == "code" else others.expand_as(o).clone()
    place = known.index.unsqueeze(1)
    labelled = 1 - torch.sigmoid(counts.gather(1, place) - half)
    r.scatter_(2, place.expand(steps, -1, -1), labelled.expand(steps, -1, -1))
    return Reward(o, known.total, (0, 2), judged=r * known.valid.unsqueeze(1))


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
