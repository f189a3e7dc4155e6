"""Slow, obvious twins of targeted updates: dense training with explicit masks of rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Twin:
    """Trains a sequential model densely, and lets only some rows keep what they learn.

    norms: of each targeted layer, the BatchNorm behind it. rows: by layer, None while all learn.
    """

    def __init__(self, model, layers, norms, kind, truncated=False, **options):
        self.model, self.layers, self.norms, self.kind = model, layers, norms, kind
        self.truncated, self.options = truncated, options
        self.rows = {name: None for name in layers}
        self.moments = {}

    def learning(self, name: str) -> Tensor:
        """Return which rows of a parameter learn, as booleans."""
        parameter = self.model.get_parameter(name)
        module = name.rpartition(".")[0]
        owner = {norm: layer for layer, norm in self.norms.items()}.get(module, module)
        rows = self.rows.get(owner)
        mask = torch.ones(len(parameter), dtype=torch.bool)
        if rows is not None:
            for row in range(len(parameter)):
                mask[row] = row in rows
        return mask

    def forward(self, x: Tensor) -> Tensor:
        for name, module in self.model.named_children():
            x = module(x)
            rows = self.rows.get(name)
            if self.truncated and rows is not None:
                mask = self.learning(f"{name}.weight").view(-1, *[1] * (x.ndim - 2))
                x = torch.where(mask, x, x.detach())
        return x

    def step(self, x: Tensor, y: Tensor) -> None:
        self.model.zero_grad()
        F.cross_entropy(self.forward(x), y).backward()
        for name, parameter in self.model.named_parameters():
            mask = self.learning(name)
            for row in range(len(parameter)):
                if mask[row]:
                    self.update(name, parameter, row)

    def update(self, name: str, parameter: Tensor, row: int) -> None:
        options, gradient = self.options, parameter.grad[row].clone()
        with torch.no_grad():
            decay = options.get("weight_decay", 0.0)
            if self.kind == "adamw":
                parameter[row] *= 1 - options["lr"] * decay
            else:
                gradient += decay * parameter[row]
            first, second, count = self.moments.get((name, row), (None, None, 0))
            count += 1
            if self.kind == "sgd":
                momentum = options.get("momentum", 0.0)
                first = gradient if first is None else momentum * first + gradient
                parameter[row] -= options["lr"] * first
            else:
                a, b = 0.9, 0.999
                zero = torch.zeros_like(gradient)
                first = a * (zero if first is None else first) + (1 - a) * gradient
                second = b * (zero if second is None else second) + (1 - b) * gradient**2
                size = (second / (1 - b**count)).sqrt() + 1e-8
                parameter[row] -= options["lr"] * first / (1 - a**count) / size
            self.moments[name, row] = first, second, count

    def choose(self, rows: dict[str, Tensor]) -> None:
        """Let other rows learn; those that enter have forgotten everything."""
        before = {name: self.learning(name) for name, _ in self.model.named_parameters()}
        self.rows = {name: None if each is None else each.tolist() for name, each in rows.items()}
        for name, mask in before.items():
            for row, (was, now) in enumerate(zip(mask, self.learning(name), strict=True)):
                if now and not was:
                    self.moments.pop((name, row), None)


def values(model: nn.Module, name: str, norm: str | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer of a sequential model makes, after its BatchNorm, and the outputs."""
    seen = None
    for each, module in model.named_children():
        x = module(x)
        if each == (norm or name):
            seen, x = x, x.clone()
    assert seen is not None
    return seen, x


def score(kind: str, z: Tensor, s: Tensor) -> list[float]:
    """Return the score of each unit from z and dL/dz [N, units, ...]."""
    found = []
    for unit in range(z.shape[1]):
        total = 0.0
        for n in range(len(z)):
            places = zip(z[n, unit].flatten().tolist(), s[n, unit].flatten().tolist(), strict=True)
            for value, slope in places:
                if kind in ("error", "relevance", "ratio"):
                    total += abs(value * slope)
                elif kind == "gradient":
                    total += abs(slope)
                elif kind == "activation":
                    total += max(value, 0.0) / z[n, unit].numel()
        found.append(total / len(z))
    return found


def top(scores: list[float], k: int) -> list[int]:
    """Return the k units with the highest scores, in order; of equal ones the earlier."""
    order = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
    return sorted(order[:k])
