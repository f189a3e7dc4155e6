"""Does an attribution lie where the informative features are known to be?

Ismail et al., 2020, weighted precision and recall: by saliency mass, not by counts. Attributions
and boxes are [N, T, F] (time, feature) or of any other shape of a sample; a box is boolean.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attrain.errors import InputError

SHARES = tuple(step / 10 for step in range(1, 10))
"""Shares of the saliency mass that a top set has to hold."""

# A sum of shares may miss what they add up to in its last digits.
_ROUNDING = 1e-12

Reference = Callable[[Tensor, int], Tensor]
"""From an attribution and a seed to one that knows nothing."""


class Curves(NamedTuple):
    """Precision and recall of each sample, [shares, N], in 0..1; NaN where there is no mass."""

    precision: Tensor
    recall: Tensor


class Areas(NamedTuple):
    """Areas under the mean curves over .1 to .9, in 0..0.8, and how many samples they are of."""

    precision: float
    recall: float
    samples: int


def precision_recall(
    attribution: Tensor, box: Tensor, shares: Sequence[float] = SHARES, *, seed: int = 0
) -> Curves:
    """Return how much of a top set's mass is in the box, and how much of the box's mass in it.

    |attribution| is scaled to 0..1 by the minimum and maximum of each sample. For each share the
    top set is the smallest one of the largest values that holds at least this share of their sum;
    of equal values those are first that come first in an order drawn from `seed`. precision = mass
    of (top and box) / mass of top, recall = mass of (top and box) / mass of box, 0 where the box
    has none. An attribution that is the same everywhere has no mass: NaN. Raises InputError for
    shapes that differ, boxes that are not boolean or empty, shares outside (0, 1], and values that
    are not finite.
    """
    _check(attribution, box, shares)
    size_NF, box_NF = attribution.detach().abs().double().flatten(1), box.flatten(1)
    low_N1, high_N1 = size_NF.amin(1, keepdim=True), size_NF.amax(1, keepdim=True)
    mass_NF = (size_NF - low_N1) / (high_N1 - low_N1)  # 0 / 0 = NaN where all are equal
    drawn_F = torch.randperm(size_NF.shape[1], generator=torch.Generator().manual_seed(seed))
    drawn_F = drawn_F.to(size_NF.device)
    order_NF = drawn_F[size_NF[:, drawn_F].argsort(dim=1, descending=True, stable=True)]
    ranked_NF, inside_NF = mass_NF.gather(1, order_NF), box_NF.gather(1, order_NF)
    held_NF = ranked_NF.cumsum(1)
    held_inside_NF = (ranked_NF * inside_NF).cumsum(1)
    total_N1, box_N1 = held_NF[:, -1:], held_inside_NF[:, -1:]
    wanted_NS = total_N1 * torch.tensor(shares, dtype=torch.double, device=size_NF.device)
    last_NS = (held_NF[:, None, :] < wanted_NS[:, :, None] * (1 - _ROUNDING)).sum(2)
    last_NS = last_NS.clamp(max=size_NF.shape[1] - 1)
    inside_NS = held_inside_NF.gather(1, last_NS)
    recall_NS = torch.where(box_N1 == 0, 0.0, inside_NS / box_N1)
    return Curves((inside_NS / held_NF.gather(1, last_NS)).T, recall_NS.T)


def aup_aur(
    attribution: Tensor, box: Tensor, shares: Sequence[float] = SHARES, *, seed: int = 0
) -> Areas:
    """Return the areas under mean precision and mean recall, by the trapezoid rule over `shares`.

    The curves are means over the samples that have a mass; the areas are not divided by their
    width, so with the shares .1 to .9 the best is 0.8. Ismail et al., 2020; paper 003, section 4.3.
    Raises InputError as `precision_recall` does, for less than two shares or shares that do not
    rise, and where no sample has a mass.
    """
    if len(shares) < 2 or any(b <= a for a, b in zip(shares, shares[1:], strict=False)):
        raise InputError(f"an area is over two or more shares that rise, got {tuple(shares)}.")
    curves = precision_recall(attribution, box, shares, seed=seed)
    counted_N = ~curves.precision.isnan().any(0)
    if not counted_N.any():
        raise InputError(
            f"the attributions of all {len(attribution)} samples are the same everywhere: there is "
            "no mass to compare with a box."
        )
    x = torch.tensor(shares, dtype=torch.double, device=counted_N.device)
    areas = [float(torch.trapezoid(c[:, counted_N].mean(1), x)) for c in curves]
    return Areas(areas[0], areas[1], int(counted_N.sum()))


def features_permuted(attribution: Tensor, seed: int) -> Tensor:
    """Return the attribution with its last axis permuted, alike for all samples and times.

    The random baseline of Ismail et al., 2020, as their benchmark computes it. It keeps the time
    at which there is saliency, so it is no order that knows nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    order_F = torch.randperm(attribution.shape[-1], generator=generator)
    return attribution[..., order_F.to(attribution.device)]


def all_permuted(attribution: Tensor, seed: int) -> Tensor:
    """Return the values of each sample in an order of their own, drawn uniformly from all."""
    generator = torch.Generator().manual_seed(seed)
    flat_NF = attribution.flatten(1)
    order_NF = torch.rand(flat_NF.shape, generator=generator).argsort(1).to(attribution.device)
    return flat_NF.gather(1, order_NF).reshape(attribution.shape)


def words_permuted(attribution: Tensor, seed: int, real: Tensor) -> Tensor:
    """Return the values of the words of each text [N, L] in an order of their own.

    As `all_permuted`, where `real` [N, L] says which places are words: padding stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn_NL = torch.rand(attribution.shape, generator=generator).to(attribution.device)
    # The k-th word in the order drawn takes the k-th place of a word.
    source_NL = drawn_NL.masked_fill(~real, 2.0).argsort(1)
    place_NL = (~real).byte().argsort(dim=1, stable=True)
    moved_NL = torch.empty_like(attribution).scatter_(1, place_NL, attribution.gather(1, source_NL))
    return torch.where(real, moved_NL, attribution)


def above_random(
    attribution: Tensor,
    box: Tensor,
    shares: Sequence[float] = SHARES,
    *,
    reference: Reference = features_permuted,
    draws: int = 1,
    seed: int = 0,
) -> Areas:
    """Return `aup_aur` minus that of a random attribution, the mean of `draws` (equations 7, 8).

    reference: `features_permuted`, the benchmark's own, or `all_permuted`. Raises InputError as
    `aup_aur` does, and for less than one draw.
    """
    if draws < 1:
        raise InputError(f"a reference needs at least one draw, got {draws}.")
    ours = aup_aur(attribution, box, shares, seed=seed)
    theirs = [
        aup_aur(reference(attribution, seed + draw), box, shares, seed=seed)
        for draw in range(draws)
    ]
    return Areas(
        ours.precision - sum(each.precision for each in theirs) / draws,
        ours.recall - sum(each.recall for each in theirs) / draws,
        ours.samples,
    )


def _check(attribution: Tensor, box: Tensor, shares: Sequence[float]) -> None:
    if attribution.shape != box.shape or attribution.ndim < 2 or 0 in attribution.shape:
        raise InputError(
            f"an attribution [N, ...] and the boxes of its samples have one shape, got "
            f"{tuple(attribution.shape)} and {tuple(box.shape)}."
        )
    if box.dtype != torch.bool:
        raise InputError(f"a box says of each feature whether it is in: boolean, got {box.dtype}.")
    empty = ~box.flatten(1).any(1)
    if empty.any():
        raise InputError(
            f"{int(empty.sum())} of {len(box)} boxes are empty, the first is that of sample "
            f"{int(empty.nonzero()[0])}: leave such samples out."
        )
    if not all(0 < share <= 1 for share in shares) or not shares:
        raise InputError(f"shares of the mass lie in (0, 1], at least one: got {tuple(shares)}.")
    if not torch.isfinite(attribution).all():
        raise InputError("the attribution has values that are NaN or infinite: no mass in them.")
