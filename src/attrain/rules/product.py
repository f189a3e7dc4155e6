"""Rules where two tensors that carry credit meet: products, quotients, attention."""

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrain.marks import Kind
from attrain.rules.activation import nonlinear, whole
from attrain.rules.call import Call, stabilise


def product(call: Call, *, in_place: bool = False) -> Any:
    """Elementwise products.

    By a constant: linear. By a parameter: a diagonal linear map. Of two activations: half of the
    credit each (the uniform rule of AttnLRP). Of two functions of the same tensor: an activation
    written out by hand, or its normalisation by its own statistic, which counts as a constant.
    """
    if call.derived:
        return call.mark_derived(call.run())
    if len(call.activations) == 2 and not call.parameters:
        related = _of_one_tensor(call, in_place)
        if related is not None:
            return related
        call.enter(factor=0.5, in_place=in_place)
        return call.finish(call.run())
    return _scaled(call, in_place)


def _scaled(call: Call, in_place: bool) -> Any:
    """One activation times a constant or a parameter."""
    mark = None if call.parameters else call.settings.plain
    if mark is None:
        mark = call.settings.pending
    elif len(call.activations) == 1 and not in_place:
        z = call.activations[0]
        known = call.mark(z)
        mark = call.related(call.root(z), kind=known.kind, curved=known.curved)
    call.enter(in_place=in_place, norms=not call.parameters)
    return call.finish(call.run(), mark)


def _of_one_tensor(call: Call, in_place: bool) -> Any:
    """Return the product of two functions of one tensor, None where they are of several."""
    a, b = call.activations
    for value, statistic in ((a, b), (b, a)):
        if call.mark(statistic).kind is Kind.INVERSE and _normalises(call, value, statistic):
            return _by_constant(call, value, statistic, in_place)
    root = call.root(a)
    related = root is call.root(b)
    if related and not in_place and call.mark(a).kind is call.mark(b).kind is Kind.STATISTIC:
        call.enter(factor=0.5)
        return call.finish(call.run(), call.related(root, kind=Kind.STATISTIC))
    if not related or a is b:
        return _square(call) if a is b and not in_place else None
    if call.mark(a).kind is not Kind.ACTIVATION or call.mark(b).kind is not Kind.ACTIVATION:
        return None
    if in_place:
        raise call.refuse(
            "two functions of the same tensor are multiplied in place",
            "Write `y = a * b` instead of `a *= b`, or use the activation from torch.nn.",
        )
    with torch.no_grad():
        value = call.run()
    return whole(call, root, value)


def _square(call: Call) -> Any:
    root = call.root(call.activations[0])
    if call.mark(call.activations[0]).kind is not Kind.ACTIVATION:
        return None
    with torch.no_grad():
        value = call.run()
    return whole(call, root, value)


def _normalises(call: Call, value: Tensor, statistic: Tensor) -> bool:
    """Whether `statistic` was taken from `value`, or from what `value` is made of.

    Not where `value` is curved: exp(z) / sum(exp(z)) is a softmax, whose slope is its own.
    """
    mark = call.mark(value)
    return (
        mark.kind in (Kind.ACTIVATION, Kind.CENTRED)
        and not mark.curved
        and call.root(value) is call.root(statistic)
    )


def _by_constant(call: Call, value: Tensor, statistic: Tensor, in_place: bool) -> Any:
    call.replace({id(statistic): statistic.detach()})
    call.enter(in_place=in_place)
    return call.finish(call.run())


def quotient(call: Call, *, in_place: bool = False) -> Any:
    """Quotients: by a constant, linear; by a statistic of the numerator, its normalisation."""
    if call.derived:
        return call.mark_derived(call.run())
    numerator, denominator = call.args[0], call.option(1, "other", default=None)
    reverse = getattr(call.func, "__name__", "") in ("__rtruediv__", "__rdiv__")
    if reverse:
        numerator, denominator = denominator, numerator
    if not isinstance(denominator, Tensor) or not denominator.requires_grad:
        return _scaled(call, in_place)
    if any(denominator is each for each in call.parameters):
        raise call.refuse(
            "an activation is divided by a parameter, which is no linear map",
            "Multiply by a parameter instead, or detach() the divisor.",
        )
    if not isinstance(numerator, Tensor) or not numerator.requires_grad:
        return nonlinear(call, keeps_sign=isinstance(numerator, (int, float)) and numerator >= 0)
    if call.mark(denominator).kind in (Kind.STATISTIC, Kind.NORM) and _normalises(
        call, numerator, denominator
    ):
        return _by_constant(call, numerator, denominator, in_place)
    root = call.root(numerator)
    if (
        root is call.root(denominator)
        and call.mark(numerator).kind is Kind.ACTIVATION
        and call.mark(denominator).kind is Kind.ACTIVATION
        and not in_place
    ):
        with torch.no_grad():
            value = call.run()
        return whole(call, root, value)
    raise call.refuse(
        "an activation is divided by another one",
        "Use torch.softmax or a normalisation layer where that is meant, or detach() the divisor.",
    )


class Attention(torch.autograd.Function):
    """Scaled dot product attention: torch's own value forward, the unfused credit backward.

    Credit of the output: half to the attention weights, half to the values; softmax keeps its
    derivative; of the scores, half to the queries and half to the keys (AttnLRP).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        run: Callable[..., Any],
        options: dict[str, Any],
        epsilons: tuple[float, ...],
    ) -> Tensor:
        ctx.scaled = ()
        ctx.options, ctx.epsilons = options, epsilons
        if options["dropout_p"] > 0.0:
            out, weights = _attend(query, key, value, bias, options)
            ctx.save_for_backward(query, key, value, bias, weights)
        else:
            out = run(query, key, value, bias)
            ctx.save_for_backward(query, key, value, bias, None)
        return out

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        query, key, value, bias, dropped = ctx.saved_tensors
        epsilon, *owed = ctx.epsilons
        repeats = query.shape[-3] // key.shape[-3] if ctx.options["enable_gqa"] else 1
        keys = key.repeat_interleave(repeats, -3) if repeats > 1 else key
        values = value.repeat_interleave(repeats, -3) if repeats > 1 else value
        scale = ctx.options["scale"]
        raw = (query @ keys.transpose(-2, -1)).mul_(scale)
        scores = _masked(raw, bias, ctx.options)
        weights = torch.softmax(scores, -1, dtype=raw.dtype)
        if bias is not None:
            # A query that may look nowhere: torch's forward gives it 0, a softmax gives NaN.
            weights = weights.masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)
        mixed = weights if dropped is None else dropped
        credit_values = (mixed.transpose(-2, -1) @ credit).mul_(0.5)
        credit_weights = (credit @ values.transpose(-2, -1)).mul_(0.5)
        if dropped is not None:
            credit_weights *= torch.where(weights == 0, 0.0, dropped / weights)
        credit_scores = weights * (
            credit_weights - (weights * credit_weights).sum(-1, keepdim=True)
        )
        credit_bias = None
        if bias is not None and ctx.needs_input_grad[3]:
            credit_bias = credit_scores.sum_to_size(bias.shape)
        if epsilon:
            # The linear map is the product before it is scaled.
            credit_scores = stabilise(credit_scores, raw, epsilon * scale)
        credit_query = (credit_scores @ keys).mul_(0.5 * scale)
        credit_keys = (credit_scores.transpose(-2, -1) @ query).mul_(0.5 * scale)
        results = [
            _collect(gradient, each.shape, repeats)
            for gradient, each in (
                (credit_query, query),
                (credit_keys, key),
                (credit_values, value),
            )
        ]
        for index, each in enumerate((query, key, value)):
            if owed[index]:
                results[index] = stabilise(results[index], each, owed[index])
        return *results, credit_bias, None, None, None


def _collect(gradient: Tensor, shape: torch.Size, repeats: int) -> Tensor:
    """Sum the heads that share a key, and whatever was broadcast."""
    if repeats > 1 and gradient.shape[-3] != shape[-3]:
        gradient = gradient.reshape(
            *gradient.shape[:-3], shape[-3], repeats, *gradient.shape[-2:]
        ).sum(-3)
    return gradient.sum_to_size(shape)


def _masked(scores: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Tensor:
    if options["is_causal"]:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~keep, -math.inf)
    if bias is None:
        return scores
    return scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return attention with dropout, as torch computes it, and the weights that dropout left."""
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -math.inf)
    with torch.autocast(query.device.type, enabled=False):
        out, weights = torch.ops.aten._scaled_dot_product_attention_math(
            query,
            key,
            value,
            bias,
            options["dropout_p"],
            options["is_causal"],
            scale=options["scale"],
            enable_gqa=options["enable_gqa"],
        )
    return out, weights


def _cast(tensor: Tensor | None) -> Tensor | None:
    """Cast as autocast does inside of attention, so that the way back meets one type."""
    if tensor is None or tensor.dtype in (torch.bool, torch.float64):
        return tensor
    device = tensor.device.type
    return (
        tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
    )


def attention(call: Call) -> Any:
    """`scaled_dot_product_attention`, unfused on the way back (memory T^2 there)."""
    call.refuse_norms()
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments = call.named(names)
    query, key, value = (arguments[name] for name in names[:3])
    bias = arguments.get("attn_mask")
    options = {
        "dropout_p": arguments.get("dropout_p", 0.0),
        "is_causal": arguments.get("is_causal", False),
        "enable_gqa": arguments.get("enable_gqa", False),
        "scale": arguments.get("scale") or 1 / math.sqrt(query.shape[-1]),
    }
    native = {name: arguments[name] for name in ("scale", "enable_gqa") if name in arguments}

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = call.func(
            query, key, value, bias, options["dropout_p"], options["is_causal"], **native
        )
        return out

    if call.parameters:
        call = Call(call.settings, call.func, (query, key, value, bias), {})
        call.enter()
        query, key, value, bias = call.args
    epsilons = (
        call.settings.epsilon,
        *(call.mark(each).epsilon if each.requires_grad else 0.0 for each in (query, key, value)),
    )
    query, key, value, bias = (_cast(each) for each in (query, key, value, bias))
    out = Attention.apply(query, key, value, bias, run, options, epsilons)
    return call.finish(out, call.settings.pending, layer=True)


_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {}


def opened(call: Call) -> Any:
    """A Python function of torch that hides its parts from the mode: run a copy of its body."""
    return call.settings.reenter(body_of(call.func), *call.args, **call.kwargs)


def body_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a function of torch.nn.functional whose parts a mode sees.

    Functions of torch.nn.functional hand themselves whole to an active mode and run with it
    switched off; the copy answers its own question, whether anything overrides torch, with no.
    """
    if func not in _OPENED:
        hidden = {
            name: (lambda *arguments: False)
            for name in func.__globals__
            if name.startswith("has_torch_function")
        }
        _OPENED[func] = types.FunctionType(
            func.__code__, func.__globals__ | hidden, func.__name__, func.__defaults__
        )
        _OPENED[func].__kwdefaults__ = func.__kwdefaults__
    return _OPENED[func]
