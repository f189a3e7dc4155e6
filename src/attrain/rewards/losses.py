"""The objectives, with torch's loss signatures."""

from torch import Tensor

from attrain.rewards import formulas
from attrain.rewards.formulas import Reward
from attrain.rewards.objective import Reduction, objective


def softmax(
    out: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Classify, one class per sample: reward r_c = o_c (y_c - softmax(o)_c).

    Signature, shapes and reductions are those of `F.cross_entropy`, and so is the gradient where
    the credit context's epsilon is 0. Weber et al., Table 2, reward #3.

    Args:
        out: logits, [C], [N, C] or [N, C, d1, ...].
        target: class indices, [], [N] or [N, d1, ...], or probabilities in the shape of `out`.
        weight: one weight per class, [C].
        ignore_index: samples with this label earn nothing (class indices only).
        label_smoothing: share of the label, in 0..1, that is spread over all classes.
        reduction: "none" returns minus the reward of every sample, "sum" adds them up, "mean"
            divides the sum by the weights of the labels (by N d1 ... for probabilities).

    Raises:
        InputError: shapes, labels, numbers or options are not as above.
        CreditError: the forward pass ran outside a credit context.
    """

    def reward(o: Tensor) -> Reward:
        return formulas.softmax(
            o, target, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing
        )

    return objective(out, reward, reduction)


def sigmoid(
    out: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Let every output answer its own yes or no: reward r_c = o_c (y_c - sigmoid(o_c)).

    With targets in the shape of `out` this is `F.binary_cross_entropy_with_logits`: "mean" is
    over all outputs and "none" has their shape. With class indices the label is one yes among
    C - 1 noes; then a sample's reward is the sum over its C outputs, and "mean" is over samples
    that are not ignored. Weber et al., Table 2, reward #4.

    Args:
        out: logits of any shape; [C], [N, C] or [N, C, d1, ...] for class indices.
        target: numbers in 0..1 (or booleans) in the shape of `out`, or class indices [], [N] or
            [N, d1, ...].
        weight: factor per output that expands to `out`; [C] for class indices.
        pos_weight: further factor for the share of yes, of the same shape as `weight` may have.
        ignore_index: samples with this label earn nothing (class indices only).
        label_smoothing: share of every answer, in 0..1, that is moved to one half.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: shapes, labels, numbers or options are not as above.
        CreditError: the forward pass ran outside a credit context.
    """

    def reward(o: Tensor) -> Reward:
        return formulas.sigmoid(
            o,
            target,
            weight=weight,
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )

    return objective(out, reward, reduction)


def squared_error(out: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Regress: reward r = 2 o (y - o), Theorem 1 for the loss (o - y)^2.

    `out` and `target` have the same shape; gradient and reductions are those of `F.mse_loss`
    where the credit context's epsilon is 0. Weber et al., section 3.3.

    Raises:
        InputError: the shapes differ, or a number is not finite.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(out, lambda o: formulas.squared_error(o, target), reduction)


def hits(
    out: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    epsilon: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Raise the labelled class: reward r_c = sign(o_c) there and 0 for the others.

    It never converges by itself: stop early or let the learning rate fall. Weber et al., Table 2,
    reward #1.

    Args:
        out: [C], [N, C] or [N, C, d1, ...].
        target: class indices, [], [N] or [N, d1, ...].
        weight: one weight per class, [C]; a sample counts with its label's.
        ignore_index: samples with this label earn nothing.
        epsilon: added to |output| where the reward is divided by the output; in units of `out`.
        reduction: as in `softmax`.

    Raises:
        InputError: shapes, labels, numbers or options are not as above.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(
        out,
        lambda o: formulas.hits(o, target, weight=weight, ignore_index=ignore_index),
        reduction,
        epsilon,
    )


def false_positives(
    out: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    epsilon: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Lower every output above the labelled one: reward r_c = -sign(o_c) there, 0 elsewhere.

    Samples whose label already has the largest output earn nothing. Arguments, shapes and errors
    are those of `hits`. Weber et al., Table 2, reward #2, and eq. 14.

    Raises:
        InputError: shapes, labels, numbers or options are not as in `hits`.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(
        out,
        lambda o: formulas.false_positives(o, target, weight=weight, ignore_index=ignore_index),
        reduction,
        epsilon,
    )


def binary(
    out: Tensor, target: Tensor, *, epsilon: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Reward the sign of a single output: r = +1 where it is right, -1 where it is wrong.

    An output of 0 or more means class 1, a negative one class 0. The sign is the outcome itself,
    so r = R without the sign rule of the multiclass rewards. Weber et al., section 3.2.

    Args:
        out: one output per sample, of any shape.
        target: labels 0 or 1 (or booleans) in the shape of `out`.
        epsilon: added to |output| where the reward is divided by the output; in units of `out`.
        reduction: "mean" and "sum" are over all outputs, "none" has their shape.

    Raises:
        InputError: the shapes differ, a label is neither 0 nor 1, or an output is not finite.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(out, lambda o: formulas.binary(o, target), reduction, epsilon)


def outcome(
    out: Tensor,
    R: Tensor | float,
    rho: Tensor | float | None = None,
    *,
    epsilon: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Reward outcomes that a larger output brings about: r_c = sign(o_c) rho_c R_c.

    Weber et al., eq. 12 (without `rho`) and eq. 13.

    Args:
        out: outputs of any shape.
        R: what each outcome is worth; as many dimensions as `out`, each equal or 1, or a number.
        rho: how far each outcome is from converged, in 0..1, shaped as `R` may be.
        epsilon: added to |output| where the reward is divided by the output; in units of `out`.
        reduction: "mean" and "sum" are over all outputs, "none" has their shape.

    Raises:
        InputError: shapes or numbers are not as above.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(out, lambda o: formulas.outcome(o, R, rho), reduction, epsilon)


def raise_outputs(
    out: Tensor,
    direction: Tensor | float,
    cap_at_zero: bool = False,
    *,
    epsilon: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Raise outputs where direction > 0, lower them where < 0: r_c = sign(o_c) direction_c.

    Without a cap it never converges. With `cap_at_zero` no reward is positive: only outputs whose
    sign is not yet the direction's are moved, so training ends when all signs are right.
    Weber et al., eq. 12 and footnote 5.

    Args:
        out: outputs of any shape.
        direction: how strongly to raise each output; shaped as `R` in `outcome` may be.
        cap_at_zero: replace positive rewards by 0.
        epsilon: added to |output| where the reward is divided by the output; in units of `out`.
        reduction: "mean" and "sum" are over all outputs, "none" has their shape.

    Raises:
        InputError: shapes or numbers are not as above.
        CreditError: the forward pass ran outside a credit context.
    """
    return objective(
        out, lambda o: formulas.raise_outputs(o, direction, cap_at_zero), reduction, epsilon
    )
