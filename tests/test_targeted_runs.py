"""Runs of the method `targeted`: what they write, show and report."""

import dataclasses
import json

import pytest
import torch
from report_fixture import write_run
from small_runs import FAST, small_data, small_model
from torch import nn

import attrain
from attrain.errors import InputError
from attrain.methods import find
from attrain.report.folder import read_run
from attrain.report.page import render
from attrain.report.sections import targeted as section
from attrain.targeted import Refresh
from attrain.targeted.history import line_of, told
from attrain.training import Progress, train

TARGETED = dataclasses.replace(
    find("targeted"), targeted={"density": 0.25, "score": "error", "refresh": 2, "warmup": 0.2}
)


def choice(step: int, rows: list[int], kept: float = 1.0, share: float | None = 0.5) -> str:
    layer = {"units": 8, "rows": rows, "kept": kept, "concentration": share}
    held = {"step": step, "trained_share": 0.3, "optimizer_bytes": 640}
    return json.dumps(held | {"layers": {"fc1": layer}})


def test_a_run_writes_its_choices_and_shows_them(tmp_path):
    seen: list[Progress] = []
    trained = train(small_model(), small_data(), TARGETED, FAST, folder=tmp_path, watch=seen.append)
    lines = list(map(json.loads, (tmp_path / "selection.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    for line in lines:
        for layer in line["layers"].values():
            assert len(layer["rows"]) == max(1, round(0.25 * layer["units"]))
            assert 0 < layer["concentration"] <= 1
        assert 0 < line["trained_share"] < 1
    assert seen[-1].learning == told(lines[-1])
    model = small_model()
    model.load_state_dict(trained.weights)  # names and shapes are the model's own
    assert 0 < trained.epochs[-1]["update_density"] <= lines[-1]["trained_share"]


def test_other_methods_write_no_choices(tmp_path):
    seen: list[Progress] = []
    train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path, watch=seen.append)
    assert not (tmp_path / "selection.jsonl").exists()
    assert seen[-1].learning == ""


def test_a_model_without_a_layer_to_target_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(small_data().train.tensors[0][0].numel(), 3))
    with pytest.raises(InputError, match="the model has no layer that can be targeted"):
        train(model, small_data(), TARGETED, FAST)


def test_the_output_layer_may_be_registered_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, small_data().num_classes)
            self.body = nn.Linear(small_data().train.tensors[0][0].numel(), 8)

        def forward(self, x):
            return self.head(torch.relu(self.body(x.flatten(1))))

    model = Backwards()
    seen: list[Progress] = []
    train(model, small_data(), TARGETED, FAST, watch=seen.append)
    assert model.head.weight.requires_grad
    assert not model.body.weight.requires_grad
    assert seen[-1].learning.startswith("body ")


def test_a_line_tells_what_was_chosen():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    targeted = attrain.Targeted(model, warmup=0, score="error")
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1, momentum=0.9)
    scores = torch.tensor([0.0, 3, 0, 0, 1, 0, 0, 0])
    refresh = Refresh(7, {"0": torch.tensor([1, 2])}, {"0": scores}, {"0": 0.5})
    line = line_of(refresh, targeted, optimizer)
    assert line["step"] == 7
    assert line["layers"]["0"] == {"units": 8, "rows": [1, 2], "kept": 0.5, "concentration": 0.75}
    negative = Refresh(7, {"0": torch.tensor([1])}, {"0": -scores}, {"0": 0.5})
    assert line_of(negative, targeted, optimizer)["layers"]["0"]["concentration"] is None


def test_blocks_are_as_high_as_the_share_that_learns():
    layers = {"fc1": {"units": 4, "rows": [0, 3]}, "fc2": {"units": 24, "rows": [0, 1, 2]}}
    assert told({"layers": layers}) == "fc1 █  █ fc2 █▄          "
    assert told(None) == "all learn"
    assert told({"layers": {str(n): layers["fc1"] for n in range(5)}}).endswith("█  █ +2")


def test_the_section_draws_a_line_for_each_stretch_of_learning(tmp_path):
    folder = write_run(tmp_path / "run", methods=("sgd", "lfp"))
    lines = [choice(10, [1, 2]), choice(20, [2, 5], 0.5), choice(30, [1, 5], 0.5, 0.25)]
    (folder / "lfp" / "seed-0" / "selection.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    filled = section.SECTION.fill(run)
    assert filled is not None
    assert "From step 10 on, LFP trains 2 of 8 targeted neurons, 30.0% of all" in filled.sentence
    assert "50.0% of them stay at a new choice" in filled.sentence
    (panel,) = filled.values["panels"]
    strip = panel["svg"].split('class="spike" d="')[1].split('"')[0]
    assert strip.count("M") == 1 + 4  # the warm-up; unit 1 twice, units 2 and 5 once
    assert filled.values["tables"][0].rows[0][2:] == (
        "8", "2", "50.0%", "37.5%", "50.0%", "25.0%",
    )  # fmt: skip
    assert "Neurons that learn" in render(run)


def test_runs_in_which_all_learn_have_no_section(tmp_path):
    assert section.SECTION.fill(read_run(write_run(tmp_path / "run"))) is None


@pytest.mark.parametrize(
    "lines",
    [
        ["{"],
        [choice(10, [1]), choice(10, [1])],
        [choice(10, [8])],
        [choice(10, [1], kept=1.5)],
        [choice(10, [1], share=float("nan"))],
        [json.dumps({"step": 3})],
    ],
)
def test_damaged_choices_are_a_problem_that_is_told(tmp_path, lines):
    folder = write_run(tmp_path / "run")
    (folder / "lfp" / "seed-0" / "selection.jsonl").write_text("\n".join(lines))
    run = read_run(folder)
    assert any("selection.jsonl of lfp, seed 0 is damaged" in told for told in run.problems)
    assert section.SECTION.fill(run) is None
