"""What an optimizer remembers of rows, when other rows take their place."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from attrain.errors import InputError
from attrain.targeted.layers import Layer

_EXPECTING: WeakKeyDictionary[Layer, set[int]] = WeakKeyDictionary()
"""Layers until the next step of their Targeted, and the optimizers that made one in between."""


def take_over(optimizers: Sequence[Optimizer], layer: Layer, rows: Tensor) -> None:
    """Gather the state of a layer's parameters for new rows [k].

    Rows that stay keep theirs, rows that enter start at zero. What is not one entry per row, such
    as a count of steps, stays as it is. The layer still has its old rows.
    """
    old = layer.rows
    entering = None
    if layer.mask is not None:
        entering = torch.zeros_like(layer.mask)
        entering[rows] = True
        entering &= ~layer.mask
    count = layer.units if old is None else len(old)
    for optimizer in optimizers:
        for part, _ in layer.parts():
            state: Any = optimizer.state.get(part)
            for key, value in _by_row(state, count):
                whole = value
                if old is not None:
                    whole = value.new_zeros(layer.units, *value.shape[1:])
                    whole[old] = value
                state[key] = whole.index_select(0, rows)
        if layer.norm is not None and entering is not None:
            for parameter in layer.norm.parameters:
                for _, value in _by_row(optimizer.state.get(parameter), layer.units):
                    value[entering] = 0
    since = torch.zeros(layer.units, dtype=torch.int64, device=rows.device)
    if old is not None and entering is not None and layer.since is not None:
        since[old] = layer.since
        since[entering] = _steps(optimizers, layer.of_weight)
    layer.since = since.index_select(0, rows)
    layer.late = bool(layer.since.any())
    layer.counted = {
        id(each): _steps(optimizers, each)
        for each in (*(part for part, _ in layer.parts()), *_of_norm(layer))
    }


def _of_norm(layer: Layer) -> list[torch.nn.Parameter]:
    return [] if layer.norm is None else layer.norm.parameters


def _by_row(state: Any, count: int) -> list[tuple[str, Tensor]]:
    """Return the entries of a parameter's state that have one value or more for each row."""
    return [
        (key, value)
        for key, value in (state or {}).items()
        if isinstance(value, Tensor) and value.ndim and len(value) == count
    ]


def _steps(optimizers: Iterable[Optimizer], parameter: Tensor) -> int:
    """Return how many steps of Adam a parameter has made, 0 with other optimizers."""
    for optimizer in optimizers:
        if isinstance(optimizer, Adam) and parameter in optimizer.state:
            return int(optimizer.state[parameter]["step"])
    return 0


def correct_bias(optimizers: Iterable[Optimizer], layer: Layer) -> None:
    """Give rows that entered late the bias correction of their own age, after a step of Adam.

    Adam divides moments by 1 - beta^t, t being the steps of the whole parameter. A row that began
    with moments of zero a steps ago needs 1 - beta^a (Kingma and Ba 2015, section 3), without which
    its first steps are up to 7 times too long. To be called before the step is taken over.
    """
    if layer.late and layer.since is not None and _renewed(optimizers, layer):
        layer.since.zero_()
        layer.late = False
    since = layer.since
    if not layer.late or since is None or layer.rows is None:
        return
    late = since.nonzero()[:, 0]
    units = layer.rows[late]
    pairs = [(part, late, whole.detach()[units]) for part, whole in layer.parts()]
    if layer.norm is not None:
        pairs += [
            (parameter, units, kept[units])
            for parameter, kept in zip(layer.norm.parameters, layer.norm.kept, strict=True)
        ]
    for optimizer in optimizers:
        if isinstance(optimizer, Adam):
            for parameter, places, before in pairs:
                if parameter in optimizer.state and _moved(optimizer, layer, parameter):
                    group = next(
                        each
                        for each in optimizer.param_groups
                        if any(parameter is other for other in each["params"])
                    )
                    _correct(optimizer.state[parameter], group, parameter, places, before, since)


def _renewed(optimizers: Iterable[Optimizer], layer: Layer) -> bool:
    """Tell whether Adam began anew since rows entered, so that all of them are as old as it."""
    seen = layer.counted.get(id(layer.of_weight))
    assert layer.since is not None
    least = int(layer.since.max()) if seen is None else seen
    return _steps(optimizers, layer.of_weight) < least


def _moved(optimizer: Adam, layer: Layer, parameter: Tensor) -> bool:
    """Tell whether a parameter has made a step since it was last looked at, and look at it."""
    before = layer.counted.get(id(parameter))
    layer.counted[id(parameter)] = steps = float(optimizer.state[parameter]["step"])
    # After a checkpoint was loaded, nothing was looked at yet.
    return parameter.grad is not None if before is None else steps > before


def _correct(
    state: Any, group: Any, parameter: Tensor, places: Tensor, before: Tensor, since: Tensor
) -> None:
    """Make the step of some rows of a parameter, from `before`, as long as their age wants it."""
    t = float(state["step"])
    a, b = (float(each) for each in group["betas"])
    late = since[since > 0]
    age = (t - late.to(torch.float64)).clamp_min(1).to(before.dtype)
    age = age.view(-1, *[1] * (before.ndim - 1))
    size = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"][places].sqrt()
    made = size / (1 - b**t) ** 0.5 + group["eps"]
    wanted = size / (1 - b**age) ** 0.5 + group["eps"]
    factor = (1 - a**t) / (1 - a**age) * made / wanted
    start = before
    if group.get("decoupled_weight_decay"):
        start = before * (1 - group["lr"] * group["weight_decay"])
    parameter[places] = start + factor * (parameter[places] - start)


def held(optimizers: Iterable[Optimizer]) -> int:
    """Return how many bytes the state of optimizers takes."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def expect(layers: Iterable[Layer]) -> None:
    """Check the steps of optimizers until `Targeted.step` is called: it follows, states fit."""
    _listen()
    _EXPECTING.update({layer: set() for layer in layers})


def expect_no_more(layers: Iterable[Layer]) -> None:
    """Leave the steps of optimizers alone again."""
    if _EXPECTING:
        for layer in layers:
            _EXPECTING.pop(layer, None)


def _holds(optimizer: Optimizer, parameter: Tensor) -> bool:
    return any(parameter is each for group in optimizer.param_groups for each in group["params"])


@cache
def _listen() -> None:
    register_optimizer_step_pre_hook(_check)


def _check(optimizer: Optimizer, *given: Any) -> None:
    """Raise InputError where an optimizer remembers as many rows as learned at another time.

    That is so where one of two states was loaded, and the other, saved with it, was not. Also where
    nobody calls `Targeted.step`.
    """
    for layer, seen in list(_EXPECTING.items()):
        if layer.of_weight.grad is not None and _holds(optimizer, layer.of_weight):
            if id(optimizer) in seen:
                raise InputError(
                    "the optimizer makes its second step, and targeted.step(optimizer) was not "
                    "called after the first: call it after each, or no rows are ever chosen."
                )
            seen.add(id(optimizer))
        other = layer.units if layer.rows is not None else layer.k
        for part, _ in layer.parts():
            known = optimizer.state.get(part)
            if len(part) != other and _by_row(known, other) and not _by_row(known, len(part)):
                raise InputError(
                    f"the optimizer remembers {other} rows of layer {layer.name!r}, of which "
                    f"{len(part)} learn now: load the states of Targeted and its optimizer "
                    "that were saved together, or make a new optimizer."
                )
