"""The check that an autograd graph was made under the rules of credit."""

from typing import Any

import torch
from torch import Tensor, nn

from attrain.errors import CreditError

# Autograd functions of torch's own wrappers that hand a tensor on as it is.
TRANSPARENT = {"RegisterPostBackwardFunctionBackward", "_DDPSinkBackward"}

BACKWARD_HOOK = "BackwardHookFunctionBackward"
CHECKPOINT = "CheckpointFunctionBackward"
OBJECTIVE = "ObjectiveBackward"

REGISTERED: set[str] = set()
"""Nodes of autograd functions whose users registered their backward as a rule."""


def check(out: Tensor) -> None:
    """Check that every parameter behind `out` is reached through exactly one scaling by |w|.

    Walks the autograd graph once. Raises CreditError for a parameter reached past the rules (a
    forgotten `with`, another thread), for one scaled twice, and for an autograd.Function that no
    rule is known for.
    """
    waiting: list[tuple[Any, bool]] = [(out.grad_fn, False)]
    seen: set[tuple[Any, bool]] = set()
    while waiting:
        node, scaled = waiting.pop()
        if node is None or (node, scaled) in seen:
            continue
        seen.add((node, scaled))
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and not scaled:
            raise _forgotten(f"a parameter of shape {tuple(variable.shape)}")
        scales: tuple[bool, ...] | None = getattr(node, "scaled", None)
        if scales is None and _is_python(node):
            _check_function(node.name())
        for index, (below, _) in enumerate(node.next_functions):
            here = scales is not None and index < len(scales) and scales[index]
            if here and scaled:
                raise CreditError(
                    "a parameter is scaled twice on one path: a tensor computed from parameters "
                    "was used as an activation and as a weight. Use it as one of the two."
                )
            waiting.append((below, scaled or here))


def _is_python(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _forgotten(what: str) -> CreditError:
    return CreditError(
        f"{what} is reached past any credit context: did you forget `with credit:` around the "
        "forward pass, or does part of it run outside, in another thread (nn.DataParallel), or in "
        "a function that hides its parts?"
    )


def hooked() -> str:
    """Return what is told of a module whose full backward hook hides its tensors from credit."""
    return (
        "a module has a full backward hook, through which torch hands its tensors unseen: remove "
        "it, or hook the tensor itself in a forward hook (output.register_hook)."
    )


def _check_function(name: str) -> None:
    if name == "CompiledFunctionBackward":
        raise _forgotten("a compiled graph")
    if name == CHECKPOINT:
        raise CreditError(
            "a reentrant checkpoint computes again what it did outside any credit context. Put "
            "`with credit:` around the checkpoint, not into it, or use "
            "checkpoint(..., use_reentrant=False)."
        )
    if name == BACKWARD_HOOK:
        raise CreditError(hooked())
    if name not in REGISTERED | TRANSPARENT | {OBJECTIVE}:
        raise CreditError(
            f"{name.removesuffix('Backward')} is an autograd.Function that credit has no rule "
            "for. If its backward already hands on credit per unit of activation, "
            "attrain.rules.register(Function, 'native'); if not, write it from torch functions."
        )
