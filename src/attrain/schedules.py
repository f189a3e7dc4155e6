"""The optimizer of a run, and how its learning rate and momentum go with the updates."""

import math

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from attrain.config import Schedule, TrainingConfig
from attrain.errors import InputError
from attrain.methods import Method

ADAPTIVE_LEARNING_RATE = 1e-3
WARM_UP = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 1e4
MOMENTUM_SWING = 0.05


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """Return the learning rate of update `step` of 0..steps-1.

    "onecycle" rises along a cosine from peak / 25 for 30% of the updates, then falls to
    peak / 250,000, as torch's OneCycleLR (Smith and Topin, 2019); "cosine" falls from the peak
    to 0.
    """
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return _cosine(peak, 0.0, step / steps)
    low = peak / START_DIVISOR
    return _there_and_back(step, steps, low, peak, low / END_DIVISOR)


def momentum(step: int, steps: int, usual: float, schedule: Schedule) -> float:
    """Return the momentum of SGD in update `step` of 0..steps-1.

    Under "onecycle" it swings against the learning rate, from `usual` + 0.05 to `usual` - 0.05
    and back, as torch's OneCycleLR does around 0.9; no momentum stays none.
    """
    if schedule != "onecycle" or usual == 0.0:
        return usual
    high, low = min(usual + MOMENTUM_SWING, 1.0), max(usual - MOMENTUM_SWING, 0.0)
    return _there_and_back(step, steps, high, low, high)


def _there_and_back(step: int, steps: int, start: float, turn: float, end: float) -> float:
    top = max(WARM_UP * steps - 1, 1e-9)
    if step <= top:
        return _cosine(start, turn, step / top)
    return _cosine(turn, end, (step - top) / max(steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def learning_rate_of(method: Method, config: TrainingConfig) -> float:
    """Return the highest learning rate of a run."""
    if config.learning_rate is not None:
        return config.learning_rate
    return method.learning_rate if config.optimizer == "sgd" else ADAPTIVE_LEARNING_RATE


def momentum_of(method: Method, config: TrainingConfig) -> float:
    """Return the momentum of a run with sgd."""
    return method.momentum if config.momentum is None else config.momentum


def weight_decay_of(method: Method, config: TrainingConfig) -> float:
    """Return the weight decay of a run."""
    return method.weight_decay if config.weight_decay is None else config.weight_decay


def make_optimizer(model: nn.Module, method: Method, config: TrainingConfig) -> Optimizer:
    """Return the torch optimizer that `config` and `method` ask for."""
    rate, decay = learning_rate_of(method, config), weight_decay_of(method, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("the model has no parameter that requires grad: nothing can be trained.")
    # As usual, biases and the scales of normalisations are not decayed.
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": chosen, "weight_decay": share}
        for chosen, share in ((weights, decay), (others, 0.0))
        if chosen
    ]
    if config.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=momentum_of(method, config))
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(groups, lr=rate)
