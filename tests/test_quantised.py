"""Weights made by functions without a derivative, against the rule written with loops."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import attrain
from attrain.errors import CreditError

EPSILON = 1e-6


@attrain.rules.elementwise
def binary(w: Tensor) -> Tensor:
    return torch.where(w < 0, -1.0, 1.0).to(w.dtype)


@attrain.rules.elementwise
def int8(z: Tensor) -> Tensor:
    scale = z.abs().amax() / 127
    return (z / scale).round() * scale


def torch_int8(w: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(w.float(), 0.01, 0, -128, 127).to(w.dtype)


def torch_int8_by_row(w: Tensor) -> Tensor:
    scale = w.detach().float().abs().amax(1) / 127
    zero = torch.zeros(len(w), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w.float(), scale, zero, 0, -128, 127).to(w.dtype)


shifted = attrain.rules.elementwise(lambda w: (4 * w - 0.3).round() / 4, keeps_sign=False)

QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "binary": binary,
    "elementwise int8": int8,
    "int8 of torch": torch_int8,
    "int8 by row of torch": torch_int8_by_row,
    "sign": torch.sign,
    "rounded": torch.round,
    "truncated": torch.trunc,
    "floor": torch.floor,
    "not keeping the sign": shifted,
}


class Quantised(nn.Module):
    def __init__(self, quantise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantise = quantise

    def forward(self, w: Tensor) -> Tensor:
        return self.quantise(w)


def quantised_layer(quantise: Callable[[Tensor], Tensor]) -> nn.Linear:
    layer = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(3 * torch.randn(3, 5, generator=torch.Generator().manual_seed(4)))
    parametrize.register_parametrization(layer, "weight", Quantised(quantise), unsafe=True)
    return layer


def feedback_by_loops(w: Tensor, q: Tensor, x: Tensor, r: Tensor, scale: str) -> Tensor:
    """Equations 4 and 6, with the reward of a quantised weight handed on to the latent one."""
    d = torch.zeros_like(w)
    mean = float(q.abs().mean())
    for n in range(len(x)):
        for j in range(len(q)):
            z = sum(float(q[j, i] * x[n, i]) for i in range(q.shape[1]))
            stable = z + (EPSILON if z >= 0 else -EPSILON)
            for i in range(q.shape[1]):
                reward = float(q[j, i] * x[n, i] / stable * r[n, j])  # of this weight
                sign = -1.0 if w[j, i] < 0 else 1.0
                d[j, i] += sign * reward / (mean if scale == "relative" else 1.0)
    return d


@pytest.mark.parametrize("scale", ["abs", "relative"])
@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_weight_hands_its_feedback_to_the_latent_one(name: str, scale: str) -> None:
    layer = quantised_layer(QUANTISERS[name])
    latent = layer.parametrizations.weight.original
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0])
    with attrain.LFP(layer, epsilon=EPSILON, scale=scale):
        out = layer(x)
    attrain.rewards.softmax(out, y, reduction="sum").backward()
    with torch.no_grad():
        q = QUANTISERS[name](latent)
        r = attrain.rewards.initial("softmax", out, y)
        wanted = feedback_by_loops(latent, q, x, r, scale)
    assert wanted.any()
    single = "torch" in name  # torch quantises in single precision alone
    torch.testing.assert_close(
        -latent.grad, wanted, rtol=1e-6 if single else 1e-10, atol=1e-6 if single else 1e-12
    )


def test_a_binary_weight_gets_the_gradient_itself() -> None:
    layer = quantised_layer(binary)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    with attrain.LFP(layer, rule="zero"):
        out = layer(x)
    attrain.rewards.softmax(out, y).backward()
    q = layer.weight.detach().requires_grad_()
    nn.functional.cross_entropy(x @ q.T, y).backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, q.grad)


def test_weights_that_are_quantised_to_zero_get_no_feedback() -> None:
    weight = torch.tensor([[0.2, 3.0]], requires_grad=True)
    with attrain.LFP([weight]):
        out = torch.nn.functional.linear(torch.ones(1, 2), torch.round(weight))
    attrain.rewards.outcome(out, 1.0).backward()
    assert weight.grad is not None and weight.grad[0, 0] == 0 and weight.grad[0, 1] < 0


def test_the_forward_pass_and_the_quantiser_outside_stay_as_they_are() -> None:
    layer = quantised_layer(torch_int8_by_row)
    x = torch.randn(4, 5, dtype=torch.float64)
    with attrain.LFP(layer):
        inside = layer(x)
    assert torch.equal(inside, layer(x))


def test_flipped_signs_are_not_turned() -> None:
    weight = torch.tensor([[0.05, 1.0]], dtype=torch.float64, requires_grad=True)
    assert shifted(weight.detach())[0, 0] == 0
    turned = attrain.rules.elementwise(lambda w: w - 0.5, keeps_sign=False)
    grads = {}
    for opposite in ("keep", "flip"):
        weight.grad = None
        with attrain.LFP([weight], opposite_sign=opposite):
            out = torch.nn.functional.linear(torch.ones(1, 2).double(), turned(weight))
        attrain.rewards.outcome(out, 1.0).backward()
        assert weight.grad is not None
        grads[opposite] = weight.grad.clone()
    assert torch.equal(grads["keep"], grads["flip"] * torch.tensor([[-1.0, 1.0]]).double())


def test_a_quantiser_of_two_parameters_is_refused() -> None:
    w, scale = torch.randn(3, 5, requires_grad=True), torch.ones(1, requires_grad=True)
    both = attrain.rules.elementwise(lambda w, s: (w / s).round() * s)
    with attrain.LFP([w, scale]), pytest.raises(CreditError, match=r"several parameters.*detach"):
        both(w, scale)


def test_fake_quantised_activations_have_the_secant_slope() -> None:
    weight = torch.tensor([-0.774, 0.031, 0.0, 2.0], requires_grad=True)
    with attrain.LFP([weight]):
        z = torch.ones(4) * weight
        z.retain_grad()
        q = torch.fake_quantize_per_tensor_affine(z, 0.01, 0, -128, 127)
    q.backward(torch.ones(4))
    wanted = q.detach() / (z.detach() + torch.where(z < 0, -EPSILON, EPSILON))
    torch.testing.assert_close(z.grad, wanted)


def test_models_prepared_by_torch_for_quantisation_aware_training_learn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao about its own deprecation
        from torch.ao import quantization

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        model.train()
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        model = quantization.prepare_qat(model)
        y = torch.arange(90) % 3
        x = nn.functional.one_hot(y, 3).repeat(1, 2) + 0.3 * torch.randn(90, 6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        credit = attrain.LFP(model, scale="relative")
        for _ in range(60):
            optimizer.zero_grad()
            with credit:
                out = model(x)
            attrain.rewards.softmax(out, y).backward()
            optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert (model(x).argmax(1) == y).float().mean() > 0.9
