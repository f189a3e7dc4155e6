"""Objectives made from a score per sample."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from attrain.errors import AttrainError, InputError, unknown
from attrain.rewards import checks
from attrain.rewards.formulas import Reward, judge
from attrain.rewards.objective import Reduction, objective


class MetricState(TypedDict):
    """What a `Metric` remembers between batches: its running mean score, None before the first."""

    baseline: float | None


class Metric:
    """An objective made from a score per sample; `metric` builds it and says how."""

    def __init__(
        self,
        fn: Callable[..., Any],
        spread: Literal["predicted"] | Callable[[Tensor], Tensor],
        baseline: float | None,
        epsilon: float,
        reduction: Reduction,
    ) -> None:
        """Take what `metric` takes."""
        if not callable(spread) and spread != "predicted":
            raise unknown("spread", str(spread), ("predicted",))
        if baseline is not None and not 0 <= baseline < 1:
            raise InputError(
                f"baseline={baseline} is the momentum of a running mean: it must be at least 0 "
                "and below 1, or None for no baseline."
            )
        self._fn = fn
        self._spread = spread
        self._momentum = baseline
        self._epsilon = epsilon
        self._reduction = reduction
        self._mean: Tensor | None = None

    def __call__(self, out: Tensor, *args: Any) -> Tensor:
        """Return the objective for `out` [N, ...], whose scores [N] are `fn(out.detach(), *args)`.

        Raises:
            InputError: `fn` raised, scores or mask have the wrong shape, a score is no finite
                number, or `out` has no predicted class.
            CreditError: the forward pass ran outside a credit context.
        """
        learning = torch.is_grad_enabled()

        def reward(o: Tensor) -> Reward:
            score = self._score(out, o, args)
            chosen = self._chosen(out, o)
            advantage = score - self._baseline(score, learning)
            r = judge(o, advantage.reshape(-1, *[1] * (o.dim() - 1)) * chosen)
            return Reward(o, float(o.shape[0]), tuple(range(1, o.dim())), r)

        return objective(out, reward, self._reduction, self._epsilon)

    def state_dict(self) -> MetricState:
        """Return the running mean score, for a checkpoint."""
        return {"baseline": None if self._mean is None else float(self._mean)}

    def load_state_dict(self, state: MetricState) -> None:
        """Take the running mean score from a checkpoint.

        Raises:
            InputError: `state` did not come from `state_dict`.
        """
        if set(state) != {"baseline"}:
            raise InputError(
                f"the state of a metric holds one entry, 'baseline', but these came: "
                f"{', '.join(sorted(state)) or 'none'}."
            )
        mean = state["baseline"]
        if mean is not None and not math.isfinite(mean):
            raise InputError(f"the baseline in this state is {mean}: it must be a finite number.")
        self._mean = None if mean is None else torch.tensor(mean, dtype=torch.float64)

    def _score(self, out: Tensor, o: Tensor, args: tuple[Any, ...]) -> Tensor:
        name = getattr(self._fn, "__qualname__", type(self._fn).__name__)
        wanted = f"one score per sample was wanted, {o.shape[0]} numbers"
        try:
            given = self._fn(out.detach(), *args)
        except AttrainError:
            raise
        except Exception as error:
            raise InputError(
                f"the metric {name} raised {type(error).__name__} for outputs of shape "
                f"{tuple(o.shape)}: {str(error) or 'it gave no reason'}. It is called as "
                "fn(outputs, ...) with what the objective is called with."
            ) from error
        try:
            score = torch.as_tensor(given).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the metric {name} returned {_shown(given)}, which is no row of numbers: {wanted}."
            ) from error
        if score.is_complex():
            raise InputError(f"the metric {name} returned complex numbers: {wanted}.")
        if score.shape != o.shape[:1]:
            whole = score.dim() == 0
            raise InputError(
                f"the metric {name} returned "
                + ("a single number" if whole else f"scores of shape {tuple(score.shape)}")
                + f" for outputs of shape {tuple(o.shape)}: {wanted}, shape {tuple(o.shape[:1])}."
                + (" Give each sample what it adds to the score of the batch." if whole else "")
            )
        if checks.visible(score):
            checks.refuse(
                score, ~torch.isfinite(score), f"score of the metric {name}", "not finite"
            )
        return score.to(o)

    def _chosen(self, out: Tensor, o: Tensor) -> Tensor:
        if callable(self._spread):
            mask = self._spread(out.detach())
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != o.shape:
                came = (
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                    if isinstance(mask, Tensor)
                    else type(mask).__name__
                )
                raise InputError(
                    f"spread must return a boolean mask in the shape of the outputs, "
                    f"{tuple(o.shape)}, but {came} came."
                )
            return mask
        if o.dim() < 2 or o.shape[1] < 2:
            raise InputError(
                f"outputs of shape {tuple(o.shape)} have no predicted class (classes stand in "
                "dimension 1): pass metric(..., spread=function) that returns the mask of the "
                "outputs to reward."
            )
        return torch.zeros_like(o, dtype=torch.bool).scatter_(1, o.argmax(1, keepdim=True), True)

    def _baseline(self, score: Tensor, learning: bool) -> Tensor | float:
        if self._momentum is None:
            return 0.0
        mean = score.mean()
        before = mean if self._mean is None else self._mean.to(score)
        if learning:
            # The device keeps the mean: reading it here would make the host wait.
            self._mean = before.lerp(mean, 1 - self._momentum)
        return before


def _shown(given: Any) -> str:
    """Return what came, short enough for a sentence."""
    text = repr(given)
    return f"a {type(given).__name__}, {text if len(text) <= 40 else text[:37] + '...'}"


def metric(
    fn: Callable[..., Any],
    *,
    spread: Literal["predicted"] | Callable[[Tensor], Tensor] = "predicted",
    baseline: float | None = 0.9,
    epsilon: float = 0.1,
    reduction: Reduction = "mean",
) -> Metric:
    """Make an objective of any score per sample, differentiable or not: F1, a person's thumbs.

    `objective(out, *args)` calls `fn(out.detach(), *args)`, which returns one score per sample
    [N], more being better. The score minus its running mean goes to the outputs that made the
    outcome, as r = sign(o) (score - mean); all others get 0. By default those are the predicted
    class, that is the largest output of dimension 1, at every position of a dense output. So an
    outcome that did better than usual becomes likelier and one that did worse less likely. The
    mean is the one before this batch (the first batch sets it), it moves only where gradients are
    enabled, every process of a distributed run keeps its own, and `objective.state_dict()` and
    `load_state_dict()` carry it through a checkpoint. Weber et al., section 3.2 and eq. 12.

    Args:
        fn: the score; tensors, arrays and lists of N finite numbers are all welcome.
        spread: "predicted", or a function from detached outputs to a boolean mask of their shape.
        baseline: momentum of the running mean, in 0..1 (1 excluded); None subtracts nothing.
        epsilon: added to |output| where the reward is divided by the output; in units of `out`.
        reduction: "mean" and "sum" are over samples, "none" returns minus the reward of each.

    Raises:
        InputError: an option is not as above.
    """
    return Metric(fn, spread, baseline, epsilon, reduction)
