"""Recurrent networks of paper 003: LSTMs, with input-cell attention, and of words both ways."""

import torch
from torch import Tensor, nn

from attrain.errors import InputError


class LastStepLSTM(nn.Module):
    """An LSTM that classifies by its last step; [N, T, F] -> [N, classes].

    The sizes default to those of the benchmark of time series that paper 003 uses.
    """

    def __init__(self, inputs: int, classes: int, hidden: int = 5, dropout: float = 0.1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs before any softmax."""
        states, _ = self.lstm(x)
        out: Tensor = self.classifier(self.dropout(states[:, -1]))
        return out


class InputCellAttention(nn.Module):
    """Attention of each step over all inputs up to it, before a recurrent layer sees them.

    [N, T, F] -> [N, T, F], or [N, T, hops * F] with `flatten`. With X_t the inputs up to step t, a
    row each, A_t = softmax(W2 tanh(W1 X_t^T)) has `hops` rows of weights that add up to 1, and
    M_t = A_t X_t goes to the recurrent cell: its rows one after the other (`flatten`), or their
    mean. Takes memory for N * hops * T * T values.

    Ismail, Gunady, Pessoa, Corrada Bravo, Feizi: Input-Cell Attention Reduces Vanishing Saliency of
    Recurrent Neural Networks, 2019; the mean and the sizes are those of their later benchmark.
    Raises InputError for sizes below 1 and for inputs of another shape.
    """

    def __init__(
        self, inputs: int, attention: int = 50, hops: int = 10, flatten: bool = False
    ) -> None:
        super().__init__()
        for name, size in (("inputs", inputs), ("attention", attention), ("hops", hops)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size!r}.")
        self.inputs, self.flatten = inputs, flatten
        self.hidden = nn.Linear(inputs, attention, bias=False)
        self.score = nn.Linear(attention, hops, bias=False)

    def extra_repr(self) -> str:
        """Return what the layers inside do not say."""
        return f"flatten={self.flatten}"

    @property
    def outputs(self) -> int:
        """Return how many values each step has afterwards."""
        return self.score.out_features * self.inputs if self.flatten else self.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return for each step of `x` what it attends to."""
        if x.ndim != 3 or x.shape[2] != self.inputs:
            raise InputError(
                f"input-cell attention takes [samples, steps, {self.inputs}], got {list(x.shape)}."
            )
        steps = x.shape[1]
        scores = self.score(torch.tanh(self.hidden(x))).transpose(1, 2)  # [N, hops, T]
        later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.unsqueeze(2).expand(-1, -1, steps, -1)  # [N, hops, t, steps up to t]
        weights = torch.softmax(scores.masked_fill(later, -torch.inf), -1)
        if not self.flatten:
            return weights.mean(1) @ x
        return (weights @ x.unsqueeze(1)).transpose(1, 2).flatten(2)


class InputCellLSTM(nn.Module):
    """An LSTM on input-cell attention that classifies by its last step; [N, T, F] -> [N, classes].

    The sizes default to those of the benchmark of time series that paper 003 uses.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        hidden: int = 5,
        attention: int = 50,
        hops: int = 10,
        flatten: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = InputCellAttention(inputs, attention, hops, flatten)
        self.lstm = nn.LSTM(self.attention.outputs, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs before any softmax."""
        states, _ = self.lstm(self.attention(x))
        out: Tensor = self.classifier(self.dropout(states[:, -1]))
        return out


class WordBiLSTM(nn.Module):
    """A bidirectional LSTM over word vectors; numbers of words, int64 [N, L] -> [N, classes].

    `vectors` [words, D] are looked up in `embedding` and stay as they are, unless `tuned`. Word 0
    is padding at the end of a text: neither direction reads it, whatever its vector. The output is
    linear in the mean of the states over the words that are read, of which a text without any
    counts its first. Paper 003 (section 5.2) leaves open how the states are read out.
    """

    def __init__(
        self,
        vectors: Tensor,
        classes: int,
        hidden: int = 128,
        dropout: float = 0.5,
        tuned: bool = False,
    ) -> None:
        super().__init__()
        if vectors.ndim != 2 or len(vectors) < 2:
            raise InputError(
                f"vectors must be [words, values], of 2 words or more: got {list(vectors.shape)}."
            )
        self.embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            vectors.clone(), freeze=not tuned, padding_idx=0
        )
        self.lstm = nn.LSTM(vectors.shape[1], hidden, batch_first=True)
        self.lstm_reverse = nn.LSTM(vectors.shape[1], hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the outputs before any softmax."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError(
                f"numbers of words are wanted, int64 [texts, words]: got {tokens.dtype} "
                f"{list(tokens.shape)}."
            )
        # Padding within a text, where a word was taken out, is read: only the end is left out.
        place = torch.arange(tokens.shape[1], device=tokens.device)
        lengths = ((place + 1) * (tokens != 0)).amax(1).clamp_min(1).unsqueeze(1)
        place = place[: int(lengths.max())]
        real = place < lengths
        # Each text is turned about by itself: packed sequences of unequal lengths, which would do
        # it as well, take time that grows with the square of the length.
        turned = torch.where(real, lengths - 1 - place, place).unsqueeze(2)
        vectors = self.embedding(tokens)[:, : len(place)]
        there, _ = self.lstm(vectors)
        back, _ = self.lstm_reverse(vectors.gather(1, turned.expand_as(vectors)))
        states = torch.cat([there, back], 2) * real.unsqueeze(2)
        mean = states.sum(1) / lengths
        out: Tensor = self.classifier(self.dropout(mean))
        return out
