"""The run folder: configuration, figures and weights as JSON, JSON Lines and safetensors files.

docs/reference/run-folder.md describes what is in each file. Importing this module does not import
torch, so that a report can be written without it.
"""

import errno
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from attrain.errors import AttrainError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
_NAMED_AT_MOST = 3
_TEMPORARY = ".tmp"
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose a folder on another disk",
    errno.EDQUOT: "the disk quota is used up: free some space or choose a folder on another disk",
    errno.EACCES: "permission denied: choose a place that this user may use",
    errno.EPERM: "permission denied: choose a place that this user may use",
    errno.EROFS: "the file system is read-only: choose a place that this user may write to",
    errno.EEXIST: "a file of that name is in the way: choose another name",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another name",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOENT: "it does not exist",
}


@contextmanager
def _explaining(action: str, path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one sentence about `path`."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise AttrainError(f"cannot {action} {path}: {reason}.") from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` when the block ends without an error.

    A reader sees the old file or the whole new one; after an error the old one is intact and no
    temporary file is left. Raises AttrainError for a full disk or a lack of permission.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with _explaining("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in `folder` durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and infinities as None, arrays as lists."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, torch's tensors
        return _plain(value.tolist())
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as JSON in one step; NaN and infinities become null.

    Arrays and tensors become lists. `indent=None` keeps long lists of numbers on one line.
    Raises AttrainError when the file cannot be written; the old one is then intact.
    """
    text = json.dumps(_plain(value), indent=indent, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds. Raises AttrainError if it is missing, cut short or no JSON."""
    path = Path(path)
    with _explaining("read", path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(
            f"{path} is not readable JSON ({error}): it may have been cut short; "
            "write it again or remove it."
        ) from error


def append_jsonl(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append `record` as one line and see it to the disk.

    What a kill left of a last line is removed first, and a line that does not fit on the disk is
    taken back. Raises AttrainError when the file cannot be written.
    """
    path = Path(path)
    line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    with _explaining("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = _end_of_last_line(file)
            file.truncate(end)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise


def _end_of_last_line(file: Any) -> int:
    """Return the size of `file` up to and with its last line feed."""
    position: int = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 4096)
        file.seek(start)
        found: int = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a JSON Lines file; a last line that a kill cut short is left out.

    Raises AttrainError if the file is missing or another line is damaged.
    """
    path = Path(path)
    with _explaining("read", path):
        lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}, is not readable JSON ({error}).") from error
    return records


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Write all `records`, one per line, in place of what the file held."""
    lines = [json.dumps(_plain(record), allow_nan=False) + "\n" for record in records]
    with replacing(path) as file:
        file.write("".join(lines).encode())


@dataclass(frozen=True)
class SeedFolder:
    """Where the files of one method and one seed are."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def analysis(self) -> Path:
        """Calibration, pruning curves and weight distributions of the final model."""
        return self.path / "analysis.json"

    @property
    def selection(self) -> Path:
        """One line per choice of the neurons that learn."""
        return self.path / "selection.jsonl"

    @property
    def graph(self) -> Path:
        """Attribution graphs of the classes, their largest edges."""
        return self.path / "graph.json"

    @property
    def weights(self) -> Path:
        """Final weights."""
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Everything that is needed to go on."""
        return self.path / "checkpoint.pt"


class RunFolder:
    """Where the files of one job are; nothing is made or read before it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> Path:
        """The whole resolved configuration."""
        return self.path / "config.json"

    @property
    def results(self) -> Path:
        """What the job found."""
        return self.path / "results.json"

    @property
    def samples(self) -> Path:
        """Saliency maps side by side."""
        return self.path / "samples.json"

    @property
    def boundary(self) -> Path:
        """Decision boundaries of two-dimensional data."""
        return self.path / "boundary.json"

    @property
    def spikes(self) -> Path:
        """What the neurons of spiking models do for one sample."""
        return self.path / "spikes.json"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    def seed(self, method: str, seed: int) -> SeedFolder:
        """Return the place of one method and seed."""
        return SeedFolder(self.path / method / f"seed-{seed}")

    def create(self) -> "RunFolder":
        """Make the folder and return self.

        Raises AttrainError if it already holds results, which are left as they are, or cannot be
        made.
        """
        with _explaining("use", self.path):
            if self._holds_results():
                raise InputError(
                    f"{self.path} already holds the results of a run: give another --out, "
                    "or --resume to go on with it."
                )
            self.path.mkdir(parents=True, exist_ok=True)
        return self

    def resume(self) -> "RunFolder":
        """Check that there is a run to go on with, clear what a kill left, and return self.

        Raises AttrainError if the folder holds no configuration.
        """
        with _explaining("use", self.path):
            if not self.config.is_file():
                raise InputError(
                    f"{self.path} holds no config.json, so there is no run to resume: "
                    "give the --out of an earlier run, or start without --resume."
                )
            for left in [
                *self.path.glob(f".*{_TEMPORARY}"),
                *self.path.glob(f"*/*/.*{_TEMPORARY}"),
            ]:
                left.unlink(missing_ok=True)
        return self

    def _holds_results(self) -> bool:
        files = (self.config, self.results, self.samples, self.boundary, self.spikes, self.report)
        return any(file.exists() for file in files) or any(self.path.glob("*/seed-*"))


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, without importing any of the packages."""
    found = {name: _version(name) for name in ("attrain", "torch", "numpy")}
    return found | {"python": platform.python_version(), "platform": platform.platform()}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Return the head of config.json: schema, command line, time of the start (UTC), versions."""
    return {
        "schema": SCHEMA,
        "command": shlex.join(["attrain", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def save_weights(path: str | os.PathLike[str], state: "Mapping[str, Tensor]") -> None:
    """Write a state dict as safetensors in one step; tied tensors are written under each name.

    Raises InputError for an entry that is no tensor, AttrainError when the file cannot be written.
    """
    from safetensors.torch import save
    from torch import Tensor

    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"state dict entry {name!r} is a {type(tensor).__name__}: "
                "a weights file holds tensors only."
            )
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, since other languages cannot tie them.
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    content = save(tensors)
    with replacing(path) as file:
        file.write(content)


def load_weights(path: str | os.PathLike[str], model: "nn.Module") -> None:
    """Load a safetensors file into `model`; nothing is changed unless every entry fits.

    Raises AttrainError if the file is missing, unreadable or of another model (with the names that
    are missing, unexpected or of another shape).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    with _explaining("read", path):
        content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}): it may have been cut short."
        ) from error
    check_fits(tensors, model, str(path))
    model.load_state_dict(tensors)


def check_fits(state: "Mapping[str, Tensor]", model: "nn.Module", source: str) -> None:
    """Raise InputError if `state`, read from `source`, is not a state dict of `model`."""
    wanted = model.state_dict()
    reshaped = [
        f"{name} ({list(state[name].shape)} in the file, {list(wanted[name].shape)} in the model)"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": sorted(name for name in state if name not in wanted),
        "of another shape": reshaped,
    }
    told = [f"{fault}: {_first(names)}" for fault, names in faults.items() if names]
    if told:
        raise InputError(f"{source} holds the weights of another model ({'; '.join(told)}).")


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write tensors and plain values with torch.save in one step.

    Raises AttrainError when the file cannot be written; the old checkpoint is then intact.
    """
    import torch

    with replacing(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # After the system's error, torch's writer fails again while it closes the archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | os.PathLike[str], *, device: str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing that a file brings is ever executed.

    Raises AttrainError if the file is missing, cut short, or holds more than tensors and plain
    values.
    """
    import pickle
    import warnings

    import torch

    path = Path(path)
    with _explaining("read", path), path.open("rb") as file:
        file.read(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain values but a pickle that could run "
            "code, or none at all: it was not loaded, and nothing in it was executed."
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}): it may have been cut short."
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a checkpoint of attrain.")
    return state
