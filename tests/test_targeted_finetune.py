"""The study of fine-tuning: its settings, and what it concludes from accuracies and times."""

import numpy as np
import pytest
import torch

from attrain.studies import targeted_finetune as study
from attrain.studies import targeted_settings as given
from attrain.studies.targeted_finetune import (
    ATTRIBUTION,
    CONTROLS,
    DENSE,
    ERROR,
    FIRST,
    FLOW,
    GRADIENT,
    HEAD,
    RATIO,
    arms,
    conclude,
    stopped,
)
from attrain.studies.targeted_old_task import NEW, OLD
from attrain.studies.targeted_settings import SETTINGS, Config, patched  # fmt: skip

SMALL = Config(
    digits="digits", pictures="digits", hidden=(12, 8), width=0.0, before=120, before_steps=15,
    picture_before=120, picture_steps=15, few=20, some=40, replayed=4, picture_replayed=4, held=30,
    test=50, protected=20, steps=4, rates=(0.1, 0.01), shares=(0.5, 1.0), seeds=3, pairs=1,
)  # fmt: skip


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_the_same_again_and_keeps_its_samples_apart(name):
    one, again = (SETTINGS[name](SMALL, 0) for _ in range(2))
    assert torch.equal(one.train.x, again.train.x) and torch.equal(one.train.y, again.train.y)
    assert one.held.keys() == one.test.keys() and one.model.task in one.held
    for task, held in one.held.items():
        assert len(held) == 30 and len(one.test[task]) == 50
    held = torch.cat([each.x for each in one.held.values()])
    assert float(torch.cdist(one.train.x.flatten(1), held.flatten(1)).min()) > 0
    assert float(torch.cdist(one.kept.x.flatten(1), held.flatten(1)).min()) > 0
    assert 0 < one.success(one.model, one.test) < 1


def test_few_labels_are_equally_many_of_each_class():
    assert given.few_labels(SMALL, 0).train.y.bincount().tolist() == [2] * 10


def test_two_labels_in_five_are_drawn_anew():
    clean = SMALL.__class__(**{**SMALL.__dict__, "some": 400})
    noisy = given.wrong_labels(clean, 0)
    _, _, new, _ = given._turned(clean, 0)
    wrong = float((noisy.train.y != new.y[:400]).double().mean())
    assert wrong == pytest.approx(0.9 * given.NOISE, abs=0.08)
    assert torch.equal(noisy.held[OLD].y, new.y[400:430])


def test_a_patch_stands_where_its_label_says_and_nowhere_else():
    x = torch.rand(10, 1, 28, 28)
    x[0, 0, 20, 20] = 2.0
    found = patched(x, torch.arange(10))
    for label in range(10):
        row, column = 4 * (label // 5), 4 * (label % 5)
        changed = (found[label, 0] != x[label, 0]).nonzero()
        assert len(changed) == 16
        assert changed.min(0).values.tolist() == [row, column]
        assert bool((found[label, 0, row : row + 4, column : column + 4] == 2.0).all())


def test_the_model_has_learned_the_shortcut():
    config = SMALL.__class__(**{**SMALL.__dict__, "before": 600, "before_steps": 80})
    found = given.shortcut(config, 0)
    told = given.Samples(patched(found.test[OLD].x, found.test[OLD].y), found.test[OLD].y)
    assert found.success(found.model, {OLD: told}) > found.success(found.model, found.test)


def test_more_classes_come_with_as_many_old_pictures_of_a_few():
    found = given.more_digits(SMALL, 0)
    old = found.train.part(found.train.y < 5)
    assert len(found.train) - len(old) == 40 and len(old) == 40
    assert len(old.x.flatten(1).unique(dim=0)) == 4 * 5 == len(found.kept)
    assert set(found.test[OLD].y.tolist()) == set(range(10))


def test_outputs_of_new_classes_are_as_they_were_drawn():
    found, drawn = given.more_digits(SMALL, 0).model.old, given._model(SMALL, 10, 0).old
    assert torch.equal(found.weight[5:], drawn.weight[5:])
    assert not torch.equal(found.weight[:5], drawn.weight[:5])


def test_success_in_two_tasks_is_the_mean_of_both():
    found = given.second_task(SMALL, 0)
    each = {task: found.success(found.model, {task: found.test[task]}) for task in (NEW, OLD)}
    assert found.success(found.model, found.test) == pytest.approx(np.mean(list(each.values())))
    assert found.model.task == NEW


# Arms ---------------------------------------------------------------------------------------------


def test_an_arm_trains_what_it_names_and_leaves_the_model_that_all_start_from():
    subject = given.subject(SMALL, "more classes, digits", 0)
    before = {name: each.clone() for name, each in subject.model.state_dict().items()}
    for arm in arms(SMALL):
        loop = study._loop(SMALL, subject, arm, 0.1, 0)
        loop.run()
        after = loop.model.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if arm == HEAD:
            assert moved == {"old.weight", "old.bias"}
        elif arm == FIRST:
            assert moved == {"trunk.fc1.weight", "trunk.fc1.bias"}
        else:
            assert moved >= {"trunk.fc1.weight", "trunk.fc2.weight", "old.weight"}
        if arm == study.RANDOM:
            rows = (after["trunk.fc1.weight"] != before["trunk.fc1.weight"]).any(1)
            assert int(rows.sum()) <= 3  # a quarter of twelve
    kept = subject.model.state_dict()
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_dense_training_is_stopped_at_its_share_of_the_steps():
    subject = given.subject(SMALL, "few labels", 0)
    assert study._loop(SMALL, subject, stopped(0.5), 0.1, 0).steps == 2
    assert study._loop(SMALL, subject, DENSE, 0.1, 0).steps == 4
    assert stopped(1.0) == DENSE and stopped(0.5) == "dense, 50% of the steps"


# What it adds up to -------------------------------------------------------------------------------

CONFIG = Config(names=("more classes, digits",), shares=(0.8, 1.0), rates=(0.1, 0.01), seeds=3)
SETTING = "more classes, digits"


def made_up(accuracies: dict[str, float], ratio: float = 0.7) -> dict:
    """Return results in which the second rate is better, by held-out samples alone."""
    rows: dict = {}
    for seed in range(3):
        for arm in arms(CONFIG):
            test = accuracies.get(arm, 0.8) + 0.01 * seed
            rows[f"{SETTING}, {arm}, seed {seed}"] = {
                "0.1": {"held": 0.5, "test": 0.99},
                "0.01": {"held": 0.6, "test": test},
            }
    rows["time, the MLP"] = {arm: [ratio, 0.1, 9.0] for arm in (*CONTROLS, *ATTRIBUTION)}
    return rows


def concluded(out, accuracies, ratio=0.7):
    conclusion = conclude(CONFIG, made_up(accuracies, ratio), out)
    return {each["claim"]: each for each in conclusion.claims}, conclusion


def wins(arm: str) -> str:
    return (
        f"{SETTING}: {arm} beats dense fine-tuning in the same time by half a point, and gradient "
        "norm"
    )


OVERALL = (
    "In at least one setting attribution beats dense fine-tuning in the same time by half a point, "
    "and gradient norm"
)


def test_a_win_is_half_a_point_over_dense_in_the_same_time_and_more_than_gradient_norm(tmp_path):
    accuracies = {ERROR: 0.83, FLOW: 0.83, RATIO: 0.804, GRADIENT: 0.81, stopped(0.8): 0.802}
    claims, conclusion = concluded(tmp_path, accuracies)
    assert claims[wins(ERROR)]["holds"] is True
    assert claims[wins(ERROR)]["figure"].startswith("84.0%, +2.8 (+2.8 to +2.8) from dense, 80%")
    assert claims[wins(RATIO)]["holds"] is False  # two tenths ahead of dense, behind gradient norm
    assert claims[OVERALL]["holds"] is True
    assert claims[OVERALL]["figure"].startswith(f"2 of 4 pairs of score and setting: {ERROR} in ")
    table = {row["name"]: row["ours"]["mean"] for row in conclusion.rows}
    assert table[f"{SETTING}, {ERROR} (rate 0.01)"] == pytest.approx(0.84)
    assert all(path.is_file() for path in conclusion.figures)


def test_being_as_good_as_gradient_norm_is_no_win(tmp_path):
    claims, _ = concluded(tmp_path, {ERROR: 0.83, GRADIENT: 0.83})
    assert claims[wins(ERROR)]["holds"] == "unclear"
    assert claims[OVERALL]["holds"] is False
    assert (
        claims[OVERALL]["figure"] == "0 of 4 pairs of score and setting; dense alone is beaten by 1"
    )


@pytest.mark.parametrize(
    ("ratio", "share"), [(0.7, 0.8), (0.8, 0.8), (0.81, 1.0), (1.0, 1.0), (1.3, 1.0)]
)
def test_dense_training_gets_the_time_of_an_arm_or_the_next_share_above(ratio, share):
    found = study.read(CONFIG, made_up({}, ratio))
    assert found.equal_time(SETTING, ERROR) == stopped(share)


def test_of_rates_that_are_as_good_the_lowest_is_taken():
    assert study._best(np.array([0.5, 0.7, 0.7 + 1e-12]), (0.2, 0.06, 0.02)) == 2
    assert study._best(np.array([0.7, 0.6, 0.5]), (0.2, 0.06, 0.02)) == 0
