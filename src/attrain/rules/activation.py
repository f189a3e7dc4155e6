"""Rules of nonlinearities: the secant slope phi(z) / (z + sign(z) epsilon) replaces phi'(z).

An activation hands its reward on unchanged (equation 1 to 3), so its credit per unit is multiplied
by phi(z) / z; the stabiliser of the linear map before it (equation 6) is part of the same ratio.
"""

from typing import Any

import torch
from torch import Tensor

from attrain import marks
from attrain.marks import NO_ACTIVATIONS, STATISTICS, Kind, Mark
from attrain.rules.call import Action, Call, Credit, Scale, name_of, scale_feedback
from attrain.rules.quantised import handed_on

NO_SIGN = (
    "{name} does not keep the sign of its input: its secant slope is unbounded near 0 and credit "
    "through it is unreliable (paper 3.4). Prefer tanh, SiLU or ReLU, attrain.rules.gated for a "
    "gate, or set opposite_sign='flip'."
)


def secant_slope(value: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Return phi(z) / (z + sign(z) epsilon) with sign(0) = +1, and 0 where that divides by 0.

    Half precision forms the ratio in float32.
    """
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    if epsilon == 0.0:
        return torch.where(z == 0, 0.0, value / z)
    # Adding 0.0 turns -0.0 into +0.0, whose sign is +1.
    return value / torch.copysign(torch.tensor(epsilon, dtype=z.dtype), z + 0.0).add_(z)


class Secant(torch.autograd.Function):
    """`value` forward, as a function of `z`; credit times `slope` backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.scaled = ()
        ctx.dtype = z.dtype
        ctx.save_for_backward(slope)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return (credit * slope).to(ctx.dtype), None, None


class SecantInPlace(torch.autograd.Function):
    """`Secant` that overwrites `z` with `value`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.scaled = ()
        ctx.mark_dirty(z)
        ctx.save_for_backward(slope)
        return z.copy_(value)

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        return (credit * ctx.saved_tensors[0]).to(credit.dtype), None, None


def relu(call: Call, *, in_place: bool = False) -> Any:
    """ReLU: its derivative is its secant, up to the stabiliser, which is passed on.

    Where the output is above zero it equals z, and |z| / (|z| + epsilon) is left to the consumer,
    which may be smaller (a pool) or has a pass over the output to make anyway.
    """
    if not call.activations:
        return call.mark_derived(call.run())
    call.refuse_norms()
    z = call.activations[0]
    mark = call.mark(z)
    root = call.root(z) if mark.kind is Kind.ACTIVATION else z
    if in_place or bool(call.option(1, "inplace", default=False)):
        return call.finish(call.run(), call.settings.owing(mark.epsilon))
    return call.finish(call.run(), Mark(epsilon=mark.epsilon, root=root, audit=mark.audit))


def homogeneous(call: Call, *, in_place: bool = False) -> Any:
    """Leaky ReLU and its kin, phi(z) = z phi'(z): their derivative is their secant."""
    if call.activations and call.mark(call.activations[0]).epsilon == 0.0:
        return call.finish(call.run())
    return nonlinear(call, in_place=in_place)


def nonlinear(
    call: Call, *, in_place: bool = False, keeps_sign: bool = True, flat: bool = False
) -> Any:
    """Any elementwise nonlinearity phi of one activation.

    Where phi does not keep the sign of z (3.4 of the paper), the slope explodes near 0:
    `opposite_sign="flip"` takes the oppositely signed reward there (footnote 12). A `flat` phi has
    no useful derivative, so what it makes of a weight hands its feedback on.
    """
    if not call.activations:
        handed = flat and not in_place
        return call.mark_derived(handed_on(call, keeps_sign) if handed else call.run())
    if len(call.activations) > 1 or call.parameters:
        raise call.refuse(
            "it mixes several tensors that carry credit, and credit has no rule for that",
            "Write it from functions of one tensor each, or detach() one of them.",
        )
    z = call.activations[0]
    mark = call.mark(z)
    if not keeps_sign and mark.kind is Kind.ACTIVATION:
        name = name_of(call.func)
        call.settings.warn_once(
            name,
            NO_SIGN.format(name=name),
        )
    in_place = in_place or bool(call.kwargs.get("inplace", False))
    root = call.root(z)
    kind = _kind_after(call, mark.kind)
    if kind is Kind.ACTIVATION and mark.kind is not Kind.ACTIVATION:
        root = z  # a function of the statistic, which has another shape than what it measured
    # Where the secant has a pole at 0 it is stabilised even if nothing is owed.
    epsilon = mark.epsilon if keeps_sign else call.settings.epsilon
    kept = call.related(root, kind=kind, curved=True) if mark.kind in STATISTICS else None
    if mark.kind is Kind.NORM:  # it has no slope: it is a constant, or a part of the objective
        return call.finish(call.run(), kept)
    if in_place:
        before = z.detach().clone()
        with torch.no_grad():
            value = call.func(before, *call.args[1:], **call.kwargs)
            slope = _slope(call, value, z.detach(), epsilon)
        return call.finish(SecantInPlace.apply(z, value, slope), kept)
    with torch.no_grad():
        value = call.run()
        slope = _slope(call, value, z, epsilon)
    out = Secant.apply(z, value, slope)
    return call.finish(out, call.related(root, kind=kind, curved=True))


def _slope(call: Call, value: Tensor, z: Tensor, epsilon: float) -> Tensor:
    slope = secant_slope(value, z, epsilon)
    return slope.abs() if call.settings.opposite_sign == "flip" else slope


def _kind_after(call: Call, kind: Kind) -> Kind:
    """Return what a function of a statistic is: its reciprocal powers may normalise."""
    if kind not in (Kind.STATISTIC, Kind.NORM, Kind.INVERSE):
        return kind
    name = getattr(call.func, "__name__", "")
    exponent = call.option(1, "exponent", default=None) if "pow" in name else None
    if name in ("rsqrt", "reciprocal", "__rtruediv__", "__rdiv__", "true_divide", "div") or (
        isinstance(exponent, (int, float)) and exponent < 0
    ):
        return Kind.INVERSE
    if name in (
        "sqrt",
        "sqrt_",
        "clamp",
        "clamp_min",
        "clip",
        "maximum",
        "square",
        "pow",
        "__pow__",
    ):
        return kind
    return kind if kind in NO_ACTIVATIONS else Kind.ACTIVATION


def whole(call: Call, root: Tensor, value: Tensor) -> Any:
    """`value` as one nonlinear function of `root`: an activation written out by hand.

    A function of `root` may stand for a root that is gone, since the slope is the same:
    value / root = (value / curve) (curve / root).
    """
    slope = _slope(call, value, root.detach(), call.settings.epsilon)
    return call.finish(Secant.apply(root, value, slope), call.related(root, curved=True))


class PReLU(torch.autograd.Function):
    """PReLU: the secant for the activation; its slope is a weight of min(z, 0)."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, value: Tensor, slope: Tensor, scale: Scale
    ) -> Tensor:
        ctx.scaled = (False, True)
        ctx.scale = scale
        ctx.save_for_backward(z, weight, slope)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        z, weight, slope = ctx.saved_tensors
        feedback = None
        if ctx.needs_input_grad[1]:
            below = credit * z.clamp_max(0)
            shape = [1] * z.ndim
            if weight.numel() > 1:
                shape[min(1, z.ndim - 1)] = weight.numel()
            gradient = below.sum_to_size(shape).reshape(weight.shape).to(weight.dtype)
            feedback = scale_feedback(gradient, weight, ctx.scale)
        return (credit * slope).to(z.dtype), feedback, None, None, None


def prelu(call: Call) -> Any:
    """PReLU, whose slope is a parameter."""
    if call.derived:
        return call.mark_derived(call.run())
    call.refuse_norms()
    z, weight = call.args[0], call.option(1, "weight", default=None)
    with torch.no_grad():
        value = call.run()
        slope = _slope(call, value, z, call.mark(z).epsilon)
    return call.finish(PReLU.apply(z, weight, value, slope, call.settings.scale))


class Gate(torch.autograd.Function):
    """a * sigmoid(b): half of the credit to each factor, the sigmoid's half by its secant."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, value: Tensor, epsilon: float) -> Tensor:
        ctx.scaled = ()
        ctx.epsilon = epsilon
        ctx.save_for_backward(a, b)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        a, b = ctx.saved_tensors
        gate = b.sigmoid()
        half = credit * 0.5
        return half * gate, half * a * secant_slope(gate, b, ctx.epsilon), None, None


def glu(call: Call) -> Any:
    """Gated linear unit, torch.nn.functional.glu."""
    if not call.activations:
        return call.mark_derived(call.run())
    call.refuse_norms()
    with torch.no_grad():
        value = call.run()
    call.settings.warn_once("torch.sigmoid", NO_SIGN.format(name="the sigmoid of F.glu"))
    x = call.args[0]
    owed = call.mark(x).epsilon
    a, b = x.chunk(2, call.option(1, "dim", default=-1))
    if owed:
        a = Credit.apply((Action(epsilon=owed),), a)
    return call.finish(Gate.apply(a, b, value, call.settings.epsilon))


def step(call: Call) -> Any:
    """A comparison made a number: a step activation of what was compared."""
    decision = call.decisions[0]
    source = marks.source(decision)
    value = call.run()
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if source is None or len(call.decisions) > 1:
        raise refuse_decision(call)
    slope = _slope(call, value, source.detach(), call.settings.epsilon)
    mark = call.related(call.root(source), curved=True)
    return call.finish(Secant.apply(source, value, slope), mark)


def refuse_decision(call: Call) -> Exception:
    """Return the error for a comparison that becomes a number where no rule can follow it."""
    return call.refuse(
        "a comparison of activations becomes a number here, and credit would stop without a word",
        "Write a step as `(z > 0).float()`, wrap it with attrain.rules.elementwise, or compare "
        "z.detach().",
    )


def softmax(call: Call) -> Any:
    """Softmax and its kin keep their derivative (AttnLRP, Achtibat et al. 2024)."""
    if call.derived:
        return call.mark_derived(call.run())
    call.enter()
    return call.finish(call.run())


def compared(call: Call) -> Any:
    """A comparison: it carries no credit, but remembers what it compared."""
    out = call.run()
    if not isinstance(out, Tensor):
        return out
    if call.activations or call.decisions:
        sources = [*call.activations, *map(marks.source, call.decisions)]
        one = sources[0] if len({id(each) for each in sources}) == 1 else None
        marks.put(out, Mark(Kind.DECISION, source=one))
    elif call.parameters:
        marks.put(out, marks.PARAMETER)
    return out
