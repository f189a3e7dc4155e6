"""Slow, obvious twin of attribution graphs: rewards handed on neuron by neuron, message by message.

A `Net` is a list of steps, run by torch; `graph_twin` goes through them backwards with loops, in
rewards as `reference.py` does, and writes down which unit handed what to which.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from reference import Array, Decomposed, array, messages, share
from torch import Tensor, nn

SINKS = ("bias", "normalisation", "epsilon", "rule")


class Net(nn.Module):
    """Steps (name, what, of): `what` is a module, "add", "add_", "mul" or "cat"; `of` names values.

    The inputs are called "x"; the last step makes the output.
    """

    def __init__(self, *steps: tuple[str, Any, tuple[str, ...]]) -> None:
        super().__init__()
        self.steps = [(name, None if isinstance(what, nn.Module) else what, of)
                      for name, what, of in steps]  # fmt: skip
        for name, what, _ in steps:
            if isinstance(what, nn.Module):
                self.add_module(name, what)

    def forward(self, x: Tensor) -> Tensor:
        return self.values(x)[self.steps[-1][0]]

    def values(self, x: Tensor, keep: bool = False) -> dict[str, Tensor]:
        """Return what every step made, with `keep` as it was then."""
        made, kept = {"x": x}, {"x": x.clone()}
        for name, what, of in self.steps:
            taken = [made[each] for each in of]
            if what is None:
                out = getattr(self, name)(*taken)
            elif what == "cat":
                out = torch.cat(taken, 1)
            elif what == "mul":
                out = taken[0] * taken[1]
            else:
                out = taken[0].add_(taken[1]) if what == "add_" else taken[0] + taken[1]
            made[name] = out
            if keep:
                kept[name] = out.clone()
        return kept if keep else made


@dataclass
class Twin:
    """The layers of a graph with their units, and sums over samples of what they handed on."""

    layers: list[str] = field(default_factory=list)
    units: dict[str, list[Any]] = field(default_factory=dict)
    relevance: dict[Any, float] = field(default_factory=dict)
    messages: dict[tuple[Any, Any], float] = field(default_factory=dict)
    sinks: dict[tuple[str, Any], float] = field(default_factory=dict)

    def add(self, layer: str, count: int) -> list[Any]:
        """Return the units of a new layer, each (layer, number)."""
        name, k = layer, 1
        while name in self.layers:
            k += 1
            name = f"{layer}@{k}"
        self.layers.append(name)
        self.units[name] = [(name, number) for number in range(count)]
        return self.units[name]

    def handed(self, source: Any, to: Any, message: float) -> None:
        self.messages[source, to] = self.messages.get((source, to), 0.0) + message
        self.relevance[source] = self.relevance.get(source, 0.0) + message

    def lost(self, sink: str, unit: Any, value: float) -> None:
        self.sinks[sink, unit] = self.sinks.get((sink, unit), 0.0) + value


class Connected(Decomposed):
    """A layer of any kind, whose padding may be "same" or "valid"."""

    def __init__(self, module: Any, rule: Any, epsilon: float, seen: Array) -> None:
        super().__init__(module, rule, epsilon, "rule", seen)
        if isinstance(getattr(module, "padding", None), str):
            self.module = copy.copy(module)
            same = module.padding == "same"
            self.module.padding = tuple(
                step * (size - 1) // 2 if same else 0
                for step, size in zip(module.dilation, module.kernel_size, strict=True)
            )


def windows(module: Any, near: tuple[int, ...], far: tuple[int, ...]) -> dict[Any, list[Any]]:
    """Return for each place of a pool's output the places of its inputs, padding left out."""
    if "Adaptive" in type(module).__name__:
        return {
            there: list(
                map(tuple, np.argwhere(np.ones(near, bool)))
                if all(size == 1 for size in far)
                else [
                    place
                    for place in np.ndindex(*near)
                    if all(
                        o * n // f <= p < -(-(o + 1) * n // f)
                        for p, o, n, f in zip(place, there, near, far, strict=True)
                    )
                ]
            )
            for there in np.ndindex(*far)
        }

    def sizes(value: Any) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(near)

    kernel, stride, pad = map(sizes, (module.kernel_size, module.stride, module.padding))
    found: dict[Any, list[Any]] = {}
    for there in np.ndindex(*far):
        found[there] = []
        for k in np.ndindex(*kernel):
            place = tuple(t * s + i - p for t, s, i, p in zip(there, stride, k, pad, strict=True))
            if all(0 <= p < n for p, n in zip(place, near, strict=True)):
                found[there].append(place)
    return found


def graph_twin(
    net: Net,
    x: Tensor,
    target: list[int],
    epsilon: float,
    rule_of: Callable[[str], Any],
    axis: int | None,
) -> Twin:
    """Return the graph of a net; `axis`: the one that counts the inputs' units, None for all."""
    with torch.no_grad():
        seen = {name: array(value) for name, value in net.values(x, keep=True).items()}
    graph = Twin()
    maps: dict[str, Array] = {}
    shape = seen["x"].shape
    inputs = graph.add("input", int(np.prod(shape[1:])) if axis is None else shape[axis])
    maps["x"] = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        place = np.ravel_multi_index(index[1:], shape[1:]) if axis is None else index[axis]
        maps["x"][index] = inputs[place]
    for name, what, of in net.steps:
        maps[name] = _units_of(graph, net, name, what, of, seen, maps)
    rewards = {name: np.zeros(value.shape) for name, value in seen.items()}
    last = net.steps[-1][0]
    for n, c in enumerate(target):
        rewards[last][n, c] = seen[last][n, c]
        unit = maps[last][n, c]
        graph.relevance[unit] = graph.relevance.get(unit, 0.0) + seen[last][n, c]
    for name, what, of in reversed(net.steps):
        _back(graph, net, name, what, of, seen, maps, rewards, epsilon, rule_of)
    return graph


def _is_layer(what: Any) -> bool:
    return hasattr(what, "weight") and what.weight is not None and what.weight.ndim > 1


def _units_of(
    graph: Twin, net: Net, name: str, what: Any, of: tuple[str, ...], seen: Any, maps: Any
) -> Array:
    out = np.empty(seen[name].shape, dtype=object)
    module = getattr(net, name) if what is None else None
    first = maps[of[0]]
    if _is_layer(module):
        axis = out.ndim - 1 if isinstance(module, nn.Linear) else 1
        made = graph.add(name, out.shape[axis])
        for index in np.ndindex(*out.shape):
            out[index] = made[index[axis]]
    elif what == "cat":
        out = np.concatenate([maps[each] for each in of], 1)
    elif what is not None:
        second = maps[of[1]]
        left, right = np.broadcast_arrays(first, second)
        if (left == right).all():
            return left
        order = {unit: k for k, unit in enumerate(u for each in graph.layers
                                                  for u in graph.units[each])}  # fmt: skip
        pairs = sorted({(order[a], order[b]) for a, b in zip(left.flat, right.flat, strict=True)})
        made = graph.add("product" if what == "mul" else "sum", len(pairs))
        place = {pair: made[k] for k, pair in enumerate(pairs)}
        for index in np.ndindex(*out.shape):
            out[index] = place[order[left[index]], order[right[index]]]
    elif isinstance(module, nn.Flatten):
        out = first.reshape(out.shape)
    elif "Pool" in type(module).__name__:
        for index in np.ndindex(*out.shape):
            out[index] = first[index[0], index[1]].flat[0]
    else:
        out = first
    return out


def _back(
    graph: Twin, net: Net, name: str, what: Any, of: tuple[str, ...],
    seen: Any, maps: Any, rewards: Any, epsilon: float, rule_of: Any,
) -> None:  # fmt: skip
    """Hand the rewards of one step on."""
    r, z, unit = rewards[name], seen[name], maps[name]
    a, source = seen[of[0]], maps[of[0]]
    module = getattr(net, name) if what is None else None
    if _is_layer(module):
        _layer(graph, module, rule_of(name), epsilon, r, z, unit, a, source, rewards[of[0]])
        return
    if isinstance(module, nn.Flatten):
        rewards[of[0]] += r.reshape(a.shape)
        return
    if what == "cat":
        start = 0
        for each in of:
            stop = start + seen[each].shape[1]
            rewards[each] += r[:, start:stop]
            start = stop
        return
    kind = type(module).__name__
    pool = windows(module, a.shape[2:], z.shape[2:]) if "Pool" in kind else {}
    norm = "BatchNorm" in kind
    if norm:
        slope = 1 / np.sqrt(array(module.running_var) + module.eps)
        slope = slope * array(module.weight) if module.affine else slope
    values = [] if what is None else [np.broadcast_to(seen[each], z.shape) for each in of]
    for index in np.ndindex(*z.shape):
        if "MaxPool" in kind:
            places = pool[index[2:]]
            winner = max(places, key=lambda place: a[*index[:2], *place])
            rewards[of[0]][*index[:2], *winner] += r[index]
            continue
        if what is None and not pool and not norm:  # an activation
            rewards[of[0]][index] += r[index]
            continue
        if what == "mul":
            parts = [r[index] / 2] * 2
        else:
            s = share(r[index], z[index], epsilon)
            graph.lost("epsilon", unit[index], s * (epsilon if z[index] >= 0 else -epsilon))
            if norm:
                part = slope[index[1]] * a[index] * s
                rewards[of[0]][index] += part
                graph.lost("normalisation", unit[index], z[index] * s - part)
                continue
            if pool:
                places = pool[index[2:]]
                size = len(places)
                if "Adaptive" not in kind and module.count_include_pad:
                    kernel = module.kernel_size
                    size = (int(np.prod(kernel)) if isinstance(kernel, tuple)
                            else kernel ** len(index[2:]))  # fmt: skip
                for place in places:
                    here = (*index[:2], *place)
                    rewards[of[0]][here] += a[here] / size * s
                continue
            parts = [value[index] * s for value in values]
        met = unit[index] != maps[of[0]][tuple(
            0 if size == 1 else i for i, size in zip(index, seen[of[0]].shape, strict=True)
        )]  # fmt: skip
        for each, part in zip(of, parts, strict=True):
            here = tuple(0 if size == 1 else i
                         for i, size in zip(index, seen[each].shape, strict=True))  # fmt: skip
            rewards[each][here] += part
            if met:
                graph.handed(maps[each][here], unit[index], part)


def _layer(
    graph: Twin, module: Any, rule: Any, epsilon: float, r: Array, z: Array, unit: Array,
    a: Array, source: Array, r_in: Array,
) -> None:  # fmt: skip
    layer = Connected(module, rule, epsilon, z)
    layer.forward(a)
    plain = type(rule).__name__ in ("Epsilon", "Zero")
    handed = np.zeros_like(a)
    for out, connections in layer.found.items():
        products = [(layer.w[at], a[here]) for here, at in connections]
        bounds = [layer.bounds(out[0])] * len(products)
        if layer.b is not None:
            products.append((layer.b[layer.bias_of(out)], 1.0))
            bounds.append((1.0, 1.0))
        parts = messages(rule, products, bounds, r[out], layer.own_epsilon)
        for (here, _), part in zip(connections, parts, strict=False):
            graph.handed(source[here], unit[out], part)
            handed[here] += part
        if layer.b is not None:
            graph.lost("bias", unit[out], parts[-1])
        if plain:
            s = share(r[out], z[out], layer.own_epsilon)
            sign = layer.own_epsilon if z[out] >= 0 else -layer.own_epsilon
            graph.lost("epsilon", unit[out], s * sign)
        else:
            graph.lost("rule", unit[out], r[out] - sum(parts))
    if type(rule).__name__ in ("Flat", "Box"):
        for index in np.ndindex(*a.shape):
            if a[index] != 0:
                r_in[index] += a[index] * share(handed[index], a[index], layer.own_epsilon)
    else:
        r_in += handed
