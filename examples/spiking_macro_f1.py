"""A spiking network with macro-F1 as its objective: no derivative anywhere.

As in no_derivatives.py, but for leaky integrate-and-fire neurons of snnTorch, shown each picture in
10 time steps. LFP rewards spikes (equation A.4) by what is at stake for macro-F1. A surrogate
gradient is straight-through for spikes, here of the cross entropy of every step: it pretends that
the derivative is 1 / (1 + slope |x|)^2, x above the threshold, and much hangs on the slope. For
REINFORCE a neuron fires by chance, the likelier the higher its membrane is above the threshold. The
gradients of all three are clipped to 2% of each neuron's weights. Needs attrain[snn].
"""

from functools import partial

import torch
import torch.nn.functional as F
from common import Comparison, fit, main
from macro_f1 import best_and_stake, held_f1, rare_digits
from no_derivatives import DRAWS, at_stake
from snntorch.surrogate import fast_sigmoid
from torch import Tensor, nn

import attrain
from attrain.models import SpikingMLP
from attrain.optim import adaptive_clip_grad_
from attrain.spiking import match_activity_

SLOPES = {"surrogate gradient, slope 25": 25, "surrogate gradient, slope 2": 2}  # 25: snnTorch's


class Chance(nn.Module):
    """A spike function that draws spikes while it is told to, and remembers how likely they were.

    It takes the membrane above the threshold [N, neurons], as snnTorch gives it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawing = False
        self.likelihood: list[Tensor] = []

    def forward(self, above: Tensor) -> Tensor:
        """Return spikes, 0 or 1."""
        if not self.drawing:
            return (above > 0).to(above.dtype)
        unit = torch.distributions.Bernoulli(logits=2 * above)
        fired = unit.sample()
        self.likelihood.append(unit.log_prob(fired).sum(1))
        return fired


def reinforce(model: SpikingMLP, chance: Chance, x: Tensor, y: Tensor) -> Tensor:
    """Return a loss with the gradient of REINFORCE, for neurons that fire by chance."""
    chance.drawing, chance.likelihood = True, []
    counts = model(x.repeat(DRAWS, 1)).view(DRAWS, len(x), -1)
    chance.drawing = False
    likelihood = torch.stack(chance.likelihood).sum(0).view(DRAWS, len(x))
    lost = torch.stack([at_stake(each, y) for each in counts])
    return ((lost - lost.mean(0)) * likelihood).mean()


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return macro-F1 on what is held out."""
    torch.manual_seed(seed)
    data = rare_digits(validation)
    model = SpikingMLP(64, hidden=(128,), steps=10)
    match_activity_(model, data.x)
    credit, chance = attrain.LFP(model, scale="relative"), Chance()
    if method in SLOPES:
        model.spike_by("surrogate")
        for neuron in model.neurons:
            neuron.spike_grad = fast_sigmoid(slope=SLOPES[method])
    elif method == "REINFORCE":
        for neuron in model.neurons:
            neuron.spike_grad = chance

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method == "LFP":
            with credit:
                spikes = model(x, per_step=True)  # [T, N, 10]
            best, stake = best_and_stake(spikes.detach().sum(0), y)
            return (stake * attrain.rewards.spike_count(spikes, best, reduction="none")).mean()
        if method == "REINFORCE":
            return reinforce(model, chance, x, y)
        spikes = model(x, per_step=True)
        best, stake = best_and_stake(spikes.detach().sum(0), y)
        each = F.cross_entropy(spikes.flatten(0, 1), best.repeat(len(spikes)), reduction="none")
        return (stake.repeat(len(spikes)) * each).mean()

    if method != "untrained":
        clip = partial(adaptive_clip_grad_, clipping=0.02)
        epochs = 8 if short else 40
        fit(model, loss, len(data.x), rate=rate, epochs=epochs, batch=128, clip=clip)
    return held_f1(model, data)


COMPARISON = Comparison(
    title="Digits, rare and frequent: a spiking network, judged by macro-F1",
    metric="macro-F1 of the test set",
    run=run,
    rates={
        "untrained": None,
        "REINFORCE": 0.3,
        "surrogate gradient, slope 25": 3.0,
        "surrogate gradient, slope 2": 0.3,
        "LFP": 0.1,
    },
    learner="LFP",
    baseline="untrained",
    grid=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
)

if __name__ == "__main__":
    main(COMPARISON)
