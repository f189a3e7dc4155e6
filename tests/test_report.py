"""The report: what it says, that it says it honestly, and that nothing in it runs or loads."""

import base64
import hashlib
import html
import io
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import chromium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_fixture import config, gini, results, write_run

from attrain.errors import AttrainError, InputError
from attrain.report import raster, verdict_lines, write_report
from attrain.report.axis import error_axis, kept_axis, linear_axis, log_axis
from attrain.report.chart import spread_apart
from attrain.report.folder import methods_of, read_run
from attrain.report.measures import (
    MEASURES,
    accuracy_sentence,
    best_method,
    cost_sentence,
    removal_sentence,
)
from attrain.report.numbers import PERCENT, PLAIN, STEP_TIME, fixed, interval, spread, unit_for
from attrain.report.palette import LIGHT, css, label
from attrain.report.raster import png
from attrain.report.sections import SECTIONS, weights
from attrain.report.sections.curves import mean_curve
from attrain.report.sections.faithfulness import mean_removal
from attrain.report.sections.pruning import mean_pruning
from attrain.report.sections.robustness import mean_robustness
from attrain.report.sections.saliency import concentration

MEASURE = {measure.key: measure for measure in MEASURES}
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m"
OVERLAPS = """[...document.querySelectorAll("svg.chart")].flatMap((chart) => {
    const texts = [...chart.querySelectorAll("text")].filter((t) => t.getClientRects().length);
    const boxes = texts.map((text) => text.getBoundingClientRect());
    return texts.flatMap((text, i) => boxes.slice(0, i).flatMap((box, j) =>
        Math.min(box.right, boxes[i].right) - Math.max(box.left, boxes[i].left) > 1 &&
        Math.min(box.bottom, boxes[i].bottom) - Math.max(box.top, boxes[i].top) > 4
            ? [text.textContent + " | " + texts[j].textContent] : []));
})"""
VOID = {"meta", "link", "img", "input", "br", "hr"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A whole run on images, with its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def swirl(tmp_path_factory):
    """A whole run on two-dimensional data, with its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "swirl", samples=0, boundary=True)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    binary = chromium.find()
    if binary is None:
        pytest.skip("no chromium on this machine")
    with chromium.Page(binary) as page:
        yield page


class Balanced(HTMLParser):
    """Collects elements and complains about tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)


def parse(text):
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def words(folder):
    """Return the text of the report as a person reads it."""
    return " ".join(" ".join(parse(page(folder)).words).split())


def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def measured(mean, std=0.01, n=3):
    return {"mean": mean, "std": std if n > 1 else None, "values": [mean] * n}


def two_methods(first, second, low, high, key="test_accuracy", n=3):
    """Results of two methods that differ by an interval."""
    clear = low is not None and (low > 0 or high < 0)
    gap = {"mean": second - first, "low": low, "high": high, "n": n, "clear": clear}
    seeds = list(range(n))
    return {
        "schema": 1,
        "methods": {
            "sgd": {"seeds": seeds, key: measured(first, n=n)},
            "lfp": {"seeds": seeds, key: measured(second, n=n)},
        },
        "differences": {"lfp": {"baseline": "sgd", key: gap}},
    }


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# The page ---------------------------------------------------------------------------------------


def test_the_report_has_its_sections_in_order(digits, swirl):
    def anchors(folder):
        return re.findall(r'<section id="(\w+)"', page(folder))

    judged = ["faithfulness", "robustness"]
    assert anchors(digits) == ["verdict", "curves", "weights", "saliency", *judged, "checks"]
    assert anchors(swirl) == ["verdict", "curves", "weights", "boundary", *judged, "checks"]


def test_every_section_begins_with_a_sentence(digits, swirl):
    for folder in (digits, swirl):
        sentences = re.findall(r'<p class="sentence">(.*?)</p>', page(folder))
        assert len(sentences) == page(folder).count("<section ")
        for sentence in sentences:
            assert re.fullmatch(r"[A-Z0-9].*\.", html.unescape(sentence)), sentence


def test_every_section_of_the_registry_has_a_template():
    folder = Path(sys.modules["attrain.report"].__file__).parent / "templates" / "sections"
    assert {section.name for section in SECTIONS} == {path.stem for path in folder.glob("*.html")}


def test_the_report_is_small_and_written_whole(digits):
    assert (digits / "report.html").stat().st_size < 1_000_000
    assert list(digits.glob(".report*")) == []
    assert page(digits).endswith("</html>\n") or page(digits).endswith("</html>")


def test_the_report_is_the_same_each_time(digits):
    before = page(digits)
    write_report(str(digits))
    assert page(digits) == before


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    write_report(folder)
    before = page(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(AttrainError, match="the disk is full"):
        write_report(folder)
    assert page(folder) == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_tags_close_and_identifiers_are_unique(digits, swirl):
    for folder in (digits, swirl):
        tags = parse(page(folder)).tags
        names = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(names) == len(set(names))
        for _, attributes in tags:
            for key in ("for", "aria-labelledby"):
                assert attributes.get(key, names[0]) in names
            assert (attributes.get("href") or "#")[1:] in ["", *names] or attributes["href"][
                0
            ] != "#"


def test_pictures_and_charts_have_words_for_those_who_cannot_see_them(digits, swirl):
    for folder in (digits, swirl):
        for tag, attributes in parse(page(folder)).tags:
            if tag == "img":
                assert attributes["alt"]
            if tag == "svg":
                hidden = attributes.get("aria-hidden") == "true" or attributes.get("x")
                assert hidden or attributes["aria-label"], attributes


def test_the_page_has_landmarks_headings_and_a_skip_link(digits):
    tags = parse(page(digits)).tags
    names = [tag for tag, _ in tags]
    assert [names.count(tag) for tag in ("h1", "main", "header", "nav", "footer")] == [1] * 5
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert next(a for tag, a in tags if tag == "a")["class"] == "skip"


def test_the_policy_lets_in_this_style_and_this_script_alone(digits):
    text = page(digits)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert " style=" not in text
    assert not re.search(r"\son\w+=", re.sub(r"<script>.*?</script>", "", text, flags=re.S))


def test_nothing_points_outside_the_page(digits, swirl):
    for folder in (digits, swirl):
        for _, attributes in parse(page(folder)).tags:
            for key in ("href", "src", "action", "srcset", "xlink:href"):
                assert (attributes.get(key) or "#")[:1] == "#" or attributes[key][:5] == "data:"
        assert not re.search(r"@import|url\(", page(folder))


def test_every_plot_has_its_data_as_csv(digits):
    files = re.findall(
        r'download="([\w.-]+)" href="data:text/csv;charset=utf-8,([^"]*)"', page(digits)
    )
    files = {name: unquote(text).splitlines() for name, text in files}
    assert set(files) == {
        "verdict.csv", "learning-curves.csv", "weights.csv", "gini.csv", "pruning.csv",
        "saliency.csv", "accuracy-drop.csv", "robustness.csv",
    }  # fmt: skip
    assert len(files["learning-curves.csv"]) == 1 + 3 * 3 * 30
    assert files["learning-curves.csv"][1].startswith("sgd,0,1,45,")
    assert len(files["pruning.csv"]) == 1 + 3 * 3 * 2 * 16
    assert len(files["saliency.csv"]) == 1 + 3 * 18
    assert len(files["accuracy-drop.csv"]) == 1 + 3 * 3 * 2 * 2 * 10
    assert len(files["robustness.csv"]) == 1 + 3 * 3 * 3 * 6
    wanted = json.loads((digits / "results.json").read_text())["methods"]["lfp"]["gini"]["mean"]
    row = next(line for line in files["verdict.csv"] if line.startswith("lfp,gini,"))
    assert float(row.split(",")[2]) == pytest.approx(wanted, rel=1e-5)


def test_each_method_has_one_colour_and_dash_everywhere(digits):
    text = page(digits)
    assert text.count('data-method="') == 3 + text.count('[data-method="')
    for place in range(3):
        assert f".m{place} {{--c: var(--m{place}); --dash:" in text
    assert css(20).count("--dash") == 20
    rules = re.findall(r"--c: var\(--m(\d+)\); --dash: ([^;]+);", css(16))
    looks = {(LIGHT[int(place) % len(LIGHT)], dash) for place, dash in rules}
    assert len(looks) == 16


def test_the_report_needs_no_torch(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    program = (
        "import sys\n"
        "from attrain.report import write_report\n"
        f"write_report({str(folder)!r})\n"
        "heavy = {'torch', 'captum', 'sklearn', 'scipy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stderr, run.stdout) == ("", "[]\n")


# Hostile and damaged folders --------------------------------------------------------------------


def test_hostile_names_and_warnings_are_only_text(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd", "lfp"], seeds=2, epochs=3, samples=3)

    def poison_config(value):
        value["warnings"] = [HOSTILE]
        value["command"] = value["started"] = HOSTILE
        value["data"]["name"] = value["model"]["name"] = HOSTILE
        value["methods"][HOSTILE] = {"description": HOSTILE, "citation": HOSTILE, HOSTILE: HOSTILE}
        value["versions"][HOSTILE] = HOSTILE
        value["training"][HOSTILE] = {HOSTILE: [HOSTILE]}
        value["tuning"][0] |= {"parameter": HOSTILE, "criterion": HOSTILE, "chosen": HOSTILE}

    def poison_results(value):
        value["methods"][HOSTILE.replace("/", "")] = value["methods"]["lfp"]
        value["rows"] = [{"name": HOSTILE, "paper": 1, "ours": {"mean": 2, "std": 1, "n": 3}}]
        value["claims"] = [{"claim": HOSTILE, "source": HOSTILE, "holds": True, "figure": HOSTILE}]

    def poison_samples(value):
        value["classes"] = [HOSTILE] * 10
        value["methods"][HOSTILE.replace("/", "")] = value["methods"]["lfp"]

    def poison_weights(value):
        for layer in value["weights"]["layers"]:
            layer["name"] = HOSTILE
        value["pruning"][HOSTILE] = value["pruning"]["magnitude-global"]

    rewrite(folder / "config.json", poison_config)
    rewrite(folder / "results.json", poison_results)
    rewrite(folder / "samples.json", poison_samples)
    for path in folder.glob("*/*/analysis.json"):
        rewrite(path, poison_weights)
    (folder / "boundary.json").write_text(
        json.dumps(
            {
                "x": [0, 1],
                "y": [0, 1],
                "size": 2,
                "classes": [HOSTILE, HOSTILE],
                "points": [[0.5, 0.5, 1], [HOSTILE, 1, 1]],
                "methods": {"lfp": {"seed": 0, "classes": [[0, 1], [1, 1]]}},
            }
        )
    )
    write_report(folder)
    text = page(folder)
    tags = [tag for tag, _ in parse(text).tags]
    assert tags.count("script") == 1
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") > 20
    assert not any(key.startswith("on") for _, attributes in parse(text).tags for key in attributes)
    lines = verdict_lines(json.loads((folder / "results.json").read_text()))
    assert all(line.isprintable() and len(line) <= 100 for line in lines)


@pytest.mark.parametrize("name", ["../outside", "..", "a/b", ""])
def test_a_method_name_never_leads_out_of_the_folder(tmp_path, name):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    write_run(tmp_path / "outside", methods=["sgd"], seeds=1, epochs=1, samples=0)
    rewrite(folder / "results.json", lambda value: value["methods"].update({name: {"seeds": [0]}}))
    run = read_run(folder)
    assert run.runs[name] == ()
    assert "is no folder name; its runs were not read." in " ".join(run.problems)


def test_a_folder_without_results_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"has no results\.json.*--resume"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_refused_with_both_numbers(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 2, "methods": {}}')
    with pytest.raises(InputError, match=r"has schema 2, this attrain reads schema 1\."):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="has schema None"):
        write_report(tmp_path)


def test_truncated_results_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1, "methods": {"sgd"')
    with pytest.raises(InputError, match="cannot be read .*--resume"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "content", [{}, {"methods": {}}, {"methods": []}, {"methods": {"sgd": None}, "differences": 3}]
)
def test_results_without_anything_still_make_a_page(tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, **content}))
    write_report(tmp_path)
    assert "config.json is missing" in words(tmp_path)
    assert verdict_lines(content)[0] == "No method has results yet."


def test_a_method_without_metrics_is_named(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd", "lfp"], seeds=2, epochs=3, samples=0)
    rewrite(folder / "results.json", lambda value: value["methods"].pop("lfp"))
    shutil.rmtree(folder / "lfp")
    write_report(folder)
    text = words(folder)
    assert "No results yet for LFP." in text
    assert "No learning curves yet for LFP." in text
    assert "No analysis yet for LFP." in text


def test_without_any_analysis_or_metrics_there_are_sentences(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    shutil.rmtree(folder / "sgd")
    write_report(folder)
    assert "there is no metrics.jsonl in the folder." in words(folder)
    assert "there is no analysis.json in the folder." in words(folder)


def test_one_seed_is_told_to_allow_no_interval(tmp_path):
    folder = write_run(tmp_path / "run", seeds=1, epochs=4, samples=0)
    write_report(folder)
    text = words(folder)
    assert "One seed allows no interval" in text
    assert "no clear difference" not in text
    assert "<td><strong>" not in page(folder)
    assert (
        "One seed allows no interval"
        in verdict_lines(json.loads((folder / "results.json").read_text()))[-1]
    )


def test_samples_without_inputs_get_a_sentence(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    (folder / "samples.json").write_text('{"classes": [], "samples": [], "methods": {}}')
    write_report(folder)
    assert "samples.json holds no explained input." in words(folder)


def test_evidence_is_framed(tmp_path):
    frame = np.zeros((4, 5), dtype=bool)
    frame[0:3, 1:5] = True
    inner = np.zeros((4, 5), dtype=bool)
    inner[1, 2:4] = True
    grey = raster.photograph(np.full((1, 4, 5), 0.5), frame)
    heat = raster.heat_map(np.full((4, 5), 2.0), 2.0, frame)
    for address, plain in ((grey, [128] * 3), (heat, raster.colours()[-1])):
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
        assert image.shape == (4, 5, 3)
        assert (image[~frame | inner] == plain).all()
        assert (image[frame & ~inner] == [0, 208, 240]).all()


@pytest.mark.parametrize(
    "evidence", [[[1.0] * 8] * 7, "box", None], ids=["another shape", "no numbers", "in some"]
)
def test_evidence_that_does_not_fit_is_told_and_left_out(tmp_path, evidence):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=2)

    def give(value):
        value["samples"][0]["evidence"] = evidence
        value["samples"][1]["evidence"] = [[1.0] * 8] * (7 if evidence else 8)

    rewrite(folder / "samples.json", give)
    write_report(folder)
    text = words(folder)
    assert "The evidence in samples.json does not fit its inputs." in text
    assert "The frame holds" not in text and "Saliency side by side" in text


def test_a_damaged_line_of_metrics_is_told_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=2, epochs=5, samples=0)
    path = folder / "sgd" / "seed-1" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:20]]))
    write_report(folder)
    text = words(folder)
    assert "1 lines of metrics.jsonl of sgd, seed 1 are damaged and were left out." in text
    assert "The seeds of SGD have 3 to 5 epochs" in text


DAMAGE = [
    lambda v: v.update(x=[1, 0]),
    lambda v: v.update(methods={"sgd": {"classes": [[0, 1]]}}),
    lambda v: v.update(methods={"sgd": {"classes": [["a"]]}}),
    lambda v: v.update(methods={}),
    lambda v: v.update(samples=[{"pixels": [[1]], "label": 1}]),
    lambda v: v.update(samples=[{"label": 1}]),
    lambda v: v["methods"]["sgd"].update(saliency=[[1]]),
    lambda v: v["methods"]["sgd"].update(predictions=[1]),
    lambda v: v["methods"]["sgd"].update(confidence=["high"] * 2),
    lambda v: v.update(weights={"bin_edges": [0, 1], "layers": [{"counts": [1, 2]}]}),
    lambda v: v.update(weights={"bin_edges": "none", "layers": []}),
    lambda v: v.update(weights=[], pruning=[]),
    lambda v: v["pruning"].update({"magnitude-global": {"removed": [0, 1], "accuracy": [1]}}),
    lambda v: v["pruning"].update({"magnitude-global": {"removed": [0], "accuracy": [None]}}),
    lambda v: v.update(pruning={"magnitude-local": {"removed": [1], "accuracy": [0.1]}}),
    lambda v: v.update(pruning={"magnitude-local": {"removed": [0.3], "accuracy": [0.1]}}),
    lambda v: v["weights"]["layers"].pop(),
    lambda v: v["weights"].pop("gini"),
    lambda v: v.update(faithfulness=[1], robustness="none"),
    lambda v: v.update(faithfulness={"backgrounds": {"corner": 1}}, robustness={"pgd": {}}),
    lambda v: v["faithfulness"]["backgrounds"]["mean"].pop("random"),
    lambda v: v["faithfulness"].pop("samples"),
    lambda v: v["robustness"]["pgd"].update(of_correct=[None] * 6),
    lambda v: v["robustness"]["fgsm"].update(overall=[0.5]),
    lambda v: v["robustness"].pop("noise"),
    lambda v: v["robustness"]["pgd"].update(sizes=[0.0, 1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize("change", DAMAGE)
def test_damaged_pieces_never_break_the_page(tmp_path, change):
    folder = write_run(
        tmp_path / "run", methods=["sgd"], seeds=2, epochs=2, samples=2, boundary=True
    )
    for path in [
        folder / "boundary.json",
        folder / "samples.json",
        folder / "sgd" / "seed-0" / "analysis.json",
    ]:
        value = json.loads(path.read_text())
        try:
            change(value)
        except KeyError:
            continue
        path.write_text(json.dumps(value))
    write_report(folder)
    parse(page(folder))


def test_unreadable_files_are_listed_under_checks(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=1, samples=0)
    for name in ("samples.json", "boundary.json", "config.json"):
        (folder / name).write_text('{"x": ')
    write_report(folder)
    for name in ("samples.json", "boundary.json", "config.json"):
        assert f"{name} of run cannot be read" in words(folder)


def test_a_run_that_diverged_is_drawn_without_its_holes(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd"], seeds=1, epochs=4, samples=0)
    path = folder / "sgd" / "seed-0" / "metrics.jsonl"
    text = re.sub(r'("epoch": 3.*?"test_loss": )[\d.]+', r"\1NaN", path.read_text())
    path.write_text(text.replace('"epoch": 4', '"epoch": 4, "train_loss": Infinity'))
    write_report(folder)
    assert "nan" not in re.sub(r"base64,\S+", "", page(folder)).lower()


def test_a_long_run_of_many_methods_stays_readable(tmp_path):
    names = [f"method-{k}" for k in range(12)]
    folder = write_run(tmp_path / "run", methods=names, seeds=2, epochs=400, samples=4)
    write_report(folder)
    text = page(folder)
    assert len(text) < 6_000_000
    (table,) = re.findall(r"<caption>Learning curves.*?</table>", text, re.S)
    assert table.count("<tr>") < 65
    lines = verdict_lines(json.loads((folder / "results.json").read_text()))
    assert max(map(len, lines)) <= 100


# Explanations and robustness --------------------------------------------------------------------


def stored(folder, method, seed):
    return json.loads((folder / method / f"seed-{seed}" / "analysis.json").read_text())


def test_the_faithfulness_section_tells_the_gap_to_random_orders_and_warns(digits):
    text = words(digits)
    gaps = json.loads((digits / "results.json").read_text())["methods"]
    said = re.search(r"below that of a random order, in the mean, by: (.*?)\.(?: |$)", text)[1]
    for name in ("SGD", "LFP", "SGD-L1"):
        (told,) = re.findall(rf"(?:^| ){name} ([\d.]+) points", said)
        assert float(told) == pytest.approx(
            100 * gaps[name.lower()]["faithfulness"]["mean"], abs=0.6
        )
    assert "Inputs off the distribution." in text and "Hooker et al., 2019" in text
    assert "(saliency) for the predicted class on 256 test examples" in text
    for title in ("Replaced by the image's own corner pixel", "Replaced by the mean of the train"):
        assert title in text


def test_every_method_has_its_curve_and_the_rings_of_its_random_order(digits):
    (body,) = re.findall(r'<section id="faithfulness".*?</section>', page(digits), re.S)
    charts = re.findall(r'<svg class="chart".*?</svg>', body, re.S)
    assert len(charts) == 2
    for chart in charts:
        assert chart.count('class="ring"') == 3 * 10 and chart.count('class="thick"') == 3
        assert chart.count('class="thin"') == 3 * 3
        for name in ("SGD", "LFP", "SGD-L1"):
            assert f'data-name="{name}"' in chart and f'data-name="{name}, random order"' in chart
    run = read_run(digits)
    for order in ("accuracy", "random"):
        shares, accuracy = mean_removal(run, "lfp", "mean", order)
        wanted = [
            stored(digits, "lfp", seed)["faithfulness"]["backgrounds"]["mean"][order]
            for seed in range(3)
        ]
        assert shares.tolist() == pytest.approx([k / 10 for k in range(10)])
        assert accuracy.tolist() == pytest.approx(np.mean(wanted, axis=0).tolist())
        assert f"<td>{100 * accuracy[3]:.1f}%</td>" in body


def test_the_robustness_section_tells_accuracies_where_half_is_lost(digits):
    run = read_run(digits)
    curves = {name: mean_robustness(run, name, "pgd") for name in run.runs}
    first = next(
        k for k in range(6) if any(y[k] < y[0] / 2 for _, y in curves.values())
    )  # fmt: skip
    x, y = curves["lfp"]
    assert f"Under PGD of up to {100 * x[first]:g}% of an input's range, accuracy is SGD" in words(
        digits
    )
    assert f"LFP {100 * y[first]:.1f}%" in words(digits)
    assert "PGD takes 10 steps from 1 random start" in words(digits)
    (body,) = re.findall(r'<section id="robustness".*?</section>', page(digits), re.S)
    assert len(re.findall(r'<svg class="chart"', body)) == 3


def test_a_model_without_gradients_is_not_called_robust(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd", "lfp"], seeds=1, epochs=2, samples=0)
    write_report(folder)
    assert "the gradient is 0 for" not in words(folder)

    def masked(value):
        value["robustness"]["pgd"]["without_gradient"] = 0.75
        value["robustness"]["fgsm"]["without_gradient"] = 0.75

    rewrite(folder / "lfp" / "seed-0" / "analysis.json", masked)
    write_report(folder)
    assert "LFP: the gradient is 0 for 75.0% of the inputs" in words(folder)


def test_runs_without_these_measures_have_no_such_sections(tmp_path):
    folder = write_run(tmp_path / "run", methods=["sgd", "lfp"], seeds=1, epochs=2, samples=0)
    for name in ("sgd", "lfp"):
        rewrite(
            folder / name / "seed-0" / "analysis.json",
            lambda v: (v.pop("faithfulness"), v.pop("robustness")),
        )
        write_report(folder)
        half = name == "sgd"
        assert ('id="robustness"' in page(folder)) is half
        assert ("Not measured yet: SGD." in words(folder)) is half


# What the verdict may say -----------------------------------------------------------------------


def test_only_a_clear_lead_is_bold(digits):
    stored = json.loads((digits / "results.json").read_text())
    clear = stored["differences"]["lfp"]["gini"]["clear"]
    assert clear
    assert best_method(methods_of(stored), MEASURE["gini"]) == "lfp"
    assert not stored["differences"]["lfp"]["test_accuracy"]["clear"]
    assert best_method(methods_of(stored), MEASURE["test_accuracy"]) is None
    assert "no clear difference" in words(digits)
    assert page(digits).count("<strong>") >= 2


def test_the_first_method_leads_only_where_all_others_differ():
    stored = two_methods(0.98, 0.95, -0.05, -0.01)
    assert best_method(methods_of(stored), MEASURE["test_accuracy"]) == "sgd"
    stored["methods"]["x"] = {"seeds": [0, 1, 2], "test_accuracy": measured(0.97)}
    assert best_method(methods_of(stored), MEASURE["test_accuracy"]) is None


def test_lower_is_better_where_the_measure_says_so():
    stored = two_methods(0.20, 0.10, -0.15, -0.05, key="test_loss")
    assert best_method(methods_of(stored), MEASURE["test_loss"]) == "lfp"


def test_clear_without_an_interval_is_not_believed():
    stored = two_methods(0.9, 0.95, None, None)
    stored["differences"]["lfp"]["test_accuracy"]["clear"] = True
    assert best_method(methods_of(stored), MEASURE["test_accuracy"]) is None


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.001, 0.02, "On test accuracy LFP at 98% is clearly above SGD (97%)."),
        (-0.01, 0.03, "On test accuracy there is no clear difference to SGD (97%): LFP 98%."),
    ],
)
def test_the_sentence_on_accuracy(low, high, sentence):
    assert accuracy_sentence(methods_of(two_methods(0.97, 0.98, low, high))) == sentence


def test_the_sentence_on_accuracy_of_one_method_or_seed():
    stored = two_methods(0.97, 0.98, None, None, n=1)
    assert accuracy_sentence(methods_of(stored)) == (
        "Test accuracy: SGD 97.0% and LFP 98.0%. One seed allows no interval, "
        "so no difference here can be called clear."
    )
    del stored["methods"]["lfp"]
    assert "no other method is there to compare it with" in accuracy_sentence(methods_of(stored))
    assert accuracy_sentence([]) == "No method has a test accuracy yet."


@pytest.mark.parametrize(
    ("first", "second", "low", "high", "sentence"),
    [
        (0.86, 0.97, 0.05, 0.2, "LFP keeps 97% test accuracy where SGD falls to 86%."),
        (0.97, 0.86, -0.2, -0.05, "LFP falls to 86% test accuracy where SGD keeps 97%."),
        (
            0.86,
            0.97,
            -0.05,
            0.2,
            "there is no clear difference between LFP at 97% test accuracy and SGD at 86%.",
        ),
    ],
)
def test_the_sentence_on_removed_weights(first, second, low, high, sentence):
    stored = two_methods(first, second, low, high, key="accuracy_90_removed")
    assert removal_sentence(methods_of(stored)) == f"With 90% of the weights removed {sentence}"


def test_the_sentence_on_removed_weights_names_the_rival():
    stored = two_methods(0.86, 0.97, 0.05, 0.2, key="accuracy_90_removed")
    stored["methods"]["sgd-l1"] = {"seeds": [0, 1], "accuracy_90_removed": measured(0.96)}
    assert removal_sentence(methods_of(stored)).endswith("SGD falls to 86%; SGD-L1 is at 96%.")


def test_the_weights_tell_how_many_signs_have_changed(digits):
    sentence = weights.fill(read_run(digits)).sentence
    assert re.search(r"; weights that changed their sign: SGD 12.0%, LFP 5.00% and", sentence), (
        sentence
    )


def test_the_sentence_on_cost_is_a_ratio():
    stored = two_methods(0.002, 0.0021, 0.00005, 0.00015, key="step_cpu_s")
    assert cost_sentence(methods_of(stored)) == (
        "CPU time of a step relative to SGD: 1.05 for LFP."
    )


def test_terminal_lines_are_aligned_and_narrow(digits):
    lines = verdict_lines(json.loads((digits / "results.json").read_text()))
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:2] == ["accuracy", "(%)"]
    assert [line.split()[0] for line in lines[1:6]] == [
        "SGD",
        "LFP",
        "against",
        "SGD-L1",
        "against",
    ]
    ends = [[m.end() for m in re.finditer(r"± [\d.]+", line)] for line in (lines[1], lines[2])]
    assert ends[0] == ends[1]
    text = "\n".join(lines)
    assert "no clear difference" in text and " *" in text
    assert "\N{MINUS SIGN}" not in text and "\x1b" not in text


def test_terminal_lines_of_one_method():
    stored = two_methods(0.97, 0.98, 0.001, 0.02)
    del stored["methods"]["lfp"], stored["differences"]
    assert verdict_lines(stored) == ["      accuracy (%)", "SGD         97 ± 1", ""]


def test_a_study_shows_the_paper_beside_ours(tmp_path):
    stored = {
        "schema": 1,
        "kind": "study",
        "id": "table-3",
        "rows": [{"name": "accuracy", "paper": 0.91, "ours": {"mean": 0.92, "std": 0.01, "n": 5}}],
        "claims": [
            {"claim": "it holds", "source": "p. 3", "holds": True, "figure": 0.5},
            {"claim": "it fails", "source": "p. 4", "holds": False, "figure": None},
            {"claim": "who knows", "source": "p. 5", "holds": "unclear", "figure": None},
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(stored))
    write_report(tmp_path)
    text = words(tmp_path)
    assert "Study table-3" in text
    assert "Of 3 claims, 1 hold, 1 do not, 1 are unclear." in text
    assert "0.92 ± 0.01" in text and "0.910" in text and "does not hold" in text


def test_checks_show_what_is_needed_to_trust_and_repeat_the_run(digits):
    text = words(digits)
    for piece in (
        "attrain compare --data digits --methods sgd lfp sgd-l1",
        "attrain report digits",
        "torch 2.15.0",
        "Made with seeds 0, 1 and 2; one warning",
        "3 of 64 units of fc1 are exactly zero",
        "validation accuracy at 90% removed",
        "rule: epsilon, scale: relative, epsilon: 1e-06",
        "Layer-wise Feedback Propagation, 2024 (LFP)",
    ):
        assert piece in text, piece


# Numbers, axes, images --------------------------------------------------------------------------


def test_numbers_show_the_digits_that_the_spread_supports():
    unit = PERCENT[0]
    assert spread(0.97412, 0.0032, unit) == "97.4 ± 0.3"
    assert spread(0.97412, 0.016, unit) == "97 ± 2"
    assert spread(0.97412, None, unit) == "97.4"
    assert spread(0.97412, 0.0, unit) == "97.4 ± 0.0"
    assert spread(0.5, 1e-12, unit) == "50.00 ± 0.00"
    assert interval(0.004, -0.002, 0.010, unit) == ("+0.4", "\N{MINUS SIGN}0.2 to +1.0")
    assert interval(0.11, 0.003, 0.217, unit) == ("+11.0", "+0.3 to +21.7")
    assert fixed(-0.0001, 1) == "0.0"
    assert fixed(math.nan, 1) == "\N{EN DASH}"
    assert unit_for(STEP_TIME, [0.0004, 0.002]).name == "\N{MICRO SIGN}s"
    assert unit_for(STEP_TIME, [0.004, 0.02]).name == "ms"


@given(
    st.floats(-1e9, 1e9), st.floats(0, 1e9), st.floats(0, 1e9), st.sampled_from([*PERCENT, *PLAIN])
)
def test_an_interval_that_excludes_zero_is_never_written_with_a_zero(low, wide, std, unit):
    high = low + wide
    mean, ends = interval((low + high) / 2, low, high, unit)
    assert mean and " to " in ends
    if low > 1e-6 and low >= wide / 100:
        assert not re.match(r"\+0(\.0*)? to", ends), ends
    assert spread(low, std, unit)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.sampled_from([linear_axis, log_axis]),
)
def test_axes_hold_their_values_and_rising_ticks(values, axis_of):
    values = np.array(values)
    axis = axis_of("x", values)
    places = axis.place(values, 0.0, 100.0)
    assert np.isfinite(places).all()
    assert (places >= -1e-6).all() and (places <= 100 + 1e-6).all()
    ticks = [value for value, _ in axis.ticks]
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 14


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_warped_axes_keep_the_order(shares):
    shares = np.sort(shares)
    for axis, values in (
        (error_axis("x", 100 * shares), 100 * shares),
        (kept_axis("x", shares), shares),
    ):
        places = axis.place(values, 0.0, 100.0)
        assert np.isfinite(places).all()
        assert (np.diff(places) >= -1e-9).all()
        assert places.min() >= -1e-6


@given(st.lists(st.floats(0, 200), max_size=8), st.floats(1, 20))
def test_labels_at_the_ends_of_curves_never_overlap(places, gap):
    moved = spread_apart(sorted(places), gap, 0.0, 200.0)
    assert all(b - a >= gap - 1e-6 for a, b in zip(moved, moved[1:], strict=False))
    assert all(place <= 200 for place in moved)


def test_the_mean_curve_is_the_mean_over_the_seeds_that_reached_an_epoch(digits):
    run = read_run(digits)
    steps, accuracy = mean_curve(run.runs["lfp"], "step", "test_accuracy")
    for k in range(30):
        total = sum(seed.epochs[k]["test_accuracy"] for seed in run.runs["lfp"])
        assert accuracy[k] == pytest.approx(total / 3, abs=1e-12)
        assert steps[k] == run.runs["lfp"][0].epochs[k]["step"]


def test_the_mean_pruning_curve_is_the_mean_over_seeds(digits):
    run = read_run(digits)
    removed, accuracy = mean_pruning(run.runs["sgd"], "magnitude-local")
    for k, share in enumerate(removed):
        total = 0.0
        for seed in run.runs["sgd"]:
            shares, values = seed.pruning["magnitude-local"]
            total += dict(zip(shares, values, strict=True))[share]
        assert accuracy[k] == pytest.approx(total / 3, abs=1e-12)


def test_concentration_is_the_share_of_the_strongest_tenth():
    maps = np.random.default_rng(0).random((3, 5, 8))
    for found, one in zip(concentration(maps), maps, strict=True):
        values = sorted((value for row in one for value in row), reverse=True)
        assert found == pytest.approx(sum(values[:4]) / sum(values), abs=1e-12)
    assert concentration(np.zeros((1, 4, 4))).tolist() == [0.0]


def decoded(data):
    """Read a PNG of ours back: size, colour type and raw rows."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, body, palette, head = 8, b"", None, None
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, chunk = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        check = struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0]
        assert check == zlib.crc32(name + chunk)
        head = struct.unpack(">IIBBBBB", chunk) if name == b"IHDR" else head
        palette = chunk if name == b"PLTE" else palette
        body += chunk if name == b"IDAT" else b""
        place += 12 + length
    return head, palette, zlib.decompress(body)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)])
def test_images_are_written_without_loss(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    head, palette, rows = decoded(png(image))
    assert head[:4] == (5, 3, 8, 0 if len(shape) == 2 else 2)
    assert palette is None
    width = int(np.prod(shape[1:]))
    for k in range(3):
        start = k * (width + 1)
        assert rows[start] == 0
        assert list(rows[start + 1 : start + 1 + width]) == image[k].ravel().tolist()


def test_labels_are_written_as_in_the_field():
    assert [label(name) for name in ("sgd", "sgd-l1", "lfp", "saliency-guided")] == [
        "SGD", "SGD-L1", "LFP", "saliency-guided",
    ]  # fmt: skip


def test_the_fixture_computes_what_it_claims():
    values = np.random.default_rng(0).normal(size=40)
    total = sum(abs(a) for a in values)
    apart = sum(abs(abs(a) - abs(b)) for a in values for b in values)
    assert gini(values) == pytest.approx(apart / (2 * len(values) * total), abs=1e-12)
    stored = results({"sgd": [{"x": 1.0}, {"x": 3.0}], "lfp": [{"x": 2.0}, {"x": 4.5}]})
    assert stored["differences"]["lfp"]["x"]["mean"] == 1.25
    assert config(["sgd"], 2, 3)["seeds"] == [0, 1]


# In a browser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [420, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_complaint_or_a_request(browser, digits, swirl, width, dark):
    for folder in (digits, swirl):
        asked = len(browser.requests())
        browser.open(folder / "report.html", width, 900, dark)
        assert browser.complaints() == []
        beyond = [url for url in browser.requests()[asked:] if not url.startswith("data:")]
        assert beyond == [(folder / "report.html").resolve().as_uri()]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        clipped = """[...document.querySelectorAll("svg.chart text")].filter((text) => {
            const box = text.getBoundingClientRect();
            const frame = text.closest("svg.chart").getBoundingClientRect();
            return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
        }).map((text) => text.textContent)"""
        assert browser.run(clipped) == []
        assert browser.run(OVERLAPS) == []


def test_the_verdict_fits_a_laptop_without_scrolling(browser, digits):
    browser.open(digits / "report.html", 1280, 900)
    box = 'document.querySelector("#verdict .scroll")'
    assert browser.run(f"{box}.scrollWidth <= {box}.clientWidth")


def test_the_legend_hides_a_method_in_every_plot(browser, digits):
    browser.open(digits / "report.html")
    shown = '[...document.querySelectorAll(".toggled.m1")].filter((e) => e.getClientRects().length)'
    button = 'document.querySelectorAll(".legend button")[1]'
    assert browser.run(f"{shown}.length") > 20
    browser.run(f"{button}.focus()")
    browser.press("Enter")
    assert browser.run(f"{button}.getAttribute('aria-pressed')") == "false"
    assert browser.run(f"{shown}.length") == 0
    browser.press("Enter")
    assert browser.run(f"{button}.getAttribute('aria-pressed')") == "true"
    assert browser.run(f"{shown}.length") > 20
    assert browser.complaints() == []


def test_a_chart_tells_its_numbers_to_the_keyboard(browser, digits):
    browser.open(digits / "report.html")
    browser.run('document.querySelector("svg.chart").focus()')
    browser.press("End")
    told = browser.run('document.querySelector("#tip").innerText').split("\n")
    assert told[0] == "step 1,350".replace(",", "\N{THIN SPACE}")
    run = read_run(digits)
    for name in ("sgd", "lfp", "sgd-l1"):
        _, accuracy = mean_curve(run.runs[name], "step", "test_accuracy")
        assert f"{label(name)} {100 * accuracy[-1]:.1f}%" in told
    browser.run("document.activeElement.blur()")
    assert browser.run('document.querySelector("#tip").hidden')


def test_choices_change_what_is_shown(browser, digits):
    browser.open(digits / "report.html")
    views = '[...document.querySelectorAll("#curves .view")].map((v) => v.getClientRects().length)'
    assert browser.run(views) == [1, 0]
    browser.run('document.querySelector("#curves-view-2").click()')
    assert browser.run(views) == [0, 1]
    cards = (
        '[...document.querySelectorAll(".card")].filter((c) => c.getClientRects().length).length'
    )
    assert browser.run(cards) == 18
    for place, kind in ((2, "correct"), (3, "wrong"), (4, "split")):
        browser.run(f'document.querySelector("#samples-filter-{place}").click()')
        assert browser.run(cards) == page(digits).count(f"is-{kind}") - page(digits).count(
            f".is-{kind}"
        )


def test_the_page_reads_without_script(browser, digits):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(digits / "report.html")
        snapshot = browser.send("Accessibility.getFullAXTree")["nodes"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    names = [node.get("name", {}).get("value", "") for node in snapshot]
    assert any(name.startswith("Test accuracy by step. At the right end: SGD") for name in names)
    assert "by time" in names
