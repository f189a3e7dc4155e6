"""The repository keeps its promises: no addresses of registries, light start-up, true documents."""

import ast
import importlib
import pkgutil
import re
import resource
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import attrain

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = ["constraints.txt", "constraints-cpu.txt"]
COMMANDS = [[], ["compare"], ["train"], ["evaluate"], ["prune"], ["study"], ["report"]]


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_no_tracked_file_holds_the_address_of_a_registry():
    # The words are in pieces, so that this file does not hold them either.
    hosts = ["pypi." + "org", "python" + "hosted", "download.py" + "torch", "npm" + "js.org"]
    pattern = re.compile("|".join(map(re.escape, hosts)).encode())
    assert [path.name for path in tracked_files() if pattern.search(path.read_bytes())] == []


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_are_pins_and_nothing_else(name):
    for line in (ROOT / name).read_text().splitlines():
        assert "://" not in line
        assert re.fullmatch(r"#.*|[a-z0-9._-]+==[A-Za-z0-9.!+]+", line), line


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_pin_every_direct_dependency_within_its_range(name):
    pinned = pins(name)
    optional = PROJECT["optional-dependencies"]
    texts = sum(optional.values(), PROJECT["dependencies"])
    for requirement in map(Requirement, texts):
        if requirement.name in {"attrain", "torchvision"}:
            continue
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_cpu_constraints_differ_in_torch_alone():
    usual, cpu = pins("constraints.txt"), pins("constraints-cpu.txt")
    assert usual.pop("torchvision")
    assert (usual.pop("torch"), cpu.pop("torch")) == ("2.15.0", "2.13.0")
    assert usual == cpu


def test_the_version_is_the_same_everywhere():
    assert version("attrain") == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_the_root_exports_at_most_twelve_names_and_has_them_all():
    assert 0 < len(attrain.__all__) <= 12
    for name in attrain.__all__:
        assert getattr(attrain, name) is not None


def test_every_public_module_imports():
    names = [m.name for m in pkgutil.walk_packages(attrain.__path__, "attrain.")]
    public = [n for n in names if not any(part.startswith("_") for part in n.split("."))]
    assert "attrain.errors" in public
    for name in public:
        assert importlib.import_module(name).__doc__, f"{name} does not say what it is for"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0] if c else "attrain")
def test_help_loads_nothing_heavy(command):
    program = f"""
import sys
from attrain.cli import main
sys.argv = ["attrain", *{command!r}, "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "captum", "sklearn", "scipy", "datasets", "transformers", "lightning_fabric"}}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout.lower()
    assert run.stdout.splitlines()[-1] == "loaded: []"


def test_help_answers_in_under_a_second():
    command = Path(sys.executable).with_name("attrain")

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([command, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # The best of three: another process may slow one of them down.
    assert min(cpu_seconds() for _ in range(3)) < 1.0


def test_python_in_the_documents_compiles():
    fences = [
        (document.name, code)
        for document in documents()
        for code in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.M | re.S)
    ]
    assert any(name == "README.md" for name, _ in fences)
    for name, code in fences:
        ast.parse(code, filename=name)


def test_links_between_documents_lead_somewhere():
    for document in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if not target.startswith(("http://", "https://", "#")):
                assert (document.parent / target.partition("#")[0]).exists(), (document, target)


def test_every_page_of_the_documentation_is_in_its_index():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_scripts_are_bash_that_parses_and_can_be_run():
    for script in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash", "-n", str(script)], check=True)
