r"""How the settings of the presets were chosen: a sweep on a validation split, never the test set.

    python benchmarks/presets.py --data mnist --model lenet --scale relative \
        --learning-rates 0.1 --weight-decays 0 2e-3 4e-3 --json sweep.json

Trains LFP (or, with --scale none, gradient descent, where --l1 adds an L1 term) on five sixths of
the training set and prints the accuracy on the other sixth: dense, and with 90%, 95% and 98% of
the weights removed by global magnitude, without retraining.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import torch

from attrain.config import TrainingConfig
from attrain.data import load
from attrain.errors import AttrainError
from attrain.methods import METHODS, Method
from attrain.models import build
from attrain.pruning import curve
from attrain.training import predict, train

REMOVED = (0.0, 0.9, 0.95, 0.98)


def candidate(scale: str, learning_rate: float, weight_decay: float, l1: float) -> Method:
    """Return a method with these settings."""
    base = METHODS["sgd"] if scale == "none" else METHODS["lfp"]
    credit = None if base.credit is None else {**base.credit, "scale": scale}
    return dataclasses.replace(
        base, learning_rate=learning_rate, weight_decay=weight_decay, l1=l1, credit=credit
    )


def main() -> None:
    """Train every combination and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--scale", choices=["relative", "abs", "none"], default="relative")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.1])
    parser.add_argument("--weight-decays", type=float, nargs="+", default=[0.0])
    parser.add_argument("--l1", type=float, nargs="+", default=[0.0])
    parser.add_argument("--optimizer", choices=["sgd", "adam", "adamw"], default="sgd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = load(arguments.data, validation=1 / 6)
    assert data.validation is not None
    data = dataclasses.replace(data, test=data.validation)
    y = data.test.tensors[1]
    config = TrainingConfig(
        epochs=arguments.epochs, batch_size=arguments.batch_size, optimizer=arguments.optimizer,
        threads=1, device="cpu",
    )  # fmt: skip

    def accuracy(model: torch.nn.Module) -> float:
        return float((predict(model, data.test).argmax(1) == y).double().mean())

    rows = []
    for rate, decay, l1, seed in itertools.product(
        arguments.learning_rates, arguments.weight_decays, arguments.l1, arguments.seeds
    ):
        model = build(arguments.model, data.input_shape, data.num_classes, seed=seed)
        try:
            method = candidate(arguments.scale, rate, decay, l1)
            given = dataclasses.replace(config, learning_rate=rate, weight_decay=decay)
            train(model, data, method, given, seed=seed)
        except AttrainError as error:
            print(f"rate {rate:g} decay {decay:g} l1 {l1:g} seed {seed}: {error}", flush=True)
            continue
        kept = curve(model, accuracy, REMOVED)["accuracy"]
        rows.append({"scale": arguments.scale, "learning_rate": rate, "weight_decay": decay,
                     "l1": l1, "seed": seed, "removed": REMOVED, "accuracy": kept})  # fmt: skip
        figures = " / ".join(f"{100 * each:.2f}" for each in kept)
        print(f"rate {rate:<6g} decay {decay:<7g} l1 {l1:<7g} seed {seed}: {figures}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
