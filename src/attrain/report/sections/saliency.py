"""Saliency side by side: the same inputs for all methods, one shared colour scale."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attrain.report import numbers, raster
from attrain.report.folder import Array, Explained, Run, Samples, listing, mapping
from attrain.report.palette import label
from attrain.report.section import Filled, Section
from attrain.report.table import Table, download

# Brighter values share the last colour: one stray pixel must not darken every map.
SCALE_PERCENTILE = 99.5
MOST_CSV_VALUES = 150_000

FILTERS = (
    ("all", "all"),
    ("correct", "all correct"),
    ("wrong", "some wrong"),
    ("split", "disagreeing"),
)


def fill(run: Run) -> Filled | None:
    """Fill the saliency maps, for runs on pictures and time series."""
    samples = run.samples
    if samples is None:
        return None
    methods = [(m.name, samples.methods[m.name]) for m in run.methods if m.name in samples.methods]
    if not samples.labels or not methods:
        return Filled(
            "There are no saliency maps to compare: samples.json holds no explained input."
        )
    every = np.concatenate([explained.saliency.ravel() for _, explained in methods])
    top = float(np.percentile(every, SCALE_PERCENTILE)) or float(every.max())
    cards = [_card(run, samples, methods, k, top) for k in range(len(samples.labels))]
    small = every.size <= MOST_CSV_VALUES
    return Filled(
        sentence=_sentence(cards, methods),
        values={
            "cards": cards,
            "filters": [(key, text, _count(cards, key)) for key, text in FILTERS],
            "scale": raster.scale_bar(),
            "series": len(listing(mapping(run.config.get("data")).get("input_shape"))) == 2,
            "framed": samples.evidence is not None,
            "top": numbers.short(top),
            "clipped": top < every.max(),
            "csv": download("saliency.csv", _CSV, _rows(samples, methods)) if small else None,
            "table": _table(samples, methods),
        },
    )


SECTION = Section("saliency", "Saliency side by side", fill)

_CSV = ("method", "sample", "label", "predicted", "confidence", "saliency, row by row")

Methods = Sequence[tuple[str, Explained]]


def concentration(saliency: Array) -> Array:
    """Return which share of each map `(n, H, W)` lies on the strongest tenth of its pixels."""
    flat = np.sort(saliency.reshape(len(saliency), -1), axis=1)[:, ::-1]
    few = max(1, round(flat.shape[1] / 10))
    total = flat.sum(axis=1)
    shares: Array = np.divide(
        flat[:, :few].sum(axis=1), total, out=np.zeros(len(flat)), where=total > 0
    )
    return shares


def _card(run: Run, samples: Samples, methods: Methods, k: int, top: float) -> Mapping[str, Any]:
    truth = samples.labels[k]
    frame = None if samples.evidence is None else samples.evidence[k]
    tiles = []
    for name, explained in methods:
        predicted = explained.predictions[k]
        tiles.append(
            {
                "place": run.position(name),
                "method": label(name),
                "image": raster.heat_map(explained.saliency[k], top, frame),
                "predicted": _class(samples, predicted),
                "right": predicted == truth,
                "confidence": f"{100 * explained.confidence[k]:.0f}%",
            }
        )
    answers = {explained.predictions[k] for _, explained in methods}
    kinds = ["correct" if answers == {truth} else "wrong"]
    return {
        "index": samples.index[k],
        "label": _class(samples, truth),
        "image": raster.photograph(samples.pixels[k], frame),
        "tiles": tiles,
        "kinds": kinds + (["split"] if len(answers) > 1 else []),
    }


def _class(samples: Samples, place: int) -> str:
    return samples.classes[place] if 0 <= place < len(samples.classes) else str(place)


def _count(cards: Sequence[Mapping[str, Any]], kind: str) -> int:
    return len(cards) if kind == "all" else sum(kind in card["kinds"] for card in cards)


def _sentence(cards: Sequence[Mapping[str, Any]], methods: Methods) -> str:
    each = []
    for name, explained in methods:
        share = 100 * float(concentration(explained.saliency).mean())
        each.append(f"{label(name)} {share:.0f}%")
    focus = f"share of the saliency on the strongest tenth of the pixels: {numbers.joined(each)}"
    inputs = numbers.plural(len(cards), "input")
    if len(methods) == 1:
        return f"On {inputs}, {focus} (one model)."
    split = _count(cards, "split")
    same = "agree on all" if not split else f"disagree on {split} of"
    return f"The methods {same} {inputs} shown; {focus} (one model of each, mean over the inputs)."


def _table(samples: Samples, methods: Methods) -> Table:
    shares = [concentration(explained.saliency) for _, explained in methods]
    rows = []
    for k, truth in enumerate(samples.labels):
        cells = [
            f"{_class(samples, e.predictions[k])} ({100 * e.confidence[k]:.0f}%)"
            for _, e in methods
        ]
        focus = [f"{100 * share[k]:.0f}%" for share in shares]
        rows.append((str(samples.index[k]), _class(samples, truth), *cells, *focus))
    head = ["test example", "label"]
    head += [f"{label(name)} answer" for name, _ in methods]
    head += [f"{label(name)} on strongest tenth" for name, _ in methods]
    return Table("Answers, and how concentrated the saliency is", tuple(head), tuple(rows))


def _rows(samples: Samples, methods: Methods) -> Iterator[tuple[object, ...]]:
    for name, explained in methods:
        for k, truth in enumerate(samples.labels):
            values = " ".join(f"{value:.3g}" for value in explained.saliency[k].ravel())
            predicted = _class(samples, explained.predictions[k])
            sure = explained.confidence[k]
            yield name, samples.index[k], _class(samples, truth), predicted, sure, values
