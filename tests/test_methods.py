"""Every method of the registry, and the losses they make."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_data, small_model

from attrain.errors import InputError
from attrain.methods import METHODS, BatchLoss, find


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_every_parameter_a_gradient(name):
    model, (x, y) = small_model(), small_data().train.tensors
    loss, out = BatchLoss(find(name), model)(x, y)
    loss.backward()
    assert loss.shape == () and out.shape == (len(x), 3)
    for parameter in model.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    assert find(name).name == name and find(name).description.endswith(".")


def test_sgd_is_the_gradient_of_the_cross_entropy():
    model, (x, y) = small_model().eval(), small_data().train.tensors
    loss, out = BatchLoss(find("sgd"), model)(x, y)
    torch.testing.assert_close(out, model(x))
    torch.testing.assert_close(loss, F.cross_entropy(out, y))


def test_the_penalty_is_over_the_weights_of_linear_and_convolution_layers_alone():
    model, (x, y) = small_model().eval(), small_data().train.tensors
    method = find("sgd-l1")
    loss, out = BatchLoss(method, model)(x, y)
    layers = model[0], model[5]
    penalty = sum(abs(w) for layer in layers for w in layer.weight.flatten().tolist())
    expected = F.cross_entropy(out, y).item() + method.l1 * penalty
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_relative_scaling_keeps_the_mean_size_of_a_step():
    model, (x, y) = small_model().eval(), small_data().train.tensors
    gradients = {}
    for name in ("lfp", "lfp-abs"):
        model.zero_grad()
        BatchLoss(find(name), model)(x, y)[0].backward()
        gradients[name] = model[5].weight.grad.clone()
    scale = model[5].weight.abs().mean()
    torch.testing.assert_close(gradients["lfp"] * scale, gradients["lfp-abs"])


def test_methods_with_credit_say_whose_they_are():
    assert all(method.citation for method in METHODS.values() if method.credit is not None)


def test_unknown_methods_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown method 'lfp-spares'. Did you mean 'lfp-sparse'?"):
        find("lfp-spares")
