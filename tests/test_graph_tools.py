"""What is done with attribution graphs: rankings, interventions, validation, files.

Each is held to a twin that is written with loops, or to a model whose weights were edited.
"""

import copy
import functools
import itertools
import json
import math

import networkx
import pytest
import torch
import torch.nn.functional as F
from small_models import build
from torch import Tensor, nn

import attrain
from attrain.errors import AttrainError, InputError
from attrain.graph import AttributionGraph, intervene, steps
from attrain.graph import files as graph_files
from attrain.graph.cut import MOST_CUTS
from attrain.graph.formats import links
from attrain.graph.intervene import HOWS
from attrain.graph.rank import RANKINGS, hidden

DTYPE = torch.float64


@pytest.fixture(autouse=True)
def _without_gradients():
    """So that values are compared as numbers, and graphs are made where gradients are off."""
    with torch.no_grad():
        yield


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    )  # fmt: skip


def cnn() -> nn.Module:
    """Convolutions with groups and strides, normalised after and before what they feed."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, groups=2), nn.SiLU(), nn.BatchNorm2d(6), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    return model


class Skip(nn.Module):
    """A residual block that writes over its branch, and a gate: sums, products, reused values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        inner = self.inner(h)
        inner += h
        pooled = F.relu(inner).mean((2, 3))
        return self.head(pooled * torch.tanh(self.gate(pooled)))


MODELS = {"mlp": mlp, "cnn": cnn, "skip": Skip}


def case(name: str, samples: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = MODELS[name]().to(DTYPE).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for each in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(each)
            nn.init.uniform_(module.running_var, 0.5, 2)
    shape = {"mlp": (5,), "cnn": (2, 8, 8), "skip": (2, 6, 6)}[name]
    return model, torch.randn(samples, *shape, dtype=DTYPE), torch.arange(samples) % 3


def graph_of(name: str, **options) -> tuple[AttributionGraph, nn.Module, Tensor, Tensor]:
    model, x, y = case(name)
    return AttributionGraph.from_batch(model, x, y, **options), model, x, y


def state(model: nn.Module) -> tuple:
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [(each.training, len(each._forward_hooks), len(each._forward_pre_hooks))
         for each in model.modules()],
        [(each.requires_grad, each.grad) for each in model.parameters()],
    )  # fmt: skip


def assert_unchanged(before: tuple, model: nn.Module) -> None:
    after = state(model)
    assert before[1:] == after[1:]
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())


# Rankings -----------------------------------------------------------------------------------------


def paths_mass(graph: AttributionGraph, kept: AttributionGraph) -> tuple[float, dict]:
    """The mass of all paths, one by one, and what goes through each unit."""
    last = graph.layers[-1]
    whole = sum(abs(float(each)) for each in graph.relevance[last])
    through = {name: [0.0] * len(graph.relevance[name]) for name in graph.layers}
    total = 0.0
    above = {name: graph.columns(name) for name in graph.layers}

    def down(layer: str, unit: int, mass: float) -> None:
        nonlocal total
        through[layer][unit] += mass
        if not graph.sources[layer]:
            total += mass
            return
        into = sum(abs(float(each)) for each in graph.edges[layer][unit])
        for source, columns in above[layer].items():
            for i, column in enumerate(range(columns.start, columns.stop)):
                message = abs(float(kept.edges[layer][unit, column]))
                if message:
                    down(source, i, mass * message / into)

    for unit, value in enumerate(graph.relevance[last].tolist()):
        if value and bool(kept.kept(last)[unit]):
            down(last, unit, abs(value) / whole)
    return total, through


@pytest.mark.parametrize("name", MODELS)
def test_through_flow_and_path_mass_are_sums_over_paths(name: str) -> None:
    graph, *_ = graph_of(name)
    total, through = paths_mass(graph, graph)
    scores = graph.rank("through-flow")
    for layer in graph.layers:
        wanted = torch.tensor(through[layer], dtype=DTYPE)
        torch.testing.assert_close(scores[layer], wanted, rtol=1e-12, atol=1e-14)
    assert graph.path_mass(graph) == 1.0
    pruned = graph.prune(0.8, 0.7)
    inside, _ = paths_mass(graph, pruned)
    assert 0 < inside < total
    assert graph.path_mass(pruned) == pytest.approx(inside / total, rel=1e-12)


def test_path_mass_falls_as_more_is_pruned() -> None:
    graph, *_ = graph_of("cnn")
    masses = [graph.path_mass(graph.prune(nodes, 1.0)) for nodes in (1.0, 0.9, 0.7, 0.5)]
    assert masses[0] == pytest.approx(1.0) and masses == sorted(masses, reverse=True)


def handed_on(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What units of the CNN hand to the layer above, [N, units, places]."""
    found, h = {"input": x.flatten(2)}, x
    above = {4: "0", 9: "4", 11: "9"}
    for index, module in enumerate(model):
        if index in above:
            found[above[index]] = h.reshape(*h.shape[:2], -1)
        h = module(h)
    return found | {"11": h[:, :, None]}


def test_summit_counts_samples_and_activation_sizes() -> None:
    graph, model, x, _ = graph_of("cnn")
    for share in (0.03, 0.6):
        counts = graph.rank("summit", model=model, x=x, share=share, batch_size=4)
        for layer, values in handed_on(model, x).items():
            wanted = [0] * values.shape[1]
            for sample in values:
                sizes = [max(max(unit.tolist()), 0.0) for unit in sample]
                held, whole = 0.0, sum(sizes)
                for unit in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
                    if held >= share * whole or not sizes[unit]:
                        break
                    wanted[unit] += 1
                    held += sizes[unit]
            assert counts[layer].tolist() == wanted, layer
    sizes = graph.rank("activation", model=model, x=x, batch_size=4)
    for layer, values in handed_on(model, x).items():
        torch.testing.assert_close(sizes[layer], values.abs().mean((0, 2)))


def test_what_a_unit_hands_to_several_is_averaged() -> None:
    graph, model, x, _ = graph_of("skip")
    h = F.relu(model.first(x))
    sizes = graph.rank("activation", model=model, x=x)
    torch.testing.assert_close(sizes["first"], h.abs().mean((0, 2, 3)))


def test_methods_of_attribution_rank_the_layers_that_are_modules() -> None:
    graph, model, x, y = graph_of("cnn")
    found = graph.rank("integrated_gradients", model=model, x=x, target=y)
    assert [*found] == ["input", "0", "4", "9", "11"]
    of_layer = attrain.attribute(model, x, y, method="integrated_gradients", layer="4")
    torch.testing.assert_close(found["4"], of_layer.sum((2, 3)).mean(0).abs())
    of_inputs = attrain.attribute(model, x, y, method="integrated_gradients")
    torch.testing.assert_close(found["input"], of_inputs.sum((2, 3)).mean(0).abs())
    skips = graph_of("skip")
    assert [*skips[0].rank("lrp", model=skips[1], x=x, target=0)] == [
        "input", "first", "inner", "gate", "head",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
def test_units_switched_on_and_off_count_once(method: str) -> None:
    graph, model, x, _ = graph_of("cnn")
    model, x = model.float(), x.float()
    options = {"n_samples": 40, "seed": 0} | ({"alpha": 1e-5} if method == "lime" else {})
    found = graph.rank(method, model=model, x=x[:2], target=1, layers=["4"], **options)
    assert [*found] == ["4"]
    whole = attrain.attribute(model, x[:2], 1, method=method, layer="4", **options)
    assert torch.equal(found["4"], whole[:, :, 0, 0].double().mean(0).abs())


def test_relevance_of_lrp_at_a_layer_is_the_ranking_by_relevance() -> None:
    model, x, y = case("mlp")
    graph = AttributionGraph.from_batch(model, x, y, epsilon=0.0)
    wanted = graph.rank("relevance")
    found = graph.rank("lrp", model=model, x=x, target=y, epsilon=0.0)
    for layer in graph.layers:
        torch.testing.assert_close(found[layer], wanted[layer])


def test_top_takes_the_first_of_the_hidden_layers_that_are_kept() -> None:
    graph, *_ = graph_of("mlp")
    ranked = sorted(
        ((name, unit, abs(float(value))) for name in ("0", "2")
         for unit, value in enumerate(graph.relevance[name])),
        key=lambda each: -each[2],
    )  # fmt: skip
    assert hidden(graph) == ["0", "2"]
    assert graph.top(4) == ranked[:4]
    assert graph.top(2, "2") == [each for each in ranked if each[0] == "2"][:2]
    kept = graph.prune(0.5)
    assert all(bool(kept.kept(name)[unit]) for name, unit, _ in kept.top(99))
    positive = graph.top(3, by="positive-relevance")
    assert all(float(graph.relevance[name][unit]) == score for name, unit, score in positive)


def test_rankings_tell_what_is_wrong() -> None:
    graph, model, x, y = graph_of("mlp")
    with pytest.raises(InputError, match="unknown ranking 'sumit'. Did you mean 'summit'?"):
        graph.rank("sumit")
    with pytest.raises(InputError, match=r"'summit' is measured: give model= and x="):
        graph.rank("summit")
    with pytest.raises(InputError, match="'summit' has no option 'k': it has share."):
        graph.rank("summit", model=model, x=x, k=3)
    with pytest.raises(InputError, match=r"share is a number in \(0, 1\], got 3."):
        graph.rank("summit", model=model, x=x, share=3)
    with pytest.raises(InputError, match="k must be an integer >= 1, got 0."):
        graph.top(0)
    with pytest.raises(InputError, match="unknown layer of the graph 'zero'"):
        graph.top(1, "zero")
    skip = graph_of("skip")
    with pytest.raises(InputError, match="'lrp' says nothing of layer 'sum', which is no module"):
        skip[0].top(1, "sum", by="lrp", model=skip[1], x=skip[2], target=0)
    with pytest.raises(InputError, match="pruned is no part of graph: it has other layers."):
        graph.path_mass(skip[0])
    assert all(ranking.source for ranking in RANKINGS.values())


# Interventions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", HOWS)
def test_nothing_ablated_is_the_model(name: str, how: str) -> None:
    graph, model, x, _ = graph_of(name)
    before = state(model)
    out = graph.ablate(model, x, [], how=how)
    assert_unchanged(before, model)
    torch.testing.assert_close(out, model(x), rtol=0, atol=1e-14)


def test_zero_ablation_is_weights_out_of_the_unit_set_to_zero() -> None:
    graph, model, x, _ = graph_of("mlp")
    for layer, above in (("0", 2), ("2", 4)):
        for unit in range(len(graph.relevance[layer])):
            edited = copy.deepcopy(model)
            edited[above].weight.data[:, unit] = 0
            out = graph.ablate(model, x, [(layer, unit)], how="zero")
            assert torch.equal(out, edited(x))
    edited = copy.deepcopy(model)
    edited[0].weight.data[:, 1] = 0
    assert torch.equal(graph.ablate(model, x, [("input", 1)], how="zero"), edited(x))


def test_zero_is_silence_before_a_batch_norm_and_pools() -> None:
    graph, model, x, _ = graph_of("cnn")
    edited = copy.deepcopy(model)
    edited[4].weight.data[0:3, 1] = 0  # channel 1 is the second of the first group
    out = graph.ablate(model, x, [("0", 1)], how="zero", batch_size=4)
    torch.testing.assert_close(out, edited(x), rtol=0, atol=1e-14)
    edited[9].weight.data[:, 5] = 0
    out = graph.ablate(model, x, [("0", 1), ("4", 5)], how="zero")
    torch.testing.assert_close(out, edited(x), rtol=0, atol=1e-14)


def twin_of_skip(model: nn.Module, x: Tensor, put: dict) -> Tensor:
    """The model with the values of units replaced wherever they are taken."""

    def handed(layer: str, value: Tensor) -> Tensor:
        value = value.clone()
        for (name, unit), new in put.items():
            if name == layer:
                value[:, unit] = new
        return value

    h = handed("first", F.relu(model.first(x)))
    inner = handed("inner", model.inner(h))
    pooled = handed("sum", F.relu(inner + h).mean((2, 3)))
    gate = handed("gate", torch.tanh(model.gate(pooled)))
    return handed("head", model.head(handed("mul", pooled * gate)))


@pytest.mark.parametrize("layer", ["first", "inner", "sum", "gate", "head"])
def test_every_consumer_sees_the_value_that_a_unit_is_clamped_to(layer: str) -> None:
    graph, model, x, _ = graph_of("skip")
    wanted = twin_of_skip(model, x, {(layer, 2): 0.7})
    out = graph.clamp(model, x, {(layer, 2): 0.7})
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-14)
    assert not torch.equal(out, model(x))


def test_a_mean_is_that_of_the_reference_at_each_place() -> None:
    graph, model, x, _ = graph_of("skip")
    reference = torch.randn(9, 2, 6, 6, dtype=DTYPE)
    for given in (None, reference):
        known = x if given is None else given
        mean = F.relu(model.first(known)).mean(0)[1]
        wanted = twin_of_skip(model, x, {("first", 1): mean})
        out = graph.ablate(model, x, [("first", 1)], reference=given, batch_size=4)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-13)


def test_resampling_hands_on_what_other_samples_would_have() -> None:
    graph, model, x, _ = graph_of("skip")
    h = F.relu(model.first(x))
    out = graph.ablate(model, x, [("first", 1), ("first", 3)], how="resample", seed=5)
    for sample in range(len(x)):
        alike = [
            twin_of_skip(model, x[[sample]], {("first", 1): h[other, 1], ("first", 3): h[other, 3]})
            for other in range(len(x))
            if other != sample
        ]
        errors = [float((each[0] - out[sample]).abs().max()) for each in alike]
        assert sorted(errors)[0] < 1e-13 < sorted(errors)[1]
    again = graph.ablate(model, x, [("first", 1), ("first", 3)], how="resample", seed=5,
                         batch_size=2)  # fmt: skip
    torch.testing.assert_close(out, again, rtol=0, atol=1e-14)
    other = graph.ablate(model, x, [("first", 1), ("first", 3)], how="resample", seed=6)
    assert not torch.equal(out, other)


def test_a_model_is_as_before_an_intervention_that_failed() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            h = self.one(x)
            return self.two(h.relu() if self.calls < 3 else h.tanh())

    model, x = Fickle().train(), torch.randn(5, 4)
    graph = AttributionGraph.from_batch(model, x, 0)
    model.calls = 0
    before = state(model)
    with pytest.raises(InputError, match=r"the model calls .*tanh where it did not before"):
        graph.ablate(model, x, [("one", 0)], how="zero", batch_size=2)
    assert_unchanged(before, model)
    model.calls = -99
    with torch.enable_grad():
        assert model(x).requires_grad
    assert not hasattr(x, "_attrain_units")


def test_interventions_on_the_zoo_leave_outputs_alone_where_nothing_is_chosen() -> None:
    for name in ("mlp", "convolutions", "loop"):
        model = build(name, DTYPE).eval()
        x = torch.randn(4, 3, 8, 8, dtype=DTYPE)
        graph = AttributionGraph.from_batch(model, x, 1)
        torch.testing.assert_close(graph.ablate(model, x, []), model(x), rtol=0, atol=1e-13)


def test_tokens_and_further_arguments_go_with_their_samples() -> None:
    class Tagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
            return self.head((F.relu(self.embed(tokens)) * weight[:, None, None]).mean(1))

    torch.manual_seed(0)
    model, tokens, weight = Tagged(), torch.randint(9, (6, 5)), torch.rand(6)
    graph = AttributionGraph.from_batch(model, tokens, 1, additional_forward_args=weight)
    pooled = (F.relu(model.embed(tokens)) * weight[:, None, None]).mean(1)
    pooled[:, 2] = 0
    out = graph.ablate(model, tokens, [("embed", 2)], how="zero", batch_size=4,
                       additional_forward_args=weight)  # fmt: skip
    torch.testing.assert_close(out, model.head(pooled))
    with pytest.raises(InputError, match="tensors of each sample of x: use how='mean' or 'zero'"):
        graph.ablate(model, tokens, [], how="resample", additional_forward_args=weight)
    with pytest.raises(InputError, match="reference= has no additional_forward_args of its own"):
        graph.ablate(model, tokens, [], reference=tokens, additional_forward_args=weight)


def test_interventions_tell_what_is_wrong() -> None:
    graph, model, x, _ = graph_of("mlp")
    for nodes, text in (
        ([("0", 7)], "layer '0' has units 0 to 6, got 7."),
        ([("1", 0)], "unknown layer of the graph '1'."),
        (["0"], r"a node is a pair \(layer, unit\), got '0'."),
        ("0", r"nodes are pairs \(layer, unit\), got a str."),
    ):
        with pytest.raises(InputError, match=text):
            graph.ablate(model, x, nodes)
    with pytest.raises(InputError, match="unknown ablation 'meen'. Did you mean 'mean'?"):
        graph.ablate(model, x, [], how="meen")
    with pytest.raises(InputError, match=r"reference is torch.float64 of shape \(2, 4\), and x"):
        graph.ablate(model, x, [], reference=torch.zeros(2, 4, dtype=DTYPE))
    with pytest.raises(InputError, match="how='resample' takes values of other samples, and x has"):
        graph.ablate(model, x[:1], [], how="resample")
    with pytest.raises(InputError, match=r"\('0', 1\) is clamped to nan: give a finite number."):
        graph.clamp(model, x, {("0", 1): math.nan})
    with pytest.raises(InputError, match=r"clamp takes a mapping from \(layer, unit\) to a value"):
        graph.clamp(model, x, [("0", 1)])
    other = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(InputError, match="graph is of another model: it has 7 units of '0', and "
                       "this model for these inputs 8 units of '0'"):  # fmt: skip
        graph.ablate(other.to(DTYPE), x, [])


def test_layers_whose_messages_are_taken_in_unknown_ways_are_refused(monkeypatch) -> None:
    graph, model, x, _ = graph_of("skip")

    fewer = functools.singledispatch(lambda step, args, kwargs: [])
    fewer.register(steps.Layer, lambda step, args, kwargs: [])
    monkeypatch.setattr(intervene, "takes", fewer)
    with pytest.raises(InputError, match="what layer 'sum' of kind 'sum' takes cannot be replaced"):
        graph.ablate(model, x, [])


class Shared(nn.Module):
    """Samples and tokens share an axis where the weights are, as Hugging Face's Conv1D has it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 3)
        h = torch.addmm(self.one.bias, flat, self.one.weight.t()).relu()
        h = h + F.linear(h, self.two.weight)
        return self.head(h.reshape(len(x), -1, 4).mean(1))


class Ends(nn.Module):
    """Scores that are units of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return torch.cat([self.two(F.relu(h)), h], 1)


def test_samples_that_share_an_axis_with_tokens_are_told_apart() -> None:
    torch.manual_seed(3)
    model, x = Shared().to(DTYPE), torch.randn(6, 5, 3, dtype=DTYPE)
    graph = AttributionGraph.from_batch(model, x, 1)
    layers = [name for name in hidden(graph) if len(graph.relevance[name]) == 4]

    def twin(change) -> Tensor:
        h = change(F.relu(model.one(x)))
        return model.head((h + F.linear(h, model.two.weight)).mean(1))

    def zeroed(h: Tensor) -> Tensor:
        h = h.clone()
        h[..., 2] = 0
        return h

    def averaged(h: Tensor) -> Tensor:
        h = h.clone()
        h[..., 2] = h[..., 2].mean(0)
        return h

    for how, change in (("zero", zeroed), ("mean", averaged)):
        out = graph.ablate(model, x, [(layers[0], 2)], how=how, batch_size=4)
        torch.testing.assert_close(out, twin(change), rtol=0, atol=1e-13)
    out = graph.ablate(model, x, [(layers[0], 2)], how="resample", seed=1)
    values = F.relu(model.one(x))
    for sample in range(6):
        errors = []
        for other in set(range(6)) - {sample}:
            h = values[[sample]].clone()
            h[..., 2] = values[other, :, 2]
            alike = model.head((h + F.linear(h, model.two.weight)).mean(1))
            errors.append(float((alike[0] - out[sample]).abs().max()))
        assert min(errors) < 1e-13
    cut = AttributionGraph.from_batch(model, x, 1, method="ablation")
    drops = cut.unit_ablations(model, x, 1, how="zero")
    for name in hidden(cut):
        torch.testing.assert_close(cut.relevance[name], drops[name])
    sizes = graph.rank("activation", model=model, x=x, batch_size=4)
    torch.testing.assert_close(sizes[layers[0]], values.mean((0, 1)))


def test_units_that_are_outputs_hand_on_to_them_and_to_layers() -> None:
    torch.manual_seed(3)
    model, x = Ends().to(DTYPE), torch.randn(6, 5, dtype=DTYPE)
    graph = AttributionGraph.from_batch(model, x, 3)
    h = model.one(x)
    h[:, 1] = 0
    wanted = torch.cat([model.two(F.relu(h)), h], 1)
    out = graph.ablate(model, x, [("one", 1)], how="zero")
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-14)
    cut = AttributionGraph.from_batch(model, x, 3, method="ablation")
    whole = model(x)[:, 3]
    fall = float((whole - wanted[:, 3]).mean())
    assert float(cut.relevance["one"][1]) == pytest.approx(fall)
    assert float(cut.between("one", "output")[3, 1]) == pytest.approx(fall)
    assert not cut.between("two", "output")[3].any() and not cut.between("one", "two").any()
    assert cut.output == pytest.approx(float(cut.relevance["output"].sum()))


def test_heads_and_mlps_of_a_transformer_are_silenced_by_the_weights_that_write_them() -> None:
    model, x = build("transformer", DTYPE).eval(), torch.randn(3, 3, 8, 8, dtype=DTYPE)
    graph = AttributionGraph.from_batch(model, x, 1, nodes="blocks")
    torch.testing.assert_close(graph.ablate(model, x, []), model(x), rtol=0, atol=1e-13)
    for block in range(2):
        name = f"blocks.{block}"
        for node, part, columns in (
            ((f"{name}.self_attn.heads", 0), "self_attn.out_proj", slice(0, 4)),
            ((f"{name}.self_attn.heads", 1), "self_attn.out_proj", slice(4, 8)),
            ((f"{name}.linear1", 0), "linear2", slice(None)),
        ):
            edited = copy.deepcopy(model)
            edited.get_submodule(f"{name}.{part}").weight[:, columns] = 0
            out = graph.ablate(model, x, [node], how="zero", batch_size=2)
            torch.testing.assert_close(out, edited(x), rtol=0, atol=1e-13)
    drops = graph.unit_ablations(model, x, 1, how="zero")
    assert [*drops] == hidden(graph)
    assert graph.validate(model, x, 1, seeds=1).layers == tuple(hidden(graph))
    with pytest.raises(InputError, match="'embed.tokens' of kind 'tokens' hands on cannot be repl"):
        graph.ablate(model, x, [("embed.tokens", 0)])


def test_a_mean_over_one_class_takes_nothing_of_what_the_class_has_in_common() -> None:
    graph, model, x, _ = graph_of("mlp")
    alike = x[:1].expand(5, -1)
    everything = [(name, unit) for name in hidden(graph)
                  for unit in range(len(graph.relevance[name]))]  # fmt: skip
    out = graph.ablate(model, alike, everything)
    torch.testing.assert_close(out, model(alike), rtol=0, atol=1e-13)
    assert not torch.allclose(graph.ablate(model, alike, everything, reference=x), model(alike))


# Validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_unit_ablations_are_drops_one_by_one(how: str) -> None:
    graph, model, x, y = graph_of("skip")
    whole = model(x)[range(len(x)), y]
    for batch_size in (4, 40):
        found = graph.unit_ablations(model, x, y, how=how, batch_size=batch_size)
        assert [*found] == hidden(graph)
        for layer, drops in found.items():
            for unit, drop in enumerate(drops.tolist()):
                left = graph.ablate(model, x, [(layer, unit)], how=how)[range(len(x)), y]
                assert drop == pytest.approx(float((whole - left).mean()), abs=1e-13)


def test_validation_ablates_the_first_of_each_layer_beside_random_ones() -> None:
    graph, model, x, y = graph_of("cnn")
    before = state(model)
    shares = (0.2, 0.5)
    found = graph.validate(model, x, y, shares=shares, seeds=3, how="zero")
    assert_unchanged(before, model)
    whole = model(x)[range(len(x)), y]
    assert found.output == pytest.approx(float(whole.mean()))
    for place, share in enumerate(shares):
        sets = {}
        for layer in ("0", "4", "9"):
            scores = graph.relevance[layer].abs().tolist()
            first = sorted(range(len(scores)), key=lambda each: -scores[each])
            sets[layer] = first[: max(1, round(share * len(scores)))]
        nodes = [(layer, unit) for layer, units in sets.items() for unit in units]
        assert found.counts[place] == len(nodes)
        left = graph.ablate(model, x, nodes, how="zero")[range(len(x)), y]
        assert found.drops[place] == pytest.approx(float((whole - left).mean()), abs=1e-13)
    possible = [
        float((whole - graph.ablate(model, x, [("0", a), ("4", b), ("9", c)], how="zero")[
            range(len(x)), y]).mean())
        for a, b, c in itertools.product(range(4), range(6), range(5))
    ]  # fmt: skip
    assert len(found.random) == 3 and len(set(found.random)) == 3
    for curve in found.random:
        assert min(abs(curve[0] - each) for each in possible) < 1e-12
    assert found.aopc == pytest.approx(sum(found.drops) / 2)
    areas = torch.tensor(found.random, dtype=DTYPE).mean(1)
    assert found.random_mean == pytest.approx(float(areas.mean()))
    assert found.random_sd == pytest.approx(float(areas.std()))
    beaten = int((areas < found.aopc).sum())
    assert str(found) == (
        "Ablating (zero) the first 20% to 50% of the units of each of 3 layers by relevance "
        f"lowers the output of {found.output:.4g} by {found.aopc:.4g} on average, random units "
        f"lower it by {found.random_mean:.4g} ± {found.random_sd:.2g}: more than {beaten} of 3 "
        "random sets (6 samples)."
    )
    assert found == graph.validate(model, x, y, shares=shares, seeds=3, how="zero")


def test_validation_takes_any_ranking_or_scores_and_is_kept_with_the_graph(tmp_path) -> None:
    graph, model, x, y = graph_of("mlp")
    drops = graph.unit_ablations(model, x, y)
    oracle = graph.validate(model, x, y, by=drops, seeds=2)
    assert oracle.by == "given scores"
    summit = graph.validate(model, x, y, by="summit", seeds=2, share=0.5)
    assert summit.random == oracle.random and oracle.drops[0] >= summit.drops[0]
    one = graph.validate(model, x, y, layers=["2"], shares=[0.5], seeds=1, how="resample")
    assert one.layers == ("2",) and one.counts == (3,) and one.random_sd == 0.0
    assert "the first 50% of the units of 1 layer by relevance" in str(one)
    graph.with_facts(validation=one.as_facts()).save(tmp_path / "graph.json")
    facts = AttributionGraph.load(tmp_path / "graph.json").facts["validation"]
    assert facts["told"] == str(one) and facts["drops"] == list(one.drops)


def test_validation_tells_what_is_wrong() -> None:
    graph, model, x, y = graph_of("mlp")
    for options, text in (
        ({"shares": [0.2, 1.5]}, r"shares are numbers in \(0, 1\], got 1.5."),
        ({"shares": [0.3, 0.2]}, r"shares must rise, got \[0.3, 0.2\]."),
        ({"shares": 0.2}, r"shares is a list of numbers in \(0, 1\], got 0.2."),
        ({"seeds": 0}, "seeds is the number of random sets, an integer >= 1, got 0."),
        ({"layers": ["9"]}, "unknown layer of the graph '9'"),
        ({"by": {"0": torch.zeros(7)}}, "layer '2' of 6 units has no scores in this ranking."),
        ({"by": {"0": torch.zeros(2), "2": torch.zeros(6)}}, r"has scores of shape \(2,\)"),
    ):
        with pytest.raises(InputError, match=text):
            graph.validate(model, x, y, **options)
    with pytest.raises(InputError, match="target 9 is out of range"):
        graph.validate(model, x, 9)
    line = AttributionGraph.from_batch(nn.Sequential(nn.Linear(5, 2)).to(DTYPE), x, 0)
    with pytest.raises(InputError, match="no layer between its inputs and its last: give layers="):
        line.validate(nn.Sequential(nn.Linear(5, 2)).to(DTYPE), x, 0)


# Graphs by ablation -------------------------------------------------------------------------------


def test_a_graph_by_ablation_cuts_units_and_weights() -> None:
    model, x, y = case("mlp")
    graph = AttributionGraph.from_batch(model, x, y, method="ablation", batch_size=17)
    whole = model(x)[range(len(x)), y]

    def drop(edited: nn.Module) -> float:
        return float((whole - edited(x)[range(len(x)), y]).mean())

    for layer, above in (("input", 0), ("0", 2), ("2", 4)):
        weight = model[above].weight
        for j, i in itertools.product(*map(range, weight.shape)):
            edited = copy.deepcopy(model)
            edited[above].weight.data[j, i] = 0
            assert float(graph.between(layer, str(above))[j, i]) == pytest.approx(
                drop(edited), abs=1e-13
            )
        for i in range(weight.shape[1]):
            edited = copy.deepcopy(model)
            edited[above].weight.data[:, i] = 0
            assert float(graph.relevance[layer][i]) == pytest.approx(drop(edited), abs=1e-13)
    for unit in range(3):
        share = float(whole[y == unit].sum()) / len(x)
        assert float(graph.relevance["4"][unit]) == pytest.approx(share)
    assert graph.method == "ablation" and graph.output == pytest.approx(float(whole.mean()))
    assert max(graph.error().values()) >= 0
    for name, sinks in graph.sinks.items():
        torch.testing.assert_close(
            graph.edges[name].sum(1) + torch.stack([*sinks.values()]).sum(0),
            graph.relevance[name],
        )


def test_a_message_that_meets_another_is_cut_alone() -> None:
    graph, model, x, y = graph_of("skip", method="ablation")
    whole = model(x)[range(len(x)), y]
    h = F.relu(model.first(x))
    inner = model.inner(h)
    for source in ("first", "inner"):
        found = graph.between(source, "sum")
        assert torch.equal(found, found * torch.eye(4, dtype=DTYPE))
        for unit in range(4):
            met = inner + h
            met[:, unit] = (inner if source == "first" else h)[:, unit]
            pooled = F.relu(met).mean((2, 3))
            out = model.head(pooled * torch.tanh(model.gate(pooled)))
            wanted = float((whole - out[range(len(x)), y]).mean())
            assert float(found[unit, unit]) == pytest.approx(wanted, abs=1e-13)


def test_groups_have_no_edges_between_them_by_ablation() -> None:
    graph, model, x, y = graph_of("cnn", method="ablation", how="resample")
    between = graph.between("0", "4")
    assert not between[:3, 2:].any() and not between[3:, :2].any() and between[:3, :2].any()
    assert graph.relevance["0"].tolist() == graph.unit_ablations(
        model, x, y, how="resample"
    )["0"].tolist()  # fmt: skip


def test_graphs_by_ablation_are_small() -> None:
    wide = nn.Sequential(nn.Linear(150, 150), nn.ReLU(), nn.Linear(150, 2))
    count = 150 * 150 + 300 + 300
    assert count > MOST_CUTS
    with pytest.raises(InputError, match=f"would cut {count:,} units and edges one by one, more"):
        AttributionGraph.from_batch(wide, torch.randn(2, 150), 0, method="ablation")


# Files --------------------------------------------------------------------------------------------


def assert_same(found: AttributionGraph, wanted: AttributionGraph) -> None:
    assert found.layers == wanted.layers and dict(found.kinds) == dict(wanted.kinds)
    assert dict(found.sources) == dict(wanted.sources)
    for name in ("output", "samples", "method", "target"):
        assert getattr(found, name) == getattr(wanted, name)
    for part in ("relevance", "edges", "keep"):
        held, of = getattr(found, part), getattr(wanted, part)
        assert [*held] == [*of]
        assert all(torch.equal(held[name], of[name]) for name in of)
    for name, sinks in wanted.sinks.items():
        assert [*found.sinks[name]] == [*sinks]
        assert all(torch.equal(found.sinks[name][sink], each) for sink, each in sinks.items())


@pytest.mark.parametrize("most", [20_000, 10, 0])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_comes_back_exactly(tmp_path, name: str, most: int) -> None:
    graph, *_ = graph_of(name)
    for each in (graph, graph.prune(0.7, 0.8), graph.with_facts(note="a </script> & b")):
        path = tmp_path / "graph.json"
        each.save(path, links=most)
        beside = path.with_suffix(".safetensors")
        assert beside.exists() == (most < 20_000)
        found = AttributionGraph.load(path)
        assert_same(found, each)
        assert found.facts == each.facts
        beside.unlink(missing_ok=True)
        data = json.loads(path.read_text())
        assert data["links_total"] == len([*links(each)])
        assert len(data["links"]) == min(most, data["links_total"])
        sizes = sorted((abs(link["weight"]) for link in data["links"]), reverse=True)
        whole = sorted((abs(link.weight) for link in links(each)), reverse=True)
        assert sizes == whole[:most]


class Shifted(nn.Module):
    """Adds a constant to its inputs, which then have a sink."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + 0.3)


@pytest.mark.parametrize("most", [20_000, 10])
def test_blocks_and_inputs_with_sinks_come_back(tmp_path, most: int) -> None:
    shifted = AttributionGraph.from_batch(Shifted(), torch.randn(4, 5), 1)
    assert "input" in shifted.sinks
    model, x = build("transformer").eval(), torch.randn(3, 3, 8, 8)
    blocks = AttributionGraph.from_batch(model, x, 1, nodes="blocks")
    for graph in (shifted, blocks):
        graph.save(tmp_path / "graph.json", links=most)
        assert_same(AttributionGraph.load(tmp_path / "graph.json"), graph)
        data = json.loads((tmp_path / "graph.json").read_text())
        assert data["links_total"] == len([*links(graph)])
        assert data["links_total"] == graph.to_networkx().number_of_edges()


def test_the_json_is_read_by_networkx_and_has_the_fields_of_circuit_tracer(tmp_path) -> None:
    graph, *_ = graph_of("cnn")
    graph.save(tmp_path / "graph.json")
    data = json.loads((tmp_path / "graph.json").read_text())
    read = networkx.node_link_graph(data, edges="links")
    made = graph.to_networkx()
    assert {*read.nodes} == {*made.nodes} and {*read.edges} == {*made.edges}
    assert all(read.edges[edge]["weight"] == made.edges[edge]["weight"] for edge in made.edges)
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt"} <= {*data["metadata"]}
    assert {*data["qParams"]} == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    texts = ("node_id", "layer", "feature_type", "jsNodeId", "clerp")
    for node in data["nodes"]:
        assert all(isinstance(node[field], str) for field in texts)
        assert all(isinstance(node[field], int) for field in ("feature", "ctx_idx", "run_idx"))
        assert 0 <= node["influence"] <= 1 and node["node_id"] == node["id"]
    ids = {node["node_id"] for node in data["nodes"]}
    assert all({link["source"], link["target"]} <= ids for link in data["links"])


def test_networkx_has_units_sinks_and_messages() -> None:
    graph, *_ = graph_of("cnn")
    made = graph.to_networkx()
    assert made.nodes["4:2"] == {
        "layer": "4", "depth": 2, "unit": 2, "kind": "convolution",
        "relevance": float(graph.relevance["4"][2]),
    }  # fmt: skip
    assert made.nodes["9:bias"]["kind"] == "sink"
    assert made.nodes["9:bias"]["relevance"] == pytest.approx(float(graph.sinks["9"]["bias"].sum()))
    assert made.edges["0:1", "4:2"]["weight"] == float(graph.between("0", "4")[2, 1])
    assert made.edges["9:bias", "9:3"]["weight"] == float(graph.sinks["9"]["bias"][3])
    for layer in ("4", "9", "11"):  # edges and sinks make up the relevance
        for unit, value in enumerate(graph.relevance[layer].tolist()):
            into = sum(each["weight"] for *_, each in made.in_edges(f"{layer}:{unit}", data=True))
            assert into == pytest.approx(value, abs=1e-12)
    pruned = graph.prune(0.6, 0.9).to_networkx()
    units = {node for node, each in pruned.nodes(data=True) if each["kind"] != "sink"}
    assert len(units) == sum(int(each.sum()) for each in graph.prune(0.6, 0.9).keep.values())


def test_other_formats_hold_the_same_graph(tmp_path) -> None:
    graph, *_ = graph_of("mlp")
    made = graph.to_networkx()
    graph.to_graphml(tmp_path / "graph.graphml")
    graph.to_gexf(tmp_path / "graph.gexf")
    for read in (
        networkx.read_graphml(tmp_path / "graph.graphml"),
        networkx.read_gexf(tmp_path / "graph.gexf"),
    ):
        assert {*read.nodes} == {*made.nodes} and {*read.edges} == {*made.edges}
        for edge in made.edges:
            assert read.edges[edge]["weight"] == made.edges[edge]["weight"]
        assert read.nodes["2:1"]["relevance"] == made.nodes["2:1"]["relevance"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["graph.gexf", "graph.graphml"]


def test_data_frames_hold_nodes_and_edges(monkeypatch) -> None:
    pytest.importorskip("pandas")
    graph, *_ = graph_of("mlp")
    nodes, edges = graph.to_dataframe()
    assert nodes.loc["2:1", "relevance"] == float(graph.relevance["2"][1])
    assert len(edges) == graph.to_networkx().number_of_edges()
    row = edges[(edges.source == "0:3") & (edges.target == "2:1")].weight.item()
    assert row == float(graph.between("0", "2")[1, 3])


def test_without_pandas_the_error_says_what_to_do(monkeypatch) -> None:
    graph, *_ = graph_of("mlp")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(AttrainError, match="needs pandas, which is not installed: pip install"):
        graph.to_dataframe()


def edited(path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FAULTS = {
    "another kind": (lambda data: data.pop("format"), "its format is not 'attrain-graph'"),
    "schema": (lambda data: data.update(schema=7), r"a graph of schema 7, and this version of"),
    "no layers": (
        lambda data: data.pop("layers"),
        "the file has nothing for 'layers', wanted list",
    ),
    "empty": (lambda data: data.update(layers=[]), "it has no layers"),
    "layer": (lambda data: data["layers"].append(3), "a layer is int, wanted dict"),
    "no facts": (lambda data: data["metadata"].pop("facts"), "metadata has nothing for 'facts'"),
    "samples": (lambda data: data["metadata"].update(samples=True), "has bool for 'samples'"),
    "no relevance": (
        lambda data: data["layers"][1].pop("relevance"),
        "layer '0' has nothing for 'relevance', wanted list",
    ),
    "nan": (
        lambda data: data["layers"][1]["relevance"].__setitem__(0, math.nan),
        "a relevance of layer '0' is not finite",
    ),
    "inf": (
        lambda data: data["links"][0].update(weight=math.inf),
        "weight of a link is not finite",
    ),
    "huge number": (
        lambda data: data["links"][0].update(weight=10**400),
        "weight of a link is not finite",
    ),
    "text": (
        lambda data: data["links"][0].update(weight="1"),
        "weight of a link is '1', wanted a number",
    ),
    "no weight": (lambda data: data["links"][0].pop("weight"), "is None, wanted a number"),
    "no target": (lambda data: data["links"][0].pop("target"), "a link has nothing for 'target'"),
    "link": (lambda data: data["links"].__setitem__(0, []), "a link is list, wanted dict"),
    "fewer links": (
        lambda data: data["links"].pop(),
        "it holds 140 of 141 links, and no hash of the tensors",
    ),
    "no unit": (
        lambda data: data["links"][0].update(target="0:99"),
        "leads to '0:99', which is no",
    ),
    "backwards": (
        lambda data: data["links"][0].update(source="4:0", target="0:1"),
        "leads from '4:0' to '0:1', which it cannot feed",
    ),
    "twice": (lambda data: data["links"].__setitem__(1, data["links"][0]), "is there twice"),
    "later source": (
        lambda data: data["layers"][1].update(sources=["2"]),
        "layer '0' is fed by '2', which is no layer before it",
    ),
    "same name": (
        lambda data: data["layers"][2].update(name="0"),
        "'0' is too long or there twice",
    ),
    "long name": (
        lambda data: data["layers"][2].update(name="a" * 9999),
        "too long or there twice",
    ),
    "sink": (
        lambda data: data["layers"][1]["sinks"].update({"3": [0.0] * 7}),
        "layer '0' has a sink that is called like a unit",
    ),
    "short sink": (
        lambda data: data["layers"][1]["sinks"].update(bias=[0.0]),
        "a sink of layer '0' has not a value for each unit",
    ),
    "keep": (
        lambda data: data["layers"][1].update(keep=[1] * 7),
        "keep of layer '0' is not true or false for each unit",
    ),
    "huge": (
        lambda data: [data["layers"][k].update(relevance=[0.0] * 20_000) for k in (1, 2)],
        r"it tells of [\d,]+ edges, more than 200,000,000",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, fault: str) -> None:
    graph, *_ = graph_of("mlp")
    path = tmp_path / "graph.json"
    graph.save(path)
    change, text = FAULTS[fault]
    edited(path, change)
    with pytest.raises(InputError, match=text) as raised:
        AttributionGraph.load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_cut_short_missing_or_no_json_is_told(tmp_path, monkeypatch) -> None:
    graph, *_ = graph_of("mlp")
    path = tmp_path / "graph.json"
    with pytest.raises(AttrainError, match=r"cannot read .*graph.json: it does not exist"):
        AttributionGraph.load(path)
    graph.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"is not readable JSON .*it may have been cut short"):
        AttributionGraph.load(path)
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(InputError, match="is not readable JSON"):
        AttributionGraph.load(path)
    path.write_text("[" * 200_000)
    with pytest.raises(InputError, match="nested too deeply|not readable JSON"):
        AttributionGraph.load(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="its format is not 'attrain-graph'"):
        AttributionGraph.load(path)
    path.write_bytes(whole)
    monkeypatch.setattr(graph_files, "_MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"has [\d,]+ bytes, more than a graph's 100"):
        AttributionGraph.load(path)


def test_tensors_must_stand_beside_and_belong_to_the_graph(tmp_path) -> None:
    graph, *_ = graph_of("mlp")
    path, beside = tmp_path / "graph.json", tmp_path / "graph.safetensors"
    graph.save(path, links=5)
    content = beside.read_bytes()
    beside.unlink()
    with pytest.raises(InputError, match=r"graph.safetensors is missing: .*Keep both together"):
        AttributionGraph.load(path)
    for other in (content[:-8], content[:-1] + bytes([content[-1] ^ 1]), content + b"\0" * 10**6):
        beside.write_bytes(other)
        with pytest.raises(InputError, match=r"graph.safetensors does not belong to .*graph.json"):
            AttributionGraph.load(path)
    beside.write_bytes(content)
    edited(path, lambda data: data["layers"][3].update(sources=["0"]))
    with pytest.raises(InputError, match=r"graph.safetensors has no '3.edges' of \[3, 7\] doubles"):
        AttributionGraph.load(path)


def test_labels_stay_plain_text(tmp_path) -> None:
    graph, *_ = graph_of("mlp")
    path = tmp_path / "graph.json"
    graph.save(path)
    script = "<script>alert(1)</script>"
    edited(path, lambda data: [node.update(clerp=script) for node in data["nodes"]])
    edited(path, lambda data: data["metadata"].update(target=script))
    assert AttributionGraph.load(path).target == script  # to be escaped by whoever shows it


def test_files_that_cannot_be_written_are_told(tmp_path) -> None:
    graph, *_ = graph_of("mlp")
    broken = copy.copy(graph.relevance)
    broken["0"] = broken["0"] * math.nan
    with pytest.raises(InputError, match="layer '0' of the graph has values that are not finite"):
        AttributionGraph(
            **{**vars(graph), "relevance": broken}
        ).save(tmp_path / "graph.json")  # fmt: skip
    with pytest.raises(InputError, match="facts of the graph cannot be written: JSON cannot hold"):
        graph.with_facts(model=nn.ReLU()).save(tmp_path / "graph.json")
    with pytest.raises(InputError, match="is the name of the tensors beside a graph: end it in"):
        graph.save(tmp_path / "graph.safetensors")
    with pytest.raises(InputError, match="links must be an integer >= 0, got -1."):
        graph.save(tmp_path / "graph.json", links=-1)
    assert not [*tmp_path.iterdir()]
