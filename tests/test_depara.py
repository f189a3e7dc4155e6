"""DEPARA against a twin with loops, what must not change it, and what cannot be compared."""

import math
import re
import warnings
from itertools import combinations

import pytest
import torch
from test_metrics import twin_rank_correlation
from torch import Tensor, nn

from attrain.errors import AttributionWarning, CreditError, InputError
from attrain.graph import (
    DeparaGraph,
    Similarity,
    compare_graphs,
    compare_models,
    depara_graph,
    transferability,
)
from attrain.models import build


def mlp(seed: int = 0, *, inputs: int = 6, classes: int = 3, act: type = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, 8), act(), nn.Linear(8, 5), act(), nn.Linear(5, classes)
    ).double()


def cnn(seed: int = 0, classes: int = 4) -> nn.Module:
    return build("lenet", (1, 8, 8), classes, seed=seed).double()


def samples(count: int = 7, *shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *(shape or (6,)), generator=generator, dtype=torch.float64)


PICTURES = (1, 8, 8)


# The twin -----------------------------------------------------------------------------------------


def cosine(left: Tensor, right: Tensor) -> float:
    pairs = list(zip(left.flatten().tolist(), right.flatten().tolist(), strict=True))
    sizes = [math.sqrt(sum(pair[side] ** 2 for pair in pairs)) for side in (0, 1)]
    return sum(one * other for one, other in pairs) / (sizes[0] * sizes[1])


def twin_graph(encode, probe: Tensor) -> tuple[list[Tensor], dict[tuple[int, int], float]]:
    """Explain one feature of one sample at a time, and compare the features pair by pair."""
    nodes, features = [], []
    for n in range(len(probe)):
        x = probe[n : n + 1].clone().requires_grad_()
        z = encode(x).flatten()
        vector = torch.zeros_like(probe[n])
        for unit in range(len(z)):
            (gradient,) = torch.autograd.grad(z[unit], x, retain_graph=True)
            vector += gradient[0] * probe[n]
        nodes.append(vector)
        features.append(z.detach())
    edges = {
        (n, m): cosine(features[n], features[m])
        for n in range(len(probe))
        for m in range(len(probe))
    }
    return nodes, edges


def twin_similarity(one, other) -> tuple[float, float]:
    (nodes_a, edges_a), (nodes_b, edges_b) = one, other
    cosines = [cosine(*pair) for pair in zip(nodes_a, nodes_b, strict=True)]
    pairs = list(combinations(range(len(nodes_a)), 2))
    ranked = twin_rank_correlation([edges_a[p] for p in pairs], [edges_b[p] for p in pairs])
    return sum(cosines) / len(cosines), ranked


@pytest.mark.parametrize("layers", [None, "1", "2"])
def test_a_graph_and_a_similarity_equal_their_twins(layers):
    a, b, probe = mlp(0), mlp(1, classes=9), samples()
    depth = {None: 4, "1": 2, "2": 3}[layers]
    twins = [twin_graph(model[:depth], probe) for model in (a, b)]
    for model, (nodes, edges) in zip((a, b), twins, strict=True):
        graph = depara_graph(model, probe, layer=layers, batch_size=3)
        torch.testing.assert_close(graph.nodes, torch.stack(nodes), rtol=1e-10, atol=1e-12)
        for (n, m), edge in edges.items():
            assert float(graph.edges[n, m]) == pytest.approx(edge, abs=1e-12)
    found = compare_models(a, b, probe, layer_a=layers, layer_b=layers, edge_weight=0.5)
    assert (found.nodes, found.edges) == pytest.approx(twin_similarity(*twins), abs=1e-12)
    assert found.total == pytest.approx(found.nodes + 0.5 * found.edges, abs=1e-12)


def test_pictures_equal_their_twin_through_convolutions_and_pools():
    a, b, probe = cnn(0), cnn(1, classes=2), samples(5, *PICTURES)
    found = compare_models(a, b, probe)
    wanted = twin_similarity(
        *(twin_graph(nn.Sequential(*list(model)[:-1]), probe) for model in (a, b))
    )
    assert (found.nodes, found.edges) == pytest.approx(wanted, abs=1e-10)


def test_a_target_explains_an_output_in_place_of_the_features():
    model, probe = mlp(), samples()
    graph = depara_graph(model, probe, target=2)
    nodes, _ = twin_graph(lambda x: model(x)[:, 2], probe)
    torch.testing.assert_close(graph.nodes, torch.stack(nodes), rtol=1e-10, atol=1e-12)
    assert torch.equal(graph.edges, depara_graph(model, probe).edges)


# What must not change it --------------------------------------------------------------------------


@pytest.mark.parametrize("edge_weight", [0.0, 0.3, 1.0, 5.0])
def test_a_model_compared_with_itself_has_one_plus_lambda(edge_weight):
    found = compare_models(cnn(), cnn(), samples(6, *PICTURES), edge_weight=edge_weight)
    assert (found.nodes, found.edges) == pytest.approx((1, 1), abs=1e-12)
    assert found.total == pytest.approx(1 + edge_weight, abs=1e-12)


def test_a_similarity_is_symmetric_and_bounded():
    probe = samples(9)
    for seed in range(5):
        a, b = mlp(seed), mlp(seed + 10)
        there, back = compare_models(a, b, probe), compare_models(b, a, probe)
        assert there.total == pytest.approx(back.total, abs=1e-12)
        assert -1 <= there.nodes <= 1 and -1 <= there.edges <= 1


def permuted(model: nn.Sequential, seed: int = 3) -> nn.Sequential:
    """Return a copy with its hidden units in another order, and another head."""
    copy = mlp(classes=7)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randperm(n, generator=generator) for n in (8, 5))
    with torch.no_grad():
        copy[0].weight.copy_(model[0].weight[first])
        copy[0].bias.copy_(model[0].bias[first])
        copy[2].weight.copy_(model[2].weight[second][:, first])
        copy[2].bias.copy_(model[2].bias[second])
    return copy


def test_the_order_of_hidden_units_and_the_head_do_not_matter():
    model, probe = mlp(), samples()
    one, other = depara_graph(model, probe), depara_graph(permuted(model), probe)
    torch.testing.assert_close(one.nodes, other.nodes, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.edges, other.edges, rtol=0, atol=1e-12)
    assert compare_graphs(one, other).total == pytest.approx(2, abs=1e-9)


def test_the_scale_of_the_features_does_not_matter():
    a, b, probe = mlp(act=nn.ReLU), mlp(1), samples(12).abs() + 0.5
    before = compare_models(a, b, probe)
    with torch.no_grad():
        for each in (a[2].weight, a[2].bias):
            each.mul_(17)
    assert compare_models(a, b, probe).total == pytest.approx(before.total, abs=1e-9)


def test_the_order_of_the_probe_does_not_matter():
    a, b, probe = mlp(0), mlp(1), samples()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    found, wanted = compare_models(a, b, probe[order]), compare_models(a, b, probe)
    assert found.total == pytest.approx(wanted.total, abs=1e-12)


def test_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    model.double().train()
    model[1].eval()
    probe = samples().requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = depara_graph(model, probe)
    assert torch.equal(first.nodes, depara_graph(model, probe).nodes)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert probe.grad is None and all(each.grad is None for each in model.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
    with pytest.raises(InputError):
        depara_graph(model, samples(4, 9))
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)


def test_a_layer_that_is_overwritten_later_keeps_its_features():
    model, probe = mlp(), samples()
    model[3] = nn.Hardtanh(-0.1, 0.1, inplace=True)
    wanted, _ = twin_graph(model[:3], probe)
    graph = depara_graph(model, probe, layer="2")
    torch.testing.assert_close(graph.nodes, torch.stack(wanted), rtol=1e-10, atol=1e-12)


def test_the_features_are_the_input_of_the_linear_layer_that_runs_last():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 2), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=torch.tanh(self.body(x)))

    model, probe = Backwards().double(), samples()
    wanted, _ = twin_graph(lambda x: torch.tanh(model.body(x)), probe)
    torch.testing.assert_close(depara_graph(model, probe).nodes, torch.stack(wanted))


OPTIONS = {
    "deep_shap": {"baselines": samples(3, seed=9)},
    "lime": {"n_samples": 40, "alpha": 1e-4},
    "kernel_shap": {"n_samples": 80},
}


@pytest.mark.parametrize(
    "method",
    [
        "saliency", "integrated_gradients", "smoothgrad", "deeplift", "deep_shap", "gradient_shap",
        "lime", "kernel_shap", "occlusion", "lrp",
    ],
)  # fmt: skip
def test_every_method_of_attribution_makes_nodes(method):
    options = OPTIONS.get(method, {})
    model, other, probe = mlp(act=nn.ReLU), mlp(1, act=nn.ReLU), samples(5)
    found = compare_models(model, mlp(act=nn.ReLU), probe, method=method, seed=4, **options)
    assert found.total == pytest.approx(2, abs=1e-6)
    assert compare_models(model, other, probe, method=method, seed=4, **options).nodes < 0.99


def test_relevance_of_a_network_without_biases_is_its_input_times_gradient():
    model, probe = mlp(act=nn.ReLU), samples()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()
    lrp = depara_graph(model, probe, method="lrp", epsilon=0.0)
    torch.testing.assert_close(lrp.nodes, depara_graph(model, probe).nodes)


def test_rules_of_lrp_take_names_behind_the_name_of_the_model():
    model, probe = mlp(act=nn.ReLU), samples()
    named = depara_graph(model, probe, method="lrp", rules={"model.0": "flat"})
    first = depara_graph(model, probe, method="lrp")
    assert not torch.allclose(named.nodes, first.nodes)
    with pytest.raises(InputError, match="'0'"):
        depara_graph(model, probe, method="lrp", rules={"0": "flat"})


def test_single_precision_and_a_head_on_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))  # on each of 3 tokens
    graph = depara_graph(model, samples(5, 3, 4).float())
    assert graph.nodes.shape == (5, 12) and graph.edges.shape == (5, 5)
    torch.testing.assert_close(graph.edges.diagonal(), torch.ones(5).double())


# Ranking ------------------------------------------------------------------------------------------


def test_sources_are_ranked_by_their_similarity_to_the_target():
    target, probe = mlp(0), samples(10)
    noisy = mlp(0)
    with torch.no_grad():
        noisy[0].weight.add_(0.1 * torch.randn_like(noisy[0].weight))
    sources = {"another": mlp(5), "noisy": noisy, "itself": mlp(0)}
    ranking = transferability(sources, target, probe, edge_weight=2.0)
    assert list(ranking) == ["itself", "noisy", "another"]
    assert ranking["another"] == compare_models(mlp(5), target, probe, edge_weight=2.0)
    graphs = {name: depara_graph(model, probe) for name, model in sources.items()}
    assert transferability(graphs, depara_graph(target, probe), probe, edge_weight=2.0) == ranking


def test_a_similarity_can_be_read():
    found = Similarity(0.5, 0.25, 2.0)
    assert found.total == 1.0 and "nodes=0.5, edges=0.25, edge_weight=2.0" in repr(found)


# What cannot be compared --------------------------------------------------------------------------


def refused(text: str, error: type[Exception] = InputError):
    return pytest.raises(error, match=re.escape(text))


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        (
            samples(2),
            "model a: a probe of 2 samples has too few pairs to rank: give 3 samples or more.",
        ),
        (samples(0), "a probe of 0 samples has too few pairs"),
        (samples(4)[0], "a probe is a tensor of samples [N, ...], got (6,)"),
        ([1, 2, 3], "a probe is a tensor of samples [N, ...], got list"),
        (torch.ones(4, 6, dtype=torch.long), "the probe holds torch.int64, which has no gradient"),
        (
            torch.tensor([[1.0] * 6, [math.nan] * 6, [2.0] * 6]).double(),
            "1 of 3 probe samples are not finite (NaN or infinite)",
        ),
        (
            samples(4, 5),
            "model a: the model cannot take samples of shape (5,) and type torch.float64",
        ),
        (
            samples(4).float(),
            "model a: the model cannot take samples of shape (6,) and type torch.float32",
        ),
    ],
)
def test_a_probe_that_cannot_work_is_refused(probe, text):
    with refused(text):
        compare_models(mlp(0), mlp(1), probe)


def test_models_whose_inputs_differ_are_refused():
    text = (
        r"model b: the model cannot take samples of shape \(6,\) and type torch.float64 "
        r"\(.*1x6 and 9x8\)\): all models must take the same inputs; wrap one in a module that "
        r"converts them\.$"
    )
    with pytest.raises(InputError, match=text):
        compare_models(mlp(), mlp(inputs=9), samples())
    with refused("source 'wide': the model cannot take samples of shape (6,)"):
        transferability({"wide": mlp(inputs=9)}, mlp(), samples())
    with refused("the target: the model cannot take samples of shape (6,)"):
        transferability({"narrow": mlp()}, mlp(inputs=9), samples())


def test_an_unknown_layer_is_refused_with_the_nearest():
    with refused("model b: the model has no layer 'fc22'. Did you mean 'fc2'? Layers: "):
        compare_models(cnn(), cnn(), samples(4, *PICTURES), layer_a="fc2", layer_b="fc22")
    with refused("layer=ReLU is no part of the model"):
        depara_graph(mlp(), samples(), layer=nn.ReLU())


def test_a_layer_without_features_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.idle = nn.Linear(6, 6).double(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    with refused("layer 'layer' runs 2 times in a forward pass: take one that runs once."):
        depara_graph(Twice(), samples())
    with refused("layer 'idle' does not run in a forward pass: take one that runs once."):
        depara_graph(Twice(), samples(), layer="idle")
    with refused("the model runs no nn.Linear, whose input would be the features: give the layer"):
        depara_graph(nn.Sequential(nn.Tanh()), samples())
    with refused("layer '0' has features of shape (36,) for 6 samples: wanted are [N, ...]"):
        depara_graph(nn.Sequential(nn.Flatten(0)), samples(6), layer="0")


def filled(weight: float, bias: float) -> nn.Sequential:
    model = mlp(act=nn.ReLU)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    return model


def test_features_that_tell_no_samples_apart_are_refused():
    with refused(
        "model a: the features are constant: all pairs of probe samples are equally similar (1), "
        "so that their correlation is undefined. Take another layer, or a probe of samples that"
    ):
        compare_models(filled(0.1, 1.0), mlp(), samples())
    with refused("the features are constant"):
        depara_graph(mlp(), samples(1).repeat(4, 1))


def test_zero_vectors_are_refused():
    with refused(
        "the feature vector of probe sample 0 is zero and points nowhere (7 of 7 are): take "
        "another layer, or leave such samples out."
    ):
        depara_graph(filled(0.1, -100.0), samples())
    black = samples()
    black[3] = 0
    with refused("the attribution vector of probe sample 3 is zero and points nowhere (1 of 7"):
        depara_graph(mlp(), black)
    with refused("the attribution vector of probe sample 0 is zero"):
        # Tanh so far out that its slope is 0, with features that differ in their signs.
        depara_graph(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double(), far())


def far() -> Tensor:
    return 1e6 * samples(12)


def test_values_that_are_not_finite_are_refused():
    model = mlp()
    with torch.no_grad():
        model[2].bias[0] = math.inf
    model[3] = nn.Identity()
    with refused("model b: 7 of 7 features are not finite (NaN or infinite): look for it in the"):
        compare_models(mlp(), model, samples())
    steep = nn.Sequential(nn.Linear(6, 5), Root(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        steep[0].weight[0] = 0
        steep[0].bias[0] = 0
    with refused("7 of 7 attribution vectors are not finite (NaN or infinite)"):
        depara_graph(steep, samples())


class Root(nn.Module):
    """A square root, whose slope at 0 is infinite."""

    def forward(self, z: Tensor) -> Tensor:
        return z.abs().sqrt()


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_an_edge_weight_that_is_none_is_refused(weight):
    with refused(f"edge_weight must be a finite number >= 0, got {weight!r}."):
        compare_models(mlp(), mlp(1), samples(), edge_weight=weight)


def test_graphs_of_different_probes_are_refused():
    with refused(
        "the graphs have nodes of shape (7, 6) and (5, 6): both must be of the same probe."
    ):
        compare_graphs(depara_graph(mlp(), samples()), depara_graph(mlp(), samples(5)))
    with refused("a graph has nodes [N, D] and edges [N, N], got (4, 2) and (4, 3)."):
        DeparaGraph(torch.ones(4, 2), torch.ones(4, 3))
    with refused("a probe of 2 samples has too few pairs"):
        DeparaGraph(torch.ones(2, 2), torch.ones(2, 2))


def test_other_mistakes_are_told_by_the_attribution():
    with refused("unknown attribution method 'input_x_grad'. Did you mean 'input_x_gradient'?"):
        compare_models(mlp(), mlp(1), samples(), method="input_x_grad")
    with refused("input_x_gradient has no options, got n_steps=."):
        compare_models(mlp(), mlp(1), samples(), n_steps=3)
    with refused("model b: target 3 is out of range: the model returns [N, 2], so give 0..1."):
        compare_models(mlp(classes=5), mlp(classes=2), samples(), target=3)
    with refused("no sources to rank: give a mapping of names to models."):
        transferability({}, mlp(), samples())
    with refused("batch_size must be an integer >= 1, got 0."):
        depara_graph(mlp(), samples(), batch_size=0)
    with refused("model a: a model must be a torch.nn.Module, got str."):
        compare_models("lenet", mlp(), samples())
    with refused("model a: the model is in half precision"):
        compare_models(mlp().bfloat16(), mlp(), samples().bfloat16())


def test_a_function_without_a_rule_is_told_by_its_model():
    class Odd(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(torch.diag_embed(z)).diagonal(dim1=1, dim2=2)

    odd = mlp()
    odd[1] = Odd()
    with refused("model b: ", CreditError):
        compare_models(mlp(), odd, samples(), method="lrp")


def test_doubts_about_an_attribution_are_still_told():
    class Functional(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.relu(z)

    model = mlp(act=Functional)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        depara_graph(model, samples(), method="deeplift")
    assert any(
        issubclass(each.category, AttributionWarning) and "is unreliable" in str(each.message)
        for each in caught
    )
