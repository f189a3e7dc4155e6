"""A network of step activations, which has no gradient.

The derivative of a step is 0 wherever it exists, so gradient descent moves the last layer alone.
LFP replaces it by the secant slope, phi(z) / (z + sign(z) epsilon), which is not 0. Near z = 0 it
is as steep as 1 / epsilon: for steps, choose epsilon by the size of z and not by the 1e-6 that
suits smooth activations.
"""

import torch
import torch.nn.functional as F
from common import Comparison, accuracy, digits, fit, main, perceptron
from torch import Tensor, nn

import attrain


class Sign(nn.Module):
    """-1 below 0 and 1 above: each neuron hands on one bit."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the signs of z."""
        return torch.sign(z)


class StraightThrough(nn.Module):
    """The same values, with a pretended derivative: 1 where |z| < 1, 0 elsewhere."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the signs of z."""
        soft = F.hardtanh(z)
        return soft + (torch.sign(z) - soft).detach()


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return the accuracy on what is held out."""
    torch.manual_seed(seed)
    data = digits(validation)
    activation = StraightThrough if method == "straight-through" else Sign
    model = perceptron(activation, 64, 64, 64, 64, 10)
    epsilon = 1e-6 if method == "LFP, epsilon 1e-6" else 0.3
    credit = attrain.LFP(model, scale="relative", epsilon=epsilon)

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method.startswith("LFP"):
            with credit:
                out = model(x)
            return attrain.rewards.softmax(out, y)
        return F.cross_entropy(model(x), y)

    fit(model, loss, len(data.x), rate=rate, epochs=4 if short else 30)
    return accuracy(model, data.x_held, data.y_held)


COMPARISON = Comparison(
    title="Digits with three hidden layers of sign activations",
    metric="test accuracy",
    run=run,
    rates={
        "plain gradient (last layer alone)": 0.01,
        "straight-through": 0.3,
        "LFP, epsilon 1e-6": 1.0,
        "LFP": 0.3,
    },
    learner="LFP",
    baseline="plain gradient (last layer alone)",
    grid=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)

if __name__ == "__main__":
    main(COMPARISON)
