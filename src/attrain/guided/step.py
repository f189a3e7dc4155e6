"""Saliency guided training: the loss of a batch and of the same batch masked (paper 2111.14338)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attrain import marks
from attrain.attribution import layers
from attrain.attribution.conditions import as_in_evaluation, check_classes
from attrain.attribution.targets import scores
from attrain.credit import LFP, is_active, natively
from attrain.errors import InputError, unknown
from attrain.guided import checks, masks, saliency
from attrain.guided.agreement import agreement
from attrain.guided.cache import MaskCache
from attrain.guided.carry import carry
from attrain.guided.prefix import Prefix, can_share
from attrain.guided.wrapped import has_static_graph, inside, without_reducing
from attrain.marks import Kind, Mark

DATA = ("image", "series", "text")
TARGETS = ("label", "predicted")
ORDERS = ("signed", "absolute", "random")
FORMS = ("exact", "shared", "fast")
OUTPUTS = ("logits", "log_probabilities", "probabilities")


@dataclass(frozen=True)
class Step:
    """What a batch came to.

    loss: a scalar to call backward() on. outputs, masked_outputs: [N, C], of x and of x~; those of
    x are detached in the fast form. masked: x~. drop: the features that were masked, [N, H, W] of
    images [N, C, H, W], else shaped as x.
    task, divergence: the two terms of the loss, detached and not weighted.
    """

    loss: Tensor
    outputs: Tensor
    masked_outputs: Tensor
    masked: Tensor
    drop: Tensor
    task: Tensor
    divergence: Tensor


class SaliencyGuided:
    """Saliency guided training as a loss: loss = guided(x, y), then loss.backward().

    The loss is L(f(x), y) + weight KL(f(x) || f(x~)), x~ being x with the fraction of features
    that have the lowest saliency replaced (Ismail et al., 2021, equations 3 and 4, algorithm 1).
    The saliency is the gradient of the model's own output. Gradients flow through both outputs; x~
    is a constant. The model is not changed: no hook stays, modes are restored, and the saliency
    leaves nothing in `.grad`.

    Parameters
    ----------
    model: returns [N, C] for inputs [N, ...], as a tensor, the first of a tuple or as .logits. It
        may be wrapped in DistributedDataParallel.
    loss_fn: a function of outputs and y that returns the mean over the samples.
    fraction: the share of the features (pixels, entries, words) that are masked, between 0 and 1;
        k is rounded down, and one feature stays.
    weight: of the divergence, lambda in equation 4.
    data: "image", [N, C, H, W] or any [N, C, ...] or [N, D]: places are masked in all channels
        alike, by numbers drawn between the sample's smallest and largest value. "series",
        [N, T, F]: entries are masked, by numbers between the extremes of that feature over the
        sample's time. "text", tokens [N, L]: words are dropped and become the kept word before
        them, or the first kept one. None: integers are text, three axes a series, all else image.
    target: the output whose gradient is taken: of the "label", or the "predicted" class.
    order: the lowest features by "signed" gradient (the paper's section 3), by "absolute" value,
        or "random" ones, the control. Channels are averaged, vectors of words summed, before.
    form: "exact", a pass of its own in evaluation mode (the authors' code); "shared", from the
        training pass itself, with its dropout and batch statistics; "fast", from the backward pass
        of loss_fn, where f(x) inside the divergence counts as a constant. Cheaper in this order.
    refresh: make the mask of a sample anew every m-th time that it is seen. Above 1 the call
        needs index=, the numbers of the samples.
    embedding: of a text model, the layer that makes vectors of tokens, or its name.
    padding: the token that stands for no word; by default the embedding's padding_idx.
    outputs: what the model returns: "logits", "log_probabilities" or "probabilities".
    mask: own function (x, drop) -> x~, in place of the replacement: drop is boolean, [N, H, W] for
        images [N, C, H, W], else shaped as x.
    credit: a context of attrain.LFP, in which both passes then run: the loss is then one of
        attrain.rewards, and of the divergence each output gets the credit -o dKL/do.
    generator: of the random numbers; without, torch's own.

    Raises InputError for unknown options and for batches that cannot be masked.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Any], Tensor],
        fraction: float = 0.5,
        weight: float = 1.0,
        *,
        data: Literal["image", "series", "text"] | None = None,
        target: Literal["label", "predicted"] = "label",
        order: Literal["signed", "absolute", "random"] = "signed",
        form: Literal["exact", "shared", "fast"] = "exact",
        refresh: int = 1,
        embedding: str | nn.Module | None = None,
        padding: int | None = None,
        outputs: Literal["logits", "log_probabilities", "probabilities"] = "logits",
        mask: Callable[[Tensor, Tensor], Tensor] | None = None,
        credit: LFP | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        for kind, value, known in (
            ("kind of data", "image" if data is None else data, DATA),
            ("target", target, TARGETS),
            ("order", order, ORDERS),
            ("form", form, FORMS),
            ("kind of outputs", outputs, OUTPUTS),
        ):
            if value not in known:
                raise unknown(kind, str(value), known)
        checks.options(loss_fn, fraction, weight, refresh, padding, mask, credit, generator)
        checks.fast(form, target, order, refresh)
        self.model, self.loss_fn, self.fraction, self.weight = model, loss_fn, fraction, weight
        self.data, self.target, self.order, self.form = data, target, order, form
        self.outputs, self.mask, self.credit, self.generator = outputs, mask, credit, generator
        self.inner = inside(model)
        if data is not None:
            checks.embedding(self.inner, embedding, data, order, padding)
        self.embedding = None if embedding is None else layers.find(self.inner, embedding)
        if padding is None and self.embedding is not None:
            padding = getattr(self.embedding[1], "padding_idx", None)
        self.padding = padding
        self.refresh = refresh
        self.cache = MaskCache(refresh)
        self._ranked_by_training = form != "exact" and order != "random"
        self._looked = False
        self._sharing = True
        if self._ranked_by_training and has_static_graph(model):
            raise InputError(
                f"form={form!r} goes back through the first pass alone, which "
                "DistributedDataParallel(static_graph=True) does not foresee: use form='exact'."
            )
        if form == "fast" and any(isinstance(each, DTensor) for each in model.parameters()):
            raise InputError(
                "form='fast' asks for gradients of whole parameters, and FSDP2 shards them: use "
                "form='exact'."
            )

    def __call__(
        self, x: Tensor, y: Any, *args: Any, index: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the loss of a batch, a scalar; arguments as `step` takes them."""
        return self.step(x, y, *args, index=index, **kwargs).loss

    def step(
        self, x: Tensor, y: Any, *args: Any, index: Tensor | None = None, **kwargs: Any
    ) -> Step:
        """Return the loss of a batch and what it came from.

        x: inputs [N, ...]. y: class indices [N]; whatever loss_fn takes where they do not decide
        the saliency. args, kwargs: what the model takes besides; tensors [N, ...] go with their
        samples. index: for refresh > 1, the numbers [N] of the samples in the data set.
        """
        data = self._checked(x, y, index, args, kwargs)
        call = _Call(args, kwargs)
        with torch.no_grad():
            due = self._due(x, data, index)
            alike = Prefix(x) if self._shares(x) else None
            drop = self._known_before(x, y, data, call, index, due, alike)
        point = None
        with without_reducing(self.model), self._credited():
            if drop is None:
                out, point = saliency.watched(call.of(self.model), x, self.embedding)
            else:
                with nullcontext() if alike is None else alike.replaying():
                    out = scores(call.of(self.model)(x))
                self._sharing = self._sharing and (alike is None or alike.is_worth_it)
        with natively():
            self._check_outputs(out, x, y)
            if point is not None and self.form == "fast":
                task, ascent = self._task_and_ascent(out, x, y, point)
            else:
                task = checks.scalar(self.loss_fn(out, y), out)
            with torch.no_grad():
                if point is not None and self.form == "shared":
                    own = self._own_output(out, y)
                    ascent = saliency.gradient(own, point, again=True)
                if drop is None:
                    drop = self._kept(self._ranked(ascent, x, data), index, due)
                masked = self._masked(x.detach(), drop, data)
        with self._credited():
            masked_out = scores(call.of(self.model)(masked))
        with natively():
            out = out.detach() if self.form == "fast" else out
            apart = agreement(out, masked_out, self.outputs)
            loss = task + self.weight * apart
        if is_active():
            marks.put(loss, Mark(Kind.OBJECTIVE))
        self._looked = True
        return Step(loss, out, masked_out, masked, drop, task.detach(), apart.detach())

    # Which features are masked -------------------------------------------------------------------

    def _due(self, x: Tensor, data: str, index: Tensor | None) -> Tensor | None:
        """Return whose mask is made anew, [N]; None where that is everybody's."""
        if index is None:
            return None
        shape = x.shape[2:] if data == "image" and x.ndim > 2 else x.shape[1:]
        return self.cache.due(index.to(x.device), shape)

    def _known_before(
        self,
        x: Tensor,
        y: Any,
        data: str,
        call: "_Call",
        index: Tensor | None,
        due: Tensor | None,
        alike: Prefix | None,
    ) -> Tensor | None:
        """Return the mask where the training pass has no part in it, else None."""
        if due is not None and not bool(due.any()):
            return self._kept(None, index, due)
        if self.order == "random":
            drawn = torch.rand(x.shape, generator=self.generator, device=x.device)
            return self._kept(self._ranked(drawn, x, data), index, due)
        if self.form != "exact":
            return None
        if due is not None and not bool(due.all()):
            rows = due.nonzero()[:, 0]
            y = y[rows] if self.target == "label" else y
            call, x = call.rows(rows, len(x)), x[rows]
            alike = None
        with natively(), as_in_evaluation(self.inner, x):
            with nullcontext() if alike is None else alike.recording():
                point = x.detach() if alike is None else alike.point
                out, point = saliency.watched(call.of(self.inner), point, self.embedding)
            self._check_outputs(out, x, y)
            ascent = saliency.gradient(self._own_output(out, y), point, again=alike is not None)
        return self._kept(self._ranked(ascent, x, data), index, due)

    def _shares(self, x: Tensor) -> bool:
        """Tell whether the training pass may go on from the graph of the saliency's."""
        # The first step shows whether something in the model is compiled.
        apart = self._looked and self._sharing and self.form == "exact" and self.order != "random"
        plain = self.credit is None and not is_active() and self.embedding is None
        constant = x.is_floating_point() and not x.requires_grad
        return apart and plain and constant and can_share(self.model)

    def _own_output(self, out: Tensor, y: Any) -> Tensor:
        with torch.enable_grad():
            return saliency.own_output(out, y if self.target == "label" else None)

    def _ranked(self, gradients: Tensor, x: Tensor, data: str) -> Tensor:
        """Return the mask from the gradients of inputs, or of the vectors of words."""
        ranked = gradients
        if gradients.ndim == x.ndim + (data == "text"):
            ranked = saliency.per_feature(gradients, data)
        if self.order == "absolute":
            ranked = ranked.abs()
        if data != "text":
            return masks.lowest(ranked, checks.features(x, data, self.fraction))
        real = self._real(x)
        return masks.lowest(ranked, masks.counts(self.fraction, real), real)

    def _kept(self, drop: Tensor | None, index: Tensor | None, due: Tensor | None) -> Tensor:
        """Keep the masks that were due, of them or of the whole batch; return the batch's.

        Only now has a sample been seen: a step that fails before leaves its mask due.
        """
        if index is None or due is None:
            assert drop is not None
            return drop
        index = index.to(due.device)
        if drop is not None:
            self.cache.put(index[due], drop if len(drop) == int(due.sum()) else drop[due])
        self.cache.see(index)
        return self.cache.get(index)

    # The two terms -------------------------------------------------------------------------------

    def _task_and_ascent(
        self, out: Tensor, x: Tensor, y: Any, point: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss with its gradients, and minus its gradient by the input."""
        task = checks.scalar(self.loss_fn(out, y), out)
        leaves: list[Tensor] = [each for each in self.model.parameters() if each.requires_grad]
        if x.requires_grad:
            leaves.append(x)
        if not self._looked:
            checks.known(task, x, [point, *leaves])
        found = torch.autograd.grad(task, [point, *leaves], allow_unused=True)
        return carry(task, leaves, found[1:]), -checks.gradient(found[0])

    def _masked(self, x: Tensor, drop: Tensor, data: str) -> Tensor:
        if self.mask is not None:
            version = x._version
            return checks.masked(self.mask(x, drop), x, version).detach()
        if data == "text":
            return masks.text(x, drop, self._real(x))
        replace = masks.image if data == "image" else masks.series
        return replace(x, drop, self.generator)

    def _real(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool) if self.padding is None else x != self.padding

    def _credited(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.credit is None else self.credit

    # Checks --------------------------------------------------------------------------------------

    def _checked(self, x: Any, y: Any, index: Any, args: Any, kwargs: Any) -> str:
        """Check what does not need the outputs, and return what kind of data x holds."""
        if not torch.is_grad_enabled():
            raise InputError(
                "guided training needs gradients, and they are off: call it outside torch.no_grad "
                "and torch.inference_mode; to measure a loss, call loss_fn alone."
            )
        data = checks.kind(x, self.data)
        checks.embedding(self.inner, self.embedding, data, self.order, self.padding)
        checks.samples(index, len(x), self.refresh)
        by_label = self.target == "label" and self.order != "random"
        if by_label and self.form != "fast":
            checks.labels(y, len(x))
        if self.form == "fast" and self.order != "random":
            checks.carried(x, (*args, *kwargs.values()))
        if data != "text":
            checks.features(x, data, self.fraction)
        if self._looks(x):
            if data == "text":
                checks.padded(self._real(x), self.padding)
            elif self.mask is None:
                checks.varied(x, data)
        return data

    def _check_outputs(self, out: Tensor, x: Tensor, y: Any) -> None:
        checks.outputs(out, len(x))
        if self._looks(x):
            checks.probabilities(out, self.outputs)
            if self.target == "label" and self.order != "random" and self.form != "fast":
                check_classes(y, out.shape[1])

    def _looks(self, x: Tensor) -> bool:
        """Tell whether values are checked: on the CPU always, else at first, since it waits."""
        return x.device.type == "cpu" or not self._looked


@dataclass(frozen=True)
class _Call:
    """What the model takes after x."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, model: nn.Module) -> Callable[[Tensor], Any]:
        return lambda x: model(x, *self.args, **self.kwargs)

    def rows(self, rows: Tensor, samples: int) -> "_Call":
        """Return the call for some of the samples."""

        def cut(value: Any) -> Any:
            per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == samples
            return value[rows] if per_sample else value

        return _Call(
            tuple(map(cut, self.args)), {name: cut(each) for name, each in self.kwargs.items()}
        )
