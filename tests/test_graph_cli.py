"""Graphs on their page, from Python and from the command line: what is written, told, refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from torch import nn

from attrain.cli import run
from attrain.data import load
from attrain.errors import InputError
from attrain.graph import AttributionGraph, ClassGraphs, measured, to_html
from attrain.graph.page import class_graph, held, page_of
from attrain.models import build
from attrain.report.folder import read_run
from attrain.report.graph_data import kept_nodes
from attrain.report.graph_file import MOST_EDGES, described, graphs_of
from attrain.report.graph_input import check_graph
from attrain.report.sections import graph as section
from attrain.trained_graphs import compact_graphs, drawn

QUICK = ["--epochs", "1", "--seeds", "1", "--device", "cpu", "--no-rival"]
MINE = """
import torch
from torch import nn

def net(input_shape, num_classes):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 16),
        nn.ReLU(), nn.Linear(16, num_classes),
    )

class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(torch.softmax(x.flatten(1), 1) * x.flatten(1))

def without():
    return Sorted()
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    out = tmp_path_factory.mktemp("job") / "out"
    assert run(["compare", *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def two(job, tmp_path_factory):
    """The graphs of two runs, by the command."""
    out = tmp_path_factory.mktemp("graphs") / "two"
    runs = [str(job / "sgd/seed-0"), str(job / "lfp/seed-0")]
    some = ["--classes", "2", "3", "8", "--ablations", "4"]
    assert run(["graph", *runs, *some, "--out", str(out)]) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine_graphs.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_graphs", None)


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.randn(90, 5), torch.arange(90) % 3


# The page and the picture ------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_the_graph():
    model, x, y = small()
    graphs = ClassGraphs.from_data(model, (x, y), classes=["a", "b", "c"])
    made = page_of([("net", graphs)], captions=[f"row {k}" for k in range(90)])
    (panel,) = made.panels
    assert [graph.name for graph in panel.graphs] == ["a", "b", "c"]
    shown, graph = panel.graphs[1], graphs["b"]
    check_graph(shown, len(made.examples))
    assert shown.samples == 30 and shown.output == graph.output
    assert [layer.name for layer in shown.layers] == list(graph.layers)
    for place, layer in enumerate(graph.layers):
        np.testing.assert_array_equal(shown.relevance[place], graph.relevance[layer].numpy())
    for source, target, messages in shown.edges:
        names = graph.layers[source], graph.layers[target]
        np.testing.assert_array_equal(messages, graph.between(*names).numpy())
    layer, unit = graph.layers[1], int(graph.relevance[graph.layers[1]].abs().argmax())
    told = [made.examples[k].caption for k in shown.examples[layer, unit]]
    assert told == [f"row {k}" for k in graphs.top_examples("b", layer, unit)]


def test_what_was_pruned_has_no_relevance_on_the_page_and_stands_in_its_sink():
    model, x, _ = small()
    graph = AttributionGraph.from_batch(model, x, 1).prune(0.5, 0.5)
    shown = class_graph(graph, "b")
    for place, layer in enumerate(graph.layers):
        assert not shown.relevance[place][~graph.kept(layer).numpy()].any()
    assert shown.layers[-1].sinks["pruned"] == pytest.approx(
        float(graph.sinks[graph.layers[-1]]["pruned"].sum())
    )


def test_ablation_on_the_page_is_the_change_that_units_ablated_one_by_one_make():
    model, x, y = small()
    graphs = measured(ClassGraphs.from_data(model, (x[:60], y[:60])), model, x[60:], y[60:])
    graph = graphs["2"]
    some = x[60:][y[60:] == 2]
    whole = float(model(some).detach()[:, 2].mean())
    shown = class_graph(graph, "2")
    for place, layer in ((1, graph.layers[1]), (2, graph.layers[2])):
        for unit in range(len(graph.relevance[layer])):
            cut = graph.ablate(model, some, [(layer, unit)], reference=x[60:])
            change = float(cut[:, 2].double().mean()) - whole
            assert shown.ablation[place][unit] == pytest.approx(change, abs=1e-5)
    assert shown.ablation[0] is None and shown.random_ablation[0] is None
    # 8 units are drawn of each layer, which are all of the second.
    assert shown.random_ablation[2] == pytest.approx(shown.ablation[2].mean(), abs=1e-6)
    assert shown.validation.seeds == 5
    assert shown.validation.share == pytest.approx(held(graph, 0.1, graph.layers[1:3]))


def test_without_time_the_drawn_units_are_measured_first_and_without_seconds_none():
    model, x, y = small()
    graphs = ClassGraphs.from_data(model, (x, y))
    few = measured(graphs, model, x, y, seconds=1e-9, batch_size=30)["0"].facts["ablation"]
    assert sum(value is not None for layer in few.values() for value in layer) == 1
    assert "ablation" not in measured(graphs, model, x, y, seconds=0)["0"].facts
    with pytest.raises(InputError, match=r"target has the shape \(3,\): one for each of 90."):
        measured(graphs, model, x, y[:3])


def test_the_share_that_units_hold_is_a_mean_over_layers():
    model, x, _ = small()
    graph = AttributionGraph.from_batch(model, x, 1)
    shares = []
    for layer in graph.layers[1:3]:
        sizes = sorted(graph.relevance[layer].abs().tolist(), reverse=True)
        count = max(1, round(0.3 * len(sizes)))
        shares.append(sum(sizes[:count]) / sum(sizes))
    assert held(graph, 0.3, graph.layers[1:3]) == pytest.approx(sum(shares) / 2)


def test_graphs_are_frames_in_notebooks_and_pictures_in_files(tmp_path):
    model, x, y = small()
    graphs = ClassGraphs.from_data(model, (x, y))
    for each in (graphs, graphs["0"]):
        assert each._repr_html_().startswith('<iframe title="lrp" sandbox="allow-scripts')
    path = graphs["0"].to_svg(tmp_path / "graph.svg", labels={"4": ["<a>", "b", "c"]})
    text = path.read_text()
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "&lt;a&gt;" in text
    with pytest.raises(InputError, match="unknown layer of the graph 'fc'"):
        graphs["0"].to_svg(path, labels={"fc": ["a"]})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"models": [("net", 3)]}, "models are pairs of a name and an AttributionGraph"),
        ({"models": []}, "one or two models, not 0"),
        ({"pictures": torch.zeros(90, 8, 8)}, r"pictures have the shape \(90, 8, 8\)"),
        ({"pictures": torch.zeros(3, 1, 8, 8)}, "there are 3 pictures"),
        ({"captions": ["a"], "pictures": torch.zeros(3, 1, 8, 8)}, "3 pictures and 1 captions"),
        ({"labels": {"4": ["a"]}}, "has 3 units, but 1 labels"),
    ],
)
def test_what_a_page_cannot_show_is_refused(tmp_path, change, text):
    model, x, y = small()
    given = {"models": [("net", ClassGraphs.from_data(model, (x, y)))], **change}
    with pytest.raises(InputError, match=text):
        to_html(given.pop("models"), tmp_path / "graph.html", **given)
    assert not (tmp_path / "graph.html").exists()


# The command -------------------------------------------------------------------------------------


def test_the_command_writes_graphs_that_load_and_tells_of_them(two):
    told = json.loads((two / "graph.json").read_text())
    assert set(told["models"]) == {"SGD", "LFP"} and (two / "graph.html").exists()
    for model in told["models"].values():
        assert list(model["classes"]) == ["2", "3", "8"]
        for name, about in model["classes"].items():
            graph = AttributionGraph.load(about["file"])
            assert graph.samples == about["samples"] and graph.target == name
            pruned = graph.prune(0.8, 0.98)
            assert about["nodes"] == sum(int(pruned.kept(layer).sum()) for layer in graph.layers)
            assert about["path_mass"] == pytest.approx(graph.path_mass(pruned))
            assert about["top"][0][:2] == list(graph.top(1)[0][:2])
            assert len(about["validation"]["random"]) == 5
            assert "ablation" in graph.facts
    for line in told["summary"]:
        assert len(line) <= 100
    assert "leaks, of the output: bias" in "\n".join(told["summary"])


def test_graphs_leave_out_the_samples_that_units_are_ablated_on():
    data = load("digits")
    y = data.test.tensors[1]
    index, held_out = drawn(data, 0, 5, seed=0)
    assert index.tolist() == list(range(len(y)))
    assert y[held_out].bincount().tolist() == [5] * 10
    index, held_out = drawn(data, 30, 16, seed=1)
    counts, apart = y[index].bincount(minlength=10), y[held_out].bincount(minlength=10)
    assert set(held_out.tolist()) < set(index.tolist()) and (apart == counts // 2).all()


def test_a_model_of_ones_own_and_one_class_of_all_samples(here, capsys):
    command = ["graph", "mine_graphs:net", "--data", "digits", "--ablations", "0"]
    assert run([*command, "--target", "7", "--samples", "40", "--out", "seven"]) == 0
    told = json.loads(Path("seven/graph.json").read_text())["models"]["mine_graphs:net"]
    assert list(told["classes"]) == ["7"] and told["classes"]["7"]["samples"] == 40
    assert told["classes"]["7"]["accuracy"] is None
    assert "ablating" not in capsys.readouterr().out
    assert run([*command, "--target", "predicted", "--method", "gradient"]) == 0
    assert Path("runs/graph-digits/graph.html").exists()
    assert run([*command, "--classes", "3", "8", "--out", "some"]) == 0
    told = json.loads(Path("some/graph.json").read_text())["models"]["mine_graphs:net"]
    assert list(told["classes"]) == ["3", "8"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "nowhere does not exist: give the folder of a finished run"),
        (["{run}", "{run}"], "is named twice: give one model, or two different ones."),
        (["{run}", "{other}", "{run}"], "graph shows one model, or two side by side: got 3."),
        (["{run}", "--method", "lpr"], "Did you mean 'lrp'?"),
        (["{run}", "--rule", "epsilo"], "Did you mean 'epsilon'?"),
        (["{run}", "--rule", "gamma", "--method", "gradient"], "--rule gamma is for --method lrp"),
        (["{run}", "--target", "labels"], "unknown target 'labels'. Did you mean 'label'?"),
        (["{run}", "--classes", "12"], "unknown class '12'."),
        (["{run}", "--nodes", "0"], "--nodes 0 is not possible: give a share in (0, 1]."),
        (["{run}", "--samples", "-1"], "--samples -1 is too small: give at least 0."),
        (["{run}", "--ablation-seconds", "-1"], "give 0 or more."),
        (["{run}", "--out", "{two}"], "holds graphs already: give another --out."),
        (["{run}", "--model", "lenet"], "holds the weights of another model"),
        (["mine_graphs:net"], "mine_graphs:net does not say what it was trained on: give --data."),
        (["mine_graphs:net", "--data", "digits", "--model", "mlp"], "leave --model and"),
        (["mine_graphs:nett", "--data", "digits"], "nett"),
        (["mine_graphs:without", "--data", "digits"], "softmax"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(job, two, here, capsys, arguments, text):
    places = {"run": job / "sgd/seed-0", "other": job / "lfp/seed-0", "two": two}
    assert run(["graph", *[each.format(**places) for each in arguments]]) == 2
    said = capsys.readouterr().err
    assert text in said and said.splitlines()[-1].startswith("attrain: ")
    assert not Path("runs").exists()


# In a browser ------------------------------------------------------------------------------------


def test_the_page_of_real_graphs_opens_without_a_complaint_or_a_request(two):
    binary = chromium.find()
    if binary is None:
        pytest.skip("no chromium on this machine")
    with chromium.Page(binary) as page:
        page.open(two / "graph.html", fragment="#class=3&node=fc2:0")
        page.wait('document.querySelectorAll(".panel svg.graph .node").length > 20')
        assert page.complaints() == []
        asked = {url.partition("#")[0] for url in page.requests()}
        beyond = {url for url in asked if not url.startswith(("data:", "about:"))}
        assert beyond == {(two / "graph.html").resolve().as_uri()}
        assert "Ablating changes the output by" in page.run("document.body.innerText")


# In the report -----------------------------------------------------------------------------------


def test_the_file_of_a_run_holds_all_nodes_and_the_largest_edges(job):
    (graphs,) = [each.graphs for each in read_run(job).runs["lfp"]]
    assert graphs is not None and [g.name for g in graphs.graphs] == [str(k) for k in range(10)]
    for graph in graphs.graphs:
        edges = sum(np.count_nonzero(messages) for *_, messages in graph.edges)
        assert 0 < edges <= MOST_EDGES and graph.validation.seeds == 3
    raw = json.loads((job / "lfp/seed-0/graph.json").read_text())
    assert described(graphs.graphs, "lrp")["classes"][0]["layers"] == raw["classes"][0]["layers"]


def test_a_model_without_a_graph_says_why_in_the_report(here, job):
    told = compact_graphs(build("mine_graphs:without", (1, 8, 8), 10), load("digits"))
    assert "softmax" in told["missing"] and graphs_of(told).graphs == ()
    run_ = read_run(job)
    seeds = {
        name: tuple(dataclasses.replace(each, graphs=graphs_of(told)) for each in found)
        for name, found in run_.runs.items()
    }
    filled = section.fill(dataclasses.replace(run_, runs=seeds))
    assert filled.sentence.startswith("There is no attribution graph: ") and not filled.values


def test_the_section_counts_the_units_and_tells_the_ablation(job):
    run_ = read_run(job)
    filled = section.fill(run_)
    graphs = run_.runs["sgd"][0].graphs.graphs
    counts = [sum(len(kept_nodes(r, 0.8)) for r in g.relevance[1:-1]) for g in graphs]
    assert [section.counted(graph) for graph in graphs] == [(count, 128) for count in counts]
    assert f"SGD {np.mean(counts):.1f} and LFP" in filled.sentence
    drop = sum(g.validation.drop for g in graphs) / sum(abs(g.output) for g in graphs)
    assert f"SGD {100 * drop:.3g}"[:6] in filled.sentence
    page = (job / "report.html").read_text()
    assert page.count('<svg class="attribution"') == 8 and len(page) < 3_000_000
    assert 'download="graph-nodes.csv"' in page and 'download="graph-edges.csv"' in page


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.pop("classes"),
        lambda raw: raw["classes"].clear(),
        lambda raw: raw["classes"].append(raw["classes"][0]),
        lambda raw: raw["classes"][0]["layers"][1].update(relevance=[1.0]),
        lambda raw: raw["classes"][0]["layers"][1].update(relevance="<b>"),
        lambda raw: raw["classes"][0]["edges"][0].update(target=99),
        lambda raw: raw["classes"][0]["edges"][0].update(source=-1),
        lambda raw: raw["classes"][0]["edges"][0]["to"].__setitem__(0, -1),
        lambda raw: raw["classes"][0]["edges"][0]["to"].pop(),
        lambda raw: raw["classes"][0].update(validation={"share": None}),
    ],
)
def test_a_damaged_file_of_graphs_is_a_sentence_under_checks(job, tmp_path, damage):
    folder = tmp_path / "run"
    (folder / "sgd/seed-0").mkdir(parents=True)
    (folder / "results.json").write_text((job / "results.json").read_text())
    raw = json.loads((job / "sgd/seed-0/graph.json").read_text())
    damage(raw)
    (folder / "sgd/seed-0/graph.json").write_text(json.dumps(raw))
    found = read_run(folder)
    assert found.runs["sgd"][0].graphs is None
    assert any(text.startswith("graph.json of sgd, seed 0 is damaged:") for text in found.problems)


def test_the_parts_of_pages_of_graphs_need_no_torch():
    program = (
        "import sys; import attrain.report.graph_file, attrain.report.graph_page, "
        "attrain.report.sections.graph; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
