"""Rules of maps that are linear in what they take: their backward pass already is their rule."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrain.marks import NO_ACTIVATIONS, STATISTICS, Kind, Mark
from attrain.rules.activation import step, whole
from attrain.rules.call import Call, Scale, scale_feedback, stabilise

# Where linear and convolution layers take their weight and their bias, which is added. The
# gradient of the input and of the weight are made for them alone.
_WEIGHT = (1, "weight")
_OWNED = (0, "input", *_WEIGHT)
_ADDED_TO_LAYERS = (2, "bias")


class Linear(torch.autograd.Function):
    """`F.linear` whose way back is the credit of its input and the feedback of its parameters.

    One node in place of two, since on small models the nodes are most of what credit costs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, owed: float, scale: Scale
    ) -> Tensor:
        ctx.scaled = (False, True, True)
        ctx.owed, ctx.scale = owed, scale
        ctx.save_for_backward(x, weight, bias)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
        back = feedback = shift = None
        if wants_x:
            back = credit @ weight
            if ctx.owed:
                back = stabilise(back, x, ctx.owed, out=back)
        if wants_weight or wants_bias:
            credit = credit.reshape(-1, weight.shape[0])
        if wants_weight:
            x = x.reshape(-1, weight.shape[1])
            feedback = scale_feedback(credit.t() @ x, weight, ctx.scale, own=True)
        if wants_bias:
            shift = scale_feedback(credit.sum(0), bias, ctx.scale, own=True)
        return back, feedback, shift, None, None


def weighted(call: Call) -> Any:
    """Linear and convolution layers and matrix products (equations 2 to 7).

    A factor that carries credit shares it equally with the other factors that do: two activations
    (attention times value) take half each, the uniform rule of AttnLRP (Achtibat et al. 2024).
    """
    name = getattr(call.func, "__name__", "")
    layer = name == "linear" or name.startswith("conv")
    if not layer and call.derived:
        return call.mark_derived(call.run())
    added = _ADDED_TO_LAYERS if layer else _added(name)
    factors, raw = 0, False
    for place, tensor, mark in call.entrants:
        if mark.kind is not Kind.PARAMETER and place not in added:
            factors += 1
            raw = raw or mark.raw
            if layer and place in _WEIGHT and tensor.is_leaf:
                raise call.refuse(
                    f"its weight of shape {tuple(tensor.shape)} is no parameter of the model",
                    "Hand it to the context as well: attrain.LFP([*model.parameters(), weight]).",
                )
    if raw and factors > 1:
        raise call.refuse(
            "an activation meets a tensor made from parameters and a constant that the model does "
            "not know, and whether that is a weight or an activation cannot be told",
            "If it is a weight, register the constant as a buffer, as it is used; if the constant "
            "is data, let it enter through a layer.",
        )
    owned = _OWNED if layer else _WEIGHT
    call.enter(factor=1 / max(factors, 1), added=added, owned=owned)
    return call.finish(call.run(), call.settings.pending, layer=True)


def _added(name: str) -> tuple[int | str, ...]:
    if name == "bilinear":
        return (3, "bias")
    if name.startswith(("addmm", "addmv", "baddbmm", "addbmm", "addr")):
        return (0, "input", "self")
    return ()


def embedded(call: Call) -> Any:
    """Embeddings: a linear map of one-hot vectors; what comes out are activations."""
    call.enter()
    return call.finish(call.run(), call.settings.pending, layer=True)


def blended(call: Call, *, in_place: bool = False) -> Any:
    """`lerp`: a sum of two tensors, in constant shares."""
    share = call.option(2, "weight", default=None)
    if isinstance(share, Tensor) and share.requires_grad:
        raise call.refuse(
            "its weight carries credit, so it is a product as well as a sum",
            "Write it out: a * (1 - w) + b * w.",
        )
    return summed(call, in_place=in_place)


def summed(call: Call, *, in_place: bool = False) -> Any:
    """Sums, and means over some axes: each branch receives the credit unchanged (equation 11)."""
    if call.derived:
        return call.mark_derived(call.run())
    if not in_place and _moves_a_curve(call):
        with torch.no_grad():
            value = call.run()
        return whole(call, call.root(call.activations[0]), value)
    mark = _mark_of_sum(call)
    call.enter(in_place=in_place, norms=mark.kind in NO_ACTIVATIONS)
    kept = not in_place or mark.kind in STATISTICS
    return call.finish(call.run(), mark if kept else call.settings.pending)


def _moves_a_curve(call: Call) -> bool:
    """Whether the sum is phi(z) + a number: part of an activation written out by hand.

    In 1 + tanh(z), the 1 is no neuron that could be rewarded.
    """
    if len(call.activations) != 1 or call.parameters or any(c.ndim for c in call.constants):
        return False
    mark = call.mark(call.activations[0])
    return mark.curved and mark.kind is Kind.ACTIVATION


def _mark_of_sum(call: Call) -> Mark:
    """Keep what the sum is a function of, so that activations written out by hand are seen whole.

    z - mean(z) stays tied to z, so that a layer normalisation written out by hand is one, too.
    """
    if not call.activations or call.parameters:
        return call.settings.pending
    roots = [call.root(each) for each in call.activations]
    if any(root is not roots[0] for root in roots[1:]):
        return call.settings.pending
    kinds = {call.mark(each).kind for each in call.activations}
    curved = any(call.mark(each).curved for each in call.activations)
    if kinds == {Kind.ACTIVATION}:
        kind = Kind.ACTIVATION
    elif len(kinds) == 1:
        kind = kinds.pop()
    elif kinds == {Kind.ACTIVATION, Kind.STATISTIC} and not curved:
        kind = Kind.CENTRED
    else:
        return call.settings.pending
    pending = kind not in NO_ACTIVATIONS
    return call.related(roots[0], kind=kind, pending=pending, curved=curved)


def reduced(call: Call) -> Any:
    """Sums and means over axes: linear maps whose result may later normalise what they reduced."""
    if call.derived:
        return call.mark_derived(call.run())
    if not call.activations:
        call.enter()
        return call.finish(call.run(), call.settings.pending)
    root = call.root(call.activations[0])
    call.enter()
    return call.finish(call.run(), call.related(root, kind=Kind.STATISTIC, pending=True))


def normed(call: Call) -> Any:
    """Norms, variances, standard deviations: no rule, but they may normalise what they measured.

    Distances measure no one tensor, so they normalise none.
    """
    if call.derived:
        return call.mark_derived(call.run())
    if call.parameters:
        raise call.norm_refused()
    measured = call.activations[0] if len(call.activations) == 1 else None
    root = None if measured is None else call.root(measured)
    fused = getattr(call.func, "__name__", "").endswith("_mean")
    if fused:
        call.enter()
    out = call.run()
    call.finish(out, Mark(Kind.NORM, root=root, audit=call.settings.plain.audit))
    if fused and root is not None:
        call.finish(out[1], call.related(root, kind=Kind.STATISTIC, pending=True))
    return out


def mixed(call: Call, *, in_place: bool = False) -> Any:
    """Linear maps without weights that mix their inputs: average pools, interpolation, cumsum."""
    if call.derived:
        return call.mark_derived(call.run())
    call.enter(in_place=in_place)
    return call.finish(call.run(), call.settings.pending)


def thinned(call: Call, *, in_place: bool = False) -> Any:
    """Dropout and other masks: in credit per unit of activation, the mask itself."""
    if call.derived:
        return call.mark_derived(call.run())
    if not call.option(2, "training", "train", default=True):
        return passed(call)
    in_place = in_place or bool(call.option(3, "inplace", default=False))
    call.enter(in_place=in_place)
    return call.finish(call.run())


def passed(call: Call, *, in_place: bool = False) -> Any:
    """Moves, copies, joins, selections, winners: every value hands its reward to where it was.

    The stabiliser that the values owe is passed on with them where all owe the same. A parameter
    that is joined to activations (a class token) is scaled here.
    """
    if call.derived or (not call.activations and not _joins_data(call)):
        return call.mark_derived(call.run()) if call.parameters else call.run()
    owed = {call.mark(each).epsilon for each in call.activations}
    mark = call.settings.owing(owed.pop()) if len(owed) == 1 else call.settings.plain
    if call.parameters or owed or in_place:
        call.enter(in_place=in_place)
        mark = call.settings.plain if call.activations else call.settings.pending
    elif len(call.activations) == 1:
        mark = _moved(call, mark)
    else:
        call.refuse_norms()
    before = call.activations
    out = call.run()
    if any(out is each for each in before) and not in_place:
        return out
    return call.finish(out, mark)


def shaped(call: Call) -> Any:
    """`view_as`, `expand_as`: the second tensor lends its shape and no value."""
    given = call.named(("self", "other"))
    return passed(Call(call.settings, call.func, (given["self"], given["other"].detach()), {}))


def _moved(call: Call, mark: Mark) -> Mark:
    """Return the mark of a tensor in another shape: a statistic is still one of the same tensor."""
    known = call.mark(call.activations[0])
    if known.kind not in STATISTICS:
        return mark
    root = call.root(call.activations[0])
    return Mark(known.kind, mark.epsilon, root, mark.audit, curved=known.curved)


def _joins_data(call: Call) -> bool:
    return call.data and any(isinstance(value, (list, tuple)) for value in call.args[:1])


def cast(call: Call) -> Any:
    """Casts and copies: as `passed`, and still the same function of the same tensor.

    A comparison that becomes a number is a step activation: its reward goes to what was compared.
    """
    if call.decisions and not call.activations:
        return step(call)
    if not call.activations:
        return call.mark_derived(call.run()) if call.parameters else call.run()
    source = call.activations[0]
    mark = call.mark(source)
    out = call.run()
    if out is source:
        return out
    pending = bool(mark.epsilon)
    same = call.related(call.root(source), kind=mark.kind, pending=pending, curved=mark.curved)
    return call.finish(out, same)


def written(call: Call, *, adds: bool = False) -> Any:
    """`x[index] = value`: the value goes in, what was there loses its credit, unless it `adds`."""
    if call.derived:
        return call.mark_derived(call.run())
    target = call.args[0]
    # `x[i] += y` writes a view of x into x: what it owes must be remembered before it is gone.
    call.replace(
        {
            id(each): each.clone()
            for each in call.activations
            if each is not target
            and each.untyped_storage().data_ptr() == target.untyped_storage().data_ptr()
        }
    )
    call.enter(in_place=target.requires_grad)
    call.run()
    if isinstance(target, Tensor) and target.requires_grad:
        call.finish(target, call.settings.pending if adds else call.settings.plain)


def overwritten(call: Call, *, adds: bool = False) -> Any:
    """In-place writes (`copy_`, `zero_`, `scatter_`): as an assignment, returning the tensor."""
    written(call, adds=adds)
    return call.args[0]


def put(call: Call, *, in_place: bool = False) -> Any:
    """`index_put`: a write or, where it accumulates, a sum over the index."""
    adds = bool(call.option(3, "accumulate", default=False))
    if in_place:
        return overwritten(call, adds=adds)
    return mixed(call) if adds else passed(call)


def scattered(call: Call) -> Any:
    """`scatter_reduce`: a sum over the index, or the winner; a product has no rule."""
    how = call.option(4, "reduce", default=None)
    if how == "prod" and not call.derived:
        return unsupported(call)
    return mixed(call) if how in ("sum", "mean") else passed(call)


def negated(call: Call, *, in_place: bool = False) -> Any:
    """Minus: the stabiliser is passed on, since it depends on the size alone."""
    if in_place:
        return passed(call, in_place=True)
    return cast(call)


def unsupported(call: Call) -> Any:
    """Refuse a function that credit has no rule for, with the place and the remedy."""
    raise call.refuse(
        "credit has no rule for it, and nothing falls back silently to a gradient",
        "If it is elementwise, wrap it with attrain.rules.elementwise(fn); if you know its rule, "
        "attrain.rules.register(fn, rule); if no credit should pass, detach() its input.",
    )
