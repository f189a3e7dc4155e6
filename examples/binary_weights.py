"""A network whose weights are -1 or 1, times one number per layer; its activations are signs, too.

Each weight is made of a latent one by a function that attrain.rules.elementwise wraps, and which
hands its feedback on. |w| times its secant slope sign(w) / w is 1, so a latent weight gets the
gradient of its sign as it is: for the weights, LFP derives what the straight-through estimator
pretends. The sign activations between the layers get their secant slopes.
"""

import torch
import torch.nn.functional as F
from common import Comparison, accuracy, digits, fit, main
from step_activations import Sign, StraightThrough
from torch import Tensor, nn
from torch.nn.utils import parametrize

import attrain


def signs(w: Tensor) -> Tensor:
    """Return the signs of weights [N, n], over the root of n, so that sums of n stay near 1."""
    return torch.sign(w) / w.shape[1] ** 0.5


class Binary(nn.Module):
    """A weight's signs."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = attrain.rules.elementwise(signs)

    def forward(self, w: Tensor) -> Tensor:
        """Return the binary weights."""
        return self.signs(w)


class BinaryStraightThrough(nn.Module):
    """The same values, with the pretended derivative 1."""

    def forward(self, w: Tensor) -> Tensor:
        """Return the binary weights."""
        return w + (signs(w) - w).detach()


def binary_network(weights: type[nn.Module], activation: type[nn.Module]) -> nn.Sequential:
    """Return a perceptron in which all weights, but not the biases, are binary."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((64, 128), (128, 128), (128, 10)):
        layer = nn.Linear(inputs, outputs)
        parametrize.register_parametrization(layer, "weight", weights())
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return the accuracy on what is held out."""
    torch.manual_seed(seed)
    data = digits(validation)
    if method == "straight-through":
        model = binary_network(BinaryStraightThrough, StraightThrough)
    else:
        model = binary_network(Binary, Sign)
    credit = attrain.LFP(model, scale="relative", epsilon=0.3)

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method == "LFP":
            with credit:
                out = model(x)
            return attrain.rewards.softmax(out, y)
        return F.cross_entropy(model(x), y)

    fit(model, loss, len(data.x), rate=rate, epochs=4 if short else 30)
    return accuracy(model, data.x_held, data.y_held)


COMPARISON = Comparison(
    title="Digits with binary weights and sign activations",
    metric="test accuracy",
    run=run,
    rates={"plain gradient (biases alone)": 0.03, "straight-through": 1.0, "LFP": 0.1},
    learner="LFP",
    baseline="plain gradient (biases alone)",
    grid=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)

if __name__ == "__main__":
    main(COMPARISON)
