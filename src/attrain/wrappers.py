"""Torch's own wrappers of models, which hide tensors from any mode: checkpoints, DDP, FSDP2."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import checkpoint

from attrain import marks
from attrain.errors import CreditError
from attrain.marks import Kind, Mark
from attrain.rules.call import Action, Credit


class Context(Protocol):
    """What a wrapper needs of the context that it runs in."""

    def again(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` under the rules a second time, in the backward pass."""

    def is_parameter(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter of the context's model."""

    def audit_part(self, out: Tensor) -> None:
        """Audit what was computed again."""


def _no_context() -> Context | None:
    return None


_active: Callable[[], Context | None] = _no_context
_modules = 0  # how many were imported when torch was taught last


class _Recomputation:
    """What a reentrant checkpoint runs: natively the first time, under the rules the second.

    The second time it gets detached copies of its inputs, which stand for what the inputs stood
    for, and its results must owe no stabiliser, because their consumers never see them.
    """

    def __init__(
        self, context: Context, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self.context = context
        self.function = function
        self.known: list[tuple[int, Mark, int | None]] = []
        for index, value in enumerate(args):
            mark = self._mark(value)
            if mark is not None:
                root = mark.root(value)
                place = next((i for i, each in enumerate(args) if each is root), None)
                self.known.append((index, mark, None if place == index else place))

    def _mark(self, value: Any) -> Mark | None:
        if not isinstance(value, Tensor):
            return None
        if self.context.is_parameter(value):
            return marks.PARAMETER if value.requires_grad else None
        return marks.get(value)

    def scaled(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """Return which of the tensors among `args` are scaled inside, as weights."""
        weights = {index for index, mark, _ in self.known if mark.kind is Kind.PARAMETER}
        tensors = [index for index, value in enumerate(args) if isinstance(value, Tensor)]
        return tuple(index in weights for index in tensors)

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.function(*args)
        return self.context.again(self._under_rules, *args)

    def _under_rules(self, *args: Any) -> Any:
        for index, mark, root in self.known:
            measured = None if root is None else args[root]
            new = Mark(mark.kind, mark.epsilon, measured, mark.audit, curved=mark.curved)
            marks.put(args[index], new)
        out = self.function(*args)
        return tuple(map(self._settled, out)) if isinstance(out, tuple) else self._settled(out)

    def _settled(self, out: Any) -> Any:
        if not isinstance(out, Tensor) or out.grad_fn is None:
            return out
        self.context.audit_part(out)
        mark = marks.get(out)
        if mark is None:
            return out
        if mark.kind is Kind.PARAMETER:
            raise CreditError(
                "a reentrant checkpoint computes a weight from parameters alone, and the outside "
                "cannot tell it from an activation. Use checkpoint(..., use_reentrant=False)."
            )
        return Credit.apply((Action(epsilon=mark.epsilon),), out) if mark.epsilon else out


_native_checkpoint: Callable[..., Any] = checkpoint.CheckpointFunction.forward
_native_frame: Callable[..., Any] = checkpoint._CheckpointFrame.save_inputs

# Autograd functions by which torch wraps a model: they hand tensors on as they are.
_HANDING_ON = (
    ("torch.nn.parallel.distributed", "_DDPSink"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "RegisterPostBackwardFunction"),
)


def _checkpointed(
    ctx: Any, function: Callable[..., Any], preserve_rng_state: bool, *args: Any
) -> Any:
    context = _active()
    if context is not None:
        function = _Recomputation(context, function, args)
        ctx.scaled = function.scaled(args)
    return _native_checkpoint(ctx, function, preserve_rng_state, *args)


def _framed(frame: Any, *args: Any) -> None:
    """Remember what the inputs of a non-reentrant checkpoint stand for."""
    context = _active()
    if context is not None:
        known = [_known(value) if isinstance(value, Tensor) else None for value in args]
        frame.recompute_fn = partial(context.again, _marked, frame.recompute_fn, known)
    _native_frame(frame, *args)


def _known(tensor: Tensor) -> tuple[Mark, Tensor | None] | None:
    """Return a mark and what it is a function of, kept so that the second time is as the first."""
    mark = marks.get(tensor)
    if mark is None:
        return None
    root = mark.root(tensor)
    return mark, None if root is tensor else root


def _marked(
    function: Callable[..., Any], known: list[tuple[Mark, Tensor | None] | None], *args: Any
) -> Any:
    """Call `function` on inputs that may have lost their marks in another checkpoint."""
    for value, before in zip(args, known, strict=True):
        if before is not None and marks.get(value) is None:
            marks.put(value, before[0])
    return function(*args)


def _keep_marks(handing_on: Any) -> None:
    """Let what an autograd function hands on keep its marks."""
    native = handing_on.apply

    def apply(owner: Any, *tensors: Any) -> Any:
        out = native(owner, *tensors)
        for before, after in zip(tensors, out, strict=True):
            mark = marks.get(before) if isinstance(before, Tensor) else None
            if mark is not None:
                marks.put(after, mark)
        return out

    handing_on.apply = staticmethod(apply)


def teach_torch(active: Callable[[], Context | None]) -> None:
    """Let credit pass where torch's own wrappers of a model hide tensors from any mode.

    Both kinds of activation checkpointing recompute under the context that they first ran in, and
    tensors keep their marks in DistributedDataParallel and FSDP2. `active` returns the context of
    the thread that calls it; where there is none, the wrappers work as ever.
    """
    global _active, _modules
    if _modules == len(sys.modules):
        return  # nothing has been imported since
    _active, _modules = active, len(sys.modules)
    if checkpoint.CheckpointFunction.forward is not _checkpointed:
        places: tuple[tuple[Any, str, Any], ...] = (
            (checkpoint.CheckpointFunction, "forward", staticmethod(_checkpointed)),
            (checkpoint._CheckpointFrame, "save_inputs", _framed),
        )
        for place, name, function in places:
            setattr(place, name, function)
    for module, name in _HANDING_ON:
        handing_on = getattr(sys.modules.get(module), name, None)
        if handing_on is not None and "apply" not in vars(handing_on):
            _keep_marks(handing_on)
