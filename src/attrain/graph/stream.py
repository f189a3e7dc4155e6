"""The residual stream of a transformer as a sum of parts, and what each part hands to its readers.

A part is what one sender (tokens, an attention head, an MLP) has written to the stream; parts go
through everything that is linear, and normalisations with their statistics held constant, and add
up to the stream's value everywhere. A reader's message from a sender is its part times the credit
that the reader hands back there (equation 3 of arXiv:2308.12053, for a sum of inputs).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrain.graph.arguments import Where, at
from attrain.graph.layer import Kind
from attrain.graph.steps import hook
from attrain.graph.totals import Totals
from attrain.graph.units import Samples

_PARTS = "_attrain_parts"
_MANY = 64


class Stream(NamedTuple):
    """What a tensor of the stream is made of: for each part the unit of each value, or NOBODY.

    sample: the sample of each value.
    """

    parts: tuple[Tensor, ...]
    sample: Tensor


@dataclass
class Switch:
    """Whether the parts of a layer's output are wanted, which is known when it meets the stream."""

    on: bool = True


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return the values of the parts of a tensor."""
    found: list[Tensor] = getattr(tensor, _PARTS)
    return found


def _put(tensor: Tensor, parts: list[Tensor]) -> None:
    setattr(tensor, _PARTS, parts)


@dataclass(frozen=True)
class Step:
    """What happens to the parts at a call; nothing unless `switch` is on."""

    switch: Switch = field(default_factory=Switch, kw_only=True)

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Nothing is to be kept."""

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Give the result its parts."""
        if not self.switch.on:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self.write(totals, kept, args, kwargs, out)

    def write(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Put parts on what the call made."""


@dataclass(frozen=True)
class Start(Step):
    """A tensor enters the stream as one part: an argument, or the result where `where` is None."""

    where: Where | None = None

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Give the argument its part."""
        if self.where is not None:
            tensor = at(self.where, args, kwargs)
            _put(tensor, [tensor.detach()])

    def write(self, totals: Any, kept: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give the result its part."""
        if self.where is None:
            _put(out, [out.detach()])


@dataclass(frozen=True)
class Write(Step):
    """A layer writes to the stream: a part for each group of its input columns, and its bias."""

    kind: Kind
    groups: tuple[Tensor, ...]  # indices of columns
    units: tuple[int, ...]  # of each group
    samples: Samples

    def write(self, totals: Any, kept: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give the result its parts."""
        taken = self.kind.taken(args, kwargs)
        weight = taken.w if self.kind.by_columns else taken.w.t()  # [in, out]
        parts = [taken.a[..., group] @ weight[group] for group in self.groups]
        if taken.b is not None:
            parts.append(taken.b.expand(out.shape))
        _put(out, parts)


@dataclass(frozen=True)
class Move(Step):
    """A call that is linear in the one argument that is of the stream: done with every part."""

    func: Any
    where: Where
    split: int | None = None  # the axis that is summed over, of which some parts are taken apart
    apart: tuple[bool, ...] = ()
    index: int | None = None

    def write(self, totals: Any, kept: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give the result its parts."""
        parts = parts_of(at(self.where, args, kwargs))
        constant = tuple(_plain(each) for each in args)
        options = {key: _plain(each) for key, each in kwargs.items()}
        if self.split is not None:
            scale = 1.0 / parts[0].shape[self.split] if "mean" in self.func.__name__ else 1.0
            moved: list[Tensor] = []
            for part, apart in zip(parts, self.apart, strict=True):
                each = part.movedim(self.split, 0) * scale
                moved += list(each) if apart else [each.sum(0)]
            _put(out, [each.reshape(out.shape) for each in moved])
            return
        found = [
            self.func(*_with(constant, self.where, part), **_named(options, self.where, part))
            for part in parts
        ]
        if self.index is None:
            _put(out, found)
            return
        _put(out[self.index], [each[self.index] for each in found])


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value.detach() if isinstance(value, Tensor) else value


def _with(args: tuple[Any, ...], where: Where, part: Tensor) -> tuple[Any, ...]:
    if not isinstance(where, int):
        return args
    return (*args[:where], part, *args[where + 1 :])


def _named(kwargs: dict[str, Any], where: Where, part: Tensor) -> dict[str, Any]:
    return kwargs if isinstance(where, int) else {**kwargs, str(where): part}


@dataclass(frozen=True)
class Normalise(Step):
    """Layer or RMS normalisation of the stream, its statistics held constant, as the rules do.

    centred: it takes a mean off, which with the bias is a part of nobody's.
    """

    where: Where
    centred: bool

    def write(self, totals: Any, kept: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give the result its parts."""
        names = ["input", "shape", "weight", *["bias"] * self.centred, "eps"]
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given["input"].detach()
        shape = given["shape"] if "shape" in given else given["normalized_shape"]
        axes = tuple(range(-len(shape), 0))
        eps = given.get("eps", 1e-5 if self.centred else None)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        mean = x.mean(axes, keepdim=True)
        power = x.var(axes, correction=0, keepdim=True) if self.centred else (
            x.square().mean(axes, keepdim=True)
        )  # fmt: skip
        slope = (power + eps).rsqrt()
        if given.get("weight") is not None:
            slope = slope * given["weight"].detach()
        parts = [part * slope for part in parts_of(at(self.where, args, kwargs))]
        if self.centred:
            offset = -mean * slope
            if given.get("bias") is not None:
                offset = offset + given["bias"].detach()
            parts.append(offset.expand(out.shape))
        _put(out, parts)


@dataclass(frozen=True)
class Join(Step):
    """A sum of two tensors of the stream, or of one and something that is not."""

    wheres: tuple[Where, ...]
    share: Callable[..., tuple[Tensor, Tensor]]
    in_place: bool = False

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep the parts, since the call may overwrite what they belong to."""
        if self.switch.on:
            return [parts_of(at(where, args, kwargs)) for where in self.wheres]
        return None

    def write(self, totals: Any, kept: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Give the result the parts of both."""
        parts: list[Tensor] = []
        for where, each in zip(self.wheres, kept, strict=True):
            second = where in (1, "other")
            for part in each:
                zero = torch.zeros((), dtype=part.dtype, device=part.device)
                pair = self.share(args, kwargs, *((zero, part) if second else (part, zero)))
                parts.append(pair[second].expand(out.shape))
        if len(self.wheres) == 1:
            parts.append(out.detach() - torch.stack(parts).sum(0))
        _put(out, parts)


@dataclass(frozen=True)
class Receive:
    """The messages from the senders of the stream to the units of a layer that reads it.

    rows: the unit of each output, NOBODY for those that take part in nothing. maps: of each part
    the units of its values, in the form that `Reads` has them.
    """

    index: int
    kind: Kind
    rows: Tensor
    maps: tuple["Reads", ...]
    samples: Samples

    def before(self, totals: Totals, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Keep what the layer takes."""
        taken = self.kind.taken(args, kwargs)
        return taken, parts_of(at(self.kind.place_of_input(args), args, kwargs))

    def after(
        self, totals: Totals, kept: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        """Take the credit of the outputs."""
        taken, parts = kept
        weight = taken.w.t() if self.kind.by_columns else taken.w  # [out, in]

        def take(s: Tensor) -> None:
            units = torch.unique(self.rows[self.rows >= 0])
            if taken.b is not None:
                self._sink(totals, (s * taken.b), self.rows)
            if len(units) > _MANY:
                for part, reads in zip(parts, self.maps, strict=True):
                    self._messages(totals, reads, (part @ weight.t()) * s, self.rows)
                return
            for unit in units.tolist():
                rows = (self.rows == unit).nonzero()[:, 0]
                if not bool(s[..., rows].any()):
                    continue
                credit = s[..., rows] @ weight[rows]
                one = torch.full((1,), unit, device=s.device)
                for part, reads in zip(parts, self.maps, strict=True):
                    self._messages(totals, reads, (part * credit).sum(-1, keepdim=True), one)

        hook(out, take)

    def _sink(self, totals: Totals, values: Tensor, rows: Tensor) -> None:
        split = self.samples.split(values, len(totals.group))
        totals.sink("bias", rows, totals.by_group(split.reshape(len(split), -1, len(rows)).sum(1)))

    def _messages(self, totals: Totals, reads: "Reads", values: Tensor, rows: Tensor) -> None:
        """Add messages, values [.., rows] at every place, from a part's units to those of rows."""
        split = self.samples.split(values, len(totals.group))
        split = split.reshape(len(split), -1, split.shape[-1])  # [N, places, rows]
        if len(reads.units) == 1:
            split = split.sum(1, keepdim=True)
        found = totals.by_group(split.flatten(1)).reshape(totals.groups, *split.shape[1:])
        totals.received(self.index, reads.units, rows, found)


class Reads(NamedTuple):
    """The units of a part where it is read: one of all its values, or one for each place."""

    units: Tensor


def reads(part: Tensor, samples: Samples) -> Reads | None:
    """Return the units of a part, None where they change along the last axis."""
    first = samples.split(part, 2)[0]
    if not bool((first == first[..., :1]).all()):
        return None
    places = first[..., 0].flatten()
    return Reads(places[:1] if bool((places == places[:1]).all()) else places)
