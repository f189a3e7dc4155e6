"""Input-cell attention against its definition, alone and under credit."""

import pytest
import torch
from torch import Tensor, nn

import attrain
from attrain import rewards
from attrain.errors import InputError
from attrain.recurrent_models import InputCellAttention, InputCellLSTM


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
