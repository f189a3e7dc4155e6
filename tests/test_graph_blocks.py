"""Graphs of transformers by blocks, against messages written out by hand."""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrain.errors import InputError
from attrain.graph import AttributionGraph, ClassGraphs

TOKENS, WIDTH, HEADS, HIDDEN, DEPTH, CLASSES = 5, 6, 2, 7, 2, 3


class Block(nn.Module):
    """A block whose attention is written out."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def attention(self, x: Tensor) -> Tensor:
        q, k = self.heads(self.query(x)), self.heads(self.key(x))
        return (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        v = self.heads(self.value(y))
        if self.fused:
            q, k = self.heads(self.query(y)), self.heads(self.key(y))
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.attention(y) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Small(nn.Module):
    def __init__(self, fused: bool = False):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block(fused) for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@pytest.fixture(autouse=True)
def _exact():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def slope(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm.weight / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()


@torch.no_grad()
def twin(model: Small, x: Tensor, target: int) -> dict[tuple[str, str], float]:
    """Messages of one sample x [1, T, F]: a sender's part times what a reader hands back."""
    stream = model.embed(x) + model.place
    parts = {f"token {t}": torch.zeros_like(stream) for t in range(TOKENS)}
    for t in range(TOKENS):
        parts[f"token {t}"][:, t] = stream[:, t]
    seen = []  # (reader, the stream before it, the senders so far, a function of credit)
    for depth, block in enumerate(model.blocks):
        before, known = stream, dict(parts)
        y = block.norm1(stream)
        weights, values = block.attention(y), block.heads(block.value(y))
        width = WIDTH // HEADS
        written = block.out.bias.expand(stream.shape).clone()
        for h in range(HEADS):
            columns = slice(h * width, (h + 1) * width)
            part = (weights[:, h] @ values[:, h]) @ block.out.weight[:, columns].t()
            parts[f"head {depth}.{h}"] = part
            written += part

            def read(c, block=block, weights=weights, h=h, columns=columns, before=before):
                of_mixed = c @ block.out.weight[:, columns]
                of_value = weights[:, h].transpose(-2, -1) @ of_mixed
                return (of_value @ block.value.weight[columns]) * slope(block.norm1, before)

            seen.append((f"head {depth}.{h}", depth, "attention", known, read))
        stream = stream + written
        before, known = stream, dict(parts)
        z = block.up(block.norm2(stream))
        a = F.gelu(z)
        parts[f"mlp {depth}"] = a @ block.down.weight.t()

        def read(c, block=block, z=z, a=a, before=before):
            of_z = (c @ block.down.weight) * a / z
            return (of_z @ block.up.weight) * slope(block.norm2, before)

        seen.append((f"mlp {depth}", depth, "mlp", known, read))
        stream = stream + block.down(a)
    credit = model.head.weight[target] * slope(model.norm, stream) / TOKENS
    found = {(name, "output"): float((part * credit).sum()) for name, part in parts.items()}
    for depth in reversed(range(DEPTH)):
        for kind in ("mlp", "attention"):
            readers = [each for each in seen if each[1:3] == (depth, kind)]
            handed = [(name, known, read(credit)) for name, _, _, known, read in readers]
            for name, known, back in handed:
                for sender, part in known.items():
                    found[sender, name] = float((part * back).sum())
                credit = credit + back
    return found


def named(graph: AttributionGraph) -> dict[tuple[str, str], float]:
    """Messages of a graph by the twin's names."""
    names = {}
    for layer in graph.layers:
        for unit in range(len(graph.relevance[layer])):
            if layer == "embed.tokens":
                names[layer, unit] = f"token {unit}"
            elif layer.startswith("blocks") and graph.kinds[layer] == "attention":
                names[layer, unit] = f"head {layer.split('.')[1]}.{unit}"
            elif layer.startswith("blocks"):
                names[layer, unit] = f"mlp {layer.split('.')[1]}"
            else:
                names[layer, unit] = "output"
    found: dict[tuple[str, str], float] = defaultdict(float)
    for layer in graph.edges:
        for source in graph.sources[layer]:
            messages = graph.between(source, layer)
            for j, row in enumerate(messages.tolist()):
                for i, value in enumerate(row):
                    found[names[source, i], names[layer, j]] += value
    return found


@pytest.mark.parametrize("fused", [False, True])
def test_messages_are_parts_times_what_readers_hand_back(fused):
    model, x = Small(fused), torch.randn(1, TOKENS, 4)
    graph = AttributionGraph.from_batch(model, x, 1, nodes="blocks")
    expected, found = twin(model, x, 1), named(graph)
    assert {kind for kind in graph.kinds.values()} == {"tokens", "attention", "mlp", "linear"}
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, rel=1e-9, abs=1e-12), pair
    assert sum(map(abs, found.values())) == pytest.approx(sum(map(abs, expected.values())))
    assert max(graph.error().values()) < 1e-12


def test_a_batch_is_the_mean_of_its_samples():
    model, x = Small(), torch.randn(3, TOKENS, 4)
    whole = AttributionGraph.from_batch(model, x, 2, nodes="blocks", batch_size=2)
    each = [AttributionGraph.from_batch(model, one[None], 2, nodes="blocks") for one in x]
    for name in whole.edges:
        mean = torch.stack([graph.edges[name] for graph in each]).mean(0)
        torch.testing.assert_close(whole.edges[name], mean, rtol=1e-12, atol=1e-14)


def test_classes_of_a_transformer_are_told_apart_in_one_pass():
    model, x, y = Small(), torch.randn(6, TOKENS, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    graphs = ClassGraphs.from_data(model, (x, y), nodes="blocks", batch_size=4)
    alone = AttributionGraph.from_batch(model, x[y == 1], 1, nodes="blocks")
    for name, edges in alone.edges.items():
        torch.testing.assert_close(graphs["1"].edges[name], edges, rtol=1e-12, atol=1e-14)


def _encoder(pre: bool) -> nn.Module:
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=pre)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x))[:, 0])

    return Encoder()


@pytest.mark.parametrize("pre", [True, False])
def test_torchs_encoder_conserves_relevance(pre):
    model, x = _encoder(pre), torch.randn(3, 5, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    graph = AttributionGraph.from_batch(model, x, 1)  # units have no graph, so blocks
    assert max(graph.error().values()) < 1e-12
    assert [graph.kinds[name] for name in graph.layers[:3]] == ["tokens", "attention", "mlp"]
    assert model.training and all(each.requires_grad for each in model.parameters())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def _hugging_face(name: str) -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    ids, small = torch.randint(1, 50, (3, 9)), {"vocab_size": 50, "hidden_size": 16}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if name.startswith("bert"):
        config = transformers.BertConfig(**small, attn_implementation=name.split()[1])
        return transformers.BertForSequenceClassification(config), ids
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2ForSequenceClassification(config), ids
    if name == "llama":
        config = transformers.LlamaConfig(**small, num_key_value_heads=1, pad_token_id=0)
        return transformers.LlamaForSequenceClassification(config), ids
    del small["vocab_size"]
    config = transformers.ViTConfig(**small, image_size=16, patch_size=8)
    return transformers.ViTForImageClassification(config), torch.randn(3, 3, 16, 16)


@pytest.mark.parametrize("name", ["bert eager", "bert sdpa", "gpt2", "llama", "vit"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_faces_transformers_conserve_relevance(name):
    model, x = _hugging_face(name)
    graph = AttributionGraph.from_batch(model, x, 1, nodes="blocks")
    # Llama casts its norms to single precision.
    assert max(graph.error().values()) < (1e-6 if name == "llama" else 1e-12)
    assert list(graph.kinds.values()).count("mlp") == 2
    assert list(graph.kinds.values()).count("attention") == 2


def test_what_has_no_stream_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="no residual stream of tokens"):
        AttributionGraph.from_batch(model, torch.randn(2, 2, 4), 1, nodes="blocks")
    with pytest.raises(InputError, match="blocks have messages by lrp alone, got method='gradi"):
        AttributionGraph.from_batch(Small(), torch.randn(1, 5, 4), 1, nodes="blocks",
                                    method="gradient")  # fmt: skip
    with pytest.raises(InputError, match="unknown kind of nodes 'block'. Did you mean 'blocks'"):
        AttributionGraph.from_batch(model, torch.randn(2, 2, 4), 1, nodes="block")


def test_samples_that_share_an_axis_with_places_are_told_apart():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(12, 3)

        def forward(self, x):
            return self.last(self.first(x.reshape(-1, 5)).tanh().reshape(-1, 12))

    model, x, y = Rows(), torch.randn(4, 2, 5), torch.tensor([0, 2, 0, 2])
    whole = AttributionGraph.from_batch(model, x, 2)
    assert max(whole.error().values()) < 1e-12
    graphs = ClassGraphs.from_data(model, (x, y), batch_size=4)
    alone = AttributionGraph.from_batch(model, x[y == 2], 2)
    for name, edges in alone.edges.items():
        torch.testing.assert_close(graphs["2"].edges[name], edges, rtol=1e-12, atol=1e-14)
