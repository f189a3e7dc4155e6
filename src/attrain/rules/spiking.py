"""Credit through spikes: the rules of leaky integrate-and-fire neurons, and which neurons fit them.

U[t] = beta U[t-1] + W X[t] + b - theta R[t], S[t] = H(U[t] - theta) (paper 2308.12053, A.2, A.3).
The membrane is a sum, which credit passes as it is, and the reset is detached. So only the spike
needs a rule, and both large libraries let a user give it: as the function that makes the spike.
"""

import weakref
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain import audit
from attrain.errors import CreditError, InputError, unknown

RULES = ("pure", "paper")
HIDDEN_EPSILON = 1e-6
OUTPUT_EPSILON = 1.0
# Keeps a reward finite at a membrane of exactly 0, where the paper's rule divides and multiplies.
_TINY = 1e-30


def _fired(z: Tensor) -> Tensor:
    """Return H(z) in the type of z; a comparison and a cast would take nine times as long."""
    return torch.gt(z, 0, out=torch.empty_like(z))


class Spike(torch.autograd.Function):
    """H(U - theta) of a hidden neuron; on the way back credit times S / (U + epsilon)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Any, epsilon: float) -> Tensor:
        ctx.scaled = ()
        ctx.shift = threshold + epsilon
        ctx.save_for_backward(z)
        return _fired(z)

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        # Division by infinity is the silence of neurons below the threshold.
        membrane = F.threshold(z, 0.0, torch.inf).add_(ctx.shift)
        return torch.div(credit, membrane, out=membrane), None, None


class OutputSpike(torch.autograd.Function):
    """H(U - theta) of an output; what comes back is the reward itself: r / (|U| + epsilon)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Any, epsilon: float) -> Tensor:
        ctx.scaled = ()
        ctx.threshold, ctx.epsilon = threshold, epsilon
        ctx.save_for_backward(z)
        return _fired(z)

    @staticmethod
    def backward(ctx: Any, reward: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        size = (z + ctx.threshold).abs_().add_(ctx.epsilon)
        return torch.div(reward, size, out=size), None, None


class WholeSpike(torch.autograd.Function):
    """A spike under the paper's rule: the whole reward goes to the membrane, which shares it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Any, output: bool) -> Tensor:
        ctx.scaled = ()
        ctx.threshold, ctx.output = threshold, output
        ctx.save_for_backward(z)
        return _fired(z)

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        membrane = _away_from_zero(z + ctx.threshold)
        share = credit / membrane
        return share if ctx.output else share * (z > 0), None, None


class Membrane(torch.autograd.Function):
    """Identity; on the way back credit times U / (D + epsilon), the paper's denominator."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, size: Tensor, epsilon: float) -> Tensor:
        ctx.scaled = ()
        ctx.epsilon = epsilon
        ctx.save_for_backward(u, size)
        return u.view_as(u)

    @staticmethod
    def backward(ctx: Any, credit: Tensor) -> Any:
        u, size = ctx.saved_tensors
        return credit * _away_from_zero(u) / (size + ctx.epsilon), None, None


def _away_from_zero(u: Tensor) -> Tensor:
    return u + torch.copysign(torch.tensor(_TINY, dtype=u.dtype, device=u.device), u)


audit.REGISTERED |= {
    f"{function.__name__}Backward" for function in (Spike, OutputSpike, WholeSpike, Membrane)
}


class SecantSpike(nn.Module):
    """The function that makes spikes, with a rule of credit in place of a surrogate gradient.

    `secant_spike` builds it and says what it takes. It holds no parameters.
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        output: bool = False,
        rule: Literal["pure", "paper"] = "pure",
        epsilon: float | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise unknown("rule of spikes", str(rule), RULES)
        low = float(torch.as_tensor(threshold).min())
        if not 0.0 < low < float("inf"):
            raise InputError(
                f"threshold={low:g} is not possible: the secant of a spike is S / U, which needs "
                "a threshold above 0."
            )
        if epsilon is None:
            epsilon = OUTPUT_EPSILON if output and rule == "pure" else HIDDEN_EPSILON
        if not 0.0 <= epsilon < float("inf") or (output and epsilon == 0.0):
            wanted = "above 0, since an output's membrane may be 0" if output else "0 or more"
            raise InputError(f"epsilon={epsilon} is not possible: give a finite number {wanted}.")
        if beta is not None and not 0.0 <= beta <= 1.0:
            raise InputError(f"beta={beta} is no decay of a membrane: it must lie in 0..1.")
        self.threshold, self.output, self.rule = threshold, bool(output), rule
        self.epsilon, self.beta = float(epsilon), beta
        self._before: Tensor | None = None
        self._shared: weakref.ref[Tensor] | None = None

    def extra_repr(self) -> str:
        """Return what was asked for."""
        role = "output" if self.output else "hidden"
        return f"{role}, threshold={self.threshold}, rule={self.rule!r}, epsilon={self.epsilon:g}"

    def forward(self, z: Tensor) -> Tensor:
        """Return the spikes, 1 where z = U - threshold is above 0, else 0, in the shape of z."""
        if self.rule == "pure":
            kind: Any = OutputSpike if self.output else Spike
            return kind.apply(z, self.threshold, self.epsilon)  # type: ignore[no-any-return]
        spikes: Tensor = WholeSpike.apply(z, self.threshold, self.output)
        if self.beta is not None and z.requires_grad:
            self._share_through_graph(z)
        self._before = (z + self.threshold).detach()
        return spikes

    def membrane(self, u: Tensor) -> Tensor:
        """Return the membrane U unchanged; for `state_quant` of snnTorch, under rule="paper".

        snnTorch computes the reset from U[t-1] through the spike function just before it makes
        U[t], so this object knows both. Raises CreditError outside that order.
        """
        if self.rule != "paper":
            raise CreditError(
                "membrane() belongs to rule='paper': leave state_quant out, or build the spike "
                "function with secant_spike(rule='paper')."
            )
        if self._shared is not None and u is self._shared():  # asked again when the neuron fires
            return u
        before = self._before
        if before is None or before.shape != u.shape:
            raise CreditError(
                "rule='paper' has not seen the membrane of the step before: give the same object "
                "as spike_grad=spike and state_quant=spike.membrane to one snnTorch neuron."
            )
        shared: Tensor = u
        if u.requires_grad:
            size = denominator(u.detach(), before, self.threshold, self.threshold)
            shared = Membrane.apply(u, size, self.epsilon)
        self._shared = weakref.ref(shared)
        return shared

    def reset(self) -> None:
        """Forget the membrane of the step before; SpikingJelly's reset_net calls it."""
        self._before = self._shared = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts a sequence of its own.
        return self.__dict__ | {"_before": None, "_shared": None}

    def _share_through_graph(self, z: Tensor) -> None:
        """Scale the credit of U where it arrives: SpikingJelly has no place for a function of U."""
        assert self.beta is not None and z.grad_fn is not None
        u = (z + self.threshold).detach()
        before = self._before
        if before is None or before.shape != u.shape:
            before = torch.zeros_like(u)
        size = denominator(u, before, self.threshold, self.beta * self.threshold)
        epsilon = self.epsilon

        def share(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            (credit,) = gradients
            if credit is None:
                return gradients
            return (credit * _away_from_zero(u) / (size + epsilon),)

        z.grad_fn.next_functions[0][0].register_prehook(share)  # type: ignore[union-attr]


def denominator(
    u: Tensor, before: Tensor, threshold: float | Tensor, drop: float | Tensor
) -> Tensor:
    """Return the D that the paper's authors divide by: |U[t-1]| + |I[t] - (1 - beta) U[t-1]|.

    u, before: the membrane U[t] and U[t-1], both before their resets. I[t] = W X[t] + b follows
    from U[t] = beta U[t-1] + I[t] - drop R[t], so that beta cancels. drop: what a spike takes from
    the membrane at t, the threshold, or beta times it where the reset decays as well.
    """
    return before.abs() + (u - before + drop * (before > threshold).to(u.dtype)).abs()


_SNNTORCH = ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
_SPIKINGJELLY = ("LIFNode", "IFNode", "SimpleLIFNode", "SimpleIFNode")


def neurons(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, str]]:
    """Yield the spiking neurons of snnTorch and SpikingJelly: name, module, library, kind."""
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith("snntorch._neurons."):
                yield name, module, "snnTorch", kind.__name__
                break
            if kind.__module__.startswith("spikingjelly.activation_based.neuron."):
                yield name, module, "SpikingJelly", kind.__name__
                break


def check_neurons(model: nn.Module) -> bool:
    """Return whether `model` has spiking neurons; refuse those whose credit has no rule.

    Raises CreditError that names the layer: for neurons of an unknown kind, a surrogate in place
    of a secant, a reset that is not detached or goes to a value, a learned threshold, and
    settings that contradict those of the spike function.
    """
    found = False
    sharing: dict[int, str] = {}
    for name, neuron, library, kind in neurons(model):
        found = True
        layer = f"layer {name!r} ({kind} of {library})" if name else f"{kind} of {library}"
        known = _SNNTORCH if library == "snnTorch" else _SPIKINGJELLY
        if kind not in known:
            raise CreditError(
                f"{layer}: credit has no rule for neurons of this kind, only for "
                f"{', '.join(known)}. Use one of these."
            )
        spike = _spike_of(neuron, library, layer)
        if library == "snnTorch":
            _check_snntorch(neuron, spike, kind, layer)
        else:
            _check_spikingjelly(neuron, spike, kind, layer)
        if spike.rule == "paper" and id(spike) in sharing:
            raise CreditError(
                f"{layer} shares its spike function with {sharing[id(spike)]}, and rule='paper' "
                "keeps the membrane of one layer: build a secant_spike for each."
            )
        sharing[id(spike)] = layer
    return found


def _spike_of(neuron: Any, library: str, layer: str) -> SecantSpike:
    argument = "spike_grad" if library == "snnTorch" else "surrogate_function"
    spike = getattr(neuron, argument, None)
    if not isinstance(spike, SecantSpike):
        raise CreditError(
            f"{layer} makes its spikes with another function than credit knows. Build it with "
            f"{argument}=attrain.spiking.secant_spike(threshold=...), and output=True in the last "
            "layer."
        )
    held = getattr(neuron, "threshold" if library == "snnTorch" else "v_threshold")
    if isinstance(held, nn.Parameter):
        raise CreditError(
            f"{layer} learns its threshold, by which the secant of a spike is made: leave "
            "learn_threshold out."
        )
    a, b = (torch.as_tensor(each).double().cpu() for each in (held, spike.threshold))
    same = bool(torch.equal(a, b)) if a.shape == b.shape else bool((a == b).all())
    if not same:
        raise CreditError(
            f"{layer} has the threshold {_shown(held)}, its secant_spike {_shown(spike.threshold)}"
            ": give both the same."
        )
    return spike


def _shown(threshold: Any) -> str:
    tensor = torch.as_tensor(threshold)
    return f"{tensor.item():g}" if tensor.numel() == 1 else f"of shape {tuple(tensor.shape)}"


def _check_snntorch(neuron: Any, spike: SecantSpike, kind: str, layer: str) -> None:
    if neuron.reset_mechanism == "zero":
        raise CreditError(
            f"{layer} resets its membrane to zero, which no sum of contributions describes: use "
            "reset_mechanism='subtract'."
        )
    if not getattr(neuron, "reset_delay", True):
        raise CreditError(
            f"{layer} has reset_delay=False: its reset is not detached, and reward would leak "
            "through it. Leave reset_delay at True."
        )
    quantiser = neuron.state_quant
    if spike.rule == "paper":
        if kind != "Leaky" or neuron.reset_mechanism != "subtract":
            raise CreditError(
                f"{layer}: rule='paper' is defined for Leaky neurons that reset by subtraction. "
                "Use those, or rule='pure'."
            )
        if getattr(quantiser, "__self__", None) is not spike:
            raise CreditError(
                f"{layer}: rule='paper' also needs the membrane: build the neuron with "
                "spike_grad=spike, state_quant=spike.membrane."
            )
    elif quantiser:
        raise CreditError(
            f"{layer} quantises its membrane, and credit has no rule for that: leave state_quant "
            "out."
        )


def _check_spikingjelly(neuron: Any, spike: SecantSpike, kind: str, layer: str) -> None:
    if neuron.v_reset is not None:
        raise CreditError(
            f"{layer} resets its membrane to {neuron.v_reset:g}, which no sum of contributions "
            "describes: use v_reset=None, a reset by subtraction."
        )
    if not neuron.detach_reset:
        raise CreditError(
            f"{layer}: its reset is not detached, and reward would leak through it. Use "
            "detach_reset=True."
        )
    if spike.rule == "paper":
        decay = 1 - 1 / neuron.tau if "LIF" in kind else 1.0
        if spike.beta is None or abs(spike.beta - decay) > 1e-6:
            raise CreditError(
                f"{layer}: rule='paper' needs the decay of its membrane. Build it with "
                f"secant_spike(rule='paper', beta={decay:g})."
            )
