"""What the studies of targeted updates share: the arms, one training loop, and its measures."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attrain
from attrain.data import Data, load
from attrain.models import MLP, seeded
from attrain.studies.tasks import Samples

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From what is called for the outputs, inputs [N, ...] and labels [N] to a loss, a scalar."""


@dataclass(frozen=True)
class Arm:
    """A way to train: all neurons, or some of them at a time.

    name: in tables. score: what selects neurons, a name or function as `attrain.Targeted` takes
    it; None trains all of them. density: share of the neurons that are trained at a time. warmup:
    share of the steps, at the start, that train all. input_gradient, refresh, exploration: as
    `attrain.Targeted` has them. steps: share of the steps of the other arms, for the same time.
    width: share of the hidden neurons that the model has. options: further ones of
    `attrain.Targeted`, as pairs.
    """

    name: str
    score: Any = None
    density: float = 1.0
    warmup: float = 0.0
    input_gradient: Literal["full", "selected"] = "full"
    refresh: int = 50
    exploration: float = 0.0
    steps: float = 1.0
    width: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()

    def wrapped(self, model: nn.Module, steps: int, seed: int) -> Any:
        """Return `model` as `attrain.Targeted`, for a training of so many steps."""
        return attrain.Targeted(
            model,
            density=self.density,
            score=self.score,
            refresh=self.refresh,
            warmup=round(self.warmup * steps),
            exploration=self.exploration,
            input_gradient=self.input_gradient,
            seed=seed,
            **dict(self.options),
        )


def dense(name: str = "dense", *, steps: float = 1.0, width: float = 1.0) -> Arm:
    """Return the arm that trains all neurons, with a share of the steps or of the neurons."""
    return Arm(name, steps=steps, width=width)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the outputs of `model`, the mean of a batch."""
    return F.cross_entropy(model(x), y)


@dataclass(frozen=True)
class Training:
    """How every arm is trained: momentum SGD whose rate falls to 0 along a straight line.

    steps: of a dense run. optimizer: from parameters and the rate to another optimizer.
    """

    steps: int = 300
    batch_size: int = 128
    momentum: float = 0.9
    loss: Loss = cross_entropy
    optimizer: Callable[..., torch.optim.Optimizer] | None = field(default=None)

    def made(self, parameters: Any, rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of `parameters`."""
        if self.optimizer is not None:
            return self.optimizer(parameters, lr=rate)
        return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum)


class Loop:
    """The training of one model under an arm, step by step.

    `model` is trained in place on `samples`, whose order is drawn from `seed`. `seconds` is the
    CPU time of the steps so far, those that select neurons included.
    """

    def __init__(
        self,
        model: nn.Module,
        arm: Arm,
        samples: Samples,
        training: Training,
        rate: float,
        seed: int,
    ) -> None:
        self.model, self.samples, self.training, self.rate = model, samples, training, rate
        self.steps = max(1, round(training.steps * arm.steps))
        self.targeted = None if arm.score is None else arm.wrapped(model, self.steps, seed)
        self.trained = model if self.targeted is None else self.targeted
        self.optimizer = training.made(self.trained.parameters(), rate)
        self.done, self.seconds = 0, 0.0
        self._batches = _batches(len(samples), training.batch_size, seed)
        self._seed = seed

    def step(self) -> None:
        """Take one step; after the last one the rate stays at 0."""
        batch = self.samples.part(next(self._batches))
        began = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * max(0.0, 1.0 - self.done / self.steps)
        self.optimizer.zero_grad()
        loss = self.training.loss(self.trained, batch.x, batch.y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.targeted is not None:
            self.targeted.step(self.optimizer)
        self.seconds += time.process_time() - began
        self.done += 1

    def run(self) -> nn.Module:
        """Take all steps; return the model, in evaluation mode and with all that was trained."""
        with seeded(self._seed):
            self.trained.train()
            while self.done < self.steps:
                self.step()
        self.trained.eval()
        return self.model

    def state_bytes(self) -> int:
        """Return the bytes that the optimizer keeps between steps, beside the parameters."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


def _batches(samples: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield the numbers of the samples of a batch, epoch by epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, samples)
    while True:
        order = torch.randperm(samples, generator=generator)
        yield from torch.split(order[: samples // size * size], size)


# What is measured afterwards ----------------------------------------------------------------------


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return what `model` makes of x [N, ...], in parts."""
    return torch.cat([model(part) for part in torch.split(x, 1000)])


def accuracy(model: nn.Module, given: Samples) -> float:
    """Return the share of samples whose largest output is that of their class."""
    return float((outputs(model, given.x).argmax(1) == given.y).double().mean())


def hidden_layers(model: nn.Module) -> list[nn.Module]:
    """Return the linear and convolution layers of `model`, in order, but for the last one."""
    found: list[nn.Module] = []
    found += [each for each in model.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    return found[:-1]


def relevances(model: nn.Module, given: Samples) -> list[Tensor]:
    """Return of each hidden layer the relevance of its neurons to the right class, [units].

    The mean over samples of |z dl/dz|: z before the activation, summed over positions, and l the
    logit of the sample's class.
    """
    found: list[Tensor] = []
    layers = hidden_layers(model)
    handles = [layer.register_forward_hook(lambda *call: found.append(call[2])) for layer in layers]
    try:
        with torch.enable_grad():
            logits = model(given.x.clone().requires_grad_())
            right = logits.gather(1, given.y[:, None]).sum()
            slopes = torch.autograd.grad(right, found)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (z.detach() * slope).flatten(2).sum(2).abs().mean(0)
        if z.ndim > 2
        else (z.detach() * slope).abs().mean(0)
        for z, slope in zip(found, slopes, strict=True)
    ]


def kept(model: nn.Module, shown: Samples, given: Samples, share: float) -> float:
    """Return the accuracy on `given` with that share of each hidden layer's neurons left.

    Those of the largest relevance to the right class on `shown`; all others give 0.
    """
    masks = []
    for scores in relevances(model, shown):
        mask = torch.zeros_like(scores)
        mask[scores.topk(max(1, round(share * len(scores)))).indices] = 1.0
        masks.append(mask)
    with _only(hidden_layers(model), masks):
        return accuracy(model, given)


@contextmanager
def _only(layers: list[nn.Module], masks: list[Tensor]) -> Iterator[None]:
    """Multiply the outputs of each layer by its mask [units]."""

    def hook(mask: Tensor) -> Callable[..., Tensor]:
        return lambda module, args, out: out * mask.reshape(-1, *[1] * (out.ndim - 2))

    handles = [
        layer.register_forward_hook(hook(mask)) for layer, mask in zip(layers, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Times --------------------------------------------------------------------------------------------


def time_ratios(arm: Loop, plain: Loop, block: int, pairs: int) -> list[float]:
    """Return the CPU time of `block` steps of one loop by that of the other, pair by pair.

    The two take turns, in the order ABBA, so that both meet the same load of the machine. Take
    `block` as a multiple of the arm's refresh, and each pair pays for selecting neurons.
    """
    ratios = []
    for loop in (arm, plain):
        loop.trained.train()  # in evaluation no neurons are chosen
    for pair in range(pairs):
        seconds: dict[Loop, float] = {}
        for loop in (arm, plain) if pair % 2 == 0 else (plain, arm):
            before = loop.seconds
            for _ in range(block):
                loop.step()
            seconds[loop] = loop.seconds - before
        ratios.append(seconds[arm] / seconds[plain])
    return ratios


# Pictures, and a small network for them -----------------------------------------------------------

VALIDATION = 1 / 6
"""Of the training set: what rates are chosen by. It is not trained on."""
SHOWN = 1000
"""Training samples by which relevances are taken."""


@dataclass(frozen=True)
class Setup:
    """What every arm of a study trains on.

    hidden: widths of the layers of an MLP, or "cnn" for `small_cnn`. rates: that every arm tries,
    on `tuning` seeds that no model of the results has.
    """

    data: str = "mnist"
    hidden: tuple[int, ...] | str = (500, 500)
    training: Training = Training()
    rates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    tuning: int = 1


@dataclass(frozen=True, eq=False)
class Parts:
    """A data set's parts, and the limits of its inputs as the model takes them."""

    shape: tuple[int, ...]
    classes: int
    train: Samples
    validation: Samples
    test: Samples
    low: Tensor
    high: Tensor


@lru_cache(maxsize=1)
def parts(name: str) -> Parts:
    """Return a data set of pictures, read once per process."""
    data: Data = load(name, validation=VALIDATION)
    assert data.validation is not None
    low, high = ((end - data.mean) / data.std for end in (0.0, 1.0))
    train, validation, test = (
        Samples(*part.tensors) for part in (data.train, data.validation, data.test)
    )
    return Parts(
        data.input_shape, data.num_classes, train, validation, test,
        low.expand(data.input_shape), high.expand(data.input_shape),
    )  # fmt: skip


def small_cnn(shape: tuple[int, ...], classes: int, width: float = 1.0) -> nn.Sequential:
    """Return a network of three 3x3 convolutions, of 16, 32 and 64 channels times `width`."""
    layers: list[nn.Module] = []
    before = shape[0]
    for channels in (16, 32, 64):
        count = max(1, round(channels * width))
        layers += [nn.Conv2d(before, count, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = count
    features = before * (shape[1] // 8) * (shape[2] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


def fresh(setup: Setup, arm: Arm, seed: int) -> nn.Module:
    """Return an untrained model; arms of one width start from the same weights."""
    of = parts(setup.data)
    with seeded(seed):
        if isinstance(setup.hidden, str):
            return small_cnn(of.shape, of.classes, arm.width)
        widths = [max(1, round(each * arm.width)) for each in setup.hidden]
        return MLP(of.shape[0] * of.shape[1] * of.shape[2], widths, of.classes)


def loop(setup: Setup, arm: Arm, rate: float, seed: int) -> Loop:
    """Return the training of a fresh model, before its first step."""
    train = parts(setup.data).train
    return Loop(fresh(setup, arm, seed), arm, train, setup.training, rate, seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, and the bytes that its optimizer kept at the end."""

    model: nn.Module
    state_bytes: int


def trained(setup: Setup, arm: Arm, rate: float, seed: int) -> Trained:
    """Train a fresh model to the end."""
    training = loop(setup, arm, rate, seed)
    return Trained(training.run(), training.state_bytes())


@cache
def tried(setup: Setup, arm: Arm) -> dict[float, float]:
    """Return the validation accuracy of every rate, the mean of the tuning seeds."""
    held = parts(setup.data).validation
    return {
        rate: sum(
            accuracy(trained(setup, arm, rate, 1000 + seed).model, held)
            for seed in range(setup.tuning)
        )
        / setup.tuning
        for rate in setup.rates
    }


def best_rate(tried: Mapping[float, float]) -> float:
    """Return the rate of the highest validation accuracy, the lowest such rate."""
    return min(tried, key=lambda rate: (-tried[rate], rate))
