"""One torch function call seen under credit, and the node through which tensors enter it.

Credit is kept per unit of activation: a reward r at a neuron with activation a is r = a * c, and
what flows through autograd is -c. In these coordinates a linear map's rule is its ordinary
backward pass, a nonlinearity's is its secant slope, and a parameter's feedback is |w| times its
ordinary gradient.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from attrain import audit, marks
from attrain.errors import CreditError
from attrain.marks import Kind, Mark
from attrain.rules.blocks import BLOCK, blockwise

_OURS = Path(__file__).parent
_SILENT_FOLDERS = (str(Path(torch.__file__).parent), str(_OURS), str(_OURS.parent / "graph"))
_SILENT_FILES = (str(_OURS.parent / "credit.py"),)


class Scale(NamedTuple):
    """What the gradient of a parameter is multiplied by: sqrt(w^2 + beta^2), which is |w| at 0.

    `relative` divides by the mean of that over the tensor, which is the arithmetic one or, with
    `contraharmonic`, the one that weighs each size by itself.
    """

    relative: bool = False
    beta: float = 0.0
    contraharmonic: bool = False


class Action(NamedTuple):
    """What happens on the way back to one tensor that entered a call."""

    scale: Scale | None = None  # a parameter: times |w|
    epsilon: float = 0.0  # the stabiliser that the tensor owes
    factor: float = 1.0  # share of the credit, for products of activations
    own: bool = False  # the gradient is nobody else's: it may be changed in place


class Paid(NamedTuple):
    """An activation, and the same past its stabiliser: `plan[place]` on the way back."""

    tensor: Tensor  # kept, so that nothing else has its identity
    version: int
    stabilised: Tensor
    plan: list[Action]
    place: int  # in the plan


@dataclass
class Settings:
    """What a context decides for every call, and what it learns on the way."""

    epsilon: float
    scale: Scale
    batch_norm: str
    opposite_sign: str
    gate: str
    parameters: frozenset[int]
    plain: Mark
    pending: Mark
    objective: Mark
    is_constant: Callable[[Tensor], bool]
    warn_once: Callable[[str, str], None]
    adopt: Callable[[Tensor], Mark | None]
    reenter: Callable[..., Any]
    scaled: Action
    scaled_own: Action
    calls: int = 0
    last: Tensor | None = field(default=None, repr=False)
    _paid: dict[int, Paid] = field(default_factory=dict, repr=False)
    used: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _scaled: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    def begin(self) -> None:
        """Forget what the last pass left."""
        self.calls, self.last = 0, None
        self._forget()

    def end(self) -> Tensor | None:
        """Return what the pass made last, and let go of its tensors."""
        last, self.last = self.last, None
        self._forget()
        return last

    def _forget(self) -> None:
        self._paid.clear()
        self.used.clear()
        self._scaled.clear()

    def owing(self, epsilon: float) -> Mark:
        """Return the mark of an activation that owes a stabiliser and is a function of itself."""
        for mark in (self.plain, self.pending):
            if mark.epsilon == epsilon:
                return mark
        return Mark(epsilon=epsilon, audit=self.plain.audit)

    def pay(self, tensor: Tensor, stabilised: Tensor, plan: list[Action], index: int) -> None:
        """Remember an activation past its stabiliser, for the next function that takes it."""
        if not saving_is_watched():
            self._paid[id(tensor)] = Paid(tensor, tensor._version, stabilised, plan, index)

    def paid(self, tensor: Tensor) -> Tensor | None:
        """Return `tensor` past its stabiliser, None where nothing has taken it so far."""
        known = self._paid.get(id(tensor))
        if known is None or known.version != tensor._version or saving_is_watched():
            return None
        # From now on its gradient is a sum, which may be a tensor that others hold.
        known.plan[known.place] = known.plan[known.place]._replace(own=False)
        return known.stabilised

    def shared(self, parameter: Tensor) -> Tensor:
        """Return a parameter past its scaling, the same for every call of this pass.

        So a weight that every time step of a loop uses is scaled once more, not once per step.
        """
        known = self._scaled.get(id(parameter))
        if known is None or known[0] != parameter._version:
            known = parameter._version, Scaled.apply(parameter, self.scale)
            self._scaled[id(parameter)] = known
        return known[1]


def saving_is_watched() -> bool:
    """Whether what is saved is counted, as a checkpoint does, which makes its part again alone."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def stabilise(credit: Tensor, value: Tensor, epsilon: float, out: Tensor | None = None) -> Tensor:
    """Return `credit` times |z| / (|z| + epsilon), the stabiliser of equation 6.

    `out` may be given to be overwritten, which is not promised.
    """
    if torch.is_grad_enabled():
        out = None
    if credit.dtype in (torch.float16, torch.bfloat16):
        return stabilise(credit.float(), value.float(), epsilon).to(credit.dtype)

    def lessen(out: Tensor | None, scratch: Tensor | None, c: Tensor, z: Tensor) -> Tensor:
        scratch = torch.abs(z, out=scratch).add_(epsilon)
        return torch.addcdiv(c, c, scratch, value=-epsilon, out=out)

    return blockwise(lessen, credit, value, out=out)


def scale_feedback(gradient: Tensor, weight: Tensor, scale: Scale, own: bool = False) -> Tensor:
    """Return the feedback of a parameter, |w| times its gradient (equations 4, 7).

    `scale` says what stands for |w|. With `own`, `gradient` is overwritten.
    """
    divisor = mean_magnitude(weight, scale) if scale.relative else None
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        values = gradient.values() * magnitude(weight[rows], scale.beta)
        if divisor is not None:
            values /= divisor
        indices, shape = gradient.indices(), gradient.shape  # valid, for autograd made them
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
    if scale.beta or not own or gradient.dtype != weight.dtype or torch.is_grad_enabled():
        factor = magnitude(weight, scale.beta)
        return gradient * (factor if divisor is None else factor / divisor)
    if divisor is None and gradient.numel() <= BLOCK:
        return gradient.mul_(weight.abs())

    def grade(out: Tensor | None, scratch: Tensor | None, g: Tensor, w: Tensor) -> Tensor:
        factor = torch.abs(w, out=scratch)
        if divisor is not None:
            factor = torch.div(factor, divisor, out=scratch)
        return torch.mul(g, factor, out=out)

    return blockwise(grade, gradient, weight, out=gradient)


def magnitude(weight: Tensor, beta: float = 0.0) -> Tensor:
    """Return sqrt(w^2 + beta^2), the inverse of hypentropy's second derivative; |w| for beta 0."""
    if beta == 0.0:
        return weight.abs()
    if weight.dtype == torch.float16:  # a square of it may vanish
        return magnitude(weight.float(), beta).to(weight.dtype)
    return weight.square().add_(beta * beta).sqrt_()


def mean_magnitude(weight: Tensor, scale: Scale) -> Tensor:
    """Return mean |w|, kept above zero so that a tensor of zeros has feedback zero, not NaN.

    The contraharmonic mean is sum w^2 / sum |w|.
    """
    sizes = weight.detach() if scale.beta == 0.0 else magnitude(weight.detach(), scale.beta)
    tiny = torch.finfo(weight.dtype).tiny
    total: Tensor = torch.linalg.vector_norm(sizes, 1)
    if scale.contraharmonic:
        length: Tensor = torch.linalg.vector_norm(sizes)
        mean = length * (length / total.clamp_min_(tiny))
    else:
        mean = total / weight.numel()
    return mean.clamp_min_(tiny)


def _back(action: Action, gradient: Tensor | None, value: Tensor | None) -> Tensor | None:
    if gradient is None:
        return None
    if action.scale is not None:
        assert value is not None
        return scale_feedback(gradient, value, action.scale, action.own)
    if action.factor != 1.0:
        gradient = gradient * action.factor
    if value is None:
        return gradient
    return stabilise(gradient, value, action.epsilon, out=gradient if action.own else None)


class Credit(torch.autograd.Function):
    """Identity forward; on the way back each tensor's `Action`. `scaled`: which are parameters."""

    @staticmethod
    def forward(ctx: Any, plan: list[Action], *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        scaled = ctx.scaled = [action.scale is not None for action in plan]
        ctx.save_for_backward(
            *[
                tensor if parameter or action.epsilon else None
                for tensor, action, parameter in zip(tensors, plan, scaled, strict=True)
            ]
        )
        return tensors if len(tensors) > 1 else tensors[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, *map(_back, ctx.plan, gradients, ctx.saved_tensors)


class Scaled(torch.autograd.Function):
    """A parameter on its way to several calls, whose gradients are scaled as one sum.

    It is kept as an attribute, since saved tensors are gone once some of these calls had their way
    back, and a parameter itself can be part of any number of them.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, scale: Scale) -> Tensor:
        ctx.scaled = (True,)
        ctx.parameter, ctx.version, ctx.scale = parameter, parameter._version, scale
        return parameter.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.parameter._version != ctx.version:
            raise CreditError(
                f"a parameter of shape {tuple(ctx.parameter.shape)} was changed in place between "
                "the forward pass and backward(), so that its feedback cannot be computed: call "
                "backward() before the optimizer's step."
            )
        return scale_feedback(gradient, ctx.parameter, ctx.scale), None


class CreditInPlace(torch.autograd.Function):
    """`Credit` for one activation that the call is about to overwrite."""

    @staticmethod
    def forward(ctx: Any, action: Action, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        ctx.action = action
        ctx.scaled = ()
        ctx.save_for_backward(tensor.clone() if action.epsilon else None)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, _back(ctx.action, gradient, *ctx.saved_tensors)


class Call:
    """A torch function, its arguments, and which of them carry credit.

    activations: tensors that carry credit; parameters: the model's parameters and tensors
    computed from them alone; constants: tensors without gradient; decisions: comparisons of
    activations; judged: whether an activation is a loss.
    """

    __slots__ = (
        "activations",
        "args",
        "constants",
        "decisions",
        "entrants",
        "func",
        "judged",
        "kwargs",
        "parameters",
        "settings",
    )

    def __init__(
        self,
        settings: Settings,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        self.settings = settings
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.activations: list[Tensor] = []
        self.parameters: list[Tensor] = []
        self.decisions: list[Tensor] = []
        self.constants: list[Tensor] = []
        self.entrants: list[tuple[int | str, Tensor, Mark]] = []
        self.judged = False
        for place, value in enumerate(args):
            if isinstance(value, Tensor):
                self._sort(place, value)
            elif isinstance(value, (list, tuple)):
                self._sort_all(place, value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self._sort(name, value)
            elif isinstance(value, (list, tuple)):
                self._sort_all(name, value)

    def _sort_all(self, place: int | str, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._sort(place, value)

    def _sort(self, place: int | str, tensor: Tensor) -> None:
        mark: Mark | None = getattr(tensor, "_attrain", None)  # marks.get, on the hot path
        if not tensor.requires_grad:
            if mark is not None and mark.kind is Kind.DECISION:
                self.decisions.append(tensor)
            else:
                self.constants.append(tensor)
            return
        if mark is None:
            if isinstance(tensor, nn.Parameter) or id(tensor) in self.settings.parameters:
                mark = marks.PARAMETER
            elif tensor.grad_fn is not None:
                mark = self._adopt(tensor)
            else:
                mark = self.settings.plain
        kind = mark.kind
        if kind is Kind.PARAMETER:
            self.parameters.append(tensor)
        else:
            self.activations.append(tensor)
            if kind is Kind.OBJECTIVE:
                self.judged = True
        self.entrants.append((place, tensor, mark))

    def _adopt(self, tensor: Tensor) -> Mark:
        node = tensor.grad_fn
        assert node is not None
        mark = self.settings.adopt(tensor)
        if mark is None and node.name() == audit.BACKWARD_HOOK:
            raise CreditError(f"{name_of(self.func)} at {place()}: {audit.hooked()}")
        if mark is None:
            raise self.refuse(
                f"its input of shape {tuple(tensor.shape)} was made by {node.name()}, which credit "
                "did not see: an autograd.Function of your own, another thread, or code outside "
                "the context",
                "Compute it inside `with credit:`, detach() it, or, if its backward already "
                "hands on credit, register the function with attrain.rules.register(Function, "
                "'native').",
            )
        marks.put(tensor, mark)
        return mark

    def option(self, position: int, *names: str, default: Any) -> Any:
        """Return an argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def named(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by name; `names` are those of the positions."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    @property
    def data(self) -> bool:
        """Whether a constant that is neither a buffer nor a single number takes part.

        With parameters alone, such a call is the first layer of a model.
        """
        return any(
            each.ndim and marks.get(each) is None and not self.settings.is_constant(each)
            for each in self.constants
        )

    @property
    def derived(self) -> bool:
        """Whether the call computes a weight from parameters and buffers alone."""
        return not self.activations and bool(self.parameters) and not self.data

    def run(self) -> Any:
        """Call the function natively."""
        return self.func(*self.args, **self.kwargs)

    def mark_derived(self, out: Any) -> Any:
        """Mark the results of a call on parameters alone."""
        for tensor in each_of(out):
            if marks.get(tensor) is None and id(tensor) not in self.settings.parameters:
                marks.put(tensor, marks.PARAMETER)
        return out

    def finish(self, out: Any, mark: Mark | None = None, *, layer: bool = False) -> Any:
        """Mark the results of a call that carry credit; `mark` defaults to a plain activation.

        What a `layer` makes is an activation for certain.
        """
        settings = self.settings
        if mark is None:
            mark = settings.plain
        if not layer:
            for _, _, known in self.entrants:
                if not (known.raw or known.kind is Kind.PARAMETER):
                    break
            else:
                mark = mark.as_raw()
        if isinstance(out, Tensor):
            if out.requires_grad:
                out._attrain = mark  # type: ignore[attr-defined]  # marks.put, on the hot path
                settings.last = out
        else:
            for tensor in each_of(out):
                if tensor.requires_grad:
                    marks.put(tensor, mark)
                    settings.last = tensor
        settings.calls += 1
        return out

    def refuse_norms(self) -> None:
        """Raise where a norm, a variance or 1 / a statistic is used as an activation."""
        if any([mark.kind in marks.NO_ACTIVATIONS for _, _, mark in self.entrants]):
            raise self.norm_refused()

    def norm_refused(self) -> CreditError:
        """Return the error for a norm that is used as an activation."""
        return self.refuse(
            "a norm, variance or standard deviation of activations, or 1 / a statistic of them, is "
            "used as an activation, and how credit passes it is not defined",
            "Use it to normalise the tensor it was taken from, detach() it, or compute it after "
            "the context, where it is a part of the objective.",
        )

    def finish_objective(self, out: Any) -> Any:
        """Mark what is computed from a loss: no part of the network, with plain gradients."""
        for tensor in each_of(out):
            if tensor.requires_grad:
                marks.put(tensor, self.settings.objective)
        return out

    def mark(self, tensor: Tensor) -> Mark:
        """Return the mark of an activation; a leaf that requires grad is a plain one."""
        return marks.get(tensor) or self.settings.plain

    def root(self, tensor: Tensor) -> Tensor:
        """Return the tensor that an activation is a function of, itself where that is gone."""
        root = self.mark(tensor).root(tensor)
        return tensor if root is None else root

    def related(
        self,
        root: Tensor,
        *,
        kind: Kind = Kind.ACTIVATION,
        pending: bool = False,
        curved: bool = False,
    ) -> Mark:
        """Return a mark for a result that is a function of `root`."""
        pattern = self.settings.pending if pending else self.settings.plain
        return Mark(kind, pattern.epsilon, root, pattern.audit, curved=curved)

    def enter(
        self,
        *,
        factor: float = 1.0,
        added: tuple[int | str, ...] = (),
        in_place: bool = False,
        owned: tuple[int | str, ...] = (),
        norms: bool = False,
    ) -> None:
        """Pass everything that carries credit through one `Credit` node.

        Parameters are scaled, activations stabilised where they owe it and given `factor` of the
        credit, unless their position is in `added`. `in_place`: the first argument is about to be
        overwritten. `owned`: positions whose gradient belongs to nobody else.
        """
        plan: list[Action] = []
        places, tensors, shared = [], [], []
        settings = self.settings
        for place, tensor, mark in self.entrants:
            if mark.kind is Kind.PARAMETER:
                action = settings.scaled_own if place in owned else settings.scaled
            else:
                if not norms and mark.kind in marks.NO_ACTIVATIONS:
                    self.refuse_norms()
                share = 1.0 if place in added else factor
                if mark.epsilon == 0.0 and share == 1.0:
                    continue
                action = Action(epsilon=mark.epsilon, factor=share, own=place in owned)
                if in_place and place == 0:
                    CreditInPlace.apply(action, tensor)
                    continue
                if share == 1.0:
                    paid = settings.paid(tensor)
                    if paid is not None:
                        self._put_in([place], [tensor], [paid])
                        continue
                    shared.append(len(plan))
            plan.append(action)
            places.append(place)
            tensors.append(tensor)
        if not plan:
            return
        entered = Credit.apply(plan, *tensors)
        if len(plan) == 1:
            entered = (entered,)
        for index in shared:
            settings.pay(tensors[index], entered[index], plan, index)
        self._put_in(places, tensors, entered)

    def _put_in(self, places: list[int | str], old: list[Tensor], new: Sequence[Tensor]) -> None:
        """Put `new` where `old` stands among the arguments."""
        arguments = list(self.args)
        for place, before, after in zip(places, old, new, strict=True):
            holder: Any = arguments
            if isinstance(place, str):
                holder = self.kwargs = dict(self.kwargs)
            value = holder[place]
            holder[place] = after if value is before else _swapped(value, before, after)
        self.args = arguments

    def replace(self, new: dict[int, Tensor]) -> None:
        """Replace entrants by identity, before they enter."""
        for index, (place, tensor, mark) in enumerate(self.entrants):
            if id(tensor) in new:
                self._put_in([place], [tensor], [new[id(tensor)]])
                self.entrants[index] = (place, new[id(tensor)], mark)
        self.entrants = [each for each in self.entrants if each[1].requires_grad]

    def refuse(self, problem: str, remedy: str) -> CreditError:
        """Return the error that names the function, the place in the user's code and the remedy."""
        return CreditError(f"{name_of(self.func)} at {place()}: {problem}. {remedy}")


def _swapped(values: Sequence[Any], before: Tensor, after: Tensor) -> Sequence[Any]:
    swapped = [after if value is before else value for value in values]
    return swapped if isinstance(values, list) else tuple(swapped)


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a torch function as a user would write it."""
    try:
        name: str | None = resolve_name(func)
    except Exception:  # torch's own resolver fails on a few builtins
        name = None
    name = name or str(getattr(func, "__name__", repr(func)))
    return name.replace("torch.functional.", "torch.")


def place() -> str:
    """Return `file:line` of the innermost caller outside torch and this engine."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_SILENT_FOLDERS) and file not in _SILENT_FILES:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown place"


def each_of(out: Any) -> list[Tensor]:
    """Return the tensors that a call returned."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [tensor for item in out for tensor in each_of(item)]
    return []
