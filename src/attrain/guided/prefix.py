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
_PAST_VERSIONS = frozenset(
    "numpy __array__ __dlpack__ data_ptr storage untyped_storage set_ "
    "register_hook retain_grad grad backward".split()
)
_PROPERTIES: tuple[Any, ...] = tuple(
    getattr(getattr(Tensor, name), way)
    for name, way in (("data", "__get__"), ("data", "__set__"), ("grad_fn", "__get__"))
)
"""These and the names before change a tensor unseen, hang things on its graph, or use it up."""

Key = tuple[Any, ...]


class Prefix:
    """The first calls of a pass in evaluation, up to where training differs, kept for training.

    A network computes the same in both until its first dropout or BatchNorm. `recording()` keeps
    what its functions return for `point`, the inputs with a gradient; in `replaying()`, where the
    model is given `x`, each of the same calls in the same order returns that, with its graph, and
    is not run. From the first call on that is another, everything is run.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.point = x.detach().requires_grad_()
        self.kept: list[_Kept] = []
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
        with _Recording(self):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Return what was kept to the same calls inside; forget it afterwards."""
        try:
            with _Replaying(self):
                yield
        finally:
            self.kept.clear()

    def call_of(self, func: Any, args: Any, kwargs: Any) -> "_Call | None":
        """Return what tells one call from another; None where that is not possible.

        In a checkpoint it is not: what goes through hooks on saved tensors serves its own pass
        alone. Nor without gradients: functions with a way back of their own run like that.
        """
        if getattr(func, "__name__", "") not in ALIKE or not torch.is_grad_enabled():
            return None
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return None
        tensors: list[Tensor] = []
        parts = self._parts((args, sorted((kwargs or {}).items())), tensors)
        return None if parts is None else _Call((func, self._modes(), parts), tensors)

    def _parts(self, value: Any, tensors: list[Tensor]) -> Any:
        """Return tensors by identity and version, plain values as they are; None for others."""
        if isinstance(value, Tensor):
            if value.is_inference():
                return None
            value = self.point if value is self.x else value
            tensors.append(value)
            return "tensor", id(value), value._version, value.requires_grad
        if isinstance(value, (tuple, list)):
            parts = tuple(self._parts(each, tensors) for each in value)
            return None if any(part is None for part in parts) else parts
        if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
            return type(value), value
        return None

    def _modes(self) -> tuple[Any, ...]:
        """Return what a result depends on besides the arguments: mixed precision, and cuDNN."""
        device = self.x.device.type
        casts = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return casts, torch.backends.cudnn.enabled


def can_share(model: nn.Module) -> bool:
    """Tell whether both passes through `model` may have parts of one graph.

    Not with sharded parameters, which are gathered for each pass, nor once torch.compile has
    compiled anything in this process: it would compile what sees the calls along with them.
    """
    compiler = sys.modules.get("torch._dynamo.utils")
    compiled = compiler is not None and compiler.counters["frames"]["total"] > 0
    return not compiled and not any(isinstance(each, DTensor) for each in model.parameters())


@dataclass(frozen=True)
class _Call:
    """A call: its key, and the tensors in it, which by being held keep their identities."""

    key: Key
    tensors: list[Tensor]


@dataclass(frozen=True)
class _Kept:
    """A call, its result, the version of that, and the multiplications it took."""

    call: _Call
    out: Tensor
    version: int
    work: int


class _Recording(TorchFunctionMode):
    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self.prefix, self.ended = prefix, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call and keep its result."""
        if _goes_past(func):
            self.prefix.kept.clear()
            self.ended = True
        call = None if self.ended else self.prefix.call_of(func, args, kwargs)
        out = func(*args, **(kwargs or {}))
        if call is None:
            self.ended = self.ended or _has_gradient(out)
            return out
        after = self.prefix.call_of(func, args, kwargs)
        if isinstance(out, Tensor) and after is not None and after.key == call.key:
            work = _work(func.__name__, out, args)
            self.prefix.kept.append(_Kept(call, out, out._version, work))
        else:
            self.ended = True
        return out


class _Replaying(TorchFunctionMode):
    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self.prefix = prefix
        self.left = prefix.kept[::-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what is kept of a call, or run it."""
        if _goes_past(func):
            self.left.clear()
        call = self.prefix.call_of(func, args, kwargs) if self.left else None
        if call is not None:
            kept = self.left.pop()
            if kept.call.key == call.key and kept.out._version == kept.version:
                if kept.work:
                    self.prefix.saved.append(kept.work)
                return kept.out
            self.left.clear()
        out = func(*args, **(kwargs or {}))
        if self.left and _has_gradient(out):
            self.left.clear()
        return out


def _goes_past(func: Any) -> bool:
    return getattr(func, "__name__", "") in _PAST_VERSIONS or func in _PROPERTIES


def _has_gradient(out: Any) -> bool:
    """Tell whether a call has put something into the graph."""
    if isinstance(out, (tuple, list)):
        return any(map(_has_gradient, out))
    return isinstance(out, Tensor) and out.requires_grad


def _work(name: str, out: Tensor, args: tuple[Any, ...]) -> int:
    """Return the multiplications of a linear or convolution layer, else 0."""
    if name not in _LAYERS or len(args) < 2 or not isinstance(args[1], Tensor):
        return 0
    return out.numel() * args[1][0].numel()
