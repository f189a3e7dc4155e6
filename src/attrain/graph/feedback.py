"""The reward graph: what an LFP step has already computed, read from the parameters' feedback."""

from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import as_in_evaluation, as_tuple, check_inputs, check_model
from attrain.attribution.lrp import frozen
from attrain.credit import LFP
from attrain.errors import InputError
from attrain.graph.build import graph_of, prepare
from attrain.graph.graph import AttributionGraph
from attrain.graph.layer import connected
from attrain.graph.plan import Nodes, Plan
from attrain.graph.steps import Layer
from attrain.graph.totals import Totals
from attrain.rules.call import Scale, magnitude, mean_magnitude


def of_feedback(
    model: nn.Module, credit: LFP, x: Tensor, additional_forward_args: Any = None
) -> AttributionGraph:
    """Return the reward graph of the feedback that the parameters hold; see `from_feedback`."""
    check_model(model)
    check_inputs(x, model, 1)
    with as_in_evaluation(model, x), frozen(model):
        x = x.detach()
        plan = prepare(model, x, as_tuple(additional_forward_args), "lrp", {}).plan
    totals = Totals(plan.nodes, 1, x.device)
    totals.begin(torch.zeros(1, dtype=torch.long, device=x.device))
    layers = {step.index: step for _, due in plan.calls for step in due if isinstance(step, Layer)}
    scale = credit._settings.scale
    for index, nodes in reversed([*enumerate(plan.nodes)]):
        if nodes.sources:
            _add(model, plan, totals, index, layers.get(index), scale)
    return graph_of(plan, totals, 0, 1, method="feedback", target="reward")


def _add(
    model: nn.Module, plan: Plan, totals: Totals, index: int, step: Layer | None, scale: Scale
) -> None:
    """Add a layer's messages, which are sign(w) times its feedback (equation 4)."""
    nodes = plan.nodes[index]
    if step is None:
        raise InputError(
            f"{nodes.name!r} is a {nodes.kind} of units, and how much of its reward went to each "
            "does not stand in the parameters' feedback: use AttributionGraph.from_batch."
        )
    module = _owner(model, nodes)
    weight = _feedback(nodes, "weight", module.weight, scale)
    found = connected(step.kind, weight, {"groups": step.groups})
    totals.layer(index, 0, step.columns, found)
    span = torch.arange(nodes.start, nodes.start + nodes.count, device=found.device)
    reward = found.double().sum(1)
    if getattr(module, "bias", None) is not None:
        of_bias = _feedback(nodes, "bias", module.bias, scale).double()
        totals.sinks["bias"][0, span] += of_bias
        reward = reward + of_bias
    if index == len(plan.nodes) - 1:
        totals.relevance[0, span] += reward


def _owner(model: nn.Module, nodes: Nodes) -> Any:
    """Return the module whose weight a layer has; a weight of several calls has one feedback."""
    known = dict(model.named_modules())
    module = known.get(nodes.name)
    again = any(name == nodes.name.split("@")[0] for name in known) and "@" in nodes.name
    if again or not isinstance(getattr(module, "weight", None), nn.Parameter):
        why = "runs more than once" if again else "has no weight of its own"
        raise InputError(
            f"layer {nodes.name!r} {why}, so that its messages do not stand in the feedback of a "
            "parameter: use AttributionGraph.from_batch."
        )
    return module


def _feedback(nodes: Nodes, kind: str, parameter: Tensor, scale: Scale) -> Tensor:
    """Return the messages through a parameter: w times the gradient under the rules, negated."""
    if parameter.grad is None:
        raise InputError(
            f"the {kind} of layer {nodes.name!r} has no .grad: call loss.backward() under the "
            "credit context first, and zero_grad() after this."
        )
    size = magnitude(parameter.detach(), scale.beta)
    share = torch.where(size == 0, 0.0, parameter.detach() / size)
    if scale.relative:
        share = share * mean_magnitude(parameter, scale)
    return -parameter.grad * share
