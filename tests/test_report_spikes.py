"""The spikes of spiking models in the report."""

import json

import chromium
import pytest
from report_fixture import write_run

from attrain.report import write_report
from attrain.report.folder import read_run
from attrain.report.sections import spikes as section

STEPS = 12


def layer(name, neurons, every):
    shown = list(range(0, neurons, max(1, neurons // 40)))[:40]
    fired = [[t for t in range(STEPS) if (t * 7 + j * 3) % every == 0] for j in shown]
    return {
        "name": name,
        "neurons": neurons,
        "rate": 1 / every,
        "silent": 0.1,
        "shown": shown,
        "fired": fired,
    }


def firing(prediction, every):
    layers = [
        layer("neurons.0", 1000, every),
        layer("neurons.1", 1000, every + 3),
        layer("neurons.2", 10, 4),
    ]
    membranes = [[0.1 * (t % (c + 2)) * (c + 1) - 0.3 for t in range(STEPS)] for c in range(10)]
    return {
        "seed": 0,
        "prediction": prediction,
        "spikes_per_sample": 3991.2,
        "synaptic_operations": 2664000.0,
        "multiplications": 784000.0,
        "layers": layers,
        "membranes": membranes,
    }


def spikes():
    return {
        "index": 4,
        "label": 7,
        "classes": [str(k) for k in range(10)],
        "samples": 200,
        "steps": STEPS,
        "threshold": 1.0,
        "methods": {"lfp": firing(7, 6), "surrogate": firing(3, 9)},
    }


def written(folder, content):
    write_run(folder, methods=("lfp", "surrogate"), seeds=1, samples=0)
    (folder / "spikes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def natures(monkeypatch):
    import report_fixture

    nature = report_fixture._NATURE | {"surrogate": report_fixture._NATURE["sgd"]}
    monkeypatch.setattr(report_fixture, "_NATURE", nature)


def test_the_section_says_and_draws_what_fires(tmp_path):
    run = read_run(written(tmp_path / "run", spikes()))
    assert run.problems == ()
    filled = section.fill(run)
    assert "LFP fires 3,991 spikes, which make 2.66 million additions" in filled.sentence
    panel = filled.values["panels"][0]
    every = sum(
        len(fired) for each in spikes()["methods"]["lfp"]["layers"] for fired in each["fired"]
    )
    assert panel["svg"].count("Z") == every
    assert panel["svg"].count("membrane chosen") == 1 and panel["answer"] == "answers 7, rightly"
    assert filled.values["panels"][1]["svg"].count("membrane chosen") == 2
    rates, costs = filled.values["tables"]
    assert rates.rows[0] == ("LFP", "neurons.0", "1,000", "16.7%", "10.0%")
    assert costs.rows[0] == ("LFP", "3,991", "2,664,000", "784,000")


def test_a_silent_layer_is_named(tmp_path):
    content = spikes()
    content["methods"]["lfp"]["layers"][1]["rate"] = 0.0
    assert (
        "Silent: neurons.1 of LFP." in section.fill(read_run(written(tmp_path, content))).sentence
    )


def test_runs_without_spikes_have_no_section(tmp_path):
    write_run(tmp_path / "run", methods=("lfp",), seeds=1, samples=0)
    assert section.fill(read_run(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda c: c.pop("steps"), "it does not say how many steps it covers"),
        (lambda c: c["methods"]["lfp"].update(membranes=[[1.0]]), "The spikes of lfp"),
        (lambda c: c["methods"]["lfp"]["layers"][0]["fired"].pop(), "The spikes of lfp"),
        (lambda c: c["methods"]["lfp"]["layers"][0]["fired"][0].append(99), "The spikes of lfp"),
    ],
)
def test_damage_becomes_a_sentence(tmp_path, damage, told):
    content = spikes()
    damage(content)
    run = read_run(written(tmp_path, content))
    assert any(told in problem for problem in run.problems)
    write_report(tmp_path)


OVERLAPS = """[...document.querySelectorAll("#spikes svg.chart")].flatMap((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent,
        t.getBoundingClientRect()]).filter(([_, b]) => b.width);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([_, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
        Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => [a, b]));
})"""


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_section_opens_in_a_browser(tmp_path, width, dark):
    binary = chromium.find()
    if binary is None:
        pytest.skip("no chromium on this machine")
    write_report(written(tmp_path / "run", spikes()))
    with chromium.Page(binary) as page:
        page.open(tmp_path / "run" / "report.html", width, 900, dark)
        assert page.complaints() == []
        assert page.run("document.querySelectorAll('#spikes svg.chart').length") == 2
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(OVERLAPS) == []
