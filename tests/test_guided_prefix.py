"""What saliency guided training computes once for evaluation and training: never another result."""

import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import attrain
from attrain.guided import prefix, step


class Plain(nn.Module):
    """Two convolutions and a classifier, dropout late; subclasses change what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 4 * 4, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(F.relu(self.conv1(x)))
        h = self.after(self.conv2(h))
        return self.fc(F.dropout(h.flatten(1), 0.5, self.training))

    def between(self, h: Tensor) -> Tensor:
        return h

    def after(self, h: Tensor) -> Tensor:
        return F.relu(h)


class EarlyDropout(Plain):
    def between(self, h):
        return F.dropout(h, 0.3, self.training)


class AlwaysNoisy(Plain):
    def between(self, h):
        return F.dropout(h, 0.3, training=True) + torch.rand_like(h)


class LateNorm(Plain):
    def after(self, h):
        return F.relu(self.norm(h))


class InPlace(Plain):
    def after(self, h):
        h += 1
        return F.relu(h, inplace=True)


class InPlaceInTraining(Plain):
    def after(self, h):
        return h.mul_(3) if self.training else h


class OtherBranchInEvaluation(Plain):
    def between(self, h):
        return h * 2 if self.training else h * 3


class Hooked(Plain):
    def between(self, h):
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 1.5)
        return h


class Checkpointed(Plain):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class PartlyCheckpointed(Plain):
    def between(self, h):
        return checkpoint(torch.tanh, h, use_reentrant=False)


class WeightChanged(Plain):
    def between(self, h):
        if self.training and not self.seen:
            with torch.no_grad():
                self.conv2.weight.mul_(1.01)
            self.seen.append(h.detach())
        return h


class Kept(Plain):
    def after(self, h):
        self.seen.append(h.detach().clone())
        return torch.sigmoid(h)


class Twice(Plain):
    def after(self, h):
        one, other = h * 2, h * 2
        one.mul_(2)
        return torch.sigmoid(one + other)


class SharedLayer(Plain):
    def between(self, h):
        return F.pad(self.conv2(h) * self.conv2(h), (1, 1, 1, 1))[:, :4]


class Branches(Plain):
    """What is kept must not change the order in which gradients are added up."""

    def after(self, h):
        return F.dropout(h, 0.3, self.training) + torch.sigmoid(h) * 1.1 + torch.tanh(h) * 0.3


class OtherOrderInTraining(Plain):
    def after(self, h):
        if self.training:
            return torch.sigmoid(h) + torch.tanh(h) * 0.3 + h * 1.1
        return h * 1.1 + torch.tanh(h) * 0.3 + torch.sigmoid(h)


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return torch.relu(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.scale * gradient, None


class OtherGradientInTraining(Plain):
    def between(self, h):
        return ScaledGradient.apply(h, 2.0 if self.training else 1.0)


class WeightFrozenInEvaluation(Plain):
    def between(self, h):
        self.conv2.weight.requires_grad_(self.training)
        return h


class WeightDataChanged(Plain):
    def between(self, h):
        if self.training:
            self.conv2.weight.data.mul_(1.01)
        return h


class WeightDataReplaced(Plain):
    def between(self, h):
        if self.training:
            self.conv2.weight.data = self.conv2.weight.data * 1.01
        return h


class WeightChangedByNumpy(Plain):
    def between(self, h):
        if self.training:
            self.conv2.weight.detach().numpy()[:] *= 1.01
        return h


class DataChangedInEvaluation(Plain):
    def after(self, h):
        h = torch.sigmoid(h)
        if not self.training:
            h.data.mul_(1.5)
        return h


class NodeHooked(Plain):
    def between(self, h):
        if h.grad_fn is not None:
            h.grad_fn.register_prehook(lambda gradients: (gradients[0] * 1.5,))
        return h


class GradientInEvaluation(Plain):
    def between(self, h):
        if not self.training:
            inner = torch.sigmoid(self.conv2(h)).sum()
            h = h + torch.autograd.grad(inner, self.conv2.weight)[0].mean()
        return h


class AsksOfItsInput(Plain):
    def forward(self, x):
        return super().forward(x) * (2 if x.requires_grad else 1)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Forget what other tests of this process have compiled."""
    if compiler := sys.modules.get("torch._dynamo.utils"):
        compiler.counters.clear()


MODELS = (
    Plain, EarlyDropout, AlwaysNoisy, LateNorm, InPlace, InPlaceInTraining, OtherBranchInEvaluation,
    Hooked, Checkpointed, PartlyCheckpointed, WeightChanged, Kept, Twice, SharedLayer, Branches,
    OtherOrderInTraining, OtherGradientInTraining, WeightFrozenInEvaluation, WeightDataChanged,
    WeightDataReplaced, WeightChangedByNumpy, DataChangedInEvaluation, NodeHooked,
    GradientInEvaluation, AsksOfItsInput,
)  # fmt: skip


def outcome(kind: type[Plain], steps: int = 3) -> list[Tensor]:
    """Return losses, gradients, state and random numbers of some guided steps."""
    torch.manual_seed(0)
    model = kind().double()
    x, y = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    guided = attrain.SaliencyGuided(model, F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = guided(x, y)
        loss.backward()
        optimizer.step()
        found += [
            loss.detach(),
            *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        ]
    assert x.grad is None and not x.requires_grad
    return [*found, *model.state_dict().values(), *model.seen, torch.get_rng_state()]


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_that_shares_is_bit_equal_to_one_that_does_not(kind, monkeypatch):
    shared = outcome(kind)
    monkeypatch.setattr(step, "can_share", lambda model: False)
    apart = outcome(kind)
    assert len(shared) == len(apart)
    assert all(torch.equal(one, other) for one, other in zip(shared, apart, strict=True))


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls[getattr(func, "__name__", "")] += 1
        return func(*args, **(kwargs or {}))


def convolutions(kind: type[Plain], **options: object) -> int:
    """Return how many convolutions the third guided step runs, of six that it has."""
    model = kind()
    guided = attrain.SaliencyGuided(model, F.cross_entropy, **options)  # type: ignore[arg-type]
    for _ in range(3):
        with Counting() as counting:
            guided(torch.randn(5, 1, 8, 8), torch.randint(3, (5,)))
    return counting.calls["conv2d"]


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(Plain, 4), (LateNorm, 4), (Kept, 4), (EarlyDropout, 6), (Checkpointed, 6), (Hooked, 6)],
)
def test_layers_before_the_first_with_two_modes_run_twice_and_not_three_times(kind, calls):
    assert convolutions(kind) == calls


def test_a_single_layer_is_not_worth_the_gradient_of_the_inputs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    guided = attrain.SaliencyGuided(model, F.cross_entropy)
    for linear in (6, 4, 6):  # the second step tries
        with Counting() as counting:
            guided(torch.randn(5, 1, 8, 8), torch.randint(3, (5,)))
        assert counting.calls["linear"] == linear


def test_nothing_is_shared_with_inputs_that_need_a_gradient():
    model = Plain()
    x, y = torch.randn(5, 1, 8, 8), torch.randint(3, (5,))
    needed = x.clone().requires_grad_()
    guided = attrain.SaliencyGuided(model, F.cross_entropy)
    guided(x, y)
    with Counting() as counting:
        guided(needed, y).backward()
    assert counting.calls["conv2d"] == 6
    assert needed.grad is not None


def test_mixed_precision_of_training_alone_shares_nothing():
    class Halved(Plain):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
                return super().forward(x).float()

    assert convolutions(Halved) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_nothing_is_shared_once_something_is_compiled(monkeypatch):
    class PartlyCompiled(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.tanh = torch.compile(torch.tanh, backend="eager")

        def between(self, h):
            return self.tanh(h)

    assert prefix.can_share(Plain())
    found = outcome(PartlyCompiled)
    assert not prefix.can_share(Plain())
    monkeypatch.setattr(step, "can_share", lambda model: False)
    assert all(torch.equal(*pair) for pair in zip(found, outcome(PartlyCompiled), strict=True))
