"""A contextual bandit: a digit is shown, one of ten levers is pulled, and only its pay is seen.

Which lever would have paid is never told. The levers are drawn from the softmax of the outputs, so
that all are tried now and then; the pay less its usual level says how much of the reward for that
lever is given. `rewards.metric` needs less: a function that judges the likeliest lever.
"""

import torch
import torch.nn.functional as F
from common import Comparison, accuracy, digits, fit, main, perceptron
from torch import Tensor, nn

import attrain


def pay(lever: Tensor, digit: Tensor) -> Tensor:
    """Return what was won [N]: 1 for the lever of the digit, else 0."""
    return (lever == digit).float()


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return the mean pay of the best levers on what is held out."""
    torch.manual_seed(seed)
    data = digits(validation)
    model = perceptron(nn.ReLU, 64, 64, 64, 10)
    credit = attrain.LFP(model, scale="relative")
    judge = attrain.rewards.metric(lambda out, y: pay(out.argmax(1), y))
    usual = 0.1

    def loss(batch: Tensor) -> Tensor:
        nonlocal usual
        x, y = data.x[batch], data.y[batch]
        if method == "cross entropy, told the digit":
            return F.cross_entropy(model(x), y)
        if method == "LFP, rewards.metric":
            with credit:
                out = model(x)
            return judge(out, y)
        if method == "LFP":
            with credit:
                out = model(x)
        else:
            out = model(x)
        lever = torch.multinomial(out.detach().softmax(1), 1)[:, 0]
        won = pay(lever, y)
        advantage = won - usual
        usual = 0.9 * usual + 0.1 * float(won.mean())
        if method == "LFP":
            return (advantage * attrain.rewards.softmax(out, lever, reduction="none")).mean()
        return (advantage * F.cross_entropy(out, lever, reduction="none")).mean()

    if method != "untrained":
        fit(model, loss, len(data.x), rate=rate, epochs=8 if short else 60)
    return accuracy(model, data.x_held, data.y_held)


COMPARISON = Comparison(
    title="Digits as a contextual bandit of ten levers",
    metric="mean pay on the test set (1 at most)",
    run=run,
    rates={
        "untrained": None,
        "cross entropy, told the digit": 0.1,
        "REINFORCE": 0.1,
        "LFP, rewards.metric": 0.03,
        "LFP": 0.1,
    },
    learner="LFP",
    baseline="untrained",
)

if __name__ == "__main__":
    main(COMPARISON)
