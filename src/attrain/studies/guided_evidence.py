"""Where the gradient of a digit lies, what a mask takes of it, and what the noise in it does."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.attribution import attribute
from attrain.guided import masks
from attrain.guided.agreement import divergence
from attrain.metrics.distribution import object_of

INK, RIM, FAR = "ink", "rim", "far"
RIM_WIDTH = 2
"""Pixels around the ink that count as its rim."""
SIGNED, BY_SIZE, BY_CHANCE, TOP = "signed", "absolute", "random", "highest"
ORDERS = (SIGNED, BY_SIZE, BY_CHANCE, TOP)
"""Which half is masked: the lowest by signed gradient or by |gradient|, chance, the highest."""


def zones(x: Tensor) -> dict[str, Tensor]:
    """Return where the ink of digits [N, C, H, W] is, its rim and the rest: booleans [N, H, W]."""
    ink = object_of(x)[:, 0]
    wide = F.max_pool2d(ink[:, None].float(), 2 * RIM_WIDTH + 1, 1, RIM_WIDTH)[:, 0] > 0
    return {INK: ink, RIM: wide & ~ink, FAR: ~wide}


def signed_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the logit of the label, the mean over channels [N, H, W]."""
    found: Tensor = attribute(model, x, y, method="saliency", abs=False)
    return found.mean(1)


def masses(g: Tensor, x: Tensor) -> dict[str, float]:
    """Return the shares of |g| [N, H, W] that lie in each zone of `x`, means over the samples.

    "ink", "rim", "far"; "contrary": where g < 0 off the ink, so that ink there would lower the
    output; "for": where g > 0 on the ink.
    """
    size = g.abs()
    places = zones(x)
    places |= {"contrary": (g < 0) & ~places[INK], "for": (g > 0) & places[INK]}
    whole = size.sum((1, 2))
    return {
        name: float(((size * place).sum((1, 2)) / whole).nanmean())
        for name, place in places.items()
    }


def half(g: Tensor, order: str, generator: torch.Generator | None = None) -> Tensor:
    """Return which half of the places an order masks, booleans shaped as `g` [N, H, W]."""
    k = masks.count(0.5, g[0].numel())
    if order == BY_CHANCE:
        return masks.lowest(torch.rand(g.shape, generator=generator), k)
    return masks.lowest({SIGNED: g, BY_SIZE: g.abs(), TOP: -g}[order], k)


def taken(drop: Tensor, g: Tensor, x: Tensor) -> dict[str, float]:
    """Return what a mask `drop` [N, H, W] takes, means over the samples.

    "ink": share of the masked places that are ink; "of ink": share of the ink that is masked;
    "mass": share of |g| that is masked; "contrary": share of the masked |g| that is negative and
    off the ink.
    """
    places, size = zones(x), g.abs()
    masked = (size * drop).sum((1, 2))
    against = (size * (drop & (g < 0) & ~places[INK])).sum((1, 2))
    on_ink = (drop & places[INK]).sum((1, 2))
    found = {
        "ink": on_ink / drop.sum((1, 2)),
        "of ink": on_ink / places[INK].sum((1, 2)),
        "mass": masked / size.sum((1, 2)),
        "contrary": against / masked,
    }
    return {name: float(each.nanmean()) for name, each in found.items()}


def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    drop: Tensor,
    g: Tensor,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Return what the noise that stands for masked places does to the outputs of a model.

    Means over the samples: "first order", the change of the label's logit by its gradient g
    [N, H, W], for one channel; "logit", its real change; "margin", that of its lead over the
    highest other; "divergence", KL(f(x) || f(x~)); "accuracy", on x~.
    """
    masked = masks.image(x, drop, generator)
    with torch.no_grad():
        before, after = model(x), model(masked)
    label = y[:, None]

    def lead(out: Tensor) -> Tensor:
        others = out.scatter(1, label, -torch.inf).amax(1)
        return out.gather(1, label)[:, 0] - others

    return {
        "first order": float((g * (masked - x).sum(1)).sum((1, 2)).mean()),
        "logit": float((after - before).gather(1, label).mean()),
        "margin": float((lead(after) - lead(before)).mean()),
        "divergence": float(divergence(before, after, "logits")),
        "accuracy": float((after.argmax(1) == y).double().mean()),
    }


def without_ink(x: Tensor, share: float, seed: int = 0) -> Tensor:
    """Return digits [N, C, H, W] with a random `share` of each one's ink turned to background."""
    ink = object_of(x)[:, 0]
    drawn = torch.rand(ink.shape, generator=torch.Generator().manual_seed(seed))
    rank = drawn.masked_fill(~ink, 2.0).flatten(1).argsort(1).argsort(1).view(ink.shape)
    gone = rank < (share * ink.sum((1, 2), keepdim=True)).round()
    return torch.where(gone[:, None], x[:, :, :1, :1], x)


def parts(areas: Mapping[tuple[bool, bool], float]) -> tuple[float, float]:
    """Return by how much an area changes by another model, and by how much by its map.

    areas: of (another model?, another map?). Each is the mean over the two ways to change it
    first, so that both add up to the whole change.
    """
    model = (areas[True, False] - areas[False, False] + areas[True, True] - areas[False, True]) / 2
    return model, areas[True, True] - areas[False, False] - model
