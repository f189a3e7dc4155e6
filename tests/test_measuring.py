"""Measures of a trained model by name: what they find, and what they need."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_runs import small_data, small_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.attribution import attribute
from attrain.config import EXPLANATION_MEASURES
from attrain.errors import InputError
from attrain.measuring import JUDGED, MEASURES, Settings, Subject, judge, measure_explanations
from attrain.metrics import attacks, faithfulness, localisation, robustness, words
from attrain.recurrent_models import WordBiLSTM

SETTINGS = Settings(samples=20, steps=3, batch_size=7)


@pytest.fixture(scope="module")
def data():
    """Pictures in 0..1 that were normalised, so that the corner and the limits can be told."""
    raw = small_data(90)

    def normalised(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        return TensorDataset((x.sigmoid() - 0.5) / 0.25, y)

    box = torch.zeros(raw.test.tensors[0].shape, dtype=torch.bool)
    box[..., 1:3, :2] = True
    box[::5] = False  # some samples have none
    return dataclasses.replace(
        raw, train=normalised(raw.train), test=normalised(raw.test),
        mean=torch.full((1, 1, 1), 0.5), std=torch.full((1, 1, 1), 0.25),
        evidence={"test": box},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_model(1).train()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def measured(model, data, *names, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return measure_explanations(model, data, names, settings, progress=False)


def test_the_names_are_those_of_the_command_line():
    assert tuple(MEASURES) == EXPLANATION_MEASURES


def test_samples_are_drawn_with_the_seed_alike_for_all_models(model, data):
    of = [Subject(m, data, SETTINGS) for m in (model, small_model(2))]
    assert torch.equal(of[0].x, of[1].x) and len(of[0].x) == 20
    other = Subject(model, data, dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(of[0].x, other.x)
    assert len(Subject(model, data, Settings()).x) == len(data.test)


def test_the_model_stays_as_it_was(model, data):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(model, data, *MEASURES)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_accuracy_drop_is_by_the_corner_and_by_the_mean(model, data):
    found = measured(model, data, "accuracy_drop")["accuracy_drop"]
    of = Subject(model, data, SETTINGS)
    predicted = logits(model, of.x).argmax(1)
    order = attribute(model, of.x, predicted, method="saliency")
    random = [faithfulness.random_attribution(order, seed=draw) for draw in range(3)]
    for name, background in (
        ("corner", of.x[:, :, :1, :1]),
        ("mean", data.train.tensors[0].mean()),
    ):
        curve = found.curves["backgrounds"][name]
        drops = [
            faithfulness.accuracy_drop(lambda x: logits(model, x), of.x, of.y, each, background)
            for each in (order, *random)
        ]
        assert curve["accuracy"] == pytest.approx(drops[0])
        assert curve["random"] == pytest.approx(np.mean(drops[1:], axis=0).tolist())
    corner = found.curves["backgrounds"]["corner"]
    figures = found.figures
    assert figures["accuracy_drop"] == pytest.approx(faithfulness.area(corner["accuracy"]))
    assert figures["faithfulness"] == pytest.approx(
        figures["accuracy_drop_random"] - figures["accuracy_drop"]
    )


def test_attacks_are_measured_within_the_pixels(model, data):
    found = measured(model, data, "fgsm", "pgd", "noise")
    of = Subject(model, data, SETTINGS)
    low, high = of.limits
    assert torch.equal(low, torch.full((1, 4, 4), -2.0)) and torch.equal(high, -low)
    curve = robustness.attack_curve(
        lambda x: model.eval()(x), of.x, of.y, 4.0,
        lambda x, y, e: attacks.pgd(model, x, y, e, -2.0, 2.0, steps=3), batch_size=7,
    )  # fmt: skip
    assert found["pgd"].curves["overall"] == curve.overall
    assert found["pgd"].curves["of_correct"] == curve.of_correct
    assert found["pgd"].figures["pgd_accuracy"] == pytest.approx(
        faithfulness.area(curve.overall, robustness.EPSILONS)
    )
    for strong, weak in zip(
        found["pgd"].curves["overall"], found["fgsm"].curves["overall"], strict=True
    ):
        assert strong <= weak
    clean = float((logits(model, of.x).argmax(1) == of.y).double().mean())
    assert all(each.curves["overall"][0] == pytest.approx(clean) for each in found.values())


def test_other_features_have_the_limits_of_the_data(model, data):
    wide = dataclasses.replace(data, mean=torch.full((1, 1, 1), 5.0))
    low, high = Subject(model, wide, SETTINGS).limits
    x = torch.cat([data.train.tensors[0], data.test.tensors[0]])
    assert torch.equal(low, x.amin(0)) and torch.equal(high, x.amax(0))


def test_batches_change_nothing_but_memory(model, data):
    names = ("accuracy_drop", "comprehensiveness", "noise", "fgsm", "pgd")
    small, large = (measured(model, data, *names, batch_size=size) for size in (3, 100))
    for name in names:
        assert small[name].figures == pytest.approx(large[name].figures, abs=1e-6)


def test_every_measure_has_finite_figures_and_curves(model, data):
    found = measured(model, data, *MEASURES, method="gradient_shap", target="label")
    for each in found.values():
        assert each.figures and each.curves
        assert all(math.isfinite(value) for value in each.figures.values())
    assert [e["layer"] for e in found["model_randomisation"].curves["layers"]] == ["5", "1", "0"]


def test_a_run_is_judged_by_what_it_has(model, data):
    figures, parts = judge(model, data)
    assert tuple(figures) == JUDGED and None not in figures.values()
    assert parts["faithfulness"]["samples"] == parts["robustness"]["samples"] == 30
    assert parts["robustness"]["pgd"]["steps"] == 10
    assert parts["localisation"].keys() >= {"method", "target", "shares", "precision", "recall"}

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((x.flatten(1) > 0).float())

    figures, parts = judge(Steps(), data)
    assert [key for key, value in figures.items() if value is not None] == ["noise_accuracy"]
    assert parts.keys() == {"robustness"} and parts["robustness"].keys() == {"samples", "noise"}
    for name in ("accuracy_drop", "gradient_distribution", "model_randomisation", "fgsm", "pgd"):
        with pytest.raises(InputError, match="outputs have no gradient in its inputs"):
            measured(Steps(), data, name)
    assert measured(Steps(), data, "accuracy_drop", method="occlusion")

    flat = dataclasses.replace(
        data, evidence={}, input_shape=(2,), mean=torch.zeros(2), std=torch.ones(2),
        **{part: TensorDataset(getattr(data, part).tensors[0].flatten(1)[:, :2],
                               getattr(data, part).tensors[1]) for part in ("train", "test")},
    )  # fmt: skip
    figures, parts = judge(nn.Linear(2, 3), flat)
    assert figures["faithfulness"] is None and "faithfulness" not in parts
    assert figures["pgd_accuracy"] is not None
    with pytest.raises(InputError, match="'small' has 2, and at least 10 are needed"):
        measured(nn.Linear(2, 3), flat, "accuracy_drop")


def test_localisation_is_of_the_samples_with_evidence(model, data):
    found = measured(model, data, "localisation")["localisation"]
    of = Subject(model, data, SETTINGS)
    predicted = logits(model, of.x).argmax(1)
    told = of.evidence.flatten(1).any(1)
    values = attribute(model, of.x, predicted, method="saliency")[told]
    box = of.evidence[told]
    ours = localisation.aup_aur(values, box)
    assert found.figures["aup"] == pytest.approx(ours.precision)
    assert found.figures["aur"] == pytest.approx(ours.recall)
    for by, reference in (
        ("features", localisation.features_permuted),
        ("uniform", localisation.all_permuted),
    ):
        drawn = [localisation.aup_aur(reference(values, k), box) for k in range(3)]
        wanted = ours.precision - np.mean([each.precision for each in drawn])
        assert found.figures[f"aup_above_{by}"] == pytest.approx(wanted)
        wanted = ours.recall - np.mean([each.recall for each in drawn])
        assert found.figures[f"aur_above_{by}"] == pytest.approx(wanted)
    assert found.curves["samples"] == int(told.sum()) < 20
    area = np.trapezoid(found.curves["precision"], found.curves["shares"])
    assert found.figures["aup"] == pytest.approx(area)


def test_localisation_needs_evidence_and_mass(model, data):
    with pytest.raises(InputError, match="of 'small' nobody has said where: it takes data with"):
        measured(model, dataclasses.replace(data, evidence={}), "localisation")
    none = {"test": torch.zeros_like(data.evidence["test"])}
    without = dataclasses.replace(data, evidence=none)
    with pytest.raises(InputError, match="none of the 20 samples of 'small' that were drawn has"):
        measured(model, without, "localisation")
    assert judge(model, without)[0]["aup_above_uniform"] is None
    blind = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(blind[1].weight)
    found = measured(blind, data, "localisation")["localisation"]
    assert set(found.figures.values()) == {None}


# Texts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return WordBiLSTM(torch.randn(20, 6), 3, hidden=4).eval()


@pytest.fixture(scope="module")
def texts(data):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (30, 9), generator=generator)
    for k in range(30):
        x[k, 9 - k % 5 :] = 0
    box = torch.zeros(30, 9, dtype=torch.bool)
    box[:, 1:3] = True
    box[::4] = False
    split = TensorDataset(x, torch.arange(30) % 3)
    return dataclasses.replace(
        data, train=split, test=split, input_shape=(9,), evidence={"test": box},
        mean=torch.zeros(9), std=torch.ones(9), words=tuple(map(str, range(20))),
    )  # fmt: skip


def test_of_texts_words_are_deleted(reader, texts):
    found = measured(reader, texts, "comprehensiveness", "sufficiency")
    of = Subject(reader, texts, SETTINGS)
    predicted = logits(reader, of.x).argmax(1)
    scores = attribute(reader, of.x, predicted, method="saliency", layer="embedding").sum(2)

    def probabilities(x: Tensor) -> Tensor:
        return logits(reader, x).softmax(1)

    for name in ("comprehensiveness", "sufficiency"):
        wanted = getattr(words, name)(probabilities, of.x, scores)
        assert found[name].curves["samples"] == pytest.approx(wanted.tolist(), abs=1e-6)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "occlusion"])
def test_of_texts_localisation_counts_words_alone(reader, texts, method):
    """Padding longer by any number of places changes nothing but the draws of random orders."""

    def wider(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        return TensorDataset(torch.cat([x, torch.zeros(len(x), 4, dtype=x.dtype)], 1), y)

    box = torch.cat([texts.evidence["test"], torch.zeros(30, 4, dtype=torch.bool)], 1)
    wide = dataclasses.replace(
        texts, train=wider(texts.train), test=wider(texts.test), evidence={"test": box}
    )
    one, other = (
        measured(reader, each, "localisation", method=method)["localisation"]
        for each in (texts, wide)
    )
    assert one.figures["aup"] == pytest.approx(other.figures["aup"], abs=1e-6)
    assert one.figures["aur"] == pytest.approx(other.figures["aur"], abs=1e-6)
    assert one.figures["aup_above_features"] is None
    assert one.figures["aup_above_uniform"] is not None


def test_texts_are_judged_by_where_attributions_lie(reader, texts):
    figures, parts = judge(reader, texts)
    known = [key for key, value in figures.items() if value is not None]
    assert known == ["aup_above_uniform", "aur_above_uniform"]
    assert parts.keys() == {"localisation"} and parts["localisation"]["method"] == "saliency"
    without = dataclasses.replace(texts, evidence={})
    assert judge(reader, without) == (dict.fromkeys(JUDGED), {})
    with pytest.raises(InputError, match="'small' are numbers of words, .* size to change, as noi"):
        measured(reader, texts, "localisation", "noise")

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(nn.functional.one_hot(x, 20).float().sum(1))

    assert judge(Bag(), texts) == (dict.fromkeys(JUDGED), {})
    with pytest.raises(InputError, match="no nn.Embedding, whose output would have a gradient"):
        measured(Bag(), texts, "sufficiency")
    assert measured(Bag(), texts, "sufficiency", method="occlusion")


def test_nothing_is_measured_on_nothing(model, data):
    empty = TensorDataset(*(tensor[:0] for tensor in data.test.tensors))
    with pytest.raises(InputError, match="'small' has no test samples: nothing to measure on"):
        measured(model, dataclasses.replace(data, test=empty), "noise")
