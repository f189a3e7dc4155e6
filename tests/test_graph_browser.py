"""The page of an attribution graph in a browser: what it shows, and that it can be used."""

import json
import re
import time

import chromium
import graph_fixture as made
import numpy as np
import pytest

from attrain.report.graph_data import kept_nodes
from attrain.report.graph_input import Example, GraphPage, Layer, Panel
from attrain.report.graph_page import notebook_html, write_graph_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"


def slow(*values):
    """Return parameters whose tests wait for the slow ones: others show the same kind of thing."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# Boxes of nodes, labels and layer names of a panel that lie over each other.
COLLISIONS = """(() => {
    const found = [];
    for (const svg of document.querySelectorAll(".panel:not([hidden]) svg.graph")) {
        const clip = svg.querySelector("clipPath rect").x.baseVal.value;
        const edge = svg.getBoundingClientRect().left + clip;
        const boxes = (query, kind, trim) => [...svg.querySelectorAll(query)]
            .filter((e) => e.textContent || kind === "node")
            .map((e) => {
                const box = e.getBoundingClientRect();
                // Nodes and labels are cut off where the names of the layers begin.
                const left = kind === "layer" ? box.left : Math.max(box.left, edge);
                return { kind, name: e.textContent || e.parentNode.dataset.node, left,
                    right: box.right, top: box.top + trim, bottom: box.bottom - trim };
            })
            .filter(({ left, right }) => left < right);
        const all = [
            ...boxes(".node rect", "node", 0), ...boxes(".label:not(.inside)", "label", 2),
            ...boxes(".layer", "layer", 2), ...boxes(".kept", "layer", 2),
        ].sort((a, b) => a.top - b.top);
        for (let i = 0; i < all.length; i += 1) {
            for (let j = i + 1; j < all.length && all[j].top < all[i].bottom - 0.5; j += 1) {
                const [a, b] = [all[i], all[j]];
                if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5) {
                    found.push(`${a.kind} ${a.name} | ${b.kind} ${b.name}`);
                }
            }
        }
        const frame = svg.getBoundingClientRect();
        for (const box of all) {
            if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
                box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
                found.push(`${box.name} outside`);
        }
    }
    return found;
})()"""

CONTRAST = """(() => {
    const parse = (text) => {
        const numbers = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number).slice(0, 3);
        return text.startsWith("color(") ? numbers : numbers.map((n) => n / 255);
    };
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = (text) => parse(text)
        .reduce((sum, c, k) => sum + linear(c) * [0.2126, 0.7152, 0.0722][k], 0.05);
    const ratio = (a, b) => Math.max(light(a), light(b)) / Math.min(light(a), light(b));
    const ground = getComputedStyle(document.body).backgroundColor;
    const panel = getComputedStyle(document.querySelector("#detail")).backgroundColor;
    const read = (query, key, behind) => [...document.querySelectorAll(query)].map((e) =>
        [query, ratio(getComputedStyle(e)[key], behind)]);
    const inside = [...document.querySelectorAll(".label.inside")].map((label) => {
        const rect = document.querySelector(`.node[data-node="${label.dataset.of}"] rect`);
        return ["inside", ratio(getComputedStyle(label).fill, getComputedStyle(rect).fill)];
    });
    return {
        text: [
            ...read("h1, h2, .counts, .more, .bar label:not(:checked + label)", "color", ground),
            ...read(".help, .legend-line, .bar output, .bar select", "color", ground),
            ...read("svg.graph .label:not(.far):not(.inside)", "fill", ground),
            ...read("svg.graph .layer, svg.graph .kept", "fill", ground),
            ...read("#detail :is(h2, h3, h4, .note, dt, dd, .value, a)", "color", panel), ...inside,
        ],
        graphics: read(".node:not(.far) rect", "stroke", ground),
    };
})()"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    wide = [("input", "input", 100), *[(f"conv{k}", "conv", 200) for k in range(1, 10)]]
    large = made.graph(5, [*wide, ("out", "output", 100)], sparse=0.4)
    pages = {
        "two": made.cnn_page(4),
        "one": made.cnn_page(2, ["LFP"]),
        "resnet": GraphPage("ResNet", [Panel("SGD", [made.resnet(1, sparse=2)])]),
        "transformer": GraphPage("Transformer", [Panel("GPT", [made.transformer(1)])]),
        "large": GraphPage("Large", [Panel("wide", [large])]),
    }
    for name, page in pages.items():
        write_graph_page(folder / f"{name}.html", page)
    return folder


@pytest.fixture(scope="module")
def browser():
    binary = chromium.find()
    if binary is None:
        pytest.skip("no chromium on this machine")
    with chromium.Page(binary) as page:
        yield page


def ready(browser, path, *size, **options):
    browser.open(path, *size, **options)
    browser.wait("document.documentElement.dataset.drawn")


def count_of(browser, panel=0):
    text = browser.run(f"document.querySelectorAll('.counts')[{panel}].textContent")
    nodes, units, edges = re.match(r"([\d,]+) of ([\d,]+) nodes?, ([\d,]+)", text).groups()
    return tuple(int(number.replace(",", "")) for number in (nodes, units, edges))


def chosen(browser):
    return browser.run("document.querySelector('.node.chosen')?.dataset.node ?? ''")


def slide(browser, name, value):
    browser.run(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value};"
        "s.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    browser.wait(f"new URLSearchParams(location.hash.slice(1)).get('{name}') === '{value}'")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080), (420, 800)])
@pytest.mark.parametrize("name", ["two", *slow("one", "resnet", "transformer", "large")])
def test_the_page_opens_without_a_complaint_or_a_request(browser, folder, name, size, dark):
    asked, path = len(browser.requests()), folder / f"{name}.html"
    ready(browser, path, *size, dark=dark)
    assert browser.complaints() == []
    beyond = [url for url in browser.requests()[asked:] if not url.startswith("data:")]
    assert beyond == [path.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(COLLISIONS) == []


@pytest.mark.parametrize("width", [1280, *slow(1920)])
@pytest.mark.parametrize("name", ["transformer", *slow("two", "resnet", "large")])
def test_nothing_overlaps_after_the_sliders_moved(browser, folder, name, width):
    for nodes, edges in ((100, 100), (30, 50), (95, 5)):
        ready(
            browser, folder / f"{name}.html", width, 900, fragment=f"#nodes={nodes}&edges={edges}"
        )
        assert browser.run(COLLISIONS) == []
        ready(browser, folder / f"{name}.html", width, 900, fragment=f"#nodes={nodes}&fit=1")
        assert browser.run(COLLISIONS) == []
    for _ in range(4):
        browser.run("document.querySelector('[data-zoom=\"+\"]').click()")
    assert [text for text in browser.run(COLLISIONS) if not text.endswith("outside")] == []


def test_a_graph_of_2000_nodes_and_20000_edges_opens_within_3_seconds(browser, folder):
    ready(browser, folder / "large.html", fragment="#nodes=100&edges=100")
    assert float(browser.run("document.documentElement.dataset.drawn")) < 3000
    nodes, units, edges = count_of(browser)
    assert units == 2000 and nodes > 1800 and edges == 300
    data = browser.run("document.getElementById('graph-0-0').textContent")
    assert sum(len(group["message"]) for group in json.loads(data)["edges"]) == 20_000
    assert "20,000 largest edges; the other" in browser.run(
        "document.querySelector('#detail').innerText"
    )
    start = browser.run("performance.now()")
    slide(browser, "nodes", 50)
    assert browser.run("performance.now()") - start < 3000


def test_the_shown_nodes_are_those_that_python_keeps(browser, folder):
    ready(browser, folder / "two.html", fragment="#nodes=63")
    for panel, seed in ((0, 0), (1, 100)):
        graph = made.cnn_page(1).panels[panel].graphs[0]
        assert graph.name == "digit 0" and seed in (0, 100)
        wanted = {
            f"{layer.name}:{unit}"
            for layer, relevance in zip(graph.layers, graph.relevance, strict=True)
            for unit in kept_nodes(relevance, 0.63)
        }
        query = f"[...document.querySelectorAll('#panel-{panel} .node')].map((n) => n.dataset.node)"
        assert set(browser.run(query)) == wanted


def test_sliders_change_counts_and_the_address(browser, folder):
    ready(browser, folder / "two.html")
    entries = browser.run("history.length")
    before = [count_of(browser, panel) for panel in (0, 1)]
    slide(browser, "nodes", 50)
    fewer = [count_of(browser, panel) for panel in (0, 1)]
    assert all(a[0] > b[0] for a, b in zip(before, fewer, strict=True))
    slide(browser, "edges", 40)
    assert count_of(browser)[2] < fewer[0][2]
    slide(browser, "nodes", 100)
    slide(browser, "edges", 100)
    assert count_of(browser)[2] == 300
    assert re.search(
        r"300 of [\d,]+ edges", browser.run("document.querySelector('.counts').textContent")
    )
    assert browser.run("history.length") == entries
    browser.run("document.getElementById('nodes').focus()")
    browser.press("ArrowLeft")
    browser.wait("location.hash.includes('nodes=99')")
    assert browser.run("document.getElementById('nodes-value').value") == "99%"
    assert browser.complaints() == []


def test_the_sign_filter_shows_one_kind_of_edges(browser, folder):
    ready(browser, folder / "one.html", fragment="#nodes=60&edges=80")
    both = count_of(browser)[2]
    found = []
    for sign in ("positive", "negative"):
        browser.run(f"document.getElementById('sign-{sign}').click()")
        browser.wait(f"location.hash.includes('sign={sign}')")
        found.append(count_of(browser)[2])
    assert min(found) > 0 and sum(found) == both


def test_a_click_on_a_node_shows_what_is_known_of_it(browser, folder):
    ready(browser, folder / "two.html")
    place = """(() => { const box = document.querySelector('#panel-0 [data-node^="conv2:"] rect')
        .getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    name = browser.run("document.querySelector('#panel-0 [data-node^=\"conv2:\"]').dataset.node")
    browser.click(*browser.run(place))
    assert chosen(browser) == name
    text = browser.run("document.getElementById('detail').innerText")
    assert text.startswith(name)
    for piece in (
        "relevance R",
        "bias",
        "this node",
        "a random one",
        "Edges in",
        "Edges out",
        "SGD",
        "LFP",
    ):
        assert piece in text, piece
    assert browser.run("document.querySelectorAll('#detail .examples img').length") in (5, 10)
    browser.wait("location.hash.includes('node=conv2:')")
    # The other model shows the same node, kept there or not.
    assert browser.run("document.querySelectorAll('.node.chosen').length") == 2
    unit = int(name.split(":")[1])
    graph = made.cnn_page(1).panels[0].graphs[0]
    (into,) = [edges.messages[unit] for edges in graph.edges if edges.target == 2]
    first = browser.run("document.querySelector('#detail .bars a').textContent")
    assert first == f"conv1:{np.abs(into).argmax()}"
    browser.run("document.querySelector('#detail .bars a').click()")
    assert chosen(browser) == first
    browser.click(
        *browser.run("""(() => { const box = document.querySelector('#panel-0 svg')
        .getBoundingClientRect(); return [box.x + box.width - 3, box.y + 3]; })()""")
    )
    assert chosen(browser) == ""
    assert browser.complaints() == []


def test_arrow_keys_walk_the_strongest_edges(browser, folder):
    ready(browser, folder / "one.html", fragment="#nodes=100&edges=100")
    graph = made.cnn_page(1, ["LFP"]).panels[0].graphs[0]
    browser.run("document.querySelector('svg.graph').focus()")
    browser.press("ArrowDown")
    assert chosen(browser) == "logits:0"
    at, path = 0, []
    for _, _, messages in graph.edges:
        browser.press("ArrowDown")
        at = int(np.abs(messages[at]).argmax())
        path.append(at)
        assert chosen(browser).endswith(f":{at}")
    assert chosen(browser) == "input:0"
    browser.press("ArrowUp")
    assert chosen(browser) == f"conv1:{np.abs(graph.edges[-1].messages[:, 0]).argmax()}"
    row = browser.run("""[...document.querySelectorAll('[data-node^="conv1:"]')]
        .map((n) => [n.getBoundingClientRect().x, n.dataset.node]).sort((a, b) => a[0] - b[0])
        .map(([, name]) => name)""")
    here = row.index(chosen(browser))
    for key, way in (("ArrowRight", 1), ("ArrowLeft", -1)):
        browser.press(key)
        here = min(len(row) - 1, max(0, here + way))
        assert chosen(browser) == row[here]
    active = browser.run(
        "document.querySelector('svg.graph').getAttribute('aria-activedescendant')"
    )
    assert browser.run(f"document.getElementById('{active}').dataset.node") == chosen(browser)
    browser.wait("document.getElementById('told').textContent.includes('conv1:')")
    browser.press("Escape")
    assert chosen(browser) == ""


def test_search_finds_a_node_or_says_what_there_is(browser, folder):
    ready(browser, folder / "two.html")

    def seek(text):
        browser.run("document.getElementById('find').value = ''")
        browser.run("document.getElementById('find').focus()")
        browser.type(text)
        browser.press("Enter")
        return browser.run("document.getElementById('missing').textContent")

    assert seek("conv2:7") == "" and chosen(browser) == "conv2:7"
    assert seek("conv2:99") == "conv2:99 is not there: conv2 has units 0 to 31."
    assert seek("nowhere:1") == (
        "nowhere:1 is not there. A node is a layer and a unit, as input:0; "
        "layers: input, conv1, conv2, conv3, fc1, logits."
    )
    assert chosen(browser) == "conv2:7"
    assert seek("Digit 4") == "" and chosen(browser) == "logits:4"
    assert browser.run("document.querySelectorAll('.node.pinned').length") == 2
    assert browser.run(COLLISIONS) == []


def test_the_address_restores_what_was_shown(browser, folder):
    fragment = (
        "#class=digit%202&sort=name&nodes=60&edges=70&sign=negative&view=difference&node=conv3:5"
    )
    ready(browser, folder / "two.html", fragment=fragment)
    value = "document.getElementById('{}').value"
    for name, wanted in (
        ("class", "digit 2"), ("sort", "name"), ("nodes", "60"), ("edges", "70"),
        ("find", "conv3:5"),
    ):  # fmt: skip
        assert browser.run(value.format(name)) == wanted
    assert browser.run("document.getElementById('sign-negative').checked")
    assert browser.run("document.getElementById('view-difference').checked")
    assert chosen(browser) == "conv3:5"
    assert (
        browser.run("document.querySelector('#panel-0 h2').textContent") == "LFP \N{MINUS SIGN} SGD"
    )
    browser.run("location.hash = '#nodes=35&class=digit%201'")
    browser.wait("document.getElementById('nodes').value === '35'")
    assert browser.run(value.format("class")) == "digit 1" and chosen(browser) == ""
    ready(
        browser,
        folder / "two.html",
        fragment="#class=horse&nodes=9999&edges=x&sign=?&node=a:b&fit=7",
    )
    assert browser.run(value.format("class")) == "digit 0"
    assert browser.run(value.format("nodes")) == "80" and browser.run(value.format("edges")) == "90"
    assert browser.complaints() == []


def test_classes_are_picked_and_sorted(browser, folder):
    ready(browser, folder / "two.html")
    options = "[...document.getElementById('class').options].map((option) => option.value)"
    assert browser.run(options) == [f"digit {k}" for k in range(4)]
    page = made.cnn_page(4)
    accuracy = {
        f"digit {k}": np.mean([panel.graphs[k].accuracy for panel in page.panels]) for k in range(4)
    }
    change = (
        "(() => {{ const s = document.getElementById('{}'); s.value = '{}';"
        "s.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()"
    )
    browser.run(change.format("sort", "accuracy"))
    assert browser.run(options) == sorted(accuracy, key=accuracy.get)
    before = browser.run("document.querySelector('#panel-0 [data-node]').parentNode.innerHTML")
    browser.run(change.format("class", "digit 3"))
    assert (
        browser.run("document.querySelector('#panel-0 [data-node]').parentNode.innerHTML") != before
    )
    assert browser.run("!!document.querySelector('[data-node=\"logits:3\"]')")
    browser.wait("location.hash.includes('class=digit%203')")


def test_a_class_that_one_model_lacks_is_said(browser, tmp_path):
    panels = [Panel("a", [made.graph(1, name="x")]), Panel("b", [made.graph(1, name="y")])]
    write_graph_page(tmp_path / "lack.html", GraphPage("Two models", panels))
    ready(browser, tmp_path / "lack.html")
    assert (
        browser.run("document.querySelector('#panel-1 .lack').textContent")
        == "b has no graph of class x."
    )
    assert browser.run("document.getElementById('view-difference').disabled")
    assert browser.complaints() == []


def test_a_difference_is_that_of_the_shares(browser, folder):
    ready(browser, folder / "two.html", fragment="#view=difference&nodes=100")
    browser.run("document.getElementById('tables').open = true")
    browser.wait("document.querySelector('.nodes-table tbody tr')")
    rows = browser.run("""[...document.querySelectorAll('.nodes-table tbody tr')]
        .map((row) => [...row.cells].map((cell) => cell.textContent))""")
    a, b = (panel.graphs[0].relevance[2] for panel in made.cnn_page(1).panels)
    wanted = 100 * (b / np.abs(b).sum() - a / np.abs(a).sum())
    found = {row[1]: row[3] for row in rows if row[1].startswith("conv2:")}
    assert len(found) > 10
    for name, text in found.items():
        number = float(re.sub(r"[+%<]", "", text).replace("\N{MINUS SIGN}", "-"))
        if "<" not in text:
            assert number == pytest.approx(wanted[int(name[6:])], rel=0.06, abs=0.06)


def test_tables_and_files_hold_the_same(browser, folder, tmp_path):
    browser.send(
        "Browser.setDownloadBehavior",
        behavior="allow",
        downloadPath=str(tmp_path),
        eventsEnabled=False,
    )
    ready(browser, folder / "one.html")
    browser.run("document.getElementById('tables').open = true")
    browser.wait("document.querySelector('.edges-table tbody tr')")
    nodes, units, edges = count_of(browser)
    assert browser.run("document.querySelectorAll('.nodes-table tbody tr').length") == nodes
    assert browser.run("document.querySelectorAll('.edges-table tbody tr').length") == edges
    for kind in ("nodes", "edges"):
        browser.run(f"document.getElementById('{kind}-csv').click()")
    graph = made.cnn_page(1, ["LFP"]).panels[0].graphs[0]
    messages = sum(int(np.count_nonzero(e.messages)) for e in graph.edges)
    for kind, count in (("nodes", units), ("edges", messages)):
        path = tmp_path / f"{kind}.csv"
        for _ in range(200):
            if path.exists() and path.read_bytes().count(b"\n") == count + 1:
                break
            time.sleep(0.02)
        lines = path.read_text().splitlines()
        assert len(lines) == count + 1
    assert lines[0] == "model,class,from,to,message,drawn"
    assert sum(line.endswith(",1") for line in lines) == edges
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["two", *slow("resnet")])
def test_text_and_lines_stand_out(browser, folder, name, dark):
    node = {"two": "conv2:11", "resnet": "layer3.0.sum:22"}[name]
    for fragment in ("#nodes=90", f"#node={node}"):
        ready(browser, folder / f"{name}.html", dark=dark, fragment=fragment)
        found = browser.run(CONTRAST)
        assert len(found["text"]) > 20
        assert [entry for entry in found["text"] if entry[1] < 4.5] == []
        assert [entry for entry in found["graphics"] if entry[1] < 3] == []


@pytest.mark.slow
def test_edges_are_sharp_on_a_dense_screen(browser, folder):
    ready(browser, folder / "one.html")
    browser.resize(1280, 900, density=2)
    try:
        # A page that nobody looks at is told of its new density with the next picture of it.
        browser.send("Page.captureScreenshot")
        canvas = "document.querySelector('canvas')"
        browser.wait(f"Math.abs({canvas}.width / {canvas}.clientWidth - 2) < 0.01")
    finally:
        browser.resize(1280, 900)
    ink = """(() => { const c = document.querySelector('canvas');
        const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return data.some((value) => value > 0); })()"""
    assert browser.run(ink)


def test_names_are_text_whatever_they_hold(browser, tmp_path):
    layers = [
        Layer(HOSTILE, HOSTILE, 3, {HOSTILE: 0.1}, [HOSTILE + str(k) for k in range(3)]),
        Layer("fc:1", "linear", 2),
        Layer("out", "output", 2, {}, ["=1+1", HOSTILE]),
    ]
    graph = made.three_layers(name=HOSTILE, layers=layers, examples={("fc:1", 0): [0]})
    page = GraphPage(
        HOSTILE,
        [Panel(HOSTILE, [graph])],
        [Example(HOSTILE, np.ones((1, 2, 2)))],
        {HOSTILE: HOSTILE},
    )
    write_graph_page(tmp_path / "hostile.html", page)
    ready(browser, tmp_path / "hostile.html", fragment="#node=fc:1:0")
    assert browser.complaints() == []
    assert browser.run("document.title") == HOSTILE.replace("\u2028", "\u2028")
    assert browser.run("document.querySelectorAll('script:not([type])').length") == 1
    assert browser.run("document.querySelectorAll('img').length") == 1
    assert chosen(browser) == "fc:1:0"
    browser.run("document.getElementById('tables').open = true")
    browser.wait("document.querySelector('.nodes-table tbody tr')")
    assert HOSTILE in browser.run("document.querySelector('.nodes-table').textContent")
    assert browser.run(COLLISIONS) == []
    assert browser.complaints() == []


def test_the_page_tells_a_screen_reader_what_there_is(browser, folder):
    ready(browser, folder / "two.html")
    browser.wait("document.getElementById('told').textContent")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    names = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n}
    for role, name in (
        ("heading", "SGD"), ("slider", "nodes kept"), ("combobox", "class"), ("searchbox", "find"),
        ("radio", "against"), ("button", "Zoom in"), ("complementary", "This class"),
    ):  # fmt: skip
        assert any(r == role and n.startswith(name) for r, n in names), (role, name, sorted(names))
    assert any(r == "application" and "class digit 0" in n for r, n in names)


def test_without_script_a_static_picture_is_there(browser, folder):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(folder / "two.html")
        snapshot = browser.send("Accessibility.getFullAXTree")["nodes"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    names = [node.get("name", {}).get("value", "") for node in snapshot]
    assert sum(name.startswith("Attribution graph of class digit 0") for name in names) == 2


def test_the_page_prints(browser, folder):
    ready(browser, folder / "two.html", dark=True)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    assert not browser.run("document.documentElement.classList.contains('printing')")


def test_a_notebook_shows_the_page_in_a_frame_that_reaches_nothing(browser, tmp_path):
    frame = notebook_html(made.cnn_page(1, ["LFP"]))
    assert frame.startswith("<iframe ") and 'sandbox="allow-scripts allow-downloads"' in frame
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><link rel=icon href='data:,'><body>" + frame)
    asked = len(browser.requests())
    browser.open(path)
    assert [u for u in browser.requests()[asked:] if not u.startswith(("data:", "about:"))] == [
        path.as_uri()
    ]
    assert browser.complaints() == []
    # The frame is cut off from the page around it, so it is looked at from outside.
    assert browser.run("document.querySelector('iframe').contentDocument") is None
    browser.run_in_frame("document.documentElement.dataset.drawn")
    assert browser.run_in_frame("document.querySelectorAll('.node').length") == 38
    browser.run_in_frame("document.getElementById('sign-negative').click() ?? true")
    # It has no address to keep the state in, and says nothing about that.
    time.sleep(0.4)
    assert browser.run_in_frame("[document.getElementById('sign-negative').checked]") == [True]
    assert browser.complaints() == []
