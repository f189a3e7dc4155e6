"""One pass of a model whose messages are taken down by a plan."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from attrain import marks
from attrain.attribution.targets import Target, scores, select
from attrain.graph import steps, units
from attrain.graph.follow import SEEN, Follower
from attrain.graph.plan import Plan
from attrain.graph.totals import Totals
from attrain.rules.call import stabilise


class Recorder(Follower):
    """Follows the plan of a model call by call; what it takes down is in `totals`."""

    def __init__(self, plan: Plan, totals: Totals) -> None:
        super().__init__(plan)
        self.totals = totals

    def made(
        self, due: Sequence[steps.Step], func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Take down what is due at a call."""
        kept = [step.before(self.totals, args, kwargs) for step in due]
        out = func(*args, **kwargs)
        if any(isinstance(step, steps.Layer) and step.first for step in due):
            out = _cut(out)
        for step, each in zip(due, kept, strict=True):
            step.after(self.totals, each, args, kwargs, out)
        return out

    def entered(
        self, due: Sequence[steps.Step], args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Let tokens start a stream."""
        for step in due:
            step.after(self.totals, None, args, kwargs, out)


def _cut(out: Tensor) -> Tensor:
    """Return a first layer's output, where the way back ends: the inputs' credit is nobody's need.

    A copy, since a function may write into what it takes, and into no leaf.
    """
    new = out.detach().requires_grad_().clone()
    mark = marks.get(out)
    if mark is not None:
        marks.put(new, mark)
    return new


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
            units.put(entry, SEEN)
        with recorder:
            out = scores(model(entry, *args))
        recorder.end()
    target, group = choose(out.detach())
    totals.begin(group)
    with torch.enable_grad():
        explained = select(out, target)
    o = explained.detach()
    unit = explained_units(plan, target, len(x), out.device)
    reward = torch.ones_like(o)
    mark = marks.get(out)
    if mark is not None and mark.epsilon:
        reward = stabilise(reward, o, mark.epsilon)
    totals.explained(unit, o, (o * (1 - reward)) if plan.output_owes else None)
    torch.autograd.backward([explained], [reward])
    return o


def explained_units(plan: Plan, target: Target, samples: int, device: torch.device) -> Tensor:
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
