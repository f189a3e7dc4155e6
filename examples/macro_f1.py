"""Macro-F1 itself as the objective, on digits of which some are rare.

F1 counts, so it has no gradient, and it judges a batch, not a sample. But it can be asked what it
would be if one sample were given another class. The class that serves it best is the one to raise,
and what it gains over the mean of all classes is at stake for this sample: it weighs its reward.
"""

import torch
import torch.nn.functional as F
from common import Comparison, Split, digits, fit, main, perceptron
from torch import Tensor, nn

import attrain


def macro_f1(predicted: Tensor, y: Tensor, classes: int = 10) -> float:
    """Return the mean over the classes of 2 TP / (2 TP + FP + FN), 0 where that is 0 / 0."""
    right, chosen, labelled = counts(predicted, y, classes)
    return float(f1(right, chosen, labelled).mean())


def counts(predicted: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how often each class is predicted rightly, predicted, and the label."""
    right = torch.bincount(y[predicted == y], minlength=classes).float()
    chosen = torch.bincount(predicted, minlength=classes).float()
    return right, chosen, torch.bincount(y, minlength=classes).float()


def f1(right: Tensor, chosen: Tensor, labelled: Tensor) -> Tensor:
    """Return F1 from counts: TP is `right`, TP + FP `chosen` and TP + FN `labelled`."""
    return 2 * right / (chosen + labelled).clamp_min(1.0)


def gains(predicted: Tensor, y: Tensor, classes: int = 10) -> Tensor:
    """Return [N, C]: what macro-F1 of the batch would gain if sample n were given class c."""
    right, chosen, labelled = counts(predicted, y, classes)
    now = f1(right, chosen, labelled)
    hit = F.one_hot(y, classes).float()
    more = f1(right + hit, chosen + 1, labelled) - now  # [N, C], c gets the sample
    less = f1(right - hit, chosen - 1, labelled) - now  # ... or loses it
    given_up = less.gather(1, predicted[:, None])
    gain = more + given_up
    return gain.scatter_(1, predicted[:, None], 0.0) / classes


def best_and_stake(out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class [N] that macro-F1 gains most by, and N times what it gains over the mean."""
    gain = len(y) * gains(out.argmax(1), y)
    most = gain.max(1)
    return most.indices, most.values - gain.mean(1)


def gains_as_rewards(out: Tensor, y: Tensor) -> Tensor:
    """Return the objective that comes to mind first: equation 13, every class by what it gains."""
    gain = len(y) * gains(out.detach().argmax(1), y)
    excess = gain - gain.mean(1, keepdim=True)
    share = out.detach().softmax(1)
    unsettled = torch.where(excess > 0, 1 - share, share)
    return attrain.rewards.outcome(out, excess, unsettled, reduction="sum") / len(y)


def rare_digits(validation: bool) -> Split:
    """Return the digits, of whose classes k only the share 0.75^k is left to train on."""
    data = digits(validation)
    kept = [(data.y == k).nonzero()[:, 0] for k in range(10)]
    left = torch.cat([each[: round(len(each) * 0.75**k)] for k, each in enumerate(kept)])
    return Split(data.x[left], data.y[left], data.x_held, data.y_held)


@torch.no_grad()
def held_f1(model: nn.Module, data: Split) -> float:
    """Return macro-F1 of what is held out, where all classes are equally frequent."""
    return macro_f1(model(data.x_held).argmax(1), data.y_held)


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return macro-F1 on what is held out."""
    torch.manual_seed(seed)
    data = rare_digits(validation)
    model = perceptron(nn.ReLU, 64, 64, 64, 10)
    credit = attrain.LFP(model, scale="relative")
    weight = len(data.y) / (10 * torch.bincount(data.y).float())

    def loss(batch: Tensor) -> Tensor:
        x, y = data.x[batch], data.y[batch]
        if method == "LFP, gains as rewards":
            with credit:
                out = model(x)
            return gains_as_rewards(out, y)
        if method == "LFP on macro-F1":
            with credit:
                out = model(x)
            best, stake = best_and_stake(out.detach(), y)
            return (stake * attrain.rewards.softmax(out, best, reduction="none")).mean()
        weighted = method == "cross entropy, classes weighted"
        return F.cross_entropy(model(x), y, weight=weight if weighted else None)

    if method != "untrained":
        fit(model, loss, len(data.x), rate=rate, epochs=8 if short else 60, batch=128)
    return held_f1(model, data)


COMPARISON = Comparison(
    title="Digits, rare and frequent, judged by macro-F1",
    metric="macro-F1 of the test set",
    run=run,
    rates={
        "untrained": None,
        "cross entropy": 0.3,
        "cross entropy, classes weighted": 0.03,
        "LFP, gains as rewards": 0.003,
        "LFP on macro-F1": 0.1,
    },
    learner="LFP on macro-F1",
    baseline="untrained",
    grid=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)

if __name__ == "__main__":
    main(COMPARISON)
