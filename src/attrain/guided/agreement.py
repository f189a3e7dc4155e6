"""How far the answer to the masked input is from the answer to the whole one."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from attrain import marks
from attrain.rewards.formulas import Reward
from attrain.rewards.objective import Objective, audit_graph, minus_credit, owed


def divergence(clean: Tensor, masked: Tensor, outputs: str) -> Tensor:
    """Return KL(f(x) || f(x~)), the mean over samples, of outputs [N, C] of a kind in OUTPUTS."""
    return F.kl_div(
        _log_probabilities(masked, outputs),
        _log_probabilities(clean, outputs),
        reduction="batchmean",
        log_target=True,
    )


def agreement(clean: Tensor, masked: Tensor, outputs: str) -> Tensor:
    """Return the divergence, whose gradient is minus the credit for outputs of a credit context.

    By Theorem 1 of the LFP paper the reward is r = -o dKL/do, of both outputs; one that is
    detached earns nothing.
    """
    judged = [out for out in (clean, masked) if marks.get(out) is not None and out.requires_grad]
    if not judged:
        return divergence(clean, masked, outputs)
    for out in judged:
        audit_graph(out)
    p, q = (
        out.detach().requires_grad_(any(out is each for each in judged)) for out in (clean, masked)
    )
    with torch.enable_grad():
        value = divergence(p, q, outputs)
    slopes = torch.autograd.grad(value, [leaf for leaf in (p, q) if leaf.requires_grad])
    total = value.detach()
    for out, slope in zip(judged, slopes, strict=True):
        gradient = minus_credit(Reward(out.detach(), 1.0, gradient=slope), None, owed(out))
        zero = torch.zeros_like(total)
        total = total + cast(Tensor, Objective.apply(out, zero, gradient, 1.0, ()))
    return total


def _log_probabilities(out: Tensor, outputs: str) -> Tensor:
    out = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
    if outputs == "logits":
        return F.log_softmax(out, 1)
    if outputs == "log_probabilities":
        return out
    return out.clamp(min=torch.finfo(out.dtype).tiny).log()
