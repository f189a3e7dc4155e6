"""What is added up over samples: relevances, messages and sinks, by group."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attrain.graph.units import Sums

SINKS = ("bias", "normalisation", "epsilon", "rule", "rest")
"""What takes a part of a unit's relevance besides the units before it.

bias: biases, and constants and parameters that are added. normalisation: its shift and the mean
that it takes off. epsilon: the stabilisers. rule: what a rule of layers drops. rest: whatever
rules of other functions do not conserve.
"""


class Totals:
    """Relevances, messages and sinks, added up over the samples of each group.

    relevance: [G, units]; edges: by layer [G, out, in], in over the units of its sources; sinks:
    by name [G, units]. Everything is in double precision. best: the largest relevances [G, units,
    examples], and the samples, by their `numbers` [N], that have them. path: where samples go on
    a way from a baseline, what each call had at the place before.
    """

    def __init__(
        self, nodes: Sequence[Any], groups: int, device: torch.device, examples: int = 0
    ) -> None:
        self.nodes, self.groups = nodes, groups
        count = nodes[-1].start + nodes[-1].count
        double: Any = {"dtype": torch.float64, "device": device}
        self.relevance = torch.zeros(groups, count, **double)
        self.sinks = {name: torch.zeros(groups, count, **double) for name in SINKS}
        form = (groups, count, examples)
        self.best = (
            torch.full(form, -math.inf, **double),
            torch.full(form, -1, dtype=torch.long, device=device),
        )
        self.numbers: Tensor | None = None
        self.path: dict[int, tuple[Tensor, ...]] | None = None
        self.edges: list[Tensor | None] = []
        self.columns: list[Tensor] = []
        for each in nodes:
            incoming = [unit for source in each.sources for unit in nodes[source].units]
            column = torch.full((count,), -1, device=device)
            column[incoming] = torch.arange(len(incoming), device=device)
            self.columns.append(column)
            self.edges.append(
                torch.zeros(groups, each.count, len(incoming), **double) if incoming else None
            )

    def begin(self, group: Tensor) -> None:
        """Say which group [N] the samples of the next pass belong to."""
        self.group = group
        self.present: list[int] = torch.unique(group).tolist()

    def passed(self, call: object, *values: Tensor) -> tuple[Tensor, ...] | None:
        """Return what a call had at the place before, None at the first; remember `values`."""
        assert self.path is not None
        before = self.path.get(id(call))
        self.path[id(call)] = tuple(each.clone() for each in values)
        return before

    def explained(self, unit: Tensor, o: Tensor, lost: Tensor | None) -> None:
        """Give the explained outputs o [N] to their units [N], and what epsilon took of them."""
        if self.path is not None:
            before = self.passed(self.path, o)
            if before is None:
                return
            o = o - before[0]
        self.relevance.index_put_((self.group, unit), o.double(), accumulate=True)
        if self.nodes[-1].of:  # one output for each of these units
            out = unit - self.nodes[-1].start
            unit = torch.tensor(self.nodes[-1].of, device=unit.device)[out]
            edges = self.edges[-1]
            assert edges is not None
            edges.index_put_((self.group, out, self.columns[-1][unit]), o.double(), accumulate=True)
            self.relevance.index_put_((self.group, unit), o.double(), accumulate=True)
        if lost is not None:
            self.sinks["epsilon"].index_put_((self.group, unit), lost.double(), accumulate=True)

    def compare(self, index: int, values: Tensor) -> None:
        """Remember the samples for which units of layer `index` have most of `values` [N, out]."""
        count = self.best[0].shape[2]
        if not count or self.numbers is None:
            return
        nodes = self.nodes[index]
        span = slice(nodes.start, nodes.start + nodes.count)
        for group in self.present:
            chosen = self.group == group
            numbers = self.numbers[chosen]
            found = torch.cat([self.best[0][group, span], values[chosen].double().t()], 1)
            known = torch.cat(
                [self.best[1][group, span], numbers.expand(nodes.count, len(numbers))], 1
            )
            best, places = found.topk(count, 1)
            self.best[0][group, span] = best
            self.best[1][group, span] = known.gather(1, places)

    @property
    def compares(self) -> bool:
        """Whether samples are compared."""
        return self.best[0].shape[2] > 0

    def summed(self, by: Sums, values: Tensor) -> Tensor:
        """Return values of a tensor added up by unit and group [G, K]."""
        return self.by_group(by.total(values, len(self.group)))

    def by_group(self, values: Tensor) -> Tensor:
        """Return values [N, K] added up by group [G, K]."""
        out = torch.zeros(self.groups, values.shape[1], dtype=torch.float64, device=values.device)
        return out.index_add_(0, self.group, values.double())

    def sink(self, name: str, unit: Tensor, values: Tensor) -> None:
        """Add values [G, K] of units [K] to a sink."""
        kept = unit >= 0
        self.sinks[name].index_add_(1, unit[kept], values[:, kept])

    def layer(self, index: int, group: int, columns: Tensor, found: Tensor) -> None:
        """Add messages [out, K] from units `columns` [K], or constants, to layer `index`."""
        found = found.double()
        edges = self.edges[index]
        assert edges is not None
        kept = columns >= 0
        if not bool(kept.all()):
            span = slice(self.nodes[index].start, self.nodes[index].start + len(found))
            self.sinks["bias"][group, span] += found[:, ~kept].sum(1)
            columns, found = columns[kept], found[:, kept]
        edges[group].index_add_(1, self.columns[index][columns], found)
        self.relevance[group].index_add_(0, columns, found.sum(0))

    def received(self, index: int, source: Tensor, rows: Tensor, found: Tensor) -> None:
        """Add messages [G, P, K] from units `source` [P] to units `rows` [K] of layer `index`."""
        kept = rows >= 0
        rows, found = rows[kept], found[:, :, kept]
        nobody = source < 0
        if bool(nobody.any()):
            self.sink("bias", rows, found[:, nobody].sum(1))
            source, found = source[~nobody], found[:, ~nobody]
        edges = self.edges[index]
        assert edges is not None
        group = torch.arange(self.groups, device=found.device)[:, None, None]
        out = rows - self.nodes[index].start
        column = self.columns[index][source][:, None]
        edges.index_put_((group, out, column), found, accumulate=True)
        self.relevance.index_add_(1, source, found.sum(2))

    def meeting(self, index: int, out: Tensor, source: Tensor, found: Tensor) -> None:
        """Add messages [G, K] from units `source` [K] to units `out` [K] of layer `index`."""
        kept = source >= 0
        if not bool(kept.all()):
            self.sink("bias", out[~kept] + self.nodes[index].start, found[:, ~kept])
        edges = self.edges[index]
        assert edges is not None
        flat = out[kept] * edges.shape[2] + self.columns[index][source[kept]]
        edges.view(self.groups, -1).index_add_(1, flat, found[:, kept])
        self.relevance.index_add_(1, source[kept], found[:, kept])
