"""Why does the signed order sharpen the maps of guided models, and the absolute order not?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attrain.data import Data
from attrain.metrics.attacks import fgsm
from attrain.metrics.faithfulness import accuracy_drop, area, corner, random_attribution
from attrain.metrics.statistics import paired_difference
from attrain.studies import sgt_order_figures as drawings
from attrain.studies.graph_subjects import accuracy, images
from attrain.studies.guided_evidence import (
    BY_CHANCE,
    BY_SIZE,
    ORDERS,
    SIGNED,
    half,
    masses,
    noise,
    parts,
    signed_gradient,
    taken,
    without_ink,
)
from attrain.studies.guided_subjects import (
    ABSOLUTE,
    GUIDED,
    HIGHEST,
    RANDOM,
    REGULAR,
    Recipe,
    judged,
    maps,
    trained,
)
from attrain.studies.sgt_fig3 import percent, points
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured
from attrain.studies.verdicts import told, verdict

ARMS = (REGULAR, GUIDED, ABSOLUTE, RANDOM)
MIRRORS = (HIGHEST,)
"""What should not help, if the signed order helps for the reason that is tested."""
TITLES = ("gradient", "DeepLIFT")
"""Of the accuracy drop. DeepLIFT's map is 0 off the ink: only the order within it is left."""
SHARES = (0.25, 0.5, 0.75)
"""Of the ink that is removed by chance."""
EPSILON = 0.1
"""Of the attack, as a share of the range of a pixel."""
SHOWN = 4
"""Digits of the first seed whose gradients are drawn."""
HYPOTHESIS = "hypothesis of this study"


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    images: test images that are explained, others for each seed. mirror_seeds: the first of the
    seeds, of the arms in MIRRORS.
    """

    recipe: Recipe = field(default_factory=Recipe)
    images: int = 400
    seeds: int = 5
    mirror_seeds: int = 3

    def seeds_of(self, arm: str) -> int:
        """Return how many seeds an arm has."""
        return min(self.seeds, self.mirror_seeds) if arm in MIRRORS else self.seeds


def rows(config: Config) -> list[Row]:
    """Return a row per seed and arm, seed by seed, the mirrors last."""
    return [
        Row(_name(arm, seed), partial(_measure, config, arm, seed))
        for arms in (ARMS, MIRRORS)
        for seed in range(config.seeds_of(arms[0]))
        for arm in arms
    ]


def _name(arm: str, seed: int) -> str:
    return f"{arm}, seed {seed}"


# A row --------------------------------------------------------------------------------------------


def _measure(config: Config, arm: str, seed: int) -> Result:
    """Train a model, and regular training's beside it, whose maps and outputs are exchanged."""
    data = images(config.recipe.data)
    regular = trained(config.recipe, REGULAR, seed)
    model = trained(config.recipe, arm, seed)
    x, y = judged(data, config.images, seed)
    g = signed_gradient(model, x, y)
    shown = [each[:SHOWN].round(decimals=4).tolist() for each in (x.mean(1), g)]
    return {
        "shown": shown if seed == 0 else [],
        "accuracy": accuracy(model, *data.test.tensors),
        "curves": _curves(data, model, regular, x, y, seed),
        "ink removed": [
            accuracy(model, without_ink(x, share, seed=seed), y) for share in SHARES
        ],
        "masses": masses(g, x),
        "taken": {order: taken(half(g, order, _from(seed)), g, x) for order in ORDERS},
        "noise": {
            order: noise(model, x, y, half(g, order, _from(seed)), g, _from(seed + 1))
            for order in ORDERS
        },
        "attacked": _attacked(data, model, x, y),
    }  # fmt: skip


def _from(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _curves(
    data: Data, model: nn.Module, regular: nn.Module, x: Tensor, y: Tensor, seed: int
) -> Result:
    """Return the accuracy of both models with pixels removed by the maps of both.

    By title, "model | map" to the accuracies over FRACTIONS; and that of a random order.
    """
    models = {"own": model, "regular": regular}
    black = float(data.train.tensors[0].min())
    found: Result = {}
    for title in TITLES:
        by = {
            name: maps(each, x, y, title, baseline=black).mean(1, keepdim=True)
            for name, each in models.items()
        }
        found[title] = {
            f"{name} | {of}": accuracy_drop(models[name], x, y, by[of], corner(x), seed=seed)
            for name in models
            for of in by
        }
    drawn = random_attribution(x[:, :1], seed=seed)
    found["random"] = {"own | own": accuracy_drop(model, x, y, drawn, corner(x))}
    return found


def _attacked(data: Data, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy under the fast gradient sign method."""
    low, high = ((end - data.mean) / data.std for end in (0.0, 1.0))
    # The digits of rounded arithmetic may lie outside by a hair.
    x = torch.clamp(x, low, high)
    changed = fgsm(model, x, y, EPSILON * (high - low), low, high)
    return accuracy(model, changed, y)


# What it adds up to -------------------------------------------------------------------------------

Results = Mapping[str, Result]


class Found:
    """What the models of an arm came to: each method returns a number per seed."""

    def __init__(self, each: Sequence[Result]) -> None:
        self.each = each

    def of(self, *path: str) -> list[float]:
        """Return what stands under the keys in the rows."""
        found = []
        for value in self.each:
            for key in path:
                value = value[key]
            found.append(float(value))  # type: ignore[arg-type]
        return found

    def areas(self, title: str, whose: str = "own | own") -> list[float]:
        """Return the area under the accuracy of a model by a map, "model | map"."""
        return [area(one["curves"][title][whose]) for one in self.each]

    def split(self, title: str) -> tuple[list[float], list[float]]:
        """Return by how much the model changes the area, and by how much its map does."""
        sides = {True: "own", False: "regular"}
        found = [
            parts(
                {
                    (model, by): area(one["curves"][title][f"{sides[model]} | {sides[by]}"])
                    for model in sides
                    for by in sides
                }
            )
            for one in self.each
        ]
        models, by_maps = zip(*found, strict=True)
        return list(models), list(by_maps)

    def without_ink(self, share: float) -> list[float]:
        """Return the accuracy with a share of the ink removed by chance."""
        return [one["ink removed"][SHARES.index(share)] for one in self.each]


def found_of(config: Config, arm: str, results: Results) -> Found:
    """Return what the rows of an arm came to."""
    return Found([results[_name(arm, seed)] for seed in range(config.seeds_of(arm))])


def conclude(config: Config, results: Results, out: Path) -> Conclusion:
    """Return table, claims and figures."""
    found = {arm: found_of(config, arm, results) for arm in (*ARMS, *MIRRORS)}
    folder = out / "figures"
    drawn = [folder / "sgt-order.svg", folder / "sgt-order-gradients.svg"]
    drawings.draw_measures(found, drawn[0])
    drawings.draw_gradients({arm: results[_name(arm, 0)]["shown"] for arm in ARMS}, half, drawn[1])
    return Conclusion(_table(found), _claims(found), drawn)


def _table(found: Mapping[str, Found]) -> list[TableRow]:
    table: list[TableRow] = []

    def put(what: str, arm: str, values: Sequence[float], unit: str = "") -> None:
        table.append(measured(f"{arm}: {what}", values, unit=unit))

    for arm, each in found.items():
        put("test accuracy", arm, each.of("accuracy"), "accuracy")
    for title in (*TITLES, "random"):
        for arm, each in found.items():
            put(f"area of the accuracy by {title}", arm, each.areas(title), "accuracy")
    for title in TITLES:
        for arm, each in found.items():
            if arm != REGULAR:
                for which, values in zip(("model", "map"), each.split(title), strict=True):
                    put(f"change of the area by {title}, due to the {which}", arm, values, "")
    for share in SHARES:
        for arm, each in found.items():
            what = f"accuracy with {share:.0%} of the ink removed by chance"
            put(what, arm, each.without_ink(share), "accuracy")
    for name, where in _WHERE.items():
        for arm, each in found.items():
            put(f"share of |g|, {where}", arm, each.of("masses", name), "share")
    for arm, each in found.items():
        put(f"accuracy under FGSM, {EPSILON:g} of the range", arm, each.of("attacked"), "accuracy")
    for arm, each in found.items():
        for order in ORDERS:
            for name in _TAKEN:
                what = f"{order} half of the pixels: {_TAKEN[name]}"
                put(what, arm, each.of("taken", order, name), "share")
            for name in ("first order", "logit", "margin", "divergence"):
                put(f"noise in the {order} half: {name}", arm, each.of("noise", order, name))
            what = f"noise in the {order} half: accuracy"
            put(what, arm, each.of("noise", order, "accuracy"), "accuracy")
    return table


_WHERE = {
    "ink": "on the ink",
    "rim": "on its rim",
    "far": "farther off",
    "contrary": "negative and off the ink",
    "for": "positive and on the ink",
}
_TAKEN = {
    "ink": "share that is ink",
    "of ink": "share of the ink in it",
    "mass": "share of |g| in it",
    "contrary": "share of its |g| that is negative and off the ink",
}


def _claims(found: Mapping[str, Found]) -> list[Claim]:
    regular, guided, absolute, chance = (found[arm] for arm in ARMS)
    claims = [
        _lower(
            "The signed order lowers the area by gradient", guided, regular, "areas", "gradient",
            source="figure 3",
        ),
        _lower("The absolute order lowers the area by gradient", absolute, regular, "areas",
               "gradient", source="section 4, \"low gradient values\""),
        _lower("The signed order lowers the area by gradient more than random masks do",
               guided, chance, "areas", "gradient"),
        _compared(
            "The signed half holds less of the ink than half of it, on regular models",
            regular.of("taken", SIGNED, "of ink"), [0.5] * len(regular.each), percent, points,
        ),
        *_noise_claims(regular),
        _higher("The signed order moves |g| to the ink", guided, regular, "of", "masses", "ink"),
        _higher("The absolute order moves |g| to the ink", absolute, regular, "of", "masses",
                "ink"),
        _lower("The signed order takes |g| off where it is negative and off the ink", guided,
               regular, "of", "masses", "contrary"),
        *_split_claims(found),
        _compared(
            "The signed order lowers the area by gradient more than that by DeepLIFT, whose map "
            "is 0 off the ink",
            _changes(guided, regular, "gradient"), _changes(guided, regular, "DeepLIFT"),
            _mean_points, points,
        ),
        _higher("The signed order makes models robust to FGSM", guided, regular, "of", "attacked"),
        _lower("The absolute order makes models less robust to FGSM than the signed", absolute,
               guided, "of", "attacked"),
        _lower("Masking the highest half takes |g| off the ink", found[HIGHEST], regular, "of",
               "masses", "ink"),
        *(
            _lower(f"The signed order lowers the area by gradient more than the arm "
                   f"\"{arm}\"", guided, found[arm], "areas", "gradient")
            for arm in MIRRORS
        ),
    ]  # fmt: skip
    return claims


def _changes(ours: Found, regular: Found, title: str) -> list[float]:
    """Return by how much the area changes from regular training, one per seed."""
    pairs = zip(ours.areas(title), regular.areas(title), strict=True)
    return [mine - plain for mine, plain in pairs]


def _noise_claims(regular: Found) -> list[Claim]:
    """Return whether the signed half is where noise speaks against the label."""
    signed, by_size, by_chance = (
        regular.of("noise", order, "margin") for order in (SIGNED, BY_SIZE, BY_CHANCE)
    )
    return [
        _compared(
            "Noise in the signed half lowers the lead of the label more than noise in a random "
            "half, on regular models", signed, by_chance, _numbers, told,
        ),
        _compared(
            "Noise in the absolute half lowers the lead of the label less than noise in a random "
            "half, on regular models", by_size, by_chance, _numbers, told, higher=True,
        ),
    ]  # fmt: skip


def _split_claims(found: Mapping[str, Found]) -> list[Claim]:
    """Return whether areas fall by the maps, and not by models that bear less."""
    claims = []
    for arm in (GUIDED, ABSOLUTE):
        for which, values in zip(("model", "map"), found[arm].split("gradient"), strict=True):
            what = "map, exchanged between" if which == "map" else "answers, by equal maps of"
            claims.append(
                _compared(
                    f"{arm.capitalize()}: the area by gradient falls by the {what} it and "
                    "regular training",
                    values, None, _mean_points, points,
                )
            )  # fmt: skip
    return claims


def _lower(
    claim: str, ours: Found, theirs: Found, what: str, *path: str, source: str = HYPOTHESIS
) -> Claim:
    return _by_path(claim, ours, theirs, what, path, source, higher=False)


def _higher(
    claim: str, ours: Found, theirs: Found, what: str, *path: str, source: str = HYPOTHESIS
) -> Claim:
    return _by_path(claim, ours, theirs, what, path, source, higher=True)


def _by_path(
    claim: str, ours: Found, theirs: Found, what: str, path: Sequence[str], source: str,
    *, higher: bool,
) -> Claim:  # fmt: skip
    left, right = (getattr(each, what)(*path) for each in (ours, theirs))
    return _compared(claim, left, right, percent, points, higher=higher, source=source)


def _compared(
    claim: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
    as_text: Any,
    difference: Any,
    *,
    higher: bool = False,
    source: str = HYPOTHESIS,
) -> Claim:
    """Return whether ours are lower (or higher) than theirs, by the seeds that both have.

    Without theirs: than 0.
    """
    count = len(ours) if theirs is None else min(len(ours), len(theirs))
    against = "" if theirs is None else f" against {as_text(theirs[:count])}"
    gap = paired_difference(ours[:count], [0.0] * count if theirs is None else theirs[:count])
    return {
        "claim": claim,
        "source": source,
        "holds": verdict(gap, 1 if higher else -1),
        "figure": f"{as_text(ours[:count])}{against}; difference {difference(gap)}",
    }


def _mean_points(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):+.2f} points"


def _numbers(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{spread}"


STUDY = Study(
    id="sgt-order",
    title="Saliency guided training: why the signed order helps and the absolute order does not",
    source="paper 2111.14338, sections 3 and 4",
    deviations=(
        "The paper defines the order by signed values (section 3) and speaks of low gradients "
        "(section 4); it does not compare the two. The hypotheses are those of this study, set "
        "down before its full run.",
        "10,000 training images and 2 epochs of SGD (rate 0.1, momentum 0.9, OneCycle, clip-norm "
        "3, batches of 128); the rate was not tuned.",
        "400 test images per seed, other ones for each seed; gradients are those of the label, as "
        "in guided training.",
        "The arm that masks the highest half has fewer seeds. What it does to the gradient on the "
        "ink was set down when the other arms had been looked at, before it ran.",
        "The smoke budget takes the 8x8 digits of scikit-learn.",
    ),
    budgets={
        "smoke": Config(
            Recipe("digits", epochs=1, samples=400), images=20, seeds=2, mirror_seeds=1
        ),
        "quick": Config(Recipe(samples=5_000, epochs=2), images=200, seeds=2, mirror_seeds=1),
        "full": Config(Recipe(samples=10_000, epochs=2)),
    },
    rows=rows,
    conclude=conclude,
)
