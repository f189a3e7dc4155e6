"""Paper 001, figures 7 and A.3: spiking networks trained by LFP and by surrogate gradients."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig
from attrain.data import Data, load
from attrain.errors import CreditWarning
from attrain.methods import SPIKING_METHODS
from attrain.metrics.statistics import paired_difference
from attrain.models import SpikingLeNet, SpikingMLP, SpikingNet, seeded
from attrain.spiking import match_activity_
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.training import evaluate, train

MODELS = {"mlp": "MLP", "lenet": "LeNet"}
METHODS = {"lfp": "LFP", "surrogate": "surrogate gradients"}
GRADIENT = "gradient"
RATES = (1e-3, 1e-2, 5e-2, 7.5e-2, 0.1, 0.25, 0.5, 0.8)
BASE_STEPS, BASE_BETA = 15, 0.9
CLIPPING, VARIANT, SCALE, SLOPE = 0.02, "paper", 1.0, 25.0
HIGH, CLOSE = 0.95, 0.01
MATCHING = 256  # samples
FIGURE_7, FIGURE_A3 = "figure 7", "figure A.3"


@dataclass(frozen=True)
class Config:
    """Settings of the study; the defaults are the paper's.

    Rates are tried at every sequence length (`steps`) under the first beta, and at every `beta`
    under the first length.
    """

    data: str = "mnist"
    models: tuple[str, ...] = ("mlp", "lenet")
    rates: tuple[float, ...] = RATES
    steps: tuple[int, ...] = (BASE_STEPS, 5, 25)
    betas: tuple[float, ...] = (BASE_BETA, 0.3, 0.6)
    seeds: int = 3
    epochs: int = 3
    samples: int | None = None


@dataclass(frozen=True)
class Case:
    """One network to be trained: everything that decides its accuracy.

    `variant` is of the reward, and `scale` a factor of reward and loss, by which clipping decides
    the size of more or fewer neurons' steps; `slope` is of the surrogate x / (1 + slope |x|).
    `matched` weights let every layer fire before the first step. `tuning` trains on nine tenths of
    the training set and measures on the last. `samples` are the first of the training set, or all.
    """

    model: str = "mlp"
    method: str = "lfp"
    rate: float = 0.25
    steps: int = BASE_STEPS
    beta: float = BASE_BETA
    seed: int = 0
    epochs: int = 3
    clipping: float = CLIPPING
    variant: str = VARIANT
    scale: float = SCALE
    slope: float = SLOPE
    matched: bool = False
    tuning: bool = False
    samples: int | None = None
    data: str = "mnist"

    @property
    def name(self) -> str:
        """What the case is called in tables and files."""
        told = (
            f"{self.model}, {self.method}, rate {self.rate:g}, T {self.steps}, beta {self.beta:g}"
        )
        if self.clipping != CLIPPING:
            told += f", clipping {self.clipping:g}"
        if self.method == "lfp" and self.variant != VARIANT:
            told += f", reward of the {self.variant}"
        if self.scale != SCALE:
            told += f", scale {self.scale:g}"
        if self.slope != SLOPE:
            told += f", slope {self.slope:g}"
        if self.matched:
            told += ", matched weights"
        if self.tuning:
            told += f", {self.epochs} epoch on a validation split"
        return f"{told}, seed {self.seed}"


def rows(config: Config) -> list[Row]:
    """Return a row per network to train, and one per network that plain gradients cannot move."""
    untrained = [
        Row(f"{model}, {GRADIENT}, seed {seed}", partial(_by_gradient, config, model, seed))
        for model in config.models
        for seed in range(config.seeds)
    ]
    return untrained + [
        Row(case.name, partial(trained, case))
        for model in config.models
        for method in METHODS
        for steps, beta in _settings(config)
        for rate in config.rates
        for seed in range(config.seeds)
        for case in [_case(config, model, method, rate, steps, beta, seed)]
    ]


def _settings(config: Config) -> list[tuple[int, float]]:
    lengths = [(steps, config.betas[0]) for steps in config.steps]
    return lengths + [(config.steps[0], beta) for beta in config.betas[1:]]


def _case(
    config: Config, model: str, method: str, rate: float, steps: int, beta: float, seed: int
) -> Case:
    return Case(
        model,
        method,
        rate,
        steps,
        beta,
        seed,
        config.epochs,
        samples=config.samples,
        data=config.data,
    )


# Measuring ----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def pictures(name: str, tuning: bool, samples: int | None) -> Data:
    """Return a data set with pixels in [-1, 1], as in the authors' code."""
    data = load(name, validation=0.1 if tuning else 0.0)
    low, high = data.train.tensors[0].aminmax()

    def prepared(dataset: TensorDataset, most: int | None) -> TensorDataset:
        x, y = dataset.tensors
        return TensorDataset(2 * (x[:most] - low) / (high - low) - 1, y[:most])

    test = data.validation if tuning else data.test
    assert test is not None
    return dataclasses.replace(
        data, train=prepared(data.train, samples), test=prepared(test, None), validation=None
    )


def network(
    model: str,
    data: Data,
    seed: int,
    steps: int = BASE_STEPS,
    beta: float = BASE_BETA,
    slope: float = SLOPE,
) -> SpikingNet:
    """Return a network before training; a seed's start is the same for all methods."""
    options: dict[str, Any] = {"steps": steps, "beta": beta, "slope": slope}
    with seeded(seed):
        if model == "mlp":
            inputs = torch.Size(data.input_shape).numel()
            return SpikingMLP(inputs, classes=data.num_classes, **options)
        return SpikingLeNet(data.input_shape, data.num_classes, **options)


def trained(case: Case) -> Result:
    """Train the network of a case; return accuracies after each epoch, and what it cost."""
    data = pictures(case.data, case.tuning, case.samples)
    method = dataclasses.replace(
        SPIKING_METHODS[case.method],
        learning_rate=case.rate,
        adaptive_clipping=case.clipping,
        objective_options={"variant": case.variant} if case.method == "lfp" else {},
        loss_scale=case.scale,
    )
    model = network(case.model, data, case.seed, case.steps, case.beta, case.slope)
    if case.matched:
        match_activity_(model, data.train.tensors[0][:MATCHING])
    settings = TrainingConfig(epochs=case.epochs, threads=1, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)  # networks that stay silent are a result
        run = train(model, data, method, settings, seed=case.seed)
    return {
        "case": dataclasses.asdict(case),
        "test_accuracy": [row["test_accuracy"] for row in run.epochs],
        "train_accuracy": [row["train_accuracy"] for row in run.epochs],
        "step_cpu_s": run.step_cpu_s,
        "train_cpu_s": run.train_cpu_s,
    }


def _by_gradient(config: Config, model: str, seed: int) -> Result:
    """Take the gradient through the spikes as they are; a step has none, so nothing moves."""
    data = pictures(config.data, False, config.samples)
    net = network(model, data, seed, config.steps[0], config.betas[0])
    for neuron in net.neurons:
        neuron.spike_grad = _Step()
    out = net(data.train.tensors[0][:128])
    moved = bool(out.requires_grad)
    return {"test_accuracy": [evaluate(net, data.test)["accuracy"]], "moved": moved}


class _Step(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z > 0).to(z.dtype)


# What it adds up to -------------------------------------------------------------------------------

Values = NDArray[np.float64]
Found = dict[tuple[str, str, int, float], Values]
"""Model, method, steps, beta -> final accuracies [rates, seeds]."""


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return table, claims, a figure of the rates and one of lengths and decays."""
    found: Found = {
        (model, method, steps, beta): np.array(
            [
                [
                    results[_case(config, model, method, rate, steps, beta, seed).name][
                        "test_accuracy"
                    ][-1]
                    for seed in range(config.seeds)
                ]
                for rate in config.rates
            ]
        )
        for model in config.models
        for method in METHODS
        for steps, beta in _settings(config)
    }
    untouched = {
        model: [
            results[f"{model}, {GRADIENT}, seed {seed}"]["test_accuracy"][-1]
            for seed in range(config.seeds)
        ]
        for model in config.models
    }
    moved = any(
        results[f"{model}, {GRADIENT}, seed {seed}"]["moved"]
        for model in config.models
        for seed in range(config.seeds)
    )
    table = _table(config, found, untouched)
    claims = _claims(config, found, untouched, moved)
    return Conclusion(
        table, claims, [_draw_rates(config, found, out), _draw_a3(config, found, out)]
    )


def best(values: Values) -> int:
    """Return the place of the best rate: the largest mean over seeds of `values` [rates, seeds]."""
    return int(values.mean(1).argmax())


def _base(config: Config) -> tuple[int, float]:
    return config.steps[0], config.betas[0]


def _table(
    config: Config, found: Found, untouched: Mapping[str, Sequence[float]]
) -> list[TableRow]:
    table = [
        measured(
            f"{MODELS[model]}, {METHODS[method]}, T {steps}, beta {beta:g}, "
            f"best rate {config.rates[best(values)]:g}",
            values[best(values)].tolist(),
            unit="accuracy",
        )
        for (model, method, steps, beta), values in found.items()
    ]
    return table + [
        measured(f"{MODELS[model]}, gradient descent", values, unit="accuracy")
        for model, values in untouched.items()
    ]


def _claims(
    config: Config, found: Found, untouched: Mapping[str, Sequence[float]], moved: bool
) -> list[Claim]:
    claims: list[Claim] = []
    steps, beta = _base(config)
    for model in config.models:
        lfp, other = (found[model, method, steps, beta] for method in METHODS)
        claims += [
            _wide(config, model, lfp, other),
            _comparable(config, model, lfp, other),
            _saturates(config, model, lfp, other),
        ]
    each = ", ".join(f"{MODELS[m]} {100 * np.mean(v):.1f}%" for m, v in untouched.items())
    claims.append(
        {
            "claim": "Gradient descent without a surrogate does not improve the networks at all",
            "source": FIGURE_7,
            "holds": not moved,
            "figure": f"no weight gets a gradient; accuracy at the start: {each}",
        }
    )
    if "lenet" in config.models:
        claims += [_short(config, found), _decay(config, found)]
    return claims


def _wide(config: Config, model: str, lfp: Values, other: Values) -> Claim:
    high = [int((values.mean(1) >= HIGH).sum()) for values in (lfp, other)]
    count = len(config.rates)
    return {
        "claim": f"LFP achieves high accuracies across a wide range of learning rates "
        f"({MODELS[model]})",
        "source": FIGURE_7,
        "holds": high[0] >= count / 2 if count >= 4 else "unclear",
        "figure": f"{100 * HIGH:g}% or more at {high[0]} of {count} rates by LFP, at {high[1]} by "
        "surrogate gradients",
    }


def _comparable(config: Config, model: str, lfp: Values, other: Values) -> Claim:
    a, b = lfp[best(lfp)], other[best(other)]
    found = paired_difference(b.tolist(), a.tolist())
    interval = (
        f" [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
        if found["low"] is not None
        else ""
    )
    near = abs(float(found["mean"])) < CLOSE
    holds: Any = near and found["mean"] > 0
    return {
        "claim": "The best accuracies are comparable, that of surrogate gradients slightly higher "
        f"({MODELS[model]})",
        "source": FIGURE_7,
        "holds": "unclear" if near and not found["clear"] else holds,
        "figure": f"LFP {100 * a.mean():.2f}%, surrogate gradients {100 * b.mean():.2f}%, "
        f"difference {100 * found['mean']:+.2f}{interval} points, {len(a)} seeds",
    }


def _saturates(config: Config, model: str, lfp: Values, other: Values) -> Claim:
    """A method is saturated at the smallest rate that is within a point of its best."""
    least = [
        config.rates[int(np.argmax(values.mean(1) >= values.mean(1).max() - CLOSE))]
        for values in (lfp, other)
    ]
    return {
        "claim": f"LFP saturates at lower learning rates than gradients do ({MODELS[model]})",
        "source": FIGURE_7,
        "holds": least[0] < least[1] if len(config.rates) >= 4 else "unclear",
        "figure": f"within a point of the best from rate {least[0]:g} by LFP, {least[1]:g} by "
        "surrogate gradients",
    }


def _gap(found: Found, steps: int, beta: float) -> float:
    lfp, other = (found["lenet", method, steps, beta] for method in METHODS)
    return float(lfp[best(lfp)].mean() - other[best(other)].mean())


def _short(config: Config, found: Found) -> Claim:
    shortest = min(config.steps)
    gap = _gap(found, shortest, config.betas[0])
    return {
        "claim": "On short sequences LFP does worse than surrogate gradients (LeNet)",
        "source": FIGURE_A3,
        "holds": gap < 0 if config.seeds > 1 and len(config.steps) > 1 else "unclear",
        "figure": f"T {shortest}: LFP minus surrogate gradients {100 * gap:+.2f} points",
    }


def _decay(config: Config, found: Found) -> Claim:
    highest = max(config.betas)
    gap = _gap(found, config.steps[0], highest)
    return {
        "claim": "With a high decay factor LFP does better than surrogate gradients (LeNet)",
        "source": FIGURE_A3,
        "holds": gap > 0 if config.seeds > 1 and len(config.betas) > 1 else "unclear",
        "figure": f"beta {highest:g}: LFP minus surrogate gradients {100 * gap:+.2f} points",
    }


_COLOURS = dict(zip(METHODS, (figures.LFP, figures.GRADIENT), strict=True))
_MARKS = dict(zip(METHODS, ("o-", "s--"), strict=True))


def _curve(axes: Any, x: Sequence[float], values: Values, method: str) -> None:
    mean = 100 * values.mean(1)
    axes.plot(x, mean, _MARKS[method], color=_COLOURS[method], label=METHODS[method], markersize=4)
    if values.shape[1] > 1:
        spread = 100 * values.std(1, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=_COLOURS[method], alpha=0.15, lw=0)


def _draw_rates(config: Config, found: Found, out: Path) -> Path:
    path = out / "figures" / "lfp-fig7.svg"
    order = np.argsort(config.rates)
    rates = np.array(config.rates)[order].tolist()
    with figures.drawing(path, 4.1 * len(config.models), 3.2) as figure:
        grid = figure.subplots(1, len(config.models), sharey=True, squeeze=False)[0]
        for axes, model in zip(grid, config.models, strict=True):
            for method in METHODS:
                _curve(axes, rates, found[(model, method, *_base(config))][order], method)
            axes.set(title=f"{MODELS[model]}-SNN", xlabel="learning rate", xscale="log")
        grid[0].set_ylabel("test accuracy (%)")
        grid[0].legend()
    return path


def _draw_a3(config: Config, found: Found, out: Path) -> Path:
    path = out / "figures" / "lfp-figA3.svg"
    with figures.drawing(path, 4.1 * len(config.models), 5.4) as figure:
        grid = figure.subplots(2, len(config.models), sharey=True, squeeze=False)
        for column, model in enumerate(config.models):
            for method in METHODS:
                lengths, decays = sorted(config.steps), sorted(config.betas)
                of_steps = [found[model, method, steps, config.betas[0]] for steps in lengths]
                of_betas = [found[model, method, config.steps[0], beta] for beta in decays]
                for axes, x, each in (
                    (grid[0, column], lengths, of_steps),
                    (grid[1, column], decays, of_betas),
                ):
                    top = np.stack([values[best(values)] for values in each])
                    _curve(axes, list(map(float, x)), top, method)
            grid[0, column].set(title=f"{MODELS[model]}-SNN", xlabel="time steps T")
            grid[1, column].set(xlabel="decay factor $\\beta$")
        for row in range(2):
            grid[row, 0].set_ylabel("test accuracy (%), best rate")
        grid[0, 0].legend()
    return path


STUDY = Study(
    id="lfp-fig7-A3",
    title="Spiking networks: LFP and surrogate gradients over rates, lengths and decays",
    source="paper 2308.12053, figures 7 and A.3",
    deviations=(
        "SGD has momentum 0.9, which swings against the rate; the paper names no momentum.",
        "Pixels lie in [-1, 1], as in the authors' code; the paper does not say.",
        "The backward pass is not divided by its largest value between layers.",
        "Rewards are those of equation A.4; the authors' code rewards other classes in the steps "
        "in which they fire alone.",
        "LeNet has a dense layer of 1,024 neurons and an output layer of 10, as the text says.",
        "The smoke budget takes the 8x8 digits of scikit-learn, the quick one a single epoch, "
        "seed, length and decay.",
    ),
    budgets={
        "smoke": Config("digits", rates=(0.25,), steps=(5,), betas=(0.9,), seeds=1, epochs=1),
        "quick": Config(rates=(0.1, 0.25, 0.5, 0.8), steps=(5,), betas=(0.9,), seeds=1, epochs=1),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
