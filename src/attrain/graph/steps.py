"""What is taken down at a call of a model, and added up over samples on the way back.

A message from a to b is the reward that b hands to a: value times credit (equations 2, 3 and 11 of
arXiv:2308.12053). What a layer hands to no unit goes to its sinks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attrain import marks
from attrain.errors import CreditError
from attrain.graph import units
from attrain.graph.layer import Kind, messages, messages_of
from attrain.graph.units import Samples, Sums
from attrain.rules import norm
from attrain.rules.decomposition import Decomposition, stabilised

Where = int | str | tuple[int | str, int]
"""The place of an argument: position, name, or one of these and the index in its list."""

SINKS = ("bias", "normalisation", "epsilon", "rule", "rest")
"""What takes a part of a unit's relevance besides the units before it.

bias: biases, and constants and parameters that are added. normalisation: its shift and the mean
that it takes off. epsilon: the stabilisers. rule: what a rule of layers drops. rest: whatever
rules of other functions do not conserve.
"""


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Where, Tensor]]:
    """Yield all tensors among the arguments, and where they stand."""
    placed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in placed:
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                if isinstance(each, Tensor):
                    yield (key, index), each


def carrying(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Where, Tensor]]:
    """Yield the arguments, and where they stand, that belong to units."""
    for where, tensor in tensors_of(args, kwargs):
        if units.of(tensor) is not None:
            yield where, tensor


def each_of(out: Any) -> list[Tensor]:
    """Return the tensors that a call returned."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [tensor for each in out for tensor in each_of(each)]
    return []


def carries(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether any argument belongs to units."""
    return next(carrying(args, kwargs), None) is not None


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what `scaled_dot_product_attention` does, as a product with constant weights."""
    repeats = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if repeats > 1:
        key, value = (each.repeat_interleave(repeats, -3) for each in (key, value))
    with torch.no_grad():
        _, weights = torch.ops.aten._scaled_dot_product_attention_math(
            query.detach(), key.detach(), value.detach(), attn_mask, 0.0, is_causal, scale=scale
        )
    return torch.matmul(weights.detach(), value)


def at(where: Where, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return the argument that stands at a place."""
    if isinstance(where, tuple):
        key, index = where
        held: Tensor = (args[key] if isinstance(key, int) else kwargs[key])[index]
        return held
    found: Tensor = args[where] if isinstance(where, int) else kwargs[where]
    return found


def as_leaf(out: Tensor) -> Tensor:
    """Return a tensor at which credit ends, though nothing before it carries any."""
    return out.detach().requires_grad_()


class Totals:
    """Relevances, messages and sinks, added up over the samples of each group.

    relevance: [G, units]; edges: by layer [G, out, in], in over the units of its sources; sinks:
    by name [G, units]. Everything is in double precision. best: the largest relevances [G, units,
    examples], and the samples, by their `numbers` [N], that have them. path: where samples go on
    a way from a baseline, what each call had at the place before.
    """

    def __init__(
        self, nodes: Sequence[Any], groups: int, device: torch.device, examples: int = 0
    ) -> None:
        self.nodes, self.groups = nodes, groups
        count = nodes[-1].start + nodes[-1].count
        double: Any = {"dtype": torch.float64, "device": device}
        self.relevance = torch.zeros(groups, count, **double)
        self.sinks = {name: torch.zeros(groups, count, **double) for name in SINKS}
        form = (groups, count, examples)
        self.best = (
            torch.full(form, -math.inf, **double),
            torch.full(form, -1, dtype=torch.long, device=device),
        )
        self.numbers: Tensor | None = None
        self.path: dict[int, tuple[Tensor, ...]] | None = None
        self.edges: list[Tensor | None] = []
        self.columns: list[Tensor] = []
        for each in nodes:
            incoming = [unit for source in each.sources for unit in nodes[source].units]
            column = torch.full((count,), -1, device=device)
            column[incoming] = torch.arange(len(incoming), device=device)
            self.columns.append(column)
            self.edges.append(
                torch.zeros(groups, each.count, len(incoming), **double) if incoming else None
            )

    def begin(self, group: Tensor) -> None:
        """Say which group [N] the samples of the next pass belong to."""
        self.group = group
        self.present: list[int] = torch.unique(group).tolist()

    def passed(self, call: object, *values: Tensor) -> tuple[Tensor, ...] | None:
        """Return what a call had at the place before, None at the first; remember `values`."""
        assert self.path is not None
        before = self.path.get(id(call))
        self.path[id(call)] = tuple(each.clone() for each in values)
        return before

    def explained(self, unit: Tensor, o: Tensor, lost: Tensor | None) -> None:
        """Give the explained outputs o [N] to their units [N], and what epsilon took of them."""
        if self.path is not None:
            before = self.passed(self.path, o)
            if before is None:
                return
            o = o - before[0]
        self.relevance.index_put_((self.group, unit), o.double(), accumulate=True)
        if self.nodes[-1].of:  # one output for each of these units
            out = unit - self.nodes[-1].start
            unit = torch.tensor(self.nodes[-1].of, device=unit.device)[out]
            edges = self.edges[-1]
            assert edges is not None
            edges.index_put_((self.group, out, self.columns[-1][unit]), o.double(), accumulate=True)
            self.relevance.index_put_((self.group, unit), o.double(), accumulate=True)
        if lost is not None:
            self.sinks["epsilon"].index_put_((self.group, unit), lost.double(), accumulate=True)

    def compare(self, index: int, values: Tensor) -> None:
        """Remember the samples for which units of layer `index` have most of `values` [N, out]."""
        count = self.best[0].shape[2]
        if not count or self.numbers is None:
            return
        nodes = self.nodes[index]
        span = slice(nodes.start, nodes.start + nodes.count)
        for group in self.present:
            chosen = self.group == group
            numbers = self.numbers[chosen]
            found = torch.cat([self.best[0][group, span], values[chosen].double().t()], 1)
            known = torch.cat(
                [self.best[1][group, span], numbers.expand(nodes.count, len(numbers))], 1
            )
            best, places = found.topk(count, 1)
            self.best[0][group, span] = best
            self.best[1][group, span] = known.gather(1, places)

    @property
    def compares(self) -> bool:
        """Whether samples are compared."""
        return self.best[0].shape[2] > 0

    def summed(self, by: Sums, values: Tensor) -> Tensor:
        """Return values of a tensor added up by unit and group [G, K]."""
        return self.by_group(by.total(values, len(self.group)))

    def by_group(self, values: Tensor) -> Tensor:
        """Return values [N, K] added up by group [G, K]."""
        out = torch.zeros(self.groups, values.shape[1], dtype=torch.float64, device=values.device)
        return out.index_add_(0, self.group, values.double())

    def sink(self, name: str, unit: Tensor, values: Tensor) -> None:
        """Add values [G, K] of units [K] to a sink."""
        kept = unit >= 0
        self.sinks[name].index_add_(1, unit[kept], values[:, kept])

    def layer(self, index: int, group: int, columns: Tensor, found: Tensor) -> None:
        """Add messages [out, K] from units `columns` [K], or constants, to layer `index`."""
        found = found.double()
        edges = self.edges[index]
        assert edges is not None
        kept = columns >= 0
        if not bool(kept.all()):
            span = slice(self.nodes[index].start, self.nodes[index].start + len(found))
            self.sinks["bias"][group, span] += found[:, ~kept].sum(1)
            columns, found = columns[kept], found[:, kept]
        edges[group].index_add_(1, self.columns[index][columns], found)
        self.relevance[group].index_add_(0, columns, found.sum(0))

    def received(self, index: int, source: Tensor, rows: Tensor, found: Tensor) -> None:
        """Add messages [G, P, K] from units `source` [P] to units `rows` [K] of layer `index`."""
        kept = rows >= 0
        rows, found = rows[kept], found[:, :, kept]
        nobody = source < 0
        if bool(nobody.any()):
            self.sink("bias", rows, found[:, nobody].sum(1))
            source, found = source[~nobody], found[:, ~nobody]
        edges = self.edges[index]
        assert edges is not None
        group = torch.arange(self.groups, device=found.device)[:, None, None]
        out = rows - self.nodes[index].start
        column = self.columns[index][source][:, None]
        edges.index_put_((group, out, column), found, accumulate=True)
        self.relevance.index_add_(1, source, found.sum(2))

    def meeting(self, index: int, out: Tensor, source: Tensor, found: Tensor) -> None:
        """Add messages [G, K] from units `source` [K] to units `out` [K] of layer `index`."""
        kept = source >= 0
        if not bool(kept.all()):
            self.sink("bias", out[~kept] + self.nodes[index].start, found[:, ~kept])
        edges = self.edges[index]
        assert edges is not None
        flat = out[kept] * edges.shape[2] + self.columns[index][source[kept]]
        edges.view(self.groups, -1).index_add_(1, flat, found[:, kept])
        self.relevance.index_add_(1, source[kept], found[:, kept])


class Step(Protocol):
    """What is taken down at a call."""

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Look at the arguments, which the call may overwrite, and return what is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Look at what the call returned."""


def hook(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    """Let `take` have the credit of a tensor, once it is known."""
    if tensor.requires_grad:

        def quiet(credit: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                take(credit)

        tensor.register_hook(quiet)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Epsilon:
    """What a stabiliser takes from the units of a tensor: sign(z) epsilon times credit."""

    where: Where
    by: Sums
    epsilon: float
    overwritten: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Take the credit of the argument, summed over all who pay."""
        z = at(self.where, args, kwargs)
        if getattr(z, "_attrain_paid", None) == z._version:
            return  # the hook of the first call that pays sees the credit of all
        z._attrain_paid = z._version  # type: ignore[attr-defined]
        value = z.detach().clone() if self.overwritten else z.detach()

        def take(credit: Tensor) -> None:
            lost = torch.where(value < 0, -credit, credit)
            total = totals.summed(self.by, lost) * self.epsilon
            totals.sink("epsilon", self.by.unit, total)

        hook(z, take)

    def after(self, *_: Any) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class Deferred:
    """What one who does not pay made of a tensor that others pay for: it pays later, by itself."""

    by: Sums
    epsilon: float
    index: int | None = None

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take back what the tensor's credit has of this one."""
        made = out if self.index is None else out[self.index]
        negative = made.detach() < 0

        def take(credit: Tensor) -> None:
            lost = torch.where(negative, credit, -credit)
            total = totals.summed(self.by, lost) * self.epsilon
            totals.sink("epsilon", self.by.unit, total)

        hook(made, take)


@dataclass(frozen=True)
class Curve:
    """What the stabiliser of a secant takes where the tensor that it is one of owes none.

    where: that tensor among the arguments; without, it is the one that the result is marked with.
    """

    by: Sums
    epsilon: float
    where: Where | None = None

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep the tensor, which the call may overwrite."""
        return None if self.where is None else at(self.where, args, kwargs).detach().clone()

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take the credit of the result."""
        mark = marks.get(out)
        z = kept if mark is None or kept is not None else mark.root(out)
        if z is None:
            return
        value = out.detach().clone()
        lost = value - value * (z.detach() / stabilised(z.detach(), self.epsilon))

        def take(credit: Tensor) -> None:
            totals.sink("epsilon", self.by.unit, totals.summed(self.by, lost * credit))

        hook(out, take)


@dataclass(frozen=True)
class Constant:
    """What does not depend on the samples, an embedding of positions say: it belongs to no unit."""

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(self, *_: Any) -> None:
        """Nothing is to be taken down."""


@dataclass(frozen=True)
class Written:
    """A tensor of constants into which values were written."""

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Remember that the tensor carries values of the inputs from now on."""
        none = torch.empty(0, dtype=torch.long)
        units.put(args[0], units.Units(none, none))


@dataclass(frozen=True)
class Shift:
    """What is added to the units of a tensor without being an activation: offset times credit."""

    by: Sums
    offset: Callable[[Sequence[Any], dict[str, Any], Tensor], Tensor]
    kind: str = "bias"
    overwritten: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep what is about to be overwritten."""
        return [
            each.detach().clone() if isinstance(each, Tensor) and self.overwritten else each
            for each in args
        ]

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take the credit of the result."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            offset = self.offset(kept, kwargs, out.detach())

        if totals.path is not None:
            return  # what is added stays as it is on the way

        def take(credit: Tensor) -> None:
            totals.sink(self.kind, self.by.unit, totals.summed(self.by, offset * credit))

        hook(out, take)


def added(
    owed: float, name: str, where: Where, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    """Return what a sum adds to the share of the argument at `where`."""
    value = at(where, args, kwargs).detach()
    if name in ("maximum", "minimum", "fmax", "fmin"):
        return torch.where(out == value, torch.zeros_like(out), stabilised(out, owed))
    second = where in (2, "other") if name == "where" else where in (1, "other", "end")
    zero = torch.zeros_like(value)
    pair = (zero, value) if second else (value, zero)
    return out - shares_of(name, "sum")(args, kwargs, *pair)[second]


def filled(owed: float, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    """Return what `masked_fill` puts in place of the values that it takes out."""
    names = ("input", "mask", "value")
    given = dict(zip(names, args, strict=False)) | kwargs
    return torch.where(given["mask"], stabilised(out, owed), torch.zeros_like(out))


def padded(
    owed: float, where: Where, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    """Return what padding puts around the values that it takes."""
    sides = args[1] if len(args) > 1 else kwargs["pad"]
    inner = torch.nn.functional.pad(torch.ones_like(at(where, args, kwargs)), sides)
    return stabilised(out, owed) * (1 - inner)


def _affine(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


def _statistics(args: Sequence[Any], switch: str) -> tuple[str, ...]:
    """Return the positions' names: torch's own functions take all of them by position."""
    running, affine = ("running_mean", "running_var"), ("weight", "bias")
    first = (*running, *affine) if len(args) <= 3 else (*affine, *running)
    return ("input", *first, switch, "momentum", "eps")


def _batch_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(_statistics(args, "training"), args, kwargs)
    x = given["input"].detach()
    form = (1, -1, *[1] * (x.ndim - 2))
    if given.get("training", False) or given.get("running_var") is None:
        axes = (0, *range(2, x.ndim))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    else:
        variance, mean = (given[key].reshape(form) for key in ("running_var", "running_mean"))
    return _offset(given, variance, mean, form)


def _layer_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(("input", "shape", "weight", "bias", "eps"), args, kwargs)
    x = given["input"].detach()
    shape = given["shape"] if "shape" in given else given["normalized_shape"]
    axes = tuple(range(-len(shape), 0))
    return _offset(given, *torch.var_mean(x, axes, correction=0, keepdim=True), ())


def _group_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(("input", "groups", "weight", "bias", "eps"), args, kwargs)
    groups = given.get("groups", given.get("num_groups"))
    x = given["input"].detach()
    parts = x.reshape(len(x), groups, -1)
    form = (len(x), x.shape[1], *[1] * (x.ndim - 2))
    variance, mean = (
        each.repeat_interleave(x.shape[1] // groups, 1).reshape(form)
        for each in torch.var_mean(parts, 2, correction=0, keepdim=True)
    )
    return _offset(given, variance, mean, (1, -1, *[1] * (x.ndim - 2)))


def _instance_norm_offset(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    given = _affine(_statistics(args, "use_input_stats"), args, kwargs)
    x = given["input"].detach()
    form = (1, -1, *[1] * (x.ndim - 2))
    if given.get("use_input_stats", True):
        axes = tuple(range(2, x.ndim))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    else:
        variance, mean = (given[key].reshape(form) for key in ("running_var", "running_mean"))
    return _offset(given, variance, mean, form)


def _offset(given: dict[str, Any], variance: Tensor, mean: Tensor, form: tuple[int, ...]) -> Tensor:
    slope = (variance + given.get("eps", 1e-5)).rsqrt()
    for key in ("weight", "bias"):
        if given.get(key) is not None and form:
            given = {**given, key: given[key].detach().reshape(form)}
    if given.get("weight") is not None:
        slope = slope * given["weight"]
    offset: Tensor = -mean * slope
    if given.get("bias") is not None:
        offset = offset + given["bias"]
    return offset


OFFSETS: dict[Any, Callable[[Sequence[Any], dict[str, Any], Tensor], Tensor]] = {
    norm.batch_norm: _batch_norm_offset,
    norm.layer_norm: _layer_norm_offset,
    norm.group_norm: _group_norm_offset,
    norm.instance_norm: _instance_norm_offset,
}
"""Rule of a normalisation -> what it adds, its statistics being constant."""


@dataclass(frozen=True)
class Layer:
    """The messages of a linear or convolution layer, and what its bias takes.

    columns: the unit of each input channel or feature.
    """

    index: int
    kind: Kind
    columns: Tensor
    samples: Samples
    rule: Decomposition | None
    epsilon: float
    owed: float
    groups: int = 1

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep what the layer takes."""
        taken = self.kind.taken(args, kwargs)
        return taken, taken.a._version

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Take the credit of the outputs."""
        taken, version = kept
        # A copy, since an activation may overwrite the outputs.
        z = out.detach().clone() if self.rule is not None or totals.compares else None
        nodes = totals.nodes[self.index]
        axis = self.kind.axis(out.ndim)

        def take(s: Tensor) -> None:
            if taken.a._version != version:
                raise CreditError(
                    f"the inputs of layer {nodes.name!r} are overwritten after it took them, so "
                    "that its messages cannot be computed: write `y = f(x)` instead of `f_(x)`."
                )
            a = taken.a
            if totals.path is not None:
                before = totals.passed(self, a, s)
                if before is None:
                    return
                a, s = a - before[0], (s + before[1]) / 2
            if totals.compares:
                assert z is not None
                earned = self.samples.split((s * z).movedim(axis, -1), len(totals.group))
                totals.compare(self.index, earned.reshape(len(earned), -1, nodes.count).sum(1))
            whole = len(totals.present) == 1
            spread = self.samples.spread(totals.group)
            for group in totals.present:
                chosen = None if whole else (spread == group).nonzero()[:, 0]
                some, credit, value = (
                    each
                    if each is None or chosen is None
                    else each.index_select(self.samples.axis, chosen)
                    for each in (a, s, z)
                )
                assert some is not None and credit is not None
                self._add(totals, group, taken._replace(a=some), credit, value, axis)

        hook(out, take)

    def _add(
        self, totals: Totals, group: int, taken: Any, s: Tensor, z: Tensor | None, axis: int
    ) -> None:
        nodes = totals.nodes[self.index]
        unit = torch.arange(nodes.start, nodes.start + nodes.count, device=s.device)
        others = [other for other in range(s.ndim) if other != axis]
        if self.rule is None:
            found = messages(self.kind, taken, s)
            if taken.b is not None and totals.path is None:
                totals.sinks["bias"][group, unit] += (s.sum(others) * taken.b).double()
        else:
            assert z is not None
            r = s * stabilised(z, self.owed)
            with torch.autocast(s.device.type, enabled=False):
                found, of_bias = messages_of(self.rule, self.epsilon, self.kind, taken, r, z)
            rest = r.sum(others).double() - found.double().sum(1)
            if of_bias is not None:
                totals.sinks["bias"][group, unit] += of_bias.double()
                rest = rest - of_bias.double()
            totals.sinks["rule"][group, unit] += rest
        totals.layer(self.index, group, self.columns, found)


@dataclass(frozen=True)
class Meeting:
    """The messages of a sum or product, one-to-one from the units of each of two tensors.

    shares: the contributions of both, from arguments, their values and the result.
    """

    index: int
    by: Sums
    pairs: Tensor
    wheres: tuple[Where, ...]
    shares: Callable[..., tuple[Tensor, Tensor]]
    product: bool = False
    overwritten: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep the values that meet."""
        values = [at(where, args, kwargs).detach() for where in self.wheres]
        return [each.clone() for each in values] if self.overwritten else values

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Take the credit of the result."""

        def take(credit: Tensor) -> None:
            shares = self.shares(args, kwargs, *kept)
            if totals.path is not None:
                before = totals.passed(self, *kept, credit)
                if before is None:
                    return
                credit = (credit + before[2]) / 2
                shares = self._changes(args, kwargs, kept, before)
            if totals.compares:
                totals.compare(self.index, self._earned(totals, sum(shares), credit))
            for branch, share in enumerate(shares):
                total = totals.summed(self.by, (share * credit).expand(credit.shape))
                source = self.pairs[self.by.unit][:, branch]
                totals.meeting(self.index, self.by.unit, source, total)

        hook(out, take)

    def _changes(
        self, args: Any, kwargs: Any, kept: Sequence[Tensor], before: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what changes of both contribute to the change of the result."""
        a, b = (now - then for now, then in zip(kept, before, strict=False))
        if self.product:
            return a * (kept[1] + before[1]) / 2, b * (kept[0] + before[0]) / 2
        return self.shares(args, kwargs, a, b)

    def _earned(self, totals: Totals, value: Any, credit: Tensor) -> Tensor:
        total = self.by.total((value * credit).expand(credit.shape), len(totals.group))
        earned = total.new_zeros(len(total), totals.nodes[self.index].count)
        return earned.index_add_(1, self.by.unit, total)


def shares_of(name: str, kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return what each of two tensors contributes to their sum or product."""
    if kind == "product":
        return lambda args, kwargs, a, b: (a * b / 2, a * b / 2)
    if name == "where":
        return _chosen
    if name == "lerp":
        return _blended
    sign = -1.0 if "sub" in name else 1.0

    def summed(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        factor = kwargs.get("alpha", 1.0)
        return (-factor * a, b) if "rsub" in name else (a, sign * factor * b)

    return summed


def _blended(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    share = args[2] if len(args) > 2 else kwargs["weight"]
    return (1 - share) * a, share * b


def _chosen(args: Any, kwargs: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    condition = args[0] if args else kwargs["condition"]
    condition = condition.detach()
    return torch.where(condition, a, torch.zeros_like(a)), torch.where(
        condition, torch.zeros_like(b), b
    )
