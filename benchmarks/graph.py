"""Cost of attribution graphs: time of a class graph, time and memory of those of all classes.

    python benchmarks/graph.py --models lenet vgg resnet18 --json graph.json
    python benchmarks/graph.py --all-classes 6000 60000

The graph of a class is compared with a training step (plain SGD) of the same batch as
benchmarks/step.py compares steps: both in one process on one thread, in ABBA order, CPU time; a
figure is the median of the ratios, pair by pair, with its quartiles, over several processes. The
graphs of all classes are those of LeNet on so many random images of MNIST's size, which are made
batch by batch as they are needed, in a process of its own: its peak memory holds no data set.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from step import MODELS, SPIKING, make_step, ratios
from torch import Tensor

from attrain.errors import CreditWarning
from attrain.graph import AttributionGraph, ClassGraphs
from attrain.metrics.cost import cpu_time
from attrain.models import LeNet

NAMES = [name for name in MODELS if name not in SPIKING and name != "vit"]
BATCH = 256


def make_graph(name: str) -> Callable[[], None]:
    """Return one class graph of the batch that the model's training step has."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    return lambda: AttributionGraph.from_batch(model, x, 1, batch_size=len(x))


def measure(name: str, pairs: int) -> dict[str, object]:
    """Return the ratios of one model, measured in this process."""
    step = make_step(name, None)
    return {"ratios": ratios(step, make_graph(name), pairs), "step_cpu_s": cpu_time(step, 3) / 3}


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random images of MNIST's size with labels, batch by batch."""
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        yield torch.randn(size, 1, 28, 28), torch.randint(10, (size,))


def measure_all(count: int) -> dict[str, float]:
    """Return CPU and wall seconds and peak memory of the graphs of all classes, in this process."""
    torch.manual_seed(0)
    model = LeNet((1, 28, 28), 10)
    ClassGraphs.from_data(model, batches(BATCH))  # what is loaded on the first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu, wall = time.process_time(), time.monotonic()
    ClassGraphs.from_data(model, batches(count))
    return {
        "images": count,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.monotonic() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_before_mib": before,
    }


def alone(*arguments: str) -> dict[str, object]:
    """Return what this script measures in a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    found: dict[str, object] = json.loads(out.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=NAMES, default=[])
    parser.add_argument("--all-classes", nargs="*", type=int, default=[], metavar="IMAGES")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of measurements per process")
    parser.add_argument("--processes", type=int, default=2, help="processes per figure")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", CreditWarning)
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.pairs)))
        return
    if arguments.count:
        print(json.dumps(measure_all(arguments.count)))
        return
    figures: dict[str, object] = {}
    for name in arguments.models:
        rows = [
            alone("--one", name, "--pairs", str(arguments.pairs))
            for _ in range(arguments.processes)
        ]
        low, median, high = statistics.quantiles(sum((row["ratios"] for row in rows), []), n=4)
        each = [round(statistics.median(row["ratios"]), 3) for row in rows]
        seconds = statistics.median(row["step_cpu_s"] for row in rows)
        figures[name] = {
            "time_ratio": median, "quartiles": [low, high], "processes": each, "step_cpu_s": seconds
        }  # fmt: skip
        print(
            f"{name:9} {median:.3f} [{low:.3f}, {high:.3f}]  processes "
            f"{' '.join(f'{value:.3f}' for value in each)}  step {seconds * 1e3:.1f} ms",
            flush=True,
        )
    for count in arguments.all_classes:
        found = alone("--count", str(count))
        figures[f"all classes, {count}"] = found
        print(
            f"{count:6} images: {found['cpu_s']:.1f} CPU s, {found['wall_s']:.1f} s, peak "
            f"{found['peak_mib']:.0f} MiB ({found['peak_before_mib']:.0f} after one batch)",
            flush=True,
        )
    if arguments.json:
        machine = {
            "torch": torch.__version__, "platform": platform.platform(), "threads": 1,
            "pairs": arguments.pairs, "processes": arguments.processes,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
