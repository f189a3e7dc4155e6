"""How a linear map hands its reward to its inputs and weights: the rules besides epsilon.

Every rule reads contributions n_ij out of the products z_ij = w_ij a_i and hands on

    r_ij = n_ij / sum_i n_ij * r_j

or a sum of a few such parts. A bias is a weight whose input is 1. The functions here are pure and
know nothing of contexts. Rules: Bach et al. 2015; Montavon et al. 2017 and 2019; Lapuschkin et al.
2019; Weber et al., arXiv:2308.12053.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, reduce
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from attrain.errors import InputError
from attrain.rules.blocks import blockwise

Terms = Sequence[tuple[Tensor, Tensor]]
"""Pairs of a function x of the inputs and a function y of the weights: n_ij = sum of x_i y_ij."""


class Signed:
    """Inputs or weights as `values`, and their `positive` and `negative` parts.

    `negative` is None where it is known that there are none, which saves half of the work.
    """

    def __init__(self, values: Tensor, nonnegative: bool = False) -> None:
        self.values = values
        self.nonnegative = nonnegative

    @cached_property
    def positive(self) -> Tensor:
        """max(value, 0)."""
        return self.values if self.nonnegative else self.values.clamp_min(0)

    @cached_property
    def negative(self) -> Tensor | None:
        """min(value, 0)."""
        return None if self.nonnegative else self.values.clamp_max(0)


@dataclass(frozen=True)
class Part:
    """A `share` of the reward, handed on in proportion to the sums of the products of `terms`.

    over: what the denominator adds up instead of the terms. outputs: the outputs, by the sign of
    z_j, that take part. stabilised: whether sign * epsilon is added to the denominator.
    """

    terms: Terms
    over: Terms | None = None
    share: float = 1.0
    outputs: Literal["all", "positive", "negative"] = "all"
    stabilised: bool = True


@dataclass(frozen=True, repr=False)
class Decomposition(ABC):
    """A rule by which linear and convolution layers hand on their reward; write `parts`.

    epsilon: the stabiliser of the rule's denominators, None for the context's.
    `vanishing` says that contributions of an input at 0 are 0. Where they need not be, the credit
    per unit of activation is r_i / (a_i + sign(a_i) epsilon), and 0 where that divides by 0.

    Raises InputError for an epsilon that is no finite number >= 0.
    """

    epsilon: float | None = field(default=None, kw_only=True)
    vanishing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_epsilon(self.epsilon)

    @abstractmethod
    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return what the contributions of inputs `a` through weights `w` are.

        Called again with a = 1, a tensor without axes, and the bias as w.
        """

    def excess(self, a: Tensor) -> Tensor | None:
        """Return by how much inputs break the rule's assumptions (> 0), None if it has none."""
        return None

    def __repr__(self) -> str:
        shown = [
            f"{each.name}={_short(value)}"
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None
        ]
        return f"{type(self).__name__}({', '.join(sorted(shown, key=_is_epsilon))})"


def _short(value: object) -> str:
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    return f"<tensor of shape {shape}>" if shape else repr(value)


def _is_epsilon(shown: str) -> bool:
    return shown.startswith("epsilon=")


def check_epsilon(epsilon: float) -> None:
    """Raise InputError unless `epsilon` is a finite number >= 0."""
    if not 0.0 <= epsilon < math.inf:
        raise InputError(f"epsilon must be a finite number >= 0, got {epsilon!r}.")


def same_sign(a: Signed, w: Signed) -> Terms:
    """Return the terms of z_ij+ = max(z_ij, 0)."""
    return _pairs(a, w.positive, w.negative)


def opposite_sign(a: Signed, w: Signed) -> Terms:
    """Return the terms of z_ij- = min(z_ij, 0)."""
    return _pairs(a, w.negative, w.positive)


def _pairs(a: Signed, of_positive: Tensor | None, of_negative: Tensor | None) -> Terms:
    pairs = ((a.positive, of_positive), (a.negative, of_negative))
    return [(x, y) for x, y in pairs if x is not None and y is not None]


class Epsilon(Decomposition):
    """r_ij = z_ij / (z_j + sign(z_j) epsilon) r_j: LFP-epsilon (Weber et al., eq. 6, 7)."""

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return the products as they are."""
        return [Part([(a.values, w.values)])]


@dataclass(frozen=True, repr=False)
class Zero(Epsilon):
    """r_ij = z_ij / z_j r_j: LFP-0 (Weber et al., equations 2 to 4)."""

    epsilon: float | None = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.epsilon != 0.0:
            raise InputError(
                f"the zero rule has no epsilon, got {self.epsilon!r}: use the epsilon rule."
            )


@dataclass(frozen=True, repr=False)
class Gamma(Decomposition):
    """Strengthens, `gamma` times, contributions that have the sign of z_j (Montavon et al. 2019).

    r_ij = (z_ij + gamma z_ij*) / (z_j + gamma sum_i z_ij*) r_j, where z_ij* is z_ij+ for z_j >= 0
    and z_ij- for z_j < 0. gamma=0 is the epsilon rule; large ones approach z+ for z_j > 0.

    Raises InputError for a gamma that is no finite number >= 0.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.gamma < math.inf:
            raise InputError(f"gamma must be a finite number >= 0, got {self.gamma!r}.")

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return one part for outputs of either sign."""
        more_positive = w.values + self.gamma * w.values.clamp_min(0)
        more_negative = w.values + self.gamma * w.values.clamp_max(0)
        return [
            Part(_pairs(a, more_positive, more_negative), outputs="positive"),
            Part(_pairs(a, more_negative, more_positive), outputs="negative"),
        ]


@dataclass(frozen=True, repr=False)
class AlphaBeta(Decomposition):
    """r_ij = (alpha z_ij+ / sum_i z_ij+ - beta z_ij- / sum_i z_ij-) r_j (Bach et al. 2015).

    Raises InputError unless alpha - beta = 1 and beta >= 0.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta >= 0.0 and math.isclose(self.alpha - self.beta, 1.0, rel_tol=1e-9)):
            raise InputError(
                f"alpha - beta must be 1 with beta >= 0, or rewards grow or shrink from layer to "
                f"layer: got alpha={self.alpha!r}, beta={self.beta!r}. For this beta, "
                f"alpha={1 + max(self.beta, 0.0):g}."
            )

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return positive and negative contributions, each normalised by itself."""
        found = [Part(same_sign(a, w), share=self.alpha)]
        if self.beta:
            found.append(Part(opposite_sign(a, w), share=-self.beta))
        return found


class ZPlus(Decomposition):
    """r_ij = z_ij+ / sum_i z_ij+ r_j: alpha = 1, beta = 0 (Montavon et al. 2017)."""

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return the positive contributions alone."""
        return [Part(same_sign(a, w))]


class ZPlusZMinus(Decomposition):
    """r_ij = z_ij / (sum_i |z_ij| + epsilon) r_j: not conservative, never larger than r_j.

    Weber et al. 2022, the first version of arXiv:2308.12053. A neuron with z_j < 0 hands on
    rewards of the opposite sign.
    """

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return the products over the sum of their sizes."""
        return [Part([(a.values, w.values)], over=[(a.values.abs(), w.values.abs())])]


class Flat(Decomposition):
    """r_ij = r_j / fan-in, for first layers (Lapuschkin et al. 2019). Padding is no input."""

    vanishing = False

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return 1 for every connection."""
        ones = torch.ones_like(a.values), torch.ones_like(w.values)
        return [Part([ones], stabilised=False)]


@dataclass(frozen=True, eq=False, repr=False)
class Box(Decomposition):
    """n_ij = z_ij - low_i w_ij+ - high_i w_ij-, for first layers with low <= a_i <= high.

    low, high: numbers, or tensors that broadcast to the inputs; None: the smallest and the largest
    value of each sample (the first axis counts samples). The input of a bias is always 1, so it
    takes no part. Montavon et al. 2017, the z^B rule.

    Raises InputError for bounds that are NaN, that come alone, or of which the lower is higher;
    the context raises CreditError for inputs that leave them.
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None
    vanishing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.low is None) != (self.high is None):
            raise InputError(
                f"Box takes both bounds or none, got low={self.low!r}, high={self.high!r}."
            )
        if self.low is None or self.high is None:
            return
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        if low.isnan().any() or high.isnan().any():
            raise InputError(f"the bounds of Box must be numbers, got NaN in {self!r}.")
        if not (low <= high).all():
            raise InputError(f"the lower bound of Box must not be the higher one, got {self!r}.")

    def bounds(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of inputs `a`, in a form that broadcasts to them."""
        if a.ndim == 0:
            return a, a
        if self.low is None or self.high is None:
            axes = tuple(range(1 if a.ndim > 1 else 0, a.ndim))
            return a.amin(axes, keepdim=True), a.amax(axes, keepdim=True)
        return _like(self.low, a), _like(self.high, a)

    def parts(self, a: Signed, w: Signed) -> Sequence[Part]:
        """Return w_ij+ (a_i - low_i) + w_ij- (a_i - high_i), the same sum without cancellation."""
        low, high = self.bounds(a.values)
        pairs = ((a.values - low, w.positive), (a.values - high, w.negative))
        return [Part([(x, y) for x, y in pairs if y is not None])]

    def excess(self, a: Tensor) -> Tensor | None:
        """Return how far inputs leave the bounds, beyond what rounding may do."""
        if self.low is None:
            return None
        low, high = self.bounds(a)
        slack = 4 * torch.finfo(a.dtype).eps * torch.maximum(low.abs().amax(), high.abs().amax())
        return torch.maximum((low - a).amax(), (a - high).amax()) - slack


def _like(bound: float | Tensor, a: Tensor) -> Tensor:
    return bound.to(a) if isinstance(bound, Tensor) else a.new_full((), bound)


RULES: dict[str, type[Decomposition]] = {
    "epsilon": Epsilon,
    "zero": Zero,
    "gamma": Gamma,
    "alpha-beta": AlphaBeta,
    "z+": ZPlus,
    "z+z-": ZPlusZMinus,
    "flat": Flat,
    "box": Box,
}
"""The rules by name; each can be made without arguments."""


class LinearMap(NamedTuple):
    """z_j = sum_i w_ij a_i + b_j, as one call of torch computes it.

    apply: maps any inputs x and weights y to sum_i y_ij x_i. b broadcasts to z.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    a: Signed
    w: Signed
    b: Tensor | None
    z: Tensor


class Messages(NamedTuple):
    """Rewards that a map hands on: of its inputs, weights (summed over samples) and bias."""

    inputs: Tensor | None
    weights: Tensor | None
    bias: Tensor | None


def decompose(
    rule: Decomposition,
    linear: LinearMap,
    r: Tensor,
    epsilon: float,
    *,
    inputs: bool = True,
    weights: bool = True,
    bias: bool = True,
) -> Messages:
    """Return the messages r_ij of `rule` for the rewards `r` of the outputs (shape of z).

    Summed over j for the inputs, r_i (equation 3); over samples and places for weights and bias.
    What is not asked for is None. In half precision ratios and messages are formed in float32.
    """
    parts = rule.parts(linear.a, linear.w)
    leaves = _Leaves(inputs), _Leaves(weights)
    with torch.enable_grad():
        sums = [
            [linear.apply(leaves[0].of(x), leaves[1].of(y)) for x, y in part.terms]
            for part in parts
        ]
    shares: list[Tensor] = []
    of_bias: list[Tensor] = []
    for part, terms, added in zip(parts, sums, _of_bias(rule, linear, len(parts)), strict=True):
        if part.over is None:
            total = _total(each.detach() for each in terms)
        else:
            total = _total(linear.apply(x, y) for x, y in part.over)
        if added is not None:
            total = total + _products(added.terms if added.over is None else added.over)
        stabiliser = epsilon if part.stabilised else 0.0
        s = _of_outputs(part, ratio(r, wide(total), stabiliser), linear.z)
        s = s if part.share == 1.0 else s * part.share
        if added is not None and bias and linear.b is not None:
            of_bias.append((s * wide(_products(added.terms))).sum_to_size(linear.b.shape))
        shares += [s.to(linear.z.dtype)] * len(terms)
    wanted = [*leaves[0].tensors, *leaves[1].tensors]
    outputs = [each for terms in sums for each in terms]
    reached = iter(torch.autograd.grad(outputs, wanted, shares) if wanted else ())
    return Messages(
        leaves[0].messages(reached),
        leaves[1].messages(reached),
        _total(of_bias) if of_bias else None,
    )


class _Leaves:
    """Inputs or weights of a map as leaves of a graph, whose backward pass adds messages up."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.known: dict[int, Tensor] = {}

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.known.values())

    def of(self, tensor: Tensor) -> Tensor:
        """Return the leaf that stands for `tensor`, always the same one."""
        if not self.wanted:
            return tensor
        return self.known.setdefault(id(tensor), tensor.detach().requires_grad_())

    def messages(self, reached: Iterator[Tensor]) -> Tensor | None:
        """Return the leaves' values times what reached them, added up."""
        if not self.wanted:
            return None
        return _total(wide(leaf.detach()) * wide(next(reached)) for leaf in self.tensors)


def _of_bias(rule: Decomposition, linear: LinearMap, parts: int) -> Sequence[Part | None]:
    """Return the parts of the bias, a weight whose input is 1."""
    if linear.b is None:
        return [None] * parts
    return rule.parts(Signed(linear.b.new_ones(()), nonnegative=True), Signed(linear.b))


def _products(terms: Terms) -> Tensor:
    return _total(x * y for x, y in terms)


def _total(values: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, values)


def _of_outputs(part: Part, s: Tensor, z: Tensor) -> Tensor:
    if part.outputs == "all":
        return s
    return torch.where(z >= 0 if part.outputs == "positive" else z < 0, s, 0.0)


def credit(r: Tensor, a: Tensor, epsilon: float) -> Tensor:
    """Return the credit per unit of activation of inputs `a` whose reward is `r`."""
    return ratio(r, wide(a), epsilon).to(a.dtype)


def ratio(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Return r / (z + sign(z) epsilon), and 0 where that divides by 0."""
    divisor = stabilised(z, epsilon)
    quotient = r / divisor
    return quotient if epsilon else torch.where(divisor == 0, 0.0, quotient)


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Return z + sign(z) epsilon with sign(0) = +1."""
    if epsilon == 0.0:
        return z
    size = torch.tensor(epsilon, dtype=z.dtype)

    def away_from_zero(out: Tensor | None, scratch: Tensor | None, z: Tensor) -> Tensor:
        # Adding 0.0 turns -0.0 into +0.0, whose sign is +1.
        return torch.copysign(size, torch.add(z, 0.0, out=scratch), out=out).add_(z)

    return blockwise(away_from_zero, z)


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor`, in float32 if it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
