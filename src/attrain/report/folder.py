"""Read a run folder into plain values: nothing here draws or judges.

A missing or damaged piece becomes an entry of `problems` (the report prints them); only a folder
without a readable `results.json` of the known schema is an error.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attrain.errors import InputError
from attrain.report.graph_file import Graphs, graphs_of
from attrain.report.selection_file import Choices, choices_of

SCHEMA = 1

Array = npt.NDArray[np.float64]
Curve = tuple[Array, Array]


@dataclass(frozen=True)
class Estimate:
    """A measure over seeds: mean, sample standard deviation (None with one seed), the values."""

    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A paired difference to the first method with its 95% interval, if there is one."""

    mean: float
    low: float | None
    high: float | None
    clear: bool


@dataclass(frozen=True)
class Method:
    """What `results.json` says about one method; empty where it has no results yet."""

    name: str
    seeds: tuple[int, ...] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer: Gini, how many, and the histogram over `Weights.edges`."""

    name: str
    gini: float | None
    count: int
    counts: Array
    below: Mapping[str, float]


@dataclass(frozen=True)
class Weights:
    """Weight distributions of one final model; `edges` divide w / max|w| from -1 to 1."""

    gini: float | None
    edges: Array
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Removal:
    """Accuracy with features replaced: (fraction, accuracy), most salient first and at random."""

    accuracy: Curve
    random: Curve


@dataclass(frozen=True)
class Robustness:
    """Accuracy under changes of growing size: (size, accuracy), of all and of what was right.

    `told` are the numbers that say how it was measured: draws, steps, restarts, and the share
    `without_gradient`.
    """

    overall: Curve
    of_correct: Curve
    told: Mapping[str, float]


@dataclass(frozen=True)
class SeedRun:
    """One training run: its epochs, pruning curves (removed, accuracy), weights and graphs.

    `choices` are of the neurons that learn, where not all do. `removals` are by what replaced a
    feature, `robustness` by what changed the inputs; `judged` says on how many samples, and by
    which attribution.
    """

    seed: int
    epochs: tuple[Mapping[str, float], ...]
    pruning: Mapping[str, tuple[Array, Array]]
    weights: Weights | None
    graphs: Graphs | None = None
    removals: Mapping[str, Removal] = field(default_factory=dict)
    robustness: Mapping[str, Robustness] = field(default_factory=dict)
    judged: Mapping[str, str | int] = field(default_factory=dict)
    choices: Choices | None = None


@dataclass(frozen=True)
class Explained:
    """What one model says about the sample inputs: class, confidence and saliency `(n, H, W)`."""

    predictions: tuple[int, ...]
    confidence: tuple[float, ...]
    saliency: Array


@dataclass(frozen=True)
class Samples:
    """The inputs `(n, C, H, W)` in 0..1 that every method explains, and what each makes of them.

    evidence: `(n, H, W)`, what of each input its label rests on, where that is known.
    """

    classes: tuple[str, ...]
    index: tuple[int, ...]
    labels: tuple[int, ...]
    pixels: Array
    evidence: npt.NDArray[np.bool_] | None
    methods: Mapping[str, Explained]


@dataclass(frozen=True)
class Boundary:
    """The class each method assigns to every cell of a square of the plane, row 0 lowest."""

    x: tuple[float, float]
    y: tuple[float, float]
    classes: tuple[str, ...]
    points: tuple[tuple[float, float, int], ...]
    maps: Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class FiringLayer:
    """What a layer of neurons did for one input: the steps in which each shown neuron fired.

    `rate` and `silent` are means over more inputs: spikes per step, and the share that never fired.
    """

    name: str
    neurons: int
    rate: float
    silent: float
    shown: tuple[int, ...]
    fired: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Firing:
    """The layers of one spiking model, and the membranes `(C, T)` of its outputs."""

    prediction: int
    spikes: float
    operations: float
    multiplications: float
    layers: tuple[FiringLayer, ...]
    membranes: Array


@dataclass(frozen=True)
class Spikes:
    """The input that every spiking model is shown for `steps` steps, and what each makes of it."""

    index: int
    label: int
    classes: tuple[str, ...]
    samples: int
    steps: int
    threshold: float
    methods: Mapping[str, Firing]


@dataclass(frozen=True)
class Run:
    """Everything that the report draws from."""

    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    methods: tuple[Method, ...]
    runs: Mapping[str, tuple[SeedRun, ...]]
    samples: Samples | None
    boundary: Boundary | None
    spikes: Spikes | None
    problems: tuple[str, ...]

    def position(self, name: str) -> int:
        """Return the place of a method in the order that fixes its colour and dash."""
        return [method.name for method in self.methods].index(name)


def read_run(folder: Path | str) -> Run:
    """Read a run folder; raises `InputError` where there are no results of the known schema."""
    folder = Path(folder)
    results = _read_results(folder)
    problems: list[str] = []
    config = mapping(_read_json(folder / "config.json", problems))
    if not (folder / "config.json").exists():
        problems.append("config.json is missing: settings, versions and the command are unknown.")
    methods = methods_of(results)
    known = {method.name for method in methods}
    waiting = [Method(name) for name in mapping(config.get("methods")) if name not in known]
    methods = (*methods, *waiting)
    return Run(
        folder=folder,
        config=config,
        results=results,
        methods=methods,
        runs={method.name: _read_seeds(folder, method.name, problems) for method in methods},
        samples=_read_samples(folder / "samples.json", problems),
        boundary=_read_boundary(folder / "boundary.json", problems),
        spikes=_read_spikes(folder / "spikes.json", problems),
        problems=tuple(problems),
    )


def methods_of(results: Mapping[str, Any]) -> tuple[Method, ...]:
    """Return the methods of a parsed `results.json`, in its order, without unreadable measures."""
    differences = mapping(results.get("differences"))
    methods = []
    for name, raw in mapping(results.get("methods")).items():
        raw = mapping(raw)
        estimates = {key: _estimate(value) for key, value in raw.items()}
        against = {key: _difference(value) for key, value in mapping(differences.get(name)).items()}
        methods.append(
            Method(
                name=str(name),
                seeds=tuple(s for s in listing(raw.get("seeds")) if isinstance(s, int)),
                estimates={key: value for key, value in estimates.items() if value},
                differences={key: value for key, value in against.items() if value},
            )
        )
    return tuple(methods)


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """Return a JSON array, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def _read_results(folder: Path) -> Mapping[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no results.json, so there is nothing to report. "
            "Give the folder that `attrain compare` wrote, or let the job finish with --resume."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Run the job again with --resume to write it anew."
        ) from error
    schema = mapping(results).get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"{path} has schema {schema!r}, this attrain reads schema {SCHEMA}. "
            "Make the report with the version of attrain that made the folder."
        )
    return mapping(results)


def _read_json(path: Path, problems: list[str]) -> object:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} of {path.parent.name} cannot be read ({error}).")
        return None


def _estimate(raw: object) -> Estimate | None:
    raw = mapping(raw)
    mean = number(raw.get("mean"))
    if mean is None:
        return None
    values = tuple(v for v in map(number, listing(raw.get("values"))) if v is not None)
    return Estimate(mean, number(raw.get("std")), values)


def _difference(raw: object) -> Difference | None:
    raw = mapping(raw)
    mean = number(raw.get("mean"))
    if mean is None:
        return None
    low, high = number(raw.get("low")), number(raw.get("high"))
    clear = raw.get("clear") is True and low is not None and high is not None
    return Difference(mean, low, high, clear)


def _read_seeds(folder: Path, name: str, problems: list[str]) -> tuple[SeedRun, ...]:
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        problems.append(f"The method name {name!r} is no folder name; its runs were not read.")
        return ()
    found = []
    for path in folder.joinpath(name).glob("seed-*"):
        seed = path.name.removeprefix("seed-")
        if seed.isdecimal():
            found.append((int(seed), path))
    return tuple(_read_seed(seed, path, name, problems) for seed, path in sorted(found))


def _read_seed(seed: int, path: Path, name: str, problems: list[str]) -> SeedRun:
    where = f"{name}, seed {seed}"
    analysis = mapping(_read_json(path / "analysis.json", problems))
    pruning = {}
    for kind, raw in mapping(analysis.get("pruning")).items():
        curve = _curve(mapping(raw))
        if curve is None:
            problems.append(f"The pruning curve {kind} of {where} is damaged and was left out.")
        else:
            pruning[kind] = curve
    weights = None
    if "weights" in analysis:
        weights = _weights(mapping(analysis["weights"]))
        if weights is None:
            problems.append(f"The weight distributions of {where} are damaged and were left out.")
    graphs = _read_graphs(path / "graph.json", where, problems)
    epochs = _read_epochs(path / "metrics.jsonl", where, problems)
    return SeedRun(
        seed, epochs, pruning, weights, graphs,
        _read_removals(mapping(analysis.get("faithfulness")), where, problems),
        _read_robustness(mapping(analysis.get("robustness")), where, problems),
        _read_judged(analysis),
        _read_choices(path / "selection.jsonl", where, problems),
    )  # fmt: skip


def _read_removals(
    raw: Mapping[str, Any], where: str, problems: list[str]
) -> Mapping[str, Removal]:
    found = {}
    for name, entry in mapping(raw.get("backgrounds")).items():
        entry = mapping(entry)
        accuracy = _pair(raw.get("fractions"), entry.get("accuracy"))
        random = _pair(raw.get("fractions"), entry.get("random"))
        if accuracy is None or random is None:
            problems.append(f"The accuracy drop ({name}) of {where} is damaged and was left out.")
        else:
            found[name] = Removal(accuracy, random)
    return found


def _read_robustness(
    raw: Mapping[str, Any], where: str, problems: list[str]
) -> Mapping[str, Robustness]:
    found = {}
    for name, entry in raw.items():
        if not isinstance(entry, dict):
            continue
        overall = _pair(entry.get("sizes"), entry.get("overall"))
        if overall is None:
            problems.append(f"The robustness ({name}) of {where} is damaged and was left out.")
            continue
        # Of inputs that are right there may be none.
        of_correct = _pair(entry.get("sizes"), entry.get("of_correct"))
        told = {k: v for k, x in entry.items() if (v := number(x)) is not None}
        found[name] = Robustness(overall, of_correct or (np.zeros(0), np.zeros(0)), told)
    return found


def _read_judged(analysis: Mapping[str, Any]) -> Mapping[str, str | int]:
    faithfulness, robustness = (
        mapping(analysis.get(part)) for part in ("faithfulness", "robustness")
    )
    samples = number(robustness.get("samples")) or number(faithfulness.get("samples"))
    found: dict[str, str | int] = {"samples": int(samples)} if samples else {}
    if faithfulness.get("method"):
        found["method"] = str(faithfulness["method"])
    return found


def _read_graphs(path: Path, where: str, problems: list[str]) -> Graphs | None:
    raw = mapping(_read_json(path, problems))
    if not raw:
        return None
    try:
        return graphs_of(raw)
    except InputError as error:
        problems.append(f"graph.json of {where} is damaged: {error}.")
        return None


def _read_choices(path: Path, where: str, problems: list[str]) -> Choices | None:
    if not path.is_file():
        return None
    try:
        return choices_of(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except InputError as error:
        problems.append(f"selection.jsonl of {where} is damaged: {error}.")
        return None


def _read_epochs(path: Path, where: str, problems: list[str]) -> tuple[Mapping[str, float], ...]:
    if not path.is_file():
        return ()
    epochs, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            raw = mapping(json.loads(line))
        except ValueError:
            damaged += 1
            continue
        epochs.append({key: v for key, value in raw.items() if (v := number(value)) is not None})
    if damaged:
        problems.append(
            f"{damaged} lines of metrics.jsonl of {where} are damaged and were left out."
        )
    return tuple(epochs)


def _floats(raw: object) -> Array | None:
    try:
        values = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return values if values.size and np.isfinite(values).all() else None


def _curve(raw: Mapping[str, Any]) -> Curve | None:
    return _pair(raw.get("removed"), raw.get("accuracy"))


def _pair(raw_x: object, raw_y: object) -> Curve | None:
    """Return a curve by rising x, or None for what is none."""
    x, y = _floats(raw_x), _floats(raw_y)
    if x is None or y is None or x.ndim != 1 or x.shape != y.shape:
        return None
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _weights(raw: Mapping[str, Any]) -> Weights | None:
    edges = _floats(raw.get("bin_edges"))
    if edges is None or edges.ndim != 1 or edges.size < 2:
        return None
    layers: list[Layer] = []
    for entry in map(mapping, listing(raw.get("layers"))):
        counts = _floats(entry.get("counts"))
        if counts is None or counts.shape != (edges.size - 1,):
            return None
        below = {k: v for k, x in mapping(entry.get("theta_sparsity")).items() if (v := number(x))}
        layers.append(
            Layer(
                name=str(entry.get("name", f"layer {len(layers) + 1}")),
                gini=number(entry.get("gini")),
                count=int(number(entry.get("count")) or counts.sum()),
                counts=counts,
                below=below,
            )
        )
    return Weights(number(raw.get("gini")), edges, tuple(layers)) if layers else None


def _read_samples(path: Path, problems: list[str]) -> Samples | None:
    raw = mapping(_read_json(path, problems))
    if not raw:
        return None
    entries = [mapping(entry) for entry in listing(raw.get("samples"))]
    try:
        pixels = np.asarray([entry["pixels"] for entry in entries], dtype=np.float64)
        labels = tuple(int(entry["label"]) for entry in entries)
    except (KeyError, TypeError, ValueError):
        problems.append("samples.json is damaged: its inputs cannot be read.")
        return None
    if entries and (pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape):
        shape = "x".join(map(str, pixels.shape[1:]))
        problems.append(f"samples.json holds inputs of shape {shape}, which cannot be shown.")
        return None
    evidence = None
    if any("evidence" in entry for entry in entries):
        evidence = _floats([entry.get("evidence") for entry in entries])
        if evidence is None or evidence.shape != (len(pixels), *pixels.shape[2:]):
            problems.append("The evidence in samples.json does not fit its inputs.")
            evidence = None
    methods = {}
    for name, value in mapping(raw.get("methods")).items():
        explained = _explained(mapping(value), pixels)
        if explained is None:
            problems.append(f"The saliency of {name} in samples.json does not fit its inputs.")
        else:
            methods[name] = explained
    return Samples(
        classes=tuple(map(str, listing(raw.get("classes")))),
        index=tuple(int(number(e.get("index")) or 0) for e in entries),
        labels=labels,
        pixels=pixels,
        evidence=None if evidence is None else evidence > 0,
        methods=methods,
    )


def _explained(raw: Mapping[str, Any], pixels: Array) -> Explained | None:
    predictions, confidence = listing(raw.get("predictions")), listing(raw.get("confidence"))
    if not len(predictions) == len(confidence) == len(pixels):
        return None
    if not len(pixels):
        return Explained((), (), np.zeros((0, 1, 1)))
    saliency = _floats(raw.get("saliency"))
    if saliency is None or saliency.shape != (len(pixels), *pixels.shape[2:]):
        return None
    sure = _floats(confidence)
    classes = _floats(predictions)
    if sure is None or classes is None:
        return None
    return Explained(tuple(int(c) for c in classes), tuple(float(s) for s in sure), saliency)


def _read_boundary(path: Path, problems: list[str]) -> Boundary | None:
    raw = mapping(_read_json(path, problems))
    if not raw:
        return None
    x, y = _floats(raw.get("x")), _floats(raw.get("y"))
    if x is None or y is None or x.shape != (2,) or y.shape != (2,) or x[0] >= x[1] or y[0] >= y[1]:
        problems.append("boundary.json is damaged: it does not say which square it covers.")
        return None
    maps = {}
    for name, value in mapping(raw.get("methods")).items():
        cells = _floats(mapping(value).get("classes"))
        if cells is None or cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
            problems.append(f"The decision map of {name} in boundary.json is damaged.")
        else:
            maps[name] = cells.astype(np.int64)
    if len({cells.shape for cells in maps.values()}) > 1:
        problems.append("The decision maps of boundary.json differ in size and were left out.")
        return None
    return Boundary(
        x=(float(x[0]), float(x[1])),
        y=(float(y[0]), float(y[1])),
        classes=tuple(map(str, listing(raw.get("classes")))),
        points=tuple(_points(listing(raw.get("points")))),
        maps=maps,
    )


def _points(raw: Iterable[object]) -> Iterable[tuple[float, float, int]]:
    for entry in raw:
        values = [number(value) for value in listing(entry)]
        if len(values) == 3:
            x, y, label = values
            if x is not None and y is not None and label is not None:
                yield x, y, int(label)


def _read_spikes(path: Path, problems: list[str]) -> Spikes | None:
    raw = mapping(_read_json(path, problems))
    if not raw:
        return None
    steps, threshold = int(number(raw.get("steps")) or 0), number(raw.get("threshold"))
    if steps < 1 or threshold is None:
        problems.append("spikes.json is damaged: it does not say how many steps it covers.")
        return None
    methods = {}
    for name, value in mapping(raw.get("methods")).items():
        firing = _firing(mapping(value), steps)
        if firing is None:
            problems.append(f"The spikes of {name} in spikes.json are damaged.")
        else:
            methods[name] = firing
    return Spikes(
        index=int(number(raw.get("index")) or 0),
        label=int(number(raw.get("label")) or 0),
        classes=tuple(map(str, listing(raw.get("classes")))),
        samples=int(number(raw.get("samples")) or 0),
        steps=steps,
        threshold=threshold,
        methods=methods,
    )


def _firing(raw: Mapping[str, Any], steps: int) -> Firing | None:
    membranes = _floats(raw.get("membranes"))
    if membranes is None or membranes.ndim != 2 or membranes.shape[1] != steps:
        return None
    layers = [_firing_layer(mapping(entry), steps) for entry in listing(raw.get("layers"))]
    if not layers or None in layers:
        return None
    return Firing(
        prediction=int(number(raw.get("prediction")) or 0),
        spikes=number(raw.get("spikes_per_sample")) or 0.0,
        operations=number(raw.get("synaptic_operations")) or 0.0,
        multiplications=number(raw.get("multiplications")) or 0.0,
        layers=tuple(layer for layer in layers if layer),
        membranes=membranes,
    )


def _firing_layer(raw: Mapping[str, Any], steps: int) -> FiringLayer | None:
    shown = [number(value) for value in listing(raw.get("shown"))]
    fired = [[number(t) for t in listing(each)] for each in listing(raw.get("fired"))]
    if len(shown) != len(fired) or None in shown:
        return None
    if any(t is None or not 0 <= t < steps for each in fired for t in each):
        return None
    return FiringLayer(
        name=str(raw.get("name", "")),
        neurons=int(number(raw.get("neurons")) or len(shown)),
        rate=number(raw.get("rate")) or 0.0,
        silent=number(raw.get("silent")) or 0.0,
        shown=tuple(int(each) for each in shown if each is not None),
        fired=tuple(tuple(int(t) for t in each if t is not None) for each in fired),
    )
