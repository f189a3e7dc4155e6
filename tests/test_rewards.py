import re
from pathlib import Path

import pytest
import reference_rewards as reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import attrain
from attrain import rewards
from attrain.errors import CreditError, InputError

SLOPED = {"softmax", "sigmoid", "squared_error"}
REDUCTIONS = ["none", "mean", "sum"]
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "rewards.md"


class Mark:
    """Stands for what the engine leaves on outputs."""

    def __init__(self, epsilon=0.0, audit=None):
        self.epsilon = epsilon
        self.audit = audit


def leaf(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def uniform(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, classes=4, ignored=None, seed=2):
    drawn = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))
    if ignored is not None:
        drawn.view(-1)[1::3] = ignored
    return drawn


def objective(name, out, target, **options):
    return getattr(rewards, name)(out, target, **options)


def gradient(loss, out):
    (grad,) = torch.autograd.grad(loss.sum(), out)
    return grad


def as_tensor(values, like):
    return torch.tensor(list(values.values()), dtype=torch.float64).reshape(like.shape)


W = torch.tensor([0.5, 2.0, 0.0, 1.25], dtype=torch.float64)
INDEXED = [
    ((4,), labels(), {}),
    ((7, 4), labels(7), {}),
    ((7, 4), labels(7), {"weight": W}),
    ((7, 4), labels(7, ignored=-100), {"weight": W}),
    ((7, 4), labels(7, ignored=3), {"ignore_index": 3}),
    ((3, 4, 2, 5), labels(3, 2, 5, ignored=-1), {"weight": W, "ignore_index": -1}),
]
SMOOTHED = [
    (shape, target, {**options, "label_smoothing": 0.3}) for shape, target, options in INDEXED
]
PROBABLE = uniform(7, 4) / uniform(7, 4).sum(1, keepdim=True)
CASES = {
    "softmax": [
        *INDEXED,
        *SMOOTHED,
        ((4,), PROBABLE[0], {}),
        ((7, 4), PROBABLE, {"weight": W, "label_smoothing": 0.2}),
        ((3, 4, 2), uniform(3, 4, 2), {"weight": W}),
    ],
    "sigmoid": [
        *INDEXED,
        *SMOOTHED,
        ((7, 4), labels(7), {"weight": W, "pos_weight": 2 * W + 1}),
        ((7, 4), uniform(7, 4), {"weight": W, "pos_weight": W + 1, "label_smoothing": 0.1}),
        ((7, 4), uniform(7, 4).round().bool(), {"weight": uniform(7, 1)}),
        ((6,), uniform(6), {}),
    ],
    "squared_error": [((7, 4), leaf(7, 4, seed=5).detach(), {}), ((5,), uniform(5), {})],
    "hits": INDEXED,
    "false_positives": INDEXED,
    "binary": [((9,), labels(9, classes=2), {}), ((9, 1), labels(9, 1, classes=2).bool(), {})],
    "outcome": [
        ((7, 4), leaf(7, 4, seed=6).detach(), {}),
        ((7, 4), leaf(7, 1, seed=6).detach(), {"rho": uniform(7, 4)}),
        ((7, 4), -1.5, {"rho": 0.5}),
        ((9,), leaf(9, seed=7).detach(), {"rho": uniform(9)}),
    ],
    "raise_outputs": [
        ((7, 4), leaf(7, 4, seed=8).detach(), {}),
        ((7, 4), leaf(1, 4, seed=8).detach(), {"cap_at_zero": True}),
        ((9,), -1, {"cap_at_zero": True}),
    ],
}
EVERY = [
    pytest.param(name, *case, id=f"{name}-{number}")
    for name, cases in CASES.items()
    for number, case in enumerate(cases)
]


def test_every_reward_of_the_registry_has_a_twin_and_cases():
    assert set(rewards.REWARDS) == set(reference.TWINS) == set(CASES)
    assert set(rewards.REWARDS) <= set(rewards.__all__)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize(("name", "shape", "target", "options"), EVERY)
def test_value_and_gradient_equal_the_twin(name, shape, target, options, epsilon, reduction):
    out = leaf(*shape)
    given = dict(options)
    if name in SLOPED:
        out._attrain = Mark(epsilon)
    else:
        epsilon = given["epsilon"] = epsilon or 0.25
    loss = objective(name, out, target, reduction=reduction, **given)
    rewarded = reference.TWINS[name](out.detach(), target, **options)
    expected = reference.loss(rewarded, reduction)
    torch.testing.assert_close(loss.detach(), as_tensor(expected, loss), rtol=1e-12, atol=1e-13)
    wanted = as_tensor(reference.gradient(rewarded, out.detach(), epsilon, reduction), out)
    torch.testing.assert_close(gradient(loss, out), wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "shape", "target", "options"), EVERY)
def test_initial_equals_the_twin(name, shape, target, options):
    out = leaf(*shape)
    r = rewards.initial(name, out, target, **options)
    expected = reference.TWINS[name](out.detach(), target, **options)[0]
    assert r.shape == out.shape and not r.requires_grad
    torch.testing.assert_close(r, as_tensor(expected, out), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "shape", "target", "options"), EVERY)
def test_the_gradient_is_linear_in_what_comes_from_above(name, shape, target, options):
    out = leaf(*shape)
    loss = objective(name, out, target, reduction="none", **options)
    upstream = uniform(*loss.shape, seed=11)
    (once,) = torch.autograd.grad(loss, out, upstream, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, out, -512 * upstream, retain_graph=True)
    torch.testing.assert_close(scaled, -512 * once, rtol=1e-14, atol=0)
    parts = [
        torch.autograd.grad(sample, out, weight, retain_graph=True)[0]
        for sample, weight in zip(loss.reshape(-1), upstream.reshape(-1), strict=True)
    ]
    torch.testing.assert_close(once, sum(parts), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [None, W])
@pytest.mark.parametrize("ignored", [None, -100, 3])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (3, 4, 6), (2, 4, 3, 2)])
def test_softmax_has_the_gradient_of_cross_entropy(shape, ignored, weight, smoothing, reduction):
    out = leaf(*shape)
    rest = shape[:-1] if len(shape) < 3 else (shape[0], *shape[2:])
    target = labels(*rest, ignored=ignored if rest else None)
    options = {
        "weight": weight,
        "label_smoothing": smoothing,
        "reduction": reduction,
        "ignore_index": -100 if ignored is None else ignored,
    }
    ours, torchs = rewards.softmax(out, target, **options), F.cross_entropy(out, target, **options)
    assert ours.shape == torchs.shape and ours.dtype == torchs.dtype
    upstream = uniform(*ours.shape, seed=3)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, out, upstream)[0] for loss in (ours, torchs)),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, W])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 4, 3)])
def test_softmax_of_probabilities_has_the_gradient_of_cross_entropy(
    shape, weight, smoothing, reduction
):
    out, target = leaf(*shape), uniform(*shape)
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    ours, torchs = rewards.softmax(out, target, **options), F.cross_entropy(out, target, **options)
    assert ours.shape == torchs.shape
    torch.testing.assert_close(gradient(ours, out), gradient(torchs, out), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, W, uniform(7, 4)])
@pytest.mark.parametrize("weight", [None, W, uniform(7, 1)])
def test_sigmoid_has_the_gradient_of_binary_cross_entropy(weight, pos_weight, reduction):
    out, target = leaf(7, 4), uniform(7, 4)
    options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
    ours = rewards.sigmoid(out, target, **options)
    torchs = F.binary_cross_entropy_with_logits(out, target, **options)
    assert ours.shape == torchs.shape
    torch.testing.assert_close(gradient(ours, out), gradient(torchs, out), rtol=1e-12, atol=1e-15)


def test_sigmoid_of_class_indices_sums_over_classes_and_averages_over_samples():
    out, target = leaf(3, 4, 5), labels(3, 5)
    hot = F.one_hot(target, 4).movedim(-1, 1).double()
    loss = rewards.sigmoid(out, target)
    torchs = F.binary_cross_entropy_with_logits(out, hot, reduction="sum") / 15
    torch.testing.assert_close(gradient(loss, out), gradient(torchs, out), rtol=1e-12, atol=1e-15)
    assert rewards.sigmoid(out, target, reduction="none").shape == (3, 5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_squared_error_has_the_gradient_of_mse_loss(reduction):
    out, target = leaf(7, 4), leaf(7, 4, seed=4).detach()
    ours = rewards.squared_error(out, target, reduction=reduction)
    torchs = F.mse_loss(out, target, reduction=reduction)
    assert ours.shape == torchs.shape
    torch.testing.assert_close(gradient(ours, out), gradient(torchs, out), rtol=1e-12, atol=1e-15)


def test_value_is_minus_the_initial_reward():
    out, target = leaf(7, 4), labels(7)
    for name in ("softmax", "hits", "false_positives"):
        r = rewards.initial(name, out, target, weight=W)
        loss = objective(name, out, target, weight=W, reduction="sum")
        torch.testing.assert_close(loss.detach(), -r.sum(), rtol=1e-14, atol=0)


def test_epsilon_of_the_context_damps_the_slope_and_zero_leaves_its_bits():
    out, target = leaf(7, 4), labels(7)
    plain = gradient(rewards.softmax(out, target), out)
    out._attrain = Mark(0.0)
    assert torch.equal(gradient(rewards.softmax(out, target), out), plain)
    out._attrain = Mark(0.5)
    damped = gradient(rewards.softmax(out, target), out)
    torch.testing.assert_close(damped, plain * out.abs() / (out.abs() + 0.5))
    judged = gradient(rewards.hits(out, target), out)
    del out._attrain
    assert torch.equal(gradient(rewards.hits(out, target, epsilon=0.1), out), judged)


def test_zero_outputs_count_as_positive():
    out = torch.tensor([[0.0, -0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    r = rewards.initial("outcome", out, torch.ones(1, 3, dtype=torch.float64))
    assert r.tolist() == [[1.0, 1.0, -1.0]]
    loss = rewards.outcome(out, 1.0, epsilon=0.5, reduction="sum")
    torch.testing.assert_close(gradient(loss, out)[0, :2], out.new_tensor([-2.0, -2.0]))


def test_hits_and_false_positives_are_the_outcomes_of_table_2():
    out, target = leaf(7, 4), labels(7)
    labelled = F.one_hot(target, 4).double()
    above = (out > out.gather(1, target[:, None])).double()
    for name, R in (("hits", labelled), ("false_positives", -above)):
        ours = objective(name, out, target, reduction="sum")
        judged = rewards.outcome(out, R.detach(), reduction="sum")
        assert torch.equal(gradient(ours, out), gradient(judged, out))


def test_binary_moves_every_output_towards_the_side_of_its_label():
    out = torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0], requires_grad=True)
    target = torch.tensor([1, 0, 0, 1, 0])
    assert rewards.initial("binary", out, target).tolist() == [1, 1, -1, -1, -1]
    step = -gradient(rewards.binary(out, target), out)
    assert step.sign().tolist() == [1, -1, -1, 1, -1]


def test_capped_rewards_move_only_outputs_of_the_wrong_sign():
    out = torch.tensor([2.0, -2.0, 2.0, -2.0], requires_grad=True)
    direction = torch.tensor([1.0, 1.0, -1.0, -1.0])
    step = -gradient(rewards.raise_outputs(out, direction, cap_at_zero=True), out)
    assert step.sign().tolist() == [0, 1, -1, 0]
    step = -gradient(rewards.raise_outputs(out, direction), out)
    assert step.sign().tolist() == [1, 1, -1, -1]


def learned(credit, seed, steps=200, rate=0.03):
    """Train a linear model on three classes by |w| times its gradient; return the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(300) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    x = centres[y] + 0.4 * torch.randn(300, 2, generator=generator)
    x = torch.cat([x, torch.ones(300, 1)], 1)
    # A weight scaled by |w| keeps its sign, so every feature comes with either sign.
    x = torch.cat([x, -x], 1)
    w = 0.3 * torch.rand(3, 6, generator=generator)
    for _ in range(steps):
        out = (x @ w.T).requires_grad_()
        w = w - rate * w.abs() * (credit(out, y).T @ x)
    return float(((x @ w.T).argmax(1) == y).float().mean())


def with_sign_rule(out, y):
    return gradient(rewards.hits(out, y) + rewards.false_positives(out, y), out)


def without_sign_rule(out, y):
    o = out.detach()
    R = F.one_hot(y, 3).float() - (o > o.gather(1, y[:, None])).float()
    return -R / (o + torch.where(o < 0, -0.1, 0.1)) / len(o)


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_rule_is_what_makes_three_classes_learn(seed):
    assert learned(with_sign_rule, seed) > 0.98
    assert learned(without_sign_rule, seed) < 0.7


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["softmax", "sigmoid", "hits", "false_positives"]),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weighted=st.booleans(),
    seed=st.integers(0, 999),
)
def test_means_of_parts_add_up_to_the_mean_of_the_whole(name, sizes, weighted, seed):
    n = sum(sizes)
    out, target = leaf(n, 4, seed=seed), labels(n, seed=seed)
    weight = W + 0.5 if weighted else None
    options = {"weight": weight}

    def total(chunk):
        return float(weight[chunk].sum()) if weighted and name != "sigmoid" else len(chunk)

    whole = objective(name, out, target, **options)
    slopes = gradient(whole, out)
    parts = sum(
        objective(name, o, y, **options) * (total(y) / total(target))
        for o, y in zip(out.split(sizes), target.split(sizes), strict=True)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slopes, gradient(parts, out), rtol=1e-12, atol=1e-14)
    summed = objective(name, out, target, reduction="sum", **options)
    torch.testing.assert_close(
        gradient(summed, out) / total(target), slopes, rtol=1e-12, atol=1e-14
    )


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), seed=st.integers(0, 999))
def test_the_order_of_samples_does_not_matter(name, seed):
    shape, target, options = next(
        case
        for case in CASES[name]
        if len(case[0]) == 2
        and isinstance(case[1], torch.Tensor)
        and case[1].shape[0] == case[0][0]
    )
    out = leaf(*shape, seed=seed)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    shuffled = {
        key: value[order] if getattr(value, "shape", [0])[:1] == (shape[0],) else value
        for key, value in options.items()
    }
    mixed = out.detach()[order].requires_grad_()
    plain = gradient(objective(name, out, target, **options), out)
    other = gradient(objective(name, mixed, target[order], **shuffled), mixed)
    torch.testing.assert_close(other, plain[order], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["softmax", "hits", "false_positives", "sigmoid"])
def test_half_precision_forms_ratios_in_float32(name, dtype):
    out = leaf(64, 4, dtype=torch.float32).to(dtype).detach().requires_grad_()
    wide = out.detach().double().requires_grad_()
    target = labels(64)
    out._attrain = wide._attrain = Mark(1e-6)
    loss = objective(name, out, target)
    assert loss.dtype == torch.float32
    grad = gradient(loss * 1024, out)
    exact = gradient(objective(name, wide, target) * 1024, wide)
    assert grad.dtype == dtype
    assert torch.equal(grad, exact.float().to(dtype)) or torch.allclose(
        grad.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0
    )


def test_objectives_add_up_and_take_grad_scaler():
    out, target = leaf(7, 4, dtype=torch.float32), labels(7)
    parts = [rewards.softmax(out, target), rewards.hits(out, target)]
    expected = gradient(parts[0], out) + 0.5 * gradient(parts[1], out)
    both = rewards.softmax(out, target) + 0.5 * rewards.hits(out, target)
    torch.testing.assert_close(gradient(both, out), expected)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    both = rewards.softmax(out, target) + 0.5 * rewards.hits(out, target)
    torch.testing.assert_close(gradient(scaler.scale(both), out), 1024 * expected)


def test_evaluation_needs_no_graph():
    out, target = leaf(7, 4), labels(7)
    with torch.no_grad():
        value = rewards.softmax(out.detach(), target)
    assert not value.requires_grad
    torch.testing.assert_close(value, rewards.softmax(out, target).detach())


def test_nothing_given_is_changed():
    out, target, weight = leaf(7, 4), labels(7, ignored=-100), W.clone()
    before = out.detach().clone(), target.clone()
    rewards.softmax(out, target, weight=weight, label_smoothing=0.1).backward()
    assert torch.equal(out, before[0]) and torch.equal(target, before[1]) and torch.equal(weight, W)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_objectives_have_the_same_gradient(reduction):
    out, target = leaf(7, 4), labels(7)

    def loss(o):
        return rewards.softmax(2 * o, target, reduction=reduction).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient(compiled(out), out), gradient(loss(out), out))


@pytest.mark.parametrize(("name", "shape", "target", "options"), EVERY)
def test_on_an_accelerator_no_value_is_read(name, shape, target, options):
    def away(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    out = torch.empty(shape, device="meta", requires_grad=True)
    out._attrain = Mark(1e-6)
    given = {key: away(value) for key, value in options.items()}
    objective(name, out, away(target), **given).backward()
    assert out.grad.shape == out.shape and out.grad.dtype == out.dtype


def test_a_metric_on_an_accelerator_reads_no_value():
    objective = rewards.metric(lambda o: o.sum(1))
    for _ in range(2):
        out = torch.empty(7, 4, device="meta", requires_grad=True)
        objective(out).backward()
        assert out.grad.shape == out.shape


def test_a_second_derivative_is_refused():
    out = leaf(7, 4)
    loss = rewards.softmax(out, labels(7))
    with pytest.raises(CreditError, match="no second derivative.*without create_graph=True"):
        torch.autograd.grad(loss, out, create_graph=True)


def test_a_forgotten_context_is_caught():
    layer, x = nn.Linear(3, 4), torch.ones(2, 3)
    with pytest.raises(
        CreditError, match=r"parameter of shape \(4,?.*past any credit context.*`with credit:`"
    ):
        rewards.softmax(layer(x), labels(2))
    with attrain.LFP(layer):
        seen = layer(x).unsqueeze(-1)
    rewards.softmax(seen.squeeze(-1), labels(2)).backward()
    assert layer.weight.grad is not None
    with pytest.raises(CreditError, match=r"past any credit context"):
        rewards.hits(seen.squeeze(-1) + layer(x), labels(2))


def test_a_forgotten_context_is_caught_behind_a_compiled_model():
    model = torch.compile(nn.Linear(3, 4), backend="aot_eager")
    with pytest.raises(CreditError, match="did you forget"):
        rewards.softmax(model(torch.ones(2, 3)), labels(2))


def test_a_shared_graph_is_walked_once():
    out = leaf(2, 4)
    for _ in range(60):
        out = out + out
    rewards.hits(out, labels(2))


def test_leaves_and_parameters_as_outputs_are_allowed():
    bandit = nn.Parameter(torch.zeros(4))
    rewards.hits(bandit, torch.tensor(2)).backward()
    assert bandit.grad is not None and bandit.grad.tolist() == [0, 0, -10, 0]


def test_the_mark_audits_instead():
    layer = nn.Linear(3, 4)
    out = layer(torch.ones(2, 3))
    audited = []
    out._attrain = Mark(audit=audited.append)
    rewards.softmax(out, labels(2))
    assert len(audited) == 1 and audited[0] is out
    out._attrain = Mark()
    with pytest.raises(CreditError, match="did you forget"):
        rewards.softmax(out, labels(2))


def test_outputs_without_grad_are_refused():
    with pytest.raises(InputError, match=r"out does not require grad.*torch\.no_grad\(\)"):
        rewards.softmax(torch.randn(7, 4), labels(7))


def judge_that_is_out(out, drink):
    raise ConnectionError("nobody answers")


NAN = torch.tensor(float("nan"))
FAULTS = {
    "not a tensor": (
        lambda: rewards.softmax([1.0], labels(1)),
        r"out is a list, not a tensor.*\.logits",
    ),
    "integer outputs": (
        lambda: rewards.hits(torch.zeros(7, 4, dtype=torch.long), labels(7)),
        r"dtype torch\.int64.*logits",
    ),
    "scalar output": (lambda: rewards.softmax(leaf(), torch.tensor(0)), "out is a single number"),
    "no samples": (
        lambda: rewards.softmax(leaf(0, 4), labels(0)),
        r"shape \(0, 4\) holds no samples",
    ),
    "nan outputs": (
        lambda: rewards.softmax((leaf(2, 3).detach() / 0).requires_grad_(), labels(2)),
        r"out holds 6 values of 6 that are NaN or infinite, the first at \[0, 0\]",
    ),
    "unknown reduction": (
        lambda: rewards.softmax(leaf(7, 4), labels(7), reduction="avg_mean"),
        "unknown reduction 'avg_mean'. Did you mean 'mean'",
    ),
    "list as target": (lambda: rewards.hits(leaf(7, 4), [1] * 7), "target is a list"),
    "target of the wrong shape": (
        lambda: rewards.softmax(leaf(2, 5, 4), labels(2, 5)),
        r"target has shape \(2, 5\).*out of shape \(2, 5, 4\).*dimension 1.*indices of shape "
        r"\(2, 4\)",
    ),
    "one-hot integers": (
        lambda: rewards.softmax(leaf(7, 4), F.one_hot(labels(7), 4)),
        r"wants class indices of shape \(7,\) or floating-point values",
    ),
    "floating-point labels": (
        lambda: rewards.hits(leaf(7, 4), labels(7).float()),
        r"dtype torch\.float32 where class indices were wanted: use target\.long\(\)",
    ),
    "label too large": (
        lambda: rewards.softmax(leaf(3, 4), torch.tensor([0, 1, 4])),
        r"the label 4 at \[2\] is outside 0\.\.3 \(out has 4 classes\) \(1 of 3 are\)",
    ),
    "negative label": (
        lambda: rewards.false_positives(leaf(3, 4), torch.tensor([0, -1, 1]), ignore_index=9),
        r"the label -1 at \[1\] is outside 0\.\.3 .* and not ignore_index=9",
    ),
    "all ignored": (
        lambda: rewards.softmax(leaf(3, 4), torch.full((3,), -100)),
        r'no label counts: all of them are ignore_index.*reduction="sum"',
    ),
    "all weights zero": (
        lambda: rewards.hits(leaf(3, 4), torch.full((3,), 2), weight=W),
        "no label counts",
    ),
    "weight of the wrong shape": (
        lambda: rewards.softmax(leaf(3, 4), labels(3), weight=torch.ones(3)),
        r"weight must be a tensor with one number per class, shape \(4,\), but \(3,\) came",
    ),
    "negative weight": (
        lambda: rewards.hits(leaf(3, 4), labels(3), weight=-W),
        r"the weight -0\.5 at \[0\] is negative or not finite",
    ),
    "weight that does not expand": (
        lambda: rewards.sigmoid(leaf(3, 4), uniform(3, 4), pos_weight=torch.ones(3)),
        r"pos_weight must be a tensor that expands to the shape of out, \(3, 4\), but \(3,\) came",
    ),
    "nan weight": (
        lambda: rewards.sigmoid(leaf(3, 4), uniform(3, 4), weight=NAN),
        "the weight nan is negative or not finite",
    ),
    "too much smoothing": (
        lambda: rewards.softmax(leaf(3, 4), labels(3), label_smoothing=1.5),
        r"label_smoothing=1\.5 must lie in 0\.\.1",
    ),
    "probability above one": (
        lambda: rewards.softmax(leaf(3, 4), 2 + uniform(3, 4)),
        r"the target 2\.\d+ at \[0, 0\] is outside 0\.\.1",
    ),
    "ignored probabilities": (
        lambda: rewards.softmax(leaf(3, 4), uniform(3, 4), ignore_index=2),
        "ignore_index=2 needs class indices",
    ),
    "nan target": (
        lambda: rewards.squared_error(leaf(3, 4), NAN.expand(3, 4)),
        r"the target nan at \[0, 0\] is not finite \(12 of 12 are\)",
    ),
    "regression target of the wrong shape": (
        lambda: rewards.squared_error(leaf(3, 1), uniform(3)),
        r"target must be a tensor in the shape of out, \(3, 1\), but \(3,\) came: reshape",
    ),
    "binary label": (
        lambda: rewards.binary(leaf(3), torch.tensor([1, -1, 0])),
        r"the label -1 at \[1\] is neither 0 nor 1",
    ),
    "reward with too few dimensions": (
        lambda: rewards.outcome(leaf(4, 4), uniform(4)),
        r"R of shape \(4,\) does not fit out of shape \(4, 4\).*R\[:, None\]",
    ),
    "reward of the wrong shape": (
        lambda: rewards.raise_outputs(leaf(4, 4), uniform(3, 4)),
        r"direction of shape \(3, 4\) does not fit",
    ),
    "nan reward": (
        lambda: rewards.outcome(leaf(3, 4), NAN.expand(3, 1)),
        r"the R nan at \[0, 0\] is not finite",
    ),
    "infinite number as reward": (
        lambda: rewards.outcome(leaf(3, 4), float("inf")),
        "R is inf: it must be finite",
    ),
    "string as reward": (lambda: rewards.outcome(leaf(3, 4), "good"), "R is a str"),
    "rho above one": (
        lambda: rewards.outcome(leaf(3, 4), 1.0, rho=uniform(3, 4) + 1),
        r"the rho 1\.\d+ at \[0, 0\] is outside 0\.\.1",
    ),
    "epsilon zero": (
        lambda: rewards.hits(leaf(3, 4), labels(3), epsilon=0),
        r"epsilon=0 must be a positive number.*\|output\| \+ epsilon",
    ),
    "other device": (
        lambda: rewards.softmax(leaf(3, 4), labels(3).to("meta")),
        "target is on meta but out is on cpu",
    ),
    "unknown reward": (
        lambda: rewards.initial("sofmax", leaf(3, 4), labels(3)),
        "unknown reward 'sofmax'. Did you mean 'softmax'",
    ),
    "unknown option": (
        lambda: rewards.initial("hits", leaf(3, 4), labels(3), wieght=W),
        "unknown option of the reward 'hits' 'wieght'. Did you mean 'weight'",
    ),
    "option of a reward without any": (
        lambda: rewards.initial("binary", leaf(3), labels(3, classes=2), reduction="sum"),
        "the reward 'binary' has no options, but 'reduction' came",
    ),
    "two scores": (
        lambda: rewards.metric(lambda o: o)(leaf(3, 4)),
        r"the metric .*<lambda> returned scores of shape \(3, 4\) for outputs of shape \(3, 4\): "
        r"one score per sample was wanted, 3 numbers, shape \(3,\)",
    ),
    "nan score": (
        lambda: rewards.metric(lambda o: [1.0, float("nan"), 0.0])(leaf(3, 4)),
        r"the score of the metric .* nan at \[1\] is not finite \(1 of 3 are\)",
    ),
    "no score": (
        lambda: rewards.metric(lambda o: None)(leaf(3, 4)),
        "the metric .* returned a NoneType, None, which is no row of numbers.*3 numbers",
    ),
    "score of the whole batch": (
        lambda: rewards.metric(lambda o: 0.7)(leaf(3, 4)),
        r"returned a single number for outputs of shape \(3, 4\).*what it adds to the score of the "
        "batch",
    ),
    "words as scores": (
        lambda: rewards.metric(lambda o: ["good", "bad", "good"])(leaf(3, 4)),
        r"returned a list, \['good', 'bad', 'good'\], which is no row of numbers",
    ),
    "complex scores": (
        lambda: rewards.metric(lambda o: [1j, 0, 0])(leaf(3, 4)),
        "returned complex numbers: one score per sample was wanted, 3 numbers",
    ),
    "metric that raises": (
        lambda: rewards.metric(judge_that_is_out)(leaf(3, 4), "tea"),
        r"the metric judge_that_is_out raised ConnectionError for outputs of shape \(3, 4\): "
        r"nobody answers\. It is called as fn\(outputs, \.\.\.\)",
    ),
    "metric that raises without a word": (
        lambda: rewards.metric(lambda o: next(iter(())))(leaf(3, 4)),
        "raised StopIteration .* it gave no reason",
    ),
    "metric that takes other arguments": (
        lambda: rewards.metric(judge_that_is_out)(leaf(3, 4)),
        "raised TypeError .*missing 1 required positional argument",
    ),
    "no predicted class": (
        lambda: rewards.metric(lambda o: o)(leaf(3)),
        r"outputs of shape \(3,\) have no predicted class.*spread=function",
    ),
    "mask of the wrong kind": (
        lambda: rewards.metric(lambda o: o[:, 0], spread=lambda o: o)(leaf(3, 4)),
        r"spread must return a boolean mask.*\(3, 4\), but torch\.float64 of shape \(3, 4\) came",
    ),
    "mask that is no tensor": (
        lambda: rewards.metric(lambda o: o[:, 0], spread=lambda o: True)(leaf(3, 4)),
        "but bool came",
    ),
    "unknown spread": (
        lambda: rewards.metric(len, spread="predictd"),
        "unknown spread 'predictd'. Did you mean 'predicted'",
    ),
    "momentum of one": (lambda: rewards.metric(len, baseline=1.0), "baseline=1.0 is the momentum"),
    "foreign state": (
        lambda: rewards.metric(len).load_state_dict({"mean": 1.0}),
        "holds one entry, 'baseline', but these came: mean",
    ),
    "state with nan": (
        lambda: rewards.metric(len).load_state_dict({"baseline": float("nan")}),
        "baseline in this state is nan",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_sentence(fault):
    attempt, text = FAULTS[fault]
    with pytest.raises(InputError, match=text):
        attempt()


def test_sums_of_ignored_batches_are_zero():
    out = leaf(3, 4)
    loss = rewards.softmax(out, torch.full((3,), -100), reduction="sum")
    assert loss.item() == 0 and gradient(loss, out).abs().sum() == 0


def test_metric_rewards_the_predicted_class_above_a_running_mean():
    out, target = leaf(8, 4), labels(8)
    objective = rewards.metric(lambda o, y: (o.argmax(1) == y).float(), epsilon=0.2)
    mean = None
    for _ in range(3):
        o = out.detach()
        score = (o.argmax(1) == target).double()
        mean = score.mean() if mean is None else mean
        r = torch.zeros(8, 4, dtype=torch.float64)
        for n in range(8):
            c = int(o[n].argmax())
            r[n, c] = reference.sign(float(o[n, c])) * (score[n] - mean)
        loss = objective(out, target)
        torch.testing.assert_close(loss.detach(), -r.sum() / 8)
        signs = torch.where(o < 0, -1.0, 1.0)
        torch.testing.assert_close(gradient(loss, out), -r / (o + 0.2 * signs) / 8)
        mean = 0.9 * mean + 0.1 * score.mean()
        out, target = leaf(8, 4, seed=int(10 * mean) + 3), labels(8, seed=5)


def test_metric_takes_lists_masks_dense_outputs_and_every_reduction():
    out = leaf(2, 3, 5)
    dense = rewards.metric(lambda o: [1, 0], baseline=None, reduction="none")
    loss = dense(out)
    assert loss.shape == (2,)
    moved = gradient(loss, out) != 0
    assert torch.equal(moved[0], F.one_hot(out[0].argmax(0), 3).T.bool()) and not moved[1].any()
    one = leaf(6)
    everything = rewards.metric(
        lambda o: o, spread=lambda o: torch.ones_like(o).bool(), baseline=None, reduction="sum"
    )
    loss = everything(one)
    torch.testing.assert_close(loss.detach(), -one.detach().abs().sum())


def test_metric_keeps_its_mean_in_a_checkpoint_and_still_while_evaluating(tmp_path):
    out, scores = leaf(4, 3), [1.0, 0.0, 0.0, 0.0]
    objective = rewards.metric(lambda o, s: s)
    assert objective.state_dict() == {"baseline": None}
    objective(out, scores)
    with torch.no_grad():
        objective(out, [1.0] * 4)
    assert objective.state_dict() == {"baseline": 0.25}
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    other = rewards.metric(lambda o, s: s)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(out, scores[::-1]), objective(out, scores[::-1]))
    other.load_state_dict({"baseline": None})
    assert other.state_dict() == {"baseline": None}


def test_metric_learns_from_thumbs_alone():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    x = F.one_hot(y, 3) + 0.1 * torch.randn(150, 3, generator=generator)
    w = 0.2 * torch.rand(3, 3, generator=generator) + 0.1
    thumbs = rewards.metric(lambda o, y: (o.argmax(1) == y).float() * 2 - 1)
    for _ in range(300):
        out = (x @ w.T).requires_grad_()
        w = w - 0.3 * w.abs() * (gradient(thumbs(out, y), out).T @ x)
    assert ((x @ w.T).argmax(1) == y).float().mean() > 0.95


def test_the_page_lists_every_objective_and_its_examples_run():
    text = PAGE.read_text()
    for name in [*rewards.REWARDS, "metric"]:
        assert f"\n| `{name}` |" in text, name
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
