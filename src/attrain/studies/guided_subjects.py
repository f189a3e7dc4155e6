"""Models trained with saliency guidance and without it, and the maps by which they are judged."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attrain.attribution import METHODS as ATTRIBUTIONS
from attrain.attribution import attribute
from attrain.config import Optimizer, Schedule, TrainingConfig
from attrain.data import Data
from attrain.errors import AttributionWarning, unknown
from attrain.guided import masks
from attrain.methods import METHODS, Method
from attrain.models import build
from attrain.studies.graph_subjects import images, part
from attrain.training import train

# How models are trained ---------------------------------------------------------------------------

REGULAR, GUIDED = "regular", "guided"
ABSOLUTE, RANDOM, UNMASKED = "absolute order", "random masks", "passes without masks"
HIGHEST = "highest masked"


def unmasked(x: Tensor, drop: Tensor) -> Tensor:
    """Return `x` as it is."""
    return x


def opposite(x: Tensor, drop: Tensor) -> Tensor:
    """Replace the other features of images [N, C, H, W]: not those of `drop` [N, H, W]."""
    return masks.image(x, ~drop)


ARMS: Mapping[str, Mapping[str, Any] | None] = {
    REGULAR: None,
    GUIDED: {},
    ABSOLUTE: {"order": "absolute"},
    RANDOM: {"order": "random"},
    # Two draws of dropout are then what has to agree. No order is needed, and it costs a pass.
    UNMASKED: {"order": "random", "mask": unmasked},
    HIGHEST: {"mask": opposite},
}
"""Ways of training by name: what each has in place of the defaults of attrain.SaliencyGuided.

"guided" is the paper's: the lowest by signed gradient. The last is for images alone: those with the
highest."""


def under(arm: str, **options: Any) -> Method:
    """Return gradient descent under an arm, a method for `attrain.training.train`.

    options: of attrain.SaliencyGuided, for all arms alike: fraction, weight, form, data,
    embedding. Regular training has none of them. Raises InputError for an unknown arm.
    """
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    given = ARMS[arm]
    return replace(METHODS["sgd"], name=arm, guided=None if given is None else {**options, **given})


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on images, under any arm.

    samples: the first so many training images; 0 takes all. fraction, weight, form: of the
    guidance. The other settings are those of attrain.TrainingConfig.
    """

    data: str = "mnist"
    model: str = "mnist-cnn"
    samples: int = 0
    epochs: int = 3
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    schedule: Schedule = "onecycle"
    fraction: float = 0.5
    weight: float = 1.0
    form: Literal["exact", "shared", "fast"] = "exact"

    def method(self, arm: str) -> Method:
        """Return gradient descent under an arm with this guidance."""
        return under(arm, fraction=self.fraction, weight=self.weight, form=self.form)

    @property
    def training(self) -> TrainingConfig:
        """The settings of a run, in one thread."""
        return TrainingConfig(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer,
            learning_rate=self.learning_rate, schedule=self.schedule, threads=1, device="cpu",
        )  # fmt: skip


@lru_cache(maxsize=2)
def trained(recipe: Recipe, arm: str, seed: int) -> nn.Module:
    """Return a model trained under an arm, in evaluation mode; twice gives equal weights.

    The arms of a seed start with equal weights and see the samples in one order. The last two are
    kept, so that rows that share a model train it once per process.
    """
    data = images(recipe.data)
    model = build(recipe.model, data.input_shape, data.num_classes, seed=seed)
    train(model, part(data, recipe.samples), recipe.method(arm), recipe.training, seed=seed)
    return model.eval()


# Their saliency maps ------------------------------------------------------------------------------

PASSES = 20
"""Steps of integrated gradients, draws of SmoothGrad and GradientSHAP."""
TYPICAL = 5
"""Training samples that are the baselines of GradientSHAP and DeepSHAP."""

SALIENCIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gradient": ("saliency", {}),
    "integrated gradients": ("integrated_gradients", {"n_steps": PASSES}),
    "DeepLIFT": ("deeplift", {}),
    "SmoothGrad": ("smoothgrad", {"n_samples": PASSES}),
    "GradientSHAP": ("gradient_shap", {"n_samples": PASSES}),
    "DeepSHAP": ("deep_shap", {}),
}
"""The saliency methods of paper 003, figure 3 and table 2: title -> method and options."""


def maps(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    title: str,
    *,
    baseline: Tensor | float = 0.0,
    typical: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Return the saliency of `target` [N] in `x` [N, ...], signed where the method is.

    title: a key of SALIENCIES. baseline: of integrated gradients and DeepLIFT. typical: training
    samples [B, ...], the baselines of GradientSHAP and DeepSHAP. Raises InputError for an unknown
    title, and as attrain.attribute does.
    """
    if title not in SALIENCIES:
        raise unknown("saliency method", title, SALIENCIES)
    name, own = SALIENCIES[title]
    chosen, wanted = ATTRIBUTIONS[name], dict(own)
    if chosen.baselines != "none":
        wanted["baselines"] = typical if chosen.baselines == "many" else baseline
    with warnings.catch_warnings():
        # Completeness with few steps is measured elsewhere; here the maps are ranked.
        warnings.simplefilter("ignore", AttributionWarning)
        found: Tensor = attribute(
            model, x, target, method=name, seed=seed if chosen.drawn else None, **wanted, **options
        )
    return found


def typical(data: Data, seed: int) -> Tensor:
    """Return the training samples [TYPICAL, ...] that are baselines under a seed."""
    return data.train.tensors[0][seed * TYPICAL :][:TYPICAL].clone()


def predicted(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Return the classes [N] that a model tells, the targets of its maps."""
    with torch.no_grad():
        return torch.cat([model(some).argmax(1) for some in torch.split(x, batch_size)])


def judged(data: Data, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` test samples [count, ...] and their labels, spread over the whole test set.

    Every seed has others, as long as there are enough; the arms of a seed share them.
    """
    x, y = data.test.tensors
    step = max(1, len(x) // count)
    return x[seed % step :: step][:count], y[seed % step :: step][:count]
