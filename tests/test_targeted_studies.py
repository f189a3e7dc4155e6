"""The studies of targeted updates: what they train, measure, and conclude from given figures."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attrain.models import MLP
from attrain.studies import targeted_efficiency as efficiency
from attrain.studies import targeted_robustness as robustness
from attrain.studies import targeted_subjects as subjects
from attrain.studies.targeted_efficiency import DENSE, ERROR, FIXED, FLOW, GRADIENT, named
from attrain.studies.targeted_subjects import Arm, Loop, Setup, Training, dense
from attrain.studies.tasks import Samples

DIGITS = Setup("digits", (24, 24), Training(20, 64), (0.1, 0.2), 1)


def some(count: int = 60, seed: int = 0) -> Samples:
    torch.manual_seed(seed)
    return Samples(torch.randn(count, 6), torch.randint(3, (count,)))


def network() -> nn.Module:
    torch.manual_seed(1)
    return MLP(6, (8, 8), 3)


# What trains --------------------------------------------------------------------------------------


def test_the_dense_arm_is_momentum_sgd_with_a_rate_that_falls_to_zero():
    given, training = some(), Training(steps=5, batch_size=20)
    found = Loop(network(), dense(), given, training, 0.3, seed=4).run()

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    orders = [torch.randperm(60, generator=generator) for _ in range(2)]
    batches = [order[start : start + 20] for order in orders for start in (0, 20, 40)]
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 5)
        optimizer.zero_grad()
        F.cross_entropy(model(given.x[batches[step]]), given.y[batches[step]]).backward()
        optimizer.step()
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_dense_arm_of_fewer_steps_ends_sooner_and_a_narrow_one_has_fewer_neurons():
    short = subjects.loop(DIGITS, dense("short", steps=0.5), 0.1, 0)
    short.run()
    assert short.done == 10 and short.seconds > 0
    narrow = subjects.fresh(DIGITS, dense("narrow", width=0.25), 0)
    assert [len(layer.weight) for layer in subjects.hidden_layers(narrow)] == [6, 6]
    cnn = replace(DIGITS, hidden="cnn")
    layers = subjects.hidden_layers(subjects.fresh(cnn, dense("narrow", width=0.5), 0))
    assert [len(layer.weight) for layer in layers] == [8, 16, 32]


def test_arms_of_one_width_start_alike_and_see_the_same_batches():
    arms = dense(), Arm("half", "error", 0.5)
    one, other = (subjects.fresh(DIGITS, arm, 3).state_dict() for arm in arms)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_optimizer_state_is_counted_in_bytes():
    loop = Loop(network(), dense(), some(), Training(2, 20), 0.1, 0)
    assert loop.state_bytes() == 0
    loop.run()
    assert loop.state_bytes() == 4 * sum(p.numel() for p in network().parameters())


def test_a_targeted_arm_moves_its_share_of_the_neurons_after_its_warm_up():
    arm = Arm("quarter", "fixed", 0.25, warmup=0.0)
    start = subjects.fresh(DIGITS, arm, 0).state_dict()
    loop = subjects.loop(DIGITS, arm, 0.1, 0)
    model = loop.run()
    for name, rows in loop.targeted.selection().items():
        moved = (model.state_dict()[f"{name}.weight"] != start[f"{name}.weight"]).any(1)
        # A neuron that fires for no picture stays where it is.
        assert 0 < int(moved.sum()) and set(moved.nonzero().flatten().tolist()) <= set(
            rows.tolist()
        )
        assert len(rows) == 6
    assert (model.state_dict()["fc3.weight"] != start["fc3.weight"]).any(1).all()
    of = sum(model.state_dict()[f"fc{k}.weight"][:6].numel() + 6 for k in (1, 2))
    assert loop.state_bytes() == 4 * (of + 24 * 10 + 10)
    warm = subjects.loop(DIGITS, replace(arm, warmup=1.0), 0.1, 0).run()
    plain = subjects.loop(DIGITS, dense(), 0.1, 0).run()
    for ours, theirs in zip(warm.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# What is measured ---------------------------------------------------------------------------------


def test_relevance_is_the_size_of_z_times_the_slope_of_the_right_logit():
    model, given = network(), some(5)
    found = subjects.relevances(model, given)
    for layer, name in enumerate(("fc1", "fc2")):
        expected = torch.zeros(8)
        for n in range(5):
            kept: list[torch.Tensor] = []
            handle = getattr(model, name).register_forward_hook(
                lambda module, args, out, kept=kept: kept.append(out)
            )
            logit = model(given.x[n : n + 1])[0, given.y[n]]
            handle.remove()
            (slope,) = torch.autograd.grad(logit, kept[0])
            for j in range(8):
                expected[j] += (kept[0][0, j] * slope[0, j]).abs().detach() / 5
        assert torch.allclose(found[layer], expected, atol=1e-6)


def test_what_is_left_of_a_model_are_its_most_relevant_neurons():
    model, given = MLP(2, (4,), 2), Samples(torch.eye(2), torch.arange(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Neurons 0 and 1 hand each input on to its class; 2 and 3 are small noise.
        model.fc1.weight[:2] = torch.eye(2)
        model.fc1.weight[2:] = 0.01
        model.fc2.weight[:, :2] = torch.eye(2)
        model.fc2.weight[1, 2:] = 0.1
    assert subjects.kept(model, given, given, 0.5) == 1.0
    assert subjects.kept(model, given, given, 1.0) == subjects.accuracy(model, given) == 1.0
    model.fc2.weight.data[:, 1] *= 0.001
    assert subjects.kept(model, given, given, 0.25) == 0.5  # neuron 0 alone; the other is a tie


def test_the_channels_of_a_convolution_are_its_neurons():
    of = subjects.parts("digits")
    model = subjects.fresh(replace(DIGITS, hidden="cnn"), dense(), 0)
    shown = of.train.part(slice(0, 20))
    assert [len(each) for each in subjects.relevances(model, shown)] == [16, 32, 64]
    assert 0 <= subjects.kept(model, shown, of.test, 0.1) <= 1


def test_the_rate_is_that_of_the_highest_accuracy_and_the_lowest_of_equal_ones():
    assert subjects.best_rate({0.1: 0.8, 0.2: 0.9, 0.4: 0.9}) == 0.2
    assert set(subjects.tried(DIGITS, dense())) == {0.1, 0.2}


def test_times_are_taken_in_turns():
    loops = [subjects.loop(DIGITS, dense(), 0.1, 0) for _ in range(2)]
    ratios = subjects.time_ratios(loops[0], loops[1], 3, 4)
    assert len(ratios) == 4 and min(ratios) > 0
    assert [loop.done for loop in loops] == [12, 12]


# Efficiency ---------------------------------------------------------------------------------------

SMALL = replace(efficiency.STUDY.budgets["smoke"], seeds=3)


def row(accuracy: list[float]) -> dict:
    """Return made-up figures of an arm; a tenth of its neurons have half of its accuracy."""
    return {
        "rates": [0.1],
        "validation": [0.9],
        "rate": 0.1,
        "accuracy": accuracy,
        "noise": [each - 0.1 for each in accuracy],
        "kept": [each / 2 for each in accuracy],
        "state_bytes": 1_000_000,
    }


def made_up() -> dict:
    """Return results in which flow ties the gradient norm, is ahead of chance, behind dense."""
    high = {DENSE: 0.97, FLOW: 0.965, GRADIENT: 0.965, FIXED: 0.95}
    several = [*efficiency.arms(), efficiency.FAST, *efficiency.cnn_arms()]
    found = {}
    for name in several:
        score = name.removeprefix("CNN, ").split(" at density")[0]
        height = high.get(score, 0.96)
        tilt = (-0.001, 0.0, 0.001) if score == GRADIENT else (0.0, 0.001, -0.001)
        found[name] = row([height + each for each in tilt])
    for each in efficiency.rows(SMALL):
        if each.timed:
            slow = "CNN" in each.name
            found[each.name] = {"ratios": [0.8, 1.2 if slow else 0.9], "warm": [1.0, 1.1, 1.2]}
    return found


@pytest.fixture(scope="module")
def efficient(tmp_path_factory):
    found = efficiency.conclude(SMALL, made_up(), tmp_path_factory.mktemp("efficiency"))
    return {claim["claim"]: claim for claim in found.claims}, found


def test_every_row_of_the_efficiency_study_has_results():
    assert {row.name for row in efficiency.rows(SMALL)} == set(made_up())
    few = efficiency.rows(replace(SMALL, cnn_seeds=0))
    assert not any("CNN" in row.name for row in few)


def test_every_arm_tries_the_same_rates():
    rows = [each for each in efficiency.rows(SMALL) if not each.timed]
    setups = {each.run.args[0] for each in rows if each.name != efficiency.FAST}
    assert len(setups) == 2  # the MLP's and the CNN's


def test_claims_say_what_is_ahead_with_an_interval(efficient):
    claims, _ = efficient
    told = {text: claim["holds"] for text, claim in claims.items()}
    flow = named(FLOW, 0.25)
    within = next(text for text in told if "density 0.25" in text and "one point" in text)
    assert told[within] is True
    assert claims[within]["figure"].endswith("difference -0.50 points (-0.50 to -0.50)")
    assert told[f"{flow} is ahead of {named(FIXED, 0.25)}"] is True
    assert told[f"{flow} is ahead of {named(GRADIENT, 0.25)}"] == "unclear"
    assert told[f"{named(FLOW, 0.1)} is ahead of {named(FLOW, 0.1, cold=True)}"] == "unclear"
    assert told[f"With 10% of its neurons left, {flow} is ahead of dense"] is False
    assert told[f"A step of {flow} takes less time than a dense one, selection included"] is True
    slow = f"A step of CNN, {flow} takes less time than a dense one, selection included"
    assert told[slow] == "unclear"
    assert claims[slow]["figure"] == "1.00 (0.90 to 1.10) of a dense step"


def test_a_goal_that_is_missed_by_two_points_does_not_hold(tmp_path):
    found = made_up()
    found[named(FLOW, 0.25)]["accuracy"] = [0.95, 0.95, 0.95]
    claims = efficiency.conclude(SMALL, found, tmp_path).claims
    assert claims[0]["holds"] is False


def test_the_time_of_a_training_counts_the_warm_up(efficient):
    _, found = efficient
    table = {each["name"]: each["ours"]["mean"] for each in found.rows}
    warm = table[f"{named(FLOW, 0.25)}: time of the training"]
    assert warm == pytest.approx(0.1 * 1.1 + 0.9 * 0.85)
    assert table[f"{named(FLOW, 0.25, cold=True)}: time of the training"] == pytest.approx(0.85)
    assert table[f"{efficiency.equal(0.25)}: time of the training"] == pytest.approx(0.82)
    assert table["dense: time of the training"] == 1.0
    assert table["dense: optimizer state"] == 1.0


def test_a_timed_row_has_blocks_in_and_after_the_warm_up():
    setup = replace(DIGITS, training=Training(40, 64))
    arm = Arm("half", "error", 0.5, warmup=0.25, refresh=5)
    config = replace(SMALL, block=5, pairs=2)
    found = efficiency._time(config, setup, arm)
    assert len(found["ratios"]) == 2 and len(found["warm"]) == 3
    assert min(found["ratios"]) > 0 and found["dense_ms"] > 0
    assert efficiency._time(config, setup, replace(arm, warmup=0.0))["warm"] == []


# Robustness ---------------------------------------------------------------------------------------

FEW = replace(robustness.STUDY.budgets["smoke"], seeds=3)


def curves(height: float, rate: float) -> dict:
    """Return made-up curves of three seeds, of one height at every size."""
    seeds = [height - 0.001, height, height + 0.001]
    return {
        "rate": rate,
        **{kind: [[each] * len(sizes) for each in seeds]
           for kind, sizes in robustness.SIZES.items()},
    }  # fmt: skip


def test_robustness_is_told_at_both_rates(tmp_path):
    # Error is ahead of dense at its own rate alone; flow is behind at both.
    heights = {named(ERROR, 0.25): (0.8, 0.7), named(FLOW, 0.25): (0.6, 0.6)}
    results = {
        name: {
            robustness.TUNED: curves(heights.get(name, (0.7, 0.7))[0], 0.4),
            robustness.SAME: curves(heights.get(name, (0.7, 0.7))[1], 0.1),
        }
        for name in (*robustness.compared(), efficiency.FAST)
    }
    assert {row.name for row in robustness.rows(FEW)} == set(results)
    found = robustness.conclude(FEW, results, tmp_path)
    told = {claim["claim"]: claim for claim in found.claims}
    ahead = "{} at density 0.25 keeps more accuracy under PGD than dense, at {}"
    claim = told[ahead.format(ERROR, robustness.TUNED)]
    assert claim["holds"] is True
    assert claim["figure"] == "80.0% against 70.0%; difference +10.00 points (+10.00 to +10.00)"
    assert told[ahead.format(ERROR, robustness.SAME)]["holds"] == "unclear"
    assert told[ahead.format(FLOW, robustness.SAME)]["holds"] is False
    table = {each["name"]: each["ours"] for each in found.rows}
    assert table[f"{DENSE}: FGSM of 0.1"]["mean"] == pytest.approx(0.7)
    assert table[f"{DENSE}: FGSM of 0.1"]["n"] == 3


def test_what_is_left_is_the_mean_of_the_sizes_above_zero():
    results = {"x": {"y": {"noise": [[1.0, 0.5, 0.3, 0.1]]}}}
    assert robustness.left(results, "x", "y", "noise") == [pytest.approx(0.3)]
