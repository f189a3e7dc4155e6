"""Data sets in Hugging Face's form, opened from a local folder or from the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.errors import InputError

_TEST_SPLITS = ("test", "validation", "valid", "val")
_HUB_TIMEOUT = 10.0  # seconds
_PARQUET = "refs/convert/parquet"
"""The branch in which the hub keeps its own copy, without code, of a data set with a script."""


@dataclass(frozen=True)
class Opened:
    """What `datasets.load_dataset` gave.

    Attributes:
        name: what was asked for.
        source: where it was found, in words.
        library: the module `datasets`.
        splits: its splits, by name.
    """

    name: str
    source: str
    library: ModuleType
    splits: Any

    @property
    def columns(self) -> dict[str, Any]:
        """Return the type of each column of the first split."""
        return dict(next(iter(self.splits.values())).features)

    def has(self, kind: str) -> bool:
        """Whether a column is of a type of `datasets`, such as "Image"."""
        wanted = getattr(self.library, kind)
        return any(isinstance(each, wanted) for each in self.columns.values())


def open_folder(folder: Path, name: str) -> Opened:
    """Open a local folder that `datasets.load_dataset` can read.

    Raises InputError without the extra `data`, and for what cannot be read.
    """
    library = _library()
    with _quiet(library):
        splits = _load(library, str(folder), name)
    return Opened(name, f"folder {folder}", library, splits)


def open_hub(repository: str, name: str) -> Opened:
    """Open a data set of the Hugging Face hub, from its cache if need be.

    Raises InputError without the extra `data`, and where there is neither a connection nor a copy
    in the cache.
    """
    library = _library()
    if _hub_answers(repository):
        splits = _load(library, repository, name)
    else:
        with _offline(library):
            splits = _load(library, repository, name)
    return Opened(name, f"Hugging Face {repository}", library, splits)


def _library() -> ModuleType:
    try:
        import datasets
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"pictures and texts need an extra that is missing ({error}): "
            "pip install attrain[data]."
        ) from error
    return datasets  # type: ignore[no-any-return]


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Show no progress bars: reading a local folder takes seconds."""
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


@contextmanager
def _offline(library: ModuleType) -> Iterator[None]:
    """Have `datasets` look into its cache at once, instead of after half a minute of retries."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _hub_answers(repository: str) -> bool:
    """Ask the hub for `repository` once; raise InputError if it says that there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(repository, timeout=_HUB_TIMEOUT)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"the Hugging Face hub has no data set {repository!r} for you: check the spelling, or "
            "log in (hf auth login) if it is private."
        ) from error
    except Exception:  # no connection, no answer in time, a proxy's refusal, offline mode
        return False
    return True


def _load(library: ModuleType, source: str, name: str) -> Any:
    told = repr(name) if source == name else f"{name!r} ({source})"
    try:
        return _without_code(library, source)
    except ConnectionError as error:
        raise InputError(
            f"data set {told} is not in the cache and the Hugging Face hub cannot be reached: "
            "connect once, or give a local folder (those with short names are found in "
            "$ATTRAIN_DATA too)."
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"data set {told} cannot be loaded: {lines[0].rstrip('.')}.") from error


def _without_code(library: ModuleType, source: str) -> Any:
    """Load `source`; a repository of the hub that has a script, which is not run, as its copy."""
    try:
        return library.load_dataset(source)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error) or Path(source).is_dir():
            raise
    return library.load_dataset(source, revision=_PARQUET)


def train_and_test(splits: Any, name: str) -> tuple[Any, Any]:
    """Return both splits; None for test where it has to be taken from train.

    Raises InputError where none is for training, or one is empty.
    """
    found = [key for key in _TEST_SPLITS if key in splits]
    if "train" in splits:
        train, test = splits["train"], splits[found[0]] if found else None
    elif len(splits) == 1:
        train, test = next(iter(splits.values())), None
    else:
        raise InputError(
            f"data set {name!r} has the splits {', '.join(splits)}: one named train is needed."
        )
    if len(train) == 0 or (test is not None and len(test) == 0):
        raise InputError(f"data set {name!r} has no samples in its train or its test set.")
    return train, test


def label_column(library: ModuleType, split: Any, name: str) -> str:
    """Return the column of the labels: `label`, or the first of classes."""
    found = [key for key, kind in split.features.items() if isinstance(kind, library.ClassLabel)]
    if "label" in split.features:
        return "label"
    if not found:
        raise InputError(
            f"data set {name!r} has no column of labels (its columns: "
            f"{', '.join(split.features)}): name it label, or give it the type ClassLabel."
        )
    return str(found[0])


def labels(library: ModuleType, split: Any, column: str, name: str) -> NDArray[np.generic]:
    """Return the labels [N]; raise InputError for missing ones, and for what is no class."""
    values = list(split[column])
    missing = sum(value is None or value == -1 for value in values)
    if missing:
        raise InputError(
            f"data set {name!r}: {missing} of {len(values)} samples of a split have no label."
        )
    found = np.asarray(values)
    if found.dtype.kind not in "iubU" or found.ndim != 1:
        raise InputError(
            f"data set {name!r}: column {column!r} must hold one class per sample, whole numbers "
            f"or text: it is {split.features[column]}."
        )
    return found
