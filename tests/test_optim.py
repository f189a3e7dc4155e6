"""Adaptive gradient clipping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_spiking import clipped
from torch import nn

from attrain.errors import InputError
from attrain.optim import adaptive_clip_grad_

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
