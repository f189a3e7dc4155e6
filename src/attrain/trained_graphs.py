"""Attribution graphs of models that are already trained: made, measured, written and told."""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.config import GraphConfig, check_graph, free_folder, is_function
from attrain.data import Data
from attrain.errors import CreditError, CreditWarning, InputError, unknown
from attrain.graph import AttributionGraph, ClassGraphs, measured, to_html
from attrain.graph.page import SHOWN_SHARE, class_graph
from attrain.report.graph_file import absent, described
from attrain.report.palette import label as label_of
from attrain.rules import PRESETS, RULES
from attrain.runs import environment, write_json
from attrain.trained import class_number, open_path
from attrain.training import predict

EXAMPLES = 5
"""Samples that the page shows of each unit and class."""

TOP = 3
"""Nodes that the summary names of each class."""


@dataclass(frozen=True)
class Explained:
    """Test samples whose outputs are explained: for each the class that is, and where it stands.

    index [N]: places in the test set; x [N, ...]; label, predicted and target [N].
    """

    index: Tensor
    x: Tensor
    label: Tensor
    predicted: Tensor
    target: Tensor

    def where(self, chosen: Tensor) -> "Explained":
        """Return some of the samples, by a mask [N]."""
        return Explained(*(getattr(self, each.name)[chosen] for each in dataclasses.fields(self)))


def show(config: GraphConfig) -> dict[str, Any]:
    """Write the graphs of one model or two, and a page that shows them.

    Each graph is a file of its own, MODEL/CLASS.json with its tensors beside it where it is large.
    Returns what is in graph.json, which tells of all of them, and a summary in lines. Raises
    InputError for arguments that cannot work, and for models that have no graph.
    """
    check_graph(config)
    if config.rule not in RULES and config.rule not in PRESETS:
        raise unknown("rule", config.rule, [*RULES, *PRESETS])
    models, data = _opened(config)
    wanted = [class_number(name, data, "class") for name in config.classes]
    if config.target not in ("label", "predicted"):
        class_number(config.target, data, "target", "predicted", "label")
    out = config.out or free_folder("graph", data.name, False)
    index, held = drawn(data, config.samples, config.ablations, config.seed)
    found = {}
    for name, model in models.items():
        samples = _explained(model, data, index, config, wanted)
        apart = torch.isin(samples.index, held)
        graphs = _graphs(model, samples.where(~apart), data, config)
        rest = samples.where(apart)
        if len(rest.x):
            graphs = measured(
                graphs, model, rest.x, rest.target, seeds=config.seeds,
                seconds=config.ablation_seconds / len(models), batch_size=config.batch_size,
                progress=True,
            )  # fmt: skip
        found[name] = graphs
    files = {
        name: _save(out / _file_name(name), graphs, path, config, data)
        for (name, graphs), path in zip(found.items(), config.paths, strict=True)
    }
    page = _write_page(out / "graph.html", found, data, config)
    summary = [line for name, graphs in found.items() for line in _summary(name, graphs, config)]
    told = {
        "schema": 1,
        "kind": "graphs",
        "method": config.method,
        "rule": config.rule if config.method == "lrp" else None,
        "target": config.target,
        "seed": config.seed,
        "data": {"name": data.name, "classes": list(data.classes)},
        "models": {
            name: {"path": path, "classes": files[name]}
            for name, path in zip(found, config.paths, strict=True)
        },
        "summary": summary,
        "file": str(out / "graph.json"),
        "page": str(page),
        **environment(),
    }
    write_json(out / "graph.json", told)
    return told


# For the report -----------------------------------------------------------------------------------

REPORT_SAMPLES, REPORT_ABLATIONS = 1000, 8


def compact_graphs(model: nn.Module, data: Data) -> dict[str, Any]:
    """Return what graph.json of a run holds: graphs of all classes, by default settings.

    From up to 1,000 test samples by their labels; the tenth of the units of each layer with most
    relevance is ablated on up to 8 other samples of each class, and as many random ones, three
    times. For a model that has no graph it says why.
    """
    index, held = drawn(data, REPORT_SAMPLES, REPORT_ABLATIONS, seed=0)
    device = next(model.parameters()).device
    config = GraphConfig(())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CreditWarning)  # training has told them
            samples = _explained(model, data, index, config, ())
            apart = torch.isin(samples.index, held)
            graphs = _graphs(model, samples.where(~apart), data, config, progress=False)
            rest = samples.where(apart)
            if len(rest.x):
                graphs = measured(
                    graphs, model, rest.x.to(device), rest.target.to(device), seeds=3,
                    shares=(SHOWN_SHARE,), seconds=0,
                )  # fmt: skip
    except (CreditError, InputError) as error:
        return absent(str(error))
    labels = _labels(next(iter(graphs.values())), data)
    return described(
        [class_graph(graph, name, labels, graphs.accuracy.get(name)) for name, graph in
         graphs.items()],
        "lrp",
    )  # fmt: skip


# The samples ------------------------------------------------------------------------------------


def _opened(config: GraphConfig) -> tuple[dict[str, nn.Module], Data]:
    """Return the models by what they are called, and the data set of all of them."""
    names = _names(config.paths)
    models = {}
    sets = {}
    for name, path in zip(names, config.paths, strict=True):
        models[name], data = open_path(path, config.data, config.model, config.activation)
        sets[data.name] = data
    if len(sets) > 1:
        raise InputError(
            f"the models were trained on {' and '.join(sets)}: give --data, one for both."
        )
    return models, next(iter(sets.values()))


def _names(paths: Sequence[str]) -> list[str]:
    """Return what models are called: runs by their method, if that tells them apart, else paths."""
    short = []
    for path in paths:
        place = Path(path)
        place = place.parent if place.suffix in (".safetensors", ".pt") else place
        run = not is_function(path) and re.fullmatch(r"seed-\d+", place.name) is not None
        short.append(label_of(place.resolve().parent.name) if run else path)
    if len(set(short)) == len(short):
        return short
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]} is named twice: give one model, or two different ones.")
    return [str(path) for path in paths]


def drawn(data: Data, samples: int, ablations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the places of the test samples that are looked at, and of those to ablate units on.

    samples: how many of the test set, 0 for all. ablations: how many of each class, at most half.
    """
    y = data.test.tensors[1]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    order = order[:samples] if samples else order
    held = []
    for number in range(data.num_classes):
        of_class = order[y[order] == number]
        held.append(of_class[: min(ablations, len(of_class) // 2)])
    return order.sort().values, torch.cat(held)


def _explained(
    model: nn.Module, data: Data, index: Tensor, config: GraphConfig, wanted: Sequence[int]
) -> Explained:
    """Return the samples and the class that is explained of each; only wanted ones, if any are."""
    x, y = data.test.tensors
    x, y = x[index], y[index]
    predicted = predict(model, TensorDataset(x, y)).argmax(1)
    if config.target == "label":
        target = y
    elif config.target == "predicted":
        target = predicted
    else:
        target = torch.full_like(y, class_number(config.target, data, "target"))
    found = Explained(index, x, y, predicted, target)
    if wanted:
        found = found.where(torch.isin(target, torch.tensor(wanted)))
    if not len(found.x):
        raise InputError(
            f"none of the {len(index)} samples is explained for {', '.join(config.classes)}: "
            "give more --samples, or other --classes."
        )
    return found


# The graphs -------------------------------------------------------------------------------------


def _graphs(
    model: nn.Module, samples: Explained, data: Data, config: GraphConfig, progress: bool = True
) -> ClassGraphs:
    device = next(model.parameters()).device
    options: dict[str, Any] = {"rule": config.rule} if config.method == "lrp" else {}
    graphs = ClassGraphs.from_data(
        model, (samples.x.to(device), samples.target), classes=data.classes, method=config.method,
        batch_size=config.batch_size, examples=EXAMPLES if progress else 0,
        progress=progress, **options,
    )  # fmt: skip
    right = samples.predicted == samples.label
    accuracy = {}
    for name in graphs if config.target in ("label", "predicted") else ():
        of_class = samples.label == data.classes.index(name)
        if of_class.any():
            accuracy[name] = float(right[of_class].double().mean())
    places = {
        name: {layer: _places(each, samples.index) for layer, each in layers.items()}
        for name, layers in graphs.examples.items()
    }
    return ClassGraphs(graphs.graphs, accuracy, places)


def _places(numbers: Tensor, index: Tensor) -> Tensor:
    """Return the places in the test set of samples that are told by their numbers among others."""
    return torch.where(numbers >= 0, index[numbers.clamp_min(0)], -1)


def _save(
    folder: Path, graphs: ClassGraphs, path: str, config: GraphConfig, data: Data
) -> dict[str, Any]:
    """Write the graph of each class; return, by class, its file and what is worth knowing of it."""
    told = {}
    for name, graph in graphs.items():
        file = folder / f"{_file_name(name)}.json"
        graph.with_facts(
            model=path,
            data=data.name,
            rule=config.rule if config.method == "lrp" else None,
            explained=config.target,
            accuracy=graphs.accuracy.get(name),
        ).save(file)
        pruned = graph.prune(config.nodes, config.edges)
        told[name] = {
            "file": str(file),
            "samples": graph.samples,
            "output": graph.output,
            "accuracy": graphs.accuracy.get(name),
            "nodes": _count(pruned),
            "edges": sum(int((each != 0).sum()) for each in pruned.edges.values()),
            "path_mass": graph.path_mass(pruned),
            "leaks": graph.leaks(),
            "top": [list(each) for each in graph.top(TOP)] if _deep(graph) else [],
            "validation": graph.facts.get("validation"),
        }
    return told


def _file_name(name: str) -> str:
    """Return a name without what file systems mind."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "graph"


def _count(graph: AttributionGraph) -> int:
    return sum(int(graph.kept(layer).sum()) for layer in graph.layers)


def _write_page(
    path: Path, found: Mapping[str, ClassGraphs], data: Data, config: GraphConfig
) -> Path:
    x, y = data.test.tensors
    picture = x.ndim == 4 and x.shape[1] in (1, 3)
    told = {
        "command": str(environment()["command"]),
        "data": f"{data.name}, test samples",
        "messages": config.method + (f" ({config.rule})" if config.method == "lrp" else ""),
        "explained": config.target,
        "models": ", ".join(config.paths),
    }
    graph = next(iter(next(iter(found.values())).values()))
    return to_html(
        list(found.items()),
        path,
        title=f"Attribution graph of {' and '.join(found)} on {data.name}",
        pictures=data.restore(x) if picture else None,
        captions=[f"test example {k}, class {data.classes[c]}" for k, c in enumerate(y.tolist())],
        labels=_labels(graph, data),
        source=told,
    )


def _labels(graph: AttributionGraph, data: Data) -> dict[str, Sequence[str]]:
    """Return what the units of the first and the last layer are called, where that is known."""
    first, last = graph.layers[0], graph.layers[-1]
    found: dict[str, Sequence[str]] = {}
    if len(graph.relevance[last]) == data.num_classes:
        found[last] = data.classes
    shape, count = data.input_shape, len(graph.relevance[first])
    if graph.kinds[first] != "input":
        return found
    if len(shape) == 3 and shape[0] == 1 and count == shape[1] * shape[2]:
        found[first] = [f"{row},{column}" for row in range(shape[1]) for column in range(shape[2])]
    elif len(shape) == 3 and shape[0] == 3 and count == 3:
        found[first] = ("red", "green", "blue")
    return found


# The summary ------------------------------------------------------------------------------------


def _summary(name: str, graphs: ClassGraphs, config: GraphConfig) -> list[str]:
    """Return what the graphs of a model say, in lines for a terminal of 100 columns."""
    shares = f"{config.nodes:.0%} of |R| per layer, {config.edges:.0%} of |message| between them"
    how = config.method + (f" ({config.rule})" if config.method == "lrp" else "")
    lines = [f"{name}: {how}; nodes that hold {shares}"]
    wide = max(5, *(len(each) for each in graphs))
    wide = min(wide, 24)
    lines.append(
        f"{'class':<{wide}}  {'samples':>7}  {'accuracy':>8}  {'nodes':>12}  {'edges':>7}  "
        f"{'path mass':>9}  top nodes"
    )
    for key, graph in graphs.items():
        pruned = graph.prune(config.nodes, config.edges)
        edges = sum(int((each != 0).sum()) for each in pruned.edges.values())
        units = sum(len(each) for each in graph.relevance.values())
        right = graphs.accuracy.get(key)
        top = [f"{layer}:{unit}" for layer, unit, _ in graph.top(TOP)] if _deep(graph) else []
        lines.append(
            f"{key[:wide]:<{wide}}  {graph.samples:>7,}  "
            f"{'' if right is None else f'{right:.1%}':>8}  "
            f"{f'{_count(pruned)} of {units:,}':>12}  {edges:>7,}  "
            f"{graph.path_mass(pruned):>9.1%}  {' '.join(top)}"
        )
    return [*lines, *_leaks(graphs), *_ablated(graphs)]


def _deep(graph: AttributionGraph) -> bool:
    return len(graph.layers) > 2


def _leaks(graphs: ClassGraphs) -> list[str]:
    """Return what left the graphs by name, in % of the output, the mean over classes."""
    output = sum(abs(graph.output) for graph in graphs.values())
    sums: dict[str, float] = {}
    for graph in graphs.values():
        for sink, value in graph.leaks().items():
            sums[sink] = sums.get(sink, 0.0) + value
    if not output:
        return []
    parts = [f"{sink} {value / output:.1%}" for sink, value in sums.items() if value]
    return [f"leaks, of the output: {', '.join(parts) or 'none'}"]


def _ablated(graphs: ClassGraphs) -> list[str]:
    """Return what ablating the strongest units did beside random ones, over the classes."""
    known = [graph.facts["validation"] for graph in graphs.values() if "validation" in graph.facts]
    if not known:
        return []
    output = sum(abs(each["output"]) for each in known) or 1.0
    drop, random = (
        round(sum(each[key] for each in known) / output, 2) + 0.0  # turns -0.0 into 0.0
        for key in ("aopc", "random_mean")
    )
    seeds = len(known[0]["random"])
    beaten = sum(each["aopc"] > max(_mean(curve) for curve in each["random"]) for each in known)
    low, high = known[0]["shares"][0], known[0]["shares"][-1]
    return [
        f"ablating the first {low:.0%} to {high:.0%} of the units of each layer lowers the output "
        f"by {drop:.0%} on average,",
        f"as many random units by {random:.0%}; more than all {seeds} random sets in {beaten} of "
        f"{len(known)} classes",
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
