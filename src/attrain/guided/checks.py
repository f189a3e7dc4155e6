"""What is asked of guided training, checked before time is spent: one sentence for each fault."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from attrain.credit import LFP
from attrain.errors import InputError
from attrain.guided.masks import count, extremes


def options(
    loss_fn: Any, fraction: Any, weight: Any, refresh: Any, padding: Any, mask: Any, credit: Any,
    generator: Any,
) -> None:  # fmt: skip
    """Raise InputError for numbers out of range, and for what is of another kind."""
    if not callable(loss_fn):
        raise InputError(
            f"loss_fn must be a function of outputs and y, got {type(loss_fn).__name__}."
        )
    if not isinstance(fraction, Real) or not 0 < float(fraction) < 1:
        raise InputError(
            f"fraction={fraction!r} is the share of features that are masked: it lies between 0 "
            "and 1, both excluded."
        )
    if not isinstance(weight, Real) or not 0 <= float(weight) < float("inf"):
        raise InputError(f"weight must be a finite number >= 0, got {weight!r}.")
    if not _is_integer(refresh) or refresh < 1:
        raise InputError(
            f"refresh must be an integer >= 1, got {refresh!r}: 1 makes a sample's mask anew each "
            "time, m every m-th time that the sample is seen."
        )
    if mask is not None and not callable(mask):
        raise InputError(
            f"mask must be a function (x, drop) -> masked x, got {type(mask).__name__}."
        )
    if padding is not None and not _is_integer(padding):
        raise InputError(f"padding is the number of a token, an integer, got {padding!r}.")
    if credit is not None and not isinstance(credit, LFP):
        raise InputError(f"credit must be a context of attrain.LFP, got {type(credit).__name__}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator, got {type(generator).__name__}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def fast(form: str, target: str, order: str, refresh: int) -> None:
    """Raise InputError for what the fast form cannot do."""
    if form != "fast" or order == "random":
        return
    if target == "predicted":
        raise InputError(
            "form='fast' ranks by the gradient of the loss, which is of the true label: use "
            "target='label', or form='shared'."
        )
    if refresh > 1:
        raise InputError(
            f"form='fast' has its saliency for nothing, so refresh={refresh} would save nothing: "
            "use refresh=1, or form='shared' or 'exact'."
        )


def carried(x: Tensor, others: tuple[Any, ...]) -> None:
    """Raise InputError where the fast form would lose a gradient to underflow or to a detour."""
    if any(isinstance(each, Tensor) and each.requires_grad for each in others):
        raise InputError(
            "form='fast' knows the gradients of parameters and of x, and another argument of the "
            "model requires grad: use form='shared' or 'exact'."
        )
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise InputError(
            "form='fast' goes back before a gradient scaler has scaled the loss, and under float16 "
            "small gradients become 0: autocast to bfloat16, or use form='shared' or 'exact'."
        )


def known(task: Tensor, x: Tensor, leaves: Sequence[Tensor]) -> None:
    """Raise InputError where the fast form would drop the gradient of what is no leaf it knows."""
    met, ahead = {None, x.grad_fn}, [task.grad_fn]
    seen = {id(each) for each in leaves}
    while ahead:
        node = ahead.pop()
        if node is None or node in met:
            continue
        met.add(node)
        ahead += [each for each, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in seen:
            raise InputError(
                "form='fast' knows the gradients of the model's parameters and of x, and the loss "
                f"depends on another tensor that requires grad, {list(leaf.shape)}: use "
                "form='shared' or 'exact'."
            )


def gradient(found: Tensor | None) -> Tensor:
    """Return the gradient that ranks features; raises InputError where there is none."""
    if found is None:
        raise InputError(
            "the model's outputs have no gradient in its input, so that there is nothing to rank "
            "features by: look for detach, torch.no_grad, rounding or argmax in the model, or use "
            "order='random'."
        )
    return found


def kind(x: Any, data: str | None) -> str:
    """Return what x holds, "image", "series" or "text"; raises InputError for a misfit."""
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor [N, ...], got {type(x).__name__}.")
    if x.ndim < 2 or len(x) == 0:
        raise InputError(
            f"x has the shape {list(x.shape)}: a batch [N, ...] of at least one sample is wanted."
        )
    if x.layout != torch.strided:
        raise InputError(f"x has the layout {x.layout}: give x.to_dense().")
    if x.is_inference():
        raise InputError(
            "x was made under torch.inference_mode, where nothing has a gradient: give x.clone()."
        )
    tokens = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if data is None and tokens and x.ndim != 2:
        raise InputError(
            f"x is {x.dtype} of shape {list(x.shape)}: texts are tokens [N, L] as integers, images "
            "and series floating point numbers, such as x.float() / 255."
        )
    found = data or ("text" if tokens else "series" if x.ndim == 3 else "image")
    wanted = {
        "text": ("tokens [N, L] as integers", tokens and x.ndim == 2),
        "series": ("floating point numbers [N, T, F]", x.is_floating_point() and x.ndim == 3),
        "image": ("floating point numbers [N, C, ...] or [N, D]", x.is_floating_point()),
    }[found]
    if not wanted[1]:
        raise InputError(
            f"data={found!r} takes {wanted[0]}, and x is {x.dtype} of shape {list(x.shape)}."
        )
    return found


def embedding(model: nn.Module, place: Any, data: str, order: str, padding: Any) -> None:
    """Raise InputError for tokens without an embedding, and an embedding without tokens."""
    if data == "text":
        if place is None and order != "random":
            names = [name for name, each in model.named_modules() if isinstance(each, nn.Embedding)]
            told = f", such as {', '.join(map(repr, names))}" if names else ""
            other = "" if names else " If x holds no tokens but numbers, give x.float()."
            raise InputError(
                "tokens have no gradient, their vectors do: give embedding=, the layer of the "
                f"model that makes vectors of tokens, as a module or its name{told}.{other}"
            )
        return
    for name, value in (("embedding", place), ("padding", padding)):
        if value is not None:
            raise InputError(f"{name}= is for texts, and x is of the kind {data!r}: leave it out.")


def features(x: Tensor, data: str, fraction: float) -> int:
    """Return k of images and series; raises InputError where it is 0."""
    if 0 in x.shape:
        raise InputError(f"x has the shape {list(x.shape)}: its samples have no values to mask.")
    number = x[0].numel() if data == "series" or x.ndim == 2 else x[0, 0].numel()
    k = count(fraction, number)
    if k == 0:
        raise InputError(
            f"fraction={fraction} of {number} features masks none: give at least {1 / number:.3g}, "
            "and samples of at least 2 features."
        )
    return k


def varied(x: Tensor, data: str) -> None:
    """Raise InputError where no sample has two different values, or one is not finite."""
    low, high = extremes(x, data)
    finite = (torch.isfinite(low) & torch.isfinite(high)).flatten(1).all(1)
    if not bool(finite.all()):
        raise InputError(
            f"{int((~finite).sum())} of {len(x)} samples have values that are NaN or infinite, the "
            f"first is sample {int((~finite).nonzero()[0, 0])}: clean the data, or give a mask "
            "function of your own."
        )
    if not bool((high > low).any()):
        what = "every image of this batch is constant"
        if data == "series":
            what = "every feature of this batch is constant over its sample's time"
        raise InputError(
            f"{what}, so that masking by numbers between its smallest and largest value changes "
            "nothing: look at how the data are read, or give a mask function of your own."
        )


def padded(real: Tensor, padding: int | None) -> None:
    """Raise InputError for texts without a word."""
    empty = ~real.any(1)
    if bool(empty.any()):
        raise InputError(
            f"{int(empty.sum())} of {len(real)} texts are padding everywhere (token {padding}), "
            f"the first is text {int(empty.nonzero()[0, 0])}: remove them, or correct padding=."
        )


def outputs(out: Tensor, samples: int) -> None:
    """Raise InputError unless the outputs are [N, C] of at least two classes."""
    if out.ndim == 2 and len(out) == samples and out.shape[1] > 1:
        return
    shape = list(out.shape)
    if shape in ([samples], [samples, 1]):
        raise InputError(
            f"the model returns {shape}, which is one class only, and any two distributions over "
            "one class agree: give it one output per class, two for a yes or no."
        )
    raise InputError(
        f"the model turns {samples} samples into {shape}: one output per class, [N, C], is wanted."
    )


def probabilities(out: Tensor, kind: str) -> None:
    """Raise InputError unless outputs [N, C] of this kind sum to 1."""
    if kind == "logits":
        return
    found = out.detach().float()
    sums = (found.exp() if kind == "log_probabilities" else found).sum(1)
    if kind == "probabilities" and bool((found < 0).any()):
        raise InputError(
            f"outputs='probabilities', but the smallest is {float(found.min()):.3g}: use "
            "outputs='logits', which also fits log-probabilities."
        )
    if not bool(torch.allclose(sums, torch.ones_like(sums), atol=0.02)):
        raise InputError(
            f"outputs={kind!r}, but the probabilities of a sample sum to {float(sums[0]):.3g}: "
            "use outputs='logits', which also fits log-probabilities."
        )


def labels(y: Any, samples: int) -> None:
    """Raise InputError unless y holds one class index for each sample."""
    if isinstance(y, Tensor) and list(y.shape) == [samples] and y.dtype == torch.long:
        return
    got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
    raise InputError(
        f"the saliency is that of the true label, so y holds class indices, torch.int64 "
        f"[{samples}]; got {got}. With other labels use target='predicted'."
    )


def masked(given: Any, x: Tensor, version: int) -> Tensor:
    """Return what a mask function made of x, which had this version before.

    Raises InputError for another shape or type, and where x itself was changed.
    """
    if x._version != version:
        raise InputError(
            "the mask function changed x in place, which the pass before needs on its way back: "
            "let it return a new tensor, such as x.masked_fill(...) or a changed x.clone()."
        )
    if not isinstance(given, Tensor) or given.shape != x.shape or given.dtype != x.dtype:
        got = (
            f"{given.dtype} {list(given.shape)}"
            if isinstance(given, Tensor)
            else type(given).__name__
        )
        raise InputError(
            f"the mask function returned {got} for x of {x.dtype} {list(x.shape)}: it must return "
            "a tensor of the same shape and type."
        )
    return given


def scalar(loss: Any, out: Tensor) -> Tensor:
    """Return the loss of outputs; raises InputError for no single number, or no gradient."""
    if not isinstance(loss, Tensor) or loss.ndim:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"loss_fn returned {got}, and one number is wanted: use reduction='mean'.")
    if out.requires_grad and not loss.requires_grad:
        raise InputError(
            "loss_fn returned a number without a gradient, from which nothing is learned: it must "
            "not detach the outputs or turn them into classes."
        )
    return loss


def samples(index: Any, n: int, refresh: int) -> None:
    """Raise InputError unless `index` names the samples where masks are kept, and only there."""
    if refresh == 1:
        if index is not None:
            raise InputError("index= is for refresh > 1, which keeps masks: leave it out.")
        return
    fits = isinstance(index, Tensor) and list(index.shape) == [n] and index.dtype == torch.long
    if not fits or bool((index < 0).any()):
        got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else repr(index)
        raise InputError(
            f"refresh={refresh} keeps the mask of each sample, so it must know them: give index=, "
            f"their numbers >= 0 in the data set, torch.int64 [{n}]; got {got}."
        )
