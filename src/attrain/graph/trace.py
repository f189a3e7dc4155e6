"""How a model's calls become a graph: its layers of nodes, and what to take down at each call.

The model runs once, on two samples, under credit. Each call is read by the family of its rule: a
layer makes new nodes, a sum or product of different units makes nodes with an edge from each, and
everything else hands units on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrain import marks
from attrain.attribution.targets import scores
from attrain.credit import LFP
from attrain.errors import InputError
from attrain.graph import arguments, steps, units
from attrain.graph.plan import Plan
from attrain.graph.reading import Reading, Untraceable
from attrain.graph.units import NOBODY, Units
from attrain.rules import linear, product
from attrain.rules.call import Call
from attrain.rules.decomposition import Decomposition, Epsilon
from attrain.rules.registry import REGISTRY, bookkeeping


def trace(model: nn.Module, credit: LFP, x: Tensor, args: tuple[Any, ...] = ()) -> Plan:
    """Return the plan of a model's graph, from a run on x [2, ...].

    Runs inside `attribution.lrp.frozen(model)`, as the credit was made. Values of x are units of
    their own where the first layer is linear, else its channels, or what stands on its last axis.
    Raises InputError, with the call, for what has no graph.
    """
    errors: list[tuple[int, Untraceable]] = []
    for unit in _inputs(x):
        tracer = Tracer(model, credit)
        try:
            return tracer.run(x, unit, args)
        except Untraceable as refused:
            errors.append((len(tracer.plan.nodes), refused))
    # Of the ways to see the inputs, that which led furthest.
    raise InputError(str(max(errors, key=lambda each: each[0])[1]))


def _inputs(x: Tensor) -> list[Tensor | None]:
    """Return maps of x to the units that it may have; None for tokens."""
    if not x.is_floating_point():
        return [None]
    shape = x.shape[1:]
    every = torch.arange(shape.numel(), device=x.device).reshape(shape)
    found: list[Tensor | None] = [every.expand(x.shape)]
    for axis in (0, len(shape) - 1) if len(shape) > 1 else ():
        form = [1] * len(shape)
        form[axis] = shape[axis]
        numbers = torch.arange(shape[axis], device=x.device).reshape(form)
        found.append(numbers.expand(x.shape))
    return found


class Tracer(TorchFunctionMode):
    """Sees every call, hands on the units of what it took, and writes the plan."""

    def __init__(self, model: nn.Module, credit: LFP) -> None:
        super().__init__()
        self.model, self.credit, self.plan = model, credit, Plan()
        self.settings = credit._settings
        self.epsilon = credit.epsilon
        self.owners: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(name)
        self.inside: list[str] = []
        self.refunded: set[int] = set()  # calls' outputs whose stabiliser their layer gives back
        self.partly: dict[int, Tensor] = {}  # and outputs of which some values are such
        self.kept: list[Tensor] = []  # what is told apart by identity has to live on
        self.paid: set[tuple[int, int]] = set()
        self.deferred: list[tuple[int, tuple[int, int], steps.Step]] = []
        self.starting: list[steps.Step] = []
        self.last: tuple[Any, Any] = (), {}

    def run(self, x: Tensor, unit: Tensor | None, args: tuple[Any, ...]) -> Plan:
        """Return the plan of a run on x, whose values belong to the inputs `unit`."""
        leaf, self.count = x.detach(), len(x)
        with torch.enable_grad(), _named_modules(self.model, self.inside), self.credit:
            entry = leaf
            if unit is not None:
                entry = leaf.clone().requires_grad_().clone()
                self.plan.add("input", "input", int(unit.max()) + 1)
                samples = torch.arange(len(x), device=x.device)
                samples = samples.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)
                units.put(entry, Units(unit, samples))
            with self:
                out = scores(self.model(entry, *args))
            Call(self.settings, torch.clone, (out,), {})  # which refuses what credit did not see
        self._settle()
        found = units.of(out)
        if found is None or not out.requires_grad:
            raise Untraceable(
                "the model's output does not depend on its inputs, so it has no graph."
            )
        if found.mixed:
            raise Untraceable(
                f"units are mixed in a way that has no graph, by {found.why}. Graphs are made of "
                "linear and convolution layers, of what normalises, pools and moves units, and of "
                "sums and products of two."
            )
        if out.ndim > 2 or bool((found.unit == NOBODY).any()):
            raise Untraceable(
                f"the model returns the shape [N, {', '.join(map(str, out.shape[1:]))}], and a "
                "graph is made of scores [N, classes] or [N] that depend on the inputs."
            )
        self.plan.output = found
        # Where the output is taken by others, too, it is counted with what they pay.
        owes = (id(out), out._version) not in self.paid
        self.plan.output_owes = self._owed(out) if owes else 0.0
        self.settle_plan()
        return self.plan

    def settle_plan(self) -> None:
        """Leave what leads to the output."""
        self.plan.settle()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = REGISTRY.get(func)
        family = getattr(rule, "func", rule)
        if family is linear.embedded:
            return self._embedded(func, args, kwargs)
        carrying = list(arguments.carrying(args, kwargs))
        if not carrying or family is bookkeeping:
            return func(*args, **kwargs)
        if family is product.opened:
            with self:
                return product.body_of(func)(*args, **kwargs)
        owed = [(where, self._owed(tensor), tensor) for where, tensor in carrying]
        before = [(where, each, tensor) for where, tensor in carrying
                  if (each := units.of(tensor)) is not None]  # fmt: skip
        names = [(id(tensor), tensor._version) for _, tensor in carrying]
        self.kept += [tensor for _, tensor in carrying]
        self.last = args, kwargs
        out = func(*args, **kwargs)
        step = Reading(self, func, rule, family, args, kwargs, out, before, owed, names)
        self.plan.calls.append((func, tuple(step.read())))
        return out

    def _settle(self) -> None:
        """Where a tensor is taken by some who pay and some who do not, count the former alone."""
        for call, name, step in self.deferred:
            if name in self.paid:
                func, due = self.plan.calls[call]
                self.plan.calls[call] = func, (*due, step)

    def _owed(self, tensor: Tensor) -> float:
        mark = marks.get(tensor)
        return 0.0 if mark is None or id(tensor) in self.refunded else mark.epsilon

    def _embedded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if out.ndim < 2 or len(out) != self.count:
            self.plan.calls.append((func, (steps.Constant(),)))
            return out
        out = arguments.as_leaf(out)
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        made = self.plan.add(self.named(weight, "embedding"), "embedding", out.shape[-1])
        unit = torch.arange(made.start, made.start + made.count, device=out.device)
        samples = torch.arange(len(out), device=out.device)
        samples = samples.reshape(-1, *[1] * (out.ndim - 1)).expand(out.shape)
        units.put(out, Units(unit.expand(out.shape), samples))
        self.plan.calls.append((func, ()))
        return out

    def named(self, weight: Any, kind: str) -> str:
        """Return the name of a layer: its module's, or where it stands."""
        owners = self.owners.get(id(weight), [])
        running = [name for name in owners if name in self.inside[-1:]]
        owner = next(iter([*running, *owners]), "")
        return owner or self.here(kind)

    def here(self, kind: str) -> str:
        """Return the name of what is computed inside the innermost module."""
        return ".".join([*self.inside[-1:], kind]).lstrip(".")

    def rule_of(self, call: Call, weight: Tensor) -> Decomposition:
        """Return the rule that the context has for a layer."""
        of_layers = getattr(self.credit._mode, "layers", None)
        return Epsilon() if of_layers is None else of_layers.rule_of(call, weight)


@contextmanager
def _named_modules(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keep the names of the modules that run, outermost first, in `inside`."""
    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda _, __, name=name: inside.append(name))
        )
        handles.append(module.register_forward_hook(lambda *_: _drop(inside), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(names: list[str]) -> None:
    names.pop()
