"""Norms and statistics in a user's own code: they normalise, or they are refused."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attrain
from attrain import rewards
from attrain.errors import CreditError, CreditWarning

Map = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        yield


class Around(nn.Module):
    """A function between two layers; the second one takes `width` values."""

    def __init__(self, function: Callable[..., Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.a, self.b = nn.Linear(6, 8), nn.Linear(width, 3)
        self.scale, self.points = nn.Parameter(torch.rand(1)), nn.Parameter(torch.randn(3, 8))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def gradients(function: Map, epsilon: float) -> list[Tensor]:
    model, x = Around(function), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    with attrain.LFP(model, epsilon=epsilon):
        out = model(x.double())
    rewards.softmax(out, torch.tensor([0, 1, 2, 0])).backward()
    return [p.grad for p in (*model.a.parameters(), *model.b.parameters())]


def of(z: Tensor, power: float, *, centred: bool = False) -> Tensor:
    """Return the constant mean square of z to a power, of z - mean(z) with `centred`."""
    z = z.detach()
    z = z - z.mean(-1, keepdim=True) if centred else z
    return (z.square().mean(-1, keepdim=True) + 1e-5) ** power


def layer_norm(z: Tensor) -> Tensor:
    return (z - z.mean(-1, keepdim=True)) * of(z, -0.5, centred=True)


def cast_layer_norm(z: Tensor, *, inverse: bool = True) -> Tensor:
    """Layer norm as Cohere's models write it: in single precision, centred twice."""
    z = z.to(torch.float32)
    variance = (z - z.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5
    centred = z - z.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(variance) if inverse else centred / variance.sqrt()).double()


def fused_statistics(z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, -1, keepdim=True, correction=0)
    return (z - mean) * torch.rsqrt(variance + 1e-5)


def two_moments(z: Tensor) -> Tensor:
    mean = z.mean(-1, keepdim=True)
    return (z - mean) * torch.rsqrt((z * z).mean(-1, keepdim=True) - mean * mean + 1e-5)


def in_place_statistics(z: Tensor) -> Tensor:
    return z * z.square().mean(-1, keepdim=True).add_(1e-5).sqrt().reciprocal()


NORMALISATIONS: dict[str, tuple[Map, Map]] = {
    "cast, times the inverse": (cast_layer_norm, layer_norm),
    "cast, divided": (lambda z: cast_layer_norm(z, inverse=False), layer_norm),
    "variance and mean at once": (fused_statistics, layer_norm),
    "from two moments": (two_moments, layer_norm),
    "axis put back by an index": (
        lambda z: z * torch.rsqrt(z.pow(2).mean(-1) + 1e-5)[:, None],
        lambda z: z * of(z, -0.5),
    ),
    "axis put back by unsqueeze": (
        lambda z: z / (z.pow(2).mean(-1) + 1e-5).sqrt().unsqueeze(-1),
        lambda z: z * of(z, -0.5),
    ),
    "expanded": (
        lambda z: z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-5).expand_as(z),
        lambda z: z * of(z, -0.5),
    ),
    "by an indexed norm": (
        lambda z: z / z.norm(dim=-1)[:, None],
        lambda z: z / z.detach().norm(dim=-1)[:, None],
    ),
    "by a norm kept above a number": (
        lambda z: z / torch.maximum(z.norm(dim=-1, keepdim=True), torch.tensor(1e-6)),
        lambda z: z / z.detach().norm(dim=-1, keepdim=True),
    ),
    "centred by an indexed mean": (
        lambda z: (z - z.mean(-1)[:, None]) / (z.var(-1, correction=0)[:, None] + 1e-5).sqrt(),
        layer_norm,
    ),
    "cast, of rectified values": (
        lambda z: cast_layer_norm(F.relu(z)),
        lambda z: layer_norm(F.relu(z)),
    ),
    "of rectified values that are kept": (
        lambda z: (lambda h: h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-5))(F.relu(z)),
        lambda z: (lambda h: h * of(h, -0.5))(F.relu(z)),
    ),
    "statistics changed in place": (in_place_statistics, lambda z: z * of(z, -0.5)),
}


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_by_hand_has_constant_statistics(name: str, epsilon: float) -> None:
    by_hand, constant = NORMALISATIONS[name]
    tolerance = 1e-5 if name.startswith("cast") else 1e-10
    for found, wanted in zip(
        gradients(by_hand, epsilon), gradients(constant, epsilon), strict=True
    ):
        assert (found - wanted).norm() <= tolerance * wanted.norm()


def norm(z: Tensor) -> Tensor:
    return z.norm(dim=-1, keepdim=True)


ACTIVATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "as it is": lambda self, z: norm(z),
    "axis put back by an index": lambda self, z: z.norm(dim=-1)[:, None],
    "viewed": lambda self, z: z.norm(dim=-1).view(-1, 1),
    "transposed twice": lambda self, z: z.var(-1, keepdim=True).T.T,
    "stacked": lambda self, z: torch.stack([z.norm(dim=-1), z.std(-1)], 1)[:, :1],
    "the largest": lambda self, z: norm(z).max(1, keepdim=True).values,
    "above a number": lambda self, z: torch.maximum(norm(z), torch.ones(1)),
    "times a parameter": lambda self, z: self.scale * norm(z),
    "changed in place": lambda self, z: z.var(-1, keepdim=True).sqrt_(),
    "inverted": lambda self, z: norm(z).reciprocal(),
    "inverted and squashed": lambda self, z: torch.tanh(1 / norm(z)),
    "of another tensor, inverted": lambda self, z: z[:, :1] * (1 / norm(z)),
    "of another tensor's squares, inverted": (
        lambda self, z: z[:, :1] * torch.rsqrt(z.pow(2).mean(-1, keepdim=True))
    ),
    "distances": lambda self, z: F.pairwise_distance(z, z.flip(0), keepdim=True),
    "distances from parameters": lambda self, z: torch.cdist(z, self.points[:1]),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_norm_is_no_activation_in_any_disguise(name: str) -> None:
    model = Around(lambda z: ACTIVATIONS[name](model, z), width=1)
    with pytest.raises(CreditError, match="a norm, variance") as caught, attrain.LFP(model):
        model(torch.randn(4, 6).double())
    assert "test_norms.py:" in str(caught.value)


@pytest.mark.parametrize("kept", [True, False], ids=["z is kept", "z is gone"])
@pytest.mark.parametrize(
    "divide",
    [
        lambda e: e / e.sum(-1, keepdim=True),
        lambda e: e / e.sum(-1)[:, None],
        lambda e: e * e.sum(-1, keepdim=True).reciprocal(),
        lambda e: (2 * e.float() / e.float().sum(-1, keepdim=True)).double(),
    ],
)
def test_a_softmax_by_hand_is_no_normalisation(divide: Map, kept: bool) -> None:
    holder = []

    def softmax(z: Tensor) -> Tensor:
        holder.extend([z] if kept else [])
        e = torch.exp(z)
        del z
        return divide(e)

    model = Around(softmax)
    with pytest.raises(CreditError, match=r"softmax|a norm, variance"), attrain.LFP(model):
        model(torch.randn(4, 6).double())


def test_a_tensor_is_not_normalised_by_its_distance_from_another() -> None:
    model = Around(lambda z: z / F.pairwise_distance(z, z.flip(0), keepdim=True))
    with pytest.raises(CreditError, match="divided by another one"), attrain.LFP(model):
        model(torch.randn(4, 6).double())


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_norms_at_the_end_of_a_model_are_a_part_of_the_objective(epsilon: float) -> None:
    """Distances from prototypes as logits: as if they were computed after the context."""
    points = torch.randn(3, 8, dtype=torch.float64)
    model, x = Around(lambda z: z), torch.randn(4, 6).double()
    found = []
    for inside in (True, False):
        model.zero_grad()
        with attrain.LFP(model, epsilon=epsilon):
            out = z = model.a(x)
            if inside:
                out = -torch.cdist(z, points).square()
        if not inside:
            out = -torch.cdist(z, points).square()
        F.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
        found.append(model.a.weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-12)


def test_a_tensor_that_lends_its_shape_takes_no_part() -> None:
    """`w.expand_as(x) * x` is `w * x`: w is a weight, and x has the whole credit."""
    found = []
    for expand in (True, False):
        model = Around(lambda z: z)
        with attrain.LFP(model):
            z = model.a(torch.ones(2, 6).double())
            w = model.points[0]
            out = model.b((w.expand_as(z) if expand else w) * z)
        out.sum().backward()
        found.append([p.grad for p in (model.points, model.a.weight, model.b.weight)])
    for with_template, without in zip(*found, strict=True):
        assert torch.allclose(with_template, without, rtol=1e-12)
