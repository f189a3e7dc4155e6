"""One training loop for every method, with checkpoints and exact resumption."""

import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from attrain.config import TrainingConfig, check_training, epochs_of
from attrain.data import Data
from attrain.devices import (
    make_fabric,
    random_state,
    seed_everything,
    set_random_state,
    torch_settings,
)
from attrain.errors import AttrainError, InputError
from attrain.methods import BatchLoss, Method, is_spiking, learner
from attrain.metrics.calibration import expected_calibration_error
from attrain.metrics.cost import saved_for_backward, training_bytes
from attrain.metrics.sparsity import update_density
from attrain.optim import adaptive_clip_grad_, find_course
from attrain.runs import (
    SeedFolder,
    append_jsonl,
    check_fits,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_jsonl,
)
from attrain.schedules import (
    learning_rate,
    learning_rate_of,
    make_optimizer,
    momentum,
    momentum_of,
    weight_decay_of,
)
from attrain.spiking import warn_of_silence
from attrain.targeted import Refresh, Targeted
from attrain.targeted.history import line_of, told

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_TELL_SECONDS = 0.1
_GPU_CHECK_STEPS = 50
_AGREE_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """Where a run is: epoch 1..epochs, updates done of all updates, seconds it still needs.

    `learning` says which neurons learn, where not all do.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    test_accuracy: float | None
    seconds_left: float | None
    learning: str = ""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: weights on the CPU, one row per epoch, and what the training cost.

    `step_cpu_s` is the median CPU time of an update; `train_wall_s` and `train_cpu_s` count
    training alone, without evaluation. `peak_memory_bytes` is torch's peak on a GPU, and on the
    CPU what the tensors of a step take together. With FSDP2 only the first process has the
    weights.
    """

    weights: dict[str, Tensor]
    epochs: list[dict[str, Any]]
    step_cpu_s: float
    train_wall_s: float
    train_cpu_s: float
    peak_memory_bytes: int


@dataclass
class _Position:
    """How far a run is and what it has cost; checkpoints hold it."""

    epoch: int = 0
    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Tally:
    """What this process has counted since the epoch began."""

    loss: float | Tensor = 0.0
    hits: float | Tensor = 0.0
    seen: int = 0
    density: float = 0.0
    step_cpu_s: list[float] = field(default_factory=list)


def train(
    model: nn.Module,
    data: Data,
    method: Method,
    config: TrainingConfig | None = None,
    *,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    fabric: "Fabric | None" = None,
    watch: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train `model` in place on `data.train` and measure it on `data.test` after each epoch.

    With a `folder`, metrics.jsonl, checkpoint.pt and model.safetensors are written there (and
    selection.jsonl, where a method chooses which neurons learn); with
    `resume` a checkpoint found there is continued, to weights that are bit-equal to those of an
    unbroken run on the same machine. `seed` fixes the order of the samples and the random numbers
    of torch, NumPy and Python. `fabric` is made from `config` unless given; `watch` is told the
    progress a few times a second.

    Raises InputError for settings or data that cannot work, for a folder that already holds a
    checkpoint (without `resume`), and for a checkpoint of another model or other settings;
    AttrainError when the loss stops being finite or a file cannot be written.
    """
    config = config or TrainingConfig()
    check_training(config)
    check_data(data)
    check_model(model, data)
    place = None if folder is None else SeedFolder(Path(folder))
    if place and place.checkpoint.exists() and not resume:
        raise InputError(
            f"{place.path} already holds the checkpoint of a run: train into another folder, "
            "or resume it."
        )
    fabric = fabric or make_fabric(config)
    with torch_settings(config, model):
        return _Run(model, data, method, config, seed, place, fabric, watch).go()


class _Run:
    """One method and one seed."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        method: Method,
        config: TrainingConfig,
        seed: int,
        folder: SeedFolder | None,
        fabric: "Fabric",
        watch: Callable[[Progress], None] | None,
    ) -> None:
        self.model, self.data, self.method, self.config = model, data, method, config
        self.seed, self.folder, self.fabric, self.watch = seed, folder, fabric, watch
        self.settings = settings(method, data, config, seed)
        self.epochs = epochs_of(config, data.name)
        self.steps = len(self.batches(0))
        self.peak_rate = learning_rate_of(method, config)
        self.momentum = momentum_of(method, config)
        self.at, self.tally = _Position(), _Tally()
        self.sharded = config.strategy == "fsdp2" and fabric.world_size > 1
        if method.targeted is not None and self.sharded:
            raise InputError(
                f"method {method.name!r} trains rows of weights, and fsdp2 shards them: use "
                "--strategy ddp."
            )
        self.choices: list[dict[str, Any]] = []
        x = data.train.tensors[0][:1]
        self.learner = learner(method, model, x, self.epochs * self.steps, self.chose)
        self.wrapped = fabric.setup_module(self.learner)
        self.raw_optimizer = make_optimizer(self.learner, method, config)
        self.decays = [group["weight_decay"] for group in self.raw_optimizer.param_groups]
        self.course = find_course(method.course)
        self.optimizer = cast(Optimizer, fabric.setup_optimizers(self.raw_optimizer))
        self.batch_loss = BatchLoss(method, model, self.wrapped)
        self.writes = folder is not None and fabric.is_global_zero
        seed_everything(seed, fabric.global_rank)

    def go(self) -> Trained:
        """Train from where the checkpoint left off, or from the start, to the end."""
        if self.folder and self.folder.checkpoint.exists():
            self.restore(self.folder.checkpoint)
        if self.folder and self.writes:
            # Lines of epochs that came after the checkpoint go: those epochs are run again.
            write_jsonl(self.folder.metrics, self.at.rows)
            if self.targets:
                write_jsonl(self.folder.selection, self.choices)
        self.board = self.open_board()
        self.began = self.saved = self.told = time.monotonic()
        self.first = self.done
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        self.model.train()
        while self.at.epoch < self.epochs:
            self.run_epoch()
            row = self.close_epoch()
            if self.at.epoch == 1 and is_spiking(self.model):
                shown = self.data.test.tensors[0][: self.config.batch_size]
                warn_of_silence(self.model, self.fabric.to_device(shown))
            if self.folder and self.writes:
                append_jsonl(self.folder.metrics, row)
            self.save()
            self.tell(row["test_accuracy"])
        return self.finish()

    @property
    def targets(self) -> bool:
        """Whether not all neurons learn."""
        return self.learner is not self.model

    @property
    def done(self) -> int:
        """Updates made so far."""
        return self.at.epoch * self.steps + self.at.step

    def batches(self, epoch: int) -> list[Tensor]:
        count = len(self.data.train)
        return batches(count, self.config.batch_size, self.seed, epoch, self.fabric.world_size)

    def run_epoch(self) -> None:
        """Make the updates of an epoch that are still to be made."""
        fabric = self.fabric
        x_train, y_train = self.data.train.tensors
        all_batches = self.batches(self.at.epoch)
        with self.timed():
            while self.at.step < self.steps:
                mine = all_batches[self.at.step][fabric.global_rank :: fabric.world_size]
                self.update(fabric.to_device(x_train[mine]), fabric.to_device(y_train[mine]))
                self.at.step += 1
                if fabric.device.type == "cpu" or self.at.step % _GPU_CHECK_STEPS == 0:
                    self.check_finite()
                self.tell()
                if self.at.step < self.steps and self.is_checkpoint_due():
                    with self.untimed():
                        self.save()
            self.check_finite()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Make one update; the parts of an accumulated batch weigh as many samples as they have."""
        began = time.process_time()
        schedule, steps = self.config.schedule, self.epochs * self.steps
        strength = self.course(self.done / max(steps - 1, 1))
        self.batch_loss.strength = strength
        for group, decay in zip(self.raw_optimizer.param_groups, self.decays, strict=True):
            group["weight_decay"] = strength * decay
            group["lr"] = learning_rate(self.done, steps, self.peak_rate, schedule)
            if "momentum" in group:
                group["momentum"] = momentum(self.done, steps, self.momentum, schedule)
        self.optimizer.zero_grad()
        parts = list(
            zip(x.chunk(self.config.accumulate), y.chunk(self.config.accumulate), strict=True)
        )
        outputs = []
        for index, (x_part, y_part) in enumerate(parts):
            more = index < len(parts) - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=more):
                with self.weighed():
                    loss, out = self.loss_of(x_part, y_part)
                self.fabric.backward(loss * (len(x_part) / len(x)))
            outputs.append(out.detach())
        if self.method.adaptive_clipping:
            self.fabric.strategy.precision.unscale_gradients(self.raw_optimizer)
            adaptive_clip_grad_(self.learner.parameters(), self.method.adaptive_clipping)
        elif self.config.clip_norm:
            self.fabric.clip_gradients(
                self.wrapped,
                self.optimizer,
                max_norm=self.config.clip_norm,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        spent = time.process_time() - began
        if self.at.step == self.steps - 1:
            self.tally.density = self.update_density()
        if self.targets:
            began = time.process_time()
            cast(Any, self.learner).step(self.raw_optimizer)
            spent += time.process_time() - began
        self.tally.step_cpu_s.append(spent)
        self.count(torch.cat(outputs), y)

    def loss_of(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self.batch_loss(x, y)
        except AttrainError as error:
            # A reward refuses outputs that are not finite: then the place and the remedy matter.
            with torch.no_grad():
                if bool(torch.isfinite(self.wrapped(x)).all()):
                    raise
            raise self.diverged() from error

    @contextmanager
    def weighed(self) -> Iterator[None]:
        """Take the memory of the second step on the CPU, which has no allocator that tells it."""
        second = min(1, self.epochs * self.steps - 1)  # the first has no optimizer state yet
        if self.done != second or self.fabric.device.type != "cpu":
            yield
            return
        with saved_for_backward() as saved:
            yield
        held = training_bytes(self.learner, self.raw_optimizer, saved)
        self.at.peak_bytes = max(self.at.peak_bytes, held)

    def count(self, out: Tensor, y: Tensor) -> None:
        self.tally.loss += F.cross_entropy(out.float(), y, reduction="sum").double()
        self.tally.hits += (out.argmax(1) == y).sum()
        self.tally.seen += len(y)

    def check_finite(self) -> None:
        if not math.isfinite(float(self.tally.loss)):
            raise self.diverged()

    def diverged(self) -> AttrainError:
        kept = " Checkpoints written before are kept." if self.folder else ""
        return AttrainError(
            f"training diverged in epoch {self.at.epoch + 1}, step {max(1, self.at.step)} "
            f"({self.method.name}, seed {self.seed}): the loss is no longer a finite number. "
            f"The learning rate {self.peak_rate:g} is probably too high: try "
            f"--learning-rate {self.peak_rate / 3:.1g}.{kept}"
        )

    def close_epoch(self) -> dict[str, Any]:
        """Measure the model, add a row to the metrics and move on to the next epoch."""
        loss, hits, seen = self.summed(
            [float(self.tally.loss), float(self.tally.hits), float(self.tally.seen)]
        )
        test = evaluate(self.model, self.data.test, device=self.fabric.device)
        row = {
            "epoch": self.at.epoch + 1,
            "step": self.done,
            "wall_s": self.at.wall_s,
            "cpu_s": self.at.cpu_s,
            "step_cpu_s": statistics.median(self.tally.step_cpu_s),
            "learning_rate": self.raw_optimizer.param_groups[0]["lr"],
            "train_loss": loss / seen,
            "train_accuracy": hits / seen,
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
            "update_density": self.tally.density,
        }
        if self.board:
            for name in row.keys() - {"epoch", "step"}:
                self.board.add_scalar(name, row[name], row["step"])
        self.at.rows.append(row)
        self.at.epoch, self.at.step, self.tally = self.at.epoch + 1, 0, _Tally()
        return row

    def update_density(self) -> float:
        if not self.sharded:
            density = update_density(self.learner.parameters())
            return density * cast(Any, self.learner).trained_share() if self.targets else density
        gradients = [
            cast(Any, p.grad).to_local() for p in self.model.parameters() if p.grad is not None
        ]
        moved = sum(int(torch.count_nonzero(gradient)) for gradient in gradients)
        own = sum(gradient.numel() for gradient in gradients)
        moved_everywhere, count = self.summed([float(moved), float(own)])
        return moved_everywhere / count

    def summed(self, values: list[float]) -> list[float]:
        if self.fabric.world_size == 1:
            return values
        total = self.fabric.all_reduce(torch.tensor(values, dtype=torch.float64), reduce_op="sum")
        return cast(list[float], cast(Tensor, total).tolist())

    def tell(self, test_accuracy: float | None = None) -> None:
        now = time.monotonic()
        if self.watch is None or (test_accuracy is None and now - self.told < _TELL_SECONDS):
            return
        self.told = now
        total = self.epochs * self.steps
        made = self.done - self.first
        left = (now - self.began) / made * (total - self.done) if made else None
        epoch = min(self.epochs, self.at.epoch + (self.at.step > 0))
        learning = told(self.choices[-1] if self.choices else None) if self.targets else ""
        self.watch(Progress(epoch, self.epochs, self.done, total, test_accuracy, left, learning))

    def chose(self, refresh: Refresh) -> None:
        """Note which neurons learn from now on."""
        line = line_of(refresh, cast(Targeted, self.learner), self.raw_optimizer)
        self.choices.append(line)
        if self.folder and self.writes:
            append_jsonl(self.folder.selection, line)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside as training."""
        self.start_clock()
        try:
            yield
        finally:
            self.stop_clock()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Leave the time inside out of the training's."""
        self.stop_clock()
        try:
            yield
        finally:
            self.start_clock()

    def start_clock(self) -> None:
        self.clock = time.perf_counter(), time.process_time()

    def stop_clock(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
            peak = torch.cuda.max_memory_allocated(self.fabric.device)
            self.at.peak_bytes = max(self.at.peak_bytes, peak)
        wall, cpu = self.clock
        self.at.wall_s += time.perf_counter() - wall
        self.at.cpu_s += time.process_time() - cpu

    def is_checkpoint_due(self) -> bool:
        if self.folder is None:
            return False
        due = time.monotonic() - self.saved >= self.config.checkpoint_seconds
        if self.fabric.world_size == 1:
            return due
        # All processes take part in a checkpoint, so they have to agree on it.
        return self.at.step % _AGREE_STEPS == 0 and bool(self.fabric.broadcast(due))

    def save(self) -> None:
        """Write a checkpoint from which training goes on exactly as if it had not stopped."""
        if self.folder is None:
            return
        self.check_finite()
        model, optimizer = self.state()
        mine = {"random": random_state(self.fabric.device), "tally": _plain(self.tally)}
        everyone = self.gathered(mine)
        if self.writes:
            if not all(bool(torch.isfinite(value).all()) for value in model.values()):
                raise self.diverged()
            save_checkpoint(
                self.folder.checkpoint,
                {
                    "schema": 1,
                    "settings": self.settings,
                    "position": asdict(self.at),
                    "choices": self.choices,
                    "model": model,
                    "targeted": self.selection_state(),
                    "optimizer": optimizer,
                    "precision": self.fabric.strategy.precision.state_dict(),
                    "processes": everyone,
                },
            )
        self.saved = time.monotonic()

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; raises InputError if it belongs to another run."""
        state = load_checkpoint(path)
        try:
            check_settings(state["settings"], self.settings, path)
            if not self.sharded:
                check_fits(state["model"], self.model, str(path))
            self.put_state(state["model"], state["optimizer"], state.get("targeted", {}))
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.at = _Position(**state["position"])
            self.choices = state.get("choices", [])
            if self.fabric.global_rank < len(state["processes"]):
                mine = state["processes"][self.fabric.global_rank]
                self.tally = _Tally(**mine["tally"])
                set_random_state(mine["random"], self.fabric.device)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, AttrainError):
                raise
            raise InputError(
                f"{path} is not a checkpoint that this version of attrain wrote "
                f"({type(error).__name__}: {error}): remove it to start this run again."
            ) from error

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the whole state of model and optimizer; with shards, on the first process only."""
        if not self.sharded:
            return self.model.state_dict(), self.raw_optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.raw_optimizer, options=options)
        return cast(dict[str, Tensor], model), cast(dict[str, Any], optimizer)

    def selection_state(self) -> dict[str, Tensor]:
        """Return what is to be known besides the weights: which rows learn, by what scores."""
        whole = self.learner.state_dict() if self.targets else {}
        return {name: value for name, value in whole.items() if not name.startswith("model.")}

    def put_state(
        self, model: dict[str, Tensor], optimizer: dict[str, Any], selection: dict[str, Tensor]
    ) -> None:
        if not self.sharded:
            inside = {f"model.{name}": value for name, value in model.items()}
            self.learner.load_state_dict({**inside, **selection} if self.targets else model)
            self.raw_optimizer.load_state_dict(optimizer)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            self.model,
            self.raw_optimizer,
            model_state_dict=cast(dict[str, Any], model),
            optim_state_dict=optimizer,
            options=StateDictOptions(full_state_dict=True),
        )

    def gathered(self, mine: dict[str, Any]) -> list[Any]:
        if self.fabric.world_size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def finish(self) -> Trained:
        model, _ = self.state()
        weights = {name: value.detach().to("cpu", copy=True) for name, value in model.items()}
        if self.folder and self.writes:
            save_weights(self.folder.weights, weights)
        if self.board:
            self.board.close()
        return Trained(
            weights=weights,
            epochs=self.at.rows,
            step_cpu_s=statistics.median(row["step_cpu_s"] for row in self.at.rows),
            train_wall_s=self.at.wall_s,
            train_cpu_s=self.at.cpu_s,
            peak_memory_bytes=self.at.peak_bytes,
        )

    def open_board(self) -> Any:
        if not (self.config.tensorboard and self.folder and self.writes):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=self.done or None)


# Pieces of the loop -------------------------------------------------------------------------------


def batches(count: int, size: int, seed: int, epoch: int, shares: int = 1) -> list[Tensor]:
    """Return the sample indices of each batch of an epoch, in an order fixed by seed and epoch.

    Every batch is cut to a multiple of `shares`, the number of processes that divide it, so that
    all parts weigh the same. The last batch is what is left, and left out if it is a single sample
    (BatchNorm cannot use one).
    """
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
    split = list(torch.split(order, size // shares * shares))
    split[-1] = split[-1][: len(split[-1]) // shares * shares]
    if len(split) > 1 and len(split[-1]) < max(2, shares):
        split.pop()
    return split


def _plain(tally: _Tally) -> dict[str, Any]:
    return {
        "loss": float(tally.loss),
        "hits": float(tally.hits),
        "seen": tally.seen,
        "density": tally.density,
        "step_cpu_s": list(tally.step_cpu_s),
    }


# What belongs to which run ------------------------------------------------------------------------


def settings(method: Method, data: Data, config: TrainingConfig, seed: int) -> dict[str, Any]:
    """Return what decides the outcome of a run, as plain values with names a person reads."""
    return {
        "method": method.name,
        "objective": method.objective,
        "credit": repr(dict(method.credit)) if method.credit is not None else None,
        "l1": method.l1,
        "guided": None if method.guided is None else repr(dict(method.guided)),
        "targeted": None if method.targeted is None else repr(dict(method.targeted)),
        "learning rate": learning_rate_of(method, config),
        "momentum": momentum_of(method, config),
        "weight decay": weight_decay_of(method, config),
        "course of weight decay and l1": method.course,
        "optimizer": config.optimizer,
        "schedule": config.schedule,
        "epochs": epochs_of(config, data.name),
        "batch size": config.batch_size,
        "clip norm": config.clip_norm,
        "adaptive clipping": method.adaptive_clipping,
        "objective options": repr(dict(method.objective_options)),
        "loss scale": method.loss_scale,
        "accumulate": config.accumulate,
        "precision": config.precision,
        "strategy": "fsdp2" if config.strategy == "fsdp2" and config.devices > 1 else "ddp",
        "seed": seed,
        "data": data.name,
        "training samples": len(data.train),
        "checksum of the training samples": _checksum(data.train),
    }


def check_settings(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise InputError naming the settings in which a checkpoint differs from what is asked."""
    told = [
        f"{name} {before.get(name)}, now {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if told:
        raise InputError(
            f"{path} belongs to a run with other settings ({'; '.join(told)}): resume it with its "
            "own, or train into another folder."
        )


def _checksum(dataset: TensorDataset) -> int:
    total = 0
    for tensor in dataset.tensors:
        total = zlib.crc32(tensor.contiguous().numpy().data, total)
    return total


# Checks before time is spent ----------------------------------------------------------------------


def check_data(data: Data) -> None:
    """Raise InputError for no samples, inputs that are not finite, or labels out of range."""
    for part, dataset in (("training", data.train), ("test", data.test)):
        if len(dataset) == 0:
            raise InputError(f"data set {data.name!r} has no {part} samples.")
        x, y = dataset.tensors
        finite = torch.isfinite(x).flatten(1).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten()
            raise InputError(
                f"data set {data.name!r}: {len(bad)} of {len(x)} {part} inputs hold NaN or "
                f"infinite values, the first is sample {int(bad[0])}: repair or remove them."
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= data.num_classes:
            raise InputError(
                f"data set {data.name!r}: {part} labels go from {low} to {high}, but with "
                f"{data.num_classes} classes they must lie in 0..{data.num_classes - 1}."
            )


def check_model(model: nn.Module, data: Data) -> None:
    """Raise InputError unless `model` turns inputs of `data` into one finite output per class."""
    x = data.train.tensors[0][:2]
    first = next(iter(model.parameters()), None)
    shape = list(x.shape[1:])
    try:
        with evaluating(model), torch.no_grad():
            out = model(x if first is None else x.to(first.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, AttrainError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the model cannot take inputs of shape {shape} from data set {data.name!r}: {reason}."
        ) from error
    wanted = [len(x), data.num_classes]
    if not isinstance(out, Tensor) or list(out.shape) != wanted:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"the model turns {len(x)} inputs of shape {shape} into {got}, but data set "
            f"{data.name!r} has {data.num_classes} classes: logits of shape {wanted} are wanted."
        )
    if not torch.isfinite(out).all():
        raise InputError("the model's outputs are NaN or infinite before any training.")


# Evaluation ---------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and each of its modules back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def predict(
    model: nn.Module,
    dataset: TensorDataset,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> Tensor:
    """Return the logits [N, C] of `model` in eval mode for the inputs of `dataset`, on the CPU.

    Raises InputError for a data set without samples.
    """
    x = dataset.tensors[0]
    if len(x) == 0:
        raise InputError("zero samples: nothing to predict.")
    if device is None:
        first = next(iter(model.parameters()), None)
        device = x.device if first is None else first.device
    with evaluating(model), torch.no_grad():
        return torch.cat(
            [model(part.to(device)).float().cpu() for part in torch.split(x, batch_size)]
        )


def evaluate(
    model: nn.Module,
    dataset: TensorDataset,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Return accuracy, loss (mean cross entropy) and ece of `model` on `dataset`, in eval mode."""
    logits = predict(model, dataset, batch_size=batch_size, device=device)
    return scores(logits, dataset.tensors[1])


def scores(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Return accuracy, loss and ece (NaN where outputs are not finite) of `logits` [N, C]."""
    y = y.cpu()
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    correct = predicted == y
    finite = bool(torch.isfinite(logits).all())
    return {
        "accuracy": correct.double().mean().item(),
        "loss": F.cross_entropy(logits.double(), y).item(),
        "ece": expected_calibration_error(confidence, correct) if finite else math.nan,
    }
