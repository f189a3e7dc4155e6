"""Labelled pictures in Hugging Face's form, from a local folder or from the hub."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.data.dataset import Data, Split, assemble, encode
from attrain.errors import InputError

_TEST_SPLITS = ("test", "validation", "valid", "val")
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK")
_HUB_TIMEOUT = 10.0  # seconds


def load_folder(folder: Path, *, name: str, validation: float = 0.0) -> Data:
    """Return the pictures of a local folder that `datasets.load_dataset` can read.

    Raises InputError without the extra `data`, and for what holds no labelled pictures.
    """
    library = _library()
    with _quiet(library):
        splits = _load(library, str(folder), name)
    return _labelled_pictures(library, splits, name, f"folder {folder}", validation)


def load_hub(repository: str, *, name: str, validation: float = 0.0) -> Data:
    """Return the pictures of a data set of the Hugging Face hub, from its cache if need be.

    Raises InputError without the extra `data`, where there is neither a connection nor a copy in
    the cache, and for what holds no labelled pictures.
    """
    library = _library()
    if _hub_answers(repository):
        splits = _load(library, repository, name)
    else:
        with _offline(library):
            splits = _load(library, repository, name)
    return _labelled_pictures(library, splits, name, f"Hugging Face {repository}", validation)


def _library() -> ModuleType:
    try:
        import datasets
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"picture data need an extra that is missing ({error}): pip install attrain[data]."
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
        return library.load_dataset(source)
    except ConnectionError as error:
        raise InputError(
            f"data set {told} is not in the cache and the Hugging Face hub cannot be reached: "
            "connect once, or give a local folder (mnist and cifar10 are found in $ATTRAIN_DATA "
            "too)."
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"data set {told} cannot be loaded: {lines[0].rstrip('.')}.") from error


def _labelled_pictures(
    library: ModuleType, splits: Any, name: str, source: str, validation: float
) -> Data:
    train, test = _train_and_test(splits, name)
    image = _image_column(library, train, name)
    label = _label_column(library, train, name)
    pictures = [_Pictures(library, part, image, name) for part in (train, test) if part is not None]
    colour = any(part.colour for part in pictures)
    sizes = sorted(set().union(*(part.sizes for part in pictures)))
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for width, height in sizes[:3])
        raise InputError(
            f"the pictures of data set {name!r} differ in size ({told}): scale them to one size."
        )
    labels = [_labels(library, part, label, name) for part in (train, test) if part is not None]
    feature = train.features[label]
    if isinstance(feature, library.ClassLabel):
        numbers, classes = [part.astype(np.int64) for part in labels], tuple(feature.names)
    else:
        y, y_test, classes = encode(name, labels[0], labels[1] if len(labels) == 2 else None)
        numbers = [y] if y_test is None else [y, y_test]
    arrays: list[Split] = [
        (part.decode(colour), y) for part, y in zip(pictures, numbers, strict=True)
    ]
    lossy = ", stored as JPEG (lossy)" if any(part.lossy for part in pictures) else ""
    return assemble(
        name,
        arrays[0],
        arrays[1] if len(arrays) == 2 else None,
        classes,
        axes=(0, 2, 3),
        scale=1 / 255,
        validation=validation,
        notes=f"{source}, label {label!r}{lossy}",
    )


def _train_and_test(splits: Any, name: str) -> tuple[Any, Any]:
    """Return both splits; None for test where it has to be taken from train."""
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


def _image_column(library: ModuleType, split: Any, name: str) -> str:
    found = [key for key, kind in split.features.items() if isinstance(kind, library.Image)]
    if not found:
        raise InputError(
            f"data set {name!r} has no column of pictures (its columns: "
            f"{', '.join(split.features)}): attrain trains on pictures, CSV and NumPy tables."
        )
    return str(next((key for key in ("image", "img") if key in found), found[0]))


def _label_column(library: ModuleType, split: Any, name: str) -> str:
    found = [key for key, kind in split.features.items() if isinstance(kind, library.ClassLabel)]
    if "label" in split.features:
        return "label"
    if not found:
        raise InputError(
            f"data set {name!r} has no column of labels (its columns: "
            f"{', '.join(split.features)}): name it label, or give it the type ClassLabel."
        )
    return str(found[0])


def _labels(library: ModuleType, split: Any, column: str, name: str) -> NDArray[np.generic]:
    values = list(split[column])
    missing = sum(value is None or value == -1 for value in values)
    if missing:
        raise InputError(
            f"data set {name!r}: {missing} of {len(values)} samples of a split have no label."
        )
    labels = np.asarray(values)
    if labels.dtype.kind not in "iubU" or labels.ndim != 1:
        raise InputError(
            f"data set {name!r}: column {column!r} must hold one class per sample, whole numbers "
            f"or text: it is {split.features[column]}."
        )
    return labels


class _Pictures:
    """One split's pictures: their headers are read first, their pixels on demand."""

    def __init__(self, library: ModuleType, split: Any, column: str, name: str) -> None:
        self._rows = list(split.cast_column(column, library.Image(decode=False))[column])
        self._name = name
        self.sizes: set[tuple[int, int]] = set()
        self.colour = self.lossy = False
        for number, picture in enumerate(self._open()):
            if picture.mode not in _GREY_MODES + _COLOUR_MODES:
                raise InputError(
                    f"picture {number} of data set {name!r} has mode {picture.mode}: 8-bit grey or "
                    "colour is needed."
                )
            self.sizes.add(picture.size)
            self.colour |= picture.mode in _COLOUR_MODES
            self.lossy |= picture.format == "JPEG"

    def _open(self) -> Iterator[Any]:
        from PIL import Image, UnidentifiedImageError

        for number, row in enumerate(self._rows):
            told = f"picture {number} of data set {self._name!r} cannot be read"
            if row is None:
                raise InputError(f"{told}: it is missing.")
            try:
                source = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
                with Image.open(source) as picture:
                    yield picture
            except UnidentifiedImageError as error:
                raise InputError(f"{told}: unknown format, or damaged.") from error
            except OSError as error:
                raise InputError(f"{told}: {error}.") from error

    def decode(self, colour: bool) -> NDArray[np.uint8]:
        """Return all pixels, uint8 [N, C, H, W]."""
        ((width, height),) = self.sizes
        channels = 3 if colour else 1
        pixels = np.empty((len(self._rows), height, width, channels), dtype=np.uint8)
        for number, picture in enumerate(self._open()):
            converted = picture.convert("RGB" if colour else "L")
            pixels[number] = np.asarray(converted).reshape(height, width, channels)
        return pixels.transpose(0, 3, 1, 2)
