"""Rows of digits are transcribed; all that is told is the edit distance to the right text.

A row has six cells, some of them empty. The network names a digit or nothing for each, the names
are written down, and a function of Python strings counts how many characters would have to be
changed, inserted or removed. It gives one number for a whole row and knows nothing of cells. Each
row is read 8 times with symbols drawn by chance: readings that are better than the mean of their
row raise the symbols they drew, worse ones lower them.
"""

import torch
import torch.nn.functional as F
from common import Comparison, digits, fit, main, perceptron
from torch import Tensor, nn

import attrain

CELLS, NOTHING, READINGS = 6, 10, 8


def levenshtein(left: str, right: str) -> int:
    """Return how many characters must be changed, inserted or removed."""
    above = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        here = [i]
        for j, b in enumerate(right, 1):
            here.append(min(above[j] + 1, here[-1] + 1, above[j - 1] + (a != b)))
        above = here
    return above[-1]


def written(symbols: Tensor) -> list[str]:
    """Return the texts of readings [N, CELLS]."""
    return ["".join(str(s) for s in row if s != NOTHING) for row in symbols.tolist()]


def rows(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, list[str]]:
    """Return pictures [count, CELLS, 64] of random digits, a third of them empty, and texts."""
    drawn = torch.randint(len(x), (count, CELLS))
    empty = torch.rand(count, CELLS) < 1 / 3
    blank = x.amin(0)  # the value of white paper, pixel by pixel
    pictures = torch.where(empty[..., None], blank, x[drawn])
    return pictures, written(torch.where(empty, NOTHING, y[drawn]))


def scores(readings: Tensor, texts: list[str]) -> Tensor:
    """Return minus the edit distance of readings [READINGS, N, CELLS], as [READINGS, N]."""
    return torch.tensor(
        [
            [-float(levenshtein(*pair)) for pair in zip(written(each), texts, strict=True)]
            for each in readings
        ]
    )


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Train by one method; return the share of characters that are right on rows held out."""
    torch.manual_seed(seed)
    data = digits(validation)
    model = perceptron(nn.ReLU, 64, 64, 64, 11)
    credit = attrain.LFP(model, scale="relative")
    pictures, texts = rows(data.x, data.y, 1024)

    def loss(batch: Tensor) -> Tensor:
        if method == "LFP":
            with credit:
                out = model(pictures[batch])  # [N, CELLS, 11]
        else:
            out = model(pictures[batch])
        objective = attrain.rewards.softmax if method == "LFP" else F.cross_entropy
        readings = torch.distributions.Categorical(logits=out.detach()).sample((READINGS,))
        score = scores(readings, [texts[row] for row in batch.tolist()])
        advantage = score - score.mean(0)
        given = [
            better[:, None] * objective(out.transpose(1, 2), reading, reduction="none")
            for better, reading in zip(advantage, readings, strict=True)
        ]
        return torch.stack(given).sum(2).mean()

    if method != "untrained":
        fit(model, loss, len(pictures), rate=rate, epochs=12 if short else 24, batch=32)
    with torch.no_grad():
        pictures, texts = rows(data.x_held, data.y_held, 200)
        wrong = -scores(model(pictures).argmax(2)[None], texts).sum()
    return max(0.0, 1 - float(wrong) / len("".join(texts)))


COMPARISON = Comparison(
    title="Rows of digits, judged by the edit distance of what is read",
    metric="1 - edit distance / length, on rows of the test set",
    run=run,
    rates={"untrained": None, "REINFORCE": 0.01, "LFP": 0.1},
    learner="LFP",
    baseline="untrained",
    grid=(0.003, 0.01, 0.03, 0.1, 0.3),
)

if __name__ == "__main__":
    main(COMPARISON)
