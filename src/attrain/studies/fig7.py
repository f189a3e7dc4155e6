"""Paper 001, figures 7 and A.3: spiking networks trained by LFP and by surrogate gradients."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig
from attrain.data import Data, load
from attrain.methods import SPIKING_METHODS
from attrain.models import SpikingLeNet, SpikingMLP, SpikingNet, seeded
from attrain.studies.study import Result
from attrain.training import train

MODELS = ("mlp", "lenet")
METHODS = ("lfp", "surrogate")


@dataclass(frozen=True)
class Case:
    """One network to be trained: everything that decides its accuracy.

    `tuning` trains on nine tenths of the training set and measures on the last.
    """

    model: str = "mlp"
    method: str = "lfp"
    rate: float = 0.25
    steps: int = 15
    beta: float = 0.9
    seed: int = 0
    epochs: int = 3
    clipping: float = 0.02
    tuning: bool = False
    samples: int | None = None

    @property
    def name(self) -> str:
        """What the case is called in tables and files."""
        told = (
            f"{self.model}, {self.method}, rate {self.rate:g}, T {self.steps}, beta {self.beta:g}"
        )
        if self.tuning:
            told += f", {self.epochs} epoch on a validation split"
        return f"{told}, seed {self.seed}"


@lru_cache(maxsize=2)
def pictures(tuning: bool, samples: int | None) -> Data:
    """Return MNIST with pixels in [-1, 1], as in the authors' code; the first `samples`, or all."""
    data = load("mnist", validation=0.1 if tuning else 0.0)
    low, high = data.train.tensors[0].aminmax()

    def prepared(dataset: TensorDataset, most: int | None) -> TensorDataset:
        x, y = dataset.tensors
        return TensorDataset(2 * (x[:most] - low) / (high - low) - 1, y[:most])

    test = data.validation if tuning else data.test
    assert test is not None
    return dataclasses.replace(
        data, train=prepared(data.train, samples), test=prepared(test, samples), validation=None
    )


def network(case: Case, input_shape: tuple[int, ...], classes: int) -> SpikingNet:
    """Return the network of a case before training; a seed's start is the same for all methods."""
    with seeded(case.seed):
        if case.model == "mlp":
            inputs = torch.Size(input_shape).numel()
            return SpikingMLP(inputs, classes=classes, steps=case.steps, beta=case.beta)
        return SpikingLeNet(input_shape, classes, steps=case.steps, beta=case.beta)


def trained(case: Case) -> Result:
    """Train the network of a case; return accuracies after each epoch, and what it cost."""
    data = pictures(case.tuning, case.samples)
    method = dataclasses.replace(
        SPIKING_METHODS[case.method], learning_rate=case.rate, adaptive_clipping=case.clipping
    )
    model = network(case, tuple(data.input_shape), data.num_classes)
    settings = TrainingConfig(epochs=case.epochs, threads=1, device="cpu")
    run = train(model, data, method, settings, seed=case.seed)
    return {
        "case": dataclasses.asdict(case),
        "test_accuracy": [row["test_accuracy"] for row in run.epochs],
        "train_accuracy": [row["train_accuracy"] for row in run.epochs],
        "step_cpu_s": run.step_cpu_s,
        "train_cpu_s": run.train_cpu_s,
    }
