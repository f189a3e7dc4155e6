"""Is a graph right about what matters: the output as its strongest units are ablated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrain.attribution.conditions import progress_bar
from attrain.attribution.doubts import warn_of_one_class
from attrain.attribution.targets import Target, check_target, select
from attrain.errors import InputError
from attrain.graph.graph import AttributionGraph
from attrain.graph.intervene import Bench, bench
from attrain.graph.rank import check_layers, hidden, rank

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Of the units of each layer that are ablated together."""


@dataclass(frozen=True)
class Validation:
    """How far the explained output falls as the first units of a ranking are ablated.

    Parameters
    ----------
    shares: of the units of each layer that were ablated together; counts: how many these were in
        all the layers.
    drops: by how much the output fell, for each share, the mean over samples.
    random: the same for as many random units of each layer, [seeds][shares].
    output: the mean output with all units.
    by, how: the ranking, and what ablated units handed on; layers, samples: how many.
    """

    shares: tuple[float, ...]
    counts: tuple[int, ...]
    drops: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    output: float
    by: str
    how: str
    layers: tuple[str, ...]
    samples: int

    @property
    def aopc(self) -> float:
        """The mean drop over all shares: the area over the curve (Samek et al. 2017)."""
        return _mean(self.drops)

    @property
    def random_aopcs(self) -> tuple[float, ...]:
        """The same for random units, for each seed."""
        return tuple(_mean(each) for each in self.random)

    @property
    def random_mean(self) -> float:
        """The mean over seeds of the area over the curve for random units."""
        return _mean(self.random_aopcs)

    @property
    def random_sd(self) -> float:
        """Its standard deviation over seeds (n - 1); 0 for one seed."""
        found = self.random_aopcs
        if len(found) < 2:
            return 0.0
        return float((sum((each - _mean(found)) ** 2 for each in found) / (len(found) - 1)) ** 0.5)

    def __str__(self) -> str:
        low, high = f"{self.shares[0]:.0%}", f"{self.shares[-1]:.0%}"
        range_ = low if len(self.shares) == 1 else f"{low} to {high}"
        beaten = sum(self.aopc > each for each in self.random_aopcs)
        layers = "1 layer" if len(self.layers) == 1 else f"each of {len(self.layers)} layers"
        return (
            f"Ablating ({self.how}) the first {range_} of the units of {layers} by {self.by} "
            f"lowers the output of {self.output:.4g} by {self.aopc:.4g} on average, random units "
            f"lower it by {self.random_mean:.4g} ± {self.random_sd:.2g}: more than "
            f"{beaten} of {len(self.random)} random sets ({self.samples} samples)."
        )

    def as_facts(self) -> dict[str, Any]:
        """Return all of it as plain values, with the areas, for `AttributionGraph.facts`."""
        return {
            **asdict(self),
            "aopc": self.aopc,
            "random_mean": self.random_mean,
            "random_sd": self.random_sd,
            "told": str(self),
        }


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def validate(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    seeds: int = 5,
    by: str | Mapping[str, Tensor] = "relevance",
    how: str = "mean",
    layers: Sequence[str] | None = None,
    reference: Tensor | None = None,
    batch_size: int = 128,
    progress: bool = False,
    additional_forward_args: Any = None,
    **options: Any,
) -> Validation:
    """Return how far the output falls as the first units by a ranking are ablated in all layers.

    Beside it stand as many random units of each layer, drawn anew for each seed 0, 1, ...

    Parameters
    ----------
    graph: of this model; model, x, target: as for `AttributionGraph.from_batch`. Samples that the
        graph was not made of are the harder test.
    shares: of the units of each layer, in (0, 1], rising; at least one unit of each.
    by, options: the ranking, as `rank` takes it; or scores of one's own, by layer [units].
    how, reference: as for `ablate`: for one class give samples of all as the reference; ablating
        by the mean without one warns (AttributionWarning). "resample" draws from the seed 0.
    layers: whose units are ablated; without, all but the inputs and the last.

    Raises InputError for shares, seeds and layers that cannot be, and as `rank` and `ablate`.
    """
    _check(shares, seeds)
    check_layers(graph, layers or ())
    names = tuple(hidden(graph) if layers is None else layers)
    if isinstance(by, str):
        scores: Mapping[str, Tensor] = rank(
            graph, by, model, x, target, layers=names, batch_size=batch_size,
            additional_forward_args=additional_forward_args, **options,
        )  # fmt: skip
        if layers is None:  # methods of attribution do not reach what is no module
            names = tuple(name for name in names if name in scores)
    else:
        scores = by
    if not names:
        raise InputError("the graph has no layer between its inputs and its last: give layers=.")
    orders = {name: _order(graph, scores, name) for name in names}
    steps = len(shares) * (seeds + 1)
    with (
        bench(graph, model, x, batch_size=batch_size,
              additional_forward_args=additional_forward_args) as made,
        progress_bar(progress, "ablation", steps) as told,
    ):  # fmt: skip
        made.prepare(how, reference, 0)
        measured = Drops(made, target)
        measured.doubt(how, reference)
        starts = {nodes.name: nodes.start for nodes in made.plan.nodes}
        done, curves = 0, []
        for seed in (None, *range(seeds)):
            drawn = orders if seed is None else _shuffled(orders, seed)
            curve = []
            for share in shares:
                chosen = torch.zeros(1, made.plan.count, dtype=torch.bool, device=x.device)
                for name, order in drawn.items():
                    chosen[0, starts[name] + order[: _count(share, len(order))]] = True
                curve.append(float(measured(chosen)[0]))
                done += 1
                told(done)
            curves.append(tuple(curve))
    return Validation(
        shares=tuple(float(each) for each in shares),
        counts=tuple(sum(_count(share, len(each)) for each in orders.values()) for share in shares),
        drops=curves[0],
        random=tuple(curves[1:]),
        output=float(measured.whole.mean()),
        by=by if isinstance(by, str) else "given scores",
        how=how,
        layers=names,
        samples=len(x),
    )


def unit_ablations(
    graph: AttributionGraph,
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    layers: Sequence[str] | None = None,
    how: str = "mean",
    reference: Tensor | None = None,
    batch_size: int = 128,
    progress: bool = False,
    additional_forward_args: Any = None,
) -> dict[str, Tensor]:
    """Return by how much the output falls when one unit is ablated, for each by itself.

    Of each layer [units], means over the samples, in double precision. Several units go through
    the model together where x has fewer samples than batch_size.

    Parameters
    ----------
    layers: without, all but the inputs and the last. The others: as for `validate`.
    """
    check_layers(graph, layers or ())
    names = hidden(graph) if layers is None else list(layers)
    total = sum(len(graph.relevance[name]) for name in names)
    with (
        bench(graph, model, x, batch_size=batch_size,
              additional_forward_args=additional_forward_args) as made,
        progress_bar(progress, "ablation", total) as told,
    ):  # fmt: skip
        made.prepare(how, reference, 0)
        measured = Drops(made, target)
        measured.doubt(how, reference)
        found, done = {}, 0
        for nodes in made.plan.nodes:
            if nodes.name not in names:
                continue
            parts = []
            numbers = torch.arange(nodes.start, nodes.start + nodes.count)
            for some in torch.split(numbers, measured.size):
                parts.append(measured(one_of_each(some, made.plan.count, x.device)))
                done += len(some)
                told(done)
            found[nodes.name] = torch.cat(parts).cpu()
    return found


def one_of_each(numbers: Tensor, count: int, device: torch.device) -> Tensor:
    """Return sets [R, count] of one unit each."""
    chosen = torch.zeros(len(numbers), count, dtype=torch.bool, device=device)
    chosen[torch.arange(len(numbers)), numbers] = True
    return chosen


class Drops:
    """By how much the explained output falls for sets of chosen units, the mean over samples."""

    def __init__(self, made: Bench, target: Any) -> None:
        self.made = made
        out = made.outputs(torch.zeros(1, made.plan.count, dtype=torch.bool, device=made.x.device))
        self.target: Target = check_target(target, out.shape[2:], len(made.x), out.device)
        self.whole = select(out[0], self.target).double()
        if not self.whole.isfinite().all():
            raise InputError(
                "the explained output is not finite for some samples: the inputs or the weights "
                "hold NaN or infinite values, or make them."
            )
        self.size = max(1, made.batch_size // len(made.x))
        self.several = out[0, 0].numel() > 1

    def doubt(self, how: str, reference: Tensor | None) -> None:
        """Warn where units are ablated to their mean over samples explained for one class."""
        told = _one_class(self.target)
        if how == "mean" and reference is None and self.several and told:
            warn_of_one_class(told)

    def __call__(self, chosen: Tensor, only: tuple[int, Tensor] | None = None) -> Tensor:
        """Return the drops [R] for sets [R, units]; `only` as for `Bench.outputs`."""
        out = self.made.outputs(chosen, only)
        left = torch.stack([select(each, self.target) for each in out]).double()
        return (self.whole - left).mean(1)


def _one_class(target: Target) -> str:
    """Return what all samples are explained for, nothing where that differs."""
    each = target.tolist() if isinstance(target, Tensor) else target
    found = set(each) if isinstance(each, list) else {each}
    only = found.pop() if len(found) == 1 else None
    if only is None:
        return ""
    return f"class {only[0] if isinstance(only, tuple) and len(only) == 1 else only}"


def _order(graph: AttributionGraph, scores: Mapping[str, Tensor], name: str) -> Tensor:
    found = scores.get(name)
    count = len(graph.relevance[name])
    if found is None or found.shape != (count,):
        told = "no scores" if found is None else f"scores of shape {tuple(found.shape)}"
        raise InputError(f"layer {name!r} of {count} units has {told} in this ranking.")
    return found.argsort(descending=True, stable=True)


def _shuffled(orders: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(len(each), generator=draw) for name, each in orders.items()}


def _count(share: float, units: int) -> int:
    return min(units, max(1, round(share * units)))


def _check(shares: Any, seeds: Any) -> None:
    if isinstance(shares, (str, int, float)) or not isinstance(shares, Sequence) or not shares:
        raise InputError(f"shares is a list of numbers in (0, 1], got {shares!r}.")
    for each in shares:
        if isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 < each <= 1:
            raise InputError(f"shares are numbers in (0, 1], got {each!r}.")
    if list(shares) != sorted(set(shares)):
        raise InputError(f"shares must rise, got {list(shares)}.")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise InputError(f"seeds is the number of random sets, an integer >= 1, got {seeds!r}.")
