"""What an attribution graph page is drawn from: plain values, with what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attrain.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A layer: its name, what it is (`conv`, `sum`, `heads`, ...) and how many units it has.

    sinks: relevance that leaves the graph at this layer, by name: bias, epsilon, pruned.
    labels: a name for each unit; without, a unit is known by its number.
    """

    name: str
    kind: str
    units: int
    sinks: Mapping[str, float] = field(default_factory=dict)
    labels: Sequence[str] | None = None


class Edges(NamedTuple):
    """The messages `[target units, source units]` between two layers, told by their positions."""

    source: int
    target: int
    messages: Array


@dataclass(frozen=True)
class Validation:
    """What ablating the strongest nodes did to the output, beside random nodes.

    share: of |R| that the ablated nodes hold, as a mean over the layers. drop: by how much the
    output fell.
    random, spread: mean and standard deviation of the drop for as many random nodes, over `seeds`.
    """

    share: float
    drop: float
    random: float
    spread: float
    seeds: int


@dataclass(frozen=True)
class ClassGraph:
    """The graph of one class, layers from the input to the output.

    samples: how many it is the mean of. output: the mean output that is explained.
    relevance: per layer [units]. edges: may skip layers, but lead to later ones.
    ablation: per layer, by how much the output changes when a unit is ablated; NaN where that was
    not measured. random_ablation: per layer, the mean of that over random units.
    examples: positions in the page's examples, by layer name and unit, the strongest first.
    """

    name: str
    samples: int
    output: float
    layers: Sequence[Layer]
    relevance: Sequence[Array]
    edges: Sequence[Edges]
    ablation: Sequence[Array | None] | None = None
    random_ablation: Sequence[float | None] | None = None
    examples: Mapping[tuple[str, int], Sequence[int]] = field(default_factory=dict)
    validation: Validation | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Panel:
    """One model with its classes."""

    name: str
    graphs: Sequence[ClassGraph]


@dataclass(frozen=True)
class Example:
    """A sample: its caption, and a picture [C, H, W] in 0..1 or a data address, if it has one."""

    caption: str
    image: Array | str | None = None


@dataclass(frozen=True)
class GraphPage:
    """The page: one model, or two side by side. source: how it was made, fact by fact."""

    title: str
    panels: Sequence[Panel]
    examples: Sequence[Example] = ()
    source: Mapping[str, str] = field(default_factory=dict)


def check_page(page: GraphPage) -> None:
    """Raise InputError where the parts of a page do not fit together."""
    if len(page.panels) not in (1, 2):
        raise InputError(f"a graph page shows one or two models, not {len(page.panels)}.")
    for example in page.examples:
        if isinstance(example.image, str) and not example.image.startswith("data:image/"):
            raise InputError(
                f"example {example.caption!r} is at the address {example.image[:40]!r}; a graph "
                "page loads nothing, so give the pixels or a 'data:image/' address."
            )
    for panel in page.panels:
        if not panel.graphs:
            raise InputError(f"model {panel.name!r} has no graph; give at least one class.")
        classes = [graph.name for graph in panel.graphs]
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise InputError(
                f"model {panel.name!r} has two graphs with the name {twice!r}; name each "
                "differently."
            )
        for graph in panel.graphs:
            check_graph(graph, len(page.examples))


def check_graph(graph: ClassGraph, examples: int = 0) -> None:
    """Raise InputError where the parts of a graph do not fit together."""
    names = [layer.name for layer in graph.layers]
    where = f"graph {graph.name!r}"
    if not names:
        raise InputError(f"{where} has no layers.")
    if not np.isfinite(graph.output):
        raise InputError(f"{where} has the output {graph.output}; a graph explains a finite one.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where} has two layers with the name {twice!r}; name each differently.")
    if len(graph.relevance) != len(names):
        raise InputError(
            f"{where} has {len(names)} layers, but relevance of {len(graph.relevance)}."
        )
    for layer, relevance in zip(graph.layers, graph.relevance, strict=True):
        _check_values(f"relevance of {layer.name!r}", relevance, (layer.units,))
        if layer.labels is not None and len(layer.labels) != layer.units:
            raise InputError(
                f"layer {layer.name!r} has {layer.units} units, but {len(layer.labels)} labels."
            )
        if not all(np.isfinite(value) for value in layer.sinks.values()):
            raise InputError(f"layer {layer.name!r} has a sink that is not finite.")
    for source, target, messages in graph.edges:
        if not 0 <= source < target < len(names):
            raise InputError(
                f"{where} has edges from layer {source} to layer {target}; they lead to a later "
                f"one of its {len(names)} layers, counted from 0."
            )
        shape = (graph.layers[target].units, graph.layers[source].units)
        _check_values(f"messages from {names[source]!r} to {names[target]!r}", messages, shape)
    for values, what in ((graph.ablation, "ablation"), (graph.random_ablation, "random_ablation")):
        if values is not None and len(values) != len(names):
            raise InputError(f"{where} has {len(names)} layers, but {what} of {len(values)}.")
    for layer, ablation in zip(graph.layers, graph.ablation or (), strict=False):
        if ablation is not None and np.shape(ablation) != (layer.units,):
            raise InputError(
                f"ablation of {layer.name!r} has shape {np.shape(ablation)}, not ({layer.units},)."
            )
        if ablation is not None and np.isinf(ablation).any():
            raise InputError(
                f"ablation of {layer.name!r} holds infinite values; NaN stands for what was not "
                "measured."
            )
    sizes = {layer.name: layer.units for layer in graph.layers}
    for (name, unit), places in graph.examples.items():
        if not 0 <= unit < sizes.get(name, 0):
            raise InputError(f"{where} has examples for {name}:{unit}, which is no unit of it.")
        if not all(0 <= place < examples for place in places):
            raise InputError(
                f"{where} has examples {list(places)} for {name}:{unit}, but the page has "
                f"{examples} examples."
            )


def _check_values(what: str, values: Array, shape: tuple[int, ...]) -> None:
    if np.shape(values) != shape:
        raise InputError(f"{what} have shape {np.shape(values)}, not {shape}.")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(f"{what} hold {bad} values that are not finite; a graph needs numbers.")
