"""Attribution of a model's output to its inputs."""

import torch
from torch import Tensor, nn


def saliency(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return how strongly each place of the inputs moves the target's logit.

    The absolute gradient of logit `target` [N] with respect to `x` [N, C, ...], the largest over
    the channels: [N, ...]. Inputs without channels [N, D] give [N, D]. The model stays in its mode;
    no parameter gets a gradient. Simonyan et al., 2014.
    """
    # captum takes seconds to import, and only this needs it.
    from captum.attr import Saliency

    # captum warns of inputs that do not require grad yet, and would change the caller's.
    inputs = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        heat: Tensor = Saliency(model).attribute(inputs, target=target, abs=True).detach()
    return heat.amax(1) if heat.ndim > 2 else heat
