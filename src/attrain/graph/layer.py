"""The messages of one linear or convolution layer: what each input hands to each output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from attrain.rules.decomposition import Decomposition, LinearMap, Signed, decompose

_CONVOLUTIONS: dict[Any, tuple[int, Callable[..., Tensor]]] = {
    torch.conv1d: (1, grad.conv1d_weight),
    torch.conv2d: (2, grad.conv2d_weight),
    torch.conv3d: (3, grad.conv3d_weight),
}
_TRANSPOSED: dict[Any, tuple[int, Callable[..., Tensor]]] = {
    torch.conv_transpose1d: (1, grad.conv1d_weight),
    torch.conv_transpose2d: (2, grad.conv2d_weight),
    torch.conv_transpose3d: (3, grad.conv3d_weight),
}
_ADDED = (torch.addmm, torch.Tensor.addmm)
_PRODUCTS = (
    *_ADDED,
    torch.matmul,
    torch.Tensor.matmul,
    torch.mm,
    torch.Tensor.mm,
    torch.Tensor.__matmul__,
)


class Taken(NamedTuple):
    """What a call of a layer took: inputs a, weight w and bias b, and all of it as named."""

    a: Tensor
    w: Tensor
    b: Tensor | None
    named: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: the axes of units, and how its weight's gradient is made.

    axis_in, axis_out: of the inputs and outputs, counted from the end where negative.
    """

    name: str
    func: Any
    axes: int = 0
    of_weight: Callable[..., Tensor] | None = None
    transposed: bool = False

    @property
    def convolution(self) -> bool:
        """Whether units are channels, each with many places."""
        return self.of_weight is not None

    @property
    def takes(self) -> tuple[int | str, ...]:
        """The places that the inputs may have among the arguments."""
        return (1, "mat1") if self.func in _ADDED else (0, "input")

    def axis(self, ndim: int) -> int:
        """Return the axis of the units in a tensor of so many axes."""
        return ndim - 1 - self.axes

    @property
    def by_columns(self) -> bool:
        """Whether the weight is [in, out] rather than [out, in]."""
        return self.func in _PRODUCTS

    def place_of_input(self, args: Sequence[Any]) -> int | str:
        """Return where the inputs stand among the arguments of a call."""
        place, name = self.takes
        assert isinstance(place, int)
        return place if len(args) > place else name

    def weight(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the weight of a call, as it stands there."""
        place = 2 if self.func in _ADDED else 1
        return args[place] if len(args) > place else kwargs.get("weight")

    def taken(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Taken:
        """Return what a call took."""
        if self.func in _ADDED:
            b, a, w = (each.detach() for each in args)
            return Taken(a, w, b, {})
        if self.func in _PRODUCTS:
            return Taken(args[0].detach(), args[1].detach(), None, {})
        names = ["input", "weight", "bias"]
        if self.convolution:
            names += ["stride", "padding"]
            names += (["output_padding", "groups", "dilation"] if self.transposed
                      else ["dilation", "groups"])  # fmt: skip
        named = dict(zip(names, args, strict=False)) | kwargs
        bias = named.get("bias")
        return Taken(
            named["input"].detach(),
            named["weight"].detach(),
            None if bias is None else bias.detach(),
            {key: named[key] for key in names[3:] if key in named},
        )

    def sizes(self, w: Tensor, named: dict[str, Any]) -> tuple[int, int]:
        """Return how many units a layer of weight w takes and makes."""
        groups = named.get("groups", 1)
        if self.func in _PRODUCTS:
            return w.shape[0], w.shape[1]
        if self.transposed:
            return w.shape[0], w.shape[1] * groups
        return w.shape[1] * groups, w.shape[0]


def kind_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Kind | None:
    """Return the kind of layer that a call is, None where it is another product."""
    if func is F.linear:
        return Kind("linear", func)
    if func in _CONVOLUTIONS:
        axes, made = _CONVOLUTIONS[func]
        return Kind("convolution", func, axes, made)
    if func in _TRANSPOSED:
        axes, made = _TRANSPOSED[func]
        return Kind("convolution", func, axes, made, transposed=True)
    if func in _ADDED:
        plain = len(args) == 3 and not kwargs and args[0].ndim < 2
        return Kind("linear", func) if plain else None
    if func in _PRODUCTS and isinstance(args[1], Tensor) and args[1].ndim == 2:
        return Kind("linear", func)
    return None


def messages(kind: Kind, taken: Taken, s: Tensor) -> Tensor:
    """Return the messages [out, in] of the epsilon rule, w_ji sum of s_j a_i over samples, places.

    s: the credit of the outputs, per unit of z. What is computed is the layer's weight gradient,
    times the weight (Weber et al., arXiv:2308.12053, equations 3 and 7).
    """
    a, w = taken.a, taken.w
    if not kind.convolution:
        rows = s.reshape(-1, s.shape[-1])
        columns = a.reshape(-1, a.shape[-1])
        if kind.func in _PRODUCTS:
            return ((columns.t() @ rows) * w).t()
        return (rows.t() @ columns).mul_(w)
    assert kind.of_weight is not None
    named = dict(taken.named)
    a, named["padding"] = _padded(kind, a, w, named)
    if kind.transposed:
        a, s = s, a
        named.pop("output_padding", None)
    options = {key: named[key] for key in ("stride", "padding", "dilation", "groups")
               if key in named}  # fmt: skip
    if a.ndim == kind.axes + 1:
        a, s = a[None], s[None]
    gradient = kind.of_weight(a, w.shape, s, **options)
    return connected(kind, gradient.mul_(w), taken.named)


def _padded(kind: Kind, a: Tensor, w: Tensor, named: dict[str, Any]) -> tuple[Tensor, Any]:
    """Return inputs and padding without "same" and "valid"."""
    padding = named.get("padding", 0)
    if not isinstance(padding, str):
        return a, padding
    if padding == "valid":
        return a, 0
    dilation = named.get("dilation", 1)
    dilations = [dilation] * kind.axes if isinstance(dilation, int) else list(dilation)
    sides: list[int] = []
    for size, step in zip(reversed(w.shape[2:]), reversed(dilations), strict=True):
        total = step * (size - 1)
        sides += [total // 2, total - total // 2]
    return F.pad(a, sides), 0


def connected(kind: Kind, of_weight: Tensor, named: dict[str, Any]) -> Tensor:
    """Return messages of weights as [out, in], summed over the kernel; 0 between groups."""
    if not kind.convolution:
        return of_weight.t() if kind.func in _PRODUCTS else of_weight
    summed = of_weight.flatten(2).sum(2)
    groups = named.get("groups", 1)
    blocks = summed.chunk(groups)
    whole: Tensor = torch.block_diag(  # type: ignore[no-untyped-call]
        *[each.t() if kind.transposed else each for each in blocks]
    )
    return whole


def messages_of(
    rule: Decomposition, epsilon: float, kind: Kind, taken: Taken, r: Tensor, z: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the messages [out, in] of any rule for the rewards r of the outputs z, and the bias's.

    The bias's are [out], None without a bias.
    """
    options = taken.named

    def apply(x: Tensor, y: Tensor) -> Tensor:
        if kind.func in _PRODUCTS:
            return torch.matmul(x, y)
        out: Tensor = kind.func(x, y, None, **options)
        return out

    found = decompose(
        rule,
        LinearMap(
            apply,
            Signed(taken.a),
            Signed(taken.w),
            None if taken.b is None else taken.b.reshape(-1, *[1] * kind.axes),
            z,
        ),
        r,
        epsilon,
        inputs=False,
    )
    assert found.weights is not None
    of_bias = None if found.bias is None else found.bias.reshape(-1)
    return connected(kind, found.weights, options), of_bias
