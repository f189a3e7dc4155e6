"""Measures of a trained model by name, each from the same few samples of the test set."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from attrain.attribution import attribute
from attrain.attribution.conditions import as_in_evaluation, has_gradient, progress_bar
from attrain.attribution.layers import embedding_of
from attrain.attribution.methods import find
from attrain.data import Data
from attrain.errors import AttributionWarning, InputError
from attrain.methods import is_spiking
from attrain.metrics import faithfulness, localisation, words
from attrain.metrics.attacks import Limit, fgsm, pgd, without_gradient
from attrain.metrics.batches import in_batches
from attrain.metrics.distribution import Spread, gradient_distribution, object_of
from attrain.metrics.randomisation import layers_of, model_randomisation
from attrain.metrics.robustness import EPSILONS, SIGMAS, Curve, attack_curve, noise_curve
from attrain.models import SpikingNet

BASELINES = 16
"""Training samples that a method takes for its distribution of baselines."""
FEWEST_FEATURES = 10
"""Below these, tenths of the features are no curve."""
PADDING = 0
"""The number in a text that stands for no word."""
RANDOM_ORDERS = 3
NOISE_DRAWS = 3

Json = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """On what, and how hard, a model is measured."""

    samples: int = 256
    method: str = "saliency"
    target: str = "predicted"
    steps: int = 20
    restarts: int = 1
    seed: int = 0
    batch_size: int = 128


@dataclass(frozen=True)
class Found:
    """Figures by name, None where one cannot be told, and the curves behind them."""

    figures: Mapping[str, float | None]
    curves: Json


class Subject:
    """A model, and the samples it is measured on, the same ones for every model of a data set."""

    def __init__(self, model: nn.Module, data: Data, settings: Settings) -> None:
        self.model, self.data, self.settings = model, data, settings
        x, y = data.test.tensors
        drawn = np.random.default_rng(settings.seed).permutation(len(x))[: settings.samples]
        index = torch.from_numpy(np.sort(drawn))
        first = next(iter(model.parameters()), x)
        self.x, self.y = x[index].to(first.device), y[index].to(first.device)
        known = data.evidence.get("test")
        self.evidence = None if known is None else known[index].to(first.device)
        """What of each sample its label rests on, booleans [N, ...], where that is known."""

    @property
    def is_text(self) -> bool:
        """Whether a sample is numbers of words, whose vectors have gradients in their place."""
        return not self.x.is_floating_point()

    @property
    def is_image(self) -> bool:
        """Whether a sample is a picture [C, H, W], with a corner and an object."""
        return len(self.data.input_shape) == 3

    @property
    def features(self) -> int:
        """How many places an attribution ranks: pixels, else values."""
        shape = self.data.input_shape
        return int(np.prod(shape[1:] if self.is_image else shape))

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's outputs in single precision."""
        return cast(Tensor, self.model(x)).float()

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the softmax of the outputs."""
        return self.logits(x).softmax(1)

    @cached_property
    def differentiable(self) -> bool:
        """Whether the outputs have a gradient in the inputs or the word vectors, be it 0."""
        if self.is_text:
            return embedding_of(self.model) is not None
        return has_gradient(self.model, self.x[:1])

    def check_gradient(self, name: str) -> None:
        """Raise InputError where `name` takes a gradient and there is none."""
        if self.is_text and not self.differentiable:
            raise InputError(
                f"the model has no nn.Embedding, whose output would have a gradient, and {name} "
                "takes one: judge --method lime, kernel_shap or occlusion."
            )
        if not self.differentiable:
            raise InputError(
                f"the model's outputs have no gradient in its inputs, and {name} takes one: judge "
                "another --method, such as lrp or occlusion, by other measures than of gradients."
            )

    @cached_property
    def target(self) -> Tensor:
        """The class of each sample that attributions explain."""
        if self.settings.target == "label":
            return self.y
        with torch.no_grad():
            return in_batches(self.logits, self.settings.batch_size)(self.x).argmax(1)

    def explain(self, model: nn.Module) -> Tensor:
        """Return attributions [N, ...].

        Of pictures the mean over the channels, [N, 1, H, W]; of texts the sum over the values of
        a word's vector, [N, L].
        """
        settings, method = self.settings, find(self.settings.method)
        if method.differentiates and method.run is not None:
            self.check_gradient(settings.method)
        options: Json = {}
        if method.baselines == "many":
            options["baselines"] = self.data.train.tensors[0][:BASELINES].to(self.x.device)
        by_word = self.is_text and method.differentiates
        if by_word:
            options["layer"] = embedding_of(model)
        with warnings.catch_warnings():
            # What is doubtful about a map is what is measured here.
            warnings.simplefilter("ignore", AttributionWarning)
            values = attribute(
                model, self.x, self.target, method=settings.method, batch_size=settings.batch_size,
                seed=settings.seed if method.drawn else None, **options,
            )  # fmt: skip
        if by_word:
            return values.sum(2)
        return values.mean(1, keepdim=True) if self.is_image else values

    @cached_property
    def attribution(self) -> Tensor:
        """The attributions of the model that is measured."""
        return self.explain(self.model)

    @cached_property
    def limits(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest value that each input can take, [*input_shape], as the model does.

        Pixels lie in 0..1 before they are normalised; other features in what the data have.
        """
        found = [part.tensors[0] for part in (self.data.train, self.data.test)]
        low = torch.minimum(found[0].amin(0), found[1].amin(0))
        high = torch.maximum(found[0].amax(0), found[1].amax(0))
        raw_low, raw_high = self.data.restore(low), self.data.restore(high)
        if self.is_image and float(raw_low.min()) > -1e-4 and float(raw_high.max()) < 1 + 1e-4:
            ends = (torch.full_like(low, end) for end in (0.0, 1.0))
            low, high = ((end - self.data.mean) / self.data.std for end in ends)
        return low.to(self.x.device), high.to(self.x.device)

    @property
    def scale(self) -> Tensor:
        """The range of each input: the unit of sigma and epsilon."""
        low, high = self.limits
        return high - low

    def backgrounds(self) -> dict[str, Limit]:
        """Return what replaces a feature: the image's own corner, and the mean of the data."""
        found: dict[str, Limit] = {}
        if self.is_image:
            mean, std = (v.to(self.x.device) for v in (self.data.mean, self.data.std))
            raw = faithfulness.corner(self.x * std + mean)
            found["corner"] = (raw - mean) / std
        x = self.data.train.tensors[0]
        found["mean"] = x.mean((0, 2, 3) if self.is_image else 0, keepdim=True).to(self.x.device)
        return found


# The measures -------------------------------------------------------------------------------------


def accuracy_drop(of: Subject) -> Found:
    """Return the accuracy with the top features replaced, and with random ones replaced."""
    if of.features < FEWEST_FEATURES:
        raise InputError(
            f"accuracy_drop takes tenths of the features away: {of.data.name!r} has {of.features}, "
            f"and at least {FEWEST_FEATURES} are needed."
        )
    predict = in_batches(of.logits, of.settings.batch_size)
    curves: Json = {}
    orders = [
        faithfulness.random_attribution(of.attribution, seed=of.settings.seed + draw)
        for draw in range(RANDOM_ORDERS)
    ]
    for name, background in of.backgrounds().items():
        drops = [
            faithfulness.accuracy_drop(
                predict, of.x, of.y, order, background, seed=of.settings.seed
            )
            for order in (of.attribution, *orders)
        ]
        curves[name] = {"accuracy": drops[0], "random": np.mean(drops[1:], axis=0).tolist()}
    areas = {
        name: {key: faithfulness.area(values) for key, values in curve.items()}
        for name, curve in curves.items()
    }
    first = next(iter(areas.values()))
    figures = {
        "faithfulness": first["random"] - first["accuracy"],
        "accuracy_drop": first["accuracy"],
        "accuracy_drop_random": first["random"],
    }
    if of.is_image:
        figures["accuracy_drop_mean"] = areas["mean"]["accuracy"]
        figures["accuracy_drop_mean_random"] = areas["mean"]["random"]
    return Found(figures, {"fractions": list(faithfulness.FRACTIONS), "backgrounds": curves})


def comprehensiveness(of: Subject) -> Found:
    """Return by how much the predicted class falls without the top features."""
    measure = words.comprehensiveness if of.is_text else faithfulness.comprehensiveness
    return _aopc(of, "comprehensiveness", measure)


def sufficiency(of: Subject) -> Found:
    """Return by how much the predicted class falls with the top features alone."""
    measure = words.sufficiency if of.is_text else faithfulness.sufficiency
    return _aopc(of, "sufficiency", measure)


def _aopc(of: Subject, name: str, measure: Callable[..., Tensor]) -> Found:
    predict = in_batches(of.probabilities, of.settings.batch_size)
    # Words are deleted, other features replaced.
    background = () if of.is_text else (of.backgrounds()["mean"],)
    each = measure(predict, of.x, of.attribution, *background, seed=of.settings.seed)
    told = {"fractions": list(faithfulness.AOPC), "samples": each.tolist()}
    return Found({name: float(each.mean())}, told)


def localised(of: Subject) -> Found:
    """Return precision and recall by mass of the attributions in what the labels rest on."""
    box = of.evidence
    if box is None:
        raise InputError(
            f"localisation asks whether an attribution lies where it should, and of "
            f"{of.data.name!r} nobody has said where: it takes data with evidence, such as "
            "series:middle-gaussian and movies."
        )
    told = box.flatten(1).any(1)
    if not told.any():
        raise InputError(
            f"none of the {len(box)} samples of {of.data.name!r} that were drawn has evidence: "
            "raise --samples, or give another --seed."
        )
    values, box = of.attribution[told].abs(), box[told]
    references: dict[str, localisation.Reference] = {"uniform": localisation.all_permuted}
    if of.is_text:
        real = of.x[told] != PADDING
        # Padding gets the least mass that a word has, and keeps it.
        values = values.masked_fill(~real, torch.inf)
        values = torch.where(real, values, values.amin(1, keepdim=True))
        references["uniform"] = partial(localisation.words_permuted, real=real)
    else:
        references["features"] = localisation.features_permuted
    above = [f"{area}_above_{by}" for by in REFERENCES for area in ("aup", "aur")]
    figures: dict[str, float | None] = dict.fromkeys(["aup", "aur", *above])
    if bool((values.flatten(1).amax(1) > values.flatten(1).amin(1)).any()):
        seed = of.settings.seed
        ours = localisation.aup_aur(values, box, seed=seed)
        figures |= {"aup": ours.precision, "aur": ours.recall}
        for by, reference in references.items():
            gap = localisation.above_random(
                values, box, reference=reference, draws=RANDOM_ORDERS, seed=seed
            )
            figures |= {f"aup_above_{by}": gap.precision, f"aur_above_{by}": gap.recall}
    curves = localisation.precision_recall(values, box, seed=of.settings.seed)
    means = {name: each.nanmean(1).tolist() for name, each in curves._asdict().items()}
    return Found(
        figures, {"shares": list(localisation.SHARES), "samples": int(told.sum()), **means}
    )


REFERENCES = ("features", "uniform")
"""Random attributions that `localised` subtracts: features in another order, all values in one."""


def distribution(of: Subject) -> Found:
    """Return how the gradients of the explained outputs are distributed."""
    of.check_gradient("gradient_distribution")
    gradient = attribute(
        of.model, of.x, of.target, method="saliency", abs=False, batch_size=of.settings.batch_size
    )
    found = gradient_distribution(gradient, object_of(of.x) if of.is_image else None)
    means = {name: _mean(values) for name, values in _named(found)}
    figures = {
        f"gradient_{name}": means[name]
        for name in ("low", "high", "interquartile", "kurtosis", "on_object")
        if name in means
    }
    return Found(figures, {name: values.tolist() for name, values in _named(found)})


def _named(found: Spread) -> Iterator[tuple[str, Tensor]]:
    yield from ((k, v) for k, v in found._asdict().items() if v is not None)


def randomisation(of: Subject) -> Found:
    """Return how alike attributions are while the parameters turn random from the last layer on."""
    found = model_randomisation(of.model, of.explain, seed=of.settings.seed)
    layers = [{"layer": e.layer, "similarity": e.mean, "samples": e.samples} for e in found]
    return Found({"model_randomisation": found[-1].mean}, {"layers": layers})


def noise(of: Subject) -> Found:
    """Return the accuracy under Gaussian noise."""
    curve = noise_curve(
        of.logits, of.x, of.y, of.scale, *of.limits, draws=NOISE_DRAWS, seed=of.settings.seed,
        batch_size=of.settings.batch_size,
    )  # fmt: skip
    return _robust("noise", SIGMAS, curve, {"draws": NOISE_DRAWS})


def one_step(of: Subject) -> Found:
    """Return the accuracy under the fast gradient sign method."""
    size = of.settings.batch_size
    low, high = of.limits

    def attack(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        return fgsm(of.logits, x, y, epsilon, low, high, batch_size=size)

    curve = attack_curve(of.logits, of.x, of.y, of.scale, attack, nested=False, batch_size=size)
    return _robust("fgsm", EPSILONS, curve, _blind(of))


def many_steps(of: Subject) -> Found:
    """Return the accuracy under projected gradient descent."""
    settings = of.settings
    low, high = of.limits

    def attack(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        return pgd(
            of.logits, x, y, epsilon, low, high, steps=settings.steps, restarts=settings.restarts,
            seed=settings.seed, batch_size=settings.batch_size,
        )  # fmt: skip

    curve = attack_curve(of.logits, of.x, of.y, of.scale, attack, batch_size=settings.batch_size)
    told = {"steps": settings.steps, "restarts": settings.restarts}
    return _robust("pgd", EPSILONS, curve, told | _blind(of))


def _blind(of: Subject) -> Json:
    share = without_gradient(of.logits, of.x, of.y, batch_size=of.settings.batch_size)
    return {"without_gradient": share}


def _robust(name: str, sizes: tuple[float, ...], curve: Curve, told: Json) -> Found:
    figure = faithfulness.area(curve.overall, sizes)
    return Found({f"{name}_accuracy": figure}, {"sizes": list(sizes), **curve._asdict(), **told})


def _mean(values: Tensor) -> float | None:
    """Return the mean of those that are numbers."""
    kept = values[~values.isnan()]
    return float(kept.mean()) if len(kept) else None


MEASURES: Mapping[str, Callable[[Subject], Found]] = {
    "accuracy_drop": accuracy_drop,
    "comprehensiveness": comprehensiveness,
    "sufficiency": sufficiency,
    "localisation": localised,
    "gradient_distribution": distribution,
    "model_randomisation": randomisation,
    "noise": noise,
    "fgsm": one_step,
    "pgd": many_steps,
}
"""Name -> what measures it; config.EXPLANATION_MEASURES has the same names with their costs."""
OF_TEXTS = ("comprehensiveness", "sufficiency", "localisation")
"""Those that can be taken of texts: they change which words there are, or change nothing."""


def measure_explanations(
    model: nn.Module, data: Data, names: tuple[str, ...], settings: Settings, *, progress: bool
) -> dict[str, Found]:
    """Return what each of the named measures finds for a model, which is run as in evaluation.

    progress: show a bar with the time left, on stderr. Raises InputError for data without samples
    and for what a measure cannot be taken of.
    """
    of = _ready(model, data, names, settings)
    work = {name: _rows(name, of) for name in names}
    with as_in_evaluation(model, of.x), progress_bar(progress, "rows", sum(work.values())) as bar:
        found, done = {}, 0
        for name in names:
            with _counting(model, done, work[name], bar):
                found[name] = MEASURES[name](of)
            done += work[name]
            bar(done)
    return found


def _ready(model: nn.Module, data: Data, names: tuple[str, ...], settings: Settings) -> Subject:
    if len(data.test) == 0:
        raise InputError(f"data set {data.name!r} has no test samples: nothing to measure on.")
    refused = [name for name in names if name not in OF_TEXTS]
    if refused and not data.test.tensors[0].is_floating_point():
        raise InputError(
            f"samples of {data.name!r} are numbers of words, which have no size to change, as "
            f"{refused[0]} does: measure {', '.join(OF_TEXTS)}, or with the functions of "
            "attrain.metrics, on the embedded words."
        )
    if is_spiking(model):
        # What it is asked for is a gradient, which only a surrogate has.
        cast(SpikingNet, model).spike_by("surrogate")
    return Subject(model, data, settings)


def _rows(name: str, of: Subject) -> int:
    """Return about how many rows a measure puts through the model, for the time left."""
    method = find(of.settings.method)
    options = {key: value for key, value in method.options.items() if value is not None}
    explained = method.rows(options, BASELINES)
    sizes = len(EPSILONS) - 1
    passes = {
        "accuracy_drop": explained + 10 * (1 + RANDOM_ORDERS) * (2 if of.is_image else 1),
        "comprehensiveness": explained + 6,
        "sufficiency": explained + 6,
        "localisation": explained,
        "gradient_distribution": 1,
        "noise": 1 + NOISE_DRAWS * len(SIGMAS),
        "fgsm": 2 + 2 * sizes,
        "pgd": 2 + sizes * (3 + of.settings.restarts * (of.settings.steps + 1)),
    }
    if name == "model_randomisation":
        passes[name] = explained * (1 + len(layers_of(of.model)))
    return passes[name] * len(of.x)


@contextmanager
def _counting(
    model: nn.Module, done: int, most: int, bar: Callable[[float], None]
) -> Iterator[None]:
    """Tell the bar of each row that goes through the model inside."""
    seen = 0

    def tell(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])
        bar(done + min(seen, most))

    handle = model.register_forward_pre_hook(tell)
    try:
        yield
    finally:
        handle.remove()


# At the end of every run --------------------------------------------------------------------------

QUICK = Settings(samples=256, steps=10)
QUICK_SPIKING = Settings(samples=64, steps=10)
"""Each row goes through a spiking model many times."""


def judge(model: nn.Module, data: Data, *, batch_size: int = 128) -> tuple[Json, Json]:
    """Return what a run tells of its final model: figures, and the curves for the report.

    batch_size: the most rows that go through the model at once, with their gradients. Figures are
    None where there are too few features to remove, no gradient, no evidence, or words in place
    of numbers. The curves are the parts `faithfulness`, `localisation` and `robustness` of
    analysis.json.
    """
    figures: Json = dict.fromkeys(JUDGED)
    settings = QUICK_SPIKING if is_spiking(model) else QUICK
    settings = dataclasses.replace(settings, batch_size=batch_size)
    of = Subject(model, data, settings)
    names: tuple[str, ...] = ("noise", "fgsm", "pgd") if of.differentiable else ("noise",)
    if of.differentiable and of.features >= FEWEST_FEATURES:
        names = ("accuracy_drop", *names)
    names = () if of.is_text else names
    if of.differentiable and of.evidence is not None and bool(of.evidence.any()):
        names = (*names, "localisation")
    found = measure_explanations(model, data, names, settings, progress=False)
    for each in found.values():
        figures |= {key: value for key, value in each.figures.items() if key in JUDGED}
    curves = {name: found[name].curves for name in ("noise", "fgsm", "pgd") if name in found}
    parts: Json = {"robustness": {"samples": len(of.x), **curves}} if curves else {}
    about = {"method": settings.method, "target": settings.target, "samples": len(of.x)}
    for name, part in (("accuracy_drop", "faithfulness"), ("localisation", "localisation")):
        if name in found:
            parts[part] = about | found[name].curves
    return figures, parts


JUDGED = (
    "faithfulness",
    "accuracy_drop",
    "accuracy_drop_random",
    "aup_above_uniform",
    "aur_above_uniform",
    "noise_accuracy",
    "fgsm_accuracy",
    "pgd_accuracy",
)
