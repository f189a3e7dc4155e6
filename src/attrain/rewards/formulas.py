"""The rewards themselves: pure functions of detached outputs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attrain.errors import InputError, unknown
from attrain.rewards import checks


@dataclass(frozen=True)
class Reward:
    """Initial rewards of one batch, not yet reduced.

    A reward either judges the outputs `o` (then `judged` is r) or is the output times a slope
    (then `gradient` is -r / o, the gradient of a loss in Theorem 1); both have the outputs' shape.
    `total` is the weight of the samples, by which a mean divides. `over` are the dimensions that
    hold the outputs of one sample, none where every output counts as its own sample.
    """

    o: Tensor
    total: Tensor | float
    over: tuple[int, ...] = ()
    judged: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """Minus the reward of every output."""
        if self.gradient is not None:
            return self.o * self.gradient
        assert self.judged is not None
        return -self.judged


def sign(o: Tensor) -> Tensor:
    """Return the sign of every output, with sign(0) = +1."""
    return torch.where(o < 0, -1.0, 1.0).to(o.dtype)


def judge(o: Tensor, outcome: Tensor) -> Tensor:
    """Turn the reward R of an outcome that a larger output brings about into r (eq. 12)."""
    return sign(o) * outcome


def softmax(
    o: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Reward:
    """Give r_c = o_c (y_c - softmax(o)_c), weighted: Table 2, #3."""
    dim = checks.class_dim(o)
    classes = o.shape[dim]
    if weight is None and label_smoothing == 0 and ignore_index < 0:
        gradient = _softmax_of_alike(o, target, dim)
        if gradient is not None:
            return Reward(o, float(target.numel()), (dim,), gradient=gradient)
    checks.smoothing(label_smoothing)
    weight = checks.class_weight(o, weight)
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == o.shape:
        if ignore_index >= 0:
            raise InputError(
                f"ignore_index={ignore_index} needs class indices, but target holds "
                f"probabilities ({target.dtype}): give the ignored samples all-zero targets."
            )
        wanted = checks.probabilities(o, target) * (1 - label_smoothing) + label_smoothing / classes
        if weight is not None:
            wanted = wanted * checks.along(weight, dim, o)
        gradient = torch.softmax(o, dim).mul_(wanted.sum(dim, keepdim=True)).sub_(wanted)
        return Reward(o, float(o.numel() // classes), (dim,), gradient=gradient)

    known = checks.labels(o, target, weight, ignore_index)
    mass = known.sample * (1 - label_smoothing)
    gradient = torch.softmax(o, dim)
    if label_smoothing:
        per_class = o.new_ones(classes) if weight is None else weight
        share = per_class * (label_smoothing / classes)
        gradient.mul_((mass + share.sum() * known.valid).unsqueeze(dim))
        gradient.addcmul_(checks.along(share, dim, o), known.valid.unsqueeze(dim), value=-1)
    elif not known.alike:
        gradient.mul_(mass.unsqueeze(dim))
    gradient.scatter_add_(dim, known.index.unsqueeze(dim), -mass.unsqueeze(dim))
    return Reward(o, known.total, (dim,), gradient=gradient)


def _softmax_of_alike(o: Tensor, target: Tensor, dim: int) -> Tensor | None:
    """Return softmax(o) - y, in few steps, where every sample counts alike and all is in order."""
    if not (
        isinstance(target, Tensor)
        and target.dtype is torch.int64
        and target.shape == o.shape[:dim] + o.shape[dim + 1 :]
        and target.device == o.device
        and checks.visible(o)
    ):
        return None
    gradient = torch.softmax(o, dim)
    try:
        return gradient.scatter_(dim, target.unsqueeze(dim), -1.0, reduce="add")
    except RuntimeError:  # a label outside the classes: ignored, or an error to be explained
        return None


def sigmoid(
    o: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Reward:
    """Give r_c = o_c (y_c - sigmoid(o_c)), weighted: Table 2, #4."""
    checks.smoothing(label_smoothing)
    over: tuple[int, ...] = ()
    total: Tensor | float = float(o.numel())
    if isinstance(target, Tensor) and target.shape == o.shape:
        wanted = checks.probabilities(o, target)
        factor = None if weight is None else checks.factor(o, weight, "weight")
        positive = None if pos_weight is None else checks.factor(o, pos_weight, "pos_weight")
    else:
        dim = checks.class_dim(o)
        over = (dim,)
        known = checks.labels(o, target, None, ignore_index)
        wanted = torch.zeros_like(o).scatter_(dim, known.index.unsqueeze(dim), 1.0)
        per_class = checks.class_weight(o, weight)
        factor = known.valid.unsqueeze(dim)
        if per_class is not None:
            factor = factor * checks.along(per_class, dim, o)
        per_class = checks.class_weight(o, pos_weight, "pos_weight")
        positive = None if per_class is None else checks.along(per_class, dim, o)
        total = known.total
    wanted = wanted * (1 - label_smoothing) + label_smoothing / 2
    raising = wanted * torch.sigmoid(-o)
    if positive is not None:
        raising = raising * positive
    gradient = (1 - wanted) * torch.sigmoid(o) - raising
    if factor is not None:
        gradient = gradient * factor
    return Reward(o, total, over, gradient=gradient)


def squared_error(o: Tensor, target: Tensor) -> Reward:
    """Give r = -o d(o - y)^2/do: Theorem 1."""
    gradient = 2 * (o - checks.like_outputs(o, target, "target"))
    return Reward(o, float(o.numel()), gradient=gradient)


def hits(
    o: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int = -100
) -> Reward:
    """Give r_c = sign(o_c) where y_c = 1, weighted: Table 2, #1."""
    dim = checks.class_dim(o)
    known = checks.labels(o, target, checks.class_weight(o, weight), ignore_index)
    place = known.index.unsqueeze(dim)
    outcome = torch.zeros_like(o).scatter_(dim, place, known.sample.unsqueeze(dim))
    return Reward(o, known.total, (dim,), judge(o, outcome))


def false_positives(
    o: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int = -100
) -> Reward:
    """Give r_c = -sign(o_c) where o_c exceeds the labelled output, weighted: Table 2, #2."""
    dim = checks.class_dim(o)
    known = checks.labels(o, target, checks.class_weight(o, weight), ignore_index)
    above = o > o.gather(dim, known.index.unsqueeze(dim))
    return Reward(o, known.total, (dim,), judge(o, -(above * known.sample.unsqueeze(dim))))


def binary(o: Tensor, target: Tensor) -> Reward:
    """Give r = R, +1 for the right sign and -1 for the wrong one: section 3.2."""
    wanted = checks.like_outputs(o, target, "target")
    if checks.visible(o):
        checks.refuse(wanted, (wanted != 0) & (wanted != 1), "label", "neither 0 nor 1")
    # The sign itself is the outcome here: R compares it with the label's side, and r is R.
    return Reward(o, float(o.numel()), judged=sign(o) * (2 * wanted - 1))


def outcome(o: Tensor, R: Tensor | float, rho: Tensor | float | None = None) -> Reward:
    """Give r_c = sign(o_c) rho_c R_c: equations 12 and 13."""
    outcome = checks.per_output(o, R, "R")
    if rho is not None:
        held = checks.per_output(o, rho, "rho")
        if checks.visible(o):
            checks.refuse(held, (held < 0) | (held > 1), "rho", "outside 0..1")
        outcome = outcome * held
    return Reward(o, float(o.numel()), judged=judge(o, outcome))


def raise_outputs(o: Tensor, direction: Tensor | float, cap_at_zero: bool = False) -> Reward:
    """Give r_c = sign(o_c) direction_c, at most 0 if capped: equation 12, footnote 5."""
    r = judge(o, checks.per_output(o, direction, "direction"))
    return Reward(o, float(o.numel()), judged=r.clamp(max=0) if cap_at_zero else r)


REWARDS: Mapping[str, Callable[..., Reward]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "squared_error": squared_error,
    "hits": hits,
    "false_positives": false_positives,
    "binary": binary,
    "outcome": outcome,
    "raise_outputs": raise_outputs,
}
"""Every reward by name: a function of detached outputs, a target and options."""


def initial(name: str, out: Tensor, target: Any, **options: Any) -> Tensor:
    """Return the initial reward r_c of every output, in the shape of `out`, not reduced.

    `name` is a key of `REWARDS`, `target` and `options` are what the objective of that name takes
    (class weights count, `reduction` and `epsilon` have no say). Weber et al., section 3.2 and
    Table 2.

    Raises:
        InputError: the name or an option is unknown, or shapes, labels or numbers are wrong.
    """
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS)
    reward = REWARDS[name]
    known = list(inspect.signature(reward).parameters)[2:]
    for option in options:
        if option not in known:
            if not known:
                raise InputError(f"the reward {name!r} has no options, but {option!r} came.")
            raise unknown(f"option of the reward {name!r}", option, known)
    o = checks.outputs(out)
    checks.finite(o)
    with torch.no_grad():
        return -reward(o, target, **options).loss
