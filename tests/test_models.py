import sys
import textwrap
from collections import Counter

import pytest
import torch
from torch import nn

from attrain import models
from attrain.errors import InputError

SHAPES = {
    "mlp": (1, 8, 8),
    "mlp-1000": (1, 28, 28),
    "toy-mlp": (2,),
    "lenet": (1, 28, 28),
    "vgg-like": (3, 32, 32),
    "mlp-snn": (1, 8, 8),
    "lenet-snn": (1, 28, 28),
    "mnist-cnn": (1, 28, 28),
    "resnet18-small": (3, 32, 32),
    "lstm": (50, 50),
    "lstm-input-cell": (50, 50),
    "tcn": (50, 50),
    "transformer": (50, 50),
}


def shapes(model):
    return {name: list(value.shape) for name, value in model.named_parameters() if value.ndim > 1}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder and return its name."""
    monkeypatch.chdir(tmp_path)
    name = "attrain_test_models"

    def write(body):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(body))
        sys.modules.pop(name, None)
        return name

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SHAPES)
def test_every_architecture_is_built_and_learns(name):
    if name == "resnet18-small":
        pytest.importorskip("torchvision")
    model = models.build(name, SHAPES[name], 3, seed=0)
    x = torch.randn(4, *SHAPES[name])
    out = model(x)
    assert out.shape == (4, 3)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(SHAPES) == set(models.ARCHITECTURES)


def test_layers_are_those_of_the_papers():
    assert shapes(models.build("mlp", (1, 8, 8), 10)) == {
        "fc1.weight": [64, 64],
        "fc2.weight": [64, 64],
        "fc3.weight": [10, 64],
    }
    assert shapes(models.build("toy-mlp", (2,), 3)) == {
        "fc1.weight": [32, 2],
        "fc2.weight": [16, 32],
        "fc3.weight": [3, 16],
    }
    assert shapes(models.build("lenet", (1, 28, 28), 10)) == {
        "conv1.weight": [16, 1, 5, 5],
        "conv2.weight": [16, 16, 5, 5],
        "fc1.weight": [120, 256],
        "fc2.weight": [84, 120],
        "fc3.weight": [10, 84],
    }
    found = shapes(models.build("vgg-like", (3, 32, 32), 100))
    assert [found[f"conv{number}.weight"][0] for number in range(1, 7)] == [
        *(32, 64, 128, 128, 256, 256)
    ]
    assert [found[f"fc{number}.weight"] for number in (1, 2, 3)] == [
        [1024, 4096],
        [512, 1024],
        [100, 512],
    ]
    kinds = Counter(type(layer).__name__ for layer in models.VGGLike((3, 32, 32), 10))
    assert (kinds["MaxPool2d"], kinds["Dropout"], kinds["ReLU"]) == (3, 2, 8)


def test_the_cnn_of_paper_003():
    model = models.build("mnist-cnn", (1, 28, 28), 10)
    assert [type(layer).__name__ for layer in model] == [
        *("Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout", "Flatten", "Linear"),
        *("ReLU", "Dropout", "Linear"),
    ]
    assert (model.dropout1.p, model.dropout2.p) == (0.25, 0.5)
    assert shapes(model) == {
        "conv1.weight": [32, 1, 3, 3],
        "conv2.weight": [64, 32, 3, 3],
        "fc1.weight": [128, 64 * 12 * 12],
        "fc2.weight": [10, 128],
    }
    assert models.build("mnist-cnn", (1, 6, 9), 3).fc1.in_features == 64 * 1 * 2
    with pytest.raises(InputError, match="'mnist-cnn' needs pictures .* at least 6x6"):
        models.build("mnist-cnn", (1, 5, 8), 10)


def test_the_small_resnet_is_torchvisions_but_for_its_first_layers():
    torchvision = pytest.importorskip("torchvision")
    model = models.build("resnet18-small", (1, 32, 32), 10, seed=0)
    whole = torchvision.models.resnet18(num_classes=10)
    differing = {
        name
        for name, value in model.state_dict().items()
        if value.shape != whole.state_dict()[name].shape
    }
    assert model.state_dict().keys() == whole.state_dict().keys()
    assert differing == {"conv1.weight"}
    assert sum(p.numel() for p in models.build("resnet18-small", (3, 32, 32), 10).parameters()) == (
        sum(p.numel() for p in whole.parameters()) - 3 * 64 * (49 - 9)
    )
    seen = []
    model.layer1.register_forward_hook(lambda _, given, out: seen.append(given[0].shape))
    model.layer4.register_forward_hook(lambda _, given, out: seen.append(out.shape))
    model(torch.randn(2, 1, 32, 32))
    assert seen == [(2, 64, 32, 32), (2, 512, 4, 4)]


def test_vgg16_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        wanted = torchvision.models.vgg16(num_classes=5)
    model = models.build("vgg16", (3, 32, 32), 5)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in wanted.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "shape", "vectors", "message"),
    [
        ("lstm", (3, 8, 8), False, r"'lstm' needs time series of shape \[steps, features\]"),
        ("tcn", (9,), False, r"input shape \[9\]. Time series: series:middle-gaussian"),
        ("bilstm", (5,), False, r"'bilstm' reads texts: the data has numbers of shape \[5\]"),
        ("mlp", (5,), True, "the data are texts, which model 'mlp' cannot read"),
        ("bilstmm", (5,), True, "which model 'bilstmm' cannot read. Models for texts: bilstm"),
        ("lsmt", (5, 5), False, "unknown model 'lsmt'. Did you mean 'lstm'"),
    ],
)
def test_models_refuse_data_of_another_kind(name, shape, vectors, message):
    given = {"vectors": torch.randn(9, 4)} if vectors else {}
    with pytest.raises(InputError, match=message):
        models.build(name, shape, 2, **given)


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 4, 4), 16), ((1, 8, 8), 64), ((3, 16, 20), 32), ((3, 32, 32), 400), ((1, 15, 40), 480)],
)
def test_lenet_fits_small_and_large_pictures(shape, features):
    model = models.build("lenet", shape, 10)
    assert model.fc1.in_features == features
    assert model.conv1.padding == ((2, 2) if min(shape[1:]) < 16 else (0, 0))


def test_width_makes_tiny_versions():
    lenet = models.LeNet((1, 16, 16), 3, width=4)
    assert (lenet.conv1.out_channels, lenet.fc1.out_features, lenet.fc2.out_features) == (4, 30, 21)
    vgg = models.VGGLike((3, 16, 16), 3, width=4)
    assert (vgg.conv6.out_channels, vgg.fc1.out_features, vgg.fc2.out_features) == (32, 128, 64)
    for model, channels in ((lenet, 1), (vgg, 3)):
        assert model(torch.randn(2, channels, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_activation_follows_every_hidden_layer(activation):
    kind = type(models.ACTIVATIONS[activation]())
    for name, count in (("mlp", 2), ("lenet", 4), ("vgg-like", 8)):
        model = models.build(name, (3, 16, 16), 2, activation=activation)
        assert sum(type(layer) is kind for layer in model) == count


def test_step_is_the_heaviside_step():
    z = torch.tensor([-1.0, 0.0, 1e-30, 2.0], dtype=torch.float64)
    found = models.Step()(z)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_seed_decides_the_weights_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = (models.build("mlp", (2,), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.fc1.weight, second.fc1.weight)
    assert not torch.equal(first.fc1.weight, third.fc1.weight)
    fourth = models.build("mlp", (2,), 3)
    torch.manual_seed(5)
    assert torch.equal(models.MLP(2, (64, 64), 3).fc1.weight, fourth.fc1.weight)


def test_torchvision_model_is_unmodified():
    torchvision = pytest.importorskip("torchvision")
    model = models.build("resnet18", (3, 32, 32), 7, seed=3)
    torch.manual_seed(3)
    original = torchvision.models.resnet18(weights=None, num_classes=7)
    assert type(model) is type(original)
    wanted = original.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_googlenet_returns_one_output_in_training():
    pytest.importorskip("torchvision")
    model = models.build("googlenet", (3, 64, 64), 3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18", (1, 28, 28), r"resnet18 needs colour pictures, .* input shape \[1, 28, 28\]"),
        ("vgg11", (3, 8, 8), r"model 'vgg11' cannot take input of shape \[1, 3, 8, 8\]: Runtime"),
        ("vit_b_32", (3, 64, 64), r"cannot take input of shape .* Wrong image height"),
        ("resnet19", (3, 64, 64), r"unknown model 'resnet19'. Did you mean 'resnet18'\? Known: b"),
    ],
)
def test_torchvision_model_that_does_not_fit(name, shape, message):
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=message):
        models.build(name, shape, 10)


def test_missing_torchvision_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        InputError, match=r"unknown model 'lenett'. Did you mean 'lenet'.*attrain\["
    ):
        models.build("lenett", (1, 8, 8), 10)
    with pytest.raises(InputError, match=r"pip install attrain\[vision\]"):
        models.build("resnet18", (3, 32, 32), 10)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet", (2,), r"'lenet' needs pictures .* at least 4x4: the data has input shape \[2\]"),
        ("lenet", (1, 3, 9), r"input shape \[1, 3, 9\]. Models for any shape: mlp"),
        ("vgg-like", (3, 7, 32), r"'vgg-like' needs pictures .* at least 8x8"),
    ],
)
def test_picture_models_refuse_other_data(name, shape, message):
    with pytest.raises(InputError, match=message):
        models.build(name, shape, 10)


def test_activation_is_checked():
    with pytest.raises(InputError, match="unknown activation 'rellu'. Did you mean 'relu'"):
        models.build("mlp", (2,), 2, activation="rellu")
    for name in ("resnet18", "tcn", "bilstm"):
        with pytest.raises(InputError, match=f"activation 'tanh' cannot be set for model '{name}'"):
            models.build(name, (3, 32, 32), 2, activation="tanh")
    assert isinstance(models.build("mnist-cnn", (1, 8, 8), 2, activation="elu").act2, nn.ELU)


def test_function_gets_what_it_accepts(module):
    name = module(
        """
        from torch import nn

        def some(num_classes, *, seed, depth=1):
            assert seed == 7
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

        def everything(**given):
            assert sorted(given) == ["input_shape", "num_classes", "seed"]
            return nn.Sequential(nn.Flatten(), nn.Linear(4, given["num_classes"]))

        class Model(nn.Linear):
            def __init__(self, input_shape, num_classes):
                super().__init__(input_shape[0], num_classes)
        """
    )
    path = list(sys.path)
    for function in ("some", "everything", "Model"):
        model = models.build(f"{name}:{function}", (4,), 3, seed=7)
        assert model(torch.randn(2, 4)).shape == (2, 3)
    assert sys.path == path


def test_function_errors_are_sentences(module):
    name = module(
        """
        from torch import nn

        def text():
            return "model"

        def fails(num_classes):
            raise ValueError("no luck\\nat all")

        def needs(depth):
            return nn.Linear(depth, depth)

        def wide(num_classes):
            return nn.Linear(4, num_classes + 1)

        def pair():
            return nn.LSTM(4, 4)

        def empty():
            return nn.Linear(4, 3, device="meta")
        """
    )
    for function, message in (
        ("text", "must return a torch.nn.Module: it returned a str"),
        (
            "fails",
            r"failed when called .* \['num_classes'\] \(ValueError: no luck\)",
        ),
        ("needs", r"failed when called with the keywords \[\] .* input_shape, num_classes, seed"),
        ("empty", r"has no values yet \(weight is on the meta device\)"),
        ("wide", r"to outputs of shape \[1, 3\], one per class: got \[1, 4\]"),
        ("pair", r"to outputs of shape \[1, 3\], one per class: got tuple"),
        ("texd", "unknown function in attrain_test_models 'texd'. Did you mean 'text'"),
    ):
        with pytest.raises(InputError, match=message):
            models.build(f"{name}:{function}", (4,), 3)
    with pytest.raises(InputError, match="cannot import 'no_such_module' .* in the current folder"):
        models.build("no_such_module:make", (4,), 3)
    module("import torch\nraise RuntimeError('broken')")
    with pytest.raises(InputError, match=r"cannot import .*\(RuntimeError: broken\)"):
        models.build(f"{name}:make", (4,), 3)


def test_check_leaves_buffers_modes_and_random_state(module):
    name = module(
        """
        import torch
        from torch import nn

        class Restless(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.fc = nn.Linear(4, num_classes)
                self.norm = nn.BatchNorm1d(num_classes).eval()
                self.register_buffer("calls", torch.tensor(0))
                self.register_buffer("total", torch.tensor(0))

            def forward(self, x):
                self.calls += 1
                self.total = self.total + 1
                return self.norm(self.fc(x)) + torch.randn(1)
        """
    )
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = models.build(f"{name}:Restless", (4,), 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert (int(model.calls), int(model.total)) == (0, 0)
    assert model.training and model.fc.training and not model.norm.training
