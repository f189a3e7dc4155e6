"""The functions of the studies of attribution graphs, each beside a twin with loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from attrain.graph import AttributionGraph, ClassGraphs
from attrain.studies import graph_measures as measures
from attrain.studies import graph_methods, summit_classes
from attrain.studies.graph_subjects import Recipe, accuracy, halves, redraw, trained

RECIPE = Recipe("digits", "mlp", epochs=1)


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1))


# The subjects -------------------------------------------------------------------------------------


def test_a_subject_is_trained_once_and_to_the_same_weights():
    first = trained(RECIPE, 0)
    assert trained(RECIPE, 0) is first and not first.training
    trained.cache_clear()
    again = trained(RECIPE, 0)
    assert again is not first
    for mine, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)
    few = trained(replace(RECIPE, samples=100), 0)
    assert not torch.equal(next(few.parameters()), next(first.parameters()))


def test_weights_by_he_s_rule_keep_the_size_of_activations():
    model = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(400, 400), nn.ReLU())])
    x = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))

    def size() -> float:
        return float(model(x).detach().square().mean())

    assert size() < 0.1
    redraw(model, 0)
    assert 0.3 < size() < 1.5
    assert not model[0].bias.any()


def test_what_chooses_has_not_seen_what_measures():
    x, y = torch.arange(20.0)[:, None], torch.arange(20) % 2
    (first, second), _ = halves(x, y, 2, 3)
    assert first.flatten().tolist() == [0, 2, 4] and second.flatten().tolist() == [6, 8, 10]
    (first, second), _ = halves(x, y, 2, 50)
    assert len(first) == len(second) == 5


def test_accuracy_is_the_share_of_hits(net, x):
    y = torch.arange(12) % 3
    hits = sum(
        int(net(each[None]).argmax()) == int(label) for each, label in zip(x, y, strict=True)
    )
    assert accuracy(net, x, y) == pytest.approx(hits / 12)


# Agreement and faithfulness -----------------------------------------------------------------------


def spearman(a, b) -> float:
    """By counting, for each value, those below it and half of its equals."""

    def ranks(values):
        return [sum(v < each for v in values) + (sum(v == each for v in values) + 1) / 2
                for each in values]  # fmt: skip

    return float(np.corrcoef(ranks(list(a)), ranks(list(b)))[0, 1])


def test_agreement_is_the_mean_rank_correlation_of_layers(net, x):
    made = measures.graphs(net, x, 1)
    ranked = measures.rankings(made, net, x, 1, x, singles=4)
    found = measures.agreement(made, ranked, most=1000)
    first, path = made["LRP (epsilon)"], made["integrated gradients"]
    wanted = [
        spearman(first.relevance[name].abs().tolist(), path.relevance[name].abs().tolist())
        for name in ("0", "2")
    ]
    pair = "LRP (epsilon) | integrated gradients"
    assert found["nodes"][pair] == pytest.approx(sum(wanted) / 2)
    edges = [
        spearman(
            first.edges[name].abs().flatten().tolist(), path.edges[name].abs().flatten().tolist()
        )
        for name in ("0", "2", "4")
    ]
    assert found["edges"][pair] == pytest.approx(sum(edges) / 3)
    assert found["nodes"]["LRP (epsilon) | gradient"] == pytest.approx(1)
    assert f"gradient | {measures.SINGLE}" in found["nodes"]
    few = measures.agreement(made, {}, most=7)
    assert few["edges"] != found["edges"] and len(few["nodes"]) == 6


def test_a_layer_without_a_ranking_is_left_out():
    one = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([1.0, 1.0])}
    other = {"a": torch.tensor([3.0, 2.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
    assert measures.alike(one, other, ["a", "b"]) == pytest.approx(-1)
    assert measures.alike(one, other, ["b"]) is None


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_falls_are_those_of_ablating_the_first_units_of_each_layer(net, x, how):
    made = measures.graphs(net, x, 2)
    ranked = measures.rankings(made, net, x, 2, x, singles=0)
    assert measures.SINGLE not in ranked
    graph, reference = made["LRP (epsilon)"], 2 * x
    output, curves = measures.falls(graph, net, x, 2, ranked, reference, (0.1, 0.5), how, 2)
    assert output == pytest.approx(float(net(x)[:, 2].detach().mean()), rel=1e-5)
    for by in (measures.RELEVANCE, measures.COUNTS):
        for place, counts in enumerate(({"0": 1, "2": 1}, {"0": 2, "2": 2})):
            nodes = [
                (name, unit)
                for name, count in counts.items()
                for unit in sorted(
                    range(len(ranked[by][name])), key=lambda i: -float(ranked[by][name][i])
                )[:count]
            ]
            left = graph.ablate(net, x, nodes, how=how, reference=reference)[:, 2].mean()
            assert curves[by][place] == pytest.approx(output - float(left), abs=1e-6)
    assert len(curves[measures.RANDOM]) == 2


def test_the_area_is_the_mean_fall_over_the_mean_output():
    assert measures.area([[1.0, 3.0], [0.0, 0.0]], [4.0, 0.0]) == pytest.approx(0.5)


def test_leaks_are_shares_of_the_size_of_the_output():
    assert graph_methods.leaked({"bias": 1.0, "epsilon": 0.0}, -4.0) == {
        "bias": 0.25,
        "epsilon": 0.0,
    }


def test_a_claim_is_unclear_where_the_interval_has_zero():
    def result(ours: float, theirs: float):
        curves = {measures.RELEVANCE: [ours], measures.RANDOM: [theirs]}
        return {"falls": {"mean": [curves]}, "output": [2.0]}

    def verdict(*pairs: tuple[float, float]):
        each = [result(*pair) for pair in pairs]
        return graph_methods._ahead("net", each, "mean", measures.RANDOM)

    ahead = verdict((1.0, 0.5), (1.1, 0.62))
    assert ahead["holds"] is True and "area 0.525 against 0.280" in ahead["figure"]
    assert verdict((0.2, 0.5), (0.21, 0.5))["holds"] is False
    assert verdict((1.0, 0.5), (0.3, 0.5))["holds"] == "unclear"


# Classes ------------------------------------------------------------------------------------------


def test_confusion_is_by_label():
    found = summit_classes.confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
    assert found.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]


def test_likeness_of_relevances_is_the_similarity_of_class_graphs(net, x):
    view = ClassGraphs.from_data(net, (x, torch.arange(12) % 3))
    relevances = [
        {name: graph.relevance[name] for name in graph.layers[1:-1]} for graph in view.values()
    ]
    torch.testing.assert_close(summit_classes.likeness(relevances), view.similarity().double())
    one, other = ({n: v for n, v in each.items()} for each in relevances[:2])
    wanted = 0.0
    for name in one:
        wanted += float(one[name] @ other[name] / one[name].norm() / other[name].norm())
    found = summit_classes.likeness([one, other])[0, 1]
    assert float(found) == pytest.approx(wanted / len(one))


def test_mantel_counts_the_permutations_that_agree_as_well():
    from itertools import permutations

    draw = np.random.default_rng(1)
    one = draw.random((4, 4))
    other = one + one.T + draw.random((4, 4)) / 2
    found, p = summit_classes.mantel(one, other, 4000)

    def of(order):
        upper = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        first = [one[order[i], order[j]] + one[order[j], order[i]] for i, j in upper]
        return spearman(first, [other[i, j] + other[j, i] for i, j in upper])

    values = [of(order) for order in permutations(range(4))]
    assert found == pytest.approx(values[0])
    exact = sum(value >= values[0] - 1e-12 for value in values) / len(values)
    assert p == pytest.approx(exact, abs=0.03)
    constant = summit_classes.mantel(np.ones((4, 4)), other, 10)
    assert all(math.isnan(each) for each in constant)


def test_a_graph_s_rankings_have_every_hidden_unit(net, x):
    made = {name: AttributionGraph.from_batch(net, x, 0, **options)
            for name, options in measures.METHODS.items()}  # fmt: skip
    ranked = measures.rankings(made, net, x, 0, x, singles=2)
    assert len(ranked) == 9
    for scores in ranked.values():
        assert len(scores["0"]) == 5 and len(scores["2"]) == 4
