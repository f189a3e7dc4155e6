"""Models whose units hand on something else than they computed: ablated, resampled or clamped.

What is replaced is what a unit hands to each of its consumers, the layers and meetings above it and
the model's output: after activation, normalisation and pooling, so that zero is silence.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import (
    as_in_evaluation,
    as_tuple,
    check_inputs,
    check_model,
    plain,
)
from attrain.attribution.lrp import frozen
from attrain.attribution.part import sliced
from attrain.attribution.targets import scores
from attrain.errors import CreditWarning, InputError, unknown
from attrain.graph import arguments, steps, stream, units
from attrain.graph.build import prepare
from attrain.graph.follow import SEEN, Follower, Taking, makes, stretched, takes
from attrain.graph.graph import AttributionGraph
from attrain.graph.plan import Plan
from attrain.graph.units import Samples

HOWS = ("mean", "zero", "resample")
"""What an ablated unit hands on: its mean over the reference at each place, 0, or what it hands on
for another sample of the reference, drawn for each sample and the same for all units."""

_BLOCKS = {"tokens", "attention", "mlp"}

Key = tuple[int, int]
"""A call of the plan, -1 for the model's output, and which of its takings."""


class Replacement(Protocol):
    """What is put in the place of values."""

    @property
    def doubled(self) -> bool:
        """Whether the samples are followed by as many others that lend them their values."""

    def __call__(self, key: Key, value: Tensor, taking: Taking) -> Tensor:
        """Return what is handed on instead of values by sample, in a shape that stretches."""


class _Zero:
    doubled = False

    def __call__(self, key: Key, value: Tensor, taking: Taking) -> Tensor:
        return value.new_zeros(())


@dataclass(frozen=True)
class _Mean:
    means: Mapping[Key, Tensor]
    doubled = False

    def __call__(self, key: Key, value: Tensor, taking: Taking) -> Tensor:
        return self.means[key][None]


@dataclass(frozen=True)
class _Clamp:
    values: Tensor
    doubled = False

    def __call__(self, key: Key, value: Tensor, taking: Taking) -> Tensor:
        return self.values[taking.unit.clamp_min(0)][None]


class _Resample:
    """The second half of the samples, which run beside the first, lends it its values."""

    doubled = True

    def __call__(self, key: Key, value: Tensor, taking: Taking) -> Tensor:
        return value[len(value) // 2 :]


class _Replacer(Follower):
    """Puts something else in the place of what chosen units [rows, units] hand on.

    only: units [rows] of layer `index`, beyond which nothing is replaced: each row cuts what its
    chosen units hand to that one unit.
    """

    def __init__(
        self,
        plan: Plan,
        chosen: Tensor,
        put: Replacement,
        only: tuple[int, Tensor] | None = None,
    ) -> None:
        super().__init__(plan)
        self.chosen, self.put, self.only = chosen, put, only

    def made(
        self, due: Sequence[steps.Step], func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Return what a call makes of the values that are handed to it now."""
        found: list[tuple[Any, Taking, Tensor]] = []
        for step in due:
            if self.only is not None and getattr(step, "index", None) != self.only[0]:
                continue
            for number, taking in enumerate(takes(step, args, kwargs)):
                value = stretched(step, taking.where, args, kwargs)
                new = self.replaced((self.next - 1, number), value, taking)
                if new is not None:
                    found.append((step, taking, new))
        if not found:
            return func(*args, **kwargs)
        clean: Any = None
        if self.only is not None:  # on copies, for the call may write over what it takes
            copies = [(taking.where, stretched(step, taking.where, args, kwargs).clone())
                      for step, taking, _ in found]  # fmt: skip
            clean = _called(func, args, kwargs, copies)
        out = _called(func, args, kwargs, [(taking.where, new) for _, taking, new in found])
        if any(out is new for _, _, new in found):  # it did, and others may see what it wrote
            if self.only is not None:
                out = self._one(makes(found[0][0], clean), clean, out)
            return args[0].copy_(out)
        return out if self.only is None else self._one(makes(found[0][0], clean), clean, out)

    def replaced(self, key: Key, value: Tensor, taking: Taking) -> Tensor | None:
        """Return a tensor in which the chosen units hand on something else, None if none is."""
        mask = self.chosen[:, taking.unit.clamp_min(0)] & (taking.unit >= 0)
        if not bool(mask.any()):
            return None
        values = taking.split(value)
        new = self.put(key, values, taking).to(value.dtype)
        if not self.put.doubled:
            return taking.joined(torch.where(mask, new, values))
        first = torch.where(mask, new, values[: len(values) // 2])
        return taking.joined(torch.cat([first, new]))

    def _one(self, target: Taking | None, clean: Tensor, out: Tensor) -> Tensor:
        """Return `out` for the one unit that each row is about, `clean` for all others."""
        assert self.only is not None and target is not None
        mask = target.unit == self.only[1].reshape(-1, *[1] * target.unit.ndim)
        if self.put.doubled:
            mask = torch.cat([mask, torch.zeros_like(mask)])
        return target.joined(torch.where(mask, target.split(out), target.split(clean)))


def _called(
    func: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    values: Sequence[tuple[arguments.Where, Tensor]],
) -> Any:
    """Return what a function makes with other values at some places."""
    given, named = list(args), dict(kwargs)
    for where, value in values:
        if isinstance(where, int):
            given[where] = value
        else:
            assert isinstance(where, str)  # layers and meetings take no lists
            named[where] = value
    return func(*given, **named)


Look = Callable[[Key, Tensor, Taking], None]
"""Is shown what units hand to a consumer."""


class _Watcher(Follower):
    """Looks at what units hand to each consumer."""

    def __init__(self, plan: Plan, look: Look) -> None:
        super().__init__(plan)
        self.look = look

    def made(
        self, due: Sequence[steps.Step], func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Look, and call."""
        for step in due:
            for number, taking in enumerate(takes(step, args, kwargs)):
                value = stretched(step, taking.where, args, kwargs)
                with torch._C.DisableTorchFunction(), torch.no_grad():
                    self.look((self.next - 1, number), value.detach(), taking)
        return func(*args, **kwargs)


@dataclass
class Bench:
    """A model, its plan, and the samples x [N, ...] on which its units are replaced."""

    model: nn.Module
    plan: Plan
    x: Tensor
    args: tuple[Any, ...] = ()
    batch_size: int = 128
    put: Replacement = field(default_factory=_Zero)
    donors: Tensor | None = None

    def prepare(self, how: str, reference: Tensor | None, seed: int) -> None:
        """Choose what units hand on instead; see HOWS. Raises InputError for what cannot be."""
        if how not in HOWS:
            raise unknown("ablation", str(how), HOWS)
        if reference is not None:
            self._check_reference(reference)
        known = self.x if reference is None else plain(reference)
        args = self.args if reference is None else self._shared_args()
        if how == "mean":
            self.put = _Mean(self._means(known, args))
        elif how == "resample":
            self.put, self.donors = _Resample(), self._donors(known, reference is None, seed)
        else:
            self.put = _Zero()

    def clamp(self, values: Tensor) -> None:
        """Let chosen units hand on their entry of values [units]."""
        self.put = _Clamp(values)

    def outputs(self, chosen: Tensor, only: tuple[int, Tensor] | None = None) -> Tensor:
        """Return the model's output [R, N, ...] for each of R sets of chosen units [R, units].

        only: a layer's index and, for each set, the number of its unit that alone sees another
        value; without, all consumers do.
        """
        if self.plan.blocks:
            self._check_handed(chosen.any(0).cpu())
        sets, samples = len(chosen), len(self.x)
        size = min(samples, self.batch_size)
        together = max(1, self.batch_size // size)
        parts = []
        for first in range(0, sets, together):
            some = chosen[first : first + together]
            seen = None if only is None else (only[0], only[1][first : first + together])
            found = [
                self._run(some, start, min(start + size, samples), seen)
                for start in range(0, samples, size)
            ]
            parts.append(torch.cat(found, 1))
        return torch.cat(parts)

    def watch(self, look: Look, ended: Callable[[], None]) -> None:
        """Show what units hand to each consumer, and the output, and tell where a batch ends."""
        self._watch(self.x, self.args, look, ended)

    def _run(
        self, chosen: Tensor, start: int, stop: int, only: tuple[int, Tensor] | None
    ) -> Tensor:
        count, sets = stop - start, len(chosen)
        x = _tiled(self.x[start:stop], sets)
        args = tuple(
            _tiled(each, sets) if each is not given else each  # a slice
            for each, given in zip(
                sliced(self.args, len(self.x), start, stop), self.args, strict=True
            )
        )
        if self.put.doubled:
            assert self.donors is not None
            x = torch.cat([x, _tiled(self.donors[start:stop], sets)])
        rows = chosen.repeat_interleave(count, 0)
        if only is not None:
            only = only[0], only[1].repeat_interleave(count, 0)
        replacer = _Replacer(self.plan, rows, self.put, only)
        out = _followed(self.model, replacer, x, args)
        for number, taking in enumerate(self.endings):
            last = number == len(self.endings) - 1
            if only is None:
                new = replacer.replaced((-1, number), out, taking)
            elif not last and only[0] == len(self.plan.nodes) - 1:
                new = replacer.replaced((-1, number), out, taking)
                if new is not None:
                    one = torch.arange(self.plan.nodes[-1].count, device=out.device)
                    ending = taking._replace(unit=one.reshape(taking.unit.shape))
                    new = replacer._one(ending, out, new)
            else:
                continue
            out = out if new is None else new
        out = out[: count * sets]
        return out.reshape(sets, count, *out.shape[1:])

    @property
    def endings(self) -> list[Taking]:
        """The units of the model's output; before them those that they are, where they differ."""
        assert self.plan.output is not None
        unit, last = self.plan.output.unit[0], self.plan.nodes[-1]
        found = [Taking(0, unit, Samples(0))]
        if last.of:
            of = torch.tensor(last.of, device=unit.device).reshape(unit.shape)
            found.insert(0, Taking(0, of, Samples(0)))
        return found

    def _watch(
        self, x: Tensor, args: tuple[Any, ...], look: Look, ended: Callable[[], None] | None = None
    ) -> None:
        for start in range(0, len(x), self.batch_size):
            stop = min(start + self.batch_size, len(x))
            rest = sliced(args, len(x), start, stop)
            out = _followed(self.model, _Watcher(self.plan, look), x[start:stop], rest)
            for number, taking in enumerate(self.endings):
                look((-1, number), out, taking)
            if ended is not None:
                ended()

    def _means(self, x: Tensor, args: tuple[Any, ...]) -> dict[Key, Tensor]:
        sums: dict[Key, Tensor] = {}

        def add(key: Key, value: Tensor, taking: Taking) -> None:
            total = taking.split(value).sum(0, dtype=torch.float64)
            sums[key] = sums[key] + total if key in sums else total

        self._watch(x, args, add)
        dtype = self.x.dtype if self.x.is_floating_point() else torch.get_default_dtype()
        return {key: (each / len(x)).to(dtype) for key, each in sums.items()}

    def _donors(self, known: Tensor, own: bool, seed: int) -> Tensor:
        samples = len(self.x)
        if own and samples < 2:
            raise InputError(
                "how='resample' takes values of other samples, and x has one: give reference=, "
                "samples [M, ...] to draw from."
            )
        if any(isinstance(each, Tensor) and each.ndim and len(each) == samples
               for each in self.args):  # fmt: skip
            raise InputError(
                "how='resample' runs other samples beside x, and additional_forward_args has "
                "tensors of each sample of x: use how='mean' or 'zero'."
            )
        draw = torch.Generator().manual_seed(seed)
        if own:  # any but the sample itself
            step = torch.randint(1, samples, (samples,), generator=draw)
            index = (torch.arange(samples) + step) % samples
        else:
            index = torch.randint(len(known), (samples,), generator=draw)
        return known[index.to(known.device)]

    def _check_handed(self, chosen: Tensor) -> None:
        """Raise InputError for chosen nodes of a transformer that are no heads and no MLPs."""
        handed = torch.zeros_like(chosen)
        handed[self.endings[-1].unit.flatten().cpu()] = True
        for step in (step for _, due in self.plan.calls for step in due):
            for each in _units_of(step):
                handed[each] = True
        for nodes in self.plan.nodes:
            span = slice(nodes.start, nodes.start + nodes.count)
            if bool((chosen[span] & ~handed[span]).any()):
                raise InputError(
                    f"what {nodes.name!r} of kind {nodes.kind!r} hands on cannot be replaced in a "
                    "graph of blocks: heads and MLPs can."
                )

    def _check_reference(self, reference: Any) -> None:
        check_inputs(reference, self.model, self.batch_size)
        if reference.shape[1:] != self.x.shape[1:] or reference.dtype != self.x.dtype:
            raise InputError(
                f"reference is {reference.dtype} of shape {tuple(reference.shape)}, and x "
                f"{self.x.dtype} of shape {tuple(self.x.shape)}: only the number of samples may "
                "differ."
            )

    def _shared_args(self) -> tuple[Any, ...]:
        for each in self.args:
            if isinstance(each, Tensor) and each.ndim and len(each) == len(self.x):
                raise InputError(
                    "reference= has no additional_forward_args of its own, and those of x are "
                    "tensors with an entry for each sample: leave reference out."
                )
        return self.args


def _units_of(step: Any) -> list[int]:
    """Return the units that hand on something at a step."""
    if isinstance(step, stream.Write):
        return list(step.units)
    numbers = (
        step.columns
        if isinstance(step, steps.Layer)
        else (step.pairs if isinstance(step, steps.Meeting) else None)
    )
    return [] if numbers is None else numbers[numbers >= 0].flatten().tolist()


def _tiled(value: Tensor, times: int) -> Tensor:
    return value.repeat(times, *[1] * (value.ndim - 1))


def _followed(model: nn.Module, follower: Follower, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Return what the model makes of x [N, ...], followed by its plan."""
    # With gradients on, for without them torch takes shorter ways than the plan has.
    entry = x.clone()
    if x.is_floating_point():
        entry = entry.requires_grad_().clone()
        units.put(entry, SEEN)
    with follower:
        out = scores(model(entry, *args))
    follower.end()
    return out.detach()


@contextmanager
def bench(
    graph: AttributionGraph | None,
    model: nn.Module,
    x: Tensor,
    *,
    batch_size: int = 128,
    additional_forward_args: Any = None,
) -> Iterator[Bench]:
    """Yield the bench of a model and samples x [N, ...]; the model is afterwards as it was.

    Raises InputError for what has no graph, and where `graph` is of another model.
    """
    check_model(model)
    check_inputs(x, model, batch_size)
    blocks = graph is not None and bool(_BLOCKS & set(graph.kinds.values()))
    args = as_tuple(additional_forward_args)
    with as_in_evaluation(model, x), frozen(model):
        x, args = plain(x), tuple(map(plain, args))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CreditWarning)  # no credit is handed out here
            method, kind = ("lrp", "blocks") if blocks else ("gradient", "units")
            plan = prepare(model, x, args, method, {}, kind).plan
        if not blocks:
            _check_reached(plan)
        if graph is not None:
            _check_fits(graph, plan)
        yield Bench(model, plan, x, args, batch_size)


def _check_reached(plan: Plan) -> None:
    """Raise InputError for layers whose messages no step tells how to replace."""
    known = {
        getattr(step, "index", None)
        for _, due in plan.calls
        for step in due
        if takes.dispatch(type(step)) is not takes.dispatch(object)
    }
    for index, nodes in enumerate(plan.nodes):
        if nodes.sources and nodes.kind != "output" and index not in known:
            raise InputError(
                f"what layer {nodes.name!r} of kind {nodes.kind!r} takes cannot be replaced: "
                "intervene in a model without such layers."
            )


def _check_fits(graph: AttributionGraph, plan: Plan) -> None:
    here = {nodes.name: nodes.count for nodes in plan.nodes}
    there = {name: len(graph.relevance[name]) for name in graph.layers}
    if here == there:
        return
    for name in (*there, *here):
        if here.get(name) != there.get(name):
            raise InputError(
                f"the graph is of another model: it has {_told(there, name)}, and this model for "
                f"these inputs {_told(here, name)}."
            )


def _told(counts: Mapping[str, int], name: str) -> str:
    return f"{counts[name]} units of {name!r}" if name in counts else f"no layer {name!r}"


def numbers_of(graph: AttributionGraph, plan: Plan, nodes: Iterable[Any]) -> list[int]:
    """Return the numbers, among those of all layers, of nodes (layer, unit, ...).

    Raises InputError for what is no such node, or not in the graph.
    """
    starts = {each.name: each.start for each in plan.nodes}
    found = []
    if isinstance(nodes, (str, Mapping)):
        raise InputError(f"nodes are pairs (layer, unit), got a {type(nodes).__name__}.")
    for each in nodes:
        if not isinstance(each, (tuple, list)) or len(each) < 2 or not isinstance(each[0], str):
            raise InputError(f"a node is a pair (layer, unit), got {each!r}.")
        graph.check_unit(each[0], each[1])
        found.append(starts[each[0]] + each[1])
    return found


def ablate(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    nodes: Iterable[Any],
    *,
    how: str = "mean",
    reference: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 128,
    additional_forward_args: Any = None,
) -> Tensor:
    """Return what a model makes of x when units hand on nothing of their own; see `HOWS`.

    Every consumer of a unit sees the replacement: the layers, sums and products above it, and the
    output of the model where the unit is a part of it. It stands after activation, normalisation
    and pooling, so that zero is silence before a BatchNorm, too. The model runs as in evaluation
    and is afterwards as it was.

    Parameters
    ----------
    graph: of this model, which names its layers.
    nodes: pairs (layer, unit), as `top` returns them.
    how: "mean" over the reference, at each place; "zero"; or "resample", what the unit hands on
        for another sample of the reference.
    reference: samples [M, ...] shaped as those of x; x itself if not given. Where those are of one
        class, give samples of all: what the class has in common is its mean.
    seed: of the samples that are drawn for "resample".

    Returns the scores [N, ...]. Raises InputError for nodes that are not there and for a graph of
    another model.
    """
    with bench(graph, model, x, batch_size=batch_size,
               additional_forward_args=additional_forward_args) as made:  # fmt: skip
        chosen = _chosen(made.plan, numbers_of(graph, made.plan, nodes), x.device)
        made.prepare(how, reference, seed)
        return made.outputs(chosen)[0]


def clamp(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    nodes: Mapping[tuple[str, int], float],
    *,
    batch_size: int = 128,
    additional_forward_args: Any = None,
) -> Tensor:
    """Return what a model makes of x when units hand on given values, at each of their places.

    nodes: from (layer, unit) to the value that every consumer of the unit sees, as for `ablate`.
    Returns the scores [N, ...]. Raises InputError for nodes that are not there, and for values
    that are no finite numbers.
    """
    if not isinstance(nodes, Mapping):
        raise InputError(
            f"clamp takes a mapping from (layer, unit) to a value, got {type(nodes).__name__}."
        )
    for node, value in nodes.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < float("inf"):
            raise InputError(f"{node!r} is clamped to {value!r}: give a finite number.")
    with bench(graph, model, x, batch_size=batch_size,
               additional_forward_args=additional_forward_args) as made:  # fmt: skip
        numbers = numbers_of(graph, made.plan, list(nodes))
        values = torch.zeros(made.plan.count, dtype=torch.float64, device=x.device)
        values[numbers] = values.new_tensor([float(each) for each in nodes.values()])
        made.clamp(values)
        return made.outputs(_chosen(made.plan, numbers, x.device))[0]


def _chosen(plan: Plan, numbers: Sequence[int], device: torch.device) -> Tensor:
    chosen = torch.zeros(1, plan.count, dtype=torch.bool, device=device)
    chosen[0, list(numbers)] = True
    return chosen
