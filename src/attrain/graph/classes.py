"""Attribution graphs of all classes of a data set, made in one pass over it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from attrain.attribution.conditions import (
    as_in_evaluation,
    check_inputs,
    check_model,
    plain,
    progress_bar,
)
from attrain.attribution.lrp import frozen
from attrain.attribution.targets import Target, scores
from attrain.errors import InputError, unknown
from attrain.graph.build import graph_of, prepare
from attrain.graph.graph import AttributionGraph
from attrain.graph.totals import Totals

if TYPE_CHECKING:
    import os
    from pathlib import Path

TARGETS = ("label", "predicted")
Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs [N, ...], labels [N] and the samples' numbers in the data set [N]."""


@dataclass(frozen=True, eq=False)
class ClassGraphs(Mapping[str, AttributionGraph]):
    """The attribution graph of each class that has samples, by its name.

    Parameters
    ----------
    graphs: by class.
    accuracy: of each class, the share of its samples that the model gets right, by their label.
    examples: of each class and layer, the numbers of the samples for which each unit earned most
        [units, k], the first the most; -1 where there are not so many.
    """

    graphs: Mapping[str, AttributionGraph]
    accuracy: Mapping[str, float]
    examples: Mapping[str, Mapping[str, Tensor]]

    def __getitem__(self, name: str) -> AttributionGraph:
        if str(name) not in self.graphs:
            raise unknown("class", str(name), self.graphs)
        return self.graphs[str(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.graphs)

    def __len__(self) -> int:
        return len(self.graphs)

    def __repr__(self) -> str:
        samples = sum(each.samples for each in self.graphs.values())
        return f"ClassGraphs({len(self)} classes, {samples:,} samples)"

    @classmethod
    def from_data(
        cls,
        model: nn.Module,
        data: Any,
        *,
        target: Literal["label", "predicted"] = "label",
        classes: Sequence[str] | None = None,
        method: str = "lrp",
        batch_size: int = 256,
        examples: int = 5,
        progress: bool = False,
        nodes: Literal["units", "blocks"] | None = None,
        **options: Any,
    ) -> "ClassGraphs":
        """Return the graphs of all classes, from one pass over a data set.

        Memory does not depend on the number of samples.

        Parameters
        ----------
        model: returns scores [N, classes]; it runs as in evaluation, and is afterwards as it was.
        data: a pair (x [N, ...], y [N]), a torch Dataset of such pairs, or any iterable of batches
            (x, y), a DataLoader say, which is taken in its order.
        target: each sample is explained for its "label" or for the class that is "predicted".
        classes: their names; without, their numbers.
        method, nodes, options: as `AttributionGraph.from_batch` takes them.
        batch_size: of data that does not come in batches.
        examples: how many samples are remembered of each unit and class.
        progress: show a bar with the time left, on stderr.

        Raises InputError for data that are no such pairs, an empty data set, labels out of range.
        Per-class aggregation: SUMMIT (Hohman et al. 2020), by relevance in place of its counts.
        """
        check_model(model)
        if target not in TARGETS:
            raise unknown("target", str(target), TARGETS)
        for name, value, least in (("batch_size", batch_size, 1), ("examples", examples, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} must be an integer >= {least}, got {value!r}.")
        batches, count = _batches(data, batch_size)
        first = next(batches, None)
        if first is None:
            raise InputError("the data set is empty: give at least 1 sample.")
        x = plain(first[0])
        check_inputs(x, model, batch_size)
        bar = progress_bar(progress, method, count or 0)
        with as_in_evaluation(model, x), bar as told, frozen(model):
            ready = prepare(model, x, (), method, options, nodes)
            names = _names(model, x, classes)
            totals = Totals(ready.plan.nodes, len(names), x.device, examples)
            counts = _Counts(len(names), x.device)
            done = 0
            for x, y, numbers in _chained(first, batches):
                y = _labels(y, len(x), len(names), x.device)

                def choose(out: Tensor, y: Tensor = y) -> tuple[Target, Tensor]:
                    predicted = out.argmax(1)
                    chosen = y if target == "label" else predicted
                    counts.add(chosen, y, predicted)
                    return chosen, chosen

                totals.numbers = numbers.to(x.device)
                ready.add(totals, plain(x), choose)
                done += len(x)
                told(done)
        return _finished(cls, names, counts, totals, ready.plan, method)

    def to_html(self, path: "str | os.PathLike[str]", **options: Any) -> "Path":
        """Write the graphs as an interactive HTML page; see `attrain.graph.page.to_html`."""
        from attrain.graph.page import to_html  # which draws graphs of classes

        return to_html([(self._method(), self)], path, **options)

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        from attrain.graph.page import frame

        return frame(self, self._method())

    def _method(self) -> str:
        return next(iter(self.graphs.values())).method

    def similarity(self, layer: str | None = None) -> Tensor:
        """Return how alike the classes are [classes, classes]: the cosine of their relevances.

        layer: of its units alone; without, of all units but the inputs' and the outputs', each
        layer's first scaled to length 1 by its norm. 0 where a class has no relevance.
        """
        graphs = list(self.graphs.values())
        names = graphs[0].layers[1:-1] or graphs[0].layers if layer is None else (layer,)
        rows = []
        for graph in graphs:
            parts = []
            for name in names:
                graph.check_layer(name)
                values = graph.relevance[name]
                parts.append(values / values.norm().clamp_min(torch.finfo(values.dtype).tiny))
            rows.append(torch.cat(parts) / len(names) ** 0.5)
        stacked = torch.stack(rows)
        return torch.mm(stacked, stacked.t())

    def top_examples(self, name: str, layer: str, unit: int) -> list[int]:
        """Return the samples of a class for which a unit earned most, the most first."""
        self[name].check_unit(layer, unit)
        return [k for k in self.examples[str(name)][layer][unit].tolist() if k >= 0]


class _Counts:
    """Samples of each class, and how many of each label the model gets right."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.samples, self.labels, self.right = (
            torch.zeros(classes, dtype=torch.long, device=device) for _ in range(3)
        )

    def add(self, chosen: Tensor, y: Tensor, predicted: Tensor) -> None:
        for counter, values in (
            (self.samples, chosen),
            (self.labels, y),
            (self.right, y[predicted == y]),
        ):
            counter += torch.bincount(values, minlength=len(counter))


def _finished(
    kind: type[ClassGraphs],
    names: Sequence[str],
    counts: _Counts,
    totals: Totals,
    plan: Any,
    method: str,
) -> ClassGraphs:
    graphs, accuracy, examples = {}, {}, {}
    samples, labels, right = (
        each.tolist() for each in (counts.samples, counts.labels, counts.right)
    )
    for index, name in enumerate(names):
        if not samples[index]:
            continue
        graphs[name] = graph_of(plan, totals, index, samples[index], method=method, target=name)
        accuracy[name] = right[index] / labels[index] if labels[index] else float("nan")
        examples[name] = {
            nodes.name: totals.best[1][index, nodes.start : nodes.start + nodes.count].cpu()
            for nodes in plan.nodes
            if nodes.sources
        }
    return kind(graphs, accuracy, examples)


def _names(model: nn.Module, x: Tensor, classes: Sequence[str] | None) -> list[str]:
    with torch.no_grad():
        out = scores(model(x[:1]))
    if out.ndim != 2:
        raise InputError(
            f"the model returns {tuple(out.shape)} for one sample, and graphs of classes are made "
            "of scores [N, classes]."
        )
    if classes is None:
        return [str(k) for k in range(out.shape[1])]
    names = [str(each) for each in classes]
    if len(names) != out.shape[1] or len(set(names)) != len(names):
        raise InputError(
            f"classes has {len(set(names))} different names, and the model {out.shape[1]} outputs: "
            "give one name for each."
        )
    return names


def _labels(y: Any, samples: int, classes: int, device: torch.device) -> Tensor:
    y = torch.as_tensor(y)
    if y.shape != (samples,) or y.is_floating_point() or y.dtype == torch.bool:
        raise InputError(
            f"labels are integers [N], got {y.dtype} of shape {tuple(y.shape)} for {samples} "
            "samples."
        )
    low, high = (int(each) for each in y.aminmax())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels go from {low} to {high}, and the model has {classes} outputs: they must be in "
            f"0..{classes - 1}."
        )
    labels: Tensor = y.to(device, torch.long)
    return labels


def _batches(data: Any, batch_size: int) -> tuple[Iterator[Batch], int | None]:
    """Return the batches of a data set, and how many samples it has, where that is known."""
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        x, y = data[0], torch.as_tensor(data[1])
        if len(x) != len(y):
            raise InputError(f"x has {len(x)} samples, and y {len(y)} labels: give one for each.")
        # By class, so that most batches hold one, whose messages are one product.
        order = y.argsort(stable=True) if y.ndim == 1 else torch.arange(len(y))
        parts = (order[k : k + batch_size] for k in range(0, len(x), batch_size))
        return ((x[some], y[some], some) for some in parts), len(x)
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size)
    if not isinstance(data, Iterable):
        raise InputError(
            f"data is a pair (x, y), a Dataset, or batches of pairs, got {type(data).__name__}."
        )
    known = len(data.dataset) if isinstance(data, DataLoader) else None  # type: ignore[arg-type]
    return _numbered(data), known


def _numbered(data: Iterable[Any]) -> Iterator[Batch]:
    start = 0
    for batch in data:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise InputError(
                f"a batch of the data is a pair (x, y), got {type(batch).__name__}"
                f"{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}."
            )
        x, y = batch
        yield x, torch.as_tensor(y), torch.arange(start, start + len(x))
        start += len(x)


def _chained(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest
