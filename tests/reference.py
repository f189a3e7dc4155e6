"""Slow, obvious twins: LFP in rewards, neuron by neuron, as the paper writes it (float64).

Every layer is a class with `forward(a)` and `backward(r)`: the reward of its inputs (equation 3),
in `feedback` the update direction of its parameters (equations 4, 7, 10), and in `relevance` what
came along the connections of each weight (the r_ij of equation 3). Nothing here knows
of autograd, or that a reward is an activation times a credit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def array(tensor: torch.Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return tensor.detach().numpy().astype(np.float64)


def stabilised(z: float, epsilon: float) -> float:
    """Return z + sign(z) * epsilon with sign(0) = +1."""
    return z + epsilon if z >= 0 else z - epsilon


def share(r: float, z: float, epsilon: float) -> float:
    """Return r / (z + sign(z) * epsilon); a neuron without reward sends none."""
    return 0.0 if r == 0 else r / stabilised(z, epsilon)


class Layer:
    """A step of the network; `feedback` maps parameter names to arrays.

    `seen` is what torch computed for the same step. The twin checks its own value against it and
    goes on with torch's: two correct sums differ in their last bits, and a secant with a pole at 0
    would blow that up into a difference that says nothing about the rules.
    """

    def __init__(self, seen: Array | None = None) -> None:
        self.feedback: dict[str, Array] = {}
        self.relevance: dict[str, Array] = {}
        self.seen = seen

    def agreed(self, z: Array) -> Array:
        """Return torch's value of `z`, after comparing."""
        if self.seen is None:
            return z
        np.testing.assert_allclose(z, self.seen, rtol=1e-11, atol=1e-12)
        return self.seen

    def forward(self, a: Array) -> Array:
        raise AssertionError

    def backward(self, r: Array) -> Array:
        raise AssertionError


class Linear(Layer):
    """z_j = sum_i w_ij a_i + b_j."""

    def __init__(self, module: nn.Linear, epsilon: float, seen: Array | None) -> None:
        super().__init__(seen)
        self.w, self.epsilon = array(module.weight), epsilon
        self.b = None if module.bias is None else array(module.bias)

    def forward(self, a: Array) -> Array:
        self.a = a
        self.z = np.stack([self.w @ sample for sample in a])
        if self.b is not None:
            self.z = self.z + self.b
        self.z = self.agreed(self.z)
        return self.z

    def backward(self, r: Array) -> Array:
        r_in = np.zeros_like(self.a)
        d_w, r_w = np.zeros_like(self.w), np.zeros_like(self.w)
        d_b = np.zeros(len(self.w))
        for n in range(len(self.a)):
            for j in range(len(self.w)):
                s = share(r[n, j], self.z[n, j], self.epsilon)
                r_in[n] += self.w[j] * self.a[n] * s
                r_w[j] += self.w[j] * self.a[n] * s
                d_w[j] += np.abs(self.w[j]) * self.a[n] * s
                if self.b is not None:
                    d_b[j] += abs(self.b[j]) * s
        self.feedback = {"weight": d_w} | ({} if self.b is None else {"bias": d_b})
        self.relevance = {"weight": r_w}
        return r_in


class Conv2d(Layer):
    """A convolution, output by output."""

    def __init__(self, module: nn.Conv2d, epsilon: float, seen: Array | None) -> None:
        super().__init__(seen)
        self.w, self.epsilon = array(module.weight), epsilon
        self.b = None if module.bias is None else array(module.bias)
        self.stride, self.pad = module.stride, module.padding
        self.dilation, self.groups = module.dilation, module.groups

    def outputs(self) -> Any:
        """Yield for every output its index and the slice of the padded input it sees."""
        kh, kw = self.w.shape[2:]
        per_in = self.w.shape[1]
        per_out = self.w.shape[0] // self.groups
        n, _, height, width = self.padded.shape
        rows = (height - self.dilation[0] * (kh - 1) - 1) // self.stride[0] + 1
        columns = (width - self.dilation[1] * (kw - 1) - 1) // self.stride[1] + 1
        for sample in range(n):
            for c in range(self.w.shape[0]):
                first = (c // per_out) * per_in
                for y in range(rows):
                    top = y * self.stride[0]
                    for x in range(columns):
                        left = x * self.stride[1]
                        yield (
                            (sample, c, y, x),
                            (
                                sample,
                                slice(first, first + per_in),
                                slice(top, top + self.dilation[0] * (kh - 1) + 1, self.dilation[0]),
                                slice(left, left + self.dilation[1] * (kw - 1) + 1,
                                      self.dilation[1]),
                            ),
                        )  # fmt: skip

    def forward(self, a: Array) -> Array:
        ph, pw = self.pad
        self.padded = np.pad(a, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        values = {}
        for index, window in self.outputs():
            bias = 0.0 if self.b is None else self.b[index[1]]
            values[index] = (self.w[index[1]] * self.padded[window]).sum() + bias
        self.z = np.zeros([max(index[axis] for index in values) + 1 for axis in range(4)])
        for index, value in values.items():
            self.z[index] = value
        self.z = self.agreed(self.z)
        return self.z

    def backward(self, r: Array) -> Array:
        r_in = np.zeros_like(self.padded)
        d_w, r_w = np.zeros_like(self.w), np.zeros_like(self.w)
        d_b = np.zeros(len(self.w))
        for index, window in self.outputs():
            c = index[1]
            s = share(r[index], self.z[index], self.epsilon)
            r_in[window] += self.w[c] * self.padded[window] * s
            r_w[c] += self.w[c] * self.padded[window] * s
            d_w[c] += np.abs(self.w[c]) * self.padded[window] * s
            if self.b is not None:
                d_b[c] += abs(self.b[c]) * s
        self.feedback = {"weight": d_w} | ({} if self.b is None else {"bias": d_b})
        self.relevance = {"weight": r_w}
        ph, pw = self.pad
        return r_in[:, :, ph : r_in.shape[2] - ph, pw : r_in.shape[3] - pw]


class BatchNorm2d(Layer):
    """Equations 8 to 10: the mean is dropped for the reward, kept for gamma."""

    def __init__(self, module: nn.BatchNorm2d, epsilon: float, seen: Array | None) -> None:
        super().__init__(seen)
        self.gamma, self.beta = array(module.weight), array(module.bias)
        self.module, self.epsilon = module, epsilon

    def forward(self, a: Array) -> Array:
        self.a = a
        if self.module.training:
            mean, variance = a.mean((0, 2, 3)), a.var((0, 2, 3))
        else:
            mean, variance = array(self.module.running_mean), array(self.module.running_var)
        self.root = np.sqrt(variance + self.module.eps)
        self.normalised = (a - mean[:, None, None]) / self.root[:, None, None]
        self.z = self.agreed(self.gamma[:, None, None] * self.normalised + self.beta[:, None, None])
        return self.z

    def backward(self, r: Array) -> Array:
        r_in = np.zeros_like(self.a)
        d_gamma, d_beta = np.zeros_like(self.gamma), np.zeros_like(self.beta)
        for index in np.ndindex(*self.a.shape):
            c = index[1]
            s = share(r[index], self.z[index], self.epsilon)
            r_in[index] = self.gamma[c] * self.a[index] / self.root[c] * s
            d_gamma[c] += abs(self.gamma[c]) * self.normalised[index] * s
            d_beta[c] += abs(self.beta[c]) * s
        self.feedback = {"weight": d_gamma, "bias": d_beta}
        return r_in


class Activation(Layer):
    """a = phi(z): the reward is handed on unchanged."""

    def __init__(self, phi: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.phi = phi

    def forward(self, a: Array) -> Array:
        return array(self.phi(torch.from_numpy(a.copy())))

    def backward(self, r: Array) -> Array:
        return r


class Mask(Activation):
    """Dropout with a known mask: the reward is handed on unchanged."""

    def __init__(self, mask: Array) -> None:
        super().__init__(lambda a: a * torch.from_numpy(mask))


class MaxPool2d(Layer):
    """The winner takes the reward."""

    def __init__(self, module: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.pad = (
            value if isinstance(value, tuple) else (value, value)
            for value in (module.kernel_size, module.stride, module.padding)
        )

    def forward(self, a: Array) -> Array:
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.pad
        padded = np.pad(a, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=-np.inf)
        rows = (padded.shape[2] - kh) // sh + 1
        columns = (padded.shape[3] - kw) // sw + 1
        out = np.zeros((*a.shape[:2], rows, columns))
        self.shape, self.winner = padded.shape, {}
        for index in np.ndindex(*out.shape):
            n, c, y, x = index
            window = padded[n, c, y * sh : y * sh + kh, x * sw : x * sw + kw]
            row, column = np.unravel_index(window.argmax(), window.shape)
            out[index] = window[row, column]
            self.winner[index] = (n, c, y * sh + row, x * sw + column)
        return out

    def backward(self, r: Array) -> Array:
        r_in = np.zeros(self.shape)
        for index, winner in self.winner.items():
            r_in[winner] += r[index]
        ph, pw = self.pad
        return r_in[:, :, ph : r_in.shape[2] - ph, pw : r_in.shape[3] - pw]


class GlobalAverage(Layer):
    """The mean over the image: a linear map with equal weights."""

    def __init__(self, epsilon: float, seen: Array | None) -> None:
        super().__init__(seen)
        self.epsilon = epsilon

    def forward(self, a: Array) -> Array:
        self.a = a
        self.z = self.agreed(a.mean((2, 3), keepdims=True))
        return self.z

    def backward(self, r: Array) -> Array:
        r_in = np.zeros_like(self.a)
        size = self.a.shape[2] * self.a.shape[3]
        for n, c in np.ndindex(*self.a.shape[:2]):
            s = share(r[n, c, 0, 0], self.z[n, c, 0, 0], self.epsilon)
            r_in[n, c] = self.a[n, c] / size * s
        return r_in


class Flatten(Layer):
    """Images to vectors."""

    def forward(self, a: Array) -> Array:
        self.shape = a.shape
        return a.reshape(len(a), -1)

    def backward(self, r: Array) -> Array:
        return r.reshape(self.shape)


class Chain(Layer):
    """One layer after another; `layers` maps the names of modules to layers."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, a: Array) -> Array:
        for layer in self.layers.values():
            a = layer.forward(a)
        return a

    def backward(self, r: Array) -> Array:
        for name, layer in reversed(self.layers.items()):
            r = layer.backward(r)
            self.feedback |= {f"{name}.{key}": value for key, value in layer.feedback.items()}
            self.relevance |= {f"{name}.{key}": value for key, value in layer.relevance.items()}
        return r


class Residual(Layer):
    """phi(main(a) + skip(a)): the reward is divided in proportion (equation 11)."""

    def __init__(self, main: Chain, skip: Chain, phi: Any, epsilon: float) -> None:
        super().__init__()
        self.main, self.skip, self.phi, self.epsilon = main, skip, phi, epsilon

    def forward(self, a: Array) -> Array:
        self.left, self.right = self.main.forward(a), self.skip.forward(a)
        self.z = self.left + self.right
        return Activation(self.phi).forward(self.z)

    def backward(self, r: Array) -> Array:
        s = np.zeros_like(r)
        for index in np.ndindex(*r.shape):
            s[index] = share(r[index], self.z[index], self.epsilon)
        r_in = self.main.backward(self.left * s) + self.skip.backward(self.right * s)
        self.feedback = self.main.feedback | self.skip.feedback
        self.relevance = self.main.relevance | self.skip.relevance
        return r_in


def twin(module: nn.Module, epsilon: float, phi: Any, seen: dict[nn.Module, Array]) -> Layer:
    """Return the slow twin of a module; `phi` is the activation that the network uses.

    seen: what torch computed in each module; for a dropout module, what it multiplied with.
    """
    value = seen.get(module)
    if isinstance(module, nn.Linear):
        return Linear(module, epsilon, value)
    if isinstance(module, nn.Conv2d):
        return Conv2d(module, epsilon, value)
    if isinstance(module, nn.BatchNorm2d):
        return BatchNorm2d(module, epsilon, value)
    if isinstance(module, nn.MaxPool2d):
        return MaxPool2d(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return GlobalAverage(epsilon, value)
    if isinstance(module, nn.Flatten):
        return Flatten()
    if isinstance(module, nn.Dropout):
        return Chain({}) if value is None else Mask(value)
    if hasattr(module, "downsample"):
        parts = {name: getattr(module, name) for name in ("conv1", "bn1", "relu", "conv2", "bn2")}
        main = {name: twin(part, epsilon, phi, seen) for name, part in parts.items()}
        down = {} if module.downsample is None else {"downsample": module.downsample}
        skip = {name: twin(part, epsilon, phi, seen) for name, part in down.items()}
        return Residual(Chain(main), Chain(skip), phi, epsilon)
    children = dict(module.named_children())
    if children:
        return Chain({name: twin(part, epsilon, phi, seen) for name, part in children.items()})
    return Activation(phi)


def messages(
    rule: Any,
    products: list[tuple[float, float]],
    bounds: list[tuple[float, float]],
    r: float,
    epsilon: float,
) -> list[float]:
    """Return r_ij of one neuron by the definition of each rule, connection by connection.

    products: (w_ij, a_i) of every input, the bias as (b_j, 1). bounds: of each a_i, for box.
    """
    z = [w * a for w, a in products]
    total = sum(z)
    positive, negative = [max(each, 0.0) for each in z], [min(each, 0.0) for each in z]
    kind = type(rule).__name__
    if kind in ("Epsilon", "Zero"):
        return [share(r, total, epsilon) * each for each in z]
    if kind == "Gamma":
        same = positive if total >= 0 else negative
        raised = [each + rule.gamma * more for each, more in zip(z, same, strict=True)]
        return [share(r, sum(raised), epsilon) * each for each in raised]
    if kind in ("AlphaBeta", "ZPlus"):
        alpha, beta = (rule.alpha, rule.beta) if kind == "AlphaBeta" else (1.0, 0.0)
        up = share(r, sum(positive), epsilon) if any(positive) else 0.0
        down = share(r, sum(negative), epsilon) if any(negative) else 0.0
        return [
            alpha * more * up - beta * less * down
            for more, less in zip(positive, negative, strict=True)
        ]
    if kind == "ZPlusZMinus":
        return [each / (sum(abs(other) for other in z) + epsilon) * r for each in z]
    if kind == "Flat":
        return [r / len(z)] * len(z)
    assert kind == "Box"
    boxed = [
        w * a - low * max(w, 0.0) - high * min(w, 0.0)
        for (w, a), (low, high) in zip(products, bounds, strict=True)
    ]
    return [share(r, sum(boxed), epsilon) * each for each in boxed]


class Decomposed(Layer):
    """A linear or convolution layer of any kind under any rule, connection by connection."""

    def __init__(
        self, module: Any, rule: Any, epsilon: float, feedback: str, seen: Array | None
    ) -> None:
        super().__init__(seen)
        self.module, self.rule, self.epsilon = module, rule, epsilon
        self.own_epsilon = epsilon if rule.epsilon is None else rule.epsilon
        self.by_rule = feedback == "rule"
        self.w = array(module.weight)
        self.b = None if module.bias is None else array(module.bias)

    def connections(self, a: Array) -> dict[tuple[int, ...], list[Any]]:
        """Return for every output the indices of its inputs and of their weights."""
        found: dict[tuple[int, ...], list[Any]] = {}
        if self.w.ndim == 2:
            for lead in np.ndindex(*a.shape[:-1]):
                for j in range(self.w.shape[0]):
                    found[*lead, j] = [((*lead, i), (j, i)) for i in range(self.w.shape[1])]
            return found
        module = self.module
        transposed = "Transpose" in type(module).__name__
        near, far = a.shape[2:], self.seen.shape[2:] if self.seen is not None else ()
        outputs = module.out_channels // module.groups
        inputs = module.in_channels // module.groups
        for index in np.ndindex(len(a), module.out_channels, *far):
            found[index] = []
        steps, edges = (near, far) if transposed else (far, near)
        for n, group in np.ndindex(len(a), module.groups):
            for o, i in np.ndindex(outputs, inputs):
                out_channel, in_channel = group * outputs + o, group * inputs + i
                for step in np.ndindex(*steps):
                    for k in np.ndindex(*self.w.shape[2:]):
                        place = tuple(
                            p * stride + each * dilation - pad
                            for p, stride, each, dilation, pad in zip(
                                step, module.stride, k, module.dilation, module.padding,
                                strict=True,
                            )
                        )  # fmt: skip
                        if any(not 0 <= p < edge for p, edge in zip(place, edges, strict=True)):
                            continue
                        here, there = (step, place) if transposed else (place, step)
                        at = (in_channel, o, *k) if transposed else (out_channel, i, *k)
                        found[n, out_channel, *there].append(((n, in_channel, *here), at))
        return found

    def bias_of(self, out: tuple[int, ...]) -> int:
        """Return which bias an output has."""
        return out[-1] if self.w.ndim == 2 else out[1]

    def forward(self, a: Array) -> Array:
        self.a, self.found = a, self.connections(a)
        self.z = np.zeros([max(out[axis] for out in self.found) + 1
                           for axis in range(len(next(iter(self.found))))])  # fmt: skip
        for out, connections in self.found.items():
            self.z[out] = sum(self.w[at] * a[here] for here, at in connections)
            if self.b is not None:
                self.z[out] += self.b[self.bias_of(out)]
        self.z = self.agreed(self.z)
        return self.z

    def bounds(self, sample: int) -> tuple[float, float]:
        """Return the bounds of the box rule: its own, or those of the sample."""
        if getattr(self.rule, "low", None) is not None:
            return self.rule.low, self.rule.high
        return self.a[sample].min(), self.a[sample].max()

    def backward(self, r: Array) -> Array:
        r_in, d_w = np.zeros_like(self.a), np.zeros_like(self.w)
        d_b = None if self.b is None else np.zeros_like(self.b)
        for out, connections in self.found.items():
            products = [(self.w[at], self.a[here]) for here, at in connections]
            bounds = [self.bounds(out[0])] * len(products)
            if self.b is not None:
                products.append((self.b[self.bias_of(out)], 1.0))
                bounds.append((1.0, 1.0))
            parts = messages(self.rule, products, bounds, r[out], self.own_epsilon)
            plain = type(self.rule).__name__ in ("Epsilon", "Zero")
            s = share(r[out], self.z[out], self.own_epsilon if plain else self.epsilon)
            for (here, at), part, (w, a) in zip(connections, parts, products, strict=False):
                r_in[here] += part
                d_w[at] += (part if w >= 0 else -part) if self.by_rule else abs(w) * a * s
            if self.b is not None:
                j = self.bias_of(out)
                signed = parts[-1] if self.b[j] >= 0 else -parts[-1]
                d_b[j] += signed if self.by_rule else abs(self.b[j]) * s
        self.feedback = {"weight": d_w} | ({} if self.b is None else {"bias": d_b})
        if type(self.rule).__name__ in ("Flat", "Box"):
            # Credit is kept per unit of activation: an input near 0 hands on next to nothing.
            for index in np.ndindex(*r_in.shape):
                a = self.a[index]
                r_in[index] = 0.0 if a == 0 else a * share(r_in[index], a, self.own_epsilon)
        return r_in


def decomposed_twin(
    model: nn.Sequential,
    rule_of: Callable[[str], Any],
    epsilon: float,
    feedback: str,
    phi: Any,
    seen: dict[nn.Module, Array],
) -> Chain:
    """Return the slow twin of a chain of modules; `rule_of` maps names of layers to rules."""
    layers: dict[str, Layer] = {}
    for name, module in model.named_children():
        if hasattr(module, "weight") and module.weight.ndim > 1:
            layers[name] = Decomposed(module, rule_of(name), epsilon, feedback, seen.get(module))
        else:
            layers[name] = twin(module, epsilon, phi, seen)
    return Chain(layers)
