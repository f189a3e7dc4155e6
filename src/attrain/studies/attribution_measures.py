"""What is measured of each method of attribution: costs, errors, stability, faithfulness."""

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import METHODS, grid
from attrain.metrics import faithfulness
from attrain.metrics.stability import rank_correlation, relative_change, relative_spread
from attrain.studies.attribution_subject import (
    CELLS,
    FEW_CELLS,
    VARIANTS,
    Subject,
    Variant,
    by_cells,
    drawn,
    games,
    untrained,
)
from attrain.studies.study import Result

NOISE = 0.05
"""Standard deviation of the noise on the inputs, in the range of a sample."""
RANDOM_ORDERS = 5
SHOWN = 3
SIGNS = 20
"""Pixels of the largest gradient whose sign is put to the test."""
PIXELS = 10
"""Pixels, drawn, that are taken away one by one for the axiom of sensitivity."""
REWRITTEN = tuple(
    name
    for name, variant in VARIANTS.items()
    if METHODS[variant.method].differentiates and not METHODS[variant.method].drawn
)
_LEAST_SECONDS = 0.1


# A method on the samples of a seed ----------------------------------------------------------------


def measure_method(of: Subject, variant: Variant) -> Result:
    """Return all that does not need another kind of model, medians over the samples."""
    values, error = of.attribute(variant, of.x)
    method = METHODS[variant.method]
    few = values[: of.config.few]
    found: Result = {
        "completeness": _completeness(of, variant, error),
        **_noise(of, variant, values),
        **faithful(of, values),
        **_exact(of, variant, few),
        "randomised": _randomised(of, variant, few),
        **_views(of, variant, values),
    }
    if method.drawn:
        found |= _seeds(of, variant, few)
    if method.baselines != "none":
        found |= _baselines(of, variant, few)
    return found


def _completeness(of: Subject, variant: Variant, error: Tensor) -> float:
    """Return the median of the error over what the attributions are to add up to."""
    change = of.output(of.x)
    method = METHODS[variant.method]
    if method.baselines == "many":
        target = of.target.repeat_interleave(len(of.typical))
        out = of.logits(of.typical).repeat(len(of.x), 1).gather(1, target[:, None])
        change = change - out.reshape(len(of.x), -1).mean(1)
    elif variant.method != "lrp":
        base = of.black if method.baselines == "one" else 0.0
        change = change - of.output(torch.full_like(of.x, base))
    return _median(error.abs() / change.abs())


def _noise(of: Subject, variant: Variant, values: Tensor) -> Result:
    """Compare with the attributions of the same samples under a little noise."""
    spans = (of.x.flatten(1).amax(1) - of.x.flatten(1).amin(1)).reshape(-1, 1, 1, 1)
    noisy = of.x + NOISE * spans * drawn(tuple(of.x.shape), of.seed)
    other, _ = of.attribute(variant, noisy)
    return {
        "noise_change": _median(relative_change(values, other)),
        "noise_rank": _median(rank_correlation(values, other)),
        "input_change": _median(relative_change(of.x - of.black, noisy - of.black)),
    }


def _seeds(of: Subject, variant: Variant, few: Tensor) -> Result:
    """Compare draws of the same attribution; `few` is that of seed 0."""
    others = [of.attribute(variant, of.few, seed=s)[0] for s in range(1, of.config.draws)]
    return {
        "seed_spread": _median(relative_spread(torch.stack([few, *others]))),
        "seed_rank": _median(_pairwise([few, *others])),
    }


def _baselines(of: Subject, variant: Variant, few: Tensor) -> Result:
    """Compare the attributions that four baselines give."""
    found: dict[str, Tensor] = {}
    for name, base in of.baselines().items():
        if METHODS[variant.method].baselines == "one":
            found[name] = of.attribute(variant, of.few, baselines=base)[0]
        else:  # of which DeepSHAP wants two; each sample has its own
            alone = [
                replace(of, target=of.target[n : n + 1]).attribute(
                    variant, of.few[n : n + 1], baselines=base[n : n + 1].repeat(2, 1, 1, 1)
                )[0]
                for n in range(len(of.few))
            ]
            found[name] = torch.cat(alone)
    changes = [relative_change(found["black"], found[name]) for name in found if name != "black"]
    return {
        "baseline_rank": _median(_pairwise(list(found.values()))),
        "baseline_change": _median(torch.stack(changes).mean(0)),
    }


def faithful(of: Subject, values: Tensor) -> Result:
    """Return what the model loses without the top features, and keeps with them alone."""
    rest: dict[str, Any] = {"fractions": faithfulness.FRACTIONS, "seed": of.seed}
    accuracy = {
        name: faithfulness.accuracy_drop(of.logits, of.x, of.y, values, background, **rest)
        for name, background in (("black", of.black), ("mean", of.mean))
    }
    left = faithfulness.target_drop(of.probabilities, of.x, of.target, values, of.black, **rest)
    aopc = (of.probabilities, of.x, values, of.black)
    return {
        "accuracy": accuracy["black"],
        "accuracy_mean": accuracy["mean"],
        "probability": left.mean(1).tolist(),
        "positive": faithfulness.target_drop(
            of.probabilities, of.x, of.target, values.clamp(min=0), of.black, **rest
        ).mean(1).tolist(),
        "comprehensiveness": float(faithfulness.comprehensiveness(*aopc, seed=of.seed).mean()),
        "sufficiency": float(faithfulness.sufficiency(*aopc, seed=of.seed).mean()),
    }  # fmt: skip


def _exact(of: Subject, variant: Variant, few: Tensor) -> Result:
    """Compare the shares of ten cells with their exact Shapley values."""
    exact = games(of).values
    if METHODS[variant.method].masked:
        mask = grid(of.few.shape, FEW_CELLS)
        values, _ = of.attribute(variant, of.few, feature_mask=mask)
        shares = by_cells(values, FEW_CELLS, masked=True)
    else:
        shares = by_cells(few, FEW_CELLS)
    return {
        "shapley_error": _median(relative_change(exact, shares.double())),
        "shapley_rank": _median(rank_correlation(exact, shares.double())),
    }


def _randomised(of: Subject, variant: Variant, few: Tensor) -> float | None:
    """Return the rank correlation of sizes with those of a model with random parameters."""
    other, _ = of.attribute(variant, of.few, model=untrained(of))
    return _median(rank_correlation(few.abs(), other.abs()))


def _views(of: Subject, variant: Variant, values: Tensor) -> Result:
    """Return maps to be drawn, the sizes of cells, and how local and global views compare."""
    cells = by_cells(values, CELLS, masked=METHODS[variant.method].masked).abs()
    overall = cells.mean(0, keepdim=True)
    return {
        "cells": _rounded(cells),
        "maps": _rounded(values[:SHOWN, 0]),
        "global_map": _rounded(values.abs().mean(0)[0]),
        "local_rank": _median(rank_correlation(cells, overall.expand(cells.shape))),
        "global_rank": _median(rank_correlation(overall, _importance(of)[None])),
    }


@lru_cache(maxsize=1)
def _importance(of: Subject) -> Tensor:
    """Return the mean size of the logit's change when a cell turns black, over the samples."""
    mask = grid(of.x.shape, CELLS)
    out = of.output(of.x)
    return torch.stack(
        [
            (out - of.output(torch.where(mask == cell, of.black, of.x))).abs().mean()
            for cell in range(int(mask.max()) + 1)
        ]
    )


# The model of a seed ------------------------------------------------------------------------------


def measure_model(of: Subject) -> Result:
    """Return what random orders lose, and the accuracy of the model."""
    orders = [
        faithful(of, drawn(tuple(of.x.shape), 1000 * of.seed + order))
        for order in range(RANDOM_ORDERS)
    ]
    random: Result = {}
    for name, first in orders[0].items():
        each = torch.tensor([order[name] for order in orders], dtype=torch.float64).mean(0)
        random[name] = each.tolist() if isinstance(first, list) else float(each)
    return {
        "test_accuracy": of.accuracy,
        "random": random,
        "pictures": _rounded(of.x[:SHOWN, 0]),
        "interaction": _median(games(of).interaction),
    }


# Axioms and what else the words of the table can be held to ---------------------------------------


class Difference(nn.Module):
    """A layer's output z as 2z + (-z), by two layers: the same function in other words."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.more, self.less = copy.deepcopy(layer), copy.deepcopy(layer)
        with torch.no_grad():
            for part, factor in ((self.more, 2), (self.less, -1)):
                for parameter in part.parameters():
                    parameter.mul_(factor)

    def forward(self, a: Tensor) -> Tensor:
        """Return what the layer makes of `a`."""
        return self.more(a) + self.less(a)  # type: ignore[no-any-return]


class Rewritten(nn.Module):
    """The ReLU of z as z + relu(-z): the same function in other words."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, z: Tensor) -> Tensor:
        """Return the ReLU of `z`."""
        return z + self.relu(-z)  # type: ignore[no-any-return]


class Rounded(nn.Module):
    """A model whose outputs are rounded to quarters: it has no gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded outputs of `x`."""
        return torch.round(self.model(x) * 4) / 4


class Added(nn.Module):
    """A model to all of whose outputs `bonus` is added where two cells are both bright.

    The bonus is the product of the mean brightness over black of both cells, so that no
    coalition of cells loses by taking in one of them.
    """

    def __init__(self, model: nn.Module, first: Tensor, second: Tensor, black: float) -> None:
        super().__init__()
        self.model, self.first, self.second, self.black = model, first, second, black

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of `x` [N, 1, H, W]."""
        one = (x[:, 0, self.first] - self.black).mean(1)
        other = (x[:, 0, self.second] - self.black).mean(1)
        return self.model(x) + (one * other)[:, None]  # type: ignore[no-any-return]


def measure_axioms(of: Subject) -> Result:
    """Return saturation, signs, sensitivity, invariance, conservation, agnosticism, consistency."""
    return {
        "saturation": _saturation(of),
        "wrong_signs": _wrong_signs(of),
        "missed": _missed(of),
        "rewritten": {name: _rewritten(of, VARIANTS[name]) for name in REWRITTEN},
        "conservation": {
            name: _conservation(of, name)
            for name, variant in VARIANTS.items()
            if variant.method == "lrp"
        },
        "agnostic": {name: _agnostic(of, VARIANTS[name]) for name in ("LIME", "Kernel SHAP")},
        "inconsistent": {
            name: _inconsistent(of, VARIANTS[name]) for name in ("LIME", "Kernel SHAP")
        },
    }


def _saturation(of: Subject) -> Result:
    """Return the share of the change of the probability that an attribution accounts for.

    From the gradient at the input times the distance to black, and from integrated gradients.
    """
    softened = nn.Sequential(of.model, nn.Softmax(1)).eval()
    change = of.output(of.x, softened) - of.output(torch.full_like(of.x, of.black), softened)
    gradient, _ = of.attribute(Variant("saliency"), of.x, model=softened, abs=False)
    local = (gradient * (of.x - of.black)).flatten(1).sum(1)
    whole, _ = of.attribute(VARIANTS["integrated gradients"], of.x, model=softened)
    return {
        "gradient": _median(local / change),
        "integrated": _median(whole.flatten(1).sum(1) / change),
    }


def _wrong_signs(of: Subject) -> float:
    """Return how often raising a pixel by one moves the logit against the sign of its gradient.

    Of the 20 pixels of the largest gradient of each of the few samples; one is the standard
    deviation of the training set.
    """
    gradient, _ = of.attribute(Variant("saliency"), of.few, abs=False)
    flat, out = gradient.flatten(1), of.output(of.few)
    wrong = []
    for place in flat.abs().topk(SIGNS, dim=1).indices.T:
        raised = of.few.flatten(1).scatter_add(1, place[:, None], torch.ones(len(flat), 1))
        moved = of.output(raised.reshape(of.few.shape)) - out
        wrong.append(moved.sign() != flat.gather(1, place[:, None])[:, 0].sign())
    return float(torch.stack(wrong).double().mean())


def _missed(of: Subject) -> Result:
    """Return how many single pixels matter, and how many of them an attribution has at 0.

    A pixel matters if blackening it alone changes the logit by a thousandth of its size; the
    baseline is the sample without it. `false` counts the other pixels, the same in both, that are
    not at 0.
    """
    mattered, false = 0, 0
    missed = {"gradient": 0, "integrated": 0}
    lit = (of.few - of.black > 0.5).flatten(1)
    generator = torch.Generator().manual_seed(of.seed)
    gradient, _ = of.attribute(Variant("saliency"), of.few)
    out = of.output(of.few)
    for _ in range(PIXELS):
        place = torch.multinomial(lit.float(), 1, generator=generator)
        base = of.few.flatten(1).scatter(1, place, of.black).reshape(of.few.shape)
        values, _ = of.attribute(VARIANTS["integrated gradients"], of.few, baselines=base)
        matters = (of.output(base) - out).abs() > 1e-3 * out.abs()
        mattered += int(matters.sum())
        for name, each in (("gradient", gradient), ("integrated", values)):
            missed[name] += int((matters & (each.flatten(1).gather(1, place)[:, 0] == 0)).sum())
        false += int((values.flatten(1).scatter(1, place, 0.0) != 0).sum())
    return {"mattered": mattered, "false": false} | missed


def _rewritten(of: Subject, variant: Variant) -> Result:
    """Compare with the attributions to the model with ReLUs and layers in other words."""
    other = copy.deepcopy(of.model)
    for name, module in of.model.named_modules():
        if isinstance(module, nn.ReLU):
            other.set_submodule(name, Rewritten())
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            other.set_submodule(name, Difference(module))
    other.eval()
    values, _ = of.attribute(variant, of.few)
    changed, _ = of.attribute(variant, of.few, model=other)
    return {
        "function": _median(relative_change(of.logits(of.few), of.logits(of.few, other))),
        "change": _median(relative_change(values, changed)),
        "rank": _median(rank_correlation(values, changed)),
    }


def _conservation(of: Subject, name: str) -> Result:
    """Return the share of the output [layers] that is lost by then, from the last layer down.

    With the model's biases, and without; the inputs are the last entry.
    """
    bare = copy.deepcopy(of.model)
    with torch.no_grad():
        for parameter, each in bare.named_parameters():
            if parameter.endswith("bias"):
                each.zero_()
    layers = [each for each, _ in of.model.named_children()][:-1][::-1]
    lost: dict[str, list[float | None]] = {}
    for biases, model in (("biases", of.model), ("no biases", bare)):
        out = of.output(of.few, model)
        lost[biases] = []
        for layer in [*layers, None]:
            found, _ = of.attribute(VARIANTS[name], of.few, model=model, layer=layer)
            lost[biases].append(_median((found.flatten(1).sum(1) / out - 1).abs()))
    return {"layers": [layer or "inputs" for layer in [*layers, None]], **lost}


def _agnostic(of: Subject, variant: Variant) -> Result:
    """Compare with the attributions to the model with its outputs rounded to quarters."""
    x = of.few[: max(1, of.config.few // 5)]
    plain, _ = of.attribute(variant, x)
    rounded, _ = of.attribute(variant, x, model=Rounded(of.model))
    gradient, _ = of.attribute(Variant("saliency"), x, model=Rounded(of.model))
    return {
        "rank": _median(rank_correlation(plain, rounded)),
        "gradient": float(gradient.abs().max()),
    }


def _inconsistent(of: Subject, variant: Variant) -> Result:
    """Count cells whose attribution falls when a bonus was added for them.

    For each sample, a bonus for its two cells of the largest mean value, which both see.
    """
    mask = grid(of.few.shape, CELLS)[0, 0]
    bright = by_cells(of.few - of.black, CELLS) / torch.bincount(mask.flatten())
    fell, cells, worst = 0, 0, 0.0
    x = of.few[: max(1, of.config.few // 5)]
    for n in range(len(x)):
        pair = bright[n].topk(2).indices.tolist()
        first, second = (mask == cell for cell in pair)
        alone = replace(of, target=of.target[n : n + 1])
        more = Added(of.model, first, second, of.black).eval()
        before, _ = alone.attribute(variant, x[n : n + 1])
        after, _ = alone.attribute(variant, x[n : n + 1], model=more)
        size = float(before.abs().max())
        for each in (first, second):
            gain = float((after - before)[0, 0][each][0]) / size
            cells += 1
            fell += gain < -1e-4
            worst = min(worst, gain)
    return {"cells": cells, "fell": fell, "worst": worst}


# Cost ---------------------------------------------------------------------------------------------


def measure_cost(of: Subject, variant: Variant) -> Result:
    """Return CPU time as ratios to one gradient of the same batch, in ABBA order, and seconds.

    Each measurement of a pair repeats its call for a tenth of a second at least.
    """
    x, target = of.x[: of.config.cost_batch], of.target[: of.config.cost_batch]

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(of.model(leaf).gather(1, target[:, None]).sum(), leaf)

    def method() -> None:
        of.attribute(variant, x, error=False)

    gradient()
    repeats = {call: _repeats(call) for call in (gradient, method)}
    ratios, seconds = [], []
    for pair in range(of.config.pairs):
        order = (gradient, method) if pair % 2 == 0 else (method, gradient)
        times = {call: cpu_seconds(call, repeats[call]) for call in order}
        ratios.append(times[method] / times[gradient])
        seconds.append(times[method] / len(x))
    return {"ratios": ratios, "seconds": statistics.median(seconds)}


def _repeats(call: Callable[[], None]) -> int:
    return max(1, math.ceil(_LEAST_SECONDS / max(cpu_seconds(call, 1), 1e-6)))


def cpu_seconds(call: Callable[[], None], repeats: int) -> float:
    """Return the CPU seconds of one of `repeats` calls."""
    began = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - began) / repeats


# Numbers ------------------------------------------------------------------------------------------


def _pairwise(each: Sequence[Tensor]) -> Tensor:
    """Return the mean rank correlation over all pairs, sample by sample."""
    pairs = itertools.combinations(each, 2)
    return torch.stack([rank_correlation(one, other) for one, other in pairs]).nanmean(0)


def _median(values: Tensor) -> float:
    """Return the median of the samples that have a value; NaN where none has."""
    found = values.double()
    found = found[~found.isnan()]
    return float(found.quantile(0.5)) if len(found) else math.nan


def _rounded(values: Tensor) -> Any:
    """Return numbers of four digits: as many as a figure shows."""
    return _digits(values.tolist())


def _digits(values: Any) -> Any:
    if isinstance(values, Iterable):
        return [_digits(each) for each in values]
    return float(f"{values:.4g}")
