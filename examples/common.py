"""What the examples share: the digits, a training loop, a tuned comparison and its table."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from attrain.data import load

TUNING_SEEDS = (100, 101)  # never those that are reported


@dataclass(frozen=True)
class Split:
    """Pictures [N, 64], standardised, and their digits [N]; `held` are those to be judged by."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor


def digits(validation: bool) -> Split:
    """Return the 1,797 digits of scikit-learn, with the test set or a part of the rest held out."""
    data = load("digits", validation=1 / 6 if validation else 0.0)
    held = data.validation if validation else data.test
    assert held is not None
    (x, y), (x_held, y_held) = data.train.tensors, held.tensors
    return Split(x.flatten(1), y, x_held.flatten(1), y_held)


def clip_norm(parameters: list[nn.Parameter]) -> None:
    """Scale the gradients so that their norm is 3 at most."""
    nn.utils.clip_grad_norm_(parameters, 3.0)


def fit(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    samples: int,
    *,
    rate: float,
    epochs: int,
    batch: int = 64,
    clip: Callable[[list[nn.Parameter]], object] = clip_norm,
) -> None:
    """Train by SGD with momentum, OneCycle and clipping; `loss` takes the batch's indices."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    steps = epochs * -(-samples // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(samples).split(batch):
            optimizer.zero_grad()
            loss(indices).backward()
            clip(parameters)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples whose class has the largest output."""
    return float((model(x).argmax(1) == y).float().mean())


def perceptron(activation: Callable[[], nn.Module], *widths: int) -> nn.Sequential:
    """Return linear layers of these widths with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Comparison:
    """What an example measures.

    `run(method, rate, seed, validation, short)` trains and returns the metric, larger being
    better. `rates` holds the learning rate of each method, chosen from `grid` by `--tune`, or None
    where nothing is learnt. `learner` must beat `baseline`; the others are there for context.
    """

    title: str
    metric: str
    run: Callable[[str, float, int, bool, bool], float]
    rates: Mapping[str, float | None]
    learner: str
    baseline: str
    grid: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0)


def main(comparison: Comparison, argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run an example from the command line; return the metric of every method and seed."""
    parser = argparse.ArgumentParser(description=comparison.title)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (3)")
    parser.add_argument("--short", action="store_true", help="seconds: fewer steps, to try it out")
    parser.add_argument(
        "--tune", action="store_true", help="choose the learning rates on a validation split"
    )
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: at least one is needed")
    torch.set_num_threads(1)  # such small models gain nothing from more
    if options.tune:
        tune(comparison, options.short)
        return {}
    values: dict[str, list[float]] = {}
    print(f"{comparison.title}\n")
    for method, rate in comparison.rates.items():
        values[method], seconds = [], []
        for seed in range(options.seeds):
            started = time.process_time()
            values[method].append(comparison.run(method, rate or 0.0, seed, False, options.short))
            seconds.append(time.process_time() - started)
        # The fastest: the first run of all has torch load what it trains with.
        print(row(method, rate, values[method], min(seconds)), flush=True)
    print(f"\n{comparison.metric}: mean and 95% interval over {options.seeds} seeds")
    print(verdict(values[comparison.learner], values[comparison.baseline], comparison))
    return values


def tune(comparison: Comparison, short: bool) -> None:
    """Print what every method reaches at every rate on the validation split."""
    for method, rate in comparison.rates.items():
        if rate is None:
            continue
        reached = {}
        for each in comparison.grid:
            runs = [comparison.run(method, each, seed, True, short) for seed in TUNING_SEEDS]
            reached[each] = statistics.fmean(runs)
        best = max(reached, key=lambda each: reached[each])
        told = "  ".join(f"{each:g}: {value:.3f}" for each, value in reached.items())
        print(f"{method:34} {told}   best {best:g}", flush=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% t interval of the mean, which one value leaves open."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return float("-inf"), float("inf")
    reach = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / len(values) ** 0.5
    return mean - reach, mean + reach


def row(method: str, rate: float | None, values: Sequence[float], seconds: float) -> str:
    """Return a line of the table."""
    low, high = interval(values)
    told = "" if len(values) < 2 else f"({low:.3f} to {high:.3f})"
    tuned = "" if rate is None else f"rate {rate:g}"
    mean = statistics.fmean(values)
    return f"{method:34} {mean:8.3f} {told:20} {tuned:10} {seconds:5.1f} CPU s a seed"


def verdict(values: Sequence[float], baseline: Sequence[float], comparison: Comparison) -> str:
    """Say whether the interval of the learner lies above that of the baseline."""
    if len(values) < 2:
        return "one seed has no interval"
    above = interval(values)[0] > interval(baseline)[1]
    told = "above" if above else "NOT above"
    return f"{comparison.learner}: its interval is {told} that of {comparison.baseline}"
