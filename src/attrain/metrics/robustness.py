"""Accuracy that is left under noise, and under attacks of growing size."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.metrics.attacks import Limit
from attrain.metrics.batches import (
    Predict,
    check_batch_size,
    check_labels,
    check_numbers,
    hits,
    in_batches,
    spread_over,
)

EPSILONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Sizes of attacks, as shares of the range of an input."""

SIGMAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Standard deviations of noise, as shares of the range of an input."""

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From inputs, labels and epsilon, shaped as the inputs, to changed inputs."""


class Curve(NamedTuple):
    """Accuracy at each size, over all inputs and over those that are right without a change."""

    overall: list[float]
    of_correct: list[float]


def noise_curve(
    logits: Predict,
    x: Tensor,
    y: Tensor,
    scale: Limit,
    low: Limit,
    high: Limit,
    *,
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 3,
    seed: int = 0,
    batch_size: int = 128,
) -> Curve:
    """Return the accuracy with Gaussian noise of deviation sigma * scale, the mean of the draws.

    x [N, ...] as the model takes it, y labels [N]; scale, low, high: numbers or tensors that
    broadcast to x. The noise of a draw is the same for every sigma but for its size; noisy values
    are cut to low..high. `of_correct` is NaN where no input is right to begin with. Raises
    InputError for a negative sigma, less than one draw, limits that cross, labels that do not fit,
    and outputs that are NaN or not [N, C].
    """
    _check(x, y, sigmas, "sigmas", batch_size)
    if draws < 1:
        raise InputError(f"noise needs at least one draw, got {draws}.")
    predict = in_batches(logits, batch_size)
    generator = torch.Generator().manual_seed(seed)
    low, high = spread_over(low, x, "low"), spread_over(high, x, "high")
    if (low > high).any():
        raise InputError("low is above high somewhere: no value lies between them.")
    scale = spread_over(scale, x, "scale")
    right = hits(predict, x, y)
    held = torch.zeros(len(sigmas), len(x), dtype=torch.double)
    for _ in range(draws):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) * scale
        for row, sigma in enumerate(sigmas):
            noisy = (x + sigma * noise).clamp(low, high) if sigma else x
            held[row] += hits(predict, noisy, y).cpu().double() / draws
    return _curve(held, right.cpu())


def attack_curve(
    logits: Predict,
    x: Tensor,
    y: Tensor,
    scale: Limit,
    attack: Attack,
    *,
    epsilons: Sequence[float] = EPSILONS,
    nested: bool = True,
    batch_size: int = 128,
) -> Curve:
    """Return the accuracy under an attack of each size epsilon * scale.

    An input that is wrong without a change counts as wrong: an attacker leaves it alone. nested:
    what fell to a smaller epsilon counts as fallen, for its changed input is in the larger ball as
    well, and is not attacked again; False for an attack that is one given step. Raises InputError
    for epsilons that are negative or do not rise, an attack that returns another shape, labels that
    do not fit, and outputs that are NaN or not [N, C].
    """
    _check(x, y, epsilons, "epsilons", batch_size)
    if any(b <= a for a, b in zip(epsilons, epsilons[1:], strict=False)):
        raise InputError(f"epsilons must rise, got {tuple(epsilons)}.")
    predict = in_batches(logits, batch_size)
    scale = spread_over(scale, x, "scale")
    right = hits(predict, x, y)
    standing = right.clone()
    held = []
    for epsilon in epsilons:
        if not nested:
            standing = right.clone()
        some = standing.nonzero().flatten()
        if epsilon and len(some):
            changed = attack(x[some], y[some], epsilon * scale[some])
            if changed.shape != x[some].shape:
                raise InputError(
                    f"the attack turned inputs {tuple(x[some].shape)} into "
                    f"{tuple(changed.shape)}: it must return one of each, of the same shape."
                )
            standing[some] = hits(predict, changed, y[some])
        held.append(standing.cpu().double())
    return _curve(torch.stack(held), right.cpu())


def _curve(hits_SN: Tensor, right_N: Tensor) -> Curve:
    of_correct = hits_SN[:, right_N].mean(1)  # NaN of none
    return Curve(hits_SN.mean(1).tolist(), of_correct.tolist())


def _check(x: Tensor, y: Tensor, sizes: Sequence[float], name: str, batch_size: int) -> None:
    check_batch_size(batch_size)
    check_labels(x, y)
    check_numbers(x)
    if not sizes or not all(size >= 0 for size in sizes):
        raise InputError(f"{name} are 0 or more, at least one: got {tuple(sizes)}.")
