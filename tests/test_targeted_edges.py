"""Targeted updates where they could go wrong in silence: each of these once did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.targeted import Targeted, explain


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


# Freezing -----------------------------------------------------------------------------------------


def test_what_is_frozen_as_a_whole_stays_and_counts_for_nothing():
    parts = list(made())
    model = nn.Sequential(parts[0], nn.BatchNorm1d(16).double(), *parts[1:])
    targeted = Targeted(model, score="fixed", warmup=0)
    targeted(batch()[0])
    share = targeted.trained_share()
    targeted.requires_grad_(False)
    assert targeted.trained_share() == 0.0
    targeted.model[5].requires_grad_(True)
    before = copy.deepcopy(targeted.model)
    train(targeted, torch.optim.SGD(targeted.parameters(), lr=0.1))
    assert torch.equal(before[0].weight, targeted.model[0].weight)
    assert not torch.equal(before[5].weight, targeted.model[5].weight)
    targeted.requires_grad_(True)
    train(targeted, torch.optim.SGD(targeted.parameters(), lr=0.1))
    assert targeted.trained_share() == share
    assert not targeted.model[0].weight.requires_grad
    targeted.model.requires_grad_(True)
    assert targeted.trained_share() == share


# The output layer ---------------------------------------------------------------------------------


def test_an_output_layer_that_shares_its_weight_with_an_embedding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.hidden = nn.Embedding(20, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 20, bias=False)
            self.out.weight = self.words.weight

        def forward(self, tokens):
            return self.out(torch.relu(self.hidden(self.words(tokens))))

    tokens = torch.arange(12).view(2, 6)
    targeted = Targeted(Tied(), warmup=1)
    F.cross_entropy(targeted(tokens).flatten(0, 1), tokens.flatten()).backward()
    targeted.step(torch.optim.SGD(targeted.parameters(), lr=0.1))
    assert list(targeted.selection()) == ["hidden"]
    assert explain.output_layer(Tied(), tokens) == "out"


# Steps that nobody takes over ---------------------------------------------------------------------


def test_a_loop_without_targeted_step_is_told_at_once():
    targeted, other = (Targeted(made()) for _ in range(2))
    optimizer = torch.optim.SGD([*targeted.parameters(), *other.parameters()], lr=0.1)
    x, y = batch()
    F.cross_entropy(other.model(x), y).backward()
    for _ in range(3):
        optimizer.step()  # of others
    F.cross_entropy(targeted(x), y).backward()
    optimizer.step()
    with pytest.raises(
        InputError, match=r"its second step, and targeted.step\(optimizer\) was not"
    ):
        optimizer.step()
    targeted.step(optimizer)
    optimizer.step()


# Checkpoints without the optimizer's --------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("order", ["alone", "first", "last"])
@pytest.mark.parametrize(("saved", "trained"), [(2, 5), (5, 2)])
def test_states_that_do_not_fit_are_told_before_the_step(kind, order, saved, trained):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def start(steps):
        targeted = Targeted(made(), score="random", warmup=3)
        optimizer = kind(targeted.parameters(), lr=0.01, **options)
        train(targeted, optimizer, steps)
        return targeted, optimizer

    states = [copy.deepcopy(each.state_dict()) for each in start(saved)]
    targeted, optimizer = start(trained)
    if order in ("alone", "first"):
        targeted.load_state_dict(states[0])
    if order != "alone":
        optimizer.load_state_dict(states[1])
    if order == "last":
        targeted.load_state_dict(states[0])
    if order in ("first", "last"):
        train(targeted, optimizer, 2)
        return
    before = copy.deepcopy(targeted.model.state_dict())
    with pytest.raises(InputError, match=r"remembers \d+ rows of layer '0', of which \d+ learn"):
        train(targeted, optimizer, 1)
    assert all(torch.equal(before[name], v) for name, v in targeted.model.state_dict().items())


def test_the_optimizers_state_alone_is_told_to_a_new_targeted():
    one, new = (Targeted(made(), score="random", warmup=warmup) for warmup in (0, 100))
    optimizers = [torch.optim.Adam(each.parameters()) for each in (one, new)]
    train(one, optimizers[0], 1)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    with pytest.raises(InputError, match="remembers 4 rows of layer '0', of which 16 learn now"):
        train(new, optimizers[1], 1)


def test_a_new_optimizer_is_as_old_as_all_rows():
    targeted = Targeted(made(), score="random", warmup=0, refresh=5)
    train(targeted, torch.optim.Adam(targeted.parameters(), lr=0.01), 7)
    late = copy.deepcopy(targeted.state_dict())
    assert late["since.0"].any()
    early = {name: 0 * v if name.startswith("since") else v for name, v in late.items()}
    models = []
    for known in (None, late, early):
        used = targeted if known is None else Targeted(made(), score="random", warmup=0, refresh=5)
        if known is not None:
            used.load_state_dict(known)
        train(used, torch.optim.Adam(used.parameters(), lr=0.01), 3)
        models.append(used.model.state_dict())
    for name, wanted in models[2].items():
        assert torch.equal(models[0][name], wanted)
        assert torch.equal(models[1][name], wanted)


def test_assigned_weights_learn():
    states = []
    for assign in (False, True):
        other = Targeted(nn.Sequential(*made(), nn.BatchNorm1d(3)).double(), warmup=0)
        train(other, torch.optim.SGD(other.parameters(), lr=0.1), 2)
        targeted = Targeted(nn.Sequential(*made(), nn.BatchNorm1d(3)).double(), warmup=0)
        targeted(batch()[0])
        targeted.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        train(targeted, torch.optim.SGD(targeted.parameters(), lr=0.1), 2)
        states.append(targeted.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_assigned_past_targeted_are_told():
    targeted = Targeted(made(), warmup=0)
    targeted.model.load_state_dict(made().state_dict(), assign=True)
    with pytest.raises(InputError, match=r"another weight .*: load weights by Targeted.load"):
        targeted(batch()[0])


# Outputs whose classes are on the second axis -----------------------------------------------------


class Dense(nn.Module):
    """One class for each place: outputs [N, classes, places], or [N, places, classes]."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Conv1d(2, 16, 3, padding=1), nn.Conv1d(16, 4, 1)
        self.double()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        out = self.out(torch.relu(self.hidden(x)))
        return out.transpose(1, 2) if self.last else out


def places(classes: int = 4, count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, count, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (5, count), generator=generator)


def entropy(out: Tensor, y: Tensor, last: bool) -> Tensor:
    return F.cross_entropy(out.transpose(1, 2) if last else out, y, label_smoothing=0.1)


def likelihood(out: Tensor, y: Tensor, last: bool) -> Tensor:
    return F.nll_loss(out.transpose(1, 2) if last else out, y)


def squares(out: Tensor, y: Tensor, last: bool) -> Tensor:
    wanted = F.one_hot(y, 4).to(out)
    return F.mse_loss(out, wanted if last else wanted.transpose(1, 2))


@pytest.mark.parametrize("count", [4, 7, 1])
@pytest.mark.parametrize("loss", [entropy, likelihood, squares])
@pytest.mark.parametrize("score", ["relevance", "flow"])
def test_the_axis_of_classes_is_told_by_the_loss_or_said(score, loss, count):
    found = []
    x, y = places(count=count)
    for last in (False, True):
        said = (-1 if last else 1) if loss is squares else None
        targeted = Targeted(Dense(last), score=score, warmup=1, classes=said)
        optimizer = torch.optim.SGD(targeted.parameters(), lr=0.0)
        loss(targeted(x), y, last).backward()
        optimizer.step()
        targeted.step(optimizer)
        found.append(targeted.scores()["hidden"])
    torch.testing.assert_close(*found)
    assert found[0].any()


def test_an_axis_of_classes_that_nothing_tells_is_asked_for():
    told = r"outputs \[5, 4, 7\] may have their classes on axis 1, .* or on the last .* classes=-1"
    x, y = places()
    with pytest.raises(InputError, match=told):
        squares(Targeted(Dense(False), warmup=1)(x), y, False).backward()
    for score in ("ratio", "low_relevance"):
        with pytest.raises(InputError, match=told):
            Targeted(Dense(False), score=score).protect([x])
    with pytest.raises(InputError, match=r"outputs \[5, 4, 4\] may have their classes"):
        Targeted(Dense(False), score="ratio").protect([places(count=4)])
    with pytest.raises(InputError, match="classes is 1 or -1, the axis of outputs .* got 2"):
        Targeted(Dense(False), classes=2)


@pytest.mark.parametrize(("count", "labels", "said"), [(7, True, False), (4, True, True)])
def test_an_old_task_has_its_classes_where_its_labels_say(count, labels, said):
    x, y = places(count=count)
    found = [
        Targeted(Dense(last), score="ratio", classes=(-1 if last else 1) if said else None).protect(
            [(x, y) if labels else x]
        )["hidden"]
        for last in (False, True)
    ]
    torch.testing.assert_close(*found)


def test_losses_without_a_slope_or_of_several_kinds_ask_for_no_axis():
    x, y = places()
    for loss in (
        lambda out: 0 * F.cross_entropy(out, y),
        lambda out: F.cross_entropy(out, y, ignore_index=0, weight=torch.arange(4.0).double()),
        lambda out: F.cross_entropy(out.mean(2), y[:, 0]),
    ):
        targeted = Targeted(Dense(False), warmup=1)
        loss(targeted(x)).backward()
        targeted.step(torch.optim.SGD(targeted.parameters(), lr=0.1))


@pytest.mark.parametrize("sure", [1.0, 12.0, 16.0, 120.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_the_axis_of_classes_is_told_though_a_model_is_sure(sure, kind, last):
    torch.manual_seed(0)
    y = torch.randint(6, (16, 9))
    out = torch.randn(16, 6, 9) + sure * F.one_hot(y, 6).transpose(1, 2)
    given = (out.transpose(1, 2) if last else out).to(kind).requires_grad_()
    F.cross_entropy((given.transpose(1, 2) if last else given).float(), y).backward()
    axis = explain.class_axis(given.grad)
    assert axis == (-1 if last else 1) or (sure == 120.0 and axis is None)


def test_the_axis_of_classes_is_not_taken_from_chance():
    torch.manual_seed(0)
    for shape in ((2, 3, 2), (8, 2, 2), (4, 3, 1), (32, 1, 8), (64, 2, 3)):
        for _ in range(200):
            assert explain.class_axis(torch.randn(shape)) is None


def test_the_axis_of_classes_is_remembered():
    x, y = places()
    targeted = Targeted(Dense(False), score="relevance", warmup=1, refresh=1)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for loss in (entropy, squares):
        loss(targeted(x), y, False).backward()
        optimizer.step()
        targeted.step(optimizer)


@pytest.mark.parametrize("score", ["relevance", "flow"])
def test_places_that_the_loss_ignores_are_not_explained(score):
    x, y = places()
    y[:, 3:] = -100
    found = []
    for ignored in (True, False):
        targeted = Targeted(Dense(False), score=score, warmup=1, classes=1)
        out = targeted(x)
        loss = F.cross_entropy(out, y) if ignored else F.cross_entropy(out[..., :3], y[:, :3])
        loss.backward()
        targeted.step(torch.optim.SGD(targeted.parameters(), lr=0.0))
        found.append(targeted.scores()["hidden"])
    torch.testing.assert_close(*found)
    z = torch.relu(targeted.model.hidden(x))
    if score == "relevance":
        s = targeted.model.out.weight[y[:, :3], :, 0].permute(0, 2, 1)
        torch.testing.assert_close(found[0], (z[..., :3] * s).abs().sum(2).mean(0))


def test_labels_to_be_ignored_are_left_out_of_an_old_task():
    x, y = places()
    y[:, 3:] = -100
    targeted = Targeted(Dense(False), score="ratio", classes=1)
    found = targeted.protect([(x, y)])["hidden"]
    first = targeted.protect([(x, y[:, :3])], lambda x: targeted.model(x)[..., :3])["hidden"]
    torch.testing.assert_close(found, first)


# Exploration --------------------------------------------------------------------------------------


def test_exploration_reaches_small_layers_on_average():
    drawn: list[int] = []

    def told(refresh):
        best = refresh.scores["0"].argsort(descending=True, stable=True)[: len(refresh.rows["0"])]
        drawn.append(len(set(refresh.rows["0"].tolist()) - set(best.tolist())))

    targeted = Targeted(
        made(), 0.25, "activation", exploration=0.1, refresh=1, warmup=1, on_refresh=told
    )
    train(targeted, torch.optim.SGD(targeted.parameters(), lr=0.0), 300)
    # .4 places are drawn on average, from the 13 that are not among the 3 or 4 best
    assert 0.25 < sum(drawn) / len(drawn) < 0.5


# Weights that somebody else changes ---------------------------------------------------------------


@pytest.mark.parametrize("score", ["activation", "random"])
def test_weights_that_are_changed_by_data_are_told_at_a_choice(score):
    targeted = Targeted(made(), score=score, warmup=0, refresh=5)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    with pytest.raises(InputError, match="'0' was changed after its rows were selected: load"):
        for _ in range(6):
            targeted.model[0].weight.data.mul_(0.9)
            train(targeted, optimizer, 1)


def test_weights_that_are_not_finite_are_nobody_elses_change():
    targeted = Targeted(made(), score="error", warmup=0, refresh=5)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=float("inf"))
    train(targeted, optimizer, 12)
    assert not targeted.model[0].weight.isfinite().all()
    targeted.model[0].weight.data.fill_(1.0)
    with pytest.raises(InputError, match="'0' was changed after its rows were selected: load"):
        train(targeted, optimizer, 5)


def test_weights_in_other_memory_are_told_unless_they_are_the_same():
    targeted = Targeted(made(), score="fixed", warmup=0)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    train(targeted, optimizer, 1)
    held = nn.utils.parameters_to_vector(targeted.model.parameters())
    nn.utils.vector_to_parameters(held, targeted.model.parameters())
    train(targeted, optimizer, 1)
    nn.utils.vector_to_parameters(0 * held, targeted.model.parameters())
    with pytest.raises(InputError, match="'0' was changed after its rows were selected: load"):
        targeted(batch()[0])


def test_weights_that_are_changed_with_their_rows_are_left_alone():
    targeted = Targeted(made(), score="fixed", warmup=0)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1)
    for _ in range(3):
        train(targeted, optimizer, 1)
        with torch.no_grad():
            for each in targeted.parameters():
                each.clamp_(-0.1, 0.1)
    assert all((each.abs() <= 0.1).all() for each in targeted.model.parameters())
    with torch.no_grad():
        for each in targeted.parameters():
            each.add_(torch.randn_like(each))
    with pytest.raises(InputError, match="'0' was changed after its rows were selected"):
        targeted(batch()[0])


@pytest.mark.parametrize("warmup", [0, 100])
def test_optimizers_may_give_parameters_other_memory(warmup):
    """As sharpness-aware minimisation does when it puts the weights back."""

    def sharp(model, targeted=None):
        optimizer = torch.optim.SGD((targeted or model).parameters(), lr=0.1)
        x, y = batch()
        for _ in range(3):
            kept = {}
            F.cross_entropy((targeted or model)(x), y).backward()
            with torch.no_grad():
                for each in (targeted or model).parameters():
                    if each.grad is not None:
                        kept[each] = each.data.clone()
                        each.add_(each.grad, alpha=0.1)
            optimizer.zero_grad()
            F.cross_entropy((targeted or model)(x), y).backward()
            for each, before in kept.items():
                each.data = before
            optimizer.step()
            optimizer.zero_grad()
            if targeted is not None:
                targeted.step(optimizer)

    model, dense = made(), made()
    sharp(dense)
    sharp(model, Targeted(model, 1.0, "fixed", warmup=warmup))
    for one, other in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("warmup", [0, 100])
def test_rows_follow_a_model_that_changes_its_type(warmup):
    targeted = Targeted(made(), score="activation", warmup=warmup, refresh=2)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1, momentum=0.9)
    train(targeted, optimizer, 1)
    x, y = batch()
    F.cross_entropy(targeted(x), y).backward()
    optimizer.step()
    targeted.step(optimizer)
    wanted = targeted.model[0].weight.detach().clone()
    targeted.model.float()
    out = targeted(x.float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(targeted.model[0].weight.detach(), wanted.float())
    optimizer.zero_grad()
    F.cross_entropy(out, y).backward()
    optimizer.step()
    targeted.step(optimizer)
    assert {each.dtype for each in targeted.parameters()} == {torch.float32}
    assert not torch.equal(targeted.model[0].weight.detach(), wanted.float())
