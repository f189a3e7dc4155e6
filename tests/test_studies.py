"""Every study of the registry: its smoke budget runs, and goes on after a kill to the same end."""

import base64
import json
import math
import re
import shutil
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from markupsafe import escape
from torch import nn

from attrain import LFP, rewards
from attrain.cli import run
from attrain.config import StudyConfig
from attrain.errors import AttrainError, InputError
from attrain.report import write_report
from attrain.studies import BUDGETS, STUDIES, find, lfp_fig3, lfp_figA1, page, runner, toy
from attrain.studies.runner import run_study
from attrain.studies.stack import Training, accuracy
from attrain.studies.study import Row

QUICKEST = "lfp-fig4"
UNNUMBERED = "A Novel Training Method for Deep Neural Networks Leveraging Attribution Graphs"


def smoke(name: str, out: Path, *, resume: bool = False, jobs: int = 1) -> Path:
    return run_study(StudyConfig(name, budget="smoke", out=out, resume=resume, jobs=jobs))


@pytest.fixture(scope="module")
def quickest(tmp_path_factory):
    return smoke(QUICKEST, tmp_path_factory.mktemp("study") / "out")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


# Every study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is_and_has_every_budget(name):
    study = find(name)
    assert (study.id, study.title) == (name, STUDIES[name])
    assert tuple(study.budgets) == BUDGETS
    assert re.search(r"\d{4}\.\d{5}", study.source) or UNNUMBERED in study.source
    assert all(text.endswith(".") for text in study.deviations)
    for settings in study.budgets.values():
        names = [row.name for row in study.rows(settings)]
        assert 0 < len(names) == len(set(names))


LIGHT = ("lfp-figA2", "lfp-frontier")
"""Studies whose smoke budget takes a few seconds; the others are slow."""


@pytest.mark.parametrize(
    "name",
    [each if each in LIGHT else pytest.param(each, marks=pytest.mark.slow) for each in STUDIES],
)
def test_a_study_runs_reports_and_goes_on_after_a_kill(name, tmp_path):
    # One test for all, so that workers that share the tests do not each run the study.
    folder = smoke(name, tmp_path / "out")
    check_results(name, folder)
    check_figures(folder)
    check_reports(folder)
    check_resuming(name, folder, tmp_path / "broken")


def check_results(name: str, folder: Path) -> None:
    found = results(folder)
    assert (found["schema"], found["kind"], found["id"]) == (1, "study", name)
    assert found["budget"] == "smoke" and found["methods"] == {}
    assert found["rows"] and found["claims"] and found["figures"]
    for row in found["rows"]:
        assert set(row) == {"name", "paper", "ours", "unit"}
        assert set(row["ours"]) == {"mean", "std", "values", "n"}
        assert len(row["ours"]["values"]) == row["ours"]["n"] > 0
        if row["unit"] in ("accuracy", "share"):
            assert all(value is None or 0 <= value <= 1 for value in row["ours"]["values"])
    for claim in found["claims"]:
        assert set(claim) == {"claim", "source", "holds", "figure"}
        assert claim["holds"] in (True, False, "unclear")
        assert claim["claim"] and claim["source"] and re.search(r"\d", claim["figure"])


def check_figures(folder: Path) -> None:
    for figure in results(folder)["figures"]:
        root = ElementTree.parse(folder / figure).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 3
        assert (folder / figure).stat().st_size < 1_000_000


def check_reports(folder: Path) -> None:
    found = results(folder)
    text, html = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    wanted = [row["name"] for row in found["rows"]] + [claim["claim"] for claim in found["claims"]]
    for cell in wanted:
        assert cell.replace("|", "&#124;") in text
    for each in [*found["figures"], *found["deviations"]]:  # not in a table: a bar stays a bar
        assert each in text
    for figure in found["figures"]:
        assert base64.b64encode((folder / figure).read_bytes()).decode() in html
    assert all(str(escape(each)) in html for each in [found["title"], *found["deviations"]])


def check_resuming(name: str, folder: Path, broken: Path) -> None:
    shutil.copytree(folder, broken)
    files = sorted((broken / "rows").iterdir())
    study = find(name)
    timed = {row.name for row in study.rows(study.budgets["smoke"]) if row.timed}
    again = [file for file in files if json.loads(file.read_text())["name"] not in timed]
    for file in again[1:2]:  # measured again; what is there is kept
        file.unlink()
    for file in ("results.json", "report.md", "report.html"):
        (broken / file).unlink()
    kept = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    smoke(name, broken, resume=True)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for file in ("results.json", *results(folder)["figures"]):
        assert (broken / file).read_bytes() == (folder / file).read_bytes()


# The runner ---------------------------------------------------------------------------------------


def test_an_interruption_keeps_the_rows_and_says_how_to_go_on(
    quickest, tmp_path, monkeypatch, capsys
):
    measured = []
    timed = runner._timed

    def once(row: Row):
        if measured:
            raise KeyboardInterrupt
        measured.append(row.name)
        return timed(row)

    monkeypatch.setattr(runner, "_timed", once)
    arguments = [
        "study",
        QUICKEST,
        "--budget",
        "smoke",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(arguments) == 130
    assert f"To go on: attrain {' '.join(arguments)} --resume" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 1
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.undo()
    (tmp_path / "out" / "rows" / ".half.json.1.tmp").write_text("{")
    assert run([*arguments, "--resume"]) == 0
    said = capsys.readouterr()
    assert "1 of 4 rows were there before" in said.err and "0 s left" in said.err
    assert "Report: " in said.out
    assert not list((tmp_path / "out" / "rows").glob(".*"))
    assert results(tmp_path / "out") == results(quickest)


@pytest.mark.slow
def test_rows_side_by_side_give_the_same_results(quickest, tmp_path):
    side_by_side = smoke(QUICKEST, tmp_path / "out", jobs=2)
    assert (side_by_side / "results.json").read_bytes() == (quickest / "results.json").read_bytes()


def test_the_list_names_every_study(capsys):
    assert run(["study", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)
    assert all(title in line for title, line in zip(STUDIES.values(), lines, strict=True))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lfp-fig44"], "unknown study 'lfp-fig44'. Did you mean 'lfp-fig4'? Known: "),
        ([QUICKEST, "--budget", "ful"], "unknown budget 'ful'. Did you mean 'full'? Known: "),
        ([QUICKEST, "--jobs", "-1"], "--jobs -1 is not possible: give 1 or more, or 0 for all"),
        ([QUICKEST, "--resume"], "holds no config.json, so there is no run to resume"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, capsys, arguments, text):
    assert run(["study", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert text in said and said.startswith("attrain: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_results_is_refused_and_kept(quickest):
    before = {path: path.read_bytes() for path in quickest.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds the results of a run: give another --out"):
        smoke(QUICKEST, quickest)
    assert before == {path: path.read_bytes() for path in quickest.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"study": "lfp-other"}, "holds the study lfp-other, not lfp-fig4: resume it with its own"),
        ({"job": "compare"}, "holds no study, not lfp-fig4: resume it with its own, or give"),
        ({"budget": "full"}, "holds the budget full, not smoke"),
        ({"settings": {"samples": 7}}, "holds samples = 7, not 80; batch_size = null, not 8"),
    ],
)
def test_what_is_something_else_is_not_resumed(quickest, tmp_path, changed, text):
    other = tmp_path / "other"
    shutil.copytree(quickest, other)
    config = json.loads((other / "config.json").read_text()) | changed
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(text)):
        smoke(QUICKEST, other, resume=True)


def test_rows_need_names_of_their_own():
    rows = [Row("one, two", dict), Row("one; two", dict)]
    with pytest.raises(AttrainError, match="names that are written alike"):
        runner._files(rows)


# Networks side by side ----------------------------------------------------------------------------

RATES = (0.01, 0.2, 3.0)


def trained_alone(training: Training, rate: float, x, y, activation: str) -> nn.Sequential:
    """Train one network by torch's SGD and the engine, as a user would: the twin of a stack."""
    model = toy.network(2, 0, activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=training.momentum)
    credit = LFP(model)
    generator = torch.Generator().manual_seed(5)
    for _ in range(training.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(training.batch_size):
            optimizer.zero_grad()
            if training.lfp:
                with credit:
                    out = model(x[batch])
            else:
                out = model(x[batch])
            loss = training.objective(out, y[batch])
            (loss / len(batch) if training.mean else loss).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(
    ("lfp", "objective", "activation"),
    [
        (False, partial(F.cross_entropy, reduction="sum"), "relu"),
        (True, partial(rewards.softmax, reduction="sum"), "relu"),
        (True, partial(rewards.softmax, reduction="sum"), "tanh"),
        (True, partial(rewards.false_positives, reduction="sum"), "silu"),
    ],
)
def test_a_stack_trains_as_each_network_alone(lfp, objective, activation, mean):
    torch.manual_seed(0)
    x, y = torch.randn(40, 2), torch.randint(2, (40,))
    training = Training(objective, lfp=lfp, mean=mean, epochs=2, batch_size=16, momentum=0.5)
    rates = RATES if mean else [rate / 100 for rate in RATES]
    side_by_side = training.run(toy.network(2, 0, activation), rates, x, y, seed=5)
    assert not side_by_side.diverged.any()
    for copy, rate in enumerate(rates):
        alone = trained_alone(training, rate, x, y, activation)
        parameters = [each for layer in side_by_side.stack.copied(copy) for each in layer]
        for mine, other in zip(parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-3, atol=1e-4)
        wanted = (alone(x).argmax(-1) == y).float().mean()
        assert accuracy(side_by_side.stack, x, y)[copy] == pytest.approx(float(wanted), abs=0.03)


def test_a_network_that_diverges_stops_and_leaves_the_others_alone():
    torch.manual_seed(0)
    x, y = torch.randn(64, 2), torch.randint(2, (64,))
    objective = partial(rewards.softmax, reduction="sum")
    training = Training(objective, lfp=True, mean=False, epochs=3, batch_size=16)
    alone = training.run(toy.network(2, 0), [1e-3], x, y, seed=0)
    beside = training.run(toy.network(2, 0), [1e-3, 1e30], x, y, seed=0)
    assert beside.diverged.tolist() == [False, True]
    assert all(not each.any() for layer in beside.stack.copied(1) for each in layer)
    assert accuracy(beside.stack, x, y)[1] == (y == 0).float().mean()
    for mine, other in zip(alone.stack.copied(0), beside.stack.copied(0), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(alone.curve[:, 0], beside.curve[:, 0])


def test_the_paper_s_learning_rates():
    rates = toy.Config().rates
    assert (len(rates), rates[0], rates[1], rates[-1]) == (127, 1e-10, 2e-10, 1e4)
    assert rates == sorted(set(rates)) and 3e-4 in rates


def test_the_best_rate_is_the_middle_one_of_those_that_are_as_good():
    assert toy._middle_of_best(torch.tensor([0.5, 0.9, 0.9, 0.9, 0.8])) == 2
    assert toy._middle_of_best(torch.tensor([0.5, 0.9, 0.8])) == 1


def test_shares_of_weights_by_threshold_follow_the_definition():
    layers = [np.array([[2.0, -1.0], [0.2, -0.6]]), np.array([[0.0, -4.0]])]
    positive, neutral, negative = lfp_fig3.shares(layers)
    for place, theta in enumerate(lfp_fig3.THETAS):
        counts = [0, 0, 0]
        for layer in layers:
            for weight in layer.ravel():
                relative = weight / np.abs(layer).max()
                counts[0 if relative > theta else 2 if relative < -theta else 1] += 1
        found = positive[place], neutral[place], negative[place]
        assert found == pytest.approx([count / 6 for count in counts])


def test_rates_are_compared_by_the_middle_of_those_that_are_as_good():
    config = toy.Config(factors=(1,), exponents=(-3, -2, -1), draws=2)
    lfp = {"accuracy": [[0.5, 0.9, 0.9], [0.5, 0.5, 0.9]], "best": 2}
    gradient = {"accuracy": [[0.9, 0.9, 0.9], [0.5, 0.9, 0.5]], "best": 1}
    results = {"blobs, LFP, sum": lfp, "blobs, gradient descent, mean": gradient}

    def ratios() -> list[float]:
        return lfp_fig3._ratios(config, results, "blobs", "sum", "mean")

    assert ratios() == pytest.approx([math.sqrt(10), 10])
    lfp["accuracy"][0] = [0.5, 0.9, 0.88]
    assert ratios() == pytest.approx([math.sqrt(10), 10])
    lfp["accuracy"][0] = [0.5, 0.5, 0.5]
    lfp["accuracy"][1] = [0.5, 0.5, 1.0]
    assert ratios() == pytest.approx([10])


def test_accuracies_within_a_deviation_of_the_goal_are_unclear():
    def verdict(*accuracies: float):
        one = {"accuracy": [[each] for each in accuracies], "best": 0}
        return lfp_figA1._reaches({"blobs, tanh": one}, "tanh", {"blobs": 0.9})

    assert verdict(0.9, 0.92) is True
    assert verdict(0.86, 0.92) == "unclear"
    assert verdict(0.86, 0.88) is False


def test_a_late_fall_is_below_the_best_of_the_second_half():
    assert toy.late_fall({"curve": [[0.9, 0.1, 0.5, 0.8, 0.6, 0.7]]}) == pytest.approx(0.2)
    assert toy.late_fall({"curve": [[0.1, 0.2, 0.3, 0.4]]}) == 0


# The page -----------------------------------------------------------------------------------------


def test_a_report_embeds_only_the_figures_of_its_folder(quickest, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(quickest, out)
    (tmp_path / "secret.svg").write_text("<svg>secret</svg>")
    (out / "results.json").write_text(
        json.dumps(results(out) | {"figures": ["figures/../../secret.svg", "figures/gone.svg"]})
    )
    write_report(out)
    html = (out / "report.html").read_text()
    assert "data:image/svg+xml" not in html
    assert "The figure secret is missing." in html and "The figure gone is missing." in html


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.9815, "accuracy", "98.2 %"),
        (0.5, "share", "50.0 %"),
        (0.00031, "", "0.00031"),
        (12.345, "s", "12.3 s"),
        (None, "accuracy", "\N{EN DASH}"),
    ],
)
def test_numbers_are_written_in_their_unit(number, unit, text):
    assert page.value(number, unit) == text


def test_a_bar_does_not_divide_a_cell():
    assert (
        page.table(("a", "b"), [("|w|", "1")]) == "| a | b |\n| --- | --- |\n| &#124;w&#124; | 1 |"
    )
