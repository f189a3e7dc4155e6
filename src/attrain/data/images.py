"""Labelled pictures in Hugging Face's form."""

import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.data.dataset import Data, Split, assemble, encode
from attrain.data.hub import Opened, label_column, labels, train_and_test
from attrain.errors import InputError

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK")


def labelled_pictures(opened: Opened, validation: float = 0.0, size: int | None = None) -> Data:
    """Return the pictures of `opened`, scaled to `size` x `size` if that is given.

    Raises InputError for what holds no labelled pictures, or pictures of several sizes.
    """
    library, name = opened.library, opened.name
    train, test = train_and_test(opened.splits, name)
    image = _image_column(library, train, name)
    label = label_column(library, train, name)
    parts = [part for part in (train, test) if part is not None]
    pictures = [_Pictures(library, part, image, name) for part in parts]
    colour = any(part.colour for part in pictures)
    sizes = sorted(set().union(*(part.sizes for part in pictures)))
    if len(sizes) > 1 and size is None:
        told = ", ".join(f"{width}x{height}" for width, height in sizes[:3])
        raise InputError(
            f"the pictures of data set {name!r} differ in size ({told}): scale them to one size, "
            f"such as {name}@64."
        )
    width, height = sizes[0] if size is None else (size, size)
    given = [labels(library, part, label, name) for part in parts]
    feature = train.features[label]
    if isinstance(feature, library.ClassLabel):
        numbers, classes = [part.astype(np.int64) for part in given], tuple(feature.names)
    else:
        y, y_test, classes = encode(name, given[0], given[1] if len(given) == 2 else None)
        numbers = [y] if y_test is None else [y, y_test]
    arrays: list[Split] = [
        (part.decode(colour, width, height), y) for part, y in zip(pictures, numbers, strict=True)
    ]
    scaled = f", scaled to {size}x{size}" if size else ""
    lossy = ", stored as JPEG (lossy)" if any(part.lossy for part in pictures) else ""
    return assemble(
        name,
        arrays[0],
        arrays[1] if len(arrays) == 2 else None,
        classes,
        axes=(0, 2, 3),
        scale=1 / 255,
        validation=validation,
        notes=f"{opened.source}, label {label!r}{lossy}{scaled}",
    )


def _image_column(library: ModuleType, split: Any, name: str) -> str:
    found = [key for key, kind in split.features.items() if isinstance(kind, library.Image)]
    if not found:
        raise InputError(
            f"data set {name!r} has no column of pictures (its columns: "
            f"{', '.join(split.features)}) and none of texts that is known (review, premise and "
            "hypothesis, claim, text, sentence): attrain trains on pictures, texts and tables."
        )
    return str(next((key for key in ("image", "img") if key in found), found[0]))


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

    def decode(self, colour: bool, width: int, height: int) -> NDArray[np.uint8]:
        """Return all pixels, scaled to a size where need be, uint8 [N, C, H, W]."""
        channels = 3 if colour else 1
        pixels = np.empty((len(self._rows), height, width, channels), dtype=np.uint8)
        for number, picture in enumerate(self._open()):
            converted = picture.convert("RGB" if colour else "L")
            if converted.size != (width, height):
                converted = converted.resize((width, height))
            pixels[number] = np.asarray(converted).reshape(height, width, channels)
        return pixels.transpose(0, 3, 1, 2)
