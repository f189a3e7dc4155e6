"""Which features are masked, and what stands in their place: pure functions of a batch."""

import math

import torch
from torch import Tensor


def count(fraction: float, features: int) -> int:
    """Return k, how many of `features` are masked: the fraction of them, rounded down.

    At least one feature stays. A product such as .29 * 100 counts as the 29 that is meant.
    """
    return min(math.floor(fraction * features + 1e-6), features - 1)


def counts(fraction: float, real: Tensor) -> Tensor:
    """Return k of each text, [N], from its tokens that are no padding, `real` [N, L]."""
    words = real.sum(1)
    k = torch.floor(fraction * words.double() + 1e-6).long()
    return torch.minimum(k, (words - 1).clamp(min=0))


def lowest(scores: Tensor, k: int | Tensor, among: Tensor | None = None) -> Tensor:
    """Return which features [N, ...] are the k with the lowest scores, sample by sample.

    scores: [N, ...]; k: of every sample, or one of each, [N]. Of equal scores the earlier feature
    comes first, so that a sample's mask does not depend on the samples beside it. Only features
    `among` [N, ...] are taken, where given.
    """
    # What is no number comes last, but before the features that cannot be taken.
    flat = scores.flatten(1).nan_to_num(torch.finfo(scores.dtype).max)
    if among is not None:
        flat = flat.masked_fill(~among.flatten(1), math.inf)
    if isinstance(k, int):
        lower = _lowest_alike(flat, k)
    else:
        order = flat.argsort(dim=1, stable=True)
        places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
        lower = torch.empty_like(order).scatter_(1, order, places) < k[:, None]
    return lower.view(scores.shape)


def _lowest_alike(flat: Tensor, k: int) -> Tensor:
    """Return the k lowest of each row: those below the k-th, and the first of its equals.

    A quarter of the time of a stable sort.
    """
    last = flat.topk(k, 1, largest=False, sorted=False).values.amax(1, keepdim=True)
    below, equal = flat < last, flat == last
    wanted = k - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= wanted))


def image(x: Tensor, drop: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Replace masked places by random numbers between the sample's smallest and largest value.

    x: [N, C, ...] and drop [N, ...], the same places in all channels; or both [N, D].
    """
    low, high = extremes(x, "image")
    drawn = _drawn(x, low, high, generator)
    return torch.where(drop.unsqueeze(1) if x.ndim > 2 else drop, drawn, x)


def series(x: Tensor, drop: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Replace masked entries by random numbers between the feature's extremes in the sample.

    x and drop: [N, T, F], T steps of F features; the extremes are over the sample's time.
    """
    low, high = extremes(x, "series")
    return torch.where(drop, _drawn(x, low, high, generator), x)


def text(x: Tensor, drop: Tensor, real: Tensor) -> Tensor:
    """Replace each dropped token by the one before it that is kept, or by the first that is.

    x: tokens [N, L]; real: which of them are no padding. Padding stays where it is and stands for
    no word.
    """
    places = torch.arange(x.shape[1], device=x.device).expand_as(x)
    kept = real & ~drop
    source = torch.where(kept, places, -1).cummax(1).values
    source = torch.where(source < 0, kept.int().argmax(1, keepdim=True), source)
    return x.gather(1, torch.where(real, source, places))


def extremes(x: Tensor, data: str) -> tuple[Tensor, Tensor]:
    """Return the bounds of the random numbers, shaped to expand to `x`."""
    over = (1,) if data == "series" else tuple(range(1, x.ndim))
    return x.amin(over, keepdim=True), x.amax(over, keepdim=True)


def _drawn(x: Tensor, low: Tensor, high: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return drawn.mul_(high - low).add_(low)
