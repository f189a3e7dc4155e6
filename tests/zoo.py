"""Models that try to break the engine, each with an input and what must come of it.

`ZOO[name]()` returns a `Case`. A case without `refused` must run under credit, bit-equal to running
without; one with `refused` must raise a CreditError that says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attrain.rules import gated

ZOO: dict[str, Callable[[], "Case"]] = {}


@dataclass
class Case:
    """A model, its inputs, how to get the output, and what must happen."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Callable[[Any], Tensor] = lambda out: out
    refused: str | None = None
    # How often parameters enter a call, where the plain graph does not show it: pieces of one
    # parameter, weights computed from several, layers that a step cuts off.
    uses: int | None = None

    def run(self) -> Tensor:
        """Return the output that a reward is attached to."""
        return self.output(self.model(*self.args, **self.kwargs))


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a case under its function's name, built with a seed of its own."""

    def seeded() -> Case:
        torch.manual_seed(0)
        try:
            made = build()
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")
        with torch.no_grad():
            for parameter in made.model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
        return made

    ZOO[build.__name__] = seeded
    return seeded


def images(channels: int = 3, size: int = 16, batch: int = 2) -> Tensor:
    """Return random images [batch, channels, size, size]."""
    return torch.randn(batch, channels, size, size)


class Forward(nn.Module):
    """A module whose forward is a function of (self, x)."""

    def __init__(self, function: Callable[..., Tensor], **modules: Any) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            if isinstance(module, Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module)
            else:
                setattr(self, name, module)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


@case
def mlp() -> Case:
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    return Case(nn.Sequential(*layers), (torch.randn(4, 6),))


@case
def lenet() -> Case:
    from attrain.models import LeNet

    return Case(LeNet((1, 28, 28), 10), (images(1, 28),))


@case
def preactivation_resnet() -> Case:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
            self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv1(F.relu(self.bn1(x)))
            return x + self.conv2(F.relu(self.bn2(out), inplace=True))

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), *head), (images(),))


@case
def torchvision_resnet18() -> Case:
    from torchvision.models import resnet

    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    return Case(model, (images(size=32),))


@case
def torchvision_convnext() -> Case:
    from torchvision.models import convnext

    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    model = convnext.ConvNeXt(blocks, num_classes=5, stochastic_depth_prob=0.0)
    return Case(model, (images(size=32),))


@case
def vit() -> Case:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    return Case(model, (images(),))


def _text(**options: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 16}  # fmt: skip
    return sizes | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2} | options


TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])


@case
def bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**_text())).eval()
    return Case(model, (TOKENS, MASK), output=lambda out: out.logits)


@case
def bert_eager_training() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**_text(), attn_implementation="eager")
    return Case(BertForSequenceClassification(config), (TOKENS, MASK), output=lambda o: o.logits)


@case
def gpt2_gelu_new() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 50}
    config = GPT2Config(**sizes, activation_function="gelu_new", bos_token_id=0, eos_token_id=1)
    return Case(GPT2LMHeadModel(config).eval(), (TOKENS,), output=lambda out: out.logits)


@case
def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**_text(num_key_value_heads=1)))
    return Case(model, (TOKENS,), output=lambda out: out.logits)


@case
def transformer_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return Case(nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 8),))


@case
def transformer_encoder_eval() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    return Case(model, (torch.randn(5, 2, 8),))


@case
def multihead_attention() -> Case:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    return Case(attention, (x, x, x), {"need_weights": True}, output=lambda out: out[0])


@case
def cross_attention_other_sizes() -> Case:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True, add_bias_kv=True)
    args = torch.randn(2, 5, 8), torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    return Case(attention, args, {"need_weights": False}, output=lambda out: out[0], uses=10)


@case
def weight_norm() -> Case:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)
    )
    return Case(model, (torch.randn(4, 6),), uses=4)


@case
def pruned_by_torch() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(torch.randn(1, 6))
    return Case(model, (torch.randn(4, 6),))


@case
def spectral_norm() -> Case:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU())
    return Case(model.train(), (torch.randn(4, 6),), refused="torch.nn.utils|divided|parameter")


@case
def tied_weights() -> Case:
    first, last = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
    last.weight = first.weight
    return Case(nn.Sequential(first, nn.Linear(6, 6), nn.Tanh(), last), (TOKENS % 12,))


@case
def module_used_twice() -> Case:
    shared = nn.Linear(6, 6)
    return Case(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared), (torch.randn(4, 6),))


@case
def functional_code() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.relu(x @ self.a + self.b)
        return torch.addmm(self.d, h, self.c)

    shapes = {"a": (6, 8), "b": (8,), "c": (8, 3), "d": (3,)}
    weights = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    return Case(Forward(forward, **weights), (torch.randn(4, 6),))


@case
def plus_in_forward() -> Case:
    return Case(
        Forward(lambda self, x: self.c(F.relu(self.a(x) + self.b(x)) + 1.0),
                a=nn.Linear(6, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 3)),
        (torch.randn(4, 6),),
    )  # fmt: skip


@case
def in_place_discarded() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        F.relu(h, inplace=True)
        g = self.b(h)
        g.add_(h)
        g.tanh_()
        g *= 0.5
        g.sub_(0.1).mul_(2.0)
        return self.c(g)

    parts = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 5), "c": nn.Linear(5, 3)}
    return Case(Forward(forward, **parts), (torch.randn(4, 6),))


@case
def in_place_on_a_slice() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, :2] += 1.0
        h[:, 2] = 0.0
        h[:, 3:].relu_()
        return self.c(h)

    return Case(Forward(forward, a=nn.Linear(6, 5), c=nn.Linear(5, 3)), (torch.randn(4, 6),))


@case
def dropout() -> Case:
    layers = nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.AlphaDropout(0.2), nn.Linear(8, 3)
    return Case(nn.Sequential(*layers), (torch.randn(4, 6),))


@case
def bare_linear() -> Case:
    return Case(nn.Linear(6, 3), (torch.randn(4, 6),))


@case
def bare_linear_one_sample() -> Case:
    return Case(nn.Linear(6, 3), (torch.randn(6),))


@case
def input_that_requires_grad() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return Case(model, (images(size=8).requires_grad_(),))


class Doubled(torch.autograd.Function):
    """An autograd.Function of a user's own, which a mode cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


@case
def custom_function_inside() -> Case:
    return Case(
        Forward(lambda self, x: self.b(Doubled.apply(self.a(x))), a=nn.Linear(6, 5),
                b=nn.Linear(5, 3)),
        (torch.randn(4, 6),),
        refused="Doubled",
    )  # fmt: skip


@case
def custom_function_at_the_end() -> Case:
    return Case(
        Forward(lambda self, x: Doubled.apply(self.a(x)), a=nn.Linear(6, 3)),
        (torch.randn(4, 6),),
        refused="Doubled",
    )


class RMSNorm(nn.Module):
    """RMS norm written out by hand, as Llama's is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(kind)


@case
def handwritten_rms_norm() -> Case:
    layers = nn.Linear(6, 8), RMSNorm(8), nn.Linear(8, 3)
    return Case(nn.Sequential(*layers), (torch.randn(4, 6),))


@case
def handwritten_layer_norm() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        u = x.mean(-1, keepdim=True)
        s = (x - u).pow(2).mean(-1, keepdim=True)
        return self.b((x - u) / torch.sqrt(s + 1e-6))

    return Case(Forward(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), (torch.randn(4, 6),))


@case
def handwritten_layer_norm_by_variance() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        centred = x - x.mean(-1, keepdim=True)
        return self.b(centred / (x.var(-1, keepdim=True) + 1e-6).sqrt())

    return Case(Forward(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), (torch.randn(4, 6),))


@case
def norm_as_an_activation() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).norm(dim=-1, keepdim=True))

    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(1, 3)}
    return Case(Forward(forward, **parts), (torch.randn(4, 6),), refused="a norm, variance")


@case
def handwritten_gelu() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return self.b(0.5 * x * (1.0 + torch.tanh(inner)))

    return Case(Forward(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), (torch.randn(4, 6),))


@case
def handwritten_softmax() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        e = torch.exp(self.a(x))
        return self.b(e / e.sum(-1, keepdim=True))

    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
    return Case(Forward(forward, **parts), (torch.randn(4, 6),), refused="divided")


@case
def embedding_model() -> Case:
    layers = nn.Embedding(12, 6), nn.Flatten(), nn.Linear(42, 8), nn.ReLU(), nn.Linear(8, 3)
    return Case(nn.Sequential(*layers), (TOKENS % 12,))


@case
def embedding_bag() -> Case:
    return Case(nn.Sequential(nn.EmbeddingBag(12, 6), nn.Linear(6, 3)), (TOKENS % 12,))


@case
def step_from_a_comparison() -> Case:
    return Case(
        Forward(lambda self, x: self.b((self.a(x) > 0).float()), a=nn.Linear(6, 8),
                b=nn.Linear(8, 3)),
        (torch.randn(4, 6),),
        uses=4,
    )  # fmt: skip


@case
def comparison_times_a_number() -> Case:
    return Case(
        Forward(lambda self, x: self.b((self.a(x) > 0) * 1.0), a=nn.Linear(6, 8),
                b=nn.Linear(8, 3)),
        (torch.randn(4, 6),),
        refused="comparison of activations",
    )  # fmt: skip


@case
def squeeze_and_excitation() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return self.head((x * torch.tanh(gate)).mean((2, 3)))

    parts = {"conv": nn.Conv2d(3, 4, 3), "down": nn.Conv2d(4, 2, 1), "up": nn.Conv2d(2, 4, 1)}
    return Case(Forward(forward, head=nn.Linear(4, 3), **parts), (images(),))


@case
def gated_linear_unit() -> Case:
    return Case(nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)), (torch.randn(4, 6),))


@case
def every_norm() -> Case:
    layers = [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4, affine=True),
              nn.PReLU(4), nn.LocalResponseNorm(2), nn.BatchNorm2d(4), nn.Flatten(),
              nn.RMSNorm(4 * 36), nn.LayerNorm(4 * 36), nn.Linear(4 * 36, 3)]  # fmt: skip
    return Case(nn.Sequential(*layers), (images(size=8),))


@case
def autoencoder_with_transposed_convolution() -> Case:
    layers = [nn.Conv2d(1, 4, 3, 2), nn.ELU(), nn.ConvTranspose2d(4, 2, 3, 2), nn.LeakyReLU(0.1),
              nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Flatten(),
              nn.LazyLinear(3)]  # fmt: skip
    model = nn.Sequential(*layers)
    model(images(1, 9))
    return Case(model, (images(1, 9),))


@case
def densely_joined() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x)
        b = F.relu(self.b(a))
        return self.c(F.max_pool2d(torch.cat([a, b], 1), 2).flatten(1))

    parts = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 1), "c": nn.Linear(8 * 9, 3)}
    return Case(Forward(forward, **parts), (images(size=8),))


@case
def divided_by_an_activation() -> Case:
    return Case(
        Forward(lambda self, x: self.c(self.a(x) / (1 + self.b(x) ** 2)), a=nn.Linear(6, 5),
                b=nn.Linear(6, 5), c=nn.Linear(5, 3)),
        (torch.randn(4, 6),),
        refused="divided",
    )  # fmt: skip


def _masked_weight(change: Callable[[Any], Tensor], refused: str | None) -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), change(self))

    mask = (torch.rand(3, 5) > 0.5).float()
    weight = nn.Parameter(torch.randn(3, 5))
    case = Case(Forward(forward, a=nn.Linear(6, 5), w=weight, mask=mask), (torch.randn(4, 6),))
    case.model.plain = [mask.clone()]
    case.refused = refused
    return case


@case
def weight_masked_by_a_buffer() -> Case:
    return _masked_weight(lambda self: self.w * self.mask, None)


@case
def weight_masked_by_an_unknown_tensor() -> Case:
    return _masked_weight(lambda self: self.w * self.plain[0], "whether that is a weight")


@case
def weight_masked_by_an_unknown_tensor_and_transposed() -> Case:
    return _masked_weight(lambda self: (self.w.t() * self.plain[0].t()).t(), "whether that is a w")


@case
def weight_with_noise() -> Case:
    return _masked_weight(lambda self: self.w + torch.randn_like(self.w), "whether that is a weig")


@case
def learned_queries() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        latents = self.norm(self.q(self.latents.expand(4, 5))).relu()
        return self.out(latents + self.a(x))

    parts = {"q": nn.Linear(5, 5), "norm": nn.LayerNorm(5), "a": nn.Linear(6, 5)}
    latents = nn.Parameter(torch.randn(1, 5))
    model = Forward(forward, latents=latents, out=nn.Linear(5, 3), **parts)
    return Case(model, (torch.randn(4, 6),))


@case
def attention_with_a_query_that_looks_nowhere() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        keep = torch.ones(5, 5, dtype=torch.bool).tril()
        keep[0] = False
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, keep)

    return Case(Forward(forward, qkv=nn.Linear(6, 12)), (torch.randn(2, 5, 6),))


@case
def variance_as_an_activation() -> Case:
    return Case(
        Forward(lambda self, x: torch.relu(self.a(x).var(1, keepdim=True)), a=nn.Linear(6, 5)),
        (torch.randn(4, 6),),
        refused="a norm, variance",
    )


@case
def lerp_by_an_activation() -> Case:
    return Case(
        Forward(lambda self, x: torch.lerp(self.a(x), self.b(x), torch.tanh(self.a(x))),
                a=nn.Linear(6, 5), b=nn.Linear(6, 5)),
        (torch.randn(4, 6),),
        refused="its weight carries credit",
    )  # fmt: skip


# A recurrent layer uses each of its weights once; torch's own graph, once per step.


@case
def lstm() -> Case:
    return Case(nn.LSTM(6, 5), (torch.randn(3, 2, 6),), output=lambda o: o[0], uses=4)


@case
def lstm_stacked_with_projections() -> Case:
    model = nn.LSTM(6, 5, 2, proj_size=3, bidirectional=True, batch_first=True)
    x = torch.randn(2, 3, 6, dtype=torch.float64)  # in single precision oneDNN warns
    return Case(model.double(), (x,), output=lambda o: o[1][1][-1], uses=20)


@case
def gru_with_dropout_and_attention_over_its_states() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        states, last = self.gru(torch.tanh(self.a(x)))
        weights = torch.softmax(self.score(states), 1)
        return self.out((weights * states).sum(1) + last[-1].repeat(1, 2))

    parts = {"a": nn.Linear(6, 5), "score": nn.Linear(10, 1), "out": nn.Linear(10, 3)}
    gru = nn.GRU(5, 5, 2, dropout=0.3, bidirectional=True, batch_first=True)
    return Case(Forward(forward, gru=gru, **parts), (torch.randn(2, 4, 6),), uses=22)


@case
def packed_words_through_an_rnn() -> Case:
    def forward(self: Any, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(words), lengths, True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], True)
        return self.out(states.amax(1))

    parts = {"words": nn.Embedding(50, 6), "rnn": nn.RNN(6, 5, nonlinearity="relu")}
    return Case(
        Forward(forward, out=nn.Linear(5, 3), **parts), (TOKENS, torch.tensor([4, 7])), uses=7
    )


@case
def recurrent_cells() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        state, h, last = None, None, None
        for each in x:
            state = self.lstm(each, state)
            h = self.gru(state[0], h)
            last = self.rnn(h, last)
        return last

    parts = {"lstm": nn.LSTMCell(6, 5), "gru": nn.GRUCell(5, 4), "rnn": nn.RNNCell(4, 3)}
    return Case(Forward(forward, **parts), (torch.randn(3, 2, 6),))


@case
def minimal_gated_unit_written_by_hand() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(2, 5)
        for each in x:
            both = torch.cat([each, h], 1)
            gate, new = self.gate(both), torch.tanh(self.new(both))
            h = gated(h, -gate) + gated(new, gate)
        return self.out(h)

    parts = {"gate": nn.Linear(11, 5), "new": nn.Linear(11, 5), "out": nn.Linear(5, 3)}
    return Case(Forward(forward, **parts), (torch.randn(3, 2, 6),))


@case
def unknown_function() -> Case:
    return Case(
        Forward(lambda self, x: torch.logcumsumexp(self.a(x), 1), a=nn.Linear(6, 5)),
        (torch.randn(4, 6),),
        refused="logcumsumexp",
    )
