"""Table 1 of paper 003: are explanations of texts more faithful after saliency guided training?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attrain.metrics.statistics import paired_difference
from attrain.studies.guided_subjects import GUIDED, REGULAR, UNMASKED
from attrain.studies.guided_subjects import RANDOM as RANDOM_MASKS
from attrain.studies.guided_texts import (
    GRADIENT,
    MADE,
    PATH,
    PRODUCT,
    RANDOM,
    SIGNED,
    SMOOTH,
    Recipe,
    Trained,
    faithfulness,
    is_there,
    lengths,
    logits,
    scores,
    texts,
    trained,
)
from attrain.studies.sgt_table1_figures import draw_examples, draw_scores
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import no_worse, told, verdict

COMPREHENSIVE, SUFFICIENT = "comprehensiveness", "sufficiency"
MEASURES = (COMPREHENSIVE, SUFFICIENT)
METHODS = (GRADIENT, PATH, SMOOTH)
"""The saliency methods of the table."""
OTHERS = (SIGNED, PRODUCT)
"""Other ways to make one number of the gradient by a word's vector."""
DRAWN = (*METHODS, *OTHERS, RANDOM)
CONTROLS = (RANDOM_MASKS, UNMASKED)
TITLES = {"movies": "Movies", "fever": "FEVER", "esnli": "e-SNLI", MADE: "made-up texts"}
CHANCE = {"movies": 1 / 2, "fever": 1 / 2, "esnli": 1 / 3, MADE: 1 / 2}
"""Probability of the predicted class that a model has which knows nothing."""
KEPT = 0.02
"""Accuracy that may be lost where it is said to be kept."""

PAPER: Mapping[tuple[str, str, str, str], float] = {
    (data, measure, method, arm): value
    for data, measure, values in (
        ("movies", COMPREHENSIVE, (0.200, 0.240, 0.265, 0.306, 0.198, 0.256)),
        ("movies", SUFFICIENT, (0.042, 0.013, 0.054, 0.002, 0.034, 0.008)),
        ("fever", COMPREHENSIVE, (0.007, 0.008, 0.008, 0.009, 0.007, 0.008)),
        ("fever", SUFFICIENT, (0.012, 0.011, 0.005, 0.004, 0.006, 0.006)),
        ("esnli", COMPREHENSIVE, (0.117, 0.126, 0.099, 0.104, 0.117, 0.118)),
        ("esnli", SUFFICIENT, (0.420, 0.387, 0.461, 0.419, 0.476, 0.455)),
    )
    for (method, arm), value in zip(
        [(method, arm) for method in METHODS for arm in (REGULAR, GUIDED)], values, strict=True
    )
}
"""By data set, measure, saliency method and training."""
PAPER_RANDOM: Mapping[tuple[str, str], float] = {
    ("movies", COMPREHENSIVE): 0.056,
    ("movies", SUFFICIENT): 0.294,
    ("fever", COMPREHENSIVE): 0.001,
    ("fever", SUFFICIENT): 0.003,
    ("esnli", COMPREHENSIVE): 0.058,
    ("esnli", SUFFICIENT): 0.366,
}


@dataclass(frozen=True)
class Part:
    """What is measured on a data set.

    texts: that are explained, the first of the test set; 0 takes all. seeds: of the regular and of
    guided training. control_seeds: of each control, at most. shown: texts whose words a figure
    shows. optional: left out where $ATTRAIN_DATA has no folder of it.
    """

    recipe: Recipe
    texts: int = 0
    seeds: int = 3
    control_seeds: int = 3
    shown: int = 0
    optional: bool = False

    @property
    def arms(self) -> dict[str, int]:
        """How many seeds each arm has."""
        most = {REGULAR: self.seeds, GUIDED: self.seeds}
        return most | dict.fromkeys(CONTROLS, min(self.seeds, self.control_seeds))


@dataclass(frozen=True)
class Config:
    """Settings of the study, a part for each data set."""

    parts: tuple[Part, ...]


def rows(config: Config) -> list[Row]:
    """Return a row per data set, arm and seed, the controls last."""
    there = [part for part in config.parts if not part.optional or is_there(part.recipe.data)]
    return [
        Row(_name(part, arm, seed), partial(_measure, part, arm, seed))
        for arms in ((REGULAR, GUIDED), CONTROLS)
        for part in there
        for seed in range(part.arms[arms[0]])
        for arm in arms
    ]


def _name(part: Part, arm: str, seed: int) -> str:
    return f"{part.recipe.data}, {arm}, seed {seed}"


def _measure(part: Part, arm: str, seed: int) -> Result:
    """Train a model, explain what it predicts, and delete words."""
    given = texts(part.recipe.data, part.recipe.words)
    found = trained(part.recipe, arm, seed)
    x_test, y_test = given.test
    out = logits(found.model, x_test)
    x = x_test[: part.texts or len(x_test)]
    p = out[: len(x)].softmax(1)
    by_method = scores(found.model, x, p.argmax(1), seed)
    judged = faithfulness(found.model, x, by_method, seed)
    return {
        "accuracy": float((out.argmax(1) == y_test).double().mean()),
        "confidence": float(p.amax(1).double().mean()),
        "epoch": found.epoch,
        "losses": found.losses,
        "texts": {
            method: {measure: _rounded(each) for measure, each in both.items()}
            for method, both in judged.items()
        },
        "shown": [_shown(part, by_method[GRADIENT], found, k) for k in range(part.shown)],
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


def _shown(part: Part, found: torch.Tensor, model: Trained, k: int) -> dict[str, Any]:
    """Return the words of a test text, their scores, its class and the one that is predicted."""
    given = texts(part.recipe.data, part.recipe.words)
    x, y = (each[k : k + 1] for each in given.test)
    count = int(lengths(x))
    return {
        "words": [given.words[int(number)] for number in x[0, :count]],
        "scores": _rounded(found[k, :count]),
        "label": given.classes[int(y)],
        "predicted": given.classes[int(logits(model.model, x).argmax(1))],
    }


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a part came to; arms without a seed are left out.

    accuracy, confidence: by arm, one per seed. texts: by arm, method and measure, [seeds, texts].
    """

    part: Part
    accuracy: Mapping[str, list[float]]
    confidence: Mapping[str, list[float]]
    texts: Mapping[tuple[str, str, str], Values]

    @property
    def title(self) -> str:
        """What the data set is called."""
        return TITLES[self.part.recipe.data]

    def of(self, arm: str, method: str, measure: str) -> list[float]:
        """Return a measure, one per seed."""
        return [float(each) for each in self.texts[arm, method, measure].mean(1)]

    def mean_of(self, arm: str, measure: str) -> list[float]:
        """Return the mean of a measure over the saliency methods, one per seed."""
        each = [self.of(arm, method, measure) for method in METHODS]
        return [float(value) for value in np.mean(each, axis=0)]

    def relative(self, arm: str, measure: str) -> list[float]:
        """Return that mean over the confidence above chance, one per seed.

        Both measures are differences of a probability: a model that is less sure of everything has
        smaller ones, whatever its explanations.
        """
        chance = CHANCE[self.part.recipe.data]
        pairs = zip(self.mean_of(arm, measure), self.confidence[arm], strict=True)
        return [mean / (confidence - chance) for mean, confidence in pairs]


def found_of(part: Part, results: Results) -> Found:
    """Return what the rows of a part came to."""
    each = {
        arm: [results[_name(part, arm, seed)] for seed in range(seeds)]
        for arm, seeds in part.arms.items()
        if seeds
    }
    return Found(
        part,
        {arm: [one["accuracy"] for one in some] for arm, some in each.items()},
        {arm: [one["confidence"] for one in some] for arm, some in each.items()},
        {
            (arm, method, measure): np.array([one["texts"][method][measure] for one in some])
            for arm, some in each.items()
            for method in (*METHODS, *OTHERS, RANDOM)
            for measure in MEASURES
        },
    )


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    found = [found_of(part, results) for part in config.parts if _name(part, REGULAR, 0) in results]
    drawn = [out / "figures" / "sgt-table1.svg"]
    draw_scores(_drawn(found), drawn[0])
    for each in found:
        if each.part.shown:
            drawn.append(out / "figures" / f"sgt-table1-words-{each.part.recipe.data}.svg")
            pair = {arm: results[_name(each.part, arm, 0)]["shown"] for arm in (REGULAR, GUIDED)}
            draw_examples(pair, drawn[-1])
    table = [line for each in found for line in _table(each)]
    return Conclusion(table, [claim for each in found for claim in _claims(each)], drawn)


def _drawn(found: Sequence[Found]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the figure shows, by data set and measure: methods, seeds of each arm, paper."""
    return {
        (each.title, measure): {
            "arms": {
                arm: [each.of(arm, method, measure) for method in DRAWN] for arm in each.accuracy
            },
            "paper": {
                arm: [
                    PAPER.get((each.part.recipe.data, measure, method, arm)) for method in METHODS
                ]
                for arm in (REGULAR, GUIDED)
            },
            "methods": DRAWN,
        }
        for each in found
        for measure in MEASURES
    }


def _table(found: Found) -> list[TableRow]:
    data = found.part.recipe.data
    table = [
        measured(f"{found.title}: {what}, {arm}", values, unit=unit)
        for what, by_arm, unit in (
            ("test accuracy", found.accuracy, "accuracy"),
            ("mean probability of the predicted class", found.confidence, ""),
        )
        for arm, values in by_arm.items()
    ]
    for measure in MEASURES:
        for method in (*METHODS, *OTHERS, RANDOM):
            for arm in found.accuracy:
                paper = PAPER.get((data, measure, method, arm))
                if method == RANDOM and arm == REGULAR:
                    paper = PAPER_RANDOM.get((data, measure))
                name = f"{found.title}: {measure} of {method}, {arm}"
                table.append(measured(name, found.of(arm, method, measure), paper=paper))
        table += [
            measured(
                f"{found.title}: {measure}, mean of the three methods, over the confidence above "
                f"chance, {arm}",
                found.relative(arm, measure),
            )
            for arm in found.accuracy
        ]
    return table


def _claims(found: Found) -> list[Claim]:
    claims = [
        _better(found, method, measure) for measure in MEASURES for method in (*METHODS, *OTHERS)
    ]
    claims += [_relatively(found, measure) for measure in MEASURES]
    controls = [arm for arm in CONTROLS if arm in found.accuracy]
    claims += [_than_control(found, arm, measure) for arm in controls for measure in MEASURES]
    return [*claims, _kept(found)]


def _better(found: Found, method: str, measure: str) -> Claim:
    """Say whether guided training changes a measure as the paper has it, seed by seed."""
    ours, rival = (found.of(arm, method, measure) for arm in (GUIDED, REGULAR))
    over_texts = paired_difference(
        *(found.texts[arm, method, measure].mean(0).tolist() for arm in (GUIDED, REGULAR))
    )
    paper = [PAPER.get((found.part.recipe.data, measure, method, arm)) for arm in (REGULAR, GUIDED)]
    beside = f", paper {paper[0]:.3f} to {paper[1]:.3f}" if None not in paper else ""
    gap = paired_difference(ours, rival)
    return {
        "claim": f"{found.title}: guided training {_does(measure)} {measure} of {method}",
        "source": "table 1" if method in METHODS else "not in the paper",
        "holds": verdict(gap, _sign(measure)),
        "figure": f"{np.mean(rival):.3f} to {np.mean(ours):.3f}; difference "
        f"{told(gap, digits=3)}; over the texts {told(over_texts, digits=3, of='texts')}{beside}",
    }


def _relatively(found: Found, measure: str) -> Claim:
    """Say the same of the mean of the methods, over the confidence above chance."""
    ours, rival = (found.relative(arm, measure) for arm in (GUIDED, REGULAR))
    gap = paired_difference(ours, rival)
    return {
        "claim": f"{found.title}: guided training {_does(measure)} {measure} over the confidence "
        "above chance, mean of the three methods",
        "source": "not in the paper",
        "holds": verdict(gap, _sign(measure)),
        "figure": f"{np.mean(rival):.3f} to {np.mean(ours):.3f}; difference {told(gap, digits=3)}",
    }


def _than_control(found: Found, arm: str, measure: str) -> Claim:
    """Say whether guided training does more than a control does, mean of the three methods."""
    rival = found.mean_of(arm, measure)
    ours = found.mean_of(GUIDED, measure)[: len(rival)]
    gap = paired_difference(ours, rival)
    return {
        "claim": f"{found.title}: guided training {_does(measure)} {measure} more than {arm} do, "
        "mean of the three methods",
        "source": "not in the paper",
        "holds": verdict(gap, _sign(measure)),
        "figure": f"{np.mean(rival):.3f} against {np.mean(ours):.3f}; difference "
        f"{told(gap, digits=3)}",
    }


def _kept(found: Found) -> Claim:
    gap = paired_difference(found.accuracy[GUIDED], found.accuracy[REGULAR])
    regular, guided = (100 * np.mean(found.accuracy[arm]) for arm in (REGULAR, GUIDED))
    return {
        "claim": f"{found.title}: guided training keeps the accuracy, to {100 * KEPT:.0f} points",
        "source": "section 1",
        "holds": no_worse(gap, KEPT),
        "figure": f"{regular:.1f}% to {guided:.1f}%; difference {told(gap, digits=3)}",
    }


def _sign(measure: str) -> int:
    return 1 if measure == COMPREHENSIVE else -1


def _does(measure: str) -> str:
    return "raises the" if measure == COMPREHENSIVE else "lowers the"


_MOVIES = Recipe("movies", words=256, epochs=8)
_ESNLI = Recipe("esnli", words=64, epochs=5, batch_size=64)

STUDY = Study(
    id="sgt-table1",
    title="Texts: are explanations more faithful after saliency guided training?",
    source="paper 2111.14338 (saliency guided training), table 1 and section 5.2",
    deviations=(
        "Word vectors are those of $ATTRAIN_VECTORS, such as GloVe's, which the paper takes; "
        "without it they are made of the training texts (PPMI and SVD, 100 values).",
        "e-SNLI is trained on its validation split where it comes without its train split.",
        "FEVER is measured by the full budget where $ATTRAIN_DATA has a folder fever.",
        "The paper gives no sizes: here 64 hidden units each way (full: 128), a linear layer on "
        "the mean of the states, dropout of a half; Adam, and of a few epochs the one with the "
        "lowest loss on an eighth of the training texts. Reviews are cut to 256 words (full: 512).",
        "The share of words that is masked is fixed at a half with lambda 1, as for MNIST, and not "
        "tuned; the paper's is in an appendix that was not at hand.",
        "Words are ranked by the highest score first: the sum over a word's vector of |gradient| "
        "(gradient, SmoothGrad) or of the signed shares (integrated gradients). How the paper "
        "makes one number of a vector is not said. Two other ways are added: the signed sum, by "
        "which training ranks, and that of gradient times input.",
        "The mark between the two texts of e-SNLI counts as a word.",
        "Integrated gradients take 20 steps, SmoothGrad 20 draws. The paper has five seeds.",
        "The smoke budget takes made-up texts.",
    ),
    budgets={
        "smoke": Config(
            (Part(Recipe(MADE, 24, 3, hidden=8), texts=32, seeds=2, control_seeds=1, shown=1),)
        ),
        "quick": Config((Part(_MOVIES), Part(_ESNLI, texts=500, control_seeds=1, shown=4))),
        "full": Config(
            (
                Part(Recipe("movies", 512, 15, 32, 1e-3, 128), seeds=5, control_seeds=5),
                Part(Recipe("esnli", 64, 10, 64, 1e-3, 128), seeds=5, control_seeds=5, shown=4),
                Part(
                    Recipe("fever", 256, 10, 64, 1e-3, 128), texts=1000, seeds=5, control_seeds=5,
                    optional=True,
                ),
            )
        ),
    },
    rows=rows,
    conclude=conclude,
)  # fmt: skip
