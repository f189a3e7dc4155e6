"""The credit context: run a model's forward pass under the rules of LFP."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch._C._dynamo import eval_frame
from torch.overrides import TorchFunctionMode

from attrain import audit, marks
from attrain.compiled import COMPILED, left_to_python
from attrain.errors import CreditError, CreditWarning, InputError, unknown
from attrain.marks import Kind, Mark
from attrain.rules import activation, linear
from attrain.rules.activation import refuse_decision
from attrain.rules.call import Action, Call, Scale, Settings, name_of, place
from attrain.rules.decomposition import Decomposition, Epsilon, check_epsilon
from attrain.rules.layer import Layers, layered
from attrain.rules.linear import unsupported
from attrain.rules.presets import Assignment, default_of, rule_finder
from attrain.rules.recurrent import SHARES
from attrain.rules.registry import REGISTRY, SHORTCUTS, bookkeeping
from attrain.rules.spiking import check_neurons
from attrain.wrappers import teach_torch

FEEDBACK = ("rule", "epsilon")
SCALES = ("abs", "relative", "contraharmonic", "hypentropy")


class LFP:
    """Layer-wise Feedback Propagation as a context around the forward pass.

    with credit: out = model(x)
    attrain.rewards.softmax(out, y).backward()      # .grad now holds -feedback

    The model is not wrapped, hooked or changed. Any optimizer that minimises performs LFP
    (paper 2308.12053, equations 4 to 10). A copy (copy.deepcopy, pickle) belongs to the copied
    model. Threads may share a context; each one enters it for itself.

    What torch.compile made runs eagerly inside the context, because a compiled graph has no rules:
    the feedback is right and the compiler gains nothing there.

    In a model with spiking neurons of snnTorch or SpikingJelly, epsilon stands in their spike
    function (attrain.spiking.secant_spike) alone.

    Parameters
    ----------
    model: a module, or the tensors that count as parameters of functional code.
    rule: "epsilon", the paper's LFP-epsilon; "zero", LFP-0, which is epsilon=0; another name, a
        preset or a rule of attrain.rules: how linear and convolution layers share their reward.
    rules: names, patterns ("features.*") or types of modules -> the rules of these layers. A name
        beats a pattern, a pattern a type, all of them `rule`; among equals the later wins.
    feedback: "rule", a parameter gets sign(w) times its rule's message (equation 4); "epsilon",
        what the epsilon rule would give it, for the reward that arrived by the rules.
    epsilon: the stabiliser of equation 6; 0 is cheapest and, for ReLU networks, exact backprop.
    scale: "abs", feedback = |w| times the gradient under the rules (the paper); "relative"
        divides |w| by its mean over the tensor, so that a learning rate of gradient descent
        carries over; "contraharmonic" divides by sum w^2 / sum |w|, the mean that weighs each
        weight by itself, which does not fall as a tensor becomes sparse; "hypentropy" puts
        sqrt(w^2 + beta^2) in the place of |w|, which is LFP for beta 0 and beta times gradient
        descent for a large one (Ghai, Hazan and Singer, 2020).
    beta: in the units of the weights. "hypentropy" needs it; with "relative" and "contraharmonic"
        the size of a weight is sqrt(w^2 + beta^2) too, in the mean as well, so that a large beta is
        gradient descent at its own learning rate. With a beta above 0 parameters that are exactly
        0 learn.
    batch_norm: "constant" statistics (equations 9 and 10), or "through" them.
    opposite_sign: "keep" or "flip" the reward where an activation changes the sign (footnote 12).
    gate: what the gates of LSTM and GRU take of the credit of what they let through: "half" (the
        uniform rule of AttnLRP), or "none" (Arras et al., 2017), with which gates do not learn.

    Raises InputError for unknown options; CreditError, inside the context, for a function that has
    no rule, and for spiking neurons that have none. Warns (CreditWarning) by name of parameters
    that are exactly zero, which |w| keeps there, and of activations that do not keep the sign.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        rule: str | Decomposition = "epsilon",
        *,
        rules: Assignment | None = None,
        feedback: Literal["rule", "epsilon"] = "rule",
        epsilon: float = 1e-6,
        scale: Literal["abs", "relative", "contraharmonic", "hypentropy"] = "abs",
        beta: float | None = None,
        batch_norm: Literal["constant", "through"] = "constant",
        opposite_sign: Literal["keep", "flip"] = "keep",
        gate: Literal["half", "none"] = "half",
    ) -> None:
        for kind, value, known in (
            ("feedback", feedback, FEEDBACK),
            ("scale", scale, SCALES),
            ("batch_norm", batch_norm, ("constant", "through")),
            ("opposite_sign", opposite_sign, ("keep", "flip")),
            ("gate", gate, SHARES),
        ):
            if value not in known:
                raise unknown(kind, str(value), known)
        check_epsilon(epsilon)
        default = default_of(rule)
        if isinstance(default, Epsilon) and default.epsilon is not None:
            epsilon = default.epsilon
        _check_beta(scale, beta)
        self.rule, self.epsilon, self.scale = rule, float(epsilon), scale
        self.rules, self.feedback = None if rules is None else dict(rules), feedback
        self.beta = 0.0 if beta is None else float(beta)
        self.batch_norm, self.opposite_sign, self.gate = batch_norm, opposite_sign, gate
        self._model: nn.Module | tuple[Tensor, ...] = (
            model if isinstance(model, nn.Module) else _own_tensors(model)
        )
        self._prepare()
        self._warn_of_zeros()

    def _prepare(self) -> None:
        self._ready = True
        spiking = isinstance(self._model, nn.Module) and check_neurons(self._model)
        self._warned: set[str] = set()
        self._audited = -1
        self._audited_parts: set[tuple[int, str]] = set()
        self._entered = _Entered()
        scale = Scale(
            relative=self.scale in ("relative", "contraharmonic"),
            beta=self.beta,
            contraharmonic=self.scale == "contraharmonic",
        )
        self._settings = Settings(
            epsilon=self.epsilon,
            scale=scale,
            batch_norm=self.batch_norm,
            opposite_sign=self.opposite_sign,
            gate=self.gate,
            # Known by identity: they live as long as this context, which keeps the model.
            parameters=frozenset(
                () if isinstance(self._model, nn.Module) else map(id, self._model)
            ),
            plain=Mark(audit=self._audit_if_due),
            # Sums that make a membrane are one neuron, whose stabiliser is in its spike.
            pending=Mark(epsilon=0.0 if spiking else self.epsilon, audit=self._audit_if_due),
            objective=Mark(Kind.OBJECTIVE),
            scaled=Action(scale=scale),
            scaled_own=Action(scale=scale, own=True),
            is_constant=self._is_constant,
            warn_once=self._warn_once,
            adopt=self._adopt,
            reenter=self._reenter,
        )
        rule_of = rule_finder(self._model, self.rule, self.rules)
        self._mode = _Mode(self) if rule_of is None else _LayerMode(self, rule_of)
        if rule_of is not None and self.feedback == "rule" and self.beta:
            raise InputError(
                f"beta={self.beta!r} scales a gradient, and the message of a rule is none: use "
                "feedback='epsilon', or scale='abs' or 'relative' without beta."
            )

    def __getstate__(self) -> dict[str, Any]:
        options = (
            "rule", "rules", "feedback", "epsilon", "scale", "beta", "batch_norm",
            "opposite_sign", "gate", "_model",
        )  # fmt: skip
        return {name: getattr(self, name) for name in options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ready = False  # a model that holds this context is whole only later

    def __repr__(self) -> str:
        beta = f"beta={self.beta:g}, " if self.beta else ""
        return (
            f"LFP({type(self._model).__name__}, {self._shown_rules()}epsilon={self.epsilon:g}, "
            f"scale={self.scale!r}, "
            f"{beta}batch_norm={self.batch_norm!r}, opposite_sign={self.opposite_sign!r}, "
            f"gate={self.gate!r})"
        )

    def _shown_rules(self) -> str:
        if not self._ready:
            self._prepare()
        if isinstance(self._mode, _LayerMode):
            rules = "" if self.rules is None else f"rules={self.rules!r}, "
            return f"rule={self.rule!r}, {rules}feedback={self.feedback!r}, "
        return ""

    @left_to_python
    def __enter__(self) -> Self:
        # Before anything else is called: a function called here would be compiled.
        compiler = eval_frame.set_eval_frame(None)
        try:
            if not self._ready:
                self._prepare()
            mode = _active_mode()
            if mode is not None and mode is not self._mode:
                raise CreditError(
                    "another credit context is active here, and feedback would be scaled twice. "
                    "Leave it before entering this one."
                )
            if mode is None:
                teach_torch(_active_mode)
                COMPILED.run_eagerly()
                self._settings.begin()
                self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._entered.stack.append((mode is None, compiler))
        except BaseException:
            eval_frame.set_eval_frame(compiler)
            raise
        return self

    @left_to_python
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        outermost, compiler = self._entered.stack.pop()
        try:
            if outermost:
                last = self._settings.end()
                self._mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
                COMPILED.run_as_before()
                if error is None and last is not None:
                    self._audit_if_due(last)
        finally:
            eval_frame.set_eval_frame(compiler)

    def _reenter(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` under the rules; the mode is switched off while it handles a call."""
        with self._mode:
            return function(*args, **kwargs)

    def _again(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` under the rules a second time, in the backward pass."""
        calls, last = self._settings.calls, self._settings.last
        try:
            with self:
                try:
                    return function(*args)
                finally:
                    # What is computed again is no output to be audited.
                    self._settings.last = None
        finally:
            self._settings.calls, self._settings.last = calls, last

    def _is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor without gradient is part of the model: frozen, or a buffer."""
        return self._is_parameter(tensor) or (
            isinstance(self._model, nn.Module)
            and any(tensor is each for each in self._model.buffers())
        )

    def _is_parameter(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor) in self._settings.parameters

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, CreditWarning, stacklevel=2)

    def _warn_of_zeros(self) -> None:
        if self.beta:
            return
        names = [
            name
            for name, parameter in _named(self._model)
            if parameter.requires_grad and not _lazy(parameter) and not parameter.detach().any()
        ]
        if names:
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "")
            self._warn_once(
                "zeros",
                f"exactly zero and, since feedback is scaled by |w|, staying there: {shown}. "
                "Start them small and random, for example torch.nn.init.normal_(p, std=0.01), "
                "or scale by scale='hypentropy', beta=0.01, if they should learn.",
            )

    def _adopt(self, tensor: Tensor) -> Mark | None:
        """Return the mark of a tensor that a known autograd function made, None if unknown."""
        node: Any = tensor.grad_fn
        name = node.name()
        if name == audit.CHECKPOINT:
            return self._settings.plain if hasattr(node, "scaled") else None
        if name == audit.OBJECTIVE:
            return self._settings.objective
        return self._settings.plain if name in audit.REGISTERED else None

    def _audit_if_due(self, out: Tensor) -> None:
        """Audit the graph behind `out` the first time, and when the model made other calls."""
        if self._audited != self._settings.calls:
            audit.check(out)
            self._audited = self._settings.calls

    def _audit_part(self, out: Tensor) -> None:
        """Audit what reentrant checkpointing computed again: the first pass left no graph."""
        assert out.grad_fn is not None
        part = (self._settings.calls, out.grad_fn.name())
        if part not in self._audited_parts:
            audit.check(out)
            self._audited_parts.add(part)


def is_active() -> bool:
    """Tell whether this thread is in a credit context."""
    return _active_mode() is not None


@contextmanager
def natively() -> Iterator[None]:
    """Run what is inside without rules, also where this thread is in a credit context."""
    if not is_active():
        yield
        return
    with torch._C.DisableTorchFunction():
        yield


class _Mode(TorchFunctionMode):
    """Sees every torch function called inside the context and hands it to its rule."""

    def __init__(self, credit: LFP) -> None:
        super().__init__()
        self.credit = credit
        self.settings = credit._settings
        self.again = credit._again
        self.is_parameter = credit._is_parameter
        self.audit_part = credit._audit_part

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        try:
            shortcut = SHORTCUTS.get(func)
            if shortcut is not None:
                out = shortcut(self.settings, func, args, kwargs)
                if out is not None:
                    return out
            rule = REGISTRY.get(func)
            if rule is bookkeeping:
                return func(*args, **kwargs)
            call = Call(self.settings, func, args, kwargs)
            if call.entrants:
                if call.judged:
                    return call.finish_objective(call.run())
                return rule(call) if rule is not None else _unregistered(call)
            if call.decisions:
                return _decided(call, rule)
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "functorch" not in str(error):
                raise
            raise CreditError(
                f"{name_of(func)} at {place()}: credit has no rules inside torch.func's transforms "
                "(vmap, grad, jvp). Call the model on the whole batch instead."
            ) from error


def _unregistered(call: Call) -> Any:
    """Let a function without a rule pass where nothing it returns could carry credit."""
    if call.derived:
        return call.mark_derived(call.run())
    out = call.run()
    for tensor in out if isinstance(out, (list, tuple)) else (out,):
        if isinstance(tensor, Tensor) and (tensor.requires_grad or tensor.is_floating_point()):
            unsupported(call)
    return out


def _decided(call: Call, rule: Any) -> Any:
    """A call on comparisons alone: they may select and decide, and become numbers as a step."""
    if rule in _DECIDED:
        return rule(call)
    out = call.run()
    if isinstance(out, Tensor) and out.is_floating_point():
        raise refuse_decision(call)
    if isinstance(out, Tensor) and out.dtype == torch.bool:
        marks.put(out, Mark(Kind.DECISION))
    return out


def _active_mode() -> _Mode | None:
    """Return the mode of the context that this thread is in."""
    if torch._C._len_torch_function_stack() == 0:
        return None
    stack = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    for mode in stack:
        if isinstance(mode, _Mode):
            return mode
    return None


class _LayerMode(_Mode):
    """A mode in which linear and convolution layers have rules of their own."""

    def __init__(self, credit: LFP, rule_of: Callable[[Call, Tensor], Decomposition]) -> None:
        super().__init__(credit)
        self.layers = Layers(rule_of, credit.feedback)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if REGISTRY.get(func) is linear.weighted and torch.is_grad_enabled():
            call = Call(self.settings, func, args, kwargs or {})
            if call.entrants and not call.judged:
                return layered(call, self.layers)
        return super().__torch_function__(func, types, args, kwargs)


class _Entered(threading.local):
    """Of every `with` that this thread is in: whether it is the outermost, and the compiler."""

    def __init__(self) -> None:
        self.stack: list[tuple[bool, Any]] = []


def _own_tensors(model: Iterable[Tensor]) -> tuple[Tensor, ...]:
    tensors = tuple(model) if isinstance(model, Iterable) and not isinstance(model, Tensor) else ()
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise InputError(
            f"LFP takes a module or the parameter tensors of functional code, got "
            f"{type(model).__name__}."
        )
    return tensors


def _named(model: nn.Module | tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        return model.named_parameters()
    return ((f"tensor {index}", tensor) for index, tensor in enumerate(model))


def _check_beta(scale: str, beta: float | None) -> None:
    if beta is None:
        if scale == "hypentropy":
            raise InputError(
                "scale='hypentropy' needs beta, in the units of the weights: beta=0.01 is a start."
            )
        return
    if scale == "abs":
        raise InputError(
            f"beta={beta!r} has no part in scale='abs': use scale='hypentropy' or 'relative'."
        )
    if not 0.0 <= beta < float("inf"):
        raise InputError(f"beta must be a finite number >= 0, got {beta!r}.")


def _lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta


_DECIDED = (linear.cast, activation.compared)
