"""DEPARA: does the similarity of two models' attribution graphs tell what transfers?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from attrain.errors import InputError
from attrain.graph import depara_graph, transferability
from attrain.metrics.statistics import paired_difference, rank_correlation
from attrain.report.palette import LIGHT
from attrain.studies import figures, transfer
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.tasks import WORLDS, Task, World, few, samples

LINEAR, TUNED = "linear", "tuned"
MEASURES = {LINEAR: "a linear probe", TUNED: "fine-tuning"}
"""Of real transfer: how the few labels of a target are used."""
RATE = 1e-3
"""Of what is trained with many labels."""
ATTRIBUTIONS: Mapping[str, dict[str, Any]] = {
    "input times gradient": {"method": "input_x_gradient"},
    "saliency": {"method": "saliency"},
    "LRP": {"method": "lrp", "rule": "epsilon-plus"},
}
"""Of the nodes; the first is the one that verdicts are about. The epsilon rule alone would give
almost the same as that in networks of ReLU."""


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    world: the sources and targets, one of WORLDS. samples, epochs: with which the sources are
    trained, and a target that has all its labels. labels: of a target to train with; as many are
    held out. tuning_epochs, rates: of what is trained with them. probe: pictures of the target
    without labels. test: samples of a test set. seeds: each draws samples and weights anew.
    """

    world: str = "pictures"
    samples: int = 6000
    epochs: int = 4
    labels: int = 100
    tuning_epochs: int = 30
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    probe: int = 200
    test: int = 2000
    seeds: int = 5
    edge_weight: float = 1.0


def rows(config: Config) -> list[Row]:
    """Return a row per seed: all sources, all targets, and every way from one to the other."""
    return [
        Row(f"seed {seed}", partial(_measure, config, 1000 * seed)) for seed in range(config.seeds)
    ]


# A row --------------------------------------------------------------------------------------------


def _measure(config: Config, seed: int) -> Result:
    """Train sources and targets from one seed, transfer, and compare."""
    world = WORLDS[config.world]
    sources, accuracies = {}, {}
    for number, (name, task) in enumerate(world.sources.items()):
        sources[name], accuracies[name] = _source(config, world, task, seed + number)
    return {
        "accuracy": accuracies,
        "targets": {
            name: _transfer(config, world, sources, task, seed + 100 * (number + 1))
            for number, (name, task) in enumerate(world.targets.items())
        },
    }


def _source(config: Config, world: World, task: Task, seed: int) -> tuple[nn.Sequential, float]:
    model = transfer.untrained(world, task.classes, seed)
    train, test = samples(task, world.side, "first", config.test, seed)
    if task.labels != "none":
        transfer.fit(model, train.part(slice(0, config.samples)), RATE, config.epochs, 128, seed)
    return model, transfer.accuracy(model, test)


def _transfer(
    config: Config, world: World, sources: Mapping[str, nn.Sequential], task: Task, seed: int
) -> Result:
    """Return real transfer to a target, and what is known of it beforehand."""
    train, test = samples(task, world.side, "second", config.test, seed)
    labelled, held, left = few(train, task.classes, config.labels)
    probe, target = left.x[: config.probe], transfer.Target(labelled, held, test)

    def fresh(number: int) -> nn.Sequential:
        return transfer.untrained(world, task.classes, seed + number)

    scratch = transfer.tuned(partial(fresh, 0), target, config.rates, config.tuning_epochs, seed)
    whole, all_of_it = fresh(1), train.part(slice(0, config.samples))
    # As many steps as a source, where there are fewer samples.
    epochs = config.epochs * config.samples // len(all_of_it)
    transfer.fit(whole, all_of_it, RATE, epochs, 128, seed)
    found: Result = {
        "scratch": transfer.accuracy(scratch, test),
        "whole": transfer.accuracy(whole, test),
        LINEAR: {},
        TUNED: {},
        "held": {},
    }
    for number, (name, source) in enumerate(sources.items()):
        found["held"][name], found[LINEAR][name] = transfer.probed(source, target)
        start = partial(
            lambda source, head: transfer.with_head(source, fresh(head)), source, 2 + number
        )
        model = transfer.tuned(start, target, config.rates, config.tuning_epochs, seed)
        found[TUNED][name] = transfer.accuracy(model, test)
    for method, options in ATTRIBUTIONS.items():
        graphs = {name: depara_graph(each, probe, **options) for name, each in sources.items()}
        for told, model in (("few", scratch), ("all", whole)):
            similar = transferability(graphs, model, probe, **options)
            found[f"{told}, {method}"] = {
                name: [similar[name].nodes, similar[name].edges] for name in sources
            }
    return found


# What it adds up to -------------------------------------------------------------------------------

OURS, NODES, EDGES = "DEPARA", "its nodes alone", "its edges alone"
SALIENCY, LRP = "DEPARA by saliency", "DEPARA by LRP"
WHOLE = "DEPARA, target with all labels"
OWN, HELD = "the source's own accuracy", "a linear probe on held-out labels"
OTHERS = "real transfer in the other seeds"
PREDICTORS = (OURS, NODES, EDGES, SALIENCY, LRP, WHOLE, OWN, HELD, OTHERS)
RIVALS = (NODES, EDGES, OWN, HELD)
CONTROLS = ("random labels", "untrained")
"""Sources that learned nothing."""

Results = Mapping[str, Result]


def _predicted(
    config: Config, results: Sequence[Result], seed: int, target: str, measure: str, predictor: str
) -> dict[str, float]:
    """Return what a predictor says of each source, in the row of a seed."""
    found = results[seed]["targets"][target]
    if predictor == OWN:
        return dict(results[seed]["accuracy"])
    if predictor == HELD:
        return dict(found["held"])
    if predictor == OTHERS:
        others = [each["targets"][target][measure] for each in results if each is not results[seed]]
        return {name: float(sum(each[name] for each in others)) for name in found[measure]}
    labels = "all" if predictor == WHOLE else "few"
    method = {SALIENCY: "saliency", LRP: "LRP"}.get(predictor, "input times gradient")
    of_nodes, of_edges = {NODES: (1.0, 0.0), EDGES: (0.0, 1.0)}.get(
        predictor, (1.0, config.edge_weight)
    )
    return {
        name: of_nodes * nodes + of_edges * edges
        for name, (nodes, edges) in found[f"{labels}, {method}"].items()
    }


def agreement(predicted: Mapping[str, float], real: Mapping[str, float]) -> float:
    """Return the rank correlation of a prediction with real transfer; NaN where it is undefined."""
    try:
        return rank_correlation([predicted[name] for name in real], list(real.values()))
    except InputError:
        return float("nan")


def agreement_of_trained(predicted: Mapping[str, float], real: Mapping[str, float]) -> float:
    """Return the rank correlation over the sources that learned something."""
    return agreement(predicted, {name: real[name] for name in real if name not in CONTROLS})


def lost(predicted: Mapping[str, float], real: Mapping[str, float]) -> float:
    """Return by how much the source that a prediction puts first falls short of the best one."""
    return max(real.values()) - real[max(real, key=lambda name: predicted[name])]


Scores = Mapping[tuple[str, str, str], Sequence[float]]
"""By target, measure and predictor, one per seed."""


@dataclass(frozen=True)
class _Found:
    """Agreements, over all sources and over those that were trained, and losses."""

    agreement: Scores
    of_trained: Scores
    lost: Scores


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    each = list(results.values())
    cells = [
        (target, measure, predictor)
        for target in WORLDS[config.world].targets
        for measure in MEASURES
        for predictor in PREDICTORS
    ]

    def over_seeds(
        score: Callable[[Mapping[str, float], Mapping[str, float]], float],
    ) -> dict[tuple[str, str, str], list[float]]:
        return {
            (target, measure, predictor): [
                score(
                    _predicted(config, each, seed, target, measure, predictor),
                    each[seed]["targets"][target][measure],
                )
                for seed in range(len(each))
            ]
            for target, measure, predictor in cells
        }

    found = _Found(over_seeds(agreement), over_seeds(agreement_of_trained), over_seeds(lost))
    folder = out / "figures"
    drawn = [folder / "depara-transfer.svg", folder / "depara-transfer-agreement.svg"]
    _draw_sources(config, results, drawn[0])
    _draw_agreement(config, found, drawn[1])
    return Conclusion(_table(config, results, found), _claims(config, found), drawn)


def _table(config: Config, results: Results, found: _Found) -> list[TableRow]:
    world = WORLDS[config.world]
    each = list(results.values())
    table = [
        measured(
            f"{source}: own test accuracy",
            [result["accuracy"][source] for result in each],
            unit="accuracy",
        )
        for source in world.sources
    ]
    for target in world.targets:
        here: list[Result] = [result["targets"][target] for result in each]
        for told, key in (("its few labels", "scratch"), ("all its labels", "whole")):
            alone = [result[key] for result in here]
            table.append(measured(f"{target}: from {told} alone", alone, unit="accuracy"))
        for measure, by in MEASURES.items():
            table += [
                measured(
                    f"{target}: {source}, by {by}",
                    [result[measure][source] for result in here],
                    unit="accuracy",
                )
                for source in world.sources
            ]
    for (target, measure, predictor), values in found.agreement.items():
        name = f"{target}, {MEASURES[measure]}: Spearman with {predictor}"
        table.append(measured(name, list(values)))
    for (target, measure, predictor), values in found.of_trained.items():
        if predictor in (OURS, OWN, HELD):
            name = (
                f"{target}, {MEASURES[measure]}: Spearman with {predictor}, trained sources alone"
            )
            table.append(measured(name, list(values)))
    for (target, measure, predictor), values in found.lost.items():
        if measure == TUNED and predictor in (OURS, OWN, HELD):
            name = f"{target}, {MEASURES[measure]}: lost by the first of {predictor}"
            table.append(measured(name, list(values), unit="share"))
    return table


def _claims(config: Config, found: _Found) -> list[Claim]:
    targets = WORLDS[config.world].targets
    claims = [_agrees(found, target, measure, OURS) for target in targets for measure in MEASURES]
    claims += [_agrees(found, target, TUNED, WHOLE) for target in targets]
    overall = (("all sources", found.agreement), ("the trained sources alone", found.of_trained))
    claims += [_agrees_overall(among, scores) for among, scores in overall]
    return claims + [_ahead(found, rival) for rival in RIVALS]


def _agrees(found: _Found, target: str, measure: str, predictor: str) -> Claim:
    values = found.agreement[target, measure, predictor]
    gap = paired_difference(values, [0.0] * len(values))
    with_what = " of a target trained on all its labels" if predictor == WHOLE else ""
    return {
        "claim": f"The ranking by DEPARA{with_what} agrees with real transfer by "
        f"{MEASURES[measure]} to {target} (Spearman > 0)",
        "source": "DEPARA (2003.07496)",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": _told(gap),
    }


def _agrees_overall(among: str, scores: Scores) -> Claim:
    values = _pooled(scores, OURS)
    gap = paired_difference(values, [0.0] * len(values))
    return {
        "claim": f"The ranking by DEPARA agrees with real transfer among {among}, over all "
        "targets and both measures (Spearman > 0)",
        "source": "DEPARA (2003.07496)",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": _told(gap),
    }


def _ahead(found: _Found, rival: str) -> Claim:
    """Compare DEPARA with another ranking by their mean agreement over targets and measures."""
    ours, theirs = (_pooled(found.agreement, each) for each in (OURS, rival))
    gap = paired_difference(ours, theirs)
    return {
        "claim": f"DEPARA ranks better than {rival}, over all targets and both measures",
        "source": "not in the paper" if rival in (OWN, HELD) else "DEPARA (2003.07496)",
        "holds": gap["mean"] > 0 if gap["clear"] else "unclear",
        "figure": f"Spearman {np.mean(ours):+.2f} against {np.mean(theirs):+.2f}; difference "
        f"{_told(gap)}",
    }


def _pooled(scores: Scores, predictor: str) -> list[float]:
    """Return the mean score of a predictor over targets and measures, one per seed."""
    cells = [values for cell, values in scores.items() if cell[2] == predictor]
    return [float(each) for each in np.mean(cells, axis=0)]


def _told(gap: Mapping[str, Any]) -> str:
    if gap["mean"] is None:
        return f"undefined in one of {gap['n']} seeds, where all sources are equal"
    if gap["low"] is None:
        return f"{gap['mean']:+.2f}, one seed"
    return f"{gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f}, {gap['n']} seeds)"


# The figures --------------------------------------------------------------------------------------

_MARKS = "osD^vP*X<>"


def _draw_sources(config: Config, results: Results, path: Path) -> None:
    """Draw the accuracy after fine-tuning over the similarity, a mark per source, mean of seeds."""
    world = WORLDS[config.world]
    each = list(results.values())
    with figures.drawing(path, 9.6, 3.9) as figure:
        grid = figure.subplots(1, len(world.targets), squeeze=False)[0]
        for axes, target in zip(grid, world.targets, strict=True):
            scratch = 100 * np.mean([result["targets"][target]["scratch"] for result in each])
            dashed = {"color": "#8a8a8a", "linewidth": 0.8, "linestyle": "--"}
            axes.axhline(scratch, label="from scratch", **dashed)
            said_of = [
                _predicted(config, each, seed, target, TUNED, OURS) for seed in range(len(each))
            ]
            for number, source in enumerate(world.sources):
                said = [similar[source] for similar in said_of]
                real = [100 * result["targets"][target][TUNED][source] for result in each]
                axes.errorbar(
                    np.mean(said),
                    np.mean(real),
                    xerr=_deviation(said),
                    yerr=_deviation(real),
                    fmt=_MARKS[number],
                    color=_colour(number),
                    markersize=6,
                    elinewidth=0.7,
                    label=source,
                )
            axes.set(title=target, xlabel="similarity (nodes + \N{GREEK SMALL LETTER LAMDA} edges)")
            axes.grid(color="#e5e5e5", linewidth=0.6)
        grid[0].set_ylabel("test accuracy after fine-tuning (%)")
        named = grid[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=6)


def _colour(number: int) -> str:
    # Black and the palest two are left out; a colour that comes again has another mark.
    return LIGHT[1:6][number % 5]


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw_agreement(config: Config, found: _Found, path: Path) -> None:
    """Draw each predictor's Spearman with real transfer: a dot per seed, a bar for their mean."""
    targets = WORLDS[config.world].targets
    with figures.drawing(path, 9.6, 4.0) as figure:
        grid = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(grid, targets, strict=True):
            axes.axvline(0, color="#8a8a8a", linewidth=0.8)
            for shift, (measure, by) in zip((-0.16, 0.16), MEASURES.items(), strict=True):
                colour, mark = (LIGHT[2], "o") if measure == LINEAR else (LIGHT[1], "D")
                for place, predictor in enumerate(PREDICTORS):
                    values = found.agreement[target, measure, predictor]
                    height = place + shift
                    axes.plot(
                        values,
                        [height] * len(values),
                        mark,
                        color=colour,
                        markersize=3.5,
                        alpha=0.6,
                        label=by if place == 0 else None,
                    )
                    axes.plot([np.mean(values)] * 2, [height - 0.15, height + 0.15], color=colour)
            axes.set(title=target, xlim=(-1.05, 1.05), xlabel="Spearman")
            axes.set_yticks(range(len(PREDICTORS)), PREDICTORS)
            axes.grid(color="#e5e5e5", linewidth=0.6, axis="x")
        grid[0].invert_yaxis()
        named = grid[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=2, title="real transfer by")


STUDY = Study(
    id="depara-transfer",
    title="DEPARA: does the similarity of attribution graphs tell what transfers?",
    source="paper 2003.07496 (DEPARA), cited by paper 000",
    deviations=(
        "Ten LeNets trained on tasks made of MNIST and CIFAR-10 in grey, and three small targets; "
        "the paper takes large networks trained on the tasks of Taskonomy.",
        "The target's model is trained on its few labels, as a user would have it; the paper's "
        "are trained on whole data sets, which is beside it here.",
        "Real transfer is measured here, by a linear probe and by fine-tuning, each with its "
        "setting chosen by held-out labels; the paper compares with transfer that others measured.",
        "The probe is of pictures of the target without labels, and lambda is 1.",
        "The seeds vary weights, samples and labels. The sources and targets are the same in all, "
        "so that the intervals say nothing about other tasks.",
        "The smoke budget takes the 8x8 digits of scikit-learn alone, with six sources and two "
        "targets.",
    ),
    budgets={
        "smoke": Config(
            world="digits", samples=300, epochs=2, labels=40, tuning_epochs=4, rates=(1e-3, 3e-3),
            probe=40, test=200, seeds=2,
        ),
        "quick": Config(),
        "full": Config(
            samples=30_000, epochs=8, tuning_epochs=80, probe=500, test=10_000, seeds=10
        ),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
