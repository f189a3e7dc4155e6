"""Methods that captum computes; each function maps a `Part` to attributions shaped as its values.

captum takes seconds to import, so each of them imports it when it is called.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attrain.attribution.part import Part

NOISE = 0.15
"""Standard deviation of smoothgrad's noise in the range of a sample (Smilkov et al.: .1 to .2)."""

# What captum says of how it works, about which a user of `attribute` can do nothing.
_ASIDES = ("Setting forward, backward hooks", "You are providing multiple inputs for Lime")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for text in _ASIDES:
            warnings.filterwarnings("ignore", message=f"\\s*{text}")
        yield


def _leaf(values: Tensor) -> Tensor:
    """Return a copy that requires grad: captum would change the caller's."""
    return values.detach().clone().requires_grad_()


def saliency(part: Part) -> Tensor:
    """Gradient of the target, its size by default."""
    from captum.attr import Saliency

    method = Saliency(part.forward)
    out: Tensor = method.attribute(_leaf(part.values), abs=part.options["abs"], **part.common)
    return out.detach()


def input_x_gradient(part: Part) -> Tensor:
    """Input times gradient."""
    from captum.attr import InputXGradient

    out: Tensor = InputXGradient(part.forward).attribute(_leaf(part.values), **part.common)
    return out.detach()


def integrated_gradients(part: Part) -> Tensor:
    """Gradients along the straight path from a baseline, times the distance."""
    from captum.attr import IntegratedGradients

    steps = part.options["n_steps"]
    rows = len(part.values) * steps
    out: Tensor = IntegratedGradients(part.forward).attribute(
        part.values.detach(),
        baselines=part.baselines,
        n_steps=steps,
        method=part.options["quadrature"],
        internal_batch_size=part.batch_size if rows > part.batch_size else None,
        **part.common,
    )
    return out.detach()


def smoothgrad(part: Part) -> Tensor:
    """Mean of saliency over noisy copies of one sample."""
    from captum.attr import NoiseTunnel, Saliency

    value, samples = part.values.detach(), part.options["n_samples"]
    stdevs = part.options["stdevs"]
    if stdevs is None:
        stdevs = NOISE * float(value.max() - value.min())
    with _quiet():
        out: Tensor = NoiseTunnel(Saliency(part.forward)).attribute(
            _leaf(value),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=min(samples, part.batch_size),
            stdevs=stdevs,
            abs=part.options["abs"],
            **part.common,
        )
    return out.detach()


def gradient_shap(part: Part) -> Tensor:
    """Gradients at random points between one sample and random baselines, times the distance."""
    from captum.attr import GradientShap

    baselines = part.baselines
    if baselines is None:
        baselines = torch.zeros_like(part.values[:1])
    with _quiet():
        out: Tensor = GradientShap(part.forward).attribute(
            _leaf(part.values),
            baselines=baselines,
            n_samples=part.options["n_samples"],
            stdevs=part.options["stdevs"],
            **part.common,
        )
    return out.detach()


def deeplift(part: Part) -> Tensor:
    """Differences from a baseline, handed back by the rescale rule."""
    from captum.attr import DeepLift, LayerDeepLift

    with _quiet():
        if part.layer is None:
            method, values = DeepLift(part.forward), _leaf(part.values)
            out = method.attribute(values, baselines=part.baselines, **part.common)
        else:
            method = LayerDeepLift(part.whole, part.layer[1])
            out = method.attribute(
                part.x, baselines=part.x_baselines, target=part.common["target"],
                additional_forward_args=part.x_args or None,
            )  # fmt: skip
    return _single(out)


def deep_shap(part: Part) -> Tensor:
    """Mean of DeepLIFT over a distribution of baselines."""
    from captum.attr import DeepLiftShap, LayerDeepLiftShap

    with _quiet():
        if part.layer is None:
            method, values = DeepLiftShap(part.forward), _leaf(part.values)
            out = method.attribute(values, baselines=part.baselines, **part.common)
        else:
            method = LayerDeepLiftShap(part.whole, part.layer[1])
            out = method.attribute(
                part.x, baselines=part.x_baselines, target=part.common["target"],
                additional_forward_args=part.x_args or None,
            )  # fmt: skip
    return _single(out)


def _single(out: Any) -> Tensor:
    """Return what belongs to a layer, of several outputs the first."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found.detach()


def lime(part: Part) -> Tensor:
    """Weights of a sparse linear model of one sample's features switched on and off."""
    from captum._utils.models.linear_model import SkLearnLasso
    from captum.attr import Lime

    model = SkLearnLasso(alpha=part.options["alpha"])
    return _surrogate(part, Lime(part.forward, interpretable_model=model))


def kernel_shap(part: Part) -> Tensor:
    """Shapley values of one sample's features, by weighted least squares."""
    from captum.attr import KernelShap

    return _surrogate(part, KernelShap(part.forward))


def _surrogate(part: Part, method: Any) -> Tensor:
    assert part.mask is not None
    # captum's features are those of an argument on the device of the inputs.
    with _quiet(), torch.no_grad():
        out: Tensor = method.attribute(
            part.values.detach(),
            baselines=part.baselines,
            feature_mask=part.mask.to(part.values.device),
            n_samples=part.options["n_samples"],
            perturbations_per_eval=part.batch_size,
            **part.common,
        )
    return out.detach()


def occlusion(part: Part) -> Tensor:
    """Drop of the target as a window slides over the values, averaged over the windows."""
    from captum.attr import Occlusion

    with _quiet(), torch.no_grad():
        out: Tensor = Occlusion(part.forward).attribute(
            part.values.detach(),
            sliding_window_shapes=tuple(part.options["sliding_window_shapes"]),
            strides=tuple(part.options["strides"]),
            baselines=part.baselines,
            perturbations_per_eval=max(1, part.batch_size // len(part.values)),
            **part.common,
        )
    return out.detach()
