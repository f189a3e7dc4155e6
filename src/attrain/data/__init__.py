"""Data sets by name: digits, toy sets, pictures in Hugging Face's form, tables in files."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from attrain.data.dataset import Data
from attrain.data.images import load_folder, load_hub
from attrain.data.tables import load_csv, load_npz
from attrain.data.toy import blobs, circles, digits, swirl
from attrain.errors import InputError, unknown

__all__ = ["HUB_NAMES", "NAMES", "Data", "load"]

_TOYS: dict[str, Callable[[int, float], Data]] = {
    "blobs": blobs,
    "circles": circles,
    "swirl": swirl,
}
HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}
NAMES = ("digits", *_TOYS, *HUB_NAMES)
_FILES = {".csv": load_csv, ".npz": load_npz}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load(name: str, *, validation: float = 0.0, seed: int = 0) -> Data:
    """Load a data set, normalised and split.

    Args:
        name: one of `NAMES`; a folder that `datasets.load_dataset` reads or a name on the Hugging
            Face hub (`org/name`), with pictures and labels; a `.csv` or `.npz` file. `mnist` and
            `cifar10` are looked for in the folder $ATTRAIN_DATA before the hub.
        validation: share of the train set to hold out for choosing settings, stratified.
        seed: draws the toy sets. Which samples are held out never depends on it.

    Raises InputError for an unknown name, a missing extra, and data that cannot be trained on.
    """
    if name == "digits":
        return digits(validation)
    if name in _TOYS:
        return _TOYS[name](seed, validation)
    if name in HUB_NAMES:
        local = Path(os.environ.get("ATTRAIN_DATA", "")) / name
        if "ATTRAIN_DATA" in os.environ and local.is_dir():
            return load_folder(local, name=name, validation=validation)
        return load_hub(HUB_NAMES[name], name=name, validation=validation)
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path, name=name, validation=validation)
    suffix = path.suffix.lower()
    if suffix in _FILES and path.is_file():
        return _FILES[suffix](path, name=name, validation=validation)
    if path.is_file() or suffix in _FILES or name.startswith((".", "/", "~")):
        told = "is no .csv or .npz file" if path.is_file() else "does not exist"
        raise InputError(f"data {name!r} {told}: give a .csv or .npz file, or a folder.")
    if _HUB_NAME.fullmatch(name):
        return load_hub(name, name=name, validation=validation)
    raise InputError(
        f"{unknown('data set', name, NAMES)} Or a folder, a .csv or .npz file, or a name on the "
        "Hugging Face hub (org/name)."
    )
