"""Precision and recall by saliency mass, and the spread of gradients, against loops and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis
from torch import Tensor

from attrain.errors import InputError
from attrain.metrics import distribution, localisation
from attrain.metrics.localisation import all_permuted, features_permuted

small = st.integers(0, 10_000)


def slow_precision_recall(values, box, share, order):
    """Return precision and recall of one sample: take the largest values until they are enough."""
    size = [abs(v) for v in values]
    low, high = min(size), max(size)
    if low == high:
        return math.nan, math.nan
    mass = [(v - low) / (high - low) for v in size]
    total, taken = sum(mass), []
    while sum(mass[f] for f in taken) < share * total * (1 - 1e-12):
        best = None
        for f in order:
            if f not in taken and (best is None or mass[f] > mass[best]):
                best = f
        taken.append(best)
    both = sum(mass[f] for f in taken if box[f])
    inside = sum(m for m, b in zip(mass, box, strict=True) if b)
    return both / sum(mass[f] for f in taken), both / inside if inside else 0.0


def slow_area(values: list[float], shares: list[float]) -> float:
    pairs = list(zip(shares, values, strict=True))
    return sum((b - a) * (u + v) / 2 for (a, u), (b, v) in zip(pairs, pairs[1:], strict=False))


@settings(deadline=None, max_examples=60)
@given(small, st.booleans())
def test_precision_and_recall_equal_their_twin(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 3, 4, generator=generator)
    values = values.round() if ties else values
    values[3] = 2.0  # no mass
    box = torch.rand(4, 3, 4, generator=generator) < 0.3
    box[:, 0, 0] = True
    shares = [0.1, 0.35, 0.7, 1.0]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    found = localisation.precision_recall(values, box, shares, seed=seed)
    wanted = np.array([
        [
            slow_precision_recall(v.double().tolist(), b.tolist(), share, order)
            for v, b in zip(values.flatten(1), box.flatten(1), strict=True)
        ]
        for share in shares
    ])  # fmt: skip
    np.testing.assert_allclose(found.precision, wanted[:, :, 0], atol=1e-9)
    np.testing.assert_allclose(found.recall, wanted[:, :, 1], atol=1e-9)
    areas = localisation.aup_aur(values, box, shares, seed=seed)
    counted = ~np.isnan(wanted[0, :, 0])
    assert areas.samples == counted.sum() and not counted[3]
    means = wanted[:, counted].mean(1)
    assert areas.precision == pytest.approx(slow_area(means[:, 0].tolist(), shares), abs=1e-9)
    assert areas.recall == pytest.approx(slow_area(means[:, 1].tolist(), shares), abs=1e-9)


def test_precision_and_recall_as_by_hand():
    # Scaled by min 0 and max 4 the mass is 1, .5, .25, .25, 0: 2 in all. The box has .5 + .25.
    values = torch.tensor([[[4.0, -2.0, 1.0, -1.0, 0.0]]])
    box = torch.tensor([[[False, True, True, False, False]]])
    found = localisation.precision_recall(values, box, (0.5, 0.75, 1.0))
    assert found.precision[:, 0].tolist() == pytest.approx([0.0, 0.5 / 1.5, 0.75 / 2])
    assert found.recall[:, 0].tolist() == pytest.approx([0.0, 0.5 / 0.75, 1.0])


def test_a_perfect_attribution_has_the_largest_areas():
    box = torch.zeros(3, 10, 10, dtype=torch.bool)
    box[:, 2:5, 3:9] = True
    found = localisation.aup_aur(box.float(), box)
    # Precision is 1 throughout. The box has 18 equal values: p% of the mass needs ceil(.18 p).
    recall = [math.ceil(round(18 * p / 10, 9)) / 18 for p in range(1, 10)]
    assert found.precision == pytest.approx(0.8)
    assert found.recall == pytest.approx(slow_area(recall, [p / 10 for p in range(1, 10)]))
    wrong = localisation.aup_aur((~box).float(), box)
    assert (wrong.precision, wrong.recall) == (0.0, 0.0)


def test_the_two_random_references_are_what_they_are_called():
    values = torch.arange(24.0).reshape(2, 3, 4)
    alike = features_permuted(values, 3)
    order = [values[0, 0].tolist().index(v) for v in alike[0, 0].tolist()]
    assert sorted(order) == [0, 1, 2, 3] and order != [0, 1, 2, 3]
    for n in range(2):
        for t in range(3):
            assert alike[n, t].tolist() == [values[n, t, f] for f in order]
    apart = all_permuted(values, 3)
    assert apart.flatten(1).sort(1).values.tolist() == values.flatten(1).tolist()
    assert not torch.equal(apart[0].argsort(), apart[1].argsort())


def test_words_change_places_among_themselves():
    values = torch.arange(24.0).reshape(2, 12)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0, 5:], real[1, 3] = False, False
    seen = set()
    for seed in range(20):
        moved = localisation.words_permuted(values, seed, real)
        for text, old, words in zip(moved.tolist(), values.tolist(), real.tolist(), strict=True):
            kept = [(a, b) for a, b, word in zip(text, old, words, strict=True) if not word]
            assert all(a == b for a, b in kept)
            assert sorted(text) == old
        seen.add(tuple(moved[0, :5].tolist()))
        assert torch.equal(moved, localisation.words_permuted(values, seed, real))
    assert len(seen) > 15  # of the 120 orders of five words
    firsts = [localisation.words_permuted(values, k, real)[0, 0].item() for k in range(500)]
    assert all(70 < firsts.count(word) < 130 for word in range(5))


def test_a_uniform_order_finds_the_box_by_its_share_alone():
    generator = torch.Generator().manual_seed(0)
    values, box = torch.rand(400, 10, 10, generator=generator), torch.zeros(400, 10, 10).bool()
    box[:, :3] = True
    curves = localisation.precision_recall(values, box)
    assert curves.precision.mean(1).tolist() == pytest.approx([0.3] * 9, abs=0.02)
    found = localisation.above_random(values, box, reference=all_permuted, draws=3, seed=9)
    assert (found.precision, found.recall) == pytest.approx((0.0, 0.0), abs=0.01)
    # An attribution that knows the time alone: the benchmark's own reference knows it as well.
    known = box.float() + 0.1 * values
    benchmark = localisation.above_random(known, box, seed=9)
    uniform = localisation.above_random(known, box, reference=all_permuted, seed=9)
    assert abs(benchmark.precision) < 0.02 and uniform.precision > 0.4


# Gradients ----------------------------------------------------------------------------------------


def slow_quantile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


@settings(deadline=None, max_examples=40)
@given(small)
def test_the_distribution_of_gradients_equals_its_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(3, 1, 4, 5, generator=generator, dtype=torch.float64)
    on = torch.rand(3, 1, 4, 5, generator=generator) < 0.4
    found = distribution.gradient_distribution(gradient, on)
    for n in range(3):
        g = gradient[n].flatten().tolist()
        most = max(abs(v) for v in g)
        g = [v / most for v in g]
        wanted = [slow_quantile(g, share) for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
        assert [float(each[n]) for each in found[:5]] == pytest.approx(wanted, abs=1e-12)
        assert [float(each[n]) for each in found[:5]] == pytest.approx(
            np.quantile(g, [0.01, 0.25, 0.5, 0.75, 0.99]), abs=1e-12
        )
        assert float(found.interquartile[n]) == pytest.approx(wanted[3] - wanted[1], abs=1e-12)
        mean = sum(g) / len(g)
        second, fourth = (sum((v - mean) ** k for v in g) / len(g) for k in (2, 4))
        assert float(found.kurtosis[n]) == pytest.approx(fourth / second**2)
        assert float(found.kurtosis[n]) == pytest.approx(kurtosis(g, fisher=False))
        inside = sum(abs(v) for v, b in zip(g, on[n].flatten().tolist(), strict=True) if b)
        assert float(found.on_object[n]) == pytest.approx(inside / sum(map(abs, g)), abs=1e-12)


def test_the_distribution_of_gradients_as_by_hand():
    gradient = torch.tensor([[-4.0, 0.0, 0.0, 0.0, 2.0], [0.0] * 5, [3.0] * 5])
    found = distribution.gradient_distribution(gradient, gradient > 1)
    assert found.low[0] == pytest.approx(-0.96) and found.high[0] == pytest.approx(0.48)
    assert [float(v[0]) for v in found[1:4]] == [0.0, 0.0, 0.0] and found.interquartile[0] == 0
    # Values -1, 0, 0, 0, .5 have the mean -.1, and deviations -.9, .1, .1, .1, .6.
    fourth, second = 0.6561 + 0.0003 + 0.1296, 0.81 + 0.03 + 0.36
    assert float(found.kurtosis[0]) == pytest.approx(5 * fourth / second**2)
    assert float(found.on_object[0]) == pytest.approx(1 / 3)
    assert found.median[1].isnan() and found.on_object[1].isnan()
    assert found.median[2] == 1 and found.kurtosis[2].isnan() and found.on_object[2] == 1
    assert distribution.gradient_distribution(gradient).on_object is None


def test_an_object_is_what_differs_from_the_corner():
    x = torch.tensor([[[[7.0, 7.0], [7.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]]])
    assert distribution.object_of(x)[0, 0].tolist() == [[False, True], [False, True]]
    assert torch.equal(distribution.object_of(x)[0, 1], distribution.object_of(x)[0, 0])


# Mistakes -----------------------------------------------------------------------------------------

ONE, BOX = torch.rand(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)


def _empty() -> Tensor:
    box = BOX.clone()
    box[1] = False
    return box


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: localisation.aup_aur(ONE, BOX[:, :2]), r"got \(2, 3, 4\) and \(2, 2, 4\)"),
        (lambda: localisation.aup_aur(ONE, BOX.float()), "boolean, got torch.float32"),
        (lambda: localisation.aup_aur(ONE, _empty()), "1 of 2 boxes are empty, .* of sample 1"),
        (lambda: localisation.aup_aur(ONE * math.nan, BOX), "NaN or infinite: no mass in them"),
        (lambda: localisation.aup_aur(ONE, BOX, (0.5,)), "two or more shares that rise"),
        (lambda: localisation.aup_aur(ONE, BOX, (0.5, 0.1)), r"that rise, got \(0.5, 0.1\)"),
        (lambda: localisation.aup_aur(ONE, BOX, (0.0, 0.5)), r"lie in \(0, 1\], at least one"),
        (lambda: localisation.aup_aur(0 * ONE, BOX), "of all 2 samples are the same everywhere"),
        (lambda: localisation.above_random(ONE, BOX, draws=0), "at least one draw, got 0"),
        (lambda: distribution.gradient_distribution(ONE[:0]), r"samples .* wanted, got \(0, 3, 4"),
        (lambda: distribution.gradient_distribution(ONE / 0), "NaN or infinite: no distribution"),
        (
            lambda: distribution.gradient_distribution(ONE, BOX[:, :1]),
            r"of the gradient's shape \(2, 3, 4\), got torch.bool of \(2, 1, 4\)",
        ),
        (lambda: distribution.object_of(ONE), r"in images \[N, C, H, W\], got \(2, 3, 4\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()
