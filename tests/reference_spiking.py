"""Slow, obvious twins of what attrain does with spiking networks: loops over everything."""

import math

import torch


class Layer:
    """A dense layer of leaky integrate-and-fire neurons: U = beta U' + W x + b - drop R."""

    def __init__(self, weight, bias, beta, threshold, drop):
        self.weight, self.bias = weight.tolist(), bias.tolist()
        self.beta, self.threshold, self.drop = beta, threshold, drop
        self.inputs, self.currents, self.membranes, self.spikes = [], [], [], []

    def run(self, inputs):
        """Take the inputs of one sample, [T][I]; keep everything and return the spikes [T][J]."""
        before = [0.0] * len(self.bias)
        self.inputs, self.currents, self.membranes, self.spikes = inputs, [], [], []
        for x in inputs:
            currents, membranes, spikes = [], [], []
            for j, row in enumerate(self.weight):
                current = self.bias[j]
                for i, w in enumerate(row):
                    current += w * x[i]
                reset = 1.0 if before[j] > self.threshold else 0.0
                membrane = self.beta * before[j] + current - self.drop * reset
                currents.append(current)
                membranes.append(membrane)
                spikes.append(1.0 if membrane > self.threshold else 0.0)
            self.currents.append(currents)
            self.membranes.append(membranes)
            self.spikes.append(spikes)
            before = membranes
        return self.spikes


def credit_of_currents_pure(layer, credit, output, epsilon):
    """Credit of W x + b, [T][J], from that of the spikes: the membrane is a sum."""
    steps, width = len(credit), len(credit[0])
    q = [[0.0] * width for _ in range(steps)]
    for j in range(width):
        later = 0.0
        for t in reversed(range(steps)):
            u, s = layer.membranes[t][j], layer.spikes[t][j]
            here = credit[t][j] / (abs(u) + epsilon) if output else credit[t][j] * s / (u + epsilon)
            q[t][j] = here + layer.beta * later
            later = q[t][j]
    return q


def credit_of_currents_paper(layer, credit, output, epsilon):
    """The same by the authors' denominator; rewards r_S and r_int instead of credit."""
    steps, width = len(credit), len(credit[0])
    q = [[0.0] * width for _ in range(steps)]
    for j in range(width):
        of_state = 0.0
        for t in reversed(range(steps)):
            before = layer.membranes[t - 1][j] if t else 0.0
            of_spike = credit[t][j] if output else credit[t][j] * layer.spikes[t][j]
            size = abs(before) + abs(layer.currents[t][j] - (1 - layer.beta) * before)
            q[t][j] = (of_spike + of_state) / (size + epsilon)
            of_state = layer.beta * before * q[t][j]
    return q


RULES = {"pure": credit_of_currents_pure, "paper": credit_of_currents_paper}


def feedback(layers, samples, arriving, rule, epsilons):
    """Feedback of weight and bias of each layer, summed over samples.

    samples: [N][T][I]. arriving: what comes back to the spikes of the last layer, [T, N, C].
    epsilons: of each layer.
    """
    total = [
        (
            torch.zeros(len(layer.weight), len(layer.weight[0]), dtype=torch.float64),
            torch.zeros(len(layer.bias), dtype=torch.float64),
        )
        for layer in layers
    ]
    for n, inputs in enumerate(samples):
        signal = inputs
        for layer in layers:
            signal = layer.run(signal)
        credit = arriving[:, n].tolist()
        for index in reversed(range(len(layers))):
            layer = layers[index]
            output = index == len(layers) - 1
            q = RULES[rule](layer, credit, output, epsilons[index])
            below = [[0.0] * len(layer.weight[0]) for _ in credit]
            for t, x in enumerate(layer.inputs):
                for j, row in enumerate(layer.weight):
                    total[index][1][j] += abs(layer.bias[j]) * q[t][j]
                    for i, w in enumerate(row):
                        total[index][0][j, i] += abs(w) * x[i] * q[t][j]
                        below[t][i] += w * q[t][j]
            credit = below
    return total


def spike_count(spikes, labels, variant="paper"):
    """Reward of equation A.4, or of the authors' code, for every step, sample and class."""
    steps = len(spikes)
    half = steps // 2 if variant == "code" else steps / 2
    rewards = [[] for _ in range(steps)]
    for n, label in enumerate(labels):
        for t in range(steps):
            row = []
            for c in range(len(spikes[0][0])):
                if c == label:
                    fired = sum(spikes[each][n][c] for each in range(steps))
                    row.append(1 - 1 / (1 + math.exp(-(fired - half))))
                else:
                    silent = sum(abs(spikes[each][n][c] - 1) for each in range(steps))
                    reward = 1 / (1 + math.exp(-(silent - half))) - 1
                    row.append(reward * spikes[t][n][c] if variant == "code" else reward)
            rewards[t].append(row)
    return rewards


def clipped(weight, gradient, clipping, floor):
    """Adaptive gradient clipping of one tensor, unit by unit."""
    if weight.ndim < 2:
        units = [(weight.flatten().tolist(), gradient.flatten().tolist())]
    else:
        units = [
            (w.flatten().tolist(), g.flatten().tolist())
            for w, g in zip(weight, gradient, strict=True)
        ]
    shortened = []
    for w, g in units:
        longest = clipping * max(math.sqrt(sum(v * v for v in w)), floor)
        length = math.sqrt(sum(v * v for v in g))
        factor = longest / length if length > longest else 1.0
        shortened.extend(v * factor for v in g)
    return torch.tensor(shortened, dtype=gradient.dtype).reshape(gradient.shape)
