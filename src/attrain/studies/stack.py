"""Many copies of one small dense network, trained side by side, each at its own learning rate.

A step of a tiny network costs a millisecond of Python whatever its size; a hundred of them in one
batched matrix product cost little more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attrain.credit import LFP

# Weights of a network that classifies points in the plane stay far below this.
DIVERGED = 1e4
POINTS = 40


class Stack(nn.Module):
    """Copies of a network of linear layers and activations: [N, inputs] -> [copies, N, classes].

    Copy m computes what `model` would with the m-th of every weight; all start from its weights.
    """

    def __init__(self, model: nn.Sequential, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.activations: list[Callable[[Tensor], Tensor] | None] = []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for module in model.children():
            if isinstance(module, nn.Linear):
                weight, bias = module.weight.detach().T, module.bias.detach()[None]
                self.weights.append(nn.Parameter(weight.repeat(copies, 1, 1)))  # [M, in, out]
                self.biases.append(nn.Parameter(bias.repeat(copies, 1, 1)))  # [M, 1, out]
                self.activations.append(None)
            elif not isinstance(module, nn.Flatten):
                self.activations[-1] = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of every copy for points `x` [N, inputs]."""
        a = x.expand(self.copies, *x.shape)
        for weight, bias, phi in zip(self.weights, self.biases, self.activations, strict=True):
            z = torch.baddbmm(bias, a, weight)
            a = z if phi is None else phi(z)
        return a

    def copied(self, copy: int) -> list[tuple[Tensor, Tensor]]:
        """Return weight [outputs, inputs] and bias [outputs] of each layer of one copy."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [(w.detach()[copy].T, b.detach()[copy, 0]) for w, b in pairs]


@dataclass(frozen=True)
class Trained:
    """What training a stack gave.

    stack: the copies after the last step.
    curve: share of right answers in the batches, [POINTS or fewer, copies], in steps of equal
        length.
    diverged: which copies diverged, [copies]; their weights are 0.
    """

    stack: Stack
    curve: Tensor
    diverged: Tensor


@dataclass(frozen=True)
class Training:
    """How the copies are trained: torch's SGD with momentum, a constant rate, no weight decay.

    objective: from outputs [N, C] and labels [N] to a loss that is summed over the samples.
    lfp: whether the forward pass runs under `attrain.LFP`, as published (scale="abs").
    options: further options of `attrain.LFP`.
    mean: whether a batch's loss is divided by its size.
    """

    objective: Callable[[Tensor, Tensor], Tensor]
    lfp: bool
    mean: bool
    epochs: int
    batch_size: int = 128
    momentum: float = 0.95
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, model: nn.Sequential, rates: Sequence[float], x: Tensor, y: Tensor, seed: int
    ) -> Trained:
        """Train a copy of `model` at each of `rates` on points `x` [N, inputs], labels `y` [N].

        `seed` is that of the order of the samples, which all copies share.
        """
        stack = Stack(model, len(rates))
        context = LFP(stack, **self.options) if self.lfp else nullcontext()
        rate = torch.tensor(rates)[:, None, None]
        velocity = [torch.zeros_like(parameter) for parameter in stack.parameters()]
        right = []
        for batch in self._batches(len(x), seed):
            stack.zero_grad()
            with context:
                out = stack(x[batch])
            labels = y[batch].expand(stack.copies, -1)
            loss = self.objective(out.flatten(0, 1), labels.flatten())
            loss = loss / len(batch) if self.mean else loss
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                right.append((out.argmax(-1) == labels).float().mean(-1))
                for parameter, v in zip(stack.parameters(), velocity, strict=True):
                    assert parameter.grad is not None
                    parameter.sub_(rate * v.mul_(self.momentum).add_(parameter.grad))
                rate = _stopped(stack, velocity, rate)
        return Trained(stack, _course(torch.stack(right)), rate.flatten() == 0)

    def _batches(self, samples: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.epochs):
            order = torch.randperm(samples, generator=generator)
            yield from torch.split(order, self.batch_size)


def _stopped(stack: Stack, velocity: list[Tensor], rate: Tensor) -> Tensor:
    """Set copies that have diverged to 0, where they stay; return the rates, 0 for those."""
    largest = torch.stack([p.abs().amax((1, 2)) for p in stack.parameters()]).amax(0)
    bad = ~(largest < DIVERGED)  # also where it is NaN
    if bad.any():
        for tensor in (*stack.parameters(), *velocity):
            tensor[bad] = 0
        rate = rate.masked_fill(bad[:, None, None], 0)
    return rate


def _course(right: Tensor) -> Tensor:
    """Return means over stretches of equal length of `right` [steps, copies]."""
    length = -(-len(right) // POINTS)
    return torch.stack([part.mean(0) for part in torch.split(right, length)])


def accuracy(stack: Stack, x: Tensor, y: Tensor) -> Tensor:
    """Return the share of points `x` [N, inputs] that each copy gives their label: [copies]."""
    with torch.no_grad():
        right: Tensor = stack(x).argmax(-1) == y
        return right.float().mean(-1)
