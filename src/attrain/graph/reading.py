"""What a call does with units: hands them on, pools them, or makes nodes of what meets in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from attrain import marks
from attrain.errors import InputError
from attrain.graph import arguments, shares, steps, units
from attrain.graph import layer as layers
from attrain.graph.plan import Plan
from attrain.graph.units import MIXED, NOBODY, Units
from attrain.rules import activation, linear, norm, product
from attrain.rules.call import Call, Settings, each_of, name_of, place
from attrain.rules.decomposition import Decomposition, Epsilon
from attrain.rules.layer import operands, rectified

_ELEMENTWISE = (
    activation.relu, activation.homogeneous, activation.nonlinear, activation.prelu,
    linear.thinned, linear.cast, linear.negated,
)  # fmt: skip
_NORMS = (
    norm.batch_norm, norm.layer_norm, norm.group_norm, norm.instance_norm, norm.rms_norm,
    norm.normalize, norm.local_response_norm,
)  # fmt: skip
_MEETING = (linear.summed, linear.blended, product.product, product.quotient)
_DEFERRING = (activation.relu, linear.passed, linear.cast, linear.negated, linear.thinned)
_WINNERS = frozenset("max min amax amin median topk sort msort kthvalue cummax cummin".split())
_LARGER = frozenset("maximum minimum fmax fmin".split())


class Untraceable(InputError):
    """A way through the model that has no graph."""


def mixed(why: str) -> Untraceable:
    """Return the error for units that a call mixes."""
    return Untraceable(
        f"units are mixed in a way that has no graph, by {why}. Graphs are made of linear and "
        "convolution layers, of what normalises, pools and moves units, and of sums and products "
        "of two."
    )


class Context(Protocol):
    """The tracer, as a call knows it."""

    plan: Plan
    settings: Settings
    epsilon: float
    refunded: set[int]
    partly: dict[int, Tensor]
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
    before: list[tuple[arguments.Where, Units, Tensor]]
    owed: list[tuple[arguments.Where, float, Tensor]]
    names: list[tuple[int, int]]
    waiting: list[tuple[tuple[int, int], Tensor, Tensor, float]] = field(default_factory=list)
    scattered: bool = False
    part: bool = False

    @property
    def in_place(self) -> bool:
        """Whether the call wrote over what it took first."""
        return self.out is self.args[0] if self.args else False

    def read(self) -> list[steps.Step]:
        """Put the units on what the call made, and return what is to be taken down."""
        found = list(self._epsilons())
        if self.in_place and self.family not in _DEFERRING:
            self.context.refunded.discard(id(self.out))
        if self.family in (linear.written, linear.overwritten):
            found += self._written(self.args[0])
        elif isinstance(self.out, Tensor):
            if self.out.is_floating_point():
                found += self._result(self.out)
        else:
            for index, each in enumerate(each_of(self.out)):
                if each.is_floating_point() and each.requires_grad:
                    self._moved(each, index)
        self._deferrals()
        if self.scattered:  # whose sums by sample could not be told
            for each in each_of(self.out):
                self._mix(each, f"{self._told()}, whose samples have no axis of their own")
        if self.part:  # whose credit autograd does not tell, but only that of the whole
            self._mix(self.out, f"{self._told()}, which writes into a part of a tensor")
            self._mix_base(self.out)
        return found

    def _result(self, out: Tensor) -> list[steps.Step]:
        all_units = [each for _, each, _ in self.before]
        first = all_units[0]
        if self.family is linear.weighted:
            return self._layer(out)
        if self.family is linear.passed and self._moves_values():
            return self._moved(out)
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
        if self.family in _MEETING and not same:
            return self._met(out)
        larger = self._name() in _LARGER and same
        if larger or self.family in (*_ELEMENTWISE, *_MEETING):
            self._keep(out, first)
            if self.family in _MEETING and self._whole(out):
                return self._by_hand(out)
            adds = larger or self.family in (linear.summed, linear.blended)
            return self._shifted(out) if adds else []
        if self.family in _NORMS:
            self._keep(out, first)
            return self._normalised(out)
        if self.family in (linear.reduced, linear.mixed, linear.passed):
            self._pooled(out)
            return []
        self._mix(out, self._told())
        return []

    # What is handed on ----------------------------------------------------------------------------

    def _keep(self, out: Tensor, first: Units) -> None:
        if out.shape == first.unit.shape:
            units.put(out, first)
        elif out.numel() >= first.unit.numel():
            stretched = first.unit.expand(out.shape), first.sample.expand(out.shape)
            units.put(out, Units(*stretched, first.why))
        else:
            self._mix(out, self._told())
        self._refund(out)

    def _refund(self, out: Tensor) -> None:
        """Remember that a stabiliser which was given back is still owed by name alone."""
        if self.family not in _DEFERRING:
            return
        context = self.context
        whole = [id(tensor) in context.refunded for _, _, tensor in self.before]
        if all(whole):
            context.refunded.add(id(out))
        elif any(whole) or any(id(tensor) in context.partly for _, _, tensor in self.before):
            masks = {
                id(tensor): context.partly.get(id(tensor), torch.tensor(given)).expand(tensor.shape)
                for given, (_, _, tensor) in zip(whole, self.before, strict=True)
            }
            context.partly[id(out)] = self._made_of(masks, out)
        context.kept.append(out)

    @property
    def _refunded(self) -> bool:
        return id(self.before[0][2]) in self.context.refunded

    def _mix(self, out: Tensor, why: str) -> None:
        mixed = torch.full(out.shape, MIXED, device=out.device)
        units.put(out, Units(mixed, self._samples(out), why))

    def _samples(self, out: Tensor) -> Tensor:
        first = self.before[0][1].sample
        return first if first.shape == out.shape else self._counted(out)

    def _counted(self, out: Tensor) -> Tensor:
        if not out.ndim:
            return torch.zeros((), dtype=torch.long, device=out.device)
        counted = torch.arange(len(out), device=out.device)
        return counted.reshape(-1, *[1] * (out.ndim - 1)).expand(out.shape)

    def _told(self) -> str:
        return f"{name_of(self.func)} at {place()}"

    def _name(self) -> str:
        return getattr(self.func, "__name__", "").strip("_")

    def _moves_values(self) -> bool:
        name = self._name()
        return not (
            "pool" in name or name in _WINNERS or name in _LARGER or name.startswith("scatter")
        )

    def _moved(self, out: Tensor, index: int | None = None) -> list[steps.Step]:
        """Do with the units what the call did with the values."""
        name = self._name()
        if name == "masked_fill":
            self._keep(out, self.before[0][1])
            return self._shifts(out, partial(shares.filled, self._spare))
        if name in ("pad", "constant_pad_nd") and self._padded(out):
            return self._shifts(out, partial(shares.padded, self._spare, self.before[0][0]))
        if self.family is linear.passed and not self._moves_values():
            self._pooled(out, index)
            return []
        if name in ("index_fill", "fill_diagonal") or self.family is not linear.passed:
            self._mix(out, self._told())
            return []
        found = self._maps(self._again, index)
        if found is None or found.unit.shape != out.shape:
            self._mix(out, self._told())
            return []
        units.put(out, found)
        self._refund(out)
        return []

    def _maps(self, make: Callable[[str, int | None], Tensor | None], index: Any) -> Units | None:
        """Return the maps of the result, None where the call does not take maps."""
        try:
            unit, sample = make("unit", index), make("sample", index)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        why = next((each.why for _, each, _ in self.before if each.mixed), "")
        return None if unit is None or sample is None else Units(unit, sample, why)

    def _padded(self, out: Tensor) -> bool:
        """Give what is put around units to them where it is next to one; tell whether it can be."""
        mode = self.args[2] if len(self.args) > 2 else self.kwargs.get("mode", "constant")
        if mode != "constant":
            return False
        unit, sample, why = self.before[0][1]
        axes = [axis for axis in range(out.ndim) if out.shape[axis] != unit.shape[axis]]
        if not {*units.constant_axes(sample)}.issuperset(axes):
            return False
        for axis in axes:
            sample = sample.narrow(axis, 0, 1)
        if {*units.constant_axes(unit)}.issuperset(axes):
            for axis in axes:
                unit = unit.narrow(axis, 0, 1)
        else:
            sides = self.args[1] if len(self.args) > 1 else self.kwargs["pad"]
            with torch._C.DisableTorchFunction():
                around = torch.nn.functional.pad(unit.double(), sides, value=float(NOBODY))
            unit = around.round().long()
        units.put(out, Units(unit.expand(out.shape), sample.expand(out.shape), why))
        self._refund(out)
        return True

    def _written(self, target: Tensor) -> list[steps.Step]:
        """Write into the units of a tensor what the call wrote into its values."""
        found = self._maps(self._write, None)
        if found is None:
            self._mix(target, self._told())
        else:
            units.put(target, found)
        self._mix_base(target)
        return [steps.Written()]

    def _mix_base(self, view: Tensor) -> None:
        """Give up the tensor that the call wrote a part of: which part it is cannot be told."""
        if view._base is not None:
            self._mix(view._base, f"{self._told()}, which writes into a part of a tensor")

    def _write(self, part: str, _: int | None) -> Tensor:
        target = self.args[0]
        known = units.of(target)
        nobody = torch.full(target.shape, NOBODY, device=target.device)
        fresh = nobody if part == "unit" else self._counted(target)
        return self._again(part, None, fresh if known is None else getattr(known, part).clone())

    def _again(self, part: str, index: int | None, target: Tensor | None = None) -> Tensor:
        """Call the function on the map of its tensors; `target` is one to be written into."""
        known = {id(tensor): getattr(each, part) for _, each, tensor in self.before}
        if target is not None:
            known[id(self.args[0])] = target

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
        args = [mapped(each) for each in self.args]
        pads = self._name() in ("pad", "constant_pad_nd")
        if pads:  # which takes no integers
            args[0] = args[0].double()
        with torch._C.DisableTorchFunction(), torch.no_grad():
            out = self.func(*args, **kwargs)
        if target is not None:
            written: Tensor = args[0]
            return written
        found: Tensor = each_of(out)[index] if index is not None else out
        return found.round().long() if pads else found

    def _among(self, part: str, index: int | None) -> Tensor | None:
        """Return the one number behind each pooled value, None where there are several."""
        maps = {id(tensor): getattr(each, part) for _, each, tensor in self.before}
        winners = "max" in self._name() or self._name() in _WINNERS

        def of(change: Callable[[Tensor], Tensor]) -> Tensor:
            def mapped(value: Any) -> Any:
                if isinstance(value, Tensor) and id(value) in maps:
                    return change(maps[id(value)].double())
                if isinstance(value, (list, tuple)):
                    return type(value)(mapped(each) for each in value)
                return value

            kwargs = {key: mapped(each) for key, each in self.kwargs.items()}
            with torch._C.DisableTorchFunction(), torch.no_grad():
                out = self.func(*[mapped(each) for each in self.args], **kwargs)
            return out if index is None else each_of(out)[index]

        if winners:
            high = of(lambda numbers: numbers)
            return high.long() if torch.equal(high, -of(lambda numbers: -numbers)) else None
        # A linear map of numbers of one unit gives that number times what it makes of 1.
        whole = of(torch.ones_like)
        number = (of(lambda numbers: numbers) / whole).round()
        alike = torch.stack([
            (of(change) - whole * change(number)).abs().amax() < 1e-6
            for change in (torch.sin, lambda numbers: numbers)
        ])  # fmt: skip
        return number.long() if bool(alike.all()) else None

    def _pooled(self, out: Tensor, index: int | None = None) -> None:
        """Keep units whose values were pooled among themselves, each sample's by itself."""
        mixed = next((each for _, each, _ in self.before if each.mixed), None)
        found = None if mixed is not None else self._maps(self._among, index)
        if found is None or found.unit.shape != out.shape:
            self._mix(out, mixed.why if mixed is not None else self._told())
        else:
            units.put(out, found)
            self._refund(out)

    def _by_statistic(self, all_units: list[Units]) -> Units | None:
        """Return the units of a value that is normalised by its own statistic, a constant."""
        if self.family not in (product.product, product.quotient):
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
        outs = each_of(self.out)
        keeps_sign = getattr(self.rule, "keywords", {}).get("keeps_sign", True)
        for (where, epsilon, tensor), (_, each, _), name in zip(
            self.owed, self.before, self.names, strict=True
        ):
            if self.family is activation.nonlinear and not keeps_sign and not each.mixed:
                if not epsilon and id(tensor) not in self.context.refunded:
                    found += self._curve(each, where)
                    continue
                epsilon = self.context.epsilon
            if each.mixed or not epsilon or id(tensor) in self.context.refunded:
                continue
            mask = self.context.partly.get(id(tensor))
            if mask is not None:
                each = each._replace(unit=torch.where(mask, NOBODY, each.unit))
            by = units.sums(each)
            if by is None:
                self.scattered = True
                continue
            mark = marks.get(outs[0]) if outs else None
            if self.family in _DEFERRING and mark is not None and mark.epsilon == epsilon:
                # What is the same tensor still owes its own.
                known = {id(taken) for _, taken, _, _ in self.waiting}
                if id(tensor) not in known:
                    self.waiting += [
                        (name, tensor, out, epsilon) for out in outs if out is not tensor
                    ]
            else:
                self.context.paid.add(name)
                if where == 0 and self.in_place and tensor._base is not None:
                    self.part = True
                found.append(
                    steps.Epsilon(
                        where, by, epsilon, overwritten=self.in_place, rectified=rectified(tensor)
                    )
                )
        return found

    def _whole(self, out: Tensor) -> bool:
        """Whether what was written out by hand is one activation of one tensor."""
        return out.grad_fn is not None and out.grad_fn.name() == "SecantBackward"

    def _curve(self, each: Units | None, where: arguments.Where | None = None) -> list[steps.Step]:
        by = None if each is None or each.mixed else units.sums(each)
        self.scattered |= by is None and each is not None and not each.mixed
        epsilon = self.context.epsilon
        return [steps.Curve(by, epsilon, where)] if by is not None and epsilon else []

    def _by_hand(self, out: Tensor) -> list[steps.Step]:
        """Return what the stabiliser of an activation written out by hand takes."""
        mark = marks.get(out)
        root = None if mark is None else mark.root(out)
        owed = None if root is None else marks.get(root)
        if owed is not None and (owed.epsilon or id(root) in self.context.refunded):
            return []  # which is counted where the tensor is first taken
        return self._curve(units.of(out))

    def _deferrals(self) -> None:
        """Remember what the call took without paying, and what it made that owes the same."""
        for name, tensor, out, epsilon in self.waiting:
            each = self._coming_from(tensor, out)
            by = None if each is None or each.mixed else units.sums(each)
            self.scattered |= by is None and each is not None and not each.mixed
            if by is not None:
                step = steps.Deferred(
                    by, epsilon, None if out is self.out else _index(out, self.out)
                )
                self.context.deferred.append((len(self.context.plan.calls), name, step))

    def _coming_from(self, tensor: Tensor, out: Tensor) -> Units | None:
        """Return the units of what a call made of one of the tensors that it took."""
        each = units.of(out)
        if each is None or each.mixed or len(self.before) == 1:
            return each
        from_it = {
            id(taken): torch.tensor(taken is tensor).expand(taken.shape)
            for _, _, taken in self.before
        }
        return each._replace(unit=torch.where(self._made_of(from_it, out), each.unit, NOBODY))

    def _made_of(self, masks: dict[int, Tensor], out: Tensor) -> Tensor:
        """Return which values of `out` the call made of masked values of what it took."""

        def mapped(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) in masks:
                    return masks[id(value)].to(value.device, torch.get_default_dtype())
                return torch.zeros_like(value) if value.is_floating_point() else value.detach()
            if isinstance(value, (list, tuple)):
                return type(value)(mapped(each) for each in value)
            return value

        with torch._C.DisableTorchFunction(), torch.no_grad():
            made = self.func(
                *map(mapped, self.args), **{key: mapped(each) for key, each in self.kwargs.items()}
            )
        if out is not self.out:
            made = each_of(made)[_index(out, self.out)]
        return torch.as_tensor(made.abs() > 0.5)

    def _shifted(self, out: Tensor) -> list[steps.Step]:
        """Return what constants and parameters add to the units of one tensor."""
        if len(self.before) != 1 or self._whole(out):
            return []
        offset = partial(shares.added, self._spare, self._name(), self.before[0][0])
        return self._shifts(out, offset)

    @property
    def _spare(self) -> float:
        """The stabiliser of constants among values whose own is given back."""
        deferred = self.family in _DEFERRING and self._refunded
        return self.context.epsilon if deferred else 0.0

    def _shifts(self, out: Tensor, offset: Any, kind: str = "bias") -> list[steps.Step]:
        each = units.of(out)
        if each is None or each.mixed:
            return []
        by = units.sums(each)
        if by is None:
            self.scattered = True
            return []
        return [steps.Shift(by, offset, kind, overwritten=self.in_place)]

    def _normalised(self, out: Tensor) -> list[steps.Step]:
        offset = shares.OFFSETS.get(self.family)
        return [] if offset is None else self._shifts(out, offset, "normalisation")

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
        if samples is None:
            self.scattered = True
        if columns is None or samples is None or bool((columns == NOBODY).all()):
            why = f"{self._told()}, whose weight does not tell its units apart"
            if len(self.context.plan.nodes) == 1:
                raise mixed(why)  # the inputs have other units
            self._mix(out, why)
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
                first=self._is_first(sources),
            )
        ]

    def _is_first(self, sources: list[int]) -> bool:
        """Whether a layer takes the inputs, at which nothing is taken down."""
        plan = self.context.plan
        earlier = [step for _, due in plan.calls for step in due]
        alone = all(isinstance(step, steps.Layer) and step.first for step in earlier)
        owes = any(epsilon for _, epsilon, _ in self.owed)
        return alone and not owes and [plan.nodes[k].kind for k in sources] == ["input"]

    def _rule(self, weight: Any) -> Decomposition:
        call = Call(self.context.settings, self.func, self.args, self.kwargs)
        weights, _ = operands(call)
        return self.context.rule_of(call, weights[0]) if weights else Epsilon()

    def _met(self, out: Tensor) -> list[steps.Step]:
        """Make nodes where different units meet in a sum or product."""
        name = getattr(self.func, "__name__", "").strip("_")
        kind = "sum" if self.family in (linear.summed, linear.blended) else "product"
        if len(self.before) != 2 or (kind == "product" and self.family is product.quotient):
            self._mix(out, self._told())
            return []
        numbers = [each.unit.expand(out.shape) for _, each, _ in self.before]
        unit, pairs = units.paired(numbers)
        sample, other = (each.sample.expand(out.shape) for _, each, _ in self.before)
        by = units.sums(Units(unit, sample))
        if by is None or not torch.equal(sample, other):
            self._mix(out, f"{self._told()}, where values of several samples meet")
            return []
        if self.in_place:
            self._mix_base(out)
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
                shares=shares.shares_of(name, kind),
                product=kind == "product",
                overwritten=self.in_place,
            )
        ]


def _index(out: Tensor, among: Any) -> int:
    return next(index for index, each in enumerate(each_of(among)) if each is out)
