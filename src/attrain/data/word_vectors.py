"""Vectors of words: read from a file such as GloVe's, or made from the texts at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrain.errors import InputError

Array = NDArray[np.float32]

SIZE = 100
"""Values of a vector that is made here."""
WINDOW = 5
"""Words on each side that count as the context of a word."""
DENSE = 1000
"""Words up to which all singular values are computed, beyond it only those that are wanted."""
SMOOTHING = 0.75
"""Power of the counts of contexts, which keeps rare ones from weighing most."""


def read_vectors(path: Path, words: Sequence[str]) -> tuple[Array, int]:
    """Return vectors [words, D] from a text file, and how many of the words it has.

    Each line is a word and its D numbers, as GloVe writes them; a first line with two numbers, as
    word2vec writes it, is passed over. A word that the file lacks gets the mean of those that it
    has. The file is read line by line. Raises InputError, with the line, for another form, and for
    a file that has none of the words.
    """
    wanted = {word: number for number, word in enumerate(words)}
    found: dict[int, Array] = {}
    size = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if line == 1 and len(text.split()) == 2:
                    continue
                size = size or len(text.split()) - 1
                # From the right, since some words of GloVe have spaces in them.
                word, *values = text.rstrip().rsplit(" ", size)
                number = wanted.get(word)
                if size < 1 or len(values) != size:
                    raise InputError(
                        f"{path}, line {line}: a word and {max(size, 1)} numbers are wanted, got "
                        f"{text[:40].rstrip()!r}."
                    )
                if number is not None:
                    found[number] = _numbers(path, line, values)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"word vectors {path} cannot be read: {error}.") from error
    if not found:
        raise InputError(
            f"word vectors {path} have none of the {len(words):,} words of the texts: is it a text "
            "file in the same language, with a word and its numbers on each line?"
        )
    rows = np.stack(list(found.values()))
    vectors = np.tile(rows.mean(0), (len(words), 1))
    vectors[list(found)] = rows
    return vectors, len(found)


def _numbers(path: Path, line: int, values: Sequence[str]) -> Array:
    try:
        vector = np.array(values, dtype=np.float32)
    except ValueError as error:
        raise InputError(f"word vectors {path}, line {line}: {error}.") from error
    if not np.isfinite(vector).all():
        raise InputError(f"word vectors {path}, line {line}: a value is not finite.")
    return vector


def made_vectors(texts: Sequence[Sequence[int]], words: int, size: int = SIZE) -> Array:
    """Return vectors [words, size] of the words 0..words-1 from how often they stand together.

    Positive pointwise mutual information, its singular value decomposition, and the square root of
    the singular values: Levy, Goldberg, Dagan, Improving Distributional Similarity with Lessons
    Learned from Word Embeddings, 2015. `texts` are numbers of words; the vectors are scaled to a
    root mean square of 1, and a word without company has 0. Of fewer words than `size` there are
    fewer values. The same texts give the same vectors.
    """
    from scipy.sparse.linalg import svds

    size = min(size, words)
    shared = information(texts, words)
    if shared.nnz == 0:
        return np.zeros((words, size), dtype=np.float32)
    if words <= DENSE:
        left, values, _ = np.linalg.svd(shared.toarray())
    else:
        # The start is given, so that the same texts give the same vectors.
        start = np.random.default_rng(0).standard_normal(words)
        left, values, _ = svds(shared, size, v0=start)
        order = np.argsort(-values)
        left, values = left[:, order], values[order]
    vectors = left[:, :size] * np.sqrt(values[:size])
    return np.asarray(vectors / np.sqrt(np.square(vectors).mean()), dtype=np.float32)


def information(texts: Sequence[Sequence[int]], words: int) -> Any:
    """Return the positive pointwise mutual information of words and contexts, [words, words].

    max(0, log(p(w, c) / (p(w) p'(c)))), with p' from the counts of contexts to the power .75.
    """
    import scipy.sparse

    flat = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
    of_text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counts = scipy.sparse.csr_array((words, words))
    for gap in range(1, WINDOW + 1):
        together = of_text[gap:] == of_text[:-gap]
        pair = flat[:-gap][together], flat[gap:][together]
        # Built up gap by gap, so that equal pairs are added before the next ones come.
        counts = counts + scipy.sparse.csr_array((np.ones(len(pair[0])), pair), (words, words))
    counts = (counts + counts.T).tocoo()
    of_word = np.asarray(counts.sum(1)).ravel()
    smoothed = of_word**SMOOTHING
    if smoothed.sum() == 0:
        return scipy.sparse.csr_array((words, words))
    row, column = counts.coords
    ratio = counts.data / of_word[row] * (smoothed.sum() / smoothed[column])
    shared = scipy.sparse.csr_array((np.maximum(np.log(ratio), 0.0), (row, column)), (words, words))
    shared.eliminate_zeros()
    return shared
