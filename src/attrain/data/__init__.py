"""Data sets by name: digits, toy sets, time series, pictures and texts, tables in files."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch.utils.data import TensorDataset

from attrain.data import series
from attrain.data.dataset import Data
from attrain.data.hub import Opened, open_folder, open_hub
from attrain.data.images import labelled_pictures
from attrain.data.tables import load_csv, load_npz
from attrain.data.texts import labelled_texts, text_columns
from attrain.data.toy import blobs, circles, digits, swirl
from attrain.errors import InputError, unknown

__all__ = ["HUB_NAMES", "NAMES", "Data", "load"]

_TOYS: dict[str, Callable[[int, float], Data]] = {
    "blobs": blobs,
    "circles": circles,
    "swirl": swirl,
}
HUB_NAMES = {
    "bird": "yashikota/birds-525-species-image-classification",
    "cifar10": "uoft-cs/cifar10",
    "esnli": "esnli",
    "fever": "copenlu/fever_gold_evidence",
    "mnist": "ylecun/mnist",
    "movies": "eraser-benchmark/movie_rationales",
}
_FOLDERS = {"movies": "movie_rationales"}  # where it is not the name itself
MNIST_SERIES = "mnist-series"
NAMES = ("digits", *_TOYS, *HUB_NAMES, MNIST_SERIES)
_FILES = {".csv": load_csv, ".npz": load_npz}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SIZED = re.compile(r"(.+)@([1-9]\d{0,3})")


def load(name: str, *, validation: float = 0.0, seed: int = 0) -> Data:
    """Load a data set, normalised and split.

    Args:
        name: one of `NAMES` or of `series.NAMES`; a folder that `datasets.load_dataset` reads or a
            name on the Hugging Face hub (`org/name`), with pictures or texts and labels; a `.csv`
            or `.npz` file. Those of `HUB_NAMES` are looked for in the folder $ATTRAIN_DATA before
            the hub. NAME@64 scales pictures to 64x64.
        validation: share of the train set to hold out for choosing settings, stratified.
        seed: draws the toy sets and time series. Which samples are held out never depends on it.

    Raises InputError for an unknown name, a missing extra, and data that cannot be trained on.
    """
    if name == "digits":
        return digits(validation)
    if name in _TOYS:
        return _TOYS[name](seed, validation)
    if series.is_series(name):
        return series.load(name, seed, validation)
    if name == MNIST_SERIES:
        return _rows_as_steps(load("mnist", validation=validation))
    path = Path(name).expanduser()
    sized = None if path.exists() else _SIZED.fullmatch(name)
    opened = _opened(sized[1] if sized else name, name)
    if opened is not None:
        return _labelled(opened, validation, int(sized[2]) if sized else None)
    if sized:
        raise InputError(f"data {name!r}: only pictures of a folder or of the hub can be scaled.")
    suffix = path.suffix.lower()
    if suffix in _FILES and path.is_file():
        return _FILES[suffix](path, name=name, validation=validation)
    if path.is_file() or suffix in _FILES or name.startswith((".", "/", "~")):
        told = "is no .csv or .npz file" if path.is_file() else "does not exist"
        raise InputError(f"data {name!r} {told}: give a .csv or .npz file, or a folder.")
    if _HUB_NAME.fullmatch(name):
        return _labelled(open_hub(name, name), validation, None)
    raise InputError(
        f"{unknown('data set', name, NAMES)} Or time series (series:BOX-PROCESS, such as "
        "series:middle-gaussian; vanishing:early). Or a folder, a .csv or .npz file, or a name on "
        "the Hugging Face hub (org/name)."
    )


def _opened(source: str, name: str) -> Opened | None:
    """Return what is in the folder or the short name `source`, None where it is neither."""
    if source in HUB_NAMES:
        local = Path(os.environ.get("ATTRAIN_DATA", "")) / _FOLDERS.get(source, source)
        if "ATTRAIN_DATA" in os.environ and local.is_dir():
            return open_folder(local, name)
        return open_hub(HUB_NAMES[source], name)
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path, name)
    if source != name and _HUB_NAME.fullmatch(source) and not path.exists():
        return open_hub(source, name)
    return None


def _labelled(opened: Opened, validation: float, size: int | None) -> Data:
    """Return pictures where there are any, else texts."""
    if not opened.has("Image"):
        if size is not None:
            raise InputError(f"data {opened.name!r} has no pictures to scale: leave @{size} out.")
        if text_columns(opened):
            return labelled_texts(opened, validation)
    return labelled_pictures(opened, validation, size)


def _rows_as_steps(data: Data) -> Data:
    """Return pictures [1, H, W] as time series of H steps with W features (paper 003, 5.3)."""

    def flat(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        return TensorDataset(x.squeeze(1), y)

    return replace(
        data,
        name=MNIST_SERIES,
        train=flat(data.train),
        test=flat(data.test),
        validation=None if data.validation is None else flat(data.validation),
        input_shape=data.input_shape[1:],
        mean=data.mean[0],
        std=data.std[0],
        notes=f"{data.notes}, each row of pixels a step of time",
    )
