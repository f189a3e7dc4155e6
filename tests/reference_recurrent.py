"""Slow, obvious twins of the recurrent rules: rewards, step by step, unit by unit, gate by gate.

A sequence is one sample. Rewards that come from inside the network are shared by equation 6; what
comes from outside is given as credit per unit after the stabiliser, because no loss pays one.
Nothing here knows of autograd, of batches, or that a reward is an activation times a credit.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import stabilised

Array = NDArray[np.float64]

SHARES = {"half": (0.5, 0.5), "none": (1.0, 0.0)}


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


class Direction:
    """One direction of one layer: its weights, their feedback, and the rules of its cell."""

    def __init__(self, weights: dict[str, Array], epsilon: float, gate: str) -> None:
        self.w = weights
        self.feedback = {name: np.zeros_like(value) for name, value in weights.items()}
        self.epsilon = epsilon
        self.carried, self.gating = SHARES[gate]

    # A neuron is row k of the weights: the sum of what its inputs and biases bring.

    def total(self, row: int, sources: dict[str, Array], biases: tuple[str, ...]) -> float:
        z = 0.0
        for name, a in sources.items():
            for i in range(len(a)):
                z += self.w[name][row, i] * a[i]
        return z + sum(self.w[name][row] for name in biases if name in self.w)

    def spread(
        self, row: int, s: float, sources: dict[str, Array], biases: tuple[str, ...],
        rewards: dict[str, Array],
    ) -> None:  # fmt: skip
        """Send r_ij = w_ij a_i s to the sources; note |w_ij| a_i s."""
        for name, a in sources.items():
            for i in range(len(a)):
                w = self.w[name][row, i]
                rewards[name][i] += w * a[i] * s
                self.feedback[name][row, i] += abs(w) * a[i] * s
        for name in biases:
            if name in self.w:
                self.feedback[name][row] += abs(self.w[name][row]) * s

    def by_reward(self, r: float, z: float) -> float:
        return r / stabilised(z, self.epsilon)

    def by_gate(self, r: float, gate: float, z: float) -> float:
        """A gate's sigmoid keeps its derivative: credit r / gate, times the slope, for z."""
        return self.by_reward(r / gate * gate * (1 - gate) * z, z)

    # Subclasses: one step forward, returning (h, c), and one step back.

    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
        raise AssertionError

    def back(
        self, seen: Any, r_h: Array, s_h: Array, r_c: Array, s_c: Array
    ) -> tuple[Array, Array, Array]:
        """Return the rewards of x, h and c before; r from inside, s from outside."""
        raise AssertionError


BIASES = ("bias_ih", "bias_hh")


class RNN(Direction):
    phi = staticmethod(math.tanh)

    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
        sources = {"weight_ih": x, "weight_hh": h}
        z = np.array([self.total(j, sources, BIASES) for j in range(len(h))])
        after = np.array([self.phi(each) for each in z])
        return after, c, (sources, z, after)

    def back(
        self, seen: Any, r_h: Array, s_h: Array, r_c: Array, s_c: Array
    ) -> tuple[Array, Array, Array]:
        sources, z, after = seen
        rewards = {name: np.zeros_like(a) for name, a in sources.items()}
        for j in range(len(z)):
            r = r_h[j] + s_h[j] * after[j]
            if r:
                self.spread(j, self.by_reward(r, z[j]), sources, BIASES, rewards)
        return rewards["weight_ih"], rewards["weight_hh"], r_c


class ReluRNN(RNN):
    phi = staticmethod(lambda z: max(z, 0.0))


class LSTM(Direction):
    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
        units = len(c)
        sources = {"weight_ih": x, "weight_hh": h}
        z = np.array([self.total(k, sources, BIASES) for k in range(4 * units)]).reshape(4, units)
        memory, out = np.zeros(units), np.zeros(units)
        for j in range(units):
            i, f, g, o = sigmoid(z[0, j]), sigmoid(z[1, j]), math.tanh(z[2, j]), sigmoid(z[3, j])
            memory[j] = f * c[j] + i * g
            out[j] = o * math.tanh(memory[j])
        after = out
        if "weight_hr" in self.w:
            rows = range(len(self.w["weight_hr"]))
            after = np.array([self.total(k, {"weight_hr": out}, ()) for k in rows])
        return after, memory, (sources, z, c, memory, out, after)

    def back(
        self, seen: Any, r_h: Array, s_h: Array, r_c: Array, s_c: Array
    ) -> tuple[Array, Array, Array]:
        sources, z, before, memory, out, after = seen
        units = len(memory)
        rewards = {name: np.zeros_like(a) for name, a in sources.items()}
        r_before = np.zeros(units)
        if "weight_hr" in self.w:
            of_out = {"weight_hr": np.zeros(units)}
            for k in range(len(after)):
                s = s_h[k] + self.by_reward(r_h[k], after[k])
                self.spread(k, s, {"weight_hr": out}, (), of_out)
            r_out = of_out["weight_hr"]
        else:
            r_out = r_h + s_h * after
        for j in range(units):
            i, f, g, o = (
                sigmoid(z[0, j]), sigmoid(z[1, j]), math.tanh(z[2, j]), sigmoid(z[3, j])
            )  # fmt: skip
            # h = o * tanh(c); tanh hands its reward to c
            r_leave, r_squashed = self.gating * r_out[j], self.carried * r_out[j]
            s = s_c[j] + self.by_reward(r_c[j] + r_squashed, memory[j])
            # c = f c + i g
            r_kept, r_entered = f * before[j] * s, i * g * s
            r_before[j] = self.carried * r_kept
            of_sums = (
                self.by_gate(self.gating * r_entered, i, z[0, j]),
                self.by_gate(self.gating * r_kept, f, z[1, j]),
                self.by_reward(self.carried * r_entered, z[2, j]),
                self.by_gate(r_leave, o, z[3, j]),
            )
            for gate in range(4):
                self.spread(gate * units + j, of_sums[gate], sources, BIASES, rewards)
        return rewards["weight_ih"], rewards["weight_hh"], r_before


class GRU(Direction):
    def step(self, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
        units = len(h)
        both = {"weight_ih": x, "weight_hh": h}
        z = np.array([self.total(k, both, BIASES) for k in range(2 * units)]).reshape(2, units)
        new, inner, after = np.zeros(units), np.zeros(units), np.zeros(units)
        for j in range(units):
            r, update = sigmoid(z[0, j]), sigmoid(z[1, j])
            inner[j] = self.total(2 * units + j, {"weight_hh": h}, ("bias_hh",))
            new[j] = self.total(2 * units + j, {"weight_ih": x}, ("bias_ih",)) + r * inner[j]
            after[j] = (1 - update) * math.tanh(new[j]) + update * h[j]
        return after, c, (both, z, new, inner, after)

    def back(
        self, seen: Any, r_h: Array, s_h: Array, r_c: Array, s_c: Array
    ) -> tuple[Array, Array, Array]:
        both, z, new, inner, after = seen
        units = len(after)
        x, h = both["weight_ih"], both["weight_hh"]
        rewards = {name: np.zeros_like(a) for name, a in both.items()}
        for j in range(units):
            r, update = sigmoid(z[0, j]), sigmoid(z[1, j])
            s = s_h[j] + self.by_reward(r_h[j], after[j])
            # h = (1 - z) n + z h
            r_new, r_kept = (1 - update) * math.tanh(new[j]) * s, update * h[j] * s
            rewards["weight_hh"][j] += self.carried * r_kept
            # 1 - z is one function of z's sum, with the slope of the sigmoid, downwards
            credit = self.gating * r_kept / update - self.gating * r_new / (1 - update)
            s_update = self.by_reward(credit * update * (1 - update) * z[1, j], z[1, j])
            # n = tanh(W x + b + r (W' h + b'))
            s_new = self.by_reward(self.carried * r_new, new[j])
            r_inner = r * inner[j] * s_new
            s_inner = self.by_reward(self.carried * r_inner, inner[j])
            s_reset = self.by_gate(self.gating * r_inner, r, z[0, j])
            self.spread(j, s_reset, both, BIASES, rewards)
            self.spread(units + j, s_update, both, BIASES, rewards)
            self.spread(2 * units + j, s_new, {"weight_ih": x}, ("bias_ih",), rewards)
            self.spread(2 * units + j, s_inner, {"weight_hh": h}, ("bias_hh",), rewards)
        return rewards["weight_ih"], rewards["weight_hh"], r_c


CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": RNN, "RNN_RELU": ReluRNN}


def credited(
    layers: list[list[Direction]], x: Array, h: Array, c: Array,
    s_out: Array, s_h: Array, s_c: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Run one sequence through all layers and back.

    x [T, inputs]; h and s_h [layers * directions, H]; c, s_c [layers * directions, units]; s_out
    [T, directions * H]. Returns the outputs and the rewards of x, h and c; feedback adds up.
    """
    steps = len(x)
    traces, states = [], x
    for number, layer in enumerate(layers):
        outs = []
        for d, direction in enumerate(layer):
            row = number * len(layer) + d
            h_now, c_now = h[row], c[row]
            out: list[Any] = [None] * steps
            trace: list[Any] = [None] * steps
            for t in reversed(range(steps)) if d else range(steps):
                h_now, c_now, trace[t] = direction.step(states[t], h_now, c_now)
                out[t] = h_now
            outs.append(np.stack(out))
            traces.append(trace)
        states = np.concatenate(outs, 1)
    output = states

    r_states, s_states = np.zeros_like(output), s_out
    r_h0, r_c0 = np.zeros_like(h), np.zeros_like(c)
    for number in reversed(range(len(layers))):
        layer = layers[number]
        units = r_states.shape[1] // len(layer)
        r_below: Array = np.zeros(0)
        for d, direction in enumerate(layer):
            row = number * len(layer) + d
            part = slice(d * units, (d + 1) * units)
            r_h, r_c = np.zeros(units), np.zeros(c.shape[1])
            last_h, last_c = s_h[row], s_c[row]
            for t in range(steps) if d else reversed(range(steps)):
                r_x, r_h, r_c = direction.back(
                    traces[row][t],
                    r_h + r_states[t, part],
                    s_states[t, part] + last_h,
                    r_c,
                    last_c,
                )
                last_h, last_c = np.zeros_like(last_h), np.zeros_like(last_c)
                if not len(r_below):
                    r_below = np.zeros((steps, len(r_x)))
                r_below[t] += r_x
            r_h0[row], r_c0[row] = r_h, r_c
        r_states, s_states = r_below, np.zeros_like(r_below)
    return output, r_states, r_h0, r_c0
