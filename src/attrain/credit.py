"""The credit context: run a model's forward pass under the rules of LFP."""

import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrain import audit, marks
from attrain.errors import CreditError, CreditWarning, InputError, unknown
from attrain.marks import Kind, Mark
from attrain.rules import activation, linear
from attrain.rules.activation import refuse_decision
from attrain.rules.call import Call, Settings
from attrain.rules.linear import unsupported
from attrain.rules.registry import REGISTRY, bookkeeping

RULES = ("epsilon", "zero")
SCALES = ("abs", "relative")


class LFP:
    """Layer-wise Feedback Propagation as a context around the forward pass.

    with credit: out = model(x)
    attrain.rewards.softmax(out, y).backward()      # .grad now holds -feedback

    The model is not wrapped, hooked or changed. Any optimizer that minimises performs LFP
    (paper 2308.12053, equations 4 to 10).

    Parameters
    ----------
    model: a module, or the tensors that count as parameters of functional code.
    rule: "epsilon", the paper's LFP-epsilon, or "zero", LFP-0, which is epsilon=0.
    epsilon: the stabiliser of equation 6; 0 is cheapest and, for ReLU networks, exact backprop.
    scale: "abs", feedback = |w| times the gradient under the rules (the paper); "relative"
        divides |w| by its mean over the tensor, so that a learning rate of gradient descent
        carries over.
    batch_norm: "constant" statistics (equations 9 and 10), or "through" them.
    opposite_sign: "keep" or "flip" the reward where an activation changes the sign (footnote 12).

    Raises InputError for unknown options; CreditError, inside the context, for a function that has
    no rule. Warns (CreditWarning) by name of parameters that are exactly zero, which |w| keeps
    there, and of activations that do not keep the sign.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        rule: Literal["epsilon", "zero"] = "epsilon",
        *,
        epsilon: float = 1e-6,
        scale: Literal["abs", "relative"] = "abs",
        batch_norm: Literal["constant", "through"] = "constant",
        opposite_sign: Literal["keep", "flip"] = "keep",
    ) -> None:
        for kind, value, known in (
            ("rule", rule, RULES),
            ("scale", scale, SCALES),
            ("batch_norm", batch_norm, ("constant", "through")),
            ("opposite_sign", opposite_sign, ("keep", "flip")),
        ):
            if value not in known:
                raise unknown(kind, str(value), known)
        if not 0.0 <= epsilon < float("inf"):
            raise InputError(f"epsilon must be a finite number >= 0, got {epsilon!r}.")
        if rule == "zero":
            epsilon = 0.0
        self.rule, self.epsilon, self.scale = rule, float(epsilon), scale
        self.batch_norm, self.opposite_sign = batch_norm, opposite_sign
        self._model: nn.Module | tuple[Tensor, ...] = (
            model if isinstance(model, nn.Module) else _own_tensors(model)
        )
        self._warned: set[str] = set()
        self._audited = -1
        self._depth = 0
        self._stance: Any = None
        self._settings = Settings(
            epsilon=self.epsilon,
            scale=scale,
            batch_norm=batch_norm,
            opposite_sign=opposite_sign,
            # Known by identity: they live as long as this context, which keeps the model.
            parameters=frozenset(
                () if isinstance(self._model, nn.Module) else map(id, self._model)
            ),
            plain=Mark(audit=self._audit_if_due),
            pending=Mark(epsilon=self.epsilon, audit=self._audit_if_due),
            objective=Mark(Kind.OBJECTIVE),
            is_buffer=self._is_buffer,
            warn_once=self._warn_once,
            adopt=self._adopt,
            reenter=self._reenter,
        )
        self._mode = _Mode(self._settings, self._reenter)
        self._warn_of_zeros()

    def __repr__(self) -> str:
        return (
            f"LFP({type(self._model).__name__}, epsilon={self.epsilon:g}, scale={self.scale!r}, "
            f"batch_norm={self.batch_norm!r}, opposite_sign={self.opposite_sign!r})"
        )

    def __enter__(self) -> Self:
        if self._depth == 0:
            _refuse_second_context()
            self._stance = _run_compiled_code_eagerly()
            self._settings.calls, self._settings.last = 0, None
            self._mode.__enter__()
        self._depth += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        last, self._settings.last = self._settings.last, None
        try:
            self._mode.__exit__(kind, error, trace)
        finally:
            if self._stance is not None:
                self._stance.__exit__(kind, error, trace)
                self._stance = None
        if error is None and last is not None:
            self._audit_if_due(last)

    def _reenter(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` under the rules; the mode is switched off while it handles a call."""
        with self._mode:
            return function(*args, **kwargs)

    def _is_buffer(self, tensor: Tensor) -> bool:
        return isinstance(self._model, nn.Module) and any(
            tensor is each for each in self._model.buffers()
        )

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, CreditWarning, stacklevel=2)

    def _warn_of_zeros(self) -> None:
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
                "if they should learn.",
            )

    def _adopt(self, tensor: Tensor) -> Mark | None:
        """Return the mark of a tensor that a known autograd function made, None if unknown."""
        node: Any = tensor.grad_fn
        name = node.name()
        if name == audit.CHECKPOINT:
            node.run_function = _recomputation(node, node.run_function, self._reenter)
            return self._settings.plain
        if name == audit.OBJECTIVE:
            return self._settings.objective
        return self._settings.plain if name in audit.REGISTERED else None

    def _audit_if_due(self, out: Tensor) -> None:
        """Audit the graph behind `out` the first time, and when the model made other calls."""
        if self._audited != self._settings.calls:
            audit.check(out)
            self._audited = self._settings.calls


class _Mode(TorchFunctionMode):
    """Sees every torch function called inside the context and hands it to its rule."""

    def __init__(self, settings: Settings, reenter: Callable[..., Any]) -> None:
        super().__init__()
        self.settings = settings
        self.reenter = reenter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = REGISTRY.get(func)
        if rule is bookkeeping or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if hooks is not None:
            _watch_checkpoint(hooks[0], self.reenter)
        call = Call(self.settings, func, args, kwargs)
        if call.carries:
            if any(call.mark(each).kind is Kind.OBJECTIVE for each in call.activations):
                return call.finish_objective(call.run())
            return rule(call) if rule is not None else _unregistered(call)
        if call.decisions:
            return _decided(call, rule)
        return func(*args, **kwargs)


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


def _watch_checkpoint(pack: Any, reenter: Callable[..., Any]) -> None:
    """Make non-reentrant activation checkpointing recompute under the rules."""
    if pack.__qualname__ != "_checkpoint_hook.__init__.<locals>.pack_hook":
        return
    frame = pack.__closure__[pack.__code__.co_freevars.index("frame")].cell_contents
    if not hasattr(frame, "attrain_recomputes"):
        frame.attrain_recomputes = True
        recompute = frame.recompute_fn
        frame.recompute_fn = lambda *args: reenter(recompute, *args)


def _recomputation(
    node: Any, function: Callable[..., Any], reenter: Callable[..., Any]
) -> Callable[..., Any]:
    """Make reentrant activation checkpointing recompute under the rules.

    It recomputes from detached copies of its inputs, which owe what the inputs owed.
    """

    def recompute(*args: Any) -> Any:
        for index, original in zip(node.tensor_indices, node.saved_tensors, strict=True):
            mark = marks.get(original)
            if mark is not None and mark.epsilon and args[index].requires_grad:
                marks.put(args[index], Mark(epsilon=mark.epsilon, audit=mark.audit))
        return reenter(function, *args)

    return recompute


def _refuse_second_context() -> None:
    for mode in torch.overrides._get_current_function_mode_stack():
        if isinstance(mode, _Mode):
            raise CreditError(
                "another credit context is active here, and feedback would be scaled twice. Leave "
                "it before entering this one."
            )


def _run_compiled_code_eagerly() -> Any:
    """Run code from torch.compile eagerly inside the context: a compiled graph has no rules."""
    if "torch._dynamo" not in sys.modules:
        return None
    stance = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return stance


def _own_tensors(model: Iterable[Tensor]) -> tuple[Tensor, ...]:
    try:
        tensors = tuple(model)
    except TypeError:
        tensors = (None,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"LFP takes a module or the parameter tensors of functional code, got "
                f"{type(model).__name__}."
            )
    return tensors


def _named(model: nn.Module | tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        return model.named_parameters()
    return ((f"tensor {index}", tensor) for index, tensor in enumerate(model))


def _lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta


_DECIDED = (linear.cast, activation.compared)
