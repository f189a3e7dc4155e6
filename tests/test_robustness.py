"""Noise and attacks: against loops, by hand, and that the attacks do what attacks do."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attrain.data import load
from attrain.errors import InputError
from attrain.metrics import attacks, robustness
from attrain.metrics.batches import in_batches

small = st.integers(0, 10_000)


def network(seed: int, features: int = 6, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes)).double().eval()


def batch(seed: int, count: int = 5, features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=generator)


# Twins with loops ---------------------------------------------------------------------------------


def slow_slope(model, x, y) -> tuple[list[float], float, bool]:
    """Return the gradient of one sample's loss, the loss, and whether the answer is wrong."""
    point = x.clone().requires_grad_()
    out = model(point[None])[0]
    loss = out.logsumexp(0) - out[y]
    (slope,) = torch.autograd.grad(loss, point)
    return slope.tolist(), float(loss.detach()), int(out.argmax()) != int(y)


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def slow_fgsm(model, x, y, epsilon, low, high) -> list[float]:
    slope, _, _ = slow_slope(model, x, y)
    moved = [v + e * sign(g) for v, e, g in zip(x.tolist(), epsilon, slope, strict=True)]
    return [min(max(v, low), high) for v in moved]


def slow_pgd(model, x, y, epsilon, low, high, steps, starts) -> list[float]:
    values = x.tolist()
    floor = [max(v - e, low) for v, e in zip(values, epsilon, strict=True)]
    ceiling = [min(v + e, high) for v, e in zip(values, epsilon, strict=True)]
    worst = slow_fgsm(model, x, y, epsilon, low, high)
    _, loss, wrong = slow_slope(model, torch.tensor(worst, dtype=torch.float64), y)
    key = (wrong, loss)
    for start in starts:
        point = [a + s * (b - a) for a, b, s in zip(floor, ceiling, start.tolist(), strict=True)]
        for step in range(steps + 1):
            slope, loss, wrong = slow_slope(model, torch.tensor(point, dtype=torch.float64), y)
            if (wrong, loss) > key:
                worst, key = point, (wrong, loss)
            if step < steps:
                point = [
                    min(max(v + 2.5 * e / steps * sign(g), a), b)
                    for v, e, g, a, b in zip(point, epsilon, slope, floor, ceiling, strict=True)
                ]
    return worst


@settings(deadline=None, max_examples=15)
@given(small, st.integers(1, 4))
def test_attacks_equal_their_twins(seed, batch_size):
    model, (x, y) = network(seed), batch(seed)
    epsilon = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 4
    found = attacks.fgsm(model, x, y, epsilon, 0.0, 1.0, batch_size=batch_size)
    wanted = [slow_fgsm(model, *pair, epsilon.tolist(), 0, 1) for pair in zip(x, y, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    given_ = {"steps": 4, "restarts": 2, "seed": seed, "batch_size": batch_size}
    found = attacks.pgd(model, x, y, epsilon, 0.0, 1.0, **given_)
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.rand(x.shape, generator=generator, dtype=x.dtype) for _ in range(2)]
    for n in range(len(x)):
        worst = slow_pgd(
            model, x[n], y[n], epsilon.tolist(), 0.0, 1.0, 4, [each[n] for each in starts]
        )
        torch.testing.assert_close(found[n], torch.tensor(worst, dtype=torch.float64))


@settings(deadline=None, max_examples=15)
@given(small)
def test_curves_equal_their_twins(seed):
    model, (x, y) = network(seed), batch(seed, 8)
    sizes = (0.0, 0.1, 0.4)
    found = robustness.noise_curve(
        model, x, y, 2.0, 0.0, 1.0, sigmas=sizes, draws=2, seed=seed, batch_size=3
    )
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2)]
    right = [int(model(x[n : n + 1]).argmax()) == int(y[n]) for n in range(8)]
    for row, size in enumerate(sizes):
        hits = [0.0] * 8
        for n in range(8):
            for draw in noise:
                values = [
                    min(max(v + size * 2 * e, 0.0), 1.0)
                    for v, e in zip(x[n].tolist(), draw[n].tolist(), strict=True)
                ]
                point = torch.tensor([values], dtype=torch.float64)
                hits[n] += (int(model(point).argmax()) == int(y[n])) / 2
        assert found.overall[row] == pytest.approx(sum(hits) / 8)
        if any(right):
            kept = [hit for hit, ok in zip(hits, right, strict=True) if ok]
            assert found.of_correct[row] == pytest.approx(sum(kept) / len(kept))

    def attack(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        return attacks.fgsm(model, x, y, epsilon, 0.0, 1.0)

    for nested in (False, True):
        found = robustness.attack_curve(
            model, x, y, 0.5, attack, epsilons=sizes, nested=nested, batch_size=3
        )
        standing = list(right)
        for row, size in enumerate(sizes):
            standing = standing if nested else list(right)
            for n in range(8):
                if standing[n] and size:
                    point = slow_fgsm(model, x[n], y[n], [0.5 * size] * 6, 0.0, 1.0)
                    changed = torch.tensor([point], dtype=torch.float64)
                    standing[n] = int(model(changed).argmax()) == int(y[n])
            assert found.overall[row] == pytest.approx(sum(standing) / 8)
            if any(right):
                assert found.of_correct[row] == pytest.approx(sum(standing) / sum(right))


# By hand ------------------------------------------------------------------------------------------


def line(x: Tensor) -> Tensor:
    """Return scores of two classes: 3 x0 - x1 for the first, 0 for the second."""
    score = 3 * x[:, 0] - x[:, 1]
    return torch.stack([score, torch.zeros_like(score)], 1)


def test_attacks_on_a_line_as_by_hand():
    x, y = torch.tensor([[0.5, 0.5], [0.02, 0.5]]), torch.tensor([0, 1])
    # The worst change of the first is down in x0 and up in x1; of the second the other way round.
    wanted = torch.tensor([[0.3, 0.7], [0.22, 0.3]])
    torch.testing.assert_close(attacks.fgsm(line, x, y, 0.2, 0.0, 1.0), wanted)
    torch.testing.assert_close(attacks.pgd(line, x, y, 0.2, 0.0, 1.0), wanted)
    cut = attacks.fgsm(line, x, y, 0.9, 0.0, 1.0)
    torch.testing.assert_close(cut, torch.tensor([[0.0, 1.0], [0.92, 0.0]]))
    # Both are right: scores 1 and -.44. An epsilon moves them by 4 epsilon, so they fall at .25 and
    # .11: at .11 exactly the tie goes to the first class.
    curve = robustness.attack_curve(
        line, x, y, 1.0, lambda x, y, e: attacks.fgsm(line, x, y, e, 0.0, 1.0),
        epsilons=(0.0, 0.1, 0.12, 0.24, 0.26),
    )  # fmt: skip
    assert curve.overall == [1.0, 1.0, 0.5, 0.5, 0.0] == curve.of_correct


def test_inputs_that_are_wrong_count_as_wrong_and_are_left_alone():
    x, y = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1])
    seen = []

    def attack(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    curve = robustness.attack_curve(line, x, y, 1.0, attack, epsilons=(0.0, 0.1))
    assert curve == ([0.5, 0.5], [1.0, 1.0]) and seen == [1]
    wrong = robustness.noise_curve(line, x[:1], y[1:], 1.0, 0.0, 1.0, sigmas=(0.0,))
    assert wrong.overall == [0.0] and math.isnan(wrong.of_correct[0])


# What an attack is --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A network on digits, its test images in normalised units, and their limits."""
    data = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x, y = data.train.tensors
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    low, high = (0 - data.mean) / data.std, (1 - data.mean) / data.std
    return model.eval(), *data.test.tensors, low, high


def test_changes_stay_within_epsilon_and_the_limits_and_raise_the_loss(trained):
    model, x, y, low, high = trained
    before = F.cross_entropy(model(x), y, reduction="none")
    for epsilon in (0.02, 0.1):
        width = epsilon * (high - low)
        one = attacks.fgsm(model, x, y, width, low, high)
        many = attacks.pgd(model, x, y, width, low, high, steps=10)
        for changed in (one, many):
            assert ((changed - x).abs() <= width + 1e-5).all()
            assert (changed >= low - 1e-5).all() and (changed <= high + 1e-5).all()
            after = F.cross_entropy(model(changed), y, reduction="none")
            assert after.mean() > before.mean()
            assert (after >= before - 1e-4).double().mean() > 0.95
        assert all(parameter.grad is None for parameter in model.parameters())


def test_many_steps_are_at_least_as_strong_as_one(trained):
    model, x, y, low, high = trained
    scale = high - low
    curves = {}
    for name, attack in (
        ("one", lambda x, y, e: attacks.fgsm(model, x, y, e, low, high)),
        ("many", lambda x, y, e: attacks.pgd(model, x, y, e, low, high, steps=20)),
        ("restarts", lambda x, y, e: attacks.pgd(model, x, y, e, low, high, steps=20, restarts=3)),
    ):
        curves[name] = robustness.attack_curve(
            model, x, y, scale, attack, nested=name != "one"
        ).overall
    for one, many, restarts in zip(*curves.values(), strict=True):
        assert restarts <= many <= one
    assert sum(curves["many"]) < sum(curves["one"])
    noise = robustness.noise_curve(model, x, y, scale, low, high, sigmas=robustness.EPSILONS)
    assert all(n >= o for n, o in zip(noise.overall, curves["one"], strict=True))


def test_nothing_changes_for_an_epsilon_of_zero(trained):
    model, x, y, low, high = trained
    assert torch.equal(attacks.fgsm(model, x, y, 0.0, low, high), x)
    assert torch.equal(attacks.pgd(model, x, y, 0.0, low, high), x)
    clean = float((model(x).argmax(1) == y).double().mean())

    def attack(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        return attacks.pgd(model, x, y, epsilon, low, high)

    curve = robustness.attack_curve(model, x, y, high - low, attack, epsilons=(0.0,))
    assert curve.overall == [pytest.approx(clean)] and curve.of_correct == [1.0]


def test_a_fragile_model_falls_to_nothing_and_a_constant_one_never():
    # Its answer hangs on the sum of a thousand values that are all within .01 of the boundary.
    x = 0.5 + 0.005 * torch.cat([torch.ones(20, 1000), -torch.ones(20, 1000)])
    y = torch.tensor([0] * 20 + [1] * 20)

    def fragile(x: Tensor) -> Tensor:
        score = (x - 0.5).sum(1)
        return torch.stack([score, -score], 1)

    def constant(x: Tensor) -> Tensor:
        return torch.stack([x.sum(1) * 0 + 1, x.sum(1) * 0], 1)

    for model, left in ((fragile, 0.0), (constant, 0.5)):
        for attack in (attacks.fgsm, attacks.pgd):
            curve = robustness.attack_curve(
                model, x, y, 1.0, lambda x, y, e, m=model, a=attack: a(m, x, y, e, 0.0, 1.0),
                epsilons=(0.0, 0.01),
            )  # fmt: skip
            assert curve.overall == [1.0 if model is fragile else 0.5, left]
    assert attacks.without_gradient(fragile, x, y) == 0.0
    assert attacks.without_gradient(constant, x, y) == 1.0


def test_a_sure_answer_still_has_a_slope():
    # At a margin of 150 the cross entropy and its gradient are 0 in single precision.
    x, y = torch.tensor([[50.0, 0.0]]), torch.tensor([0])
    assert attacks.without_gradient(line, x, y) == 0.0
    assert attacks.fgsm(line, x, y, 1.0, -99.0, 99.0).tolist() == [[49.0, 1.0]]


def test_batches_show_a_function_no_more_than_they_say():
    sizes = []

    def predict(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x * 2

    x = torch.arange(7.0)[:, None]
    assert torch.equal(in_batches(predict, 3)(x), x * 2) and sizes == [3, 3, 1]


# Mistakes -----------------------------------------------------------------------------------------

X, Y = torch.rand(3, 2), torch.zeros(3, dtype=torch.long)


def steps(x: Tensor) -> Tensor:
    """Return outputs that parameters have a gradient in, and inputs have not."""
    return (x > 0.5).float() @ torch.ones(2, 2, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: attacks.fgsm(line, X, Y[:2], 0.1, 0, 1), r"got 3 samples and labels .* \(2,\)"),
        (lambda: attacks.fgsm(line, X[:0], Y[:0], 0.1, 0, 1), "at least one sample: got 0"),
        (lambda: attacks.fgsm(line, X, Y, -0.1, 0, 1), "0 or more: the least given is -0.1"),
        (lambda: attacks.pgd(line, X, Y, math.nan, 0, 1), "epsilon is a finite size"),
        (lambda: attacks.pgd(line, X + 1, Y, 0.1, 0, 1), "give low and high in the units of x"),
        (lambda: attacks.pgd(line, X, Y, 0.1, 0, 1, steps=0), "at least 1, got 0 and 1"),
        (lambda: attacks.pgd(line, X, Y, 0.1, 0, 1, restarts=0), "at least 1, got 20 and 0"),
        (lambda: attacks.pgd(line, X, Y, 0.1, 0, 1, batch_size=0), "batch_size must be at least"),
        (lambda: attacks.fgsm(lambda x: x.detach(), X, Y, 0.1, 0, 1), "outputs have no gradient"),
        (lambda: attacks.pgd(steps, X, Y, 0.1, 0, 1), "no gradient in its inputs: an attack needs"),
        (
            lambda: attacks.fgsm(lambda x: x[:, :1], X, Y, 0.1, 0, 1),
            r"two or more classes and labels below C: got \(3, 1\), and labels from 0 to 0",
        ),
        (lambda: robustness.noise_curve(line, X, Y, 1, 0, 1, sigmas=(-1.0,)), "sigmas are 0 or m"),
        (lambda: robustness.noise_curve(line, X, Y, 1, 0, 1, draws=0), "at least one draw, got 0"),
        (
            lambda: robustness.attack_curve(line, X, Y, 1, attacks.fgsm, epsilons=(0.1, 0.0)),
            r"epsilons must rise, got \(0.1, 0.0\)",
        ),
        (lambda: attacks.pgd(line, X * math.nan, Y, 0.1, 0, 1), "3 of 3 samples have values that"),
        (lambda: attacks.fgsm(line, X.long(), Y, 1, 0, 1), "x is torch.int64: give x.float"),
        (lambda: attacks.fgsm(line, X, Y.float(), 0.1, 0, 1), "whole numbers, got torch.float32"),
        (
            lambda: attacks.fgsm(line, X, Y, torch.ones(3), 0, 1),
            r"epsilon has the shape \(3,\), and x \(3, 2\): give a number, or a tensor that",
        ),
        (lambda: robustness.noise_curve(line, X, Y, 1, 1, 0), "low is above high somewhere"),
        (lambda: robustness.noise_curve(line, X / 0, Y, 1, 0, 1), "3 of 3 samples have values"),
        (lambda: robustness.noise_curve(line, X, Y, math.nan, 0, 1), "NaN for 3 of 3 samples"),
        (lambda: robustness.noise_curve(line, X, Y + 2, 1, 0, 1), "labels go from 2 to 2"),
        (
            lambda: robustness.attack_curve(line, X, Y, 1, lambda x, y, epsilon: x[:1]),
            r"the attack turned inputs \(\d, 2\) into \(\d, 2\): it must return one of each",
        ),
        (lambda: in_batches(line, 4)(X[:0]), "zero samples: there is nothing to predict"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()
