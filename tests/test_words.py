"""Comprehensiveness and sufficiency of texts, against loops over words and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attrain.errors import InputError
from attrain.metrics import words
from attrain.metrics.faithfulness import AOPC


def order_matters(tokens):
    """Return probabilities [N, 3] that depend on which words there are and where they stand."""
    place = torch.arange(1, tokens.shape[1] + 1)
    logits = [
        (torch.sin(tokens.double() * k / place) * (tokens != 0)).sum(1) for k in (1.0, 2.0, 3.0)
    ]
    return torch.stack(logits, 1).double().softmax(1)


def slow(tokens, scores, fraction, order, keep):
    """Return what one text falls by: take word after word, the highest score first."""
    text = [token for token in tokens if token]
    whole = order_matters(torch.tensor([text]))[0].tolist()
    top = whole.index(max(whole))
    taken: list[int] = []
    for _ in range(max(1, round(fraction * len(text)))):
        best = None
        for k in order:
            left = k < len(text) and k not in taken
            if left and (best is None or scores[k] > scores[best]):
                best = k
        assert best is not None
        taken.append(best)
    kept = [token for k, token in enumerate(text) if (k in taken) == keep]
    return whole[top] - order_matters(torch.tensor([kept + [0]]))[0].tolist()[top]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.booleans())
def test_both_equal_their_twin(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (4, 12), generator=generator)
    for text, length in enumerate((12, 7, 1, 3)):
        tokens[text, length:] = 0
    scores = torch.randn(4, 12, generator=generator)
    scores = scores.round() if ties else scores
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    for measure, keep in ((words.comprehensiveness, False), (words.sufficiency, True)):
        found = measure(order_matters, tokens, scores, seed=seed)
        wanted = [
            sum(slow(t.tolist(), s.tolist(), share, order, keep) for share in AOPC) / len(AOPC)
            for t, s in zip(tokens, scores, strict=True)
        ]
        assert found.tolist() == pytest.approx(wanted, abs=1e-9)


def test_deleted_words_leave_no_gap():
    tokens = torch.tensor([[5, 6, 7, 8, 0], [5, 0, 0, 0, 0]])
    keep = torch.tensor([[False, True, False, True, False], [False] * 5])
    assert words.only(tokens, keep).tolist() == [[6, 8, 0, 0, 0], [0] * 5]
    assert words.only(tokens, keep, padding=9)[0].tolist() == [6, 8, 9, 9, 9]


def test_as_by_hand():
    """Word 1 alone decides: p = .9 with it, .5 without."""

    def predict(tokens):
        p = 0.5 + 0.4 * (tokens == 1).any(1).double()
        return torch.stack([p, 1 - p], 1)

    tokens = torch.tensor([[2, 1, 3, 4, 0, 0]])
    right, wrong = torch.tensor([[0.0, 9, 1, 2, 99, 99]]), torch.tensor([[3.0, -9, 1, 2, 0, 0]])
    some = (0.25, 0.5, 1.0)
    assert words.comprehensiveness(predict, tokens, right, fractions=some).item() == pytest.approx(
        0.4
    )
    assert words.sufficiency(predict, tokens, right, fractions=some).item() == pytest.approx(0)
    found = words.comprehensiveness(predict, tokens, wrong, fractions=some).item()
    assert found == pytest.approx(0.4 / 3)
    found = words.sufficiency(predict, tokens, wrong, fractions=some).item()
    assert found == pytest.approx(0.8 / 3)


TEXT, SCORES = torch.tensor([[1, 2], [3, 0]]), torch.rand(2, 2)


@pytest.mark.parametrize(
    ("tokens", "scores", "fractions", "text"),
    [
        (TEXT, SCORES[:1], AOPC, r"got torch.int64 \(2, 2\) and scores \(1, 2\)"),
        (TEXT.float(), SCORES, AOPC, r"texts are whole numbers \[N, L\] .* got torch.float32"),
        (TEXT > 0, SCORES, AOPC, r"texts are whole numbers \[N, L\] .* got torch.bool"),
        (TEXT, SCORES, (), r"in 0..1: got \(\)"),
        (TEXT, SCORES, (1.5,), r"in 0..1: got \(1.5,\)"),
        (TEXT * 0, SCORES, AOPC, "2 of 2 texts have no word"),
        (TEXT[:0], SCORES[:0], AOPC, "0 of 0 texts have no word"),
        (TEXT, SCORES * math.nan, AOPC, "NaN or infinite: no order in them"),
    ],
)
def test_what_cannot_be_measured_is_refused(tokens, scores, fractions, text):
    with pytest.raises(InputError, match=text):
        words.comprehensiveness(order_matters, tokens, scores, fractions=fractions)


def test_outputs_that_are_no_answers_are_refused():
    for predict, text in (
        (lambda tokens: order_matters(tokens) * math.nan, "outputs are NaN for 2 of 2 samples"),
        (
            lambda tokens: order_matters(tokens)[:, 0],
            r"2 samples into \(2,\): one output per class",
        ),
    ):
        with pytest.raises(InputError, match=text):
            words.sufficiency(predict, TEXT, SCORES)


def test_whole_numbers_order_words_as_others_do():
    whole = torch.tensor([[3, 1], [5, 0]])
    found, wanted = (words.sufficiency(order_matters, TEXT, s) for s in (whole, whole.double()))
    assert torch.equal(found, wanted)
