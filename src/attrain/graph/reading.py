"""What a call does with units: hands them on, pools them, or makes nodes of what meets in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from attrain import marks
from attrain.errors import InputError
from attrain.graph import layer as layers
from attrain.graph import steps, units
from attrain.graph.plan import Plan
from attrain.graph.units import MIXED, NOBODY, Units
from attrain.rules import activation, linear, norm, product
from attrain.rules.call import Call, Settings, name_of, place
from attrain.rules.decomposition import Decomposition, Epsilon
from attrain.rules.layer import operands

_ELEMENTWISE = (
    activation.relu, activation.homogeneous, activation.nonlinear, activation.prelu,
    linear.thinned, linear.cast, linear.negated,
)  # fmt: skip
_NORMS = (
    norm.batch_norm, norm.layer_norm, norm.group_norm, norm.instance_norm, norm.rms_norm,
    norm.normalize, norm.local_response_norm,
)  # fmt: skip
_DEFERRING = (activation.relu, linear.passed, linear.cast, linear.negated)
_WINNERS = frozenset("max min amax amin median topk sort msort kthvalue cummax cummin".split())


class Untraceable(InputError):
    """A way through the model that has no graph."""


class Context(Protocol):
    """The tracer, as a call knows it."""

    plan: Plan
    settings: Settings
    epsilon: float
    refunded: set[int]
    kept: list[Tensor]
    paid: set[tuple[int, int]]
    deferred: list[tuple[int, tuple[int, int], steps.Step]]

    def named(self, weight: Any, kind: str) -> str:
        """Return the name of a layer."""

    def here(self, kind: str) -> str:
        """Return the name of what is computed where the model is."""

    def rule_of(self, call: Call, weight: Tensor) -> Decomposition:
        """Return the rule of a layer."""


@dataclass
class Reading:
    """One call: what it took, whose units these were, and what it made of them."""

    context: Context
    func: Any
    rule: Any
    family: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    before: list[tuple[steps.Where, Units, Tensor]]
    owed: list[tuple[steps.Where, float, Tensor]]
    names: list[tuple[int, int]]
    waiting: list[tuple[tuple[int, int], Tensor, float]] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        """Whether the call wrote over what it took first."""
        return self.out is self.args[0] if self.args else False

    def read(self) -> list[steps.Step]:
        """Put the units on what the call made, and return what is to be taken down."""
        found = list(self._epsilons())
        if isinstance(self.out, Tensor):
            if self.out.is_floating_point():
                found += self._result(self.out)
        else:
            for index, each in enumerate(_tensors(self.out)):
                if each.is_floating_point() and each.requires_grad:
                    self._moved(each, index)
        self._deferrals()
        return found

    def _result(self, out: Tensor) -> list[steps.Step]:
        all_units = [each for _, each, _ in self.before]
        first = all_units[0]
        if self.family is linear.weighted:
            return self._layer(out)
        if self.family is linear.passed and self._moves_values():
            self._moved(out)
            return []
        same = all(torch.equal(each.unit, first.unit) for each in all_units[1:]
                   if each.unit.shape == first.unit.shape) and all(
            each.unit.shape == first.unit.shape for each in all_units)  # fmt: skip
        statistic = self._by_statistic(all_units)
        if statistic is not None:
            units.put(out, statistic)
            return []
        if any(each.mixed for each in all_units):
            self._mix(out, next(each.why for each in all_units if each.mixed))
            return []
        if self.family in (linear.summed, product.product, product.quotient) and not same:
            return self._met(out)
        if self.family in (*_ELEMENTWISE, linear.summed, product.product, product.quotient):
            self._keep(out, first)
            return self._shifted(out) if self.family is linear.summed else []
        if self.family in _NORMS:
            self._keep(out, first)
            return self._normalised(out)
        if self.family in (linear.reduced, linear.mixed, linear.passed, linear.normed):
            self._pooled(out, first)
            return []
        self._mix(out, self._told())
        return []

    # What is handed on ----------------------------------------------------------------------------

    def _keep(self, out: Tensor, first: Units) -> None:
        if out.shape == first.unit.shape:
            units.put(out, first)
        elif out.numel() >= first.unit.numel():
            spread = first.unit.expand(out.shape), first.sample.expand(out.shape)
            units.put(out, Units(*spread, first.why))
        else:
            self._mix(out, self._told())
        self._refund(out)

    def _refund(self, out: Tensor) -> None:
        """Remember that a stabiliser which was given back is still owed by name alone."""
        if self.family in _DEFERRING and id(self.before[0][2]) in self.context.refunded:
            self.context.refunded.add(id(out))
            self.context.kept.append(out)

    def _mix(self, out: Tensor, why: str) -> None:
        mixed = torch.full(out.shape, MIXED, device=out.device)
        units.put(out, Units(mixed, self._samples(out), why))

    def _samples(self, out: Tensor) -> Tensor:
        first = self.before[0][1].sample
        if first.shape == out.shape:
            return first
        counted = torch.arange(len(out) if out.ndim else 1, device=out.device)
        return counted.reshape(-1, *[1] * max(out.ndim - 1, 0)).expand(out.shape)

    def _told(self) -> str:
        return f"{name_of(self.func)} at {place()}"

    def _moves_values(self) -> bool:
        name = getattr(self.func, "__name__", "").strip("_")
        return not ("pool" in name or name in _WINNERS or name.startswith("scatter"))

    def _moved(self, out: Tensor, index: int | None = None) -> None:
        """Do with the units what the call did with the values."""
        name = getattr(self.func, "__name__", "").strip("_")
        if name.startswith(("masked_fill", "index_fill", "fill_diagonal")):
            return self._keep(out, self.before[0][1])
        if not self._moves_values() or self.family is not linear.passed:
            return self._mix(out, self._told())
        try:
            unit, sample = (self._again(part, index) for part in ("unit", "sample"))
        except (RuntimeError, TypeError, IndexError, ValueError):
            return self._mix(out, self._told())
        if unit.shape != out.shape:
            return self._mix(out, self._told())
        why = next((each.why for _, each, _ in self.before if each.mixed), "")
        units.put(out, Units(unit, sample, why))
        self._refund(out)
        return None

    def _again(self, part: str, index: int | None) -> Tensor:
        """Call the function on the map of its tensors."""
        known = {id(tensor): getattr(each, part) for _, each, tensor in self.before}

        def mapped(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) in known:
                return known[id(value)].contiguous()
            if isinstance(value, Tensor) and value.is_floating_point():
                if part == "unit":
                    return torch.full(value.shape, NOBODY, device=value.device)
                return self._samples(value).contiguous()
            if isinstance(value, (list, tuple)):
                return type(value)(mapped(each) for each in value)
            return NOBODY if isinstance(value, float) and part == "unit" else value

        kwargs = {key: mapped(each) for key, each in self.kwargs.items()}
        if self.func is torch.nn.functional.pad:
            kwargs["value"] = NOBODY if part == "unit" else 0
        with torch._C.DisableTorchFunction(), torch.no_grad():
            out = self.func(*[mapped(each) for each in self.args], **kwargs)
        found: Tensor = _tensors(out)[index] if index is not None else out
        return found

    def _pooled(self, out: Tensor, first: Units) -> None:
        """Keep units whose values were pooled among themselves."""
        if first.mixed:
            return self._mix(out, first.why)
        unit, sample = first.unit, first.sample
        if out.ndim < unit.ndim:  # an axis is gone: the one whose removal leaves this shape
            gone = [axis for axis in range(unit.ndim)
                    if [*unit.shape[:axis], *unit.shape[axis + 1:]] == [*out.shape]
                    and axis in units.constant_axes(unit)
                    and axis in units.constant_axes(sample)]  # fmt: skip
            if unit.ndim - out.ndim > 1:
                kept = out.ndim
                spare = tuple(range(kept, unit.ndim))
                if unit.shape[:kept] == out.shape and all(
                    axis in units.constant_axes(unit) for axis in spare
                ):
                    for axis in reversed(spare):
                        unit, sample = unit.select(axis, 0), sample.select(axis, 0)
                    return units.put(out, Units(unit, sample))
                return self._mix(out, self._told())
            if not gone:
                return self._mix(out, self._told())
            return units.put(out, Units(unit.select(gone[0], 0), sample.select(gone[0], 0)))
        if out.ndim != unit.ndim:
            return self._mix(out, self._told())
        constant = set(units.constant_axes(unit)) & set(units.constant_axes(sample))
        for axis in range(unit.ndim):
            if axis in constant:
                unit, sample = unit.narrow(axis, 0, 1), sample.narrow(axis, 0, 1)
            elif unit.shape[axis] != out.shape[axis]:
                return self._mix(out, self._told())
        return units.put(out, Units(unit.expand(out.shape), sample.expand(out.shape)))

    def _by_statistic(self, all_units: list[Units]) -> Units | None:
        """Return the units of a value that is normalised or centred by its own statistic."""
        if self.family not in (product.product, product.quotient, linear.summed):
            return None
        mixed = [each.mixed for each in all_units]
        if len(all_units) != 2 or mixed[0] == mixed[1]:
            return None
        kept = all_units[mixed.index(False)]
        kind = marks.get(self.before[mixed.index(True)][2])
        statistic = kind is not None and kind.kind is not marks.Kind.ACTIVATION
        shape = getattr(self.out, "shape", None)
        return kept if statistic and kept.unit.shape == shape else None

    # What is taken down ---------------------------------------------------------------------------

    def _epsilons(self) -> list[steps.Step]:
        """Return the stabilisers that the call pays for what it took."""
        found: list[steps.Step] = []
        outs = _tensors(self.out)
        keeps_sign = getattr(self.rule, "keywords", {}).get("keeps_sign", True)
        for (where, epsilon, tensor), (_, each, _), name in zip(
            self.owed, self.before, self.names, strict=True
        ):
            if self.family is activation.nonlinear and not keeps_sign:
                epsilon = self.context.epsilon
            by = None if each.mixed or not epsilon else units.sums(each)
            if by is None or id(tensor) in self.context.refunded:
                continue
            mark = marks.get(outs[0]) if outs else None
            if self.family in _DEFERRING and mark is not None and mark.epsilon == epsilon:
                self.waiting += [(name, out, epsilon) for out in outs]
            else:
                self.context.paid.add(name)
                found.append(steps.Epsilon(where, by, epsilon, overwritten=self.in_place))
        return found

    def _deferrals(self) -> None:
        """Remember what the call took without paying, and what it made that owes the same."""
        for name, out, epsilon in self.waiting:
            each = units.of(out)
            by = None if each is None or each.mixed else units.sums(each)
            if by is not None:
                step = steps.Deferred(
                    by, epsilon, None if out is self.out else _index(out, self.out)
                )
                self.context.deferred.append((len(self.context.plan.calls), name, step))

    def _shifted(self, out: Tensor) -> list[steps.Step]:
        """Return what constants and parameters add to the units of one tensor."""
        mark = marks.get(out)
        if len(self.before) != 1 or (mark is not None and mark.curved):
            return []
        each = units.of(out)
        by = None if each is None else units.sums(each)
        if by is None:
            return []
        name = getattr(self.func, "__name__", "").strip("_")
        offset = partial(steps.added, name, self.before[0][0])
        return [steps.Shift(by, offset, overwritten=self.in_place)]

    def _normalised(self, out: Tensor) -> list[steps.Step]:
        each = units.of(out)
        by = None if each is None else units.sums(each)
        offset = steps.OFFSETS.get(self.family)
        if by is None or offset is None:
            return []
        return [steps.Shift(by, offset, kind="normalisation")]

    def _layer(self, out: Tensor) -> list[steps.Step]:
        """Make nodes of a layer's outputs."""
        kind = layers.kind_of(self.func, self.args, self.kwargs)
        where, each, tensor = self.before[0]
        if kind is None or len(self.before) > 1 or where not in kind.takes:
            self._mix(out, self._told())
            return []
        if each.mixed:
            self._mix(out, each.why)
            return []
        taken = kind.taken(self.args, self.kwargs)
        columns = units.along(each, kind.axis(tensor.ndim))
        samples = units.samples_of(each)
        if columns is None or samples is None or bool((columns == NOBODY).any()):
            self._mix(out, f"{self._told()}, whose weight does not tell its units apart")
            return []
        _, made = kind.sizes(taken.w, taken.named)
        plan, context = self.context.plan, self.context
        sources = plan.feeding(columns)
        weight = kind.weight(self.args, self.kwargs)
        nodes = plan.add(context.named(weight, kind.name), kind.name, made, sources)
        axis = kind.axis(out.ndim)
        form = [1] * out.ndim
        form[axis] = made
        unit = torch.arange(nodes.start, nodes.start + made, device=out.device).reshape(form)
        sample = each.sample.select(kind.axis(tensor.ndim), 0).unsqueeze(kind.axis(tensor.ndim))
        for place_ in range(out.ndim):  # the places of the inputs are others than the outputs'
            if place_ != samples.axis:
                sample = sample.narrow(place_, 0, 1)
        units.put(out, Units(unit.expand(out.shape), sample.expand(out.shape)))
        rule = self._rule(weight)
        plain = isinstance(rule, Epsilon)
        if not plain:
            context.refunded.add(id(out))
            context.kept.append(out)
        return [
            steps.Layer(
                index=len(plan.nodes) - 1,
                kind=kind,
                columns=columns,
                samples=samples,
                rule=None if plain else rule,
                epsilon=context.epsilon if rule.epsilon is None else rule.epsilon,
                owed=context.epsilon,
                groups=taken.named.get("groups", 1),
            )
        ]

    def _rule(self, weight: Any) -> Decomposition:
        call = Call(self.context.settings, self.func, self.args, self.kwargs)
        weights, _ = operands(call)
        return self.context.rule_of(call, weights[0]) if weights else Epsilon()

    def _met(self, out: Tensor) -> list[steps.Step]:
        """Make nodes where different units meet in a sum or product."""
        name = getattr(self.func, "__name__", "").strip("_")
        kind = "sum" if self.family is linear.summed else "product"
        if len(self.before) != 2 or (kind == "product" and self.family is product.quotient):
            self._mix(out, self._told())
            return []
        numbers = [each.unit.expand(out.shape) for _, each, _ in self.before]
        unit, pairs = units.paired(numbers)
        sample = self._samples(out)
        met = Units(unit, sample)
        by = units.sums(met)
        if by is None or any(
            each.sample.shape == out.shape and not torch.equal(each.sample, sample)
            for _, each, _ in self.before
        ):
            self._mix(out, self._told())
            return []
        plan = self.context.plan
        sources = plan.feeding(pairs)
        nodes = plan.add(self.context.here(kind), kind, len(pairs), sources)
        units.put(out, Units(unit + nodes.start, sample))
        wheres = tuple(where for where, _, _ in self.before)
        return [
            steps.Meeting(
                index=len(plan.nodes) - 1,
                by=by,
                pairs=pairs,
                wheres=wheres,
                shares=steps.shares_of(name, kind),
                product=kind == "product",
                overwritten=self.in_place,
            )
        ]


def _index(out: Tensor, among: Any) -> int:
    return next(index for index, each in enumerate(_tensors(among)) if each is out)


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [tensor for each in out for tensor in _tensors(each)]
    return []
