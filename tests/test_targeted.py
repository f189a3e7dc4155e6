"""Targeted updates: against their slow twin, for every score, optimizer and kind of layer."""

import copy
import math
import re
from pathlib import Path

import pytest
import reference_targeted as slow
import targeted_worker
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import batch, build
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attrain
from attrain.errors import InputError
from attrain.targeted import INPUT_GRADIENTS, SCORES, Refresh, Targeted, Units
from attrain.targeted.selection import count

pytestmark = pytest.mark.filterwarnings("ignore::attrain.errors.CreditWarning")


class MLP(nn.Sequential):
    def __init__(self, widths=(12, 8), inputs=6, classes=4) -> None:
        super().__init__()
        for index, width in enumerate(widths):
            self.add_module(f"fc{index}", nn.Linear(inputs, width))
            self.add_module(f"act{index}", nn.ReLU() if index % 2 == 0 else nn.Tanh())
            inputs = width
        self.add_module("out", nn.Linear(inputs, classes))


class CNN(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(2, 16, 3, padding=1, bias=False))
        self.add_module("bn1", nn.BatchNorm2d(16))
        self.add_module("relu1", nn.ReLU(inplace=True))
        self.add_module("conv2", nn.Conv2d(16, 20, 3, stride=2))
        self.add_module("relu2", nn.ReLU())
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flat", nn.Flatten())
        self.add_module("fc", nn.Linear(20, 6))
        self.add_module("act", nn.Tanh())
        self.add_module("out", nn.Linear(6, 4))


MODELS = {"mlp": (MLP, (6,)), "cnn": (CNN, (2, 6, 6))}
NORMS = {"mlp": {}, "cnn": {"conv1": "bn1"}}
TARGETED = {"mlp": ["fc0", "fc1"], "cnn": ["conv1", "conv2", "fc"]}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


def made(name: str = "mlp", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name][0]().double()


def batches(name: str = "mlp", number: int = 9, samples: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = MODELS[name][1]
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(4, (samples,), generator=generator),
        )
        for _ in range(number)
    ]


def protected(targeted: Targeted, name: str = "mlp") -> Targeted:
    if isinstance(targeted.score, str) and SCORES[targeted.score].final is not None:
        targeted.protect(batches(name, 2))
    return targeted


def train(targeted, optimizer, x, y, credit=None, backward=True) -> None:
    optimizer.zero_grad()
    if credit is None:
        loss = F.cross_entropy(targeted(x), y)
    else:
        with credit:
            out = targeted(x)
        loss = attrain.rewards.softmax(out, y)
    loss.backward()
    optimizer.step()
    targeted.step(optimizer)


def same(model: nn.Module, other: nn.Module, **tolerances) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda told, name=name: f"{name}: {told}",
                                   **({"rtol": 0, "atol": 1e-12} | tolerances))  # fmt: skip


# Against the twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", INPUT_GRADIENTS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_equals_dense_training_with_masks(name, kind, gradient):
    model = made(name)
    make, options = OPTIMIZERS[kind]
    twin = slow.Twin(
        copy.deepcopy(model), TARGETED[name], NORMS[name],
        kind if "adam" in kind else "sgd", gradient == "selected", **options,
    )  # fmt: skip
    targeted = Targeted(model, 0.4, "random", refresh=2, warmup=2, input_gradient=gradient)
    optimizer = make(targeted.parameters(), **options)
    for x, y in batches(name):
        train(targeted, optimizer, x, y)
        twin.step(x, y)
        if targeted.steps >= 2:
            twin.choose(targeted.selection())
        same(model, twin.model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("score", SCORES)
def test_scores_are_what_they_are_said_to_be(score, name):
    model = made(name).eval()  # so that a BatchNorm is the same in each pass
    targeted = protected(Targeted(model, 0.4, score, refresh=3, warmup=2, memory=0.0), name)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    targeted.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    old = copy.deepcopy(model).requires_grad_()
    for x, y in batches(name, 2):
        before = copy.deepcopy(model).requires_grad_()
        train(targeted, optimizer, x, y)
    rule = SCORES[score]
    for layer, norm in ((each, NORMS[name].get(each)) for each in TARGETED[name]):
        rows = targeted.selection()[layer]
        if rule.drawn:
            continue
        own = before if rule.needs == "training" else copy.deepcopy(model).requires_grad_()
        z, out = slow.values(own, layer, norm, x)
        if rule.needs == "training":
            (s,) = torch.autograd.grad(F.cross_entropy(out, y), z)
            wanted = torch.tensor(slow.score(score, z, s), dtype=torch.float64)
        elif score == "relevance":
            (s,) = torch.autograd.grad(out.gather(1, y[:, None]).sum(), z)
            wanted = torch.tensor(slow.score(score, z, s), dtype=torch.float64)
        elif score == "flow":
            graph = attrain.AttributionGraph.from_batch(model, x, y, epsilon=0.0)
            wanted = graph.relevance[layer].abs()
        if rule.final is not None:
            needed = torch.zeros(len(model.get_submodule(layer).weight), dtype=torch.float64)
            for data, labels in batches(name, 2):
                z, out = slow.values(old, layer, norm, data)
                (s,) = torch.autograd.grad(out.gather(1, labels[:, None]).sum(), z)
                needed += torch.tensor(slow.score("relevance", z, s)) / 2
            if score == "ratio":
                found = targeted.scores()[layer]
                torch.testing.assert_close(found, wanted)
                wanted = wanted / (needed + 0.05 * needed.mean())
            else:
                wanted = -needed
        else:
            torch.testing.assert_close(targeted.scores()[layer], wanted)
        assert rows.tolist() == slow.top(wanted.tolist(), len(rows))


def test_scores_remember_the_past():
    new = []

    def told(units: Units) -> Tensor:
        if units.name == "fc0":
            new.append((units.z * units.s).abs().sum(2).mean(0))
        return (units.z * units.s).abs().sum(2).mean(0)

    targeted = Targeted(made(), 0.5, told, refresh=2, warmup=1, memory=0.75)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for x, y in batches(number=5):
        train(targeted, optimizer, x, y)
    wanted = new[0]
    for each in new[1:]:
        wanted = 0.75 * wanted + 0.25 * each
    assert len(new) == 3
    torch.testing.assert_close(targeted.scores()["fc0"], wanted)


# Properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_at_density_one_training_is_ordinary(name, kind, score):
    model, dense = made(name), made(name)
    make, options = OPTIMIZERS[kind]
    targeted = protected(Targeted(model, 1.0, score, refresh=2, warmup=2), name)
    optimizers = make(targeted.parameters(), **options), make(dense.parameters(), **options)
    for x, y in batches(name, 6):
        train(targeted, optimizers[0], x, y)
        optimizers[1].zero_grad()
        F.cross_entropy(dense(x), y).backward()
        optimizers[1].step()
        same(model, dense)


@settings(max_examples=20, deadline=None)
@given(
    score=st.sampled_from(list(SCORES)),
    density=st.floats(0.01, 1.0),
    exploration=st.floats(0.0, 0.99),
    refresh=st.integers(1, 4),
    warmup=st.integers(0, 3),
    gradient=st.sampled_from(INPUT_GRADIENTS),
    kind=st.sampled_from(list(OPTIMIZERS)),
)
def test_rows_that_are_not_selected_never_change(
    score, density, exploration, refresh, warmup, gradient, kind
):
    model = made()
    targeted = protected(
        Targeted(
            model, density, score, refresh=refresh, warmup=warmup, exploration=exploration,
            input_gradient=gradient,
        )
    )  # fmt: skip
    make, options = OPTIMIZERS[kind]
    optimizer = make(targeted.parameters(), **options)
    for x, y in batches(number=5):
        rows, before = targeted.selection(), copy.deepcopy(model.state_dict())
        train(targeted, optimizer, x, y)
        for layer, chosen in rows.items():
            rest = torch.ones(len(before[f"{layer}.weight"]), dtype=torch.bool)
            rest[chosen] = False
            for kind_ in ("weight", "bias"):
                now = model.state_dict()[f"{layer}.{kind_}"]
                assert torch.equal(now[rest], before[f"{layer}.{kind_}"][rest])


@settings(max_examples=15, deadline=None)
@given(
    score=st.sampled_from([name for name, each in SCORES.items() if not each.drawn]),
    seed=st.integers(0, 100),
)
def test_the_order_of_units_does_not_matter(score, seed):
    model, order = made(), torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = copy.deepcopy(model)
    moved.fc0.weight.data = model.fc0.weight.data[order]
    moved.fc0.bias.data = model.fc0.bias.data[order]
    moved.fc1.weight.data = model.fc1.weight.data[:, order]
    pair = [protected(Targeted(each, 0.4, score, refresh=2, warmup=1)) for each in (model, moved)]
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in pair]
    for x, y in batches(number=4):
        for targeted, optimizer in zip(pair, optimizers, strict=True):
            train(targeted, optimizer, x, y)
        torch.testing.assert_close(moved.fc0.weight, model.fc0.weight[order])
        torch.testing.assert_close(moved.fc1.weight, model.fc1.weight[:, order])


@given(units=st.integers(1, 600), density=st.floats(0.001, 1.0), multiple=st.sampled_from([1, 8]))
def test_counts(units, density, multiple):
    k = count(units, density, multiple)
    assert 1 <= k <= units
    if density == 1:
        assert k == units
    elif units >= 2 * multiple:
        assert k % multiple == 0 or multiple == 1
        assert abs(k - density * units) <= max(multiple, 1)
    else:
        assert abs(k - density * units) <= 1


# Layers -------------------------------------------------------------------------------------------

LAYERS = {
    "linear over tokens": (nn.Linear(6, 20), (3, 5, 6)),
    "conv1d": (nn.Conv1d(4, 16, 3, padding="same"), (2, 4, 9)),
    "conv2d, even kernel": (
        nn.Conv2d(3, 16, (2, 4), padding="same", dilation=(1, 2)),
        (2, 3, 7, 8),
    ),
    "conv2d, valid": (nn.Conv2d(3, 16, 3, stride=2, padding="valid", bias=False), (2, 3, 7, 7)),
    "conv2d, one sample": (nn.Conv2d(3, 17, 3, padding=(1, 0)), (3, 6, 6)),
    "conv2d, circular": (nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
    "conv2d, groups": (nn.Conv2d(4, 16, 3, groups=2), (2, 4, 6, 6)),
    "conv2d, depthwise": (nn.Conv2d(16, 16, 3, groups=16), (2, 16, 6, 6)),
    "conv3d": (nn.Conv3d(2, 16, 2), (2, 2, 4, 4, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("gradient", INPUT_GRADIENTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_gradient_of_a_layer_is_that_of_its_rows(kind, gradient):
    layer, shape = copy.deepcopy(LAYERS[kind])
    layer = layer.double()
    model = nn.Sequential(layer)
    targeted = Targeted(model, 0.4, "fixed", warmup=0, dense=(), input_gradient=gradient)
    rows = targeted.selection()["0"]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = targeted(x)
    slopes = torch.randn_like(out)
    out.backward(slopes)
    found, x.grad = x.grad, None
    whole = copy.deepcopy(layer).requires_grad_()
    wanted = whole(x)
    torch.testing.assert_close(out, wanted)
    if gradient == "selected":
        axis = -1 if isinstance(layer, nn.Linear) else out.ndim - layer.weight.ndim + 1
        rest = torch.ones(out.shape[axis], dtype=torch.bool)
        rest[rows] = False
        slopes = slopes.index_fill(axis, rest.nonzero()[:, 0], 0.0)
    wanted.backward(slopes)
    torch.testing.assert_close(found, x.grad)
    torch.testing.assert_close(
        targeted.parts.get_parameter("0/weight").grad, whole.weight.grad[rows]
    )
    if whole.bias is not None:
        torch.testing.assert_close(
            targeted.parts.get_parameter("0/bias").grad, whole.bias.grad[rows]
        )


@pytest.mark.parametrize("score", ["flow", "error", "relevance"])
@pytest.mark.parametrize("credit", [False, True])
def test_a_transformer_trains(score, credit):
    model = build("transformer", torch.float64)
    dense = copy.deepcopy(model)
    targeted = Targeted(model, 1.0, score, refresh=2, warmup=1)
    names = set(targeted.selection())
    assert any("out_proj" in name for name in names) and any("linear1" in name for name in names)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (targeted, dense)]
    rules = [attrain.LFP(each) for each in (model, dense)]
    for step in range(4):
        x, y = batch(step, dtype=torch.float64)
        train(targeted, optimizers[0], x, y, rules[0] if credit else None)
        optimizers[1].zero_grad()
        if credit:
            with rules[1]:
                out = dense(x)
            attrain.rewards.softmax(out, y).backward()
        else:
            F.cross_entropy(dense(x), y).backward()
        optimizers[1].step()
        same(model, dense)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_and_weights_that_are_used_by_hand(cross):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.masked = nn.Linear(8, 8)
            self.out = nn.Linear(8, 4)

        def forward(self, x):
            x, _ = self.attention(x, x.flip(1) if cross else x, x, need_weights=False)
            x = F.linear(x, self.masked.weight * torch.ones(8, 8).tril().to(x), self.masked.bias)
            return self.out(x.mean(1))

    torch.manual_seed(0)
    model = Odd().double()
    dense = copy.deepcopy(model)
    targeted = Targeted(model, 0.5, "fixed", warmup=0)
    rows = targeted.selection()
    assert rows.keys() == {"attention.in_proj", "attention.out_proj", "masked"}
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = torch.randn(3, 5, 8, dtype=torch.float64), torch.arange(3)
    F.cross_entropy(dense(x), y).backward()
    train(targeted, optimizer, x, y)
    for name, weight in dense.named_parameters():
        layer = name.removesuffix("weight").removesuffix("bias")[:-1]
        if layer in rows:
            wanted = weight.detach().clone()
            wanted[rows[layer]] -= 0.1 * weight.grad[rows[layer]]
            torch.testing.assert_close(model.get_parameter(name), wanted)


def test_what_is_not_targeted_says_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 8)
            self.tied = nn.Linear(8, 10, bias=False)
            self.tied.weight = self.words.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(10, 8))
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.one = nn.Linear(8, 1)
            self.good = nn.Linear(1, 8)
            self.other = nn.Linear(8, 8)
            self.out = nn.Linear(8, 2)

    targeted = Targeted(Odd(), dense=["out", "oth*"])
    assert set(targeted.selection()) == {"good"}
    assert targeted.dense == {
        "out": "by name",
        "other": "by name",
        "tied": "it shares its weight with another layer",
        "normed": "its weight is computed from others",
        "frozen": "it does not require grad",
        "one": "it has one unit",
    }


def test_a_batch_norm_seen_behind_two_layers_is_trained_as_ever():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.norm(self.b(self.norm(self.a(x)))))

    model = Shared()
    targeted = Targeted(model, 0.5, "fixed", warmup=0)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    before = model.norm.weight.clone()
    train(targeted, optimizer, torch.randn(6, 4), torch.arange(6) % 2)
    assert (model.norm.weight != before).all()


def test_statistics_of_batch_norm_by_option():
    for statistics, moves in (("update", True), ("freeze", False)):
        model = made("cnn")
        targeted = Targeted(model, 0.5, "random", warmup=1, statistics=statistics)
        before = model.bn1.running_mean.clone()
        targeted.train()
        targeted(batches("cnn")[0][0])
        assert torch.equal(model.bn1.running_mean, before) is not moves


# With the rest of torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"scale": "relative"}, {"rule": "epsilon-plus"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_under_credit_rows_get_the_feedback_of_the_whole(name, options):
    from attrain.rules.presets import PRESETS

    if options.get("rule") == "epsilon-plus":
        options = {"rule": next(iter(PRESETS))}
    model = made(name)
    dense = copy.deepcopy(model)
    targeted = Targeted(model, 0.5, "error", refresh=3, warmup=1)
    rules = attrain.LFP(model, **options), attrain.LFP(dense, **options)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for x, y in batches(name, 3):
        dense.load_state_dict(model.state_dict())
        dense.zero_grad()
        with rules[1]:
            out = dense(x)
        attrain.rewards.softmax(out, y).backward()
        rows = targeted.selection()
        before = copy.deepcopy(model)
        train(targeted, optimizer, x, y, rules[0])
        for layer, chosen in rows.items():
            moved = before.get_submodule(layer).weight - model.get_submodule(layer).weight
            wanted = torch.zeros_like(moved)
            wanted[chosen] = 0.1 * dense.get_submodule(layer).weight.grad[chosen]
            torch.testing.assert_close(moved, wanted)


def test_parts_of_a_batch_equal_the_whole():
    results = []
    for parts in (1, 2):
        model = made()
        targeted = Targeted(model, 0.5, "error", refresh=2, warmup=2)
        optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
        for x, y in batches(samples=6):
            optimizer.zero_grad()
            for each, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(targeted(each), labels) / parts).backward()
            optimizer.step()
            targeted.step(optimizer)
        results.append(model)
    same(*results)


@pytest.mark.parametrize("gradient", INPUT_GRADIENTS)
@pytest.mark.parametrize("name", MODELS)
def test_autocast_and_a_scaler(name, gradient):
    model = made(name).float()
    copied = copy.deepcopy(model)
    targeted = Targeted(model, 0.5, "error", refresh=2, warmup=1, input_gradient=gradient)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    whole = Targeted(copied, 0.5, "error", refresh=2, warmup=1,
                     input_gradient=gradient)  # fmt: skip
    other = torch.optim.SGD(whole.parameters(), lr=0.05)
    for x, y in batches(name, 4, samples=16):
        x = x.float()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = targeted(x)
        assert out.dtype == torch.bfloat16
        scaler.scale(F.cross_entropy(out.float(), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        targeted.step(optimizer)
        train(whole, other, x, y)
    assert all(each.dtype == torch.float32 for each in targeted.parameters())
    agree = [
        len(set(rows.tolist()) & set(whole.selection()[layer].tolist())) / len(rows)
        for layer, rows in targeted.selection().items()
    ]
    assert min(agree) >= 0.5


def test_scores_that_overflow_put_off_the_choice():
    targeted = Targeted(made(), 0.5, "error", refresh=10, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.0)
    (x, y), *_ = batches()
    for factor, chosen in ((math.inf, 12), (1.0, 6)):
        optimizer.zero_grad()
        (factor * F.cross_entropy(targeted(x), y)).backward()
        if factor == 1.0:
            optimizer.step()
        targeted.step(optimizer)
        assert len(targeted.selection()["fc0"]) == chosen


@pytest.mark.parametrize("score", ["flow", "error", "random", "ratio"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_checkpoint_resumes_exactly(score, stop, tmp_path):
    def start():
        targeted = Targeted(made("cnn"), 0.4, score, refresh=2, warmup=2, exploration=0.2)
        return targeted, torch.optim.Adam(targeted.parameters(), lr=0.01)

    targeted, optimizer = start()
    protected(targeted, "cnn")
    again, other = start()
    for step, (x, y) in enumerate(batches("cnn")):
        if step == stop:
            torch.save([targeted.state_dict(), optimizer.state_dict()], tmp_path / "it.pt")
            states = torch.load(tmp_path / "it.pt", weights_only=True)
            other.load_state_dict(states[1])  # in either order
            again.load_state_dict(states[0])
        train(targeted, optimizer, x, y)
        if step >= stop:
            train(again, other, x, y)
            same(targeted.model, again.model, atol=0)
            for layer, rows in targeted.selection().items():
                assert torch.equal(rows, again.selection()[layer])


def test_the_state_of_the_model_is_its_own():
    plain, model = made("cnn"), made("cnn")
    targeted = Targeted(model, 0.5, "error", warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for x, y in batches("cnn", 3):
        train(targeted, optimizer, x, y)
        assert model.state_dict().keys() == plain.state_dict().keys()
        plain.load_state_dict(model.state_dict())
        targeted.eval(), plain.eval()
        with torch.no_grad():
            torch.testing.assert_close(targeted(x), plain(x))
        targeted.train()


def test_a_copy_goes_its_own_way():
    targeted = Targeted(made(), 0.5, "error", refresh=2, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    data = batches()
    for x, y in data[:2]:
        train(targeted, optimizer, x, y)
    other = copy.deepcopy(targeted)
    before = copy.deepcopy(targeted.model)
    second = torch.optim.SGD(other.parameters(), lr=0.1)
    for x, y in data[2:]:
        train(other, second, x, y)
    same(targeted.model, before, atol=0)
    for x, y in data[2:]:
        train(targeted, optimizer, x, y)
    same(targeted.model, other.model, atol=0)


def test_release_lets_all_weights_learn():
    model = made("cnn")
    targeted = Targeted(model, 0.5, "error", warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for x, y in batches("cnn", 2):
        train(targeted, optimizer, x, y)
    with pytest.raises(InputError, match=r"require grad again after its release\(\)"):
        Targeted(model)
    assert targeted.release() is model
    assert all(each.requires_grad for each in model.parameters())
    assert len(Targeted(model).selection()) == 3


def test_float_and_back():
    targeted = Targeted(made(), 0.5, "random", warmup=0).float()
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = batches()[0]
    train(targeted, optimizer, x.float(), y)
    late = Targeted(made(), 0.5, "error", warmup=2).float()
    optimizer = torch.optim.SGD(late.parameters(), lr=0.1)
    for _ in range(3):
        train(late, optimizer, x.float(), y)
    assert all(each.dtype == torch.float32 for each in late.parameters())


def test_schedulers_and_clipping():
    targeted = Targeted(made(), 0.5, "error", refresh=2, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.0)
    for index, (x, y) in enumerate(batches(number=3)):
        before = copy.deepcopy(targeted.model)
        optimizer.zero_grad()
        F.cross_entropy(targeted(x), y).backward()
        torch.nn.utils.clip_grad_norm_(targeted.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        targeted.step(optimizer)
        if index:
            same(targeted.model, before, atol=0)


def test_lightning_fabric():
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    targeted = Targeted(made(), 0.5, "flow", refresh=2, warmup=1)
    model, optimizer = fabric.setup(targeted, torch.optim.SGD(targeted.parameters(), lr=0.1))
    for x, y in batches(number=3):
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        targeted.step(optimizer)
    assert len(targeted.selection()["fc0"]) == 6


def test_a_loss_that_is_still_held_does_not_matter():
    """Its graph keeps the nodes that gather gradients, whose shape was another."""
    targeted = Targeted(made(), 0.5, "error", refresh=1, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    held = []
    for x, y in batches(number=3):
        loss = F.cross_entropy(targeted(x), y)
        held.append(loss)
        loss.backward()
        optimizer.step()
        targeted.step(optimizer)


# Two processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    targeted_worker.run(folder)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("two targeted processes")  # all cases are trained at once, by one worker
@pytest.mark.parametrize("case", targeted_worker.cases(), ids=str)
def test_two_processes_equal_one(case: targeted_worker.Case, processes: Path) -> None:
    wanted = targeted_worker.train(case, 0, world=1)
    for rank in range(2):
        found = load_file(processes / f"{case}.{rank}.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, msg=lambda told, name=name: name + told)


# Tokens, outputs of other forms -------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.hidden = nn.Embedding(20, 6), nn.Linear(6, 16)
        self.out = nn.Linear(16, 20)

    def forward(self, tokens, labels=None):
        logits = self.out(torch.relu(self.hidden(self.words(tokens))))
        if labels is None:
            return logits
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@pytest.mark.parametrize("score", SCORES)
def test_models_that_return_their_loss(score):
    torch.manual_seed(0)
    model = Reader()
    targeted = Targeted(model, 0.25, score, refresh=2, warmup=1, classes=-1)
    tokens = torch.randint(20, (3, 7))
    if SCORES[score].final is not None:
        targeted.protect([tokens])
    optimizer = torch.optim.AdamW(targeted.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        targeted(tokens, labels=tokens)["loss"].backward()
        optimizer.step()
        targeted.step(optimizer)
    assert len(targeted.selection()["hidden"]) == 4


def test_regression():
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    targeted = Targeted(model, 0.25, "flow", refresh=2, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        targeted(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        targeted.step(optimizer)
    assert len(targeted.selection()["0"]) == 4


# What is told -------------------------------------------------------------------------------------


def test_what_it_tells():
    seen: list[Refresh] = []
    model = made()
    targeted = Targeted(model, 0.5, "error", refresh=2, warmup=3, on_refresh=seen.append)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1, momentum=0.9)
    data = batches()
    for x, y in data[:2]:
        train(targeted, optimizer, x, y)
    assert targeted.trained_share() == 1.0
    assert len(targeted.selection()["fc0"]) == 12
    whole = targeted.optimizer_bytes(optimizer)
    assert whole == 8 * sum(each.numel() for each in model.parameters())
    for x, y in data[2:]:
        train(targeted, optimizer, x, y)
    assert [each.step for each in seen] == [3, 5, 7, 9]
    assert seen[0].kept == {"fc0": 1.0, "fc1": 1.0}
    learning = 6 * 7 + 4 * 13 + 36
    assert targeted.trained_share() == learning / (12 * 7 + 8 * 13 + 36)
    assert targeted.optimizer_bytes(optimizer) == 8 * learning
    assert seen[-1].rows.keys() == seen[-1].scores.keys() == {"fc0", "fc1"}
    assert torch.equal(seen[-1].rows["fc0"], targeted.selection()["fc0"])
    assert "density=0.5, score='error', layers=2" in repr(targeted)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"density": 0.0}, "density=0.0 is the share of units whose rows learn: it lies in (0, 1]"),
        ({"density": 1.5}, "density=1.5"),
        ({"refresh": 0}, "refresh must be an integer >= 1, got 0"),
        ({"warmup": -1}, "warmup must be an integer >= 0, got -1"),
        ({"exploration": 1.0}, "exploration=1.0 is the share of rows that are chosen by chance"),
        ({"memory": 1.0}, "memory=1.0 is the share of earlier refreshes"),
        ({"seed": "a"}, "seed must be an integer"),
        ({"score": "flo"}, "unknown score 'flo'. Did you mean 'flow'?"),
        ({"score": 3}, "score is a name or a function of a layer's units, got int"),
        ({"input_gradient": "half"}, "unknown input_gradient 'half'"),
        ({"statistics": "keep"}, "unknown statistics 'keep'"),
        ({"dense": "fc7"}, "dense='fc7' fits no module of the model"),
        ({"dense": "*"}, "the model has no layer that can be targeted"),
    ],
    ids=str,
)
def test_options_out_of_range(options, told):
    with pytest.raises(InputError, match=re.escape(told)):
        Targeted(made(), **options)


def test_models_that_cannot_be_targeted():
    for model, told in (
        (3, "model must be a torch.nn.Module, got int"),
        (nn.LazyLinear(3), "'weight' of the model has no shape yet: run the lazy model once"),
        (nn.Linear(3, 3, device="meta"), "'weight' of the model is on the meta device"),
        (nn.Sequential(nn.Linear(3, 3)), "no layer that can be targeted.*'0' \\(output layer\\)"),
        (nn.ReLU(), "it has neither"),
    ):
        with pytest.raises(InputError, match=told):
            Targeted(model)


def test_the_optimizer_of_other_parameters():
    targeted = Targeted(made(), warmup=1)
    optimizer = torch.optim.SGD(targeted.model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"lacks 4 of the parameters.*build it on targeted.param"):
        targeted.step(optimizer)
    with pytest.raises(InputError, match="step takes the optimizer"):
        targeted.step()
    with pytest.raises(InputError, match="step takes a torch.optim.Optimizer, got int"):
        targeted.step(3)


def test_weights_changed_by_somebody_else():
    for change, told in (
        (lambda model: model.load_state_dict(made(seed=1).state_dict()), "was changed after its"),
        (lambda model: setattr(model.fc0, "weight", nn.Parameter(torch.ones(12, 6))), "another w"),
    ):
        model = made()
        targeted = Targeted(model, 0.5, "random", warmup=0)
        change(model)
        with pytest.raises(InputError, match=told):
            targeted(batches()[0][0])


@pytest.mark.parametrize("score", ["error", "flow"])
def test_a_step_without_a_pass(score):
    targeted = Targeted(made(), score=score, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = batches()[0]
    F.cross_entropy(targeted.model(x), y).backward()
    with pytest.raises(
        InputError, match="no pass through Targeted was seen before it, so that no row"
    ):
        targeted.step(optimizer)


def test_modes_of_modules_stay_as_they_are():
    model = made("cnn")
    model.bn1.eval()
    targeted = Targeted(model)
    assert targeted.training and model.training and not model.bn1.training
    assert not Targeted(made("cnn"), statistics="freeze").model.bn1.training


def test_scores_of_the_wrong_shape():
    targeted = Targeted(made(), score=lambda units: units.z.sum(), warmup=1)
    x, y = batches()[0]
    with pytest.raises(InputError, match=r"returned \[\] for layer 'fc1', and one number per unit"):
        F.cross_entropy(targeted(x), y).backward()


def test_an_old_task_that_is_missing():
    for score in ("ratio", "low_relevance"):
        targeted = Targeted(made(), score=score, warmup=1)
        with pytest.raises(InputError, match="call targeted.protect with batches of it"):
            targeted(batches()[0][0])
        with pytest.raises(InputError, match="protect got no batches"):
            targeted.protect([])


def test_the_output_layer_that_is_registered_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(8, 3), nn.Linear(4, 8)

        def forward(self, x):
            return self.head(torch.relu(self.body(x)))

    told = r"ends with layer 'head', and 'body', .* name it, dense=\['head'\]"
    with pytest.raises(InputError, match=told):
        Targeted(Backwards())(torch.randn(2, 4))
    Targeted(Backwards(), dense=["head"])(torch.randn(2, 4))


def test_a_credit_context_around_the_step():
    model = made()
    targeted = Targeted(model, 0.5, "flow", warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    with attrain.LFP(model), pytest.raises(InputError, match="leave it before this call"):
        train(targeted, optimizer, *batches()[0])


def test_a_checkpoint_of_another_density():
    targeted, other = (Targeted(made(), d, "random", warmup=0) for d in (0.5, 0.25))
    with pytest.raises(RuntimeError, match="6 rows of layer 'fc0' learn in the checkpoint, and"):
        other.load_state_dict(targeted.state_dict())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_targeted_layer_in_a_checkpoint_is_refused_and_a_dense_one_learns(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.first(x))
            return self.out(checkpoint(self.inner, h, use_reentrant=reentrant))

    x = torch.randn(5, 6)
    targeted = attrain.Targeted(Checkpointed(), score="error")
    with pytest.raises(
        InputError, match="layer 'inner' is called in an activation checkpoint, and"
    ):
        targeted(x)
    targeted = attrain.Targeted(Checkpointed(), score="error", dense=["inner", "out"])
    targeted(x).sum().backward()
    assert targeted.model.inner.weight.grad is not None
