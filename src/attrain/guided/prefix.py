"""What a model computes alike in evaluation and in training, computed once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

ALIKE = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear pad "
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid softplus hardswish hardtanh "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d layer_norm group_norm "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d flatten unflatten view reshape "
    "permute transpose squeeze unsqueeze contiguous cat add sub mul div mean sum".split()
)
"""Functions, by name, that draw no random numbers and have no state."""
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_WATCHES = ("register_hook", "retain_grad")

Key = tuple[Any, ...]


class Prefix:
    """The calls of a pass in evaluation, up to where training differs, kept for training.

    A network computes the same in both until its first dropout or BatchNorm. `recording()` keeps
    what its functions return for `x`, inputs with a gradient; in `replaying()` a function that is
    called again with the very same arguments returns that, with its graph, and is not run. Whatever
    follows a call that is another has other arguments, so it is run anew.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        self.kept: dict[Key, _Kept] = {}
        self.saved: list[int] = []

    @property
    def is_worth_it(self) -> bool:
        """Whether what was not run again outweighs the gradient of the inputs in training.

        That gradient costs what the first layer does, or twice as much where channels are few.
        """
        return len(self.saved) > 1 and sum(self.saved) > 3 * self.saved[0]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the results of the calls inside."""
        with _Recording(self.kept):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Return what was kept to the same calls inside; forget it afterwards."""
        try:
            with _Replaying(self.kept, self.saved):
                yield
        finally:
            self.kept.clear()


def can_share(model: nn.Module) -> bool:
    """Tell whether both passes through `model` may have parts of one graph.

    Not with sharded parameters, which are gathered for each pass, nor once torch.compile has
    compiled anything in this process: it would compile what sees the calls along with them.
    """
    compiler = sys.modules.get("torch._dynamo.utils")
    compiled = compiler is not None and compiler.counters["frames"]["total"] > 0
    return not compiled and not any(isinstance(each, DTensor) for each in model.parameters())


@dataclass(frozen=True)
class _Kept:
    """A result, its version, the arguments, which keep their identities, and multiplications."""

    out: Tensor
    version: int
    args: Any
    work: int


class _Recording(TorchFunctionMode):
    def __init__(self, kept: dict[Key, _Kept]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call and keep its result."""
        name = getattr(func, "__name__", "")
        if name in _WATCHES:
            # A hook on a tensor that both passes share would run twice.
            for shared in [each for each, kept in self.kept.items() if kept.out is args[0]]:
                del self.kept[shared]
        key = _key(func, args, kwargs) if name in ALIKE else None
        out = func(*args, **(kwargs or {}))
        if key is not None and isinstance(out, Tensor) and key == _key(func, args, kwargs):
            self.kept[key] = _Kept(out, out._version, (args, kwargs), _work(name, out, args))
        return out


class _Replaying(TorchFunctionMode):
    def __init__(self, kept: dict[Key, _Kept], saved: list[int]) -> None:
        super().__init__()
        self.kept, self.saved = kept, saved

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what is kept of a call, or run it."""
        if getattr(func, "__name__", "") in ALIKE:
            key = _key(func, args, kwargs)
            kept = None if key is None else self.kept.get(key)
            if kept is not None and kept.out._version == kept.version:
                if kept.work:
                    self.saved.append(kept.work)
                return kept.out
        return func(*args, **(kwargs or {}))


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Key | None:
    """Return what tells one call from another; None where that is not possible.

    In a checkpoint it is not: what goes through hooks on saved tensors serves its own pass alone.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    parts = _parts((args, sorted((kwargs or {}).items())))
    return None if parts is None else (func, _modes(args), parts)


def _parts(value: Any) -> Any:
    """Return tensors by identity and version, plain values as they are; None for others."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else ("tensor", id(value), value._version)
    if isinstance(value, (tuple, list)):
        parts = tuple(map(_parts, value))
        return None if any(part is None for part in parts) else parts
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value), value
    return None


def _modes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a result depends on besides the arguments: gradients, mixed precision."""
    device = args[0].device.type if args and isinstance(args[0], Tensor) else "cpu"
    casts = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return torch.is_grad_enabled(), casts


def _work(name: str, out: Tensor, args: tuple[Any, ...]) -> int:
    """Return the multiplications of a linear or convolution layer, else 0."""
    if name not in _LAYERS or len(args) < 2 or not isinstance(args[1], Tensor):
        return 0
    return out.numel() * args[1][0].numel()
