"""What attribution graphs of a trained model are measured by: agreement, leaks, faithfulness."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.graph import AttributionGraph
from attrain.graph.intervene import bench
from attrain.graph.rank import hidden
from attrain.graph.validate import Drops
from attrain.metrics.statistics import rank_correlation

METHODS: Mapping[str, dict[str, Any]] = {
    "LRP (epsilon)": {"method": "lrp"},
    "LRP (epsilon-plus)": {"method": "lrp", "rule": "epsilon-plus"},
    "gradient": {"method": "gradient"},
    "integrated gradients": {"method": "integrated_gradients", "n_steps": 8},
}
"""How graphs are made; the first is the one whose rankings the claims are about."""

RELEVANCE = "relevance"
FLOW, POSITIVE = "through-flow", "positive relevance"
PLUS, GRADIENT = "LRP (epsilon-plus)", "gradient"
PATH = "integrated gradients"
ACTIVATION, COUNTS, SINGLE = "mean activation", "SUMMIT's counts", "ablation one by one"
RANDOM = "random"

Scores = Mapping[str, Tensor]
"""Of each layer [units], the larger the more important."""


def graphs(model: nn.Module, x: Tensor, label: int) -> dict[str, AttributionGraph]:
    """Return the graph of a class by every method, of samples x [N, ...]."""
    return {
        name: AttributionGraph.from_batch(model, x, label, **options)
        for name, options in METHODS.items()
    }


def rankings(
    made: Mapping[str, AttributionGraph],
    model: nn.Module,
    x: Tensor,
    label: int,
    reference: Tensor,
    singles: int,
) -> dict[str, Scores]:
    """Return the scores of the hidden units by every ranking.

    singles: of how many samples the fall of the output is measured with each unit ablated by
    itself, to its mean over `reference`; 0 leaves that ranking out.
    """
    first = made[next(iter(METHODS))]
    found: dict[str, Scores] = {
        RELEVANCE: first.rank("relevance"),
        POSITIVE: first.rank("positive-relevance"),
        FLOW: first.rank("through-flow"),
        **{name: made[name].rank("relevance") for name in (PLUS, GRADIENT, PATH)},
        ACTIVATION: first.rank("activation", model=model, x=x),
        COUNTS: first.rank("summit", model=model, x=x),
    }
    if singles:
        found[SINGLE] = first.unit_ablations(
            model, x[:singles], label, how="mean", reference=reference
        )
    return found


def agreement(
    made: Mapping[str, AttributionGraph], ranked: Mapping[str, Scores], most: int
) -> dict[str, dict[str, float | None]]:
    """Return the rank correlations of sizes, the mean over hidden layers, by pair "a | b".

    "nodes": of the units' |relevance| by every two methods, and by what ablating them does, where
    `ranked` has it. "edges": of the messages' sizes, of at most `most` drawn messages a layer. A
    layer in which one side is constant is left out; None where none is left.
    """
    first = next(iter(made.values()))
    names = hidden(first)
    nodes = {method: graph.rank("relevance") for method, graph in made.items()}
    if SINGLE in ranked:
        nodes[SINGLE] = {name: each.abs() for name, each in ranked[SINGLE].items()}
    draw = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randint(count, (most,), generator=draw) if count > most else torch.arange(count)
        for name in [*names, first.layers[-1]]
        for count in [first.edges[name].numel()]
    }
    edges = {
        method: {name: graph.edges[name].abs().flatten()[index] for name, index in drawn.items()}
        for method, graph in made.items()
    }
    return {
        kind: {f"{a} | {b}": alike(sides[a], sides[b], layers) for a, b in combinations(sides, 2)}
        for kind, sides, layers in (("nodes", nodes, names), ("edges", edges, list(drawn)))
    }


def alike(one: Scores, other: Scores, layers: Sequence[str]) -> float | None:
    """Return the mean over layers of the rank correlation of two scores of their units."""
    found = []
    for name in layers:
        try:
            found.append(rank_correlation(one[name].numpy(), other[name].numpy()))
        except InputError:  # fewer than two units, or one side constant: there is no ranking
            continue
    return sum(found) / len(found) if found else None


def falls(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    label: int,
    ranked: Mapping[str, Scores],
    reference: Tensor,
    shares: Sequence[float],
    how: str,
    seeds: int,
) -> tuple[float, dict[str, list[float]]]:
    """Return the mean output for samples x, and how far it falls for each share that is ablated.

    The first units of every hidden layer are ablated together, by each of the rankings and by
    `seeds` random ones, of which the mean is returned; a share is of the units of a layer, at least
    one. how, reference: as `AttributionGraph.ablate` takes them.
    """
    names = hidden(graph)
    orders = {
        by: [{name: scores[name].argsort(descending=True, stable=True) for name in names}]
        for by, scores in ranked.items()
    }
    orders[RANDOM] = [_shuffled(graph, names, seed) for seed in range(seeds)]
    curves = {}
    with bench(graph, model, x) as made:
        made.prepare(how, reference, 0)
        measured = Drops(made, label)
        starts = {nodes.name: nodes.start for nodes in made.plan.nodes}
        for by, draws in orders.items():
            chosen = torch.zeros(len(draws) * len(shares), made.plan.count, dtype=torch.bool)
            for row, (order, share) in enumerate((o, s) for o in draws for s in shares):
                for name, each in order.items():
                    count = max(1, round(share * len(each)))
                    chosen[row, starts[name] + each[:count]] = True
            found = measured(chosen).reshape(len(draws), len(shares))
            curves[by] = found.mean(0).tolist()
        return float(measured.whole.mean()), curves


def _shuffled(graph: AttributionGraph, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(len(graph.relevance[name]), generator=draw) for name in names}


def area(drops: Sequence[Sequence[float]], outputs: Sequence[float]) -> float:
    """Return the mean drop [classes][shares] over classes and shares, as a share of the output.

    The output [classes] is averaged first: a class whose own is near zero does not decide.
    """
    mean = sum(sum(each) / len(each) for each in drops) / len(drops)
    return mean / (sum(outputs) / len(outputs))
