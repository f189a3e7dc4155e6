"""Graphs by ablation: what the output loses when one unit, or one message, is cut."""

from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import progress_bar
from attrain.errors import InputError
from attrain.graph import steps
from attrain.graph.graph import AttributionGraph
from attrain.graph.intervene import bench
from attrain.graph.plan import Nodes, Plan
from attrain.graph.record import explained_units
from attrain.graph.totals import SINKS
from attrain.graph.validate import Drops, one_of_each

MOST_CUTS = 20_000
"""The most units and edges that are cut one by one."""


def of_ablation(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    how: str = "zero",
    reference: Tensor | None = None,
    batch_size: int = 128,
    progress: bool = False,
    additional_forward_args: Any = None,
) -> AttributionGraph:
    """Return the graph whose relevances and messages are falls of the output, means over x.

    The relevance of a unit is by how much the output falls when it hands on nothing of its own to
    anyone, of the explained output itself the output; the message from i to j, when j alone does
    not get what i hands on. These do not add up as those of the rules do: what is missing is in
    the sink "rest", which may be negative.

    how, reference: as for `attrain.graph.intervene.ablate`; "zero" is silence. Raises InputError
    for graphs of more than 20,000 units and edges, each of which costs one forward pass of x.
    """
    with bench(None, model, x, batch_size=batch_size,
               additional_forward_args=additional_forward_args) as made:  # fmt: skip
        plan = made.plan
        pairs = {index: _pairs(plan, index) for index, nodes in enumerate(plan.nodes)
                 if nodes.sources}  # fmt: skip
        assert plan.output is not None
        cut = torch.zeros(plan.count, dtype=torch.bool)
        for nodes in plan.nodes:
            cut[nodes.start : nodes.start + nodes.count] = True
        cut[plan.output.unit.flatten().cpu()] = False
        numbers = cut.nonzero()[:, 0]
        total = len(numbers) + sum(len(each) for each in pairs.values())
        if total > MOST_CUTS:
            raise InputError(
                f"a graph by ablation would cut {total:,} units and edges one by one, more than "
                f"{MOST_CUTS:,}: take another method, or a model with fewer units."
            )
        with progress_bar(progress, "ablation", total) as told:
            made.prepare(how, reference, 0)
            drops = Drops(made, target)
            done = 0
            relevance = torch.zeros(plan.count, dtype=torch.float64)
            for some in torch.split(numbers, drops.size):
                relevance[some] = drops(one_of_each(some, plan.count, x.device)).cpu()
                done += len(some)
                told(done)
            explained = explained_units(plan, drops.target, len(x), x.device).cpu()
            relevance.index_add_(0, explained, drops.whole.cpu() / len(x))
            edges = {}
            for index, each in pairs.items():
                found = _empty(plan, index)
                for some in torch.split(each, drops.size):
                    out, source, column = some.unbind(1)
                    chosen = one_of_each(source, plan.count, x.device)
                    found[out, column] = drops(chosen, (index, out.to(x.device))).cpu()
                    done += len(some)
                    told(done)
                edges[plan.nodes[index].name] = found
    return _graph(plan, relevance, edges, samples=len(x), output=float(drops.whole.mean()))


def _pairs(plan: Plan, index: int) -> Tensor:
    """Return the edges into a layer: the unit's number in it, the source's in all, the column."""
    nodes = plan.nodes[index]
    step = next(
        (
            step
            for _, due in plan.calls
            for step in due
            if isinstance(step, (steps.Layer, steps.Meeting)) and step.index == index
        ),
        None,
    )
    if step is None:  # the outputs, each of which is a unit
        found = torch.stack([torch.arange(nodes.count), torch.tensor(nodes.of)], 1)
    elif isinstance(step, steps.Layer):
        sources = torch.unique(step.columns[step.columns >= 0])
        found = torch.cartesian_prod(torch.arange(nodes.count), sources.cpu())
    else:
        out = torch.arange(nodes.count)[:, None].expand(-1, 2)
        found = torch.stack([out, step.pairs.cpu()], 2).flatten(0, 1)
        found = torch.unique(found[found[:, 1] >= 0], dim=0)
    column = torch.full((plan.count,), -1)
    incoming = _incoming(plan, nodes)
    column[incoming] = torch.arange(len(incoming))
    return torch.cat([found, column[found[:, 1]][:, None]], 1)


def _incoming(plan: Plan, nodes: Nodes) -> list[int]:
    return [unit for source in nodes.sources for unit in plan.nodes[source].units]


def _empty(plan: Plan, index: int) -> Tensor:
    nodes = plan.nodes[index]
    return torch.zeros(nodes.count, len(_incoming(plan, nodes)), dtype=torch.float64)


def _graph(
    plan: Plan, relevance: Tensor, edges: dict[str, Tensor], samples: int, output: float
) -> AttributionGraph:
    names = tuple(nodes.name for nodes in plan.nodes)
    values = {
        nodes.name: relevance[nodes.start : nodes.start + nodes.count].clone()
        for nodes in plan.nodes
    }
    sinks = {
        name: {sink: torch.zeros_like(values[name]) for sink in SINKS if sink != "rest"}
        | {"rest": values[name] - each.sum(1)}
        for name, each in edges.items()
    }
    return AttributionGraph(
        layers=names,
        kinds={nodes.name: nodes.kind for nodes in plan.nodes},
        relevance=values,
        sources={nodes.name: tuple(names[k] for k in nodes.sources) for nodes in plan.nodes},
        edges=edges,
        sinks=sinks,
        output=output,
        samples=samples,
        method="ablation",
    )
