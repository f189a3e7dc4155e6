"""The training methods by name, and how each turns a model and a batch into a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from attrain.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

LFP_PAPER = (
    "L. Weber, J. Berend, M. Weckbecker, A. Binder, T. Wiegand, W. Samek, S. Lapuschkin: "
    "Efficient and Flexible Neural Network Training through Layer-wise Feedback Propagation. "
    "Transactions on Machine Learning Research, 2025."
)


@dataclass(frozen=True)
class Method:
    """A way to train: what the loss is, how credit flows back, and the settings that suit it.

    `credit` holds the options of `attrain.LFP`, or None for gradient descent. `objective` is the
    loss: "cross_entropy", or the name of a reward. `l1` is the factor of the sum of |w| over the
    weights of linear and convolution layers that is added to the loss. The learning rate is for
    torch's SGD.
    """

    name: str
    description: str
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    l1: float = 0.0
    credit: Mapping[str, Any] | None = None
    objective: str = "cross_entropy"
    citation: str = ""


_KNOWN = (
    Method(
        name="sgd",
        description="Gradient descent on the cross entropy.",
        learning_rate=0.1,
    ),
    Method(
        name="lfp",
        description=(
            "Layer-wise Feedback Propagation; feedback is scaled by |w| over its mean in the "
            "tensor, so the learning rate is that of gradient descent."
        ),
        learning_rate=0.1,
        credit={"rule": "epsilon", "epsilon": 1e-6, "scale": "relative"},
        objective="softmax",
        citation=LFP_PAPER,
    ),
    Method(
        name="lfp-abs",
        description="Layer-wise Feedback Propagation as published: feedback is scaled by |w|.",
        learning_rate=1.0,
        credit={"rule": "epsilon", "epsilon": 1e-6, "scale": "abs"},
        objective="softmax",
        citation=LFP_PAPER,
    ),
    Method(
        name="lfp-sparse",
        description=(
            "lfp with weight decay, which under scaling by |w| pulls as an L1 penalty does: "
            "for models that keep their accuracy when most weights are removed."
        ),
        learning_rate=0.1,
        weight_decay=3e-3,
        credit={"rule": "epsilon", "epsilon": 1e-6, "scale": "relative"},
        objective="softmax",
        citation=LFP_PAPER,
    ),
    Method(
        name="sgd-l1",
        description=(
            "Gradient descent on the cross entropy plus an L1 penalty on the weights of linear "
            "and convolution layers: the fair rival of a sparse method. `attrain compare` tunes "
            "its strength."
        ),
        learning_rate=0.1,
        l1=1e-3,
    ),
)
METHODS = {method.name: method for method in _KNOWN}


def find(name: str) -> Method:
    """Return the method called `name`; raises `InputError` with the nearest known name."""
    try:
        return METHODS[name]
    except KeyError:
        raise unknown("method", name, METHODS) from None


class BatchLoss:
    """The loss of a batch under a method.

    `forward` is what is called with the inputs: the model, or a wrapper of it for several
    devices. `model` owns the parameters.
    """

    def __init__(
        self,
        method: Method,
        model: "nn.Module",
        forward: "Callable[[Tensor], Tensor] | None" = None,
    ) -> None:
        import torch.nn.functional as F

        self.forward = forward or model
        self.l1 = method.l1
        self.model = model
        self.penalised: list[str] = []
        if method.l1:
            from attrain.metrics.sparsity import connection_weights

            self.penalised = list(connection_weights(model))
        self.credit = None
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        if method.credit is not None:
            from attrain.credit import LFP

            self.credit = LFP(model, **method.credit)
        if method.objective != "cross_entropy":
            from attrain import rewards

            self.loss = getattr(rewards, method.objective)

    def __call__(self, x: "Tensor", y: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the loss (a scalar whose `backward()` fills `.grad`) and the outputs [N, C].

        `x` are inputs [N, ...] and `y` class indices [N].
        """
        if self.credit is None:
            out = self.forward(x)
        else:
            with self.credit:
                out = self.forward(x)
        loss = self.loss(out, y)
        if self.penalised:
            loss = loss + self.l1 * _sum_of_sizes(self.model, self.penalised)
        return loss, out


def _sum_of_sizes(model: "nn.Module", names: "list[str]") -> "Tensor":
    """Return sum |w| over the weights called `names`, whole also where a process has a shard."""
    from torch.distributed.tensor import DTensor

    # Looked up at every call: sharding and parametrisations make the tensors anew.
    total: Any = sum(attrgetter(name)(model).abs().sum() for name in names)
    return total.full_tensor() if isinstance(total, DTensor) else total
