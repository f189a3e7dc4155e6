"""Attribution graphs on their page: graphs of one model, or of two side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.graph.classes import ClassGraphs
from attrain.graph.graph import AttributionGraph
from attrain.report import graph_input as page
from attrain.report.graph_page import notebook_html, write_graph_page
from attrain.report.graph_svg import graph_svg
from attrain.runs import replacing

Graphs = AttributionGraph | ClassGraphs
Labels = Mapping[str, Sequence[str]]

SHOWN_SHARE = 0.1
"""Of the units of each layer: the ablation that the page tells, if it was validated."""

MOST_EXAMPLES = 600
"""Samples that are put into a page; those of the strongest units come first."""


def to_html(
    models: Sequence[tuple[str, Graphs]] | Mapping[str, Graphs],
    path: str | os.PathLike[str],
    *,
    title: str = "Attribution graph",
    pictures: Tensor | None = None,
    captions: Sequence[str] | None = None,
    labels: Labels | None = None,
    source: Mapping[str, str] | None = None,
) -> Path:
    """Write graphs as one HTML page, which opens from disk and loads nothing; return its path.

    Parameters
    ----------
    models: one model or two, side by side, each a name and its graph or its graphs of classes.
    title: of the page.
    pictures: the samples that the graphs were made of [N, C, H, W] in 0..1, one or three channels,
        of which those are shown for which a unit earned most.
    captions: a text for each of these samples; without, their numbers.
    labels: of a layer, by its name, what its units are called; without, their numbers.
    source: facts on how the graphs were made, by name.

    What `with_facts` has put into a graph is shown, too: `validation` (`Validation.as_facts`),
    `ablation` and `random_ablation` (by layer; see `attrain.graph.measured`).

    Raises InputError for what does not fit together, AttrainError where it cannot be written.
    docs/reference/graph-page.md describes the page.
    """
    made = page_of(
        models, title=title, pictures=pictures, captions=captions, labels=labels, source=source
    )
    return write_graph_page(Path(path), made)


def to_svg(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    width: float = 720.0,
    nodes: float = 0.8,
    edges: float = 0.9,
    labels: Labels | None = None,
) -> Path:
    """Write a graph as a static picture on white, an SVG file; return its path.

    Parameters
    ----------
    name: of what is explained, for those who cannot see the picture; without, the target.
    width: in pixels.
    nodes, edges: of each layer the fewest nodes are drawn that hold this share of |R|, and of the
        edges into it those that hold this share of |message|, at most 150 in all.
    labels: of a layer, by its name, what its units are called; without, their numbers.

    Raises InputError for what does not fit together, AttrainError where it cannot be written.
    """
    made = class_graph(graph, name or graph.target or "output", labels)
    page.check_graph(made)
    text = str(graph_svg(made, width=width, nodes=nodes, edges=edges))
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff;color:#1a1a1a" '
    with replacing(path) as file:
        file.write(text.replace("<svg ", head, 1).encode() + b"\n")
    return Path(path)


def frame(graphs: Graphs, title: str) -> str:
    """Return the page of a graph in a frame that can reach nothing around it."""
    return notebook_html(page_of([(title, graphs)], title=title))


def page_of(
    models: Sequence[tuple[str, Graphs]] | Mapping[str, Graphs],
    *,
    title: str = "Attribution graph",
    pictures: Tensor | None = None,
    captions: Sequence[str] | None = None,
    labels: Labels | None = None,
    source: Mapping[str, str] | None = None,
) -> page.GraphPage:
    """Return what the page is drawn from; see `to_html`."""
    named = list(models.items() if isinstance(models, Mapping) else models)
    for each in named:
        if not (isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], Graphs)):
            raise InputError(
                "models are pairs of a name and an AttributionGraph or ClassGraphs, got "
                f"{type(each).__name__}."
            )
    samples = _Samples(pictures, captions)
    panels = []
    for name, graphs in named:
        if isinstance(graphs, AttributionGraph):
            found = [class_graph(graphs, graphs.target or "output", labels)]
        else:
            chosen = samples.choose(graphs)
            found = [
                class_graph(graph, key, labels, graphs.accuracy.get(key), chosen.get(key, {}))
                for key, graph in graphs.items()
            ]
        panels.append(page.Panel(str(name), found))
    return page.GraphPage(title, panels, samples.shown(), dict(source or {}))


def class_graph(
    graph: AttributionGraph,
    name: str,
    labels: Labels | None = None,
    accuracy: float | None = None,
    examples: Mapping[tuple[str, int], Sequence[int]] | None = None,
) -> page.ClassGraph:
    """Return a graph as the page takes it; units that pruning took out have no relevance there."""
    taking = {sink for each in graph.sinks.values() for sink in each if each[sink].any()}
    place = {layer: number for number, layer in enumerate(graph.layers)}
    for layer in labels or {}:
        graph.check_layer(layer)
    layers = [
        page.Layer(
            layer,
            "output" if layer == graph.layers[-1] else graph.kinds[layer],
            len(graph.relevance[layer]),
            {
                sink: float(each.sum())
                for sink, each in graph.sinks.get(layer, {}).items()
                if sink in taking
            },
            (labels or {}).get(layer),
        )
        for layer in graph.layers
    ]
    ablation = graph.facts.get("ablation")
    random = graph.facts.get("random_ablation", {})
    known = accuracy is not None and np.isfinite(accuracy)
    return page.ClassGraph(
        name=name,
        samples=graph.samples,
        output=graph.output,
        layers=layers,
        relevance=[
            torch.where(graph.kept(layer), graph.relevance[layer], 0.0).double().numpy()
            for layer in graph.layers
        ],
        edges=[
            page.Edges(place[below], place[layer], graph.between(below, layer).double().numpy())
            for layer in graph.layers
            for below in graph.sources[layer]
        ],
        ablation=None if ablation is None else [_measured(ablation, k) for k in graph.layers],
        random_ablation=None
        if ablation is None
        else [-random[layer] if layer in random else None for layer in graph.layers],
        examples=examples or {},
        validation=_validation(graph),
        accuracy=accuracy if known else None,
    )


def _measured(ablation: Mapping[str, Sequence[float | None]], layer: str) -> page.Array | None:
    """Return by how much the output changes, where facts tell by how much it falls."""
    falls = ablation.get(layer)
    if falls is None:
        return None
    return np.array([np.nan if fall is None else -fall for fall in falls], dtype=float)


def _validation(graph: AttributionGraph) -> page.Validation | None:
    found = graph.facts.get("validation")
    if not found:
        return None
    shares = found["shares"]
    at = min(range(len(shares)), key=lambda k: abs(shares[k] - SHOWN_SHARE))
    random = np.array([curve[at] for curve in found["random"]])
    return page.Validation(
        share=held(graph, shares[at], found["layers"]),
        drop=found["drops"][at],
        random=float(random.mean()),
        spread=float(random.std(ddof=1)) if len(random) > 1 else 0.0,
        seeds=len(random),
    )


def held(graph: AttributionGraph, share: float, layers: Sequence[str]) -> float:
    """Return the share of |R| that a share of the units holds, the strongest, a mean over layers.

    At least one unit of each layer counts.
    """
    shares = []
    for layer in layers:
        sizes = graph.relevance[layer].abs().sort(descending=True).values
        count = max(1, round(share * len(sizes)))
        shares.append(float(sizes[:count].sum() / sizes.sum()) if sizes.sum() > 0 else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


class _Samples:
    """The samples of a page: which, where they stand in it, and what they look like."""

    def __init__(self, pictures: Tensor | None, captions: Sequence[str] | None) -> None:
        if pictures is not None and (pictures.ndim != 4 or pictures.shape[1] not in (1, 3)):
            raise InputError(
                f"pictures have the shape {tuple(pictures.shape)}: give [N, C, H, W] with one "
                "channel or three."
            )
        if pictures is not None and captions is not None and len(pictures) != len(captions):
            raise InputError(
                f"there are {len(pictures)} pictures and {len(captions)} captions: give one for "
                "each."
            )
        self.pictures, self.captions = pictures, captions
        self.places: dict[int, int] = {}

    def choose(self, graphs: ClassGraphs) -> dict[str, dict[tuple[str, int], list[int]]]:
        """Return, by class and unit, the places in the page of the samples that it earned most of.

        All units of all classes take their turns by their share of |R| in their layer, until the
        page is full.
        """
        if self.pictures is None and self.captions is None:
            return {}
        ranked = sorted(self._units(graphs), key=lambda each: -each[0])
        found: dict[str, dict[tuple[str, int], list[int]]] = {name: {} for name in graphs}
        for _, name, layer, unit in ranked:
            numbers = graphs.top_examples(name, layer, unit)
            new = [number for number in numbers if number not in self.places]
            if len(self.places) + len(new) > MOST_EXAMPLES:
                continue
            for number in new:
                self._check(number)
                self.places[number] = len(self.places)
            if numbers:
                found[name][layer, unit] = [self.places[number] for number in numbers]
        return found

    def _units(self, graphs: ClassGraphs) -> Iterator[tuple[float, str, str, int]]:
        for name, graph in graphs.items():
            for layer in graphs.examples.get(name, {}):
                sizes = graph.relevance[layer].abs()
                whole = float(sizes.sum()) or 1.0
                for unit, size in enumerate(sizes.tolist()):
                    if size > 0:
                        yield size / whole, name, layer, unit

    def _check(self, number: int) -> None:
        for what, given in (("pictures", self.pictures), ("captions", self.captions)):
            if given is not None and number >= len(given):
                raise InputError(
                    f"sample {number} is an example, and there are {len(given)} {what}: give them "
                    "for all samples of the data that the graphs were made of."
                )

    def shown(self) -> list[page.Example]:
        """Return the chosen samples."""
        return [
            page.Example(self._caption(number), self._picture(number)) for number in self.places
        ]

    def _caption(self, number: int) -> str:
        return f"sample {number}" if self.captions is None else str(self.captions[number])

    def _picture(self, number: int) -> Any:
        if self.pictures is None:
            return None
        return self.pictures[number].detach().double().clamp(0, 1).cpu().numpy()
