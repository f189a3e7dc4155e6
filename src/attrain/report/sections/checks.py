"""Checks: what was warned about, with what it was made, and how to make it again."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from attrain.report import numbers
from attrain.report.folder import Run, listing, mapping, number
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table


def fill(run: Run) -> Filled:
    """Fill the checks; they are there for every run."""
    config = run.config
    warnings = [*map(str, listing(config.get("warnings"))), *run.problems]
    return Filled(
        sentence=_sentence(run, len(warnings)),
        values={
            "warnings": warnings,
            "command": str(config.get("command") or ""),
            "redraw": f"attrain report {shlex.quote(run.folder.resolve().name)}",
            "versions": _pairs(mapping(config.get("versions"))),
            "tuning": _tuning(run),
            "tables": [table for table in _settings(run) if table.rows],
            "citations": _citations(run),
        },
    )


SECTION = Section("checks", "Checks", fill)


def _sentence(run: Run, warnings: int) -> str:
    seeds = sorted({seed for method in run.methods for seed in method.seeds})
    which = f"seeds {numbers.joined([str(seed) for seed in seeds])}" if len(seeds) > 1 else ""
    if len(seeds) == 1:
        which = f"seed {seeds[0]} alone"
    made = f"Made with {which}; " if which else ""
    if not warnings:
        text = f"{made}nothing was warned about."
    elif warnings == 1:
        text = f"{made}one warning, read it before you trust the figures."
    else:
        text = f"{made}{warnings} warnings, read them before you trust the figures."
    return text[0].upper() + text[1:]


def _tuning(run: Run) -> Table | None:
    rows = []
    for entry in map(mapping, listing(run.config.get("tuning"))):
        candidates, scores = listing(entry.get("candidates")), listing(entry.get("scores"))
        tried = []
        for k, candidate in enumerate(candidates):
            score = number(scores[k]) if k < len(scores) else None
            tried.append(
                _text(candidate) + (f" ({numbers.short(score)})" if score is not None else "")
            )
        rows.append(
            (
                label(str(entry.get("method", ""))),
                str(entry.get("parameter", "")),
                ", ".join(tried),
                _text(entry.get("chosen")),
                str(entry.get("criterion", "")),
            )
        )
    head = ("Method", "Parameter", "Candidates (score)", "Chosen", "Criterion")
    return Table("How the settings were tuned", head, tuple(rows)) if rows else None


def _settings(run: Run) -> Iterator[Table]:
    config = run.config
    yield _methods_table(run)
    yield _listing("Training", mapping(config.get("training")))
    data = {key: value for key, value in mapping(config.get("data")).items() if value != ""}
    yield _listing("Data", data)
    model = mapping(config.get("model"))
    yield _listing("Model", {key: value for key, value in model.items() if key != "layers"})
    layers = [
        (str(layer.get("name", "")), str(layer.get("kind", "")), _shape(layer.get("shape")))
        for layer in map(mapping, listing(model.get("layers")))
    ]
    yield Table("Layers", ("Layer", "Kind", "Shape"), tuple(layers))


def _methods_table(run: Run) -> Table:
    settings = {name: dict(_pairs(mapping(raw))) for name, raw in _method_settings(run)}
    keys = list(dict.fromkeys(key for each in settings.values() for key in each))
    keys = [key for key in keys if key != "citation"]
    rows = [(key, *(each.get(key, "\N{EN DASH}") for each in settings.values())) for key in keys]
    return Table("Methods", ("Setting", *(label(name) for name in settings)), tuple(rows))


def _method_settings(run: Run) -> Iterator[tuple[str, Any]]:
    settings = mapping(run.config.get("methods"))
    for method in run.methods:
        if method.name in settings:
            yield method.name, settings[method.name]


def _listing(caption: str, values: Mapping[str, Any]) -> Table:
    return Table(caption, ("Setting", "Value"), tuple(_pairs(values)))


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _text(value)) for key, value in values.items()]


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return str(value)


def _shape(value: object) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, listing(value)))


def _citations(run: Run) -> list[tuple[str, list[str]]]:
    """Return each citation once, with the methods that rest on it."""
    cited: dict[str, list[str]] = {}
    for name, raw in _method_settings(run):
        citation = mapping(raw).get("citation")
        if citation:
            cited.setdefault(str(citation), []).append(label(name))
    return list(cited.items())
