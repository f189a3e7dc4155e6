"""Cost of a training step under LFP, as a ratio to plain SGD on the same model.

Spiking models (mlp-snn, lenet-snn) are compared with a step by surrogate gradients.

    python benchmarks/step.py --models mlp lenet vgg resnet18 vit mlp-snn --json step.json

Both steps run in one process on one thread, in ABBA order, so that the drift of a noisy machine
falls on both. A figure is the median of the ratios of CPU times, pair by pair, with its quartiles,
over the pairs of several processes: where the allocator puts a process's memory decides how many
page faults each of the two steps pays.
Memory is measured twice: bytes of distinct storage that autograd saves for the way back, and the
peak resident memory of a process of its own.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attrain
import attrain.errors
from attrain.methods import SPIKING_METHODS, BatchLoss, is_spiking
from attrain.metrics.cost import cpu_time
from attrain.models import MLP, LeNet, SpikingLeNet, SpikingMLP, VGGLike

EPSILONS = (1e-6, 0.0)


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18, unmodified."""
    from torchvision.models import resnet18 as build

    return build(num_classes=10)


def vit_tiny() -> nn.Module:
    """Return torchvision's vision transformer in the size of ViT-Tiny, for 64x64 images."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=64, patch_size=8, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768,
        num_classes=10,
    )  # fmt: skip


class LoopedMLP(SpikingMLP):
    """The spiking MLP as users of snnTorch write it: a loop over time, and in it the layers."""

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Return the spike counts [N, C], or with `per_step` the spikes [steps, N, C]."""
        membranes = [neuron.init_leaky() for neuron in self.neurons]
        out = []
        for _ in range(self.steps):
            signal = x
            for index, (stage, neuron) in enumerate(zip(self.stages, self.neurons, strict=True)):
                signal, membranes[index] = neuron(stage(signal), membranes[index])
            out.append(signal)
        spikes = torch.stack(out)
        return spikes if per_step else spikes.sum(0)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(784, (1000, 1000), 10), (128, 784)),
    "lenet": (lambda: LeNet((1, 28, 28), 10), (128, 1, 28, 28)),
    "vgg": (lambda: VGGLike((3, 32, 32), 10), (128, 3, 32, 32)),
    "resnet18": (resnet18, (32, 3, 64, 64)),
    "vit": (vit_tiny, (32, 3, 64, 64)),
    "mlp-snn": (lambda: SpikingMLP(784, steps=15), (128, 784)),
    "mlp-snn-loop": (lambda: LoopedMLP(784, steps=15), (128, 784)),
    "lenet-snn": (lambda: SpikingLeNet((1, 28, 28), steps=5), (128, 1, 28, 28)),
}
SPIKING = ("mlp-snn", "mlp-snn-loop", "lenet-snn")


def make_step(name: str, epsilon: float | None) -> Callable[[], None]:
    """Return one training step: under LFP with this epsilon, or, with None, plain SGD."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01)
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    if is_spiking(model):
        batch_loss = BatchLoss(SPIKING_METHODS["surrogate" if epsilon is None else "lfp"], model)

        def spiking_step() -> None:
            optimizer.zero_grad()
            batch_loss(x, y)[0].backward()
            optimizer.step()

        return spiking_step

    if epsilon is None:

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    credit = attrain.LFP(model, epsilon=epsilon)

    def lfp_step() -> None:
        optimizer.zero_grad()
        with credit:
            out = model(x)
        attrain.rewards.softmax(out, y).backward()
        optimizer.step()

    return lfp_step


def ratios(plain: Callable[[], None], other: Callable[[], None], pairs: int) -> list[float]:
    """Return CPU time ratios other / plain of pairs in ABBA order."""
    for step in (plain, other, plain, other):
        step()
    once = cpu_time(plain, 1)
    repeats = max(1, round(0.1 / once))
    found = []
    for pair in range(pairs):
        order = (plain, other) if pair % 2 == 0 else (other, plain)
        times = {step: cpu_time(step, repeats) for step in order}
        found.append(times[other] / times[plain])
    return found


def saved_bytes(step: Callable[[], None]) -> int:
    """Return the bytes of distinct storage, parameters left out, that one step saves."""
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())


def peak_memory(name: str, epsilon: float | None) -> int:
    """Return the peak resident bytes of three steps in a process of their own."""
    argument = "sgd" if epsilon is None else repr(epsilon)
    out = subprocess.run(
        [sys.executable, __file__, "--peak", name, argument],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(out.stdout.split()[-1])


def measure(name: str, pairs: int, memory: bool) -> dict[str, Any]:
    """Return every figure of one model, measured in this process."""
    plain = make_step(name, None)
    row: dict[str, Any] = {"sgd_cpu_s": cpu_time(plain, 3) / 3}
    saved = saved_bytes(plain)
    peak = peak_memory(name, None) if memory else 0
    # The epsilon of a spiking model stands in its spikes: there is one figure.
    for epsilon in EPSILONS[:1] if name in SPIKING else EPSILONS:
        step = make_step(name, epsilon)
        found = ratios(plain, step, pairs)
        figures = {
            "ratios": found,
            "saved_ratio": saved_bytes(step) / saved,
            "saved_sgd_bytes": saved,
        }
        if memory:
            figures["peak_ratio"] = peak_memory(name, epsilon) / peak
        row[f"epsilon={epsilon:g}"] = figures
    return row


def measured_elsewhere(name: str, pairs: int, memory: bool) -> dict[str, Any]:
    """Return every figure of one model, measured in a process of its own."""
    memory_option = [] if memory else ["--no-memory"]
    out = subprocess.run(
        [sys.executable, __file__, "--one", name, "--pairs", str(pairs), *memory_option],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    row: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return row


def pooled(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return and print the figures of one model over the pairs of all its processes."""
    row: dict[str, Any] = {"sgd_cpu_s": statistics.median(each["sgd_cpu_s"] for each in rows)}
    for key in rows[0]:
        if not key.startswith("epsilon"):
            continue
        ratios = [each[key].pop("ratios") for each in rows]
        low, median, high = statistics.quantiles(sum(ratios, []), n=4)
        medians = [round(statistics.median(each), 3) for each in ratios]
        figures = {"time_ratio": median, "quartiles": [low, high], "processes": medians}
        row[key] = figures = figures | rows[0][key]
        peaks = f"  peak {figures['peak_ratio']:.2f}" if "peak_ratio" in figures else ""
        print(
            f"{name:9} {key:14} time {median:.3f} [{low:.3f}, {high:.3f}]  processes "
            f"{' '.join(f'{each:.3f}' for each in medians)}  saved {figures['saved_ratio']:.2f}"
            f"{peaks}",
            flush=True,
        )
    return row


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=15, help="pairs of measurements per process")
    parser.add_argument("--processes", type=int, default=4, help="processes per figure")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak of processes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", attrain.errors.CreditWarning)
    torch.set_num_threads(1)
    if arguments.peak:
        name, epsilon = arguments.peak
        step = make_step(name, None if epsilon == "sgd" else float(epsilon))
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.pairs, not arguments.no_memory)))
        return
    figures = {}
    for name in arguments.models:
        rows = [
            # Memory does not differ from process to process.
            measured_elsewhere(name, arguments.pairs, not arguments.no_memory and index == 0)
            for index in range(arguments.processes)
        ]
        figures[name] = pooled(name, rows)
    if arguments.json:
        machine = {
            "torch": torch.__version__, "platform": platform.platform(), "threads": 1,
            "pairs": arguments.pairs, "processes": arguments.processes,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"machine": machine, "models": figures}, indent=1))


if __name__ == "__main__":
    main()
