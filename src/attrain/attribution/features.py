"""What LIME, SHAP and occlusion switch on and off: cells of an image, tokens, channels, values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attrain.errors import InputError

CELLS = 8
"""Cells along each side of an image, where nothing else is asked for."""


def grid(shape: Sequence[int], cells: int | tuple[int, int] = CELLS) -> Tensor:
    """Return a feature mask [1, 1, H, W] that cuts an image into a grid of equal cells.

    shape: of the images, [..., H, W]. cells: how many along the height and along the width, at
    most one per pixel. A mask from a segmentation (superpixels) has the same form: an integer at
    each pixel says to which feature it belongs.

    Raises InputError for a shape without height and width, and for fewer cells than one.
    """
    if len(shape) < 2:
        raise InputError(f"a grid is for images [..., H, W], got the shape {tuple(shape)}.")
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    if rows < 1 or columns < 1:
        raise InputError(f"cells={cells!r} is not possible: give at least 1 along each side.")
    height, width = shape[-2:]
    down, across = min(rows, height), min(columns, width)
    row = torch.arange(height) * down // height
    column = torch.arange(width) * across // width
    return (row[:, None] * across + column)[None, None]


def default_mask(shape: Sequence[int], *, layer: bool) -> Tensor:
    """Return the feature mask [1, ...] of inputs, or units of a layer, of shape [N, ...].

    Images: cells of a grid. Layers: channels [N, C, H, W], tokens [N, T, E]. Else each value.
    """
    sample = tuple(shape[1:])
    if layer and len(sample) > 1:
        return _along_first(sample)
    if len(sample) == 3:
        return grid(sample).expand(1, *sample)
    return torch.arange(math.prod(sample)).reshape(1, *sample)


def _along_first(sample: tuple[int, ...]) -> Tensor:
    ones = [1] * (len(sample) - 1)
    return torch.arange(sample[0]).reshape(1, sample[0], *ones).expand(1, *sample)


def check_mask(mask: Tensor | None, shape: Sequence[int], *, layer: bool) -> Tensor:
    """Return a feature mask [1 or N, ...] of the features 0, 1, ..., for values of `shape`.

    Raises InputError for a mask that holds no integers, or does not broadcast to `shape`.
    """
    if mask is None:
        return default_mask(shape, layer=layer)
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.dtype == torch.bool:
        raise InputError(
            "feature_mask is a tensor of integers that says which feature each place belongs to, "
            f"got {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}."
        )
    samples, *sample = shape
    count = len(mask) if mask.ndim == len(shape) and len(mask) == samples else 1
    try:
        found = mask.expand(count, *sample)
    except RuntimeError:
        raise InputError(
            f"feature_mask has the shape {tuple(mask.shape)}, which does not broadcast to "
            f"{(1, *sample)} or {tuple(shape)}."
        ) from None
    # Numbered for each sample by itself: captum takes the largest number for their count.
    return torch.stack([each.unique(return_inverse=True)[1] for each in found])


def total(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum [N] over the features of attributions; each feature counts once."""
    if mask is None:
        return values.flatten(1).sum(1)
    sums = []
    for n, each in enumerate(values):
        of_features = mask[n if len(mask) > 1 else 0].flatten().to(values.device)
        by_feature = each.new_zeros(int(of_features.max()) + 1)
        sums.append(by_feature.scatter(0, of_features, each.flatten()).sum())
    return torch.stack(sums)


def window(shape: Sequence[int], *, layer: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the window that occlusion slides over values [N, ...], and its stride.

    Images: a square of an eighth of the shorter side, over all channels, by half of it. Layers:
    whole channels, or tokens. Sequences [N, T, F]: whole steps. Else each value.
    """
    sample = tuple(shape[1:])
    if len(sample) == 3 and not layer:
        side = max(1, min(sample[1:]) // CELLS)
        step = max(1, side // 2)
        return (sample[0], side, side), (sample[0], step, step)
    if len(sample) > 1:
        whole = (1, *sample[1:])
        return whole, whole
    return (1,) * len(sample), (1,) * len(sample)


def windows(shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many places a window has."""
    return math.prod(
        1 + math.ceil((extent - side) / step)
        for extent, side, step in zip(shape[1:], size, strides, strict=True)
    )
