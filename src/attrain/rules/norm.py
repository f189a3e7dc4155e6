"""Rules of normalisations: linear maps whose statistics are held constant (equations 8 to 10)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrain.rules.activation import Secant
from attrain.rules.call import Call, Credit, Scale, scale_feedback, stabilise


def _finish(
    ctx: Any,
    credit_x: Tensor | None,
    x: Tensor,
    parameters: tuple[Tensor | None, ...],
    gradients: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Apply the stabiliser that the input owes, and |w| to the parameters."""
    if credit_x is not None and ctx.owed:
        credit_x = stabilise(credit_x, x, ctx.owed)
    feedback = tuple(
        None if gradient is None or parameter is None
        else scale_feedback(gradient, parameter, ctx.scale)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    )  # fmt: skip
    return credit_x, *feedback


class BatchNorm(torch.autograd.Function):
    """Batch normalisation, on the batch's statistics in training and the running ones otherwise."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        training: bool,
        momentum: float,
        eps: float,
        owed: float,
        scale: Scale,
    ) -> Tensor:
        ctx.scaled = (False, True, True)
        ctx.eps, ctx.owed, ctx.scale = eps, owed, scale
        out, mean, inverse, _, _ = torch._batch_norm_impl_index(
            x, weight, bias, *running, training, momentum, eps, torch.backends.cudnn.enabled
        )
        ctx.inverse = training
        ctx.save_for_backward(x, weight, bias, *((mean, inverse) if training else running))
        return out

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        x, weight, bias, mean, variance = ctx.saved_tensors
        if ctx.inverse:
            variance = variance.pow(-2).sub_(ctx.eps)
        needs = ctx.needs_input_grad
        credit_x, *gradients = torch.ops.aten.native_batch_norm_backward(
            credit, x, weight, mean, variance, None, None, False, ctx.eps, needs[:3]
        )
        settled = _finish(ctx, credit_x if needs[0] else None, x, (weight, bias), tuple(gradients))
        return *settled, None, None, None, None, None, None


class LayerNorm(torch.autograd.Function):
    """Layer normalisation over the last axes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: list[int],
        eps: float,
        owed: float,
        scale: Scale,
    ) -> Tensor:
        ctx.scaled = (False, True, True)
        ctx.shape, ctx.owed, ctx.scale = shape, owed, scale
        out, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad
        gradients: tuple[Tensor | None, ...] = (None, None)
        if needs[1] or needs[2]:
            _, *found = torch.ops.aten.native_layer_norm_backward(
                credit, x, ctx.shape, mean, inverse, weight, bias, (False, needs[1], needs[2])
            )
            gradients = tuple(found)
        credit_x = None
        if needs[0]:
            credit_x = credit * inverse if weight is None else (credit * weight).mul_(inverse)
        return *_finish(ctx, credit_x, x, (weight, bias), gradients), None, None, None, None


class Standardise(torch.autograd.Function):
    """(x - mean) * inverse * weight + bias with mean and inverse constant; `value` is forward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        value: Tensor,
        mean: Tensor | None,
        inverse: Tensor,
        shape: tuple[int, ...],
        owed: float,
        scale: Scale,
    ) -> Tensor:
        ctx.scaled = (False, True, True)
        ctx.shape, ctx.owed, ctx.scale = shape, owed, scale
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wide = credit.to(inverse.dtype)
        grad_weight = grad_bias = credit_x = None
        if needs[1]:
            normalised = (x if mean is None else x - mean) * inverse
            grad_weight = (wide * normalised).sum_to_size(ctx.shape).reshape(weight.shape)
            grad_weight = grad_weight.to(weight.dtype)
        if needs[2]:
            grad_bias = wide.sum_to_size(ctx.shape).reshape(bias.shape).to(bias.dtype)
        if needs[0]:
            scaled = wide if weight is None else wide * weight.reshape(ctx.shape)
            credit_x = (scaled * inverse).to(x.dtype)
        settled = _finish(ctx, credit_x, x, (weight, bias), (grad_weight, grad_bias))
        return *settled, *(None,) * 6


def _names_of_statistics(call: Call, switch: str) -> tuple[str, ...]:
    """Return the positions' names: torch.nn.functional takes the statistics before the weights."""
    running, affine = ("running_mean", "running_var"), ("weight", "bias")
    if getattr(call.func, "__module__", "") == "torch.nn.functional":
        return ("input", *running, *affine, switch, "momentum", "eps")
    return ("input", *affine, *running, switch, "momentum", "eps")


def _owed(call: Call, x: Tensor) -> float:
    return call.mark(x).epsilon if x.requires_grad else 0.0


def _entered(call: Call, x: Tensor) -> Tensor:
    """Return the input of a normalisation; a learned tensor is scaled where it enters."""
    call.refuse_norms()
    if any(x is each for each in call.parameters):
        scaled: Tensor = Credit.apply((call.settings.scaled,), x)
        return scaled
    return x


def batch_norm(call: Call) -> Any:
    """Batch normalisation by equations 9 and 10, or "through" the statistics of the batch."""
    if call.settings.batch_norm == "through":
        call.enter()
        return call.finish(call.run(), call.settings.pending, layer=True)
    given = call.named(_names_of_statistics(call, "training"))
    x = _entered(call, given["input"])
    training = bool(given.get("training", False))
    if training and call.func is F.batch_norm and x.numel() == x.shape[1]:
        return call.run()  # raises torch's own error: one value per channel
    out = BatchNorm.apply(
        x,
        given.get("weight"),
        given.get("bias"),
        (given.get("running_mean"), given.get("running_var")),
        training,
        given.get("momentum", 0.1),
        given.get("eps", 1e-5),
        _owed(call, x),
        call.settings.scale,
    )
    return call.finish(out, call.settings.pending, layer=True)


def layer_norm(call: Call) -> Any:
    """Layer normalisation with constant statistics."""
    given = call.named(("input", "normalized_shape", "weight", "bias", "eps"))
    x, shape = _entered(call, given["input"]), list(given["normalized_shape"])
    weight, bias, eps = given.get("weight"), given.get("bias"), given.get("eps", 1e-5)
    if torch.is_autocast_enabled(x.device.type):
        axes = tuple(range(-len(shape), 0))
        return _standardise(call, x, weight, bias, _moments(x, axes, eps), tuple(shape))
    out = LayerNorm.apply(x, weight, bias, shape, eps, _owed(call, x), call.settings.scale)
    return call.finish(out, call.settings.pending, layer=True)


def group_norm(call: Call) -> Any:
    """Group normalisation with constant statistics."""
    given = call.named(("input", "num_groups", "weight", "bias", "eps"))
    x, groups = _entered(call, given["input"]), given["num_groups"]
    eps = given.get("eps", 1e-5)
    with torch.no_grad():
        grouped = x.reshape(x.shape[0], groups, -1)
        spread = (x.shape[0], x.shape[1], *(1 for _ in x.shape[2:]))
        repeats = x.shape[1] // groups
        moments = tuple(
            each.repeat_interleave(repeats, 1).reshape(spread)
            for each in _moments(grouped, (2,), eps)
        )
    return _standardise(call, x, given.get("weight"), given.get("bias"), moments, _per_channel(x))


def instance_norm(call: Call) -> Any:
    """Instance normalisation with constant statistics."""
    given = call.named(_names_of_statistics(call, "use_input_stats"))
    x, eps = _entered(call, given["input"]), given.get("eps", 1e-5)
    shape = _per_channel(x)
    if given.get("use_input_stats", True):
        moments = _moments(x, tuple(range(2, x.ndim)), eps)
    else:
        moments = (
            given["running_mean"].clone().reshape(shape),
            (given["running_var"] + eps).rsqrt().reshape(shape),
        )
    return _standardise(call, x, given.get("weight"), given.get("bias"), moments, shape)


def rms_norm(call: Call) -> Any:
    """Root mean square normalisation with a constant root mean square."""
    given = call.named(("input", "normalized_shape", "weight", "eps"))
    x, shape = _entered(call, given["input"]), tuple(given["normalized_shape"])
    eps = given.get("eps")
    with torch.no_grad():
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = wide.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
        inverse = (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return _standardise(call, x, given.get("weight"), None, (None, inverse), shape)


def _per_channel(x: Tensor) -> tuple[int, ...]:
    return (1, x.shape[1], *(1 for _ in x.shape[2:]))


@torch.no_grad()
def _moments(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    return mean, (variance + eps).rsqrt()


def _standardise(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: tuple[Any, ...],
    shape: tuple[int, ...],
) -> Any:
    with torch.no_grad():
        value = call.run()
    out = Standardise.apply(
        x, weight, bias, value, *moments, shape, _owed(call, x), call.settings.scale
    )
    return call.finish(out, call.settings.pending, layer=True)


def normalize(call: Call) -> Any:
    """`F.normalize`: division by a norm that counts as constant."""
    if call.derived:
        return call.mark_derived(call.run())
    p = call.option(1, "p", default=2.0)
    dim = call.option(2, "dim", default=1)
    eps = call.option(3, "eps", default=1e-12)
    return _divided(call, lambda x, value: x.norm(p, dim, keepdim=True).clamp_min(eps).reciprocal())


def local_response_norm(call: Call) -> Any:
    """Local response normalisation: division by a constant, value / x."""
    if call.derived:
        return call.mark_derived(call.run())
    return _divided(call, lambda x, value: torch.where(x == 0, 0.0, value / x))


def _divided(call: Call, slope: Callable[[Tensor, Tensor], Tensor]) -> Any:
    call.enter()
    x = call.args[0]
    with torch.no_grad():
        value = call.run()
        factor = slope(x, value)
    return call.finish(Secant.apply(x, value, factor))
