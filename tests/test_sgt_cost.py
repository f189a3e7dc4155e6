"""What a step costs, and what the study of the cost of guided training concludes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attrain.guided import SaliencyGuided
from attrain.metrics.cost import cpu_time, interleaved, saved_at_once
from attrain.models import build
from attrain.studies.graph_subjects import images
from attrain.studies.guided_subjects import GUIDED, REGULAR
from attrain.studies.sgt_cost import (
    EXACT,
    FAST,
    HAND,
    KEPT,
    PLAIN,
    SHARED,
    STUDY,
    Converged,
    _held_out,
    by_hand,
    conclude,
    converged,
    findings,
    measure_steps,
    quartiles,
    reached,
)
from attrain.studies.verdicts import no_worse, told, verdict

# Time and memory ----------------------------------------------------------------------------------


def test_what_is_held_at_once_is_the_most_at_any_time_and_not_the_sum() -> None:
    layer = nn.Linear(10, 5, bias=False)
    x, z = torch.randn(7, 10), torch.randn(70, 10)

    def one_after_the_other() -> None:
        layer(x).square().sum().backward()
        layer(z).square().sum().backward()

    def both() -> None:
        (layer(x).square().sum() + layer(z).square().sum()).backward()

    # The input, and the output that is squared; no weight.
    alone = {len(each): 4 * len(each) * (10 + 5) for each in (x, z)}
    assert saved_at_once(lambda: layer(x).square().sum().backward()) == alone[7]
    assert saved_at_once(one_after_the_other) == alone[70]
    assert saved_at_once(both) == alone[7] + alone[70]


def test_rounds_take_every_step_alike_and_begin_with_another_one_each_time() -> None:
    taken: list[str] = []
    steps = {name: lambda name=name: taken.append(name) for name in "abc"}
    times = interleaved(steps, 3, repeats=2)
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(second >= 0 for each in times.values() for second in each)
    assert "".join(taken) == "abcabc" + "aabbcc" + "bbccaa" + "ccaabb"


def test_the_time_of_steps_is_that_of_all_of_them() -> None:
    taken: list[int] = []
    assert cpu_time(lambda: taken.append(sum(range(100_000))), 5) > 0
    assert len(taken) == 5


# Conclusions --------------------------------------------------------------------------------------

CONFIG = replace(STUDY.budgets["smoke"], steps={"net": ("mlp", (4, 1, 8, 8))}, seeds=3)


def steps(**forms: float) -> dict:
    """Return a row of five rounds in which a plain step takes 1, 2, ... seconds."""
    rounds = [1.0, 2.0, 3.0, 4.0, 5.0]
    seconds = {PLAIN: rounds}
    for name, ratio in forms.items():
        name = {"kept": KEPT, "hand": HAND}.get(name, name)
        seconds[name] = [(ratio + 0.01 * index) * each for index, each in enumerate(rounds)]
    saved = {PLAIN: 10, HAND: 20, EXACT: 20, SHARED: 20, FAST: 11, KEPT: 20}
    held = {name: each + 10 for name, each in saved.items()}
    return {"steps, net": {"seconds": seconds, "saved": saved, "held": held}}


def curve(best: int, epochs: int = 12) -> list[float]:
    """Return accuracies that rise until the epoch `best`, and then fall."""
    return [0.9 - 0.05 * abs(best - epoch) for epoch in range(1, epochs + 1)]


def results(late: int = 2, shared: float = 0.0, guided: float = -0.05) -> dict:
    found = steps(hand=2.9, exact=2.6, shared=2.5, fast=2.1, kept=2.3)
    for seed in range(3):
        noise = 1e-3 * seed
        found[f"convergence, {REGULAR}, seed {seed}"] = {"accuracy": curve(4 + seed % 2)}
        found[f"convergence, {GUIDED}, seed {seed}"] = {"accuracy": curve(4 + late + seed % 2)}
        areas = {REGULAR: 0.3, EXACT: 0.3 + guided, SHARED: 0.3 + guided + shared, FAST: 0.24}
        for form, area in areas.items():
            found[f"quality, {form}, seed {seed}"] = {
                "accuracy": 0.95 - (shared if form == SHARED else 0) - noise,
                "area": area + (noise if form == EXACT else 0),
            }
    return found


def holds(given: dict, tmp_path) -> dict[str, object]:
    return {each["claim"]: each["holds"] for each in conclude(CONFIG, given, tmp_path).claims}


def test_what_holds_in_the_paper_is_told(tmp_path) -> None:
    found = holds(results(), tmp_path)
    assert len(found) == 11 and set(found.values()) == {True}


def test_a_form_that_is_worse_than_its_margin_and_one_that_may_be_are_told(tmp_path) -> None:
    worse = [value for name, value in holds(results(shared=0.04), tmp_path).items()
             if name.startswith("The shared")]  # fmt: skip
    assert worse == [False, False]
    found = results()
    found[f"quality, {SHARED}, seed 0"]["accuracy"] = 0.9
    assert "unclear" in holds(found, tmp_path).values()


def test_fewer_epochs_and_a_larger_area_contradict_the_paper(tmp_path) -> None:
    found = holds(results(late=-2, guided=0.05), tmp_path)
    assert found["Guided training takes more epochs to converge"] is False
    assert found["Guided training (exact) lowers the area under the accuracy drop"] is False
    same = holds(results(late=0), tmp_path)
    assert same["Guided training takes more epochs to converge"] == "unclear"


def test_ratios_are_of_one_round(tmp_path) -> None:
    found = findings(CONFIG, results())
    assert found.ratios["net", EXACT] == pytest.approx([2.60, 2.61, 2.62, 2.63, 2.64])
    assert found.memory["net", FAST] == pytest.approx((1.1, 21 / 20))
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.0, 2.5) and quartiles([4.0]) == (4.0, 4.0, 4.0)


def test_patience_ends_a_training_at_its_best_epoch() -> None:
    later = [0.1, 0.5, 0.5, 0.4, 0.9]
    assert converged(later, 2) == Converged(2, True)  # an equal accuracy is no new best
    assert converged(later, 3) == Converged(5, False)
    assert converged([0.3], 1) == Converged(1, False)
    assert [reached(later, level) for level in (0.1, 0.2, 0.9)] == [1, 2, 5]


def test_held_out_samples_follow_those_that_are_trained_on() -> None:
    data = images("digits")
    found = _held_out(data, 300, 100)
    assert len(found.train) == 300 and len(found.test) == 100
    assert torch.equal(found.test.tensors[0], data.train.tensors[0][300:400])


def test_algorithm_1_by_hand_is_the_loss_of_the_exact_form() -> None:
    model, data = build("mnist-cnn", (1, 8, 8), 10, seed=0), images("digits")
    x, y = (each[:5] for each in data.train.tensors)
    losses = []
    for loss in (by_hand, lambda model, x, y: SaliencyGuided(model, F.cross_entropy)(x, y)):
        torch.manual_seed(0)
        losses.append(loss(model.train(), x, y))
    torch.testing.assert_close(*losses)
    assert model.training


def test_every_form_makes_a_step_and_holds_what_the_design_says() -> None:
    found = measure_steps(CONFIG, "net")
    assert set(found["seconds"]) == set(found["saved"]) == {PLAIN, HAND, EXACT, SHARED, FAST, KEPT}
    assert found["saved"][EXACT] > 1.5 * found["saved"][PLAIN]
    assert all(found["held"][name] > saved for name, saved in found["saved"].items())


# Verdicts -----------------------------------------------------------------------------------------


def gap(mean: float, low: float | None, high: float | None) -> dict:
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return {"mean": mean, "low": low, "high": high, "n": 5, "clear": clear}


def test_a_verdict_needs_an_interval_without_zero() -> None:
    assert verdict(gap(1, 0.5, 1.5)) is True and verdict(gap(1, 0.5, 1.5), -1) is False
    assert verdict(gap(1, -0.5, 2.5)) == verdict(gap(1, None, None)) == "unclear"


def test_no_worse_needs_the_whole_interval_within_the_margin() -> None:
    assert no_worse(gap(-0.1, -0.4, 0.2), 0.5) is True
    assert no_worse(gap(-1, -1.4, -0.6), 0.5) is False
    assert no_worse(gap(-0.5, -1, 0), 0.5) == no_worse(gap(0, None, None), 0.5) == "unclear"
    assert no_worse(gap(1, 0.6, 1.4), 0.5, higher_is_better=False) is False
    assert no_worse(gap(-1, -1.4, -0.6), 0.5, higher_is_better=False) is True


def test_differences_are_told_with_their_interval() -> None:
    assert told(gap(0.021, 0.01, 0.032), scale=100, digits=1, unit="points") == (
        "+2.1 points (+1.0 to +3.2, 5 seeds)"
    )
    assert told(gap(1, None, None), of="rounds") == "+1.00, one round"
    assert told({"mean": None, "n": 3}) == "undefined in one of 3 seeds"
