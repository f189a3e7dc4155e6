"""The function mode by which rows take part in a forward pass, and units are measured in it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrain import marks
from attrain.credit import is_active, natively
from attrain.rules.product import body_of
from attrain.rules.registry import REGISTRY, bookkeeping
from attrain.targeted import checks, rows
from attrain.targeted.layers import Layer, Norm
from attrain.targeted.scores import Function, Units

_OPTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Measuring:
    """Adds up the scores of layers over the calls of a pass.

    found: by layer, scores [units] and from how many calls.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.found: dict[str, tuple[Tensor, int]] = {}

    def add(self, layer: Layer, z: Tensor, s: Tensor) -> None:
        """Add the scores of a layer in one call; one without samples has none."""
        if z.numel() == 0:
            return
        wide = torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else z.dtype
        z, s = (_by_unit(each.detach().to(wide), layer.weight) for each in (z, s))
        scores = self.function(Units(layer.name, layer.weight.detach(), z, s))
        checks.scores(scores, layer.units, layer.name, self.function)
        before, calls = self.found.get(layer.name, (0.0, 0))
        self.found[layer.name] = scores.detach().double() + before, calls + 1


def _by_unit(z: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer of this weight made, as [N, units, places]."""
    if weight.ndim == 2:
        z = z.unsqueeze(0) if z.ndim == 1 else z
        return z.reshape(len(z), -1, len(weight)).transpose(1, 2)
    return (z if z.ndim == weight.ndim else z.unsqueeze(0)).flatten(2)


class _Sight:
    """A look at a layer's units in one call: what they make, and on the way back its slope."""

    def __init__(self, layer: Layer, z: Tensor, measuring: Measuring) -> None:
        self.over = not z.requires_grad
        if self.over:
            return
        value = z.detach().clone()  # what follows may write into it

        def came_back(s: Tensor) -> None:
            if not self.over:
                with torch.no_grad(), natively():
                    measuring.add(layer, value, s)

        z.register_hook(came_back)  # type: ignore[no-untyped-call]


class _Trail(NamedTuple):
    """What a layer's result remembers: whose it is, and how it is looked at."""

    layer: Layer
    sight: _Sight | None


class Watching(TorchFunctionMode):
    """Sees every torch function of a forward pass, and gives layers their rows.

    layers: by the identity of their weights and biases. norms: by that of a BatchNorm's parameters,
    the layer before it, None where there are several; what a pass shows is entered. substitute:
    whether rows learn in this pass, or layers run as they are. truncated: see `rows.Rows`. cut:
    whether the way back starts at the first layers, where nothing before them learns. measuring:
    what units are measured with. last: the weight of the layer that was called last.
    """

    def __init__(
        self,
        layers: dict[int, Layer],
        norms: dict[int, Layer | None],
        *,
        substitute: bool = True,
        truncated: bool = False,
        cut: bool = False,
        measuring: Measuring | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.norms = layers, norms
        self.substitute, self.truncated = substitute, truncated
        self.cut, self.measuring = cut, measuring
        self.last: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is rows.LINEAR or func in rows.CONVOLUTIONS:
            self.last = args[1] if len(args) > 1 else kwargs["weight"]
            layer = self.layers.get(id(self.last))
            if layer is not None:
                return self._run(layer, func, args, kwargs)
        if func is F.batch_norm:
            return self._normalised(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return body_of(func)(*args, **kwargs)
        if self.substitute and REGISTRY.get(func) is not bookkeeping:
            args = [self._learning(each) for each in args]
            kwargs = {name: self._learning(each) for name, each in kwargs.items()}
        return func(*args, **kwargs)

    def _learning(self, value: Any) -> Any:
        """Return a parameter that another function than its layer's takes, with its rows in it."""
        if type(value) in (tuple, list):
            return type(value)(self._learning(each) for each in value)
        layer = self.layers.get(id(value)) if isinstance(value, Tensor) else None
        return value if layer is None else _assembled(layer)[int(value is not layer.weight)]

    def _run(self, layer: Layer, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if self.substitute:
            checks.recomputed(layer.name)
        if not self.substitute:
            out: Tensor = func(*args, **kwargs)
        else:
            given = dict(zip(_OPTIONS, args, strict=False)) | kwargs
            own = given.get("bias") is layer.bias
            other = None if own else self._learning(given.get("bias"))
            if layer.rows is None or is_active():
                weight, bias = _assembled(layer)
                new = {1: weight, 2: bias if own else other}
                out = func(*_replaced(args, kwargs, new, _OPTIONS))
            else:
                out = self._by_rows(layer, func, given, own, other)
        if self.cut and not out.requires_grad:
            out = _start(out)
        self._leave_trail(layer, out)
        return out

    def _by_rows(
        self, layer: Layer, func: Any, given: dict[str, Any], own: bool, other: Tensor | None
    ) -> Tensor:
        """Return what a call gives whose rows learn; with the layer's own bias, or another one."""
        learning = layer.given(self.truncated)
        if not own:
            learning = learning._replace(bias=None, of_bias=None)
        if func is rows.LINEAR:
            out = rows.linear(given["input"], learning)
            return out if other is None else out + other
        out = rows.convolution(func, given["input"], learning, given)
        return out if other is None else out + other.view(-1, *[1] * (layer.weight.ndim - 2))

    def _leave_trail(self, layer: Layer, z: Tensor) -> None:
        sight = None
        if self.measuring is not None:
            with natively():
                sight = _Sight(layer, z, self.measuring)
        z._targeted = _Trail(layer, sight)  # type: ignore[attr-defined]

    def _normalised(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Return what a BatchNorm makes; right behind a layer it is part of the layer's units."""
        x = args[0] if args else kwargs["input"]
        weight, bias = (
            args[place] if len(args) > place else kwargs.get(name)
            for place, name in ((3, "weight"), (4, "bias"))
        )
        trail: _Trail | None = getattr(x, "_targeted", None)
        layer = None
        if trail is not None and x.shape[1] == trail.layer.units and _fits(x, trail.layer):
            layer = trail.layer
        self._meet(layer, weight, bias)
        own = self.norms.get(id(weight if weight is not None else bias))
        if self.substitute and own is not None and own.mask is not None:
            new = {3: _masked(weight, own.mask), 4: _masked(bias, own.mask)}
            names = ("input", "running_mean", "running_var", "weight", "bias")
            args, kwargs = _replaced(args, kwargs, new, names), {
                name: value for name, value in kwargs.items() if name not in names
            }  # fmt: skip
        out: Tensor = func(*args, **kwargs)
        if layer is not None and trail is not None and trail.sight is not None:
            trail.sight.over = True
            self._leave_trail(layer, out)
        return out

    def _meet(self, layer: Layer | None, weight: Any, bias: Any) -> None:
        """Enter whose BatchNorm this is; one that is seen behind several layers is nobody's."""
        first = weight if weight is not None else bias
        if first is None:
            return
        known = self.norms.get(id(first), layer)
        if id(first) not in self.norms:
            self.norms[id(first)] = layer if layer is None or layer.norm is None else None
            if self.norms[id(first)] is not None and layer is not None:
                with natively(), torch.no_grad():
                    layer.norm = Norm(weight, bias)
        elif known is not layer and known is not None:
            self.norms[id(first)] = known.norm = None


def _start(z: Tensor) -> Tensor:
    """Return a first layer's result as one where the way back ends, and that may be overwritten."""
    with natively():
        out = z.detach().requires_grad_().clone()
    marks.put(out, marks.Mark())
    return out


def _fits(x: Tensor, layer: Layer) -> bool:
    return x.ndim == layer.weight.ndim


def _replaced(
    args: Any, kwargs: dict[str, Any], new: dict[int, Any], names: tuple[str, ...]
) -> list[Any]:
    """Return arguments by position, those at the places of `new` replaced."""
    found = list(args)
    for place in range(len(args), len(names)):
        if not any(name in kwargs for name in names[place:]) and not any(
            each >= place for each in new
        ):
            break
        found.append(kwargs.get(names[place], _DEFAULTS.get(names[place])))
    for place, value in new.items():
        found[place] = value
    return found


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _assembled(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias as what learns makes them, for a call that computes by the whole."""
    made = []
    with natively():
        for part, whole in layer.parts():
            value: Tensor = part
            if layer.rows is not None:
                value = whole.detach().index_copy(0, layer.rows, part)
                marks.put(value, marks.PARAMETER)
            value._stands_for = whole  # type: ignore[attr-defined]
            made.append(value)
    return made[0], made[1] if len(made) > 1 else layer.bias


def _masked(parameter: Tensor | None, mask: Tensor) -> Tensor | None:
    """Return a parameter whose values out of `mask` have no gradient."""
    if parameter is None or not parameter.requires_grad:
        return parameter
    with natively():
        value = torch.where(mask, parameter, parameter.detach())
        marks.put(value, marks.PARAMETER)
    return value
