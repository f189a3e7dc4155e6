"""Accuracy against sparsity: LFP with weight decay, and gradient descent that is tuned as hard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig
from attrain.data import Data, load
from attrain.errors import AttrainError
from attrain.methods import METHODS, Method
from attrain.metrics.sparsity import connection_weights, gini, signs_changed
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.pruning import curve
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.starts import keep_from_zero_
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.training import predict, train

REMOVED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
VALIDATION = 1 / 6
POINTS = (0.95, 0.98)
GOALS = {0.95: (0.985, 0.988), 0.98: (0.978, 0.0)}
OURS, PLAIN, SPARSE_RIVAL = "LFP", "gradient descent", "gradient descent with L1"
CONFIRMING = (0, 1, 2)
NEVER = [float("nan")] * len(REMOVED)


@dataclass(frozen=True)
class Setting:
    """What is tuned of a method; None leaves the method's own scale of the feedback.

    `least` is the smallest |w| of a weight at the start, as a share of the largest of its tensor.
    """

    learning_rate: float
    weight_decay: float = 0.0
    l1: float = 0.0
    course: str = "constant"
    scale: str | None = None
    beta: float = 0.0
    least: float = 0.0

    def of(self, method: Method) -> Method:
        """Return `method` with this setting."""
        credit = method.credit
        if credit is not None and self.scale is not None:
            credit = {**credit, "scale": self.scale}
        if credit is not None and self.beta:
            credit = {**credit, "beta": self.beta}
        return replace(
            method,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            l1=self.l1,
            course=self.course,
            credit=credit,
        )

    def __str__(self) -> str:
        told = [self.scale] if self.scale else []
        told += [f"beta {self.beta:g}"] if self.beta else []
        told += [f"rate {self.learning_rate:g}"]
        told += [f"decay {self.weight_decay:g}"] if self.weight_decay else []
        told += [f"L1 {self.l1:g}"] if self.l1 else []
        told += [f"start {self.least:g}"] if self.least else []
        return ", ".join([*told, *([self.course] if self.course != "constant" else [])])


@dataclass(frozen=True)
class Contender:
    """A method, the settings that were tried, and those that the objective picked.

    `chosen` maps a share of weights to be removed to the setting that is best there. `confirmed`
    maps it to the trials, the best of seed 0, that were repeated with more seeds to choose by the
    mean; without any, seed 0 alone decides.
    """

    method: str
    trials: tuple[Setting, ...]
    chosen: Mapping[float, Setting]
    confirmed: Mapping[float, tuple[Setting, ...]] = field(default_factory=dict)


def _sparse(
    rate: float, decay: float, beta: float = 0.0, *, l1: float = 0.0, least: float = 0.0
) -> Setting:
    """Return a setting of LFP for very sparse models."""
    return Setting(rate, decay, l1, "release", scale="contraharmonic", beta=beta, least=least)


_LFP = (
    Setting(0.1, weight_decay=3e-3, scale="relative"),
    Setting(0.1, weight_decay=1e-2, scale="relative"),
    *(
        Setting(0.1, weight_decay=decay, course="release", scale="relative")
        for decay in (4e-3, 6e-3, 1e-2)
    ),
    Setting(0.3, weight_decay=2e-3, scale="contraharmonic"),
    *(_sparse(0.2, decay) for decay in (1.5e-3, 2e-3, 3e-3)),
    *(_sparse(0.3, decay) for decay in (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3)),
    *(_sparse(0.4, decay) for decay in (1.5e-3, 2e-3, 3e-3)),
    *(_sparse(0.5, decay) for decay in (1.5e-3, 2.5e-3, 3.5e-3)),
    _sparse(0.3, 1.5e-3, beta=1e-3),
    *(_sparse(0.3, decay, beta=3e-3) for decay in (1.5e-3, 2.5e-3)),
    _sparse(0.5, 1.5e-3, beta=3e-3),
    _sparse(0.2, 2e-3, beta=1e-2),
    # An L1 term in the loss, which |w| does not scale: a logarithmic penalty.
    *(_sparse(0.3, 0.0, l1=strength) for strength in (5e-5, 1e-4, 3e-4)),
    Setting(0.3, l1=5e-5, course="ramp", scale="contraharmonic"),
    *(_sparse(0.3, 0.0, l1=strength, least=1.0) for strength in (5e-5, 1e-4, 3e-4)),
    # Starts that are kept from zero.
    *(_sparse(0.3, decay, least=1.0) for decay in (1.5e-3, 2.5e-3)),
    *(_sparse(0.3, decay, least=0.5) for decay in (1.5e-3, 2e-3)),
    _sparse(0.4, 1.5e-3, least=0.5),
    Setting(0.1, weight_decay=4e-3, course="release", scale="relative", least=0.5),
    # Both.
    *(
        _sparse(0.3, decay, l1=strength, least=0.5)
        for decay, strength in ((1.5e-3, 1e-5), (1e-3, 1e-5), (1e-3, 2e-5), (7e-4, 2e-5))
    ),
)
# More than LFP has here, because LFP had others outside the study, on the same split.
_L1 = (
    *(
        Setting(rate, l1=strength, course=course)
        for rate, course, strengths in (
            (0.05, "constant", (1e-3, 1.5e-3)),
            (0.05, "release", (6e-4, 1e-3, 2e-3, 3e-3)),
            (0.1, "constant", (3e-4, 6e-4, 8e-4, 1e-3, 1.25e-3, 1.5e-3)),
            (0.1, "release", (3e-4, 6e-4, 8e-4, 1e-3, 1.25e-3, 1.5e-3, 2e-3)),
            (0.2, "constant", (6e-4, 8e-4, 1e-3, 1.25e-3, 1.5e-3)),
            (0.2, "release", (3e-4, 6e-4, 8e-4, 1e-3, 1.25e-3, 1.5e-3)),
            (0.3, "constant", (6e-4, 8e-4, 1e-3)),
            (0.3, "release", (3e-4, 6e-4, 1e-3)),
        )
        for strength in strengths
    ),
    # What LFP was given as well: starts that are kept from zero, and two penalties at once.
    *(Setting(0.2, l1=6e-4, course="release", least=least) for least in (0.5, 1.0)),
    *(Setting(0.2, l1=strength, course="release", least=0.5) for strength in (5e-4, 8e-4)),
    Setting(0.1, l1=8e-4, course="release", least=0.5),
    Setting(0.2, l1=8e-4, course="release", least=1.0),
    *(
        Setting(0.2, weight_decay=decay, l1=strength, course="release")
        for decay, strength in ((5e-4, 5e-4), (1e-3, 4e-4))
    ),
)
_RATES = tuple(Setting(rate) for rate in (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5))
_DECAY = (
    *(Setting(0.1, weight_decay=decay) for decay in (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)),
    *(Setting(0.1, weight_decay=decay, course="release") for decay in (2e-3, 5e-3)),
)
CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(
        "lfp",
        _LFP,
        {0.95: _sparse(0.3, 1e-3, l1=2e-5, least=0.5), 0.98: _sparse(0.5, 2.5e-3)},
        {
            0.95: (
                _sparse(0.3, 1e-3, l1=2e-5, least=0.5),
                _sparse(0.3, 1.5e-3),
                _sparse(0.3, 2e-3, least=0.5),
                _sparse(0.3, 1.5e-3, least=0.5),
            )
        },
    ),
    PLAIN: Contender("sgd", _RATES, {0.95: Setting(0.1), 0.98: Setting(0.05)}),
    SPARSE_RIVAL: Contender(
        "sgd-l1",
        _L1,
        {0.95: Setting(0.2, l1=6e-4, course="release"), 0.98: Setting(0.2, l1=1e-3)},
    ),
    "gradient descent with weight decay": Contender(
        "sgd",
        _DECAY,
        {0.95: Setting(0.1, weight_decay=1e-3), 0.98: Setting(0.1, weight_decay=1e-3)},
    ),
}


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    tuning: run the trials on a part of the training set again.
    least_dense: accuracy on that part, with all weights, that the setting for 95% must have.
    """

    data: str = "mnist"
    model: str = "lenet"
    epochs: int = 3
    batch_size: int = 128
    seeds: int = 5
    tuning: bool = True
    least_dense: float = 0.986


def rows(config: Config) -> list[Row]:
    """Return a row per trial of the tuning, then one per setting that was picked, and seed."""
    trials = [
        Row(
            _trial_name(name, setting, seed),
            partial(_trial, config, contender.method, setting, seed),
        )
        for name, contender in CONTENDERS.items()
        for setting, seed in _tuned(contender)
    ]
    finals = [
        Row(
            _final_name(name, setting, seed),
            partial(_final, config, contender.method, setting, seed),
        )
        for seed in range(config.seeds)
        for name, contender in CONTENDERS.items()
        for setting in dict.fromkeys(contender.chosen.values())
    ]
    return [*(trials if config.tuning else []), *finals]


def _tuned(contender: Contender) -> list[tuple[Setting, int]]:
    """Return every trial with its seed: all with seed 0, those to be confirmed with more."""
    again = dict.fromkeys(each for several in contender.confirmed.values() for each in several)
    more = [(setting, seed) for setting in again for seed in CONFIRMING[1:]]
    return [*((setting, CONFIRMING[0]) for setting in contender.trials), *more]


def _trial_name(name: str, setting: Setting, seed: int = CONFIRMING[0]) -> str:
    return f"tuning {name}: {setting}" + (f", seed {seed}" if seed else "")


def _final_name(name: str, setting: Setting, seed: int) -> str:
    return f"{name}: {setting}, seed {seed}"


def _trial(config: Config, method: str, setting: Setting, seed: int) -> Result:
    """Train on a part of the training set and measure on the rest of it."""
    data = load(config.data, validation=VALIDATION)
    assert data.validation is not None
    return _measured(config, replace(data, test=data.validation), method, setting, seed)


def _final(config: Config, method: str, setting: Setting, seed: int) -> Result:
    """Train on the whole training set and measure on the test set."""
    return _measured(config, load(config.data), method, setting, seed)


def _measured(config: Config, data: Data, method: str, setting: Setting, seed: int) -> Result:
    """Train, prune by global magnitude, and return the accuracies; None where training diverged."""
    model, start = (
        keep_from_zero_(
            build(config.model, data.input_shape, data.num_classes, seed=seed), setting.least
        )
        for _ in range(2)
    )
    training = TrainingConfig(
        epochs=config.epochs, batch_size=config.batch_size, threads=1, device="cpu"
    )
    try:
        train(model, data, setting.of(METHODS[method]), training, seed=seed)
    except AttrainError as error:
        return {"diverged": str(error)}
    weights = connection_weights(model)
    return {
        "accuracy": curve(model, partial(_accuracy, data=data.test), REMOVED)["accuracy"],
        "gini": gini(np.concatenate([w.flatten().numpy() for w in weights.values()])),
        "signs_changed": signs_changed(connection_weights(start), weights),
    }


def _accuracy(model: nn.Module, data: TensorDataset) -> float:
    return float((predict(model, data).argmax(1) == data.tensors[1]).double().mean())


# What it adds up to -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What a contender's setting for one share of removed weights came to, over the seeds."""

    name: str
    setting: Setting
    accuracies: NDArray[np.float64]  # [seeds, REMOVED]
    ginis: Sequence[float]
    signs: Sequence[float]

    def at(self, removed: float) -> NDArray[np.float64]:
        """Return the accuracies [seeds] with a share of the weights removed."""
        column: NDArray[np.float64] = self.accuracies[:, REMOVED.index(removed)]
        return column


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return the table, the claims with their intervals, and the figures."""
    found = {
        (name, point): _found(config, name, contender.chosen[point], results)
        for name, contender in CONTENDERS.items()
        for point in POINTS
    }
    drawn = [out / "figures" / "lfp-frontier.svg"]
    _draw(found, drawn[0])
    claims = [*_goals(found), *_rivals(found), _sparser(found)]
    if config.tuning:
        tried = {name: _tried(name, results) for name in CONTENDERS}
        claims += [
            _picked(config, name, point, tried[name], _confirmed(name, point, results))
            for name in tried
            for point in POINTS
        ]
        drawn.append(out / "figures" / "lfp-frontier-tuning.svg")
        _draw_tuning(tried, drawn[1])
    return Conclusion(_table(found), claims, drawn)


def _found(config: Config, name: str, setting: Setting, results: Mapping[str, Result]) -> _Found:
    each = [results[_final_name(name, setting, seed)] for seed in range(config.seeds)]
    return _Found(
        name,
        setting,
        np.array([result.get("accuracy", NEVER) for result in each]),
        [result.get("gini", np.nan) for result in each],
        [result.get("signs_changed", np.nan) for result in each],
    )


Findings = Mapping[tuple[str, float], _Found]


def _table(findings: Findings) -> list[TableRow]:
    table: list[TableRow] = []
    known = set()
    for found in findings.values():
        label = f"{found.name} ({found.setting})"
        if label in known:
            continue  # one setting is the best at both points
        known.add(label)
        for removed in (0.0, 0.9, *POINTS, 0.99):
            what = f"{removed:.0%} removed" if removed else "all weights"
            table.append(measured(f"{label}: {what}", found.at(removed).tolist(), unit="accuracy"))
        table.append(measured(f"{label}: Gini coefficient", found.ginis))
        table.append(measured(f"{label}: signs changed", found.signs, unit="share"))
    return table


def _goals(findings: Findings) -> list[Claim]:
    """Return whether LFP reaches what this library sets itself."""
    claims: list[Claim] = []
    for removed, (goal, least) in GOALS.items():
        found = findings[OURS, removed]
        told = f", at {least:.1%} or more with all of them" if least else ""
        claims.append(
            {
                "claim": f"LFP keeps {goal:.1%} with {removed:.0%} of its weights removed{told}",
                "source": "a goal of this library",
                "holds": bool(found.at(0.0).mean() >= least and found.at(removed).mean() >= goal),
                "figure": f"{_percent(found.at(removed))}, with all weights "
                f"{_percent(found.at(0.0))} ({found.setting})",
            }
        )
    return claims


def _rivals(findings: Findings) -> list[Claim]:
    """Return, for every rival and share removed, whether LFP is ahead of it, by paired seeds."""
    claims: list[Claim] = []
    for (name, point), rival in findings.items():
        ours = findings[OURS, point]
        for removed in () if name == OURS else (0.0, point):
            pair = ours.at(removed), rival.at(removed)
            gap = paired_difference(*(each.tolist() for each in pair))
            what = f"with {removed:.0%} of the weights removed" if removed else "with all weights"
            claims.append(
                {
                    "claim": f"LFP is ahead of {name} {what}, both tuned for {point:.0%}",
                    "source": "figure 6" if removed and name == PLAIN else "not in the paper",
                    "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
                    "figure": f"{' against '.join(map(_percent, pair))}; difference {_points(gap)}",
                }
            )
    return claims


def _sparser(findings: Findings) -> Claim:
    ours, plain = findings[OURS, POINTS[0]].ginis, findings[PLAIN, POINTS[0]].ginis
    gap = paired_difference(ours, plain)
    return {
        "claim": "LFP's weights have a higher Gini coefficient than those of gradient descent",
        "source": "figure 5",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"{np.mean(ours):.3f} against {np.mean(plain):.3f}",
    }


Tried = Mapping[Setting, Sequence[float]]


def _tried(name: str, results: Mapping[str, Result]) -> Tried:
    """Return the validation accuracies over `REMOVED` of every trial of a contender."""
    return {
        setting: results[_trial_name(name, setting)].get("accuracy", NEVER)
        for setting in CONTENDERS[name].trials
    }


def _confirmed(name: str, point: float, results: Mapping[str, Result]) -> Tried:
    """Return the validation accuracies, means of `CONFIRMING`, of the trials that were repeated."""
    return {
        setting: np.mean(
            [
                results[_trial_name(name, setting, seed)].get("accuracy", NEVER)
                for seed in CONFIRMING
            ],
            axis=0,
        ).tolist()
        for setting in CONTENDERS[name].confirmed.get(point, ())
    }


def pick(tried: Tried, point: float, least_dense: float) -> Setting:
    """Return the setting that is best with a share `point` of the weights removed.

    `tried` has validation accuracies over `REMOVED`. For 95% only settings with `least_dense` or
    more with all weights count; where none has that, the highest with all weights is returned.
    """
    return ranked(tried, point, least_dense)[0]


def ranked(tried: Tried, point: float, least_dense: float) -> list[Setting]:
    """Return the settings that `pick` picks from, the best first, or the one that it falls to."""

    def best(settings: Tried, removed: float) -> list[Setting]:
        column = REMOVED.index(removed)
        kept = {each: np.nan_to_num(settings[each][column], nan=-1.0) for each in settings}
        return sorted(kept, key=kept.__getitem__, reverse=True)

    if point == POINTS[0]:
        able = {each: kept for each, kept in tried.items() if kept[0] >= least_dense}
        return best(able, point) if able else best(tried, 0.0)[:1]
    return best(tried, point)


def _picked(config: Config, name: str, point: float, tried: Tried, confirmed: Tried) -> Claim:
    """Return whether a setting is the best, and those that were repeated the best before."""
    several = confirmed or tried
    picked = pick(several, point, config.least_dense)
    kept = several[picked]
    told = ", ".join(f"{100 * kept[REMOVED.index(removed)]:.2f}" for removed in (0.0, *POINTS))
    foremost = ranked(tried, point, config.least_dense)[: len(confirmed)]
    how = f", mean of seeds 0 to {CONFIRMING[-1]} of the best {len(confirmed)}" if confirmed else ""
    return {
        "claim": f"For {point:.0%}, the setting of {name} is the best of its {len(tried)} trials",
        "source": "tuning, seed 0, on a sixth of the training set",
        "holds": picked == CONTENDERS[name].chosen[point] and set(foremost) == set(confirmed),
        "figure": f"{picked}: {told}% with 0, 95 and 98% removed{how}",
    }


def _percent(values: NDArray[np.float64]) -> str:
    spread = f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.2f}{spread}%"


def _points(gap: Mapping[str, Any]) -> str:
    if gap["mean"] is None:
        return "unknown, since a run diverged"
    if gap["low"] is None:
        return f"{100 * gap['mean']:+.2f} points, one seed"
    return f"{100 * gap['mean']:+.2f} points ({100 * gap['low']:+.2f} to {100 * gap['high']:+.2f})"


def _draw(findings: Findings, path: Path) -> None:
    """Draw the accuracy over the share of the weights that is kept, on a logarithmic scale."""
    left = [100 * (1 - removed) for removed in REMOVED]
    ticks = [100, 50, 20, 10, 5, 2, 1, 0.5]
    with figures.drawing(path, 7.2, 3.6) as figure:
        grid = figure.subplots(1, len(POINTS), sharey=True)
        for axes, point in zip(grid, POINTS, strict=True):
            for name, colour, dash in zip(CONTENDERS, LIGHT[1:], _DASHES, strict=False):
                accuracies = 100 * findings[name, point].accuracies
                figures.band(axes, left, accuracies, color=colour, linestyle=dash, label=name)
            axes.axvline(100 * (1 - point), color="#c4c4c4", linewidth=0.8)
            axes.set(title=f"tuned for {point:.0%} removed", xlabel="weights kept (%)")
            axes.set(xscale="log", ylim=(94, 99.5))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.invert_xaxis()
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("test accuracy (%)")
        named = grid[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside upper center", ncols=2)


def _draw_tuning(tried: Mapping[str, Tried], path: Path) -> None:
    """Draw what each trial of the two sparse methods kept over what it had with all weights."""
    with figures.drawing(path, 7.2, 3.6) as figure:
        grid = figure.subplots(1, len(POINTS))
        for axes, point, lowest in zip(grid, POINTS, (96.5, 86.0), strict=True):
            for name, colour, mark in ((OURS, LIGHT[1], "o"), (SPARSE_RIVAL, LIGHT[3], "s")):
                kept = 100 * np.array(list(tried[name].values()))
                at = kept[:, REMOVED.index(point)]
                axes.plot(kept[:, 0], at, mark, color=colour, label=name, markersize=4, alpha=0.8)
                chosen = 100 * np.array(tried[name][CONTENDERS[name].chosen[point]])
                x, y = chosen[0], chosen[REMOVED.index(point)]
                axes.plot(x, y, "o", color=colour, markersize=11, fillstyle="none")
            axes.axline((98, 98), slope=1, color="#c4c4c4", linewidth=0.8, zorder=0)
            axes.set(title=f"{point:.0%} removed", xlabel="with all weights (%)")
            axes.set(xlim=(96.8, 99.2), ylim=(lowest, 99.2))
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("validation accuracy (%)")
        grid[0].legend(loc="lower left")


_DASHES = ("-", "--", "-.", ":")

STUDY = Study(
    id="lfp-frontier",
    title="Accuracy against sparsity: LFP and gradient descent, tuned alike",
    source="paper 2308.12053, figure 6 (middle) and A.6.3",
    deviations=(
        "LeNet on MNIST; the paper prunes VGG-16 and ResNets on larger pictures.",
        "All linear and convolution layers are pruned; the paper prunes convolutions alone.",
        "LFP has weight decay, of which the paper says nothing, and its feedback is scaled by |w| "
        "over a mean of its tensor; for 95% it has a small L1 term and a start kept from zero.",
        "All methods are tuned by the same objective on the same part of the training set; LFP's "
        "best four for 95% were repeated with two more seeds. L1 has 44 trials and LFP 42, because "
        "LFP had 49 more outside the study; gradient descent and weight decay have 8 each.",
        "The smoke budget takes the 8x8 digits of scikit-learn and an MLP; it and the quick one "
        "have one seed and no tuning.",
    ),
    budgets={
        "smoke": Config(data="digits", model="mlp", epochs=1, seeds=1, tuning=False),
        "quick": Config(seeds=1, tuning=False),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
