"""What an optimizer remembers of rows, when other rows take their place."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from attrain.targeted.layers import Layer


def take_over(optimizers: Iterable[Optimizer], layer: Layer, rows: Tensor) -> None:
    """Gather the state of a layer's parameters for new rows [k].

    Rows that stay keep theirs, rows that enter start at zero. What is not one entry per row, such
    as a count of steps, stays as it is. The layer still has its old rows.
    """
    old = layer.rows
    entering = None
    if layer.mask is not None:
        entering = layer.mask.new_zeros(layer.units)
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


def _by_row(state: Any, count: int) -> list[tuple[str, Tensor]]:
    """Return the entries of a parameter's state that have one value or more for each row."""
    return [
        (key, value)
        for key, value in (state or {}).items()
        if isinstance(value, Tensor) and value.ndim and len(value) == count
    ]


def held(optimizers: Iterable[Optimizer]) -> int:
    """Return how many bytes the state of optimizers takes."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
