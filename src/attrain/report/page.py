"""Write the report: one HTML file that needs no network, no script and no other file."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attrain.report import numbers, palette
from attrain.report.chart import swatch
from attrain.report.folder import Run, mapping, number, read_run
from attrain.report.sections import SECTIONS
from attrain.runs import replacing


def write_report(folder: Path | str) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page is drawn from `config.json`, `results.json` and what else the folder holds; a piece
    that is missing becomes a sentence. Raises `InputError` where there is no `results.json`, or
    one of another schema, and `AttrainError` where the page cannot be written.
    """
    run = read_run(folder)
    path = run.folder / "report.html"
    page = render(run).encode()
    with replacing(path) as file:
        file.write(page)
    return path


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    style = source("report.css") + source("graph-svg.css") + palette.css(len(run.methods))
    script = source("report.js")
    sections = [(s, filled) for s in SECTIONS if (filled := s.fill(run)) is not None]
    return (
        environment()
        .get_template("page.html")
        .render(
            title=_title(run),
            about=_about(run),
            policy=policy(style, script),
            style=Markup(style),
            script=Markup(script),
            methods=[
                {"place": k, "label": palette.label(m.name), "swatch": swatch(k)}
                for k, m in enumerate(run.methods)
            ],
            swatches=[swatch(k) for k in range(len(run.methods))],
            names=[palette.label(m.name) for m in run.methods],
            sections=sections,
            version=installed(),
        )
    )


def environment() -> Environment:
    """Return the templates of the pages, which escape whatever is put in."""
    return Environment(
        loader=PackageLoader("attrain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def source(name: str) -> str:
    """Return a style or a script of the pages."""
    return resources.files("attrain.report").joinpath("templates", name).read_text("utf-8")


def policy(style: str, script: str) -> str:
    """Return a content security policy that lets in nothing but this style and this script."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(run: Run) -> str:
    data = str(mapping(run.config.get("data")).get("name") or run.folder.resolve().name)
    if run.results.get("kind") == "study":
        return f"Study {run.results.get('id') or data}"
    names = [palette.label(method.name) for method in run.methods]
    return f"{numbers.joined(names)} on {data}" if names else f"Report on {data}"


def _about(run: Run) -> list[str]:
    """Return the facts under the title: what was trained, on what, how often and when."""
    data, model = mapping(run.config.get("data")), mapping(run.config.get("model"))
    training = mapping(run.config.get("training"))
    facts = []
    if model.get("name"):
        parameters = number(model.get("parameters"))
        size = f", {parameters:,.0f} parameters" if parameters else ""
        facts.append(f"{model['name']}{size}")
    train, test = number(data.get("train")), number(data.get("test"))
    if train and test:
        facts.append(f"{train:,.0f} training and {test:,.0f} test examples")
    seeds = max((len(method.seeds) for method in run.methods), default=0)
    if seeds:
        facts.append(numbers.plural(seeds, "seed"))
    epochs = number(training.get("epochs"))
    if epochs:
        facts.append(numbers.plural(int(epochs), "epoch"))
    budget = run.results.get("budget")
    if budget:
        facts.append(f"budget {budget}")
    started = _date(run.config)
    return [*facts, started] if started else facts


def _date(config: Mapping[str, Any]) -> str:
    try:
        started = datetime.fromisoformat(str(config.get("started")))
    except ValueError:
        return ""
    return f"{started.day} {started:%B %Y, %H:%M}"


def installed() -> str:
    """Return the version of attrain."""
    try:
        return version("attrain")
    except PackageNotFoundError:
        return ""
