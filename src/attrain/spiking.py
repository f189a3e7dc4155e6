"""Spiking networks under credit: their spike function, their activity, and how it is kept alive."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.errors import CreditWarning, InputError
from attrain.rules.spiking import SecantSpike, neurons

__all__ = [
    "Activity",
    "LayerActivity",
    "Recording",
    "SecantSpike",
    "activity",
    "match_activity_",
    "record",
    "secant_spike",
    "warn_of_silence",
]

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_HALVINGS = 12
_LARGEST_SCALE = 2.0**20


def secant_spike(
    threshold: float | Tensor = 1.0,
    output: bool = False,
    rule: Literal["pure", "paper"] = "pure",
    *,
    epsilon: float | None = None,
    beta: float | None = None,
) -> SecantSpike:
    """Return the spike function of a layer of neurons, through which credit passes without slopes.

    snn.Leaky(spike_grad=secant_spike(threshold=1.0)), and in SpikingJelly
    LIFNode(surrogate_function=secant_spike(), detach_reset=True, v_reset=None). It maps
    U - threshold to 1 where that is above 0, else to 0 (Weber et al., equation A.2). Credit per
    unit is multiplied by the secant S / (U + epsilon) on the way back, at most 1 / threshold.

    Args:
        threshold: the neuron's, above 0; a tensor where neurons have thresholds of their own.
        output: for the last layer, where the reward of `attrain.rewards.spike_count` arrives and
            silent neurons are rewarded, too: r / (|U| + epsilon).
        rule: "pure" treats the membrane as a sum; "paper" divides by the D of the authors' code,
            |U[t-1]| + |I[t] - (1 - beta) U[t-1]| + epsilon, and needs one object per layer. In
            snnTorch give `state_quant=spike.membrane` as well.
        epsilon: the stabiliser, in units of the membrane. None: 1e-6, and 1 for an output under
            the pure rule, whose membrane may be 0.
        beta: decay of the membrane, 1 - 1 / tau; only SpikingJelly under "paper" needs it.

    Raises InputError for an unknown rule and for numbers out of range.
    """
    return SecantSpike(threshold, output, rule, epsilon, beta)


# Activity -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerActivity:
    """How much a layer of neurons fires: mean rate per step, and the share that never did."""

    name: str
    neurons: int
    rate: float
    silent: float


@dataclass(frozen=True)
class Activity:
    """What one inference costs: the mean over the samples that were shown.

    spikes: of all neurons in all steps. synaptic_operations: additions that spikes cause, one per
    spike and connection it reaches. multiplications: those of layers whose inputs are not spikes,
    zeros left out. `layers` are in the order in which they fire.
    """

    layers: tuple[LayerActivity, ...]
    spikes: float
    synaptic_operations: float
    multiplications: float

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of the layers in which no neuron fired."""
        return tuple(layer.name for layer in self.layers if layer.rate == 0.0)


@dataclass
class _Count:
    """What the steps of one layer add up to; `fired` is per neuron, over samples and steps."""

    fired: Tensor | None = None
    shown: int = 0

    def add(self, spikes: Tensor, leading: int) -> None:
        over = tuple(range(leading))
        total = spikes.sum(over, dtype=torch.float64)
        self.fired = total if self.fired is None else self.fired + total
        self.shown += math.prod(spikes.shape[:leading])


@torch.no_grad()
def activity(model: nn.Module, x: Tensor, *, batch_dim: int = 0) -> Activity:
    """Run `x` through `model` once and count spikes and synaptic operations.

    model: with neurons of snnTorch or SpikingJelly, whatever makes their spikes. Its states are
    not reset first. x: the model's input, with the samples in dimension `batch_dim`.

    Raises InputError for a model without such neurons.
    """
    counts: dict[str, _Count] = {}
    cost = {"spikes": 0.0, "operations": 0.0, "multiplications": 0.0}

    def fired(name: str, module: nn.Module, out: Any) -> None:
        spikes = _spikes(out)
        cost["spikes"] += float(spikes.sum(dtype=torch.float64))
        counts.setdefault(name, _Count()).add(spikes, _leading(module))

    def connected(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        kind = "operations" if _binary(inputs[0]) else "multiplications"
        cost[kind] += _reached(module, inputs[0], out)

    with ExitStack() as stack:
        for name, neuron, _, _ in _required(model):
            handle = neuron.register_forward_hook(
                lambda module, inputs, out, name=name: fired(name, module, out)
            )
            stack.callback(handle.remove)
        for module in model.modules():
            if isinstance(module, nn.Linear) or type(module) in _CONVOLUTIONS:
                stack.callback(module.register_forward_hook(connected).remove)
        model(x)
    samples = x.shape[batch_dim]
    layers = tuple(
        LayerActivity(
            name,
            count.fired.numel(),
            float(count.fired.sum()) / (count.shown * count.fired.numel()),
            float((count.fired == 0).double().mean()),
        )
        for name, count in counts.items()
        if count.fired is not None
    )
    return Activity(
        layers,
        cost["spikes"] / samples,
        cost["operations"] / samples,
        cost["multiplications"] / samples,
    )


def _required(model: nn.Module) -> list[tuple[str, nn.Module, str, str]]:
    found = list(neurons(model))
    if not found:
        raise InputError(
            f"{type(model).__name__} has no spiking neurons of snnTorch or SpikingJelly: there is "
            "no activity to look at."
        )
    return found


def _spikes(out: Any) -> Tensor:
    spikes: Tensor = out[0] if isinstance(out, tuple) else out
    return spikes


def _leading(neuron: nn.Module) -> int:
    """Return how many dimensions of the spikes are steps and samples, not neurons."""
    return 2 if getattr(neuron, "step_mode", "s") == "m" else 1


def _binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _reached(module: nn.Module, x: Tensor, out: Tensor) -> float:
    """Return the number of connections that the values of `x` other than 0 reach."""
    used = (x != 0).to(out.dtype)
    if isinstance(module, nn.Linear):
        return float(used.sum(dtype=torch.float64)) * module.out_features
    layer: Any = module
    # One channel stands for all outputs of a group: they have the same connections.
    groups, padding = layer.groups, layer.padding
    if layer.padding_mode != "zeros":
        used = F.pad(used, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    reached = _CONVOLUTIONS[type(layer)](
        used,
        out.new_ones(groups, *layer.weight.shape[1:]),
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        groups=groups,
    )
    each = float(reached.sum(dtype=torch.float64))
    return each * int(layer.out_channels) / int(groups)


def warn_of_silence(model: nn.Module, x: Tensor, *, batch_dim: int = 0) -> Activity:
    """Warn (CreditWarning) by name of layers that never fire for `x`; return the activity.

    No reward passes through silent neurons, so nothing before such a layer learns; the output
    layer of `secant_spike(output=True)` hands its reward on all the same, and is not warned of.
    """
    found = activity(model, x, batch_dim=batch_dim)
    outputs = {name for name, neuron, *_ in neurons(model) if _is_output(neuron)}
    dead = [name for name in found.dead if name not in outputs]
    if dead:
        warnings.warn(
            f"{'layers' if len(dead) > 1 else 'layer'} {', '.join(map(repr, dead))} never fired "
            f"for these {x.shape[batch_dim]} samples: no reward passes through silent neurons, and "
            "nothing before them learns. Start with attrain.spiking.match_activity_(model, x), or "
            "a larger beta; if they fired before, clip with attrain.optim.adaptive_clip_grad_ or "
            "lower the learning rate.",
            CreditWarning,
            stacklevel=2,
        )
    return found


def _is_output(neuron: nn.Module) -> bool:
    spike = getattr(neuron, "spike_grad", getattr(neuron, "surrogate_function", None))
    return isinstance(spike, SecantSpike) and spike.output


# Initialisation -----------------------------------------------------------------------------------


@torch.no_grad()
def match_activity_(model: nn.Module, x: Tensor, rate: float = 0.15) -> dict[str, float]:
    """Scale the weights before each layer of neurons, in place, until its mean rate is `rate`.

    Layers are taken in the order in which they fire for the batch `x`, and each by the linear or
    convolution layer that ran last before it, bias included. Returns the factor by the name of
    that layer. Models whose weights start too small never fire, and then never learn.

    Raises InputError for a rate outside 0..1, a model without spiking neurons, and a layer that no
    factor brings to fire at half of `rate`.
    """
    if not 0.0 < rate < 1.0:
        raise InputError(f"rate={rate} is no firing rate: give a share of the steps in 0..1.")
    pairs = _feeders(model, x)
    factors = {}
    for name, (feeder_name, feeder) in pairs.items():
        parameters = [each for each in feeder.parameters(recurse=False)]
        before = [each.clone() for each in parameters]

        def firing(
            factor: float, name: str = name, parameters: Any = parameters, before: Any = before
        ) -> float:
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start * factor)
            rates = {layer.name: layer.rate for layer in activity(model, x).layers}
            return rates.get(name, 0.0)

        low, high = 0.0, 1.0
        while firing(high) < rate and high < _LARGEST_SCALE:
            low, high = high, high * 2
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if firing(middle) < rate else (low, middle)
        if firing(high) < rate / 2:
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start)
            raise InputError(
                f"layer {name!r} stays silent whatever the size of the weights of "
                f"{feeder_name!r}: its inputs are 0, or all its weights are negative. Look at the "
                "inputs, or draw the weights again."
            )
        factors[feeder_name] = high
    return factors


def _feeders(model: nn.Module, x: Tensor) -> dict[str, tuple[str, nn.Module]]:
    """Return, by the name of each layer of neurons, the weights that ran last before it."""
    last: list[tuple[str, nn.Module]] = []
    pairs: dict[str, tuple[str, nn.Module]] = {}

    def met(name: str) -> None:
        if name not in pairs and last and last[-1] not in pairs.values():
            pairs[name] = last[-1]

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or type(module) in _CONVOLUTIONS:
                handle = module.register_forward_hook(
                    lambda module, inputs, out, name=name: last.append((name, module))
                )
                stack.callback(handle.remove)
        for name, neuron, _, _ in _required(model):
            handle = neuron.register_forward_hook(lambda module, inputs, out, name=name: met(name))
            stack.callback(handle.remove)
        model(x)
    return pairs


# What is drawn ------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What a layer of neurons did in every step: spikes and membranes, each [T, N, ...].

    `membranes` is empty where the library does not hand them out.
    """

    name: str
    spikes: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def record(model: nn.Module, x: Tensor) -> list[Recording]:
    """Run `x` through `model` once and return what each layer of neurons did, first to last.

    Membranes are those after the step: before the reset in snnTorch, after it in SpikingJelly.
    Raises InputError for a model without spiking neurons.
    """
    found: dict[str, Recording] = {}

    def heard(name: str, neuron: Any, out: Any) -> None:
        layer = found.setdefault(name, Recording(name))
        spikes = _spikes(out).detach().clone()
        layer.spikes.extend(spikes.unbind(0) if _leading(neuron) == 2 else [spikes])
        membrane = out[-1] if isinstance(out, tuple) else getattr(neuron, "v", None)
        if isinstance(membrane, Tensor) and _leading(neuron) == 1:
            layer.membranes.append(membrane.detach().clone())

    with _listening(model, heard):
        model(x)
    return list(found.values())


@contextmanager
def _listening(model: nn.Module, heard: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for name, neuron, _, _ in _required(model):
            handle = neuron.register_forward_hook(
                lambda module, inputs, out, name=name: heard(name, module, out)
            )
            stack.callback(handle.remove)
        yield
