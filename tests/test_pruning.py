import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import array, twin
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset

from attrain import pruning
from attrain.errors import InputError

AMOUNTS = (0.0, 0.1, 0.333, 0.5, 0.9, 0.999, 1.0)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 5)
    )


def twin_masks(model, amount, scope):
    """Sort all weights with Python's stable sort and remove the first ones, one by one."""
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    keep = {name: [True] * weight.numel() for name, weight in weights.items()}
    pools = [list(weights)] if scope == "global" else [[name] for name in weights]
    for pool in pools:
        entries = []
        for name in pool:
            for index, value in enumerate(weights[name].flatten().tolist()):
                entries.append((abs(value), name, index))
        entries.sort(key=lambda entry: entry[0])
        for _, name, index in entries[: round(amount * len(entries))]:
            keep[name][index] = False
    return {name: torch.tensor(flags).view(weights[name].shape) for name, flags in keep.items()}


def randomised(norm):
    for tensor, low, high in (
        (norm.running_mean, -1.0, 1.0),
        (norm.running_var, 0.5, 2.0),
        (norm.weight, 0.5, 1.5),
        (norm.bias, -1.0, 1.0),
    ):
        if tensor is not None:
            nn.init.uniform_(tensor, low, high)


def randomise_norms(model):
    for module in model.modules():
        if isinstance(module, pruning._NORMS):
            randomised(module)
    return model


def norms_left(model):
    return [name for name, module in model.named_modules() if isinstance(module, pruning._NORMS)]


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_masks_equal_twin(amount, scope):
    model = small_model()
    with torch.no_grad():
        model[0].weight[0] = 0.125  # ties, within a layer and across layers
        model[4].weight[:2] = -0.125
    found = pruning.masks(model, amount, f"magnitude-{scope}")
    expected = twin_masks(model, amount, scope)
    assert list(found) == ["0.weight", "2.weight", "4.weight"]
    for name, mask in found.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


@settings(deadline=None)
@given(amount=st.floats(0, 1), criterion=st.sampled_from(sorted(pruning.CRITERIA)))
def test_number_removed_is_exact(amount, criterion):
    model = small_model()
    data = [(torch.randn(4, 2, 4, 4), torch.arange(4))]
    keep = pruning.masks(model, amount, criterion, data=data)
    removed = {name: int((~mask).sum()) for name, mask in keep.items()}
    if criterion == "magnitude-local":
        for name, mask in keep.items():
            assert removed[name] == round(amount * mask.numel())
    else:
        total = sum(mask.numel() for mask in keep.values())
        assert sum(removed.values()) == round(amount * total)


@settings(deadline=None)
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_what_is_removed_stays_removed(low, high):
    model = small_model()
    first, second = (pruning.masks(model, amount) for amount in sorted((low, high)))
    assert all(bool((first[name] | ~second[name]).all()) for name in first)


def test_prune_leaves_the_model_and_the_biases_alone():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    pruned = pruning.prune(model, 1.0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, value in pruned.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if "weight" in name else before[name])
    assert not any(torch.signbit(value).any() for value in pruned[0].weight)


def test_attention_is_pruned_with_its_projections():
    same, other = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert list(pruning.masks(same, 0.5)) == ["in_proj_weight", "out_proj.weight"]
    keep = pruning.masks(nn.ModuleDict({"attention": other}), 0.5)
    assert list(keep) == [
        f"attention.{name}"
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    ]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_pruned_with_both_of_their_weights(kind):
    layer = kind(3, 5)
    pruned = pruning.prune(layer, 0.5, "magnitude-local")
    weights = [name for name, _ in layer.named_parameters() if "weight" in name]
    assert weights == ["weight_ih_l0", "weight_hh_l0"]
    for name in weights:
        weight = pruned.get_parameter(name)
        assert weight.count_nonzero() == weight.numel() - round(0.5 * weight.numel())
    x = torch.randn(4, 2, 3)
    plain = copy.deepcopy(layer)
    plain.load_state_dict(pruned.state_dict())
    assert torch.equal(pruned(x)[0], plain(x)[0]) and not torch.equal(pruned(x)[0], layer(x)[0])


def test_relevance_of_a_recurrent_layer_in_its_first_step_is_that_of_a_linear_one():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.RNN(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    recurrent = Last().double()
    linear = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        linear[0].weight.copy_(recurrent.rnn.weight_ih_l0)
        linear[0].bias.copy_(recurrent.rnn.bias_ih_l0)
        recurrent.rnn.bias_hh_l0.zero_()
    linear[2].load_state_dict(recurrent.out.state_dict())
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1] * 3)
    found = pruning.relevance(recurrent, [(x.unsqueeze(1), y)])
    wanted = pruning.relevance(linear, [(x, y)])
    torch.testing.assert_close(found["rnn.weight_ih_l0"], wanted["0.weight"])
    torch.testing.assert_close(found["out.weight"], wanted["2.weight"])
    assert not found["rnn.weight_hh_l0"].any()  # what comes before the first step is 0


def test_transformers_linear_layer_is_pruned():
    transformers = pytest.importorskip("transformers.pytorch_utils")
    assert list(pruning.masks(nn.Sequential(transformers.Conv1D(3, 4)), 0.5)) == ["0.weight"]


def test_shared_weight_is_counted_once_and_stays_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    keep = pruning.masks(model, 0.5)
    assert list(keep) == ["0.weight"] and int(keep["0.weight"].sum()) == 8
    pruned = pruning.prune(model, 0.5)
    assert pruned[1].weight is pruned[0].weight
    assert int((pruned[1].weight == 0).sum()) == 8


def test_parametrised_weight_becomes_plain_in_the_copy():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)))
    assert list(pruning.masks(model, 0.5)) == ["0.weight"]
    pruned = pruning.prune(model, 0.5)
    assert int((pruned[0].weight == 0).sum()) == 10
    x = torch.randn(3, 5)
    assert torch.equal(pruned(x), F.linear(x, pruned[0].weight, model[0].bias))
    assert "0.parametrizations.weight.original0" in model.state_dict()


def test_own_criterion():
    model = nn.Linear(3, 1)
    criterion = pruning.Criterion(lambda _: {"weight": torch.tensor([[2.0, 1.0, 3.0]])}, "global")
    assert pruning.masks(model, 1 / 3, criterion)["weight"].tolist() == [[True, False, True]]


def test_curve_is_pruning_at_each_amount():
    model = small_model()
    x = torch.randn(4, 2, 4, 4)

    def evaluate(pruned):
        return pruned(x).square().sum().item()

    amounts = [0.9, 0.0, 0.5]
    found = pruning.curve(model, evaluate, amounts, "magnitude-local")
    assert found["removed"] == amounts
    for amount, value in zip(amounts, found["accuracy"], strict=True):
        assert value == evaluate(pruning.prune(model, amount, "magnitude-local"))


def test_curve_folds_batch_norm_first():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0] * 4, [1.0] * 4, [2.0] * 4]))
        model[1].weight.copy_(torch.tensor([0.1, 1.0, 1.0]))

    def first_row(pruned):
        return pruned[0].weight[0].abs().sum().item()

    assert pruning.curve(model, first_row, [1 / 3])["accuracy"] == [0.0]
    assert pruning.curve(model, first_row, [1 / 3], fold=False)["accuracy"] == [36.0]


class Residual(nn.Module):
    """The wiring of torchvision's basic block, at the size of a test."""

    def __init__(self, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(6, affine=False)
        self.downsample = nn.Sequential(nn.Conv2d(channels, 6, 1, stride), nn.BatchNorm2d(6))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class Depends(nn.Module):
    """Cannot be traced: it looks at a value."""

    def __init__(self):
        super().__init__()
        self.block = Residual(2, 1)
        self.shared = nn.Conv2d(6, 6, 1)
        self.left = nn.Sequential(self.shared, nn.BatchNorm2d(6))
        self.right = nn.Sequential(self.shared, nn.BatchNorm2d(6))

    def forward(self, x):
        x = self.block(x)
        return self.left(x) + self.right(x) if x.sum() > 0 else self.left(x)


class Reads(nn.Module):
    """Uses more of a layer than its output goes into BatchNorm."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        if kind == "hook":
            self.conv.register_forward_hook(lambda module, args, output: output + 1)

    def forward(self, x):
        z = self.conv(x)
        if self.kind == "output":
            return self.norm(z) + z
        if self.kind == "weight":
            return self.norm(z) + self.conv.weight.sum()
        if self.kind == "twice":
            return self.norm(z) + self.conv(x)
        return self.norm(z)


FOLDED = {
    "linear": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (5, 4), 0),
    "conv1d": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)), (5, 2, 6), 0),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 2, 3, 3, 3), 0),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
        0,
    ),
    "residual": (nn.Sequential(Residual(2, 2), Residual(6, 1)), (2, 2, 6, 6), 0),
    "norm first": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)), (2, 2, 3, 3), 1),
    "activation between": (
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)),
        (2, 2, 3, 3),
        1,
    ),
    "not traceable": (Depends(), (2, 2, 4, 4), 2),
    "hook": (Reads("hook"), (2, 2, 3, 3), 1),
    "output": (Reads("output"), (2, 2, 3, 3), 1),
    "weight": (Reads("weight"), (2, 2, 3, 3), 1),
    "twice": (Reads("twice"), (2, 2, 3, 3), 1),
    "once": (Reads("once"), (2, 2, 3, 3), 0),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("case", FOLDED)
def test_folding_changes_no_output(case, dtype, tolerance):
    torch.manual_seed(1)
    model, shape, left = FOLDED[case]
    model = randomise_norms(copy.deepcopy(model)).to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    folded = pruning.fold_batch_norm(model)
    assert model.training and not folded.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(norms_left(folded)) == left
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        expected, found = model.eval()(x), folded(x)
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow), "mobilenet_v2"]
)
def test_torchvision_models_fold_entirely(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = randomise_norms(models.get_model(name, weights=None, num_classes=3)).double().eval()
    folded = pruning.fold_batch_norm(model)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert (folded(x) - expected).norm() <= 1e-10 * expected.norm()
    assert not norms_left(folded)


def test_norm_without_statistics_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert norms_left(pruning.fold_batch_norm(model)) == ["1"]


def test_folding_refuses_channels_in_another_place():
    folded = pruning.fold_batch_norm(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    assert "Folded(axes=2)" in repr(folded)
    with pytest.raises(InputError, match=r"2 axes, but got shape \[2, 3, 3\].*fold=False"):
        folded(torch.randn(2, 3, 4))


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_amount_outside_is_refused(amount):
    for call in (
        lambda: pruning.prune(small_model(), amount),
        lambda: pruning.curve(small_model(), lambda _: 0.0, [amount]),
    ):
        with pytest.raises(InputError, match=r"share of weights to remove, in 0..1: got"):
            call()


def test_unknown_criterion_suggests_the_nearest():
    with pytest.raises(InputError, match="unknown pruning criterion 'magnitude'.*Did you mean"):
        pruning.prune(small_model(), 0.5, "magnitude")


def test_model_without_weights_is_refused():
    with pytest.raises(
        InputError, match="no linear, convolution or recurrent layer: nothing can be pruned"
    ):
        pruning.prune(nn.Sequential(nn.BatchNorm1d(3)), 0.5)


def test_broken_weights_are_refused_by_name():
    model = small_model()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="1 of the 48 weights of 2.weight are NaN or infinite"):
        pruning.prune(model, 0.5)


def test_weights_that_cannot_be_pruned_are_refused():
    with pytest.raises(InputError, match="weight has no shape yet: run the model once"):
        pruning.masks(nn.LazyLinear(3), 0.5)
    layer = nn.Linear(3, 3)
    torch_prune.random_unstructured(layer, "weight", 0.5)
    with pytest.raises(InputError, match="weight is computed anew in each forward: .*prune.remove"):
        pruning.masks(layer, 0.5)


def test_model_that_cannot_be_copied_is_refused():
    model = nn.Linear(3, 3)
    model.last = model(torch.randn(1, 3))
    with pytest.raises(InputError, match="the model cannot be copied"):
        pruning.prune(model, 0.5)


def classifier(norm=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        *([nn.BatchNorm2d(3)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    ).double()
    return randomise_norms(model).eval()


def pictures(count=7):
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 2, 7, 7).double(), torch.arange(count) % 4)


def twin_relevance(model, data, epsilon):
    """Sum what the slow twin sends along every connection, starting from the true class's logit."""
    x, y = data.tensors
    seen = {}
    hooks = [
        module.register_forward_hook(lambda module, _, out: seen.update({module: array(out)}))
        for module in model.modules()
    ]
    with torch.no_grad():
        out = array(model(x))
    for hook in hooks:
        hook.remove()
    slow = twin(model, epsilon, F.relu, seen)
    slow.forward(array(x))
    r = out * 0
    for n, label in enumerate(y.tolist()):
        r[n, label] = out[n, label]
    slow.backward(r)
    return {name: abs(value) for name, value in slow.relevance.items()}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch-norm"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_relevance_equals_the_twin(epsilon, norm):
    model, data = classifier(norm), pictures()
    wanted = twin_relevance(model, data, epsilon)
    found = pruning.relevance(model, data, epsilon=epsilon)
    assert found.keys() == wanted.keys() and len(found) == 3
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], torch.from_numpy(value), rtol=1e-10, atol=1e-13)


def test_relevance_is_summed_before_its_size_is_taken_whatever_the_batches():
    model, data = classifier(), pictures()
    whole = pruning.relevance(model, data)
    for size in (1, 3):
        for name, value in pruning.relevance(model, DataLoader(data, batch_size=size)).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-13)
    x, y = data.tensors
    apart = [pruning.relevance(model, [(x[n : n + 1], y[n : n + 1])]) for n in range(len(x))]
    for name, value in whole.items():
        sizes = sum(each[name] for each in apart)
        assert (value <= sizes + 1e-12).all()
        assert name != "0.weight" or (value < 0.9 * sizes).any()


def test_relevance_leaves_the_model_alone():
    model, data = classifier(norm=True).train(), pictures()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        pruning.relevance(model, data)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_relevance_decides_which_weights_go():
    model, data = classifier(), pictures()
    scores = pruning.relevance(model, data)
    keep = pruning.masks(model, 0.5, "relevance", data=data)
    lowest_kept = min(float(scores[name][mask].min()) for name, mask in keep.items())
    assert all((scores[name][~mask] <= lowest_kept).all() for name, mask in keep.items())
    curve = pruning.curve(model, lambda _: 0.5, [0.0, 0.5], "relevance", data=data)
    assert curve == {"removed": [0.0, 0.5], "accuracy": [0.5, 0.5]}


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
def test_convolutions_alone_can_be_pruned(criterion):
    model, data = classifier(), pictures()
    pruned = pruning.prune(model, 0.5, criterion, data=data, layers="conv")
    assert int((pruned[0].weight == 0).sum()) == 27
    assert pruned[4].weight.all() and pruned[6].weight.all()
    everything = pruning.prune(model, 1.0, criterion, data=data)
    assert not any(everything[index].weight.any() for index in (0, 4, 6))


def test_what_relevance_cannot_use_is_refused():
    model, data = classifier(), pictures()
    x, y = data.tensors
    with pytest.raises(InputError, match=r"looks at samples: give data=, such as the training set"):
        pruning.prune(model, 0.5, "relevance")
    for wrong, text in (
        ([], "zero samples"),
        ([(x[:0], y[:0])], "zero samples"),
        ([x], "data gave a Tensor: a dataset of tensors"),
        ([(x, y, y)], "data gave a tuple"),
        ([(x, y.double())], r"got outputs \[7, 4\] and labels \[7\] of torch.float64"),
        ([(x, y[:3])], r"got outputs \[7, 4\] and labels \[3\]"),
        ([(x, y + 1)], "labels go from 1 to 4, but the model has 4 outputs"),
    ):
        with pytest.raises(InputError, match=text):
            pruning.relevance(model, wrong)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="unknown kind of layers 'convs'. Did you mean 'conv'"):
        pruning.prune(small_model(), 0.5, layers="convs")
    with pytest.raises(InputError, match="the model has no convolution layer"):
        pruning.prune(nn.Linear(3, 3), 0.5, layers="conv")
