"""Tables in files: CSV with a header, and NumPy archives."""

import csv
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.data.dataset import Data, assemble, encode
from attrain.errors import InputError

_LABEL = "label"
_COLOUR_CHANNELS = (1, 3)


def load_csv(path: Path, *, name: str, validation: float = 0.0) -> Data:
    """Return a CSV file with a header, a fifth of it held out as the test set.

    The column `label`, or else the last one, is the class; the others are numbers, standardised by
    the train set. Raises InputError, with the line, for what is no such table.
    """
    header, rows = _read_rows(path)
    label = header.index(_LABEL) if _LABEL in header else len(header) - 1
    features = [index for index in range(len(header)) if index != label]
    x = np.empty((len(rows), len(features)), dtype=np.float64)
    for sample, (line, row) in enumerate(rows):
        for column, index in enumerate(features):
            x[sample, column] = _number(row[index], path, line, header[index])
        if not row[label].strip():
            raise InputError(f"{path}, line {line}: the label ({header[label]!r}) is missing.")
    labels = np.array([row[label].strip() for _, row in rows])
    y, _, classes = encode(name, _as_integers(labels), None)
    notes = f"CSV file {path.name}, label {header[label]!r}, standardised"
    return assemble(name, (x, y), None, classes, axes=(0,), validation=validation, notes=notes)


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and each row of cells with its line in the file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}.") from error
    if len(header) < 2 or not rows:
        raise InputError(
            f"{path} holds {len(rows)} rows of {len(header)} columns below its header: at least "
            "one row, one column of numbers and the label are needed."
        )
    if all(_is_number(cell) for cell in header):
        raise InputError(f"{path} has no header: its first line must name the columns.")
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(row)} cells where the header has {len(header)}."
            )
    return header, rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int, column: str) -> float:
    value = float(cell) if _is_number(cell) else math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{path}, line {line}, column {column!r}: a finite number is needed, got {cell!r}."
        )
    return value


def _as_integers(labels: NDArray[np.str_]) -> NDArray[np.generic]:
    """Return the labels as integers if they all are, so that 10 comes after 9."""
    try:
        return labels.astype(np.int64)
    except ValueError:
        return labels


def load_npz(path: Path, *, name: str, validation: float = 0.0) -> Data:
    """Return a NumPy archive with arrays x, y or x_train, y_train, x_test, y_test.

    x is a table [N, F], or pictures [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3; whole
    numbers of 8 bits are pixels of 0..255. y [N] are whole numbers or text. Without a test set, a
    fifth is held out. Raises InputError for anything else; pickled objects are never loaded.
    """
    arrays = _read_archive(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        names = [("x_train", "y_train"), ("x_test", "y_test")]
    elif {"x", "y"} <= arrays.keys():
        names = [("x", "y")]
    else:
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'no arrays'}: x and y are needed, or x_train, "
            "y_train, x_test and y_test."
        )
    splits = [_checked_split(path, arrays, *pair) for pair in names]
    shapes = [x.shape[1:] for x, _ in splits]
    if len(set(shapes)) > 1:
        raise InputError(f"{path}: samples of train and test differ in shape, {shapes}.")
    pixels = all(x.dtype == np.uint8 and x.ndim > 2 for x, _ in splits)
    axes = (0,) if splits[0][0].ndim == 2 else (0, 2, 3)
    y, y_test, classes = encode(name, splits[0][1], splits[1][1] if len(splits) == 2 else None)
    return assemble(
        name,
        (splits[0][0], y),
        None if y_test is None else (splits[1][0], y_test),
        classes,
        axes=axes,
        scale=1 / 255 if pixels else 1.0,
        validation=validation,
        notes=f"NumPy archive {path.name}, standardised",
    )


def _read_archive(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Opened here, because np.load forgets to close what turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        told = "it holds pickled objects" if "pickle" in str(error) else str(error).rstrip(".")
        raise InputError(
            f"{path} cannot be read as a NumPy archive of plain arrays (savez): {told}."
        ) from error


def _checked_split(
    path: Path, arrays: dict[str, NDArray[Any]], x_name: str, y_name: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    x, y = arrays[x_name], arrays[y_name]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim not in (2, 3, 4) or y.shape != x.shape[:1]:
        raise InputError(
            f"{path}: {x_name} must be [N, F], [N, H, W] or [N, C, H, W] and {y_name} [N]: got "
            f"{list(x.shape)} and {list(arrays[y_name].shape)}."
        )
    if x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        raise InputError(f"{path}: {x_name} must hold finite numbers only (it is {x.dtype}).")
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind not in "iubU":
        raise InputError(
            f"{path}: {y_name} must hold whole numbers or text, one class per sample (it is "
            f"{y.dtype})."
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in _COLOUR_CHANNELS and x.shape[1] not in _COLOUR_CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    return x if x.dtype == np.uint8 else x.astype(np.float32), y
