"""The main job: train the same model by several methods and seeds into one run folder."""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.attribution import saliency
from attrain.attribution.conditions import has_gradient
from attrain.config import (
    CompareConfig,
    JobConfig,
    TrainConfig,
    TrainingConfig,
    check_job,
    epochs_of,
    free_folder,
)
from attrain.data import Data, load
from attrain.devices import make_fabric, threads_of
from attrain.errors import CreditWarning, InputError
from attrain.live import Display
from attrain.measuring import judge
from attrain.methods import Method, find, fitting, is_spiking
from attrain.metrics.calibration import calibration
from attrain.metrics.sparsity import connection_weights, signs_changed, weight_summary
from attrain.metrics.statistics import paired_difference, summary
from attrain.models import SpikingNet, build
from attrain.pruning import AMOUNTS, CRITERIA, curve, fold_batch_norm
from attrain.report import write_report
from attrain.runs import RunFolder, SeedFolder, environment, load_weights, read_json, write_json
from attrain.schedules import learning_rate_of, momentum_of, weight_decay_of
from attrain.spiking import activity, record
from attrain.trained_graphs import compact_graphs
from attrain.training import Progress, Trained, evaluating, predict, scores, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RIVAL = "sgd-l1"
RIVAL_STRENGTHS = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)
VALIDATION = 0.1
TUNING_CRITERION = (
    "mean of the validation accuracies with all weights and with 90% of them removed, seed 0"
)
REMOVED = {"90": 0.9, "95": 0.95, "98": 0.98}
SAMPLES, DISAGREEING, WRONG = 18, 8, 4
LARGEST_SIDE = 64
GRID, POINTS, MARGIN = 100, 300, 0.1
FIRING_SAMPLES, RASTER_NEURONS = 200, 40
# What may differ between a job and its resumption: it changes the speed or the place, no result.
FREE = {"checkpoint_seconds", "device", "devices", "tensorboard", "threads"}


def compare(config: CompareConfig) -> Path:
    """Train every method with every seed, tune the rival, and return the folder of the results.

    The files are described in docs/reference/run-folder.md. Raises AttrainError for settings that
    cannot work, a folder with results, a job to resume that has other settings, and a full disk.
    """
    check_job(config, config.methods, config.seeds)
    names = list(config.methods)
    if config.rival and RIVAL not in names:
        names.append(RIVAL)
    return _run_job("compare", config, names, config.seeds, RIVAL if config.rival else None)


def train_only(config: TrainConfig) -> Path:
    """Train one method with every seed, and return the folder; files and errors as `compare`."""
    check_job(config, [config.method], config.seeds)
    return _run_job("train", config, [config.method], config.seeds, None)


@dataclass(frozen=True)
class _Job:
    """What all parts of a job need to know."""

    config: JobConfig
    data: Data
    folder: RunFolder
    fabric: "Fabric"
    display: Display
    warned: list[str] = field(default_factory=list)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.fabric.is_global_zero

    def model(self, seed: int) -> nn.Module:
        """Return the model before training; a seed's start is the same for all methods."""
        config, data = self.config, self.data
        return build(
            config.model,
            data.input_shape,
            data.num_classes,
            activation=config.activation,
            seed=seed,
            vectors=data.vectors,
        )

    def trained(self, place: SeedFolder) -> nn.Module:
        """Return the model with the weights of a finished run."""
        model = self.model(0)
        load_weights(place.weights, model)
        if is_spiking(model):
            # What it is asked for is a gradient, which only a surrogate has.
            cast(SpikingNet, model).spike_by("surrogate")
        return model.to(self.fabric.device)


def _run_job(
    command: str, config: JobConfig, names: Sequence[str], seeds: int, rival: str | None
) -> Path:
    path = config.out or free_folder(command, config.data, config.resume)
    with _claimed(RunFolder(path), config.resume):
        data = load(config.data)
        model = build(
            config.model,
            data.input_shape,
            data.num_classes,
            activation=config.activation,
            vectors=data.vectors,
        )
        if is_spiking(model) and rival:
            # It is a rival in sparsity, and no gradient gets through spikes.
            names, rival = [name for name in names if name != rival], None
        methods = [fitting(find(name), model) for name in names]
        fabric = make_fabric(config.training)
    # The others may have seen the folder that the first process made and chosen the next.
    folder = RunFolder(fabric.broadcast(path))
    with Display(quiet=not fabric.is_global_zero) as display:
        job = _Job(config, data, folder, fabric, display)
        record = _record(job, command, methods, list(range(seeds)), rival)
        record = fabric.broadcast(_opened(job, record) if job.leads else record)
        display.plan(_runs(methods, rival, seeds))
        if rival:
            tuned = _tuned_rival(job, find(rival), record)
            methods = [tuned if method.name == rival else method for method in methods]
        for seed in range(seeds):
            for method in methods:
                _run(job, method, seed, data, folder.seed(method.name, seed))
        if job.leads:
            _explain(job, methods)
            _write_graphs(job, methods, seeds)
    if job.leads:
        record["warnings"] = sorted({*record["warnings"], *job.warned})
        write_json(folder.config, record)
        write_json(folder.results, _results(job, command, methods, seeds))
        write_report(folder.path)
    fabric.barrier()
    return folder.path


@contextmanager
def _claimed(folder: RunFolder, resume: bool) -> Iterator[None]:
    """Take the folder before anything else; leave none behind if the job cannot start."""
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) > 0:
        yield  # the first process takes it
        return
    folder.resume() if resume else folder.create()
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.path.rmdir()  # succeeds where it is empty
        raise


# The record: config.json --------------------------------------------------------------------------


def _record(
    job: _Job, command: str, methods: Iterable[Method], seeds: list[int], rival: str | None
) -> dict[str, Any]:
    """Return the whole configuration, with what the methods and the data decided."""
    config, data = job.config, job.data
    model = job.model(0)
    training = dataclasses.asdict(config.training) | {
        "epochs": epochs_of(config.training, data.name),
        "device": str(job.fabric.device),
        "devices": job.fabric.world_size,
        "threads": threads_of(config.training, model),
    }
    return environment() | {
        "job": command,
        "data": {
            "name": data.name,
            "train": len(data.train),
            "test": len(data.test),
            "validation": 0,
            "classes": list(data.classes),
            "input_shape": list(data.input_shape),
            "notes": data.notes,
        },
        "model": {
            "name": config.model,
            "activation": config.activation,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "layers": _layers(model),
        },
        "training": training,
        "methods": {method.name: _settings(method, config) for method in methods},
        "rival": rival,
        "tuning": [],
        "seeds": seeds,
        "warnings": [],
    }


def _layers(model: nn.Module) -> list[dict[str, Any]]:
    found = []
    for name, module in model.named_modules():
        weights = {"": getattr(module, "weight", None)}
        for attribute, parameter in module.named_parameters(recurse=False):
            if attribute != "weight" and "weight" in attribute:  # of attention, recurrent layers
                weights[f".{attribute}"] = parameter
        found += [
            {"name": name + end, "kind": type(module).__name__, "shape": list(weight.shape)}
            for end, weight in weights.items()
            if isinstance(weight, Tensor)
        ]
    return found


def _settings(method: Method, config: JobConfig) -> dict[str, Any]:
    return {
        "description": method.description,
        "learning_rate": learning_rate_of(method, config.training),
        "momentum": momentum_of(method, config.training),
        "weight_decay": weight_decay_of(method, config.training),
        "l1": method.l1,
        "adaptive_clipping": method.adaptive_clipping,
        "objective_options": dict(method.objective_options),
        "loss_scale": method.loss_scale,
        "course": method.course,
        "credit": None if method.credit is None else dict(method.credit),
        "guided": None if method.guided is None else dict(method.guided),
        "targeted": None if method.targeted is None else dict(method.targeted),
        "objective": method.objective,
        "citation": method.citation,
    }


def _opened(job: _Job, record: dict[str, Any]) -> dict[str, Any]:
    """Write the record of a new job, or check that the folder holds this job; return the record."""
    if not job.config.resume:
        write_json(job.folder.config, record)
        return record
    before = read_json(job.folder.config)
    told = list(_differing(before, record))
    if told:
        raise InputError(
            f"{job.folder.path} holds a job with other settings ({'; '.join(told)}): resume it "
            "with its own, or give another --out."
        )
    return record | {key: before[key] for key in ("started", "command", "tuning", "warnings")}


def _differing(before: Any, record: dict[str, Any]) -> Iterator[str]:
    """Yield what a stored record says otherwise, where that would change results."""
    if not isinstance(before, dict) or before.get("schema") != record["schema"]:
        yield "it was written by another version of attrain"
        return
    for section in ("data", "model", "training"):
        for name, value in record[section].items():
            stored = before.get(section, {}).get(name)
            if stored != value and name not in FREE | {"notes", "layers", "classes"}:
                yield f"{section} {name} {stored}, now {value}"
    names = list(before.get("methods", {}))
    for label, stored, value in (
        ("job", before.get("job"), record["job"]),
        ("methods", " ".join(names), " ".join(record["methods"])),
        ("rival", before.get("rival"), record["rival"]),
        ("seeds", before.get("seeds"), record["seeds"]),
    ):
        if stored != value:
            yield f"{label} {stored}, now {value}"
    for name in names:
        # Tuning may have changed the rival's strength since the job began.
        free = {"description", "citation"} | ({"l1"} if name == record["rival"] else set())
        for key, value in record["methods"].get(name, {}).items():
            stored = before["methods"][name].get(key)
            if key not in free and stored != value:
                yield f"{key} of {name} {stored}, now {value}"


# One run ------------------------------------------------------------------------------------------


def _runs(methods: Iterable[Method], rival: str | None, seeds: int) -> list[tuple[str, str]]:
    names = [method.name for method in methods]
    trials = [(rival, _trial(strength)) for strength in RIVAL_STRENGTHS] if rival else []
    return trials + [(name, f"seed {seed}") for seed in range(seeds) for name in names]


def _trial(strength: float) -> str:
    return f"tuning {strength:g}"


def _run(
    job: _Job, method: Method, seed: int, data: Data, place: SeedFolder, label: str | None = None
) -> dict[str, Any]:
    """Train and analyse one method with one seed, or what is left of it; return the analysis."""
    # Of texts, a part of the training set has a vocabulary and word vectors of its own.
    job = dataclasses.replace(job, data=data)
    run = (method.name, label or f"seed {seed}")
    done = job.leads and place.analysis.exists() and place.weights.exists()
    if not job.fabric.broadcast(done):

        def watch(progress: Progress) -> None:
            job.display.update(
                run,
                f"epoch {progress.epoch}/{progress.epochs}",
                progress.step / progress.steps,
                progress.test_accuracy,
                progress.seconds_left,
                progress.learning,
            )

        with _noting_warnings(job):
            trained = train(
                job.model(seed),
                data,
                method,
                job.config.training,
                seed=seed,
                folder=place.path,
                resume=job.config.resume,
                fabric=job.fabric,
                watch=watch,
            )
        if job.leads:
            measured = _analyse(
                job.trained(place), data, trained, start=job.model(seed),
                judged_by=None if label else _rows_at_once(job.config.training),
            )  # fmt: skip
            write_json(place.analysis, measured, indent=None)
        job.fabric.barrier()
    analysis: dict[str, Any] = job.fabric.broadcast(read_json(place.analysis) if job.leads else {})
    job.display.finish(run, analysis["measures"]["test_accuracy"])
    return analysis


@contextmanager
def _noting_warnings(job: _Job) -> Iterator[None]:
    """Keep what the credit engine warns about for the record and show it once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CreditWarning)
        yield
    for entry in caught:
        text = str(entry.message)
        if not issubclass(entry.category, CreditWarning):
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
        elif text not in job.warned:
            job.warned.append(text)
            job.display.say(f"note: {text}")


def _analyse(
    model: nn.Module, data: Data, trained: Trained, *, start: nn.Module, judged_by: int | None
) -> dict[str, Any]:
    """Return what analysis.json holds: everything that is measured on the final model.

    judged_by: rows at once with which its explanations and its robustness are measured as well;
    None leaves them out.
    """
    y = data.test.tensors[1]
    logits = predict(model, data.test)
    figures = scores(logits, y)
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)

    def accuracy(pruned: nn.Module) -> float:
        return float((predict(pruned, data.test).argmax(1) == y).double().mean())

    pruning = {
        name: curve(model, accuracy, AMOUNTS, name)
        for name, criterion in CRITERIA.items()
        if not criterion.needs_data  # another pass over all samples
    }
    weights = weight_summary(connection_weights(fold_batch_norm(model)))
    left = dict(zip(AMOUNTS, pruning["magnitude-global"]["accuracy"], strict=True))
    pairs = y * data.num_classes + predicted
    confusion = torch.bincount(pairs, minlength=data.num_classes**2)
    judged, curves = judge(model, data, batch_size=judged_by) if judged_by else ({}, {})
    return {
        "measures": {
            "test_accuracy": figures["accuracy"],
            "test_loss": figures["loss"],
            "ece": figures["ece"],
            "gini": weights["gini"],
            "update_density": _mean(row["update_density"] for row in trained.epochs),
            "signs_changed": signs_changed(connection_weights(start), connection_weights(model)),
            **{f"accuracy_{name}_removed": left[amount] for name, amount in REMOVED.items()},
            "step_cpu_s": trained.step_cpu_s,
            "train_wall_s": trained.train_wall_s,
            "train_cpu_s": trained.train_cpu_s,
            "peak_memory_bytes": trained.peak_memory_bytes,
            **judged,
        },
        "calibration": calibration(confidence, predicted == y),
        "pruning": pruning,
        "weights": weights,
        "confusion": confusion.view(data.num_classes, data.num_classes).tolist(),
        **curves,
    }


def _rows_at_once(config: TrainingConfig) -> int:
    """Return how many rows training had in memory at once, but no more than are of use."""
    return min(128, max(1, config.batch_size // (config.accumulate * config.devices)))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# The fair rival -----------------------------------------------------------------------------------


def _tuned_rival(job: _Job, rival: Method, record: dict[str, Any]) -> Method:
    """Choose the rival's L1 strength on a part of the training set; the test set is not touched."""
    if not record["tuning"]:
        split = load(job.config.data, validation=VALIDATION)
        assert split.validation is not None
        trial = dataclasses.replace(split, test=split.validation)
        points = []
        for strength in RIVAL_STRENGTHS:
            candidate = dataclasses.replace(rival, l1=strength)
            place = SeedFolder(job.folder.path / "tuning" / rival.name / f"l1-{strength:g}")
            measures = _run(job, candidate, 0, trial, place, _trial(strength))["measures"]
            points.append((measures["test_accuracy"] + measures["accuracy_90_removed"]) / 2)
        best = RIVAL_STRENGTHS[int(np.argmax(points))]
        record["tuning"] = [
            {
                "method": rival.name,
                "parameter": "l1",
                "candidates": list(RIVAL_STRENGTHS),
                "chosen": best,
                "criterion": TUNING_CRITERION,
                "validation_samples": len(split.validation),
                "scores": points,
            }
        ]
    else:
        for strength in RIVAL_STRENGTHS:
            job.display.skip((rival.name, _trial(strength)))
    chosen = dataclasses.replace(rival, l1=float(record["tuning"][0]["chosen"]))
    record["methods"][chosen.name] = _settings(chosen, job.config)
    if job.leads:
        write_json(job.folder.config, record)
    return chosen


# What the models look at --------------------------------------------------------------------------


def _explain(job: _Job, methods: Sequence[Method]) -> None:
    """Write samples.json, boundary.json and spikes.json from the models of the first seed."""
    shape = () if job.data.words else job.data.input_shape
    models = {
        method.name: job.trained(job.folder.seed(method.name, 0))
        for method in methods
        if len(shape) in (1, 2, 3)
    }
    if (len(shape) == 3 and shape[0] in (1, 3)) or len(shape) == 2:
        x = job.data.test.tensors[0][:1]
        seeing = {n: m for n, m in models.items() if has_gradient(m, x.to(_device(m)))}
        if seeing:
            write_json(job.folder.samples, _samples(seeing, job.data), indent=None)
    if shape == (2,):
        write_json(job.folder.boundary, _boundary(models, job.data), indent=None)
    if is_spiking(job.model(0)):
        spiking = {
            method.name: cast(SpikingNet, job.trained(job.folder.seed(method.name, 0)))
            for method in methods
        }
        write_json(job.folder.spikes, _fired(spiking, job.data), indent=None)


def _write_graphs(job: _Job, methods: Sequence[Method], seeds: int) -> None:
    """Write graph.json of every run, the attribution graphs of the classes in compact form."""
    if is_spiking(job.model(0)):
        return  # spikes are no units that hand on their values
    for seed in range(seeds):
        for method in methods:
            place = job.folder.seed(method.name, seed)
            if not place.graph.exists():
                told = compact_graphs(job.trained(place), job.data)
                write_json(place.graph, told, indent=None)


def choose_samples(predictions: Tensor, y: Tensor) -> list[int]:
    """Return the test samples to show, in rising order; all methods are treated alike.

    `predictions` [M, N] are the classes that M methods predict, `y` [N] the labels. Drawn at
    random: 8 on which the methods disagree and 4 that all get wrong alike, as far as there are
    such, and others up to 18.
    """
    agree = (predictions == predictions[:1]).all(0)
    right = (predictions == y).all(0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    groups = ((~agree, DISAGREEING), (agree & ~right, WRONG))
    chosen = [index for mask, most in groups for index in order[mask[order]][:most].tolist()]
    others = [index for index in order[right[order]].tolist() if index not in chosen]
    return sorted(chosen + others[: SAMPLES - len(chosen)])


def _samples(models: dict[str, nn.Module], data: Data) -> dict[str, Any]:
    x, y = data.test.tensors
    logits = {name: predict(model, data.test) for name, model in models.items()}
    chosen = choose_samples(torch.stack([out.argmax(1) for out in logits.values()]), y)
    pixels, boxes, series = data.restore(x[chosen]), None, x.ndim == 3
    if series:
        pixels = _lying((pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-12))
        if "test" in data.evidence:
            boxes = _shrunk(_lying(data.evidence["test"][chosen].float())).squeeze(1).round()
    pixels = _shrunk(pixels.clamp(0, 1))
    shown = {}
    for name, model in models.items():
        probabilities = torch.softmax(logits[name][chosen].double(), 1)
        confidence, predicted = probabilities.max(1)
        device = next(model.parameters()).device
        with evaluating(model):
            given = x[chosen].to(device), predicted.to(device)
            heat = saliency(model, *given, channels=not series).cpu()
        shown[name] = {
            "seed": 0,
            "predictions": predicted.tolist(),
            "confidence": _rounded(confidence),
            "saliency": _rounded(_shrunk(_lying(heat) if series else heat.unsqueeze(1)).squeeze(1)),
        }
    return {
        "classes": list(data.classes),
        "samples": [
            {
                "index": index,
                "label": int(y[index]),
                "shape": list(image.shape),
                "pixels": _rounded(image),
            }
            | ({} if boxes is None else {"evidence": boxes[place].int().tolist()})
            for place, (index, image) in enumerate(zip(chosen, pixels, strict=True))
        ],
        "methods": shown,
    }


def _lying(series: Tensor) -> Tensor:
    """Return series [N, T, F] as pictures [N, 1, F, T] that run from left to right."""
    return series.mT.unsqueeze(1)


def _shrunk(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] averaged down until no side is longer than LARGEST_SIDE."""
    height, width = images.shape[2:]
    factor = LARGEST_SIDE / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(images, size=size, mode="area")


def _rounded(values: Tensor) -> Any:
    """Return nested lists of numbers with the four digits that a picture needs."""
    array = values.double().numpy()
    return np.vectorize(lambda value: float(f"{value:.4g}"), otypes=[float])(array).tolist()


def _boundary(models: dict[str, nn.Module], data: Data) -> dict[str, Any]:
    """Return the class that each model gives to every point of a square grid over the data."""
    points = torch.cat([data.restore(part.tensors[0]) for part in (data.train, data.test)])
    low, high = points.amin(0), points.amax(0)
    margin = MARGIN * (high - low)
    low, high = low - margin, high + margin
    xs, ys = (torch.linspace(float(low[axis]), float(high[axis]), GRID) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).view(-1, 2)
    cells = torch.utils.data.TensorDataset((grid - data.mean) / data.std)
    x, y = data.test.tensors
    return {
        "x": [float(low[0]), float(high[0])],
        "y": [float(low[1]), float(high[1])],
        "size": GRID,
        "classes": list(data.classes),
        "points": [
            [*_rounded(point), int(label)]
            for point, label in zip(data.restore(x[:POINTS]), y[:POINTS], strict=True)
        ],
        "methods": {
            name: {"seed": 0, "classes": predict(model, cells).argmax(1).view(GRID, GRID).tolist()}
            for name, model in models.items()
        },
    }


@torch.no_grad()
def _fired(models: dict[str, SpikingNet], data: Data) -> dict[str, Any]:
    """Return what neurons do for one test sample that all models classify rightly, if there is one.

    Of each layer as many neurons as can be drawn, evenly over the layer; the membranes of the
    outputs; and rates, spikes and synaptic operations per sample over the first test samples.
    """
    x, y = (tensor[:FIRING_SAMPLES] for tensor in data.test.tensors)
    right = torch.stack([model(x.to(_device(model))).cpu().argmax(1) == y for model in
                         models.values()]).all(0)  # fmt: skip
    chosen = int(right.int().argmax())
    shown = {}
    for name, model in models.items():
        inputs = x.to(_device(model))
        cost, layers = activity(model, inputs), record(model, inputs[chosen : chosen + 1])
        shown[name] = {
            "seed": 0,
            "prediction": int(model(inputs[chosen : chosen + 1]).argmax()),
            "spikes_per_sample": cost.spikes,
            "synaptic_operations": cost.synaptic_operations,
            "multiplications": cost.multiplications,
            "layers": [
                {
                    "name": layer.name,
                    "neurons": layer.neurons,
                    "rate": layer.rate,
                    "silent": layer.silent,
                    **_raster(torch.stack(seen.spikes)[:, 0].flatten(1).cpu()),
                }
                for layer, seen in zip(cost.layers, layers, strict=True)
            ],
            "membranes": _rounded(torch.stack(layers[-1].membranes)[:, 0].T.cpu()),
        }
    first = next(iter(models.values()))
    return {
        "index": chosen,
        "label": int(y[chosen]),
        "classes": list(data.classes),
        "samples": len(x),
        "steps": first.steps,
        "threshold": first.threshold,
        "methods": shown,
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _raster(spikes: Tensor) -> dict[str, Any]:
    """Return which neurons of `spikes` [T, J] are shown, and the steps in which each fired."""
    count = spikes.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, RASTER_NEURONS)).round()).astype(int)
    return {
        "shown": shown.tolist(),
        "fired": [spikes[:, neuron].nonzero().flatten().tolist() for neuron in shown.tolist()],
    }


# Results ------------------------------------------------------------------------------------------


def _results(job: _Job, command: str, methods: Sequence[Method], seeds: int) -> dict[str, Any]:
    """Return results.json: measures over seeds, and paired differences to the first method."""
    values: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        found = [
            read_json(job.folder.seed(method.name, seed).analysis)["measures"]
            for seed in range(seeds)
        ]
        values[method.name] = {key: [_number(entry[key]) for entry in found] for key in found[0]}
    first, *others = values
    return {
        "schema": 1,
        "kind": "compare",
        "id": command,
        "budget": None,
        "methods": {
            name: {"seeds": list(range(seeds))}
            | {key: summary(entries) for key, entries in measures.items()}
            for name, measures in values.items()
        },
        "differences": {
            name: {"baseline": first}
            | {
                key: paired_difference(entries, values[first][key])
                for key, entries in values[name].items()
            }
            for name in others
        },
        "rows": [],
        "claims": [],
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
