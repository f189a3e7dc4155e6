"""An attribution graph as compact JSON that is safe inside a page, and which of it is kept."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attrain.report import raster
from attrain.report.graph_input import Array, ClassGraph, Edges, Example

MOST_EDGES = 20_000
"""Edges of one graph that go into a page; the largest stay."""

MOST_EDGES_OF_A_PAGE = 400_000
"""Edges of all graphs of a page together, about 8 MB."""

Places = npt.NDArray[np.intp]


def strongest(edges: Sequence[Edges], most: int) -> list[tuple[Places, Places, Array]]:
    """Return, for each pair of layers, the (target, source, message) of the edges to keep.

    An edge is as strong as its share of all |message| into its layer, so that layers which lost
    relevance on the way keep edges as well. The strongest come first.
    """
    into: dict[int, float] = {}
    for _, target_layer, messages in edges:
        into[target_layer] = into.get(target_layer, 0.0) + float(np.abs(messages).sum())
    found, shares = [], []
    for _, target_layer, messages in edges:
        values = np.asarray(messages, dtype=float).ravel()
        places = np.flatnonzero(values)
        if len(places) > most:
            # Of millions of edges only the few that can stay are put in order.
            places = np.sort(places[np.argpartition(-np.abs(values[places]), most - 1)[:most]])
        places = places[np.argsort(-np.abs(values[places]), kind="stable")]
        target, source = np.unravel_index(places, np.shape(messages))
        found.append((target, source, values[places]))
        shares.append(np.abs(values[places]) / (into[target_layer] or 1.0))
    total = sum(map(len, shares))
    if total <= most:
        return found
    group = np.repeat(np.arange(len(shares)), list(map(len, shares)))
    kept = np.argsort(-np.concatenate(shares), kind="stable")[:most]
    counts = np.bincount(group[kept], minlength=len(shares))
    return [
        (target[:count], source[:count], values[:count])
        for (target, source, values), count in zip(found, counts, strict=True)
    ]


def kept_nodes(relevance: Array, share: float) -> Places:
    """Return the smallest set of units that holds `share` of |relevance|, the largest first."""
    sizes = np.abs(np.asarray(relevance, dtype=float))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    kept: Places = order[: smallest(sizes[order], share)]
    return kept


def smallest(sizes: Array, share: float) -> int:
    """Return how many of the descending `sizes` it takes to reach `share` of their sum."""
    reached = np.cumsum(sizes)
    if not len(reached):
        return 0
    # A share of 1 must not fall short or go on by a rounding error.
    enough = reached >= share * reached[-1] * (1 - 1e-9)
    return int(np.argmax(enough)) + 1


def graph_json(graph: ClassGraph, most: int = MOST_EDGES) -> str:
    """Return a graph as JSON, numbers to four significant digits, at most `most` edges."""
    about: dict[str, Any] = {"name": graph.name, "samples": graph.samples}
    about["output"] = _short(graph.output)
    about["examples"] = {
        f"{name}:{unit}": list(map(int, places)) for (name, unit), places in graph.examples.items()
    }
    if graph.validation is not None:
        found = vars(graph.validation)
        about["validation"] = {key: _short(value) for key, value in found.items()}
    layers = ",".join(_layer_json(graph, k) for k in range(len(graph.layers)))
    kept = strongest(graph.edges, most)
    groups = ",".join(map(_group_json, graph.edges, kept))
    return f'{_text(about)[:-1]},"layers":[{layers}],"edges":[{groups}]}}'


def _layer_json(graph: ClassGraph, place: int) -> str:
    layer = graph.layers[place]
    about: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
    about["sinks"] = {name: _short(value) for name, value in layer.sinks.items()}
    if layer.labels is not None:
        about["labels"] = [str(label) for label in layer.labels]
    random = graph.random_ablation[place] if graph.random_ablation is not None else None
    if random is not None:
        about["random"] = _short(random)
    ablation = graph.ablation[place] if graph.ablation is not None else None
    measured = f',"ablation":{_numbers(ablation)}' if ablation is not None else ""
    return f'{_text(about)[:-1]},"relevance":{_numbers(graph.relevance[place])}{measured}}}'


def _group_json(edges: Edges, kept: tuple[Places, Places, Array]) -> str:
    source_layer, target_layer, messages = edges
    target, source, values = kept
    sizes = np.abs(messages)
    return (
        f'{{"source":{source_layer},"target":{target_layer},"count":{np.count_nonzero(sizes)},'
        f'"total":{sizes.sum():.4g},"from":{_integers(source)},"to":{_integers(target)},'
        f'"message":{_numbers(values)}}}'
    )


def examples_json(examples: Sequence[Example]) -> str:
    """Return the examples as JSON: a caption, and a data address where there is a picture."""
    return _text(
        [
            {"caption": example.caption, "image": _address(example.image)}
            if example.image is not None
            else {"caption": example.caption}
            for example in examples
        ]
    )


def safe_json(value: Any) -> str:
    """Return JSON that can stand between script tags, whatever its texts hold."""
    return _text(value)


def _address(image: Array | str) -> str:
    return image if isinstance(image, str) else raster.photograph(np.asarray(image, dtype=float))


def _text(value: Any) -> str:
    # Neither the end of a script nor a comment nor an entity can be written without these.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _integers(values: Places) -> str:
    return f"[{','.join(map(str, values.tolist()))}]"


def _numbers(values: Array) -> str:
    numbers = (f"{value:.4g}" for value in np.asarray(values, dtype=float).tolist())
    return f"[{','.join('null' if number == 'nan' else number for number in numbers)}]"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
