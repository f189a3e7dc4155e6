"""How few weights carry a model, and how few of them an update touches."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attrain.errors import InputError

THETAS = (0.01, 0.05, 0.25)
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# An odd number, so that the weights around 0 share one bin.
BINS = 81
LINEAR = (nn.Linear, nn.Bilinear)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def gini(values: Tensor | ArrayLike) -> float:
    """Return the Gini coefficient of |values|: 0 where all are equal, towards 1 where one has all.

    Any shape. NaN where every value is 0 (undefined). Raises InputError for no values, NaN or
    infinity. Hurley and Rickard, 2009, table I.
    """
    magnitudes = np.sort(_magnitudes(values))
    count = len(magnitudes)
    if magnitudes[-1] == 0:
        return float("nan")
    magnitudes /= magnitudes[-1]  # keeps the sum from overflowing
    ranks = np.arange(1, count + 1)
    shares = magnitudes / magnitudes.sum()
    return float(1 - 2 * np.sum(shares * (count - ranks + 0.5) / count))


def theta_sparsity(weights: Tensor | ArrayLike, theta: float) -> float:
    """Return the share of weights with |w| / max|w| <= theta (paper 001, footnote 8).

    Any shape; 1 where every weight is 0. Raises InputError for no weights, NaN or infinity, or a
    theta outside 0..1.
    """
    if not 0 <= theta <= 1:
        raise InputError(f"theta is a share of the largest weight, in 0..1: got {theta}.")
    magnitudes = _magnitudes(weights)
    return float(np.mean(magnitudes <= theta * magnitudes.max()))


def update_density(parameters: Iterable[Tensor]) -> float:
    """Return the share of entries of `.grad` (gradient or feedback) that are not exactly zero.

    Counts every parameter that requires grad; one without a `.grad` is not updated at all. Raises
    InputError if no parameter requires grad.
    """
    total = 0
    touched: list[Tensor] = []
    for parameter in parameters:
        if parameter.requires_grad:
            total += parameter.numel()
            if parameter.grad is not None:
                gradient = parameter.grad
                values = gradient.coalesce().values() if gradient.is_sparse else gradient
                touched.append(torch.count_nonzero(values))
    if total == 0:
        raise InputError("no parameter requires grad, so there is no update to measure.")
    # One transfer from the device at the end instead of one per parameter.
    return float(torch.stack([count.cpu() for count in touched]).sum()) / total if touched else 0.0


def signs_changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the share of weights that have another sign than they had (paper 002).

    The sign of a weight says whether its connection excites or inhibits, which LFP tends to keep.
    Counted are weights that were not 0; one that has become exactly 0 has no other sign. Raises
    InputError for weights of different models, or where all were 0.
    """
    if {name: weight.shape for name, weight in before.items()} != {
        name: weight.shape for name, weight in after.items()
    }:
        raise InputError(
            "the weights before and after are not of one model: their names or shapes differ."
        )
    changed = sum(
        int((before[name].cpu().sign() * after[name].cpu().sign() < 0).sum()) for name in before
    )
    counted = sum(int(weight.count_nonzero()) for weight in before.values())
    if counted == 0:
        raise InputError("no weight was other than 0 before: none had a sign to change.")
    return changed / counted


def connection_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all linear, convolution and recurrent layers, each tensor once.

    By name. Transposed convolutions and the projections of attention are included; biases,
    normalisations and embeddings are not. Raises InputError where a weight is not yet made or made
    anew in each forward (weight_norm and its kin, of the old form), with the remedy.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for attribute in _weight_attributes(module):
            name = f"{prefix}.{attribute}" if prefix else attribute
            weight = getattr(module, attribute)
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise InputError(f"{name} has no shape yet: run the model once on an input.")
            computed = not isinstance(weight, nn.Parameter)
            if computed and not parametrize.is_parametrized(module, attribute):
                raise InputError(
                    f"{name} is computed anew in each forward: make it a plain parameter first "
                    "(torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove)."
                )
            original = module.parametrizations[attribute] if computed else weight
            if id(original) not in seen:
                seen.add(id(original))
                found[name] = weight.detach()
    return found


def _weight_attributes(module: nn.Module) -> list[str]:
    if isinstance(module, LINEAR + CONVOLUTIONS) or _is_transformers_linear(module):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        return [name for name in _ATTENTION if getattr(module, name) is not None]
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    return []


def _is_transformers_linear(module: nn.Module) -> bool:
    """Tell whether `module` is the linear layer that GPT-2 calls Conv1D."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)


def weight_summary(weights: Mapping[str, Tensor], bins: int = BINS) -> dict[str, Any]:
    """Return the `weights` section of analysis.json for weights by layer.

    `gini` is that of all weights together, on their own scale; per layer there are the Gini
    coefficient, the count, a histogram of w / max|w| over -1..1, theta-sparsities and the
    quantiles of |w| / max|w| (paper 001, figures 3 and 5). Raises InputError as `gini` does.
    """
    if not weights:
        raise InputError(
            "no weights to summarise: the model has no linear, convolution or recurrent layer."
        )
    edges = np.linspace(-1.0, 1.0, bins + 1)
    everything = np.concatenate([_magnitudes(weight) for weight in weights.values()])
    return {
        "gini": gini(everything),
        "bin_edges": [float(edge) for edge in edges],
        "layers": [
            {"name": name, **_layer_summary(weight, edges)} for name, weight in weights.items()
        ],
    }


def _layer_summary(weight: Tensor, edges: NDArray[np.float64]) -> dict[str, Any]:
    values = _finite(weight)
    largest = np.abs(values).max()
    relative = values / largest if largest > 0 else values
    return {
        "gini": gini(values),
        "count": len(values),
        "counts": [int(count) for count in np.histogram(relative, bins=edges)[0]],
        "theta_sparsity": {str(theta): theta_sparsity(values, theta) for theta in THETAS},
        "quantiles": [float(value) for value in np.quantile(np.abs(relative), QUANTILES)],
    }


def _magnitudes(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    return np.abs(_finite(values))


def _finite(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    """Return `values` as a flat float64 array, or raise what is wrong with them."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(flat) == 0:
        raise InputError("no values: sparsity needs at least one weight.")
    if not np.isfinite(flat).all():
        count = int(np.sum(~np.isfinite(flat)))
        raise InputError(f"{count} of {len(flat)} weights are NaN or infinite: training diverged.")
    return flat
