"""Slow, obvious twins of saliency guided training: loops over samples, features and words."""

import math

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, x: Tensor, y: Tensor, log: bool = False) -> Tensor:
    """Return d f_y / dx, or d log p_y / dx, of each sample on its own, in evaluation mode."""
    training = model.training
    model.eval()
    found = []
    for n in range(len(x)):
        sample = x[n : n + 1].clone().requires_grad_()
        out = model(sample)[0]
        if log:
            out = out - torch.logsumexp(out, 0)
        found.append(torch.autograd.grad(out[y[n]], sample)[0][0])
    model.train(training)
    return torch.stack(found)


def lowest(scores: list[float], k: int) -> list[bool]:
    """Return which of the scores are the k lowest; of equal ones the earlier comes first."""
    order = sorted(range(len(scores)), key=lambda place: (scores[place], place))
    return [place in order[:k] for place in range(len(scores))]


def scores_of(gradient: Tensor, data: str, order: str) -> list[float]:
    """Return one number per feature of a sample."""
    if data == "image" and gradient.ndim > 1:
        channels = [gradient[c].flatten().tolist() for c in range(len(gradient))]
        found = [sum(place) / len(channels) for place in zip(*channels, strict=True)]
    elif data == "text":
        found = [sum(word) for word in gradient.tolist()]
    else:
        found = gradient.flatten().tolist()
    return [abs(value) for value in found] if order == "absolute" else found


def masked_image(x: Tensor, drop: Tensor, generator: torch.Generator) -> Tensor:
    out = x.clone()
    for n in range(len(x)):
        low, high = min(x[n].flatten().tolist()), max(x[n].flatten().tolist())
        flat = out[n].flatten()
        places = drop[n].flatten().tolist()
        for place in range(flat.numel()):
            drawn = torch.rand((), generator=generator, dtype=x.dtype).item()
            if places[place % len(places)]:
                flat[place] = low + (high - low) * drawn
        out[n] = flat.view(x[n].shape)
    return out


def masked_series(x: Tensor, drop: Tensor, generator: torch.Generator) -> Tensor:
    out = x.clone()
    for n in range(len(x)):
        for t in range(x.shape[1]):
            for f in range(x.shape[2]):
                drawn = torch.rand((), generator=generator, dtype=x.dtype).item()
                if drop[n, t, f]:
                    low, high = min(x[n, :, f].tolist()), max(x[n, :, f].tolist())
                    out[n, t, f] = low + (high - low) * drawn
    return out


def masked_text(words: list[int], drop: list[bool], padding: int | None) -> list[int]:
    kept = [word for word, gone in zip(words, drop, strict=True) if word != padding and not gone]
    found, before = [], kept[0]
    for word, gone in zip(words, drop, strict=True):
        if word == padding:
            found.append(word)
            continue
        before = before if gone else word
        found.append(before)
    return found


def divergence(p_of: Tensor, q_of: Tensor) -> Tensor:
    """Return the mean over samples of sum p log(p / q), of logits [N, C], term by term."""
    total = p_of.new_zeros(())
    for n in range(len(p_of)):
        p = p_of[n].exp() / p_of[n].exp().sum()
        q = q_of[n].exp() / q_of[n].exp().sum()
        for c in range(len(p)):
            total = total + p[c] * (p[c] / q[c]).log()
    return total / len(p_of)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    total = out.new_zeros(())
    for n in range(len(out)):
        total = total - out[n, y[n]] + out[n].exp().sum().log()
    return total / len(out)


def count(fraction: float, features: int) -> int:
    return min(math.floor(round(fraction * features, 6)), features - 1)
