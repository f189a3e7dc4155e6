"""How the values of a saliency map are spread: few that stand out, or many alike (paper 003)."""

from typing import NamedTuple

import torch
from torch import Tensor

from attrain.errors import InputError

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


class Spread(NamedTuple):
    """Figures of each sample, [N], of its gradient divided by its largest |gradient|.

    low, quartile_1, median, quartile_3, high: quantiles at 1, 25, 50, 75 and 99%, in -1..1.
    interquartile: quartile_3 - quartile_1. kurtosis: fourth central moment over the squared
    variance, 3 for a normal distribution. on_object: share of the sum of |gradient| on the object,
    in 0..1; None without one. All are NaN for a gradient that is 0 everywhere, and kurtosis
    alone where all values are equal.
    """

    low: Tensor
    quartile_1: Tensor
    median: Tensor
    quartile_3: Tensor
    high: Tensor
    interquartile: Tensor
    kurtosis: Tensor
    on_object: Tensor | None


def gradient_distribution(gradient: Tensor, on_object: Tensor | None = None) -> Spread:
    """Return how the signed values of each gradient [N, ...] are distributed (paper 003, figure 2).

    on_object: booleans of the same shape, true where the object is. Quantiles are interpolated
    linearly between neighbours. The sharper the map, the smaller the interquartile range and the
    larger the kurtosis. Raises InputError for an object of another shape or kind, for no samples,
    and for values that are not finite.
    """
    if gradient.ndim < 2 or 0 in gradient.shape:
        raise InputError(f"gradients of samples [N, ...] are wanted, got {tuple(gradient.shape)}.")
    if not torch.isfinite(gradient).all():
        raise InputError("the gradient has values that are NaN or infinite: no distribution.")
    g_NF = gradient.detach().double().flatten(1)
    g_NF = g_NF / g_NF.abs().amax(1, keepdim=True)  # 0 / 0 = NaN
    places = torch.tensor(QUANTILES, dtype=torch.double, device=g_NF.device)
    low, first, middle, third, high = _quantiles(g_NF, places)
    centred_NF = g_NF - g_NF.mean(1, keepdim=True)
    variance_N = centred_NF.square().mean(1)
    return Spread(
        low, first, middle, third, high, third - first,
        torch.where(variance_N > 0, centred_NF.pow(4).mean(1) / variance_N.square(), torch.nan),
        None if on_object is None else _share(g_NF, on_object, gradient.shape),
    )  # fmt: skip


def object_of(x: Tensor) -> Tensor:
    """Return where images [N, C, H, W] differ from their own corner pixel, booleans of x's shape.

    All channels of a place belong to the object where one differs. For images whose background is
    one colour, as MNIST's. Raises InputError for what is no image.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise InputError(f"objects are found in images [N, C, H, W], got {tuple(x.shape)}.")
    return (x != x[:, :, :1, :1]).any(1, keepdim=True).expand(x.shape)


def _quantiles(values_NF: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    # torch.quantile refuses more than 2**24 values at once.
    ranked_NF = values_NF.sort(dim=1).values
    position = places * (values_NF.shape[1] - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=values_NF.shape[1] - 1)
    found_NQ = torch.lerp(ranked_NF[:, below], ranked_NF[:, above], position - below)
    return found_NQ.unbind(1)


def _share(g_NF: Tensor, on_object: Tensor, shape: torch.Size) -> Tensor:
    if on_object.shape != shape or on_object.dtype != torch.bool:
        raise InputError(
            f"an object is booleans of the gradient's shape {tuple(shape)}, got {on_object.dtype} "
            f"of {tuple(on_object.shape)}."
        )
    size_NF = g_NF.abs()
    share_N: Tensor = (size_NF * on_object.flatten(1)).sum(1) / size_NF.sum(1)
    return share_N
