"""The measures of the verdict table, and what may be said about them.

A measure is one entry of `MEASURES`; the table, the terminal and the CSV file follow from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attrain.report import numbers
from attrain.report.folder import Difference, Method
from attrain.report.numbers import Unit
from attrain.report.palette import label

UNCLEAR = "no clear difference"


@dataclass(frozen=True)
class Measure:
    """A measure: its key in `results.json`, its unit, which way is better.

    It is a column of the verdict table, or, without `column`, in the CSV file and elsewhere alone:
    the table has to fit a laptop.
    """

    key: str
    title: str
    group: str
    units: tuple[Unit, ...]
    better: Literal["higher", "lower"]
    about: str
    column: bool = True


_REMOVED = "test accuracy with the smallest {}% of all weights set to zero, without retraining"

MEASURES = (
    Measure(
        "test_accuracy", "accuracy", "Test set", numbers.PERCENT, "higher",
        "share of test examples that are classified correctly",
    ),
    Measure(
        "test_loss", "loss", "Test set", numbers.PLAIN, "lower", "mean loss on the test set",
        column=False,
    ),
    Measure(
        "ece", "ECE", "Test set", numbers.PERCENT, "lower",
        "expected calibration error: how far confidence is from accuracy",
    ),
    Measure(
        "step_cpu_s", "CPU per step", "Cost", numbers.STEP_TIME, "lower",
        "CPU time of one training step",
    ),
    Measure(
        "train_cpu_s", "CPU to the end", "Cost", numbers.RUN_TIME, "lower",
        "CPU time of the whole training, without evaluation",
    ),
    Measure(
        "peak_memory_bytes", "peak memory", "Cost", numbers.MEMORY, "lower",
        "largest memory that the training held",
    ),
    Measure(
        "gini", "Gini", "Sparsity", numbers.PLAIN, "higher",
        "Gini coefficient of |weight|: 0 where all are equally large, near 1 where few carry all",
    ),
    Measure(
        "update_density", "update density", "Sparsity", numbers.PERCENT, "lower",
        "share of the weights that a training step changes",
        column=False,
    ),
    Measure(
        "signs_changed", "signs changed", "Sparsity", numbers.PERCENT, "lower",
        "share of the weights that ended with another sign than they started with",
        column=False,
    ),
    *(
        Measure(
            f"accuracy_{removed}_removed", f"{removed}% removed", "Accuracy after pruning",
            numbers.PERCENT, "higher", _REMOVED.format(removed), column=removed < 98,
        )
        for removed in (90, 95, 98)
    ),
    Measure(
        "faithfulness", "faithfulness", "Explanations", numbers.PERCENT, "higher",
        "how far accuracy lies below that of a random order while the features with the largest "
        "gradient are replaced, mean over 0 to 90% of them",
    ),
    Measure(
        "accuracy_drop", "accuracy drop", "Explanations", numbers.PERCENT, "lower",
        "accuracy while the features with the largest gradient are replaced, mean over 0 to 90%",
        column=False,
    ),
    Measure(
        "accuracy_drop_random", "random drop", "Explanations", numbers.PERCENT, "higher",
        "accuracy while features are replaced in a random order, mean over 0 to 90%",
        column=False,
    ),
    Measure(
        "aup_above_uniform", "AUP above random", "Explanations", numbers.PLAIN, "higher",
        "how far the precision of the gradient, by its mass, lies above that of its values in a "
        "random order, where it is known what a label rests on; area over 10 to 90% of the mass",
    ),
    Measure(
        "aur_above_uniform", "AUR above random", "Explanations", numbers.PLAIN, "higher",
        "the same of its recall: how much of the mass in the box or rationale it takes",
        column=False,
    ),
    Measure(
        "noise_accuracy", "under noise", "Robustness", numbers.PERCENT, "higher",
        "accuracy under Gaussian noise, mean over 0 to 50% of the range of an input",
        column=False,
    ),
    Measure(
        "fgsm_accuracy", "under FGSM", "Robustness", numbers.PERCENT, "higher",
        "accuracy under the fast gradient sign method, mean over 0 to 20% of the range of an input",
        column=False,
    ),
    Measure(
        "pgd_accuracy", "under PGD", "Robustness", numbers.PERCENT, "higher",
        "accuracy under projected gradient descent, mean over 0 to 20% of the range of an input",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What the verdict table says about one method and measure."""

    value: str
    difference: str
    interval: str
    clear: bool | None
    best: bool


@dataclass(frozen=True)
class Column:
    """One measure in the unit that suits its values, with a cell per method."""

    measure: Measure
    unit: Unit
    cells: tuple[Cell, ...]

    @property
    def heading(self) -> str:
        """Return the title with the unit: accuracy (%)."""
        return f"{self.measure.title} ({self.unit.name})" if self.unit.name else self.measure.title


def columns(methods: Sequence[Method]) -> tuple[Column, ...]:
    """Return the columns that at least one method fills."""
    filled = []
    for measure in (each for each in MEASURES if each.column):
        estimates = [method.estimates.get(measure.key) for method in methods]
        means = [estimate.mean for estimate in estimates if estimate]
        if not means:
            continue
        unit = numbers.unit_for(measure.units, means)
        best = best_method(methods, measure)
        cells = []
        for method, estimate in zip(methods, estimates, strict=True):
            if estimate is None:
                cells.append(Cell("\N{EN DASH}", "", "", None, False))
                continue
            difference = method.differences.get(measure.key)
            value = numbers.spread(estimate.mean, estimate.std, unit)
            gap, ends = _difference(difference, unit)
            cells.append(
                Cell(
                    value=value,
                    difference=gap,
                    interval=ends,
                    clear=difference.clear if difference and difference.low is not None else None,
                    best=best is not None and method.name == best,
                )
            )
        filled.append(Column(measure, unit, tuple(cells)))
    return tuple(filled)


def best_method(methods: Sequence[Method], measure: Measure) -> str | None:
    """Return the best method of a measure, or None where its lead is not clear.

    A method leads clearly when the interval of its paired difference to the first method
    excludes 0; the first method leads when all others differ clearly from it.
    """
    ranked = [method for method in methods if measure.key in method.estimates]
    if len(ranked) < 2:
        return None
    sign = 1 if measure.better == "higher" else -1
    ranked.sort(key=lambda method: sign * method.estimates[measure.key].mean, reverse=True)
    leader, others = ranked[0], ranked[1:]
    tested = others if leader.name == methods[0].name else [leader]
    clear = [is_clear(method, measure.key) for method in tested]
    return leader.name if all(clear) else None


def is_clear(method: Method, key: str) -> bool:
    """Return whether the method's interval of the difference to the first method excludes 0."""
    difference = method.differences.get(key)
    return difference is not None and difference.clear


def percent(method: Method, key: str) -> str:
    """Return a mean share as a percentage with the digits its seeds support: 97.4%."""
    estimate = method.estimates[key]
    value, std = 100 * estimate.mean, estimate.std
    return numbers.fixed(value, numbers.decimals(value, std and 100 * std)) + "%"


def single_seed(methods: Sequence[Method]) -> bool:
    """Return whether no method has more than one seed, so that there can be no interval."""
    counts = [len(method.seeds) for method in methods if method.estimates]
    return bool(counts) and max(counts) <= 1


def accuracy_sentence(methods: Sequence[Method]) -> str:
    """Return one sentence on test accuracy."""
    ranked = _having(methods, "test_accuracy")
    if not ranked:
        return "No method has a test accuracy yet."
    first, others = ranked[0], ranked[1:]
    if not others:
        return (
            f"{label(first.name)} reaches {percent(first, 'test_accuracy')} test accuracy; "
            "no other method is there to compare it with."
        )
    if single_seed(methods):
        each = [f"{label(m.name)} {percent(m, 'test_accuracy')}" for m in ranked]
        return (
            f"Test accuracy: {numbers.joined(each)}. One seed allows no interval, "
            "so no difference here can be called clear."
        )
    clear = [method for method in others if is_clear(method, "test_accuracy")]
    baseline = f"{label(first.name)} ({percent(first, 'test_accuracy')})"
    if not clear:
        each = [f"{label(m.name)} {percent(m, 'test_accuracy')}" for m in others]
        return (
            f"On test accuracy there is no clear difference to {baseline}: {numbers.joined(each)}."
        )
    each = []
    for method in clear:
        way = "above" if method.differences["test_accuracy"].mean > 0 else "below"
        each.append(f"{label(method.name)} at {percent(method, 'test_accuracy')} is clearly {way}")
    rest = [f"{label(m.name)} {percent(m, 'test_accuracy')}" for m in others if m not in clear]
    tail = f"; no clear difference for {numbers.joined(rest)}" if rest else ""
    return f"On test accuracy {numbers.joined(each)} {baseline}{tail}."


def removal_sentence(methods: Sequence[Method], removed: int = 90) -> str:
    """Return one sentence on the accuracy with `removed` percent of the weights gone."""
    key = f"accuracy_{removed}_removed"
    ranked = _having(methods, key)
    if not ranked:
        return ""
    first, others = ranked[0], ranked[1:]
    start = f"With {removed}% of the weights removed "
    if not others:
        return f"{start}{label(first.name)} keeps {percent(first, key)} test accuracy."
    leader = max(others, key=lambda method: method.estimates[key].mean)
    rest = [f"{label(m.name)} is at {percent(m, key)}" for m in others if m is not leader]
    tail = f"; {numbers.joined(rest)}" if rest else ""
    one = f"{label(leader.name)} {{}} {percent(leader, key)}"
    two = f"{label(first.name)} {{}} {percent(first, key)}{tail}."
    if single_seed(methods):
        return f"{start}{one.format('keeps')} test accuracy and {two.format('keeps')}"
    if not is_clear(leader, key):
        return (
            f"{start}there is no clear difference between {one.format('at')} test accuracy "
            f"and {two.format('at')}"
        )
    if leader.differences[key].mean > 0:
        return f"{start}{one.format('keeps')} test accuracy where {two.format('falls to')}"
    return f"{start}{one.format('falls to')} test accuracy where {two.format('keeps')}"


def cost_sentence(methods: Sequence[Method]) -> str:
    """Return one sentence on the CPU time of a step, as a ratio to the first method."""
    ranked = _having(methods, "step_cpu_s")
    if len(ranked) < 2 or ranked[0].estimates["step_cpu_s"].mean <= 0:
        return ""
    first, others = ranked[0], ranked[1:]
    base = first.estimates["step_cpu_s"].mean
    each = []
    for method in others:
        ratio = numbers.fixed(method.estimates["step_cpu_s"].mean / base, 2)
        unclear = not single_seed(methods) and not is_clear(method, "step_cpu_s")
        each.append(f"{ratio} for {label(method.name)}" + (f" ({UNCLEAR})" if unclear else ""))
    return f"CPU time of a step relative to {label(first.name)}: {numbers.joined(each)}."


def _having(methods: Sequence[Method], key: str) -> list[Method]:
    return [method for method in methods if key in method.estimates]


def _difference(difference: Difference | None, unit: Unit) -> tuple[str, str]:
    if difference is None:
        return "", ""
    if difference.low is None or difference.high is None:
        value = difference.mean * unit.factor
        return numbers.fixed(value, numbers.decimals(value, None), signed=True), ""
    return numbers.interval(difference.mean, difference.low, difference.high, unit)
