"""attrain.attribute against slow twins, captum's own calls, exact values, and mistakes."""

import itertools
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import small_models
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    Activation,
    Array,
    Chain,
    Decomposed,
    Flatten,
    Residual,
    array,
    decomposed_twin,
    messages,
    twin,
)
from safetensors.torch import load_file
from test_credit import TOPOLOGIES, keep, prepared
from torch import Tensor, nn
from zoo import ZOO

import attrain
from attrain import attribute, cli, config, marks, rules
from attrain.attribution import METHODS, grid, saliency, superpixels, words
from attrain.attribution.function import seed_of
from attrain.errors import AttributionWarning, CreditError, CreditWarning, InputError
from attrain.models import seeded
from attrain.report.attributions import Explanation, render, write_page
from attrain.trained import open_model

CLASSES = 4


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        yield


def close(found: Tensor | Array, wanted: Tensor | Array, tolerance: float = 1e-10) -> bool:
    """Whether two arrays agree to `tolerance` of the largest value."""
    found, wanted = (torch.as_tensor(each).detach().double() for each in (found, wanted))
    scale = max(1.0, float(wanted.abs().max()))
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance * scale)


def small_cnn() -> nn.Module:
    """Return a network of modules alone, each used once, without a pool of winners."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES),
    ).double().eval()  # fmt: skip


def images(samples: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, 8, 8, dtype=torch.float64, generator=generator)


class Tokens(nn.Module):
    """A classifier of token ids: embedding, one layer over the mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.mix = nn.Linear(5, 6)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.act(self.mix(self.embed(ids)))
        if mask is not None:
            h = h * mask[..., None]
        return self.head(h.mean(1))


def tokens() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Tokens().double().eval(), torch.randint(0, 11, (3, 4))


OPTIONS: dict[str, dict[str, Any]] = {
    "deep_shap": {"baselines": images(3, seed=5)},
    "lime": {"n_samples": 150, "alpha": 1e-3},
    "kernel_shap": {"n_samples": 150},
    "smoothgrad": {"n_samples": 4},
    "gradient_shap": {"n_samples": 6},
}
each_method = pytest.mark.parametrize("method", METHODS)


def options_of(method: str) -> dict[str, Any]:
    return dict(OPTIONS.get(method, {}))


# LRP against its twin -----------------------------------------------------------------------------


def seen_by(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[nn.Module, Any]]:
    seen: dict[nn.Module, Any] = {}
    hooks = [module.register_forward_hook(partial(keep, seen)) for module in model.modules()]
    with torch.no_grad():
        out = model(x)
    for hook in hooks:
        hook.remove()
    return out, seen


def reward_of(out: Tensor, target: Tensor) -> Array:
    """Return the reward of the explained outputs: their values, and nothing for all others."""
    r = np.zeros(out.shape)
    for n, c in enumerate(target.tolist()):
        r[n, c] = float(out[n, c])
    return r


@pytest.mark.parametrize("epsilon", [1e-6, 0.0, 0.01])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_lrp_equals_its_twin(topology: str, epsilon: float) -> None:
    model = prepared(topology).eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    target = torch.tensor([1, 3])
    out, seen = seen_by(model, x)
    reference = twin(model, epsilon, F.relu, seen)
    reference.forward(array(x))
    wanted = reference.backward(reward_of(out, target))
    found, error = attribute(model, x, target, epsilon=epsilon, return_error=True)
    assert close(found, wanted)
    explained = out[range(2), target]
    assert close(error, wanted.reshape(2, -1).sum(1) - array(explained))


def random_network(draw: Any) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return a random chain of layers in float64, and the shape of its inputs."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        channels, side = draw(st.sampled_from([2, 4])), 6
        shape: tuple[int, ...] = (2, channels, side, side)
        for _ in range(draw(st.integers(1, 2))):
            groups = draw(st.sampled_from([1, 2]))
            stride = draw(st.sampled_from([1, 2]))
            dilation = draw(st.sampled_from([1, 2]))
            bias = draw(st.booleans())
            layers.append(
                nn.Conv2d(channels, 4, 3, stride, dilation, dilation, groups, bias)
            )  # fmt: skip
            channels = 4
            if draw(st.booleans()):
                layers.append(nn.BatchNorm2d(4))
            layers.append(nn.ReLU())
        layers.append(nn.Flatten())
    else:
        shape = (2, draw(st.integers(1, 5)))
    width = nn.Sequential(*layers).eval()(torch.zeros(shape)).shape[1]
    for _ in range(draw(st.integers(0, 2))):
        layers += [nn.Linear(width, 5, bias=draw(st.booleans())), nn.ReLU()]
        width = 5
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES)).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, shape


@st.composite
def networks(draw: Any) -> tuple[nn.Sequential, tuple[int, ...]]:
    return random_network(draw)


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([1e-6, 1e-3]))
def test_lrp_of_random_networks_equals_its_twin(
    network: tuple[nn.Sequential, tuple[int, ...]], epsilon: float
) -> None:
    model, shape = network
    x, target = torch.randn(shape, dtype=torch.float64), torch.tensor([0, 3])
    out, seen = seen_by(model, x)
    reference = twin(model, epsilon, F.relu, seen)
    reference.forward(array(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)  # a network may be dead
        found = attribute(model, x, target, epsilon=epsilon)
    assert close(found, reference.backward(reward_of(out, target)))


def first_rewards(layer: Decomposed, r: Array, epsilon: float) -> Array:
    """Return r_i of the inputs of a first layer, whether they are 0 or not."""
    r_in = np.zeros_like(layer.a)
    for out, connections in layer.found.items():
        products = [(layer.w[at], layer.a[here]) for here, at in connections]
        bounds = [layer.bounds(out[0])] * len(products)
        if layer.b is not None:
            products.append((layer.b[layer.bias_of(out)], 1.0))
            bounds.append((1.0, 1.0))
        parts = messages(layer.rule, products, bounds, r[out], epsilon)
        for (here, _), part in zip(connections, parts, strict=False):
            r_in[here] += part
    return r_in


def rule_by_preset(preset: str, name: str) -> rules.Decomposition:
    convolution = {"plus": rules.ZPlus(), "alpha2": rules.AlphaBeta(), "gamma": rules.Gamma()}
    first = {"flat": rules.Flat(), "box": rules.Box()}.get(preset.split("-")[-1])
    if name == "0" and first is not None:
        return first
    return convolution[preset.split("-")[1]] if name in "02" else rules.Epsilon()


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_presets_equal_their_twin_with_inputs_of_zero(preset: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 3, dilation=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(12, CLASSES),
    ).double()  # fmt: skip
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    x[:, :, :3] = 0.0
    target = torch.tensor([1, 2])
    out, seen = seen_by(model, x)
    reference = decomposed_twin(
        model, partial(rule_by_preset, preset), 1e-6, "rule", F.relu, seen
    )  # fmt: skip
    assert isinstance(reference, Chain)
    reference.forward(array(x))
    r = reward_of(out, target)
    for _, layer in reversed([*reference.layers.items()][1:]):
        r = layer.backward(r)
    first = reference.layers["0"]
    assert isinstance(first, Decomposed)
    wanted = first_rewards(first, r, 1e-6)
    found = attribute(model, x, target, rule=preset)
    # In these rules r = c (a + sign(a) epsilon), whose rounding is that of a small ratio.
    assert close(found, wanted, 1e-9 if preset.endswith(("flat", "box")) else 1e-10)
    if preset.endswith(("flat", "box")):
        assert found[:, :, :2].abs().max() > 0


class Skipped(nn.Module):
    """A convolution, and a block around which its input skips, all of it normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)
        self.bn1, self.conv2, self.bn2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.down, self.head = nn.Conv2d(4, 4, 1), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        stem = F.relu(self.bn0(self.stem(x)))
        block = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(stem)))))
        return self.head(F.relu(block + self.down(stem)).flatten(1))


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_presets_equal_their_twin_through_batch_norm_and_a_skip(preset: str) -> None:
    torch.manual_seed(5)
    model = Skipped().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    x, target = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.tensor([1, 2])
    out, seen = seen_by(model, x)
    first = {"flat": rules.Flat(), "box": rules.Box()}.get(preset.split("-")[-1])
    rule = {"plus": rules.ZPlus(), "alpha2": rules.AlphaBeta(), "gamma": rules.Gamma()}[
        preset.split("-")[1]
    ]

    def layer(module: nn.Module, rule: Any = rule) -> Decomposed:
        return Decomposed(module, rule, 1e-6, "rule", seen[module])

    def plain(*modules: nn.Module) -> list[Any]:
        return [twin(module, 1e-6, F.relu, seen) for module in modules]

    stem = layer(model.stem, first or rule)
    block = [layer(model.conv1), *plain(model.bn1), Activation(F.relu), layer(model.conv2),
             *plain(model.bn2)]  # fmt: skip
    skip = [layer(model.down)]
    chains = [Chain({str(n): each for n, each in enumerate(parts)}) for parts in (block, skip)]
    above = [*plain(model.bn0), Activation(F.relu), Residual(*chains, F.relu, 1e-6), Flatten(),
             layer(model.head, rules.Epsilon())]  # fmt: skip
    a = stem.forward(array(x))
    for each in above:
        a = each.forward(a)
    r = reward_of(out, target)
    for each in reversed(above):
        r = each.backward(r)
    found = attribute(model, x, target, rule=preset)
    # In the rules of first layers r = c (a + sign(a) epsilon), rounded as a small ratio is.
    assert close(found, first_rewards(stem, r, 1e-6), 1e-9 if first else 1e-10)


def test_flat_gives_black_pixels_their_share_behind_a_reshape() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    x = torch.tensor([[[0.0, 2.0], [0.0, 1.0]]], dtype=torch.float64)
    found, error = attribute(model, x, 1, rules={"1": "flat"}, return_error=True)
    assert close(
        found, torch.full((1, 2, 2), float(model(x)[0, 1].detach()) / 4, dtype=torch.float64)
    )
    assert error.abs().max() < 1e-12


def block_twin(model: Any, x: Array, target: int) -> Array:
    """Return the relevance of x [T, E] under one pre-norm encoder layer and a head, by loops.

    epsilon is 0, so that every share is a plain quotient.
    """
    p = {name: array(value) for name, value in model.named_parameters()}
    tokens, size = x.shape
    heads, width = model.heads, size // model.heads

    def norm(a: Array, name: str) -> tuple[Array, Array]:
        slope = np.zeros_like(a)
        value = np.zeros_like(a)
        for t in range(tokens):
            root = math.sqrt(a[t].var() + 1e-5)
            for e in range(size):
                slope[t, e] = p[f"{name}.weight"][e] / root
                value[t, e] = slope[t, e] * (a[t, e] - a[t].mean()) + p[f"{name}.bias"][e]
        return value, slope

    def linear(a: Array, name: str) -> Array:
        return a @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def linear_back(r: Array, z: Array, a: Array, name: str) -> Array:
        r_in = np.zeros_like(a)
        for t, j in np.ndindex(*z.shape):
            for i in range(a.shape[1]):
                r_in[t, i] += p[f"{name}.weight"][j, i] * a[t, i] / z[t, j] * r[t, j]
        return r_in

    normed, slope1 = norm(x, "norm1")
    q, k, v = (linear(normed, name) for name in ("q", "k", "v"))
    scores, weights, mixed = (
        np.zeros(s) for s in ((heads, tokens, tokens),) * 2 + ((tokens, size),)
    )
    for h in range(heads):
        span = range(h * width, (h + 1) * width)
        for t, s in np.ndindex(tokens, tokens):
            scores[h, t, s] = sum(q[t, d] * k[s, d] for d in span) / math.sqrt(width)
        for t in range(tokens):
            weights[h, t] = np.exp(scores[h, t]) / np.exp(scores[h, t]).sum()
            for d in span:
                mixed[t, d] = sum(weights[h, t, s] * v[s, d] for s in range(tokens))
    attended = linear(mixed, "out")
    middle = x + attended
    normed2, slope2 = norm(middle, "norm2")
    hidden = linear(normed2, "up")
    active = np.maximum(hidden, 0)
    added = linear(active, "down")
    last = middle + added
    mean = last.mean(0)
    out = p["head.weight"] @ mean + p["head.bias"]

    r_mean = np.array([p["head.weight"][target, e] * mean[e] for e in range(size)])
    r_mean = r_mean / out[target] * out[target]
    r_last = np.array([[last[t, e] / tokens / mean[e] * r_mean[e] for e in range(size)]
                       for t in range(tokens)])  # fmt: skip
    r_middle, r_added = middle / last * r_last, added / last * r_last
    r_hidden = linear_back(r_added, added, active, "down")
    r_normed2 = linear_back(r_hidden, hidden, normed2, "up")
    r_middle = r_middle + slope2 * middle / normed2 * r_normed2
    r_x, r_attended = x / middle * r_middle, attended / middle * r_middle
    r_mixed = linear_back(r_attended, attended, mixed, "out")
    r_q, r_k, r_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for h in range(heads):
        span = range(h * width, (h + 1) * width)
        for t in range(tokens):
            of_weights = np.zeros(tokens)
            for s, d in itertools.product(range(tokens), span):
                half = 0.5 * weights[h, t, s] * v[s, d] / mixed[t, d] * r_mixed[t, d]
                r_v[s, d] += half
                of_weights[s] += half
            c = of_weights / weights[h, t]
            common = (weights[h, t] * c).sum()
            for s in range(tokens):
                of_score = weights[h, t, s] * (c[s] - common)
                for d in span:
                    each = 0.5 * of_score * q[t, d] * k[s, d] / math.sqrt(width)
                    r_q[t, d] += each
                    r_k[s, d] += each
    r_normed = sum(
        linear_back(r, z, normed, name)
        for r, z, name in ((r_q, q, "q"), (r_k, k, "k"), (r_v, v, "v"))
    )
    return np.asarray(r_x + slope1 * x / normed * r_normed)


class Encoder(nn.Module):
    """One pre-norm encoder layer and a head over the mean of the tokens."""

    heads = 2

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, 6), nn.Linear(6, size)
        self.head = nn.Linear(size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        a = self.norm1(x)
        q, k, v = (
            f(a).reshape(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, e)
        x = x + self.out(mixed)
        x = x + self.down(F.relu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


@pytest.mark.parametrize("seed", range(3))
def test_lrp_of_a_transformer_equals_its_twin(seed: int) -> None:
    torch.manual_seed(seed)
    model = Encoder().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    found = attribute(model, x, torch.tensor([1, 2]), epsilon=0.0)
    for n, target in enumerate((1, 2)):
        assert close(found[n], block_twin(model, array(x[n]), target))


@pytest.mark.parametrize("name", ["mlp", "convolutions", "transformer", "loop"])
def test_lrp_is_what_lfp_hands_back_to_the_inputs(name: str) -> None:
    model = small_models.build(name, torch.float64).eval()
    x, y = small_models.batch(0, 5, torch.float64)
    leaf = x.clone().requires_grad_()
    with attrain.LFP(model, epsilon=0.0):
        out = model(leaf)
    out[range(5), y].sum().backward()
    assert close(attribute(model, x, y, epsilon=0.0), leaf.grad * x)


def test_lrp_without_biases_is_conserved_at_every_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 8, bias=False), nn.SiLU(), nn.Linear(8, CLASSES, bias=False),
    ).double()  # fmt: skip
    for layer in (None, *"0123456"):
        found, error = attribute(model, images(), 2, layer=layer, epsilon=0.0, return_error=True)
        assert error.abs().max() < 1e-12
        assert close(found.flatten(1).sum(1), model(images())[:, 2])


@settings(max_examples=25, deadline=None)
@given(networks())
def test_what_lrp_leaks_went_to_the_biases(
    network: tuple[nn.Sequential, tuple[int, ...]],
) -> None:
    model, shape = network
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # the mean that it subtracts is a bias as well
            module.running_mean.zero_()
    x = torch.randn(shape, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        _, error = attribute(model, x, 1, epsilon=0.0, return_error=True)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    with attrain.LFP(model, epsilon=0.0):
        out = model(x)
    out[:, 1].sum().backward()
    # .grad is |b| times the credit, the share is b times it.
    leaked = sum(
        float((each.detach().sign() * each.grad).sum()) for each in biases if each.grad is not None
    )
    assert abs(float(error.sum()) + leaked) <= 1e-8 * max(1.0, abs(leaked))


def of_one_tensor(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model of the zoo as one of [N, ...] to [N, outputs], and its inputs."""
    case = ZOO[name]()
    if case.refused or case.kwargs or len(case.args) != 1 or not isinstance(case.args[0], Tensor):
        pytest.skip("not a model of one tensor that has a rule")
    x = case.args[0].detach()
    if not x.is_floating_point():
        pytest.skip("it takes integers")

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.model

        def forward(self, x: Tensor) -> Tensor:
            return case.output(self.inner(x)).reshape(len(x), -1)

    with torch.no_grad():
        if case.output(case.model(x)).numel() % len(x):
            pytest.skip("its first axis does not count samples")
    return Rows().eval(), x


@pytest.mark.parametrize("name", ZOO)
def test_lrp_of_the_zoo_is_what_lfp_hands_back_to_the_inputs(name: str) -> None:
    model, x = of_one_tensor(name)
    leaf = x.clone().requires_grad_()
    with attrain.LFP(model):
        out = model(leaf)
    o, owed = out[:, 0].detach(), marks.get(out).epsilon
    (credit,) = torch.autograd.grad(out[:, 0], leaf, o.abs() / (o.abs() + owed), allow_unused=True)
    before = state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        found = attribute(model, x, 0)
    assert same(before, state_of(model))
    wanted = torch.zeros_like(x) if credit is None else x * credit
    assert close(found, wanted, 1e-5 if x.dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert", "bert.embeddings.word_embeddings"),
        ("gpt2_gelu_new", "transformer.wte"),
        ("llama", "model.embed_tokens"),
    ],
)
def test_language_models_are_explained_at_their_tokens(name: str, layer: str) -> None:
    case = ZOO[name]()
    ids, *rest = case.args
    target = (0,) * (case.run().ndim - 1)
    for method in ("lrp", "integrated_gradients", "occlusion"):
        found, error = attribute(
            case.model, ids, target, method=method, layer=layer, return_error=True,
            additional_forward_args=tuple(rest) or None,
        )  # fmt: skip
        assert found.shape == (*ids.shape, 16) and found.any()
    assert error.shape == (len(ids),)


# Methods of captum --------------------------------------------------------------------------------


def captums(method: str, model: nn.Module, x: Tensor, y: Tensor, options: Any) -> Tensor:
    """Return what captum's own call gives."""
    from captum import attr
    from captum._utils.models.linear_model import SkLearnLasso

    inputs = x.clone().requires_grad_()
    mask = grid(x.shape).expand(1, *x.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "smoothgrad":
            stdevs = 0.15 * float(x.max() - x.min())
            return attr.NoiseTunnel(attr.Saliency(model)).attribute(
                inputs, nt_samples=options["n_samples"], stdevs=stdevs, target=y
            )
        if method in ("lime", "kernel_shap"):
            lasso = SkLearnLasso(alpha=1e-3)
            lime = attr.Lime(model, interpretable_model=lasso)
            return (lime if method == "lime" else attr.KernelShap(model)).attribute(
                x, target=y, feature_mask=mask, n_samples=options["n_samples"],
                perturbations_per_eval=7,
            )  # fmt: skip
        if method == "occlusion":
            return attr.Occlusion(model).attribute(x, (2, 1, 1), (2, 1, 1), target=y)
        kind = {
            "saliency": attr.Saliency,
            "input_x_gradient": attr.InputXGradient,
            "integrated_gradients": attr.IntegratedGradients,
            "deeplift": attr.DeepLift,
            "deep_shap": attr.DeepLiftShap,
            "gradient_shap": attr.GradientShap,
        }[method]
        if method == "gradient_shap":
            options = {"baselines": torch.zeros_like(x[:1])} | options
        found: Tensor = kind(model).attribute(inputs, target=y, **options)
        return found


@pytest.mark.parametrize("method", [each for each in METHODS if each != "lrp"])
def test_a_method_equals_captums_own_call(method: str) -> None:
    model, x, y = small_cnn(), images(), torch.tensor([0, 3, 1])
    options = options_of(method)
    found = attribute(model, x, y, method=method, seed=7, batch_size=50, **options)
    assert found.shape == x.shape and found.dtype == x.dtype and not found.requires_grad
    if not METHODS[method].drawn:
        # captum multiplies its masks in single precision.
        tolerance = 1e-6 if method == "occlusion" else 1e-10
        assert close(found, captums(method, model, x, y, options), tolerance)
        return
    for n in range(len(x)):
        before = np.random.get_state()
        with seeded(seed_of(7, n)):
            np.random.seed(seed_of(7, n))
            wanted = captums(method, model, x[n : n + 1], y[n : n + 1], options)
        np.random.set_state(before)
        assert close(found[n : n + 1], wanted, 1e-6 if METHODS[method].masked else 1e-10)


def test_layers_of_integrated_gradients_and_its_kin_equal_captums() -> None:
    from captum import attr

    model, x, y = small_cnn(), images(), torch.tensor([0, 3, 1])
    base = images(1, seed=9)
    wanted = attr.LayerIntegratedGradients(model, model[1]).attribute(
        x, baselines=base, target=y, n_steps=20
    )
    found = attribute(
        model, x, y, method="integrated_gradients", layer="1", baselines=base, n_steps=20
    )
    assert close(found, wanted)
    wanted = attr.LayerGradientXActivation(model, model[3]).attribute(x, target=y)
    assert close(attribute(model, x, y, method="input_x_gradient", layer=model[3]), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = attr.LayerDeepLift(model, model[1]).attribute(x, base, target=y)
    assert close(attribute(model, x, y, method="deeplift", layer="1", baselines=base), wanted)


def completeness(model: nn.Module, x: Tensor, y: Tensor, values: Tensor, base: Tensor) -> Tensor:
    """Return the error by its definition, one sample at a time."""
    errors = []
    for n in range(len(x)):
        change = model(x[n : n + 1])[0, y[n]] - np.mean(
            [float(model(each[None])[0, y[n]].detach()) for each in base]
        )
        errors.append(float(values[n].sum()) - float(change.detach()))
    return torch.tensor(errors, dtype=torch.float64)


@each_method
def test_the_completeness_error_is_what_direct_evaluation_gives(method: str) -> None:
    model, x, y = small_cnn(), images(), torch.tensor([0, 3, 1])
    options = options_of(method)
    base = images(3, seed=5) if METHODS[method].baselines == "many" else images(1, seed=5)
    if METHODS[method].baselines != "none":
        options["baselines"] = base
    else:
        base = torch.zeros_like(x[:1])
    values, error = attribute(
        model, x, y, method=method, return_error=True, seed=0, batch_size=7, **options
    )
    wanted = completeness(model, x, y, values, base)
    if method == "lrp":
        wanted = values.flatten(1).sum(1) - model(x)[range(3), y]
    elif METHODS[method].masked:
        cells = torch.stack([each[0].flatten() for each in values])  # a cell is one pixel here
        wanted = wanted + cells.sum(1) - values.flatten(1).sum(1)
    assert error.shape == (3,) and close(error, wanted, 1e-9)


@pytest.mark.parametrize("method", ["deeplift", "integrated_gradients", "kernel_shap"])
def test_complete_methods_add_up(method: str) -> None:
    model, x, y = small_cnn(), images(), torch.tensor([0, 3, 1])
    options = options_of(method) | ({"n_steps": 300} if method == "integrated_gradients" else {})
    _, error = attribute(model, x, y, method=method, return_error=True, seed=0, **options)
    assert error.abs().max() < 2e-3 * float(model(x).detach().abs().max())


def shapley(value: Callable[[tuple[bool, ...]], float], players: int) -> list[float]:
    """Return the exact Shapley values, by summing over all coalitions."""
    worth = {each: value(each) for each in itertools.product((False, True), repeat=players)}
    found = []
    for i in range(players):
        total = 0.0
        for coalition, without in worth.items():
            if coalition[i]:
                continue
            joined = (*coalition[:i], True, *coalition[i + 1 :])
            s = sum(coalition)
            weight = math.factorial(s) * math.factorial(players - s - 1) / math.factorial(players)
            total += weight * (worth[joined] - without)
        found.append(total)
    return found


def test_kernel_shap_agrees_with_exact_shapley_values_on_ten_features() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(1, 10, dtype=torch.float64)
    base = torch.randn(1, 10, dtype=torch.float64)

    def value(kept: tuple[bool, ...]) -> float:
        return float(model(torch.where(torch.tensor(kept), x, base)).detach())

    exact = torch.tensor(shapley(value, 10), dtype=torch.float64)
    found = attribute(
        model, x, method="kernel_shap", baselines=base, n_samples=8000, batch_size=4000, seed=0
    )[0]
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()
    assert abs(float(found.sum() - exact.sum())) < 1e-4


# Batches, chunks, seeds ---------------------------------------------------------------------------


@each_method
def test_chunks_change_nothing(method: str) -> None:
    model, x, y = small_cnn(), images(5), torch.tensor([0, 3, 1, 1, 2])
    options = options_of(method)
    whole = attribute(model, x, y, method=method, seed=3, **options)
    for batch_size in (7, 60):
        parts = attribute(model, x, y, method=method, seed=3, batch_size=batch_size, **options)
        assert close(parts, whole, 1e-9)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([name for name, each in METHODS.items() if not each.drawn]),
    st.sampled_from([None, "0", "1", "4", "6"]),
    st.permutations(range(4)),
)
def test_samples_do_not_see_each_other(method: str, layer: str | None, order: list[int]) -> None:
    model, x, y = small_cnn(), images(4), torch.tensor([0, 3, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        together = attribute(model, x, y, method=method, layer=layer, **options_of(method))
        moved = attribute(
            model, x[order], y[order], method=method, layer=layer, **options_of(method)
        )
        alone = attribute(model, x[2:3], y[2:3], method=method, layer=layer, **options_of(method))
    assert close(moved, together[order]) and close(alone, together[2:3])


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.drawn])
def test_a_seed_means_one_result_and_leaves_the_random_state(method: str) -> None:
    model, x = small_cnn(), images(2)
    options = options_of(method)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    first = attribute(model, x, 1, method=method, seed=5, **options)
    assert torch.equal(torch.rand(3), expected[0]) and np.random.rand() == expected[1]
    assert torch.equal(first, attribute(model, x, 1, method=method, seed=5, **options))
    assert not torch.equal(first, attribute(model, x, 1, method=method, seed=6, **options))
    drawn = [
        attribute(model, x, 1, method=method, generator=torch.Generator().manual_seed(s), **options)
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(9)
    free = attribute(model, x, 1, method=method, **options)
    torch.manual_seed(9)
    assert torch.equal(free, attribute(model, x, 1, method=method, **options))


def test_no_more_rows_than_asked_for_go_through_the_model() -> None:
    rows: list[int] = []
    model, x = small_cnn(), images(9)
    model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    for method in METHODS:
        if method == "deep_shap":
            continue
        attribute(model, x, 1, method=method, batch_size=6, seed=0, **options_of(method))
    assert max(rows) <= 6


# Layers, targets, inputs --------------------------------------------------------------------------


@each_method
def test_a_layer_has_one_value_per_unit(method: str) -> None:
    model, x = small_cnn(), images()
    for layer, shape in (("0", (3, 4, 8, 8)), ("7", (3, 8))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttributionWarning)
            found = attribute(model, x, 1, method=method, layer=layer, seed=0, **options_of(method))
        assert found.shape == shape
    by_module = attribute(model, x, 1, method=method, layer=model[7], seed=0, **options_of(method))
    assert torch.equal(by_module, found)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("deeplift", "deep_shap")]
)
def test_tokens_are_attributed_to_at_their_embedding(method: str) -> None:
    model, ids = tokens()
    found = attribute(model, ids, 1, method=method, layer="embed", seed=0, **options_of(method))
    assert found.shape == (3, 4, 5)
    if METHODS[method].masked or method == "occlusion":  # a token is one feature
        assert close(found, found[..., :1].expand(3, 4, 5))
        found = attribute(model, ids, 1, method=method, seed=0, **options_of(method))
        assert found.shape == (3, 4)


def test_a_layer_that_returns_a_tuple_has_the_units_of_its_first_output() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(2, 5, 2)
    for method in ("lrp", "input_x_gradient", "occlusion"):
        assert attribute(model, x, 1, method=method, layer="lstm").shape == (2, 5, 3)
        assert attribute(model, x, 1, method=method).shape == x.shape


@pytest.mark.parametrize("name", ["linear1", "self_attn", "norm1"])
def test_layers_inside_torchs_encoder_are_seen(name: str) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(12, CLASSES)).eval()
    x = torch.randn(2, 3, 4)
    for method in ("lrp", "integrated_gradients"):
        found = attribute(model, x, 1, method=method, layer=f"0.{name}")
        assert found.shape[:2] == (2, 3) and found.any()


@each_method
def test_targets_of_every_form_mean_the_same(method: str) -> None:
    model, x = small_cnn(), images(2)
    run = partial(attribute, model, x, method=method, seed=0, **options_of(method))
    wanted = run(target=2)
    numpy = np.int64(2)
    for target in (
        torch.tensor(2), numpy, (2,), (numpy,), torch.tensor([2, 2]), [2, 2], [numpy, numpy],
        [(2,), (2,)],
    ):  # fmt: skip
        assert close(run(target=target), wanted)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).reshape(len(x), 2, 2)

    pairs = partial(attribute, Pairs(), x, method=method, seed=0, **options_of(method))
    assert close(pairs(target=(1, 0)), wanted)
    assert close(pairs(target=[(1, 0), (1, 0)]), wanted)

    class One(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, 2:3]

    assert close(attribute(One(), x, method=method, seed=0, **options_of(method)), wanted)


def test_further_arguments_go_with_their_samples() -> None:
    model, ids = tokens()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).double()
    for method in ("lrp", "integrated_gradients", "kernel_shap", "occlusion", "smoothgrad"):
        options = options_of(method)
        run = partial(
            attribute, model, target=1, method=method, layer="embed", seed=0, **options
        )  # fmt: skip
        whole = run(ids, additional_forward_args=mask)
        assert close(run(ids, additional_forward_args=(mask,), batch_size=40), whole)
        assert not whole[2, 1:].abs().max() > 1e-6  # what the mask hides


def test_superpixels_can_be_given() -> None:
    model, x = small_cnn(), images(2)
    mask = torch.tensor([3, 9]).repeat_interleave(4)[None, None, :, None].expand(1, 1, 8, 8)
    for method in ("lime", "kernel_shap"):
        options = {"alpha": 1e-4} if method == "lime" else {}
        found = attribute(
            model, x, 1, method=method, feature_mask=mask, n_samples=30, seed=0, **options
        )
        assert len(found[0].unique()) == 2
    _, error = attribute(
        model, x, 1, method="kernel_shap", feature_mask=mask, n_samples=30, seed=0,
        return_error=True,
    )  # fmt: skip
    assert error.abs().max() < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_a_grid_numbers_all_its_cells(height: int, width: int, cells: int) -> None:
    mask = grid((3, height, width), cells)
    assert mask.shape == (1, 1, height, width)
    assert mask.unique().tolist() == list(range(min(cells, height) * min(cells, width)))


# Superpixels and words ----------------------------------------------------------------------------


def pieces(segments: Tensor) -> int:
    """Return the number of connected pieces of segments [H, W], by walking from pixel to pixel."""
    seen: set[tuple[int, int]] = set()
    found = 0
    for start in np.ndindex(*segments.shape):
        if start in seen:
            continue
        found += 1
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            if (row, column) in seen:
                continue
            seen.add((row, column))
            for near in (
                (row + 1, column),
                (row - 1, column),
                (row, column + 1),
                (row, column - 1),
            ):
                inside = 0 <= near[0] < segments.shape[0] and 0 <= near[1] < segments.shape[1]
                if inside and segments[near] == segments[row, column]:
                    waiting.append(near)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.floats(0, 10), st.integers(0, 99)
)
def test_superpixels_are_as_many_as_asked_for_and_connected(
    height: int, width: int, segments: int, compactness: float, seed: int
) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = superpixels(x, segments, compactness=compactness)
    assert found.shape == (2, 1, height, width) and found.dtype == torch.long
    for mask in found[:, 0]:
        wanted = min(segments, height * width)
        assert pieces(mask) == wanted and mask.unique().tolist() == list(range(wanted))
        first = [mask.flatten().tolist().index(number) for number in range(wanted)]
        assert first == sorted(first)
    assert torch.equal(found, superpixels(x, segments, compactness=compactness))


def test_superpixels_follow_the_edges() -> None:
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, :, 2:] = 1.0
    x[0, 0, 4:, 2:] = 2.0
    wanted = torch.zeros(6, 6, dtype=torch.long)
    wanted[:, 2:] = 1
    wanted[4:, 2:] = 2
    assert torch.equal(superpixels(x, 3, compactness=0.1)[0, 0], wanted)
    flat = superpixels(torch.ones(1, 1, 8, 8), 4)[0, 0]
    assert torch.bincount(flat.flatten()).tolist() == [16] * 4  # nothing but places to go by
    model, x = small_cnn(), images(2)
    found = attribute(
        model, x, 1, method="kernel_shap", feature_mask=superpixels(x, 5), n_samples=60, seed=0
    )
    assert [len(each.unique()) for each in found] == [5, 5]


def test_words_are_features_of_several_tokens() -> None:
    mask = words([[None, 0, 0, 1], [None, 0, 1, None]])
    assert mask.tolist() == [[0, 1, 1, 2], [0, 1, 2, 0]]
    model, ids = tokens()
    options = {"method": "kernel_shap", "n_samples": 60, "seed": 0}
    found = attribute(model, ids[:2], 1, feature_mask=mask, **options)
    assert found[0, 1] == found[0, 2] != found[0, 3] and found[1, 0] == found[1, 3]
    units = attribute(model, ids[:2], 1, layer="embed", feature_mask=mask[..., None], **options)
    assert units.shape == (2, 4, 5) and len(units[0].unique()) == 3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: superpixels(torch.ones(1, 8, 8)), r"images \[N, C, H, W\], got \(1, 8, 8\)"),
        (lambda: superpixels([1.0]), "of images .* got list"),  # type: ignore[arg-type]
        (lambda: superpixels(torch.ones(1, 1, 2, 2), 0), "segments must be an integer >= 1, got 0"),
        (lambda: superpixels(torch.ones(1, 1, 2, 2), compactness=-1), "finite number >= 0, got -1"),
        (lambda: superpixels(torch.ones(1, 1, 2, 2) / 0), "NaN or infinite: it has no segments"),
        (lambda: words([[0], [0, 1]]), r"same number of tokens, .* got \[1, 2\]. Pad them"),
        (lambda: words([]), r"at least one: got \[\]"),
    ],
)
def test_what_has_no_segments_is_refused(call: Callable[[], Tensor], text: str) -> None:
    with pytest.raises(InputError, match=text):
        call()


# A unit as the target -----------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("layer", [None, "0"])
def test_a_unit_of_a_layer_is_explained_as_an_output_of_the_model_below(
    method: str, layer: str | None
) -> None:
    model, x = small_cnn(), images()
    below = nn.Sequential(*model[:5])
    target = (3, 1, 0)
    run = partial(
        attribute, x=x, target=target, method=method, layer=layer, seed=0, return_error=True,
        **options_of(method),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        found, error = run(model, of="4")
        wanted, wanted_error = run(below)
    assert close(found, wanted) and close(error, wanted_error, 1e-9) and found.any()
    # So does a module, and one unit of each sample.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        again, _ = run(model, target=[target] * 3, of=model[4])
    assert close(again, found)


def test_units_are_explained_as_captum_does() -> None:
    from captum import attr

    model, x = small_cnn(), images()
    wanted = attr.NeuronIntegratedGradients(model, model[1]).attribute(x, (2, 3, 4), n_steps=20)
    found = attribute(model, x, (2, 3, 4), of="1", method="integrated_gradients", n_steps=20)
    assert close(found, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = attr.NeuronGradient(model, model[7]).attribute(x, 5)
        assert close(attribute(model, x, 5, of="7", method="saliency", abs=False), wanted)
        wanted = attr.NeuronDeepLift(model, model[7]).attribute(x, 5)
    assert close(attribute(model, x, 5, of="7", method="deeplift"), wanted)


def test_a_unit_is_explained_as_it_was_before_it_was_overwritten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    for method in ("lrp", "input_x_gradient"):
        wanted = attribute(nn.Sequential(model[0]), x, 1, method=method)
        assert close(attribute(model, x, 1, of="0", method=method), wanted)
    # Rules go by the names of the user's model.
    found = attribute(model, x, 1, of="0", rules={"0": "z+"})
    assert close(found, attribute(nn.Sequential(model[0]), x, 1, rule="z+"))


def test_units_that_are_not_there_are_refused() -> None:
    model, x = small_cnn(), images()
    with pytest.raises(InputError, match=r"target \(3, 9, 0\) is out of range: .* \[N, 4, 2, 2\]"):
        attribute(model, x, (3, 9, 0), of="4")
    with pytest.raises(InputError, match="target 1 does not select one number"):
        attribute(model, x, 1, of="4")
    with pytest.raises(InputError, match="no layer '44'. Did you mean '4'"):
        attribute(model, x, 1, of="44")
    for method in ("lrp", "integrated_gradients", "occlusion"):
        with pytest.raises(InputError, match="layer '6' comes after '4', a unit of which is"):
            attribute(model, x, (3, 1, 0), of="4", layer="6", method=method)


# The model stays as it was ------------------------------------------------------------------------


def state_of(model: nn.Module) -> Any:
    return (
        {name: (value.clone(), value._version) for name, value in model.state_dict().items()},
        [
            (name, module.training, set(vars(module)), len(module._forward_hooks),
             len(module._forward_pre_hooks), len(module._backward_hooks),
             len(module._backward_pre_hooks))
            for name, module in model.named_modules()
        ],
        [(p.requires_grad, p.grad) for p in model.parameters()],
    )  # fmt: skip


def same(before: Any, after: Any) -> bool:
    values = all(
        torch.equal(before[0][k][0], after[0][k][0]) and before[0][k][1] == after[0][k][1]
        for k in before[0]
    )
    return values and before[1] == after[1] and before[2] == after[2]


class Mixed(nn.Module):
    """Has what a forward pass in training changes: dropout, and statistics of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.act, self.drop, self.head = nn.ReLU(), nn.Dropout(0.5), nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.act(self.bn(self.conv(x))).flatten(1)))


@pytest.mark.parametrize("layer", [None, "act"])
@each_method
def test_the_model_stays_as_it_was(method: str, layer: str | None) -> None:
    torch.manual_seed(0)
    model = Mixed().double().train()
    model.bn.eval()
    model.conv.bias.requires_grad_(False)
    x = images(2).requires_grad_()
    before = state_of(model)
    found = attribute(model, x, 1, method=method, layer=layer, seed=0, **options_of(method))
    assert same(before, state_of(model)) and x.grad is None and x.requires_grad
    with torch.inference_mode():
        again = attribute(
            model, x.detach().clone(), 1, method=method, layer=layer, seed=0, **options_of(method)
        )
    assert close(again, found)
    model.eval()
    evaluated = attribute(model, x, 1, method=method, layer=layer, seed=0, **options_of(method))
    assert close(evaluated, found)


def test_a_model_may_overwrite_its_inputs() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sub_(0.5))

    x = torch.ones(3, 4)
    for method in ("lrp", "occlusion"):
        assert attribute(Centred(), x, 1, method=method).any()
        assert torch.equal(x, torch.ones(3, 4))


class Breaks(Mixed):
    """Fails in its third forward pass, after a layer that methods have hooked."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.runs += 1
        if self.runs >= 3:
            raise OSError("the disk is gone")
        return out


@pytest.mark.parametrize("layer", [None, "act"])
@each_method
def test_the_model_stays_as_it_was_when_it_fails(method: str, layer: str | None) -> None:
    model = Breaks().double().train()
    model.runs = 2 if method == "lrp" else 1 if layer is None else 0
    before = state_of(model)
    with pytest.raises((OSError, InputError), match="the disk is gone"):
        attribute(model, images(2), 1, method=method, layer=layer, seed=0, **options_of(method))
    before[1][0] = state_of(model)[1][0]  # it counts its own runs
    assert same(before, state_of(model))


# Warnings -----------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.act(self.a(x))))


class Reused(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(self.act(x))))


@pytest.mark.parametrize("method", ["deeplift", "deep_shap"])
def test_deeplift_is_warned_about_by_name(method: str) -> None:
    torch.manual_seed(0)
    x, options = torch.randn(3, 4), {"baselines": torch.randn(2, 4)}
    options = options if method == "deep_shap" else {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attribute(Functional(), x, 1, method=method, **options)
    texts = [str(each.message) for each in told if each.category is AttributionWarning]
    assert texts and texts[0].startswith(f"{method} is unreliable for this model: ")
    assert "gelu at " in texts[0] and "test_attribution.py:" in texts[0]
    assert told[0].filename == __file__
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, CLASSES))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attribute(model, x, 1, method=method, **options)
    assert "'1' (GELU) has no rule of its own" in str(told[0].message)
    reused = "cannot take a module that runs more than once: 'act' \\(2 times\\)"
    with (
        pytest.warns(AttributionWarning, match="'act' runs 2 times"),
        pytest.raises(CreditError, match=f"{method} {reused}"),
    ):
        attribute(Reused(), x, 1, method=method, **options)


def test_a_model_of_modules_used_once_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            attribute(small_cnn(), images(2), 1, method=method, seed=0, **options_of(method))


def test_attributions_that_miss_the_change_are_warned_about() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight.fill_(60.0)
        model[0].bias.fill_(-40.0)
    x = torch.ones(2, 1, dtype=torch.float64)
    with pytest.warns(AttributionWarning, match=r"miss f\(x\) - f\(baseline\) .* raise n_steps"):
        attribute(model, x, method="integrated_gradients", n_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute(model, x, method="integrated_gradients", n_steps=300)


def test_values_that_say_nothing_are_warned_about() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) > 0).to(x.dtype) + 0 * x.sum())

    torch.manual_seed(0)
    model, x = Step(), torch.randn(3, 4)
    with pytest.warns(AttributionWarning, match="saliency is zero everywhere: the gradient"):
        attribute(model, x, 1, method="saliency")
    assert attribute(model, x, 1, method="lrp").any()  # which needs no gradient
    x[0, 0] = math.inf
    with pytest.warns(AttributionWarning, match="not finite"):
        attribute(nn.Linear(4, 2), x, 1, method="input_x_gradient")
    with pytest.warns(AttributionWarning, match="64 features to n_samples=20"):
        attribute(small_cnn(), images(1), 1, method="kernel_shap", n_samples=20, seed=0)


# Mistakes -----------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "salency"}, r"unknown attribution method 'salency'. Did you mean 'salie"),
    "option": (
        {"method": "integrated_gradients", "n_step": 3},
        r"unknown option of integrated_gradients 'n_step'. Did you mean 'n_steps'\?",
    ),
    "no options": ({"method": "input_x_gradient", "abs": True}, r"input_x_gradient has no options"),
    "rule": ({"rule": "epsilom"}, r"unknown rule 'epsilom'. Did you mean 'epsilon'\?"),
    "class": ({"target": 12}, r"target 12 is out of range: .* \[N, 4\], so give 0..3"),
    "negative": ({"target": -1}, r"target -1 is out of range"),
    "classes": ({"target": torch.tensor([0, 4, 1])}, r"target 4 is out of range"),
    "length": ({"target": torch.tensor([0, 1])}, r"target has the shape \(2,\), and x 3 samples"),
    "list": ({"target": [0, 1]}, r"target has 2 entries, and x 3 samples"),
    "floats": ({"target": torch.rand(3)}, r"target holds torch.float32, and classes are integers"),
    "float": ({"target": 1.5}, r"target=1.5 is no class"),
    "bool": ({"target": True}, r"target=True is no class"),
    "none": ({"target": None}, r"target=None is for a model that returns one number"),
    "tuple": ({"target": (0, 1)}, r"target \(0, 1\) does not select one number"),
    "layer": ({"layer": "liner"}, r"no layer 'liner'. Did you mean 'fine'\? Layers: "),
    "module": ({"layer": nn.ReLU()}, r"layer=ReLU is no part of the model"),
    "kind of layer": ({"layer": 3}, r"layer is a name of model.named_modules\(\) or a module"),
    "empty": ({"x": torch.zeros(0, 4)}, r"x is an empty batch, of shape \(0, 4\)"),
    "number": ({"x": torch.tensor(1.0)}, r"x is an empty batch"),
    "list for x": ({"x": [[1.0]]}, r"x must be a tensor \[N, ...\], got list"),
    "shape": ({"x": torch.zeros(3, 5)}, r"the model cannot take inputs of shape \(N, 5\)"),
    "type": ({"x": torch.zeros(3, 4).double()}, r"the model cannot take inputs of .*float64"),
    "half": ({"x": torch.zeros(3, 4).half()}, r"x is in half precision \(torch.float16\)"),
    "booleans": ({"x": torch.zeros(3, 4).bool()}, r"x holds torch.bool"),
    "integers": ({"x": torch.zeros(3, 4).long()}, r"x holds torch.int64, which has no gradient"),
    "batch size": ({"batch_size": 0}, r"batch_size must be an integer >= 1, got 0"),
    "seeds": (
        {"method": "lime", "seed": 1, "generator": torch.Generator()},
        r"seed and generator were both given",
    ),
    "seed": ({"method": "lime", "seed": -1}, r"seed must be an integer >= 0, got -1"),
    "samples": ({"method": "lime", "n_samples": 0}, r"n_samples must be an integer >= 1, got 0"),
    "noise": ({"method": "smoothgrad", "stdevs": -1.0}, r"stdevs must be a finite number >= 0"),
    "quadrature": (
        {"method": "integrated_gradients", "quadrature": "gauss"},
        r"unknown quadrature 'gauss'. Did you mean 'gausslegendre'\?",
    ),
    "baselines": (
        {"method": "deeplift", "baselines": torch.zeros(2, 4)},
        r"baselines have the shape \(2, 4\), and x \(3, 4\)",
    ),
    "kind of baselines": (
        {"method": "deeplift", "baselines": "black"},
        r"baselines are a number or a tensor shaped as x, got str",
    ),
    "no baselines": ({"method": "deep_shap"}, r"deep_shap needs baselines"),
    "few baselines": (
        {"method": "deep_shap", "baselines": torch.zeros(1, 4)},
        r"deep_shap got 1 baselines, which are too few",
    ),
    "mask": (
        {"method": "lime", "feature_mask": torch.zeros(3, 4)},
        r"feature_mask is a tensor of integers .* got torch.float32",
    ),
    "shape of mask": (
        {"method": "lime", "feature_mask": torch.zeros(1, 5).long()},
        r"feature_mask has the shape \(1, 5\), which does not broadcast to \(1, 4\)",
    ),
    "one feature": (
        {"method": "kernel_shap", "feature_mask": torch.zeros(1, 4).long()},
        r"kernel_shap needs at least 2 features, got 1",
    ),
    "window": (
        {"method": "occlusion", "sliding_window_shapes": (5,)},
        r"sliding_window_shapes=\(5,\) does not fit samples of shape \(4,\)",
    ),
    "strides": (
        {"method": "occlusion", "strides": (1, 1)},
        r"strides=\(1, 1\) does not fit samples of shape \(4,\)",
    ),
}  # fmt: skip


class Plain(nn.Module):
    """A linear model with a layer that never runs, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.twice, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.fine(x)))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str) -> None:
    given, text = MISTAKES[mistake]
    arguments = {"x": torch.ones(3, 4), "target": 1} | given
    with pytest.raises(InputError, match=text) as caught:
        attribute(Plain(), **arguments)
    assert "\n" not in str(caught.value)


def test_models_and_layers_that_cannot_be_explained_are_refused() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got builtin"):
        attribute(torch.relu, x, 1)  # type: ignore[arg-type]
    half = r"the model is in half precision \('fine.weight' is torch.bfloat16\)"
    with pytest.raises(InputError, match=half):
        attribute(Plain().bfloat16(), x, 1)
    for method in ("lrp", "saliency", "deeplift", "occlusion"):
        with pytest.raises(InputError, match=r"layer 'twice' runs 2 times in a forward pass"):
            attribute(Plain(), x, 1, method=method, layer="twice")
        with pytest.raises(InputError, match=r"layer 'never' does not run in a forward pass"):
            attribute(Plain(), x, 1, method=method, layer="never")

    class Words(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return "cat"

    with pytest.raises(InputError, match=r"the model returns str, and a tensor is explained"):
        attribute(Words(), x, 1, method="saliency")
    model, ids = tokens()
    with pytest.raises(InputError, match=r"no gradient for lrp: give layer='embed', or use lime"):
        attribute(model, ids, 1)

    class Detached(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.fine(x).detach()

    with pytest.raises(InputError, match="no credit leads from the model's output to the inputs"):
        attribute(Detached(), x, 1)


def test_outputs_may_be_logits_or_the_first_of_several() -> None:
    class Named(Plain):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return type("Output", (), {"logits": out})

    class Several(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    torch.manual_seed(0)
    plain, x = Plain(), torch.randn(2, 4)
    for kind in (Named, Several):
        model = kind()
        model.load_state_dict(plain.state_dict())
        for method in ("lrp", "integrated_gradients"):
            assert close(
                attribute(model, x, 1, method=method), attribute(plain, x, 1, method=method)
            )


# The rest -----------------------------------------------------------------------------------------


def test_saliency_for_the_report_says_nothing_of_maps_without_a_trace() -> None:
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not saliency(model, torch.ones(2, 4), torch.tensor([0, 1])).any()


def test_a_bar_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    attribute(small_cnn(), images(2), 1, method="smoothgrad", progress=True, n_samples=2, seed=0)
    assert "2 of 2" in capsys.readouterr().err


def test_feedback_is_not_computed_for_frozen_parameters() -> None:
    model = small_cnn()
    seen: list[str] = []
    original = torch.autograd.grad

    def spied(outputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        waiting, known = [outputs.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in known:
                continue
            known.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, nn.Parameter):
                seen.append(str(tuple(variable.shape)))
            waiting.extend(below for below, _ in node.next_functions)
        return original(outputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", spied)
        attribute(model, images(), 1)
    assert not seen


def test_importing_the_function_needs_no_captum() -> None:
    code = (
        "import sys, attrain; assert 'torch' not in sys.modules; attrain.attribute; "
        "assert 'captum' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attributed") / "run"
    quick = ["--model", "lenet", "--epochs", "1", "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        assert cli.run(["train", *quick, "--out", str(out)]) == 0
    return out / "lfp" / "seed-0"


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("lrp", ["--rule", "epsilon-gamma-box", "--target", "label"]),
        ("lrp", ["--layer", "act3", "--target", "7"]),
        ("deep_shap", []),
        ("kernel_shap", ["--samples", "2", "--layer", "conv2"]),
    ],
)
def test_the_command_writes_what_the_function_returns(
    job: Path, tmp_path: Path, method: str, flags: list[str]
) -> None:
    out = str(tmp_path / "a")
    assert cli.run(["attribute", str(job), "--method", method, *flags, "--out", out]) == 0
    found = load_file(tmp_path / "a" / "attributions.safetensors")
    told = json.loads((tmp_path / "a" / "attributions.json").read_text())
    assert told["method"] == method and told["kind"] == "attributions"
    assert list(found["attributions"].shape) == told["shape"]
    model, data = open_model(config.Source(job))
    x, y = data.test.tensors
    assert torch.equal(found["inputs"], x[found["index"]])
    assert torch.equal(found["label"], y[found["index"]])
    assert torch.equal(found["predicted"], model.eval()(found["inputs"]).argmax(1))
    if "--target" in flags:
        wanted = found["label"] if "label" in flags else torch.full_like(found["label"], 7)
        assert torch.equal(found["target"], wanted)
    if method == "lrp":
        options = {"rule": flags[1]} if flags[0] == "--rule" else {"layer": "act3"}
        again = attribute(model, found["inputs"], found["target"], **options)
        assert close(found["attributions"], again, 1e-6)
    page = (tmp_path / "a" / "attributions.html").read_text()
    doubts = ["miss f(x) - f(baseline)"] if method == "deep_shap" else []  # for its max pools
    assert len(told["warnings"]) == page.count("Doubtful.") == len(doubts)
    assert page.count("<li>") == len(found["label"])


def test_the_command_takes_a_function_that_returns_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        "import torch\n\ndef ready(input_shape, num_classes):\n    return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(input_shape[0], num_classes))\n"
    )
    (tmp_path / "explained_model.py").write_text(source)
    flags = ["explained_model:ready", "--data", "blobs", "--method", "saliency", "--samples", "3"]
    assert cli.run(["attribute", *flags]) == 0
    assert "3 samples, Saliency: they are no shares" in capsys.readouterr().out
    assert (tmp_path / "runs" / "attribute-blobs" / "attributions.json").exists()
    assert cli.run(["attribute", *flags]) == 0
    assert (tmp_path / "runs" / "attribute-blobs-2" / "attributions.json").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--method", "lpr"], "unknown attribution method 'lpr'. Did you mean 'lrp'?"),
        (["--rule", "epsilon-minus"], "unknown rule 'epsilon-minus'. Did you mean 'epsilon-plus'?"),
        (["--method", "saliency", "--rule", "z+"], "--rule z+ is for --method lrp, and it is sali"),
        (["--layer", "conv3"], "the model has no layer 'conv3'. Did you mean 'conv"),
        (["--target", "predictd"], "unknown target 'predictd'. Did you mean 'predicted'?"),
        (["--target", "10"], "unknown target '10'."),
        (["--samples", "0"], "--samples 0 is too small: give at least 1."),
        (["--seed", "-1"], "--seed -1 is too small: give at least 0."),
    ],
)
def test_the_command_refuses_in_one_sentence(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    out = tmp_path / "a"
    assert cli.run(["attribute", str(job), *flags, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("attrain: ") or "\nattrain: " in said
    assert text in said and not out.exists()


def test_the_command_refuses_models_that_are_not_there_and_results_that_are(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        assert cli.run(["attribute", *arguments]) == 2
        return capsys.readouterr().err

    assert "does not exist: give the folder of a finished run" in told(str(tmp_path / "nowhere"))
    assert "mine:model does not say what it was trained on: give --data." in told("mine:model")
    given = told("mine:model", "--data", "digits", "--model", "mlp")
    assert "mine:model is a model: leave --model and --activation out." in given
    (tmp_path / "attributions.json").write_text("{}")
    assert "holds attributions already: give another --out." in told(
        str(job), "--out", str(tmp_path)
    )


def explanation(values: Array, inputs: Array) -> Explanation:
    n = len(values)
    return Explanation(
        title="LRP", data="<b>data</b>", values=values, inputs=inputs,
        classes=("cat", "<script>alert(1)</script>"), index=range(n), labels=[0] * n,
        predicted=[1] * n, targets=[1] * n, scores=[0.5] * n, errors=[0.125] * n, goal="f(x)",
    )  # fmt: skip


def test_labels_are_escaped_and_nothing_is_loaded() -> None:
    draw = np.random.default_rng(0)
    page = render(explanation(draw.normal(size=(2, 3, 6, 6)), draw.uniform(size=(2, 3, 6, 6))))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<b>data" not in page
    assert "default-src &#39;none&#39;" in page and 'src="http' not in page
    assert page.count("data:image/png") == 2 * 2 + 1


def test_channels_and_vectors_are_drawn_as_bars() -> None:
    draw = np.random.default_rng(0)
    by_channel = np.broadcast_to(draw.normal(size=(2, 5, 1, 1)), (2, 5, 4, 4))
    page = render(explanation(by_channel, draw.uniform(size=(2, 1, 6, 6))))
    assert page.count("<tr>") == 2 * 5 and page.count("data:image/png") == 2
    page = render(explanation(draw.normal(size=(1, 40)), draw.normal(size=(1, 40))))
    assert page.count("<tr>") == 12 and "data:image/png" not in page
    page = render(explanation(np.zeros((1, 3)), np.zeros((1, 3))))
    assert page.count('width="0.0"') == 3


@pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium here")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_complaint(tmp_path: Path, dark: bool) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "page.html"
    write_page(path, explanation(draw.normal(size=(5, 3, 6, 6)), draw.uniform(size=(5, 3, 6, 6))))
    with chromium.Page(str(chromium.find())) as page:
        for width in (400, 1280, 1920):
            page.open(path, width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.run("[...document.images].every(each => each.naturalWidth > 0)")
        assert not page.complaints()
        assert all(each.startswith(("file:", "data:")) for each in page.requests())
