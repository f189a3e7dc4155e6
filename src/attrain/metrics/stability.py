"""How much an attribution changes when it should not: with noise, another seed, another baseline.

All functions compare sample by sample, whatever the shape of a sample.
"""

import torch
from torch import Tensor

from attrain.errors import InputError


def relative_change(attribution: Tensor, other: Tensor) -> Tensor:
    """Return |other - attribution| / |attribution| of each sample, Euclidean norms, [N].

    0 where both are 0 everywhere, infinite where only `attribution` is. Raises InputError for
    shapes that differ.
    """
    a_NF, b_NF = _pair(attribution, other)
    change, size = (b_NF - a_NF).norm(dim=1), a_NF.norm(dim=1)
    return torch.where(change == 0, 0.0, change / size)


def rank_correlation(attribution: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each sample's values with the other's, [N].

    In -1..1; equal values share the mean of their ranks. NaN where one of both is the same
    everywhere, so that it has no order. Raises InputError for shapes that differ.
    """
    a_NF, b_NF = (_ranks(each) for each in _pair(attribution, other))
    a_NF = a_NF - a_NF.mean(1, keepdim=True)
    b_NF = b_NF - b_NF.mean(1, keepdim=True)
    correlation_N: Tensor = (a_NF * b_NF).sum(1) / (a_NF.norm(dim=1) * b_NF.norm(dim=1))
    return correlation_N


def relative_spread(draws: Tensor) -> Tensor:
    """Return the standard deviation over draws in the size of their mean, [N].

    draws: [S, N, ...], S >= 2 attributions of the same samples. The deviation is the root of the
    sum over the features of the sample variances (S - 1), the size the Euclidean norm of the mean.
    0 where all draws are 0. Raises InputError for less than two draws.
    """
    if draws.ndim < 3 or len(draws) < 2:
        raise InputError(
            f"a spread needs at least two draws [S, N, ...], got the shape {tuple(draws.shape)}."
        )
    draws_SNF = draws.detach().double().flatten(2)
    deviation, size = draws_SNF.var(0).sum(1).sqrt(), draws_SNF.mean(0).norm(dim=1)
    return torch.where(deviation == 0, 0.0, deviation / size)


def _pair(attribution: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if attribution.shape != other.shape or attribution.ndim < 2:
        raise InputError(
            f"two attributions of the same samples [N, ...] are compared, got the shapes "
            f"{tuple(attribution.shape)} and {tuple(other.shape)}."
        )
    return attribution.detach().double().flatten(1), other.detach().double().flatten(1)


def _ranks(values_NF: Tensor) -> Tensor:
    """Return the rank of each value in its row from 0, ties with the mean of theirs."""
    ordered_NF = values_NF.sort(dim=1).values
    below = torch.searchsorted(ordered_NF, values_NF.contiguous(), side="left")
    upto = torch.searchsorted(ordered_NF, values_NF.contiguous(), side="right")
    return (below + upto - 1).double() / 2
