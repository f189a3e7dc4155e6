"""Attribution graphs in files: graph.json for readers, with graph.safetensors beside a large one.

docs/reference/attribution-graphs.md describes every field.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrain import runs
from attrain.errors import InputError
from attrain.graph.formats import check_finite, count_links, links, node_id
from attrain.graph.graph import AttributionGraph

FORMAT = "attrain-graph"
SCHEMA = 1
LINKS = 20_000
"""The most links that graph.json holds; a graph with more has its tensors beside it."""

_MOST_BYTES = 1 << 30
_MOST_VALUES = 200_000_000
_LONGEST = 1_000


def save(graph: AttributionGraph, path: str | os.PathLike[str], *, links: int = LINKS) -> None:
    """Write a graph as node-link JSON, each file in one step.

    The JSON has the fields of circuit-tracer's and Neuronpedia's graphs and more; networkx reads it
    with node_link_graph(data, edges="links"). It holds at most `links` links, the largest. Where
    there are more, `path` with the ending .safetensors holds all of the graph in double precision
    and belongs to it; otherwise the JSON alone is the graph, exactly.

    Raises InputError for values that are not finite or facts that are no plain values, AttrainError
    when a file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise InputError(f"{path} is the name of the tensors beside a graph: end it in .json.")
    if not isinstance(links, int) or isinstance(links, bool) or links < 0:
        raise InputError(f"links must be an integer >= 0, got {links!r}.")
    check_finite(graph)
    total = count_links(graph)
    data = _described(graph, links, total)
    if total > links:
        from safetensors.torch import save as written

        content = written(_tensors(graph), {"format": FORMAT, "schema": str(SCHEMA)})
        data["tensors"] = hashlib.sha256(content).hexdigest()
        with runs.replacing(path.with_suffix(".safetensors")) as file:
            file.write(content)
    try:
        runs.write_json(path, data, indent=None)
    except TypeError as error:
        raise InputError(f"the facts of the graph cannot be written: {error}.") from error


def _described(graph: AttributionGraph, most: int, total: int) -> dict[str, Any]:
    kept_links = _largest(graph, most) if total > most else [*links(graph)]
    told = {node_id(name, unit) for name in graph.layers
            for unit in graph.kept(name).nonzero()[:, 0].tolist()}  # fmt: skip
    told |= {end for link in kept_links for end in (link.source, link.target)}
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "directed": True,
        "multigraph": False,
        "graph": {"method": graph.method, "target": graph.target},
        "metadata": {
            "slug": "-".join(filter(None, ("attrain", graph.method, graph.target))),
            "scan": "attrain",
            "transcoder_list": [],
            "prompt_tokens": [graph.target or "output"],
            "prompt": graph.target or "output",
            "node_threshold": None,
            "schema_version": 1,
            "method": graph.method,
            "target": graph.target,
            "output": graph.output,
            "samples": graph.samples,
            "attrain": runs.versions()["attrain"],
            "facts": dict(graph.facts),
        },
        "qParams": {
            "pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": "",
        },
        "layers": [_layer(graph, name) for name in graph.layers],
        "links_total": total,
        "nodes": [*_nodes(graph, told)],
        "links": [link._asdict() for link in kept_links],
    }  # fmt: skip


def _largest(graph: AttributionGraph, most: int) -> list[Any]:
    if not most:
        return []
    sizes = torch.cat(
        [each.abs().flatten() for each in graph.edges.values()]
        + [
            each[graph.kept(name)].abs()
            for name in graph.sinks
            for each in graph.sinks[name].values()
        ]
    )
    least = float(sizes.topk(most).values[-1])
    found = sorted(links(graph, least), key=lambda each: -abs(each.weight))[:most]
    return found


def _layer(graph: AttributionGraph, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "kind": graph.kinds[name],
        "sources": list(graph.sources[name]),
        "sinks": dict(graph.sinks.get(name, {})),
        "relevance": graph.relevance[name],
    }
    if name in graph.keep:
        found["keep"] = graph.keep[name]
    return found


def _nodes(graph: AttributionGraph, told: set[str]) -> Any:
    last = graph.layers[-1]
    for depth, name in enumerate(graph.layers):
        values = graph.relevance[name]
        whole = float(values.abs().sum()) or 1.0
        kind = "logit" if name == last else "unit" if graph.sources[name] else "embedding"
        for unit, value in enumerate(values.tolist()):
            if node_id(name, unit) in told:
                yield _node(name, depth, unit, kind, value, abs(value) / whole) | {
                    "kind": graph.kinds[name],
                    "is_target_logit": kind == "logit" and value != 0,
                }
        kept = graph.kept(name)
        for sink, each in graph.sinks.get(name, {}).items():
            if node_id(name, sink) in told:
                yield _node(name, depth, sink, "sink", float(each[kept].sum()), 0.0) | {
                    "kind": "sink",
                    "is_target_logit": False,
                }


def _node(
    name: str, depth: int, part: int | str, kind: str, relevance: float, influence: float
) -> dict[str, Any]:
    return {
        "id": node_id(name, part),
        "node_id": node_id(name, part),
        "jsNodeId": node_id(name, part),
        "layer": str(depth),
        "layer_name": name,
        "ctx_idx": 0,
        "reverse_ctx_idx": 0,
        "run_idx": 0,
        "feature": part if isinstance(part, int) else -1,
        "feature_type": kind,
        "token_prob": 0.0,
        "clerp": f"{name} {part}",
        "influence": influence,
        "relevance": relevance,
    }


def _tensors(graph: AttributionGraph) -> dict[str, Tensor]:
    found = {}
    for index, name in enumerate(graph.layers):
        parts = {"relevance": graph.relevance[name]}
        if name in graph.edges:
            parts["edges"] = graph.edges[name]
        for sink, each in graph.sinks.get(name, {}).items():
            parts[f"sinks.{sink}"] = each
        for part, each in parts.items():
            found[f"{index}.{part}"] = each.detach().double().cpu().clone().contiguous()
    return found


# Reading ------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> AttributionGraph:
    """Return the graph that `save` wrote; nothing that a file brings is ever executed.

    Names and labels are plain text: whoever shows them has to escape them.

    Raises AttrainError for a file that is missing, InputError for one that is cut short, is no
    graph or of another version, holds what a graph cannot, or has not its tensors beside it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # reading it will tell
    if size > _MOST_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes, more than a graph's {_MOST_BYTES:,}: save it with fewer "
            "links."
        )
    try:
        data = runs.read_json(path)
    except RecursionError as error:
        raise InputError(f"{path} is no attribution graph: it is nested too deeply.") from error
    return _Reading(path).graph(data)


@dataclass(frozen=True)
class _Reading:
    """A file that is read, and what is wrong with it."""

    path: Path

    def wrong(self, what: str) -> InputError:
        """Return the error for what is wrong with the file."""
        return InputError(
            f"{self.path} is no attribution graph that can be read: {what}. Save the graph again."
        )

    def graph(self, data: Any) -> AttributionGraph:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(
                f"{self.path} is no attribution graph of attrain: its format is not {FORMAT!r}."
            )
        schema = data.get("schema")
        if schema != SCHEMA or isinstance(schema, bool):
            raise InputError(
                f"{self.path} is a graph of schema {schema!r:.40}, and this version of attrain "
                f"reads {SCHEMA}: save it again with this one, or read it with the one that wrote "
                "it."
            )
        about = self.field(data, "metadata", dict, "the file")
        heads = self.heads(data)
        relevance = {name: self.numbers(head, "relevance", name) for name, head in heads.items()}
        incoming = {
            name: sum(len(relevance[source]) for source in head["sources"])
            for name, head in heads.items()
        }
        values = sum(len(relevance[name]) * (incoming[name] + len(head["sinks"]))
                     for name, head in heads.items())  # fmt: skip
        if values > _MOST_VALUES:
            raise self.wrong(f"it tells of {values:,} edges, more than {_MOST_VALUES:,}")
        zeros = {
            name: torch.zeros(len(relevance[name]), incoming[name], dtype=torch.float64)
            for name, head in heads.items()
            if head["sources"]
        }
        sinks = {
            name: {sink: self.numbers(head["sinks"], sink, name) for sink in head["sinks"]}
            for name, head in heads.items()
            if head["sources"] or head["sinks"]
        }
        for name, taken in sinks.items():
            if any(len(each) != len(relevance[name]) for each in taken.values()):
                raise self.wrong(f"a sink of layer {name!r:.60} has not a value for each unit")
        found = AttributionGraph(
            layers=tuple(heads),
            kinds={name: head["kind"] for name, head in heads.items()},
            relevance=relevance,
            sources={name: tuple(head["sources"]) for name, head in heads.items()},
            edges=zeros,
            sinks=sinks,
            output=self.number(about.get("output"), "output"),
            samples=self.field(about, "samples", int, "metadata"),
            method=self.field(about, "method", str, "metadata"),
            target=self.field(about, "target", str, "metadata"),
            keep=self.keeps(heads, relevance),
            facts=self.field(about, "facts", dict, "metadata"),
        )
        if "tensors" in data:
            self.fill_from_tensors(found, data["tensors"])
        else:
            self.fill_from_links(found, data)
        return found

    def field(self, held: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
        value = held.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            got = "nothing" if name not in held else type(value).__name__
            raise self.wrong(f"{where} has {got} for {name!r}, wanted {kind.__name__}")
        return value

    def number(self, value: Any, what: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(f"{what} is {value!r:.40}, wanted a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self.wrong(f"{what} is not finite")
        return found

    def numbers(self, head: Mapping[str, Any], name: str, layer: str) -> Tensor:
        found = self.field(head, name, list, f"layer {layer!r:.60}")
        what = f"a {name} of layer {layer!r:.60}"
        return torch.tensor([self.number(each, what) for each in found], dtype=torch.float64)

    def heads(self, data: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for head in self.field(data, "layers", list, "the file"):
            if not isinstance(head, dict):
                raise self.wrong(f"a layer is {type(head).__name__}, wanted dict")
            name = self.field(head, "name", str, "a layer")
            if len(name) > _LONGEST or name in found:
                raise self.wrong(f"the layer name {name!r:.60} is too long or there twice")
            where = f"layer {name!r:.60}"
            self.field(head, "kind", str, where)
            self.field(head, "sinks", dict, where)
            seen: set[str] = set()
            for source in self.field(head, "sources", list, where):
                if not isinstance(source, str) or source not in found or source in seen:
                    raise self.wrong(
                        f"{where} is fed by {source!r:.60}, which is no layer before it, or told "
                        "twice"
                    )
                seen.add(source)
            if any(sink.isdigit() or ":" in sink for sink in head["sinks"]):
                raise self.wrong(f"{where} has a sink that is called like a unit")
            found[name] = head
        if not found:
            raise self.wrong("it has no layers")
        return found

    def keeps(self, heads: Mapping[str, Any], relevance: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, head in heads.items():
            if "keep" not in head:
                continue
            values = self.field(head, "keep", list, f"layer {name!r:.60}")
            truths = all(isinstance(each, bool) for each in values)
            if not truths or len(values) != len(relevance[name]):
                raise self.wrong(f"keep of layer {name!r:.60} is not true or false for each unit")
            found[name] = torch.tensor(values, dtype=torch.bool)
        return found

    def fill_from_links(self, graph: AttributionGraph, data: Mapping[str, Any]) -> None:
        listed = self.field(data, "links", list, "the file")
        if self.field(data, "links_total", int, "the file") != len(listed):
            raise self.wrong(f"it holds {len(listed)} of {data['links_total']} links, and no hash "
                             "of the tensors with all of them")  # fmt: skip
        units = {
            node_id(name, unit): (name, unit)
            for name in graph.layers
            for unit in range(len(graph.relevance[name]))
        }
        places = {name: graph.columns(name) for name in graph.layers}
        for link in listed:
            if not isinstance(link, dict):
                raise self.wrong(f"a link is {type(link).__name__}, wanted dict")
            source = self.field(link, "source", str, "a link")
            target = self.field(link, "target", str, "a link")
            weight = self.number(link.get("weight"), "the weight of a link")
            if target not in units:
                raise self.wrong(f"a link leads to {target!r:.60}, which is no unit")
            name, out = units[target]
            layer, _, sink = source.rpartition(":")
            if source in units and units[source][0] in places[name]:
                start = places[name][units[source][0]].start
                row, column = graph.edges[name][out], start + units[source][1]
            elif layer == name and sink in graph.sinks.get(name, {}):
                continue  # told with its layer already
            else:
                raise self.wrong(f"a link leads from {source!r:.60} to {target!r:.60}, which it "
                                 "cannot feed")  # fmt: skip
            if row[column] != 0:
                raise self.wrong(f"the link from {source!r:.60} to {target!r:.60} is there twice")
            row[column] = weight

    def fill_from_tensors(self, graph: AttributionGraph, digest: Any) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load as parsed

        beside = self.path.with_suffix(".safetensors")
        wanted = _tensors(graph)
        if not beside.is_file():
            raise InputError(
                f"{beside} is missing: {self.path} holds the largest links alone, and all of the "
                "graph is in that file. Keep both together."
            )
        most = sum(8 * each.numel() for each in wanted.values()) + 1000 * len(wanted) + 10_000
        content = beside.read_bytes() if beside.stat().st_size <= most else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(
                f"{beside} does not belong to {self.path}: it was changed, cut short, or written "
                "with another graph. Save the graph again."
            )
        try:
            tensors = parsed(content)
        except SafetensorError as error:
            raise InputError(f"{beside} is not a readable safetensors file ({error}).") from error
        for key, empty in wanted.items():
            found = tensors.get(key)
            if found is None or found.shape != empty.shape or found.dtype != torch.float64:
                raise self.wrong(f"{beside.name} has no {key!r} of {list(empty.shape)} doubles")
            if not bool(torch.isfinite(found).all()):
                raise self.wrong(f"{key!r} of {beside.name} is not finite")
        for index, name in enumerate(graph.layers):
            graph.relevance[name].copy_(tensors[f"{index}.relevance"])
            if name in graph.edges:
                graph.edges[name].copy_(tensors[f"{index}.edges"])
            for sink, values in graph.sinks.get(name, {}).items():
                values.copy_(tensors[f"{index}.sinks.{sink}"])
