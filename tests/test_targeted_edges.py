"""Targeted updates where they could go wrong in silence: each of these once did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.targeted import Targeted


def made(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(10, 16, bias=bias), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    ).double()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 10, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (32,), generator=generator)


def train(targeted: Targeted, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(targeted(x), y).backward()
        optimizer.step()
        targeted.step(optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimizers_reach_the_model(kind):
    plain, fused = (Targeted(made(), score="fixed", warmup=0) for _ in range(2))
    train(plain, kind(plain.parameters(), lr=0.01))
    train(fused, kind(fused.parameters(), lr=0.01, fused=True))
    for one, other in zip(plain.model.parameters(), fused.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    moved = (fused.model[0].weight != made()[0].weight).any(1)
    assert moved.nonzero()[:, 0].tolist() == fused.selection()["0"].tolist()


def test_optimizers_that_write_into_data_reach_the_model():
    class Descent(torch.optim.Optimizer):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.data.add_(parameter.grad, alpha=-group["lr"])

    plain, own = (Targeted(made(), score="fixed", warmup=0) for _ in range(2))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    train(own, Descent(own.parameters(), {"lr": 0.1}))
    for one, other in zip(plain.model.parameters(), own.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Functional(nn.Module):
    """Layers that are called by their weights, without their bias or with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(10, 16), nn.Conv1d(1, 16, 3)
        self.q, self.k = nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        h = F.linear(x, self.a.weight) + F.linear(x, self.a.weight, 2 * self.a.bias)
        z = F.conv1d(x.unsqueeze(1), self.c.weight, 3 * self.c.bias).mean(2)
        both = torch.relu(F.linear(h + z, torch.cat([self.q.weight, self.k.weight])))
        return self.out(both + F.linear(h, weight=torch.stack([self.q.weight]).flatten(0, 1)).sum())


@pytest.mark.parametrize("warmup", [0, 100])
def test_layers_that_are_called_by_hand_give_the_models_values_and_gradients(warmup):
    torch.manual_seed(0)
    model = Functional().double()
    dense = copy.deepcopy(model)
    targeted = Targeted(model, score="fixed", warmup=warmup)
    x, y = batch()
    torch.testing.assert_close(targeted(x), dense(x))
    F.cross_entropy(targeted(x), y).backward()
    F.cross_entropy(dense(x), y).backward()
    parts = dict(targeted.parts.named_parameters())
    for name, rows in targeted.selection().items():
        for kind in ("weight", "bias"):
            wanted = getattr(dense.get_submodule(name), kind).grad
            found = parts[f"{name}/{kind}"].grad
            if wanted is None:
                assert found is None or not found.any()
            else:
                torch.testing.assert_close(found, wanted[rows])


def test_half_precision_inputs_are_explained():
    targeted = Targeted(made().float(), score="flow", warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(targeted(x.bfloat16()), y)
    loss.backward()
    optimizer.step()
    targeted.step(optimizer)
    assert len(targeted.selection()["0"]) == 4


def late(order: str) -> Targeted:
    """Train by Adam, with rows that enter late; gradients are cleared after or before `step`."""
    targeted = Targeted(made(), score="random", warmup=40, refresh=5)
    optimizer = torch.optim.Adam(targeted.parameters(), lr=1e-3)
    x, y = batch()
    for _ in range(60):
        F.cross_entropy(targeted(x), y).backward()
        optimizer.step()
        if order == "before":
            optimizer.zero_grad()
        targeted.step(optimizer)
        optimizer.zero_grad()
    return targeted


def test_gradients_may_be_cleared_before_the_step_is_taken_over():
    pairs = zip(late("after").parameters(), late("before").parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_step_that_the_optimizer_skipped_moves_nothing():
    targeted = Targeted(made(), score="random", warmup=20, refresh=5)
    optimizer = torch.optim.AdamW(targeted.parameters(), lr=0.1, weight_decay=0.1)
    train(targeted, optimizer, 27)
    before = copy.deepcopy(targeted.model.state_dict())
    x, y = batch()
    F.cross_entropy(targeted(x), y).backward()
    targeted.step(optimizer)  # as after an overflow that GradScaler has found
    assert all(torch.equal(before[name], v) for name, v in targeted.model.state_dict().items())


def test_protect_leaves_modes_as_they_are():
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    targeted = Targeted(model.double(), score="ratio", statistics="freeze", warmup=0)
    targeted.protect([batch()])
    assert model.training
    assert not model[1].training


def test_batch_norms_may_be_changed_by_hand():
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    targeted = Targeted(model.double(), score="fixed", warmup=0)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    train(targeted, optimizer, 2)
    with torch.no_grad():
        model[1].weight.fill_(5.0)
    train(targeted, optimizer, 1)
    others = torch.ones(16, dtype=torch.bool)
    others[targeted.selection()["0"]] = False
    assert (model[1].weight[others] == 5.0).all()
    assert (model[1].weight[~others] != 5.0).all()


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        (batch()[0], "protect takes batches, a loader or a list of .x, y., got Tensor: for one"),
        (3, "protect takes batches, .* got int"),
        (batch(), "protect takes batches, a loader or a list of .x, y., got tuple: for one batch"),
        ([(batch()[0], batch()[1], 1)], "a batch for protect is .x, y. or x, tensors both, got Te"),
        ([{"x": batch()[0]}], "tensors both, got dict"),
        ([(batch()[0], F.one_hot(batch()[1]))], "class indices for outputs .32, 3. are int64 .32."),
        ([(batch()[0], batch()[1] + 5)], "labels go from 5 to 7, and the model names 3 classes"),
    ],
)
def test_what_cannot_be_protected_is_one_sentence(batches, told):
    with pytest.raises(InputError, match=told):
        Targeted(made(), score="ratio").protect(batches)


@pytest.mark.parametrize("score", ["random", "fixed", "flow", "error"])
def test_training_the_model_and_not_targeted_is_told_at_once(score):
    targeted = Targeted(made(), score=score, warmup=5)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = batch()
    F.cross_entropy(targeted.model(x), y).backward()
    with pytest.raises(InputError, match="no pass through Targeted was seen before it, so that no"):
        targeted.step(optimizer)


@pytest.mark.parametrize("score", ["flow", "error"])
def test_a_call_without_samples_has_no_score(score):
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.rest = made()

        def forward(self, x):
            return self.rest(x) + self.rest(x[:0]).sum()

    targeted = Targeted(Empty(), score=score, warmup=1)
    train(targeted, torch.optim.SGD(targeted.parameters(), lr=0.1), 3)
    assert targeted.scores()["rest.0"].isfinite().all()


def test_lbfgs_is_refused():
    targeted = Targeted(made(), score="fixed", warmup=0)
    x, y = batch()
    F.cross_entropy(targeted(x), y).backward()
    with pytest.raises(InputError, match="LBFGS remembers all parameters as one, so that rows"):
        targeted.step(torch.optim.LBFGS(targeted.parameters()))


@pytest.mark.parametrize("score", ["flow", "error"])
def test_a_loss_that_is_no_number_puts_the_choice_off(score):
    targeted = Targeted(made(), score=score, warmup=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    x, y = batch()
    (F.cross_entropy(targeted(x), y) * float("nan")).backward()
    targeted.step(optimizer)
    assert len(targeted.selection()["0"]) == 16
    optimizer.zero_grad()
    train(targeted, optimizer, 1)
    assert len(targeted.selection()["0"]) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dense": 3}, "dense takes names or patterns of layers, got 3"),
        ({"dense": [0]}, "dense takes names or patterns of layers, got .0."),
        ({"seed": 2**70}, "seed must be an integer of 64 bits"),
        ({"on_refresh": 3}, "on_refresh is called with a Refresh, and int cannot be"),
    ],
)
def test_bad_options_are_one_sentence(options, told):
    with pytest.raises(InputError, match=told):
        Targeted(made(), **options)
