"""An attribution graph: units and what they hand to one another, for one explained output."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from attrain.credit import LFP
from attrain.errors import InputError, unknown

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import networkx
    import pandas

    from attrain.graph.validate import Validation

PRUNED = "pruned"
"""The sink that takes what pruned nodes and edges carried."""


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Relevance of units and messages between them, means over samples, in double precision.

    What goes into a unit makes up its relevance: the row of `edges` and its part of each sink.
    What a unit hands on, the columns of all edges out of it, is its relevance, too; of the
    explained output it is the output itself.

    Parameters
    ----------
    layers: their names, from the inputs to the output.
    kinds: of each layer, "input", "embedding", "linear", "convolution", "sum", "product",
        "attention" or "mlp", or "output" where the outputs belong to several layers.
    relevance: of each layer [units].
    sources: of each layer, the layers that feed it; the inputs have none.
    edges: of each layer with sources [out, in], where `in` counts the units of its sources in
        their order. edges[name][j, i] is the message from unit i to unit j: r_ij.
    sinks: of each layer with sources, and of inputs that are shifted before the first one, by
        name what else makes up its relevance [units]: "bias",
        "normalisation" (its shift), "epsilon" (the stabilisers), "rule" (what a rule of layers
        drops), "rest" (what other rules do not conserve) and, after pruning, "pruned".
    output: mean of the explained output.
    samples: how many were added up.
    method: how messages were computed; target: what is explained, in words.
    keep: of each layer, which units were kept [units]; all of them unless pruned.
    facts: of how the graph was made, for its reader.
    """

    layers: tuple[str, ...]
    kinds: Mapping[str, str]
    relevance: Mapping[str, Tensor]
    sources: Mapping[str, tuple[str, ...]]
    edges: Mapping[str, Tensor]
    sinks: Mapping[str, Mapping[str, Tensor]]
    output: float
    samples: int
    method: str = "lrp"
    target: str = ""
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_batch(
        cls,
        model: nn.Module,
        x: Tensor,
        target: Any = None,
        *,
        method: str = "lrp",
        batch_size: int = 128,
        progress: bool = False,
        additional_forward_args: Any = None,
        nodes: Literal["units", "blocks"] | None = None,
        **options: Any,
    ) -> "AttributionGraph":
        """Return the graph of an explained output, the mean over a batch.

        The model runs as in evaluation and is afterwards as it was.

        Parameters
        ----------
        model, x, target, batch_size, progress, additional_forward_args: as `attrain.attribute`
            takes them. Units are features of linear layers and channels of convolutions; of x
            its values where a linear layer takes it, else its channels or its last axis.
        method: "lrp"; "gradient", value times gradient, without the rules of credit;
            "integrated_gradients", that on the way from a baseline; or "ablation", the fall of
            the output when a unit or a message is cut, for small graphs.
        nodes: "units"; "blocks" of a transformer: tokens, heads and MLPs, joined by its residual
            stream, with attention weights held constant and epsilon 0 unless it is given; or
            None: units, and blocks where attention mixes them.
        options: of lrp: rule, rules, epsilon, batch_norm, opposite_sign, gate; of
            integrated_gradients: baselines (0, a number or a tensor shaped as a sample) and
            n_steps (32); of ablation: how, reference, as `ablate` takes them.

        Raises InputError for what does not fit together and for models without a graph (units
        mixed by something else than layers, sums and products), CreditError for functions
        without a rule. Relevance and messages: arXiv:2308.12053, equations 2 to 4.
        """
        from attrain.graph.build import of_batch  # which makes graphs

        return of_batch(
            model, x, target, method=method, batch_size=batch_size, progress=progress,
            additional_forward_args=additional_forward_args, nodes=nodes, **options,
        )  # fmt: skip

    @classmethod
    def from_feedback(
        cls, model: nn.Module, credit: LFP, x: Tensor, additional_forward_args: Any = None
    ) -> "AttributionGraph":
        """Return the graph of the reward that an LFP step has handed back, at no further cost.

        A message is sign(w) times the feedback of its weight (arXiv:2308.12053, equation 4), so
        the graph is that of whatever the objective rewarded, summed as its reduction says. What
        biases do not take of the relevance (epsilon, normalisations) is in the sink "rest".

        Parameters
        ----------
        model: after `loss.backward()`, before the optimizer's step and zero_grad().
        credit: the context of the step, whose scale the feedback has.
        x: any input of the model [N, ...], from which the graph's layers are read.
        additional_forward_args: what the model takes after x.

        Raises InputError for parameters without feedback, and for models whose feedback does not
        have it all: a sum of branches (a skip), a product, a layer that runs twice.
        """
        from attrain.graph.feedback import of_feedback  # which makes graphs

        return of_feedback(model, credit, x, additional_forward_args)

    def __repr__(self) -> str:
        nodes = sum(int(self.kept(name).sum()) for name in self.layers)
        edges = sum(int((each != 0).sum()) for each in self.edges.values())
        target = f", target={self.target}" if self.target else ""
        return (
            f"AttributionGraph({len(self.layers)} layers, {nodes:,} nodes, {edges:,} edges, "
            f"method={self.method!r}{target}, samples={self.samples}, output={self.output:.4g})"
        )

    def kept(self, layer: str) -> Tensor:
        """Return which units of a layer are in the graph, a boolean tensor [units]."""
        self.check_layer(layer)
        found = self.keep.get(layer)
        return torch.ones_like(self.relevance[layer], dtype=torch.bool) if found is None else found

    def check_layer(self, layer: str) -> None:
        """Raise InputError, with the nearest name, for a layer that is not there."""
        if layer not in self.relevance:
            raise unknown("layer of the graph", str(layer), self.layers)

    def check_unit(self, layer: str, unit: int) -> None:
        """Raise InputError for a unit that is not there."""
        self.check_layer(layer)
        count = len(self.relevance[layer])
        if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < count:
            raise InputError(f"layer {layer!r} has units 0 to {count - 1}, got {unit!r}.")

    def columns(self, layer: str) -> dict[str, slice]:
        """Return where the units of each source stand among the columns of edges[layer]."""
        self.check_layer(layer)
        found, start = {}, 0
        for source in self.sources[layer]:
            count = len(self.relevance[source])
            found[source] = slice(start, start + count)
            start += count
        return found

    def between(self, source: str, layer: str) -> Tensor:
        """Return the messages [out, in] from one layer to another; raises InputError for none."""
        columns = self.columns(layer)
        if source not in columns:
            fed = ", ".join(map(repr, columns)) or "nothing"
            raise InputError(f"no edges lead from {source!r} to {layer!r}, which {fed} feeds.")
        return self.edges[layer][:, columns[source]]

    def outgoing(self, layer: str) -> dict[str, Tensor]:
        """Return the messages [out, in] from a layer to each layer that it feeds."""
        self.check_layer(layer)
        return {
            above: self.between(layer, above)
            for above in self.layers
            if layer in self.sources[above]
        }

    def error(self) -> dict[str, float]:
        """Return, for each layer, by how much edges and sinks miss the relevance of its worst unit.

        Relative to the largest relevance of the graph; the sink "rest" counts as missing.
        """
        largest = max(float(each.abs().max()) for each in self.relevance.values()) or 1.0
        found = {}
        for name in self.layers:
            if not self.sources[name]:
                continue
            known = self.edges[name].sum(1)
            for sink, values in self.sinks[name].items():
                if sink != "rest":
                    known = known + values
            missing = torch.where(self.kept(name), self.relevance[name] - known, 0.0)
            found[name] = float(missing.abs().max()) / largest
        return found

    def leaks(self) -> dict[str, float]:
        """Return what each sink took in all, per sample: what the inputs do not account for."""
        found: dict[str, float] = {}
        for sinks in self.sinks.values():
            for name, values in sinks.items():
                found[name] = found.get(name, 0.0) + float(values.sum())
        return found

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> "AttributionGraph":
        """Return the graph of the fewest units that hold most relevance, and their largest edges.

        nodes: the share of |relevance| to be kept in each layer, in (0, 1]; of the layer of the
            explained output the units that have any.
        edges: then the share of |message| to be kept into each layer, in (0, 1], and of each unit
            that is left at least the largest.

        Units to which no edge leads, or from which none leads on, go as well. The sink "pruned"
        takes what the others handed to those that stay. Relevance stays what it was.
        Raises InputError for shares out of range.
        """
        for name, share in (("nodes", nodes), ("edges", edges)):
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise InputError(f"{name} is a share in (0, 1], got {share!r}.")
        keep = {name: _largest(self.relevance[name].abs() * self.kept(name), nodes)
                for name in self.layers}  # fmt: skip
        kept = {
            name: _masked(self.edges[name], keep[name], self._sources_of(name, keep))
            for name in self.edges
        }
        for name, each in kept.items():
            chosen = _largest(each.abs().flatten(), edges).view_as(each)
            # Of each unit at least the strongest, so that no unit hangs on nothing.
            chosen.scatter_(1, each.abs().argmax(1, keepdim=True), value=True)
            kept[name] = torch.where(chosen, each, 0.0)
        while self._drop_dangling(keep, kept):
            pass
        return self._with(keep, kept)

    # What other files do with a graph -------------------------------------------------------------

    def rank(self, by: str = "relevance", **measured: Any) -> dict[str, Tensor]:
        """Return how important each unit is, by layer; see `attrain.graph.rank.rank`."""
        from attrain.graph.rank import rank

        return rank(self, by, **measured)

    def top(
        self, k: int, layer: str | None = None, by: str = "relevance", **measured: Any
    ) -> list[tuple[str, int, float]]:
        """Return the k most important units and their scores; see `attrain.graph.rank.top`."""
        from attrain.graph.rank import top

        return top(self, k, layer, by, **measured)

    def path_mass(self, pruned: "AttributionGraph") -> float:
        """Return the share of the output that paths in `pruned` carry; see `rank.path_mass`."""
        from attrain.graph.rank import path_mass

        return path_mass(self, pruned)

    def ablate(self, model: nn.Module, x: Tensor, nodes: Iterable[Any], **options: Any) -> Tensor:
        """Return the model's scores with units ablated; see `attrain.graph.intervene.ablate`."""
        from attrain.graph.intervene import ablate

        return ablate(self, model, x, nodes, **options)

    def clamp(
        self, model: nn.Module, x: Tensor, nodes: Mapping[tuple[str, int], float], **options: Any
    ) -> Tensor:
        """Return the model's scores with units clamped; see `attrain.graph.intervene.clamp`."""
        from attrain.graph.intervene import clamp

        return clamp(self, model, x, nodes, **options)

    def validate(
        self, model: nn.Module, x: Tensor, target: Any = None, **options: Any
    ) -> "Validation":
        """Return what ablating the first units does; see `attrain.graph.validate.validate`."""
        from attrain.graph.validate import validate

        return validate(self, model, x, target, **options)

    def unit_ablations(
        self, model: nn.Module, x: Tensor, target: Any = None, **options: Any
    ) -> dict[str, Tensor]:
        """Return what ablating each unit does; see `attrain.graph.validate.unit_ablations`."""
        from attrain.graph.validate import unit_ablations

        return unit_ablations(self, model, x, target, **options)

    def with_facts(self, **facts: Any) -> "AttributionGraph":
        """Return the graph with more facts, plain values that its files and pages tell."""
        return dataclasses.replace(self, facts={**self.facts, **facts})

    def save(self, path: "str | os.PathLike[str]", **options: Any) -> None:
        """Write the graph as JSON, if large with safetensors; see `attrain.graph.files.save`."""
        from attrain.graph.files import save

        save(self, path, **options)

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "AttributionGraph":
        """Return the graph that `save` wrote; see `attrain.graph.files.load`."""
        from attrain.graph.files import load

        return load(path)

    def to_networkx(self) -> "networkx.DiGraph":
        """Return the graph for networkx; see `attrain.graph.formats.to_networkx`."""
        from attrain.graph.formats import to_networkx

        return to_networkx(self)

    def to_dataframe(self) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
        """Return nodes and edges for pandas; see `attrain.graph.formats.to_dataframe`."""
        from attrain.graph.formats import to_dataframe

        return to_dataframe(self)

    def to_graphml(self, path: "str | os.PathLike[str]") -> None:
        """Write the graph as GraphML; see `attrain.graph.formats.to_graphml`."""
        from attrain.graph.formats import to_graphml

        to_graphml(self, path)

    def to_gexf(self, path: "str | os.PathLike[str]") -> None:
        """Write the graph as GEXF, which Gephi reads; see `attrain.graph.formats.to_gexf`."""
        from attrain.graph.formats import to_gexf

        to_gexf(self, path)

    def to_html(self, path: "str | os.PathLike[str]", **options: Any) -> "Path":
        """Write the graph as an interactive HTML page; see `attrain.graph.page.to_html`."""
        from attrain.graph.page import to_html

        return to_html([(self.method, self)], path, **options)

    def to_svg(self, path: "str | os.PathLike[str]", **options: Any) -> "Path":
        """Write the graph as a static picture; see `attrain.graph.page.to_svg`."""
        from attrain.graph.page import to_svg

        return to_svg(self, path, **options)

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        from attrain.graph.page import frame

        return frame(self, self.method)

    # How pruning works ----------------------------------------------------------------------------

    def _sources_of(self, name: str, keep: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([keep[source] for source in self.sources[name]])

    def _drop_dangling(self, keep: dict[str, Tensor], edges: dict[str, Tensor]) -> bool:
        """Take out units without edges in or out; tell whether there were any."""
        leads_on = {name: torch.zeros_like(keep[name]) for name in self.layers}
        for name, each in edges.items():
            for source, columns in self.columns(name).items():
                leads_on[source] |= (each[:, columns] != 0).any(0)
        dropped = False
        for name in self.layers:
            stays = keep[name].clone()
            if name != self.layers[-1]:
                stays &= leads_on[name]
            if name in edges:
                stays &= (edges[name] != 0).any(1)
            if not torch.equal(stays, keep[name]):
                keep[name], dropped = stays, True
        if dropped:
            for name in edges:
                edges[name] = _masked(edges[name], keep[name], self._sources_of(name, keep))
        return dropped

    def _with(self, keep: Mapping[str, Tensor], edges: Mapping[str, Tensor]) -> "AttributionGraph":
        sinks = dict(self.sinks)
        for name, each in edges.items():
            gone = self.edges[name].sum(1) - each.sum(1)
            before = self.sinks[name].get(PRUNED, torch.zeros_like(gone))
            sinks[name] = {**self.sinks[name], PRUNED: before + gone}
        return dataclasses.replace(self, keep=dict(keep), edges=dict(edges), sinks=sinks)


def _largest(sizes: Tensor, share: float) -> Tensor:
    """Return a mask of the fewest entries that hold a share of the sum, none of which is 0."""
    if share >= 1.0:
        return sizes > 0
    order = sizes.argsort(descending=True, stable=True)
    held = sizes[order].cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[order[:count]] = True
    return mask & (sizes > 0)


def _masked(edges: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.where(rows[:, None] & columns[None], edges, 0.0)
