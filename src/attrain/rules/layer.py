"""Linear and convolution layers under a rule of their own: one node of autograd per call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attrain import marks
from attrain.errors import CreditError
from attrain.marks import Kind, Mark
from attrain.rules import linear
from attrain.rules.call import Action, Call, Credit, Scale, mean_magnitude, scale_feedback
from attrain.rules.decomposition import (
    Decomposition,
    Epsilon,
    LinearMap,
    Signed,
    credit,
    decompose,
    stabilised,
    wide,
)

# Nodes of autograd whose results are never negative, and those that leave that as it is.
_RECTIFIES = ("ReluBackward0",)
_KEEPS = (
    "MaxPool2DWithIndicesBackward0",
    "MaxPool3DWithIndicesBackward0",
    "AvgPool2DBackward0",
    "AdaptiveAvgPool2DBackward0",
    "MeanBackward1",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "CreditBackward",
)


class Operands(NamedTuple):
    """The inputs, the weight and the bias of a linear map among the arguments of a call.

    axes: how many axes of the outputs lie behind the one that the bias is added along.
    """

    a: Tensor
    w: Tensor
    b: Tensor | None
    axes: int = 0


@dataclass
class Layers:
    """What a context with rules of its own knows.

    rule_of: the rule of the weight that takes part in a call. feedback: "rule", a parameter gets
    sign(w) times the rule's message (equation 4); "epsilon", what the epsilon rule would give it.
    """

    rule_of: Callable[[Call, Tensor], Decomposition]
    feedback: str = "rule"
    watched: list[tuple[Tensor, Any, str]] = field(default_factory=list)


def layered(call: Call, layers: Layers) -> Any:
    """`linear.weighted`, under the rule of the weight that takes part."""
    weights, found = operands(call)
    if not weights:
        return linear.weighted(call)
    rule = layers.rule_of(call, weights[0])
    settings = call.settings
    if isinstance(rule, Epsilon):
        out = linear.weighted(call)
        if rule.epsilon is not None and out.requires_grad:
            marks.put(out, Mark(epsilon=rule.epsilon, audit=settings.pending.audit))
        return out
    if found is None:
        raise call.refuse(
            f"{rule!r} is a rule for one tensor times one weight, and more takes part here",
            "Write it as products of two, or give it the epsilon rule: rules={'name': 'epsilon'}.",
        )
    call.refuse_norms()
    _check_inputs(call, rule, found.a.detach(), layers)
    how = _How(
        rule=rule,
        epsilon=settings.epsilon if rule.epsilon is None else rule.epsilon,
        owed=settings.pending.epsilon,
        feedback=layers.feedback,
        scale=settings.scale,
        apply=_map(call, found),
        axes=found.axes,
        nonnegative=nonnegative(found.a),
    )
    out = Decomposed.apply(call.run, how, _entered(call, found.a), found.w, found.b)
    return call.finish(out, settings.pending, layer=True)


def operands(call: Call) -> tuple[list[Tensor], Operands | None]:
    """Return the weights that take part in a product, and its operands if they are two.

    A weight is a parameter of the model, learning or frozen, what is computed from parameters
    alone, and whatever a linear or convolution layer takes for its weight without credit.
    """
    name = getattr(call.func, "__name__", "")
    kinds = {id(tensor): mark.kind for _, tensor, mark in call.entrants}
    if _is_layer(name):
        a, w, b = (
            call.option(i, key, default=None) for i, key in enumerate(("input", "weight", "bias"))
        )
        if kinds.get(id(w), Kind.PARAMETER) is not Kind.PARAMETER:
            return [], None
        found = Operands(a, w, b, 0 if name == "linear" else w.ndim - 2)
        return [w], None if _carries(kinds, b) else found
    if call.derived:
        return [], None
    added = _added(call, linear._added(name))
    factors = [each for each in _tensors([*call.args, *call.kwargs.values()]) if each is not added]
    weights = [each for each in factors if _is_weight(call, kinds, each)]
    others = [each for each in factors if not any(each is weight for weight in weights)]
    multiplied = any(call.kwargs.get(key, 1) != 1 for key in ("alpha", "beta"))
    if len(weights) != 1 or len(others) != 1 or multiplied or _carries(kinds, added):
        return weights, None
    return weights, Operands(others[0], weights[0], added)


def _added(call: Call, places: Sequence[int | str]) -> Tensor | None:
    for place in places:
        if isinstance(place, int) and place < len(call.args):
            return call.args[place] if isinstance(call.args[place], Tensor) else None
        if isinstance(place, str) and place in call.kwargs:
            return call.kwargs[place] if isinstance(call.kwargs[place], Tensor) else None
    return None


def _is_layer(name: str) -> bool:
    return name == "linear" or name.lstrip("_").startswith("conv")


def _carries(kinds: dict[int, Kind], added: Tensor | None) -> bool:
    """Whether what is added is an activation, which has a share of the reward."""
    return kinds.get(id(added), Kind.PARAMETER) is not Kind.PARAMETER


def _is_weight(call: Call, kinds: dict[int, Kind], tensor: Tensor) -> bool:
    kind = kinds.get(id(tensor))
    return call.settings.is_constant(tensor) if kind is None else kind is Kind.PARAMETER


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


_INPUTS, _WEIGHT, _ADDED = object(), object(), object()


def _map(call: Call, found: Operands) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the call as a function of its inputs and weight; it keeps none of its tensors."""
    func, layer = call.func, _is_layer(getattr(call.func, "__name__", ""))
    places = {id(found.a): _INPUTS, id(found.w): _WEIGHT}
    if found.b is not None:
        places[id(found.b)] = None if layer else _ADDED

    def replaced(value: Any, by: dict[int, Any]) -> Any:
        if isinstance(value, (list, tuple)):
            return [replaced(each, by) for each in value]
        return by.get(id(value), value)

    arguments = [replaced(each, places) for each in call.args]
    options = {name: replaced(each, places) for name, each in call.kwargs.items()}

    def apply(x: Tensor, y: Tensor) -> Tensor:
        by = {id(_INPUTS): x, id(_WEIGHT): y, id(_ADDED): y.new_zeros(())}
        out: Tensor = func(
            *(replaced(each, by) for each in arguments),
            **{name: replaced(each, by) for name, each in options.items()},
        )
        return out

    return apply


def _entered(call: Call, a: Tensor) -> Tensor:
    """Return the inputs after a node that pays what they owe on the way back."""
    mark = next((mark for _, tensor, mark in call.entrants if tensor is a), None)
    if mark is None:
        return a
    if mark.kind is Kind.PARAMETER:
        action = call.settings.scaled
    elif mark.epsilon:
        action = Action(epsilon=mark.epsilon)
    else:
        return a
    entered: Tensor = Credit.apply((action,), a)
    return entered


def nonnegative(a: Tensor) -> bool:
    """Whether no value is negative, as far as that can be told without waiting for a device."""
    return bool((a.detach() >= 0).all()) if a.is_cpu else rectified(a)


def rectified(a: Tensor) -> bool:
    """Whether a ReLU made a tensor, or pools and views made it of what a ReLU did."""
    node = a.grad_fn
    while node is not None and node.name() in _KEEPS:
        node = node.next_functions[0][0]
    return node is not None and node.name() in _RECTIFIES


def _check_inputs(call: Call, rule: Decomposition, a: Tensor, layers: Layers) -> None:
    """Raise where inputs break what the rule assumes; on a GPU as soon as it has told so."""
    while layers.watched and layers.watched[0][1].query():
        host, _, text = layers.watched.pop(0)
        if float(host) > 0:
            raise CreditError(text)
    excess = rule.excess(a)
    if excess is None:
        return
    error = call.refuse(
        f"inputs leave the bounds of {rule!r}",
        "Give the bounds of the data as the layer gets them, after normalisation, or none: Box() "
        "takes those of each sample.",
    )
    if excess.is_cuda:
        host = torch.empty((), dtype=excess.dtype, pin_memory=True)
        host.copy_(excess, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(excess.device))
        layers.watched.append((host, event, str(error)))
    elif float(excess) > 0:
        raise error


class _How(NamedTuple):
    """Everything about a call's rule that is no tensor.

    `owed` is the stabiliser that the result owes, `epsilon` the rule's own.
    """

    rule: Decomposition
    epsilon: float
    owed: float
    feedback: str
    scale: Scale
    apply: Callable[[Tensor, Tensor], Tensor]
    axes: int
    nonnegative: bool


class Decomposed(torch.autograd.Function):
    """A linear map as torch computes it, whose credit and feedback follow a rule of its own.

    What comes back has paid the epsilon that the result owes, so r_j = c_j (z_j + sign(z_j)
    epsilon) is the reward itself, also where z_j is 0 and its activation is not.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], Tensor], how: _How, a: Tensor, w: Tensor, b: Tensor | None
    ) -> Tensor:
        ctx.scaled = (False, True, True)
        ctx.how = how
        z = run()
        # A copy, since an activation may overwrite the result.
        ctx.save_for_backward(a, w, b, z.clone())
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> Any:
        a, w, b, z = ctx.saved_tensors
        how: _How = ctx.how
        wanted = ctx.needs_input_grad[2:]
        # The rules' own products are no part of any model.
        with torch._C.DisableTorchFunction(), torch.autocast(z.device.type, enabled=False):
            of_rule = how.feedback == "rule"
            found = LinearMap(
                how.apply,
                Signed(a.to(z.dtype), how.nonnegative),
                Signed(w.to(z.dtype)),
                None if b is None else b.reshape(*b.shape, *[1] * how.axes).to(z.dtype),
                z,
            )
            messages = decompose(
                how.rule,
                found,
                wide(c) * stabilised(wide(z), how.owed),
                how.epsilon,
                inputs=wanted[0],
                weights=wanted[1] and of_rule,
                bias=wanted[2] and of_rule,
            )
            of_inputs = None
            if messages.inputs is not None:
                epsilon = 0.0 if how.rule.vanishing else how.epsilon
                of_inputs = credit(messages.inputs, a, epsilon)
            if of_rule:
                of_weight = _signed(messages.weights, w, how.scale)
                of_bias = _signed(messages.bias, b, how.scale)
            else:
                of_weight, of_bias = _as_epsilon(found, c, w, b, how.scale, wanted[1:])
        return None, None, of_inputs, of_weight, of_bias


def _signed(message: Tensor | None, w: Tensor | None, scale: Scale) -> Tensor | None:
    """Return sign(w) times the message, with sign(0) = +1: the feedback of equation 4."""
    if message is None or w is None:
        return None
    feedback = torch.where(w < 0, -message.reshape(w.shape), message.reshape(w.shape))
    return (feedback / mean_magnitude(w, scale) if scale.relative else feedback).to(w.dtype)


def _as_epsilon(
    found: LinearMap,
    s: Tensor,
    w: Tensor,
    b: Tensor | None,
    scale: Scale,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the feedback that the epsilon rule would give: |w| a_i s_j (equation 7)."""
    of_weight = of_bias = None
    if wanted[0]:
        with torch.enable_grad():
            leaf = found.w.values.detach().requires_grad_()
            z = found.apply(found.a.values, leaf)
        (gradient,) = torch.autograd.grad(z, leaf, s)
        of_weight = scale_feedback(gradient.to(w.dtype), w, scale)
    if wanted[1] and b is not None and found.b is not None:
        gradient = s.sum_to_size(found.b.shape).reshape(b.shape)
        of_bias = scale_feedback(gradient.to(b.dtype), b, scale)
    return of_weight, of_bias
