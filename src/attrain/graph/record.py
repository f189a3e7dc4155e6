"""One pass of a model whose messages are taken down by a plan."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrain import marks
from attrain.attribution.targets import Target, scores, select
from attrain.errors import InputError
from attrain.graph import steps, units
from attrain.graph.plan import Plan
from attrain.graph.steps import Totals
from attrain.graph.units import Units
from attrain.rules import linear, product
from attrain.rules.call import name_of, stabilise
from attrain.rules.registry import REGISTRY, bookkeeping

_SEEN = Units(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))


class Recorder(TorchFunctionMode):
    """Follows the plan of a model call by call; what it takes down is in `totals`."""

    def __init__(self, plan: Plan, totals: Totals) -> None:
        super().__init__()
        self.plan, self.totals, self.next = plan, totals, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = REGISTRY.get(func)
        family = getattr(rule, "func", rule)
        if family is linear.embedded:
            return self._embedded(func, args, kwargs)
        if family is bookkeeping or next(steps.carrying(args, kwargs), None) is None:
            return func(*args, **kwargs)
        if family is product.opened:
            with self:
                return product.body_of(func)(*args, **kwargs)
        if self.plan.blocks and family is product.attention:
            with self:
                return steps.attended(*args, **kwargs)
        held = self.plan.constants.get(self.next)
        due = self._due(func)
        if held is not None:
            args = (*args[:held], args[held].detach(), *args[held + 1 :])
        kept = [step.before(self.totals, args, kwargs) for step in due]
        out = func(*args, **kwargs)
        for step, each in zip(due, kept, strict=True):
            step.after(self.totals, each, args, kwargs, out)
        return self._seen(out)

    def _embedded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        due, out = self._due(func), func(*args, **kwargs)
        if any(isinstance(step, steps.Constant) for step in due):
            return out
        out = self._seen(steps.as_leaf(out))
        for step in due:
            step.after(self.totals, None, args, kwargs, out)
        return out

    def end(self) -> None:
        """Raise InputError where the model made fewer calls than the plan has."""
        if self.next != len(self.plan.calls):
            raise InputError(
                "the model makes fewer calls than before: a graph is made of models that make the "
                "same calls for all inputs."
            )

    def _due(self, func: Any) -> Sequence[steps.Step]:
        if self.next == len(self.plan.calls) or self.plan.calls[self.next][0] is not func:
            raise InputError(
                f"the model calls {name_of(func)} where it did not before: a graph is made of "
                "models that make the same calls for all inputs."
            )
        self.next += 1
        return self.plan.calls[self.next - 1][1]

    def _seen(self, out: Any) -> Any:
        for each in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(each, Tensor) and each.requires_grad:
                units.put(each, _SEEN)
        return out


Choice = Callable[[Tensor], tuple[Target, Tensor]]
"""From what a model returned to the target, and to the group [N] that each sample belongs to."""


def record(
    model: nn.Module,
    rules: AbstractContextManager[Any],
    plan: Plan,
    totals: Totals,
    x: Tensor,
    choose: Choice,
    args: tuple[Any, ...] = (),
) -> Tensor:
    """Add the messages of samples x [N, ...] to `totals`; return the explained output [N].

    rules: the credit context that the plan was made under, or another context for messages by the
    plain gradient. Runs inside `attribution.lrp.frozen(model)`, as the credit was made.
    """
    leaf = x.detach()
    recorder = Recorder(plan, totals)
    with torch.enable_grad(), rules:
        entry = leaf
        if x.is_floating_point():
            entry = leaf.clone().requires_grad_().clone()
            units.put(entry, _SEEN)
        with recorder:
            out = scores(model(entry, *args))
        recorder.end()
    target, group = choose(out.detach())
    totals.begin(group)
    with torch.enable_grad():
        explained = select(out, target)
    o = explained.detach()
    unit = _explained_units(plan, target, len(x), out.device)
    reward = torch.ones_like(o)
    mark = marks.get(out)
    if mark is not None and mark.epsilon:
        reward = stabilise(reward, o, mark.epsilon)
    totals.explained(unit, o, (o * (1 - reward)) if plan.output_owes else None)
    torch.autograd.backward([explained], [reward])
    return o


def _explained_units(plan: Plan, target: Target, samples: int, device: torch.device) -> Tensor:
    """Return the unit of the explained output of each sample."""
    assert plan.output is not None
    one = plan.output.unit[0].reshape(-1)
    if target is None:
        return one.expand(samples)
    if isinstance(target, Tensor):
        return one[target]
    if isinstance(target, tuple):
        return one[target[0]].expand(samples)
    return one[torch.tensor([each[0] for each in target], device=device)]
