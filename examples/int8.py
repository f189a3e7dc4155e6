"""A network that computes with integers of 8 bits: weights and activations are rounded.

Rounding has the derivative 0, so a gradient moves nothing before the last rounding. Wrapped by
attrain.rules.elementwise it has a secant slope as an activation, close to 1, and hands the feedback
of a rounded weight on to the weight that it was made of. --bits 3 makes the steps coarse: then most
weights are rounded to 0, and LFP gives them no feedback unless it is told a beta.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import Comparison, accuracy, digits, fit, main
from torch import Tensor, nn

import attrain

FEW = 6  # with fewer bits LFP has a beta
MANY_BITS = {"plain gradient (biases alone)": 0.3, "straight-through": 0.3, "LFP": 0.1}
FEW_BITS = {
    "plain gradient (biases alone)": 0.3,
    "straight-through": 0.1,
    "LFP, beta 0": 0.01,
    "LFP": 0.03,
}


def rounded(z: Tensor, bits: int) -> Tensor:
    """Return z in whole steps, 2^bits - 1 of them from the largest value to its opposite."""
    step = z.detach().abs().amax().clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (z / step).round() * step


quantise = attrain.rules.elementwise(rounded)


def straight_through(z: Tensor, bits: int) -> Tensor:
    """Return the same values, with the pretended derivative 1."""
    return z + (rounded(z, bits) - z).detach()


class Integers(nn.Module):
    """Linear layers whose inputs and weights are rounded, with ReLU between them."""

    def __init__(self, quantise: Callable[..., Tensor], bits: int, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.quantise = partial(quantise, bits=bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, 10]."""
        for number, layer in enumerate(self.layers):
            a = self.quantise(x if number == 0 else F.relu(x))
            x = F.linear(a, self.quantise(layer.weight), layer.bias)
        return x


def run(method: str, rate: float, seed: int, validation: bool, short: bool, bits: int) -> float:
    """Train by one method; return the accuracy on what is held out."""
    torch.manual_seed(seed)
    data = digits(validation)
    functions = {"straight-through": straight_through, "LFP": quantise, "LFP, beta 0": quantise}
    model = Integers(functions.get(method, rounded), bits, 64, 64, 64, 10)
    credit = attrain.LFP(
        model, scale="relative", beta=1.0 if bits < FEW and method == "LFP" else 0.0
    )

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method.startswith("LFP"):
            with credit:
                out = model(x)
            return attrain.rewards.softmax(out, y)
        return F.cross_entropy(model(x), y)

    fit(model, loss, len(data.x), rate=rate, epochs=4 if short else 30)
    return accuracy(model, data.x_held, data.y_held)


def comparison(bits: int) -> Comparison:
    """Return what this example measures."""
    return Comparison(
        title=f"Digits with weights and activations of {bits} bits",
        metric="test accuracy",
        run=partial(run, bits=bits),
        rates=FEW_BITS if bits < FEW else MANY_BITS,
        learner="LFP",
        baseline="plain gradient (biases alone)",
    )


COMPARISON = comparison(8)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--bits", type=int, default=8, choices=range(2, 17))
    options, rest = parser.parse_known_args()
    main(comparison(options.bits), rest)
