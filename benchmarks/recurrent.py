"""Cost of a training step of recurrent layers under LFP, as a ratio to plain SGD.

    python benchmarks/recurrent.py --models lstm gru rnn --json recurrent.json

Measured as `benchmarks/step.py` does it, whose options these are. The classifiers read a sequence
and decide at its last step.
"""

from collections.abc import Callable

import step
from torch import Tensor, nn


class Reader(nn.Module):
    """A recurrent layer and a linear one on its last state."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.read = kind(inputs, units, layers, batch_first=True)
        self.decide = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for sequences [samples, steps, inputs]."""
        out: Tensor = self.decide(self.read(x)[0][:, -1])
        return out


def reader(kind: type[nn.RNNBase], inputs: int, units: int, layers: int) -> Callable[[], nn.Module]:
    """Return what builds a `Reader`."""
    return lambda: Reader(kind, inputs, units, layers)


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}

step.MODELS.clear()
for name, kind in KINDS.items():
    step.MODELS |= {
        name: (reader(kind, 28, 128, 1), (128, 28, 28)),
        f"{name}-2": (reader(kind, 28, 128, 2), (128, 28, 28)),
        f"{name}-small": (reader(kind, 8, 16, 1), (50, 50, 8)),
    }
# Peaks are measured in processes of this file.
step.__file__ = __file__

if __name__ == "__main__":
    step.main()
