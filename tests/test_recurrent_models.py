"""Input-cell attention against its definition, alone and under credit."""

import pytest
import torch
from torch import Tensor, nn

import attrain
from attrain import rewards
from attrain.errors import InputError
from attrain.recurrent_models import (
    InputCellAttention,
    InputCellLSTM,
    LastStepLSTM,
    WordBiLSTM,
)


class StepByStep(nn.Module):
    """The same attention, each step on its own: A_t = softmax(W2 tanh(W1 X_t^T)), M_t = A_t X_t."""

    def __init__(self, cell: InputCellAttention) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for t in range(x.shape[1]):
            until = x[:, : t + 1]
            scores = self.cell.score(torch.tanh(self.cell.hidden(until))).transpose(1, 2)
            by_hop = torch.softmax(scores, -1) @ until
            found.append(by_hop.flatten(1) if self.cell.flatten else by_hop.mean(1))
        return torch.stack(found, 1)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_input_cell_attention_is_its_definition(flatten: bool, epsilon: float) -> None:
    torch.manual_seed(0)
    cell = InputCellAttention(3, attention=7, hops=4, flatten=flatten).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    s = torch.randn(2, 5, cell.outputs, dtype=torch.float64)
    found = []
    for model in (cell, StepByStep(cell)):
        cell.zero_grad()
        with attrain.LFP(cell, epsilon=epsilon):
            out = model(x)
        assert torch.equal(out, model(x))
        (out * s).sum().backward()
        found.append([out, *(p.grad.clone() for p in cell.parameters())])
    for a, b in zip(*found, strict=True):
        # The mean of the hops and the product change places: another sum owes the stabiliser.
        tolerance = 1e-10 if epsilon == 0 or flatten else 1e-3
        assert b.any() and (a - b).norm() <= tolerance * b.norm()


def test_no_step_sees_a_later_one() -> None:
    torch.manual_seed(0)
    cell = InputCellAttention(3)
    x = torch.randn(2, 6, 3)
    other = x.clone()
    other[:, 4:] += 1.0
    assert torch.allclose(cell(x)[:, :4], cell(other)[:, :4])
    assert not torch.allclose(cell(x)[:, 4:], cell(other)[:, 4:])


def test_early_inputs_stay_visible() -> None:
    """The claim of the paper: gradients at early steps of a plain LSTM vanish, these do not."""
    shares = []
    for attended in (False, True):
        torch.manual_seed(0)
        model = InputCellLSTM(4, 2, hidden=5)
        if not attended:
            model.attention = nn.Identity()  # type: ignore[assignment]
        x = torch.randn(32, 60, 4, requires_grad=True)
        model.eval()(x)[:, 0].sum().backward()
        assert x.grad is not None
        early, late = x.grad[:, :10].abs().sum(), x.grad[:, -10:].abs().sum()
        shares.append((early / late).item())
    assert shares[0] < 1e-3 < 0.1 < shares[1]


def test_the_network_learns_under_credit() -> None:
    """Whether the mean of a feature over time is above 0."""
    torch.manual_seed(0)
    x = torch.randn(256, 10, 3)
    y = (x[:, :, 0].mean(1) > 0).long()
    model = InputCellLSTM(3, 2, hidden=8, attention=8, hops=2, dropout=0.0)
    credit = attrain.LFP(model, scale="relative")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        with credit:
            out = model(x)
        rewards.softmax(out, y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_what_is_asked_wrongly() -> None:
    with pytest.raises(InputError, match="hops must be at least 1, got 0"):
        InputCellAttention(3, hops=0)
    with pytest.raises(InputError, match=r"takes \[samples, steps, 3\], got \[2, 3\]"):
        InputCellAttention(3)(torch.randn(2, 3))


def test_sizes_are_those_of_the_benchmark() -> None:
    model = InputCellLSTM(50, 2)
    attention, lstm = model.attention, model.lstm
    assert list(attention.hidden.weight.shape) == [50, 50]  # d_a = 50 of 50 features
    assert list(attention.score.weight.shape) == [10, 50]  # r = 10
    assert not attention.flatten and lstm.input_size == 50 and lstm.hidden_size == 5
    assert sum(p.numel() for p in model.parameters()) == 50 * 50 + 10 * 50 + 4 * 5 * 57 + 12
    assert sum(p.numel() for p in LastStepLSTM(50, 2).parameters()) == 4 * 5 * 57 + 12


def test_the_lstm_reads_its_last_step() -> None:
    torch.manual_seed(0)
    model = LastStepLSTM(3, 2).eval()
    x = torch.randn(4, 6, 3)
    _, (last, _) = model.lstm(x)
    assert torch.allclose(model(x), model.classifier(last[0]))


def words(classes: int = 3) -> WordBiLSTM:
    torch.manual_seed(0)
    return WordBiLSTM(torch.randn(20, 6), classes, hidden=4).eval()


def test_the_words_of_a_text_are_read_both_ways_without_padding() -> None:
    """Each text alone, cut to its words, one LSTM forwards and one backwards, step by step."""
    model = words()
    tokens = torch.randint(1, 20, (5, 9))
    for text, length in enumerate((9, 4, 1, 6, 0)):
        tokens[text, length:] = 0
    for text, length in zip(tokens, (9, 4, 1, 6, 1), strict=True):
        x = model.embedding(text[:length]).unsqueeze(0)
        there, _ = model.lstm(x)
        back, _ = model.lstm_reverse(x.flip(1))
        states = torch.cat([there[0], back[0].flip(0)], 1)
        wanted = model.classifier(states.mean(0))
        assert torch.allclose(model(text.unsqueeze(0))[0], wanted, atol=1e-6)
    together = torch.cat([model(text.unsqueeze(0)) for text in tokens])
    assert torch.allclose(model(tokens), together, atol=1e-6)
    longer = torch.cat([tokens, torch.zeros(5, 7, dtype=torch.int64)], 1)
    assert torch.allclose(model(longer), model(tokens), atol=1e-6)


def test_a_gap_within_a_text_is_read() -> None:
    model = words()
    tokens = torch.tensor([[3, 0, 5, 0]])
    assert not torch.allclose(model(tokens), model(torch.tensor([[3, 5, 0, 0]])))
    assert torch.allclose(model(tokens), model(tokens[:, :3]), atol=1e-6)


@pytest.mark.parametrize("tuned", [False, True])
def test_word_vectors_stay_unless_tuned(tuned: bool) -> None:
    vectors = torch.randn(20, 6)
    model = WordBiLSTM(vectors, 2, hidden=4, tuned=tuned)
    tokens = torch.randint(1, 20, (5, 9))
    with attrain.LFP(model):
        out = model(tokens)
    rewards.softmax(out, torch.tensor([0, 1, 1, 0, 1])).backward()
    for name, parameter in model.named_parameters():
        if name == "embedding.weight" and not tuned:
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None and parameter.grad.any(), name
    with torch.no_grad():
        model.embedding.weight.fill_(0.0)
    assert vectors.any()  # they were copied


def test_words_are_attributed_by_their_vectors_and_padding_gets_nothing() -> None:
    model = words()
    tokens = torch.randint(1, 20, (4, 9))
    tokens[:, 6:] = 0
    for method in ("lrp", "saliency", "integrated_gradients"):
        found = attrain.attribute(model, tokens, 1, method=method, layer="embedding")
        assert found.shape == (4, 9, 6)
        assert found[:, :6].any() and not found[:, 6:].any(), method


def test_words_asked_wrongly() -> None:
    with pytest.raises(InputError, match=r"vectors must be \[words, values\], .* got \[4\]"):
        WordBiLSTM(torch.randn(4), 2)
    with pytest.raises(InputError, match=r"wanted, int64 \[texts, words\]: got torch.float32 \[2"):
        words()(torch.randn(2, 3))
