"""Write `report.md` of a study from its `results.json`: table, claims, figures, deviations."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrain.runs import RunFolder, read_json, replacing

_VERDICTS = {True: "holds", False: "does not hold", "unclear": "unclear"}
_SMOKE = "The smoke budget shows that everything runs. Read no verdict from it."
_SHARES = ("accuracy", "share")


def write_page(folder: Path) -> Path:
    """Write `report.md` into the folder of a study and return its path.

    Raises AttrainError where there is no `results.json` or the page cannot be written.
    """
    results, config = read_json(RunFolder(folder).results), read_json(RunFolder(folder).config)
    path = folder / "report.md"
    with replacing(path) as file:
        file.write(page(results, str(config.get("command", ""))).encode())
    return path


def page(results: Mapping[str, Any], command: str) -> str:
    """Return the page of a study's results as Markdown; `command` is what was run."""
    deviations = results["deviations"] or ["none"]
    blocks = [
        f"# {results['title']}",
        f"{results['source']}; study `{results['id']}`, budget {results['budget']}.",
        f"```bash\n{command}\n```",
        *([_SMOKE] if results["budget"] == "smoke" else []),
        *(f"![{Path(figure).stem}]({figure})" for figure in results["figures"]),
        table(("", "paper", "here", "n"), map(_measured, results["rows"])),
        "## What the paper says",
        table(("claim", "source", "here", "figures"), map(_claimed, results["claims"])),
        "## Deviations from the paper",
        "\n".join(f"* {deviation}" for deviation in deviations),
    ]
    return "\n\n".join(blocks) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown; a bar within a cell is kept from dividing it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


def _measured(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    ours, unit = row["ours"], row["unit"]
    spread = "" if ours["std"] is None else f" ± {value(ours['std'], unit)}"
    return (
        row["name"],
        value(row["paper"], unit),
        f"{value(ours['mean'], unit)}{spread}",
        str(ours["n"]),
    )


def value(number: float | None, unit: str) -> str:
    """Return a number as it is printed in its unit; a dash for None."""
    if number is None:
        return "\N{EN DASH}"
    return f"{100 * number:.1f} %" if unit in _SHARES else f"{number:.3g} {unit}".rstrip()


def _claimed(claim: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return claim["claim"], claim["source"], _VERDICTS[claim["holds"]], claim["figure"]
