"""Rivals of targeted updates that protect an old task: elastic weights, and updates of low rank."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize

Weights = Mapping[str, Tensor]
CHUNK = 50
"""Samples whose gradients are held at a time."""


def fisher(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of the outputs of x [N, ...], by parameter.

    The mean over samples of sum_c p_c (d log p_c / d w)^2, p being the softmax of the outputs: the
    expectation over the model's own labels, not a draw (Kirkpatrick et al. 2017). Of parameters
    that require grad.
    """
    learned = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}

    def surprise(values: Weights, one: Tensor, label: Tensor) -> Tensor:
        out: Tensor = functional_call(model, dict(values), (one[None],))
        return F.log_softmax(out, 1)[0, label]

    with torch.no_grad():
        shares = F.softmax(model(x), 1)
    totals = {name: torch.zeros_like(each) for name, each in learned.items()}
    for label in range(shares.shape[1]):
        slopes = vmap(grad(surprise), in_dims=(None, 0, None))
        chunks = (torch.split(each, CHUNK) for each in (x, shares[:, label]))
        for some, share in zip(*chunks, strict=True):
            for name, each in slopes(learned, some, torch.tensor(label)).items():
                totals[name] += torch.einsum("n,n...->...", share, each.square())
    return {name: total / len(x) for name, total in totals.items()}


class Elastic:
    """The cross-entropy plus what elastic weight consolidation asks for moved weights.

    strength / 2 sum_i F_i (w_i - w*_i)^2, w* being the weights now and F those of `fisher`
    (Kirkpatrick et al. 2017, equation 3).
    """

    def __init__(self, model: nn.Module, information: Weights, strength: float) -> None:
        self.information, self.strength = information, strength
        self.kept = {
            name: each.detach().clone()
            for name, each in model.named_parameters()
            if name in information
        }

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the penalty, a scalar."""
        now = dict(model.named_parameters())
        terms = [
            (self.information[name] * (now[name] - kept).square()).sum()
            for name, kept in self.kept.items()
        ]
        return self.strength / 2 * torch.stack(terms).sum()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(model(x), y) + self.penalty(model)


class _LowRank(nn.Module):
    """W + B A, of which A [rank, inputs] and B [outputs, rank] learn; B starts at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def low_rank_(model: nn.Module, rank: int, layers: Callable[[str], bool]) -> nn.Module:
    """Let linear layers learn by updates of low rank alone (LoRA, Hu et al. 2022), in place.

    `layers` tells by its name whether a layer does; its weight and bias stay. Draws from torch's
    generator; returns the model.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and layers(name):
            made = _LowRank(module.weight, rank)
            module.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", made)
    return model
