"""What the methods of attribution are measured on: a trained model, test samples, baselines."""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import METHODS, attribute, grid
from attrain.config import TrainingConfig
from attrain.data import load
from attrain.errors import AttributionWarning
from attrain.methods import METHODS as TRAINING
from attrain.metrics.shapley import shapley_values
from attrain.models import build, seeded
from attrain.training import evaluate, train

CELLS = 8
"""Cells along each side of a picture, by which maps of all methods are compared."""
FEW_CELLS = (2, 5)
"""Cells of the game that is small enough for exact Shapley values."""


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    samples: test samples per seed, another block for each. few: the first of them, for what takes
    an attribution several times. draws: seeds of a method that draws. surrogate: samples of LIME
    and Kernel SHAP, None for their defaults. background: training samples as the baselines of
    DeepSHAP and GradientSHAP. cost_batch, pairs: samples and repetitions of the cost.
    """

    data: str = "mnist"
    model: str = "lenet"
    epochs: int = 3
    seeds: int = 5
    samples: int = 80
    few: int = 20
    draws: int = 4
    surrogate: int | None = None
    background: int = 10
    cost_batch: int = 32
    pairs: int = 7


@dataclass(frozen=True)
class Variant:
    """A method, with the options that make it another one in the table."""

    method: str
    rule: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of `attrain.attribute`."""
        return {} if self.rule is None else {"rule": self.rule}


VARIANTS: dict[str, Variant] = {
    "saliency": Variant("saliency"),
    "input x gradient": Variant("input_x_gradient"),
    "SmoothGrad": Variant("smoothgrad"),
    "integrated gradients": Variant("integrated_gradients"),
    "DeepLIFT": Variant("deeplift"),
    "LIME": Variant("lime"),
    "Kernel SHAP": Variant("kernel_shap"),
    "GradientSHAP": Variant("gradient_shap"),
    "DeepSHAP": Variant("deep_shap"),
    "occlusion": Variant("occlusion"),
    "LRP": Variant("lrp"),
    "LRP, epsilon-plus": Variant("lrp", "epsilon-plus"),
    "LRP, epsilon-gamma-box": Variant("lrp", "epsilon-gamma-box"),
    "LRP, epsilon-alpha2-beta1": Variant("lrp", "epsilon-alpha2-beta1"),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model and the samples that are explained, [N, 1, H, W] with labels y [N].

    target: the predicted classes. black: the value of the background. typical: training samples.
    mean: that of the training set, [1, 1, H, W]. accuracy: on the whole test set.
    """

    config: Config
    seed: int
    model: nn.Module
    x: Tensor
    y: Tensor
    target: Tensor
    black: float
    typical: Tensor
    mean: Tensor
    accuracy: float

    def attribute(
        self,
        variant: Variant,
        x: Tensor,
        *,
        model: nn.Module | None = None,
        seed: int = 0,
        error: bool = True,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return attributions [n, 1, H, W] to `x`, the first n samples, and their errors [n].

        Baselines are black, or the typical samples for what takes a distribution, unless given.
        Without `error`, which takes further passes, the errors are 0.
        """
        chosen = METHODS[variant.method]
        wanted = variant.options
        if chosen.baselines != "none":
            wanted["baselines"] = self.typical if chosen.baselines == "many" else self.black
        if chosen.masked and self.config.surrogate is not None:
            wanted["n_samples"] = self.config.surrogate
        with warnings.catch_warnings():
            # What it warns of, completeness and saturation, is measured here.
            warnings.simplefilter("ignore", AttributionWarning)
            what = model or self.model, x, self.target[: len(x)]
            how: dict[str, Any] = {"method": variant.method, "seed": seed, **wanted, **options}
            if error:
                return attribute(*what, return_error=True, **how)
            return attribute(*what, **how), x.new_zeros(len(x))

    def output(self, x: Tensor, model: nn.Module | None = None) -> Tensor:
        """Return the explained logit [n] of changed versions of the first n samples."""
        return self.logits(x, model).gather(1, self.target[: len(x), None])[:, 0]

    def logits(self, x: Tensor, model: nn.Module | None = None) -> Tensor:
        """Return the logits [n, C]."""
        with torch.no_grad():
            out: Tensor = (model or self.model)(x)
        return out

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probabilities [n, C]."""
        return self.logits(x).softmax(1)

    @property
    def few(self) -> Tensor:
        """The samples for what takes an attribution several times."""
        return self.x[: self.config.few]

    def baselines(self) -> dict[str, Tensor]:
        """Return baselines for the few samples by name, [few, 1, H, W]."""
        few = self.few
        generator = torch.Generator().manual_seed(self.seed)
        low, high = self.black, float(self.x.max())
        noise = torch.rand(few.shape, generator=generator) * (high - low) + low
        return {
            "black": torch.full_like(few, low),
            "mean": self.mean.expand(few.shape).clone(),
            "blurred": blurred(few, low),
            "uniform noise": noise,
        }


def blurred(x: Tensor, background: float) -> Tensor:
    """Return pictures [N, 1, H, W] under a Gaussian of an eighth of their side, by its width."""
    sigma = x.shape[-1] / 8
    reach = round(2 * sigma)
    place = torch.arange(-reach, reach + 1, dtype=x.dtype)
    weights = (-(place**2) / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    y = nn.functional.pad(x - background, (reach,) * 4)
    y = nn.functional.conv2d(y, weights.reshape(1, 1, 1, -1))
    return nn.functional.conv2d(y, weights.reshape(1, 1, -1, 1)) + background


@lru_cache(maxsize=1)
def subject(config: Config, seed: int) -> Subject:
    """Train the model of a seed; the rows of one seed share it in a process."""
    data = load(config.data)
    model = build(config.model, data.input_shape, data.num_classes, seed=seed)
    training = TrainingConfig(epochs=config.epochs, batch_size=128, threads=1, device="cpu")
    train(model, data, TRAINING["sgd"], training, seed=seed)
    model.eval()
    x, y = (each[seed * config.samples :][: config.samples] for each in data.test.tensors)
    known = data.train.tensors[0]
    with torch.no_grad():
        target = model(x).argmax(1)
    return Subject(
        config=config,
        seed=seed,
        model=model,
        x=x,
        y=y,
        target=target,
        black=float(known.min()),
        typical=known[seed * config.background :][: config.background].clone(),
        mean=known.mean(0, keepdim=True),
        accuracy=evaluate(model, data.test)["accuracy"],
    )


def untrained(of: Subject) -> nn.Module:
    """Return the same architecture with fresh random parameters."""
    data_shape, classes = of.x.shape[1:], of.logits(of.x[:1]).shape[1]
    return build(of.config.model, tuple(data_shape), classes, seed=of.seed + 1000).eval()


def by_cells(values: Tensor, cells: int | tuple[int, int], *, masked: bool = False) -> Tensor:
    """Return the sum of attributions [N, 1, H, W] in each cell of a grid, [N, cells].

    masked: all pixels of a cell have its value, which counts once.
    """
    mask = grid(values.shape, cells).flatten()
    count = int(mask.max()) + 1
    sums = values.new_zeros(len(values), count).index_add_(1, mask, values.flatten(1))
    return sums / torch.bincount(mask) if masked else sums


@dataclass(frozen=True, eq=False)
class Games:
    """Exact Shapley values [few, 10] of the few samples' cells, and what additivity leaves.

    interaction: of the variance of f over the coalitions, the share [few] that no sum of a share
    per cell explains.
    """

    values: Tensor
    interaction: Tensor


@lru_cache(maxsize=1)
def games(of: Subject) -> Games:
    """Play all 1,024 coalitions of ten cells for each of the few samples."""
    mask = grid(of.few.shape, FEW_CELLS)[0, 0]
    players = int(mask.max()) + 1
    member = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1
    values, left = [], []
    for n, x in enumerate(of.few):
        target = int(of.target[n])
        pictures = torch.where(member[:, mask][:, None], x, of.black)
        parts = torch.split(pictures, 256)
        worth = torch.cat([of.logits(part)[:, target] for part in parts]).double()
        values.append(_shares(worth, players))
        design = torch.cat([torch.ones(len(member), 1), member.float()], 1).double()
        fitted = design @ torch.linalg.lstsq(design, worth[:, None]).solution
        left.append((worth - fitted[:, 0]).var() / worth.var())
    return Games(torch.stack(values), torch.stack(left))


def _shares(worth: Tensor, players: int) -> Tensor:
    """Return the Shapley values of a game whose coalitions [2^players] have these values."""
    return shapley_values(lambda coalitions: worth, players)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return standard normal numbers."""
    with seeded(seed):
        return torch.randn(shape)
