"""Paper 003, section 4: what saliency guided training costs in steps, memory and epochs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.data import Data
from attrain.guided import SaliencyGuided, masks
from attrain.guided.agreement import divergence
from attrain.metrics.cost import interleaved, saved_at_once, training_bytes
from attrain.metrics.faithfulness import accuracy_drop, area, corner
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.studies.graph_subjects import accuracy, images
from attrain.studies.guided_subjects import GUIDED, REGULAR, Recipe, maps, predicted, trained
from attrain.studies.sgt_cost_figures import draw_convergence, draw_quality, draw_steps
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import Verdict, no_worse, told, verdict
from attrain.training import train

PLAIN, HAND, KEPT = "plain", "algorithm 1 by hand", "exact, masks kept"
EXACT, SHARED, FAST = "exact", "shared", "fast"
VISITS = 4
"""Visits for which a mask is kept; as many steps are timed at once."""
STEPS: Mapping[str, Mapping[str, Any] | None] = {
    PLAIN: None,
    HAND: None,
    EXACT: {"form": "exact"},
    SHARED: {"form": "shared"},
    FAST: {"form": "fast"},
    KEPT: {"form": "exact", "refresh": VISITS},
}
THEORY = {HAND: 2.68, EXACT: 2.68, SHARED: 2.33, FAST: 2.01, KEPT: 2 + 0.67 / VISITS}
"""Multiply-adds over those of a plain step, one pass and the way back through it.

The exact form does less where evaluation and training begin alike, up to the first dropout."""
PAPER_EPOCH = (24.0, 75.0)
"""Seconds of an epoch of CIFAR-10, regular and guided."""
PAPER_EPOCHS = {REGULAR: 118.0, GUIDED: 124.0}
"""Epochs of CIFAR-10 to convergence."""
NEAR = 0.98
"""Share of the lower of both best accuracies that counts as reached."""
MARGINS = {"accuracy": 0.01, "area": 0.02}
"""By how much a cheaper form may be worse than the exact one: fixed before any published row."""


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    steps: titles -> model and shape of a batch, whose steps are timed in `rounds`. quality: how
    models are trained under every form; accuracy is of `test` test images, the area under the
    accuracy drop of the first `removed`. convergence: how models are trained whose validation
    accuracy, on the `held` training images after those of the recipe, is followed; `patience` is
    how many epochs without a new best end the training.
    """

    steps: Mapping[str, tuple[str, tuple[int, ...]]]
    rounds: int
    quality: Recipe
    convergence: Recipe
    held: int = 1000
    patience: int = 8
    seeds: int = 5
    test: int = 2000
    removed: int = 500


def rows(config: Config) -> list[Row]:
    """Return a row per form and seed, per arm and seed, and per model whose steps are timed."""
    qualities = [
        Row(_quality(form, seed), partial(measure_quality, config, form, seed))
        for seed in range(config.seeds)
        for form in FORMS
    ]
    convergences = [
        Row(_convergence(arm, seed), partial(measure_convergence, config, arm, seed))
        for seed in range(config.seeds)
        for arm in PAPER_EPOCHS
    ]
    steps = [
        Row(_step(title), partial(measure_steps, config, title), timed=True)
        for title in config.steps
    ]
    return [*qualities, *convergences, *steps]


FORMS = (REGULAR, EXACT, SHARED, FAST)
"""What models are trained under to compare their quality."""


def _quality(form: str, seed: int) -> str:
    return f"quality, {form}, seed {seed}"


def _convergence(arm: str, seed: int) -> str:
    return f"convergence, {arm}, seed {seed}"


def _step(title: str) -> str:
    return f"steps, {title}"


# Measuring ----------------------------------------------------------------------------------------


def measure_steps(config: Config, title: str) -> Result:
    """Return the CPU seconds of a step in each round, and bytes, by form.

    saved: the most that autograd holds at once. held: that with parameters, their gradients and
    buffers.
    """
    found: Result = {"seconds": {}, "saved": {}, "held": {}}
    made = {form: _make_step(form, *config.steps[title]) for form in STEPS}
    steps = {name: step for name, (step, _, _) in made.items()}
    found["seconds"] = interleaved(steps, config.rounds, repeats=VISITS)
    for name, (step, model, optimizer) in made.items():
        saved = saved_at_once(step)
        found["saved"][name] = saved
        found["held"][name] = saved + training_bytes(model, optimizer, [])
    return found


def _make_step(form: str, name: str, shape: tuple[int, ...]) -> Any:
    """Return a step in a form of STEPS on random images, its model and its optimizer."""
    options = STEPS[form]
    model = build(name, shape[1:], 10, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    y = torch.randint(10, shape[:1], generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    index = torch.arange(len(x)) if options and "refresh" in options else None
    guided = None if options is None else SaliencyGuided(model, F.cross_entropy, **options)

    def loss() -> Tensor:
        if guided is not None:
            return guided(x, y, index=index)
        return by_hand(model, x, y) if form == HAND else F.cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step, model, optimizer


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the guided loss as algorithm 1 has it: a saliency pass in evaluation, then two."""
    model.eval()
    point = x.clone().requires_grad_()
    own = model(point).gather(1, y[:, None]).sum()
    (gradient,) = torch.autograd.grad(own, point)
    drop = masks.lowest(gradient.mean(1), masks.count(0.5, gradient[0, 0].numel()))
    model.train()
    out, masked_out = model(x), model(masks.image(x, drop))
    return F.cross_entropy(out, y) + divergence(out, masked_out, "logits")


def measure_quality(config: Config, form: str, seed: int) -> Result:
    """Return the accuracy of a model trained under a form, and the area under its accuracy drop."""
    recipe = config.quality
    if form == REGULAR:
        model = trained(recipe, REGULAR, seed)
    else:
        model = trained(replace(recipe, form=form), GUIDED, seed)  # type: ignore[arg-type]
    x, y = (each[: config.test] for each in images(recipe.data).test.tensors)
    whole = accuracy(model, x, y)
    x, y = x[: config.removed], y[: config.removed]
    saliency = maps(model, x, predicted(model, x), "gradient")
    return {"accuracy": whole, "area": area(accuracy_drop(model, x, y, saliency, corner(x)))}


def measure_convergence(config: Config, arm: str, seed: int) -> Result:
    """Return the validation accuracy after each epoch."""
    recipe = config.convergence
    data = _held_out(images(recipe.data), recipe.samples, config.held)
    model = build(recipe.model, data.input_shape, data.num_classes, seed=seed)
    done = train(model, data, recipe.method(arm), recipe.training, seed=seed)
    return {"accuracy": [row["test_accuracy"] for row in done.epochs]}


def _held_out(data: Data, samples: int, held: int) -> Data:
    """Return the first training samples, with those that follow in the place of the test set."""
    x, y = data.train.tensors
    after = slice(samples, samples + held)
    return replace(
        data,
        train=TensorDataset(x[:samples], y[:samples]),
        test=TensorDataset(x[after], y[after]),
    )


# What it adds up to -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Converged:
    """The epoch with the best accuracy, from 1, and whether patience ended the training there."""

    epoch: int
    stopped: bool


def converged(curve: Sequence[float], patience: int) -> Converged:
    """Return the best epoch before `patience` epochs in a row that are no better."""
    best = 0
    for epoch, value in enumerate(curve):
        if value > curve[best]:
            best = epoch
        if epoch - best >= patience:
            return Converged(best + 1, True)
    return Converged(best + 1, False)


def reached(curve: Sequence[float], level: float) -> int:
    """Return the first epoch, from 1, whose accuracy is at least `level`, which one must be."""
    return next(epoch for epoch, value in enumerate(curve, start=1) if value >= level)


@dataclass(frozen=True)
class Findings:
    """The results, as the table, the claims and the figures take them.

    ratios: by model and form, a step over a plain one, a value per round. memory: by model and
    form, saved and held bytes over a plain step's. quality: by form and figure, a value per seed.
    curves: by arm, accuracy [seeds, epochs].
    """

    config: Config
    ratios: Mapping[tuple[str, str], list[float]]
    memory: Mapping[tuple[str, str], tuple[float, float]]
    quality: Mapping[tuple[str, str], list[float]]
    curves: Mapping[str, list[list[float]]]

    def converged(self, arm: str) -> list[Converged]:
        """When each seed of an arm converged."""
        return [converged(curve, self.config.patience) for curve in self.curves[arm]]

    def near(self, arm: str) -> list[float]:
        """When each seed came near the best that both arms reach."""
        pairs = zip(self.curves[REGULAR], self.curves[GUIDED], strict=True)
        levels = [NEAR * min(max(one), max(other)) for one, other in pairs]
        return [
            float(reached(curve, level))
            for curve, level in zip(self.curves[arm], levels, strict=True)
        ]


def findings(config: Config, results: Mapping[str, Result]) -> Findings:
    """Return what the rows of the study found."""
    ratios, memory = {}, {}
    for title in config.steps:
        row = results[_step(title)]
        plain = row["seconds"][PLAIN]
        for form in THEORY:
            pairs = zip(row["seconds"][form], plain, strict=True)
            ratios[title, form] = [mine / its for mine, its in pairs]
            memory[title, form] = (
                row["saved"][form] / row["saved"][PLAIN],
                row["held"][form] / row["held"][PLAIN],
            )
    seeds = range(config.seeds)
    return Findings(
        config=config,
        ratios=ratios,
        memory=memory,
        quality={
            (form, key): [results[_quality(form, seed)][key] for seed in seeds]
            for form in FORMS
            for key in MARGINS
        },
        curves={
            arm: [results[_convergence(arm, seed)]["accuracy"] for seed in seeds]
            for arm in PAPER_EPOCHS
        },
    )


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return table, claims and figures."""
    found = findings(config, results)
    folder = out / "figures"
    drawn = [
        draw_steps(found.ratios, THEORY, folder / "sgt-cost-steps.svg"),
        draw_convergence(
            found.curves,
            {arm: [each.epoch for each in found.converged(arm)] for arm in found.curves},
            folder / "sgt-cost-convergence.svg",
        ),
        draw_quality(found.quality, FORMS, folder / "sgt-cost-quality.svg"),
    ]
    return Conclusion(_table(found), _claims(found), drawn)


def _table(found: Findings) -> list[TableRow]:
    table = []
    for (title, form), ratios in found.ratios.items():
        saved, held = found.memory[title, form]
        paper = PAPER_EPOCH[1] / PAPER_EPOCH[0] if form == HAND else None
        table += [
            measured(f"{title}, {form}: CPU time", ratios, paper=paper, unit="plain steps"),
            measured(f"{title}, {form}: saved for the way back", [saved], unit="plain steps"),
            measured(f"{title}, {form}: all tensors of training", [held], unit="plain steps"),
        ]
    for arm, paper in PAPER_EPOCHS.items():
        best = [max(curve) for curve in found.curves[arm]]
        epochs = [float(each.epoch) for each in found.converged(arm)]
        table += [
            measured(f"{arm}: best validation accuracy", best, unit="accuracy"),
            measured(f"{arm}: epochs to convergence", epochs, paper=paper),
            measured(f"{arm}: epochs to {NEAR:.0%} of the best of both", found.near(arm)),
        ]
    for (form, key), values in found.quality.items():
        name = "accuracy" if key == "accuracy" else "area under the accuracy drop"
        table.append(measured(f"{form}: {name}", values, unit="accuracy"))
    return table


def _claims(found: Findings) -> list[Claim]:
    claims = []
    for title in found.config.steps:
        claims += [_three_times(found, title), _twice_the_memory(found, title)]
        claims += [
            _cheaper(found, title, *pair)
            for pair in ((EXACT, HAND), (SHARED, HAND), (FAST, SHARED))
        ]
    claims += [_more_epochs(found), _guidance_works(found)]
    claims += [_as_good(found, form, key) for form in (SHARED, FAST) for key in MARGINS]
    return claims


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles and between them the median; of one value, three times it."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _spread(values: Sequence[float]) -> str:
    low, median, high = quartiles(values)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _three_times(found: Findings, title: str) -> Claim:
    ratios = found.ratios[title, HAND]
    paper = PAPER_EPOCH[1] / PAPER_EPOCH[0]
    return {
        "claim": f"{title}: a guided step, written by hand, takes about three plain ones",
        "source": "section 4, limitations",
        "holds": round(statistics.median(ratios)) == 3,
        "figure": f"median {_spread(ratios)} of {len(ratios)} rounds, CPU time; multiply-adds "
        f"{THEORY[HAND]}; the paper {PAPER_EPOCH[1]:.0f} s against {PAPER_EPOCH[0]:.0f} s an "
        f"epoch, {paper:.1f}",
    }


def _twice_the_memory(found: Findings, title: str) -> Claim:
    saved, held = found.memory[title, EXACT]
    return {
        "claim": f"{title}: the masked batch doubles the memory (of what is kept for the way back)",
        "source": "section 4, limitations",
        "holds": 1.8 <= saved <= 2.2,
        "figure": f"{saved:.2f} times; with parameters and gradients {held:.2f}",
    }


def _cheaper(found: Findings, title: str, form: str, other: str) -> Claim:
    ours, theirs = found.ratios[title, form], found.ratios[title, other]
    gap = paired_difference(ours, theirs)
    return {
        "claim": f"{title}: the {form} form is cheaper than "
        f"{other if other == HAND else f'the {other} one'}",
        "source": "not in the paper",
        "holds": verdict(gap, -1),
        "figure": f"medians {_spread(ours)} and {_spread(theirs)}; mean difference "
        f"{told(gap, unit='plain steps', of='rounds')}",
    }


def _more_epochs(found: Findings) -> Claim:
    ours, theirs = found.converged(GUIDED), found.converged(REGULAR)
    gap = paired_difference([each.epoch for each in ours], [each.epoch for each in theirs])
    near = paired_difference(found.near(GUIDED), found.near(REGULAR))
    going = sum(not each.stopped for each in (*ours, *theirs))
    late = f"; {going} of {len(ours) + len(theirs)} runs had not stopped at the end"
    return {
        "claim": "Guided training takes more epochs to converge",
        "source": "section 4, limitations",
        "holds": verdict(gap),
        "figure": f"{np.mean([each.epoch for each in ours]):.1f} epochs against "
        f"{np.mean([each.epoch for each in theirs]):.1f} (the paper: 124 and 118); difference "
        f"{told(gap, digits=1)}; to {NEAR:.0%} of the best accuracy of both "
        f"{told(near, digits=1)}{late if going else ''}",
    }


def _guidance_works(found: Findings) -> Claim:
    ours, theirs = found.quality[EXACT, "area"], found.quality[REGULAR, "area"]
    gap = paired_difference(ours, theirs)
    return {
        "claim": "Guided training (exact) lowers the area under the accuracy drop",
        "source": "figure 3",
        "holds": verdict(gap, -1),
        "figure": _compared(ours, theirs, gap),
    }


def _as_good(found: Findings, form: str, key: str) -> Claim:
    ours, theirs = found.quality[form, key], found.quality[EXACT, key]
    gap = paired_difference(ours, theirs)
    holds: Verdict = no_worse(gap, MARGINS[key], higher_is_better=key == "accuracy")
    name = "accuracy" if key == "accuracy" else "area under the accuracy drop"
    points = f"{100 * MARGINS[key]:.0f} point{'s' if MARGINS[key] > 0.01 else ''}"
    return {
        "claim": f"The {form} form costs no quality: its {name} is worse than the exact form's by "
        f"less than {points}",
        "source": "not in the paper",
        "holds": holds,
        "figure": _compared(ours, theirs, gap),
    }


def _compared(ours: Sequence[float], theirs: Sequence[float], gap: Mapping[str, Any]) -> str:
    return (
        f"{100 * np.mean(ours):.1f} % against {100 * np.mean(theirs):.1f} %; difference "
        f"{told(gap, scale=100, digits=1, unit='points')}"
    )


STUDY = Study(
    id="sgt-cost",
    title="What saliency guided training costs: steps, memory, epochs",
    source="paper 2111.14338, section 4 (limitations)",
    deviations=(
        "CPU time on one thread, as a ratio to a plain step of the same round; the paper gives "
        "seconds of an epoch on a GPU.",
        "Memory is that of tensors, which does not depend on an allocator.",
        "Convergence: the epoch of the best validation accuracy before a number of epochs without "
        "a new best (quick: 5 of at most 20). The paper states no rule. LeNet, 500 images of "
        "CIFAR-10 and a constant rate of Adam; the paper trains ResNet-18 on all.",
        "The quality of the forms is that of the paper's CNN, which has dropout, on the 8x8 digits "
        "of scikit-learn (quick).",
        "The smoke budget takes the 8x8 digits, small models, and two seeds.",
    ),
    budgets={
        "smoke": Config(
            steps={"LeNet": ("lenet", (32, 1, 8, 8))}, rounds=3,
            quality=Recipe(data="digits", model="mlp", samples=300, epochs=3, batch_size=32),
            convergence=Recipe(
                data="digits", model="mlp", samples=300, epochs=5, batch_size=32,
                optimizer="adam", learning_rate=3e-3, schedule="constant",
            ),
            held=100, patience=2, seeds=2, test=100, removed=50,
        ),
        "quick": Config(
            steps={
                "MNIST CNN, batch 32": ("mnist-cnn", (32, 1, 28, 28)),
                "ResNet-18, batch 4, 32x32": ("resnet18-small", (4, 3, 32, 32)),
            },
            rounds=5,
            quality=Recipe(data="digits", epochs=4, batch_size=32),
            convergence=Recipe(
                data="cifar10", model="lenet", samples=500, epochs=20, batch_size=32,
                optimizer="adam", learning_rate=1e-3, schedule="constant",
            ),
            held=500, patience=5, test=360, removed=360,
        ),
        "full": Config(
            steps={
                "MNIST CNN, batch 128": ("mnist-cnn", (128, 1, 28, 28)),
                "ResNet-18, batch 16, 32x32": ("resnet18-small", (16, 3, 32, 32)),
            },
            rounds=24,
            quality=Recipe(epochs=10),
            convergence=Recipe(
                data="cifar10", model="resnet18-small", samples=45_000, epochs=200,
                optimizer="adam", learning_rate=1e-3, schedule="constant",
            ),
            held=5000, patience=20, test=10_000, removed=10_000,
        ),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
