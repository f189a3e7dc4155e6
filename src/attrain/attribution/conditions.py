"""What a model is run under to be explained: checks, evaluation, a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from attrain.errors import InputError

_HALF = (torch.float16, torch.bfloat16)


def check_values(model: Any) -> None:
    """Raise InputError for what is no module, or one whose parameters have no values yet."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for name, each in model.named_parameters():
        if isinstance(each, UninitializedParameter):
            raise InputError(
                f"{name!r} of the model has no shape yet: run the lazy model once before, model(x)."
            )
        if each.is_meta:
            raise InputError(
                f"{name!r} of the model is on the meta device, where there are no values: load the "
                "model to another."
            )


def check_model(model: Any) -> None:
    """Raise InputError for what is no module, or one in half precision or without values."""
    check_values(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is compiled by torch.jit, whose operations cannot be seen one by one: give "
            "the module that it was made from."
        )
    for name, each in model.named_parameters():
        if each.is_inference():
            raise InputError(
                f"{name!r} of the model was made under torch.inference_mode, and credit cannot "
                "pass through it: make the model outside."
            )
        if each.dtype in _HALF:
            raise InputError(
                f"the model is in half precision ({name!r} is {each.dtype}), in which attributions "
                "drown in rounding: give model.float(), or a copy of it."
            )


def check_inputs(x: Any, model: nn.Module, batch_size: Any) -> None:
    """Raise InputError for inputs [N, ...] or a batch size that cannot be explained."""
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor [N, ...], got {type(x).__name__}.")
    if x.ndim == 0 or len(x) == 0:
        raise InputError(f"x is an empty batch, of shape {tuple(x.shape)}: give at least 1 sample.")
    if x.dtype in _HALF:
        raise InputError(f"x is in half precision ({x.dtype}): give x.float().")
    if x.layout != torch.strided:
        raise InputError(f"x has the layout {x.layout}: give x.to_dense().")
    if x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"x holds {x.dtype}: give real numbers, such as x.float().")
    if x.is_meta:
        raise InputError("x is on the meta device, where there are no values: give another x.")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        raise InputError(f"x is on {x.device}, and the model on {parameter.device}: move one.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size must be an integer >= 1, got {batch_size!r}.")


def plain(value: Any) -> Any:
    """Return a tensor without history, which can have one; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.clone().detach() if value.is_inference() else value.detach()


def as_tuple(given: Any) -> tuple[Any, ...]:
    """Return additional arguments of a model as a tuple."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


_turns: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_turn = Lock()


def _turn_of(model: nn.Module) -> RLock:
    with _turn:
        return _turns.setdefault(model, RLock())


@contextmanager
def as_in_evaluation(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Run the model in evaluation inside, with gradients enabled; leave its modes as they were.

    Another thread that asks for the same model waits, for it would take these modes for its own.
    """
    with ExitStack() as stack:
        stack.enter_context(_turn_of(model))
        modes = [(module, module.training) for module in model.modules()]
        # cuDNN has no way back through recurrent layers in evaluation.
        recurrent = x.is_cuda and any(isinstance(each, nn.RNNBase) for each, _ in modes)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training


def has_gradient(model: nn.Module, x: Tensor) -> bool:
    """Whether the outputs [N, C] for inputs `x` have a gradient in them, be it 0.

    Behind steps they have none, not even a path for one.
    """
    with as_in_evaluation(model, x):
        point = x.detach().clone().requires_grad_()
        total = model(point).sum()
        if not total.requires_grad:
            return False
        return torch.autograd.grad(total, point, allow_unused=True)[0] is not None


@contextmanager
def progress_bar(shown: bool, method: str, samples: int) -> Iterator[Callable[[float], None]]:
    """Yield a function that is told how many samples are done, parts of one included."""
    if not shown:
        yield lambda done: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(method, total=samples)
        yield lambda done: progress.update(task, completed=done)


def check_classes(y: Tensor, classes: int) -> None:
    """Raise InputError for labels [N] that a model of so many outputs does not know."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels go from {low} to {high}, and the model has {classes} outputs: they must lie "
            f"in 0..{classes - 1}."
        )
