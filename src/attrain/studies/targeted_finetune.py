"""Targeted updates in fine-tuning: is there a setting where they beat dense training?"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.metrics.statistics import paired_difference
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.targeted_old_task import OLD, least, relu_means
from attrain.studies.targeted_settings import SETTINGS, Config, Subject, subject
from attrain.studies.targeted_subjects import Arm, Loop, Training, dense, hidden_layers, time_ratios

DENSE, HEAD, FIRST = "dense", "head alone", "first layer alone"
ERROR, FLOW, RATIO, LOW_RELEVANCE = "error", "flow", "ratio", "low relevance"
GRADIENT, LOW_ACTIVATION, RANDOM = "gradient", "low activation", "random, fixed"
ATTRIBUTION = (ERROR, FLOW, RATIO, LOW_RELEVANCE)
CONTROLS = (GRADIENT, LOW_ACTIVATION, RANDOM)
SCORES = {
    ERROR: "error",
    FLOW: "flow",
    RATIO: "ratio",
    LOW_RELEVANCE: "low_relevance",
    GRADIENT: "gradient",
    RANDOM: "fixed",
}
GOAL = 0.005
"""What dense training is to be beaten by."""
MLP, CNN = "the MLP", "the convolutional network"
TIMED = {MLP: "more classes, digits", CNN: "more classes, pictures"}
"""The setting that each network's time is measured in."""
BLOCK = 50
"""Steps of a measurement of time: as many as from one choice of neurons to the next."""


def stopped(share: float) -> str:
    """Return the name of dense training that is stopped at a share of the steps."""
    return DENSE if share == 1 else f"{DENSE}, {share:.0%} of the steps"


def settings(config: Config) -> tuple[str, ...]:
    """Return the names of the settings of a budget."""
    return config.names or tuple(SETTINGS)


def arms(config: Config) -> tuple[str, ...]:
    """Return the names of all arms."""
    return (*map(stopped, config.shares), HEAD, FIRST, *CONTROLS, *ATTRIBUTION)


def rows(config: Config) -> list[Row]:
    """Return a row per setting, seed and arm, with all rates, and one per network for the time."""
    found = []
    for network, timed in TIMED.items():
        names = [each for each in settings(config) if network_of(each) == network]
        found += [
            Row(_name(setting, arm, seed), partial(_measure, config, setting, arm, seed))
            for seed in range(config.seeds)
            for setting in names
            for arm in arms(config)
        ]
        if timed in names:
            found.append(Row(f"time, {network}", partial(_times, config, timed), timed=True))
    return found


def network_of(setting: str) -> str:
    """Return the network that a setting trains."""
    return CNN if setting == TIMED[CNN] else MLP


def _name(setting: str, arm: str, seed: int) -> str:
    return f"{setting}, {arm}, seed {seed}"


# A row --------------------------------------------------------------------------------------------


def _measure(config: Config, setting: str, arm: str, seed: int) -> Result:
    """Train at every rate; return success on held-out and test samples."""
    given = subject(config, setting, seed)
    found: Result = {}
    for rate in config.rates:
        loop = _loop(config, given, arm, rate, seed)
        loop.run()
        found[f"{rate:g}"] = {
            "held": given.success(loop.model, given.held),  # type: ignore[arg-type]
            "test": given.success(loop.model, given.test),  # type: ignore[arg-type]
        }
    return found


def _loop(config: Config, given: Subject, arm: str, rate: float, seed: int) -> Loop:
    """Return a training of a copy of the model, ready to start."""
    model = copy.deepcopy(given.model)
    shares = {stopped(share): share for share in config.shares}
    how = dense(steps=shares.get(arm, 1.0))
    if arm in (HEAD, FIRST):
        model.trunk.requires_grad_(False)
    if arm == FIRST:
        hidden_layers(model)[0].requires_grad_(True)
        model.old.requires_grad_(False)
    if arm in (*CONTROLS, *ATTRIBUTION):
        score: Any = SCORES.get(arm)
        if arm == LOW_ACTIVATION:
            score = least(relu_means(given.model, given.kept.x))
        how = Arm(arm, score, config.density, options=(("dense", given.model.names),))
    training = Training(config.steps, config.batch_size)
    loop = Loop(model, how, given.train, training, rate, seed)
    if arm in (RATIO, LOW_RELEVANCE) and loop.targeted is not None:
        task, model.task = model.task, OLD
        loop.targeted.protect([(given.kept.x, given.kept.y)])
        model.task = task
    return loop


def _times(config: Config, setting: str) -> Result:
    """Return the CPU time of a step by each targeted arm over that of a dense one, pair by pair."""
    given = subject(config, setting, 0)
    return {
        arm: time_ratios(
            _loop(config, given, arm, 0.01, 0), _loop(config, given, DENSE, 0.01, 0), BLOCK,
            config.pairs,
        )
        for arm in (*CONTROLS, *ATTRIBUTION)
    }  # fmt: skip


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a study came to: the rate of every arm that held-out samples choose, and the times.

    chosen: by setting and arm, the rate and success on the test set per seed. ratios: by setting
    and arm, the median time of a step over that of a dense one.
    """

    config: Config
    chosen: Mapping[tuple[str, str], tuple[float, Array]]
    ratios: Mapping[tuple[str, str], float]

    def equal_time(self, setting: str, arm: str) -> str:
        """Return the dense arm with at least as many steps as fit in the time of an arm.

        The nearest share above; the largest one where none is.
        """
        shares = sorted(self.config.shares)
        enough = [share for share in shares if share >= self.ratios[setting, arm] - 1e-12]
        return stopped(enough[0] if enough else shares[-1])

    def gap(self, setting: str, arm: str, other: str) -> dict[str, Any]:
        """Return by how much an arm is ahead of another, by paired seeds."""
        ours, theirs = (self.chosen[setting, each][1].tolist() for each in (arm, other))
        return paired_difference(ours, theirs)


def read(config: Config, results: Results) -> Found:
    """Return what the rows came to."""
    chosen: dict[tuple[str, str], tuple[float, Array]] = {}
    ratios: dict[tuple[str, str], float] = {}
    for setting in settings(config):
        for arm in arms(config):
            names = [_name(setting, arm, seed) for seed in range(config.seeds)]
            each = [results[name] for name in names]
            held, test = (
                np.array([[one[f"{rate:g}"][split] for rate in config.rates] for one in each])
                for split in ("held", "test")
            )
            best = _best(held.mean(0), config.rates)
            chosen[setting, arm] = config.rates[best], test[:, best]
        network = network_of(setting)
        if f"time, {network}" in results:
            for arm in (*CONTROLS, *ATTRIBUTION):
                ratio = float(np.median(results[f"time, {network}"][arm]))
                ratios[setting, arm] = ratio
    return Found(config, chosen, ratios)


def _best(means: Array, tried: Sequence[float]) -> int:
    """Return the place of the highest mean, of the lowest rate where several are as high."""
    equal = np.flatnonzero(means >= means.max() - 1e-9).tolist()
    return min(equal, key=lambda place: tried[place])


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figure."""
    found = read(config, results)
    drawn = out / "figures" / "targeted-finetune.svg"
    _draw(found, drawn)
    return Conclusion(_table(found, results), _claims(found), [drawn])


def _table(found: Found, results: Results) -> list[TableRow]:
    table = [
        measured(f"{setting}, {arm} (rate {rate:g})", test, unit="accuracy")
        for (setting, arm), (rate, test) in found.chosen.items()
    ]
    for network in TIMED:
        for arm, ratios in results.get(f"time, {network}", {}).items():
            table.append(measured(f"{network}, {arm}: time of a step, dense = 1", ratios))
    return table


def _claims(found: Found) -> list[Claim]:
    each = {
        (setting, arm): _wins(found, setting, arm)
        for setting in settings(found.config)
        for arm in ATTRIBUTION
    }
    won = [
        f"{arm} in {setting}" for (setting, arm), claim in each.items() if claim["holds"] is True
    ]
    beaten = sum(_ahead(found, *where)["holds"] is True for where in each)
    overall: Claim = {
        "claim": "In at least one setting attribution beats dense fine-tuning in the same time by "
        "half a point, and gradient norm",
        "source": "a goal of this library",
        "holds": bool(won),
        "figure": f"{len(won)} of {len(each)} pairs of score and setting"
        + (f": {', '.join(won)}" if won else "")
        + f"; dense alone is beaten by {beaten}",
    }
    return [overall, *each.values()]


def _ahead(found: Found, setting: str, arm: str) -> dict[str, Any]:
    """Tell whether an arm beats dense training in the same time by what is wanted."""
    rival = found.equal_time(setting, arm)
    gap = found.gap(setting, arm, rival)
    return {"rival": rival, "gap": gap, "holds": gap["mean"] >= GOAL if gap["clear"] else "unclear"}


def _wins(found: Found, setting: str, arm: str) -> Claim:
    ahead, gradient = _ahead(found, setting, arm), found.gap(setting, arm, GRADIENT)
    verdicts = [ahead["holds"], gradient["mean"] > 0 if gradient["clear"] else "unclear"]
    test, random = found.chosen[setting, arm][1], found.gap(setting, arm, RANDOM)
    return {
        "claim": f"{setting}: {arm} beats dense fine-tuning in the same time by half a point, and "
        "gradient norm",
        "source": "a goal of this library",
        "holds": False if False in verdicts else "unclear" if "unclear" in verdicts else True,
        "figure": f"{100 * test.mean():.1f}%, {_told(ahead['gap'])} from {ahead['rival']}, "
        f"{_told(gradient)} from gradient, {_told(random)} from {RANDOM}",
    }


def _told(gap: Mapping[str, Any]) -> str:
    if gap["low"] is None:
        return f"{100 * gap['mean']:+.1f} (one seed)"
    return f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


# The figure ---------------------------------------------------------------------------------------


def _draw(found: Found, path: Path) -> None:
    """Draw by how much each arm is ahead of dense training with all steps: mean and interval."""
    names = settings(found.config)
    lines = [arm for arm in arms(found.config) if arm != DENSE]
    columns = min(3, len(names))
    deep = -(-len(names) // columns)
    with figures.drawing(path, 1.6 + 2.7 * columns, 0.6 + 2.9 * deep) as figure:
        grid = figure.subplots(deep, columns, squeeze=False, sharey=True)
        for axes, setting in zip(grid.flat, names, strict=False):
            axes.axvline(0, color="#8a8a8a", linewidth=0.8)
            for place, arm in enumerate(lines):
                gap = found.gap(setting, arm, DENSE)
                reach = 0.0 if gap["low"] is None else gap["high"] - gap["mean"]
                axes.errorbar(
                    100 * gap["mean"],
                    place,
                    xerr=100 * reach,
                    fmt="o" if arm in ATTRIBUTION else "D" if arm in CONTROLS else "s",
                    color=_colour(arm),
                    markersize=4.5,
                    elinewidth=1.2,
                )
            accuracy = 100 * found.chosen[setting, DENSE][1].mean()
            axes.set_title(f"{setting}\ndense {accuracy:.1f}%")
            axes.set_yticks(range(len(lines)), lines)
            axes.set_xlim(*_limits(found, setting, lines))
            axes.grid(color="#e5e5e5", linewidth=0.6)
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        grid[0, 0].invert_yaxis()
        figure.supxlabel("points ahead of dense fine-tuning with as many steps", fontsize=9)


def _limits(found: Found, setting: str, lines: Sequence[str]) -> tuple[float, float]:
    """Return limits of the axis that show all arms within 15 points of dense training."""
    gaps = [found.gap(setting, arm, DENSE) for arm in lines]
    low = min(100 * gap["mean"] for gap in gaps)
    high = max(100 * (gap["mean"] if gap["high"] is None else gap["high"]) for gap in gaps)
    return max(low, -15.0) - 2.0, min(max(high, 1.0), 15.0) + 1.0


def _colour(arm: str) -> str:
    return LIGHT[1] if arm in ATTRIBUTION else LIGHT[2] if arm in CONTROLS else "#6e6e6e"


STUDY = Study(
    id="targeted-finetune",
    title="Targeted updates in fine-tuning: a search for a setting where they beat dense training",
    source="paper 000 (A Novel Training Method for Deep Neural Networks Leveraging Attribution "
    "Graphs), which proposes targeted updates and measures none",
    deviations=(
        "The paper names no task. Six settings were set down before any was measured by the study; "
        "what the pictures need (steps, channels, kept samples), and that the outputs of new "
        "classes are fresh, was decided later, on seeds that the study does not have, by dense "
        "training.",
        "Every arm tries the same learning rates; held-out samples choose one, by the mean over "
        "the seeds. The density and the choice of neurons every 50 steps were not tuned.",
        "Dense training in the same time is dense training of the nearest greater share of the "
        "steps that was measured, with a rate of its own; its course is as long as its steps.",
        "The time is CPU time of one thread, dense and targeted steps in turn, with the choice of "
        "neurons; the pass that measures the old task, once before training, is not in it.",
        "The intervals are not corrected for the number of comparisons.",
        "The smoke budget takes the 8x8 digits of scikit-learn, also in place of CIFAR-10.",
    ),
    budgets={
        "smoke": Config(
            digits="digits", pictures="digits", hidden=(32, 32), width=0.0, before=300,
            before_steps=80, picture_before=300, picture_steps=80, few=40, some=100,
            picture_replayed=10, held=60, test=180, protected=50, steps=20, rates=(0.1, 0.03),
            shares=(0.8, 1.0), seeds=2, pairs=1,
        ),
        "quick": Config(seeds=2),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
