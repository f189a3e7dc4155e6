"""Layer-wise relevance propagation by the rules of credit: relevance = value times credit.

Bach et al. 2015; the rules are those of `attrain.rules`, the engine that of `attrain.LFP`. With
the reward r_c = o_c of the explained output alone, what LFP hands back to a value a is its
relevance per unit of a.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from attrain import marks
from attrain.attribution import layers
from attrain.attribution.targets import Target, scores, select
from attrain.credit import LFP
from attrain.errors import InputError
from attrain.rules.call import stabilise
from attrain.rules.decomposition import stabilised

# Nodes of autograd that move values and leave them as they are.
_MOVES = (
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "PermuteBackward0",
    "TransposeBackward0",
    "TBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "CloneBackward0",
)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep parameters from requiring grad inside, so that no feedback is computed for them.

    Those behind a parametrisation stay as they are: a weight that is computed from frozen ones
    could not be traced to its layer, nor to its rule.
    """
    kept = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ParametrizationList)
        for parameter in module.parameters()
    }
    learning = [each for each in model.parameters() if each.requires_grad and id(each) not in kept]
    try:
        for each in learning:
            each.requires_grad_(False)
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)


def relevance(
    model: nn.Module,
    credit: LFP,
    x: Tensor,
    target: Callable[[Tensor], Target],
    layer: tuple[str, nn.Module] | None = None,
    args: tuple[Any, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return the relevance of x [N, ...], or of a layer's output, and the explained output [N].

    credit: a context of the model, made inside `frozen(model)`, where this runs as well. The
    relevance of a layer's output z_j is the whole r_j that reaches the neuron. target: from what
    the model returned to the target.

    Raises InputError where no gradient leads from the output to x, CreditError for functions
    without a rule.
    """
    leaf = x.detach()
    with torch.enable_grad(), credit:
        if layer is None:
            leaf = leaf.requires_grad_()
            out = scores(model(leaf.clone(), *args))  # which the model may overwrite
        else:
            leaves: list[Tensor] = []

            def cut(z: Tensor) -> Tensor:
                leaves.append(z.detach().requires_grad_())
                return leaves[0].clone()

            with layers.replacing(*layer, cut):
                out = scores(model(x, *args))
            leaf = leaves[0]
    if not out.requires_grad:
        where = "the inputs" if layer is None else f"layer {layer[0]!r}"
        raise InputError(
            f"no credit leads from the model's output to {where}: it is detached, made of "
            "comparisons or integers, or does not depend on them."
        )
    mark = marks.get(out)
    with torch.enable_grad():
        explained = select(out, target(out))
    o = explained.detach()
    reward = torch.ones_like(o)
    if mark is not None and mark.epsilon:
        reward = stabilise(reward, o, mark.epsilon)
    epsilon = _unbound(explained, leaf)
    (of_leaf,) = torch.autograd.grad(explained, leaf, reward, allow_unused=True)
    value = leaf.detach()
    if of_leaf is None:
        return torch.zeros_like(value), o
    return of_leaf.mul_(stabilised(value, epsilon)), o


def _unbound(out: Tensor, leaf: Tensor) -> float:
    """Return the epsilon with which every consumer of `leaf` divided its reward by its value.

    Rules of first layers (flat, box) give inputs of 0 a reward, too, so that r = c (a + sign(a)
    epsilon) where all else has r = c a. 0 where a consumer has another rule.
    """
    if out.grad_fn is None:
        return 0.0
    above: dict[Any, list[Any]] = {}
    waiting, seen = [out.grad_fn], {out.grad_fn}
    while waiting:
        node = waiting.pop()
        for below, _ in node.next_functions:
            if below is None:
                continue
            above.setdefault(below, []).append(node)
            if below not in seen:
                seen.add(below)
                waiting.append(below)
    found: set[float] = set()
    edge: Any = torch.autograd.graph.get_gradient_edge(leaf).node
    consumers = [edge]
    while consumers:
        for node in above.get(consumers.pop(), ()):
            how = getattr(node, "how", None)
            if node.name() in _MOVES:
                consumers.append(node)
            else:
                found.add(0.0 if how is None or how.rule.vanishing else how.epsilon)
    return found.pop() if len(found) == 1 else 0.0
