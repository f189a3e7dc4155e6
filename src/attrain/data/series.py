"""Synthetic time series in which a box of steps and features, and nothing else, tells the class.

The benchmark of Ismail, Gunady, Corrada Bravo, Feizi: Benchmarking Deep Learning Interpretability
in Time Series Predictions, 2020, which paper 003 (section 5.3) measures on: ten kinds of boxes in
seven processes. And the three sets of its Figure 6, in which the box comes early, midway or late.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from attrain.data.dataset import Data, assemble
from attrain.errors import InputError

Array = NDArray[np.float64]

MU = 1.0
"""What is added in the box of class 1 and subtracted in that of class 0."""
END = 20.0
"""Of the times: every other one of twice as many in 0..20 is kept, and moved by about its step."""
NOISE = 0.3
"""Standard deviation of the noise on every process but the Gaussian one."""


@dataclass(frozen=True)
class Box:
    """Which steps and features tell the class.

    `steps` x `features` entries from step `step` and feature `feature` on; None is a start drawn
    anew for each sample, a pair one for class 1 and one for class 0. With a pair the place tells
    the class, and mu is added in both.
    """

    steps: int
    features: int
    step: int | tuple[int, int] | None = None
    feature: int | tuple[int, int] | None = None

    @property
    def by_place(self) -> bool:
        """Whether the place of the box tells the class, not the sign of what is added."""
        return isinstance(self.step, tuple) or isinstance(self.feature, tuple)


BOXES = {
    "middle": Box(30, 30, 10, 10),
    "small-middle": Box(14, 14, 18, 18),
    "moving-middle": Box(30, 30),
    "moving-small-middle": Box(15, 15),
    "rare-time": Box(6, 40, 22, 5),
    "moving-rare-time": Box(6, 40),
    "rare-feature": Box(40, 6, 5, 22),
    "moving-rare-feature": Box(40, 6),
    "positional-time": Box(20, 20, None, (1, 29)),
    "positional-feature": Box(20, 20, (1, 29), None),
}
VANISHING = {
    "early": Box(30, 80, 0, 10),
    "middle": Box(60, 60, 20, 20),
    "late": Box(30, 80, 70, 10),
}


# The processes: each maps times [N, T] to values [N, T, features]. --------------------------------


def gaussian(random: Generator, times: Array, features: int) -> Array:
    """Independent N(0, 1)."""
    return random.standard_normal((*times.shape, features))


def harmonic(random: Generator, times: Array, features: int) -> Array:
    """sin(2 pi 2 t), the same in all features."""
    return np.repeat(np.sin(4 * np.pi * times)[..., None], features, axis=2)


def gaussian_process(random: Generator, times: Array, features: int) -> Array:
    """Gaussian process: Matern 3/2 of length 1, (1 + r) exp(-r) with r = sqrt(3) |t - t'|."""
    r = np.sqrt(3) * np.abs(times[:, :, None] - times[:, None, :])
    covariance = (1 + r) * np.exp(-r)
    covariance += 1e-9 * np.eye(times.shape[1])  # two times may all but coincide
    return np.linalg.cholesky(covariance) @ random.standard_normal((*times.shape, features))


def pseudo_periodic(random: Generator, times: Array, features: int) -> Array:
    """Return a sin(2 pi f t) with a ~ N(1, 0.5) and f ~ N(2, 0.01), drawn anew at each point."""
    shape = (*times.shape, features)
    amplitude, frequency = random.normal(1.0, 0.5, shape), random.normal(2.0, 0.01, shape)
    return amplitude * np.sin(2 * np.pi * frequency * times[..., None])


def autoregressive(random: Generator, times: Array, features: int) -> Array:
    """x[k] = 0.9 x[k-1] + N(0, 0.5), from 0, whatever the times."""
    x = random.normal(0.0, 0.5, (*times.shape, features))
    for step in range(1, times.shape[1]):
        x[:, step] += 0.9 * x[:, step - 1]
    return x


def car(random: Generator, times: Array, features: int) -> Array:
    """x[k] = a x[k-1] + 0.01 sqrt(1 - a) N(0, 1) with a = 0.9^(t[k] - t[k-1]), from 0.01 on.

    This is how TimeSynth, which made the data of the benchmark, writes it; the stationary process
    would have 1 - a^2 under the root.
    """
    a = 0.9 ** np.diff(times, axis=1)[..., None]
    x = np.empty((*times.shape, features))
    x[:, 0] = 0.01
    noise = random.standard_normal((len(times), times.shape[1] - 1, features))
    for step in range(1, times.shape[1]):
        now = a[:, step - 1]
        x[:, step] = now * x[:, step - 1] + 0.01 * np.sqrt(1 - now) * noise[:, step - 1]
    return x


def narma(random: Generator, times: Array, features: int) -> Array:
    """NARMA of order 10, from zeros on, driven by u uniform in 0..0.5 (Atiya and Parlos, 2000).

    y[k+1] = 0.3 y[k] + 0.05 y[k] (y[k] + ... + y[k-9]) + 1.5 u[k-9] u[k] + 0.1
    """
    count, steps = times.shape
    u = random.uniform(0.0, 0.5, (count, steps + 9, features))
    y = np.zeros((count, steps + 10, features))
    for k in range(9, steps + 9):
        recent = y[:, k - 9 : k + 1].sum(1)
        y[:, k + 1] = 0.3 * y[:, k] + 0.05 * y[:, k] * recent + 1.5 * u[:, k - 9] * u[:, k] + 0.1
    return y[:, 10:]


PROCESSES: dict[str, Callable[[Generator, Array, int], Array]] = {
    "gaussian": gaussian,
    "harmonic": harmonic,
    "gaussian-process": gaussian_process,
    "pseudo-periodic": pseudo_periodic,
    "autoregressive": autoregressive,
    "car": car,
    "narma": narma,
}
SERIES = {f"series:{box}-{process}": (box, process) for box in BOXES for process in PROCESSES}
NAMES = (*SERIES, *(f"vanishing:{box}" for box in VANISHING))


def is_series(name: str) -> bool:
    """Whether `name` is meant to be one of `NAMES`."""
    return name.startswith(("series:", "vanishing:"))


def load(name: str, seed: int = 0, validation: float = 0.0) -> Data:
    """Return a set of time series [N, T, F] with the boxes as its evidence.

    `series:BOX-PROCESS` has T = F = 50, 1,000 series to train on and 100 to test; `vanishing:BOX`
    has T = F = 100 and 1,000 / 300 of them, of Gaussian noise. Each (t, f) is scaled to 0..1 by the
    training set alone. Raises InputError for another name, and for a seed below 0.
    """
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"unknown time series {name!r}.{hint} Known: series:BOX-PROCESS with the boxes "
            f"{', '.join(BOXES)} and the processes {', '.join(PROCESSES)}; "
            f"{', '.join(f'vanishing:{box}' for box in VANISHING)}."
        )
    if seed < 0:
        raise InputError(f"the seed of time series must be 0 or more: got {seed}.")
    if name in SERIES:
        size, tests = 50, 100
        key, process = SERIES[name]
        box = BOXES[key]
    else:
        size, tests = 100, 300
        process, box = "gaussian", VANISHING[name.partition(":")[2]]
    # Train and test have streams of their own; the place among the names makes sets differ.
    of_train, of_test = np.random.default_rng([seed, NAMES.index(name)]).spawn(2)
    x, y, where = draw(of_train, 1000, size, box, process)
    x_test, y_test, where_test = draw(of_test, tests, size, box, process)
    return assemble(
        name,
        (x, y),
        (x_test, y_test),
        ("negative", "positive") if not box.by_place else ("second place", "first place"),
        axes=(0,),
        to="range",
        validation=validation,
        notes=(
            f"synthetic {process} time series [{size} steps, {size} features] drawn with seed "
            f"{seed}, in a box of {box.steps} x {box.features} of which mu = {MU:g} tells the class"
        ),
        evidence={"train": where, "test": where_test},
    )


def draw(
    random: Generator, count: int, size: int, box: Box, process: str
) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Return series [N, size, size], their classes [N], half of each, and their boxes as masks."""
    y = random.permutation(np.arange(count) % 2)
    where = np.zeros((count, size, size), dtype=bool)
    steps = _starts(random, box.step, size - box.steps, y)
    features = _starts(random, box.feature, size - box.features, y)
    for mask, step, feature in zip(where, steps, features, strict=True):
        mask[step : step + box.steps, feature : feature + box.features] = True
    times = irregular_times(random, count, size)
    x = PROCESSES[process](random, times, size)
    if process != "gaussian":
        x = x + random.normal(0.0, NOISE, x.shape)
    added = np.full(count, MU) if box.by_place else np.where(y == 1, MU, -MU)
    return x + added[:, None, None] * where, y, where


def _starts(
    random: Generator, given: int | tuple[int, int] | None, last: int, y: NDArray[np.int64]
) -> NDArray[np.int64]:
    if given is None:
        return random.integers(0, last, len(y), endpoint=True)
    if isinstance(given, tuple):
        first, second = given
        return np.where(y == 1, first, second)
    return np.full(len(y), given)


def irregular_times(random: Generator, count: int, steps: int) -> Array:
    """Return rising times [count, steps]: half of twice as many in 0..END, jittered by their step.

    As TimeSynth draws them: of points at equal distances half are kept, each is moved by
    N(0, END / points), and they are sorted again.
    """
    points = 2 * steps
    grid = np.broadcast_to(np.linspace(0.0, END, points), (count, points))
    kept = np.sort(random.permuted(grid, axis=1)[:, :steps], axis=1)
    return np.sort(kept + random.normal(0.0, END / points, kept.shape), axis=1)
