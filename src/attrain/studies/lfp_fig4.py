"""Paper 001, figure 4: the walk of two weights under LFP and under gradient descent."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import BoundaryNorm
from numpy.typing import NDArray
from sklearn.datasets import make_blobs
from torch import Tensor, nn

from attrain import rewards
from attrain.credit import LFP
from attrain.studies import figures
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured

STARTS = ((0, 4), (4, 0), (2, 4), (4, 2), (-4, -4), (-4, 4), (4, -4))
METHODS = ("gradient descent", "LFP")
REDUCTIONS = ("mean", "sum")
SOURCE = "figure 4"
_WRONG = STARTS.index((-4, -4))  # both weights have the wrong sign
REACH, GRID = 10.0, 81
# Wider apart where the objective is steep, so that the flat part shows its shape as well.
LOSSES = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 25)
REWARDS = (-25, -10, -3, -1, -0.3, -0.1, -0.03, 0, 0.03, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Config:
    """Settings of the study; the defaults are the paper's, which shows one draw."""

    samples: int = 1000
    batch_size: int = 8
    learning_rate: float = 0.5
    draws: int = 5


def rows(config: Config) -> list[Row]:
    """Return a row per method, reduction over the batch, and draw of the data."""
    return [
        Row(_name(method, reduction, draw), partial(_walks, config, method, reduction, draw))
        for method in METHODS
        for reduction in REDUCTIONS
        for draw in range(config.draws)
    ]


def _name(method: str, reduction: str, draw: int) -> str:
    return f"{method}, {reduction}, draw {draw}"


def _data(config: Config, draw: int) -> tuple[Tensor, Tensor]:
    """Draw two clusters around [-1, -1] and [1, 1]: points [N, 2], labels 0 and 1 as [N, 1]."""
    x, y = make_blobs(
        config.samples, centers=[[-1.0, -1.0], [1.0, 1.0]], cluster_std=0.2, random_state=draw
    )
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]


def _walks(config: Config, method: str, reduction: str, draw: int) -> Result:
    """Train from every start for one epoch; return the paths [starts, steps + 1, 2] and losses."""
    x, y = _data(config, draw)
    paths, losses = [], []
    for start in STARTS:
        model = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([start]))
        paths.append(_walk(config, model, method, reduction, x, y))
        with torch.no_grad():
            losses.append(float(F.binary_cross_entropy_with_logits(model(x), y)))
    return {"paths": paths, "losses": losses}


def _walk(
    config: Config, model: nn.Linear, method: str, reduction: Any, x: Tensor, y: Tensor
) -> list[list[float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    credit = LFP(model)
    path = [model.weight[0].tolist()]
    batches = zip(*(torch.split(each, config.batch_size) for each in (x, y)), strict=True)
    for batch_x, batch_y in batches:
        optimizer.zero_grad()
        if method == "LFP":
            with credit:
                out = model(batch_x)
            loss = rewards.sigmoid(out, batch_y, reduction=reduction)
        else:
            loss = F.binary_cross_entropy_with_logits(model(batch_x), batch_y, reduction=reduction)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        path.append(model.weight[0].tolist())
    return path


# What it adds up to -------------------------------------------------------------------------------


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return table, claims and a figure per reduction."""
    ends = {
        (method, reduction): np.array(
            [
                [path[-1] for path in results[_name(method, reduction, draw)]["paths"]]
                for draw in range(config.draws)
            ]
        )
        for method in METHODS
        for reduction in REDUCTIONS
    }  # each [draws, starts, 2]
    losses = {
        (method, reduction): np.array(
            [results[_name(method, reduction, draw)]["losses"] for draw in range(config.draws)]
        )
        for method in METHODS
        for reduction in REDUCTIONS
    }  # each [draws, starts]
    drawn = []
    for reduction in REDUCTIONS:
        path = out / "figures" / f"lfp-fig4-{reduction}.svg"
        _draw(config, results, reduction, path)
        drawn.append(path)
    return Conclusion(_table(ends, losses), _claims(ends, losses), drawn)


Numbers = Mapping[tuple[str, str], NDArray[np.float64]]


def _ratio(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smaller over the larger |w|, mean over the starts: [draws]."""
    sizes = np.abs(ends)
    ratio: NDArray[np.float64] = (sizes.min(-1) / sizes.max(-1)).mean(-1)
    return ratio


def _table(ends: Numbers, losses: Numbers) -> list[TableRow]:
    table = []
    for method, reduction in ends:
        label = f"{method}, {reduction} over the batch"
        table += [
            measured(f"{label}: loss, mean of the starts", losses[method, reduction].mean(1)),
            measured(f"{label}: loss from [-4, -4]", losses[method, reduction][:, _WRONG]),
            measured(f"{label}: smaller / larger weight", _ratio(ends[method, reduction])),
        ]
    return table


def _claims(ends: Numbers, losses: Numbers) -> list[Claim]:
    claims: list[Claim] = []
    for reduction in REDUCTIONS:
        under = f"({reduction} over the batch)"
        gradient, lfp = ends["gradient descent", reduction], ends["LFP", reduction]
        # The loss depends on w1 + w2 alone, but for the spread of the data: both are to be equal.
        claims.append(
            {
                "claim": f"Gradient descent takes every start to the optimum {under}",
                "source": SOURCE,
                "holds": bool((gradient.sum(-1) > 0).all()),
                "figure": f"w1 + w2 ends at {gradient.sum(-1).min():.2f} or more from every start; "
                f"mean loss {losses['gradient descent', reduction].mean():.2g}",
            }
        )
        axes = lfp[:, :2]
        claims.append(
            {
                "claim": f"LFP scales a weight's step by its size: a weight at 0 stays {under}",
                "source": SOURCE,
                "holds": bool((axes.min(-1) == 0).all()),
                "figure": f"from [0, 4] and [4, 0] the smaller weight ends at "
                f"{np.abs(axes).min(-1).max():g} (gradient descent: "
                f"{np.abs(gradient[:, :2]).min(-1).mean():.2f})",
            }
        )
        ratio, other = _ratio(lfp), _ratio(gradient)
        claims.append(
            {
                "claim": f"LFP finds sparser solutions than gradient descent {under}",
                "source": SOURCE,
                "holds": bool((ratio < other).all()),
                "figure": f"smaller over larger weight at the end, mean of the seven starts: LFP "
                f"{ratio.mean():.2f}, gradient descent {other.mean():.2f}",
            }
        )
    return claims


def _draw(config: Config, results: Mapping[str, Result], reduction: str, path: Path) -> None:
    x, y = _data(config, 0)
    side = np.linspace(-REACH, REACH, GRID)
    weights = torch.from_numpy(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)).float()
    o = x @ weights.T
    loss = F.softplus(torch.where(y > 0, -o, o)).mean(0)
    reward = (o * (y - torch.sigmoid(o))).mean(0)
    fields = {"LFP": (reward, REWARDS), "gradient descent": (loss, LOSSES)}
    with figures.drawing(path, 8.2, 3.8) as figure:
        grid = figure.subplots(1, 2, sharey=True)
        for axes, (method, (values, levels)) in zip(grid, fields.items(), strict=True):
            filled = axes.contourf(
                side,
                side,
                values.reshape(GRID, GRID).numpy(),
                levels=levels,
                norm=BoundaryNorm(levels, 256),
                cmap="cividis",
            )
            label = "mean reward" if method == "LFP" else "mean loss"
            figure.colorbar(filled, ax=axes, label=label, ticks=levels, format="%g")
            for walk in results[_name(method, reduction, 0)]["paths"]:
                w1, w2 = np.array(walk).T
                axes.plot(w1, w2, color="white", linewidth=2.6)
                axes.plot(w1, w2, color=figures.LFP, linewidth=1.4)
                axes.plot(w1[0], w2[0], "o", color="white", markeredgecolor="black", markersize=5)
                axes.plot(w1[-1], w2[-1], "s", color=figures.LFP, markeredgecolor="white")
            axes.set(title=method, xlabel="$w_1$", xlim=(-REACH, REACH), ylim=(-REACH, REACH))
            axes.set_aspect("equal")
        figure.axes[0].set_ylabel("$w_2$")


STUDY = Study(
    id="lfp-fig4",
    title="Two weights: where LFP and gradient descent walk",
    source="paper 2308.12053, figure 4 and A.6.1",
    deviations=(
        "Five draws of the data; the paper shows one and names no seed.",
        "The paper does not say whether a batch's feedback is averaged or summed: both are here.",
    ),
    budgets={
        "smoke": Config(samples=80, draws=1),
        "quick": Config(),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
