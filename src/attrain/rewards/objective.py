"""From a reward to a loss that can be called backward on."""

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from attrain import audit
from attrain.errors import CreditError, InputError, unknown
from attrain.rewards import checks
from attrain.rewards.formulas import Reward, sign

Reduction = Literal["none", "mean", "sum"]


class Objective(torch.autograd.Function):
    """A loss whose value is minus the reward and whose gradient is minus the credit."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        value: Tensor,
        gradient: Tensor,
        total: Tensor | float,
        over: tuple[int, ...],
    ) -> Tensor:
        """Return `value`; keep what each output is to receive, to be divided by `total`."""
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.total, ctx.over = out.dtype, total, over
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Give every output minus its credit, times the reduction's weight and `upstream`."""
        (gradient,) = ctx.saved_tensors
        share = upstream[0] / ctx.total
        for dim in ctx.over:
            share = share.unsqueeze(dim)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise CreditError(
                "an objective of attrain.rewards has no second derivative: its credit is a "
                "constant. Call backward() without create_graph=True."
            )
        return (gradient * share).to(ctx.dtype), None, None, None, None


def objective(
    out: Tensor,
    reward: Callable[[Tensor], Reward],
    reduction: Reduction,
    epsilon: float | None = None,
) -> Tensor:
    """Check `out`, gather its `reward` and return the loss; `epsilon` None is the context's."""
    if reduction not in ("none", "mean", "sum"):
        raise unknown("reduction", str(reduction), ("none", "mean", "sum"))
    if epsilon is not None and not (0 < epsilon < math.inf):
        raise InputError(
            f"epsilon={epsilon} must be a positive number: rewards of this kind are divided by "
            "|output| + epsilon, and an output may be 0."
        )
    o = checks.outputs(out)
    # The value of a reward with a slope, o times the slope, shows what is not finite in o.
    shown = epsilon is None and reduction != "none" and checks.visible(o)
    if not shown:
        checks.finite(o)
    audit_graph(out)
    with torch.no_grad():
        try:
            given = reward(o)
        except InputError:
            checks.finite(o)  # the first fault to be named
            raise
        total: Tensor | float = 1.0
        over: tuple[int, ...] = ()
        value = given.loss
        if reduction == "none":
            over = given.over
            value = value.sum(over) if over else value
        else:
            value = value.sum()
            if shown and not math.isfinite(value):
                checks.finite(o)
        if reduction == "mean":
            total = given.total
            if isinstance(total, Tensor) and checks.visible(o):
                checks.counted(float(total))
            value = value / total
        gradient = minus_credit(given, epsilon, owed(out))
    return cast(Tensor, Objective.apply(out, value, gradient, total, over))


def owed(out: Tensor) -> float:
    """Return the stabiliser that the credit context left for the consumer of `out` to apply."""
    return float(getattr(getattr(out, "_attrain", None), "epsilon", 0.0))


def minus_credit(reward: Reward, epsilon: float | None, owed: float) -> Tensor:
    """Return -r / (o + sign(o) epsilon); a reward with a slope takes the epsilon that is owed.

    A reward that judges is handed on as it is where `epsilon` is None.
    """
    o, gradient = reward.o, reward.gradient
    if gradient is None:
        assert reward.judged is not None
        if epsilon is None:  # the function that made the outputs divides it
            return -reward.judged
        return -reward.judged * sign(o) / (o.abs() + epsilon)
    if owed == 0.0:
        return gradient
    return torch.addcdiv(gradient, gradient, o.abs().add_(owed), value=-owed)


def audit_graph(out: Tensor) -> None:
    """See to it that the forward pass ran under a credit context."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    if not out.requires_grad:
        raise InputError(
            "out does not require grad, so no credit can flow back from it: run the forward pass "
            "with gradients enabled and without .detach(), or, to evaluate only, call the "
            "objective under torch.no_grad()."
        )
    run = getattr(getattr(out, "_attrain", None), "audit", None)
    # What was computed outside the context, `out.squeeze(1)`, has no mark: its graph has.
    (audit.check if run is None else run)(out)
