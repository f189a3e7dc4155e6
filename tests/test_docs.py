"""The documentation is true: its code runs, its lists are complete, its drawing is the tree."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import attrain
from attrain import audit, cli, guided, targeted
from attrain.attribution import METHODS as ATTRIBUTIONS
from attrain.config import (
    EXPLANATION_MEASURES,
    MEASURES,
    AttributeConfig,
    CompareConfig,
    EvaluateConfig,
    GraphConfig,
    PruneConfig,
    StudyConfig,
    TrainConfig,
    TrainingConfig,
    default_from,
)
from attrain.data import NAMES, series
from attrain.errors import CreditWarning
from attrain.measuring import JUDGED
from attrain.methods import METHODS
from attrain.models import ACTIVATIONS, ARCHITECTURES, TEXT_ARCHITECTURES, build
from attrain.rules import REGISTRY, registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REAL = Path(os.environ.get("ATTRAIN_DATA", ROOT.parent / "shared" / "data")).resolve()
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CIFAR = 'load("cifar10")'
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def fences(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the line before each block of a language, and the block."""
    text = page.read_text()
    return [
        (text[: found.start()].count("\n") + 1, found[2])
        for found in FENCE.finditer(text)
        if found[1] == language
    ]


def programs() -> Iterator[Any]:
    """Return what is run together: all blocks of a tutorial, each block of any other page.

    From where a tutorial takes the photographs of CIFAR-10, it is run where they are.
    """
    for page in PAGES:
        blocks = fences(page, "python")
        name = page.relative_to(ROOT).as_posix()
        if page.parent == DOCS / "tutorial":
            begin = next((k for k, each in enumerate(blocks) if CIFAR in each[1]), len(blocks))
            yield pytest.param(page, blocks[:begin], id=name)
            if begin < len(blocks):
                yield pytest.param(page, blocks, id=f"{name}:cifar10", marks=pytest.mark.slow)
        else:
            yield from (pytest.param(page, [block], id=f"{name}:{block[0]}") for block in blocks)


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what a document may change: registered rules, random numbers, threads, files."""
    monkeypatch.chdir(tmp_path)
    rules, functions = dict(REGISTRY), set(audit.REGISTERED)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    REGISTRY.clear()
    REGISTRY.update(rules)
    audit.REGISTERED.clear()
    audit.REGISTERED.update(functions)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def run(page: Path, blocks: list[tuple[int, str]]) -> tuple[dict[str, Any], str]:
    """Run blocks in one new namespace; return it, and what was printed."""
    namespace: dict[str, Any] = {"__name__": "document"}
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CreditWarning)
        for line, block in blocks:
            exec(compile("\n" * line + block, str(page), "exec"), namespace)
    return namespace, printed.getvalue()


def needs(blocks: list[tuple[int, str]]) -> set[str]:
    """Return the packages that the blocks import."""
    found: set[str] = set()
    for _, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("page", "blocks"), list(programs()))
def test_the_code_of_the_documents_runs(
    page: Path, blocks: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in needs(blocks) & {"accelerate", "lightning", "transformers"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn about while they are imported
            pytest.importorskip(package)
    if any(CIFAR in block for _, block in blocks):
        if not (REAL / "cifar10").is_dir():
            pytest.skip("needs CIFAR-10 in $ATTRAIN_DATA")
        monkeypatch.setenv("ATTRAIN_DATA", str(REAL))
    namespace, printed = run(page, blocks)
    if page.name == "first-loop.md":
        check_tutorial(page, namespace, printed)
    if page.name == "what-did-my-network-use.md":
        check_shortcut(namespace)


def check_shortcut(namespace: dict[str, Any]) -> None:
    """Hold the tutorial to what it tells: the graph shows the planted pixel, ablation agrees."""
    pixels, graphs = namespace["pixels"], namespace["graphs"]
    (row, column, share), *others = pixels(graphs["cheat"]["3"])
    assert (row, column) == (0, 0) and share > 2 * max(abs(other) for *_, other in others)
    assert all(each[:2] != (0, 0) for each in pixels(graphs["honest"]["3"]))
    found = namespace["found"]
    assert all(found.aopc > random for random in found.random_aopcs)
    accuracy, threes, x, y = (namespace[k] for k in ("accuracy", "threes", "seen", "y_test"))
    if len(x) == len(y):  # else y_test are by now the labels of photographs
        plain = namespace["digits"].test.tensors[0]
        assert accuracy(namespace["honest"], plain[threes], y[threes]) > 0.9
        assert accuracy(namespace["cheat"], plain[threes], y[threes]) < 0.75
    picture = Path("cheat.svg").read_text()
    committed = (DOCS / "tutorial" / "cheat.svg").read_text()
    assert picture.count("<rect") == pytest.approx(committed.count("<rect"), abs=20)
    assert Path("digits.html").exists()


def check_tutorial(page: Path, namespace: dict[str, Any], printed: str) -> None:
    """Hold the tutorial to what it tells: the lines it prints, and which model keeps its accuracy.

    The digits behind the point differ between machines, and more so the more weights are gone.
    """
    told = "".join(block for _, block in fences(page, "text")).splitlines()
    lines = [line for line in printed.splitlines() if "weights are zero" not in line]
    letters = re.compile(r"[a-zA-Z]+")
    assert [letters.findall(line) for line in lines] == [letters.findall(line) for line in told]
    for line, wanted in zip(lines, told, strict=True):
        assert first_percentage(line) == pytest.approx(first_percentage(wanted), abs=3)
    left = namespace["left"]
    assert left["LFP"][2] > left["gradient descent"][2] + 0.1
    assert left["LFP, decay"][2] > left["gradient descent"][2] + 0.1


def first_percentage(line: str) -> float:
    return float(re.findall(r"([\d.]+)%", line)[0])


def test_readme_defines_functions_and_runs_nothing() -> None:
    for _, block in fences(ROOT / "README.md", "python"):
        for node in ast.parse(block).body:
            assert isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)), ast.dump(node)


def words(page: str) -> set[str]:
    """Return what a page sets in code, at most a word each."""
    text = FENCE.sub("", (DOCS / page).read_text())
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}


def flags(config: type) -> set[str]:
    return {
        "--" + entry.name.replace("_", "-")
        for entry in dataclasses.fields(config)
        if entry.name not in ("path", "paths", "study", "training")
    }


def test_the_command_line_page_has_every_flag_and_no_other() -> None:
    known = set[str]().union(
        *map(
            flags,
            (CompareConfig, TrainConfig, TrainingConfig, EvaluateConfig, AttributeConfig,
             GraphConfig, PruneConfig, StudyConfig),
        )
    )  # fmt: skip
    told = {word.strip(",") for word in words("reference/command-line.md") if word[:2] == "--"}
    switches = {"--no-" + word[5:] for word in told if word.startswith("--no-")}
    assert {"--" + word[5:] for word in switches} <= known
    assert told - switches - {"--help", "--version"} == known


def test_the_command_line_page_has_every_name() -> None:
    told = words("reference/command-line.md")
    for names in (NAMES, ARCHITECTURES, TEXT_ARCHITECTURES, ACTIVATIONS, METHODS):
        assert set(names) <= told, set(names) - told


def test_the_page_of_time_series_has_every_set_and_the_sizes_of_the_networks() -> None:
    page = "how-to/time-series-and-text.md"
    boxes = {f"vanishing:{box}" for box in series.VANISHING} | series.BOXES.keys()
    assert boxes | series.PROCESSES.keys() <= words(page)
    for name in ("lstm", "lstm-input-cell", "tcn", "transformer"):
        count = sum(each.numel() for each in build(name, (50, 50), 2).parameters())
        assert f"\n| `{name}` | {count:,} |" in (DOCS / page).read_text()


def test_the_page_of_attribution_has_every_method_option_and_argument() -> None:
    told = words("reference/attribution.md")
    for name, method in ATTRIBUTIONS.items():
        assert {name, *method.options} <= told, name
    signature = inspect.signature(attrain.attribute)
    assert set(signature.parameters) - {"options"} <= told
    command_line = words("reference/command-line.md")
    assert {name.strip(",") for name in ATTRIBUTIONS} <= {each.strip(",") for each in command_line}


def test_the_page_of_measures_has_every_name_and_figure() -> None:
    told = words("reference/measures.md")
    assert {*MEASURES, *EXPLANATION_MEASURES, *JUDGED} <= told
    command_line = {word.strip(",") for word in words("reference/command-line.md")}
    assert {*MEASURES, *EXPLANATION_MEASURES} <= command_line
    folder = (DOCS / "reference" / "run-folder.md").read_text()
    assert all(f'"{figure}": ' in folder for figure in JUDGED)


def test_the_presets_have_the_numbers_that_the_documents_tell() -> None:
    row = f"| `lfp-sparse` | `lfp` with weight decay {METHODS['lfp-sparse'].weight_decay:.0e}"
    told = row.replace("e-0", "e-")
    assert told in (DOCS / "reference" / "command-line.md").read_text()
    assert METHODS["lfp"].learning_rate == METHODS["sgd"].learning_rate
    assert METHODS["lfp-abs"].learning_rate == 1.0


def test_the_command_line_page_tells_the_exit_status() -> None:
    text = (DOCS / "reference" / "command-line.md").read_text()
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)}
    assert told == {0, cli.FAILURE, cli.USER_ERROR, cli.INTERRUPTED}


def test_commands_in_the_documents_are_understood() -> None:
    commands = [
        line.partition("#")[0].split()[1:]
        for page in PAGES
        for _, block in fences(page, "bash")
        for line in block.splitlines()
        if line.startswith("attrain ") and "--config" not in line
    ]
    assert len(commands) > 10
    for command in commands:
        if command in (["evaluate"], ["attribute"], ["graph"], ["prune"], ["report"]):
            continue  # named without their argument
        cli.parse(command)


def test_the_file_of_settings_is_understood(tmp_path: Path) -> None:
    blocks = fences(DOCS / "reference" / "command-line.md", "toml")
    assert len(blocks) == 1
    path = tmp_path / "settings.toml"
    path.write_text(blocks[0][1])
    config = default_from(CompareConfig, path)
    given = tomllib.loads(blocks[0][1])
    assert list(config.methods) == given["methods"]
    assert config.training.learning_rate == given["learning-rate"]


def registered_names() -> set[str]:
    """Return every name of the registry, without the marks of methods and in-place forms."""
    names = set()
    for function, rule in REGISTRY.items():
        while isinstance(rule, functools.partial):
            rule = rule.func
        name = getattr(function, "__name__", "")
        if rule is registry.bookkeeping or name in ("", "__get__"):
            continue
        if not (getattr(function, "__module__", None) or "torch").startswith(("torch", "attrain")):
            continue  # somebody's own, a test's
        name = name.strip("_") if name.startswith("__") else name
        for prefix in ("special_", "linalg_"):
            name = name.removeprefix(prefix)
        names.add(name)
    return names


def test_the_page_of_rules_names_every_function_of_the_registry() -> None:
    told = words("reference/rules.md")

    def known(name: str) -> bool:
        spellings = {name, name.rstrip("_"), name.lstrip("_"), name.lstrip("_").removeprefix("i")}
        return bool(spellings & told)

    missing = sorted(name for name in registered_names() if not known(name))
    assert not missing


def test_the_page_of_rules_names_every_family_and_argument() -> None:
    text = (DOCS / "reference" / "rules.md").read_text()
    signature = inspect.signature(attrain.LFP)
    for name, parameter in signature.parameters.items():
        assert f"\n| `{name}` |" in text
        if isinstance(parameter.default, str):
            assert f'`"{parameter.default}"`' in text
    refusals = (DOCS / "how-to" / "refusals.md").read_text()
    for family in registry.families():
        assert f'| `"{family}"` |' in refusals


def test_every_argument_of_guided_training_is_in_its_reference() -> None:
    text = (DOCS / "reference" / "saliency-guided.md").read_text()
    for name in inspect.signature(attrain.SaliencyGuided).parameters:
        assert f"\n| `{name}` |" in text
    for options in (guided.DATA, guided.FORMS, guided.ORDERS, guided.OUTPUTS, guided.TARGETS):
        assert all(f'`"{option}"`' in text for option in options)


def test_every_argument_and_score_of_targeted_updates_is_in_its_reference() -> None:
    text = (DOCS / "reference" / "targeted.md").read_text()
    for name in inspect.signature(attrain.Targeted).parameters:
        assert f"\n| `{name}` |" in text
    for options in (targeted.INPUT_GRADIENTS, targeted.STATISTICS):
        assert all(f'`"{option}"`' in text for option in options)
    assert all(f"\n| `{name}` |" in text for name in targeted.SCORES)
    public = {name for name in vars(attrain.Targeted) if name[0] != "_"}
    own = public - {"forward", "train", "extra_repr"}
    assert own <= {each.partition("(")[0] for each in words("reference/targeted.md")}


def test_the_house_plan_is_the_tree_in_the_order_of_its_layers() -> None:
    text = (DOCS / "explanation" / "design.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|", text, re.M)
    drawn = [set(re.findall(r"`(\w+?)(?:\.py|/)`", row)) for row in rows]
    package = ROOT / "src" / "attrain"
    tree = {path.stem for path in package.glob("*.py")}
    tree |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert set().union(*drawn) == tree
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    assert drawn[1:] == [set(re.findall(r"\w+", layer)) for layer in layers]


def test_links_lead_to_headings_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
            file, _, anchor = target.partition("#")
            if "://" in target or not anchor:
                continue
            there = (page.parent / file).resolve() if file else page
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", there.read_text()), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, (page.name, target)
