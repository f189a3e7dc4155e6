"""Attribution graphs of a batch, or of a whole data set per class in one pass."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import (
    as_in_evaluation,
    as_tuple,
    check_inputs,
    check_model,
    plain,
    progress_bar,
)
from attrain.attribution.lrp import frozen
from attrain.attribution.methods import options_of
from attrain.attribution.part import sliced
from attrain.attribution.targets import Target, check_target, part
from attrain.credit import LFP
from attrain.errors import InputError, unknown
from attrain.graph.graph import AttributionGraph
from attrain.graph.plan import Plan
from attrain.graph.record import record
from attrain.graph.steps import SINKS, Epsilon, Totals
from attrain.graph.trace import trace

METHODS = ("lrp", "gradient")


@dataclass(frozen=True)
class Prepared:
    """A model whose graph is planned, and the context that its messages are made under."""

    model: nn.Module
    plan: Plan
    rules: AbstractContextManager[Any]


def prepare(
    model: nn.Module, x: Tensor, args: tuple[Any, ...], method: str, options: Mapping[str, Any]
) -> Prepared:
    """Return the plan of a model for inputs x [N, ...], which must be run inside `frozen(model)`.

    Raises InputError for unknown methods and options, and for models that have no graph.
    """
    if method not in METHODS:
        raise unknown("method of graphs", str(method), METHODS)
    if method != "lrp" and options:
        raise InputError(f"{method} has no options, got {next(iter(options))}=.")
    given = options_of("lrp", options)
    if method != "lrp":
        given["epsilon"] = 0.0
    credit = LFP(model, **given)
    two = torch.cat([x[:1], x[:1]]) if len(x) == 1 else x[:2]
    both = tuple(
        each.repeat_interleave(2, 0)[:2] if len(x) == 1 and isinstance(each, Tensor) else each
        for each in sliced(args, len(x), 0, 2)
    )
    plan = trace(model, credit, two, both)
    if method == "lrp":
        return Prepared(model, plan, credit)
    plan.calls = [
        (func, tuple(step for step in steps if not isinstance(step, Epsilon)))
        for func, steps in plan.calls
    ]
    plan.output_owes = 0.0
    return Prepared(model, plan, nullcontext())


def of_batch(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    method: str = "lrp",
    batch_size: int = 128,
    progress: bool = False,
    additional_forward_args: Any = None,
    **options: Any,
) -> AttributionGraph:
    """Return the attribution graph of a batch; see `AttributionGraph.from_batch`."""
    check_model(model)
    check_inputs(x, model, batch_size)
    args = as_tuple(additional_forward_args)
    with as_in_evaluation(model, x), progress_bar(progress, method, len(x)) as bar, frozen(model):
        x, args = plain(x), tuple(map(plain, args))
        ready = prepare(model, x, args, method, options)
        totals = Totals(ready.plan.nodes, 1, x.device)
        checked: Any = None
        for start in range(0, len(x), batch_size):
            stop = min(start + batch_size, len(x))

            def choose(out: Tensor, start: int = start, stop: int = stop) -> tuple[Target, Tensor]:
                nonlocal checked
                if start == 0:
                    checked = check_target(target, out.shape[1:], len(x), out.device)
                group = torch.zeros(stop - start, dtype=torch.long, device=out.device)
                return part(checked, start, stop), group

            rest = sliced(args, len(x), start, stop)
            record(model, ready.rules, ready.plan, totals, x[start:stop], choose, rest)
            bar(stop)
    told = _told(target)
    return graph_of(ready.plan, totals, 0, len(x), method=method, target=told)


def _told(target: Any) -> str:
    if target is None:
        return ""
    if isinstance(target, (Tensor, list)):
        values = set(torch.as_tensor(target).flatten().tolist())
        return str(values.pop()) if len(values) == 1 else "of each sample"
    return str(target)


def graph_of(
    plan: Plan, totals: Totals, group: int, samples: int, **described: Any
) -> AttributionGraph:
    """Return the graph of one group of totals, as means over its samples."""
    each = 1.0 / max(samples, 1)
    names = tuple(nodes.name for nodes in plan.nodes)
    relevance, edges, sinks = {}, {}, {}
    for index, nodes in enumerate(plan.nodes):
        span = slice(nodes.start, nodes.start + nodes.count)
        relevance[nodes.name] = (totals.relevance[group, span] * each).cpu()
        incoming = totals.edges[index]
        known = {
            name: (totals.sinks[name][group, span] * each).cpu() for name in SINKS if name != "rest"
        }
        if incoming is None:
            if any(bool(values.any()) for values in known.values()):
                sinks[nodes.name] = known
            continue
        edges[nodes.name] = (incoming[group] * each).cpu()
        found = relevance[nodes.name] - edges[nodes.name].sum(1)
        known["rest"] = found - torch.stack(list(known.values())).sum(0)
        sinks[nodes.name] = known
    last = plan.nodes[-1]
    return AttributionGraph(
        layers=names,
        kinds={nodes.name: nodes.kind for nodes in plan.nodes},
        relevance=relevance,
        sources={nodes.name: tuple(names[k] for k in nodes.sources) for nodes in plan.nodes},
        edges=edges,
        sinks=sinks,
        output=float(relevance[last.name].sum()),
        samples=samples,
        **described,
    )
