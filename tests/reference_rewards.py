"""Slow, obvious twins of attrain.rewards: one output at a time, in float64."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

Index = tuple[int, ...]
Rewarded = tuple[dict[Index, float], dict[Index, float], Callable[[Index], Index]]
"""Reward of every output, weight of every sample, and which sample an output belongs to."""


def places(shape: tuple[int, ...]) -> list[Index]:
    return list(product(*map(range, shape)))


def sign(value: float) -> float:
    return 1.0 if value >= 0 else -1.0


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def sample_of(shape: tuple[int, ...]) -> Callable[[Index], Index]:
    dim = 0 if len(shape) == 1 else 1
    return lambda place: place[:dim] + place[dim + 1 :]


def class_of(shape: tuple[int, ...], place: Index) -> int:
    return place[0 if len(shape) == 1 else 1]


def siblings(shape: tuple[int, ...], place: Index) -> list[Index]:
    """Return the places of all classes of the sample that `place` belongs to."""
    dim = 0 if len(shape) == 1 else 1
    return [place[:dim] + (c,) + place[dim + 1 :] for c in range(shape[dim])]


def broadcast(values: Any, place: Index) -> float:
    if not hasattr(values, "shape"):
        return float(values)
    if values.dim() == 0:
        return float(values)
    tail = place[len(place) - values.dim() :]
    return float(values[tuple(0 if n == 1 else i for i, n in zip(tail, values.shape, strict=True))])


def softmax(o, target, weight=None, ignore_index=-100, label_smoothing=0.0) -> Rewarded:
    shape, sample = tuple(o.shape), sample_of(tuple(o.shape))
    classes = len(siblings(shape, places(shape)[0]))
    indices = target.shape != o.shape
    r, weights = {}, {}
    for place in places(shape):
        w = [1.0 if weight is None else float(weight[c]) for c in range(classes)]
        if indices:
            label = int(target[sample(place)])
            y = [float(c == label) for c in range(classes)]
            weights[sample(place)] = 0.0 if label == ignore_index else w[label]
        else:
            label = None
            y = [float(target[p]) for p in siblings(shape, place)]
            weights[sample(place)] = 1.0
        if label == ignore_index:
            r[place] = 0.0
            continue
        y = [(1 - label_smoothing) * v + label_smoothing / classes for v in y]
        powers = [math.exp(float(o[p])) for p in siblings(shape, place)]
        # L = -sum_k w_k y_k log p_k, dp_k/do_c = p_k (1(k = c) - p_c)
        c = class_of(shape, place)
        p_c = powers[c] / sum(powers)
        slope = sum(w[k] * y[k] * (float(k == c) - p_c) for k in range(classes))
        r[place] = float(o[place]) * slope
    return r, weights, sample


def sigmoid(
    o, target, weight=None, pos_weight=None, ignore_index=-100, label_smoothing=0.0
) -> Rewarded:
    shape = tuple(o.shape)
    indices = target.shape != o.shape
    sample = sample_of(shape) if indices else (lambda place: place)
    r, weights = {}, {}
    for place in places(shape):
        w = p = 1.0
        if indices:
            label, c = int(target[sample(place)]), class_of(shape, place)
            y = float(label == c)
            w = 1.0 if weight is None else float(weight[c])
            p = 1.0 if pos_weight is None else float(pos_weight[c])
            weights[sample(place)] = float(label != ignore_index)
            if label == ignore_index:
                w = 0.0
        else:
            y = float(target[place])
            w = 1.0 if weight is None else broadcast(weight, place)
            p = 1.0 if pos_weight is None else broadcast(pos_weight, place)
            weights[place] = 1.0
        y = (1 - label_smoothing) * y + label_smoothing * 0.5
        s = logistic(float(o[place]))
        r[place] = float(o[place]) * w * (p * y * (1 - s) - (1 - y) * s)
    return r, weights, sample


def elementwise(o, rule: Callable[[Index, float], float]) -> Rewarded:
    r = {place: rule(place, float(o[place])) for place in places(tuple(o.shape))}
    return r, dict.fromkeys(r, 1.0), lambda place: place


def squared_error(o, target) -> Rewarded:
    return elementwise(o, lambda place, value: value * -2 * (value - float(target[place])))


def judged(o, target, weight, ignore_index, global_reward) -> Rewarded:
    shape, sample = tuple(o.shape), sample_of(tuple(o.shape))
    r, weights = {}, {}
    for place in places(shape):
        label = int(target[sample(place)])
        w = 1.0 if weight is None or label == ignore_index else float(weight[label])
        weights[sample(place)] = 0.0 if label == ignore_index else w
        if label == ignore_index:
            r[place] = 0.0
            continue
        labelled = float(o[siblings(shape, place)[label]])
        R = global_reward(class_of(shape, place) == label, float(o[place]), labelled)
        r[place] = w * sign(float(o[place])) * R
    return r, weights, sample


def hits(o, target, weight=None, ignore_index=-100) -> Rewarded:
    return judged(o, target, weight, ignore_index, lambda right, value, labelled: float(right))


def false_positives(o, target, weight=None, ignore_index=-100) -> Rewarded:
    return judged(
        o, target, weight, ignore_index, lambda right, value, labelled: -float(value > labelled)
    )


def binary(o, target) -> Rewarded:
    def rule(place: Index, value: float) -> float:
        predicted = 1 if value >= 0 else 0
        return 1.0 if predicted == int(target[place]) else -1.0

    return elementwise(o, rule)


def outcome(o, target, rho=None) -> Rewarded:
    def rule(place: Index, value: float) -> float:
        held = 1.0 if rho is None else broadcast(rho, place)
        return sign(value) * held * broadcast(target, place)

    return elementwise(o, rule)


def raise_outputs(o, target, cap_at_zero=False) -> Rewarded:
    def rule(place: Index, value: float) -> float:
        r = sign(value) * broadcast(target, place)
        return min(r, 0.0) if cap_at_zero else r

    return elementwise(o, rule)


TWINS: dict[str, Callable[..., Rewarded]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "squared_error": squared_error,
    "hits": hits,
    "false_positives": false_positives,
    "binary": binary,
    "outcome": outcome,
    "raise_outputs": raise_outputs,
}


def loss(rewarded: Rewarded, reduction: str) -> dict[Index, float]:
    """Return minus the reward of every sample ("none") or, at the empty index, of the batch."""
    r, weights, sample = rewarded
    gathered = dict.fromkeys(weights, 0.0)
    for place, reward in r.items():
        gathered[sample(place)] -= reward
    if reduction == "none":
        return gathered
    total = sum(gathered.values())
    return {(): total / sum(weights.values()) if reduction == "mean" else total}


def gradient(rewarded: Rewarded, o, epsilon: float, reduction: str) -> dict[Index, float]:
    """Return what the outputs must receive from the batch's loss (the sum of "none")."""
    r, weights, _ = rewarded
    share = 1 / sum(weights.values()) if reduction == "mean" else 1.0
    return {
        place: -share * reward / (float(o[place]) + sign(float(o[place])) * epsilon)
        for place, reward in r.items()
    }
