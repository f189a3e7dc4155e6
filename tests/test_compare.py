"""The main job: the files it writes, what is in them, and that they agree with each other."""

import csv
import dataclasses
import io
import random

import numpy as np
import pytest
import torch
from rich.console import Console

from attrain.attribution import saliency
from attrain.compare import RIVAL_STRENGTHS, choose_samples, compare, train_only
from attrain.config import CompareConfig, TrainConfig, TrainingConfig
from attrain.data import load
from attrain.errors import AttrainError, InputError
from attrain.live import Display, clock
from attrain.metrics.faithfulness import area
from attrain.models import build
from attrain.pruning import AMOUNTS
from attrain.runs import load_weights, read_json, read_jsonl
from attrain.training import evaluate, predict

TRAINING = TrainingConfig(epochs=2, device="cpu")
WITH_EVIDENCE = {"aup_above_uniform", "aur_above_uniform"}
"""Null for digits, whose pixels nobody has marked."""
MEASURES = {
    "test_accuracy",
    "test_loss",
    "ece",
    "gini",
    "update_density",
    "signs_changed",
    "accuracy_90_removed",
    "accuracy_95_removed",
    "accuracy_98_removed",
    "step_cpu_s",
    "train_wall_s",
    "train_cpu_s",
    "peak_memory_bytes",
    "faithfulness",
    "accuracy_drop",
    "accuracy_drop_random",
    "noise_accuracy",
    "fgsm_accuracy",
    "pgd_accuracy",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    place = tmp_path_factory.mktemp("compare") / "out"
    return compare(CompareConfig(out=place, seeds=2, training=TRAINING))


# The files ----------------------------------------------------------------------------------------


def test_the_configuration_is_whole(out):
    config = read_json(out / "config.json")
    assert list(config["methods"]) == ["sgd", "lfp", "sgd-l1"]
    assert config["methods"]["lfp"]["credit"]["scale"] == "relative"
    assert config["methods"]["sgd"]["credit"] is None
    assert config["data"]["name"] == "digits" and config["data"]["input_shape"] == [1, 8, 8]
    assert (config["data"]["train"], config["data"]["test"]) == (1437, 360)
    assert config["model"]["parameters"] == sum(
        parameter.numel() for parameter in build("mlp", (1, 8, 8), 10).parameters()
    )
    assert config["model"]["layers"][0] == {"name": "fc1", "kind": "Linear", "shape": [64, 64]}
    assert config["training"]["epochs"] == 2 and config["training"]["threads"] == 1
    assert config["seeds"] == [0, 1] and config["versions"]["torch"]
    assert config["warnings"] == []


def test_the_rival_is_tuned_on_a_part_of_the_training_set(out):
    (tuning,) = read_json(out / "config.json")["tuning"]
    assert tuning["candidates"] == list(RIVAL_STRENGTHS) and tuning["validation_samples"] == 144
    best = tuning["candidates"][int(np.argmax(tuning["scores"]))]
    assert tuning["chosen"] == best
    assert read_json(out / "config.json")["methods"]["sgd-l1"]["l1"] == best
    for strength, score in zip(tuning["candidates"], tuning["scores"], strict=True):
        place = out / "tuning" / "sgd-l1" / f"l1-{strength:g}"
        measures = read_json(place / "analysis.json")["measures"]
        assert score == (measures["test_accuracy"] + measures["accuracy_90_removed"]) / 2
        assert np.sum(read_json(place / "analysis.json")["confusion"]) == 144
        # No choice depends on explanations, so the trials are not judged by them.
        assert not {"faithfulness", "robustness"} & read_json(place / "analysis.json").keys()


def test_the_results_hold_every_measure_of_every_seed(out):
    results = read_json(out / "results.json")
    assert (results["schema"], results["kind"], results["id"]) == (1, "compare", "compare")
    assert (results["rows"], results["claims"], results["budget"]) == ([], [], None)
    for name, measures in results["methods"].items():
        assert measures.keys() == MEASURES | WITH_EVIDENCE | {"seeds"}
        assert measures["seeds"] == [0, 1]
        assert all(measures[key]["values"] == [None, None] for key in WITH_EVIDENCE)
        for key in MEASURES:
            values = measures[key]["values"]
            assert measures[key]["mean"] == pytest.approx(np.mean(values))
            assert measures[key]["std"] == pytest.approx(np.std(values, ddof=1))
            for seed, value in enumerate(values):
                analysis = read_json(out / name / f"seed-{seed}" / "analysis.json")
                assert analysis["measures"][key] == value


def test_the_differences_are_to_the_first_method_seed_by_seed(out):
    results = read_json(out / "results.json")
    assert list(results["differences"]) == ["lfp", "sgd-l1"]
    for name, differences in results["differences"].items():
        assert differences["baseline"] == "sgd"
        for key in MEASURES:
            ours, first = (results["methods"][m][key]["values"] for m in (name, "sgd"))
            assert differences[key]["mean"] == pytest.approx(np.mean(np.subtract(ours, first)))
            assert differences[key]["low"] <= differences[key]["mean"] <= differences[key]["high"]


def test_every_run_is_described_and_its_weights_do_what_is_said(out):
    data = load("digits")
    for place in sorted(out.glob("*/seed-*")):
        analysis = read_json(place / "analysis.json")
        lines = read_jsonl(place / "metrics.jsonl")
        model = build("mlp", data.input_shape, data.num_classes)
        load_weights(place / "model.safetensors", model)
        found = evaluate(model, data.test)
        assert analysis["measures"]["test_accuracy"] == found["accuracy"]
        assert analysis["measures"]["ece"] == analysis["calibration"]["ece"] == found["ece"]
        assert lines[-1]["test_accuracy"] == found["accuracy"]
        assert [line["epoch"] for line in lines] == [1, 2]
        for curve in analysis["pruning"].values():
            assert curve["removed"] == list(AMOUNTS)
            assert curve["accuracy"][0] == found["accuracy"]
        removed = dict(
            zip(AMOUNTS, analysis["pruning"]["magnitude-global"]["accuracy"], strict=True)
        )
        assert analysis["measures"]["accuracy_90_removed"] == removed[0.9]
        confusion = np.array(analysis["confusion"])
        assert confusion.sum() == 360 and np.trace(confusion) / 360 == found["accuracy"]
        labels = data.test.tensors[1].bincount(minlength=10).tolist()
        assert confusion.sum(1).tolist() == labels
        assert sum(entry["count"] for entry in analysis["calibration"]["bins"]) == 360
        faithful, robust = analysis["faithfulness"], analysis["robustness"]
        assert list(faithful["backgrounds"]) == ["corner", "mean"]
        assert faithful["samples"] == robust["samples"] == 256
        drop = faithful["backgrounds"]["corner"]["accuracy"]
        assert analysis["measures"]["accuracy_drop"] == pytest.approx(area(drop))
        for kind in ("noise", "fgsm", "pgd"):
            curve = robust[kind]
            assert curve["overall"][0] == pytest.approx(drop[0]) and curve["of_correct"][0] == 1
            assert analysis["measures"][f"{kind}_accuracy"] == pytest.approx(
                area(curve["overall"], curve["sizes"])
            )
        assert [layer["name"] for layer in analysis["weights"]["layers"]] == [
            "fc1.weight",
            "fc2.weight",
            "fc3.weight",
        ]


def test_samples_are_the_same_for_all_methods_and_explained_by_their_models(out):
    samples, data = read_json(out / "samples.json"), load("digits")
    assert 12 <= len(samples["samples"]) <= 24 and list(samples["methods"]) == [
        "sgd",
        "lfp",
        "sgd-l1",
    ]
    index = [entry["index"] for entry in samples["samples"]]
    x, y = data.test.tensors
    assert [entry["label"] for entry in samples["samples"]] == y[index].tolist()
    pixels = torch.tensor([entry["pixels"] for entry in samples["samples"]])
    torch.testing.assert_close(pixels, data.restore(x[index]), rtol=1e-3, atol=1e-3)
    assert samples["samples"][0]["shape"] == [1, 8, 8]
    for name, shown in samples["methods"].items():
        model = build("mlp", data.input_shape, data.num_classes)
        load_weights(out / name / "seed-0" / "model.safetensors", model)
        predicted = predict(model, data.test)[index].argmax(1)
        assert shown["predictions"] == predicted.tolist()
        heat = saliency(model.eval(), x[index], predicted)
        torch.testing.assert_close(torch.tensor(shown["saliency"]), heat, rtol=1e-3, atol=1e-5)
    wrong = torch.tensor([m["predictions"] for m in samples["methods"].values()]) != y[index]
    assert wrong.any() and not wrong.all()


def test_the_report_is_there_and_what_training_needs_is_kept(out):
    assert (out / "report.html").stat().st_size > 10_000
    assert not (out / "boundary.json").exists()
    assert len(list(out.glob("*/seed-*/checkpoint.pt"))) == 6
    assert list(out.rglob("*.tmp")) == []


def test_resuming_a_finished_job_changes_nothing_but_the_report(out):
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/*")}
    results = (out / "results.json").read_bytes()
    compare(CompareConfig(out=out, seeds=2, training=TRAINING, resume=True))
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/*")} == before
    assert (out / "results.json").read_bytes() == results


# Other data ---------------------------------------------------------------------------------------


def test_two_dimensional_data_get_a_decision_boundary(tmp_path):
    config = TrainConfig(data="blobs", model="toy-mlp", out=tmp_path / "out", training=TRAINING)
    out = train_only(config)
    boundary, data = read_json(out / "boundary.json"), load("blobs")
    cells = np.array(boundary["methods"]["lfp"]["classes"])
    assert cells.shape == (boundary["size"], boundary["size"]) == (100, 100)
    model = build("toy-mlp", (2,), 2)
    load_weights(out / "lfp" / "seed-0" / "model.safetensors", model)
    (low_x, high_x), (low_y, high_y) = boundary["x"], boundary["y"]
    chance = random.Random(0)
    for _ in range(20):
        row, column = chance.randrange(100), chance.randrange(100)
        point = torch.tensor(
            [low_x + (high_x - low_x) * column / 99, low_y + (high_y - low_y) * row / 99]
        )
        logits = model((point - data.mean)[None] / data.std)[0]
        if (logits[0] - logits[1]).abs() > 1e-4:
            assert cells[row, column] == int(logits.argmax())
    for x, y, label in boundary["points"]:
        assert low_x < x < high_x and low_y < y < high_y and label in (0, 1)
    assert read_json(out / "results.json")["id"] == "train"
    assert read_json(out / "results.json")["differences"] == {}
    assert not (out / "samples.json").exists() and not (out / "tuning").exists()


def test_a_table_of_features_needs_neither_pictures_nor_boundary(tmp_path):
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["a", "b", "c", "label"])
    generator = np.random.default_rng(0)
    for index in range(60):
        values = generator.normal(size=3) + index % 2
        rows.writerow([*values, "yes" if index % 2 else "no"])
    (tmp_path / "table.csv").write_text(text.getvalue())
    config = CompareConfig(
        data=str(tmp_path / "table.csv"),
        out=tmp_path / "out",
        seeds=1,
        rival=False,
        methods=("lfp", "sgd"),
        training=TRAINING,
    )
    out = compare(config)
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "config.json",
        "report.html",
        "results.json",
    ]
    difference = read_json(out / "results.json")["differences"]["sgd"]["test_accuracy"]
    assert (difference["low"], difference["high"], difference["clear"]) == (None, None, False)


def test_a_rival_that_is_named_is_tuned_in_its_place(tmp_path):
    config = CompareConfig(
        data="blobs",
        model="toy-mlp",
        methods=("sgd-l1", "sgd"),
        out=tmp_path / "out",
        seeds=1,
        training=TRAINING,
    )
    record = read_json(compare(config) / "config.json")
    assert list(record["methods"]) == ["sgd-l1", "sgd"]
    assert record["methods"]["sgd-l1"]["l1"] == record["tuning"][0]["chosen"]
    assert compare(dataclasses.replace(config, resume=True)) == tmp_path / "out"


# Failures -----------------------------------------------------------------------------------------


def test_a_job_that_diverges_keeps_what_is_finished(tmp_path):
    config = CompareConfig(
        out=tmp_path / "out",
        seeds=1,
        rival=False,
        methods=("sgd", "lfp-abs"),
        training=dataclasses.replace(TRAINING, learning_rate=300.0, clip_norm=0.0, epochs=30),
    )
    with pytest.raises(AttrainError, match="training diverged in epoch"):
        compare(config)
    assert (tmp_path / "out" / "config.json").exists()
    with pytest.raises(InputError, match="already holds the results of a run"):
        compare(config)


def test_warnings_of_the_credit_engine_are_noted_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "zeroed.py").write_text(
        "import torch\n"
        "def model(num_classes):\n"
        "    layer = torch.nn.Linear(64, num_classes)\n"
        "    torch.nn.init.zeros_(layer.bias)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), layer)\n"
    )
    monkeypatch.chdir(tmp_path)
    training = dataclasses.replace(TRAINING, epochs=1)
    out = train_only(
        TrainConfig(model="zeroed:model", seeds=2, out=tmp_path / "out", training=training)
    )
    (warning,) = read_json(out / "config.json")["warnings"]
    assert "1.bias" in warning
    assert capsys.readouterr().err.count("note: ") == 1


# Samples ------------------------------------------------------------------------------------------


def test_samples_are_chosen_alike_whichever_method_wins():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (200,), generator=generator)
    one, two = y.clone(), y.clone()
    one[:30] = (y[:30] + 1) % 3
    two[20:60] = (y[20:60] + 1) % 3
    chosen = choose_samples(torch.stack([one, two]), y)
    assert chosen == choose_samples(torch.stack([two, one]), y)
    assert len(chosen) == len(set(chosen)) == 18 and chosen == sorted(chosen)
    agree = (one == two)[chosen]
    wrong = (one != y)[chosen] & agree
    assert (~agree).sum() == 8 and wrong.sum() == 4


def test_fewer_samples_are_chosen_where_there_are_fewer():
    y = torch.tensor([0, 1, 1])
    assert choose_samples(torch.stack([y, y]), y) == [0, 1, 2]
    assert choose_samples((1 - y)[None], y) == [0, 1, 2]


# Saliency -----------------------------------------------------------------------------------------


def test_saliency_is_the_largest_gradient_over_the_channels():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 5)
    )
    model.train()
    x, target = torch.randn(6, 3, 6, 6), torch.tensor([0, 1, 2, 3, 4, 0])
    heat = saliency(model, x, target)
    for sample in range(6):
        inputs = x[sample : sample + 1].clone().requires_grad_()
        model(inputs)[0, target[sample]].backward()
        expected = inputs.grad[0].abs().max(0).values
        torch.testing.assert_close(heat[sample], expected)
    assert heat.shape == (6, 6, 6) and model.training and not x.requires_grad


def test_saliency_gives_no_parameter_a_gradient_and_works_under_no_grad():
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        heat = saliency(model, torch.randn(2, 4), torch.tensor([0, 2]))
    torch.testing.assert_close(heat, model.weight[[0, 2]].abs().detach())
    assert model.weight.grad is None


# What is shown ------------------------------------------------------------------------------------


def shown(terminal: bool) -> tuple[Display, io.StringIO]:
    text = io.StringIO()
    return Display(Console(file=text, force_terminal=terminal, width=90)), text


def test_elsewhere_than_on_a_terminal_each_run_gets_a_line():
    display, text = shown(terminal=False)
    with display:
        display.plan([("sgd", "seed 0"), ("lfp", "seed 0")])
        display.update(("sgd", "seed 0"), "epoch 1/2", 0.5, 0.9, 3.0)
        display.finish(("sgd", "seed 0"), 0.95)
        display.spoke -= 60
        display.update(("lfp", "seed 0"), "epoch 1/2", 0.5, 0.9, 65.0)
    assert text.getvalue().splitlines() == [
        "sgd seed 0: done, accuracy 95.0%",
        "lfp seed 0: epoch 1/2, accuracy 90.0%, 1 min 05 s left",
    ]


def test_on_a_terminal_there_is_a_table():
    display, text = shown(terminal=True)
    with display:
        display.plan([("sgd", "seed 0"), ("lfp", "seed 0")])
        display.update(("sgd", "seed 0"), "epoch 1/2", 0.5, 0.9, 3.0)
        display.live.refresh()
        display.finish(("sgd", "seed 0"), 0.95)
    said = text.getvalue()
    for word in ("method", "epoch 1/2", "90.0%", "3 s", "waiting", "1 of 2 runs", "95.0%"):
        assert word in said


def test_durations_are_told_as_people_tell_them():
    told = [clock(seconds) for seconds in (None, 0.4, 59.4, 61, 3599, 3600, 12000)]
    assert told == ["?", "0 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 00 min", "3 h 20 min"]


# The whole job ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_job_reaches_its_figures(tmp_path):
    results = read_json(compare(CompareConfig(out=tmp_path / "out")) / "results.json")
    sgd, lfp, rival = (results["methods"][name] for name in ("sgd", "lfp", "sgd-l1"))
    assert sgd["test_accuracy"]["mean"] >= 0.96
    assert lfp["test_accuracy"]["mean"] >= 0.96
    assert rival["test_accuracy"]["mean"] >= 0.96
    assert lfp["accuracy_90_removed"]["mean"] > sgd["accuracy_90_removed"]["mean"]


def test_a_model_without_gradients_is_compared_by_what_can_be_measured(tmp_path):
    config = CompareConfig(
        out=tmp_path / "out", methods=("lfp",), seeds=1, rival=False, activation="step",
        training=TRAINING,
    )  # fmt: skip
    out = compare(config)
    measures = read_json(out / "results.json")["methods"]["lfp"]
    assert measures["pgd_accuracy"]["mean"] is None and measures["faithfulness"]["mean"] is None
    assert measures["noise_accuracy"]["mean"] > 0
    assert not (out / "samples.json").exists()
    assert "under PGD" not in (out / "report.html").read_text()
