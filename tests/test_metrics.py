import math
import statistics as standard

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from attrain.errors import InputError
from attrain.metrics import calibration, sparsity, statistics

# Spread over fewer decades than float64 has digits, so that scaling loses nothing but rounding.
magnitudes = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
values = hnp.arrays(np.float64, st.integers(1, 30), elements=magnitudes).filter(np.any)


def twin_gini(entries):
    """Mean absolute difference of all pairs over twice the mean."""
    entries = [abs(entry) for entry in entries]
    count = len(entries)
    total = sum(abs(left - right) for left in entries for right in entries)
    return total / (2 * count * sum(entries))


def twin_bins(confidence, correct, bins):
    table = []
    for index in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[index : index + 2]
        inside = [
            position
            for position, value in enumerate(confidence)
            if low < value <= high or (index == 0 and value == 0)
        ]
        if inside:
            mean = sum(confidence[position] for position in inside) / len(inside)
            right = sum(correct[position] for position in inside) / len(inside)
            table.append({"confidence": mean, "accuracy": right, "count": len(inside)})
        else:
            table.append({"confidence": None, "accuracy": None, "count": 0})
    return table


@settings(deadline=None)
@given(values)
def test_gini_equals_twin(entries):
    assert sparsity.gini(entries) == pytest.approx(twin_gini(entries.tolist()), abs=1e-12)


@settings(deadline=None)
@given(values, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_gini_ignores_scale_sign_and_order(entries, scale, random):
    order = list(range(len(entries)))
    random.shuffle(order)
    signs = np.array([random.choice((-1, 1)) for _ in entries])
    changed = (scale * signs * entries)[order]
    assert sparsity.gini(changed) == pytest.approx(sparsity.gini(entries), abs=1e-12)


@settings(deadline=None)
@given(values)
def test_gini_of_clones_and_of_more_zeros(entries):
    found = sparsity.gini(entries)
    assert -1e-12 <= found <= 1 - 1 / len(entries) + 1e-12
    assert sparsity.gini(np.repeat(entries, 3)) == pytest.approx(found, abs=1e-12)
    assert sparsity.gini(np.append(entries, 0.0)) > found - 1e-12


def test_gini_extremes():
    assert sparsity.gini(torch.full((3, 4), -2.0)) == pytest.approx(0.0, abs=1e-15)
    assert sparsity.gini(torch.eye(10)[0]) == pytest.approx(0.9)
    assert sparsity.gini(np.array([1e308, 1e308, 1e308])) == pytest.approx(0.0, abs=1e-15)
    assert math.isnan(sparsity.gini(torch.zeros(3)))
    assert sparsity.gini(torch.tensor([1.0, 3.0], dtype=torch.bfloat16)) == pytest.approx(0.25)


@settings(deadline=None)
@given(values, st.floats(0, 1))
def test_theta_sparsity_equals_twin(entries, theta):
    largest = max(abs(entry) for entry in entries)
    expected = sum(abs(entry) <= theta * largest for entry in entries) / len(entries)
    assert sparsity.theta_sparsity(entries, theta) == pytest.approx(expected)


def test_theta_sparsity_extremes():
    assert sparsity.theta_sparsity(torch.tensor([-4.0, 1.0, 0.0, 2.0]), 0.25) == 0.5
    assert sparsity.theta_sparsity(torch.zeros(4), 0.0) == 1.0
    with pytest.raises(InputError, match="theta is a share of the largest weight, in 0..1: got 2"):
        sparsity.theta_sparsity(torch.ones(4), 2)


@pytest.mark.parametrize(
    ("entries", "message"),
    [([], "no values: sparsity needs at least one"), ([1.0, math.nan], "1 of 2 weights are NaN")],
)
def test_sparsity_refuses(entries, message):
    for measure in (sparsity.gini, lambda weights: sparsity.theta_sparsity(weights, 0.1)):
        with pytest.raises(InputError, match=message):
            measure(entries)


def test_update_density_counts_entries_that_move():
    first, second, still = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(5, 5)
    still.requires_grad_(False)
    parameters = [*first.parameters(), *second.parameters(), *still.parameters()]
    assert sparsity.update_density(parameters) == 0.0
    first.weight.grad = torch.tensor([[0.0, 1e-30, -2.0], [0.0, -0.0, 3.0]])
    first.bias.grad = torch.ones(2)
    entries = moved = 0
    for parameter in parameters[:4]:
        for index in range(parameter.numel()):
            entries += 1
            if parameter.grad is not None and parameter.grad.flatten()[index] != 0:
                moved += 1
    assert (moved, entries) == (5, 11)
    assert sparsity.update_density(parameters) == pytest.approx(5 / 11)
    with pytest.raises(InputError, match="no parameter requires grad"):
        sparsity.update_density(still.parameters())


def test_update_density_of_a_sparse_gradient():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert sparsity.update_density(embedding.parameters()) == pytest.approx(4 / 10)


def test_signs_that_changed_are_counted_one_by_one():
    torch.manual_seed(0)
    before = {"a": torch.randn(4, 5), "b": torch.randn(3)}
    after = {name: weight + torch.randn_like(weight) for name, weight in before.items()}
    before["a"][0, 0], after["a"][1, 1] = 0.0, 0.0
    counted = changed = 0
    for name, weight in before.items():
        for old, new in zip(weight.flatten().tolist(), after[name].flatten().tolist(), strict=True):
            if old != 0:
                counted += 1
                changed += (old < 0 < new) or (new < 0 < old)
    assert 0 < changed < counted == 22
    assert sparsity.signs_changed(before, after) == changed / counted
    assert sparsity.signs_changed(before, before) == 0.0


def test_signs_of_other_weights_are_refused():
    with pytest.raises(InputError, match="before and after are not of one model"):
        sparsity.signs_changed({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(InputError, match="no weight was other than 0 before"):
        sparsity.signs_changed({"a": torch.zeros(2)}, {"a": torch.ones(2)})


def test_connection_weights_are_those_of_linear_and_convolution_layers():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
    )
    assert list(sparsity.connection_weights(model)) == ["0.weight", "4.weight"]
    assert not sparsity.connection_weights(model)["0.weight"].requires_grad


def test_connection_weights_are_those_of_recurrent_layers_too():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
            "gru": nn.GRU(3, 4, bias=False),
            "cell": nn.RNNCell(3, 4),
        }
    )
    wanted = [name for name, _ in model.named_parameters() if "weight" in name]
    assert len(wanted) == 12 + 2 + 2
    found = sparsity.connection_weights(model)
    assert list(found) == wanted
    assert all(found[name].data_ptr() == model.get_parameter(name).data_ptr() for name in wanted)


def test_weight_summary_follows_the_run_folder():
    torch.manual_seed(0)
    weights = {"fc1.weight": torch.randn(6, 5), "fc2.weight": torch.zeros(2, 2)}
    found = sparsity.weight_summary(weights, bins=5)
    first, second = found["layers"]
    assert found["gini"] == sparsity.gini(torch.cat([w.flatten() for w in weights.values()]))
    assert found["bin_edges"] == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
    relative = (weights["fc1.weight"] / weights["fc1.weight"].abs().max()).flatten().tolist()
    counts = [0] * 5
    for value in relative:
        counts[min(int((value + 1) / 0.4), 4)] += 1
    assert first["name"] == "fc1.weight" and first["count"] == 30 and first["counts"] == counts
    assert list(first["theta_sparsity"]) == ["0.01", "0.05", "0.25"]
    ordered = sorted(abs(value) for value in relative)
    middle = standard.quantiles(ordered, n=4, method="inclusive")
    assert first["quantiles"] == pytest.approx([ordered[0], *middle, 1.0])
    assert math.isnan(second["gini"]) and second["counts"] == [0, 0, 4, 0, 0]
    assert second["quantiles"] == [0, 0, 0, 0, 0]
    with pytest.raises(InputError, match="no linear, convolution or recurrent layer"):
        sparsity.weight_summary({})


def test_weights_around_zero_share_a_bin():
    counts = sparsity.weight_summary({"w": torch.tensor([1.0, 0.001, -0.001, 0.0])})
    assert max(counts["layers"][0]["counts"]) == 3


@settings(deadline=None)
@given(st.data(), st.integers(1, 20))
def test_reliability_bins_and_error_equal_twins(data, bins):
    edges = st.sampled_from(np.linspace(0, 1, bins + 1).tolist())
    size = data.draw(st.integers(1, 40))
    confidence = data.draw(
        st.lists(st.one_of(edges, st.floats(0, 1)), min_size=size, max_size=size)
    )
    correct = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    found = calibration.calibration(confidence, correct, bins)
    expected = twin_bins(confidence, correct, bins)
    error = 0.0
    for entry, twin in zip(found["bins"], expected, strict=True):
        assert entry["count"] == twin["count"]
        if twin["count"]:
            assert entry["confidence"] == pytest.approx(twin["confidence"], abs=1e-12)
            assert entry["accuracy"] == pytest.approx(twin["accuracy"], abs=1e-12)
            error += twin["count"] / size * abs(twin["accuracy"] - twin["confidence"])
        else:
            assert entry["confidence"] is None and entry["accuracy"] is None
    assert found["ece"] == pytest.approx(error, abs=1e-12)
    assert found["ece"] == calibration.expected_calibration_error(confidence, correct, bins)


def test_calibration_takes_tensors_and_the_rounding_of_softmax():
    confidence = torch.tensor([1.0, 1.0000001, 0.5])
    correct = torch.tensor([True, True, False])
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(0.5 / 3)
    assert len(calibration.reliability_bins(confidence, correct)) == 15


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([], [], 15, r"one value per sample and at least one: got shapes \[0\] and \[0\]"),
        ([0.5], [True, False], 15, r"got shapes \[1\] and \[2\]"),
        ([math.nan], [True], 15, "confidence must be a probability in 0..1"),
        ([1.2], [True], 15, "confidence must be a probability in 0..1"),
        ([0.2], [True], 0, "bins must be at least 1, got 0"),
    ],
)
def test_calibration_refuses(confidence, correct, bins, message):
    with pytest.raises(InputError, match=message):
        calibration.reliability_bins(confidence, correct, bins)


def test_summary():
    found = statistics.summary([0.5, 0.7, 0.9])
    assert found["mean"] == pytest.approx(0.7)
    assert found["std"] == pytest.approx(standard.stdev([0.5, 0.7, 0.9]))
    assert found["values"] == [0.5, 0.7, 0.9]
    assert statistics.summary([0.5]) == {"mean": 0.5, "std": None, "values": [0.5]}
    diverged = statistics.summary([0.5, math.inf])
    assert diverged["mean"] is None and diverged["std"] is None
    with pytest.raises(InputError, match="no values to summarise"):
        statistics.summary([])


def test_paired_difference_against_the_table_of_t():
    ours, baseline = [0.97, 0.96, 0.98], [0.95, 0.95, 0.95]
    differences = [left - right for left, right in zip(ours, baseline, strict=True)]
    # 4.3027 is the 97.5% quantile of t with two degrees of freedom.
    reach = 4.302652729911275 * standard.stdev(differences) / math.sqrt(3)
    found = statistics.paired_difference(ours, baseline)
    assert found["mean"] == pytest.approx(0.02)
    assert found["low"] == pytest.approx(0.02 - reach)
    assert found["high"] == pytest.approx(0.02 + reach)
    assert found["n"] == 3 and found["clear"] is False
    assert statistics.paired_difference([0.97, 0.971, 0.972], baseline)["clear"] is True


def test_paired_difference_of_the_best_of_several_has_a_wider_interval():
    ours, baseline = [0.97, 0.971, 0.972], [0.95, 0.95, 0.95]
    # 7.6488 is the quantile of t with two degrees of freedom at 1 - .05 / 6.
    reach = 7.648804 * standard.stdev(ours) / math.sqrt(3)
    found = statistics.paired_difference(ours, baseline, comparisons=3)
    assert found["high"] - found["mean"] == pytest.approx(reach, rel=1e-5)
    assert statistics.paired_difference(ours, baseline, comparisons=1000)["clear"] is False


def test_paired_difference_of_equal_runs_is_never_clear():
    found = statistics.paired_difference([0.9, 0.8], [0.9, 0.8])
    assert found == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2, "clear": False}


def test_paired_difference_without_an_interval():
    assert statistics.paired_difference([0.75], [0.5]) == {
        "mean": 0.25,
        "low": None,
        "high": None,
        "n": 1,
        "clear": False,
    }
    assert statistics.paired_difference([math.nan, 1.0], [0.5, 0.5]) == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 2,
        "clear": False,
    }
    with pytest.raises(InputError, match="one of each per seed: got 2 and 1"):
        statistics.paired_difference([1.0, 2.0], [1.0])


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


@settings(deadline=None)
@given(pairs)
def test_swapping_the_sides_mirrors_the_interval(drawn):
    ours, baseline = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
    there = statistics.paired_difference(ours, baseline)
    back = statistics.paired_difference(baseline, ours)
    assert there["low"] == pytest.approx(-back["high"], abs=1e-12)
    assert there["mean"] == pytest.approx(-back["mean"], abs=1e-12)
    assert there["clear"] == back["clear"]
    assert there["low"] <= there["mean"] <= there["high"]


def twin_ranks(entries):
    """Rank from 1, the mean of the places that equal entries take."""
    ranks = []
    for entry in entries:
        below = sum(other < entry for other in entries)
        equal = sum(other == entry for other in entries)
        ranks.append(below + (equal + 1) / 2)
    return ranks


def twin_rank_correlation(left, right):
    """Pearson's correlation of the ranks, from the definition."""
    left, right = twin_ranks(left), twin_ranks(right)
    centre = sum(left) / len(left)
    shared = sum((a - centre) * (b - centre) for a, b in zip(left, right, strict=True))
    sizes = [sum((rank - centre) ** 2 for rank in ranks) for ranks in (left, right)]
    return shared / math.sqrt(sizes[0] * sizes[1])


def vary(drawn):
    return all(len(set(side)) > 1 for side in zip(*drawn, strict=True))


few = st.integers(-3, 3).map(float)


@settings(deadline=None)
@given(st.lists(st.tuples(few, few), min_size=2, max_size=12).filter(vary))
def test_the_rank_correlation_equals_its_twin(drawn):
    left, right = map(list, zip(*drawn, strict=True))
    found = statistics.rank_correlation(left, right)
    assert found == pytest.approx(twin_rank_correlation(left, right), abs=1e-12)
    assert found == pytest.approx(statistics.rank_correlation(right, left), abs=1e-12)
    rising = [entry**3 + entry for entry in left]
    assert found == pytest.approx(statistics.rank_correlation(rising, right), abs=1e-12)


def test_rank_correlations_that_are_known():
    assert statistics.rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2, 3], [9, 2, 1]) == pytest.approx(-1)
    assert statistics.rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ([1.0], [2.0], "of two or more pairs: got 1 and 1 values"),
        ([1.0, 2.0], [2.0, 3.0, 4.0], "of two or more pairs: got 2 and 3 values"),
        ([1.0, math.nan], [1.0, 2.0], "of finite values, got NaN or infinite ones"),
        ([1.0, 2.0], [3.0, 3.0], "with a constant is undefined: all 2 values are 3"),
    ],
)
def test_what_has_no_rank_correlation_is_refused(left, right, text):
    with pytest.raises(InputError, match=text):
        statistics.rank_correlation(left, right)
