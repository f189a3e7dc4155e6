"""What makes an attribution unreliable for this model, told by name."""

import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrain.errors import AttributionWarning
from attrain.rules.call import name_of

TOLERANCE = 0.05
"""Share of f(x) - f(baseline) that may be missing from a method that promises completeness."""

# What DeepLIFT's rescale rule is written for in captum; any other nonlinearity has its gradient.
_KNOWN = (
    nn.ReLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Softmax,
)
_NONLINEAR = frozenset(
    "relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid "
    "hardshrink softshrink tanhshrink softsign softplus logsigmoid log_sigmoid sigmoid expit tanh "
    "sin cos tan exp expm1 log log1p pow square sqrt rsqrt reciprocal abs sign round clamp clip "
    "clamp_min clamp_max threshold erf softmax log_softmax logsumexp glu layer_norm group_norm "
    "instance_norm rms_norm normalize max_pool1d max_pool2d max_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d max min amax amin maximum minimum "
    "scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh rnn_relu "
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split()
)
_PRODUCTS = frozenset("mul multiply rmul matmul bmm baddbmm div divide true_divide einsum".split())
_SHOWN = 3


class Watch(TorchFunctionMode):
    """Sees which nonlinearities a model has that are no modules, run again, or are unknown.

    names: of its modules. After a forward pass, `doubts` tells what DeepLIFT gets wrong, and
    `reused` the modules with a rule that ran more than once.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.runs: Counter[str] = Counter()
        self.unseen: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        name = name.removeprefix("i") if name in ("imul", "idiv") else name
        tensors = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
        if tensors and (name in _NONLINEAR or (name in _PRODUCTS and len(tensors) > 1)):
            self._saw(func)
        return func(*args, **(kwargs or {}))

    def _saw(self, func: Any) -> None:
        caller = _caller()
        if isinstance(caller, str):
            self.unseen[f"{name_of(func)} at {caller} is no module"] = None
            return
        name = self.names.get(id(caller), "")
        if type(caller) in _KNOWN:
            self.runs[name] += 1
        else:
            self.unseen[f"{name!r} ({type(caller).__name__}) has no rule of its own"] = None

    @property
    def reused(self) -> dict[str, int]:
        """Modules that ran more than once, and how often."""
        return {name: runs for name, runs in self.runs.items() if runs > 1}

    @property
    def doubts(self) -> list[str]:
        """What is wrong, a clause each."""
        return [f"{name!r} runs {runs} times" for name, runs in self.reused.items()] + [
            *self.unseen
        ]


def _caller() -> nn.Module | str:
    """Return the module of torch.nn whose forward called a function, or the place of other code."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if "/torch/nn/modules/" in file and not file.endswith("/module.py"):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                return module
        elif "/torch/" not in file and file != _THIS:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown place"


_THIS = __file__.replace("\\", "/")
_FOLDER = str(Path(__file__).parents[1])


def warn_of(method: str, doubts: list[str]) -> None:
    """Warn that the rescale rule does not see all of the model."""
    shown = "; ".join(doubts[:_SHOWN])
    more = f"; and {len(doubts) - _SHOWN} more" if len(doubts) > _SHOWN else ""
    _warn(
        f"{method} is unreliable for this model: {shown}{more}. It gets an ordinary gradient "
        "there. Write each activation as a module of its own, or use method='lrp' or "
        "'integrated_gradients'."
    )


def warn_of_error(method: str, error: Tensor, change: Tensor) -> None:
    """Warn where the attributions of a method that promises completeness do not add up."""
    largest = float(change.abs().max())
    worst = float(error.abs().max())
    if math.isnan(worst) or worst <= TOLERANCE * largest + 1e-6:
        return
    remedy = "use method='integrated_gradients'"
    if method == "integrated_gradients":
        remedy = "raise n_steps, or, where activations are steps, use method='lrp'"
    _warn(
        f"{method} is unreliable for this model: its attributions miss f(x) - f(baseline) by up to "
        f"{worst:.3g}, where that is up to {largest:.3g}: {remedy}, or look at return_error=True."
    )


def warn_of_values(method: str, values: Tensor, differentiates: bool) -> None:
    """Warn of attributions that are zero everywhere, or not finite."""
    if not torch.isfinite(values).all():
        remedy = "raise epsilon" if method == "lrp" else "look for it in the model's outputs"
        _warn(f"{method} returned values that are not finite (NaN or infinite): {remedy}.")
    elif not values.any():
        if differentiates:
            why = (
                "the gradient vanishes (a step, saturation, a dead activation), or the target does "
            )
            why += "not depend on it"
        else:
            why = "the target does not depend on it, or it equals its baseline"
        if method == "lime":
            why += ", or alpha is too large for the size of the output"
        _warn(f"{method} is zero everywhere: {why}.")


def warn_of_samples(method: str, samples: int, features: int) -> None:
    """Warn where a linear model is fitted to fewer samples than it has weights."""
    if samples <= features:
        _warn(
            f"{method} is unreliable here: it fits {features} features to n_samples={samples}. "
            f"Give more than {features}, or a feature_mask with fewer features."
        )


def warn_of_one_class(told: str) -> None:
    """Warn where a mean over the samples that are explained is all that an ablation puts back."""
    _warn(
        f"all samples are explained for {told}, and an ablated unit hands on its mean over them: "
        "what samples of one class have in common is not taken away. Give reference=, samples of "
        "all classes, x itself if it has them."
    )


def _warn(text: str) -> None:
    # At the line of the user's code that asked.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _own(frame.f_back.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, AttributionWarning, stacklevel=level + 1)


def _own(file: str) -> bool:
    return file.startswith(_FOLDER)
