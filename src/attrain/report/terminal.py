"""The verdict table as plain text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrain.report.folder import Method, methods_of
from attrain.report.measures import UNCLEAR, Column, columns, removal_sentence, single_seed
from attrain.report.numbers import MINUS
from attrain.report.palette import label

WIDTH = 100
NAME_WIDTH = 22
GAP = 3


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the verdict table of a parsed `results.json` as aligned lines of at most 100 columns.

    One row per method and below it its paired difference to the first method: the 95% interval
    where it excludes 0, "no clear difference" elsewhere. A star marks the best of a column where
    its lead is clear. Columns that do not fit beside each other follow below.
    """
    methods = methods_of(results)
    filled = columns(methods)
    if not filled:
        return ["No method has results yet."]
    rows = _names(methods)
    width = max(len(row) for row in rows)
    texts = [_texts(column) for column in filled]
    lines: list[str] = []
    for block in _blocks(texts, WIDTH - width):
        if lines:
            lines.append("")
        sizes = [max(map(len, column)) for column in block]
        for place, name in enumerate(["", *rows]):
            if name or any(column[place] for column in block):
                cells = [
                    column[place].rjust(size) for column, size in zip(block, sizes, strict=True)
                ]
                lines.append((" " * GAP).join([name.ljust(width), *cells]).rstrip())
    return [_printable(line) for line in [*lines, "", *_notes(methods)]]


def _names(methods: Sequence[Method]) -> list[str]:
    first, *others = (label(method.name) for method in methods)
    names = [_cut(first, NAME_WIDTH)]
    for other in others:
        names += [_cut(other, NAME_WIDTH), f"  against {_cut(first, NAME_WIDTH - 10)}"]
    return names


def _printable(line: str) -> str:
    # Names come from a file: a control character would reach the terminal as a command.
    line = line.replace(MINUS, "-").replace("\N{EN DASH}", "-")
    return "".join(c if c.isprintable() else "?" for c in line)


def _texts(column: Column) -> list[str]:
    """Return the column's heading and, row by row, its values and differences."""
    # Room for the star, so that numbers with and without one stay under each other.
    room = "  " if any(cell.best for cell in column.cells) else ""
    texts = [column.heading + room]
    for place, cell in enumerate(column.cells):
        texts.append(cell.value + (" *" if cell.best else room))
        if place:
            ends = f" ({cell.interval})" if cell.interval else ""
            difference = UNCLEAR if cell.clear is False else cell.difference + ends
            texts.append(difference + room if difference else "")
    return texts


def _blocks(texts: Sequence[list[str]], room: int) -> list[list[list[str]]]:
    blocks: list[list[list[str]]] = []
    used = room + 1
    for column in texts:
        need = GAP + max(map(len, column))
        if used + need > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += need
    return blocks


def _notes(methods: Sequence[Method]) -> list[str]:
    if len(methods) < 2:
        return []
    if single_seed(methods):
        return ["One seed allows no interval: no difference here can be called clear."]
    lines = [
        "mean \N{PLUS-MINUS SIGN} standard deviation over seeds; * best of its column and clear:"
        " the 95% interval of the",
        f"paired difference to {_names(methods)[0]} excludes 0",
    ]
    sentence = removal_sentence(methods)
    return [*lines, *(["", *_wrapped(sentence)] if sentence else [])]


def _wrapped(sentence: str) -> list[str]:
    lines = [""]
    for word in sentence.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
