"""Targeted updates that spare an old task: what is forgotten at equal accuracy on the new one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attrain.metrics.statistics import paired_difference
from attrain.models import seeded
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.targeted_old_task import (
    NEW,
    OLD,
    SEPARATE,
    Config,
    Heads,
    Subject,
    least,
    relu_means,
    subject,
)
from attrain.studies.targeted_rivals import Elastic, fisher, low_rank_
from attrain.studies.targeted_subjects import Arm, Loop, Training, cross_entropy, dense

DENSE, SPARING = "dense, for the new task", "dense, to keep the old"
EWC, LOW_RANK, HEAD = "elastic weights", "low rank", "head alone"
LOW_RELEVANCE, RATIO = "low relevance", "ratio"
LOW_ACTIVATION, GRADIENT, RANDOM = "low activation", "gradient", "random, fixed"
SCORES = {LOW_RELEVANCE: "low_relevance", RATIO: "ratio", GRADIENT: "gradient", RANDOM: "fixed"}
OURS = (LOW_RELEVANCE, RATIO)
RIVALS = (SPARING, EWC, LOW_RANK, HEAD, LOW_ACTIVATION, GRADIENT, RANDOM)
ALLOWED = 0.02
"""By how much the new accuracy may fall short of dense training's."""
FORGOTTEN = 0.01
"""By how much the old accuracy may fall."""
CHOSEN = 0.01
"""By how much the new accuracy may fall short on held-out samples, for `ALLOWED` to be kept."""
LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08)
"""Shortfalls of the new accuracy that the figure is drawn for."""


@dataclass(frozen=True)
class Trial:
    """A setting that is tried: a learning rate, and what else an arm has to be set.

    strength: of elastic weights. rank: of low rank updates. density: of targeted ones.
    """

    rate: float
    strength: float = 0.0
    rank: int = 0
    density: float = 1.0

    def __str__(self) -> str:
        told = [f"rate {self.rate:g}"]
        told += [f"strength {self.strength:g}"] if self.strength else []
        told += [f"rank {self.rank}"] if self.rank else []
        told += [f"density {self.density:g}"] if self.density < 1 else []
        return ", ".join(told)


_TARGETED = tuple(
    Trial(rate, density=density) for density in (0.1, 0.25, 0.5) for rate in (0.2, 0.07)
)
TRIALS: Mapping[str, tuple[Trial, ...]] = {
    DENSE: tuple(Trial(rate) for rate in (0.2, 0.1, 0.05, 0.02, 0.01, 0.003)),
    # Strength times rate is bounded by what diverges: 500 did, for most seeds.
    EWC: tuple(
        Trial(rate, strength=strength)
        for rate, strength in (
            (0.1, 1e3),
            (0.1, 3e3),
            (0.05, 3e3),
            (0.05, 5e3),
            (0.02, 1e4),
            (0.01, 3e4),
        )
    ),
    LOW_RANK: tuple(Trial(rate, rank=rank) for rank in (4, 16) for rate in (0.1, 0.05, 0.03)),
    HEAD: tuple(Trial(rate) for rate in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)),
    **dict.fromkeys((LOW_RELEVANCE, RATIO, LOW_ACTIVATION, GRADIENT, RANDOM), _TARGETED),
}
"""What each arm is tried with: six settings for each."""


def rows(config: Config) -> list[Row]:
    """Return a row per world, seed and arm, each with all of the arm's trials."""
    return [
        Row(_name(world, arm, seed), partial(_measure, config, world, arm, seed))
        for world in config.worlds
        for seed in range(config.seeds)
        for arm in TRIALS
    ]


def _name(world: str, arm: str, seed: int) -> str:
    return f"{world}, {arm}, seed {seed}"


# A row --------------------------------------------------------------------------------------------


def _measure(config: Config, world: str, arm: str, seed: int) -> Result:
    """Train on the new task under every trial of an arm; measure both tasks along the way."""
    given = subject(config, world, seed)
    return {
        "before": given.before[1],
        "trials": {
            str(trial): _course(config, given, world, arm, trial, seed) for trial in TRIALS[arm]
        },
    }


def _course(
    config: Config, given: Subject, world: str, arm: str, trial: Trial, seed: int
) -> dict[str, list[list[float]]]:
    """Return the accuracies [stops][new, old] of one training, held out and on the test sets."""
    model = copy.deepcopy(given.model)
    loss: Any = cross_entropy
    if arm == EWC:
        loss = Elastic(model, _information(config, world, seed), trial.strength)
    if arm == LOW_RANK:
        with seeded(seed):
            low_rank_(model, trial.rank, lambda name: name.startswith("trunk."))
    if arm == HEAD:
        model.trunk.requires_grad_(False)
    training = Training(config.steps, config.batch_size, loss=loss)
    how = _arm(config, given, arm, trial)
    loop = Loop(model, how, given.train[NEW], training, trial.rate, seed)
    if arm in OURS and loop.targeted is not None:
        model.task = OLD
        kept = given.train[OLD].part(slice(0, config.protected))
        loop.targeted.protect([(kept.x, kept.y)])
        model.task = NEW
    course: dict[str, list[list[float]]] = {"held": [], "test": []}
    loop.trained.train()
    for stop in range(config.stops):
        while loop.done < (stop + 1) * config.steps // config.stops:
            loop.step()
        course["held"].append(given.of(model, given.held))
        course["test"].append(given.of(model, given.test))
    return course


def _arm(config: Config, given: Subject, arm: str, trial: Trial) -> Arm:
    """Return the way an arm trains."""
    if trial.density == 1:
        return dense()
    score: Any = SCORES.get(arm)
    if arm == LOW_ACTIVATION:
        score = least(relu_means(given.model, given.train[OLD].part(slice(0, config.protected)).x))
    return Arm(arm, score, trial.density, options=(("dense", given.model.names),))


@lru_cache(maxsize=2)
def _information(config: Config, world: str, seed: int) -> Mapping[str, Tensor]:
    given = subject(config, world, seed)
    model: Heads = copy.deepcopy(given.model)
    model.task = OLD
    return fisher(model, given.train[OLD].x[: config.protected])


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Where an arm stops, chosen by held-out samples: accuracies on the test sets, per seed."""

    trial: str
    share: float
    new: Array
    old: Array


@dataclass(frozen=True)
class World:
    """What was measured in a world: accuracies [seeds, trials, stops, (new, old)] by arm."""

    name: str
    labels: Mapping[str, list[str]]
    held: Mapping[str, Array]
    test: Mapping[str, Array]
    before: Array

    def fastest(self) -> Point:
        """Return dense training at its best new accuracy."""
        means = self.held[DENSE].mean(0)[..., 0]
        return self._at(DENSE, int(means.argmax()))

    def sparing(self, arm: str, allowed: float) -> Point | None:
        """Return where an arm keeps the most of the old task, within reach of the new one.

        Among all trials and stops whose new accuracy, held out and on average over the seeds,
        falls short of dense training's best by at most `allowed`; None without any.
        """
        source = DENSE if arm == SPARING else arm
        means = self.held[source].mean(0)
        wanted = self.held[DENSE].mean(0)[..., 0].max() - allowed
        old = np.where(means[..., 0] >= wanted - 1e-12, means[..., 1], -1.0)
        return None if old.max() < 0 else self._at(source, int(old.argmax()))

    def _at(self, arm: str, place: int) -> Point:
        trial, stop = divmod(place, self.held[arm].shape[2])
        new, old = np.moveaxis(self.test[arm][:, trial, stop], -1, 0)
        return Point(
            self.labels[arm][trial], (stop + 1) / self.held[arm].shape[2], new, old
        )  # fmt: skip


def read(config: Config, results: Results, world: str) -> World:
    """Return what was measured in a world."""
    labels = {arm: [str(trial) for trial in TRIALS[arm]] for arm in TRIALS}

    def every(arm: str, split: str) -> Array:
        return np.array([
            [results[_name(world, arm, seed)]["trials"][label][split] for label in labels[arm]]
            for seed in range(config.seeds)
        ])  # fmt: skip

    before = [results[_name(world, DENSE, seed)]["before"] for seed in range(config.seeds)]
    held, test = ({arm: every(arm, split) for arm in TRIALS} for split in ("held", "test"))
    return World(world, labels, held, test, np.array(before))


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figure."""
    worlds = [read(config, results, name) for name in config.worlds]
    drawn = out / "figures" / "targeted-forgetting.svg"
    _draw(worlds, drawn)
    table = [row for world in worlds for row in _table(world)]
    claims = [claim for world in worlds for claim in _claims(world)]
    return Conclusion(table, claims, [drawn])


def _table(world: World) -> list[TableRow]:
    fastest = world.fastest()
    table = [measured(f"{world.name}: old task before", world.before, unit="accuracy")]
    table += _point(f"{world.name}, {DENSE}", fastest)
    for arm in (*OURS, *RIVALS):
        for allowed in (CHOSEN, ALLOWED):
            told = f"{world.name}, {arm}, {100 * allowed:g} allowed"
            point = world.sparing(arm, allowed)
            if point is not None:
                table += _point(told, point)
            else:
                best = world.test[arm][..., 0].max((1, 2))
                table.append(measured(f"{told}: out of reach, best new", best, unit="accuracy"))
    return table


def _point(told: str, point: Point) -> list[TableRow]:
    told = f"{told} ({point.trial}, {point.share:.0%} of the steps)"
    return [
        measured(f"{told}: old", point.old, unit="accuracy"),
        measured(f"{told}: new", point.new, unit="accuracy"),
    ]


def _claims(world: World) -> list[Claim]:
    claims = [_keeps(world, arm) for arm in OURS] if world.name == SEPARATE else []
    return claims + [_ahead(world, arm, rival) for arm in OURS for rival in RIVALS]


def _keeps(world: World, arm: str) -> Claim:
    """Tell whether little is forgotten at little cost, both by their intervals."""
    point, fastest = world.sparing(arm, CHOSEN), world.fastest()
    claim: Claim = {
        "claim": f"{world.name}: targeted by {arm}, the old accuracy stays within one point of "
        "before, at a new accuracy within two points of dense fine-tuning's",
        "source": "a goal of this library",
        "holds": False,
        "figure": f"within 1 point on held-out samples in none of {len(world.labels[arm])} trials",
    }
    if point is not None:
        old, new = _gap(point.old, world.before), _gap(point.new, fastest.new)
        verdicts = [above(old, -FORGOTTEN), above(new, -ALLOWED)]
        claim["holds"] = False if False in verdicts else min(verdicts, key=lambda v: v is True)
        claim["figure"] = (
            f"old {_percent(point.old)}, {_told(old)} from before; new {_percent(point.new)}, "
            f"{_told(new)} from dense; dense keeps {_percent(fastest.old)}"
        )
    return claim


def _ahead(world: World, arm: str, rival: str) -> Claim:
    """Tell whether an arm keeps more than a rival, both within reach of the new task."""
    ours, theirs = (world.sparing(each, ALLOWED) for each in (arm, rival))
    claim: Claim = {
        "claim": f"{world.name}: targeted by {arm} keeps more of the old task than {rival}, at a "
        "new accuracy within two points of dense fine-tuning's on held-out samples",
        "source": "not in the paper",
        "holds": "unclear",
        "figure": "both are further than 2 points from dense",
    }
    if ours is not None and theirs is not None:
        gap = _gap(ours.old, theirs.old)
        claim["holds"] = gap["mean"] > 0 if gap["clear"] else "unclear"
        claim["figure"] = (
            f"old {_percent(ours.old)} against {_percent(theirs.old)}, {_told(gap)}; new "
            f"{_percent(ours.new)} against {_percent(theirs.new)}"
        )
    elif ours is not None or theirs is not None:
        claim["holds"] = ours is not None
        claim["figure"] = f"only {arm if ours else rival} comes within 2 points of dense"
    return claim


def _gap(values: Array, others: Array) -> dict[str, Any]:
    return paired_difference(values.tolist(), others.tolist())


def above(gap: Mapping[str, Any], threshold: float) -> bool | Literal["unclear"]:
    """Tell whether a mean difference is above a threshold, unclear where its interval has it."""
    if gap["low"] is None or gap["low"] <= threshold <= gap["high"]:
        return "unclear"
    return bool(gap["mean"] > threshold)


def _percent(values: Array) -> str:
    return f"{100 * values.mean():.1f}%"


def _told(gap: Mapping[str, Any]) -> str:
    if gap["low"] is None:
        return f"{100 * gap['mean']:+.1f} points (one seed)"
    return f"{100 * gap['mean']:+.1f} points ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


# The figure ---------------------------------------------------------------------------------------

_DRAWN: Mapping[str, tuple[str, str, str]] = {
    LOW_RELEVANCE: (LIGHT[1], "o", "-"),
    RATIO: (LIGHT[5], "s", "-"),
    LOW_ACTIVATION: (LIGHT[4], "v", "--"),
    GRADIENT: (LIGHT[3], "^", "--"),
    RANDOM: (LIGHT[6], "P", "--"),
    SPARING: (LIGHT[0], "D", ":"),
    EWC: (LIGHT[2], "X", ":"),
    LOW_RANK: ("#8a8a8a", "*", ":"),
}


def _draw(worlds: Sequence[World], path: Path) -> None:
    """Draw the old accuracy that arms keep over the shortfall of the new one that is allowed."""
    with figures.drawing(path, 3.3 * len(worlds) + 0.4, 4.2) as figure:
        grid = figure.subplots(1, len(worlds), squeeze=False)[0]
        for axes, world in zip(grid, worlds, strict=True):
            axes.axhline(100 * world.before.mean(), color="#8a8a8a", linewidth=0.8, zorder=0)
            for arm, (colour, mark, line) in _DRAWN.items():
                points = {level: world.sparing(arm, level) for level in LEVELS}
                reached = {level: point for level, point in points.items() if point is not None}
                axes.plot(
                    [100 * level for level in reached],
                    [100 * point.old.mean() for point in reached.values()],
                    marker=mark,
                    linestyle=line,
                    color=colour,
                    markersize=5,
                    label=arm,
                )
            axes.set(title=world.name, xlabel="points of new accuracy that may be given up")
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("old accuracy kept (%)")
        named = grid[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=4 if len(worlds) > 1 else 2)


STUDY = Study(
    id="targeted-forgetting",
    title="Targeted updates that spare an old task: forgetting at equal new accuracy",
    source="paper 000 (A Novel Training Method for Deep Neural Networks Leveraging Attribution "
    "Graphs), which proposes targeted updates and measures none",
    deviations=(
        "The paper names no task: digits 0 to 4 come before 5 to 9, with a head for each task or "
        "one of five outputs for both; or digits before digits on their side, with one of ten.",
        "Every arm has six settings, and where in its course it stops, chosen by held-out samples "
        "of both tasks, on average over the seeds: the most old accuracy within reach of the new "
        "one. One who has no old samples cannot choose so.",
        "Elastic weights, relevance and activation of the old task are measured on the same old "
        "samples.",
        "An arm's point has the new accuracy that was wanted or more, so that new accuracies are "
        "equal up to the steps of the grid; they are given beside it.",
        "The smoke budget takes the 8x8 digits of scikit-learn.",
    ),
    budgets={
        "smoke": Config(
            data="digits", worlds=(SEPARATE,), hidden=(32, 32), old=200, new=150, held=100,
            test=180, old_steps=80, steps=24, stops=3, protected=50, seeds=2,
        ),
        "quick": Config(seeds=2, worlds=(SEPARATE,)),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
