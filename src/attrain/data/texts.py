"""Labelled texts in Hugging Face's form, as numbers of words, with rationales and word vectors.

The sets of ERASER (DeYoung et al., 2019) that paper 003 measures on, section 5.2, and any with a
column of texts and one of labels.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attrain.data.dataset import (
    TEST_FRACTION,
    TEST_SPLIT_SEED,
    VALIDATION_SPLIT_SEED,
    Data,
    assemble,
    encode,
    hold_out,
)
from attrain.data.hub import Opened, label_column, labels, train_and_test
from attrain.data.word_vectors import made_vectors, read_vectors

PADDING, UNKNOWN, BETWEEN = "<padding>", "<unknown>", "<between>"
"""The words 0, 1 and 2: after the end, not in the vocabulary, between two texts of a sample."""
LENGTH = 512
"""The most words of a sample; what comes later is cut off."""
VOCABULARY = 20_000
"""The most words that are told apart: the most frequent of the training set."""
VECTORS = "ATTRAIN_VECTORS"
"""Environment variable with the file of word vectors, if there is one."""

# Columns with the texts of a sample; the first row that a data set has is taken.
_TEXTS = (
    ("review",),  # ERASER Movies
    ("premise", "hypothesis"),  # e-SNLI
    ("claim", "evidence"),  # FEVER with its sentences
    ("claim",),
    ("text",),
    ("sentence",),
)
_UNDECIDED = "NOT ENOUGH INFO"  # of FEVER: the paper tells supported from refuted
_WORD = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+|[^\w\s]")


@dataclass(frozen=True)
class Text:
    """The words of a sample, and which of them a person gave as the reason of its label."""

    words: list[str]
    reason: list[bool]


def text_columns(opened: Opened) -> tuple[str, ...]:
    """Return the columns with the texts of a sample, or () where there are none that are known."""
    columns = opened.columns
    return next((each for each in _TEXTS if set(each) <= columns.keys()), ())


def words_of(text: str) -> list[str]:
    """Return the words and marks of a text in lower case, clitics apart: do n't, it 's."""
    return _WORD.findall(text.lower())


def labelled_texts(opened: Opened, validation: float = 0.0, vectors: Path | None = None) -> Data:
    """Return texts as numbers of words, int64 [N, L], with a vector for each word.

    The vocabulary, the longest length and vectors of our own come from the training set alone.
    `vectors` is a file of them; without it $ATTRAIN_VECTORS, without that they are made of the
    training texts. Rationales (columns `evidence_spans` in whitespace tokens, or `evidences`)
    are the evidence of the data set, bool [N, L]. A data set with a validation but no train split
    is trained on that. Raises InputError for what holds no labelled texts.
    """
    name, library = opened.name, opened.library
    splits, note = opened.splits, ""
    if "train" not in splits and {"validation", "test"} <= set(splits):
        splits = {"train": splits["validation"], "test": splits["test"]}
        note = "; no train split: trained on its validation split"
    columns = text_columns(opened)
    parts = [part for part in train_and_test(splits, name) if part is not None]
    label = label_column(library, parts[0], name)
    if columns[0] == "claim":
        parts = [_decided(part, label) for part in parts]
    given = [labels(library, part, label, name) for part in parts]
    feature = parts[0].features[label]
    if isinstance(feature, library.ClassLabel):
        numbers, classes = [part.astype(np.int64) for part in given], tuple(feature.names)
    else:
        y, y_test, classes = encode(name, given[0], given[1] if len(given) == 2 else None)
        numbers = [y] if y_test is None else [y, y_test]
    texts = [_texts(part, columns) for part in parts]
    if len(parts) == 1:
        every = np.arange(len(numbers[0])), numbers[0]
        kept, out = hold_out(name, every, TEST_FRACTION, TEST_SPLIT_SEED)
        texts = [[texts[0][int(k)] for k in each] for each, _ in (kept, out)]
        numbers = [each.astype(np.int64) for _, each in (kept, out)]
    known = _learnable(name, texts[0], numbers[0], validation)
    words = vocabulary(text.words for text in known)
    length = max(1, min(LENGTH, max(len(text.words) for text in known)))
    x, x_test = (as_numbers(each, words, length) for each in texts)
    cut = np.mean([len(text.words) > length for text in known])
    rationales = {"evidences", "evidence_spans"} & opened.columns.keys()
    found, told = _vectors(words, known, vectors)
    data = assemble(
        name,
        (x, numbers[0]),
        (x_test, numbers[1]),
        classes,
        axes=None,
        to="tokens",
        validation=validation,
        notes=(
            f"{opened.source}, texts {' and '.join(map(repr, columns))}, label {label!r}{note}; "
            f"{len(words):,} words of the training set, the first {length} of each text "
            f"({cut:.0%} are longer); {told}"
        ),
        evidence={
            "train": reasons(texts[0], length),
            "test": reasons(texts[1], length),
        }
        if rationales
        else None,
    )
    return replace(data, words=tuple(words), vectors=torch.from_numpy(found))


def _decided(split: Any, label: str) -> Any:
    """Return a split of FEVER without the claims that are neither supported nor refuted."""
    feature = split.features[label]
    names = getattr(feature, "names", None)
    undecided = names.index(_UNDECIDED) if names and _UNDECIDED in names else _UNDECIDED
    return split.select([k for k, value in enumerate(split[label]) if value != undecided])


def _learnable(
    name: str, texts: Sequence[Text], y: NDArray[np.generic], validation: float
) -> Sequence[Text]:
    """Return the texts of the training set without those that will be held out for validation."""
    if not 0 < validation < 1:
        return texts
    (kept, _), _ = hold_out(name, (np.arange(len(y)), y), validation, VALIDATION_SPLIT_SEED)
    return [texts[int(k)] for k in kept]


def _texts(split: Any, columns: Sequence[str]) -> list[Text]:
    given = [list(split[column]) for column in columns]
    spans = split["evidence_spans"] if "evidence_spans" in split.features else None
    quotes = split["evidences"] if "evidences" in split.features else None
    found = []
    for k, row in enumerate(zip(*given, strict=True)):
        first, *rest = [_plain(each) for each in row]
        tokens = first.split()
        if spans is not None:
            where = [(int(start), int(stop)) for start, stop in spans[k] or ()]
        else:
            where = quoted(tokens, (quotes[k] or ()) if quotes is not None else ())
        marked = np.zeros(len(tokens), dtype=bool)
        for start, stop in where:
            marked[start:stop] = True
        words, reason = [], []
        for token, mark in zip(tokens, marked, strict=True):
            pieces = words_of(token)
            words += pieces
            reason += [bool(mark)] * len(pieces)
        for each in rest:
            words += [BETWEEN, *words_of(each)]
        found.append(Text(words, reason + [False] * (len(words) - len(reason))))
    return found


def _plain(value: Any) -> str:
    """Return a text; of a list of sentences, or of [title, number, sentence], the sentences."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return " ".join(str(each[-1]) if isinstance(each, list) else str(each) for each in value)


def quoted(tokens: Sequence[str], quotes: Iterable[str]) -> list[tuple[int, int]]:
    """Return where in `tokens` each of the quotes stands first, as (start, stop)."""
    text = f" {' '.join(tokens)} "
    found = []
    for quote in quotes:
        pieces = quote.split()
        place = text.find(f" {' '.join(pieces)} ") if pieces else -1
        if place >= 0:
            start = text.count(" ", 0, place + 1) - 1
            found.append((start, start + len(pieces)))
    return found


def vocabulary(texts: Iterable[Sequence[str]]) -> list[str]:
    """Return the words to tell apart: the special ones, then the most frequent first."""
    counts = Counter(chain.from_iterable(texts))
    counts.pop(BETWEEN, None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [PADDING, UNKNOWN, BETWEEN, *(word for word, _ in ordered[:VOCABULARY])]


def as_numbers(texts: Sequence[Text], words: Sequence[str], length: int) -> NDArray[np.int64]:
    """Return the numbers of the first `length` words of each text, [N, length], 0 after the end."""
    number = {word: place for place, word in enumerate(words)}
    unknown = number[UNKNOWN]
    x = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(x, texts, strict=True):
        cut = text.words[:length]
        row[: len(cut)] = [number.get(word, unknown) for word in cut]
    return x


def reasons(texts: Sequence[Text], length: int) -> NDArray[np.bool_]:
    """Return which of the first `length` words are a reason of the label, [N, length]."""
    masks = np.zeros((len(texts), length), dtype=bool)
    for mask, text in zip(masks, texts, strict=True):
        cut = text.reason[:length]
        mask[: len(cut)] = cut
    return masks


def _vectors(
    words: Sequence[str], texts: Sequence[Text], file: Path | None
) -> tuple[NDArray[np.float32], str]:
    """Return a vector per word, [words, D], that of padding 0, and where they are from."""
    if file is None and os.environ.get(VECTORS):
        file = Path(os.environ[VECTORS]).expanduser()
    if file is not None:
        found, known = read_vectors(file, words)
        told = f"word vectors {file.name}, which has {known:,} of the words"
    else:
        number = {word: place for place, word in enumerate(words)}
        found = made_vectors([[number.get(w, 1) for w in t.words] for t in texts], len(words))
        told = "word vectors made of the training texts (PPMI and SVD), no GloVe"
    found[0] = 0.0
    return found, told
