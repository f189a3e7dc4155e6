"""What a job is told: settings, their defaults, their checks, and TOML files that hold them.

Nothing heavy is imported here, so that a command can refuse a bad setting within milliseconds.
"""

import dataclasses
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from attrain.errors import InputError, unknown

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["onecycle", "cosine", "constant"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda"]
Strategy = Literal["auto", "ddp", "fsdp2"]

CRITERIA = ("magnitude-global", "magnitude-local", "relevance")
GRAPH_METHODS = ("lrp", "gradient", "integrated_gradients")
MEASURES = ("accuracy", "loss", "ece", "gini", "sparsity")
"""Of the whole test set and of the weights: one pass."""
EXPLANATION_MEASURES = (
    "accuracy_drop",
    "comprehensiveness",
    "sufficiency",
    "localisation",
    "gradient_distribution",
    "model_randomisation",
    "noise",
    "fgsm",
    "pgd",
)
"""Of explanations and robustness, on some samples: many passes."""
EPOCHS = {"digits": 30, "mnist": 3, "swirl": 15}
OTHER_EPOCHS = 10


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; what is left out (None) is decided by the method or the data."""

    epochs: int | None = None
    """Passes over the training set. None: 30 for digits, 3 for mnist, 15 for swirl, else 10."""
    batch_size: int = 128
    """Samples of one update, over all devices and accumulation steps together."""
    optimizer: Optimizer = "sgd"
    """The torch optimizer."""
    learning_rate: float | None = None
    """Highest learning rate. None: the method's own with sgd, 0.001 with adam and adamw."""
    momentum: float | None = None
    """Momentum of sgd. None: the method's own."""
    weight_decay: float | None = None
    """Weight decay of the weights; biases and normalisations have none. None: the method's own."""
    schedule: Schedule = "onecycle"
    """Course of the learning rate: warm-up and cosine (the momentum of sgd swings against it),
    cosine alone, or constant."""
    clip_norm: float = 3.0
    """Largest norm of the whole gradient (or feedback); 0 does not clip. Paper 001, A.6.2."""
    accumulate: int = 1
    """Parts that a batch is cut into to save memory; the update stays the same."""
    precision: Precision = "32-true"
    """Arithmetic of the forward and backward pass."""
    device: Device = "auto"
    """Where to train; auto takes a GPU where there is one."""
    devices: int = 1
    """Processes or GPUs that share each batch (under torchrun: as many as it started)."""
    strategy: Strategy = "auto"
    """How several devices share the work: ddp copies the model, fsdp2 shards it. auto: ddp."""
    threads: int = 0
    """CPU threads. 0: one for models below 20,000 parameters, else torch's choice."""
    deterministic: bool = True
    """Ask torch for deterministic algorithms, so that a seed means one result."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints inside an epoch; the end of an epoch always writes one."""
    tensorboard: bool = False
    """Also write event files for TensorBoard."""


@dataclass(frozen=True)
class JobConfig:
    """Settings that training jobs share."""

    data: str = "digits"
    """Data set: a known name (mnist, movies, series:middle-gaussian, ...), a hub name, a
    local folder, or a table (.csv, .npz)."""
    model: str = "mlp"
    """Model: a known name, or module:function that returns one."""
    activation: str = "relu"
    """Activation of the models that come with attrain."""
    out: Path | None = None
    """Folder of the results. None: the next free runs/COMMAND-DATA."""
    resume: bool = False
    """Continue an interrupted job: finished runs are kept, half ones go on."""
    config: Path | None = None
    """TOML file with settings; flags win over it."""
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class CompareConfig(JobConfig):
    """Train the same model with several methods and write one report."""

    methods: tuple[str, ...] = ("sgd", "lfp")
    """Methods to compare: sgd, lfp, lfp-abs, lfp-sparse, sgd-l1, saliency-guided, targeted; for
    spiking models lfp and surrogate. Differences are to the first."""
    seeds: int = 3
    """Runs of each method, with seeds 0, 1, ..."""
    rival: bool = True
    """Also train sgd-l1, gradient descent with an L1 term tuned on a part of the training set."""


@dataclass(frozen=True)
class TrainConfig(JobConfig):
    """Train a model with one method."""

    method: str = "lfp"
    """The method: sgd, lfp, lfp-abs, lfp-sparse, sgd-l1, saliency-guided or targeted; for spiking
    models lfp or surrogate."""
    seeds: int = 1
    """Runs, with seeds 0, 1, ..."""


@dataclass(frozen=True)
class Source:
    """A trained model: which weights, and what they are the weights of."""

    path: Path
    """Folder of a run (OUT/METHOD/seed-K), a .safetensors file, or a checkpoint.pt."""
    data: str | None = None
    """Data set. None: that of the job which the weights belong to."""
    model: str | None = None
    """Model. None: that of the job which the weights belong to."""
    activation: str | None = None
    """Activation of the model. None: that of the job which the weights belong to."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained model on the test set of a data set."""

    path: str
    """Folder of a run (OUT/METHOD/seed-K), a .safetensors file, a checkpoint.pt; or
    module:function that returns a trained model."""
    data: str | None = None
    """Data set. None: that of the job which the weights belong to."""
    model: str | None = None
    """Model. None: that of the job which the weights belong to."""
    activation: str | None = None
    """Activation of the model. None: that of the job which the weights belong to."""
    measures: tuple[str, ...] = MEASURES
    """What to measure. One pass over the test set: accuracy, loss, ece, gini, sparsity. On some
    test samples, with about as many passes of each: accuracy_drop (83), comprehensiveness (9),
    sufficiency (9), localisation (3), gradient_distribution (3), model_randomisation (3 for each
    layer), noise (19), fgsm (24) and pgd (at most 354 with 20 steps from one start)."""
    samples: int = 256
    """Test samples that explanations and robustness are measured on, drawn with the seed."""
    method: str = "saliency"
    """Attribution that is judged by accuracy_drop, comprehensiveness, sufficiency, localisation
    and model_randomisation: a method of attrain attribute."""
    target: Literal["predicted", "label"] = "predicted"
    """Class whose output is explained: the predicted one, or the label."""
    attack_steps: int = 20
    """Steps of pgd."""
    restarts: int = 1
    """Random starts of pgd; the worst of all counts."""
    seed: int = 0
    """Of the choice of the samples, noise, random orders, starts and parameters."""
    batch_size: int = 256
    """The most rows that go through the model at once."""
    json: bool = False
    """Print JSON instead of lines."""
    out: Path | None = None
    """File (.json) for the curves behind the figures. None: they are not kept."""


@dataclass(frozen=True)
class PruneConfig(Source):
    """Remove the weights that matter least, and measure the accuracy that is left."""

    amount: float = 0.9
    """Share of the weights of linear, convolution and recurrent layers to remove, 0..1."""
    criterion: str = "magnitude-global"
    """Which weights go: magnitude-global, magnitude-local (the smallest of each layer), or
    relevance (paper 001, A.6.3)."""
    layers: Literal["all", "conv"] = "all"
    """Whose weights go: of all these layers, or of convolutions alone (the paper)."""
    relevance_data: Literal["train", "test"] = "train"
    """Samples that relevance is summed over. The paper took the test set, which is then no longer
    unseen."""
    out: Path | None = None
    """File for the pruned weights. None: pruned-AMOUNT.safetensors beside the given ones."""
    export: Path | None = None
    """Also write the pruned weights without their zeros (CSR, .safetensors)."""


@dataclass(frozen=True)
class AttributeConfig:
    """Show which inputs an output of a trained model comes from."""

    path: str
    """Folder of a run (OUT/METHOD/seed-K), a .safetensors file, a checkpoint.pt; or
    module:function that returns a trained model."""
    data: str | None = None
    """Data set. None: that of the job which the weights belong to."""
    model: str | None = None
    """Model. None: that of the job which the weights belong to."""
    activation: str | None = None
    """Activation of the model. None: that of the job which the weights belong to."""
    method: str = "lrp"
    """How: lrp, saliency, input_x_gradient, integrated_gradients, smoothgrad, deeplift, deep_shap,
    gradient_shap, lime, kernel_shap or occlusion."""
    rule: str = "epsilon"
    """Of lrp: a rule (epsilon, zero, gamma, z+, ...) or a preset (epsilon-plus,
    epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-gamma-box, ...)."""
    layer: str | None = None
    """Attribute to the units of this layer, by its name in the model. None: to the inputs."""
    samples: int = 12
    """Test samples, drawn with the seed."""
    target: str = "predicted"
    """Output to explain: predicted, label, or the name or number of a class."""
    seed: int = 0
    """Of the choice of the samples, and of methods that draw random numbers."""
    batch_size: int = 128
    """The most rows that go through the model at once."""
    out: Path | None = None
    """Folder of the results. None: the next free runs/attribute-DATA."""


@dataclass(frozen=True)
class GraphConfig:
    """Show which units of a trained model earned an output, class by class, and from what."""

    paths: tuple[str, ...]
    """One model, or two side by side: each the folder of a run (OUT/METHOD/seed-K), a
    .safetensors file, a checkpoint.pt; or module:function that returns a trained model."""
    data: str | None = None
    """Data set. None: that of the job which the weights belong to."""
    model: str | None = None
    """Model. None: that of the job which the weights belong to."""
    activation: str | None = None
    """Activation of the model. None: that of the job which the weights belong to."""
    method: str = "lrp"
    """How messages are computed: lrp, gradient or integrated_gradients."""
    rule: str = "epsilon"
    """Of lrp: a rule (epsilon, zero, gamma, z+, ...) or a preset (epsilon-plus,
    epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-gamma-box, ...)."""
    target: str = "label"
    """Output to explain: of each sample its label, or the class that is predicted; or the name or
    number of one class, which is then explained for all samples."""
    classes: tuple[str, ...] = ()
    """Classes to make graphs of, by name. None given: all of them."""
    samples: int = 0
    """Test samples that the graphs are means of, drawn with the seed. 0: all."""
    ablations: int = 16
    """Test samples of each class on which units are ablated, and which the graphs then leave out;
    at most half of those that there are. 0: nothing is ablated."""
    ablation_seconds: float = 60.0
    """The most time for ablating units one by one, in all; those with most relevance come first."""
    seeds: int = 5
    """Random sets of units that the ablation of the strongest is held against."""
    nodes: float = 0.8
    """Share of |relevance| of each layer that the summary counts and lists nodes for, in (0, 1]."""
    edges: float = 0.98
    """Share of |message| between these nodes that the summary counts edges for, in (0, 1]."""
    seed: int = 0
    """Of the choice of the samples."""
    batch_size: int = 128
    """The most samples that go through the model at once."""
    out: Path | None = None
    """Folder of the results. None: the next free runs/graph-DATA."""


@dataclass(frozen=True)
class ReportConfig:
    """Write the report.html of a run folder again."""

    folder: Path
    """Folder that `attrain compare` or `attrain train` wrote."""


@dataclass(frozen=True)
class StudyConfig:
    """Measure a table or figure of the papers again; `attrain study list` tells which there are."""

    study: str
    """Study: one of `attrain study list`."""
    budget: str = "quick"
    """Effort: smoke (seconds), quick (at most 15 minutes on two cores) or full (the paper's)."""
    out: Path | None = None
    """Folder of the results. None: the next free runs/study-STUDY."""
    resume: bool = False
    """Continue an interrupted study: rows that were measured are kept."""
    jobs: int = 0
    """Rows measured side by side, each in a process with one thread. 0: one per core."""


J = TypeVar("J", bound=JobConfig)


def epochs_of(config: TrainingConfig, data: str) -> int:
    """Return the number of epochs: the setting's, or the default of the data set."""
    return EPOCHS.get(data, OTHER_EPOCHS) if config.epochs is None else config.epochs


def check_training(config: TrainingConfig) -> None:
    """Refuse settings that cannot work; raises `InputError` naming the flag and what it takes."""
    if config.epochs is not None:
        _at_least(1, epochs=config.epochs)
        _at_most(1_000_000, epochs=config.epochs)
    _at_least(1, batch_size=config.batch_size, accumulate=config.accumulate, devices=config.devices)
    _at_least(0, threads=config.threads)
    _at_most(4096, threads=config.threads)
    _at_most(2**31 - 1, batch_size=config.batch_size, accumulate=config.accumulate)
    _positive(learning_rate=config.learning_rate)
    _not_negative(
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    for name, kind in typing.get_type_hints(TrainingConfig).items():
        value = getattr(config, name)
        if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            raise unknown(name.replace("_", " "), str(value), typing.get_args(kind))
    if config.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs an extra that is missing: pip install attrain[tb].")
    if config.strategy == "fsdp2" and config.precision == "16-mixed":
        raise InputError(
            "--strategy fsdp2 does not go with --precision 16-mixed: use bf16-mixed or 32-true."
        )
    if config.batch_size < config.devices * config.accumulate:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared by {config.devices} devices in "
            f"{config.accumulate} parts: make it at least {config.devices * config.accumulate}."
        )


def check_job(config: JobConfig, methods: typing.Iterable[str], seeds: int) -> None:
    """Refuse a job that cannot work; raises `InputError`. Imports nothing heavy."""
    from attrain.methods import find

    names = list(methods)
    if not names:
        raise InputError("--methods is empty: name at least one method, such as sgd.")
    for name in names:
        find(name)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--methods names {name} {names.count(name)} times: name it once.")
    _at_least(1, seeds=seeds)
    _at_most(1_000_000, seeds=seeds)
    check_training(config.training)


def check_evaluate(config: EvaluateConfig) -> None:
    """Refuse unknown measures, a model that is not there, an output that is; `InputError`."""
    known = (*MEASURES, *EXPLANATION_MEASURES)
    for name in config.measures:
        if name not in known:
            raise unknown("measure", name, known)
        if config.measures.count(name) > 1:
            raise InputError(f"--measures names {name} more than once: name it once.")
    if not config.measures:
        raise InputError(f"--measures is empty: name at least one of {', '.join(known)}.")
    _at_least(1, samples=config.samples, attack_steps=config.attack_steps)
    _at_least(1, restarts=config.restarts, batch_size=config.batch_size)
    _at_least(0, seed=config.seed)
    _check_model(config.path, config.data, config.model, config.activation)
    if config.out is not None:
        if config.out.suffix != ".json":
            raise InputError(f"--out {config.out} must end in .json, the format of the curves.")
        if config.out.exists():
            raise InputError(f"{config.out} exists already: give another --out, or remove it.")


def _check_model(path: str, data: str | None, model: str | None, activation: str | None) -> None:
    """Refuse a model that is not there, or a function with settings that it does not take."""
    if not is_function(path):
        weights_file(Path(path))
        return
    if data is None:
        raise InputError(f"{path} does not say what it was trained on: give --data.")
    if model is not None or activation is not None:
        raise InputError(f"{path} is a model: leave --model and --activation out.")


def check_prune(config: PruneConfig) -> Path:
    """Refuse what cannot be pruned and an output that exists; return the output's path."""
    if not 0 <= config.amount <= 1:
        raise InputError(f"--amount {config.amount:g} is not a share: give a number in 0..1.")
    if config.criterion not in CRITERIA:
        raise unknown("pruning criterion", config.criterion, CRITERIA)
    weights = weights_file(config.path)
    out = config.out or weights.with_name(f"pruned-{config.amount:g}.safetensors")
    flags = [("--out", out)] + ([("--export", config.export)] if config.export else [])
    for flag, path in flags:
        if path.suffix != ".safetensors":
            raise InputError(f"{flag} {path} must end in .safetensors, the format of the weights.")
        if path.exists():
            raise InputError(f"{path} exists already: give another {flag}, or remove it.")
    told = out.with_suffix(".json")
    if told.exists():
        raise InputError(f"{told} exists already: give another --out, or remove it.")
    if config.export and config.export.resolve() == out.resolve():
        raise InputError(f"--out and --export are both {out}: give two files.")
    return out


def check_attribute(config: AttributeConfig) -> None:
    """Refuse a model that is not there, and an output that exists; raises `InputError`."""
    _at_least(1, samples=config.samples, batch_size=config.batch_size)
    _at_least(0, seed=config.seed)
    if config.rule != "epsilon" and config.method != "lrp":
        raise InputError(f"--rule {config.rule} is for --method lrp, and it is {config.method}.")
    _check_model(config.path, config.data, config.model, config.activation)
    if config.out is not None and (config.out / "attributions.json").exists():
        raise InputError(f"{config.out} holds attributions already: give another --out.")


def check_graph(config: GraphConfig) -> None:
    """Refuse models that are not there, and settings that cannot work; raises `InputError`."""
    if len(config.paths) not in (1, 2):
        raise InputError(f"graph shows one model, or two side by side: got {len(config.paths)}.")
    if config.method not in GRAPH_METHODS:
        raise unknown("method of graphs", config.method, GRAPH_METHODS)
    if config.rule != "epsilon" and config.method != "lrp":
        raise InputError(f"--rule {config.rule} is for --method lrp, and it is {config.method}.")
    _at_least(0, samples=config.samples, ablations=config.ablations, seed=config.seed)
    _at_least(1, seeds=config.seeds, batch_size=config.batch_size)
    _not_negative(ablation_seconds=config.ablation_seconds)
    for name, share in (("--nodes", config.nodes), ("--edges", config.edges)):
        if not 0 < share <= 1:
            raise InputError(f"{name} {share:g} is not possible: give a share in (0, 1].")
    for path in config.paths:
        if not is_function(path):
            weights_file(Path(path))
        elif config.data is None:
            raise InputError(f"{path} does not say what it was trained on: give --data.")
    if all(map(is_function, config.paths)) and (config.model or config.activation):
        raise InputError(
            f"{' and '.join(config.paths)} is a model: leave --model and --activation out."
        )
    if config.out is not None and (config.out / "graph.json").exists():
        raise InputError(f"{config.out} holds graphs already: give another --out.")


def is_function(path: str) -> bool:
    """Whether `path` means module:function, and no file."""
    return ":" in path and not Path(path).exists()


def weights_file(path: Path) -> Path:
    """Return the file with the weights that `path` means; raises `InputError` if there is none."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        told = "holds no model.safetensors" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {told}: give the folder of a finished run (OUT/METHOD/seed-K), a "
            ".safetensors file, or a checkpoint.pt."
        )
    if file.suffix not in (".safetensors", ".pt"):
        raise InputError(f"{file} is neither a .safetensors file nor a .pt checkpoint.")
    return file


def free_folder(command: str, data: str, resume: bool) -> Path:
    """Return the first free runs/COMMAND-DATA, -2, -3, ..., or to resume, the last taken one."""
    stem = re.sub(r"[^\w.-]+", "-", Path(data).name) or "data"
    candidate, taken, number = Path("runs") / f"{command}-{stem}", None, 1
    while candidate.exists():
        taken, number = candidate, number + 1
        candidate = Path("runs") / f"{command}-{stem}-{number}"
    if resume and taken is None:
        raise InputError(f"there is no {candidate} to resume: start without --resume.")
    return taken if resume and taken else candidate


def default_from(kind: type[J], path: Path) -> J:
    """Return the settings of a TOML file over the defaults of `kind`.

    Keys are the names of the flags, with - or _. Raises `InputError` for a file that cannot be
    read, an unknown key (with the nearest known one) and a value of the wrong type.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not valid TOML: {error}.") from error
    training = _hints(TrainingConfig)
    job = {name: hint for name, hint in _hints(kind).items() if name not in ("training", "config")}
    chosen: dict[str, dict[str, Any]] = {"job": {}, "training": {}}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in job and name not in training:
            raise unknown(f"setting in {path}", key, [*job, *training])
        group, hint = ("job", job[name]) if name in job else ("training", training[name])
        chosen[group][name] = _typed(value, hint, f"{key} in {path}")
    return kind(training=TrainingConfig(**chosen["training"]), config=path, **chosen["job"])


def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def _typed(value: Any, hint: Any, what: str) -> Any:
    """Return a TOML value as the type of its setting."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise unknown(what, str(value), typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise InputError(f"{what} is {value!r}: a list of names is wanted.")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    wanted = {int: "an integer", float: "a number", bool: "true or false"}.get(hint, "a text")
    raise InputError(f"{what} is {value!r}: {wanted} is wanted.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{_flag(name)} {value} is too small: give at least {least}.")


def _at_most(most: int, **values: int) -> None:
    for name, value in values.items():
        if value > most:
            raise InputError(f"{_flag(name)} {value} is too large: give at most {most}.")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{_flag(name)} {value} is not possible: give a number above 0.")


def _not_negative(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise InputError(f"{_flag(name)} {value} is not possible: give 0 or more.")
