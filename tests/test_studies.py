"""Every study of the registry: its smoke budget runs, and goes on after a kill to the same end."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from attrain.cli import run
from attrain.config import StudyConfig
from attrain.errors import AttrainError, InputError
from attrain.studies import BUDGETS, STUDIES, find, runner
from attrain.studies.runner import run_study
from attrain.studies.study import Row

QUICKEST = "lfp-fig4"


def smoke(name: str, out: Path, *, resume: bool = False, jobs: int = 1) -> Path:
    return run_study(StudyConfig(name, budget="smoke", out=out, resume=resume, jobs=jobs))


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, tmp_path_factory):
    return request.param, smoke(request.param, tmp_path_factory.mktemp("study") / "out")


@pytest.fixture(scope="module")
def quickest(tmp_path_factory):
    return smoke(QUICKEST, tmp_path_factory.mktemp("study") / "out")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


# Every study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is_and_has_every_budget(name):
    study = find(name)
    assert (study.id, study.title) == (name, STUDIES[name].title)
    assert tuple(study.budgets) == BUDGETS
    assert re.search(r"\d{4}\.\d{5}", study.source)
    assert all(text.endswith(".") for text in study.deviations)
    for settings in study.budgets.values():
        names = [row.name for row in study.rows(settings)]
        assert 0 < len(names) == len(set(names))


def test_results_have_rows_claims_and_figures(finished):
    name, folder = finished
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


def test_figures_are_svg_with_their_text_as_text(finished):
    _, folder = finished
    for figure in results(folder)["figures"]:
        root = ElementTree.parse(folder / figure).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 3
        assert (folder / figure).stat().st_size < 1_000_000


def test_the_report_names_every_row_claim_figure_and_deviation(finished):
    _, folder = finished
    text, found = (folder / "report.md").read_text(), results(folder)
    wanted = [row["name"] for row in found["rows"]] + [claim["claim"] for claim in found["claims"]]
    for each in [*wanted, *found["figures"], *found["deviations"]]:
        assert each.replace("|", "&#124;") in text


def test_a_killed_study_goes_on_to_the_same_end(finished, tmp_path, monkeypatch):
    name, folder = finished
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    files = sorted((broken / "rows").iterdir())
    for file in files[1:2]:  # measured again; what is there is kept
        file.unlink()
    for file in ("results.json", "report.md"):
        (broken / file).unlink()
    kept = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    smoke(name, broken, resume=True)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert (broken / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    for figure in results(folder)["figures"]:
        assert (broken / figure).read_bytes() == (folder / figure).read_bytes()


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
    assert all(entry.title in line for entry, line in zip(STUDIES.values(), lines, strict=True))


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
