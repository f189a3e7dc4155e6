"""Neither the network nor its objective has a derivative: step activations and macro-F1.

LFP needs none: secant slopes for the steps, and as rewards what is at stake for macro-F1. Its
rivals get the same rewards at the outputs and are tuned over the same learning rates.
Straight-through pretends a derivative of the steps. REINFORCE pretends nothing: in training its
hidden units are random, and it makes those draws likelier whose outputs were better than the mean
of 8.
"""

import torch
import torch.nn.functional as F
from common import Comparison, fit, main, perceptron
from macro_f1 import best_and_stake, held_f1, rare_digits
from step_activations import Sign, StraightThrough
from torch import Tensor, nn

import attrain

DRAWS = 8


def at_stake(out: Tensor, y: Tensor) -> Tensor:
    """Return a loss per sample whose gradient at the outputs is minus the credit of macro-F1."""
    best, stake = best_and_stake(out.detach(), y)
    return stake * F.cross_entropy(out, best, reduction="none")


def reinforce(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Return a loss with the gradient of REINFORCE, for hidden units that are 1 by chance."""
    likelihood = torch.zeros(DRAWS, len(x))
    a = x.expand(DRAWS, -1, -1)
    for layer in model:
        if isinstance(layer, Sign):
            unit = torch.distributions.Bernoulli(logits=a)
            drawn = unit.sample()
            likelihood = likelihood + unit.log_prob(drawn).sum(2)
            a = 2 * drawn - 1
        else:
            a = layer(a)
    lost = torch.stack([at_stake(out, y) for out in a])
    excess = (lost - lost.mean(0)).detach()
    return (lost + excess * likelihood).mean()


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return macro-F1 on what is held out."""
    torch.manual_seed(seed)
    data = rare_digits(validation)
    activation = StraightThrough if method == "straight-through" else Sign
    model = perceptron(activation, 64, 64, 64, 10)
    credit = attrain.LFP(model, scale="relative", epsilon=0.3)

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method == "LFP":
            with credit:
                out = model(x)
            best, stake = best_and_stake(out.detach(), y)
            return (stake * attrain.rewards.softmax(out, best, reduction="none")).mean()
        if method == "REINFORCE":
            return reinforce(model, x, y)
        if method == "straight-through":
            return at_stake(model(x), y).mean()
        return F.cross_entropy(model(x), y)

    if method != "untrained":
        fit(model, loss, len(data.x), rate=rate, epochs=8 if short else 60, batch=128)
    return held_f1(model, data)


COMPARISON = Comparison(
    title="Digits, rare and frequent: sign activations, judged by macro-F1",
    metric="macro-F1 of the test set",
    run=run,
    rates={
        "untrained": None,
        "cross entropy (last layer alone)": 0.1,
        "REINFORCE": 0.3,
        "straight-through": 0.3,
        "LFP": 0.03,
    },
    learner="LFP",
    baseline="cross entropy (last layer alone)",
    grid=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)

if __name__ == "__main__":
    main(COMPARISON)
