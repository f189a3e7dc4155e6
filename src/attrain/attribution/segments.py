"""Feature masks that follow the inputs: superpixels of images, words of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attrain.errors import InputError


def superpixels(x: Tensor, segments: int = 64, *, compactness: float = 1.0) -> Tensor:
    """Return a feature mask [N, 1, H, W] that cuts each image [N, C, H, W] along its edges.

    Every image has exactly `segments` connected segments, numbered from 0 in reading order, or one
    per pixel if it has fewer. Neighbouring pixels are joined where that adds the least variance
    (Ward, 1963) of their colours, in standard deviations of the image, and of their places,
    `compactness` for each width of a segment: 0 goes by colour alone, large values make blocks.
    Nothing is drawn.

    Raises InputError for what is no batch of images, values that are not finite, less than one
    segment, and a negative compactness.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.numel() == 0:
        told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"superpixels are of images [N, C, H, W], got {told}.")
    if not isinstance(segments, int) or isinstance(segments, bool) or segments < 1:
        raise InputError(f"segments must be an integer >= 1, got {segments!r}.")
    if not 0 <= compactness < float("inf"):
        raise InputError(f"compactness must be a finite number >= 0, got {compactness!r}.")
    if not torch.isfinite(x).all():
        raise InputError("x has values that are NaN or infinite: it has no segments.")
    return torch.stack([_segmented(image, segments, compactness) for image in x.detach().cpu()])


def _segmented(image: Tensor, segments: int, compactness: float) -> Tensor:
    """Return the segments [1, H, W] of an image [C, H, W]."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    _, height, width = image.shape
    count = min(segments, height * width)
    if count == 1:
        return torch.zeros(1, height, width, dtype=torch.long)
    colour = image.double().flatten(1).T
    spread = colour.std()
    colour = colour / spread if spread > 0 else colour * 0
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    side = (height * width / count) ** 0.5
    joined = AgglomerativeClustering(
        n_clusters=count, linkage="ward", connectivity=grid_to_graph(height, width)
    ).fit(torch.cat([colour, places * (compactness / side)], 1).numpy())
    return _in_reading_order(torch.from_numpy(joined.labels_).long()).reshape(1, height, width)


def _in_reading_order(labels: Tensor) -> Tensor:
    """Return labels [M] numbered 0, 1, ... by where each comes first."""
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels.tolist()])


def words(word_ids: Sequence[Sequence[int | None]]) -> Tensor:
    """Return a feature mask [N, T] whose features are words, of one or several tokens each.

    word_ids: for each sample and token the number of its word, and None for what is no word
    (padding, [CLS]), as `word_ids()` of a fast tokenizer of Hugging Face gives them. All that is
    no word is one feature, the first. For the output of an embedding [N, T, E], mask[..., None].

    Raises InputError for samples of different lengths, and for none.
    """
    lengths = {len(each) for each in word_ids}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"words are of samples with the same number of tokens, at least one: got "
            f"{sorted(lengths)}. Pad them."
        )
    return torch.tensor([[0 if word is None else word + 1 for word in each] for each in word_ids])
