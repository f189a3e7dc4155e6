"""Cost of LRP, as a ratio to one gradient (captum's saliency) of the same batch.

    python benchmarks/attribution.py --models mlp lenet vgg resnet18 vit --json attribution.json

Measured as benchmarks/step.py measures: both in one process on one thread, in ABBA order, CPU time;
a figure is the median of the ratios, pair by pair, with its quartiles, over several processes. A
random order of addresses and other programs change a figure by some hundredths.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from step import MODELS, SPIKING, ratios

import attrain
from attrain.errors import CreditWarning
from attrain.metrics.cost import cpu_time

RULES: dict[str, dict[str, object]] = {
    "epsilon": {},
    "epsilon=0": {"epsilon": 0.0},
    "epsilon-plus": {"rule": "epsilon-plus"},
    "epsilon-gamma-box": {"rule": "epsilon-gamma-box"},
    "epsilon-alpha2-beta1": {"rule": "epsilon-alpha2-beta1"},
}
NAMES = [name for name in MODELS if name not in SPIKING]


def make(name: str, options: dict[str, object] | None) -> Callable[[], None]:
    """Return one attribution of a batch: LRP with these options, or, with None, saliency."""
    from captum.attr import Saliency

    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    if options is None:
        inputs = x.requires_grad_()
        return lambda: Saliency(model).attribute(inputs, target=y)
    return lambda: attrain.attribute(model, x, y, method="lrp", batch_size=len(x), **options)


def measure(name: str, rules: list[str], pairs: int) -> dict[str, object]:
    """Return the ratios of every rule on one model, measured in this process."""
    plain = make(name, None)
    found: dict[str, object] = {
        rule: ratios(plain, make(name, RULES[rule]), pairs) for rule in rules
    }
    return found | {"saliency_cpu_s": cpu_time(plain, 3) / 3}


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES)[:2])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of measurements per process")
    parser.add_argument("--processes", type=int, default=4, help="processes per figure")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", CreditWarning)
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.rules, arguments.pairs)))
        return
    figures: dict[str, dict[str, object]] = {}
    for name in arguments.models:
        rows = []
        for _ in range(arguments.processes):
            out = subprocess.run(
                [sys.executable, __file__, "--one", name, "--pairs", str(arguments.pairs),
                 "--rules", *arguments.rules],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            rows.append(json.loads(out.stdout.splitlines()[-1]))
        seconds = statistics.median(row["saliency_cpu_s"] for row in rows)
        figures[name] = {"saliency_cpu_s": seconds}
        for rule in arguments.rules:
            low, median, high = statistics.quantiles(sum((row[rule] for row in rows), []), n=4)
            each = [round(statistics.median(row[rule]), 3) for row in rows]
            figures[name][rule] = {
                "time_ratio": median, "quartiles": [low, high], "processes": each,
            }  # fmt: skip
            print(
                f"{name:9} {rule:21} {median:.3f} [{low:.3f}, {high:.3f}]  processes "
                f"{' '.join(f'{value:.3f}' for value in each)}  saliency {seconds * 1e3:.1f} ms",
                flush=True,
            )
    if arguments.json:
        machine = {
            "torch": torch.__version__, "platform": platform.platform(), "threads": 1,
            "pairs": arguments.pairs, "processes": arguments.processes,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"machine": machine, "models": figures}, indent=1))


if __name__ == "__main__":
    main()
