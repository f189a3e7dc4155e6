"""Which layer of a model has which rule: presets by name, and assignment by name or type."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from attrain.errors import InputError, unknown
from attrain.rules.call import Call
from attrain.rules.decomposition import (
    RULES,
    AlphaBeta,
    Box,
    Decomposition,
    Epsilon,
    Flat,
    Gamma,
    ZPlus,
)

Assignment = Mapping[str | type[nn.Module], Decomposition | str]
"""Names, patterns or types of modules -> rules."""

# What holds parameters of two axes or more and yet multiplies nothing by them, or has its own rule.
_NO_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.RNNBase,
    nn.RNNCellBase,
    _NormBase,
)


def _by_kind(
    convolutions: Decomposition, first: Decomposition | None = None
) -> Callable[[Mapping[str, nn.Module]], dict[str, Decomposition]]:
    """Return a preset: a rule for convolutions, one for the first layer, epsilon for the rest."""

    def preset(layers: Mapping[str, nn.Module]) -> dict[str, Decomposition]:
        found = {name: convolutions for name, each in layers.items() if isinstance(each, _ConvNd)}
        known = [name for name, each in layers.items() if isinstance(each, (_ConvNd, nn.Linear))]
        return found | ({known[0]: first} if first is not None and known else {})

    return preset


PRESETS: dict[str, Callable[[Mapping[str, nn.Module]], dict[str, Decomposition]]] = {
    "epsilon-plus": _by_kind(ZPlus()),
    "epsilon-plus-flat": _by_kind(ZPlus(), Flat()),
    "epsilon-alpha2-beta1": _by_kind(AlphaBeta(2, 1)),
    "epsilon-alpha2-beta1-flat": _by_kind(AlphaBeta(2, 1), Flat()),
    "epsilon-gamma-box": _by_kind(Gamma(0.25), Box()),
}
"""Compositions by name: from a model's layers, in the order of their registration, to rules."""


def as_rule(value: Any) -> Decomposition:
    """Return a rule, or the one of that name; raises InputError for anything else."""
    if isinstance(value, Decomposition):
        return value
    if isinstance(value, str) and value in PRESETS:
        raise InputError(
            f"{value!r} is a preset, for whole models: attrain.LFP(model, rule={value!r})."
        )
    if isinstance(value, str):
        if value not in RULES:
            raise unknown("rule", value, RULES)
        return RULES[value]()
    if isinstance(value, type) and issubclass(value, Decomposition):
        raise InputError(f"{value.__name__} is a class of rules: write {value.__name__}().")
    raise InputError(
        "a rule is a name or an attrain.rules.Decomposition such as attrain.rules.Gamma(0.25), "
        f"got {value!r}."
    )


def default_of(rule: Any) -> Decomposition:
    """Return the rule of layers that nothing names; `rule` may be a rule, its name or a preset."""
    if isinstance(rule, str) and rule not in RULES:
        if rule not in PRESETS:
            raise unknown("rule", rule, [*RULES, *PRESETS])
        return Epsilon()
    return as_rule(rule)


def rule_finder(
    model: nn.Module | tuple[Tensor, ...],
    rule: Decomposition | str,
    rules: Assignment | None,
) -> Callable[[Call, Tensor], Decomposition] | None:
    """Return the function that finds the rule of a weight, None where all have the context's own.

    Raises InputError as `Assigned` does, and for entries or a preset without a module.
    """
    default = default_of(rule)
    preset = rule if isinstance(rule, str) and rule in PRESETS else None
    if rules or preset:
        if not isinstance(model, nn.Module):
            raise InputError(
                "a preset and rules= go by the modules of a model, and this context has tensors "
                "alone: give it one rule, or the module."
            )
        return Assigned(model, rules or {}, default, preset)
    return None if isinstance(default, Epsilon) else lambda call, weight: default


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own a weight to multiply by, under all their names."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, _NO_LAYERS)
        and any(isinstance(p, UninitializedParameter) or p.ndim > 1 for p in _own(module))
    }


def _own(module: nn.Module) -> Iterator[Tensor]:
    """Return a module's own parameters, those that its parametrisations replaced included."""
    if isinstance(module, ParametrizationList):
        return
    yield from (each for each in module._parameters.values() if each is not None)
    parametrised = getattr(module, "parametrizations", None)
    if isinstance(parametrised, nn.ModuleDict):
        yield from parametrised.parameters()


class Assigned:
    """The rule of each weight of a model, known by the weight's identity.

    A name beats a pattern, a pattern beats a type, and all beat the preset; among equals the
    later entry wins. What nothing names has `default`.

    Raises InputError for an entry that fits no layer, and for a weight that two modules share
    under different rules.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Assignment,
        default: Decomposition,
        preset: str | None = None,
    ) -> None:
        self.model = model
        self.default = default
        layers = layers_of(model)
        self.by_name = PRESETS[preset](layers) if preset else {}
        ranked = sorted(rules.items(), key=lambda entry: _rank(entry[0]))
        for key, value in ranked:
            rule = as_rule(value)
            self.by_name |= dict.fromkeys(_fitting(key, layers, model), rule)
        self.known: dict[int, tuple[weakref.ref[Tensor], Decomposition, str]] = {}
        self.learn()

    def learn(self) -> None:
        """Look up whose weights are whose, as the model is now."""
        found: dict[int, tuple[weakref.ref[Tensor], Decomposition, str]] = {}
        for name, module in layers_of(self.model).items():
            rule = self.by_name.get(name, self.default)
            made = (each for each in vars(module).values() if isinstance(each, Tensor))
            for tensor in (*_own(module), *module._buffers.values(), *made):
                if tensor is None:
                    continue
                before = found.get(id(tensor))
                if before is not None and before[1] is not rule:
                    raise InputError(
                        f"{before[2]!r} and {name!r} share a weight, and would have different "
                        f"rules, {before[1]!r} and {rule!r}. Give both the same one."
                    )
                found[id(tensor)] = (weakref.ref(tensor), rule, name)
        alive = {key: entry for key, entry in self.known.items() if entry[0]() is not None}
        self.known = alive | found

    def __call__(self, call: Call, weight: Tensor) -> Decomposition:
        """Return the rule of a weight that takes part in a call."""
        rule = self.find(weight)
        if rule is None:
            self.learn()
            rule = self.find(weight)
        return self._unknown(call, weight) if rule is None else rule

    def find(self, weight: Tensor) -> Decomposition | None:
        """Return the rule of a weight, or of the parameters that it was computed from.

        A tensor that stands in a weight's place, some of whose rows learn, says so.
        """
        weight = getattr(weight, "_stands_for", weight)
        rule = self._of(weight)
        if rule is not None or weight.grad_fn is None:
            return rule
        rules = {id(rule): rule for rule in map(self._of, _leaves(weight))}
        return rules.popitem()[1] if len(rules) == 1 else None

    def _of(self, weight: Tensor) -> Decomposition | None:
        reference, rule, _ = self.known.get(id(weight), (None, None, None))
        return rule if reference is not None and reference() is weight else None

    def _unknown(self, call: Call, weight: Tensor) -> Decomposition:
        """Return the default for a constant that belongs to nobody; refuse all else."""
        if weight.grad_fn is not None and all(map(self._of, _leaves(weight))):
            raise call.refuse(
                "its weight is computed from parameters of layers with different rules",
                "Give these layers the same rule.",
            )
        if weight.requires_grad or any(map(_frozen, self.model.modules())):
            raise call.refuse(
                f"which layer its weight of shape {tuple(weight.shape)} belongs to cannot be told, "
                "and with it the rule",
                "Register it as a parameter of a module of the model; finish frozen "
                "parametrisations with torch.nn.utils.parametrize.remove_parametrizations; or use "
                "one rule for all layers, without rules=.",
            )
        return self.default


def _frozen(module: nn.Module) -> bool:
    """Whether a module makes a weight from parameters that leave no trace in autograd."""
    return isinstance(module, ParametrizationList) and not any(
        each.requires_grad for each in module.parameters()
    )


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Return the leaves that a tensor was computed from."""
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(below for below, _ in node.next_functions)


def _rank(key: Any) -> int:
    if not isinstance(key, str):
        return 0
    return 1 if _is_pattern(key) else 2


def _is_pattern(key: str) -> bool:
    return any(sign in key for sign in "*?[")


def _fitting(key: Any, layers: Mapping[str, nn.Module], model: nn.Module) -> Iterable[str]:
    """Return the names of the layers that an entry is for."""
    if isinstance(key, str):
        fitting = [name for name in layers if name == key or fnmatchcase(name, key)]
        if not fitting:
            raise InputError(_no_layer(key, layers, model))
        return fitting
    if not (isinstance(key, type) and issubclass(key, nn.Module)):
        raise InputError(
            f"rules= takes names of modules, patterns such as 'features.*', or types such as "
            f"nn.Linear, got {key!r}."
        )
    fitting = [name for name, module in layers.items() if isinstance(module, key)]
    if not fitting:
        kinds = sorted({type(module).__name__ for module in layers.values()})
        raise InputError(
            f"rules= names {key.__name__}, and the model has no layer of that type; its layers "
            f"are: {', '.join(kinds) or 'none'}."
        )
    return fitting


_SHOWN = 8


def _no_layer(key: str, layers: Mapping[str, nn.Module], model: nn.Module) -> str:
    others = {name: module for name, module in model.named_modules() if fnmatchcase(name, key)}
    if others:
        name, module = next(iter(others.items()))
        if any(each.startswith(f"{name}.") for each in layers):
            return (
                f"rules= names {key!r}, and {name!r} ({type(module).__name__}) has no weight of "
                f"its own: write {f'{name}.*'!r} for the layers inside."
            )
        return (
            f"rules= names {key!r}, and {name!r} ({type(module).__name__}) is no linear or "
            "convolution layer: it has a rule of its own."
        )
    near = get_close_matches(key, layers, n=1, cutoff=0.0)
    names = [*layers][:_SHOWN]
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"rules= names {key!r}, and no layer of the model is called so.{hint} "
        f"Layers: {', '.join(names) or 'none'}{more}."
    )
