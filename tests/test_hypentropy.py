"""Feedback scaled by sqrt(w^2 + beta^2), between LFP and gradient descent."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import array, share
from torch import nn

import attrain
from attrain import rewards
from attrain.errors import CreditWarning, InputError
from attrain.models import LeNet
from attrain.rules.call import Scale, scale_feedback

BETA = 0.03


def feedback(model, run, loss, **options):
    model.zero_grad()
    with attrain.LFP(model, **options):
        out = run()
    loss(out).backward()
    return {name: -p.grad for name, p in model.named_parameters() if p.grad is not None}


def lenet():
    torch.manual_seed(0)
    model = LeNet((1, 16, 16), 4, width=4).double()
    x, y = torch.randn(3, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 2, 1])
    return model, x, y


def sizes(weight, beta, relative, contraharmonic=False):
    """Return sqrt(w^2 + beta^2) of every entry, one by one, over their mean where `relative`."""
    values = [math.hypot(w, beta) for w in weight.detach().flatten().tolist()]
    mean = sum(values) / len(values) if relative else 1.0
    if contraharmonic:
        mean = sum(value * value for value in values) / sum(values)
    return torch.tensor([value / mean for value in values], dtype=torch.float64).view(weight.shape)


def slow_layer(layer, x, r, epsilon, beta):
    """Return equation 4 of a linear layer with sqrt(w^2 + beta^2) for |w|, neuron by neuron."""
    w, b, a = array(layer.weight), array(layer.bias), array(x)
    d_w, d_b = np.zeros_like(w), np.zeros_like(b)
    for n in range(len(a)):
        for j in range(len(w)):
            z = b[j] + sum(w[j, i] * a[n, i] for i in range(w.shape[1]))
            s = share(r[n, j], z, epsilon)
            for i in range(w.shape[1]):
                d_w[j, i] += math.sqrt(w[j, i] ** 2 + beta**2) * a[n, i] * s
            d_b[j] += math.sqrt(b[j] ** 2 + beta**2) * s
    return {"weight": torch.from_numpy(d_w), "bias": torch.from_numpy(d_b)}


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_feedback_equals_the_twin(epsilon):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    with torch.no_grad():
        layer.weight[1], layer.bias[2] = 0.0, 0.0
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    found = feedback(
        layer,
        lambda: layer(x),
        lambda out: rewards.softmax(out, y),
        epsilon=epsilon,
        scale="hypentropy",
        beta=BETA,
    )
    r = array(rewards.initial("softmax", layer(x).detach(), y) / len(y))
    for name, wanted in slow_layer(layer, x, r, epsilon, BETA).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("beta", [BETA, 0.0])
@pytest.mark.parametrize("scale", ["hypentropy", "relative", "contraharmonic"])
def test_every_parameter_is_scaled_by_its_size(scale, beta):
    model, x, y = lenet()

    def objective(out):
        return rewards.softmax(out, y)

    plain = feedback(model, lambda: model(x), objective)
    found = feedback(model, lambda: model(x), objective, scale=scale, beta=beta)
    for name, parameter in model.named_parameters():
        wanted = plain[name] / parameter.detach().abs()
        wanted = wanted * sizes(parameter, beta, scale == "relative", scale == "contraharmonic")
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-14)


def test_beta_0_is_lfp_to_the_bit():
    model, x, y = lenet()
    for name, limit in (("abs", "hypentropy"), ("relative", "relative")):
        plain = feedback(model, lambda: model(x), lambda o: rewards.softmax(o, y), scale=name)
        found = feedback(
            model, lambda: model(x), lambda o: rewards.softmax(o, y), scale=limit, beta=0.0
        )
        assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_a_large_beta_is_gradient_descent():
    model, x, y = lenet()
    F.cross_entropy(model(x), y).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    for scale, factor in (("hypentropy", 1e6), ("relative", 1.0), ("contraharmonic", 1.0)):
        found = feedback(
            model,
            lambda: model(x),
            lambda out: F.cross_entropy(out, y),
            rule="zero",
            scale=scale,
            beta=1e6,
        )
        for name, gradient in gradients.items():
            torch.testing.assert_close(-found[name] / factor, gradient, rtol=1e-9, atol=1e-12)


class LowRank(nn.Module):
    """A frozen layer plus B A, of which B starts at zero, as in LoRA."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 3).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, 6) / 6)
        self.b = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


@pytest.mark.parametrize(("scale", "rate"), [("hypentropy", 1.0), ("relative", 0.3)])
def test_a_matrix_of_zeros_learns(scale, rate):
    torch.manual_seed(0)
    model = LowRank()
    x = torch.randn(64, 6)
    y = F.linear(x, torch.randn(3, 6)).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing stays at zero, so nothing is warned of
        credit = attrain.LFP(model, rule="zero", scale=scale, beta=0.05)
    optimizer = torch.optim.SGD([model.a, model.b], lr=rate)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        with credit:
            out = model(x)
        loss = rewards.softmax(out, y)
        loss.backward()
        optimizer.step()
        losses.append(F.cross_entropy(out.detach(), y).item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.b.abs().min() > 0


def test_an_output_of_exactly_0_has_no_reward_unless_epsilon_is_0():
    torch.manual_seed(0)
    model, x, y = LowRank(), torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
    for epsilon in (1e-6, 0.0):
        found = feedback(
            model,
            lambda: model(x),
            lambda out: rewards.softmax(out, y),
            scale="relative",
            beta=0.01,
            epsilon=epsilon,
        )
        assert (found["b"].abs() > 1e-3).all() == (epsilon == 0.0)
        assert (found["b"].abs() < 1e-6).all() == (epsilon > 0.0)


def test_without_beta_a_matrix_of_zeros_stays_and_the_remedy_is_named():
    with pytest.warns(CreditWarning, match=r"staying there: b\..*scale='hypentropy', beta=0.01"):
        credit = attrain.LFP(model := LowRank())
    with credit:
        out = model(torch.randn(4, 6))
    rewards.softmax(out, torch.tensor([0, 1, 2, 0])).backward()
    assert not model.b.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_keeps_a_small_beta(dtype):
    weight, gradient = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    found = scale_feedback(gradient, weight, Scale(beta=1e-4))
    torch.testing.assert_close(found, torch.full_like(weight, 1e-4), rtol=1e-2, atol=0)


@pytest.mark.parametrize("contraharmonic", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_sparse_gradients_of_embeddings(relative, contraharmonic):
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True).double()
    weight = table.weight.detach()
    gradient = torch.sparse_coo_tensor(
        [[1, 4]], torch.randn(2, 3).double(), (5, 3), check_invariants=True
    )
    scale = Scale(relative, BETA, contraharmonic and relative)
    found = scale_feedback(gradient, weight, scale).to_dense()
    wanted = gradient.to_dense() * sizes(weight, BETA, relative, contraharmonic and relative)
    torch.testing.assert_close(found, wanted)


def test_the_contraharmonic_mean_does_not_fall_as_a_tensor_becomes_sparse():
    weight = torch.zeros(1000)
    weight[:20] = torch.tensor([0.2, -0.2]).repeat(10)
    ones = torch.ones_like(weight)
    found = scale_feedback(ones, weight, Scale(relative=True, contraharmonic=True))
    torch.testing.assert_close(found[:20], ones[:20])
    torch.testing.assert_close(
        scale_feedback(ones, weight, Scale(relative=True))[:20], 50 * ones[:20]
    )
    nothing = scale_feedback(ones, 0 * weight, Scale(relative=True, contraharmonic=True))
    assert not nothing.any()


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20),
    st.floats(0, 10, width=32),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_the_size_lies_between_the_weight_and_beta(values, beta, relative):
    weight = torch.tensor(values, dtype=torch.float64)
    size = scale_feedback(torch.ones_like(weight), weight, Scale(relative, beta))
    if relative:
        assert (size >= 0).all()
        if beta > 1e-6:
            assert size.mean().item() == pytest.approx(1.0)
        return
    slack = 1 + 1e-12
    assert (size * slack >= weight.abs()).all() and (size * slack >= beta).all()
    assert (size <= (weight.abs() + beta) * slack + 1e-150).all()


def test_copies_keep_beta():
    model = nn.Linear(2, 2)
    credit = attrain.LFP(model, scale="hypentropy", beta=0.25)
    assert repr(credit) == (
        "LFP(Linear, epsilon=1e-06, scale='hypentropy', beta=0.25, batch_norm='constant', "
        "opposite_sign='keep', gate='half')"
    )
    for copied in (copy.deepcopy(credit), pickle.loads(pickle.dumps(credit))):
        with copied:
            pass
        assert copied.beta == 0.25 and copied._settings.scaled.scale == Scale(beta=0.25)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": "hypentropy"}, "'hypentropy' needs beta, in the units of the weights"),
        ({"beta": 0.1}, "beta=0.1 has no part in scale='abs': use scale='hypentropy'"),
        ({"scale": "hypentropy", "beta": -1.0}, "beta must be a finite number >= 0, got -1.0"),
        ({"scale": "relative", "beta": float("nan")}, "a finite number >= 0, got nan"),
        ({"scale": "hypentropi", "beta": 0.1}, "unknown scale 'hypentropi'. Did you mean 'hypen"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        attrain.LFP(nn.Linear(2, 2), **options)
