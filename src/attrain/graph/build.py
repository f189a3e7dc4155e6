"""Attribution graphs of a batch, or of a whole data set per class in one pass."""

import dataclasses
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
from attrain.graph.blocks import trace_blocks
from attrain.graph.graph import AttributionGraph
from attrain.graph.plan import Plan
from attrain.graph.record import Choice, record
from attrain.graph.steps import Epsilon
from attrain.graph.totals import SINKS, Totals
from attrain.graph.trace import trace

METHODS = ("lrp", "gradient", "integrated_gradients", "ablation")
"""How messages are computed.

lrp: by the rules of credit (Bach et al. 2015). gradient: input times weight times gradient, the
same product without secants. integrated_gradients: that of the changes on the straight way from a
baseline, the conductance of an edge (Sundararajan et al. 2017; Dhamdhere et al. 2019). ablation:
what the output loses when a unit, or a message, is cut.
"""

NODES = ("units", "blocks")
"""What a graph's nodes are: units of layers, or tokens, heads and MLPs of a transformer."""

_PATH = {"baselines": 0.0, "n_steps": 32}


@dataclass(frozen=True)
class Prepared:
    """A model whose graph is planned, and the context that its messages are made under."""

    model: nn.Module
    plan: Plan
    rules: AbstractContextManager[Any]
    path: Mapping[str, Any] | None = None

    def add(self, totals: Totals, x: Tensor, choose: Choice, args: tuple[Any, ...] = ()) -> None:
        """Add the messages of samples x [N, ...] to `totals`."""
        if self.path is None:
            record(self.model, self.rules, self.plan, totals, x, choose, args)
            return
        base, steps = self.path["baselines"], self.path["n_steps"]
        base = base.to(x) if isinstance(base, Tensor) else torch.full_like(x, base)
        totals.path = {}
        for k in range(steps + 1):
            at = base + (x - base) * (k / steps)
            record(self.model, self.rules, self.plan, totals, at, choose, args)
        totals.path = None


def prepare(
    model: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    method: str,
    options: Mapping[str, Any],
    nodes: str | None = None,
) -> Prepared:
    """Return the plan of a model for inputs x [N, ...], which must be run inside `frozen(model)`.

    nodes: "units", "blocks", or None for units where the model has a graph of them.

    Raises InputError for unknown methods and options, and for models that have no graph.
    """
    if method == "ablation":
        raise InputError(
            "graphs by ablation are made of one batch: AttributionGraph.from_batch(model, x, "
            "target, method='ablation')."
        )
    if method not in METHODS:
        raise unknown("method of graphs", str(method), METHODS)
    if nodes not in (None, *NODES):
        raise unknown("kind of nodes", str(nodes), NODES)
    path = _path(options, x) if method == "integrated_gradients" else None
    if nodes == "blocks" and method != "lrp":
        raise InputError(f"blocks have messages by lrp alone, got method={method!r}.")
    if method == "gradient" and options:
        raise InputError(f"{method} has no options, got {next(iter(options))}=.")
    given = options_of("lrp", options if method == "lrp" else {})
    if method != "lrp":
        given["epsilon"] = 0.0
    two = torch.cat([x[:1], x[:1]]) if len(x) == 1 else x[:2]
    both = tuple(
        each.repeat_interleave(2, 0)[:2] if len(x) == 1 and isinstance(each, Tensor) else each
        for each in sliced(args, len(x), 0, 2)
    )
    refused: InputError | None = None
    if nodes != "blocks":
        credit = LFP(model, **given)
        try:
            plan = trace(model, credit, two, both)
        except InputError as error:
            refused = error
    if nodes == "blocks" or (nodes is None and refused is not None and method == "lrp"):
        credit = LFP(model, **{**given, "epsilon": options.get("epsilon", 0.0)})
        try:
            return Prepared(model, trace_blocks(model, credit, two, both), credit)
        except InputError:
            if refused is None:
                raise
    if refused is not None:
        raise refused
    if method == "lrp":
        return Prepared(model, plan, credit)
    plan.calls = [
        (func, tuple(step for step in steps if not isinstance(step, Epsilon)))
        for func, steps in plan.calls
    ]
    plan.output_owes = 0.0
    return Prepared(model, plan, nullcontext(), path)


def _path(options: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    for name in options:
        if name not in _PATH:
            raise unknown("option of integrated_gradients", name, _PATH)
    found = {**_PATH, **options}
    steps, base = found["n_steps"], found["baselines"]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"n_steps must be an integer >= 1, got {steps!r}.")
    if not x.is_floating_point():
        raise InputError(f"x holds {x.dtype}, between which there is no way: use method='lrp'.")
    if isinstance(base, Tensor):
        if base.shape not in (x.shape[1:], (1, *x.shape[1:])):
            raise InputError(
                f"baselines have the shape {tuple(base.shape)}: give a number or a tensor of shape "
                f"{tuple(x.shape[1:])}, which all samples share."
            )
    elif isinstance(base, bool) or not isinstance(base, (int, float)):
        raise InputError(f"baselines are a number or a tensor, got {type(base).__name__}.")
    return found


def of_batch(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    method: str = "lrp",
    batch_size: int = 128,
    progress: bool = False,
    additional_forward_args: Any = None,
    nodes: str | None = None,
    **options: Any,
) -> AttributionGraph:
    """Return the attribution graph of a batch; see `AttributionGraph.from_batch`."""
    if method == "ablation":
        return _by_ablation(
            model, x, target, batch_size=batch_size, progress=progress,
            additional_forward_args=additional_forward_args, **options,
        )  # fmt: skip
    check_model(model)
    check_inputs(x, model, batch_size)
    args = as_tuple(additional_forward_args)
    with as_in_evaluation(model, x), progress_bar(progress, method, len(x)) as bar, frozen(model):
        x, args = plain(x), tuple(map(plain, args))
        ready = prepare(model, x, args, method, options, nodes)
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
            ready.add(totals, x[start:stop], choose, rest)
            bar(stop)
    told = _told(target)
    return graph_of(ready.plan, totals, 0, len(x), method=method, target=told)


def _by_ablation(model: nn.Module, x: Tensor, target: Any, **options: Any) -> AttributionGraph:
    from attrain.graph.cut import of_ablation  # which needs plans from here

    return dataclasses.replace(of_ablation(model, x, target, **options), target=_told(target))


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
