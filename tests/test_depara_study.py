"""The study of DEPARA: its tasks, and what it concludes from given accuracies and similarities."""

import math

import pytest
import torch

from attrain.studies import depara_transfer, tasks, transfer
from attrain.studies.depara_transfer import HELD, LINEAR, MEASURES, OTHERS, OURS, OWN, TUNED, Config
from attrain.studies.tasks import TEN, WORLDS, Samples, Task, few, samples

SMALL = Config(world="digits", seeds=3)
SOURCES, TARGETS = WORLDS["digits"].sources, WORLDS["digits"].targets


# Tasks --------------------------------------------------------------------------------------------


def test_halves_of_a_task_share_no_picture_and_depend_on_the_seed_alone():
    first, test = samples(SOURCES["digits 0 to 4"], 8, "first", 50, seed=3)
    second, _ = samples(SOURCES["digits 0 to 4"], 8, "second", 50, seed=3)
    again, _ = samples(SOURCES["digits 0 to 4"], 8, "first", 50, seed=3)
    other, _ = samples(SOURCES["digits 0 to 4"], 8, "first", 50, seed=4)
    assert torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert len(test) == 50 and set(test.y.tolist()) == set(range(5))
    raw, y, *_ = tasks._pictures("digits", 8)
    middle = len(raw) // 2
    assert sorted(first.y.tolist()) == sorted(y[:middle][y[:middle] < 5].tolist())
    assert sorted(second.y.tolist()) == sorted(y[middle:][y[middle:] < 5].tolist())
    assert float(first.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(first.x.std()) == pytest.approx(1, abs=1e-5)


def test_a_changed_task_is_the_same_task_with_its_pictures_changed():
    plain, _ = samples(Task("digits", TEN), 8, "first", 5, seed=0)

    def changed(name: str) -> Samples:
        found, _ = samples(Task("digits", TEN, name), 8, "first", 5, seed=0)
        assert torch.equal(found.y, plain.y)
        return found

    torch.testing.assert_close(changed("upside down").x, plain.x.flip(2, 3))
    torch.testing.assert_close(changed("on its side").x, plain.x.transpose(2, 3).flip(2))
    torch.testing.assert_close(changed("inverted").x, -plain.x, atol=1e-5, rtol=1e-5)
    permuted = changed("permuted").x
    assert not torch.equal(permuted, plain.x)
    assert torch.equal(permuted.flatten(1).sort(1).values, plain.x.flatten(1).sort(1).values)
    assert torch.equal(permuted, changed("permuted").x)


def test_groups_and_random_labels():
    plain, _ = samples(Task("digits", TEN), 8, "first", 5, seed=0)
    parity, _ = samples(SOURCES["odd or even"], 8, "first", 5, seed=0)
    assert torch.equal(parity.y, plain.y % 2)
    random, _ = samples(SOURCES["random labels"], 8, "first", 5, seed=0)
    assert torch.equal(random.x, plain.x)
    assert float((random.y == plain.y).double().mean()) < 0.2
    large, _ = samples(Task("digits", TEN), 28, "first", 5, seed=0)
    assert large.x.shape[1:] == (1, 28, 28)


def test_few_labels_are_equally_many_of_each_class_and_held_out_ones_are_others():
    x = torch.arange(60.0)[:, None, None, None]
    given = Samples(x, torch.arange(60) % 3)
    labelled, held, left = few(given, 3, 13)  # 4 of each class
    for part in (labelled, held):
        assert part.y.bincount().tolist() == [4, 4, 4]
    parts = [part.x.flatten().tolist() for part in (labelled, held, left)]
    assert sorted(sum(parts, [])) == list(range(60)) and len(left) == 36


def test_every_target_has_enough_pictures_for_its_budget():
    for name, config in depara_transfer.STUDY.budgets.items():
        world = WORLDS[config.world]
        assert config.labels // 10 > 0 and len(world.sources) >= 4 and len(world.targets) >= 2
        assert len(world.sources) <= len(depara_transfer._MARKS), name
        smallest = 1437 // 2  # the digits of scikit-learn
        assert 2 * config.labels + config.probe <= smallest


# Transfer -----------------------------------------------------------------------------------------


def test_a_source_gives_its_encoder_and_keeps_its_own_weights():
    world = WORLDS["digits"]
    source, fresh = transfer.untrained(world, 5, seed=0), transfer.untrained(world, 10, seed=1)
    before = [each.clone() for each in source.parameters()]
    head = fresh.fc3.weight.clone()
    model = transfer.with_head(source, fresh)
    assert torch.equal(model.fc3.weight, head)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    with torch.no_grad():
        model.conv1.weight.add_(1)
    for kept, now in zip(before, source.parameters(), strict=True):
        assert torch.equal(kept, now)


def test_agreement_and_loss_by_hand():
    real = {"a": 0.9, "b": 0.8, "c": 0.5}
    assert depara_transfer.agreement({"c": 1.0, "a": 3.0, "b": 2.0}, real) == pytest.approx(1)
    assert depara_transfer.agreement({"c": 2.0, "a": 1.0, "b": 0.0}, real) == pytest.approx(-0.5)
    assert math.isnan(depara_transfer.agreement(dict.fromkeys(real, 0.1), real))
    assert math.isnan(depara_transfer.agreement(real, dict.fromkeys(real, 0.1)))
    controls = real | {"untrained": 0.1, "random labels": 0.2}
    said = {"a": 0.0, "b": 1.0, "c": 2.0, "untrained": -2.0, "random labels": -1.0}
    assert depara_transfer.agreement_of_trained(said, controls) == pytest.approx(-1)
    assert depara_transfer.agreement(said, controls) == pytest.approx(0.6)
    assert depara_transfer.lost({"a": 1.0, "b": 2.0, "c": 3.0}, real) == pytest.approx(0.4)
    assert depara_transfer.lost({"a": 3.0, "b": 2.0, "c": 1.0}, real) == 0


# What it adds up to -------------------------------------------------------------------------------


def made_up(seed: int) -> dict:
    """Return a row where DEPARA ranks as transfer does, and a source's own accuracy backwards."""
    order = {name: number / 10 for number, name in enumerate(SOURCES)}
    noisy = {name: value + 0.01 * seed for name, value in order.items()}
    target = {"scratch": 0.5, "whole": 0.9, LINEAR: noisy, TUNED: noisy, "held": order}
    for told in ("few", "all"):
        for method in depara_transfer.ATTRIBUTIONS:
            target[f"{told}, {method}"] = {
                name: [value, 0.5 - (0.1 * value if seed else -0.1 * value)]
                for name, value in order.items()
            }
    return {
        "accuracy": {name: 1 - value for name, value in order.items()},
        "targets": {name: target for name in TARGETS},
    }


def concluded(out, rows):
    conclusion = depara_transfer.conclude(
        SMALL, {f"seed {n}": row for n, row in enumerate(rows)}, out
    )
    return {each["claim"]: each for each in conclusion.claims}, conclusion


def test_the_conclusion_tells_agreement_rivals_and_losses(tmp_path):
    claims, conclusion = concluded(tmp_path, [made_up(seed) for seed in range(3)])
    for target in TARGETS:
        for by in MEASURES.values():
            claim = claims[
                f"The ranking by DEPARA agrees with real transfer by {by} to {target} "
                "(Spearman > 0)"
            ]
            assert claim["holds"] is True and claim["figure"].startswith("+1.00 (")
    ahead = "DEPARA ranks better than {}, over all targets and both measures"
    assert claims[ahead.format(OWN)]["holds"] is True
    assert claims[ahead.format(OWN)]["figure"].startswith("Spearman +1.00 against -1.00")
    assert claims[ahead.format(HELD)]["holds"] == "unclear"  # both are perfect
    assert claims[ahead.format("its edges alone")]["holds"] == "unclear"
    for among in ("all sources", "the trained sources alone"):
        claim = claims[
            f"The ranking by DEPARA agrees with real transfer among {among}, over all targets and "
            "both measures (Spearman > 0)"
        ]
        assert claim["holds"] is True and claim["figure"] == "+1.00 (+1.00 to +1.00, 3 seeds)"
    table = {row["name"]: row["ours"] for row in conclusion.rows}
    assert table[f"inverted, fine-tuning: Spearman with {OURS}"]["mean"] == pytest.approx(1)
    assert table[f"inverted, fine-tuning: Spearman with {OTHERS}"]["mean"] == pytest.approx(1)
    edges = table["inverted, fine-tuning: Spearman with its edges alone"]["values"]
    assert edges == pytest.approx([1, -1, -1])
    assert table[f"inverted, fine-tuning: lost by the first of {OURS}"]["mean"] == 0
    assert table[f"inverted, fine-tuning: lost by the first of {OWN}"]["mean"] == pytest.approx(0.5)
    assert all(path.is_file() for path in conclusion.figures)


def test_equal_sources_leave_a_claim_open_and_one_seed_has_no_interval(tmp_path):
    rows = [made_up(seed) for seed in range(2)]
    rows[1]["targets"]["inverted"] = rows[1]["targets"]["inverted"] | {
        TUNED: dict.fromkeys(SOURCES, 0.5)
    }
    claims, _ = concluded(tmp_path, rows)
    name = "The ranking by DEPARA agrees with real transfer by fine-tuning to {} (Spearman > 0)"
    assert claims[name.format("inverted")]["holds"] == "unclear"
    assert claims[name.format("inverted")]["figure"].startswith("undefined in one of 2 seeds")
    assert claims[name.format("upside down")]["holds"] is True
    claims, _ = concluded(tmp_path, [made_up(0)])
    assert claims[name.format("inverted")]["holds"] == "unclear"
    assert claims[name.format("inverted")]["figure"] == "+1.00, one seed"
