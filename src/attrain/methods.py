"""The training methods by name, and how each turns a model and a batch into a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from attrain.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attrain.guided import SaliencyGuided
    from attrain.targeted import Refresh

LFP_PAPER = (
    "L. Weber, J. Berend, M. Weckbecker, A. Binder, T. Wiegand, W. Samek, S. Lapuschkin: "
    "Efficient and Flexible Neural Network Training through Layer-wise Feedback Propagation. "
    "Transactions on Machine Learning Research, 2025."
)
GUIDED_PAPER = (
    "A. A. Ismail, H. Corrada Bravo, S. Feizi: Improving Deep Learning Interpretability by "
    "Saliency Guided Training. Advances in Neural Information Processing Systems 34, 2021."
)


@dataclass(frozen=True)
class Method:
    """A way to train: what the loss is, how credit flows back, and the settings that suit it.

    `credit` holds the options of `attrain.LFP`, or None for gradient descent. `objective` is the
    loss: "cross_entropy", or the name of a reward. `l1` is the factor of the sum of |w| over the
    weights of linear, convolution and recurrent layers that is added to the loss. The learning rate
    is for torch's SGD. `objective_options` are the objective's arguments besides outputs and
    targets, and `loss_scale` a factor of the loss of a spiking model. `adaptive_clipping` is the
    largest |g| / |w| of a neuron; where it is not 0 it takes the place of clipping by the norm of
    the whole gradient. `guided` holds the options of `attrain.SaliencyGuided`, or None for the loss
    of a batch as it is. `course` is how strong weight decay and L1 are in the course of training, a
    name in `attrain.optim.COURSES`.
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
    adaptive_clipping: float = 0.0
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    loss_scale: float = 1.0
    course: str = "constant"
    guided: Mapping[str, Any] | None = None
    targeted: Mapping[str, Any] | None = None


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
    Method(
        name="saliency-guided",
        description=(
            "Gradient descent on the cross entropy plus the divergence between the answers to a "
            "sample and to the same sample with the half of its features masked that has the "
            "lowest gradient: for models whose saliency maps are to be trusted."
        ),
        learning_rate=0.1,
        citation=GUIDED_PAPER,
        guided={"fraction": 0.5, "weight": 1.0, "form": "exact"},
    ),
    Method(
        name="targeted",
        description=(
            "Gradient descent that trains the critical quarter of each layer's neurons, chosen "
            "anew every 50 updates by their relevance in the attribution graph of a batch, after "
            "a tenth of the updates that train all of them."
        ),
        learning_rate=0.1,
        targeted={"density": 0.25, "score": "flow", "refresh": 50, "warmup": 0.1},
    ),
)

_FOR_SPIKING_MODELS = (
    Method(
        name="lfp",
        description=(
            "Layer-wise Feedback Propagation through the spikes themselves, rewarded by the spike "
            "counts of the outputs; each neuron's feedback is clipped to 2% of its weights."
        ),
        learning_rate=0.25,
        credit={"rule": "epsilon", "epsilon": 1e-6, "scale": "abs"},
        objective="spike_count",
        citation=LFP_PAPER,
        adaptive_clipping=0.02,
    ),
    Method(
        name="surrogate",
        description=(
            "Gradient descent on the cross entropy of the spikes in each step, with the slope of "
            "x / (1 + 25 |x|) in place of a spike's; clipped as lfp is. For spiking models."
        ),
        learning_rate=0.8,
        citation=LFP_PAPER,
        adaptive_clipping=0.02,
    ),
)
SPIKING_METHODS = {method.name: method for method in _FOR_SPIKING_MODELS}
METHODS = {method.name: method for method in (*_KNOWN, SPIKING_METHODS["surrogate"])}


def find(name: str) -> Method:
    """Return the method called `name`; raises `InputError` with the nearest known name."""
    try:
        return METHODS[name]
    except KeyError:
        raise unknown("method", name, METHODS) from None


def fitting(method: Method, model: "nn.Module") -> Method:
    """Return `method` with the settings that suit `model`: spiking models have their own.

    Raises InputError for a method that cannot train the model.
    """
    if is_spiking(model):
        if method.name not in SPIKING_METHODS:
            raise InputError(
                f"method {method.name!r} cannot train a spiking model: a spike has no gradient. "
                f"Methods for it: {', '.join(SPIKING_METHODS)}."
            )
        return SPIKING_METHODS[method.name]
    if method.name == "surrogate":
        raise InputError(
            "method 'surrogate' is for spiking models (mlp-snn, lenet-snn): use sgd, which needs "
            "no surrogate here."
        )
    return method


def is_spiking(model: "nn.Module") -> bool:
    """Return whether `model` is one of attrain's spiking models."""
    from attrain.models import SpikingNet

    return isinstance(model, SpikingNet)


def learner(
    method: Method,
    model: "nn.Module",
    x: "Tensor",
    updates: int,
    told: "Callable[[Refresh], None]",
) -> "nn.Module":
    """Return what is trained: `model` itself, or `attrain.Targeted` around it.

    `x` are inputs, which show the model's output layer; `updates` is how many there will be; `told`
    hears of each choice of rows. Raises InputError for a model that has no layer to be targeted.
    """
    if method.targeted is None:
        return model
    from attrain.targeted import Targeted, output_layer

    options = {"dense": output_layer(model, x) or None, **method.targeted}
    warmup = round(options.pop("warmup") * updates)
    return Targeted(model, warmup=warmup, on_refresh=told, **options)


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
        self.strength = 1.0
        """Share of the L1 term that counts now: the loop sets it, by the method's course."""
        self.model = model
        self.penalised: list[str] = []
        if method.l1:
            from attrain.metrics.sparsity import connection_weights

            self.penalised = list(connection_weights(model))
        self.credit = None
        self.spiking = is_spiking(model)
        if self.spiking:
            cast(Any, model).spike_by("surrogate" if method.credit is None else "secant")
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        if method.credit is not None:
            from attrain.credit import LFP

            self.credit = LFP(model, **method.credit)
        if method.objective != "cross_entropy":
            from attrain import rewards

            reward = getattr(rewards, method.objective)
            self.loss = partial(reward, **method.objective_options)
        self.scale = method.loss_scale
        self.guidance = method.guided
        self.guided: SaliencyGuided | None = None
        """Made at the first batch, which shows whether the data are texts."""

    def __call__(self, x: "Tensor", y: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the loss (a scalar whose `backward()` fills `.grad`) and the outputs [N, C].

        `x` are inputs [N, ...] and `y` class indices [N].
        """
        if self.spiking:
            return self._of_spikes(x, y)
        if self.guidance is not None:
            step = self._guided(x).step(x, y)
            loss, out = step.loss, step.outputs
        else:
            if self.credit is None:
                out = self.forward(x)
            else:
                with self.credit:
                    out = self.forward(x)
            loss = self.loss(out, y)
        if self.penalised:
            loss = loss + self.strength * self.l1 * _sum_of_sizes(self.model, self.penalised)
        return loss, out

    def _guided(self, x: "Tensor") -> "SaliencyGuided":
        """Return the guided loss; of texts, what is ranked are the vectors that the model finds."""
        if self.guided is None:
            from attrain.attribution.layers import embedding_of
            from attrain.guided import SaliencyGuided

            options = dict(self.guidance or {})
            if not x.is_floating_point():
                options = {"embedding": embedding_of(self.model), **options}
            self.guided = SaliencyGuided(
                cast(Any, self.forward), self.loss, credit=self.credit, **options
            )
        return self.guided

    def _of_spikes(self, x: "Tensor", y: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the loss of spikes [T, N, C], and the spike counts [N, C]."""
        forward: Any = self.forward
        if self.credit is None:
            spikes = forward(x, per_step=True)
            loss = self.loss(spikes.flatten(0, 1), y.repeat(len(spikes)))
        else:
            with self.credit:
                spikes = forward(x, per_step=True)
            loss = self.loss(spikes, y)
        return self.scale * loss, spikes.detach().sum(0)


def _sum_of_sizes(model: "nn.Module", names: "list[str]") -> "Tensor":
    """Return sum |w| over the weights called `names`, whole also where a process has a shard."""
    from torch.distributed.tensor import DTensor

    # Looked up at every call: sharding and parametrisations make the tensors anew.
    total: Any = sum(attrgetter(name)(model).abs().sum() for name in names)
    return total.full_tensor() if isinstance(total, DTensor) else total
