"""Does a model lose its answer when what an attribution calls important is taken away?

A *feature* is a place of the attribution, which broadcasts to the inputs: [N, 1, H, W] has one for
all channels of a pixel, [N, T, 1] one for all values of a token.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attrain.attribution.conditions import check_classes
from attrain.errors import InputError
from attrain.metrics.batches import (
    Predict,
    answers,
    check_labels,
    hits,
    spread_over,
)

FRACTIONS = tuple(step / 10 for step in range(10))
"""Shares of the features that are removed for the accuracy drop (paper 003, figure 3)."""

AOPC = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the features of comprehensiveness and sufficiency (DeYoung et al., 2020)."""


def top_features(attribution: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Return where the `count` largest |attribution| of each sample are: booleans of its shape.

    Of equal ones those are first that come first in an order drawn from `seed`, the same for all
    samples, so that an attribution that is flat somewhere has no preference there. Raises
    InputError for a count outside 0..features, and for values that are no finite numbers.
    """
    features = attribution[:1].numel()
    if not 0 <= count <= features:
        raise InputError(f"count must be in 0..{features}, the number of features: got {count}.")
    return _ranks(attribution, seed) < count


def _ranks(attribution: Tensor, seed: int) -> Tensor:
    """Return the place of each feature in its sample's order, 0 for the largest |attribution|."""
    if attribution.dtype == torch.bool:
        raise InputError("an attribution is numbers, got torch.bool: which are the largest?")
    magnitude_NF = attribution.detach().abs().flatten(1)
    if not torch.isfinite(magnitude_NF).all():
        raise InputError("the attribution has values that are NaN or infinite: no order in them.")
    features = magnitude_NF.shape[1]
    drawn_F = torch.randperm(features, generator=torch.Generator().manual_seed(seed))
    drawn_F = drawn_F.to(magnitude_NF.device)
    ordered_NF = drawn_F[magnitude_NF[:, drawn_F].argsort(dim=1, descending=True, stable=True)]
    places_NF = torch.arange(features, device=drawn_F.device).expand(ordered_NF.shape)
    return (
        torch.empty_like(ordered_NF).scatter_(1, ordered_NF, places_NF).reshape(attribution.shape)
    )


def removed(
    x: Tensor, attribution: Tensor, fraction: float, background: Tensor | float, *, seed: int = 0
) -> Tensor:
    """Return `x` [N, ...] with the top `fraction` of its features replaced by the background.

    round(fraction * features) of them, halves to the even number. background: a number or a tensor
    that broadcasts to x. Raises InputError for an attribution or a background that does not
    broadcast to x, a fraction outside 0..1, and as `top_features` does.
    """
    (changed,) = _each_removed(x, attribution, [fraction], background, seed)
    return changed


def corner(x: Tensor) -> Tensor:
    """Return the first pixel of each image [N, C, H, W], [N, C, 1, 1]: its own background.

    Replacing pixels by it leaves an image of the data's kind where the background is one colour,
    as in MNIST (paper 003, section 4.1): the accuracy drop is then one on the distribution (IID).
    Raises InputError for what is no image.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise InputError(
            f"a corner is of images [N, C, H, W], got the shape {tuple(x.shape)}: replace features "
            "of other data by their mean."
        )
    return x[:, :, :1, :1]


def random_attribution(attribution: Tensor, *, seed: int = 0) -> Tensor:
    """Return uniform random values of the same shape: an order of the features that knows nothing.

    Each sample has its own. What an attribution is held against in an accuracy drop (figure 3 of
    paper 003, "Random").
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(attribution.shape, generator=generator).to(attribution.device)


def accuracy_drop(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    attribution: Tensor,
    background: Tensor | float,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> list[float]:
    """Return the accuracy [fractions] with the top features replaced by the background.

    y: labels [N]. The lower, the more faithful; `area` makes one number of it. With the background
    of the data (a corner's pixel) the changed inputs look like data, with their mean they do not.
    Paper 003, figure 3. Raises InputError as `removed` does, for labels that do not fit, and for
    outputs that are NaN or not [N, C].
    """
    check_labels(x, y)
    return [
        float(hits(predict, changed, y).double().mean())
        for changed in _each_removed(x, attribution, fractions, background, seed)
    ]


def target_drop(
    predict: Predict,
    x: Tensor,
    target: Tensor,
    attribution: Tensor,
    background: Tensor | float,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> Tensor:
    """Return the output of class `target` [N] with the top features replaced, [fractions, N].

    As `accuracy_drop`, for each sample: what is left of its logit or probability.
    """
    check_labels(x, target)
    left = []
    for changed in _each_removed(x, attribution, fractions, background, seed):
        out = answers(predict, changed)
        check_classes(target, out.shape[1])
        left.append(out.gather(1, target.long()[:, None])[:, 0])
    return torch.stack(left)


def _each_removed(
    x: Tensor,
    attribution: Tensor,
    fractions: Sequence[float],
    background: Tensor | float,
    seed: int,
) -> Iterator[Tensor]:
    """Yield what `removed` returns for each fraction, but sort the features once."""
    counts = _counts(x, attribution, fractions)
    background = spread_over(background, x, "the background")
    ranks = _ranks(attribution, seed)
    for count in counts:
        yield torch.where(ranks < count, background, x)


def area(values: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> float:
    """Return the mean height of a curve over the fractions, by the trapezoid rule.

    In the units of `values`. Raises InputError unless there are as many of both, at least two,
    with fractions that rise.
    """
    if len(values) != len(fractions) or len(values) < 2:
        raise InputError(
            f"a curve has a value for each fraction, at least two: got {len(values)} values and "
            f"{len(fractions)} fractions."
        )
    steps = [right - left for left, right in zip(fractions, fractions[1:], strict=False)]
    if min(steps) <= 0:
        raise InputError(f"fractions must rise, got {tuple(fractions)}.")
    total = sum(
        step * (low + high) / 2 for step, low, high in zip(steps, values, values[1:], strict=False)
    )
    return float(total / (fractions[-1] - fractions[0]))


def comprehensiveness(
    predict: Predict,
    x: Tensor,
    attribution: Tensor,
    background: Tensor | float,
    *,
    fractions: Sequence[float] = AOPC,
    seed: int = 0,
) -> Tensor:
    """Return by how much the predicted class falls without the top features, [N].

    The mean over `fractions` of p_j(x) - p_j(x without them), where j is the class that `predict`
    (probabilities, say) has highest for x, and at least one feature is taken: higher is more
    faithful. DeYoung et al., 2020, AOPC. Raises InputError as `removed` does, and for outputs that
    are NaN or not [N, C].
    """
    return _aopc(predict, x, attribution, background, fractions, seed, keep=False)


def sufficiency(
    predict: Predict,
    x: Tensor,
    attribution: Tensor,
    background: Tensor | float,
    *,
    fractions: Sequence[float] = AOPC,
    seed: int = 0,
) -> Tensor:
    """Return by how much the predicted class falls with the top features alone, [N].

    As `comprehensiveness`, with everything else replaced: lower is more faithful.
    """
    return _aopc(predict, x, attribution, background, fractions, seed, keep=True)


def _aopc(
    predict: Predict,
    x: Tensor,
    attribution: Tensor,
    background: Tensor | float,
    fractions: Sequence[float],
    seed: int,
    *,
    keep: bool,
) -> Tensor:
    counts = [max(1, count) for count in _counts(x, attribution, fractions)]
    background = spread_over(background, x, "the background")
    whole = answers(predict, x)
    top = whole.argmax(1, keepdim=True)
    ranks = _ranks(attribution, seed)
    falls = []
    for count in counts:
        chosen = ranks < count
        changed = torch.where(~chosen if keep else chosen, background, x)
        falls.append((whole - answers(predict, changed)).gather(1, top)[:, 0])
    return torch.stack(falls).mean(0)


def _counts(x: Tensor, attribution: Tensor, fractions: Sequence[float]) -> list[int]:
    """Return how many features each fraction is; raises InputError for what does not fit."""
    fits = attribution.ndim == x.ndim and all(
        mine in (1, whole) for mine, whole in zip(attribution.shape[1:], x.shape[1:], strict=True)
    )
    if not fits or len(attribution) != len(x) or len(x) == 0:
        raise InputError(
            f"the attribution has the shape {tuple(attribution.shape)}, and x {tuple(x.shape)}: "
            "they must agree, or have 1 in its place where a feature spans an axis of x."
        )
    if len(fractions) == 0:
        raise InputError("no fractions of the features are given: at least one is needed.")
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise InputError(f"a fraction is a share of the features, in 0..1: got {fraction}.")
    return [round(fraction * attribution[0].numel()) for fraction in fractions]
