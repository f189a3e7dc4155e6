"""Rules of layers: against their slow twins, conservation, assignment, what surrounds them."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import Chain, Decomposed, array, decomposed_twin
from test_credit import in_zoo, keep, parameter_uses, run_case, scalings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from zoo import ZOO

import attrain
from attrain import credit as credit_module
from attrain import rewards, rules
from attrain.errors import CreditError, CreditWarning, InputError
from attrain.rules import PRESETS, RULES
from attrain.rules.decomposition import LinearMap, Signed, decompose

EVERY: dict[str, rules.Decomposition] = {
    **{name: each() for name, each in RULES.items()},
    "gamma .5, epsilon .1": rules.Gamma(0.5, epsilon=0.1),
    "alpha 3": rules.AlphaBeta(3, 2),
    "box -4 to 5": rules.Box(-4.0, 5.0),
}
each_rule = pytest.mark.parametrize("rule", EVERY.values(), ids=EVERY.keys())
each_feedback = pytest.mark.parametrize("feedback", ["rule", "epsilon"])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        yield


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 4), (3, 7)),
    "linear without bias": (lambda: nn.Linear(7, 4, bias=False), (3, 7)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 4)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 2, 2, bias=False), (2, 2, 4, 4)),
    "conv2d, all options": (
        lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2),
        (2, 4, 6, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=1), (1, 2, 3, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), (2, 2, 5)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 3, 3),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(1, 2, 2, dilation=2), (1, 1, 2, 2, 2)),
}


def close(found: Tensor, wanted: Any, tolerance: float = 1e-10) -> bool:
    wanted = torch.as_tensor(wanted)
    return float((found - wanted).norm()) <= tolerance * max(float(wanted.norm()), 1e-30)


def feedback_of(
    model: nn.Module, run: Callable[[], Tensor], loss: Callable[[Tensor], Tensor], **options: Any
) -> dict[str, Tensor]:
    """Return minus the gradients that one pass under credit leaves."""
    model.zero_grad()
    with attrain.LFP(model, **options):
        out = run()
    loss(out).backward()
    return {n: -p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("feedback", ["rule", pytest.param("epsilon", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("layer", "positive"),
    [(layer, False) for layer in LAYERS]
    + [(layer, True) for layer in ("linear", "conv2d, all options")],
)
@each_rule
def test_a_layer_equals_its_twin(
    rule: rules.Decomposition, layer: str, positive: bool, feedback: str
) -> None:
    build, shape = LAYERS[layer]
    torch.manual_seed(0)
    module = build().double()
    x = torch.randn(shape, dtype=torch.float64).clamp_(-3.9, 4.9)
    x = (x.relu() if positive else x).requires_grad_()
    with torch.no_grad():
        plain = module(x)
    twin = Decomposed(module, rule, 1e-6, feedback, array(plain))
    assert close(plain, twin.forward(array(x)))
    r = torch.randn_like(plain)
    r_in = twin.backward(array(r))
    with attrain.LFP(module, rules={"*": rule}, feedback=feedback):
        out = module(x)
        a = torch.tanh(out)
    assert torch.equal(out, plain)
    a.backward(-r / a.detach())
    assert close(-x.grad * x.detach(), r_in)
    assert close(-module.weight.grad, twin.feedback["weight"])
    if module.bias is not None:
        assert close(-module.bias.grad, twin.feedback["bias"])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, stride=2, groups=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3),
    ).double()  # fmt: skip


IMAGES = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


def check_network(
    rule_of: Callable[[str], rules.Decomposition], feedback: str, **options: Any
) -> None:
    model = network()
    seen: dict[nn.Module, Any] = {}
    hooks = [module.register_forward_hook(partial(keep, seen)) for module in model]
    with torch.no_grad():
        plain = model(IMAGES)
    for hook in hooks:
        hook.remove()

    def phi(z: Tensor) -> Tensor:
        return z.relu()

    twin = decomposed_twin(model, rule_of, 1e-6, feedback, phi, seen)
    for name, module in model.named_children():
        if isinstance(module, nn.Tanh):
            twin.layers[name].phi = torch.tanh  # type: ignore[attr-defined]
    assert isinstance(twin, Chain)
    assert close(plain, twin.forward(array(IMAGES)))
    twin.backward(array(rewards.initial("softmax", plain, LABELS) / len(LABELS)))
    found = feedback_of(
        model,
        lambda: model(IMAGES),
        lambda out: rewards.softmax(out, LABELS),
        feedback=feedback,
        **options,
    )
    assert found.keys() == twin.feedback.keys()
    for name, wanted in twin.feedback.items():
        assert close(found[name], wanted), name


@each_feedback
@each_rule
def test_a_network_equals_its_twin(rule: rules.Decomposition, feedback: str) -> None:
    check_network(lambda name: rule, feedback, rules={"*": rule})
    if not isinstance(rule, rules.Epsilon):
        check_network(lambda name: rule, feedback, rule=rule)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_equals_its_twin(preset: str) -> None:
    convolution = {"plus": rules.ZPlus(), "alpha2": rules.AlphaBeta(), "gamma": rules.Gamma()}
    first = {"flat": rules.Flat(), "box": rules.Box()}.get(preset.split("-")[-1])

    def rule_of(name: str) -> rules.Decomposition:
        if name == "0" and first is not None:
            return first
        return convolution[preset.split("-")[1]] if name in "03" else rules.Epsilon()

    check_network(rule_of, "rule", rule=preset)


def test_names_beat_patterns_patterns_types_and_later_entries_win() -> None:
    gamma, plus, flat = rules.Gamma(0.5), rules.ZPlus(), rules.Flat()
    by_name = {"0": flat, "3": plus, "6": gamma, "8": rules.Zero()}
    given = {"0": flat, "[0-3]": gamma, "[1-4]": plus, nn.Conv2d: "alpha-beta",
             nn.Linear: "zero", "6": gamma}  # fmt: skip
    check_network(by_name.__getitem__, "rule", rules=given, rule="epsilon-gamma-box")


def test_gamma_0_is_the_epsilon_rule() -> None:
    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    plain = feedback_of(model, lambda: model(IMAGES), loss)
    for feedback in ("rule", "epsilon"):
        found = feedback_of(model, lambda: model(IMAGES), loss, rule=rules.Gamma(0.0),
                            feedback=feedback)  # fmt: skip
        assert all(close(found[name], plain[name]) for name in plain)
    found = feedback_of(model, lambda: model(IMAGES), loss, rule=rules.Epsilon(epsilon=0.01))
    wanted = feedback_of(model, lambda: model(IMAGES), loss, epsilon=0.01)
    assert all(torch.equal(found[name], wanted[name]) for name in plain)
    found = feedback_of(
        model, lambda: model(IMAGES), loss, rules={"*": rules.Epsilon(epsilon=0.01)}
    )
    assert all(close(found[name], wanted[name]) for name in plain)


@each_feedback
@each_rule
def test_relative_scale_divides_by_the_mean_magnitude(
    rule: rules.Decomposition, feedback: str
) -> None:
    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    options = {"rules": {"*": rule}, "feedback": feedback}
    plain = feedback_of(model, lambda: model(IMAGES), loss, **options)
    relative = feedback_of(model, lambda: model(IMAGES), loss, scale="relative", **options)
    for name, parameter in model.named_parameters():
        assert close(relative[name] * parameter.detach().abs().mean(), plain[name])


numbers = st.floats(-3, 3).map(lambda value: round(value, 3))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(RULES)),
    a=st.lists(numbers, min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    outputs=st.integers(1, 4),
)
def test_rewards_are_conserved_and_z_plus_z_minus_bounds_them(
    name: str, a: list[float], seed: int, outputs: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.tensor([a], dtype=torch.float64)
    w = torch.randn(outputs, len(a), generator=random, dtype=torch.float64)
    b = torch.randn(outputs, generator=random, dtype=torch.float64)
    r = torch.randn(1, outputs, generator=random, dtype=torch.float64)
    z = F.linear(inputs, w, b)
    products = torch.cat([w * inputs, b[:, None]], 1)
    # What a rule divides by must be there, and well away from 0.
    positive, negative = products.clamp_min(0).sum(1), products.clamp_max(0).sum(1)
    assume(bool((z.abs() > 1e-3).all()))
    if name in ("z+", "alpha-beta"):
        assume(bool((positive > 1e-3).all()))
    if name == "alpha-beta":
        assume(bool((negative < -1e-3).all()))
    if name == "box":
        assume(max(a) - min(a) > 0.1)
    found = decompose(RULES[name](), LinearMap(F.linear, Signed(inputs), Signed(w), b, z), r, 0.0)
    if name == "z+z-":
        # One sample: what a weight gets is its message.
        every = torch.cat([found.weights, found.bias[:, None]], 1).abs()
        assert bool((every.sum(1) <= r[0].abs() + 1e-12).all())
    else:
        if name == "box":  # where all contributions are 0, nothing is handed on
            bound = (inputs - min(a)) * w.clamp_min(0) + (inputs - max(a)) * w.clamp_max(0)
            assume(bool((bound.sum(1) > 1e-3).all()))
        total = found.inputs.sum() + found.bias.sum()
        assert math.isclose(float(total), float(r.sum()), rel_tol=1e-9, abs_tol=1e-9)
    assert close(found.inputs.sum(), found.weights.sum(), 1e-9)


@each_rule
def test_samples_are_independent(rule: rules.Decomposition) -> None:
    model = network()
    options = {"rule": rule}

    def run(rows: slice) -> dict[str, Tensor]:
        loss = partial(rewards.softmax, target=LABELS[rows], reduction="sum")
        return feedback_of(model, lambda: model(IMAGES[rows]), loss, **options)

    whole, parts = run(slice(0, 3)), [run(slice(i, i + 1)) for i in range(3)]
    for name in whole:
        assert close(sum(part[name] for part in parts), whole[name], 1e-9)


ZOO_RULES = {"gamma": {"rule": "gamma"}, "flat": {"rule": "flat", "feedback": "epsilon"}}


@pytest.mark.parametrize("rule", ["gamma", pytest.param("flat", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", in_zoo(refused=False))
def test_the_zoo_runs_under_rules_as_without(name: str, rule: str) -> None:
    plain_case, case = ZOO[name](), ZOO[name]()
    plain = run_case(plain_case)
    out = run_case(case, attrain.LFP(case.model, **ZOO_RULES[rule]))
    assert torch.equal(out, plain)
    assert scalings(out) == (parameter_uses(plain) if case.uses is None else case.uses)
    rewards.raise_outputs(out, torch.ones_like(out)).backward()
    for key, parameter in case.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


class Product(nn.Module):
    """One linear map, written in one of many ways."""

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.weight, self.bias)


WRITTEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "by keywords": lambda x, w, b: F.linear(input=x, weight=w, bias=b),
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T),
    "addmm by keywords": lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w.t()),
    "addbmm": lambda x, w, b: torch.baddbmm(b, x[None], w.T[None])[0],
    "conv1d": lambda x, w, b: F.conv1d(x[..., None], w[..., None], b)[..., 0],
    "conv1d, one sample": lambda x, w, b: torch.stack(
        [F.conv1d(each[:, None], w[..., None], b)[:, 0] for each in x]
    ),
    "conv2d, same": lambda x, w, b: F.conv2d(
        x[..., None, None], F.pad(w[..., None, None], (1, 1)), b, padding="same"
    )[..., 0, 0],
    "convolution": lambda x, w, b: torch.convolution(
        x[..., None], w[..., None], b, [1], [0], [1], False, [0], 1
    )[..., 0],
}


# Not every way has its samples along the first axis, by which the box rule finds its bounds.
ALIKE = [RULES[name]() for name in RULES if name != "box"] + [rules.Box(-4, 4)]


@pytest.mark.parametrize("rule", ALIKE, ids=repr)
@pytest.mark.parametrize("written", WRITTEN)
def test_every_way_to_write_a_layer(written: str, rule: rules.Decomposition) -> None:
    if written == "conv2d, same" and isinstance(rule, rules.Flat):
        return  # the padded weight is no input of the layer, but an input of the call
    x = torch.randn(4, 5, dtype=torch.float64)
    loss = partial(rewards.softmax, target=torch.tensor([0, 1, 2, 0]))
    found = []
    for run in (F.linear, WRITTEN[written]):
        model = Product(run)
        found.append(feedback_of(model, partial(model, x), loss, rules={"": rule}))
    for key in found[0]:
        assert close(found[1][key], found[0][key]), key


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "operator": lambda x, w: x @ w.T,
    "from the left": lambda x, w: (w @ x.T).T,
    "mm": lambda x, w: x.mm(w.t()),
    "mv": lambda x, w: torch.stack([w.mv(each) for each in x]),
    "bmm": lambda x, w: torch.bmm(x[None], w.T[None])[0],
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w),
    "einsum of a list": lambda x, w: torch.einsum("ni,oi->no", [x, w]),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=([1], [1])),
}


@pytest.mark.parametrize("rule", ALIKE, ids=repr)
@pytest.mark.parametrize("written", PRODUCTS)
def test_matrix_products_with_a_parameter(written: str, rule: rules.Decomposition) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    loss = partial(rewards.softmax, target=torch.tensor([0, 1, 2, 0]))
    found = []
    for run in (F.linear, PRODUCTS[written]):
        model = Product(lambda x, w, b, run=run: run(torch.tanh(x * b.mean()), w))
        found.append(feedback_of(model, partial(model, x), loss, rules={"": rule}))
    for key in found[0]:
        assert close(found[1][key], found[0][key]), key


def test_a_map_of_two_activations_has_no_rule() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Bilinear(3, 3, 2)])
    x = torch.randn(4, 3)
    with (
        attrain.LFP(model, rule="gamma"),
        pytest.raises(
            CreditError,
            match=r"bilinear at .*Gamma\(gamma=0.25\) is a rule for one tensor times one w",
        ),
    ):
        model[1](model[0](x), model[0](x))
    with attrain.LFP(model, rule="gamma", rules={"1": "epsilon"}):
        out = model[1](model[0](x), model[0](x))
    rewards.raise_outputs(out, 1.0).backward()
    with attrain.LFP(model, rule="gamma"):  # attention is no layer
        h = model[0](x)
        (h @ h.T).sum().backward()


def parametrised() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def old(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(module)

    return {
        "weight_norm": parametrizations.weight_norm,
        "weight_norm as it was": old,
        "pruned": lambda module: prune.random_unstructured(module, "weight", 0.4),
        "orthogonal": parametrizations.orthogonal,
    }


@pytest.mark.parametrize("how", parametrised())
def test_weights_made_in_the_forward_pass(how: str) -> None:
    """They are known by the parameters that they are made from."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    model = nn.Sequential(*layers).double()
    parametrised()[how](model[0])
    x, loss = torch.randn(5, 4).double(), partial(rewards.softmax, target=torch.arange(5) % 3)
    with torch.no_grad():
        model(x)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        plain[0].weight.copy_(model[0].weight)
        plain[0].bias.copy_(model[0].bias)
        plain[2].load_state_dict(model[2].state_dict())
    options = {"rules": {"0": rules.AlphaBeta(), nn.Linear: rules.Gamma()}}
    wanted = feedback_of(plain, lambda: plain(x), loss, **options)
    found = feedback_of(model, lambda: model(x), loss, **options)
    assert close(found["2.weight"], wanted["2.weight"])
    assert close(found["0.bias"], wanted["0.bias"])
    made = [p for name, p in model.named_parameters() if name[:2] == "0." and name != "0.bias"]
    model(x)
    through = torch.autograd.grad(model[0].weight, made, wanted["0.weight"])
    for each, gradient in zip(made, through, strict=True):
        assert close(-each.grad, gradient)


def test_frozen_parametrisations_cannot_be_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 3)))
    model[1].requires_grad_(False)
    with (
        attrain.LFP(model, rules={"0": "gamma"}),
        pytest.raises(
            CreditError,
            match=r"which layer its weight of shape \(3, 4\) belongs to cannot be told.*rem",
        ),
    ):
        model(torch.randn(2, 4))
    with attrain.LFP(model, rule="gamma"):
        model(torch.randn(2, 4)).sum().backward()


def test_frozen_weights_pass_credit() -> None:
    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    wanted = feedback_of(model, lambda: model(IMAGES), loss, rule="epsilon-alpha2-beta1")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in ("3.weight", "6.bias"))
    found = feedback_of(model, lambda: model(IMAGES), loss, rule="epsilon-alpha2-beta1")
    assert wanted.keys() - found.keys() == {"3.weight", "6.bias"}
    assert all(close(found[name], wanted[name]) for name in found)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.embed(x)))))


def test_tied_weights_have_one_rule_and_the_sum_of_their_feedback() -> None:
    tied = Tied().double()
    loose = copy.deepcopy(tied)
    loose.head.weight = nn.Parameter(tied.head.weight.detach().clone())
    loose.two.weight = nn.Parameter(tied.two.weight.detach().clone())
    x, loss = torch.arange(7), partial(rewards.softmax, target=torch.arange(7))
    options = {"rules": {"head": "z+", "one": "gamma", "two": "gamma"}, "rule": "epsilon"}
    options["rules"]["t*"] = options["rules"]["one"] = options["rules"]["two"] = rules.Gamma()
    found = feedback_of(tied, lambda: tied(x), loss, **options)
    wanted = feedback_of(loose, lambda: loose(x), loss, **options)
    assert close(found["embed.weight"], wanted["embed.weight"] + wanted["head.weight"])
    assert close(found["one.weight"], wanted["one.weight"] + wanted["two.weight"])
    with pytest.raises(InputError, match="'one' and 'two' share a weight.*Give both the same one"):
        attrain.LFP(tied, rules={"one": "gamma"})


def test_weights_that_were_replaced_are_found_again() -> None:
    model = network()
    credit = attrain.LFP(model, rules={"3": "gamma", "0": "z+"})
    loss = partial(rewards.softmax, target=LABELS)
    wanted = feedback_of(model, lambda: model(IMAGES), loss, rules={"3": "gamma", "0": "z+"})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    with credit:
        out = model(IMAGES)
    loss(out).backward()
    assert all(close(-p.grad, wanted[name]) for name, p in model.named_parameters())


def test_a_weight_that_no_layer_has() -> None:
    model = nn.Linear(3, 3)
    other = nn.Parameter(torch.randn(3, 3))
    credit = attrain.LFP(model, rules={"": "gamma"})
    with credit, pytest.raises(CreditError, match=r"its weight of shape \(3, 3\) belongs to cann"):
        F.linear(model(torch.randn(2, 3)), other)
    with credit, pytest.raises(CreditError, match="is no parameter of the model"):
        F.linear(model(torch.randn(2, 3)), other.detach().clone().requires_grad_())
    with credit:  # a fixed map of nobody's
        F.linear(model(torch.randn(2, 3)), other.detach()).sum().backward()


def test_a_weight_of_two_layers_with_two_rules() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    x = torch.randn(2, 3)
    with (
        attrain.LFP(model, rules={"0": "gamma"}),
        pytest.raises(
            CreditError, match="computed from parameters of layers with different rules.*same rule"
        ),
    ):
        F.linear(x, model[0].weight @ model[1].weight)
    with attrain.LFP(model, rule="gamma"):
        F.linear(x, model[0].weight @ model[1].weight).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool) -> None:
    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    options = {"rule": "epsilon-gamma-box", "rules": {nn.Linear: "z+z-"}}
    wanted = feedback_of(model, lambda: model(IMAGES), loss, **options)

    def run() -> Tensor:
        return checkpoint(model[2:], model[:2](IMAGES), use_reentrant=reentrant)

    found = feedback_of(model, run, loss, **options)
    assert all(close(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", RULES)
def test_autocast(name: str) -> None:
    model = network().float()
    x, loss = IMAGES.float(), partial(rewards.softmax, target=LABELS)
    wanted = feedback_of(model, lambda: model(x), loss, rule=name)

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(x)
    assert torch.equal(run(), plain)
    found = feedback_of(model, run, loss, rule=name)
    for key, value in wanted.items():
        assert found[key].dtype == torch.float32 and found[key].isfinite().all()
        if value.any():
            assert F.cosine_similarity(found[key].flatten(), value.flatten(), dim=0) > 0.97, key


def test_backward_inside_the_context_and_under_autocast_and_twice() -> None:
    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    wanted = feedback_of(model, lambda: model(IMAGES), loss, rule="gamma")
    model.zero_grad()
    with attrain.LFP(model, rule="gamma"):
        reward = loss(model(IMAGES))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reward.backward(retain_graph=True)
            reward.backward()
    for name, parameter in model.named_parameters():
        assert close(-parameter.grad, 2 * wanted[name])


def test_distributed_data_parallel(tmp_path: Path) -> None:
    from torch import distributed

    model = network()
    loss = partial(rewards.softmax, target=LABELS)
    wanted = feedback_of(model, lambda: model(IMAGES), loss, rules={"3": "gamma"}, rule="z+")
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for options in ({"rules": {"module.3": "gamma"}}, {"rules": {"3": "gamma"}}):
            owner = wrapped if "module.3" in options["rules"] else model
            model.zero_grad()
            with attrain.LFP(owner, rule="z+", **options):
                out = wrapped(IMAGES)
            loss(out).backward()
            for name, parameter in model.named_parameters():
                assert close(-parameter.grad, wanted[name])
    finally:
        distributed.destroy_process_group()


class Counted(TorchDispatchMode):
    """Counts convolutions, backward ones by what they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        if func is torch.ops.aten.convolution_backward.default:
            self.count += sum(args[-1][:2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "extra"),
    [("epsilon", 0), ("z+", 1), ("z+z-", 2), ("gamma", 4), ("alpha-beta", 4), ("flat", 1),
     ("box", 4)],
)  # fmt: skip
def test_convolutions_that_a_rule_costs(name: str, extra: int) -> None:
    assert name in RULES
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Conv1d(1, 1, 3))

    def run(**options: Any) -> int:
        with attrain.LFP(model, **options):
            out = model(torch.randn(4, 1, 6))
        with Counted() as counted:
            out.backward(torch.ones_like(out))
        return counted.count

    assert run(rules={"2": name}) == run() + extra


def test_what_is_rectified_is_known_without_looking_at_values() -> None:
    from attrain.rules.layer import _KEEPS, nonnegative

    class Elsewhere:
        """A tensor on a device that must not be waited for."""

        is_cpu = False

        def __init__(self, grad_fn: Any) -> None:
            self.grad_fn = grad_fn

    z = torch.randn(2, 3, 8, 8, requires_grad=True)
    with attrain.LFP([z]):
        h = z + 0
        pooled = F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(F.relu(h), 2), 2), 1).flatten(1)
    assert nonnegative(Elsewhere(pooled.grad_fn))  # type: ignore[arg-type]
    assert nonnegative(Elsewhere((z.relu()).grad_fn))  # type: ignore[arg-type]
    assert not nonnegative(Elsewhere(h.grad_fn))  # type: ignore[arg-type]
    assert not nonnegative(Elsewhere(None))  # type: ignore[arg-type]
    assert "CreditBackward" in _KEEPS


def test_without_rules_nothing_changes() -> None:
    model = network()
    for options in ({}, {"rule": "zero"}, {"rule": rules.Epsilon()}, {"rules": {}}):
        mode = attrain.LFP(model, **options)._mode
        assert type(mode) is credit_module._Mode
    assert type(attrain.LFP(model, rule="gamma")._mode) is not credit_module._Mode


def test_context_shows_copies_and_pickles() -> None:
    model = network()
    given = {"0": rules.Box(0, 1), "[1-6]": rules.Gamma(0.1), nn.Linear: "z+"}
    credit = attrain.LFP(model, rule="epsilon-plus", rules=given, feedback="epsilon")
    shown = repr(credit)
    assert "rule='epsilon-plus'" in shown and "'0': Box(low=0, high=1)" in shown
    assert "Gamma(gamma=0.1)" in shown and "feedback='epsilon'" in shown
    assert repr(rules.Gamma(0.5, epsilon=0.1)) == "Gamma(gamma=0.5, epsilon=0.1)"
    assert repr(rules.ZPlus()) == "ZPlus()"
    loss = partial(rewards.softmax, target=LABELS)
    with credit:
        out = model(IMAGES)
    loss(out).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for made in (copy.deepcopy(credit), pickle.loads(pickle.dumps(credit))):
        assert repr(made) == shown
        with made:
            out = made._model(IMAGES)
        loss(out).backward()
        for name, parameter in made._model.named_parameters():
            assert torch.equal(parameter.grad, wanted[name])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rule": "gama"}, "unknown rule 'gama'. Did you mean 'gamma'"),
        ({"rule": "epsilon-plu"}, "Did you mean 'epsilon-plus'"),
        ({"rule": 3}, "a rule is a name or an attrain.rules.Decomposition .* got 3"),
        ({"rule": rules.Gamma}, r"Gamma is a class of rules: write Gamma\(\)"),
        ({"feedback": "epsilo"}, "unknown feedback 'epsilo'. Did you mean 'epsilon'"),
        ({"rules": {"0": "z"}}, "unknown rule 'z'. Did you mean 'z"),
        ({"rules": {"0": "epsilon-plus"}}, "'epsilon-plus' is a preset, for whole models"),
        ({"rules": {"features.0": "z+"}}, "no layer of the model is called so. Did you mean '0'"),
        ({"rules": {"conv*": "z+"}}, "rules= names 'conv.*', and no layer.*Layers: 0, 3, 6, 8"),
        ({"rules": {"1": "z+"}}, r"'1' \(ReLU\) is no linear or convolution layer: it has a rule"),
        ({"rules": {nn.Conv3d: "z+"}}, "names Conv3d, and the model has no layer.*Conv2d, Linear"),
        ({"rules": {3: "z+"}}, "rules= takes names of modules, patterns .* got 3"),
        ({"rule": "gamma", "scale": "hypentropy", "beta": 0.1}, "beta=0.1 scales a gradient"),
    ],
)
def test_unknown_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        attrain.LFP(network(), **options)


def test_a_name_of_what_holds_layers() -> None:
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)))
    with pytest.raises(InputError, match=r"'features' \(Sequential\) has no weight.*'features.\*'"):
        attrain.LFP(model, rules={"features": "z+"})
    with pytest.raises(InputError, match=r"'features.1' \(BatchNorm2d\) is no linear"):
        attrain.LFP(model, rules={"features.1": "z+"})
    with pytest.raises(InputError, match=r"'0' \(LSTM\) is no linear or convolution layer"):
        attrain.LFP(nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2)), rules={"0": "z+"})
    attrain.LFP(model, rules={"features.*": "z+"})


@pytest.mark.parametrize("options", [{"rule": "epsilon-plus"}, {"rules": {"a": "z+"}}])
def test_tensors_have_no_modules(options: dict[str, Any]) -> None:
    weight = torch.randn(2, 2, requires_grad=True)
    with pytest.raises(InputError, match="go by the modules of a model"):
        attrain.LFP([weight], **options)
    with attrain.LFP([weight], rule="z+"):
        F.linear(torch.randn(3, 2), weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: rules.AlphaBeta(2, 2), "alpha - beta must be 1 .* got alpha=2, beta=2.*alpha=3"),
        (lambda: rules.AlphaBeta(0.5, -0.5), "with beta >= 0"),
        (lambda: rules.AlphaBeta(math.nan, 1), "alpha - beta must be 1"),
        (lambda: rules.Gamma(-0.1), "gamma must be a finite number >= 0, got -0.1"),
        (lambda: rules.Gamma(math.nan), "gamma must be a finite number >= 0, got nan"),
        (lambda: rules.ZPlus(epsilon=-1), "epsilon must be a finite number >= 0, got -1"),
        (lambda: rules.Zero(epsilon=0.1), "the zero rule has no epsilon, got 0.1"),
        (lambda: rules.Box(math.nan, 1), "bounds of Box must be numbers, got NaN"),
        (lambda: rules.Box(0, torch.tensor([1, math.nan])), "must be numbers, got NaN"),
        (lambda: rules.Box(1, 0), "lower bound of Box must not be the higher one"),
        (lambda: rules.Box(0), "both bounds or none, got low=0, high=None"),
    ],
)
def test_rules_that_make_no_sense(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        make()


def test_data_that_leave_the_box() -> None:
    model = network()
    per_channel = rules.Box(torch.zeros(2, 1, 1), torch.tensor([1.0, 2.0]).reshape(2, 1, 1))
    for box in (rules.Box(0, 1), per_channel):
        with attrain.LFP(model, rules={"0": box}):
            model(IMAGES)
            with pytest.raises(
                CreditError,
                match=r"conv2d at .*test_rules.py:\d+: inputs leave the"
                r" bounds of Box\(.*after normalisation",
            ):
                model(IMAGES + 1.1)
    # What rounding does is no leaving.
    with attrain.LFP(model, rules={"0": rules.Box(0, float(IMAGES.max()) * (1 - 1e-16))}):
        model(IMAGES)


class Squares(rules.Decomposition):
    """w^2 in proportion, a rule of a user's own."""

    vanishing = False

    def parts(self, a: rules.Signed, w: rules.Signed) -> list[rules.Part]:
        return [rules.Part([(torch.ones_like(a.values), w.values.square())])]


def test_a_rule_of_ones_own() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    x = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    r = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    with attrain.LFP(layer, rule=Squares(), epsilon=0.0):
        out = layer(x)
    out.backward(-r / out.detach())
    w, b = layer.weight.detach(), layer.bias.detach()
    messages = w**2 / (w**2).sum(1, keepdim=True).add(b[:, None] ** 2) * r.T
    assert close(-layer.weight.grad, w.sign() * messages)
    assert close(-x.grad * x.detach(), messages.sum(0, keepdim=True))
    assert repr(Squares()) == "Squares()"
    with pytest.raises(TypeError, match="abstract"):
        rules.Decomposition()  # type: ignore[abstract]
