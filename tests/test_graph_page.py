"""The page of an attribution graph: what it draws, that it can be used, that it loads nothing."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import graph_fixture as made
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrain.errors import AttrainError, InputError
from attrain.report.graph_data import graph_json, kept_nodes, strongest
from attrain.report.graph_input import ClassGraph, Edges, Example, GraphPage, Layer, Panel
from attrain.report.graph_page import graph_html, write_graph_page
from attrain.report.graph_svg import MOST_DRAWN, _drawn, graph_svg
from attrain.report.palette import DARK, LIGHT

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"


def one_page(graph: ClassGraph, **changes) -> GraphPage:
    return GraphPage(**{"title": "One graph", "panels": [Panel("net", [graph])], **changes})


# What is written --------------------------------------------------------------------------------


def test_kept_nodes_are_the_smallest_set_that_holds_the_share():
    rng = np.random.default_rng(0)
    for _ in range(50):
        relevance = rng.normal(size=12) * (rng.random(12) > 0.2)
        share = rng.uniform(0.05, 1)
        kept = kept_nodes(relevance, share)
        ranked = sorted(range(12), key=lambda k: (-abs(relevance[k]), k))
        total, held, wanted = sum(map(abs, relevance)), 0.0, []
        for k in ranked:
            if held >= share * total * (1 - 1e-9) or relevance[k] == 0:
                break
            held += abs(relevance[k])
            wanted.append(k)
        assert kept.tolist() == wanted
    assert kept_nodes(np.zeros(3), 0.5).tolist() == []


def test_the_strongest_edges_are_those_with_the_largest_share_into_their_layer():
    rng = np.random.default_rng(1)
    edges = [Edges(s, t, rng.normal(size=(4, 5))) for s, t in ((0, 1), (1, 2), (0, 2))]
    everything = []
    for place, (_, target, messages) in enumerate(edges):
        total = sum(float(np.abs(m).sum()) for _, t, m in edges if t == target)
        for i in range(4):
            for j in range(5):
                everything.append((abs(messages[i, j]) / total, place, i, j))
    wanted = {(p, i, j) for _, p, i, j in sorted(everything, reverse=True)[:17]}
    found = {
        (place, int(i), int(j))
        for place, (targets, sources, _) in enumerate(strongest(edges, 17))
        for i, j in zip(targets, sources, strict=True)
    }
    assert found == wanted
    assert sum(len(values) for *_, values in strongest(edges, 10**6)) == 60


def test_a_graph_becomes_json_with_four_digits_and_tells_what_is_left_out():
    graph = made.three_layers(
        ablation=[np.array([-0.123456, np.nan, 0.0]), None, None],
        random_ablation=[-0.05, None, None],
    )
    read = json.loads(graph_json(graph, most=4))
    assert read["layers"][0]["relevance"] == [1, 0.5, -0.1]
    assert read["layers"][0]["ablation"] == [-0.1235, None, 0]
    assert read["layers"][0]["random"] == -0.05
    assert "ablation" not in read["layers"][1]
    first, second = read["edges"]
    assert (first["count"], second["count"]) == (5, 2)
    assert first["total"] == pytest.approx(1.8)
    assert first["message"] == [0.9, 0.5] and second["message"] == [1.5, 0.4]
    assert (first["from"], first["to"]) == ([0, 1], [0, 0])


@given(st.lists(st.text(), min_size=1, max_size=3, unique=True), st.text())
def test_no_name_can_end_the_script_it_stands_in(names, label):
    layers = [Layer(name, HOSTILE, 1, {HOSTILE: 1.0}, [label]) for name in names]
    count = len(layers)
    edges = [Edges(k, k + 1, np.ones((1, 1))) for k in range(count - 1)]
    text = graph_json(
        made.three_layers(name=HOSTILE, layers=layers, relevance=[np.ones(1)] * count, edges=edges)
    )
    assert "<" not in text and ">" not in text and "&" not in text
    read = json.loads(text)
    assert [layer["name"] for layer in read["layers"]] == names
    assert read["layers"][0]["labels"] == [label]


def test_a_page_of_many_graphs_holds_fewer_edges_of_each(monkeypatch):
    monkeypatch.setattr("attrain.report.graph_page.MOST_EDGES_OF_A_PAGE", 6)
    graphs = [dataclasses.replace(made.three_layers(), name=name) for name in ("a", "b")]
    text = graph_html(GraphPage("t", [Panel("net", graphs)]))
    data = re.findall(r'id="graph-0-\d">(.*?)</script>', text)
    assert [sum(len(g["message"]) for g in json.loads(d)["edges"]) for d in data] == [3, 3]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layers": []}, "graph 'cat' has no layers."),
        (
            {"layers": [Layer("in", "", 3), Layer("in", "", 2), Layer("out", "", 2)]},
            "graph 'cat' has two layers with the name 'in'; name each differently.",
        ),
        ({"relevance": [np.ones(3)]}, "graph 'cat' has 3 layers, but relevance of 1."),
        (
            {"relevance": [np.ones(4), np.ones(2), np.ones(2)]},
            "relevance of 'in' have shape (4,), not (3,).",
        ),
        (
            {"relevance": [np.array([1, np.nan, np.inf]), np.ones(2), np.ones(2)]},
            "relevance of 'in' hold 2 values that are not finite; a graph needs numbers.",
        ),
        (
            {"edges": [Edges(0, 1, np.ones((3, 2)))]},
            "messages from 'in' to 'fc' have shape (3, 2), not (2, 3).",
        ),
        (
            {"edges": [Edges(1, 0, np.ones((3, 2)))]},
            "graph 'cat' has edges from layer 1 to layer 0; they lead to a later one of its 3 "
            "layers, counted from 0.",
        ),
        ({"output": np.nan}, "graph 'cat' has the output nan; a graph explains a finite one."),
        ({"ablation": [None]}, "graph 'cat' has 3 layers, but ablation of 1."),
        (
            {"ablation": [np.ones(2), None, None]},
            "ablation of 'in' has shape (2,), not (3,).",
        ),
        (
            {"ablation": [np.array([1, np.inf, 0]), None, None]},
            "ablation of 'in' holds infinite values; NaN stands for what was not measured.",
        ),
        (
            {"examples": {("in", 7): [0]}},
            "graph 'cat' has examples for in:7, which is no unit of it.",
        ),
        (
            {"examples": {("in", 0): [3]}},
            "graph 'cat' has examples [3] for in:0, but the page has 0 examples.",
        ),
        (
            {
                "layers": [
                    Layer("in", "", 3, {"bias": np.inf}),
                    Layer("fc", "", 2),
                    Layer("o", "", 2),
                ]
            },
            "layer 'in' has a sink that is not finite.",
        ),
        (
            {"layers": [Layer("in", "", 3, {}, ["x"]), Layer("fc", "", 2), Layer("o", "", 2)]},
            "layer 'in' has 3 units, but 1 labels.",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error):
    with pytest.raises(InputError) as found:
        graph_html(one_page(made.three_layers(**changes)))
    assert str(found.value) == error


def test_the_picture_draws_the_strongest_edges_into_each_layer():
    # Beside its slow twin, one edge at a time.
    draw = np.random.default_rng(0)
    sizes = (40, 30, 20)
    links = ((0, 1), (0, 2), (1, 2))
    graph = ClassGraph(
        "cat", 4, 1.0, [Layer(str(k), "linear", size, {}) for k, size in enumerate(sizes)],
        [draw.normal(size=size) for size in sizes],
        [Edges(low, high, draw.normal(size=(sizes[high], sizes[low]))) for low, high in links],
    )  # fmt: skip
    kept = [kept_nodes(relevance, 0.8) for relevance in graph.relevance]
    expected = []
    for layer in (1, 2):
        into = [(abs(messages[to, of]), source, of, to, messages[to, of])
                for source, target, messages in graph.edges if target == layer
                for to in kept[target] for of in kept[source]]  # fmt: skip
        into.sort(reverse=True)
        held, whole = 0.0, sum(each[0] for each in into)
        for size, source, of, to, message in into:
            expected.append((size / into[0][0], source, layer, of, to, message))
            held += size
            if held >= 0.9 * whole:
                break
    expected = sorted(expected, reverse=True)[:MOST_DRAWN]
    found = [(edge[5], *edge[:5]) for edge in reversed(_drawn(graph, kept, 0.9))]
    assert len(found) == MOST_DRAWN and sorted(found) == sorted(expected)


def test_pages_that_cannot_be_drawn_are_refused():
    panel = Panel("net", [made.three_layers()])
    with pytest.raises(InputError, match=r"^a graph page shows one or two models, not 3\.$"):
        graph_html(GraphPage("t", [panel] * 3))
    with pytest.raises(InputError, match=r"^model 'net' has no graph; give at least one class\.$"):
        graph_html(GraphPage("t", [Panel("net", [])]))
    with pytest.raises(InputError, match="^model 'net' has two graphs with the name 'cat'; name"):
        graph_html(GraphPage("t", [Panel("net", [made.three_layers()] * 2)]))
    with pytest.raises(
        InputError, match="loads nothing, so give the pixels or a 'data:image/' address"
    ):
        graph_html(GraphPage("t", [panel], [Example("far", "https://example.org/cat.png")]))


def test_the_page_is_written_whole_and_the_same_each_time(tmp_path, monkeypatch):
    page = one_page(made.three_layers())
    path = write_graph_page(str(tmp_path / "graph.html"), page)
    before = path.read_text()
    assert before.endswith("</html>") and write_graph_page(path, page).read_text() == before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(AttrainError, match="the disk is full"):
        write_graph_page(path, page)
    assert path.read_text() == before


def test_the_policy_lets_in_this_style_and_this_script_alone():
    text = graph_html(one_page(made.three_layers()))
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', text).group(1))
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(parts) == 1
        hashed = base64.b64encode(hashlib.sha256(parts[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy
    assert "http" not in policy and "unsafe" not in policy
    assert not re.search(r"""<[^>]+\s(on\w+|style)=""", re.sub(r"<script>.*", "", text, flags=re.S))


def test_the_report_without_torch_can_draw_graphs():
    program = "import sys, attrain.report.graph_page; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


def test_colours_of_the_sign_are_those_of_the_palette():
    folder = ROOT / "src" / "attrain" / "report" / "templates"
    for name in ("graph.css", "graph-svg.css"):
        colours = set(
            re.findall(
                r"--(?:up|down): (#\w+)|(?:fill|stroke): (#\w+);", (folder / name).read_text()
            )
        )
        flat = {colour for pair in colours for colour in pair if colour}
        assert flat - {"#ffffff"} <= {*LIGHT[1:3], *DARK[1:3]}


# The static picture -----------------------------------------------------------------------------


def test_the_static_picture_shows_the_kept_nodes_and_edges():
    picture = graph_svg(made.three_layers(), width=300)
    assert picture.count('<rect class="ground"') == 5
    assert picture.count("<path") == 4
    assert (
        'aria-label="Attribution graph of class cat, from in at the bottom to out at the top'
        in picture
    )
    assert "5 of 7 nodes, 4 edges." in picture
    everything = graph_svg(made.three_layers(), width=300, nodes=1.0, edges=1.0)
    assert everything.count('<rect class="ground"') == 6
    assert everything.count('class="down"') == 2
    assert everything.count("stroke-dasharray") == 2


@pytest.mark.parametrize("width", [300, 460, 900])
def test_nodes_of_the_static_picture_do_not_overlap(width):
    for graph in (made.graph(1), made.resnet(1), made.transformer(1), made.graph(2, sparse=0.3)):
        picture = graph_svg(graph, width)
        number = r'="(-?[\d.]+)"'
        pattern = rf'<rect class="ground" x{number} y{number} width{number} height{number}'
        boxes = np.array(re.findall(pattern, picture), dtype=float)
        (height,) = re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)
        assert (boxes >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= width).all()
        assert (boxes[:, 1] + boxes[:, 3] <= float(height)).all()
        for k, (x, y, w, h) in enumerate(boxes):
            others = np.delete(boxes, k, axis=0)
            across = np.minimum(x + w, others[:, 0] + others[:, 2]) - np.maximum(x, others[:, 0])
            down = np.minimum(y + h, others[:, 1] + others[:, 3]) - np.maximum(y, others[:, 1])
            assert not ((across > 0.1) & (down > 0.1)).any()


def test_the_static_picture_escapes_names():
    layers = [Layer(HOSTILE, "", 3, {}, [HOSTILE] * 3), Layer("fc", "", 2), Layer("out", "", 2)]
    picture = graph_svg(made.three_layers(name=HOSTILE, layers=layers))
    assert "<script" not in picture and "<img" not in picture


# The bundle -------------------------------------------------------------------------------------


def test_the_script_carries_the_licences_of_what_is_in_it():
    script = (ROOT / "src/attrain/report/templates/graph.js").read_text()
    banner = script[: script.index("*/")]
    for name in ("d3-selection", "d3-zoom", "d3-scale"):
        assert re.search(rf"{name} \d+\.\d+\.\d+", banner), name
    assert "Mike Bostock" in banner and "Permission to use, copy, modify" in banner
    assert "</script" not in script and "<!--" not in script


def test_the_viewer_names_exact_versions_and_no_registry():
    about = json.loads((ROOT / "viewer/package.json").read_text())
    for name, version in about["devDependencies"].items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
    for name in (".npmrc", "package-lock.json"):
        assert not (ROOT / "viewer" / name).exists()


def test_the_committed_script_is_what_the_source_builds():
    if shutil.which("node") is None or not (ROOT / "viewer/node_modules/esbuild").is_dir():
        pytest.skip("needs node, and `npm install --no-package-lock` in viewer/")
    run = subprocess.run(
        ["node", "build.mjs", "--check"], cwd=ROOT / "viewer", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_wheel_holds_the_script_and_the_templates(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("graph.js", "graph.css", "graph-svg.css", "graph.html"):
        assert f"attrain/report/templates/{name}" in names
    assert not any("node_modules" in name for name in names)
