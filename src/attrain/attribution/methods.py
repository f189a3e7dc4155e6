"""The methods of attribution by name: what they need, what they claim, what they cost."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attrain.attribution import captum_methods
from attrain.attribution.part import Part
from attrain.errors import InputError, unknown


@dataclass(frozen=True)
class Method:
    """A way to attribute an output to inputs.

    title, source: what it is called and where it was published. options: name -> default, None
    where it depends on the inputs. run: from a part of a batch to its attributions; None for lrp,
    which is the engine's own. baselines: "none", "one" per sample, or a "many" that all samples
    share. differentiates: whether it takes gradients. drawn: whether it draws random numbers, and
    then takes one sample at a time. masked: whether it switches features on and off together.
    sums: whether the attributions are shares of f(x) - f(baseline), for lrp of f(x). complete:
    whether they add up to it if all is well, and a warning tells where they do not.
    rows: how many rows of a forward pass a sample takes.
    """

    title: str
    source: str
    run: Callable[[Part], Tensor] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    baselines: str = "none"
    differentiates: bool = True
    drawn: bool = False
    masked: bool = False
    sums: bool = False
    complete: bool = False
    rows: Callable[[Mapping[str, Any], int], int] = lambda options, baselines: 1


def _samples(options: Mapping[str, Any], baselines: int) -> int:
    return int(options["n_samples"])


METHODS: dict[str, Method] = {
    "saliency": Method("Saliency", "Simonyan et al. 2014", captum_methods.saliency, {"abs": True}),
    "input_x_gradient": Method(
        "Input times gradient", "Shrikumar et al. 2016", captum_methods.input_x_gradient, sums=True
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "Sundararajan et al. 2017",
        captum_methods.integrated_gradients,
        {"baselines": None, "n_steps": 50, "quadrature": "gausslegendre"},
        baselines="one",
        sums=True,
        complete=True,
        rows=lambda options, baselines: int(options["n_steps"]),
    ),
    "smoothgrad": Method(
        "SmoothGrad",
        "Smilkov et al. 2017",
        captum_methods.smoothgrad,
        {"n_samples": 25, "stdevs": None, "abs": True},
        drawn=True,
        rows=_samples,
    ),
    "deeplift": Method(
        "DeepLIFT, rescale rule",
        "Shrikumar et al. 2017",
        captum_methods.deeplift,
        {"baselines": None},
        baselines="one",
        sums=True,
        complete=True,
        rows=lambda options, baselines: 2,
    ),
    "deep_shap": Method(
        "DeepSHAP",
        "Lundberg and Lee 2017",
        captum_methods.deep_shap,
        {"baselines": None},
        baselines="many",
        sums=True,
        complete=True,
        rows=lambda options, baselines: 2 * baselines,
    ),
    "gradient_shap": Method(
        "GradientSHAP, expected gradients",
        "Lundberg and Lee 2017; Erion et al. 2021",
        captum_methods.gradient_shap,
        {"baselines": None, "n_samples": 50, "stdevs": 0.0},
        baselines="many",
        drawn=True,
        sums=True,
        rows=_samples,
    ),
    "lime": Method(
        "LIME",
        "Ribeiro et al. 2016",
        captum_methods.lime,
        {"baselines": None, "n_samples": 500, "feature_mask": None, "alpha": 0.01},
        baselines="one",
        differentiates=False,
        drawn=True,
        masked=True,
        rows=_samples,
    ),
    "kernel_shap": Method(
        "Kernel SHAP",
        "Lundberg and Lee 2017",
        captum_methods.kernel_shap,
        {"baselines": None, "n_samples": 1000, "feature_mask": None},
        baselines="one",
        differentiates=False,
        drawn=True,
        masked=True,
        sums=True,
        rows=_samples,
    ),
    "occlusion": Method(
        "Occlusion",
        "Zeiler and Fergus 2014",
        captum_methods.occlusion,
        {"baselines": None, "sliding_window_shapes": None, "strides": None},
        baselines="one",
        differentiates=False,
    ),
    "lrp": Method(
        "Layer-wise relevance propagation",
        "Bach et al. 2015",
        None,
        {
            "rule": "epsilon",
            "rules": None,
            "epsilon": 1e-6,
            "batch_norm": "constant",
            "opposite_sign": "keep",
            "gate": "half",
        },
        sums=True,
    ),
}
"""Name -> method."""


def find(name: str) -> Method:
    """Return a method; raises InputError, with the nearest name, where there is none."""
    if name not in METHODS:
        raise unknown("attribution method", str(name), METHODS)
    return METHODS[name]


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method, checked: the given ones over its defaults.

    Raises InputError for an option that the method does not have, with the nearest one, and for
    values that cannot work.
    """
    method = find(name)
    for option in given:
        if option not in method.options:
            if not method.options:
                raise InputError(f"{name} has no options, got {option}=.")
            raise unknown(f"option of {name}", option, method.options)
    options = dict(method.options) | dict(given)
    for option in ("n_samples", "n_steps"):
        if option in options and not (_whole(options[option]) and options[option] >= 1):
            raise InputError(f"{option} must be an integer >= 1, got {options[option]!r}.")
    for option in ("stdevs", "alpha"):
        value = options.get(option)
        if value is not None and not (_number(value) and 0.0 <= value < math.inf):
            raise InputError(f"{option} must be a finite number >= 0, got {value!r}.")
    if "quadrature" in options and options["quadrature"] not in QUADRATURES:
        raise unknown("quadrature", str(options["quadrature"]), QUADRATURES)
    return options


QUADRATURES = (
    "gausslegendre",
    "riemann_left",
    "riemann_middle",
    "riemann_right",
    "riemann_trapezoid",
)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
