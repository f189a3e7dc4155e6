"""The study of forgetting: its tasks, its rivals by hand, and what it concludes from accuracies."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attrain.studies import targeted_forgetting as study
from attrain.studies import targeted_old_task as tasks
from attrain.studies.targeted_forgetting import (
    DENSE,
    EWC,
    GRADIENT,
    LOW_RELEVANCE,
    RATIO,
    RIVALS,
    SPARING,
    TRIALS,
    Config,
    conclude,
)
from attrain.studies.targeted_old_task import (
    NEW,
    OLD,
    SEPARATE,
    SHARED,
    Heads,
    least,
    perceptron,
    relu_means,
)
from attrain.studies.targeted_rivals import Elastic, fisher, low_rank_  # fmt: skip

SMALL = Config(
    data="digits", worlds=(SEPARATE,), hidden=(12, 8), old=100, new=60, held=40, test=50,
    old_steps=10, steps=6, stops=2, protected=20, seeds=2,
)  # fmt: skip


def heads(*, separate: bool, seed: int = 0) -> Heads:
    torch.manual_seed(seed)
    return Heads(perceptron(3, (6, 5)), 5, 4, separate=separate)


# Rivals -------------------------------------------------------------------------------------------


def fisher_by_hand(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum sample by sample and class by class: the twin of `fisher`."""
    totals = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    for one in x:
        shares = F.softmax(model(one[None]), 1)[0].detach()
        for label, share in enumerate(shares):
            model.zero_grad()
            F.log_softmax(model(one[None]), 1)[0, label].backward()
            for name, each in model.named_parameters():
                if each.grad is not None:
                    totals[name] += share * each.grad**2
    model.zero_grad()
    return {name: each / len(x) for name, each in totals.items()}


@pytest.mark.parametrize("separate", [True, False])
def test_the_fisher_information_is_that_of_single_samples_and_classes(monkeypatch, separate):
    monkeypatch.setattr("attrain.studies.targeted_rivals.CHUNK", 3)
    model, x = heads(separate=separate), torch.randn(7, 1, 3, 3)
    found, wanted = fisher(model, x), fisher_by_hand(model, x)
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each)
    if separate:  # the other head has no part in the answer
        assert not found["new.weight"].any() and found["old.weight"].any()


def test_elastic_weights_add_half_the_strength_times_what_moving_costs():
    model, x, y = heads(separate=False), torch.randn(7, 1, 3, 3), torch.randint(4, (7,))
    information = fisher(model, x)
    loss = Elastic(model, information, 3.0)
    assert loss(model, x, y).item() == F.cross_entropy(model(x), y).item()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each))
    wanted = 0.0
    for name, each in model.named_parameters():
        for moved, start, costs in zip(
            each.flatten(), before[name].flatten(), information[name].flatten(), strict=True
        ):
            wanted += 3.0 / 2 * costs.item() * (moved - start).item() ** 2
    assert loss.penalty(model).item() == pytest.approx(wanted, rel=1e-4)
    whole = loss(model, x, y)
    assert whole.item() == pytest.approx(F.cross_entropy(model(x), y).item() + wanted, rel=1e-4)


def test_an_update_of_low_rank_starts_at_nothing_and_stays_of_low_rank():
    model, x = heads(separate=True), torch.randn(7, 1, 3, 3)
    before, was = model(x), model.trunk.fc1.weight.detach().clone()
    low_rank_(model, 2, lambda name: name.startswith("trunk."))
    assert torch.equal(model(x), before)
    learned = {name for name, each in model.named_parameters() if each.requires_grad}
    assert all(name.startswith(("old.", "new.")) or ".0." in name for name in learned)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(7) % 4).backward()
        optimizer.step()
    moved = model.trunk.fc1.weight.detach() - was
    assert moved.any() and int(torch.linalg.matrix_rank(moved, atol=1e-5)) <= 2
    assert torch.equal(model.trunk.fc1.parametrizations.weight.original, was)


# Tasks --------------------------------------------------------------------------------------------


def test_heads_answer_for_their_task():
    model, x = heads(separate=True), torch.randn(2, 1, 3, 3)
    old = model(x)
    model.task = NEW
    assert model.names == [OLD, NEW] and not torch.equal(model(x), old)
    torch.testing.assert_close(model(x), model.new(model.trunk(x)))
    shared = heads(separate=False)
    old = shared(x)
    shared.task = NEW
    assert shared.names == [OLD] and torch.equal(shared(x), old)


def test_what_units_hand_on_is_the_mean_after_the_relu():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU())
    model, x = Heads(trunk, 4, 2), torch.randn(5, 1, 3, 3)
    found = relu_means(model, x)
    hidden = F.relu(trunk[0](x))
    wanted = [hidden[:, unit].mean() for unit in range(3)]
    torch.testing.assert_close(found["trunk.0"], torch.stack(wanted))
    wanted = [F.relu(trunk[3](hidden.flatten(1)))[:, unit].mean() for unit in range(4)]
    torch.testing.assert_close(found["trunk.3"], torch.stack(wanted))

    class Units:
        name = "trunk.3"

    assert int(least(found)(Units()).argmax()) == int(torch.stack(wanted).argmin())


@pytest.mark.parametrize("world", tasks.WORLDS)
def test_a_subject_knows_its_old_task_and_keeps_what_chooses_apart(world):
    given = tasks.subject(SMALL, world, 0)
    classes = 10 if world == tasks.ROTATED else 5
    for task, count in ((OLD, 100), (NEW, 60)):
        assert len(given.train[task]) == count and len(given.held[task]) == 40
        assert int(given.test[task].y.max()) < classes
        apart = torch.cdist(given.train[task].x.flatten(1), given.held[task].x.flatten(1))
        assert float(apart.min()) > 0
    assert given.model.task == NEW and (given.model.new is None) == (world != SEPARATE)
    new, old = given.of(given.model, given.test)
    assert old == given.before[1] > 1.5 / classes and new < old
    assert given.model.task == NEW


def test_no_arm_changes_the_model_that_all_start_from_and_the_head_alone_forgets_nothing():
    before = {k: v.clone() for k, v in tasks.subject(SMALL, SEPARATE, 0).model.state_dict().items()}
    for arm in TRIALS:
        found = study._measure(SMALL, SEPARATE, arm, 0)
        assert list(found["trials"]) == [str(trial) for trial in TRIALS[arm]]
        assert all(np.shape(each["test"]) == (2, 2) for each in found["trials"].values())
        if arm == study.HEAD:
            for each in found["trials"].values():
                assert [old for _, old in each["test"]] == [found["before"]] * 2
    after = tasks.subject(SMALL, SEPARATE, 0).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_arm_has_as_many_trials_and_every_budget_enough_samples():
    assert {len(trials) for trials in TRIALS.values()} == {6}
    assert all(len(set(map(str, trials))) == 6 for trials in TRIALS.values())
    smoke = study.STUDY.budgets["smoke"]
    assert smoke.held + max(smoke.old, smoke.new) <= 1437 // 2 / 2.2  # half of the digits 0 to 4
    assert all(a < b for a, b in pairwise(study.LEVELS)) and study.ALLOWED in study.LEVELS


# What it adds up to -------------------------------------------------------------------------------


def made_up(seed: int, **points: list[list[float]]) -> dict:
    """Return the rows of a seed: by arm the [new, old] of its two stops, the same in all trials."""
    shift = 0.001 * seed
    found = {}
    for arm in TRIALS:
        given = points.get(arm.replace(" ", "_"), [[0.5, 0.97], [0.6, 0.96]])
        course = [[new + shift, old + shift] for new, old in given]
        found[f"{SEPARATE}, {arm}, seed {seed}"] = {
            "before": 0.98 + shift,
            "trials": {str(trial): {"held": course, "test": course} for trial in TRIALS[arm]},
        }
    return found


def concluded(out, **points):
    config = Config(worlds=(SEPARATE,), seeds=3, stops=2)
    points.setdefault("dense,_for_the_new_task", [[0.90, 0.95], [0.94, 0.90]])
    rows = {}
    for seed in range(3):
        rows |= made_up(seed, **points)
    conclusion = conclude(config, rows, out)
    return {each["claim"]: each for each in conclusion.claims}, conclusion


def ahead(arm: str, rival: str) -> str:
    return (
        f"{SEPARATE}: targeted by {arm} keeps more of the old task than {rival}, at a new accuracy "
        "within two points of dense fine-tuning's on held-out samples"
    )


def keeps(arm: str) -> str:
    return (
        f"{SEPARATE}: targeted by {arm}, the old accuracy stays within one point of before, at a "
        "new accuracy within two points of dense fine-tuning's"
    )


def test_an_arm_stops_where_it_keeps_the_most_within_reach_of_the_new_task(tmp_path):
    claims, conclusion = concluded(
        tmp_path,
        low_relevance=[[0.931, 0.979], [0.935, 0.95]],
        ratio=[[0.91, 0.98], [0.931, 0.965]],
        elastic_weights=[[0.93, 0.97], [0.95, 0.93]],
        gradient=[[0.91, 0.98], [0.915, 0.98]],
    )
    table = {row["name"]: row["ours"]["mean"] for row in conclusion.rows}
    first = str(TRIALS[LOW_RELEVANCE][0])
    named = f"{SEPARATE}, {LOW_RELEVANCE}, 2 allowed ({first}, 50% of the steps)"
    assert table[f"{named}: old"] == pytest.approx(0.98)
    assert table[f"{named}: new"] == pytest.approx(0.932)
    assert claims[keeps(LOW_RELEVANCE)]["holds"] is True
    assert claims[keeps(LOW_RELEVANCE)]["figure"].startswith("old 98.0%, -0.1 points (-0.1 to -0.1")
    assert claims[keeps(RATIO)]["holds"] is False  # 1.5 points are forgotten
    assert claims[ahead(LOW_RELEVANCE, EWC)]["holds"] is True
    assert claims[ahead(RATIO, EWC)]["holds"] is False
    only = claims[ahead(LOW_RELEVANCE, GRADIENT)]
    assert only["holds"] is True and only["figure"].startswith("only low relevance comes within 2")
    assert claims[ahead(LOW_RELEVANCE, SPARING)]["figure"].startswith("old 98.0% against 90.1%")
    assert len(claims) == 2 + 2 * len(RIVALS)
    assert all(path.is_file() for path in conclusion.figures)


def test_what_is_out_of_reach_is_said(tmp_path):
    claims, conclusion = concluded(tmp_path, elastic_weights=[[0.93, 0.97], [0.95, 0.93]])
    assert claims[keeps(RATIO)]["holds"] is False
    assert claims[keeps(RATIO)]["figure"] == (
        "within 1 point on held-out samples in none of 6 trials"
    )
    assert claims[ahead(RATIO, EWC)]["holds"] is False
    assert claims[ahead(RATIO, GRADIENT)]["holds"] == "unclear"
    assert claims[ahead(RATIO, GRADIENT)]["figure"] == "both are further than 2 points from dense"
    named = f"{SEPARATE}, ratio, 2 allowed: out of reach, best new"
    assert {row["name"]: row["ours"]["mean"] for row in conclusion.rows}[named] == pytest.approx(
        0.601
    )


def test_a_threshold_within_the_interval_leaves_it_open():
    gap = {"mean": -0.005, "low": -0.012, "high": 0.002}
    assert study.above(gap, -0.01) == "unclear" and study.above(gap, -0.02) is True
    assert study.above(gap, 0.01) is False
    assert study.above({"mean": 1.0, "low": None, "high": None}, 0.0) == "unclear"
    assert SHARED in tasks.WORLDS and DENSE in TRIALS
