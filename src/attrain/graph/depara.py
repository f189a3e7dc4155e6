"""DEPARA: how alike two models see the same samples, whatever they were trained to tell apart.

Song et al. 2020 (arXiv:2003.07496). The nodes of a model's graph are probe samples, each with its
attribution vector; the edges are the cosine similarities of their features. Two models are alike
where the vectors of each sample point the same way and the edges are ranked alike.

What is explained is the encoder: the sum of the features, not a class. Models with different
labels have no class in common, the sum does not depend on the order of the hidden units, and for
gradients it has the direction of the mean over the features, which Song et al. (2019,
arXiv:1909.11902) take.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution import attribute, layers, methods
from attrain.errors import AttrainError, AttributionWarning, InputError
from attrain.metrics.statistics import rank_correlation

FEWEST = 3
"""Samples of a probe: two have one edge, and nothing to rank."""
FLAT = 1e-9
"""A range of the edges that is rounding, and no ranking."""


@dataclass(frozen=True, eq=False)
class DeparaGraph:
    """A model's view of N probe samples; to be compared with others of the same probe.

    nodes: attribution vectors [N, D]. edges: cosine similarities of the features [N, N], of which
    each pair counts once. Raises InputError for fewer than three samples, for what is not finite,
    for vectors that are zero, and for edges that are all the same.
    """

    nodes: Tensor
    edges: Tensor

    def __post_init__(self) -> None:
        nodes, edges = self.nodes, self.edges
        if nodes.ndim != 2 or edges.shape != (len(nodes), len(nodes)):
            raise InputError(
                f"a graph has nodes [N, D] and edges [N, N], got {tuple(nodes.shape)} and "
                f"{tuple(edges.shape)}."
            )
        if len(nodes) < FEWEST:
            raise InputError(_few(len(nodes)))
        for told, values in (("attribution vectors", nodes), ("features", edges)):
            _finite(told, values)
        _nonzero("attribution vector", nodes, "take another method")
        pairs = self.pairs
        if float(pairs.max() - pairs.min()) <= FLAT:
            raise InputError(
                "the features are constant: all pairs of probe samples are equally similar "
                f"({float(pairs[0]):.6g}), so that their correlation is undefined. Take another "
                "layer, or a probe of samples that differ."
            )

    @property
    def pairs(self) -> Tensor:
        """The edges n < m in a row, [N (N - 1) / 2]."""
        above = torch.triu_indices(len(self.edges), len(self.edges), offset=1)
        return self.edges[above[0], above[1]]


@dataclass(frozen=True)
class Similarity:
    """How alike two models are; every figure is 1 for a model and itself.

    nodes: mean cosine of the attribution vectors. edges: Spearman's rank correlation of the edges.
    edge_weight: what an edge counts, the paper's lambda.
    """

    nodes: float
    edges: float
    edge_weight: float = 1.0

    @property
    def total(self) -> float:
        """Nodes plus edge_weight times edges, at most 1 + edge_weight."""
        return self.nodes + self.edge_weight * self.edges


def depara_graph(
    model: nn.Module,
    probe: Tensor,
    *,
    method: str = "input_x_gradient",
    layer: str | nn.Module | None = None,
    target: Any = None,
    batch_size: int = 128,
    seed: int | None = None,
    **options: Any,
) -> DeparaGraph:
    """Return a model's graph of probe samples, which can be compared with many others.

    The model is run as in evaluation and is afterwards as it was.

    Parameters
    ----------
    model: anything that `attrain.attribute` takes.
    probe: [N, ...], at least three samples; no labels are needed.
    method: of the attribution, a name in attrain.attribution.METHODS.
    layer: whose output holds the features, a name of model.named_modules() or a module. None
        takes the input of the linear layer that runs last.
    target: None explains the sum of the features. Otherwise the output that is explained, as
        `attrain.attribute` takes it: for models with the same labels.
    batch_size, seed, options: of the attribution. Names in `rules=` of lrp begin with "model.".

    Raises InputError for what does not fit together, for vectors that are zero or not finite and
    for features that tell no samples apart; CreditError where lrp has no rule.
    """
    methods.options_of(method, options)
    _check(model, batch_size)
    _check_probe(probe, method)
    with _evaluating(model):
        encoder = _encoder(model, probe, layer)
        parts = (probe[k : k + batch_size].clone() for k in range(0, len(probe), batch_size))
        features = torch.cat([encoder.features(x).detach() for x in parts])
    with warnings.catch_warnings():
        # These two are errors here, and are told as such.
        for told in ("is zero everywhere", "are not finite"):
            warnings.filterwarnings("ignore", f"(?s).*{told}", AttributionWarning)
        explained = encoder if target is None else model
        vectors = attribute(
            explained, probe, target, method=method, batch_size=batch_size, seed=seed, **options
        )
    return DeparaGraph(vectors.detach().flatten(1), _edges(features))


def compare_graphs(a: DeparaGraph, b: DeparaGraph, *, edge_weight: float = 1.0) -> Similarity:
    """Return how alike two graphs of the same probe are.

    Raises InputError where their shapes differ and for an edge_weight below 0.
    """
    if not 0.0 <= edge_weight < float("inf"):
        raise InputError(f"edge_weight must be a finite number >= 0, got {edge_weight!r}.")
    if a.nodes.shape != b.nodes.shape:
        raise InputError(
            f"the graphs have nodes of shape {tuple(a.nodes.shape)} and {tuple(b.nodes.shape)}: "
            "both must be of the same probe."
        )
    one, other = a.nodes.double(), b.nodes.to(a.nodes.device).double()
    return Similarity(
        float(torch.cosine_similarity(one, other, dim=1, eps=0.0).mean()),
        rank_correlation(a.pairs.double().cpu().numpy(), b.pairs.double().cpu().numpy()),
        float(edge_weight),
    )


def compare_models(
    a: nn.Module,
    b: nn.Module,
    probe: Tensor,
    *,
    method: str = "input_x_gradient",
    layer_a: str | nn.Module | None = None,
    layer_b: str | nn.Module | None = None,
    edge_weight: float = 1.0,
    target: Any = None,
    batch_size: int = 128,
    seed: int | None = None,
    **options: Any,
) -> Similarity:
    """Return how alike two models see the samples of a probe (DEPARA, Song et al. 2020).

    The models may have different architectures and labels, but take the same inputs [N, ...];
    `layer_a` and `layer_b` hold the features that are explained and compared, `edge_weight` is the
    paper's lambda. Everything else, and what is raised, is that of `depara_graph`.
    """
    common = {"method": method, "target": target, "batch_size": batch_size, "seed": seed}
    one = _graph("model a", a, probe, layer=layer_a, **common, **options)
    other = _graph("model b", b, probe, layer=layer_b, **common, **options)
    return compare_graphs(one, other, edge_weight=edge_weight)


def transferability(
    sources: Mapping[str, nn.Module | DeparaGraph],
    target: nn.Module | DeparaGraph,
    probe: Tensor,
    *,
    edge_weight: float = 1.0,
    **options: Any,
) -> dict[str, Similarity]:
    """Return the similarity of each source to a model of the target task, the most alike first.

    The sources' names and models; graphs of the same probe, from `depara_graph`, stand for models
    whose features are in another layer or that were explained before. `options` are those of
    `depara_graph`. Raises InputError for no sources, and what `depara_graph` raises.
    """
    if not sources:
        raise InputError("no sources to rank: give a mapping of names to models.")
    wanted = _graph("the target", target, probe, **options)
    found = {}
    for name, source in sources.items():
        graph = _graph(f"source {name!r}", source, probe, **options)
        found[name] = compare_graphs(graph, wanted, edge_weight=edge_weight)
    return dict(sorted(found.items(), key=lambda each: -each[1].total))


def _graph(who: str, model: nn.Module | DeparaGraph, probe: Tensor, **settings: Any) -> DeparaGraph:
    """Return the graph of one of several models; what is wrong with it is told by its name."""
    if isinstance(model, DeparaGraph):
        return model
    try:
        return depara_graph(model, probe, **settings)
    except AttrainError as error:
        raise type(error)(f"{who}: {error}") from error


# The features -------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """A model up to its features; called, it returns their sum [N] for inputs [N, ...].

    They are the output of a layer, or its input where `before`.
    """

    def __init__(self, model: nn.Module, name: str, layer: nn.Module, before: bool) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no second name of a part of the model.
        self.place, self.before = (name, layer), before

    def features(self, x: Tensor) -> Tensor:
        """Return the features [N, F]."""
        found: list[Tensor] = []

        def entered(_: nn.Module, args: Any, kwargs: Any) -> None:
            # A copy, since what follows may overwrite it.
            found.append(layers.first(args or tuple(kwargs.values())).clone())

        def left(_: nn.Module, __: Any, out: Any) -> None:
            found.append(layers.first(out).clone())

        name, layer = self.place
        if self.before:
            handle = layer.register_forward_pre_hook(entered, with_kwargs=True)
        else:
            handle = layer.register_forward_hook(left)
        try:
            _run(self.model, x)
        finally:
            handle.remove()
        if len(found) != 1:
            told = f"runs {len(found)} times" if found else "does not run"
            raise InputError(f"layer {name!r} {told} in a forward pass: take one that runs once.")
        if found[0].ndim < 2 or len(found[0]) != len(x):
            raise InputError(
                f"layer {name!r} has features of shape {tuple(found[0].shape)} for {len(x)} "
                "samples: wanted are [N, ...], at least one for each."
            )
        return found[0].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the features of each sample, [N]."""
        return self.features(x).sum(1)


def _encoder(model: nn.Module, probe: Tensor, layer: str | nn.Module | None) -> _Encoder:
    """Return the model up to a layer, or up to the linear layer that runs last."""
    if layer is not None:
        return _Encoder(model, *layers.find(model, layer), before=False)
    ran: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(lambda *_, place=(name, module): ran.append(place))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            _run(model, probe[:1].clone())
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise InputError(
            "the model runs no nn.Linear, whose input would be the features: give the layer whose "
            "output they are."
        )
    return _Encoder(model, *ran[-1], before=True)


def _run(model: nn.Module, x: Tensor) -> None:
    """Run a model, whose inputs may be of another shape than those of the model beside it."""
    try:
        model(x)
    except (AttrainError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the model cannot take samples of shape {tuple(x.shape[1:])} and type {x.dtype} "
            f"({said.rstrip('.')}): all models must take the same inputs; wrap one in a module "
            "that converts them."
        ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run the model as in evaluation inside, without gradients; leave its modes as they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _edges(features: Tensor) -> Tensor:
    """Return the cosine similarities [N, N] of features [N, F]."""
    _finite("features", features)
    _nonzero("feature vector", features, "take another layer")
    unit = torch.nn.functional.normalize(features.double(), dim=1, eps=0.0)
    return unit @ unit.T


# What cannot be compared --------------------------------------------------------------------------


def _check(model: Any, batch_size: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size must be an integer >= 1, got {batch_size!r}.")


def _check_probe(probe: Any, method: str) -> None:
    if not isinstance(probe, Tensor) or probe.ndim < 2:
        told = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
        raise InputError(f"a probe is a tensor of samples [N, ...], got {told}.")
    if len(probe) < FEWEST:
        raise InputError(_few(len(probe)))
    if not probe.is_floating_point() and methods.find(method).differentiates:
        raise InputError(
            f"the probe holds {probe.dtype}, which has no gradient for {method}: use occlusion, or "
            "models that take what their embeddings make of it."
        )
    _finite("probe samples", probe)


def _few(count: int) -> str:
    return f"a probe of {count} samples has too few pairs to rank: give {FEWEST} samples or more."


def _finite(told: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values.flatten(1))).any(1).sum())
        raise InputError(
            f"{bad} of {len(values)} {told} are not finite (NaN or infinite): look for it in the "
            "probe and in the model's weights."
        )


def _nonzero(told: str, values: Tensor, remedy: str) -> None:
    zero = (values == 0).all(1).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"the {told} of probe sample {zero[0]} is zero and points nowhere ({len(zero)} of "
            f"{len(values)} are): {remedy}, or leave such samples out."
        )
