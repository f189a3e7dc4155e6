"""A layer in the middle of a model: found by name, its output captured, or put in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from attrain.errors import InputError

_SHOWN = 8


def find(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of a layer of `model`.

    Raises InputError for a name that is not there, with the nearest that is, and for a module
    that is no part of the model.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    names.pop("", None)
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is layer:
                return name, module
        raise InputError(
            f"layer={type(layer).__name__} is no part of the model: give a module of this very "
            "object, or its name."
        )
    if not isinstance(layer, str):
        raise InputError(
            f"layer is a name of model.named_modules() or a module, got {type(layer).__name__}."
        )
    if layer in names:
        return layer, names[layer]
    near = get_close_matches(layer, names, n=1, cutoff=0.0)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise InputError(
        f"the model has no layer {layer!r}.{hint} "
        f"Layers: {', '.join([*names][:_SHOWN]) or 'none'}{more}."
    )


def embedding_of(model: nn.Module) -> str | None:
    """Return the name of the first layer that looks up vectors of tokens, None without one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            return str(name)
    return None


def first(out: Any) -> Tensor:
    """Return the output of a layer, of several the first; raises InputError for no tensor."""
    found = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise InputError(
            f"a layer that returns {type(found).__name__} has no units to attribute to: take one "
            "that returns a tensor of floating point numbers."
        )
    return found


@contextmanager
def replacing(name: str, module: nn.Module, put: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Hand on put(output) in place of a layer's output inside; the hook is gone afterwards.

    Raises InputError, at the end, for a layer that did not run exactly once.
    """
    runs = 0

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        nonlocal runs
        runs += 1
        z = first(out)
        if runs > 1:
            return None
        new = put(z)
        return new if out is z else type(out)((new, *out[1:]))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if runs != 1:
        told = "does not run" if runs == 0 else f"runs {runs} times"
        raise InputError(
            f"layer {name!r} {told} in a forward pass, and its output is no single one: take a "
            "layer that runs once."
        )


class Until(nn.Module):
    """A model that returns the output of one of its layers, whose units are to be explained.

    place: as `find` returns it. Everything above the layer still runs, without a say.
    """

    def __init__(self, model: nn.Module, place: tuple[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no second name of a part of the model.
        self.place = place

    def forward(self, *args: Any) -> Tensor:
        """Return the layer's output [N, ...], of several the first."""
        found: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            found.append(z)
            return z.clone()  # which what follows may overwrite

        with replacing(*self.place, keep):
            self.model(*args)
        return found[0]


@contextmanager
def in_order(lower: tuple[str, nn.Module], upper: tuple[str, nn.Module]) -> Iterator[None]:
    """Raise InputError, at the end, where `lower` has run only after `upper` had inside."""
    ended: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ended.append(name))
        for name, module in (lower, upper)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if ended and ended[0] != lower[0]:
        raise InputError(
            f"layer {lower[0]!r} comes after {upper[0]!r}, a unit of which is explained, and has "
            "no part in it: take a layer below."
        )


def captured(
    model: nn.Module, name: str, module: nn.Module, x: Tensor, args: tuple[Any, ...]
) -> Tensor:
    """Return the output of a layer [N, ...] for inputs x; no gradient is kept.

    Raises InputError where its first axis does not count the samples.
    """
    found: list[Tensor] = []

    def keep(z: Tensor) -> Tensor:
        found.append(z.detach().clone())
        return z

    with torch.no_grad(), replacing(name, module, keep):
        model(x, *args)
    if found[0].ndim == 0 or len(found[0]) != len(x):
        raise InputError(
            f"layer {name!r} returns the shape {tuple(found[0].shape)} for {len(x)} samples: its "
            "first axis must count them."
        )
    return found[0]
