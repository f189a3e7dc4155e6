"""Networks of four kinds, small enough for two processes, whose samples do not depend on others.

Every one maps [N, 3, 8, 8] to [N, 4], so that tests can run any of them on the same batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.ReLU(),
        nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def convolutions() -> nn.Module:
    """Like LeNet, with batch normalisation by its running statistics and group normalisation."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    return model.eval()


class Transformer(nn.Module):
    """Two encoder layers over sixteen patches of four pixels."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 8)
        self.position = nn.Parameter(torch.empty(1, 16, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True, norm_first=first)
            for first in (True, False)
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
        h = self.embed(tokens) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


class Loop(nn.Module):
    """A recurrent network written out, over eight rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Linear(24, 8)
        self.kept = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for row in x.transpose(1, 2).flatten(2).unbind(1):
            state = torch.tanh(self.seen(row) + self.kept(state))
        return self.head(state)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutions": convolutions,
    "transformer": Transformer,
    "loop": Loop,
}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model of that name, always with the same weights and nothing at zero."""
    torch.manual_seed(1)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.ndim == 3:
                parameter.normal_(1.0 if parameter.min() == 1 else 0.0, 0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.to(dtype)


def batch(number: int, size: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a step."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, CLASSES, (size,), generator=generator)
