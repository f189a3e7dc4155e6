"""Credit in the rest of the ecosystem: every way of training equals the plain full-batch loop."""

import contextlib
import copy
import gc
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import small_models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_models import batch, build
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint as checkpointing
from zoo import ZOO, Case

import attrain
from attrain import rewards
from attrain.errors import CreditError, CreditWarning

EPSILONS = (1e-6, 0.0)
HEAVY = ("convolutions", "transformer")
STEPS = 3
# Double precision separates a wrong update from rounding; single precision must also do.
PRECISIONS = ((torch.float64, 1e-10), (torch.float32, 1e-4))

Step = Callable[[Tensor, Tensor], Any]

each_model = pytest.mark.parametrize("name", small_models.MODELS)
each_epsilon = pytest.mark.parametrize("epsilon", EPSILONS, ids=["lfp-epsilon", "lfp-0"])
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), PRECISIONS, ids=["double", "single"]
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not _get_current_function_mode_stack()
    if "torch._dynamo" in sys.modules:
        assert torch._dynamo.eval_frame._stance.stance == "default"
        assert torch._C._dynamo.eval_frame.get_eval_frame_callback() is None


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def feedback(
    model: nn.Module, credit: attrain.LFP, x: Tensor, y: Tensor
) -> dict[str, Tensor | None]:
    """Return the gradients that one plain pass under `credit` leaves."""
    model.zero_grad()
    with credit:
        out = model(x)
    rewards.softmax(out, y).backward()
    return gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(
    model: nn.Module,
    dtype: torch.dtype,
    step: Step | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], Any] = lambda: None,
    **options: Any,
) -> list[dict[str, Tensor]]:
    """Return the parameters after every step of training, plain where no `step` is given.

    `step(x, y)` leaves gradients; the optimizer's step and `after` follow.
    """
    credit = attrain.LFP(model, **options)
    optimizer = optimizer or sgd(model.parameters())
    found = []
    for number in range(STEPS):
        x, y = batch(number, dtype=dtype)
        optimizer.zero_grad()
        if step is None:
            with credit:
                out = model(x)
            rewards.softmax(out, y).backward()
        else:
            step(x, y)
        optimizer.step()
        after()
        found.append(parameters(model))
    return found


def assert_equal_updates(
    found: list[dict[str, Tensor]],
    wanted: list[dict[str, Tensor]],
    start: dict[str, Tensor],
    tolerance: float,
) -> None:
    """Compare how far every parameter moved, after one step and, in double, after all."""
    steps = (0,) if tolerance > 1e-6 else (0, len(wanted) - 1)
    for step in steps:
        for name, before in start.items():
            moved = (wanted[step][name] - before).norm()
            assert moved > 0, name
            assert (found[step][name] - wanted[step][name]).norm() <= tolerance * moved, (
                step,
                name,
            )


def assert_close(
    found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], tolerance: float
) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        got = found[name]
        assert (got is None) == (grad is None), name
        if got is not None and grad is not None:
            assert (got - grad).norm() <= tolerance * grad.norm(), name


# The loop around it: accumulation, clipping, scaling, optimizers.


@each_precision
@each_epsilon
@each_model
@pytest.mark.parametrize("sizes", [(5, 7), (1, 4, 7)], ids=str)
@pytest.mark.parametrize("scale", ["abs", "relative"])
def test_gradient_accumulation(
    name: str, epsilon: float, scale: str, sizes: tuple[int, ...], dtype: Any, tolerance: float
) -> None:
    model = build(name, dtype)
    start = parameters(model)
    credit = attrain.LFP(model, epsilon=epsilon, scale=scale)

    def step(x: Tensor, y: Tensor) -> None:
        for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
            with credit:
                out = model(xs)
            (rewards.softmax(out, ys) * (len(xs) / len(x))).backward()

    found = trained(model, dtype, step)
    wanted = trained(build(name, dtype), dtype, epsilon=epsilon, scale=scale)
    assert_equal_updates(found, wanted, start, tolerance)


@each_epsilon
@each_model
def test_a_sum_over_micro_batches_backward_once(name: str, epsilon: float) -> None:
    """One backward pass through several forward passes, and one context around them all."""
    model = build(name, torch.float64)
    start = parameters(model)
    credit = attrain.LFP(model, epsilon=epsilon)

    def step(x: Tensor, y: Tensor) -> None:
        with credit:
            outs = [model(xs) for xs in x.split(4)]
        losses = [rewards.softmax(o, ys) for o, ys in zip(outs, y.split(4), strict=True)]
        (sum(losses) / len(losses)).backward()

    found = trained(model, torch.float64, step)
    wanted = trained(build(name, torch.float64), torch.float64, epsilon=epsilon)
    assert_equal_updates(found, wanted, start, 1e-10)


@each_precision
@each_epsilon
@each_model
def test_clipping_with_accumulation(
    name: str, epsilon: float, dtype: Any, tolerance: float
) -> None:
    def clipped(model: nn.Module, sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
        credit = attrain.LFP(model, epsilon=epsilon)

        def step(x: Tensor, y: Tensor) -> None:
            for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
                with credit:
                    out = model(xs)
                (rewards.softmax(out, ys) * (len(xs) / len(x))).backward()
            assert nn.utils.clip_grad_norm_(model.parameters(), 1e-3) > 1e-3

        return trained(model, dtype, step)

    model = build(name, dtype)
    start = parameters(model)
    assert_equal_updates(
        clipped(model, (5, 7)), clipped(build(name, dtype), (12,)), start, tolerance
    )


@each_epsilon
@each_model
def test_gradient_scaler(name: str, epsilon: float) -> None:
    model = build(name)
    start = parameters(model)
    credit = attrain.LFP(model, epsilon=epsilon)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    optimizer = sgd(model.parameters())
    found = []
    for number in range(STEPS):
        x, y = batch(number)
        optimizer.zero_grad()
        with credit:
            out = model(x)
        scaler.scale(rewards.softmax(out, y)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        found.append(parameters(model))
    assert scaler.get_scale() == 2.0 ** (12 + STEPS)
    wanted = trained(build(name), torch.float32, epsilon=epsilon)
    assert_equal_updates(found, wanted, start, 1e-4)


@pytest.mark.parametrize("to_none", [True, False])
@each_model
def test_zero_grad(name: str, to_none: bool) -> None:
    model = build(name, torch.float64)
    start = parameters(model)
    credit = attrain.LFP(model)

    def step(x: Tensor, y: Tensor) -> None:
        model.zero_grad(set_to_none=to_none)
        with credit:
            out = model(x)
        rewards.softmax(out, y).backward()

    found = trained(model, torch.float64, step)
    wanted = trained(build(name, torch.float64), torch.float64)
    assert_equal_updates(found, wanted, start, 1e-12)


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("rule", OPTIMIZERS)
@each_model
def test_optimizers_and_schedules_take_minus_the_feedback(name: str, rule: str) -> None:
    """The optimizer sees nothing but .grad: feed it the same gradients by hand."""
    model, twin = build(name, torch.float64), build(name, torch.float64)
    start = parameters(model)
    ours, theirs = OPTIMIZERS[rule](model.parameters()), OPTIMIZERS[rule](twin.parameters())
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10) for o in (ours, theirs)]
    found = trained(model, torch.float64, None, ours, schedules[0].step)
    other = build(name, torch.float64)
    credit = attrain.LFP(other)

    def step(x: Tensor, y: Tensor) -> None:
        other.load_state_dict(twin.state_dict())
        grads = feedback(other, credit, x, y)
        for key, parameter in twin.named_parameters():
            parameter.grad = grads[key]

    wanted = trained(twin, torch.float64, step, theirs, schedules[1].step)
    assert_equal_updates(found, wanted, start, 1e-12)


def test_an_optimizer_step_inside_the_backward_pass() -> None:
    model, twin = build("mlp", torch.float64), build("mlp", torch.float64)
    credit = attrain.LFP(model)
    x, y = batch(0, dtype=torch.float64)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def move(_: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(move)
    with credit:
        out = model(x)
    rewards.softmax(out, y).backward()
    grads = feedback(twin, attrain.LFP(twin), x, y)
    for name, parameter in twin.named_parameters():
        moved = model.get_parameter(name)
        torch.testing.assert_close(moved, parameter - 0.1 * grads[name], rtol=1e-12, atol=0)


# Copies.


class Holder(nn.Module):
    """A module that holds its own context, as a LightningModule does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.credit = attrain.LFP(self, epsilon=1e-3, scale="relative")

    def forward(self, x: Tensor) -> Tensor:
        with self.credit:
            return self.net(x)


def copies(model: Any) -> dict[str, Any]:
    return {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_context_belongs_to_the_copied_model(how: str) -> None:
    holder = Holder(build("mlp"))
    copied = copies(holder)[how]
    assert copied.credit is not holder.credit
    assert copied.credit._model is copied
    assert repr(copied.credit) == repr(holder.credit)
    x, y = batch(0)
    rewards.softmax(holder(x), y).backward()
    wanted = gradients(holder)
    assert all(p.grad is None for p in copied.parameters())
    rewards.softmax(copied(x), y).backward()
    assert_close(gradients(copied), wanted, 0.0)
    with holder.credit, pytest.raises(CreditError, match="another credit context is active"):
        copied(x)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_context_of_tensors_knows_its_own(how: str) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(192, 4, requires_grad=True), torch.randn(4, requires_grad=True)]
    together = {"credit": attrain.LFP(weights), "weights": weights}
    copied = copies(together)[how]
    x, y = batch(0)
    for each in (together, copied):
        w, b = each["weights"]
        with each["credit"]:
            out = x.flatten(1) @ w + b
        rewards.softmax(out, y).backward()
    assert copied["weights"][0] is not weights[0]
    for ours, theirs in zip(copied["weights"], weights, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_moving_averages_copy_the_model() -> None:
    holder = Holder(build("convolutions"))
    average = swa_utils.AveragedModel(holder, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = sgd(holder.parameters())
    for number in range(STEPS):
        x, y = batch(number)
        optimizer.zero_grad()
        rewards.softmax(holder(x), y).backward()
        optimizer.step()
        average.update_parameters(holder)
    assert average.module.credit._model is average.module
    x, y = batch(0)
    rewards.softmax(average(x), y).backward()
    assert all(p.grad is not None for p in average.module.parameters())


def test_a_copy_made_inside_the_context_is_not_inside() -> None:
    model = build("mlp")
    credit = attrain.LFP(model)
    with credit:
        copied = copy.deepcopy(credit)
    x, y = batch(0)
    assert_close(feedback(copied._model, copied, x, y), feedback(model, credit, x, y), 0.0)


# Activation checkpointing.


class Block(nn.Module):
    """Part of a residual network with dropout, whose result owes its stabiliser."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.dropout(F.gelu(self.up(self.norm(x)))))


class Deep(nn.Module):
    """Residual blocks, attention, and parts whose result owes nothing, each run by `run`."""

    def __init__(self, run: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.embed = nn.Linear(192, 8)
        self.parts = nn.ModuleList(
            [
                Block(8),
                Block(8),
                nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
                nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)),
                nn.Tanh(),
                nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, small_models.CLASSES)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1))[:, None]
        for part in self.parts:
            h = self.run(part, h)
        return h[:, 0]


def wrapped(*reentrant: bool, **options: Any) -> Callable[[Callable[..., Tensor], Tensor], Tensor]:
    """Return how to run a part inside checkpoints, the outermost first."""
    if not reentrant:
        return lambda part, h: part(h)
    inner = wrapped(*reentrant[1:])

    def run(part: Callable[..., Tensor], h: Tensor) -> Tensor:
        return checkpointing.checkpoint(
            lambda t: inner(part, t), h, use_reentrant=reentrant[0], **options
        )

    return run


def sequential(reentrant: bool) -> Callable[[Callable[..., Tensor], Tensor], Tensor]:
    """Return how to run a part as segments of `checkpoint_sequential`, the last one plain."""

    def run(part: Any, h: Tensor) -> Tensor:
        functions = [*part] if isinstance(part, nn.Sequential) else [part]
        functions += [nn.Identity()]
        return checkpointing.checkpoint_sequential(
            functions, min(3, len(functions)), h, use_reentrant=reentrant
        )

    return run


def selective() -> Any:
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    return checkpointing.create_selective_checkpoint_contexts(kept)


RUNS = {
    "reentrant": wrapped(True),
    "non-reentrant": wrapped(False),
    "sequential reentrant": sequential(True),
    "sequential non-reentrant": sequential(False),
    "two non-reentrant": wrapped(False, False),
    "two reentrant": wrapped(True, True),
    "reentrant around non-reentrant": wrapped(True, False),
    "non-reentrant around reentrant": wrapped(False, True),
    "three": wrapped(False, True, False),
    "selective": wrapped(False, context_fn=selective),
    "without early stop": wrapped(False, early_stop=False),
    "part by part, the last alone": None,
}


def half_and_half() -> Callable[[Callable[..., Tensor], Tensor], Tensor]:
    kinds = [wrapped(), wrapped(True), wrapped(False)]
    calls = [0]

    def run(part: Callable[..., Tensor], h: Tensor) -> Tensor:
        calls[0] += 1
        return kinds[calls[0] % 3](part, h)

    return run


def deep(run: Any, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    model = Deep(run)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


@each_epsilon
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str
)
@pytest.mark.parametrize("how", RUNS)
def test_activation_checkpointing(
    how: str, inside: bool, epsilon: float, dtype: Any, tolerance: float
) -> None:
    def grads(run: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
        model = deep(run, dtype)
        x, y = batch(0, dtype=dtype)
        torch.manual_seed(2)
        with attrain.LFP(model, epsilon=epsilon):
            out = model(x)
            if inside:
                rewards.softmax(out, y).backward()
        if not inside:
            rewards.softmax(out, y).backward()
        return out.detach(), gradients(model)

    out, wanted = grads(wrapped())
    same, found = grads(RUNS[how] or half_and_half())
    assert torch.equal(same, out)
    assert_close(found, wanted, tolerance)


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant", "two non-reentrant"])
def test_checkpointed_training(how: str) -> None:
    models = [deep(run, torch.float64) for run in (RUNS[how], wrapped())]
    start = parameters(models[0])
    paths = []
    for model in models:
        torch.manual_seed(3)
        paths.append(trained(model, torch.float64))
    assert_equal_updates(*paths, start, 1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_weights_that_enter_a_checkpoint_as_arguments(reentrant: bool) -> None:
    torch.manual_seed(0)
    shapes = {"a": (192, 8), "b": (8,), "c": (8, 4)}
    x, y = batch(0, dtype=torch.float64)

    def grads(run: Callable[..., Tensor]) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        weights = {k: nn.Parameter(torch.randn(s).double()) for k, s in shapes.items()}
        h = x.flatten(1)
        with attrain.LFP(weights.values()):
            h = run(lambda x, a, b: torch.tanh(x @ a + b), h, weights["a"], weights["b"])
            out = run(lambda h, c: h @ (2 * c), h, weights["c"])
        rewards.softmax(out, y).backward()
        return {name: weight.grad for name, weight in weights.items()}

    found = grads(lambda f, *args: checkpointing.checkpoint(f, *args, use_reentrant=reentrant))
    assert_close(found, grads(lambda f, *args: f(*args)), 1e-13)


def test_a_weight_computed_by_a_reentrant_checkpoint_is_refused() -> None:
    weight = nn.Parameter(torch.randn(4, 192))
    x, y = batch(0)
    with attrain.LFP([weight]):
        w = checkpointing.checkpoint(lambda w: 2 * w, weight, use_reentrant=True)
        out = F.linear(x.flatten(1), w)
    with pytest.raises(CreditError, match="use_reentrant=False"):
        rewards.softmax(out, y).backward()


@pytest.mark.parametrize(("reentrant", "tolerance"), [(False, 1e-13), (True, 1e-5)])
def test_an_activation_written_by_hand_in_a_checkpoint(reentrant: bool, tolerance: float) -> None:
    """Its input is a function of a tensor that is gone when it is computed again."""

    class Net(nn.Module):
        def __init__(self, run: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.last, self.run = nn.Linear(192, 8), nn.Linear(8, 4), run

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x.flatten(1))
            h = F.gelu(z)
            return self.last(self.run(lambda h: 0.5 * h * torch.tanh(h), h))

    def grads(run: Any) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        model = Net(run).double()
        x, y = batch(0, dtype=torch.float64)
        return feedback(model, attrain.LFP(model), x, y)

    assert_close(grads(wrapped(reentrant)), grads(wrapped()), tolerance)


class Negated(torch.autograd.Function):
    """An autograd.Function of a user's own, which a mode cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_function_without_rule_at_the_end_of_a_checkpoint_is_found(reentrant: bool) -> None:
    model = build("mlp")
    x, y = batch(0)
    with pytest.raises(CreditError, match="Negated"):
        with attrain.LFP(model):
            out = checkpointing.checkpoint(
                lambda x: Negated.apply(model(x)), x.requires_grad_(), use_reentrant=reentrant
            )
        rewards.softmax(out, y).backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_context_inside_a_checkpoint(reentrant: bool) -> None:
    holder = Holder(build("mlp", torch.float64))
    x, y = batch(0, dtype=torch.float64)
    wanted = feedback(holder.net, holder.credit, x, y)
    holder.zero_grad()
    out = checkpointing.checkpoint(holder, x.requires_grad_(), use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(CreditError, match="checkpoint"):
            rewards.softmax(out, y)
    else:
        rewards.softmax(out, y).backward()
        assert_close(gradients(holder.net), wanted, 1e-13)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_context_inside_a_checkpoint_inside_the_context(reentrant: bool) -> None:
    holder = Holder(build("mlp", torch.float64))
    x, y = batch(0, dtype=torch.float64)
    wanted = feedback(holder.net, holder.credit, x, y)
    holder.zero_grad()
    with holder.credit:
        out = checkpointing.checkpoint(holder, x.requires_grad_(), use_reentrant=reentrant)
    rewards.softmax(out, y).backward()
    assert_close(gradients(holder.net), wanted, 1e-13)


def test_checkpoints_without_a_context_work_as_ever() -> None:
    model = build("transformer", torch.float64)
    attrain.LFP(model)
    x, y = batch(0, dtype=torch.float64)
    grads = []
    for run in (wrapped(), wrapped(True), wrapped(False)):
        model.zero_grad()
        F.cross_entropy(run(model, x.requires_grad_()), y).backward()
        grads.append(gradients(model))
    assert_close(grads[1], grads[0], 1e-13)
    assert_close(grads[2], grads[0], 1e-13)


def test_saved_tensors_may_be_packed_away() -> None:
    model = build("transformer")
    x, y = batch(0)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()
    with torch.autograd.graph.save_on_cpu(), credit:
        out = model(x)
    rewards.softmax(out, y).backward()
    assert_close(gradients(model), wanted, 0.0)


# Code that changes a result in place, as residual networks and FSDP2 do.

RESULTS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "gelu": lambda: F.gelu,
    "silu": lambda: F.silu,
    "mish": lambda: F.mish,
    "hardswish": lambda: F.hardswish,
    "prelu": lambda: nn.PReLU(init=0.2),
    "glu": lambda: lambda z: F.glu(torch.cat([z, z], -1)),
    "group norm": lambda: nn.GroupNorm(2, 16),
    "instance norm": lambda: lambda z: F.instance_norm(z.unflatten(1, (4, 4))).flatten(1),
    "rms norm": lambda: nn.RMSNorm(16),
    "layer norm": lambda: nn.LayerNorm(16),
    "batch norm": lambda: nn.BatchNorm1d(16),
    "linear": lambda: nn.Linear(16, 16),
    "dropout": lambda: nn.Dropout(0.5),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_may_be_changed_in_place(name: str) -> None:
    def grads(in_place: bool) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(192, 16), nn.Linear(16, 4)]).double()
        function = RESULTS[name]()
        if isinstance(function, nn.Module):
            model.append(function.double())
        x, y = batch(0, dtype=torch.float64)
        torch.manual_seed(1)
        with attrain.LFP(model):
            h = model[0](x.flatten(1))
            after = function(h)
            if in_place:
                after += h
                after *= 0.5
            else:
                after = (after + h) * 0.5
            out = model[1](after)
        rewards.softmax(out, y).backward()
        return gradients(model)

    assert_close(grads(True), grads(False), 1e-12)


# Precision.


def run_case(case: Case, context: Callable[[], Any]) -> Tensor:
    torch.manual_seed(3)
    with context():
        return case.run()


def labels(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, out.shape[1], (out.shape[0], *out.shape[2:]), generator=generator)


def zoo_feedback(case: Case, context: Callable[[], Any], epsilon: float) -> Tensor:
    """Check that the forward pass is the native one; return all gradients in one vector."""
    plain = run_case(case, context)
    credit = attrain.LFP(case.model, epsilon=epsilon)
    torch.manual_seed(3)
    with context(), credit:
        out = case.run()
    assert torch.equal(out, plain)
    case.model.zero_grad()
    rewards.softmax(out, labels(out)).backward()
    grads = [p.grad for p in case.model.parameters() if p.grad is not None]
    assert grads
    return torch.cat([grad.float().flatten() for grad in grads])


FLOAT_MODELS = ("mlp", "lenet", "preactivation_resnet", "torchvision_resnet18", "vit", "bert",
                "bert_eager_training", "gpt2_gelu_new", "llama", "transformer_encoder",
                "transformer_encoder_eval", "multihead_attention",
                "cross_attention_other_sizes")  # fmt: skip


@each_epsilon
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_half_precision(name: str, kind: str, training: bool, epsilon: float) -> None:
    def made() -> Case:
        case = ZOO[name]()
        case.model.train(training)
        return case

    single = zoo_feedback(made(), contextlib.nullcontext, epsilon)
    case = made()
    if kind == "autocast":
        half = zoo_feedback(case, lambda: torch.autocast("cpu", torch.bfloat16), epsilon)
    else:
        case.model.bfloat16()
        case.args = tuple(
            each.bfloat16() if each.is_floating_point() else each for each in case.args
        )
        half = zoo_feedback(case, contextlib.nullcontext, epsilon)
    assert torch.isfinite(half).all()
    if name == "torchvision_resnet18" and training:
        return  # its last maps are one pixel: statistics over two values amplify any rounding
    assert F.cosine_similarity(half, single, dim=0) > 0.98


def test_half_precision_accumulates_with_a_scaler() -> None:
    model = build("convolutions")
    x, y = batch(0)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for xs, ys in zip(x.split(6), y.split(6), strict=True):
        with torch.autocast("cpu", torch.bfloat16), credit:
            out = model(xs)
            loss = rewards.softmax(out, ys) / 2
        scaler.scale(loss).backward()
    for name, parameter in model.named_parameters():
        grad = wanted[name]
        assert grad is not None and parameter.grad is not None
        assert F.cosine_similarity(parameter.grad.flatten(), 1024 * grad.flatten(), dim=0) > 0.99


# Compiled code.


def backend() -> str:
    """Return the compiler's real backend where there is a C compiler."""
    return "inductor" if shutil.which("cc") and shutil.which("c++") else "aot_eager"


@pytest.fixture
def compiler() -> Iterator[Any]:
    """Start from an empty compiler; return what counts what it compiles."""
    import torch._dynamo.testing

    torch._dynamo.reset()
    with warnings.catch_warnings():
        # The compiler looks at .grad of whatever enters a graph, and instantiates (torch 2.13)
        # autograd functions; torch warns of both.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        warnings.filterwarnings("ignore", message=".*should not be instantiated")
        yield torch._dynamo.testing
    torch._dynamo.reset()


@pytest.mark.slow
@each_model
def test_compiled_models_run_under_the_rules(name: str, compiler: Any) -> None:
    x, y = batch(0)
    plain = build(name)
    wanted = feedback(plain, attrain.LFP(plain), x, y)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        for model in (build(name), build(name)):
            compiled: Any = torch.compile(model, backend=backend())
            native = compiled(x)
            F.cross_entropy(native, y).backward()  # compiled forward and backward, beforehand
            for owner in (compiled, model):
                model.zero_grad()
                credit = attrain.LFP(owner)
                with credit:
                    out = compiled(x)
                rewards.softmax(out, y).backward()
                assert_close(gradients(model), wanted, 1e-6)
        counter = compiler.CompileCounter()
        again: Any = torch.compile(model, backend=counter)
        with credit:
            again(x)
        assert counter.frame_count == 0
        again(x)
        assert counter.frame_count > 0, "outside the context compiled code runs compiled"


@each_model
def test_models_compiled_in_place(name: str, compiler: Any) -> None:
    x, y = batch(0)
    model = build(name)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.compile(backend="aot_eager")
    assert_close(feedback(model, credit, x, y), wanted, 0.0)


@pytest.mark.parametrize("backward", ["inside", "outside"])
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(each, marks=pytest.mark.slow) for each in HEAVY)]
)
def test_a_compiled_function_may_hold_the_context(name: str, backward: str, compiler: Any) -> None:
    model = build(name)
    credit = attrain.LFP(model)
    x, y = batch(0)
    with credit:
        out = model(torch.sin(x) + 1)
    (2 * rewards.softmax(out, y)).backward()
    wanted = gradients(model)
    model.zero_grad()

    @torch.compile(backend="aot_eager")
    def step(x: Tensor, y: Tensor) -> Tensor:
        x = torch.sin(x) + 1
        with credit:
            out = model(x)
        loss = 2 * rewards.softmax(out, y)
        if backward == "inside":
            loss.backward()
        return loss

    loss = step(x, y)
    if backward == "outside":
        loss.backward()
    assert_close(gradients(model), wanted, 1e-6)


def test_a_compiled_module_may_hold_the_context(compiler: Any) -> None:
    holder = Holder(build("transformer"))
    x, y = batch(0)
    wanted = feedback(holder.net, holder.credit, x, y)
    holder.zero_grad()
    compiled: Any = torch.compile(holder, backend="aot_eager")
    rewards.softmax(compiled(x), y).backward()
    assert_close(gradients(holder.net), wanted, 1e-6)


def test_one_graph_cannot_hold_the_context(compiler: Any) -> None:
    holder = Holder(build("mlp"))
    compiled: Any = torch.compile(holder, backend="eager", fullgraph=True)
    # torch 2.15 quotes the reason, "compile it without fullgraph=True"; 2.13 does not.
    with pytest.raises(Exception, match=r"LFP"):
        compiled(batch(0)[0])


def test_an_exception_in_a_compiled_function_leaves_the_context(compiler: Any) -> None:
    model = build("mlp")
    credit = attrain.LFP(model)

    @torch.compile(backend="aot_eager")
    def step(x: Tensor) -> None:
        with credit:
            raise KeyError(str(model(x).shape))

    with pytest.raises(KeyError):
        step(batch(0)[0])
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_compiled_parts_in_checkpoints(reentrant: bool, inside: bool, compiler: Any) -> None:
    model: Any = build("mlp", torch.float64)
    x, y = batch(0, dtype=torch.float64)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()
    part = torch.compile(model[2:], backend="aot_eager")
    with credit:
        out = checkpointing.checkpoint(part, model[:2](x), use_reentrant=reentrant)
        if inside:
            rewards.softmax(out, y).backward()
    if not inside:
        rewards.softmax(out, y).backward()
    assert_close(gradients(model), wanted, 1e-13)


def test_checkpoints_in_a_compiled_function(compiler: Any) -> None:
    model: Any = build("mlp", torch.float64)
    x, y = batch(0, dtype=torch.float64)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()

    @torch.compile(backend="aot_eager")
    def step(x: Tensor) -> Tensor:
        with credit:
            return checkpointing.checkpoint(model[2:], model[:2](x), use_reentrant=False)

    rewards.softmax(step(x), y).backward()
    assert_close(gradients(model), wanted, 1e-13)


def test_a_compiled_forward_pass_without_context_is_found(compiler: Any) -> None:
    compiled: Any = torch.compile(build("mlp"), backend="aot_eager")
    x, y = batch(0)
    out = compiled(x)
    with pytest.raises(CreditError, match="did you forget `with credit:`"):
        rewards.softmax(out, y)


@pytest.mark.slow
def test_compiling_first_of_all_inside_the_context_is_right_or_refused() -> None:
    """The compiler is imported by its first use: then the context cannot have set it aside."""
    script = """
import sys, torch, small_models, attrain
from attrain import rewards
assert "torch._dynamo" not in sys.modules, "importing the compiler takes a second"
model = small_models.build("mlp")
x, y = small_models.batch(0)
try:
    with attrain.LFP(model):
        out = torch.compile(model, backend="aot_eager")(x)
    rewards.softmax(out, y).backward()
except attrain.errors.CreditError as error:
    assert "did you forget" in str(error), error
else:
    raise SystemExit("a compiled graph went unnoticed")
model.zero_grad()
with attrain.LFP(model):
    out = torch.compile(model, backend="aot_eager")(x)
rewards.softmax(out, y).backward()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)


# Several processes.


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    distributed_worker.run(folder)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")  # all cases are trained at once, by one worker
@pytest.mark.parametrize("case", distributed_worker.cases(), ids=str)
def test_two_processes(case: distributed_worker.Case, processes: Path) -> None:
    dtype = getattr(torch, case.dtype)
    tolerance = dict(PRECISIONS)[dtype]
    stored = load_file(processes / f"{case}.safetensors")
    found = [
        {key.partition("/")[2]: value for key, value in stored.items() if int(key[0]) == step}
        for step in range(STEPS)
    ]
    model = build(case.model, dtype)
    start = parameters(model)
    wanted = trained(model, dtype, epsilon=case.epsilon, scale=case.scale)
    assert found[0].keys() == start.keys()
    assert_equal_updates(found, wanted, start, tolerance)


# Frameworks.


def dataset() -> torch.utils.data.TensorDataset:
    """Return 96 images of four classes that a small network can tell apart."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(96) % small_models.CLASSES
    centres = torch.randn(small_models.CLASSES, 3, 8, 8, generator=generator)
    images = centres[labels] + torch.randn(96, 3, 8, 8, generator=generator)
    return torch.utils.data.TensorDataset(images, labels)


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    images, labels = dataset().tensors
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def by_hand(
    name: str, epochs: int, size: int, parts: int = 1, clip: float | None = None
) -> tuple[nn.Module, list[float]]:
    """Return a model trained the plain way, `parts` batches of `size` to a step, and the losses."""
    model = build(name)
    credit = attrain.LFP(model, scale="relative")
    optimizer = sgd(model.parameters())
    losses = []
    batches = list(torch.utils.data.DataLoader(dataset(), size))
    for _ in range(epochs):
        for number, (x, y) in enumerate(batches, 1):
            with credit:
                out = model(x)
            loss = rewards.softmax(out, y)
            (loss / parts).backward()
            losses.append(loss.item())
            if number % parts == 0:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return model, losses


def assert_same_parameters(found: nn.Module, wanted: nn.Module, tolerance: float = 1e-4) -> None:
    for (name, ours), theirs in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@each_model
def test_lightning(name: str, parts: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import lightning
        from lightning.pytorch import callbacks

    class Toy(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = build(name)
            self.credit = attrain.LFP(self, scale="relative")
            self.losses: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            with self.credit:
                out = self(x)
            loss = rewards.softmax(out, y)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.parameters())

        def on_train_epoch_start(self) -> None:
            self.train(self.net.training if name != "convolutions" else False)

    model = Toy()
    before = accuracy(model)
    keep = callbacks.ModelCheckpoint(tmp_path, save_last=True, enable_version_counter=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps|.*logging interval")
        warnings.filterwarnings("ignore", message=".*eval mode at the start of training")
        warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
        trainer = lightning.Trainer(
            max_epochs=8,
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[keep],
            accumulate_grad_batches=parts,
            gradient_clip_val=0.5,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, torch.utils.data.DataLoader(dataset(), 16))
    plain, losses = by_hand(name, 8, 16, parts, clip=0.5)
    assert_same_parameters(model.net, plain)
    assert model.losses == pytest.approx(losses, rel=1e-3, abs=1e-4)
    assert accuracy(model) > max(0.4, before)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert stored["state_dict"].keys() == {f"net.{key}" for key in plain.state_dict()}


class Judged(nn.Module):
    """A model that computes its own loss, as Hugging Face's Trainer expects."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = build(name)
        self.credit = attrain.LFP(self.net, scale="relative")

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with self.credit:
            logits = self.net(x)
        return {"loss": rewards.softmax(logits, labels), "logits": logits}


def hugging_face_trainer(model: nn.Module, data: Any, folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        **options,
    )
    return transformers.Trainer(
        model, arguments, train_dataset=data, optimizers=(sgd(model.parameters()), None)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_hugging_face_trainer(name: str, tmp_path: Path) -> None:
    """Two micro batches are the whole set, so that the order of the samples does not matter."""
    images, labels = dataset().tensors
    data = [{"x": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    model = Judged(name)
    before = accuracy(model.net)
    trainer = hugging_face_trainer(
        model,
        data,
        tmp_path,
        num_train_epochs=30,
        per_device_train_batch_size=48,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    plain, _ = by_hand(name, 30, 96, clip=0.5)
    assert_same_parameters(model.net, plain, 1e-2)
    assert accuracy(model.net) > max(0.6, before)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [False, True])
def test_hugging_face_trainer_with_a_hugging_face_model(tmp_path: Path, checkpoints: bool) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    class Bert(BertForSequenceClassification):
        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with self.credit:
                logits = super().forward(input_ids).logits
            return {"loss": rewards.softmax(logits, labels), "logits": logits}

    def built() -> Bert:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=20,
            max_position_embeddings=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = Bert(config)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        model.credit = attrain.LFP(model, scale="relative")
        return model

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 20, (32, 6), generator=generator)
    labels = (tokens[:, 0] > 11).long()
    data = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    model = built()
    if checkpoints:
        # Renamed in version 5; both names mean the same.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    trainer = hugging_face_trainer(
        model,
        data,
        tmp_path,
        num_train_epochs=20,
        per_device_train_batch_size=32,
    )
    trainer.train()
    plain = built().train()
    optimizer = sgd(plain.parameters())
    for _ in range(20):
        out = plain(tokens, labels)
        out["loss"].backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert_same_parameters(model, plain, 1e-3)
    assert (out["logits"].argmax(1) == labels).float().mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str) -> None:
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=2
    )
    model = build("transformer")
    loader = torch.utils.data.DataLoader(dataset(), 16)
    prepared, optimizer, loader = accelerator.prepare(model, sgd(model.parameters()), loader)
    credit = attrain.LFP(prepared, scale="relative")
    for _ in range(3):
        for x, y in loader:
            with accelerator.accumulate(prepared):
                with credit:
                    out = prepared(x)
                accelerator.backward(rewards.softmax(out, y))
                accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    plain, _ = by_hand("transformer", 3, 16, 2, clip=0.5)
    assert_same_parameters(model, plain, 1e-4 if precision == "no" else 0.05)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


# Exceptions, nesting and threads.


def state(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    hooks = [
        (name, key, dict(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key and value
    ]
    kinds = [(name, type(module), module.forward) for name, module in model.named_modules()]
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    return stored, hooks, kinds, model(x).detach()


def assert_same_state(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    assert found[0].keys() == wanted[0].keys()
    assert all(torch.equal(found[0][name], wanted[0][name]) for name in wanted[0])
    assert found[1:3] == wanted[1:3]
    assert torch.equal(found[3], wanted[3])


@each_model
def test_exceptions_leave_nothing_behind(name: str) -> None:
    model = build(name)
    x, y = batch(0)
    before = state(model, x)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)

    def misuse() -> None:
        raise KeyError("a mistake of the user's own")

    def unknown() -> None:
        torch.logcumsumexp(model(x), 1)

    def failing_backward() -> None:
        out = model(x)
        out.register_hook(lambda grad: misuse())
        rewards.softmax(out, y).backward()

    def failing_checkpoint() -> None:
        def run(x: Tensor) -> Tensor:
            if calls:
                misuse()
            calls.append(1)
            return model(x)

        calls: list[int] = []
        out = checkpointing.checkpoint(run, x.clone().requires_grad_(), use_reentrant=True)
        rewards.softmax(out, y).backward()

    def wrong_shape() -> None:
        model(x[:, :1])

    for mistake in (misuse, unknown, failing_backward, failing_checkpoint, wrong_shape):
        with pytest.raises((KeyError, RuntimeError)), credit:
            mistake()
        assert not _get_current_function_mode_stack()
        plain = model(x)
        assert plain.grad_fn is not None and "Credit" not in plain.grad_fn.name()
    model.zero_grad()
    assert_same_state(state(model, x), before)
    assert_close(feedback(model, credit, x, y), wanted, 0.0)


def test_an_exception_is_handed_on_as_it_is() -> None:
    model = build("mlp")
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught, attrain.LFP(model):
        raise error
    assert caught.value is error


def test_nesting() -> None:
    model = build("mlp")
    x, y = batch(0)
    credit, other = attrain.LFP(model), attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()
    with credit:
        with credit:
            h = model[0](x)
            with credit, pytest.raises(CreditError, match="another credit context is active"):
                other.__enter__()
        with pytest.raises(CreditError, match="Leave it before entering this one"), other:
            pass
        out = model[1:](h)
    rewards.softmax(out, y).backward()
    assert_close(gradients(model), wanted, 0.0)
    with other:
        model(x)


def test_one_context_in_other_threads_one_after_the_other() -> None:
    model = build("transformer")
    credit = attrain.LFP(model)
    x, y = batch(0)
    wanted = feedback(model, credit, x, y)
    for _ in range(3):
        found: list[dict[str, Tensor | None]] = []
        thread = threading.Thread(target=lambda f=found: f.append(feedback(model, credit, x, y)))
        thread.start()
        thread.join()
        assert_close(found[0], wanted, 0.0)
    assert_close(feedback(model, credit, x, y), wanted, 0.0)


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant", "non-reentrant around reentrant"])
def test_a_backward_pass_in_another_thread(how: str) -> None:
    """An accelerator's backward pass runs, and computes checkpoints again, in its own thread."""
    model = deep(RUNS[how], torch.float64)
    x, y = batch(0, dtype=torch.float64)
    torch.manual_seed(2)
    wanted = feedback(model, attrain.LFP(model), x, y)
    model.zero_grad()
    torch.manual_seed(2)
    with attrain.LFP(model):
        out = model(x)
        thread = threading.Thread(target=rewards.softmax(out, y).backward)
        thread.start()
        thread.join()
    assert_close(gradients(model), wanted, 0.0)


@pytest.mark.parametrize("shared", [False, True], ids=["own contexts", "one context"])
def test_threads_at_once(shared: bool) -> None:
    """Every thread has its own model; with one context they meet inside it."""
    x, y = batch(0)
    model = build("transformer")
    wanted = feedback(model, attrain.LFP(model), x, y)
    models = [build("transformer") for _ in range(4)]
    credits = [attrain.LFP(each) for each in models]
    meeting = threading.Barrier(len(models))
    failures: list[BaseException] = []

    def work(model: nn.Module, credit: attrain.LFP) -> None:
        try:
            for _ in range(5):
                model.zero_grad()
                with credit:
                    meeting.wait(30)
                    out = model(x)
                    meeting.wait(30)
                rewards.softmax(out, y).backward()
                assert_close(gradients(model), wanted, 0.0)
        except BaseException as error:
            failures.append(error)
            meeting.abort()

    threads = [
        threading.Thread(target=work, args=(each, credits[0] if shared else credit))
        for each, credit in zip(models, credits, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_compiled_code_stays_set_aside_until_the_last_thread_has_left(compiler: Any) -> None:
    model = build("mlp")
    compiled: Any = torch.compile(model, backend="aot_eager")
    x, y = batch(0)
    wanted = feedback(model, attrain.LFP(model), x, y)
    model.zero_grad()
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with attrain.LFP(build("mlp")):
            entered.set()
            left.wait(30)

    thread = threading.Thread(target=other)
    with attrain.LFP(model):
        thread.start()
        entered.wait(30)
        left.set()
        thread.join()
        out = compiled(x)
    rewards.softmax(out, y).backward()
    assert_close(gradients(model), wanted, 1e-6)


@pytest.mark.parametrize("part", ["all", "first", "last"])
def test_a_forward_pass_in_another_thread_is_found(part: str) -> None:
    """As nn.DataParallel does: the context of this thread does not reach into that one."""
    model: Any = build("mlp")
    first, last = model[:4], model[4:]
    x, y = batch(0)

    def elsewhere(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(run(x)))
        thread.start()
        thread.join()
        return found[0]

    with pytest.raises(CreditError, match="another thread"):
        with attrain.LFP(model):
            if part == "all":
                out = elsewhere(model, x)
            elif part == "first":
                out = last(elsewhere(first, x))
            else:
                out = elsewhere(last, first(x))
        rewards.softmax(out, y)


# Functional code, frozen parameters, adapters.


def test_functional_call_with_the_model_s_own_parameters() -> None:
    model = build("convolutions")
    credit = attrain.LFP(model)
    x, y = batch(0)
    wanted = feedback(model, credit, x, y)
    model.zero_grad()
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with credit:
        out = torch.func.functional_call(model, own, (x,))
    rewards.softmax(out, y).backward()
    assert_close(gradients(model), wanted, 0.0)


def test_functional_call_with_other_tensors() -> None:
    model = build("transformer")
    credit = attrain.LFP(model)
    x, y = batch(0)
    wanted = feedback(model, credit, x, y)
    others = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with pytest.raises(CreditError, match=r"attrain\.LFP\(\[\*model\.parameters\(\), weight\]\)"):
        with credit:
            torch.func.functional_call(model, others, (x,))
    with attrain.LFP(others.values()):
        out = torch.func.functional_call(model, others, (x,))
    rewards.softmax(out, y).backward()
    assert_close({name: each.grad for name, each in others.items()}, wanted, 0.0)


@each_epsilon
def test_tensors_as_parameters(epsilon: float) -> None:
    torch.manual_seed(0)  # now and then a product is as small as epsilon, and its own matters
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    nn.init.normal_(model[1].bias)
    x, y = batch(0, dtype=torch.float64)
    wanted = feedback(model, attrain.LFP(model, epsilon=epsilon), x, y)
    a, b, c, d = (p.detach().clone() for p in model.parameters())
    weights = [each.requires_grad_() for each in (a.T.contiguous(), b, c.T.contiguous(), d)]
    with attrain.LFP(weights, epsilon=epsilon):
        out = torch.relu(x.flatten(1) @ weights[0] + weights[1]) @ weights[2] + weights[3]
    rewards.softmax(out, y).backward()
    found = [each.grad if each.ndim == 1 else each.grad.T for each in weights]
    # One stabiliser for z = xW + b, as in the layer; here the product owes one of its own.
    assert_close(dict(zip(wanted, found, strict=True)), wanted, 1e-4 if epsilon else 1e-13)


@each_epsilon
@each_model
@pytest.mark.parametrize("offset", range(3))
def test_frozen_parameters_pass_credit_and_get_none(name: str, epsilon: float, offset: int) -> None:
    model = build(name, torch.float64)
    x, y = batch(0, dtype=torch.float64)
    wanted = feedback(model, attrain.LFP(model, epsilon=epsilon), x, y)
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_((place + offset) % 3 == 0)
    found = feedback(model, attrain.LFP(model, epsilon=epsilon), x, y)
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert found[parameter_name] is None
            wanted[parameter_name] = None
    assert_close(found, wanted, 1e-12)


class Adapted(nn.Module):
    """A frozen linear layer with a trained correction of low rank, added to W or beside it."""

    def __init__(self, frozen: nn.Linear, merged: bool) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, frozen.in_features) * 0.1)
        self.b = nn.Parameter(torch.randn(frozen.out_features, 2) * 0.1)
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.weight(), self.frozen.bias)
        return self.frozen(x) + x @ self.a.T @ self.b.T

    def weight(self) -> Tensor:
        return self.frozen.weight + self.b @ self.a


def adapted(merged: bool, scale: float = 1.0) -> Any:
    model: Any = build("mlp", torch.float64)
    torch.manual_seed(0)
    for place in (1, 4):
        model[place] = Adapted(model[place], merged).double()
        model[place].b.data *= scale
    return model


def test_adapters_added_to_a_frozen_weight_share_the_feedback_of_the_sum() -> None:
    """W + BA is one weight: |W + BA| scales its gradient once, which then reaches A and B."""
    model = adapted(merged=True)
    plain: Any = build("mlp", torch.float64)
    with torch.no_grad():
        for place in (1, 4):
            plain[place].weight.copy_(model[place].weight())
    x, y = batch(0, dtype=torch.float64)
    found = feedback(model, attrain.LFP(model), x, y)
    merged = feedback(plain, attrain.LFP(plain), x, y)
    for place in (1, 4):
        whole, adapter = merged[f"{place}.weight"], model[place]
        assert whole is not None
        wanted = {f"{place}.a": adapter.b.T @ whole, f"{place}.b": whole @ adapter.a.T}
        assert_close({name: found[name] for name in wanted}, wanted, 1e-12)
        assert found[f"{place}.frozen.weight"] is None


def test_adapters_beside_a_frozen_layer_are_layers() -> None:
    """The form of Hugging Face's peft: each factor is a weight of its own, scaled by itself."""
    model = adapted(merged=False)
    x, y = batch(0, dtype=torch.float64)
    found = feedback(model, attrain.LFP(model, epsilon=0.0), x, y)
    model.zero_grad()
    # Up to the activation behind it the network is linear: |w| times the gradient of what follows.
    adapter = model[4]
    with attrain.LFP(model, epsilon=0.0):
        h = model[:4](x)
        h.retain_grad()
        low = h @ adapter.a.T
        out = adapter.frozen(h) + low @ adapter.b.T
        out.retain_grad()
        rewards.softmax(model[5:](out), y).backward()
    assert out.grad is not None
    wanted = {
        "4.a": adapter.a.abs() * (adapter.b.T @ out.grad.T @ h),
        "4.b": adapter.b.abs() * (out.grad.T @ low),
    }
    assert_close({name: found[name] for name in wanted}, wanted, 1e-12)


def test_an_adapter_that_starts_at_zero_is_named() -> None:
    model = adapted(merged=False, scale=0.0)
    with pytest.warns(CreditWarning, match=r"staying there: 1\.b, 4\.b"):
        attrain.LFP(model)


# Evaluation and memory.


@each_model
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_evaluation_inside_the_context(name: str, off: Callable[[], Any]) -> None:
    model = build(name)
    x, y = batch(0)
    credit = attrain.LFP(model)
    wanted = feedback(model, credit, x, y)
    plain = model(x).detach()
    model.zero_grad()
    with credit:
        with off():
            before = model(x)
            value = rewards.softmax(before, y)
        out = model(x)
        with off():
            hits = (model(x).argmax(1) == y).float().mean()
            assert torch.equal(out.detach().argmax(1), plain.argmax(1))
        loss = rewards.softmax(out, y)
    with off(), credit:
        after = model(x)
    for each in (before, value, hits, after):
        assert not hasattr(each, "_attrain") and each.grad_fn is None
    assert torch.equal(before, plain) and torch.equal(after, plain)
    assert value == loss
    loss.backward()
    assert_close(gradients(model), wanted, 0.0)


def alive() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated modules that isinstance wakes
        return sum(isinstance(each, Tensor) for each in gc.get_objects())


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        pytest.param("reentrant", marks=pytest.mark.slow),
        "non-reentrant",
        pytest.param("two non-reentrant", marks=pytest.mark.slow),
    ],
)
def test_steps_leave_no_tensors_behind(how: str) -> None:
    model = deep(RUNS.get(how, wrapped()), torch.float32)
    credit = attrain.LFP(model)
    optimizer = sgd(model.parameters())
    counts, outs = [], []
    gc.collect()
    gc.disable()
    try:
        for number in range(20):
            x, y = batch(number)
            optimizer.zero_grad()
            with credit:
                out = model(x)
            outs.append(weakref.ref(out))
            rewards.softmax(out, y).backward()
            optimizer.step()
            del out
            if number in (2, 19):
                counts.append(alive())
    finally:
        gc.enable()
    assert all(out() is None for out in outs), "freed without the help of the garbage collector"
    assert len(set(counts)) == 1, counts
