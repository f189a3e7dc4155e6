"""Adaptive gradient clipping; the course of the weight decay, and where it lets LFP rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_spiking import clipped
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn import functional as F

import attrain
from attrain.errors import InputError
from attrain.optim import COURSES, DecaySchedule, adaptive_clip_grad_, ramp, release

SHAPES = [(), (1,), (7,), (4, 3), (5, 2, 3, 3), (2, 2, 3), (3, 0)]


def with_gradient(shape, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    parameter.grad = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return parameter


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 0.05, 10.0])
def test_clipping_equals_its_twin(shape, scale):
    parameter = with_gradient(shape, scale)
    wanted = clipped(parameter.detach(), parameter.grad.clone(), 0.02, 1e-3)
    adaptive_clip_grad_(parameter)
    torch.testing.assert_close(parameter.grad, wanted, rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES[:-1]),
    st.floats(1e-4, 10),
    st.floats(1e-6, 1e3),
    st.integers(0, 100),
)
def test_no_unit_moves_further_than_asked(shape, clipping, scale, seed):
    parameter = with_gradient(shape, scale, seed)
    before = parameter.grad.clone()
    adaptive_clip_grad_([parameter], clipping)
    rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad.reshape(1, -1)
    weights = parameter.detach().reshape(rows.shape)
    longest = clipping * weights.norm(dim=1).clamp(min=1e-3)
    assert (rows.norm(dim=1) <= longest * (1 + 1e-9)).all()
    assert (parameter.grad * before >= 0).all()
    once = parameter.grad.clone()
    adaptive_clip_grad_([parameter], clipping)
    torch.testing.assert_close(parameter.grad, once, rtol=1e-9, atol=0)


def test_silent_neurons_and_parameters_without_gradient_stay_as_they_are():
    parameter = with_gradient((3, 2), 1.0)
    parameter.grad[1] = 0.0
    bare = nn.Parameter(torch.ones(2))
    adaptive_clip_grad_(iter([parameter, bare]))
    assert not parameter.grad[1].any() and torch.isfinite(parameter.grad).all()
    assert bare.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_of_the_gradient_is_kept(dtype):
    parameter = nn.Parameter(torch.ones(4, 4, dtype=dtype))
    parameter.grad = torch.full((4, 4), 8.0, dtype=dtype)
    adaptive_clip_grad_(parameter, 0.5)
    assert parameter.grad.dtype == dtype
    torch.testing.assert_close(parameter.grad.float().norm(dim=1), torch.ones(4), rtol=0.02, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_numbers_that_cannot_work_are_refused(value):
    with pytest.raises(InputError, match=r"clipping=.* is not possible: give a finite number"):
        adaptive_clip_grad_([], value)
    with pytest.raises(InputError, match=r"floor=.* is not possible"):
        adaptive_clip_grad_([], floor=value)


# The course of the decay --------------------------------------------------------------------------


def sgd(decay=0.3):
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [
        {"params": parameters[:1], "weight_decay": decay},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.1)


def decays(optimizer):
    return [group["weight_decay"] for group in optimizer.param_groups]


def test_the_ramp_is_cubic_and_the_release_a_cosine():
    for progress, wanted in ((0, 0), (0.2, 0), (0.45, 1 - 0.5**3), (0.7, 1), (1, 1)):
        assert ramp(progress) == pytest.approx(wanted, abs=1e-12)
    for progress, wanted in ((0, 1), (0.5, 1), (0.7, 0.5), (0.9, 0), (1, 0)):
        assert release(progress) == pytest.approx(wanted, abs=1e-12)
    assert ramp(0.5, begin=0.4, end=0.6) == pytest.approx(1 - 0.5**3)


@given(st.sampled_from(sorted(COURSES)), st.floats(0, 1), st.floats(0, 1))
def test_every_course_is_a_share_and_goes_one_way(name, one, other):
    first, second = (COURSES[name](progress) for progress in sorted((one, other)))
    assert 0.0 <= first <= 1.0 and 0.0 <= second <= 1.0
    assert first >= second if name == "release" else first <= second


@pytest.mark.parametrize("name", COURSES)
def test_the_schedule_sets_what_the_course_says(name):
    optimizer = sgd()
    schedule = DecaySchedule(optimizer, steps=11, course=name)
    for step in range(14):
        wanted = 0.3 * COURSES[name](min(step / 10, 1.0))
        assert decays(optimizer) == pytest.approx([wanted, 0.0])
        optimizer.step()
        schedule.step()


def test_a_course_of_ones_own_and_a_single_step():
    optimizer = sgd(2.0)
    schedule = DecaySchedule(optimizer, steps=1, course=lambda progress: 0.25 + progress)
    assert decays(optimizer) == [0.5, 0.0] and schedule.strength == 0.25


def test_the_schedule_goes_on_from_a_checkpoint():
    optimizer = sgd()
    schedule = DecaySchedule(optimizer, steps=10)
    for _ in range(4):
        schedule.step()
    state, saved = schedule.state_dict(), optimizer.state_dict()
    other = sgd()
    resumed = DecaySchedule(other, steps=10)
    other.load_state_dict(saved)
    resumed.load_state_dict(state)
    for _ in range(3):
        schedule.step()
        resumed.step()
        assert decays(other) == decays(optimizer)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps=0 is not possible: give the updates of the training"),
        ({"steps": 9, "course": "rampe"}, "unknown course of the weight decay 'rampe'. Did you"),
        ({"steps": 9, "course": lambda _: -1.0}, "the course gave -1.0 after 0 steps: give >= 0"),
    ],
)
def test_courses_that_cannot_be_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        DecaySchedule(sgd(), **options)


def test_an_optimizer_without_decay_is_refused():
    with pytest.raises(InputError, match="no parameter group has a weight decay above 0"):
        DecaySchedule(sgd(0.0), steps=10)


# Where LFP with weight decay rests ----------------------------------------------------------------


def toy_lasso():
    torch.manual_seed(3)
    x = torch.randn(60, 8, dtype=torch.float64)
    truth = torch.tensor([2.0, -1.0, 0.5, 0, 0, 0, 0, -0.2], dtype=torch.float64)
    return x, x @ truth + 0.3 * torch.randn(60, dtype=torch.float64)


def rest(x, y, start, decay, scale="abs", l1=0.0, **options):
    """Train a linear model with LFP, squared error and weight decay until it stands still.

    `l1` is the factor of a term of the loss outside the context, which |w| does not scale.
    """
    weight = nn.Parameter(start.clone().view(1, -1))
    credit = attrain.LFP([weight], rule="zero", scale=scale, **options)
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=decay)
    for _ in range(3000):
        optimizer.zero_grad()
        with credit:
            out = F.linear(x, weight)
        (0.5 * F.mse_loss(out.squeeze(1), y) + l1 * weight.abs().sum()).backward()
        optimizer.step()
    return weight.detach().flatten()


def lasso(x, y, strength, **options):
    model = Lasso(strength, fit_intercept=False, tol=1e-12, max_iter=100_000, **options)
    return torch.from_numpy(model.fit(x.numpy(), y.numpy()).coef_)


def test_weight_decay_under_lfp_rests_at_the_lasso_where_the_signs_agree():
    (x, y), strength = toy_lasso(), 0.1
    wanted = lasso(x, y, strength)
    assert 0 < int((wanted == 0).sum()) < 8
    signs = torch.where(wanted < 0, -1.0, 1.0).double()
    found = rest(x, y, 0.3 * signs, strength)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_from_other_signs_it_rests_at_the_lasso_of_those_signs():
    (x, y), strength = toy_lasso(), 0.1
    plain = lasso(x, y, strength)
    signs = torch.tensor([1.0, 1, 1, 1, -1, 1, -1, -1], dtype=torch.float64)
    assert plain[1] < -0.5  # the start has it on the other side of zero
    wanted = signs * lasso(x * signs, y, strength, positive=True)
    found = rest(x, y, 0.3 * signs, strength)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert found[1].abs() < 1e-4 and (found - plain).abs().max() > 0.5


@pytest.mark.parametrize(("scale", "decay"), [("relative", 0.3), ("contraharmonic", 0.1)])
def test_relative_scaling_rests_where_the_strength_is_times_the_mean(scale, decay):
    x, y = toy_lasso()
    signs = torch.where(lasso(x, y, 0.1) < 0, -1.0, 1.0).double()
    found = rest(x, y, 0.3 * signs, decay, scale=scale)
    sizes = found.abs()
    mean = sizes.mean() if scale == "relative" else sizes.square().sum() / sizes.sum()
    wanted = lasso(x, y, decay * float(mean))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["abs", "contraharmonic"])
def test_an_l1_term_that_is_not_scaled_is_a_logarithmic_penalty(scale):
    (x, y), decay, l1 = toy_lasso(), 0.03, 0.02
    signs = torch.where(lasso(x, y, 0.1) < 0, -1.0, 1.0).double()
    found = rest(x, y, 0.3 * signs, decay, scale=scale, l1=l1)
    sizes = found.abs()
    mean = float(sizes.square().sum() / sizes.sum()) if scale == "contraharmonic" else 1.0
    gradient = x.T @ (x @ found - y) / len(y)
    left = sizes > 0.05
    assert 0 < int(left.sum()) < 8
    # A step is 0.1 * 0.02 long where a weight is next to zero: it swings about it.
    assert float(sizes[~left].max()) < 3 * 0.1 * l1
    for g, w in zip(gradient[left].tolist(), found[left].tolist(), strict=True):
        pull = mean * (decay + l1 / abs(w))
        assert g == pytest.approx(-pull if w > 0 else pull, rel=1e-3, abs=2e-3)


def test_hypentropy_rests_near_the_lasso_whatever_the_signs():
    (x, y), strength, beta = toy_lasso(), 0.1, 1e-3
    signs = torch.tensor([1.0, 1, 1, 1, -1, 1, -1, -1], dtype=torch.float64)
    found = rest(x, y, 0.3 * signs, strength, scale="hypentropy", beta=beta)
    torch.testing.assert_close(found, lasso(x, y, strength), rtol=0, atol=2e-2)
    gradient = x.T @ (x @ found - y) / len(y)
    slope = strength * found / (found**2 + beta**2).sqrt()
    torch.testing.assert_close(gradient, -slope, rtol=0, atol=1e-5)
