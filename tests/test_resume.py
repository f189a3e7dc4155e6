"""A run that is killed at any moment goes on to the same bits."""

import dataclasses
import json
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FAST, kill_after, processes, small_data, small_model, wait_for

from attrain import cli, training
from attrain.methods import Method, find
from attrain.training import train

EVERY_STEP = dataclasses.replace(FAST, epochs=12, checkpoint_seconds=0.0)
TIMES = ("wall_s", "cpu_s", "step_cpu_s")
OTHERS = ("sgd", "saliency-guided", "targeted")


def slow_down(seconds: float) -> None:
    """Make every update take a while, so that a kill hits the middle of a run on any machine."""
    tell = training._Run.tell

    def slowly(self, *arguments) -> None:
        time.sleep(seconds)
        tell(self, *arguments)

    training._Run.tell = slowly


def method_of(name: str) -> Method:
    """Return a method; one that chooses neurons does so every third step."""
    method = find(name)
    if method.targeted is None:
        return method
    return dataclasses.replace(method, targeted={**method.targeted, "refresh": 3})


def run(folder: Path, method: str) -> None:
    slow_down(0.02)
    train(small_model(), small_data(), method_of(method), EVERY_STEP, folder=folder, resume=True)


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize(
    "method",
    ["lfp", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)],
)
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(small_model(), small_data(), method_of(method), EVERY_STEP, folder=whole)
    context, chance, kills = processes(), random.Random(method), 0
    while kills < 5:
        process = context.Process(target=run, args=(broken, method))
        process.start()
        wait_for(broken / "checkpoint.pt")
        killed = kill_after(process, chance.uniform(0.02, 0.3))
        kills += killed
        if not killed:
            break
    assert kills >= 2, "the run ended before it could be killed in its middle"
    run(broken, method)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [row["epoch"] for row in rows(broken)] == list(range(1, 13))
    assert rows(broken) == rows(whole)
    if method == "targeted":
        choices = (whole / "selection.jsonl").read_text()
        assert len(choices.splitlines()) > 5
        assert (broken / "selection.jsonl").read_text() == choices


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    again = train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert again.epochs == first.epochs


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n{"epo')
    train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def job(out: Path, *more: str) -> None:
    torch.set_num_threads(1)
    slow_down(0.005)
    options = ["--epochs", "2", "--seeds", "1", "--device", "cpu", "--checkpoint-seconds", "0"]
    raise SystemExit(cli.run(["compare", *options, "--out", str(out), *more]))


def outcome(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    for measures in [*results["methods"].values(), *results["differences"].values()]:
        for name in ("step_cpu_s", "train_wall_s", "train_cpu_s"):
            del measures[name]
    return results


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_results(tmp_path):
    context, chance = processes(), random.Random(0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = context.Process(target=job, args=(whole,))
    process.start()
    process.join()
    assert process.exitcode == 0
    more: tuple[str, ...] = ()
    kills = 0
    while True:
        process = context.Process(target=job, args=(broken, *more))
        process.start()
        wait_for(broken / "config.json")
        more = ("--resume",)
        limit = chance.uniform(0.1, 0.4) if kills < 3 else 120.0
        if not kill_after(process, limit):
            break
        kills += 1
    assert process.exitcode == 0
    assert kills >= 2
    assert outcome(broken) == outcome(whole)
    for weights in sorted(whole.glob("*/seed-*/model.safetensors")):
        other = broken / weights.relative_to(whole)
        assert weights.read_bytes() == other.read_bytes()
        assert load_file(weights).keys() == load_file(other).keys()
    before = json.loads((whole / "config.json").read_text())
    after = json.loads((broken / "config.json").read_text())
    assert before["tuning"] == after["tuning"]
    assert (broken / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()
