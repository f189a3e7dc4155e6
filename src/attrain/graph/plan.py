"""The plan of a model's graph: its layers of nodes, and what is taken down at each call."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.graph import steps
from attrain.graph.units import Units, shrunk

_MOST_EDGES = 50_000_000


@dataclass(frozen=True)
class Nodes:
    """A layer of nodes: units start to start + count of all, and the layers that feed it.

    kind: "input", "embedding", "linear", "convolution", "sum", "product" or "output".
    of: of outputs, the unit that each of them is.
    """

    name: str
    kind: str
    start: int
    count: int
    sources: tuple[int, ...] = ()
    of: tuple[int, ...] = ()

    @property
    def units(self) -> range:
        """The numbers of its units among those of all layers."""
        return range(self.start, self.start + self.count)


@dataclass
class Plan:
    """The layers of a model's graph, and for each call that counts what is taken down there.

    constants: for some calls, the position of an argument that is held constant.
    blocks: whether nodes are the blocks of a transformer, and attention weights constant.
    output: the units of the model's output [2, ...].
    """

    nodes: list[Nodes] = field(default_factory=list)
    calls: list[tuple[Any, tuple[steps.Step, ...]]] = field(default_factory=list)
    constants: dict[int, int] = field(default_factory=dict)
    blocks: bool = False
    output: Units | None = None
    output_owes: float = 0.0

    @property
    def count(self) -> int:
        """The number of units of all layers."""
        return self.nodes[-1].start + self.nodes[-1].count if self.nodes else 0

    def add(self, name: str, kind: str, count: int, sources: Sequence[int] = ()) -> Nodes:
        """Add a layer of nodes, whose name gets a number if there is one of that name."""
        taken = {each.name for each in self.nodes}
        unique = next(
            each
            for each in (name, *(f"{name}@{k}" for k in range(2, len(taken) + 3)))
            if each not in taken
        )
        made = Nodes(unique, kind, self.count, count, tuple(sources))
        incoming = sum(self.nodes[source].count for source in sources)
        if count * incoming > _MOST_EDGES:
            raise InputError(
                f"layer {unique!r} would have {count} x {incoming} edges in the graph, more than "
                f"{_MOST_EDGES:,}: explain a part of the model, or one with fewer units."
            )
        self.nodes.append(made)
        return made

    def settle(self) -> None:
        """Let the last layer be the output: drop what does not lead to it, join what is in several.

        Units keep their numbers.
        """
        assert self.output is not None
        ends = self.feeding(self.output.unit)
        living, waiting = set(ends), list(ends)
        while waiting:
            new = set(self.nodes[waiting.pop()].sources) - living
            living |= new
            waiting += new
        place = {old: new for new, old in enumerate(sorted(living))}
        self.nodes = [
            replace(self.nodes[old], sources=tuple(place[k] for k in self.nodes[old].sources))
            for old in place
        ]
        self.calls = [
            (func, tuple(_moved(step, place) for step in due if _lives(step, place)))
            for func, due in self.calls
        ]
        if len(ends) > 1:
            one = self.output.unit[0].reshape(-1)
            sources = self.feeding(one)
            made = self.add("output", "output", len(one), sources)
            self.nodes[-1] = replace(made, of=tuple(one.tolist()))
            unit = torch.arange(made.start, made.start + made.count, device=one.device)
            unit = unit.reshape(self.output.unit.shape[1:]).expand(self.output.unit.shape)
            self.output = Units(unit, self.output.sample)

    def layer_of(self, unit: int) -> int:
        """Return the index of the layer that a unit belongs to."""
        return bisect_right(self.nodes, unit, key=lambda each: each.start) - 1

    def feeding(self, numbers: Tensor) -> list[int]:
        """Return the layers, in order, that units belong to."""
        found = torch.unique(shrunk(numbers))
        starts = torch.tensor([each.start for each in self.nodes], device=found.device)
        layers = torch.bucketize(found[found >= 0], starts, right=True) - 1
        return sorted({*layers.tolist()})


def _lives(step: steps.Step, place: dict[int, int]) -> bool:
    return not isinstance(step, (steps.Layer, steps.Meeting)) or step.index in place


def _moved(step: steps.Step, place: dict[int, int]) -> steps.Step:
    if isinstance(step, (steps.Layer, steps.Meeting)):
        return replace(step, index=place[step.index])
    return step
