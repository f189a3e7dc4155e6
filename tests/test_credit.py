"""The engine against its slow twin, Theorem 1, conservation, and the zoo."""

import copy
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import array, twin
from torch import Tensor, nn
from torch.nn import init
from zoo import ZOO, Case

import attrain
from attrain import rewards
from attrain.errors import CreditError, CreditWarning, InputError
from attrain.models import LeNet, VGGLike
from attrain.rules import REGISTRY, activation

EPSILONS = (1e-6, 0.0)


def _family(rule: Any) -> Any:
    while isinstance(rule, partial):
        rule = rule.func
    return rule


def _activations() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return every registered function of one tensor that deep networks can be made of.

    That is: defined everywhere, without poles, and not growing so fast that they overflow.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    z = torch.cat([torch.linspace(-4, 4, 8001), torch.tensor([-1e-9, 1e-9])]).double()
    for function, rule in REGISTRY.items():
        if _family(rule) not in (activation.relu, activation.nonlinear, activation.homogeneous):
            continue
        name = getattr(function, "__name__", "")
        if name.endswith("_") or name in ("rrelu", "nan_to_num") or name in found:
            continue
        try:
            value = function(z)
        except (TypeError, RuntimeError):
            continue
        if isinstance(value, Tensor) and value.shape == z.shape and value.abs().max() < 5:
            found[name] = function
    return found


ACTIVATIONS = _activations()


class Phi(nn.Module):
    """A registered function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


def replace_activations(model: nn.Module, phi: Callable[[Tensor], Tensor]) -> nn.Module:
    """Put `phi` wherever the model has an activation."""
    for name, child in model.named_children():
        if isinstance(child, nn.ReLU):
            setattr(model, name, Phi(phi))
        else:
            replace_activations(child, phi)
    return model


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 256, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )


def resnet18() -> nn.Module:
    """Return ResNet-18 with the stem for small images: its last maps are 2x2.

    With the other stem they are one pixel, and batch statistics over two values amplify the
    rounding of the forward pass itself by up to 1e4.
    """
    BasicBlock = pytest.importorskip("torchvision.models.resnet").BasicBlock  # noqa: N806

    def stage(inputs: int, planes: int, stride: int) -> nn.Sequential:
        down = None
        if stride > 1:
            down = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )
        return nn.Sequential(BasicBlock(inputs, planes, stride, down), BasicBlock(planes, planes))

    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        stage(4, 4, 1), stage(4, 8, 2), stage(8, 16, 2), stage(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "lenet": lambda: LeNet((3, 16, 16), 4, width=4),
    "vgg-like": lambda: VGGLike((3, 16, 16), 4, width=4),
    "resnet18": resnet18,
}


def prepared(topology: str, phi: Callable[[Tensor], Tensor] = F.relu) -> nn.Module:
    """Return a network in float64 with nothing at zero and running statistics of its own."""
    torch.manual_seed(0)
    model = replace_activations(TOPOLOGIES[topology](), phi).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            init.normal_(module.bias, std=0.3)
            init.uniform_(module.weight, 0.5, 1.5)
            init.normal_(module.running_mean, std=0.3)
            init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        yield


def feedback(model: nn.Module, run: Callable[[], Tensor], loss: Callable[[Tensor], Tensor],
             **options: Any) -> dict[str, Tensor]:  # fmt: skip
    """Return minus the gradients that one pass under credit leaves."""
    model.zero_grad()
    with attrain.LFP(model, **options):
        out = run()
    loss(out).backward()
    return {n: -p.grad for n, p in model.named_parameters() if p.grad is not None}


def close(found: Tensor, wanted: Any, tolerance: float = 1e-12) -> bool:
    wanted = torch.as_tensor(wanted)
    return float((found - wanted).norm()) <= tolerance * max(float(wanted.norm()), 1e-30)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_feedback_equals_the_twin(topology: str, training: bool, epsilon: float) -> None:
    check_against_twin(topology, F.relu, training, epsilon)


COMMON = ("relu", "silu", "gelu", "tanh", "leaky_relu")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("topology", "name"),
    [
        pytest.param(
            topology,
            name,
            marks=[pytest.mark.slow]
            if topology in ("vgg-like", "resnet18") and name not in COMMON
            else [],
        )
        for topology in TOPOLOGIES
        for name in ACTIVATIONS
    ],
)
def test_feedback_equals_the_twin_for_every_activation(
    name: str, topology: str, training: bool
) -> None:
    check_against_twin(topology, ACTIVATIONS[name], training, 1e-6)


def keep(seen: dict[nn.Module, Any], module: nn.Module, args: Any, out: Tensor) -> None:
    """Remember what a module computed; of dropout, what it multiplied each value with."""
    if isinstance(module, nn.Dropout):
        if module.training:
            seen[module] = array(torch.where(args[0] == 0, 0.0, out / args[0]))
    else:
        seen[module] = array(out)


def check_against_twin(topology: str, phi: Any, training: bool, epsilon: float) -> None:
    model = prepared(topology, phi).train(training)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    y = torch.tensor([0, 2])
    seen: dict[nn.Module, Any] = {}
    hooks = [module.register_forward_hook(partial(keep, seen)) for module in model.modules()]
    torch.manual_seed(1)
    with torch.no_grad():
        plain = model(x)
    for hook in hooks:
        hook.remove()
    reference = twin(model, epsilon, phi, seen)
    assert close(plain, reference.forward(array(x)), 1e-11)
    r = rewards.initial("softmax", plain, y) / len(y)
    reference.backward(array(r))

    def run() -> Tensor:
        torch.manual_seed(1)
        out = model(x)
        assert torch.equal(out, plain)
        return out

    found = feedback(model, run, lambda out: rewards.softmax(out, y), epsilon=epsilon)
    assert found.keys() == reference.feedback.keys()
    for name, wanted in reference.feedback.items():
        assert close(found[name], wanted), name


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_theorem_1(topology: str) -> None:
    """With epsilon 0, ReLU and r = -o dL/do, feedback is -|w| dL/dw."""
    model = prepared(topology).eval()
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])
    F.cross_entropy(model(x), y).backward()
    wanted = {name: -p.abs() * p.grad for name, p in model.named_parameters()}
    for loss in (lambda out: rewards.softmax(out, y), lambda out: F.cross_entropy(out, y)):
        found = feedback(model, lambda: model(x), loss, rule="zero")
        for name, value in wanted.items():
            assert close(found[name], value.detach()), name


def test_relative_scale_is_the_weight_over_its_mean_magnitude() -> None:
    model = prepared("lenet")
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])
    plain = feedback(model, lambda: model(x), lambda out: rewards.softmax(out, y))
    relative = feedback(model, lambda: model(x), lambda out: rewards.softmax(out, y),
                        scale="relative")  # fmt: skip
    for name, parameter in model.named_parameters():
        assert close(relative[name] * parameter.detach().abs().mean(), plain[name])


@pytest.mark.parametrize("name", ["relu", "tanh", "silu", "gelu", "elu", "leaky_relu"])
@pytest.mark.parametrize("topology", ["mlp", "lenet", "vgg-like"])
def test_reward_is_conserved_without_biases(topology: str, name: str) -> None:
    model = prepared(topology, ACTIVATIONS[name]).eval()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.bias = None
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2])
    with attrain.LFP(model, rule="zero"):
        out = model(x)
    rewards.softmax(out, y, reduction="sum").backward()
    given = rewards.initial("softmax", out, y).sum()
    assert close((-x.grad * x.detach()).sum(), given)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    batch=st.integers(1, 5),
    seed=st.integers(0, 1000),
    epsilon=st.sampled_from([0.0, 1e-6, 0.1]),
)
def test_feedback_of_a_batch_is_the_sum_of_its_samples(
    widths: list[int], batch: int, seed: int, epsilon: float
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    x, y = torch.randn(batch, widths[0]).double(), torch.randint(widths[-1], (batch,))
    order = torch.randperm(batch)

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return feedback(model, lambda: model(x),
                        lambda out: rewards.softmax(out, y, reduction="sum"),
                        epsilon=epsilon)  # fmt: skip

    whole = run(x, y)
    parts = [run(x[i : i + 1], y[i : i + 1]) for i in range(batch)]
    shuffled = run(x[order], y[order])
    for name, value in whole.items():
        assert close(sum(part[name] for part in parts), value, 1e-10)
        assert close(shuffled[name], value, 1e-10)


def test_every_nonlinearity_has_the_secant_slope_on_its_own_domain() -> None:
    z = torch.tensor([-2.1, -0.9, -0.3, 0.2, 0.7, 1.3, 2.6], dtype=torch.float64)
    checked = set()
    for function, rule in REGISTRY.items():
        if _family(rule) is not activation.nonlinear:
            continue
        try:
            value = function(z.clone())
        except (TypeError, RuntimeError):
            continue  # takes more than one argument
        valid = (
            value.isfinite() if isinstance(value, Tensor) and value.is_floating_point() else None
        )
        if valid is None or not valid.any():
            continue
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        with attrain.LFP([weight]):
            before = z * weight
            before.retain_grad()
            after = function(before.clone() if function.__name__.endswith("_") else before)
        after.backward(torch.ones_like(after))
        for index in valid.nonzero().flatten():
            slope = float(value[index]) / (float(z[index]) + (1e-6 if z[index] >= 0 else -1e-6))
            assert abs(float(before.grad[index]) - slope) < 1e-9 * max(1, abs(slope)), function
        checked.add(function.__name__)
    assert len(checked) > 60


def in_zoo(*, refused: bool) -> list[str]:
    """Return the names of the cases; what cannot be built here is skipped where it is tested."""

    def is_refused(build: Callable[[], Case]) -> bool:
        try:
            return bool(build().refused)
        except pytest.skip.Exception:
            return False

    return [name for name, build in ZOO.items() if is_refused(build) == refused]


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    hooks = tuple(
        len(getattr(module, attribute))
        for module in model.modules()
        for attribute in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    state = model.state_dict()
    return tuple(state), hooks, tuple(id(p) for p in model.parameters()), vars(model).keys()


def parameter_uses(out: Tensor) -> int:
    """Return how many calls take a parameter in the graph of a plain forward pass."""
    uses, waiting, seen = 0, [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for below, _ in node.next_functions:
            uses += isinstance(getattr(below, "variable", None), nn.Parameter)
            waiting.append(below)
    return uses


def scalings(out: Tensor) -> int:
    """Return how many calls take a parameter scaled by |w| in the graph behind `out`."""
    found, waiting, seen = 0, [out.grad_fn], set()
    takers: Counter[Any] = Counter()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        scales = getattr(node, "scaled", ())
        for index, (below, _) in enumerate(node.next_functions):
            if below is not None and index < len(scales) and scales[index]:
                found += node.name() != "ScaledBackward"
            takers[below] += 1
            waiting.append(below)
    shared = [node for node in seen if node.name() == "ScaledBackward"]
    return found + sum(takers[node] for node in shared)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run_case(case: Case, credit: Any = None) -> Tensor:
    torch.manual_seed(1)
    if credit is None:
        return case.run()
    with credit:
        return case.run()


@pytest.mark.parametrize("name", in_zoo(refused=False))
def test_the_zoo_runs_under_credit_as_without(name: str) -> None:
    plain_case, case = ZOO[name](), ZOO[name]()
    plain = run_case(plain_case)
    before = fingerprint(case.model)
    out = run_case(case, attrain.LFP(case.model))
    assert torch.equal(out, plain)
    assert fingerprint(case.model) == before
    for key, value in state(plain_case.model).items():
        assert torch.equal(case.model.state_dict()[key], value), key
    assert scalings(out) == (parameter_uses(plain) if case.uses is None else case.uses)
    rewards.raise_outputs(out, torch.ones_like(out)).backward()
    for key, parameter in case.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert "_attrain" not in vars(parameter)


@pytest.mark.parametrize("name", in_zoo(refused=True))
def test_the_zoo_is_refused_clearly(name: str) -> None:
    case = ZOO[name]()
    before, kept = fingerprint(case.model), state(case.model)
    with pytest.raises(CreditError, match=case.refused) as caught:
        rewards.raise_outputs(out := run_case(case, attrain.LFP(case.model)), torch.ones_like(out))
    assert len(str(caught.value)) < 600
    assert fingerprint(case.model) == before
    assert kept.keys() == case.model.state_dict().keys()
    assert torch.overrides._len_torch_function_stack() == 0


def plain_gradients(case: Case) -> dict[str, Tensor]:
    out = run_case(case)
    out.backward(torch.ones_like(out))
    return {n: p.grad for n, p in case.model.named_parameters()}


PIECEWISE_LINEAR = (
    "mlp", "lenet", "plus_in_forward", "bare_linear", "bare_linear_one_sample", "embedding_bag",
    "embedding_model", "functional_code", "input_that_requires_grad", "module_used_twice",
    "densely_joined", "pruned_by_torch", "in_place_on_a_slice", "dropout",
    "weight_masked_by_a_buffer",
)  # fmt: skip


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_the_zoos_piecewise_linear_models_obey_theorem_1(name: str) -> None:
    wanted = plain_gradients(ZOO[name]())
    case = ZOO[name]()
    out = run_case(case, attrain.LFP(case.model, rule="zero"))
    out.backward(torch.ones_like(out))
    for key, parameter in case.model.named_parameters():
        assert close(parameter.grad, parameter.detach().abs() * wanted[key], 1e-5), key


@pytest.mark.parametrize(
    ("by_hand", "layer"),
    [
        ("handwritten_gelu", lambda model: nn.GELU("tanh")),
        ("handwritten_rms_norm", lambda model: _rms(model[1])),
    ],
)
def test_what_is_written_by_hand_equals_the_layer(by_hand: str, layer: Any) -> None:
    case = ZOO[by_hand]()
    first, last = (
        (case.model[0], case.model[2])
        if isinstance(case.model, nn.Sequential)
        else (case.model.a, case.model.b)
    )
    same = nn.Sequential(first, layer(case.model), last)
    grads = []
    for model in (case.model, same):
        model.zero_grad()
        with attrain.LFP(model):
            out = model(*case.args)
        out.backward(torch.ones_like(out))
        grads.append([p.grad.clone() for p in (*first.parameters(), *last.parameters())])
    for found, wanted in zip(*grads, strict=True):
        assert close(found, wanted, 1e-5)


def test_every_activation_of_transformers_is_right() -> None:
    ACT2FN = pytest.importorskip("transformers.activations").ACT2FN  # noqa: N806
    z = torch.tensor([-3.1, -1.2, -0.4, -0.05, 0.03, 0.5, 1.7, 4.2], dtype=torch.float64)
    for name in ACT2FN:
        phi = ACT2FN[name]
        if isinstance(phi, nn.Module):
            phi = phi.double()
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        with attrain.LFP([weight, *getattr(phi, "parameters", list)()]):
            before = z * weight
            before.retain_grad()
            after = phi(before)
        after.backward(torch.ones_like(after))
        slope = after.detach() / (z + 1e-6 * z.sign())
        # One stabiliser more or less is all that may differ, where a function is linear in parts.
        assert torch.allclose(before.grad, slope, rtol=1e-4, atol=1e-9), name


def _rms(by_hand: Any) -> nn.Module:
    layer = nn.RMSNorm(len(by_hand.weight), eps=1e-6)
    layer.weight = by_hand.weight
    return layer


def test_a_step_written_as_a_comparison_learns() -> None:
    case = ZOO["step_from_a_comparison"]()
    out = run_case(case, attrain.LFP(case.model))
    out.backward(torch.ones_like(out))
    model, x = case.model, case.args[0]
    with torch.no_grad():
        z = model.a(x)
        c = torch.ones_like(out) @ model.b.weight
        s = torch.where(z > 0, c / (z + 1e-6), 0.0)
        wanted = model.a.weight.abs() * (s.T @ x)
    assert close(model.a.weight.grad, wanted, 1e-5)


def test_attention_by_hand_equals_the_fused_one() -> None:
    class Head(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused
            self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x), self.k(x), self.v(x)
            if self.fused:
                return F.scaled_dot_product_attention(q, k, v)
            return torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v

    torch.manual_seed(0)
    fused = Head(True).double()
    by_hand = Head(False).double()
    by_hand.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    found = [
        feedback(m, lambda m=m: m(x), lambda out: out.square().sum()) for m in (fused, by_hand)
    ]
    for name in found[0]:
        assert close(found[0][name], found[1][name], 1e-11), name


@pytest.mark.parametrize("options", [{"is_causal": True}, {"enable_gqa": True}, {"mask": True}])
def test_attention_shares_credit_as_its_parts_do(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = dict(options)
    heads = 1 if options.get("enable_gqa") else 2
    q = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, heads, 5, 4, dtype=torch.float64, requires_grad=True) for _ in "kv")
    mask = torch.rand(5, 5) > 0.3 if options.pop("mask", False) else None
    with attrain.LFP([torch.ones(1, requires_grad=True)], rule="zero"):
        out = F.scaled_dot_product_attention(q, k, v, mask, **options)
    out.backward(torch.ones_like(out))
    found = [each.grad.clone() for each in (q, k, v)]
    for each in (q, k, v):
        each.grad = None
    plain = F.scaled_dot_product_attention(q, k, v, mask, **options)
    plain.backward(torch.ones_like(plain))
    # Half to each factor: once for the values, twice for queries and keys.
    for each, share, got in zip((q, k, v), (0.25, 0.25, 0.5), found, strict=True):
        assert close(got, each.grad * share, 1e-11)


def test_batch_norm_through_the_statistics_is_the_native_gradient() -> None:
    model = prepared("resnet18").train()
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])
    F.cross_entropy(model(x), y).backward()
    wanted = {name: -p.abs() * p.grad for name, p in model.named_parameters()}
    found = feedback(model, lambda: model(x), lambda out: rewards.softmax(out, y), rule="zero",
                     batch_norm="through")  # fmt: skip
    for name, value in wanted.items():
        assert close(found[name], value.detach(), 1e-9), name


def test_opposite_sign_flips_where_the_activation_changes_the_sign() -> None:
    weight = torch.ones(1, requires_grad=True)
    z = torch.tensor([-2.0, 3.0])
    slopes = {}
    for choice in ("keep", "flip"):
        with attrain.LFP([weight], opposite_sign=choice):
            before = z * weight
            before.retain_grad()
            torch.sigmoid(before).sum().backward()
        slopes[choice] = before.grad
    assert slopes["keep"][0] < 0 < slopes["flip"][0]
    assert torch.equal(slopes["keep"].abs(), slopes["flip"])
    assert torch.equal(slopes["keep"][1], slopes["flip"][1])


def test_parameters_at_zero_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CreditWarning, match=r"exactly zero.*staying there: 1\.bias.*normal_"):
            attrain.LFP(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_activations_that_change_the_sign_are_named_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Softplus())
    credit = attrain.LFP(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with credit:
                model(torch.randn(3, 2))
    texts = [str(each.message) for each in caught]
    assert len(texts) == 2
    assert "torch.sigmoid does not keep the sign" in texts[0]
    assert "torch.nn.functional.softplus does not keep the sign" in texts[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rule": "epsilo"}, "unknown rule 'epsilo'. Did you mean 'epsilon'"),
        ({"scale": "absolute"}, "unknown scale 'absolute'. Did you mean 'abs'"),
        ({"batch_norm": "constan"}, "Did you mean 'constant'"),
        ({"opposite_sign": "flop"}, "Did you mean 'flip'"),
        ({"epsilon": -1.0}, "epsilon must be a finite number >= 0, got -1.0"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number >= 0, got nan"),
    ],
)
def test_unknown_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        attrain.LFP(nn.Linear(2, 2), **options)


@pytest.mark.parametrize("wrong", [3, "model", [1, 2], None])
def test_what_is_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="takes a module or the parameter tensors"):
        attrain.LFP(wrong)


def test_a_raw_weight_that_the_context_does_not_know() -> None:
    weight = torch.randn(3, 2, requires_grad=True)
    with attrain.LFP(nn.Linear(2, 2)), pytest.raises(CreditError, match="no parameter of the mod"):
        F.linear(torch.randn(4, 2), weight)
    with attrain.LFP([weight]):
        F.linear(torch.randn(4, 2), weight).sum().backward()
    assert weight.grad is not None


def test_the_error_names_the_function_the_place_and_the_remedy() -> None:
    model = nn.Linear(3, 3)
    with attrain.LFP(model), pytest.raises(CreditError) as caught:
        torch.logcumsumexp(model(torch.randn(2, 3)), 1)
    text = str(caught.value)
    assert "torch.logcumsumexp at " in text
    assert "test_credit.py:" in text
    assert "attrain.rules.register" in text and "detach()" in text


def test_a_registered_function_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from attrain import rules

    monkeypatch.setitem(REGISTRY, torch.logcumsumexp, None)
    rules.register(torch.logcumsumexp, "sum")
    model = nn.Linear(3, 3)
    with attrain.LFP(model):
        torch.logcumsumexp(model(torch.randn(2, 3)), 1).sum().backward()
    assert model.weight.grad is not None
    with pytest.raises(InputError, match="unknown family of rules 'sums'. Did you mean 'sum'"):
        rules.register(torch.logcumsumexp, "sums")
    with pytest.raises(InputError, match="a rule belongs to a function, got 3"):
        rules.register(3, "sum")


def test_a_rule_that_scales_and_calls_the_result_a_weight_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def careless(call: Any) -> Any:
        call.enter()
        return call.mark_derived(call.run())

    monkeypatch.setitem(REGISTRY, torch.logcumsumexp, careless)
    weight = nn.Parameter(torch.randn(3, 3))
    with pytest.raises(CreditError, match="scaled twice on one path"), attrain.LFP([weight]):
        F.linear(torch.randn(2, 3), torch.logcumsumexp(weight, 1))


def test_a_registered_autograd_function_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import Doubled

    from attrain import audit, rules

    monkeypatch.setattr(audit, "REGISTERED", set())
    rules.register(Doubled, "native")
    for name in ("custom_function_inside", "custom_function_at_the_end"):
        case = ZOO[name]()
        out = run_case(case, attrain.LFP(case.model))
        rewards.raise_outputs(out, torch.ones_like(out)).backward()
    with pytest.raises(InputError, match="its rule can only be 'native'"):
        rules.register(Doubled, "sum")


def test_an_elementwise_function_of_a_users_own() -> None:
    from attrain import rules

    quantise = rules.elementwise(lambda z: (z * 4).round() / 4)
    model = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    assert torch.equal(quantise(x), (x * 4).round() / 4)
    with attrain.LFP(model):
        z = model(x)
        z.retain_grad()
        a = quantise(z)
    a.sum().backward()
    assert close(z.grad, (a / (z + z.sign() * 1e-6)).detach(), 1e-6)


def test_no_tensor_is_kept_after_the_context() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    credit = attrain.LFP(model)

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    counts = []
    for _ in range(3):
        with credit:
            out = model(torch.randn(2, 3))
        rewards.softmax(out, torch.tensor([0, 1])).backward()
        del out
        counts.append(count())
    assert counts[-1] <= counts[0]


@pytest.mark.parametrize("kept", [True, False])
def test_credit_does_not_depend_on_what_the_caller_keeps(kept: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4).double(), torch.randn(5, 4).double()
    with attrain.LFP(layer):
        z = layer(x)
        a = F.gelu(z)
        moved = 1 + torch.tanh(layer(x))
        if not kept:
            del z
        out = a * (1 + torch.tanh(a)) + moved
    out.sum().backward()
    with torch.no_grad():
        z = layer(x)
        slope = (F.gelu(z) * (1 + torch.tanh(F.gelu(z))) + 1 + torch.tanh(z)) / z
    assert close(layer.weight.grad, layer.weight.detach().abs() * (slope.T @ x), 1e-4)


def same_feedback(first: Callable[[Any, Tensor], Tensor], second: Any, size: int = 5) -> bool:
    """Whether two forms of one network get the same feedback."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(4, size), nn.Linear(4, size)]).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = [feedback(layers, lambda f=f: f(layers, x), lambda out: out.sum(), epsilon=1e-9)
             for f in (first, second)]  # fmt: skip
    return all(close(found[0][name], found[1][name], 1e-6) for name in found[0])


def test_an_activation_of_a_pooled_tensor_is_one_of_what_was_pooled() -> None:
    mean = torch.full((5, 1), 0.2, dtype=torch.float64)

    def gelu(m: Tensor) -> Tensor:
        return 0.5 * m * (1 + torch.tanh(0.8 * (m + 0.04 * m**3)))

    for phi in (lambda m: 1 + torch.tanh(m), gelu):
        assert same_feedback(
            lambda layers, x, phi=phi: phi(layers[0](x).mean(1, keepdim=True)),
            lambda layers, x, phi=phi: phi(layers[0](x) @ mean),
        )


def test_a_tensor_that_was_changed_in_place_is_another_one() -> None:
    def in_place(layers: Any, x: Tensor) -> Tensor:
        h = layers[0](x)
        a = torch.tanh(h)
        h += layers[1](x)
        return a * h

    def out_of_place(layers: Any, x: Tensor) -> Tensor:
        h = layers[0](x)
        return torch.tanh(h) * (h + layers[1](x))

    assert same_feedback(in_place, out_of_place)


LOOPED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(5, 5), torch.randn(3, 5)),
    "linear, no bias": lambda: (nn.Linear(5, 5, bias=False), torch.randn(3, 5)),
    "conv": lambda: (nn.Conv2d(2, 2, 3, padding=1), torch.randn(2, 2, 5, 5)),
}


def loop(layer: nn.Module, x: Tensor, steps: int) -> list[Tensor]:
    """Return the states of a network that takes its last state at every step."""
    states, state = [], torch.zeros_like(x)
    for step in range(steps):
        state = torch.relu(layer(x * (step + 1) + state))
        states.append(state)
    return states


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("name", LOOPED)
def test_a_weight_used_by_every_step_of_a_loop_gets_the_sum_of_its_feedback(
    name: str, epsilon: float
) -> None:
    torch.manual_seed(0)
    layer, x = LOOPED[name]()
    layer, x = layer.double(), x.double()
    with attrain.LFP(layer, epsilon=epsilon):
        out = loop(layer, x, 5)[-1]
    (out * torch.randn_like(out)).sum().backward()
    assert scalings(out) == 5 * len([*layer.parameters()])
    # Its twin has as many layers as steps, each with weights of its own.
    torch.manual_seed(0)
    alone, x = LOOPED[name]()
    layers = [copy.deepcopy(alone).double() for _ in range(5)]
    x = x.double()
    with attrain.LFP(nn.ModuleList(layers), epsilon=epsilon):
        state = torch.zeros_like(x)
        for step, each in enumerate(layers):
            state = torch.relu(each(x * (step + 1) + state))
    (state * torch.randn_like(state)).sum().backward()
    assert torch.equal(out, state)
    for found, *wanted in zip(*map(grads, (layer, *layers)), strict=True):
        torch.testing.assert_close(found, sum(wanted), rtol=1e-12, atol=1e-13)


def grads(model: nn.Module) -> list[Tensor]:
    return [each.grad for each in model.parameters() if each.grad is not None]


def test_the_outputs_of_a_loop_may_go_back_one_by_one() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    batches = [torch.randn(3, 4) for _ in range(4)]
    with attrain.LFP(layer):
        outs = [layer(x) for x in batches]
    for out in outs:
        rewards.squared_error(out, torch.zeros_like(out)).backward()
    one_by_one = [*map(torch.clone, grads(layer))]
    layer.zero_grad()
    for x in batches:
        with attrain.LFP(layer):
            out = layer(x)
        rewards.squared_error(out, torch.zeros_like(out)).backward()
    torch.testing.assert_close(one_by_one, grads(layer))


def test_a_weight_changed_before_the_way_back_is_told_of() -> None:
    layer = nn.Linear(4, 4)
    with attrain.LFP(layer):
        outs = [layer(torch.randn(3, 4)) for _ in range(3)]
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(CreditError, match=r"shape \(4, 4\) was changed in place .* before the"):
        outs[-1].sum().backward()


def test_a_weight_changed_within_a_pass_is_scaled_as_it_is_then() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(3, 4)
    with attrain.LFP(layer):
        for _ in range(3):
            layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        out = layer(x)
    out.sum().backward()
    found = layer.weight.grad
    torch.testing.assert_close(found, x.sum(0).expand(4, 4) * layer.weight.detach().abs())


INTO = torch.tensor([0, 1, 1, 2])


@pytest.mark.parametrize(
    "gather",
    [
        lambda h, out: out.index_add_(0, INTO, h),
        lambda h, out: out.index_add(0, INTO, h),
        lambda h, out: out.scatter_add_(0, INTO[:, None].expand(-1, 5), h),
        lambda h, out: out.scatter_add(0, INTO[:, None].expand(-1, 5), h),
        lambda h, out: out.index_put_((INTO,), h, accumulate=True),
        lambda h, out: out.index_put((INTO,), h, accumulate=True),
        lambda h, out: out.scatter_reduce(0, INTO[:, None].expand(-1, 5), h, "sum"),
    ],
)
def test_sums_over_an_index_are_stabilised_as_the_matrix_that_does_the_same(gather: Any) -> None:
    """What a graph network gathers from its neighbours is a linear map, in place or not."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double(), torch.randn(4, 6).double()
    matrix = F.one_hot(INTO, 3).double().T

    def run(sum_up: Any) -> dict[str, Tensor]:
        return feedback(model, lambda: model[1](sum_up(F.relu(model[0](x)))),
                        lambda out: rewards.softmax(out, torch.tensor([0, 2, 1])),
                        epsilon=0.1)  # fmt: skip

    found, wanted = run(lambda h: gather(h, h.new_zeros(3, 5))), run(lambda h: matrix @ h)
    for name in wanted:
        assert close(found[name], wanted[name]), name


def test_a_product_over_an_index_is_refused() -> None:
    model = nn.Linear(6, 5)
    with pytest.raises(CreditError, match="scatter_reduce at .*no rule"), attrain.LFP(model):
        h = model(torch.randn(4, 6))
        h.new_ones(3, 5).scatter_reduce(0, INTO[:, None].expand(-1, 5), h, reduce="prod")


@pytest.mark.parametrize("place", [0, 1], ids=["inside", "at the end"])
@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_full_backward_hook_is_named(hook: str, place: int) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    getattr(model[place], hook)(lambda *arguments: None)
    with pytest.raises(CreditError, match=r"full backward hook.*remove"):
        with attrain.LFP(model):
            out = model(torch.randn(4, 6))
        rewards.softmax(out, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_transforms_of_functions_are_refused(transform: str) -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
    transformed: Any = {
        "vmap": torch.func.vmap(model),
        "grad": torch.func.grad(lambda x: model(x).sum()),
    }[transform]
    with pytest.raises(CreditError, match=r"at .*torch\.func"), attrain.LFP(model):
        transformed(x)
