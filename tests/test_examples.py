"""The examples learn: a short form of each, and the figures that their page tells."""

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")
# By how much the short form of a learner is ahead of its baseline, at least (one seed).
LEADS = {
    "bandit": 0.3,
    "binary_weights": 0.3,
    "int8": 0.3,
    "macro_f1": 0.3,
    "no_derivatives": 0.03,
    "simulator": 15.0,
    "spiking_macro_f1": 0.3,
    "step_activations": 0.15,
    "transcription": 0.1,
}
PAGE = ROOT / "docs" / "how-to" / "objectives-without-derivatives.md"
RESULTS = ROOT / "docs" / "results" / "no-derivatives.md"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def example(name: str) -> ModuleType:
    """Import an example as it is when it is run: beside the others."""
    if "spiking" in name:
        pytest.importorskip("snntorch")
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def test_every_example_has_a_lead_and_a_place_in_the_documents() -> None:
    assert sorted(LEADS) == NAMES
    for page in (PAGE, RESULTS):
        told = set(re.findall(r"python examples/(\w+)\.py", page.read_text()))
        assert told == set(NAMES), page.name


@pytest.mark.parametrize("name", NAMES)
def test_the_short_form_learns(name: str) -> None:
    comparison = example(name).COMPARISON
    reached = {
        method: comparison.run(method, comparison.rates[method] or 0.0, 0, False, True)
        for method in (comparison.learner, comparison.baseline)
    }
    assert reached[comparison.learner] > reached[comparison.baseline] + LEADS[name], reached


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_interval_of_three_seeds_is_above_that_of_the_baseline(name: str) -> None:
    module = example(name)
    comparison = module.COMPARISON
    values = {
        method: [
            comparison.run(method, comparison.rates[method] or 0.0, seed, False, False)
            for seed in range(3)
        ]
        for method in (comparison.learner, comparison.baseline)
    }
    interval = example("common").interval
    assert interval(values[comparison.learner])[0] > interval(values[comparison.baseline])[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_other_method_of_an_example_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example(name)
    comparison = module.COMPARISON
    if hasattr(module, "fit"):
        original = module.fit

        def fit(*args: object, **options: object) -> None:
            original(*args, **options | {"epochs": 1})

        monkeypatch.setattr(module, "fit", fit)
    others = set(comparison.rates) - {comparison.learner, comparison.baseline}
    for method in others:
        rate = comparison.rates[method]
        assert np.isfinite(comparison.run(method, rate or 0.0, 0, True, True)), method


def test_the_table_says_whether_the_learner_is_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    common = example("common")

    def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
        return {"still": 0.1, "good": 0.9, "bad": 0.11}[method] + 0.01 * seed + 0.1 * rate

    for learner, verdict in (("good", "is above"), ("bad", "is NOT above")):
        comparison = common.Comparison(
            "Nothing", "score", run, {"still": None, learner: 0.1}, learner, "still", (0.1, 0.3)
        )
        values = common.main(comparison, ["--seeds", "3"])
        assert values["still"] == pytest.approx([0.1, 0.11, 0.12])
        told = capsys.readouterr().out
        assert f"{learner}: its interval {verdict} that of still" in told
        assert "0.110 (0.085 to 0.135)" in told
        common.main(comparison, ["--seeds", "1", "--short"])
        assert "one seed has no interval" in capsys.readouterr().out
        assert common.main(comparison, ["--tune"]) == {}
        told = capsys.readouterr().out
        assert "best 0.3" in told and "still" not in told
        with pytest.raises(SystemExit):
            common.main(comparison, ["--seeds", "0"])
        assert "--seeds is 0: at least one is needed" in capsys.readouterr().err


def test_an_example_runs_from_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EXAMPLES / "int8.py"
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [str(path), "--short", "--seeds", "2", "--bits", "3"])
    runpy.run_path(str(path), run_name="__main__")
    told = capsys.readouterr().out
    assert "weights and activations of 3 bits" in told
    assert "LFP, beta 0" in told
    assert "LFP: its interval is" in told
    monkeypatch.setattr(sys, "argv", [str(path), "--bits", "1"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert "argument --bits: invalid choice: 1" in capsys.readouterr().err


def test_gains_are_those_of_scikit_learn_for_each_other_answer() -> None:
    module = example("macro_f1")
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (20,), generator=generator)
    predicted = torch.randint(4, (20,), generator=generator)

    def score(answers: torch.Tensor) -> float:
        return float(f1_score(y, answers, labels=range(4), average="macro", zero_division=0))

    now = score(predicted)
    assert module.macro_f1(predicted, y, 4) == pytest.approx(now)
    gains = module.gains(predicted, y, 4)
    for n in range(20):
        for c in range(4):
            other = predicted.clone()
            other[n] = c
            assert float(gains[n, c]) == pytest.approx(score(other) - now, abs=1e-6)


TEXTS = st.text(alphabet="012", max_size=6)


@given(TEXTS, TEXTS, TEXTS)
def test_the_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    distance = example("transcription").levenshtein
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert distance(a + c, b + c) <= distance(a, b)


def test_edit_distances_that_are_known() -> None:
    distance = example("transcription").levenshtein
    assert distance("kitten", "sitting") == 3
    assert distance("", "123") == 3
    assert distance("1234", "234") == 1


def test_the_cart_is_pushed_where_it_should_go_and_poles_fall() -> None:
    module = example("simulator")
    torch.manual_seed(0)
    carts = module.CartPole(2)
    carts.state.zero_()
    up = carts.push(torch.tensor([0, 1]))
    assert up.all()
    place, speed, angle, turning = carts.push(torch.tensor([0, 1])) * 0 + carts.state.T
    assert speed[0] < 0 < speed[1] and turning[0] > 0 > turning[1]
    torch.testing.assert_close(carts.state[0], -carts.state[1])  # the mirror image
    for _ in range(60):
        up = carts.push(torch.tensor([0, 1]))
    assert not up.any()


def test_int8_has_255_steps_and_binary_weights_two() -> None:
    z = torch.linspace(-1, 1, 10_001)
    assert len(example("int8").rounded(z, 8).unique()) == 255
    assert len(example("int8").rounded(z, 3).unique()) == 7
    assert len(example("binary_weights").signs(torch.randn(8, 16)).unique()) == 2
