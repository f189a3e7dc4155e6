"""The gradient of the model's own output, by which features are ranked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import layers
from attrain.attribution.targets import scores
from attrain.errors import InputError
from attrain.guided import checks

Place = tuple[str, nn.Module] | None
"""The embedding of a text model, by name and module; None for inputs that are numbers."""


def watched(call: Callable[[Tensor], Any], x: Tensor, embedding: Place) -> tuple[Tensor, Tensor]:
    """Return the outputs of a forward pass, and the tensor whose gradient ranks the features.

    That is the input itself, or what the embedding returned for it.
    """
    if embedding is None:
        point = x if x.requires_grad else x.detach().requires_grad_()
        return scores(call(point)), point
    found: list[Tensor] = []

    def keep(z: Tensor) -> Tensor:
        found.append(z if z.requires_grad else z.detach().requires_grad_())
        return found[0]

    with layers.replacing(*embedding, keep):
        out = scores(call(x))
    if found[0].ndim != 3 or found[0].shape[:2] != x.shape:
        raise InputError(
            f"embedding {embedding[0]!r} turns tokens {list(x.shape)} into "
            f"{list(found[0].shape)}: one vector per token, [N, L, D], is wanted."
        )
    return out, found[0]


def own_output(out: Tensor, y: Tensor | None) -> Tensor:
    """Return the sum over the samples of output y [N], or with None of the largest output."""
    index = out.detach().argmax(1) if y is None else y
    return out.gather(1, index[:, None]).sum()


def gradient(value: Tensor, point: Tensor, *, again: bool) -> Tensor:
    """Return d value / d point; `again`: the graph is needed once more. No `.grad` is written.

    Raises InputError where there is none, and for a compiled model, whose graph serves one backward
    pass, with `again`.
    """
    if not value.requires_grad:
        return checks.gradient(None)
    try:
        (found,) = torch.autograd.grad(value, point, retain_graph=again, allow_unused=True)
    except RuntimeError as error:
        if not (again and "donated" in str(error)):
            raise
        raise InputError(
            "form='shared' goes back through the training pass twice, and what torch.compile made "
            "can be gone through once: use form='exact' or 'fast', or set "
            "torch._functorch.config.donated_buffer = False."
        ) from error
    return checks.gradient(found)


def per_feature(gradients: Tensor, data: str) -> Tensor:
    """Return one number per feature.

    Images [N, C, ...] give the mean over channels [N, ...], flat ones [N, D] and series [N, T, F]
    themselves, texts [N, L, D] the sum over the word's vector [N, L].
    """
    if data == "text":
        return gradients.sum(2)
    return gradients.mean(1) if data == "image" and gradients.ndim > 2 else gradients
