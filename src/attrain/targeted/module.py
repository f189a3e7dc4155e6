"""Targeted: the module that trains the rows of critical units alone."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attrain.attribution.conditions import as_in_evaluation
from attrain.attribution.targets import scores as outputs_of
from attrain.credit import natively
from attrain.errors import InputError, unknown
from attrain.targeted import checks, distributed, explain, layers, selection, state
from attrain.targeted.explain import Batch
from attrain.targeted.layers import Layer, Parts
from attrain.targeted.scores import SCORES, Function, Score, share
from attrain.targeted.watching import Measuring, Watching

KEPT = ("rows", "since", "scores", "protected")
INPUT_GRADIENTS = ("full", "selected")
STATISTICS = ("update", "freeze")


@dataclass(frozen=True)
class Refresh:
    """What a refresh did: after which step, which rows [k] of which layer learn, by what scores.

    kept: of each layer, the share of its rows that learned before, too.
    """

    step: int
    rows: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    kept: Mapping[str, float]


class Targeted(nn.Module):
    """A model of which only the critical units learn: their rows of weights, found by attribution.

    targeted = attrain.Targeted(model, density=0.25)
    optimizer = torch.optim.SGD(targeted.parameters(), lr=0.1, momentum=0.9)
    loss = F.cross_entropy(targeted(x), y)
    loss.backward()
    optimizer.step()
    targeted.step(optimizer)

    The rows of linear layers and the channels of convolutions are targeted; the output layer,
    normalisations, embeddings, recurrent layers and what else has parameters learn as ever. Rows
    that learn are parameters of their own, so that the gradients of weights are computed for them
    alone, and momentum, weight decay and the optimizer's memory reach no others. After each
    `step` the model itself, `targeted.model`, has everything that was learned.

    Parameters
    ----------
    model: a module. Its targeted weights no longer require grad by themselves.
    density: the share of each layer's units that learn, in (0, 1]. Counts of channels are rounded
        to a multiple of 8 in layers of 16 and more.
    score: what makes a unit critical, a name in `SCORES`, or a function from `Units` to one number
        per unit, the higher the sooner it learns.
    refresh: rows are chosen again every so many steps.
    warmup: so many steps train all rows before the first choice. With 0, scores that are measured
        start from rows drawn by chance, and choose after the first step.
    exploration: the share of the chosen rows that is drawn by chance, on average, in [0, 1).
    input_gradient: "full", or "selected": a layer hands back the gradient of its inputs through
        the chosen rows alone, as meProp does (Sun et al., 2017).
    dense: names or patterns of layers that are trained as ever; by default the output layer, which
        is the last linear or convolution layer that the model registers.
    classes: the axis of outputs [N, C, ...] or [N, ..., C] on which classes are, 1 or -1. By
        default the loss tells it, or the labels given to `protect`.
    memory: the share of the past in a score, S <- memory S + (1 - memory) new.
    statistics: "update" the running statistics of BatchNorm, or "freeze" them, so that a layer
        normalises as in evaluation. Its affine parameters learn for chosen units alone.
    seed: of what is drawn by chance; the same in all processes.
    on_refresh: called with a `Refresh` whenever rows were chosen.

    Raises InputError for options out of range, a model without a layer to be targeted, a score of
    the wrong shape, an optimizer of other parameters, and weights that somebody else changes.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float = 0.25,
        score: str | Function = "flow",
        *,
        refresh: int = 50,
        warmup: int = 200,
        exploration: float = 0.0,
        input_gradient: Literal["full", "selected"] = "full",
        dense: str | Sequence[str] | None = None,
        classes: int | None = None,
        memory: float = 0.5,
        statistics: Literal["update", "freeze"] = "update",
        seed: int = 0,
        on_refresh: Callable[[Refresh], None] | None = None,
    ) -> None:
        super().__init__()
        checks.model(model)
        checks.options(density, refresh, warmup, exploration, memory, seed)
        checks.axis(classes)
        checks.names(dense, on_refresh)
        for kind, value, known in (
            ("input_gradient", input_gradient, INPUT_GRADIENTS),
            ("statistics", statistics, STATISTICS),
        ):
            if value not in known:
                raise unknown(kind, str(value), known)
        if isinstance(score, str):
            if score not in SCORES:
                raise unknown("score", score, SCORES)
        elif not callable(score):
            raise InputError(
                f"score is a name or a function of a layer's units, got {type(score).__name__}."
            )
        self.model = model
        self.density, self.score, self.refresh, self.warmup = density, score, refresh, warmup
        self.exploration, self.input_gradient, self.memory = exploration, input_gradient, memory
        self.statistics, self.seed, self.on_refresh = statistics, seed, on_refresh
        self.classes = classes
        self.parts = Parts()
        names = [dense] if isinstance(dense, str) else dense
        self._layers, self.dense = layers.find(model, names, density, self.parts)
        self._assumed = next(iter(self.dense)) if dense is None else None
        self._axis: int | None = None  # of classes, once a loss has told it
        self._steps, self._late, self._passed = 0, False, False
        self._generator = torch.Generator().manual_seed(seed)
        self._measuring: Measuring | None = None
        self._batch: Batch | None = None
        self._wrapper: Any = None
        self._known: tuple[int, ...] = ()
        self._index()
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        if warmup == 0:
            self._choose({each.name: self._draw(each) for each in self._layers}, (), told=False)
        self.training = model.training
        self._freeze_statistics()
        state.expect(self._layers)

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self._steps

    # Training ------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns; in training, rows learn by it."""
        with torch.no_grad(), natively():
            due = self._due(self._steps + 1)
            for layer in self._layers:
                layer.check(values=due)
                layer.sync()
                if layer.norm is not None and layer.mask is not None:
                    layer.norm.keep()
        if not torch.is_grad_enabled():
            return self.model(*args, **kwargs)
        self._passed = True
        wrapper = distributed.around()
        if wrapper is not None:
            self._wrapper = weakref.ref(wrapper)
        measures = self.training and due
        watching = Watching(
            self._table,
            self._norms,
            truncated=self.training and self.input_gradient == "selected",
            measuring=self._measure_by() if measures else None,
        )
        with watching:
            out = self.model(*args, **kwargs)
        if self._assumed is not None:
            checks.output(explain.name_of(self.model, watching.last), self._assumed)
            self._assumed = None
        if measures and self._rule.needs in ("relevance", "flow"):
            self._remember(args, kwargs, outputs_of(out))
        return out

    def step(self, *optimizers: Optimizer) -> None:
        """Take over what the optimizer's step has learned, and choose rows again where it is due.

        optimizers: those that hold the parameters of this module. To be called after their step.

        Raises InputError for an optimizer of other parameters.
        """
        given = tuple(getattr(each, "optimizer", each) for each in optimizers)
        if tuple(map(id, given)) != self._known or not given:
            checks.optimizers(given, self.parts.parameters())
            self._known = tuple(map(id, given))
        if not self._passed:
            raise InputError(
                "a step was made, and no pass through Targeted was seen before it, so that no row "
                "can have learned: call the Targeted itself, targeted(x), and backward()."
            )
        self._passed = False
        state.expect_no_more(self._layers)
        with torch.no_grad(), natively():
            for layer in self._layers:
                state.correct_bias(given, layer)
                layer.sync(always=True)
                if layer.norm is not None and layer.mask is not None:
                    layer.norm.restore(layer.mask)
        self._steps += 1
        if self._due(self._steps):
            if self._rule.needs != "nothing" and self._measuring is None and self._batch is None:
                raise InputError(
                    "rows are chosen after this step, and no pass in training was seen before it: "
                    "call the Targeted itself, targeted(x), in training mode, and backward()."
                )
            found = self._scored()
            self._late = found is None
            if found is not None:
                self._choose(found, given)
        self._measuring = self._batch = None

    def _due(self, step: int) -> bool:
        """Tell whether rows are chosen after this step."""
        first = self.warmup if self._rule.drawn else max(self.warmup, 1)
        if self._rule.once and self._layers[0].rows is not None:
            return False
        return self._late or (step >= first and (step - first) % self.refresh == 0)

    @property
    def draws(self) -> bool:
        """Whether scores are chance."""
        return self._rule.drawn

    @property
    def _rule(self) -> Score:
        if isinstance(self.score, str):
            return SCORES[self.score]
        return Score("a function", "training", self.score)

    def _measure_by(self) -> Measuring | None:
        """Return what the training pass measures units with, the same for all parts of a batch."""
        if self._rule.final is not None and self._layers[0].protected is None:
            raise InputError(
                f"score={self.score!r} weighs what an old task needs: call targeted.protect with "
                "batches of it before training."
            )
        if self._measuring is None and self._rule.needs == "training":
            assert self._rule.function is not None
            self._measuring = Measuring(self._rule.function)
        return self._measuring

    def _remember(self, args: Any, kwargs: dict[str, Any], out: Tensor) -> None:
        """Keep the batch, and once the way back has shown it, what the loss wants of outputs."""
        kept = tuple(map(_plain, args)), {name: _plain(each) for name, each in kwargs.items()}

        def came_back(slopes: Tensor) -> None:
            with torch.no_grad(), natively():
                finite = bool(slopes.isfinite().all())
                known = self.classes or self._axis
                if finite and known is None:
                    known = self._axis = explain.class_axis(slopes)
                wanted = explain.wanted(slopes, known) if finite else None
                self._batch = Batch(*kept, wanted, finite)

        if out.requires_grad:
            with natively():
                out.register_hook(came_back)  # type: ignore[no-untyped-call]

    # Choosing rows -------------------------------------------------------------------------------

    def _scored(self) -> dict[str, Tensor] | None:
        """Return the scores [units] of each layer, None where the pass had no finite ones."""
        rule = self._rule
        if rule.drawn:
            return {each.name: self._draw(each) for each in self._layers}
        found: dict[str, tuple[Tensor, int]] = {}
        if rule.needs == "training":
            found = self._measuring.found if self._measuring is not None else {}
        elif rule.needs != "nothing" and self._batch is not None and self._batch.finite:
            assert rule.function is not None
            found = explain.measure(
                self.model, self._table, self._norms, self._batch, rule.function,
                flow=rule.needs == "flow",
            )  # fmt: skip
        if rule.needs != "nothing":
            found = self._agreed(found)
            if not found or not all(bool(each.isfinite().all()) for each, _ in found.values()):
                return None
            for layer in self._layers:
                if layer.name in found:
                    total, calls = found[layer.name]
                    new = total / calls
                    new = new.abs() if rule.signed else new
                    old = layer.scores
                    layer.scores = new if old is None else old.lerp(new, 1 - self.memory)
        return {each.name: self._final(each) for each in self._layers}

    def _agreed(self, found: dict[str, tuple[Tensor, int]]) -> dict[str, tuple[Tensor, int]]:
        """Return the measured scores of all processes together, without layers that none called."""
        whole = {
            each.name: found.get(
                each.name, (torch.zeros(each.units, device=each.weight.device).double(), 0)
            )
            for each in self._layers
        }
        return {
            name: each for name, each in distributed.mean(whole, self._around()).items() if each[1]
        }

    def _final(self, layer: Layer) -> Tensor:
        zero = torch.zeros(layer.units, dtype=torch.float64, device=layer.weight.device)
        scores = zero if layer.scores is None else layer.scores
        if self._rule.final is None:
            return scores
        if layer.protected is None:
            raise InputError(
                f"score={self.score!r} weighs what an old task needs: call targeted.protect with "
                "batches of it before training."
            )
        return self._rule.final(scores, layer.protected)

    def _draw(self, layer: Layer) -> Tensor:
        return selection.draw(layer.units, self._generator).to(layer.weight.device)

    def _choose(
        self, scores: Mapping[str, Tensor], optimizers: Sequence[Optimizer], told: bool = True
    ) -> None:
        """Let the units with the highest scores learn from now on."""
        kept, reshaped = {}, False
        with torch.no_grad(), natively():
            for layer in self._layers:
                explored = selection.part(self.exploration, layer.k, self._generator)
                rows = selection.choose(scores[layer.name], layer.k, explored, self._generator)
                stay = 1.0 if layer.mask is None else float(layer.mask[rows].double().mean())
                kept[layer.name] = stay
                reshaped = reshaped or layer.rows is None
                layer.sync()
                state.take_over(optimizers, layer, rows)
                layer.target(rows)
        if reshaped:
            distributed.renew(self._around())
        if told and self.on_refresh is not None:
            self.on_refresh(Refresh(self._steps, self.selection(), dict(scores), kept))

    def _around(self) -> Any:
        return None if self._wrapper is None else self._wrapper()

    # An old task ---------------------------------------------------------------------------------

    def protect(
        self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
    ) -> dict[str, Tensor]:
        """Measure what each unit has to do with an old task, for `low_relevance` and `ratio`.

        batches: (x, y), inputs and class indices, without those that are -100, or inputs alone,
        which are explained for the class that the model names. forward: from inputs to the old
        task's outputs, where the model does not return them itself.
        Returns mean_n |z_nj do_n/dz_nj| of each layer [units].

        Raises InputError for no batches, and for what are none.
        """
        totals: dict[str, Tensor] = {}
        count = 0
        checks.batches(batches)
        with torch.no_grad(), natively():
            for layer in self._layers:
                layer.sync()
        for batch in batches:
            x, y = checks.pair(batch)
            with as_in_evaluation(self.model, x), torch.no_grad():
                out = outputs_of((forward or self.model)(x))
            axis = explain.labelled(out, y, self.classes)
            wanted = None
            if out.ndim > 1 and out.shape[axis] > 1:
                checks.labels(y, out, axis)
                named = out.argmax(axis, keepdim=True) if y is None else y.unsqueeze(axis)
                wanted = explain.chosen(out, named.clamp_min(0), axis) & (named != checks.IGNORED)
            found = explain.measure(
                self.model,
                self._table,
                self._norms,
                Batch((x,), {}, wanted),
                share,
                flow=False,
                forward=forward,
            )
            for name, (total, _) in found.items():
                totals[name] = totals.get(name, 0.0) + total * len(x)
            count += len(x)
        if not count:
            raise InputError("protect got no batches: give inputs of the old task, or (x, y).")
        for layer in self._layers:
            if layer.name in totals:
                layer.protected = totals[layer.name] / count
        return {name: total / count for name, total in totals.items()}

    # What is known -------------------------------------------------------------------------------

    def selection(self) -> dict[str, Tensor]:
        """Return of each layer which units learn now [k], in order; all of them in the warm-up."""
        return {
            each.name: torch.arange(each.units, device=each.weight.device)
            if each.rows is None
            else each.rows.clone()
            for each in self._layers
        }

    def scores(self) -> dict[str, Tensor]:
        """Return the smoothed scores of each layer [units], without those not measured so far."""
        return {each.name: each.scores.clone() for each in self._layers if each.scores is not None}

    def trained_share(self) -> float:
        """Return the share of the model's parameters that learn now."""
        whole = {id(each): each.numel() for each in self.model.parameters()}
        learning = {
            id(each): each.numel()
            for each in self.parameters()
            if each.requires_grad and id(each) not in self._table
        }
        for layer in self._layers:
            if layer.norm is not None and layer.rows is not None:
                learning |= {
                    id(each): layer.k for each in layer.norm.parameters if each.requires_grad
                }
        return sum(learning.values()) / sum(whole.values())

    def optimizer_bytes(self, *optimizers: Optimizer) -> int:
        """Return how many bytes optimizers hold for their parameters."""
        return state.held(getattr(each, "optimizer", each) for each in optimizers)

    def release(self) -> nn.Module:
        """Return the model with everything that was learned, all its weights free to learn.

        This object is of no use afterwards.
        """
        with torch.no_grad(), natively():
            for layer in self._layers:
                layer.release()
        return self.model

    # As a module ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Targeted":
        """Set training or evaluation, in which BatchNorm stays where its statistics are frozen."""
        super().train(mode)
        self._freeze_statistics()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Targeted":
        """Let everything learn or nothing, rows in place of the weights that they are part of."""
        super().requires_grad_(requires_grad)
        for layer in self._layers:
            for _, whole in layer.parts():
                whole.requires_grad_(False)
        return self

    def _freeze_statistics(self) -> None:
        if self.statistics == "freeze":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def extra_repr(self) -> str:
        """Return the options that a printed module shows."""
        return f"density={self.density}, score={self.score!r}, layers={len(self._layers)}"

    def _index(self) -> None:
        """Know layers by the identity of what the model holds, which differs between copies."""
        self._table = {
            id(whole): each
            for each in self._layers
            for whole in (each.weight, each.bias)
            if whole is not None
        }
        self._norms: dict[int, Layer | None] = {
            id(each.norm.parameters[0]): each for each in self._layers if each.norm is not None
        }
        for layer in self._layers:
            layer.owns = layer.weight

    def _apply(self, fn: Any, recurse: bool = True) -> "Targeted":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer in self._layers:
            layer.moved()
        self._index()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with torch.no_grad(), natively():
            for layer in self._layers:
                layer.sync()
                for kind in KEPT:
                    value = getattr(layer, kind)
                    if value is not None:
                        destination[f"{prefix}{kind}.{layer.name}"] = value.clone()
        destination[f"{prefix}steps"] = torch.tensor([self._steps, int(self._late)])
        destination[f"{prefix}generator"] = self._generator.get_state()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        own = [f"{prefix}{each}" for each in ("steps", "generator")]
        kinds = tuple(f"{prefix}{each}." for each in KEPT)
        missing_keys += [each for each in own if each not in state_dict]
        rest = {
            key: value
            for key, value in state_dict.items()
            if key not in own and not key.startswith(kinds)
        }
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if any(each not in state_dict for each in own):
            return
        self._steps, late = state_dict[own[0]].tolist()
        self._late = bool(late)
        self._generator.set_state(state_dict[own[1]].cpu())
        for layer in self._layers:
            known = {kind: state_dict.get(f"{prefix}{kind}.{layer.name}") for kind in KEPT}
            rows = known["rows"]
            if rows is not None and (len(rows) != layer.k or int(rows[-1]) >= layer.units):
                error_msgs.append(
                    f"{len(rows)} rows of layer {layer.name!r} learn in the checkpoint, and "
                    f"density={self.density} makes them {layer.k} of {layer.units}."
                )
                continue
            layer.load(**known)

    def __getstate__(self) -> dict[str, Any]:
        known = dict(self.__dict__)
        known |= {"_wrapper": None, "_measuring": None, "_batch": None, "_known": ()}
        known["_generator"] = self._generator.get_state()
        return known

    def __setstate__(self, known: dict[str, Any]) -> None:
        super().__setstate__(known)  # type: ignore[no-untyped-call]
        self._generator = torch.Generator()
        self._generator.set_state(known["_generator"])
        for layer in self._layers:
            layer.moved()
        self._index()


def _loaded(targeted: Any, _: Any) -> None:
    """Take the rows that learn out of the weights that were loaded."""
    with torch.no_grad(), natively():
        for layer in targeted._layers:
            layer.reload()
    if any(layer.weight is not layer.owns for layer in targeted._layers):  # assign=True
        for layer in targeted._layers:
            layer.norm = None
        targeted._index()
    state.expect(targeted._layers)


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
