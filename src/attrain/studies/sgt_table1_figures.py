"""Figures of the study of table 1 of paper 003."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, RANDOM, REGULAR, UNMASKED

_LOOKS: Mapping[str, tuple[str, str]] = {
    REGULAR: (LIGHT[2], "o"),
    GUIDED: (LIGHT[1], "D"),
    RANDOM: (LIGHT[3], "^"),
    UNMASKED: (LIGHT[4], "v"),
}
_BETTER = {"comprehensiveness": "higher is better", "sufficiency": "lower is better"}
_WIDEST = 92
"""Characters of a line of words."""


def draw_scores(found: Mapping[tuple[str, str], Mapping[str, Any]], path: Path) -> None:
    """Draw, for each data set and measure, the seeds of every arm and method beside the paper's."""
    titles = list(dict.fromkeys(title for title, _ in found))
    with figures.drawing(path, 9.6, 0.7 + 2.7 * len(titles)) as figure:
        grid = figure.subplots(len(titles), 2, squeeze=False)
        for axes, ((title, measure), shown) in zip(grid.flat, found.items(), strict=True):
            axes.axhline(0, color="#8a8a8a", linewidth=0.8)
            width = 0.17
            for number, (arm, values) in enumerate(shown["arms"].items()):
                colour, mark = _LOOKS[arm]
                for place, seeds in enumerate(values):
                    x = place + width * (number - (len(shown["arms"]) - 1) / 2)
                    label = arm if place == 0 else None
                    axes.plot(
                        [x] * len(seeds), seeds, mark, color=colour, markersize=4, alpha=0.75,
                        markeredgewidth=0, label=label,
                    )  # fmt: skip
                    mean = float(np.mean(seeds))
                    axes.plot([x - 0.07, x + 0.07], [mean, mean], color=colour, linewidth=1.2)
                    paper = (*shown["paper"].get(arm, ()), None)[: len(values)]
                    if place < len(paper) and paper[place] is not None:
                        axes.plot(x, paper[place], "_", color="#1a1a1a", markersize=9)
            folded = [method.replace(" ", "\n") for method in shown["methods"]]
            axes.set_xticks(range(len(folded)), folded, fontsize=8)
            axes.set_xlim(-0.55, len(shown["methods"]) - 0.45)
            axes.set_title(f"{title}: {measure} ({_BETTER[measure]})")
            axes.grid(color="#e5e5e5", linewidth=0.6, axis="y")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if any(any(each["paper"][REGULAR]) for each in found.values()):
            (line,) = grid[0, 0].plot([], [], "_", color="#1a1a1a", markersize=9)
            handles, labels = [*handles, line], [*labels, "the paper's"]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_examples(shown: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the words of some texts on a ground that is the darker the higher their score.

    shown: by arm, of each text its words, their scores, its label and what is predicted. The
    highest score of a text has the full colour.
    """
    lines = _lines(shown)
    with figures.drawing(path, 0.0669 * _WIDEST + 0.1, 0.2 + 0.23 * len(lines)) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, _WIDEST), ylim=(-len(lines), 0))
        axes.axis("off")
        for row, (colour, words) in enumerate(lines):
            for place, word, share in words:
                axes.text(
                    place, -row - 0.5, word, family="monospace", fontsize=8, va="center",
                    bbox=_ground(colour, share),
                )  # fmt: skip


def _ground(colour: str | None, share: float) -> dict[str, Any] | None:
    if colour is None or share <= 0.02:
        return None
    paler = tuple(figures.paler([colour], 0.75 * share)[0])
    return {"facecolor": paler, "edgecolor": "none", "boxstyle": "square,pad=0.12"}


_Line = tuple[str | None, list[tuple[float, str, float]]]


def _lines(shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[_Line]:
    """Return lines of words with their places and shares of the highest score, and their colour."""
    lines: list[_Line] = []
    for k in range(len(next(iter(shown.values())))):
        for arm, each in shown.items():
            text = each[k]
            head = f"{arm}: {text['predicted']}, is {text['label']}"
            lines.append((None, [(0.0, head, 0.0)]))
            most = max(max(text["scores"]), 1e-12)
            line: list[tuple[float, str, float]] = []
            at = 2.0
            for word, score in zip(text["words"], text["scores"], strict=True):
                if at + len(word) > _WIDEST - 2 and line:
                    lines.append((_LOOKS[arm][0], line))
                    line, at = [], 2.0
                line.append((at, word, max(score, 0.0) / most))
                at += len(word) + 1
            lines.append((_LOOKS[arm][0], line))
        lines.append((None, []))
    return lines[:-1]
