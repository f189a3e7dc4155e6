"""Graphs of transformers by blocks: tokens, attention heads and MLPs, joined by a residual stream.

The stream is followed as a sum of parts (`stream.py`). What a layer makes of it are units, as
anywhere, until they write to the stream again: those of an attention become its heads, those of
an MLP one node. Attention weights and the statistics of normalisations are held constant.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrain.credit import LFP
from attrain.errors import InputError
from attrain.graph import arguments, shares, steps, stream, units
from attrain.graph import layer as layers
from attrain.graph.coarse import Coarse
from attrain.graph.plan import Nodes, Plan
from attrain.graph.reading import Untraceable
from attrain.graph.stream import Stream, Switch
from attrain.graph.trace import Tracer
from attrain.graph.units import MIXED, NOBODY, Units
from attrain.rules import linear, norm, product
from attrain.rules.call import each_of, name_of, place
from attrain.rules.registry import REGISTRY, bookkeeping

_STREAM = "_attrain_stream"
_LINEAR_MOVES = (linear.passed, linear.thinned, linear.cast, linear.negated)
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm,
             torch.Tensor.bmm)  # fmt: skip


def trace_blocks(model: nn.Module, credit: LFP, x: Tensor, args: tuple[Any, ...] = ()) -> Plan:
    """Return the plan of a transformer's graph by blocks, from a run on x [2, ...].

    Runs inside `attribution.lrp.frozen(model)`. Raises InputError for models without a residual
    stream of tokens [N, tokens, features], and for what has no graph.
    """
    tracer = _BlockTracer(model, credit)
    entry = None
    if x.is_floating_point():
        shape = x.shape[1:]
        channels = torch.arange(shape[0], device=x.device).reshape(-1, *[1] * (len(shape) - 1))
        features = torch.arange(shape[-1], device=x.device)
        entry = (channels if len(shape) > 2 else features).expand(x.shape)
    try:
        plan = tracer.run(x, entry, args)
    except Untraceable as refused:
        raise InputError(str(refused)) from None
    if not tracer.started:
        raise InputError(
            "the model has no residual stream of tokens [N, tokens, features], and nodes='blocks' "
            "is for transformers: use nodes='units'."
        )
    return Coarse(tracer.merged, tracer.heads, tracer.written).plan(plan)


def stream_of(tensor: Any) -> Stream | None:
    """Return what a tensor of the stream is made of, None for any other."""
    return getattr(tensor, _STREAM, None)


class _BlockTracer(Tracer):
    """Sees every call; what is of the stream has parts, what is not has units."""

    def __init__(self, model: nn.Module, credit: LFP) -> None:
        super().__init__(model, credit)
        self.started = False
        self.candidates: dict[int, tuple[Switch, Stream]] = {}  # of outputs that may be written
        self.merged: set[int] = set()  # layers whose units become one
        self.heads: dict[int, int] = {}  # unit -> unit of the attention layer
        self.written: set[int] = set()  # layers whose units dissolve in the stream

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        family = getattr(REGISTRY.get(func), "func", REGISTRY.get(func))
        if family is product.attention and arguments.carries(args, kwargs):
            with self:
                return arguments.attended(*args, **kwargs)
        args = self._with_constants(family, args, kwargs)
        if family in (norm.layer_norm, norm.rms_norm, linear.weighted, linear.summed):
            self._enter_stream(family, args, kwargs)
        found = [(where, tensor) for where, tensor in arguments.tensors_of(args, kwargs)
                 if stream_of(tensor) is not None or id(tensor) in self.candidates]  # fmt: skip
        if not found or family is bookkeeping:
            before = len(self.plan.calls)
            out = super().__torch_function__(func, types, args, kwargs)
            if len(self.plan.calls) > before:
                self._heads_of(func, args, out)
            return out
        if family is product.opened:
            with self:
                return product.body_of(func)(*args, **kwargs)
        return self._streamed(func, types, family, args, kwargs, found)

    def settle_plan(self) -> None:
        """Nothing: the plan by blocks is made anew."""

    # What enters the stream -----------------------------------------------------------------------

    def _with_constants(self, family: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Detach attention weights and statistics where they meet what has units or parts."""
        if family not in (linear.weighted, product.product, product.quotient):
            return args
        known = [(key, each) for key, each in enumerate(args)
                 if isinstance(each, Tensor) and (units.of(each) or stream_of(each))]  # fmt: skip
        mixed = [key for key, each in known if (found := units.of(each)) and found.mixed]
        if len(known) != 2 or len(mixed) != 1:
            return args
        key = mixed[0]
        self.plan.constants[len(self.plan.calls)] = key
        return (*args[:key], args[key].detach(), *args[key + 1 :])

    def _enter_stream(self, family: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Let tokens start the stream, where something reads them for the first time."""
        for where, tensor in arguments.carrying(args, kwargs):
            found = units.of(tensor)
            assert found is not None
            if tensor.ndim != 3 or found.mixed or self.candidates.get(id(tensor)):
                continue
            feeding = self.plan.feeding(found.unit)
            roots = all(self._reads_inputs(self.plan.nodes[k]) for k in feeding)
            alone = family is linear.summed and len(list(arguments.carrying(args, kwargs))) == 1
            if roots and feeding and not alone:
                self._start(tensor, where, found)

    def _reads_inputs(self, nodes: Nodes) -> bool:
        kinds = {self.plan.nodes[source].kind for source in nodes.sources}
        return kinds == {"input"}

    def _start(self, tensor: Tensor, where: arguments.Where, found: Units) -> None:
        here = units.samples_of(found)
        if here is None or here.inner != 1 or here.axis == 2:
            return
        self.started = True
        axis = 1 - here.axis
        form = [1, 1, 1]
        form[axis] = tensor.shape[axis]
        given = (found.unit != NOBODY).all(2, keepdim=True)
        nodes = self._tokens(self.plan.feeding(found.unit)[-1], tensor.shape[axis])
        numbers = torch.arange(nodes.start, nodes.start + nodes.count, device=tensor.device)
        part = torch.where(given, numbers.reshape(form), NOBODY).expand(tensor.shape)
        units.forget(tensor)
        setattr(tensor, _STREAM, Stream((part,), found.sample))
        self.starting.append(stream.Start(where))

    def _tokens(self, layer: int, count: int) -> Nodes:
        """Return the nodes of what a layer made of the inputs, however often it enters."""
        for each in self.plan.nodes:
            if each.name == f"{self.plan.nodes[layer].name}.tokens" and each.count == count:
                return each
        return self.plan.add(f"{self.plan.nodes[layer].name}.tokens", "tokens", count)

    def _embedded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        raw = func(*args, **kwargs)
        if raw.ndim != 3 or len(raw) != self.count:
            self.plan.calls.append((func, (steps.Constant(),)))
            return raw
        out = arguments.as_leaf(raw)
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        nodes = self.plan.add(self.named(weight, "tokens"), "tokens", out.shape[1])
        numbers = torch.arange(nodes.start, nodes.start + nodes.count, device=out.device)
        samples = torch.arange(len(out), device=out.device)[:, None, None].expand(out.shape)
        setattr(out, _STREAM, Stream((numbers[:, None].expand(out.shape),), samples))
        self.started = True
        self.plan.calls.append((func, (stream.Start(),)))
        return out

    # What happens to it ---------------------------------------------------------------------------

    def _streamed(
        self, func: Any, types: Any, family: Any, args: Any, kwargs: dict[str, Any], found: Any
    ) -> Any:
        candidates = all(stream_of(tensor) is None for _, tensor in found)
        if candidates and family is not linear.summed:
            return self._carried(func, types, family, args, kwargs, found[0])
        call = len(self.plan.calls)
        everything = list(arguments.tensors_of(args, kwargs))
        carrying = [tensor for _, tensor in everything
                    if units.of(tensor) is not None and stream_of(tensor) is None]  # fmt: skip
        out = func(*args, **kwargs)
        self.kept += [tensor for _, tensor in found]
        where, tensor = found[0]
        due: Sequence[Any] | None = None
        if family is linear.weighted and len(found) == 1 and not carrying:
            due = self._read(func, args, kwargs, where, tensor, out)
        elif family in _LINEAR_MOVES and len(found) == 1 and not carrying:
            due = self._moved(func, args, kwargs, where, tensor, out, Switch())
        elif family in (norm.layer_norm, norm.rms_norm) and len(found) == 1:
            due = self._normalised(family, where, tensor, out)
        elif len(found) == 1 and (
            family is product.product or (family is product.quotient and where == 0)
        ):
            due = self._moved(func, args, kwargs, where, tensor, out, Switch(), scaled=True)
        elif family is linear.reduced and len(found) == 1:
            due = self._averaged(func, args, kwargs, where, tensor, out)
        elif family is linear.summed:
            due = self._joined(func, args, kwargs, found, carrying, out)
        if due is None:
            self._mixed(func, out)
            due = ()
        self._append(call, func, due)
        return out

    def _append(self, call: int, func: Any, due: Sequence[Any]) -> None:
        assert call == len(self.plan.calls)
        self.plan.calls.append((func, (*self.starting, *due)))
        self.starting.clear()

    def _mixed(self, func: Any, out: Any) -> None:
        for each in each_of(out):
            if each.is_floating_point():
                samples = torch.zeros(each.shape, dtype=torch.long, device=each.device)
                why = f"{name_of(func)} at {place()}"
                units.put(each, Units(torch.full_like(samples, MIXED), samples, why))

    def _carried(
        self, func: Any, types: Any, family: Any, args: Any, kwargs: dict[str, Any], one: Any
    ) -> Any:
        """Hand on what may be written to the stream, and its units."""
        where, tensor = one
        switch, known = self.candidates[id(tensor)]
        call = len(self.plan.calls)
        out = Tracer.__torch_function__(self, func, types, args, kwargs)
        if family not in _LINEAR_MOVES or len(self.plan.calls) != call + 1:
            return out
        due = self._map(func, args, kwargs, where, tensor, out, switch, known)
        if due is not None:
            func, first = self.plan.calls[call]
            self.plan.calls[call] = func, (*first, *due)
        return out

    def _map(
        self, func: Any, args: Any, kwargs: dict[str, Any], where: Any, tensor: Tensor, out: Any,
        switch: Switch, known: Stream,
    ) -> Sequence[Any] | None:  # fmt: skip
        """Do with maps of parts what the call did with the values, for what may be written."""
        one = out if isinstance(out, Tensor) else None
        if one is None:
            return None
        maps = [
            _again(func, args, kwargs, where, each, one) for each in (*known.parts, known.sample)
        ]
        if any(each is None for each in maps):
            return None
        self.candidates[id(one)] = switch, Stream(tuple(maps[:-1]), maps[-1])  # type: ignore[arg-type]
        self.kept.append(one)
        return [stream.Move(func, where, switch=switch)]

    def _moved(
        self, func: Any, args: Any, kwargs: dict[str, Any], where: Any, tensor: Tensor, out: Any,
        switch: Switch, scaled: bool = False,
    ) -> Sequence[Any] | None:  # fmt: skip
        known = stream_of(tensor)
        assert known is not None
        if not isinstance(where, (int, str)):
            return None
        due = []
        for index, each in enumerate(each_of(out)):
            place_ = None if isinstance(out, Tensor) else index
            if scaled:
                maps = [part.expand(each.shape) for part in (*known.parts, known.sample)]
            else:
                again = [
                    _again(func, args, kwargs, where, part, each, place_)
                    for part in (*known.parts, known.sample)
                ]
                if any(part is None for part in again):
                    return None
                maps = [part for part in again if part is not None]
            setattr(each, _STREAM, Stream(tuple(maps[:-1]), maps[-1]))
            due.append(stream.Move(func, where, index=place_, switch=switch))
        return due

    def _averaged(
        self, func: Any, args: Any, kwargs: dict[str, Any], where: Any, tensor: Tensor, out: Tensor
    ) -> Sequence[Any] | None:
        """A sum or mean over the tokens takes parts apart that are of several."""
        known = stream_of(tensor)
        assert known is not None
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        axis = axis[0] if isinstance(axis, (tuple, list)) and len(axis) == 1 else axis
        if not isinstance(axis, int) or axis % tensor.ndim == tensor.ndim - 1:
            return None
        axis %= tensor.ndim
        apart = tuple(not units.is_constant(part, axis) for part in known.parts)
        maps: list[Tensor] = []
        for part, several in zip(known.parts, apart, strict=True):
            places = range(tensor.shape[axis]) if several else range(1)
            maps += [part.select(axis, k).reshape(out.shape) for k in places]
        sample = known.sample.select(axis, 0).reshape(out.shape)
        setattr(out, _STREAM, Stream(tuple(maps), sample))
        return [stream.Move(func, where, split=axis, apart=apart)]

    def _normalised(self, family: Any, where: Any, tensor: Tensor, out: Tensor) -> Sequence[Any]:
        known = stream_of(tensor)
        assert known is not None
        centred = family is norm.layer_norm
        nobody = torch.full_like(known.sample, NOBODY)
        setattr(out, _STREAM, Stream((*known.parts, *[nobody] * centred), known.sample))
        return [stream.Normalise(where, centred)]

    def _joined(
        self, func: Any, args: Any, kwargs: dict[str, Any], found: Any, carrying: Any, out: Tensor
    ) -> Sequence[Any] | None:
        """A sum of what is of the stream, what may be written to it, and constants."""
        if any(id(each) not in self.candidates for each in carrying) or len(found) > 2:
            return None
        if not all(isinstance(where, (int, str)) for where, _ in found):
            return None
        parts: list[Tensor] = []
        sample = None
        for _, tensor in found:
            known = stream_of(tensor)
            if known is None:
                switch, known = self.candidates[id(tensor)]
                switch.on = True
                one = units.of(tensor)
                assert one is not None
                self._dissolve(self.plan.feeding(one.unit))
            parts += [part.expand(out.shape) for part in known.parts]
            sample = known.sample if known.sample.shape == out.shape else sample
        if sample is None:
            return None
        if len(found) == 1:
            parts.append(torch.full_like(sample, NOBODY))
        units.forget(out)
        setattr(out, _STREAM, Stream(tuple(parts), sample))
        name = getattr(func, "__name__", "").strip("_")
        wheres = tuple(where for where, _ in found)
        return [stream.Join(wheres, shares.shares_of(name, "sum"))]

    def _dissolve(self, written: Sequence[int]) -> None:
        """What is written to the stream has no nodes of its own; what it was made of does."""
        self.written.update(written)
        waiting = [source for each in written for source in self.plan.nodes[each].sources]
        while waiting:
            index = waiting.pop()
            if self.plan.nodes[index].kind in ("attention", "tokens") or index in self.merged:
                continue
            self.merged.add(index)
            if self.plan.nodes[index].kind in ("product", "sum"):
                waiting += self.plan.nodes[index].sources

    def _read(
        self, func: Any, args: Any, kwargs: dict[str, Any], where: Any, tensor: Tensor, out: Tensor
    ) -> Sequence[Any] | None:
        """Make units of a layer that reads the stream."""
        kind = layers.kind_of(func, args, kwargs)
        known = stream_of(tensor)
        assert known is not None
        nobody = torch.full_like(known.sample, NOBODY)
        samples = units.samples_of(Units(nobody, known.sample))
        if kind is None or kind.convolution or where not in kind.takes or samples is None:
            return None
        maps = [stream.reads(part, samples) for part in known.parts]
        if any(each is None for each in maps):
            return None
        weight = kind.weight(args, kwargs)
        sources = sorted({k for part in known.parts for k in self.plan.feeding(part)})
        _, made = kind.sizes(weight, {})
        nodes = self.plan.add(self.named(weight, kind.name), kind.name, made, sources)
        numbers = torch.arange(nodes.start, nodes.start + made, device=out.device)
        sample = known.sample[..., :1].expand(out.shape)
        units.put(out, Units(numbers.expand(out.shape), sample))
        reads = tuple(each for each in maps if each is not None)
        return [stream.Receive(len(self.plan.nodes) - 1, kind, numbers, reads, samples)]

    # What is made of it ---------------------------------------------------------------------------

    def _heads_of(self, func: Any, args: Any, out: Any) -> None:
        """Take down what a call of units made: heads, or what may be written to the stream."""
        if not isinstance(out, Tensor) or not self.started:
            return
        call = len(self.plan.calls) - 1
        if self.starting:
            done, due = self.plan.calls[call]
            self.plan.calls[call] = done, (*self.starting, *due)
            self.starting.clear()
        layer = [step for step in self.plan.calls[call][1] if isinstance(step, steps.Layer)]
        if func in _PRODUCTS and isinstance(args[0], Tensor) and not args[0].requires_grad:
            self._attention(args, out)
        elif layer and out.ndim >= 2 and not layer[0].kind.convolution:
            self._may_write(layer[0], call, out)

    def _attention(self, args: Any, out: Tensor) -> None:
        """Make a node of each head, whose units are those of the values that it attends to."""
        value = units.of(args[1])
        if value is None or value.mixed or value.unit.ndim < 3:
            return
        unit = value.unit
        if not units.is_constant(unit, -2):
            return
        rows = unit.select(-2, 0).reshape(-1, unit.shape[-1])  # [samples and heads, features]
        heads: dict[tuple[int, ...], int] = {}
        for row in rows.tolist():
            heads.setdefault(tuple(row), len(heads))
        owner = self.plan.feeding(unit)
        name = self.here("heads") if self.inside else "heads"
        nodes = self.plan.add(name, "attention", len(heads), self.plan.nodes[owner[0]].sources)
        numbers = torch.tensor([nodes.start + heads[tuple(row)] for row in rows.tolist()],
                               device=out.device)  # fmt: skip
        for row, head in heads.items():
            self.heads |= dict.fromkeys(row, nodes.start + head)
        form = (*unit.shape[:-2], 1, 1)
        sample = value.sample.narrow(-2, 0, 1).narrow(-1, 0, 1)
        units.put(out, Units(numbers.reshape(form).expand(out.shape), sample.expand(out.shape)))

    def _may_write(self, layer: steps.Layer, call: int, out: Tensor) -> None:
        """Prepare parts of a layer's output, by the heads or the MLP that it takes."""
        columns = layer.columns
        groups, numbers = [], []
        if bool((columns == NOBODY).any()):
            groups.append((columns == NOBODY).nonzero()[:, 0])
            numbers.append(NOBODY)
        for source in self.plan.feeding(columns):
            nodes = self.plan.nodes[source]
            inside = (columns >= nodes.start) & (columns < nodes.start + nodes.count)
            if nodes.kind == "attention":
                for unit in torch.unique(columns[inside]).tolist():
                    groups.append((columns == unit).nonzero()[:, 0])
                    numbers.append(unit)
            else:
                groups.append(inside.nonzero()[:, 0])
                numbers.append(nodes.start)
        found = units.of(out)
        assert found is not None
        switch = Switch(on=False)
        biased = layer.kind.taken(*self.last).b is not None
        parts = [torch.full(out.shape, unit, device=out.device) for unit in numbers]
        parts += [torch.full(out.shape, NOBODY, device=out.device)] * biased
        self.candidates[id(out)] = switch, Stream(tuple(parts), found.sample)
        self.kept.append(out)
        func, due = self.plan.calls[call]
        write = stream.Write(
            layer.kind, tuple(groups), tuple(numbers), layer.samples, switch=switch
        )
        self.plan.calls[call] = func, (*due, write)


def _again(
    func: Any, args: Any, kwargs: dict[str, Any], where: Any, part: Tensor, out: Tensor,
    index: int | None = None,
) -> Tensor | None:  # fmt: skip
    """Call a function on a map in the place of a tensor; None where that is not to be had."""
    name = getattr(func, "__name__", "")
    if "dropout" in name or name in ("to", "float", "double", "type", "contiguous", "clone"):
        return part if part.shape == out.shape else None
    if "pool" in name or "masked_fill" in name:
        return None
    try:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            part = part.contiguous()
            moved = func(
                *(part if key == where else each for key, each in enumerate(args)),
                **{key: part if key == where else each for key, each in kwargs.items()},
            )
    except (RuntimeError, TypeError, IndexError, ValueError):
        return None
    found = moved if index is None else each_of(moved)[index]
    return found if isinstance(found, Tensor) and found.shape == out.shape else None
