"""Networks over time series that are not recurrent: temporal convolutions and a Transformer.

The sizes default to those of the benchmark of Ismail et al., 2020, that paper 003 measures on.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attrain.errors import InputError


class CausalBlock(nn.Module):
    """Two dilated convolutions that look back only, beside a shortcut; [N, C, T] -> [N, out, T]."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int, dropout: float
    ) -> None:
        super().__init__()
        self.pad1 = nn.ConstantPad1d(((kernel - 1) * dilation, 0), 0.0)
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.act1 = nn.ReLU()
        self.dropout1 = nn.Dropout(dropout)
        self.pad2 = nn.ConstantPad1d(((kernel - 1) * dilation, 0), 0.0)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, dilation=dilation)
        self.act2 = nn.ReLU()
        self.dropout2 = nn.Dropout(dropout)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of each step and those before it."""
        h = self.dropout1(self.act1(self.conv1(self.pad1(x))))
        h = self.dropout2(self.act2(self.conv2(self.pad2(h))))
        out: Tensor = self.act3(h + self.shortcut(x))
        return out


class TCN(nn.Module):
    """Temporal convolutions with dilations 1, 2, 4, ... and a maximum over time.

    [N, T, F] -> [N, classes], T = `steps`. Bai, Kolter, Koltun: An Empirical Evaluation of Generic
    Convolutional and Recurrent Networks for Sequence Modeling, 2018, whose weight normalisation is
    left out: it would hide the weights that credit scales and pruning removes.
    """

    def __init__(
        self,
        inputs: int,
        steps: int,
        classes: int,
        channels: Sequence[int] = (5, 5, 50),
        kernel: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        widths = [inputs, *channels]
        self.blocks = nn.Sequential(
            *(
                CausalBlock(before, after, kernel, 2**level, dropout)
                for level, (before, after) in enumerate(zip(widths, widths[1:], strict=False))
            )
        )
        self.pool = nn.MaxPool1d(steps)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs before any softmax."""
        out: Tensor = self.classifier(self.pool(self.blocks(x.transpose(1, 2))).squeeze(2))
        return out


class EncoderBlock(nn.Module):
    """Attention to this step and earlier ones, then a dense network, each normalised before."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.dropout1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.dropout2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout3 = nn.Dropout(dropout)

    def forward(self, x: Tensor, later: Tensor) -> Tensor:
        """Return [N, T, width]; `later` [T, T] is True where a step must not look."""
        h = self.norm1(x)
        attended, _ = self.attention(h, h, h, attn_mask=later, need_weights=False)
        x = x + self.dropout1(attended)
        h = self.fc2(self.dropout2(self.act(self.fc1(self.norm2(x)))))
        out: Tensor = x + self.dropout3(h)
        return out


class SeriesTransformer(nn.Module):
    """A causal Transformer encoder as wide as the series, with a maximum over time.

    [N, T, F] -> [N, classes], T = `steps`. Features are not projected: the series times sqrt(F)
    plus sines and cosines of the place (Vaswani et al., 2017) go into the first block. `heads` must
    divide F; None takes the largest up to 5 that does. Raises InputError for heads that do not.
    """

    places: Tensor
    later: Tensor

    def __init__(
        self,
        inputs: int,
        steps: int,
        classes: int,
        layers: int = 6,
        heads: int | None = None,
        hidden: int = 400,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        heads = heads or max(count for count in range(1, 6) if inputs % count == 0)
        if inputs % heads:
            raise InputError(f"{heads} heads cannot share {inputs} features: give a divisor.")
        self.inputs = inputs
        self.register_buffer("places", places(steps, inputs), persistent=False)
        later = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(inputs, heads, hidden, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(inputs)
        self.pool = nn.MaxPool1d(steps)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs before any softmax."""
        h = self.dropout(x * math.sqrt(self.inputs) + self.places)
        for block in self.blocks:
            h = block(h, self.later)
        out: Tensor = self.classifier(self.pool(self.norm(h).transpose(1, 2)).squeeze(2))
        return out


def places(steps: int, width: int) -> Tensor:
    """Return [steps, width]: sin and cos of t / 10000^(2i / width) in columns 2i and 2i + 1."""
    pairs = torch.arange(0, width, 2)
    angles = torch.arange(steps).unsqueeze(1) / 10_000 ** (pairs / width)
    found = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    return found[:, :width].contiguous()
