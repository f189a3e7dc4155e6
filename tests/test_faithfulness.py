"""Faithfulness, stability and exact Shapley values against loops and hand-worked examples."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.metrics import faithfulness, randomisation, roar, shapley, stability

WEIGHTS = torch.tensor([[4.0, -1.0], [2.0, 3.0], [1.0, 0.5], [-2.0, 1.0]], dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    """Return two scores of samples of four values."""
    return x.double().flatten(1) @ WEIGHTS


def probability(x: Tensor) -> Tensor:
    return linear(x).softmax(1)


# Twins with loops ---------------------------------------------------------------------------------


def slow_top(attribution: Tensor, count: int, seed: int) -> Tensor:
    """Return the top features by |attribution|, one sample and one feature at a time."""
    flat = attribution.flatten(1)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = torch.zeros(flat.shape, dtype=torch.bool)
    for n in range(len(flat)):
        for _ in range(count):
            best = None
            for f in order:
                free = not chosen[n, f]
                if free and (best is None or abs(flat[n, f]) > abs(flat[n, best])):
                    best = f
            chosen[n, best] = True
    return chosen.reshape(attribution.shape)


def slow_removed(x, attribution, fraction, background, seed, *, keep=False, least=0):
    features = attribution[0].numel()
    chosen = slow_top(attribution, max(least, round(fraction * features)), seed).expand(x.shape)
    found = x.clone()
    for place in np.ndindex(*x.shape):
        if bool(chosen[place]) != keep:
            found[place] = background
    return found


def slow_aopc(predict, x, attribution, background, fractions, seed, keep):
    falls = torch.zeros(len(x), dtype=torch.float64)
    for n in range(len(x)):
        p = predict(x[n : n + 1])[0]
        j = max(range(len(p)), key=lambda c: float(p[c]))
        for fraction in fractions:
            changed = slow_removed(
                x[n : n + 1], attribution[n : n + 1], fraction, background, seed,
                keep=keep, least=1,
            )  # fmt: skip
            falls[n] += (p[j] - predict(changed)[0, j]) / len(fractions)
    return falls


def slow_ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def slow_shapley(worth, players: int) -> list[float]:
    """Return the mean over all orders of what a player adds on joining."""
    found = [0.0] * players
    for order in itertools.permutations(range(players)):
        members: set[int] = set()
        for player in order:
            before = worth(frozenset(members))
            members.add(player)
            found[player] += (worth(frozenset(members)) - before) / math.factorial(players)
    return found


small = st.integers(0, 10_000)


@settings(deadline=None, max_examples=40)
@given(small, st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans())
def test_removal_equals_its_twin(seed, fraction, ties):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 2, 3, generator=generator)
    attribution = torch.randn(3, 1, 2, 3, generator=generator)  # one feature for both channels
    if ties:
        attribution = attribution.round()
    found = faithfulness.removed(x, attribution, fraction, -7.0, seed=seed)
    assert torch.equal(found, slow_removed(x, attribution, fraction, -7.0, seed))


@settings(deadline=None, max_examples=20)
@given(small)
def test_curves_and_aopc_equal_their_twins(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 2, 2, generator=generator)
    y = torch.randint(2, (4,), generator=generator)
    attribution = torch.randn(4, 2, 2, generator=generator)
    fractions = (0.0, 0.25, 0.5, 1.0)
    changed = [slow_removed(x, attribution, fraction, 0.5, seed) for fraction in fractions]
    hits = [
        sum(int(linear(each)[n].argmax()) == int(y[n]) for n in range(4)) / 4 for each in changed
    ]
    given_ = {"fractions": fractions, "seed": seed}
    assert faithfulness.accuracy_drop(linear, x, y, attribution, 0.5, **given_) == hits
    left = faithfulness.target_drop(linear, x, y, attribution, 0.5, **given_)
    for row, each in zip(left, changed, strict=True):
        for n in range(4):
            assert float(row[n]) == pytest.approx(float(linear(each)[n, y[n]]), abs=1e-12)
    for measure, keep in (
        (faithfulness.comprehensiveness, False),
        (faithfulness.sufficiency, True),
    ):
        found = measure(probability, x, attribution, 0.5, **given_)
        wanted = slow_aopc(probability, x, attribution, 0.5, fractions, seed, keep)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(small, st.booleans())
def test_stability_equals_its_twins(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(3, 2, 2, 3, generator=generator, dtype=torch.float64)
    if ties:
        draws = draws.round()
    ranks = stability.rank_correlation(draws[0], draws[1])
    change = stability.relative_change(draws[0], draws[1])
    spread = stability.relative_spread(draws)
    for n in range(2):
        a, b, c = (each[n].flatten().tolist() for each in draws)
        first, second = slow_ranks(a), slow_ranks(b)
        if len(set(a)) > 1 and len(set(b)) > 1:
            wanted = np.corrcoef(first, second)[0, 1]
            assert float(ranks[n]) == pytest.approx(wanted, abs=1e-12)
            assert float(ranks[n]) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        else:
            assert ranks[n].isnan()
        moved = math.sqrt(sum((v - u) ** 2 for u, v in zip(a, b, strict=True)))
        length = math.sqrt(sum(u**2 for u in a))
        if length:
            assert float(change[n]) == pytest.approx(moved / length, abs=1e-12)
        middle = [(u + v + w) / 3 for u, v, w in zip(a, b, c, strict=True)]
        variances = [
            ((u - m) ** 2 + (v - m) ** 2 + (w - m) ** 2) / 2
            for u, v, w, m in zip(a, b, c, middle, strict=True)
        ]
        size = math.sqrt(sum(m**2 for m in middle))
        if size > 1e-12:
            assert float(spread[n]) == pytest.approx(math.sqrt(sum(variances)) / size)


@settings(deadline=None, max_examples=20)
@given(small, st.integers(1, 5))
def test_exact_shapley_values_equal_the_mean_over_all_orders(seed, players):
    values = np.random.default_rng(seed).normal(size=2**players)

    def worth(members: Tensor) -> Tensor:
        return torch.from_numpy(values)[(members.long() << torch.arange(players)).sum(1)]

    def slow_worth(members: frozenset) -> float:
        return float(values[sum(1 << player for player in members)])

    found = shapley.shapley_values(worth, players)
    assert found.tolist() == pytest.approx(slow_shapley(slow_worth, players), abs=1e-10)
    assert float(found.sum()) == pytest.approx(values[-1] - values[0], abs=1e-10)


# By hand ------------------------------------------------------------------------------------------


def test_the_accuracy_falls_as_by_hand():
    x, y = torch.ones(2, 4), torch.tensor([0, 0])
    # Scores of the whole: 4 + 2 + 1 - 2 = 5 and -1 + 3 + .5 + 1 = 3.5.
    attribution = torch.tensor([[4.0, -3.0, 2.0, 1.0], [4.0, -3.0, 2.0, 1.0]])
    fractions = (0.0, 0.25, 0.5, 1.0)
    found = faithfulness.accuracy_drop(linear, x, y, attribution, 0.0, fractions=fractions)
    # Without the first value 1 and 4.5, without two -1 and 1.5, with nothing left a tie.
    assert found == [1.0, 0.0, 0.0, 1.0]
    each = torch.tensor([0, 1])
    left = faithfulness.target_drop(linear, x, each, attribution, 0.0, fractions=fractions)
    assert left.tolist() == [[5.0, 3.5], [1.0, 4.5], [-1.0, 1.5], [0.0, 0.0]]
    assert faithfulness.area([1.0, 0.5, 0.0], (0.0, 0.25, 1.0)) == pytest.approx(0.375)
    assert faithfulness.area([1.0] * 10) == pytest.approx(1.0)


def test_comprehensiveness_and_sufficiency_as_by_hand():
    x = torch.ones(1, 4)
    attribution = torch.tensor([[9.0, 1.0, 0.0, 0.0]])
    # Without the first value score 0 falls by 4, with it alone by 1.
    by_hand = {"fractions": (0.01, 0.25)}  # both are one feature: at least one is taken
    found = faithfulness.comprehensiveness(linear, x, attribution, 0.0, **by_hand)
    assert found.tolist() == [4.0]
    assert faithfulness.sufficiency(linear, x, attribution, 0.0, **by_hand).tolist() == [1.0]


def test_a_flat_attribution_prefers_no_place():
    flat = torch.zeros(1, 1000)
    first = faithfulness.top_features(flat, 500, seed=0)
    assert int(first.sum()) == 500 and 200 < int(first[0, :500].sum()) < 300
    assert torch.equal(first, faithfulness.top_features(flat, 500, seed=0))
    assert not torch.equal(first, faithfulness.top_features(flat, 500, seed=1))


def test_changes_and_ranks_as_by_hand():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[3.0, 9.0], [0.0, 0.0], [0.0, 1.0]])
    assert stability.relative_change(a, b).tolist() == [1.0, 0.0, math.inf]
    found = stability.rank_correlation(
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
        torch.tensor([[1.0, 10.0, 100.0], [5.0, 0.0, -5.0]]),
    )
    assert found.tolist() == pytest.approx([1.0, -1.0])
    assert stability.rank_correlation(a, b)[1].isnan()
    draws = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    assert stability.relative_spread(draws).tolist() == pytest.approx([math.sqrt(2) / 2])
    assert stability.relative_spread(torch.zeros(2, 1, 3)).tolist() == [0.0]


def test_shapley_values_as_by_hand():
    def glove(members: Tensor) -> Tensor:  # one left glove, two right ones; a pair is worth 1
        return (members[:, 0] & (members[:, 1] | members[:, 2])).float()

    assert shapley.shapley_values(glove, 3).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_a_corner_is_the_background_of_its_own_image():
    x = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert faithfulness.corner(x).flatten().tolist() == [0.0, 4.0, 8.0, 12.0]
    attribution = torch.tensor([[[[0.0, 0.0], [0.0, 9.0]]]]).expand(2, 1, 2, 2)
    found = faithfulness.removed(x, attribution, 0.25, faithfulness.corner(x))
    assert found[:, :, 1, 1].tolist() == [[0.0, 4.0], [8.0, 12.0]]
    assert torch.equal(found.flatten(2)[:, :, :3], x.flatten(2)[:, :, :3])


def test_a_random_attribution_has_another_order_for_each_sample_and_seed():
    found = faithfulness.random_attribution(torch.zeros(2, 3, 5), seed=1)
    assert found.shape == (2, 3, 5) and not torch.equal(found[0].argsort(), found[1].argsort())
    assert torch.equal(found, faithfulness.random_attribution(torch.zeros(2, 3, 5), seed=1))
    assert not torch.equal(found, faithfulness.random_attribution(torch.zeros(2, 3, 5), seed=2))


# ROAR ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(small, st.sampled_from([(2, 3, 3), (4, 3), (5,)]))
def test_the_sets_of_roar_equal_their_twin(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (4, 2)]
    given_ = [torch.randn(len(x), *shape, generator=generator) for x in sets]
    found = roar.roar_sets(*sets, *given_, 0.4, seed=seed)
    features = math.prod(shape)
    for x, attribution, changed in zip(sets, given_, found, strict=True):
        chosen = slow_top(attribution, round(0.4 * features), seed)
        for place in np.ndindex(*x.shape):
            # One mean of each channel of a picture, else one of each feature.
            like = [v for v in np.ndindex(*sets[0].shape)
                    if v[1] == place[1] and (len(shape) == 3 or v[1:] == place[1:])]  # fmt: skip
            mean = sum(float(sets[0][v]) for v in like) / len(like)
            wanted = mean if chosen[place] else float(x[place])
            assert float(changed[place]) == pytest.approx(wanted, abs=1e-12)


def test_the_sets_of_roar_as_by_hand():
    train, test = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[9.0, 9.0]])
    first = torch.tensor([[5.0, 0.0], [0.0, -5.0]])
    found = roar.roar_sets(train, test, first, -first[:1], 0.5)
    assert found.train.tolist() == [[2.0, 2.0], [3.0, 3.0]] and found.test.tolist() == [[2.0, 9.0]]
    black = roar.roar_sets(train, test, first, first[:1], 1.0, 0.0)
    assert not black.train.any() and not black.test.any()
    assert train.tolist() == [[1.0, 2.0], [3.0, 4.0]]


# Random parameters --------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Parameters of its own, and no way to start them anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _three() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 3), Scaled(), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("cascade", [True, False])
def test_layers_turn_random_from_the_last_to_the_first(cascade):
    model = _three()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = [
        (name, {key: not torch.equal(value, before[key]) for key, value in m.state_dict().items()})
        for name, m in randomisation.randomised(model, seed=1, cascade=cascade)
    ]
    assert [name for name, _ in states] == ["3", "1", "0"]
    for place, (_, changed) in enumerate(states):
        gone = ["3", "1", "0"][: place + 1] if cascade else [["3", "1", "0"][place]]
        assert {key.split(".")[0] for key, other in changed.items() if other} == set(gone)
        assert all(changed[key] for key in changed if key.split(".")[0] in gone)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    state = torch.get_rng_state()
    list(randomisation.randomised(model))
    assert torch.equal(state, torch.get_rng_state())


def test_what_does_not_depend_on_the_model_stays_the_same():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    model = _three()

    def data_alone(model: nn.Module) -> Tensor:
        return -x

    def weights(model: nn.Module) -> Tensor:
        return x.abs() * 0 + model[0].weight.abs().sum(0)

    found = randomisation.model_randomisation(model, data_alone)
    assert [each.mean for each in found] == pytest.approx([1.0] * 3)
    assert [each.samples for each in found] == [6] * 3
    found = randomisation.model_randomisation(model, weights, seed=2)
    assert [each.layer for each in found] == ["3", "1", "0"]
    assert [each.mean for each in found][:2] == pytest.approx([1.0, 1.0])
    other = list(randomisation.randomised(model, seed=2))[-1][1]
    a, b = (slow_ranks(m[0].weight.abs().sum(0).tolist()) for m in (model, other))
    assert found[2].mean == pytest.approx(np.corrcoef(a, b)[0, 1]) and found[2].mean < 1
    flat = randomisation.model_randomisation(model, lambda m: torch.zeros(6, 5))
    assert [(each.mean, each.samples) for each in flat] == [(None, 0)] * 3


# Mistakes -----------------------------------------------------------------------------------------

ONE = torch.ones(2, 4)
BOTH = torch.tensor([0, 1])


def drop(y=BOTH, predict=linear, background=0.0, x=ONE, **options):
    return faithfulness.accuracy_drop(predict, x, y, ONE, background, **options)


def aopc(predict=probability, background=0.0, **options):
    return faithfulness.comprehensiveness(predict, ONE, ONE, background, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: faithfulness.top_features(ONE, 5), "count must be in 0..4, .* got 5"),
        (lambda: faithfulness.top_features(ONE * math.nan, 2), "NaN or infinite: no order"),
        (lambda: faithfulness.removed(ONE, ONE, 1.5, 0.0), "in 0..1: got 1.5"),
        (
            lambda: faithfulness.removed(ONE, ONE[:, :3], 0.5, 0.0),
            r"attribution has the shape \(2, 3\), and x \(2, 4\): they must agree, or have 1",
        ),
        (lambda: faithfulness.top_features(ONE > 0, 2), "is numbers, got torch.bool"),
        (lambda: drop(BOTH[:, None]), r"got 2 samples and labels of the shape \(2, 1\)"),
        (lambda: drop(BOTH[:1]), r"got 2 samples and labels of the shape \(1,\)"),
        (lambda: drop([0, 1]), r"labels are a tensor \[N\] of whole numbers, got list"),
        (lambda: drop(BOTH.float()), r"whole numbers, got torch.float32: give y.long\(\)"),
        (lambda: drop(BOTH + 1), "labels go from 1 to 2, and the model has 2 outputs: they must"),
        (lambda: drop(fractions=[]), "no fractions of the features are given: at least one"),
        (
            lambda: drop(background=torch.zeros(3)),
            r"the background has the shape \(3,\), and x \(2, 4\): give a number, or a tensor that",
        ),
        (lambda: aopc(background=torch.zeros(2, 1, 4)), r"background has the shape \(2, 1, 4\)"),
        (
            lambda: drop(x=ONE * math.nan),
            "the model's outputs are NaN for 2 of 2 samples, the first is sample 0: look at the",
        ),
        (lambda: aopc(background=math.nan), "outputs are NaN for 2 of 2 samples"),
        (lambda: aopc(lambda x: x[:, :1]), r"turns 2 samples into \(2, 1\): one output per class"),
        (lambda: aopc(lambda x: x.sum(1)), r"turns 2 samples into \(2,\): one output per class"),
        (lambda: aopc(lambda x: (x, x)), "the model returns tuple: give a function that returns"),
        (
            lambda: faithfulness.target_drop(linear, ONE, BOTH - 1, ONE, 0.0),
            "labels go from -1 to 0, and the model has 2 outputs",
        ),
        (lambda: faithfulness.removed(ONE, ONE[:1], 0.5, 0.0), r"the shape \(1, 4\), and x"),
        (lambda: faithfulness.removed(ONE[:0], ONE[:0], 0.5, 0.0), r"shape \(0, 4\)"),
        (lambda: faithfulness.area([1.0], (0.0,)), "at least two: got 1 values and 1 fractions"),
        (lambda: faithfulness.area([1.0, 0.0], (0.5, 0.1)), r"fractions must rise, got \(0.5"),
        (lambda: stability.relative_change(ONE, ONE[:1]), r"the shapes \(2, 4\) and \(1, 4\)"),
        (lambda: stability.rank_correlation(ONE[0], ONE[0]), r"got the shapes \(4,\) and \(4,\)"),
        (lambda: stability.relative_spread(ONE[None]), r"at least two draws .* \(1, 2, 4\)"),
        (lambda: faithfulness.corner(ONE), r"of images \[N, C, H, W\], got the shape \(2, 4\)"),
        (
            lambda: roar.roar_sets(ONE, ONE[:, :3], ONE, ONE[:, :3], 0.5),
            r"one shape: got \(4,\) to train on and \(3,\) to test on",
        ),
        (
            lambda: randomisation.model_randomisation(nn.ReLU(), lambda m: ONE),
            "the model has no parameters: there is nothing to randomise",
        ),
        (lambda: shapley.shapley_values(lambda c: c.sum(1), 17), "1..16 players are possible, got"),
        (lambda: shapley.shapley_values(lambda c: c.sum(), 3), "each of 8 coalitions, got the sha"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()
