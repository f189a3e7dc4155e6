"""Steps between `backward()` and `optimizer.step()`."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from attrain.errors import InputError


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clipping: float = 0.02, *, floor: float = 1e-3
) -> None:
    """Shorten each neuron's gradient (or feedback) to `clipping` times the norm of its weights.

    A neuron is a row of a weight [out, ...]; vectors and single numbers are one unit as a whole.
    g <- g * min(1, clipping * max(|w|, floor) / |g|), in place (Brock et al. 2021,
    arXiv:2102.06171, equation 3). Call it after `backward()` and before `optimizer.step()`.

    Args:
        parameters: tensors with their `.grad`; those without one are left out.
        clipping: largest |g| / |w|.
        floor: least norm that weights count with, so that those at zero can move.

    Raises InputError for numbers that are not above 0 and finite.
    """
    for name, value in (("clipping", clipping), ("floor", floor)):
        if not 0.0 < value < math.inf:
            raise InputError(f"{name}={value} is not possible: give a finite number above 0.")
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        longest = _unit_norms(parameter.detach()).clamp_(min=floor).mul_(clipping)
        # A neuron without a gradient is divided by what keeps 0 / 0 away.
        length = _unit_norms(gradient).clamp_(min=torch.finfo(gradient.dtype).tiny)
        gradient.mul_(longest.div_(length).clamp_(max=1.0).to(gradient.dtype))


def _unit_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each row, shaped so that it broadcasts to `tensor`; of vectors, one."""
    over = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=over, keepdim=True)
    return norms
