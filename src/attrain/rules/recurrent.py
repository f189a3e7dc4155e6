"""Recurrent layers and cells: torch's own values forward, the rules of their parts backward.

A sum of inputs and of the state before, W x + b + W' h + b', is one neuron (equation 6). The tanh
or ReLU of a candidate has its secant slope. A product of an activation and a gate hands each of
them its share of the credit, and the gate's sigmoid, whose secant has a pole at 0, keeps its
derivative.

With `gate="half"` both factors take half (the uniform rule of AttnLRP, Achtibat et al. 2024); with
"none" the activation takes all (Arras et al., Explaining Recurrent Neural Network Predictions in
Sentiment Analysis, 2017), and what feeds only gates learns nothing.

The way back is not unrolled into a graph: only the states' credit goes from step to step. What it
is multiplied by is known from the states and formed for all steps together, as is every product
with a weight but the one between states.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from attrain import marks
from attrain.errors import CreditError
from attrain.marks import Kind
from attrain.rules.activation import secant_slope
from attrain.rules.call import Action, Call, Credit


class Shares(NamedTuple):
    """How a product of an activation and a gate divides its credit."""

    carried: float
    gate: float


SHARES = {"half": Shares(0.5, 0.5), "none": Shares(1.0, 0.0)}
"""By the name of the option `gate`."""

_NAMES = ("params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
_OPEN_NAMES = ("input", "hx", *_NAMES, "batch_first")
_PACKED_NAMES = ("data", "batch_sizes", "hx", *_NAMES)
_CELL_NAMES = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


class Steps:
    """The steps of sequences whose rows lie packed: step t holds the first `sizes[t]` samples."""

    def __init__(self, sizes: tuple[int, ...], reverse: bool) -> None:
        self.sizes = sizes
        self.forward = range(len(sizes))[::-1] if reverse else range(len(sizes))
        self.backward = self.forward[::-1]
        self.reverse = reverse

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each step."""
        parts: tuple[Tensor, ...] = torch.split(rows, self.sizes)  # type: ignore[arg-type]
        return parts

    def before(self, initial: Tensor, states: Tensor) -> Tensor:
        """Return for every row the state before it; for the first of its sample, the initial."""
        if self.sizes[0] == self.sizes[-1]:
            kept = len(states) - self.sizes[0]
            parts = (states[-kept or len(states) :], initial)
            return torch.cat(parts if self.reverse else (initial, states[:kept]))
        steps = self.split(states)
        rows = []
        for t, size in enumerate(self.sizes):
            if not self.reverse:
                rows.append(steps[t - 1][:size] if t else initial)
            elif t + 1 < len(steps):
                rows += [steps[t + 1], initial[len(steps[t + 1]) : size]]
            else:
                rows.append(initial[:size])
        return torch.cat(rows)


@dataclass
class Way:
    """One direction of one layer on its way back; N rows are all steps of all samples.

    Shapes: x [N, inputs]; states [N, units]; h, and c of an LSTM, [samples, units], the initial
    ones; credit [N, units], what the consumers of the states hand back, and credit_h, credit_c
    [samples, units], those of the last ones; project is W_hr, or None.
    """

    steps: Steps
    epsilon: float
    shares: Shares
    x: Tensor
    states: Tensor
    h: Tensor
    c: Tensor | None
    credit: Tensor
    credit_h: Tensor
    credit_c: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    project: Tensor | None

    def before(self) -> Tensor:
        """Return the states before the states."""
        return self.steps.before(self.h, self.states)

    def by_input(self) -> Tensor:
        """Return W x + b."""
        w = self.w_ih.t()
        return self.x @ w if self.b_ih is None else torch.addmm(self.b_ih, self.x, w)

    def by_state(self, before: Tensor) -> Tensor:
        """Return W' h + b'."""
        w = self.w_hh.t()
        return before @ w if self.b_hh is None else torch.addmm(self.b_hh, before, w)

    def sums(self, before: Tensor) -> Tensor:
        """Return W x + b + W' h + b'."""
        z = self.by_input()
        if self.b_hh is not None:
            z += self.b_hh
        return z.addmm_(before, self.w_hh.t())

    def pay(self, slope: Tensor, z: Tensor) -> Tensor:
        """Multiply `slope` by |z| / (|z| + epsilon), the stabiliser of equation 6; uses z up."""
        if self.epsilon:
            slope.mul_(z.abs_()).div_(z.add_(self.epsilon))
        return slope

    def owed_before(self, initial: Tensor, states: Tensor) -> Tensor | None:
        """Return the stabiliser of the states before; the initial ones have paid theirs."""
        if not self.epsilon:
            return None
        paid = self.pay(torch.ones_like(states), states.clone())
        return self.steps.before(torch.ones_like(initial), paid)

    def secant(self, value: Tensor, z: Tensor) -> Tensor:
        """Return phi(z) / (z + sign(z) epsilon)."""
        return secant_slope(value, z, self.epsilon)


class Sums(NamedTuple):
    """The credit of the sums by input and by state [N, gates * units], and of the first states."""

    by_input: Tensor
    by_state: Tensor
    before: Tensor
    h: Tensor
    c: Tensor | None = None
    projection: Tensor | None = None


def _rnn(way: Way, phi: Callable[[Tensor], Tensor]) -> Sums:
    """State h = phi(W x + b + W' h + b')."""
    before = way.before()
    z = way.sums(before)
    slope = way.secant(phi(z), z)
    sums = torch.empty_like(z)
    carry = way.credit_h
    slopes, found, credits = map(way.steps.split, (slope, sums, way.credit))
    for t in way.steps.backward:
        state = carry[: way.steps.sizes[t]]
        torch.mul(slopes[t], credits[t] + state, out=found[t])
        torch.mm(found[t], way.w_hh, out=state)
    return Sums(sums, sums, before, carry)


def _rnn_tanh(way: Way) -> Sums:
    return _rnn(way, torch.tanh)


def _rnn_relu(way: Way) -> Sums:
    return _rnn(way, torch.relu)


def _gru(way: Way) -> Sums:
    """State h = (1 - z) n + z h, a sum of two branches; n = tanh(W x + b + r (W' h + b')).

    Equation 11. Rows of the weights: r, z, n. The sum within r (...) is a neuron of its own.
    """
    carried, gating = way.shares
    before = way.before()
    units = before.shape[1]
    by_input = way.by_input().view(-1, 3, units)
    by_state = way.by_state(before).view(-1, 3, units)
    z = by_input[:, :2] + by_state[:, :2]
    gates = z.sigmoid()
    r, update = gates.unbind(1)
    slope_r, slope_update = way.pay((1 - gates).mul_(gates).mul_(gating), z).unbind(1)
    inner = by_state[:, 2]
    z_new = torch.addcmul(by_input[:, 2], r, inner)
    new = z_new.tanh()
    # Per unit of the state's credit: n by input, then r, z and n by state.
    slope = z.new_empty((len(z), 4, z.shape[2]))
    to_new, to_r, to_update, to_inner = slope.unbind(1)
    torch.mul(way.secant(new, z_new), 1 - update, out=to_new).mul_(carried)
    torch.mul(to_new, inner, out=to_r).mul_(slope_r)
    torch.mul(before - new, slope_update, out=to_update)
    way.pay(torch.mul(to_new, r, out=to_inner).mul_(carried), inner)
    sums = torch.empty_like(slope)
    kept = update * carried
    owed = way.owed_before(way.h, way.states)
    carry = way.credit_h
    by_state_rows = sums.flatten(1)[:, before.shape[1] :]
    slopes, found, rows, keeps, credits = map(
        way.steps.split, (slope, sums, by_state_rows, kept, way.credit)
    )
    owes = None if owed is None else way.steps.split(owed)
    for t in way.steps.backward:
        state = carry[: way.steps.sizes[t]]
        credit = credits[t] + state
        torch.mul(slopes[t], credit.unsqueeze(1), out=found[t])
        torch.addmm(credit.mul_(keeps[t]), rows[t], way.w_hh, out=state)
        if owes is not None:
            state.mul_(owes[t])
    by_input_rows = torch.cat((sums[:, 1:3].flatten(1), sums[:, 0]), 1)
    return Sums(by_input_rows, by_state_rows, before, carry)


def _lstm(way: Way) -> Sums:
    """State c = f c + i g, a sum of two branches; h = o tanh(c), projected where W_hr is.

    Equation 11. Rows of the weights: i, f, g, o.
    """
    carried, gating = way.shares
    before = way.before()
    z = way.sums(before).view(-1, 4, len(way.w_hh) // 4)
    gates = z.sigmoid()
    enter, forget, _, leave = gates.unbind(1)
    new = z[:, 2].tanh()
    by_new = way.secant(new, z[:, 2]).mul_(enter)
    assert way.c is not None and way.credit_c is not None
    memory = _memory(way.steps, way.c, forget, enter * new)
    squashed = memory.tanh()
    to_memory = way.secant(squashed, memory).mul_(leave).mul_(carried)
    # Per unit of c's credit: i, f, g; per unit of the state's: o.
    slope = way.pay((1 - gates).mul_(gates), z)
    slope[:, 0].mul_(new).mul_(gating)
    slope[:, 1].mul_(way.steps.before(way.c, memory)).mul_(gating)
    torch.mul(by_new, carried, out=slope[:, 2])
    slope[:, 3].mul_(squashed).mul_(gating)
    kept = forget * carried
    owed_c = way.owed_before(way.c, memory)
    if owed_c is not None:
        kept *= owed_c
    owed = None if way.project is None else way.owed_before(way.h, way.states)

    sums = torch.empty_like(slope)
    projected = way.credit if way.project is None else torch.empty_like(way.credit)
    carry, carry_c = way.credit_h, way.credit_c
    found, rows = way.steps.split(sums[:, :3]), way.steps.split(sums.flatten(1))
    leaving, slopes_out = way.steps.split(sums[:, 3]), way.steps.split(slope[:, 3])
    slopes, to_memories, keeps, credits, projects = map(
        way.steps.split, (slope[:, :3], to_memory, kept, way.credit, projected)
    )
    owes = None if owed is None else way.steps.split(owed)
    for t in way.steps.backward:
        size = way.steps.sizes[t]
        state, state_c = carry[:size], carry_c[:size]
        credit = credits[t] + state
        if way.project is not None:
            projects[t].copy_(credit)
            credit = credit @ way.project
        credit_c = torch.addcmul(state_c, credit, to_memories[t])
        torch.mul(slopes[t], credit_c.unsqueeze(1), out=found[t])
        torch.mul(slopes_out[t], credit, out=leaving[t])
        torch.mul(credit_c, keeps[t], out=state_c)
        torch.mm(rows[t], way.w_hh, out=state)
        if owes is not None:
            state.mul_(owes[t])
    by_projection = None if way.project is None else projected.t() @ (leave * squashed)
    return Sums(sums.flatten(1), sums.flatten(1), before, carry, carry_c, by_projection)


def _memory(steps: Steps, initial: Tensor, forget: Tensor, entering: Tensor) -> Tensor:
    """Return the states c of an LSTM: c = f c + i g."""
    memory = torch.empty_like(entering)
    carry = initial.clone()
    keeps, enters, found = map(steps.split, (forget, entering, memory))
    for t in steps.forward:
        state = carry[: steps.sizes[t]]
        torch.addcmul(enters[t], keeps[t], state, out=found[t])
        state.copy_(found[t])
    return memory


_BACK: dict[str, Callable[[Way], Sums]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
}


class Plan(NamedTuple):
    """What a layer is: its cell, the samples of each step, and how credit passes."""

    cell: str
    sizes: tuple[int, ...]
    directions: int
    biases: bool
    epsilon: float
    shares: Shares
    single: bool = False  # one step of one cell, whose states are the last ones as well


class Recurrent(torch.autograd.Function):
    """One layer, in one or both directions, or one cell.

    `values` are what torch computed: the states of all steps, then, for a layer, the last ones,
    then, for an LSTM, the last c. They are returned as they are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        values: Sequence[Tensor],
        x: Tensor,
        h: Tensor,
        c: Tensor | None,
        *weights: Tensor,
    ) -> Any:
        ctx.scaled = ()
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        values = tuple(value.detach() for value in values)
        ctx.save_for_backward(x, h, c, values[0], *weights)
        return values

    @staticmethod
    def backward(ctx: Any, *credits: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise CreditError(
                "the credit of a recurrent layer was asked for with create_graph=True, and it has "
                "no derivative of its own. Ask for it without, or take a cell of your own, made "
                "with attrain.rules.gated."
            )
        plan: Plan = ctx.plan
        x, h, c, states, *weights = ctx.saved_tensors
        needs_x, _, _, *needs_weight = ctx.needs_input_grad[2:]
        credit_c = None if c is None else credits[-1]
        credit_h = None if plan.single else credits[1]
        kind = torch.promote_types(x.dtype, torch.float32)

        def rows(tensor: Tensor) -> Tensor:
            """Lay the steps out one below the other, in a precision that quotients bear."""
            return tensor.reshape(-1, tensor.shape[-1]).to(kind)

        def own(credit: Tensor | None, like: Tensor) -> Tensor:
            """Return [directions, samples, units] that may be written to."""
            shape = plan.directions, plan.sizes[0], like.shape[-1]
            if credit is None:
                return torch.zeros(shape, dtype=kind, device=like.device)
            return credit.reshape(shape).to(kind, copy=True).contiguous()

        carry_h = own(credit_h, h)
        carry_c = None if c is None else own(credit_c, c)
        credit = rows(torch.zeros_like(states) if credits[0] is None else credits[0])
        initial = h.reshape(carry_h.shape).to(kind)
        initial_c = None if carry_c is None else c.reshape(carry_c.shape).to(kind)
        inputs, all_states = rows(x), rows(states)
        per = len(weights) // plan.directions
        units = all_states.shape[1] // plan.directions
        credit_x: Tensor | None = None
        gradients: list[Tensor | None] = []
        for d in range(plan.directions):
            part = slice(d * units, (d + 1) * units)
            w_ih, w_hh, *others = (weight.to(kind) for weight in weights[d * per : (d + 1) * per])
            b_ih, b_hh = others[:2] if plan.biases else (None, None)
            project = others[-1] if len(others) % 2 else None
            way = Way(
                Steps(plan.sizes, reverse=d == 1),
                plan.epsilon,
                plan.shares,
                inputs,
                all_states[:, part].contiguous(),
                initial[d],
                None if initial_c is None else initial_c[d],
                credit[:, part].contiguous(),
                carry_h[d],
                None if carry_c is None else carry_c[d],
                w_ih,
                w_hh,
                b_ih,
                b_hh,
                project,
            )
            sums = _BACK[plan.cell](way)
            if needs_x:
                by_sums = sums.by_input @ w_ih
                credit_x = by_sums if credit_x is None else credit_x.add_(by_sums)
            gradients += _gradients(sums, inputs, plan, needs_weight[d * per : (d + 1) * per])
        return (
            None,
            None,
            _like(credit_x, x),
            _like(carry_h, h),
            None if c is None else _like(carry_c, c),
            *(_like(each, weight) for each, weight in zip(gradients, weights, strict=True)),
        )


def _like(credit: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if credit is None else credit.reshape(tensor.shape).to(tensor.dtype)


def _gradients(sums: Sums, x: Tensor, plan: Plan, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of the weights W, W', b, b', W_hr, as far as the layer has them."""
    pairs = ((sums.by_input, x), (sums.by_state, sums.before))
    found: list[Tensor | None] = [
        credit.t() @ value if need else None
        for (credit, value), need in zip(pairs, needed, strict=False)
    ]
    if plan.biases:
        # A sum for each: the scaling by |b| writes into it.
        found += [credit.sum(0) for credit, _ in pairs]
    return found if sums.projection is None else [*found, sums.projection]


@dataclass
class Layers:
    """What a call of torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu asks for."""

    x: Tensor
    batch_sizes: Tensor | None
    h: Tensor
    c: Tensor | None
    weights: Sequence[Tensor]
    biases: bool
    count: int
    dropout: float
    train: bool
    directions: int
    batch_first: bool

    @property
    def per_direction(self) -> int:
        """Return how many weights one direction of one layer has."""
        return len(self.weights) // (self.count * self.directions)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many samples each step has."""
        if self.batch_sizes is not None:
            return tuple(self.batch_sizes.tolist())
        samples, steps = self.x.shape[:2] if self.batch_first else self.x.shape[1::-1]
        return (samples,) * steps


def _names(call: Call) -> tuple[str, ...]:
    """Return the names of the arguments, which are others for packed sequences."""
    has_biases = call.args[3] if len(call.args) > 3 else None
    packed = "batch_sizes" in call.kwargs or not isinstance(has_biases, (bool, type(None)))
    return _PACKED_NAMES if packed else _OPEN_NAMES


def _asked(call: Call, cell: str) -> Layers:
    names = _names(call)
    given = call.named(names)
    hx = given["hx"]
    h, c = hx if cell == "lstm" else (hx, None)
    return Layers(
        given[names[0]],
        given.get("batch_sizes"),
        h,
        c,
        given["params"],
        given["has_biases"],
        given["num_layers"],
        float(given["dropout"]) if given["train"] else 0.0,
        given["train"],
        2 if given["bidirectional"] else 1,
        given.get("batch_first", False),
    )


def _check(call: Call, asked: Layers, cell: str) -> None:
    """Refuse weights and packed sequences that are none, before torch reads past them."""
    per = 4 if asked.biases else 2
    allowed = (per, per + 1) if cell == "lstm" else (per,)
    directions = asked.count * asked.directions
    if len(asked.weights) not in [each * directions for each in allowed]:
        raise call.refuse(
            f"it was given {len(asked.weights)} weights, and {asked.count} layers in "
            f"{asked.directions} directions {'with' if asked.biases else 'without'} biases have "
            + " or ".join(str(each * directions) for each in allowed),
            "Hand them over as the module of torch.nn does, layer by layer.",
        )
    if asked.batch_sizes is None:
        return
    sizes = asked.sizes
    shown = f"{sizes[:6]}" if len(sizes) <= 6 else f"{sizes[:6]} and so on"
    if not sizes or min(sizes) < 1 or any(a < b for a, b in zip(sizes, sizes[1:], strict=False)):
        raise call.refuse(
            f"the packed sequence has the batch sizes {shown}, which must be above 0 and may "
            "not grow from step to step",
            "Make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence.",
        )
    if sum(sizes) != len(asked.x) or sizes[0] != asked.h.shape[1]:
        raise call.refuse(
            f"the packed sequence has {len(asked.x)} rows and the states {asked.h.shape[1]} "
            f"samples, but its batch sizes {shown} add up to {sum(sizes)} rows of "
            f"{sizes[0]} samples",
            "Make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence, and give as "
            "many initial states as there are sequences.",
        )


def _check_tensors(call: Call, places: Sequence[int | str]) -> None:
    """Refuse complex numbers, which have no sign, and weights that nobody named."""
    for place, tensor, mark in call.entrants:
        if tensor.is_complex():
            raise call.refuse(
                f"its tensor of shape {tuple(tensor.shape)} is complex, and the rules need signs",
                "Use real numbers, for example torch.view_as_real(x).flatten(-2).",
            )
        if place in places and mark.kind is not Kind.PARAMETER:
            raise call.refuse(
                f"its weight of shape {tuple(tensor.shape)} is no parameter of the model",
                "Hand it to the context as well: attrain.LFP([*model.parameters(), weight]).",
            )


def _native(call: Call, asked: Layers, x: Tensor, first: int, count: int) -> tuple[Tensor, ...]:
    """Return what torch computes for `count` layers from the `first`, with no dropout."""
    directions = asked.directions
    states = slice(first * directions, (first + count) * directions)
    per = asked.per_direction
    # Not detached: whether weights require grad decides how torch multiplies, to the last bit.
    weights = asked.weights[states.start * per : states.stop * per]
    hx = asked.h[states] if asked.c is None else (asked.h[states], asked.c[states])
    steps = (x,) if asked.batch_sizes is None else (x, asked.batch_sizes)
    options = (weights, asked.biases, count, 0.0, asked.train, directions == 2)
    # cuDNN warns of weights that are not all of a piece, and these are a part of one.
    quiet = x.is_cuda and count < asked.count
    # oneDNN's LSTM has a kernel of its own for when gradients are wanted.
    wanted = asked.c is not None
    with (
        warnings.catch_warnings(action="ignore") if quiet else nullcontext(),
        torch.set_grad_enabled(wanted),
    ):
        found = call.func(*steps, hx, *options, *([False] if asked.batch_sizes is None else []))
    return tuple(found)


def _runs_as_one(x: Tensor) -> bool:
    """Whether several layers in one call may have other bits than one after the other."""
    return x.is_cuda


def layers(call: Call, *, cell: str) -> Any:
    """The layers of nn.LSTM, nn.GRU and nn.RNN, packed sequences and projections among them.

    The values are torch's own. Layers run one after the other with the dropout between them, which
    on CPU has the bits of one call for all. On CUDA one call for all gives the values as well, but
    not with dropout, where cuDNN would draw from random numbers of its own.
    """
    weights = (_names(call).index("params"), "params")
    _check_tensors(call, weights)
    _check(call, _asked(call, cell), cell)
    call.enter(owned=weights)
    asked = _asked(call, cell)
    settings = call.settings
    per, directions = asked.per_direction, asked.directions
    pending = cell == "gru" or per % 2 == 1
    mark = settings.pending if pending else settings.plain
    plan = Plan(
        cell, asked.sizes, directions, asked.biases, settings.epsilon, SHARES[settings.gate]
    )
    x = asked.x.transpose(0, 1) if asked.batch_first else asked.x
    whole = None
    if asked.count > 1 and not asked.dropout and _runs_as_one(x):
        whole = _native(call, asked, x, 0, asked.count)
    last = []
    for index in range(asked.count):
        if index and pending and settings.epsilon:
            x = Credit.apply((Action(epsilon=settings.epsilon),), x)
        if index and asked.dropout:
            x = torch.dropout(x, asked.dropout, True)
        part = slice(index * directions, (index + 1) * directions)
        if whole is None:
            values = _native(call, asked, x, index, 1)
        else:
            top = index == asked.count - 1
            states = whole[0] if top else _native(call, asked, x, index, 1)[0]
            values = states, *(each[part] for each in whole[1:])
        x, *states_last = Recurrent.apply(
            plan,
            values,
            x,
            asked.h[part],
            None if asked.c is None else asked.c[part],
            *asked.weights[part.start * per : part.stop * per],
        )
        last.append(states_last)
    out = x.transpose(0, 1) if asked.batch_first else x
    ends = [torch.cat(each) if asked.count > 1 else each[0] for each in zip(*last, strict=True)]
    call.finish((*ends, out), mark, layer=True)
    if asked.c is not None:
        marks.put(ends[1], settings.pending)
    return out, *ends


def single(call: Call, *, cell: str) -> Any:
    """nn.LSTMCell, nn.GRUCell and nn.RNNCell: one step of a layer."""
    weights = (2, 3, 4, 5, *_CELL_NAMES[2:])
    _check_tensors(call, weights)
    call.enter(owned=weights)
    given = call.named(_CELL_NAMES)
    hx = given["hx"]
    h, c = hx if cell == "lstm" else (hx, None)
    own = [given[name] for name in _CELL_NAMES[2:] if given.get(name) is not None]
    x = given["input"]
    settings = call.settings
    with torch.no_grad():
        values = call.run()
    plan = Plan(
        cell,
        (len(x),),
        1,
        len(own) == 4,
        settings.epsilon,
        SHARES[settings.gate],
        single=True,
    )
    values = values if isinstance(values, tuple) else (values,)
    out = Recurrent.apply(plan, values, x, h, c, *own)
    call.finish(out, settings.pending if cell == "gru" else None, layer=True)
    if c is None:
        return out[0]
    marks.put(out[1], settings.pending)
    return out


def gated(value: Tensor, z: Tensor) -> Tensor:
    """Return value * sigmoid(z); under credit, as the gates of nn.LSTM and nn.GRU do it.

    For recurrent cells written by hand: `attrain.LFP(gate=...)` says how `value` and the gate share
    the credit, and the sigmoid keeps its derivative. Written as `value * torch.sigmoid(z)`, the
    sigmoid is an activation, whose secant has a pole at 0. 1 - sigmoid(z) is sigmoid(-z). Shapes
    broadcast. Where only one of the two carries credit, it takes all.
    """
    if has_torch_function((value, z)):
        out: Tensor = handle_torch_function(gated, (value, z), value, z)
        return out
    return value * torch.sigmoid(z)


def gate(call: Call) -> Any:
    """`gated`: a product whose second factor is a sigmoid that keeps its derivative."""
    both = len(call.activations) == 2
    call.enter()
    value, z = (call.option(0, "value", default=None), call.option(1, "z", default=None))
    if both:
        shares = SHARES[call.settings.gate]
        actions = Action(factor=shares.carried), Action(factor=shares.gate)
        value, z = Credit.apply(actions, value, z)
    return call.finish(value * torch.sigmoid(z), layer=True)
