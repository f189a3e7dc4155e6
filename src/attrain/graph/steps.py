"""What is taken down at a call of a model, once the way back has brought its credit.

A message from a to b is the reward that b hands to a: value times credit (equations 2, 3 and 11 of
arXiv:2308.12053). What a layer hands to no unit goes to its sinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attrain import marks
from attrain.errors import CreditError
from attrain.graph import units
from attrain.graph.arguments import Where, at
from attrain.graph.layer import Kind, messages, messages_of
from attrain.graph.totals import Totals
from attrain.graph.units import Samples, Sums
from attrain.rules.decomposition import Decomposition, stabilised


class Step(Protocol):
    """What is taken down at a call."""

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Look at the arguments, which the call may overwrite, and return what is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Look at what the call returned."""


def hook(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    """Let `take` have the credit of a tensor, once it is known."""
    if tensor.requires_grad:

        def quiet(credit: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                take(credit)

        tensor.register_hook(quiet)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Epsilon:
    """What a stabiliser takes from the units of a tensor: sign(z) epsilon times credit."""

    where: Where
    by: Sums
    epsilon: float
    overwritten: bool = False
    rectified: bool = False  # so that no value is negative

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Take the credit of the argument, summed over all who pay."""
        z = at(self.where, args, kwargs)
        if getattr(z, "_attrain_paid", None) == z._version:
            return  # the hook of the first call that pays sees the credit of all
        z._attrain_paid = z._version  # type: ignore[attr-defined]
        value = z.detach().clone() if self.overwritten else z.detach()

        def take(credit: Tensor) -> None:
            lost = credit if self.rectified else torch.where(value < 0, -credit, credit)
            total = totals.summed(self.by, lost) * self.epsilon
            totals.sink("epsilon", self.by.unit, total)

        hook(z, take)

    def after(self, *_: Any) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class Deferred:
    """What one who does not pay made of a tensor that others pay for: it pays later, by itself."""

    by: Sums
    epsilon: float
    index: int | None = None

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take back what the tensor's credit has of this one."""
        made = out if self.index is None else out[self.index]
        negative = made.detach() < 0

        def take(credit: Tensor) -> None:
            lost = torch.where(negative, credit, -credit)
            total = totals.summed(self.by, lost) * self.epsilon
            totals.sink("epsilon", self.by.unit, total)

        hook(made, take)


@dataclass(frozen=True)
class Curve:
    """What the stabiliser of a secant takes where the tensor that it is one of owes none.

    where: that tensor among the arguments; without, it is the one that the result is marked with.
    """

    by: Sums
    epsilon: float
    where: Where | None = None

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep the tensor, which the call may overwrite."""
        return None if self.where is None else at(self.where, args, kwargs).detach().clone()

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take the credit of the result."""
        mark = marks.get(out)
        z = kept if mark is None or kept is not None else mark.root(out)
        if z is None:
            return
        value = out.detach().clone()
        lost = value - value * (z.detach() / stabilised(z.detach(), self.epsilon))

        def take(credit: Tensor) -> None:
            totals.sink("epsilon", self.by.unit, totals.summed(self.by, lost * credit))

        hook(out, take)


@dataclass(frozen=True)
class Constant:
    """What does not depend on the samples, an embedding of positions say: it belongs to no unit."""

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(self, *_: Any) -> None:
        """Nothing is to be taken down."""


@dataclass(frozen=True)
class Written:
    """A tensor of constants into which values were written."""

    def before(self, *_: Any) -> None:
        """Nothing is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Remember that the tensor carries values of the inputs from now on."""
        none = torch.empty(0, dtype=torch.long)
        units.put(args[0], units.Units(none, none))


@dataclass(frozen=True)
class Shift:
    """What is added to the units of a tensor without being an activation: offset times credit."""

    by: Sums
    offset: Callable[[Sequence[Any], dict[str, Any], Tensor], Tensor]
    kind: str = "bias"
    overwritten: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep what is about to be overwritten."""
        return [
            each.detach().clone() if isinstance(each, Tensor) and self.overwritten else each
            for each in args
        ]

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take the credit of the result."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            offset = self.offset(kept, kwargs, out.detach())

        if totals.path is not None:
            return  # what is added stays as it is on the way

        def take(credit: Tensor) -> None:
            totals.sink(self.kind, self.by.unit, totals.summed(self.by, offset * credit))

        hook(out, take)


@dataclass(frozen=True)
class Layer:
    """The messages of a linear or convolution layer, and what its bias takes.

    columns: the unit of each input channel or feature. first: whether it takes the inputs as they
    are, so that nobody needs the credit of what is before it.
    """

    index: int
    kind: Kind
    columns: Tensor
    samples: Samples
    rule: Decomposition | None
    epsilon: float
    owed: float
    groups: int = 1
    first: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep what the layer takes."""
        taken = self.kind.taken(args, kwargs)
        return taken, taken.a._version

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Take the credit of the outputs."""
        taken, version = kept
        # A copy, since an activation may overwrite the outputs.
        z = out.detach().clone() if self.rule is not None or totals.compares else None
        nodes = totals.nodes[self.index]
        axis = self.kind.axis(out.ndim)

        def take(s: Tensor) -> None:
            if taken.a._version != version:
                raise CreditError(
                    f"the inputs of layer {nodes.name!r} are overwritten after it took them, so "
                    "that its messages cannot be computed: write `y = f(x)` instead of `f_(x)`."
                )
            a = taken.a
            if totals.path is not None:
                before = totals.passed(self, a, s)
                if before is None:
                    return
                a, s = a - before[0], (s + before[1]) / 2
            if totals.compares:
                assert z is not None
                earned = self.samples.split((s * z).movedim(axis, -1), len(totals.group))
                totals.compare(self.index, earned.reshape(len(earned), -1, nodes.count).sum(1))
            whole = len(totals.present) == 1
            spread = self.samples.spread(totals.group)
            for group in totals.present:
                chosen = None if whole else (spread == group).nonzero()[:, 0]
                some, credit, value = (
                    each
                    if each is None or chosen is None
                    else each.index_select(self.samples.axis, chosen)
                    for each in (a, s, z)
                )
                assert some is not None and credit is not None
                self._add(totals, group, taken._replace(a=some), credit, value, axis)

        hook(out, take)

    def _add(
        self, totals: Totals, group: int, taken: Any, s: Tensor, z: Tensor | None, axis: int
    ) -> None:
        nodes = totals.nodes[self.index]
        unit = torch.arange(nodes.start, nodes.start + nodes.count, device=s.device)
        others = [other for other in range(s.ndim) if other != axis]
        if self.rule is None:
            found = messages(self.kind, taken, s)
            if taken.b is not None and totals.path is None:
                totals.sinks["bias"][group, unit] += (s.sum(others) * taken.b).double()
        else:
            assert z is not None
            r = s * stabilised(z, self.owed)
            with torch.autocast(s.device.type, enabled=False):
                found, of_bias = messages_of(self.rule, self.epsilon, self.kind, taken, r, z)
            rest = r.sum(others).double() - found.double().sum(1)
            if of_bias is not None:
                totals.sinks["bias"][group, unit] += of_bias.double()
                rest = rest - of_bias.double()
            totals.sinks["rule"][group, unit] += rest
        totals.layer(self.index, group, self.columns, found)


@dataclass(frozen=True)
class Meeting:
    """The messages of a sum or product, one-to-one from the units of each of two tensors.

    shares: the contributions of both, from arguments, their values and the result.
    """

    index: int
    by: Sums
    pairs: Tensor
    wheres: tuple[Where, ...]
    shares: Callable[..., tuple[Tensor, Tensor]]
    product: bool = False
    overwritten: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep the values that meet."""
        values = [at(where, args, kwargs).detach() for where in self.wheres]
        return [each.clone() for each in values] if self.overwritten else values

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Take the credit of the result."""

        def take(credit: Tensor) -> None:
            shares = self.shares(args, kwargs, *kept)
            if totals.path is not None:
                before = totals.passed(self, *kept, credit)
                if before is None:
                    return
                credit = (credit + before[2]) / 2
                shares = self._changes(args, kwargs, kept, before)
            if totals.compares:
                totals.compare(self.index, self._earned(totals, sum(shares), credit))
            for branch, share in enumerate(shares):
                total = totals.summed(self.by, (share * credit).expand(credit.shape))
                source = self.pairs[self.by.unit][:, branch]
                totals.meeting(self.index, self.by.unit, source, total)

        hook(out, take)

    def _changes(
        self, args: Any, kwargs: Any, kept: Sequence[Tensor], before: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what changes of both contribute to the change of the result."""
        a, b = (now - then for now, then in zip(kept, before, strict=False))
        if self.product:
            return a * (kept[1] + before[1]) / 2, b * (kept[0] + before[0]) / 2
        return self.shares(args, kwargs, a, b)

    def _earned(self, totals: Totals, value: Any, credit: Tensor) -> Tensor:
        total = self.by.total((value * credit).expand(credit.shape), len(totals.group))
        earned = total.new_zeros(len(total), totals.nodes[self.index].count)
        return earned.index_add_(1, self.by.unit, total)
