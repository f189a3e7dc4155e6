"""Attacks on a classifier: the worst small change of each input that a gradient finds.

Inputs are as the model takes them. `epsilon` is the largest change of each value, in the units of
the inputs: a number or a tensor that broadcasts to them (for images that were normalised, epsilon
in pixels divided by the deviation). `low` and `high`, likewise, are what values can be at all.
Every function treats each sample by itself, so the model must, too (run it as in evaluation).
"""

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.metrics.batches import (
    Predict,
    check_batch_size,
    check_labels,
    check_numbers,
    spread_over,
)

STEPS, RESTARTS = 20, 1
STEP_SHARE = 2.5
"""A step of PGD is this times epsilon / steps, so that it can cross the ball (Madry et al.)."""

Limit = Tensor | float


def fgsm(
    logits: Predict,
    x: Tensor,
    y: Tensor,
    epsilon: Limit,
    low: Limit,
    high: Limit,
    *,
    batch_size: int = 128,
) -> Tensor:
    """Return x + epsilon sign(dL/dx) within the limits, [N, ...]; L is the cross entropy.

    Fast gradient sign method, one step: Goodfellow et al., 2015, section 4. logits: from inputs
    [N, ...] to [N, C], differentiable. Raises InputError for a negative epsilon, limits that x
    exceeds, labels that do not fit, inputs that are no finite numbers, a model without a gradient,
    and one class alone.
    """
    epsilon, low, high = _checked(x, y, epsilon, low, high, batch_size)
    found = []
    for part, label, width in zip(
        torch.split(x, batch_size),
        torch.split(y, batch_size),
        torch.split(epsilon, batch_size),
        strict=True,
    ):
        slope, _ = _ascent(logits, part, label)
        found.append(part + width * slope.sign())
    return torch.cat(found).clamp(low, high).detach()


def pgd(
    logits: Predict,
    x: Tensor,
    y: Tensor,
    epsilon: Limit,
    low: Limit,
    high: Limit,
    *,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    step_size: Limit | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """Return the inputs within epsilon of x with the largest cross entropy that were found.

    Projected gradient descent: from a uniform random start in the ball, `steps` steps of
    `step_size` (2.5 epsilon / steps, if not given) along the gradient's sign, each put back into
    the ball and the limits; so `restarts` times. What is kept of each sample is the worst of all
    points that were visited, and of that of `fgsm`, so that many steps are never weaker than one:
    one that is misclassified before one that is not, then the larger loss. Madry et al., 2018.
    The start of a sample does not depend on the batch_size. Raises InputError as `fgsm`, and for
    less than one step or restart.
    """
    epsilon, low, high = _checked(x, y, epsilon, low, high, batch_size)
    if steps < 1 or restarts < 1:
        raise InputError(f"steps and restarts must be at least 1, got {steps} and {restarts}.")
    size = (
        STEP_SHARE * epsilon / steps
        if step_size is None
        else spread_over(step_size, x, "step_size")
    )
    floor, ceiling = torch.maximum(x - epsilon, low), torch.minimum(x + epsilon, high)
    worst = fgsm(logits, x, y, epsilon, low, high, batch_size=batch_size)
    _, highest, wrong = _whole(logits, worst, y, batch_size)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(restarts):
        drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        point = floor + drawn * (ceiling - floor)
        for step in range(steps + 1):
            slope, height, missed = _whole(logits, point, y, batch_size)
            better = (missed & ~wrong) | ((missed == wrong) & (height > highest))
            worst = torch.where(_as(better, x), point, worst)
            highest = torch.where(better, height, highest)
            wrong = wrong | missed
            if step < steps:
                point = (point + size * slope.sign()).clamp(floor, ceiling)
    return worst.detach()


def without_gradient(logits: Predict, x: Tensor, y: Tensor, *, batch_size: int = 128) -> float:
    """Return the share of the samples at which dL/dx is 0 everywhere, in 0..1.

    There an attack by gradients finds nothing, whether or not there is something to find: behind
    steps, dead or saturated units. Athalye et al., 2018, obfuscated gradients. Raises InputError as
    `fgsm` does for labels and models.
    """
    check_batch_size(batch_size)
    check_labels(x, y)
    slope, _, _ = _whole(logits, x, y, batch_size)
    return float((slope == 0).flatten(1).all(1).double().mean())


def _whole(logits: Predict, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slope, the height of the loss [N] and whether the answer is wrong [N]."""
    slopes, heights, missed = [], [], []
    for part, label in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        slope, out = _ascent(logits, part, label)
        others, true = _apart(out, label)
        slopes.append(slope)
        heights.append(others.logsumexp(1) - true)
        missed.append(out.argmax(1) != label)
    return torch.cat(slopes), torch.cat(heights), torch.cat(missed)


def _ascent(logits: Predict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the direction in which the cross entropy of each sample rises, and the outputs.

    The cross entropy is log(1 + exp m) with m = logsumexp of the other outputs - the true one. The
    gradient of m points the same way and does not vanish where the answer is sure.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        out = logits(point)
        if (
            out.ndim != 2
            or out.shape[1] < 2
            or not 0 <= int(y.min()) <= int(y.max()) < out.shape[1]
        ):
            raise InputError(
                f"an attack needs logits [N, C] of two or more classes and labels below C: got "
                f"{tuple(out.shape)}, and labels from {int(y.min())} to {int(y.max())}."
            )
        others, true = _apart(out, y)
        rise = (others.logsumexp(1) - true).sum()
        slope = None
        if rise.requires_grad:
            (slope,) = torch.autograd.grad(rise, point, allow_unused=True)
    if slope is None:
        raise InputError("the model's outputs have no gradient in its inputs: an attack needs one.")
    return slope.detach(), out.detach()


def _apart(out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs without the true one, [N, C] with -infinity in its place, and it, [N]."""
    label = y.long()[:, None]
    return out.scatter(1, label, -torch.inf).double(), out.gather(1, label)[:, 0].double()


def _as(mask_N: Tensor, x: Tensor) -> Tensor:
    return mask_N.reshape(-1, *[1] * (x.ndim - 1))


def _checked(
    x: Tensor, y: Tensor, epsilon: Limit, low: Limit, high: Limit, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return epsilon, shaped as x, and both limits as tensors; raises InputError."""
    check_batch_size(batch_size)
    check_labels(x, y)
    check_numbers(x)
    width, floor, ceiling = (
        spread_over(value, x, name)
        for name, value in (("epsilon", epsilon), ("low", low), ("high", high))
    )
    if not (torch.isfinite(width).all() and (width >= 0).all()):
        raise InputError(f"epsilon is a finite size, 0 or more: the least given is {width.min()}.")
    slack = 1e-5 * (1 + x.abs().max())  # what normalising and back may cost
    if (x < floor - slack).any() or (x > ceiling + slack).any():
        raise InputError(
            f"x goes from {float(x.min()):.4g} to {float(x.max()):.4g}, beyond the limits of its "
            "values: give low and high in the units of x."
        )
    # A value that rounding left just outside is its own limit: epsilon = 0 must change nothing.
    floor, ceiling = torch.minimum(x, floor), torch.maximum(x, ceiling)
    return width, floor, ceiling
