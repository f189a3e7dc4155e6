"""The layers of which some rows learn: which they are, and the parameters that hold these rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attrain.errors import InputError
from attrain.targeted import selection
from attrain.targeted.rows import Rows

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Parts(nn.Module):
    """Holds the parameters that learn; a state dict has them in the model's own weights already."""

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        pass

    def add(self, name: str, parameter: Tensor) -> nn.Parameter:
        """Return a new parameter with the values of another, held under a layer's name."""
        part = nn.Parameter(parameter.data)  # whose changes are counted apart
        self.register_parameter(name.replace(".", "/"), part)
        return part


class Norm:
    """The affine parameters of the BatchNorm behind a layer, one value per unit.

    Those of units that do not learn stay as they were; `kept` is how they are before a step.
    """

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        self.parameters = [each for each in (weight, bias) if each is not None]
        self.kept = [each.detach().clone() for each in self.parameters]

    def keep(self) -> None:
        """Remember the values as they are."""
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            kept.copy_(parameter)

    def moved(self) -> None:
        """Follow parameters that went to another device or type."""
        self.kept = [kept.to(each) for each, kept in zip(self.parameters, self.kept, strict=True)]

    def restore(self, mask: Tensor) -> None:
        """Put back what is not in `mask` [units], and remember the rest."""
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            parameter.copy_(torch.where(mask, parameter, kept))
        self.keep()


class Layer:
    """A linear or convolution layer whose units are targeted.

    Until rows are selected, `of_weight` and `of_bias` are the whole weight and bias: they share
    their memory. Afterwards they hold the rows [k] alone, as copies that learn.

    units: how many; k: how many of them learn. rows: [k], sorted, None while all do. since: [k],
    after how many steps of Adam they entered; late: whether any did so; counted: how many steps a
    parameter had made when it was last looked at. scores: the smoothed ones
    [units]; protected: relevance for an old task [units]. norm: of the BatchNorm behind the layer,
    once a forward pass has shown it.
    """

    def __init__(self, name: str, module: nn.Module, density: float, parts: Parts) -> None:
        self.name, self.module = name, module
        self.names = ("in_proj_weight", "in_proj_bias") if _attends(module) else ("weight", "bias")
        self.units = len(self.weight)
        multiple = 1 if self.weight.ndim == 2 else selection.MULTIPLE
        self.k = selection.count(self.units, density, multiple)
        self.of_weight = parts.add(f"{name}.weight", self.weight)
        self.of_bias: nn.Parameter | None = None
        self.weight.requires_grad_(False)
        if self.bias is not None and self.bias.requires_grad:
            self.of_bias = parts.add(f"{name}.bias", self.bias)
            self.bias.requires_grad_(False)
        self.rows: Tensor | None = None
        self.mask: Tensor | None = None
        self.since: Tensor | None = None
        self.late = False
        self.counted: dict[int, float] = {}
        self.scores: Tensor | None = None
        self.protected: Tensor | None = None
        self.norm: Norm | None = None
        self.owns = self.weight  # what the model has been seen to hold
        self._versions: list[tuple[int, int]] = []
        self._memory = self._places()

    @property
    def weight(self) -> nn.Parameter:
        """The model's whole weight."""
        return cast(nn.Parameter, getattr(self.module, self.names[0]))

    @property
    def bias(self) -> nn.Parameter | None:
        """The model's whole bias."""
        return cast("nn.Parameter | None", getattr(self.module, self.names[1]))

    def parts(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Return what learns, each with the whole that it is a part of."""
        found = [(self.of_weight, self.weight)]
        if self.of_bias is not None and self.bias is not None:
            found.append((self.of_bias, self.bias))
        return found

    def link(self, *, anew: bool = False) -> None:
        """Let what learns share the memory of the whole, while all rows learn.

        The values of the whole count, unless an optimizer has given what learns, and that alone,
        other memory since the last time; `anew`: in any case.
        """
        if self.rows is not None:
            return
        for (part, whole), memory in zip(self.parts(), self._memory, strict=True):
            if part.data_ptr() == whole.data_ptr() and part.shape == whole.shape:
                continue
            if not anew and part.shape == whole.shape and memory == whole.data_ptr():
                whole.data.copy_(part.data)
            _reshape(part, whole.data)
        self._memory = self._places()

    def target(self, rows: Tensor) -> None:
        """Let `rows` [k] learn from now on; what has learned so far is in the whole."""
        self.sync()
        self.rows = rows
        self.mask = torch.zeros(self.units, dtype=torch.bool, device=rows.device)
        self.mask[rows] = True
        for part, whole in self.parts():
            chosen = whole.data.index_select(0, rows)
            if part.shape == chosen.shape and part.data_ptr() != whole.data_ptr():
                part.data.copy_(chosen)
            else:
                _reshape(part, chosen)
            part.grad = None
        if self.norm is not None:
            self.norm.keep()
        self._versions, self._memory = self._seen(), self._places()

    def sync(self, *, always: bool = False) -> None:
        """Write what has been learned into the whole; `always`, though no change can be told.

        Fused optimizers, and those that write into `.data`, leave no trace in versions.
        """
        if self.rows is None:
            self.link()
            return
        if self._seen() == self._versions and not always:
            return
        for part, whole in self.parts():
            whole.index_copy_(0, self.rows, part)
        self._versions, self._memory = self._seen(), self._places()

    def check(self, *, values: bool) -> None:
        """Raise InputError where somebody else changed the weight whose rows learn.

        Changes leave a trace in versions, or give other memory, except those in place by way of
        `.data`; `values`: look for these, too. A model of another device or type is followed.
        """
        if self.weight is not self.owns:
            raise InputError(
                f"layer {self.name!r} has another weight than when its rows were taken: load "
                "weights by Targeted.load_state_dict, and change a model otherwise before it is "
                "given to Targeted."
            )
        for part, whole in self.parts():
            if self.rows is not None and (part.dtype, part.device) != (whole.dtype, whole.device):
                _reshape(part, part.data.to(whole))
                self.moved()
        if self.rows is None:
            return
        for (mine, theirs), memory, (part, whole) in zip(
            self._versions, self._memory, self.parts(), strict=True
        ):
            unseen = values and part._version == mine
            if whole._version == theirs and whole.data_ptr() == memory and not unseen:
                continue
            if not _same(whole.detach().index_select(0, self.rows), part.detach()):
                raise InputError(
                    f"the weight of layer {self.name!r} was changed after its rows were selected: "
                    "load weights by Targeted.load_state_dict, or before the model is given to it."
                )

    def moved(self) -> None:
        """Follow parameters that went to another device or type, or were copied."""
        device = self.weight.device
        for name in ("rows", "mask", "since", "scores", "protected"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))
        if self.norm is not None:
            self.norm.moved()
        self.link(anew=True)
        self._versions, self._memory = self._seen(), self._places()

    def load(self, **known: Tensor | None) -> None:
        """Take over what a checkpoint knows; `reload` follows once weights are loaded."""
        device = self.weight.device
        for name, value in known.items():
            setattr(self, name, None if value is None else value.to(device, copy=True))
        self.late = self.since is not None and bool(self.since.any())
        self.counted = {}
        if self.rows is None:
            self.mask = None

    def reload(self) -> None:
        """Take the rows that learn out of the whole, which holds other values now."""
        rows, self.rows = self.rows, None
        if rows is None:
            self.link(anew=True)
        else:
            self.target(rows)

    def release(self) -> None:
        """Let the whole learn as it did before, with what was learned."""
        self.sync()
        for _, whole in self.parts():
            whole.requires_grad_()

    def given(self, truncated: bool) -> Rows:
        """Return the parameters as `rows` takes them."""
        assert self.rows is not None
        return Rows(self.weight, self.bias, self.rows, self.of_weight, self.of_bias, truncated)

    def _seen(self) -> list[tuple[int, int]]:
        return [(part._version, whole._version) for part, whole in self.parts()]

    def _places(self) -> list[int]:
        return [whole.data_ptr() for _, whole in self.parts()]


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same values; those of a diverged model are NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _reshape(part: nn.Parameter, data: Tensor) -> None:
    """Give a parameter other data, and let graphs of the old shape have no hold on it.

    A parameter keeps the node that gathers its gradient for as long as a graph needs it, and that
    node its shape. Another type in between makes torch forget it.
    """
    other = torch.float64 if data.dtype != torch.float64 else torch.float32
    part.grad = None
    part.data = torch.empty(0, dtype=other, device=data.device)
    part.data = data


def find(
    model: nn.Module, dense: Sequence[str] | None, density: float, parts: Parts
) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers to be targeted, and why other layers with weights are trained dense.

    dense: names or patterns of layers to leave alone; None for the last one, the output layer.

    Raises InputError for a name that fits nothing, and where nothing is left.
    """
    modules = {name: each for name, each in model.named_modules() if isinstance(each, KINDS)}
    last = list(modules)[-1:]
    modules |= {
        f"{name}.in_proj" if name else "in_proj": each
        for name, each in model.named_modules()
        if _attends(each)
    }
    uses = _uses(model)
    reasons: dict[str, str] = {}
    if dense is None:
        reasons |= dict.fromkeys(last, "output layer")
    else:
        for pattern in dense:
            fitting = [name for name, _ in model.named_modules() if _fits(name, pattern) and name]
            if not fitting:
                raise InputError(
                    f"dense={pattern!r} fits no module of the model: layers that could be targeted "
                    f"are {', '.join(map(repr, modules)) or 'none'}."
                )
            inside = [
                each for each in modules
                if any(each == name or each.startswith(f"{name}.") for name in fitting)
            ]  # fmt: skip
            reasons |= dict.fromkeys(inside, "by name")
    for name, module in modules.items():
        reason = _reason(module, uses)
        if reason:
            reasons.setdefault(name, reason)
    chosen = [name for name in modules if name not in reasons]
    if not chosen:
        told = "; ".join(f"{name!r} ({reason})" for name, reason in reasons.items())
        raise InputError(
            "the model has no layer that can be targeted, which a linear or convolution layer "
            f"before the output layer is: {told or 'it has neither'}. Weights that another "
            "Targeted took require grad again after its release()."
        )
    return [Layer(name, modules[name], density, parts) for name in chosen], reasons


def _attends(module: nn.Module) -> bool:
    """Tell whether a module is attention whose queries, keys and values are one projection."""
    return isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _uses(model: nn.Module) -> Mapping[int, int]:
    """Return how many modules own each parameter, by identity."""
    found: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def _reason(module: nn.Module, uses: Mapping[int, int]) -> str:
    """Return why the rows of a layer cannot be trained by themselves, "" where they can."""
    names = ("in_proj_weight", "in_proj_bias") if _attends(module) else ("weight", "bias")
    weight, bias = (module._parameters.get(name) for name in names)
    if parametrize.is_parametrized(module) or weight is None:
        return "its weight is computed from others"
    own: Iterator[Tensor] = (each for each in (weight, bias) if each is not None)
    if any(uses[id(each)] > 1 for each in own):
        return "it shares its weight with another layer"
    if not weight.requires_grad:
        return "it does not require grad"
    if len(weight) < 2:
        return "it has one unit"
    return ""


def by_name(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Return layers by their names."""
    return {each.name: each for each in layers}
