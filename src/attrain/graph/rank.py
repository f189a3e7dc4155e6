"""Which units of a graph matter most: rankings by name, and what the paths through them carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import METHODS as ATTRIBUTIONS
from attrain.attribution import attribute
from attrain.errors import InputError, unknown
from attrain.graph.follow import Taking
from attrain.graph.graph import AttributionGraph
from attrain.graph.intervene import Key, bench

Scores = dict[str, Tensor]
"""Of each layer [units], the larger the more important."""


@dataclass(frozen=True)
class Probe:
    """What a ranking is measured with: a model, samples x [N, ...], the output that is explained.

    options: of the ranking. additional_forward_args: what the model takes after x.
    """

    model: nn.Module
    x: Tensor
    target: Any = None
    batch_size: int = 128
    additional_forward_args: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """A ranking: a function of the graph, or of a graph and a probe.

    options: their names and defaults; source: where it comes from.
    """

    scores: Callable[..., Scores]
    source: str
    probes: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def rank(
    graph: AttributionGraph,
    by: str = "relevance",
    model: nn.Module | None = None,
    x: Tensor | None = None,
    target: Any = None,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 128,
    additional_forward_args: Any = None,
    **options: Any,
) -> Scores:
    """Return how important each unit is, of each layer [units], in double precision.

    Parameters
    ----------
    by: a name in `RANKINGS`, or a method of `attrain.attribute`, which is then computed at the
        layers that are modules (and at the inputs), summed over the places of a channel, and
        averaged over samples before its size is taken.
    model, x, target: the model of the graph and samples [N, ...] for rankings that measure;
        "relevance" and "through-flow" need neither, target is for methods of attribution.
    layers: to be ranked, all of them if not given; methods of attribution run once for each.
    options: of the ranking ("summit": share), or of the method.

    Raises InputError for unknown names and options, and for a model or samples that are missing.
    """
    if by not in RANKINGS and by not in ATTRIBUTIONS:
        raise unknown("ranking", str(by), [*RANKINGS, *ATTRIBUTIONS])
    check_layers(graph, layers or ())
    names = [name for name in graph.layers if layers is None or name in layers]
    ranking = RANKINGS.get(by)
    if ranking is not None:
        for name in options:
            if name not in ranking.options:
                has = ", ".join(ranking.options) or "no options"
                raise InputError(f"the ranking {by!r} has no option {name!r}: it has {has}.")
        options = {**ranking.options, **options}
        if not ranking.probes:
            scores = ranking.scores(graph)
            return {name: scores[name] for name in names}
    if model is None or x is None:
        raise InputError(f"the ranking {by!r} is measured: give model= and x=, samples [N, ...].")
    probe = Probe(model, x, target, batch_size, additional_forward_args, options)
    if ranking is None:
        return _by_attribution(graph, probe, by, names)
    scores = ranking.scores(graph, probe)
    return {name: scores[name] for name in names}


def top(
    graph: AttributionGraph,
    k: int,
    layer: str | None = None,
    by: str = "relevance",
    **probed: Any,
) -> list[tuple[str, int, float]]:
    """Return the k most important units as (layer, unit, score), the first most so.

    layer: of this layer; without, of all layers but the inputs and the last. Units that pruning
    took out are left out. probed: what `rank` takes besides. Raises InputError as `rank`, and for
    a k that is no integer >= 1.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k must be an integer >= 1, got {k!r}.")
    if layer is not None:
        graph.check_layer(layer)
    names = hidden(graph) if layer is None else [layer]
    scores = rank(graph, by, layers=names, **probed)
    if layer is not None and layer not in scores:
        raise InputError(f"the ranking {by!r} says nothing of layer {layer!r}, which is no module.")
    found = [
        (name, unit, float(scores[name][unit]))
        for name in names
        if name in scores
        for unit in graph.kept(name).nonzero()[:, 0].tolist()
    ]
    return sorted(found, key=lambda each: -each[2])[:k]


def check_layers(graph: AttributionGraph, layers: Sequence[str]) -> None:
    """Raise InputError for what is no list of names of layers of the graph."""
    if isinstance(layers, str):  # whose letters are names of layers, too: "10"
        raise InputError(f"layers is a list of names, got {layers!r}: give [{layers!r}].")
    for name in layers:
        graph.check_layer(name)


def hidden(graph: AttributionGraph) -> list[str]:
    """Return the layers between the inputs and the last."""
    return [name for name in graph.layers[:-1] if graph.sources[name]]


def path_mass(graph: AttributionGraph, pruned: AttributionGraph) -> float:
    """Return the share of the output's relevance that paths inside a pruned graph carry.

    A path leads from the explained output, which starts with its units' shares of |R|, down to a
    layer that nothing feeds; at each step from j to i it keeps the share |r_ij| / sum_k |r_kj| of
    the messages into j, counted in the whole graph. The mass of a graph is the sum over its paths;
    what is returned is the pruned graph's over the whole one's, 1 where nothing was pruned. Sinks
    are on no path. Raises InputError where `pruned` has other layers than `graph`.
    """
    shapes = [{name: each.relevance[name].shape for name in each.layers}
              for each in (graph, pruned)]  # fmt: skip
    if shapes[0] != shapes[1]:
        raise InputError("pruned is no part of graph: it has other layers. Give graph.prune(...).")
    whole = _arriving(graph, _flow(graph, graph))
    return _arriving(graph, _flow(graph, pruned)) / whole if whole else 0.0


def _arriving(graph: AttributionGraph, flow: Scores) -> float:
    return sum(float(flow[name].sum()) for name in graph.layers if not graph.sources[name])


def _flow(graph: AttributionGraph, kept: AttributionGraph) -> Scores:
    """Return F of every unit: F_i = sum_j |r_ij| / sum_k |r_kj| F_j over the edges of `kept`."""
    last = graph.layers[-1]
    flow = {name: torch.zeros_like(each) for name, each in graph.relevance.items()}
    start = graph.relevance[last].abs()
    total = start.sum()
    flow[last] = torch.where(kept.kept(last), start / (total if total else 1.0), 0.0)
    for name in reversed(graph.layers):
        if not graph.sources[name]:
            continue
        total = graph.edges[name].abs().sum(1)
        each = flow[name] / torch.where(total > 0, total, 1.0)
        down = each @ kept.edges[name].abs()
        for source, columns in graph.columns(name).items():
            flow[source] += down[columns]
    return flow


def _relevance(graph: AttributionGraph) -> Scores:
    return {name: each.abs() for name, each in graph.relevance.items()}


def _positive(graph: AttributionGraph) -> Scores:
    return {name: each.clamp_min(0) for name, each in graph.relevance.items()}


def _through_flow(graph: AttributionGraph) -> Scores:
    return _flow(graph, graph)


def _activation(graph: AttributionGraph, probe: Probe) -> Scores:
    total: Any = 0.0

    def add(values: Tensor) -> None:
        nonlocal total
        total = total + values.sum(0)

    spans: dict[str, slice] = {}
    _each_batch(graph, probe, False, add, spans)
    return {name: (total[span] / len(probe.x)).cpu() for name, span in spans.items()}


def _summit(graph: AttributionGraph, probe: Probe) -> Scores:
    share = probe.options["share"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share is a number in (0, 1], got {share!r}.")
    found: dict[str, Any] = dict.fromkeys(graph.layers, 0.0)

    spans: dict[str, slice] = {}

    def add(values: Tensor) -> None:
        for name, span in spans.items():
            each = values[:, span]
            sizes, order = each.clamp_min(0).sort(dim=1, descending=True, stable=True)
            before = sizes.cumsum(1) - sizes
            among = (before < share * sizes.sum(1, keepdim=True)) & (sizes > 0)
            found[name] += torch.zeros_like(each).scatter_(1, order, among.double()).sum(0).cpu()

    _each_batch(graph, probe, True, add, spans)
    return found


def _each_batch(
    graph: AttributionGraph,
    probe: Probe,
    largest: bool,
    add: Callable[[Tensor], None],
    spans: dict[str, slice],
) -> None:
    """Show what units hand on, batch by batch, over places and consumers.

    add: takes [n, units], the largest values or the means of their sizes. spans: is told where the
    units of each layer stand among them.
    """
    with bench(graph, probe.model, probe.x, batch_size=probe.batch_size,
               additional_forward_args=probe.additional_forward_args) as made:  # fmt: skip
        count = made.plan.count
        for nodes in made.plan.nodes:
            spans[nodes.name] = slice(nodes.start, nodes.start + nodes.count)
        rows = times = torch.empty(0)

        def look(key: Key, value: Tensor, taking: Taking) -> None:
            nonlocal rows, times
            values = taking.split(value).double()
            if not len(rows):
                empty = float("-inf") if largest else 0.0
                rows = values.new_full((len(values), count), empty)
                times = values.new_zeros(count)
            unit = taking.unit
            axes = [axis + 1 for axis in range(unit.ndim) if unit.shape[axis] == 1]
            places = values[0].numel() // max(unit.numel(), 1)
            if axes:
                values = values.amax(axes) if largest else values.abs().sum(axes)
            values = values.reshape(len(values), -1)
            known = unit.flatten() >= 0
            values, number = values[:, known], unit.flatten()[known]
            if largest:
                rows.scatter_reduce_(1, number.expand(len(values), -1), values, "amax")
            else:
                rows.index_add_(1, number, values.abs())
                times.index_add_(0, number, times.new_full(number.shape, places))

        def ended() -> None:
            nonlocal rows
            add(rows if largest else rows / times.clamp_min(1))
            rows = times[:0]

        made.watch(look, ended)


def _by_attribution(
    graph: AttributionGraph, probe: Probe, method: str, names: Sequence[str]
) -> Scores:
    modules = dict(probe.model.named_modules())
    found = {}
    for name in names:
        layer = name if name and name in modules else None
        if layer is None and graph.kinds[name] != "input":
            continue
        values = attribute(
            probe.model, probe.x, probe.target, method=method, layer=layer,
            batch_size=probe.batch_size, additional_forward_args=probe.additional_forward_args,
            **probe.options,
        )  # fmt: skip
        # Methods that switch whole units on and off say the same at each place of a unit.
        whole = layer is not None and method in ("lime", "kernel_shap", "occlusion")
        found[name] = _of_units(graph, name, values.double().cpu(), whole).mean(0).abs()
    return found


def _of_units(graph: AttributionGraph, name: str, values: Tensor, whole: bool) -> Tensor:
    """Return values [N, ...] of a layer's output, added up over the places of its units [N, U]."""
    count = len(graph.relevance[name])
    fed = {graph.kinds[above] for above in graph.outgoing(name)}
    channels = graph.kinds[name] == "convolution" or (
        graph.kinds[name] == "input" and "convolution" in fed
    )
    if graph.kinds[name] == "input" and values[0].numel() == count:
        return values.flatten(1)
    axis = 1 if channels and values.shape[1] == count else values.ndim - 1
    if values.shape[axis] != count:
        raise InputError(
            f"layer {name!r} has {count} units in the graph, and returns the shape "
            f"{tuple(values.shape)}: they do not match."
        )
    moved = values.movedim(axis, 1).flatten(2) if values.ndim > 2 else values[:, :, None]
    return moved.mean(2) if whole else moved.sum(2)


RANKINGS: dict[str, Ranking] = {
    "relevance": Ranking(_relevance, "|R|, the size of a unit's relevance"),
    "positive-relevance": Ranking(_positive, "R where it is positive: what speaks for the output"),
    "through-flow": Ranking(
        _through_flow, "what paths from the output carry: F_i = sum_j |r_ij| / sum_k |r_kj| F_j"
    ),
    "summit": Ranking(
        _summit,
        "for how many samples a unit is among the fewest whose largest values hold a share of "
        "their layer's: Hohman et al., SUMMIT, 2020",
        probes=True,
        options={"share": 0.03},
    ),
    "activation": Ranking(
        _activation, "mean size of what a unit hands on, over samples and places", probes=True
    ),
}
"""Rankings of units by name; methods of `attrain.attribute` are rankings, too."""
