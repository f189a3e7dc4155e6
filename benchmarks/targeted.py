"""Cost of a targeted step, its selection included, as a ratio to a dense step of the same model.

    python benchmarks/targeted.py --json targeted.json

All steps run in one process on one thread, in rounds whose order turns, so that the drift of a
noisy machine falls on all. A round is as many steps as lie between two refreshes, one of which it
has. A figure is the median over the rounds of the ratio of CPU times within a round, with its
quartiles. `bytes` is what the optimizer holds, as a ratio to that of the dense one.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step import cpu_time
from torch import nn

import attrain
from attrain.models import MLP
from attrain.targeted.state import held

REFRESH = 50
CASES = [(0.25, "full"), (0.1, "full"), (0.25, "selected"), (0.1, "selected")]
GATES = {"mlp": (0.78, 0.70, 0.62, 0.52), "cnn": (0.93, 0.88, 0.82, 0.77)}


def cnn() -> nn.Module:
    """Return convolutions of 32, 64 and 128 channels, for images 3 x 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(784, (1000, 1000), 10), (128, 784)),
    "cnn": (cnn, (32, 3, 32, 32)),
}


class Steps:
    """Steps of SGD on one batch: dense, or with the rows of a share of the units."""

    def __init__(self, name: str, case: tuple[float, str] | None, score: str, momentum: float):
        build, shape = MODELS[name]
        torch.manual_seed(0)
        self.model = build()
        self.x, self.y = torch.randn(shape), torch.randint(10, shape[:1])
        self.targeted = None
        if case is not None:
            density, gradient = case
            self.targeted = attrain.Targeted(
                self.model, density, score, refresh=REFRESH, warmup=1, input_gradient=gradient
            )
        trained = self.targeted or self.model
        self.optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=momentum)

    def __call__(self) -> None:
        """Make a step."""
        self.optimizer.zero_grad()
        out = (self.targeted or self.model)(self.x)
        F.cross_entropy(out, self.y).backward()
        self.optimizer.step()
        if self.targeted is not None:
            self.targeted.step(self.optimizer)


def measure(name: str, score: str, momentum: float, count: int) -> dict[str, Any]:
    """Return and print the figures of one model and score."""
    cases: list[tuple[float, str] | None] = [None, *CASES]
    steps = {case: Steps(name, case, score, momentum) for case in cases}
    for step in steps.values():
        for _ in range(2):
            step()
    found: dict[Any, list[float]] = {case: [] for case in CASES}
    for index in range(count):
        turned = cases[index % len(cases) :] + cases[: index % len(cases)]
        times = {case: cpu_time(steps[case], REFRESH) for case in turned}
        for case in CASES:
            found[case].append(times[case] / times[None])
    rows = {}
    dense = held([steps[None].optimizer])
    for case, gate in zip(CASES, GATES[name], strict=True):
        low, median, high = statistics.quantiles(found[case], n=4)
        share = held([steps[case].optimizer]) / dense if dense else None
        density, gradient = case
        rows[f"{density} {gradient}"] = {
            "time_ratio": median, "quartiles": [low, high], "gate": gate, "bytes_ratio": share,
        }  # fmt: skip
        told = "" if share is None else f"  bytes {share:.2f}"
        print(
            f"{name:4} {score:10} density {density:4} {gradient:8} "
            f"time {median:.2f} [{low:.2f}, {high:.2f}]  gate {gate}{told}",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure the models and scores named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--scores", nargs="+", default=["flow", "error"])
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        name: {
            score: measure(name, score, arguments.momentum, arguments.rounds)
            for score in arguments.scores
        }
        for name in arguments.models
    }
    if arguments.json:
        machine = {
            "torch": torch.__version__, "platform": platform.platform(), "threads": 1,
            "rounds": arguments.rounds, "refresh": REFRESH, "momentum": arguments.momentum,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"machine": machine, "models": figures}, indent=1))


if __name__ == "__main__":
    main()
