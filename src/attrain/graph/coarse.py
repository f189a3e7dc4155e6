"""The plan of a graph by blocks, made from that of its units."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attrain.graph import steps, stream
from attrain.graph.plan import Nodes, Plan
from attrain.graph.units import NOBODY


class Coarse:
    """Units merged into heads and MLPs, and layers without nodes taken out.

    merged: layers whose units become one. heads: unit -> unit of an attention layer that it is part
    of. written: layers whose units dissolve in the stream.
    """

    def __init__(self, merged: set[int], heads: dict[int, int], written: set[int]) -> None:
        self.merged, self.heads, self.written = merged, heads, written

    def plan(self, fine: Plan) -> Plan:
        """Return the plan with the nodes that are left."""
        target = self._targets(fine)
        coarse = Plan(constants=fine.constants, blocks=True, output_owes=fine.output_owes)
        layers = self._renumber(fine, target, coarse)
        self.of_layer: dict[int, int] = {}  # a layer -> that which its units are now of
        for index, nodes in enumerate(fine.nodes):
            unit = int(target[nodes.start : nodes.start + nodes.count].max())
            if unit >= 0 and fine.layer_of(unit) in layers:
                self.of_layer[index] = layers[fine.layer_of(unit)]
        sources: dict[int, set[int]] = {}
        for func, due in fine.calls:
            new = [made for step in due if (made := self._renewed(step, coarse)) is not None]
            for step in new:
                for index, source in _feeds(step):
                    sources.setdefault(index, set()).update(coarse.feeding(source))
            coarse.calls.append((func, tuple(new)))
        coarse.nodes = [
            dataclasses.replace(nodes, sources=tuple(sorted(sources.get(k, ()))))
            for k, nodes in enumerate(coarse.nodes)
        ]
        assert fine.output is not None
        coarse.output = fine.output._replace(unit=self._number(fine.output.unit))
        return coarse

    def _targets(self, fine: Plan) -> Tensor:
        """Return the unit that each unit is part of, NOBODY where it has no node any more."""
        target = torch.arange(fine.count)
        for unit, head in self.heads.items():
            target[unit] = head
        aliased = {fine.layer_of(unit) for unit in self.heads}
        for index in aliased:  # queries and keys, where one layer makes all three
            own = torch.tensor(fine.nodes[index].units)
            target[own[target[own] == own]] = NOBODY
        for index in self.merged - aliased:
            nodes = fine.nodes[index]
            target[nodes.start : nodes.start + nodes.count] = nodes.start
        for index in self.written:
            nodes = fine.nodes[index]
            target[nodes.start : nodes.start + nodes.count] = NOBODY
        return target

    def _renumber(self, fine: Plan, target: Tensor, coarse: Plan) -> dict[int, int]:
        """Give the units that are left new numbers, and their layers, which are returned."""
        used = self._used(fine)
        writers = {source for index in self.written for source in fine.nodes[index].sources}
        number = torch.full((fine.count,), NOBODY)
        layers: dict[int, int] = {}
        for index, nodes in enumerate(fine.nodes):
            own = [unit for unit in nodes.units if int(target[unit]) == unit]
            if index not in used or not own:
                continue
            kind = "mlp" if index in self.merged & writers else nodes.kind
            made = Nodes(nodes.name, kind, coarse.count, len(own))
            number[own] = torch.arange(made.start, made.start + made.count)
            layers[index] = len(coarse.nodes)
            coarse.nodes.append(made)
        final = torch.where(target >= 0, number[target], NOBODY)
        self.final = torch.cat([final, torch.full((2,), NOBODY)])  # of NOBODY and MIXED
        return layers

    def _used(self, fine: Plan) -> set[int]:
        """Return the layers from which something leads to the output."""
        assert fine.output is not None
        used: set[int] = set()
        waiting = fine.feeding(fine.output.unit)
        while waiting:
            index = waiting.pop()
            if index not in used:
                used.add(index)
                waiting += fine.nodes[index].sources
        heads = {fine.layer_of(head) for head in self.heads.values()}
        return used | heads

    def _number(self, unit: Tensor) -> Tensor:
        return self.final.to(unit.device)[unit]

    def _renewed(self, step: Any, coarse: Plan) -> Any:
        """Return a step by the new numbers, None where nothing of it is left."""
        if isinstance(step, stream.Receive):
            rows = self._number(step.rows)
            if step.index not in self.of_layer or not bool((rows >= 0).any()):
                return None
            maps = tuple(stream.Reads(self._number(each.units)) for each in step.maps)
            return dataclasses.replace(step, index=self.of_layer[step.index], rows=rows, maps=maps)
        if isinstance(step, stream.Write):
            numbers = tuple(int(self.final[unit]) for unit in step.units)
            return dataclasses.replace(step, units=numbers)
        if isinstance(step, (steps.Layer, steps.Meeting)) and step.index not in self.of_layer:
            return None
        if isinstance(step, steps.Layer):
            columns = self._number(step.columns)
            if not bool((columns >= 0).all()):
                return None
            return dataclasses.replace(step, index=self.of_layer[step.index], columns=columns)
        if isinstance(step, steps.Meeting):
            index = self.of_layer[step.index]
            nodes = coarse.nodes[index]
            if nodes.count == 1:
                by = dataclasses.replace(step.by, unit=torch.zeros_like(step.by.unit))
                first = self._number(step.pairs[step.by.unit])
                return dataclasses.replace(step, index=index, by=by, pairs=first[:1])
            return dataclasses.replace(step, index=index, pairs=self._number(step.pairs))
        if isinstance(step, (steps.Epsilon, steps.Shift, steps.Deferred)):
            by = dataclasses.replace(step.by, unit=self._number(step.by.unit))
            return dataclasses.replace(step, by=by) if bool((by.unit >= 0).any()) else None
        return step


def _feeds(step: Any) -> Iterator[tuple[int, Tensor]]:
    """Yield the layers that a step has messages into, and the units that these come from."""
    if isinstance(step, stream.Receive):
        for each in step.maps:
            yield step.index, each.units
    elif isinstance(step, steps.Layer):
        yield step.index, step.columns
    elif isinstance(step, steps.Meeting):
        yield step.index, step.pairs
