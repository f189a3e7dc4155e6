"""Attribution graphs against slow twins, what adds up, what is refused, and mistakes."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from reference import Array
from reference_graph import SINKS, Net, Twin, graph_twin
from torch import Tensor, nn

from attrain import rules
from attrain.errors import AttributionWarning, CreditWarning
from attrain.graph import AttributionGraph

CLASSES = 3
EXAMPLES = int(os.environ.get("ATTRAIN_EXAMPLES", "60"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        warnings.simplefilter("ignore", AttributionWarning)  # a network may be dead
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
        yield


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prepared(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a model in double precision with biases and running statistics of some size."""
    torch.manual_seed(seed)
    model.double().eval()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.normal_(bias, std=0.3)
    return model


# The twin ----------------------------------------------------------------------------------------

L = nn.Linear
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "leaky": nn.LeakyReLU}


def chain(*modules: nn.Module) -> Net:
    names = [f"m{k}" for k in range(len(modules))]
    return Net(*[(name, module, (before,)) for name, module, before in
                 zip(names, modules, ["x", *names], strict=False)])  # fmt: skip


def head(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.Flatten(), L(width, CLASSES)


NETS: dict[str, Callable[[], tuple[Net, tuple[int, ...]]]] = {
    "linear": lambda: (chain(L(4, CLASSES)), (4,)),
    **{
        name: lambda phi=phi: (chain(L(4, 5), phi(), L(5, 4), phi(), L(4, CLASSES)), (4,))
        for name, phi in ACTIVATIONS.items()
    },
    "no bias": lambda: (chain(L(4, 5, False), nn.ReLU(), L(5, CLASSES, False)), (4,)),
    "stride": lambda: (chain(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), *head(27)), (2, 5, 5)),
    "groups": lambda: (
        chain(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 2, groups=6), *head(24)),
        (4, 4, 4),
    ),
    "dilation": lambda: (
        chain(nn.Conv2d(2, 3, (3, 2), dilation=(1, 2), padding=(1, 0)), nn.Tanh(), *head(24)),
        (2, 4, 4),
    ),
    "same": lambda: (
        chain(nn.Conv2d(2, 2, (2, 3), padding="same", dilation=(2, 1)), nn.ReLU(), *head(24)),
        (2, 3, 4),
    ),
    "same 4": lambda: (chain(nn.Conv1d(2, 2, 4, padding="same"), nn.SiLU(), *head(12)), (2, 6)),
    "valid": lambda: (chain(nn.Conv2d(2, 2, 2, padding="valid"), *head(12)), (2, 3, 4)),
    "transposed": lambda: (
        chain(nn.Conv2d(2, 3, 2, 2), nn.ReLU(),
              nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1), *head(32)),
        (2, 4, 4),
    ),
    "transposed groups": lambda: (
        chain(nn.ConvTranspose1d(4, 6, 2, 2, groups=2, dilation=2), nn.ReLU(), *head(42)), (4, 3),
    ),
    "1d": lambda: (chain(nn.Conv1d(2, 3, 3, 2), nn.ReLU(), nn.MaxPool1d(2), *head(3)), (2, 6)),
    "3d": lambda: (
        chain(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AvgPool3d(2), nn.ConvTranspose3d(2, 2, 2),
              *head(16)),
        (1, 3, 3, 3),
    ),
    "batch norm": lambda: (
        chain(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), *head(12), nn.ReLU(),
              L(CLASSES, CLASSES), nn.BatchNorm1d(CLASSES, affine=False)),
        (2, 3, 3),
    ),
    "pools": lambda: (
        chain(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1),
              nn.AvgPool2d(2, 1, count_include_pad=False), *head(3)),
        (2, 4, 4),
    ),
    "global": lambda: (
        chain(nn.Conv2d(2, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), *head(3)), (2, 4, 4)
    ),
    "adaptive": lambda: (
        chain(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), *head(12)), (2, 4, 4)
    ),
    "tokens": lambda: (
        chain(L(3, 4), nn.ReLU(), L(4, 4), nn.Tanh(), *head(8)), (2, 3)
    ),
    "flattened inputs": lambda: (chain(*head(8)), (2, 2, 2)),
    "skip": lambda: (
        Net(("a", L(4, 5), ("x",)), ("r", nn.ReLU(), ("a",)), ("b", L(5, 5), ("r",)),
            ("s", "add", ("b", "r")), ("t", nn.ReLU(), ("s",)), ("c", L(5, CLASSES), ("t",))),
        (4,),
    ),
    "skip in place": lambda: (
        Net(("a", L(4, 5), ("x",)), ("r", nn.ReLU(), ("a",)), ("b", L(5, 5), ("r",)),
            ("s", "add_", ("b", "r")), ("t", nn.ReLU(inplace=True), ("s",)),
            ("c", L(5, CLASSES), ("t",))),
        (4,),
    ),
    "projected skip": lambda: (
        Net(("a", nn.Conv2d(2, 3, 2), ("x",)), ("n", nn.BatchNorm2d(3), ("a",)),
            ("b", nn.Conv2d(2, 3, 1), ("x",)), ("p", nn.AvgPool2d(2, 1), ("b",)),
            ("s", "add_", ("n", "p")), ("t", nn.ReLU(), ("s",)),
            ("f", nn.Flatten(), ("t",)), ("c", L(12, CLASSES), ("f",))),
        (2, 3, 3),
    ),
    "skip from the inputs": lambda: (
        Net(("a", L(4, 4), ("x",)), ("s", "add", ("x", "a")), ("c", L(4, CLASSES), ("s",))), (4,)
    ),
    "gate": lambda: (
        Net(("a", L(4, 5), ("x",)), ("b", L(4, 5), ("x",)), ("g", nn.Tanh(), ("b",)),
            ("p", "mul", ("a", "g")), ("c", L(5, CLASSES), ("p",))),
        (4,),
    ),
    "channel gate": lambda: (
        Net(("a", nn.Conv2d(2, 3, 2), ("x",)), ("q", nn.AdaptiveAvgPool2d(1), ("a",)),
            ("d", nn.Conv2d(3, 3, 1), ("q",)), ("g", nn.Tanh(), ("d",)),
            ("p", "mul", ("a", "g")), ("f", nn.Flatten(), ("p",)), ("c", L(12, CLASSES), ("f",))),
        (2, 3, 3),
    ),
    "joined": lambda: (
        Net(("a", L(4, 3), ("x",)), ("r", nn.ReLU(), ("a",)), ("b", L(3, 4), ("r",)),
            ("j", "cat", ("r", "b", "x")), ("t", nn.SiLU(), ("j",)), ("c", L(11, CLASSES), ("t",))),
        (4,),
    ),
    "dense block": lambda: (
        Net(("a", nn.Conv2d(2, 2, 2), ("x",)), ("r", nn.ReLU(), ("a",)),
            ("b", nn.Conv2d(2, 2, 1), ("r",)), ("j", "cat", ("r", "b")),
            ("n", nn.BatchNorm2d(4), ("j",)), ("t", nn.ReLU(), ("n",)),
            ("m", nn.MaxPool2d(2), ("t",)), ("f", nn.Flatten(), ("m",)),
            ("c", L(4, CLASSES), ("f",))),
        (2, 3, 3),
    ),
}  # fmt: skip


def compare(graph: AttributionGraph, twin: Twin, samples: int) -> None:
    assert list(graph.layers) == twin.layers
    largest = max(1.0, *(abs(value) for value in twin.relevance.values())) / samples

    def close(found: Tensor, wanted: Array | list[Any]) -> bool:
        wanted = torch.tensor(wanted, dtype=torch.float64) / samples
        return bool((found - wanted).abs().max() <= 1e-10 * largest)

    for layer in graph.layers:
        units = twin.units[layer]
        assert close(graph.relevance[layer], [twin.relevance.get(each, 0.0) for each in units])
        if not graph.sources[layer]:
            continue
        sources = [each for name in graph.sources[layer] for each in twin.units[name]]
        found = [[twin.messages.get((source, unit), 0.0) for source in sources] for unit in units]
        assert close(graph.edges[layer], found), layer
        fed = {source[0] for source, unit in twin.messages if unit[0] == layer}
        assert fed <= {*graph.sources[layer]}
        for sink in SINKS:
            wanted = [twin.sinks.get((sink, unit), 0.0) for unit in units]
            assert close(graph.sinks[layer][sink], wanted), (layer, sink)


def twin_of(net: Net, x: Tensor, target: list[int], epsilon: float, rule_of: Any) -> Twin:
    first = next(net.children())
    axis = None if x.ndim == 2 or isinstance(first, nn.Flatten) else 1
    if isinstance(first, L) and x.ndim > 2:
        axis = -1
    return graph_twin(net, x, target, epsilon, rule_of, axis)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2, 0.0])
@pytest.mark.parametrize("name", NETS)
def test_a_graph_equals_its_twin(name: str, epsilon: float) -> None:
    torch.manual_seed(0)
    net, shape = NETS[name]()
    prepared(net)
    x, target = random(2, *shape), [2, 0]
    twin = twin_of(net, x, target, epsilon, lambda _: rules.Epsilon())
    graph = AttributionGraph.from_batch(net, x, torch.tensor(target), epsilon=epsilon)
    compare(graph, twin, 2)
    assert max(graph.error().values()) <= 1e-10


OF_RULES = (
    "leaky",
    "stride",
    "groups",
    "transposed",
    "pools",
    "batch norm",
    "skip",
    "channel gate",
)


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("name", OF_RULES)
def test_a_graph_under_any_rule_of_layers_equals_its_twin(name: str, rule: str) -> None:
    torch.manual_seed(0)
    net, shape = NETS[name]()
    prepared(net)
    x, target = random(2, *shape).abs(), [1, 1]
    made = rules.RULES[rule]()
    epsilon = 0.0 if rule == "zero" else 1e-3
    twin = twin_of(net, x, target, epsilon, lambda _: made)
    graph = AttributionGraph.from_batch(net, x, 1, rule=rule, epsilon=epsilon)
    compare(graph, twin, 2)


@pytest.mark.parametrize("preset", rules.PRESETS)
@pytest.mark.parametrize("name", ["pools", "batch norm", "projected skip"])
def test_a_graph_under_a_preset_equals_its_twin(name: str, preset: str) -> None:
    torch.manual_seed(0)
    net, shape = NETS[name]()
    prepared(net)
    x, target = random(2, *shape), [1, 1]
    given = rules.PRESETS[preset](dict(net.named_modules()))

    def rule_of(layer: str) -> Any:
        return given.get(layer, rules.Epsilon())

    graph = AttributionGraph.from_batch(net, x, 1, rule=preset, epsilon=1e-6)
    compare(graph, twin_of(net, x, target, 1e-6, rule_of), 2)


def test_layers_may_have_an_epsilon_of_their_own() -> None:
    torch.manual_seed(0)
    net, shape = NETS["skip"]()
    prepared(net)
    x = random(2, *shape)
    given = {"b": rules.Epsilon(epsilon=0.1), "c": rules.Gamma(0.5, epsilon=0.2)}
    graph = AttributionGraph.from_batch(net, x, 1, rules=given)
    twin = twin_of(net, x, [1, 1], 1e-6, lambda name: given.get(name, rules.Epsilon()))
    compare(graph, twin, 2)
