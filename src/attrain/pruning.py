"""Remove the weights that matter least, without retraining, and see what accuracy is left.

Unstructured pruning as in paper 001, section 4.1 and A.6.3, over the weights of all linear and
convolution layers; BatchNorm is folded into the layer before it first, because it makes the size
of that layer's weights arbitrary.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from attrain.credit import LFP
from attrain.errors import InputError, unknown
from attrain.metrics.sparsity import CONVOLUTIONS, connection_weights

AMOUNTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
LAYERS = ("all", "conv")
_RELEVANCE_BATCH = 256
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Weights = dict[str, Tensor]
Samples = TensorDataset | Iterable[Sequence[Tensor]]
Layers = Literal["all", "conv"]


@dataclass(frozen=True)
class Criterion:
    """What makes a weight matter.

    Attributes:
        scores: from a model (and samples, with `needs_data`) to one score per weight of
            `connection_weights`, in the same names and shapes; the lowest are removed first.
        scope: whether weights compete within their layer or across the whole model.
        needs_data: whether `scores` looks at samples.
    """

    scores: Callable[..., Weights]
    scope: Literal["local", "global"]
    needs_data: bool = False


def magnitude(model: nn.Module) -> Weights:
    """Return |w| for every weight of `connection_weights` (Han et al., 2015)."""
    return {name: weight.abs() for name, weight in connection_weights(model).items()}


def relevance(model: nn.Module, data: Samples, *, epsilon: float = 1e-6) -> Weights:
    """Return |sum of R_ij| for every weight of `connection_weights` (paper 001, A.6.3).

    R_ij = w_ij a_i R_j / (z_j + sign(z_j) epsilon) is what LRP-epsilon sends along a connection,
    starting from the logit of the true class. It is summed over the samples, and over the places
    where a convolution uses the weight; the size is taken at the end. The model runs in eval mode
    and is left untouched.

    Args:
        model: turns inputs into logits [N, C].
        data: a dataset of tensors (x, y), or batches of them, y [N] being class indices. The
            training set; the paper took the test set.
        epsilon: LRP's stabiliser.

    Raises InputError for no samples or labels that do not fit; CreditError as `attrain.LFP`.
    """
    run = _copy(model).eval().requires_grad_(False)
    weights = {name: run.get_parameter(name).requires_grad_() for name in _plain_weights(run)}
    totals = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    credit, seen = LFP(run, epsilon=epsilon), 0
    for x, y in _batches(data, next(iter(weights.values()), torch.empty(0)).device):
        with credit, torch.enable_grad():
            out = run(x)
            _check_labels(out, y)
            # A gradient of 1 at this logit is a credit of 1 per unit: it starts with R = logit.
            chosen = out.gather(1, y.unsqueeze(1)).sum()
        for weight in weights.values():
            weight.grad = None
        if len(y):
            chosen.backward()
        seen += len(y)
        for name, weight in weights.items():
            if weight.grad is not None:  # |w| times the slope, of which R is w times
                totals[name] += (weight.grad * weight.detach().sign()).double()
    if not seen:
        raise InputError("zero samples: relevance is summed over data, so give some.")
    return {name: total.abs() for name, total in totals.items()}


CRITERIA: dict[str, Criterion] = {
    "magnitude-global": Criterion(magnitude, "global"),
    "magnitude-local": Criterion(magnitude, "local"),
    "relevance": Criterion(relevance, "global", needs_data=True),
}


def masks(
    model: nn.Module,
    amount: float,
    criterion: str | Criterion = "magnitude-global",
    *,
    data: Samples | None = None,
    layers: Layers = "all",
) -> Weights:
    """Return a boolean mask per weight tensor, True for the weights that stay.

    Exactly round(amount * n) weights go, n being their number in the model ("global") or in each
    layer ("local"). Of equal scores the earlier weight goes first; a tensor that two layers share
    is counted once. `data` are the samples of a criterion that looks at them; `layers` says which
    weights compete at all: "all", or those of convolutions ("conv", as in the paper's A.6.3).

    Raises InputError for an amount outside 0..1, an unknown criterion or kind of layers, missing
    data, a model without such weights, or weights that are NaN or infinite.
    """
    _check_amount(amount)
    return _keep(_removal_order(model, _criterion(criterion), data, layers), amount)


def prune(
    model: nn.Module,
    amount: float,
    criterion: str | Criterion = "magnitude-global",
    *,
    data: Samples | None = None,
    layers: Layers = "all",
) -> nn.Module:
    """Return a copy of `model` with the least important weights set to zero.

    `amount` is the share that goes of the weights of linear, convolution and recurrent layers, or
    of those that `layers` names. The model itself is untouched; the other arguments and errors are
    those of `masks`.
    """
    keep = masks(model, amount, criterion, data=data, layers=layers)
    pruned = _copy(model)
    weights = _plain_weights(pruned)
    for name, mask in keep.items():
        weights[name].masked_fill_(~mask, 0.0)
    return pruned


def curve(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    amounts: Sequence[float] = AMOUNTS,
    criterion: str | Criterion = "magnitude-global",
    *,
    fold: bool = True,
    data: Samples | None = None,
    layers: Layers = "all",
) -> dict[str, list[float]]:
    """Return what `evaluate` says of the model with each of `amounts` of its weights removed.

    Args:
        model: is left untouched.
        evaluate: from a model to its accuracy, 0..1 (or any other score).
        amounts: shares of the weights to remove, each in 0..1.
        criterion: name in `CRITERIA`, or a criterion.
        fold: fold BatchNorm into the layers before it first (paper 001, A.6.3).
        data: samples for a criterion that looks at them.
        layers: which weights compete, as in `masks`.

    Returns {"removed": [...], "accuracy": [...]}. Raises InputError as `masks` does.
    """
    for amount in amounts:
        _check_amount(amount)
    pruned = fold_batch_norm(model) if fold else _copy(model)
    # One sorting serves all amounts.
    order = _removal_order(pruned, _criterion(criterion), data, layers)
    weights = _plain_weights(pruned)
    originals = {name: weights[name].clone() for name in order}
    accuracy = []
    for amount in amounts:
        for name, mask in _keep(order, amount).items():
            weights[name].copy_(originals[name].masked_fill(~mask, 0.0))
        accuracy.append(float(evaluate(pruned)))
    return {"removed": [float(amount) for amount in amounts], "accuracy": accuracy}


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose BatchNorms are part of the layers before them.

    The copy computes what `model` computes in eval mode. A BatchNorm stays where it has no
    statistics of its own, or where the layer before it is not a plain linear or convolution layer
    that feeds it alone (found by tracing the model; where that cannot be traced, by tracing its
    children, which are taken to be called as modules). Paper 001, A.6.3.
    """
    folded = _copy(model).eval()
    if any(isinstance(module, _NORMS) for module in folded.modules()):
        # Tracing runs the forward, which may leave something behind: so a copy of its own.
        for layer_name, norm_name in _foldable(_copy(folded)):
            layer = folded.get_submodule(layer_name)
            _fold(layer, folded.get_submodule(norm_name))
            folded.set_submodule(norm_name, Folded(cast(Tensor, layer.weight).ndim))
    return folded


class Folded(nn.Module):
    """Stands where a BatchNorm was and hands its input on.

    BatchNorm's channels are the second axis of its input, those of the layer before it may be
    another one (a linear layer's are the last): the two agree where the input has as many axes as
    the layer's weight, and everything else is refused.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, [N, C, ...]. Raises InputError where the folding does not hold."""
        if x.ndim != self.axes:
            raise InputError(
                f"BatchNorm was folded into the layer before it for inputs with {self.axes} axes, "
                f"but got shape {list(x.shape)}: prune this model with fold=False."
            )
        return x

    def extra_repr(self) -> str:
        """Return what is shown between the brackets."""
        return f"axes={self.axes}"


def _check_amount(amount: float) -> None:
    if not 0 <= amount <= 1:
        raise InputError(f"amount is the share of weights to remove, in 0..1: got {amount}.")


def _criterion(criterion: str | Criterion) -> Criterion:
    if isinstance(criterion, Criterion):
        return criterion
    if criterion not in CRITERIA:
        raise unknown("pruning criterion", criterion, CRITERIA)
    return CRITERIA[criterion]


def _removal_order(
    model: nn.Module, criterion: Criterion, data: Samples | None, layers: str
) -> dict[str, tuple[Tensor, int]]:
    """Return, by name, each weight's place in the order of removal and how many compete."""
    if layers not in LAYERS:
        raise unknown("kind of layers", str(layers), LAYERS)
    if criterion.needs_data and data is None:
        raise InputError("this criterion looks at samples: give data=, such as the training set.")
    scores = criterion.scores(model, data) if criterion.needs_data else criterion.scores(model)
    if layers == "conv":
        scores = {name: score for name, score in scores.items() if _in_convolution(model, name)}
    if not scores:
        kind = "convolution layer" if layers == "conv" else "linear, convolution or recurrent layer"
        raise InputError(f"the model has no {kind}: nothing can be pruned.")
    for name, score in scores.items():
        broken = int((~torch.isfinite(score)).sum())
        if broken:
            raise InputError(
                f"{broken} of the {score.numel()} weights of {name} are NaN or infinite, so their "
                "order is unknown: training diverged, or the weights are damaged."
            )
    if criterion.scope == "local":
        return {name: (_places(score), score.numel()) for name, score in scores.items()}
    first = next(iter(scores.values()))
    places = _places(torch.cat([score.flatten().to(first.device) for score in scores.values()]))
    parts = torch.split(places, [score.numel() for score in scores.values()])
    return {
        name: (part.view(score.shape).to(score.device), len(places))
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _in_convolution(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), CONVOLUTIONS)


def _batches(data: Samples, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of `data`, batch by batch, on `device`."""
    parts: Iterable[Sequence[Tensor]] = (
        zip(*(torch.split(each, _RELEVANCE_BATCH) for each in data.tensors), strict=True)
        if isinstance(data, TensorDataset)
        else data
    )
    for part in parts:
        if not isinstance(part, Sequence) or len(part) != 2:
            raise InputError(
                f"data gave a {type(part).__name__}: a dataset of tensors (x, y) is wanted, or "
                "batches of them."
            )
        x, y = part
        yield x.to(device), y.to(device)


def _check_labels(out: Tensor, y: Tensor) -> None:
    """Raise InputError unless `out` are logits [N, C] and `y` class indices [N]."""
    if out.ndim != 2 or y.shape != out.shape[:1] or y.dtype.is_floating_point:
        raise InputError(
            f"logits [N, C] and class indices [N] are wanted: got outputs {list(out.shape)} and "
            f"labels {list(y.shape)} of {y.dtype}."
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < out.shape[1]:
        raise InputError(
            f"labels go from {int(y.min())} to {int(y.max())}, but the model has "
            f"{out.shape[1]} outputs."
        )


def _places(scores: Tensor) -> Tensor:
    """Return the place of each entry among all of them in rising order, ties in their own order."""
    order = scores.flatten().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places.view(scores.shape)


def _keep(order: dict[str, tuple[Tensor, int]], amount: float) -> Weights:
    return {name: places >= round(amount * count) for name, (places, count) in order.items()}


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(f"the model cannot be copied, so not pruned either: {error}.") from error


def _plain_weights(model: nn.Module) -> Weights:
    """Return the weights of `model` to be changed in place, first made plain parameters."""
    names = list(connection_weights(model))
    for name in names:
        layer, _, attribute = name.rpartition(".")
        module = model.get_submodule(layer)
        if parametrize.is_parametrized(module, attribute):
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    return {name: model.get_parameter(name).detach() for name in names}


def _foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of each layer and the BatchNorm that can be folded into it."""
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return [
        (layer, norm)
        for layer, norm in _pairs(model, "")
        if uses[id(model.get_submodule(layer))] == uses[id(model.get_submodule(norm))] == 1
    ]


def _pairs(module: nn.Module, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the names of layers and BatchNorms that follow them directly in what is called."""
    if not any(isinstance(part, _NORMS) for part in module.modules()):
        return
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # whatever the forward does with what is no tensor yet
        for name, child in module.named_children():
            yield from _pairs(child, f"{prefix}{name}.")
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = Counter(node.target for node in calls)
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for norm in calls:
        inputs = norm.all_input_nodes
        if len(inputs) == 1 and inputs[0].op == "call_module" and len(inputs[0].users) == 1:
            names = [str(inputs[0].target), str(norm.target)]
            once = all(called[name] == 1 and name not in read for name in names)
            if once and _fits(module.get_submodule(names[0]), module.get_submodule(names[1])):
                yield prefix + names[0], prefix + names[1]


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    """Tell whether `norm` computes a fixed scale and shift of what `layer`, a plain one, gives."""
    # A subclass may compute something else, and a hook may change what passes between.
    plain = type(layer) in (nn.Linear, *CONVOLUTIONS) and type(norm) in _NORMS
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm))
    return plain and not hooked and getattr(norm, "running_mean", None) is not None


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Give `layer` the weights with which it computes what `norm` made of its output."""
    weight, bias = cast(nn.Parameter, layer.weight), cast(nn.Parameter | None, layer.bias)
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, gamma, beta = (
        None if value is None else cast(Tensor, value).detach().double() for value in statistics
    )
    assert mean is not None and variance is not None
    scale = (variance + cast(float, norm.eps)).rsqrt() * (1.0 if gamma is None else gamma)
    shift = (0.0 if bias is None else bias.detach().double()) - mean
    folded = shift * scale + (0.0 if beta is None else beta)
    layer.weight = nn.Parameter(
        _scaled(layer, weight.detach().double(), scale).to(weight.dtype), weight.requires_grad
    )
    layer.bias = nn.Parameter(folded.to(weight.dtype), weight.requires_grad)


def _scaled(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Return `weight` with each output channel multiplied by its `scale`, [C]."""
    if isinstance(layer, _TRANSPOSED):
        # [C_in, C / groups, ...]: a group's part of the inputs makes its part of the outputs.
        groups = layer.groups
        grouped = weight.view(groups, -1, *weight.shape[1:])
        return (grouped * scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))).view(weight.shape)
    return weight * scale.view(-1, *[1] * (weight.ndim - 1))
