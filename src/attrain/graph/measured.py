"""What ablation does to the graphs of classes: the strongest units at once, and one by one."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import progress_bar
from attrain.attribution.doubts import warn_of_one_class
from attrain.errors import InputError
from attrain.graph.classes import ClassGraphs
from attrain.graph.graph import AttributionGraph
from attrain.graph.intervene import bench
from attrain.graph.rank import hidden
from attrain.graph.validate import SHARES, Drops, one_of_each, validate

RANDOM_UNITS = 8
"""Of each layer, drawn before those of most relevance: the mean that a unit is held against."""


def measured(
    graphs: ClassGraphs,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    reference: Tensor | None = None,
    seeds: int = 5,
    shares: Sequence[float] = SHARES,
    seconds: float = 60.0,
    batch_size: int = 128,
    progress: bool = False,
) -> ClassGraphs:
    """Return the graphs with what ablation does, as facts that their files and page tell.

    `validation`: the strongest units of all layers ablated at once, beside random ones
    (`Validation.as_facts`). `ablation`: by how much the output falls without one unit, by layer
    [units], None where the time did not suffice. `random_ablation`: its mean over units drawn at
    random, by layer. An ablated unit hands on its mean over the reference. A graph without a layer
    between its inputs and its last has no units to ablate, and is left as it is.

    Parameters
    ----------
    graphs: of the model.
    x, target: samples [N, ...], best such that the graphs were not made of, and for each the
        number of the class [N] that is explained, in the order of the model's outputs. Classes
        without samples are left as they are.
    reference: samples [M, ...] of all classes; without, all of x, of whatever class. Warns
        (AttributionWarning) where these are explained for one class.
    seeds, shares: of the validation, as `validate` takes them.
    seconds: the most time for single units, shared by the classes; 0 measures none. The time for
        the last batch comes on top.

    Raises InputError for targets that do not fit x, and as `validate`.
    """
    if not isinstance(graphs, ClassGraphs):
        raise InputError(f"graphs are ClassGraphs, got {type(graphs).__name__}.")
    target = _checked(target, x, graphs)
    if not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise InputError(f"seconds is a number >= 0, got {seconds!r}.")
    if reference is None:
        classes = torch.unique(target).tolist()
        if len(classes) == 1:
            warn_of_one_class(f"class {classes[0]}")
        reference = x
    found = {}
    with progress_bar(progress, "ablation", len(graphs)) as told:
        for done, (name, graph) in enumerate(graphs.items(), start=1):
            number = _number(graph)
            some = x[target == number]
            if len(some) and hidden(graph):
                known = validate(
                    graph, model, some, number, reference=reference, seeds=seeds, shares=shares,
                    batch_size=batch_size,
                )  # fmt: skip
                graph = graph.with_facts(validation=known.as_facts())
                each = seconds / len(graphs)
                graph = graph.with_facts(
                    **_by_unit(graph, model, some, number, reference, each, batch_size)
                )
            found[name] = graph
            told(done)
    return dataclasses.replace(graphs, graphs=found)


def _checked(target: Any, x: Tensor, graphs: ClassGraphs) -> Tensor:
    """Return the classes of the samples [N]; raises InputError for what are none."""
    if not isinstance(target, Tensor):
        raise InputError(f"target is a tensor [N] of classes, got {type(target).__name__}.")
    if target.shape != (len(x),):
        raise InputError(f"target has the shape {tuple(target.shape)}: one for each of {len(x)}.")
    graph = next(iter(graphs.values()))
    count = len(graph.relevance[graph.layers[-1]])
    wrong = [each for each in torch.unique(target).tolist() if each not in range(count)]
    if wrong:
        raise InputError(f"target {wrong[0]} is no class: the graphs have 0..{count - 1}.")
    return target


def _number(graph: AttributionGraph) -> int:
    """Return the number of the output that a graph explains, which has all relevance."""
    return int(graph.relevance[graph.layers[-1]].abs().argmax())


def _by_unit(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    number: int,
    reference: Tensor,
    seconds: float,
    batch_size: int,
) -> dict[str, Any]:
    if not seconds:
        return {}
    end = time.monotonic() + seconds
    draw = torch.Generator().manual_seed(0)
    names = hidden(graph)
    drawn = {name: torch.randperm(len(graph.relevance[name]), generator=draw)[:RANDOM_UNITS]
             for name in names}  # fmt: skip
    with bench(graph, model, x, batch_size=batch_size) as made:
        made.prepare("mean", reference, 0)
        drops = Drops(made, number)
        starts = {nodes.name: nodes.start for nodes in made.plan.nodes}
        falls = torch.full((made.plan.count,), float("nan"), dtype=torch.float64)
        for some in torch.split(_order(graph, names, drawn, starts), drops.size):
            falls[some] = drops(one_of_each(some, made.plan.count, x.device)).cpu()
            if time.monotonic() > end:
                break
    ablation, random = {}, {}
    for name in names:
        of_layer = falls[starts[name] : starts[name] + len(graph.relevance[name])]
        ablation[name] = [None if each != each else each for each in of_layer.tolist()]
        mean = float(of_layer[drawn[name]].mean())
        if mean == mean:
            random[name] = mean
    return {"ablation": ablation, "random_ablation": random}


def _order(
    graph: AttributionGraph,
    names: Sequence[str],
    drawn: dict[str, Tensor],
    starts: dict[str, int],
) -> Tensor:
    """Return the units' numbers among those of all layers: drawn ones, then by |R|, once each."""
    first = torch.cat([drawn[name] + starts[name] for name in names])
    sizes = torch.cat([_shares(graph, name) for name in names])
    numbers = torch.cat([torch.arange(len(graph.relevance[name])) + starts[name] for name in names])
    rest = numbers[sizes.argsort(descending=True, stable=True)]
    return torch.cat([first, rest[~torch.isin(rest, first)]])


def _shares(graph: AttributionGraph, name: str) -> Tensor:
    sizes = graph.relevance[name].abs()
    return sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny)
