"""The verdict: one row per method, and what the seeds allow to say."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from attrain.report import measures, numbers
from attrain.report.folder import Method, Run, listing, mapping, number
from attrain.report.numbers import Unit
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download


def fill(run: Run) -> Filled:
    """Fill the verdict; it is there for every run, even an empty one."""
    methods = run.methods
    columns = measures.columns(methods)
    groups = [(group, len(list(some))) for group, some in groupby(c.measure.group for c in columns)]
    claims, rows = _claims(run.results), _paper_rows(run.results)
    sentences = [
        _claims_sentence(claims) if claims else "",
        "" if (claims or rows) and not columns else measures.accuracy_sentence(methods),
        measures.removal_sentence(methods),
        measures.cost_sentence(methods),
    ]
    compared = len([method for method in methods if method.estimates]) > 1
    return Filled(
        sentence=" ".join(filter(None, sentences))
        or "The paper's numbers beside those found here.",
        values={
            "columns": columns,
            "groups": groups,
            "starts": _group_starts([length for _, length in groups]),
            "compared": compared,
            "single_seed": measures.single_seed(methods),
            "waiting": [label(m.name) for m in methods if not m.estimates],
            "csv": download("verdict.csv", _HEAD, _csv_rows(methods)) if columns else None,
            "claims": claims,
            "rows": rows,
        },
    )


SECTION = Section("verdict", "Verdict", fill)

_HEAD = ("method", "measure", "mean", "std", "values", "difference", "low", "high", "clear")

_HOLDS: dict[object, str] = {True: "holds", False: "does not hold"}


def _group_starts(lengths: list[int]) -> set[int]:
    return {sum(lengths[:place]) for place in range(len(lengths))}


def _csv_rows(methods: tuple[Method, ...]) -> Iterator[tuple[object, ...]]:
    for method in methods:
        for measure in measures.MEASURES:
            estimate = method.estimates.get(measure.key)
            if estimate is None:
                continue
            values = " ".join(f"{value:.6g}" for value in estimate.values)
            row = (method.name, measure.key, estimate.mean, estimate.std, values)
            difference = method.differences.get(measure.key)
            if difference is None:
                yield (*row, "", "", "", "")
            else:
                clear = "yes" if difference.clear else "no"
                yield (*row, difference.mean, difference.low, difference.high, clear)


def _claims(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for claim in map(mapping, listing(results.get("claims"))):
        figure = number(claim.get("figure"))
        rows.append(
            (
                str(claim.get("claim", "")),
                str(claim.get("source", "")),
                _HOLDS.get(claim.get("holds"), "unclear"),
                numbers.short(figure) if figure is not None else str(claim.get("figure") or ""),
            )
        )
    head = ("Claim", "Source", "Here", "Figure")
    return (
        Table("Claims of the papers, and what was found here", head, tuple(rows)) if rows else None
    )


def _claims_sentence(claims: Table) -> str:
    found = [row[2] for row in claims.rows]
    holding = found.count(_HOLDS[True])
    failing = found.count(_HOLDS[False])
    parts = [f"{failing} do not"] if failing else []
    if len(found) > holding + failing:
        parts.append(f"{len(found) - holding - failing} are unclear")
    start = f"Of {numbers.plural(len(found), 'claim')}, {holding} hold"
    return ", ".join([start, *parts]) + "."


def _paper_rows(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for row in map(mapping, listing(results.get("rows"))):
        ours, paper = mapping(row.get("ours")), number(row.get("paper"))
        mean, seeds = number(ours.get("mean")), number(ours.get("n"))
        rows.append(
            (
                str(row.get("name", "")),
                numbers.short(paper) if paper is not None else "\N{EN DASH}",
                "\N{EN DASH}"
                if mean is None
                else numbers.spread(mean, number(ours.get("std")), Unit("", 1.0)),
                f"{seeds:.0f}" if seeds is not None else "\N{EN DASH}",
            )
        )
    head = ("Measure", "Paper", "Ours (mean \N{PLUS-MINUS SIGN} sd)", "Seeds")
    return Table("The paper's numbers beside ours", head, tuple(rows)) if rows else None
