"""Does a model lose its answer when the words that an attribution calls important are deleted?

Comprehensiveness and sufficiency of texts of different lengths, as ERASER defines them: words are
taken out and those after them move up, so that nothing stands in their place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.metrics.batches import Predict, answers
from attrain.metrics.faithfulness import AOPC


def comprehensiveness(
    predict: Predict,
    tokens: Tensor,
    scores: Tensor,
    *,
    padding: int = 0,
    fractions: Sequence[float] = AOPC,
    seed: int = 0,
) -> Tensor:
    """Return by how much the predicted class falls when the top words are deleted, [N].

    tokens: int [N, L], `padding` after the end of a text. scores: [N, L], the highest on top; of
    equal ones those first that come first in an order drawn from `seed`. The mean over `fractions`
    of p_j(x) - p_j(x without them), where j is the class that `predict` (probabilities) has highest
    for x; of a text's words max(1, round(fraction * words)) are taken, halves to the even number.
    DeYoung et al., 2020, AOPC; paper 003, equation 5. Raises InputError for shapes that differ,
    fractions outside 0..1, texts without a word, scores that are not finite, and outputs that are
    NaN or not [N, C].
    """
    return _aopc(predict, tokens, scores, padding, fractions, seed, keep=False)


def sufficiency(
    predict: Predict,
    tokens: Tensor,
    scores: Tensor,
    *,
    padding: int = 0,
    fractions: Sequence[float] = AOPC,
    seed: int = 0,
) -> Tensor:
    """Return by how much the predicted class falls when all but the top words are deleted, [N].

    As `comprehensiveness`; lower is more faithful. Paper 003, equation 6.
    """
    return _aopc(predict, tokens, scores, padding, fractions, seed, keep=True)


def only(tokens: Tensor, keep: Tensor, padding: int = 0) -> Tensor:
    """Return texts [N, L] of the words `keep` [N, L] alone, in their order, then padding."""
    order = keep.long().argsort(dim=1, descending=True, stable=True)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.gather(1, order).masked_fill(place >= keep.sum(1, keepdim=True), padding)


def _aopc(
    predict: Predict,
    tokens: Tensor,
    scores: Tensor,
    padding: int,
    fractions: Sequence[float],
    seed: int,
    *,
    keep: bool,
) -> Tensor:
    real = _words(tokens, scores, padding, fractions)
    whole = answers(predict, tokens)
    top = whole.argmax(1, keepdim=True)
    ranks = _ranks(scores, real, seed)
    words = real.sum(1, keepdim=True)
    falls = []
    for fraction in fractions:
        chosen = ranks < (fraction * words.double()).round().clamp_min(1)
        left = only(tokens, real & (chosen if keep else ~chosen), padding)
        falls.append((whole - answers(predict, left)).gather(1, top)[:, 0])
    return torch.stack(falls).mean(0)


def _ranks(scores: Tensor, real: Tensor, seed: int) -> Tensor:
    """Return the place of each word in its text's order, 0 for the highest; padding comes last."""
    drawn = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed))
    drawn = drawn.to(scores.device)
    given = scores.detach().double().masked_fill(~real, -torch.inf)
    order = drawn[given[:, drawn].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(scores.shape[1], device=scores.device).expand(order.shape)
    return torch.empty_like(order).scatter_(1, order, places)


def _words(tokens: Tensor, scores: Tensor, padding: int, fractions: Sequence[float]) -> Tensor:
    """Return which tokens are words, [N, L]; raises InputError for what does not fit."""
    whole = not (tokens.is_floating_point() or tokens.dtype == torch.bool)
    if tokens.ndim != 2 or not whole or scores.shape != tokens.shape:
        raise InputError(
            f"texts are whole numbers [N, L] with a score of each, got {tokens.dtype} "
            f"{tuple(tokens.shape)} and scores {tuple(scores.shape)}."
        )
    if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
        raise InputError(f"fractions are shares of the words, in 0..1: got {tuple(fractions)}.")
    real = tokens != padding
    empty = ~real.any(1)
    if len(tokens) == 0 or empty.any():
        raise InputError(
            f"{int(empty.sum())} of {len(tokens)} texts have no word, and one or more is wanted of "
            "each: leave such texts out."
        )
    if not torch.isfinite(scores[real]).all():
        raise InputError("the scores have values that are NaN or infinite: no order in them.")
    return real
