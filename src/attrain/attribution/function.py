"""One function for every method: checks, cuts the batch, runs, and judges what came out."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from attrain.attribution import doubts, features, layers, lrp, methods
from attrain.attribution.conditions import (
    as_in_evaluation,
    as_tuple,
    check_inputs,
    check_model,
    plain,
    progress_bar,
)
from attrain.attribution.part import Part, Scored, sliced
from attrain.attribution.targets import check_target, part, scores
from attrain.credit import LFP
from attrain.errors import AttrainError, AttributionWarning, CreditError, InputError
from attrain.models import seeded


@overload
def attribute(
    model: nn.Module, x: Tensor, target: Any = None, *, method: str = ...,
    layer: str | nn.Module | None = ..., of: str | nn.Module | None = ...,
    return_error: Literal[False] = ..., batch_size: int = ...,
    seed: int | None = ..., generator: torch.Generator | None = ..., progress: bool = ...,
    additional_forward_args: Any = ..., **options: Any,
) -> Tensor: ...  # fmt: skip


@overload
def attribute(
    model: nn.Module, x: Tensor, target: Any = None, *, method: str = ...,
    layer: str | nn.Module | None = ..., of: str | nn.Module | None = ...,
    return_error: Literal[True], batch_size: int = ...,
    seed: int | None = ..., generator: torch.Generator | None = ..., progress: bool = ...,
    additional_forward_args: Any = ..., **options: Any,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attribute(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    method: str = "lrp",
    layer: str | nn.Module | None = None,
    of: str | nn.Module | None = None,
    return_error: bool = False,
    batch_size: int = 128,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    additional_forward_args: Any = None,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return how much each input, or each unit of a layer, contributes to an output.

    The model is run as in evaluation (no dropout, running statistics) and is afterwards as it was:
    modes, gradients, hooks, flags.

    Parameters
    ----------
    model: returns a tensor of scores, a tuple whose first entry is one, or has them as .logits.
    x: [N, ...]; integers (tokens) for layer=, lime, kernel_shap and occlusion alone.
    target: the output to explain. A class for outputs [N, C], a tuple of indices for more axes, a
        tensor [N] or a list with one of each sample, or None for outputs [N] or [N, 1].
    method: a name in attrain.attribution.METHODS, which has their options and sources.
    layer: a name of model.named_modules(), or a module: attribute to its output, of several the
        first, in place of x. Baselines are still given as inputs of the model. lime, kernel_shap
        and occlusion take a channel or token of it as one feature.
    of: a layer, as for layer=, a unit of which is explained in place of an output of the model:
        target then selects from what that layer returns, (channel, row, column) of [N, C, H, W].
    return_error: also return the completeness error [N], the sum of the attributions minus
        (f(x) - f(baseline)), where the baseline is 0 if the method has none; for lrp, minus f(x):
        what biases and epsilon took.
    batch_size: the most rows that go through the model at once (gradient_shap: n_samples,
        deep_shap: two for each baseline, if that is more).
    seed, generator: of the random numbers, one of both; without, torch's own generator decides.
        Each sample has a stream of its own, whatever the batch_size.
    progress: show a bar with the time left, on stderr.
    additional_forward_args: what the model takes after x: a tensor, or a tuple; tensors whose
        first axis is N go with their samples.
    options: of the method. For lrp: rule, rules, epsilon, batch_norm, opposite_sign, gate, as
        attrain.LFP takes them.

    Returns a tensor shaped as x or as the layer's output, with return_error a pair.

    Raises InputError for what does not fit together, CreditError where lrp has no rule for a
    function of the model. Warns (AttributionWarning) of a method that is unreliable for the model.
    """
    chosen = methods.find(method)
    options = methods.options_of(method, options)
    check_model(model)
    args = as_tuple(additional_forward_args)
    check_inputs(x, model, batch_size)
    place = None if layer is None else layers.find(model, layer)
    explained = model if of is None else layers.Until(model, layers.find(model, of))
    _check_kind(x, method, chosen, place, model)
    base = _base_seed(seed, generator) if chosen.drawn else 0
    with as_in_evaluation(model, x), progress_bar(progress, method, len(x)) as bar:
        # A copy, since a model may overwrite what it is given.
        x, args = plain(x).clone(), tuple(map(plain, args))
        if of is not None and place is not None:
            with layers.in_order(place, layers.find(model, of)):
                _output_of(explained, x[:1], sliced(args, len(x), 0, 1))
        if chosen.run is None:
            values, error = _propagated(
                explained, model, x, target, place, args, options, batch_size, bar
            )
        else:
            job = _Job(explained, x, target, place, args, method, options, batch_size, bar)
            values, error = job.run(base, return_error)
    doubts.warn_of_values(method, values, chosen.differentiates)
    return (values, error) if return_error else values


def saliency(model: nn.Module, x: Tensor, target: Tensor, *, channels: bool = True) -> Tensor:
    """Return how strongly each place of the inputs moves the target's logit.

    The absolute gradient of logit `target` [N] with respect to `x` [N, C, ...], the largest over
    the channels: [N, ...]. Inputs without channels, [N, D] or, if `channels` is False, of any
    shape, give a value for each of theirs. The model is run as in evaluation; no parameter gets a
    gradient. Simonyan et al., 2014.
    """
    with warnings.catch_warnings():
        # A map without a trace is something to show here, not to warn of.
        warnings.simplefilter("ignore", AttributionWarning)
        heat = attribute(model, x, target, method="saliency")
    return heat.amax(1) if channels and heat.ndim > 2 else heat


def _propagated(
    model: nn.Module,
    whole: nn.Module,
    x: Tensor,
    target: Any,
    place: tuple[str, nn.Module] | None,
    args: tuple[Any, ...],
    options: dict[str, Any],
    batch_size: int,
    bar: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """Return the relevances of lrp, and by how much their sum misses the explained output.

    whole: the user's model, by whose names rules are given.
    """
    found, errors = [], []
    with lrp.frozen(model):
        credit = LFP(whole, **options)
        checked: Any = None
        for start in range(0, len(x), batch_size):
            stop = min(start + batch_size, len(x))
            some, rest = x[start:stop], sliced(args, len(x), start, stop)

            def targets(out: Tensor, start: int = start, stop: int = stop) -> Any:
                nonlocal checked
                if start == 0:
                    checked = check_target(target, out.shape[1:], len(x), out.device)
                return part(checked, start, stop)

            try:
                values, explained = lrp.relevance(model, credit, some, targets, place, rest)
            except AttrainError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError):
                _output_of(model, some[:1], sliced(rest, len(some), 0, 1))
                raise
            found.append(values)
            errors.append(values.flatten(1).sum(1) - explained)
            bar(stop)
    return torch.cat(found), torch.cat(errors)


class _Job:
    """What all parts of a batch have in common, for the methods that captum computes."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Any,
        place: tuple[str, nn.Module] | None,
        args: tuple[Any, ...],
        method: str,
        options: dict[str, Any],
        batch_size: int,
        bar: Callable[[float], None],
    ) -> None:
        self.model, self.x, self.place, self.args = model, x, place, args
        self.name, self.method, self.options = method, methods.find(method), options
        self.batch_size, self.bar = batch_size, bar
        out = _output_of(model, x[:1], sliced(args, len(x), 0, 1))
        self.target = check_target(target, out.shape[1:], len(x), out.device)
        self.single, self.dtype = target is None, out.dtype
        self.x_baselines = self._x_baselines(options.get("baselines"))
        self.baselines = self.x_baselines
        # One sample is enough to know the shape of the values.
        if place is None:
            self.shape = tuple(x.shape)
        else:
            one = layers.captured(model, *place, x[:1], sliced(args, len(x), 0, 1))
            self.shape = (len(x), *one.shape[1:])
            if self.method.baselines != "none":
                self.baselines = self._layer_baselines()
        self._settle()

    def _x_baselines(self, given: Any) -> Tensor | None:
        """Return the baselines as inputs of the model, checked."""
        many, samples = self.method.baselines == "many", len(self.x)
        if given is None:
            if self.name == "deep_shap":
                raise InputError(
                    "deep_shap needs baselines: a tensor [B, ...] of at least two typical inputs, "
                    "such as a part of the training set."
                )
            return None
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            given = torch.full_like(self.x[:1], given)
        if not isinstance(given, Tensor):
            raise InputError(
                f"baselines are a number or a tensor shaped as x, got {type(given).__name__}."
            )
        counts = "any number" if many else f"1 or {samples}"
        if given.shape[1:] != self.x.shape[1:] or not (many or len(given) in (1, samples)):
            raise InputError(
                f"baselines have the shape {tuple(given.shape)}, and x {tuple(self.x.shape)}: "
                f"only the first axis may differ, of {counts}."
            )
        if len(given) < (2 if self.name == "deep_shap" else 1):
            raise InputError(f"{self.name} got {len(given)} baselines, which are too few.")
        return torch.as_tensor(plain(given)).to(self.x.device, self.x.dtype)

    def _layer_baselines(self) -> Tensor:
        """Return what the layer makes of the baselines; without, of inputs that are 0."""
        given = torch.zeros_like(self.x[:1]) if self.x_baselines is None else self.x_baselines
        assert self.place is not None
        found = []
        for start in range(0, len(given), self.batch_size):
            some = given[start : start + self.batch_size]
            per_sample = len(given) == len(self.x) and self.method.baselines == "one"
            if per_sample:
                args = sliced(self.args, len(self.x), start, start + len(some))
            else:
                args = tuple(
                    each.expand(len(some), *each.shape[1:]) if isinstance(each, Tensor) else each
                    for each in sliced(self.args, len(self.x), 0, 1)
                )
            found.append(layers.captured(self.model, *self.place, some, args))
        return torch.cat(found)

    def _settle(self) -> None:
        """Decide what the options leave to the shape of the values."""
        layer = self.place is not None
        self.mask: Tensor | None = None
        if self.method.masked:
            self.mask = features.check_mask(self.options["feature_mask"], self.shape, layer=layer)
            count = int(self.mask.max()) + 1
            if count < 2:
                raise InputError(f"{self.name} needs at least 2 features, got {count}.")
            doubts.warn_of_samples(self.name, self.options["n_samples"], count)
        if self.name == "occlusion":
            size, strides = features.window(self.shape, layer=layer)
            given = self.options["sliding_window_shapes"]
            size = size if given is None else _extents("sliding_window_shapes", given, self.shape)
            if self.options["strides"] is not None:
                strides = _extents("strides", self.options["strides"], self.shape)
            elif given is not None:
                strides = (1,) * len(size)
            self.options |= {"sliding_window_shapes": size, "strides": strides}
        baselines = 1 if self.x_baselines is None else len(self.x_baselines)
        self.rows = self.method.rows(self.options, baselines)
        if self.name == "occlusion":
            self.rows = 1 + features.windows(self.shape, size, strides)

    def run(self, base: int, return_error: bool) -> tuple[Tensor, Tensor]:
        """Return the attributions and their completeness error, which may be left out as 0."""
        samples = len(self.x)
        size = max(1, self.batch_size // self.rows)
        if self.method.drawn:
            size = 1
        elif self.name == "occlusion":  # whose windows take turns
            size = self.batch_size
        found, errors, changes = [], [], []
        self._look_for_doubts()
        for start in range(0, samples, size):
            some = self._part(start, min(start + size, samples))
            with ExitStack() as stack:
                if self.method.drawn:
                    stack.enter_context(_drawn_from(base, start))
                # captum's masks make numbers of another type than the model's.
                found.append(self._attributions(some).to(self.dtype))
            if return_error or self.method.complete:
                change = some.outputs() - some.outputs_at_baseline()
                errors.append(features.total(found[-1], some.mask) - change)
                changes.append(change)
            self.bar(some.stop)
        values = torch.cat(found)
        if not errors:
            return values, values.new_zeros(samples)
        error = torch.cat(errors)
        if self.method.complete:
            doubts.warn_of_error(self.name, error, torch.cat(changes))
        return values, error

    def _part(self, start: int, stop: int) -> Part:
        samples, count = len(self.x), stop - start
        x = self.x[start:stop]
        args = sliced(self.args, samples, start, stop)
        many = self.method.baselines == "many"

        def cut(each: Tensor | None, whole: bool = False) -> Tensor | None:
            if each is None or whole or len(each) != samples:
                return each
            return each[start:stop]

        values, rest = x, args
        if self.place is not None:
            values, rest = layers.captured(self.model, *self.place, x, args), (x, *args)
        passed = 0

        def counted(rows: int) -> None:
            nonlocal passed
            passed += rows
            self.bar(start + min(count, passed / self.rows))

        whole = Scored(self.model, None, counted, self.single)
        forward = whole
        if self.place is not None:
            forward = Scored(self.model, self.place, counted, self.single)
        return Part(
            stop=stop,
            forward=forward,
            values=values,
            args=rest,
            target=part(self.target, start, stop),
            options=self.options,
            batch_size=self.batch_size,
            whole=whole,
            x=x,
            x_args=args,
            layer=self.place,
            baselines=cut(self.baselines, many),
            x_baselines=cut(self.x_baselines, many),
            distribution=many,
            mask=cut(self.mask),
        )

    def _look_for_doubts(self) -> None:
        """Warn, for DeepLIFT, of nonlinearities that it does not see."""
        self.reused: dict[str, int] = {}
        if self.name not in ("deeplift", "deep_shap"):
            return
        watch = doubts.Watch(self.model)
        one = self._part(0, 1)
        with lrp.frozen(self.model):
            values = one.values.detach().clone().requires_grad_()
            with watch:
                one.forward(values, *one.args)
        self.reused = watch.reused
        if watch.doubts:
            doubts.warn_of(self.name, watch.doubts)

    def _attributions(self, some: Part) -> Tensor:
        assert self.method.run is not None
        if self.name not in ("deeplift", "deep_shap"):
            return self.method.run(some)
        with _without_traces(self.model):
            try:
                return self.method.run(some)
            except RuntimeError as error:
                if not self.reused or isinstance(error, AttrainError):
                    raise
                told = ", ".join(f"{name!r} ({runs} times)" for name, runs in self.reused.items())
                raise CreditError(
                    f"{self.name} cannot take a module that runs more than once: {told}. Give "
                    "each place a module of its own, or use method='lrp' or "
                    "'integrated_gradients'."
                ) from error


def _output_of(model: nn.Module, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Return what the model makes of one sample, or raise InputError with what it said."""
    try:
        with torch.no_grad():
            out = scores(model(x, *args))
    except (AttrainError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the model cannot take inputs of shape {('N', *x.shape[1:])} and type {x.dtype}: "
            f"{said.rstrip('.')}.".replace("'N'", "N")
        ) from error
    if out.ndim == 0 or len(out) != 1:
        raise InputError(
            f"the model returns the shape {tuple(out.shape)} for one sample: the first axis of its "
            "output must count the samples."
        )
    return out


def _check_kind(
    x: Tensor,
    method: str,
    chosen: methods.Method,
    place: tuple[str, nn.Module] | None,
    model: nn.Module,
) -> None:
    """Raise where integers would have to be differentiated."""
    if x.is_floating_point() or not chosen.differentiates:
        return
    if place is not None and method not in ("deeplift", "deep_shap"):
        return
    names = [name for name, each in model.named_modules() if isinstance(each, nn.Embedding)]
    at = f"layer={names[0]!r}" if names else "layer= with the name of the embedding"
    also = "" if place is None else " and another method, since this one needs numbers at x"
    raise InputError(
        f"x holds {x.dtype}, which has no gradient for {method}: give {at}{also}, or use lime, "
        "kernel_shap or occlusion."
    )


def _extents(option: str, given: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    extents = (given,) * (len(shape) - 1) if isinstance(given, int) else tuple(given)
    fits = len(extents) == len(shape) - 1 and all(
        isinstance(each, int) and 1 <= each <= size
        for each, size in zip(extents, shape[1:], strict=True)
    )
    if not fits:
        raise InputError(
            f"{option}={given!r} does not fit samples of shape {shape[1:]}: give one integer for "
            "each axis, from 1 to its length."
        )
    return extents


def _base_seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise InputError("seed and generator were both given: give one of them.")
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"seed must be an integer >= 0, got {seed!r}.")
        return seed
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31, (), generator=generator, device=device))


def seed_of(base: int, sample: int) -> int:
    """Return the seed of one sample's random numbers."""
    return int(np.random.SeedSequence([base, sample]).generate_state(1)[0])


@contextmanager
def _drawn_from(base: int, sample: int) -> Iterator[None]:
    """Draw from a sample's own stream inside; captum draws from torch's and from numpy's."""
    seed, before = seed_of(base, sample), np.random.get_state()
    with seeded(seed):
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Remove what captum's DeepLIFT leaves in modules when it fails."""
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in set(vars(module)) - names:
                delattr(module, name)
