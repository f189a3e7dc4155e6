"""Small images as PNG data addresses: inputs and saliency maps, one shared colour scale."""

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from attrain.report.graph_input import Array

LEVELS = 64

# Dark to bright with even steps of lightness, readable in print and with colour blindness.
_ANCHORS = np.array(
    [[4, 4, 18], [54, 14, 92], [123, 30, 109], [188, 55, 84], [237, 105, 37], [251, 173, 24],
     [252, 250, 170]]
)  # fmt: skip

# Neither a grey nor on the scale.
_FRAME = np.array([0, 208, 240], np.uint8)

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def colours() -> Bytes:
    """Return the colour scale `(LEVELS, 3)` from nothing to most."""
    where = np.linspace(0, len(_ANCHORS) - 1, LEVELS)
    channels = [np.interp(where, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def photograph(pixels: Array, frame: Mask | None = None) -> str:
    """Return the image address of an input `(C, H, W)` in 0..1, one or three channels.

    The edge of `frame` `(H, W)` is drawn over it.
    """
    bytes_ = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    if frame is not None:
        return address(_framed(np.moveaxis(bytes_, 0, -1), frame))
    return address(bytes_[0]) if len(bytes_) == 1 else address(np.moveaxis(bytes_, 0, -1))


def heat_map(values: Array, top: float, frame: Mask | None = None) -> str:
    """Return the image address of a map `(H, W)` on the colour scale from 0 to `top`.

    The edge of `frame` `(H, W)` is drawn over it.
    """
    share = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    places = (share * (LEVELS - 1)).round().astype(np.uint8)
    if frame is not None:
        return address(_framed(colours()[places], frame))
    return address(places, colours())


def _framed(image: Bytes, frame: Mask) -> Bytes:
    """Return an image `(H, W, 1 or 3)` in colour with the outermost pixels of `frame` replaced."""
    around = np.pad(frame, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    coloured = np.broadcast_to(image, (*image.shape[:2], 3)).copy()
    coloured[frame & ~inner] = _FRAME
    return coloured


def scale_bar() -> str:
    """Return the image address of the colour scale itself, from left to right."""
    return address(np.arange(LEVELS, dtype=np.uint8)[None], colours())


def address(image: Bytes, palette: Bytes | None = None) -> str:
    """Return a PNG as a data address: grey, colour, or with a palette, index."""
    return "data:image/png;base64," + base64.b64encode(png(image, palette)).decode()


def png(image: Bytes, palette: Bytes | None = None) -> bytes:
    """Return a PNG of grey `(H, W)`, colour `(H, W, 3)` or, with a palette, index `(H, W)`."""
    height, width = image.shape[:2]
    kind = 3 if palette is not None else (0 if image.ndim == 2 else 2)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", palette.tobytes()))
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
