"""Temporal convolutions and the causal Transformer against loops, alone and under credit."""

import math

import pytest
import torch
from torch import Tensor, nn

import attrain
from attrain import rewards
from attrain.errors import InputError
from attrain.models import build
from attrain.sequence_models import TCN, CausalBlock, EncoderBlock, SeriesTransformer, places

NAMES = ["lstm", "lstm-input-cell", "tcn", "transformer"]


def test_sizes_are_those_of_the_benchmark() -> None:
    tcn = TCN(50, 50, 2)
    assert [list(block.conv1.weight.shape) for block in tcn.blocks] == [
        *([5, 50, 4], [5, 5, 4], [50, 5, 4])
    ]
    assert [block.conv2.dilation for block in tcn.blocks] == [(1,), (2,), (4,)]
    assert isinstance(tcn.blocks[1].shortcut, nn.Identity)
    first, second, third = 1005 + 105 + 255, 105 + 105, 1050 + 10050 + 300
    assert sum(p.numel() for p in tcn.parameters()) == first + second + third + 102
    transformer = SeriesTransformer(50, 50, 2)
    assert len(transformer.blocks) == 6 and transformer.blocks[0].attention.num_heads == 5
    assert transformer.blocks[0].fc1.out_features == 400
    block = 4 * 50 * 50 + 4 * 50 + 50 * 400 + 400 + 400 * 50 + 50 + 4 * 50
    assert sum(p.numel() for p in transformer.parameters()) == 6 * block + 100 + 102
    for model in (tcn, transformer):
        rates = {each.p for each in model.modules() if isinstance(each, nn.Dropout)}
        assert rates == {0.1}


def convolved(conv: nn.Conv1d, x: list[list[float]], dilation: int) -> list[list[float]]:
    """Return [out][t], each step from itself and earlier ones, 0 before the first."""
    outputs, inputs, kernel = conv.weight.shape
    found = []
    for o in range(outputs):
        row = []
        for t in range(len(x[0])):
            total = conv.bias[o].item()
            for i in range(inputs):
                for k in range(kernel):
                    then = t - (kernel - 1 - k) * dilation
                    if then >= 0:
                        total += conv.weight[o, i, k].item() * x[i][then]
            row.append(total)
        found.append(row)
    return found


def test_a_causal_block_is_its_loops() -> None:
    torch.manual_seed(0)
    block = CausalBlock(2, 3, kernel=3, dilation=2, dropout=0.5).double().eval()
    x = torch.randn(1, 2, 7, dtype=torch.float64)

    def relu(rows: list[list[float]]) -> list[list[float]]:
        return [[max(0.0, value) for value in row] for row in rows]

    h = relu(convolved(block.conv1, x[0].tolist(), 2))
    h = relu(convolved(block.conv2, h, 2))
    side = convolved(block.shortcut, x[0].tolist(), 1)
    wanted = [[max(0.0, a + b) for a, b in zip(*rows, strict=True)] for rows in zip(h, side)]  # noqa: B905
    assert torch.allclose(block(x)[0], torch.tensor(wanted, dtype=torch.float64))


@torch.no_grad()
def test_an_encoder_block_is_its_definition() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(6, 2, 10, 0.5).double().eval()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    attention = block.attention
    h = block.norm1(x)[0]
    q, k, v = (h @ attention.in_proj_weight.T + attention.in_proj_bias).split(6, 1)
    rows = []
    for t in range(5):
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = [(q[t, head] @ k[s, head]).item() / math.sqrt(3) for s in range(t + 1)]
            total = sum(math.exp(score) for score in scores)
            shares = [math.exp(score) / total for score in scores]
            heads.append(sum(share * v[s, head] for s, share in enumerate(shares)))
        rows.append(attention.out_proj(torch.cat(heads)))
    after = x[0] + torch.stack(rows)
    wanted = after + block.fc2(torch.relu(block.fc1(block.norm2(after))))
    assert torch.allclose(block(x, later)[0], wanted)


def test_places_are_sines_and_cosines() -> None:
    for width in (6, 7):
        found = places(5, width)
        assert found.shape == (5, width)
        for t in range(5):
            for column in range(width):
                angle = t / 10_000 ** (2 * (column // 2) / width)
                wanted = math.cos(angle) if column % 2 else math.sin(angle)
                assert found[t, column].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["tcn", "transformer"])
def test_no_step_sees_a_later_one(name: str) -> None:
    model = build(name, (12, 10), 2, seed=0).eval()
    seen: list[Tensor] = []
    model.pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randn(2, 12, 10)
    other = x.clone()
    other[:, 7:] += 1.0
    model(x), model(other)
    assert torch.allclose(seen[0][:, :, :7], seen[1][:, :, :7], atol=1e-6)
    assert not torch.allclose(seen[0][:, :, 7:], seen[1][:, :, 7:])


@pytest.mark.parametrize(("features", "heads"), [(50, 5), (28, 4), (100, 5), (9, 3), (7, 1)])
def test_heads_divide_the_features(features: int, heads: int) -> None:
    model = build("transformer", (6, features), 2)
    assert model.blocks[0].attention.num_heads == heads
    assert model(torch.randn(2, 6, features)).shape == (2, 2)
    if features % 4:
        with pytest.raises(InputError, match=f"4 heads cannot share {features} features"):
            SeriesTransformer(features, 6, 2, heads=4)


@pytest.mark.parametrize("name", NAMES)
def test_credit_and_attributions_reach_all_of_it(name: str) -> None:
    model = build(name, (12, 10), 2, seed=0)
    x, y = torch.rand(8, 12, 10), torch.arange(8) % 2
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.fill_(0.01)  # a bias at 0 earns no credit
    model.eval()
    before = model(x)
    with attrain.LFP(model, scale="relative"):
        out = model(x)
    assert torch.equal(out, before)
    rewards.softmax(out, y).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key
    for method in ("lrp", "saliency", "smoothgrad", "input_x_gradient"):
        found = attrain.attribute(model, x, y, method=method, seed=None)
        assert found.shape == x.shape and torch.isfinite(found).all()
        assert found.abs().sum((1, 2)).min() > 0
    found, error = attrain.attribute(
        model, x, y, method="integrated_gradients", return_error=True, n_steps=200
    )
    assert error.abs().max() < 0.05 * (1 + before.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_where_the_mean_of_a_box_is_above_zero(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8, 10)
    y = torch.arange(200) % 2
    x[:, 2:6, 3:8] += (2.0 * y - 1)[:, None, None]
    model = build(name, (8, 10), 2, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.95
