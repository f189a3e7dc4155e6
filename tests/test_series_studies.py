"""Studies of guided training on time series: when training ends, and what they conclude."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.data import Data, load
from attrain.guided import SaliencyGuided
from attrain.studies import series_measures, series_subjects, sgt_fig5, sgt_fig6, sgt_table2
from attrain.studies.guided_subjects import ARMS, GUIDED, RANDOM, REGULAR, SALIENCIES, UNMASKED
from attrain.studies.series_measures import ALL, FEATURES, explained, located
from attrain.studies.series_subjects import Stop, fit
from attrain.studies.sgt_table2 import BENCHMARK, LONG, PAPER, Case, Config, Network


@pytest.fixture(scope="module")
def few() -> Data:
    data = load("series:middle-gaussian", validation=0.1)
    parts = {
        name: TensorDataset(*(each[:20] for each in getattr(data, name).tensors))
        for name in ("train", "validation", "test")
    }
    return replace(data, **parts)


class Flat(nn.Sequential):
    """A linear model of series."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(2500, 2))


# When training ends -------------------------------------------------------------------------------


def trained(
    data: Data, stop: Stop, seen: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[Tensor], Tensor]:
    """Train while the validation accuracies are those of a list: epochs, weights at each look."""
    weights: list[Tensor] = []
    told = iter([*seen, *[0.5] * 99])

    def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
        weights.append(model.state_dict()["1.weight"].clone())
        return next(told)

    monkeypatch.setattr(series_subjects, "accuracy", accuracy)
    found = fit(Flat(), data, REGULAR, stop, seed=0)
    assert not found.model.training
    # The last two looks are at what is returned.
    return found.epochs, weights[:-2], weights[-1]


@pytest.mark.parametrize(
    ("seen", "epochs"),
    [
        ([1.0], 3),
        ([0.9, 0.989, 0.99], 9),
        ([0.6, 0.5, 0.6, 0.6], 9),  # no rise in the six epochs after the third
        ([0.5, 0.6, 0.6, 0.7, 0.7, 0.7], 18),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.96], 20),  # the last epoch is no third one
    ],
)
def test_training_stops_at_the_accuracy_or_when_it_does_not_rise(few, monkeypatch, seen, epochs):
    stop = Stop(accuracy=0.99, every=3, epochs=20, patience=6)
    assert trained(few, stop, seen, monkeypatch)[0] == epochs


def test_the_weights_are_those_of_the_latest_best_or_the_last(few, monkeypatch):
    stop = Stop(epochs=12, patience=50)
    seen = [0.6, 0.8, 0.8, 0.7]
    _, weights, kept = trained(few, stop, seen, monkeypatch)
    assert torch.equal(kept, weights[2]) and not torch.equal(kept, weights[3])
    _, weights, kept = trained(few, replace(stop, keep_best=False), seen, monkeypatch)
    assert torch.equal(kept, weights[3])


def test_an_accuracy_above_one_is_never_reached(few):
    stop = Stop(accuracy=2.0, every=1, epochs=4, patience=4)
    found = fit(Flat(), few, GUIDED, stop, seed=0)
    assert found.epochs == 4 and 0 <= found.test <= 1


def test_training_twice_gives_equal_weights_and_arms_differ(few):
    stop = Stop(epochs=2)

    def weights(arm: str, fraction: float = 0.5) -> Tensor:
        torch.manual_seed(0)
        model = Flat()
        return fit(model, few, arm, stop, 0, fraction).model.state_dict()["1.weight"]

    known = {arm: weights(arm) for arm in (REGULAR, GUIDED, RANDOM)}
    assert torch.equal(weights(GUIDED), known[GUIDED])
    each = [*known.values(), weights(GUIDED, 0.1)]
    assert all(not torch.equal(a, b) for n, a in enumerate(each) for b in each[:n])


def test_an_arm_masks_single_entries_of_series(few):
    step = series_subjects.loss_of(Flat(), RANDOM, 0.25)
    assert isinstance(step, SaliencyGuided)
    assert (step.data, step.fraction, step.order) == ("series", 0.25, "random")
    assert step.step(*few.train.tensors).drop.flatten(1).sum(1).tolist() == [625] * 20
    plain = series_subjects.loss_of(Flat(), REGULAR, 0.25)
    assert ARMS[REGULAR] is None and not isinstance(plain, SaliencyGuided)


# Where saliency is --------------------------------------------------------------------------------


def test_saliency_in_the_box_alone_is_far_above_both_references(few):
    box = few.evidence["test"][:20]
    values = torch.rand(box.shape, generator=torch.Generator().manual_seed(0)) * box
    found = located(values, box)
    assert set(found) == {"measured", FEATURES, ALL}
    assert found["measured"][0] == pytest.approx(0.8)
    for reference in (FEATURES, ALL):
        assert 0.2 < found[reference][0] < 0.6 * found["measured"][0] + 0.1


def test_what_a_linear_model_is_explained_by_adds_up(few):
    model = Flat().eval()
    x, y = few.test.tensors
    known = few.train.tensors[0]
    for title, base in (
        ("integrated gradients", known.mean(0, keepdim=True)),
        ("DeepLIFT", known.mean(0, keepdim=True)),
        ("DeepSHAP", known[:5].mean(0, keepdim=True)),
    ):
        values, missed = explained(model, few, x, y, title)
        weight = model[1].weight[y].reshape(x.shape)
        torch.testing.assert_close(values, (weight * (x - base)).detach(), atol=1e-5, rtol=1e-4)
        assert missed == pytest.approx(0, abs=1e-3)
    for title in ("gradient", "SmoothGrad"):
        assert explained(model, few, x[:2], y[:2], title)[1] is None


def test_every_method_is_measured(few):
    found = series_measures.measure(Flat().eval(), few, 2)
    assert list(found) == list(SALIENCIES) and set(SALIENCIES) == set(sgt_table2.TITLES)


# Table 2 ------------------------------------------------------------------------------------------

SMALL = Config(
    networks=(
        Network("lstm", 3, seeds=1, long_seeds=0, controls=()),
        Network("tcn", 3, long_seeds=3, controls=(RANDOM,)),
        Network("transformer", 3, long_seeds=0, controls=()),
    ),
    boxes=("middle", "rare-time", "rare-feature"),
    repeated=("middle", "rare-time"),
)


def made_up(case: Case, gains: dict[str, float], unlearned: tuple[str, ...] = ()) -> dict:
    """Return a row in which an arm adds its gain to AUP and takes it from AUR."""
    place = SMALL.boxes.index(case.box)
    gain = gains.get(case.arm, 0.0) * (1 + 0.02 * place + 0.02 * case.seed)
    gain *= 0.1 if case.regime == LONG else 1.0
    best = 0.2 if case.model == "tcn" else 0.0
    found = {}
    for title in SALIENCIES:
        high = best + (0.05 if title == "integrated gradients" else 0.0)
        own = [0.3 + high + gain, 0.4 + high - gain]
        found[title] = {"measured": own, FEATURES: [0.25, 0.4], ALL: [0.2, 0.4], "error": None}
    bad = f"{case.model} {case.box}" in unlearned
    return {"epochs": 3, "validation": 0.7 if bad else 0.99, "test": 0.9, "methods": found}


def concluded(tmp_path: Path, gains: dict[str, float], unlearned: tuple[str, ...] = ()) -> Any:
    results = {case.name: made_up(case, gains, unlearned) for case in sgt_table2.cases(SMALL)}
    found = sgt_table2.conclude(SMALL, results, tmp_path)
    assert all(figure.is_file() for figure in found.figures)
    return found


def held(found: Any, *words: str) -> list[Any]:
    claims = [each for each in found.claims if all(word in each["claim"] for word in words)]
    assert claims
    return [each["holds"] for each in claims]


def test_every_network_is_a_row_once():
    cases = sgt_table2.cases(Config())
    assert len(cases) == len({case.name for case in cases})
    for model in sgt_table2.MODELS:
        own = [case for case in cases if case.model == model]
        assert {case.seed for case in own if case.box == "rare-time"} == {0, 1, 2}
        assert {case.arm for case in own} == {REGULAR, GUIDED, RANDOM, UNMASKED}
        assert sum(case.regime == LONG for case in own) == 2
    pairs = [(case.model, case.box) for case in cases if case.regime == BENCHMARK]
    assert len(set(pairs)) == 40
    small = sgt_table2.cases(SMALL)
    assert sum(case.regime == LONG for case in small) == 6
    assert {case.box for case in small if case.arm == RANDOM} == {"middle", "rare-time"}


def test_the_paper_s_table_is_whole():
    assert len(PAPER) == 16 and {len(each) for each in PAPER.values()} == {6}
    assert PAPER["AUP", "tcn", GUIDED][1] == max(max(v) for k, v in PAPER.items() if k[0] == "AUP")
    assert PAPER["AUR", "tcn", GUIDED][1] == max(max(v) for k, v in PAPER.items() if k[0] == "AUR")


def test_a_gain_of_the_guided_holds_where_the_paper_has_one(tmp_path):
    found = concluded(tmp_path, {GUIDED: 0.1, RANDOM: 0.02})
    assert held(found, "raises the AUP of TCN", "six methods") == [True]
    assert held(found, "raises the AUR of TCN", "six methods") == [False]
    assert held(found, "raises the AUP of TCN", "over seeds") == [True]
    assert held(found, "lowers the AUP of Transformer") == [False, False]
    assert held(found, "lowers the AUR of Transformer") == [True, True]
    assert held(found, "best AUP") == [True]
    assert held(found, "best AUR") == [False]  # regular training has it
    assert held(found, "By AUP", "masking at random") == [True]
    assert held(found, "raises the AUP", "does not stop early") == [True]
    assert held(found, "adds to the AUP shrinks") == [True]
    assert held(found, "adds to the AUR shrinks") == [False]
    line = next(each for each in found.rows if each["name"] == "Diff(AUP), TCN, gradient, guided")
    assert line["paper"] == 0.168
    assert line["ours"]["values"] == pytest.approx([0.35, 0.352, 0.354])


def test_no_difference_is_unclear(tmp_path):
    found = concluded(tmp_path, {})
    assert set(held(found, "six methods") + held(found, "over seeds")) == {"unclear"}


def test_a_box_that_was_not_learned_does_not_count(tmp_path):
    found = concluded(tmp_path, {GUIDED: 0.1}, ("tcn rare-feature",))
    names = {each["name"]: each["ours"] for each in found.rows}
    assert names["Diff(AUP), TCN, gradient, guided"]["n"] == 2
    assert names["TCN: boxes that both networks learned"]["values"] == [1, 1, 0]
    assert names["AUP, TCN: guided minus regular, all boxes"]["n"] == 3
    none = tuple(f"{model} {box}" for model in sgt_table2.MODELS for box in SMALL.boxes)
    found = concluded(tmp_path, {GUIDED: 0.1}, none)
    assert set(held(found, "six methods") + held(found, "best")) == {"unclear"}


# Figures 5 and 6 ----------------------------------------------------------------------------------


def vanishing(early: float, spread: float) -> dict:
    """Return rows of a regular LSTM that is blind to an early box and a guided one that is less."""
    config = sgt_fig6.Config(seeds=3)
    found = {}
    for row in sgt_fig6.rows(config):
        place, arm, seed = row.name.split(", ")
        number = int(seed.removeprefix("seed "))
        own = {"early": 0.0, "middle": 0.2, "late": 0.6}[place] + 0.01 * number
        if arm == GUIDED and place == "early":
            own += early + spread * (number - 1)
        area = {"measured": [own, own], FEATURES: [0.2, 0.2], ALL: [0.2, 0.2], "time": [0.01] * 100}
        found[row.name] = {"test": 0.9, "methods": dict.fromkeys(sgt_fig6.METHODS, area)}
    return found


@pytest.mark.parametrize(
    ("early", "spread", "holds"), [(0.3, 0.01, True), (-0.3, 0.01, False), (0.1, 0.5, "unclear")]
)
def test_figure_6_by_given_areas(tmp_path, early, spread, holds):
    found = sgt_fig6.conclude(sgt_fig6.Config(seeds=3), vanishing(early, spread), tmp_path)
    assert held(found, "A regularly trained LSTM") == [True, True]
    assert held(found, "depend less") == [holds] * 2
    assert held(found, "an early box") == [holds] * 2
    assert found.figures[0].is_file()


def test_figure_6_is_unclear_where_a_box_was_not_learned(tmp_path):
    results = vanishing(0.3, 0.01)
    results["early, guided, seed 1"]["test"] = 0.5
    found = sgt_fig6.conclude(sgt_fig6.Config(seeds=3), results, tmp_path)
    assert {each["holds"] for each in found.claims} == {"unclear"}


def digits(gain: float) -> dict:
    config = sgt_fig5.Config(models=("tcn",), epochs=(1,), seeds=3)
    found = {}
    for row in sgt_fig5.rows(config):
        _, arm, seed = row.name.split(", ")
        value = 0.4 + 0.01 * int(seed.removeprefix("seed ")) + gain * (arm == GUIDED)
        picture = [[[0.0, 1.0], [0.5, 0.2]]] * 2
        found[row.name] = {
            "test": 0.9,
            "ink": 0.2,
            "methods": {title: {"ink": value, "gini": 0.5} for title in SALIENCIES},
            "maps": dict.fromkeys(SALIENCIES, picture),
            "pictures": picture,
        }
    return found


def test_figure_5_by_given_shares(tmp_path):
    config = sgt_fig5.Config(models=("tcn",), epochs=(1,), seeds=3)
    conclude = partial(sgt_fig5.conclude, config, out=tmp_path)
    assert held(conclude(digits(0.1)), "on the digit") == [True]
    assert held(conclude(digits(-0.1)), "on the digit") == [False]
    assert held(conclude(digits(0.1)), "sparser") == ["unclear"]
    assert all(figure.is_file() for figure in conclude(digits(0.0)).figures)
