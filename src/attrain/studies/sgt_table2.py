"""Saliency guided training on time series: paper 003, Table 2 and section 5.3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attrain.data.series import BOXES
from attrain.metrics.statistics import paired_difference
from attrain.models import build
from attrain.report.palette import LIGHT
from attrain.studies import figures
from attrain.studies.guided_subjects import GUIDED, RANDOM, REGULAR, SALIENCIES, UNMASKED
from attrain.studies.series_measures import ALL, FEATURES, measure
from attrain.studies.series_subjects import FRACTION, Stop, fit, series
from attrain.studies.study import Claim, Conclusion, Result, Row, Study, TableRow, measured

BENCHMARK, LONG = "benchmark", "long"
"""Regimes: until 99% on the validation set, or a number of epochs whatever comes."""
MODELS: Mapping[str, str] = {
    "lstm": "LSTM",
    "lstm-input-cell": "LSTM + input",
    "tcn": "TCN",
    "transformer": "Transformer",
}
FEWER, FEW = "guided, a tenth masked", 0.1
"""An arm that masks few entries, to see what the share that is masked does."""
BOTH = (REGULAR, GUIDED)
LEAST = 0.9
"""Validation accuracy below which the benchmark drops a model."""
TITLES = ("gradient", "integrated gradients", "DeepLIFT", "GradientSHAP", "DeepSHAP", "SmoothGrad")
PARTS: Mapping[str, int] = {"AUP": 0, "AUR": 1}
PAPER: Mapping[tuple[str, str, str], Sequence[float]] = {
    ("AUP", "lstm", REGULAR): (-0.113, -0.083, -0.097, -0.088, -0.098, -0.110),
    ("AUP", "lstm", GUIDED): (-0.119, -0.024, -0.108, -0.069, -0.109, -0.097),
    ("AUP", "lstm-input-cell", REGULAR): (0.060, 0.188, 0.202, 0.198, 0.214, 0.040),
    ("AUP", "lstm-input-cell", GUIDED): (0.118, 0.245, 0.263, 0.250, 0.272, 0.084),
    ("AUP", "tcn", REGULAR): (0.106, 0.233, 0.248, 0.235, 0.263, 0.088),
    ("AUP", "tcn", GUIDED): (0.168, 0.291, 0.270, 0.288, 0.280, 0.155),
    ("AUP", "transformer", REGULAR): (-0.054, 0.061, -0.040, 0.069, -0.014, -0.018),
    ("AUP", "transformer", GUIDED): (-0.062, 0.044, -0.032, 0.023, -0.055, -0.046),
    ("AUR", "lstm", REGULAR): (-0.017, 0.062, 0.047, 0.060, 0.031, 0.007),
    ("AUR", "lstm", GUIDED): (0.019, 0.121, 0.089, 0.102, 0.075, 0.004),
    ("AUR", "lstm-input-cell", REGULAR): (0.075, 0.185, 0.187, 0.182, 0.183, 0.043),
    ("AUR", "lstm-input-cell", GUIDED): (0.136, 0.198, 0.204, 0.196, 0.201, 0.111),
    ("AUR", "tcn", REGULAR): (0.125, 0.191, 0.202, 0.185, 0.196, 0.046),
    ("AUR", "tcn", GUIDED): (0.171, 0.210, 0.204, 0.209, 0.192, 0.138),
    ("AUR", "transformer", REGULAR): (0.102, 0.182, 0.145, 0.171, 0.101, 0.040),
    ("AUR", "transformer", GUIDED): (0.104, 0.176, 0.146, 0.162, 0.065, 0.018),
}
"""Table 2, in the order of TITLES."""


@dataclass(frozen=True)
class Network:
    """How a network is trained.

    epochs: the most in the benchmark's regime, half of them its patience. long_epochs: of the long
    regime. seeds: on the boxes that are repeated, and in the long regime. controls: arms beside
    the two, on those boxes at seed 0. samples: test series that are explained.
    """

    model: str
    epochs: int
    long_epochs: int = 100
    seeds: int = 3
    controls: tuple[str, ...] = (RANDOM, UNMASKED, FEWER)
    samples: int = 50


NETWORKS = (
    Network("lstm", 120),
    Network("lstm-input-cell", 45),
    Network("tcn", 45),
    # A step takes twenty times as long as one of the others.
    Network("transformer", 9, 20, 1, (RANDOM, UNMASKED), 20),
)


@dataclass(frozen=True)
class Config:
    """Settings of the study.

    networks, boxes: each is trained on each, by regular and guided training, with seed 0.
    repeated: boxes with more seeds, and with controls. long: boxes with the long regime as well.
    """

    process: str = "gaussian-process"
    networks: tuple[Network, ...] = NETWORKS
    boxes: tuple[str, ...] = tuple(BOXES)
    repeated: tuple[str, ...] = ("middle", "moving-small-middle", "rare-time")
    long: tuple[str, ...] = ("middle",)


@dataclass(frozen=True)
class Case:
    """A network that is trained and measured: a row."""

    model: str
    box: str
    arm: str = REGULAR
    seed: int = 0
    regime: str = BENCHMARK

    @property
    def name(self) -> str:
        """Return the name of the row."""
        return f"{self.model}, {self.box}, {self.arm}, seed {self.seed}, {self.regime}"


def cases(config: Config) -> list[Case]:
    """Return all networks that are trained: by architecture, what is compared with the paper first.

    The dearest architecture is the last one of NETWORKS.
    """
    found = []
    for net in config.networks:
        again = [box for box in config.boxes if box in config.repeated]
        grid = [(box, 0) for box in config.boxes]
        grid += [(box, seed) for box in again for seed in range(1, net.seeds)]
        found += [Case(net.model, box, arm, seed) for box, seed in grid for arm in BOTH]
        found += [Case(net.model, box, arm) for box in again for arm in net.controls]
        found += [
            Case(net.model, box, arm, seed, LONG)
            for box in config.long
            for seed in range(net.seeds)
            for arm in BOTH
        ]
    return found


def rows(config: Config) -> list[Row]:
    """Return a row per network."""
    return [Row(case.name, partial(_measure, config, case)) for case in cases(config)]


def _measure(config: Config, case: Case) -> Result:
    """Train a network and see where its attributions lie."""
    net = next(each for each in config.networks if each.model == case.model)
    stop = Stop(epochs=net.epochs, patience=net.epochs // 2)
    if case.regime == LONG:
        stop = Stop(accuracy=2.0, epochs=net.long_epochs, patience=net.long_epochs, keep_best=False)
    data = series(f"series:{case.box}-{config.process}", case.seed)
    model = build(case.model, data.input_shape, data.num_classes, seed=case.seed)
    arm, fraction = (GUIDED, FEW) if case.arm == FEWER else (case.arm, FRACTION)
    trained = fit(model, data, arm, stop, case.seed, fraction)
    return {
        "epochs": trained.epochs,
        "validation": trained.validation,
        "test": trained.test,
        "methods": measure(trained.model, data, net.samples),
    }


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    raise NotImplementedError


STUDY = Study(
    id="sgt-table2",
    title="Time series: does saliency guided training find the informative box?",
    source="paper 2111.14338, table 2 and section 5.3",
    deviations=("x.",),
    budgets={
        "smoke": Config(
            networks=(Network("lstm", 3, 3, 1, (RANDOM,), 6), Network("tcn", 3, 3, 1, (), 6)),
            boxes=("middle", "rare-time"),
            repeated=("middle",),
        ),
        "quick": Config(
            networks=(
                Network("lstm", 60, 60, 1, (), 50),
                Network("lstm-input-cell", 30, 30, 1, (), 50),
                Network("tcn", 30, 30, 1, (), 50),
            ),
        ),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
