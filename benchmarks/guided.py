"""Cost of a step of saliency guided training, as a ratio to a plain step on the same model.

    python benchmarks/guided.py --models mnist-cnn resnet18 --json guided.json

All steps run in one process on one thread, in rounds whose order turns, so that the drift of a
noisy machine falls on all. A figure is the median over the rounds of the ratio of CPU times within
a round, with its quartiles. `bare` is the passes of the exact form written by hand, for a masked
batch that is given: what the exact form cannot do without. `saved` is the storage that autograd
holds at once for the way back, at its highest, parameters left out; `peak` by how much steps raise
the resident memory of a process of their own.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step import resnet18
from torch import Tensor, nn

import attrain
from attrain.metrics.cost import cpu_time, interleaved, saved_at_once
from attrain.models import MnistCNN

FORMS = ("exact", "shared", "fast")
GATES = {"exact": 2.8, "shared": 2.6, "fast": 2.2}
BARE = "bare"


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mnist-cnn": (lambda: MnistCNN((1, 28, 28), 10), (128, 1, 28, 28)),
    "resnet18": (resnet18, (16, 3, 64, 64)),
}


def make_step(name: str, form: str) -> Callable[[], None]:
    """Return one training step: plain, or guided in a form."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss_of: Callable[[Tensor, Tensor], Tensor]
    if form == "plain":

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(model(x), y)

    elif form == BARE:
        masked = torch.rand_like(x)

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            model.eval()
            point = x.clone().requires_grad_()
            torch.autograd.grad(model(point).gather(1, y[:, None]).sum(), point)
            model.train()
            p, q = model(x), F.log_softmax(model(masked), 1)
            apart = F.kl_div(q, F.log_softmax(p, 1), reduction="batchmean", log_target=True)
            return F.cross_entropy(p, y) + apart

    else:
        loss_of = attrain.SaliencyGuided(model, F.cross_entropy, form=form)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        loss_of(x, y).backward()
        optimizer.step()

    return step


def peak_memory(name: str, form: str) -> int:
    """Return by how much three steps raise the resident memory of a process of their own."""
    out = subprocess.run(
        [sys.executable, __file__, "--peak", name, form],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(out.stdout.split()[-1])


def resident(kind: str) -> int:
    """Return the resident bytes of this process, VmRSS now or VmHWM at most, as Linux tells."""
    # Not getrusage, whose figure a process takes over from the one that starts it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def measure(name: str, count: int) -> dict[str, Any]:
    """Return and print every figure of one model."""
    steps = {form: make_step(name, form) for form in ("plain", BARE, *FORMS)}
    times = interleaved(steps, count, max(1, round(0.1 / cpu_time(steps["plain"], 1))))
    plain = saved_at_once(steps["plain"]), peak_memory(name, "plain")
    row: dict[str, Any] = {"plain_cpu_s": cpu_time(steps["plain"], 3) / 3}
    for form in (BARE, *FORMS):
        pairs = zip(times[form], times["plain"], strict=True)
        low, median, high = statistics.quantiles([mine / its for mine, its in pairs], n=4)
        row[form] = figures = {
            "time_ratio": median,
            "quartiles": [low, high],
            "gate": GATES.get(form),
            "saved_ratio": saved_at_once(steps[form]) / plain[0],
            "peak_ratio": peak_memory(name, form) / plain[1],
        }
        print(
            f"{name:10} {form:7} time {median:.2f} [{low:.2f}, {high:.2f}]  "
            f"gate {GATES.get(form, 'none')}  saved {figures['saved_ratio']:.2f}  "
            f"peak {figures['peak_ratio']:.2f}",
            flush=True,
        )
    return row


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        step = make_step(*arguments.peak)
        before = resident("VmRSS")
        for _ in range(3):
            step()
        print(resident("VmHWM") - before)
        return
    figures = {name: measure(name, arguments.rounds) for name in arguments.models}
    if arguments.json:
        machine = {
            "torch": torch.__version__, "platform": platform.platform(), "threads": 1,
            "rounds": arguments.rounds,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"machine": machine, "models": figures}, indent=1))


if __name__ == "__main__":
    main()
