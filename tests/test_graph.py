"""Attribution graphs against slow twins, what adds up, what is refused, and mistakes."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Array
from reference_graph import SINKS, Net, Twin, graph_twin
from torch import Tensor, nn
from zoo import ZOO, Forward

from attrain import attribute, rules
from attrain.attribution.targets import check_target, scores, select
from attrain.errors import AttributionWarning, CreditError, CreditWarning, InputError
from attrain.graph import AttributionGraph, ClassGraphs

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
    by_name = rules.PRESETS[preset](dict(net.named_modules()))

    def rule_of(layer: str) -> Any:
        return by_name.get(layer, rules.Epsilon())

    graph = AttributionGraph.from_batch(net, x, 1, rule=preset, epsilon=1e-6)
    compare(graph, twin_of(net, x, target, 1e-6, rule_of), 2)


def test_layers_may_have_an_epsilon_of_their_own() -> None:
    torch.manual_seed(0)
    net, shape = NETS["skip"]()
    prepared(net)
    x = random(2, *shape)
    own = {"b": rules.Epsilon(epsilon=0.1), "c": rules.Gamma(0.5, epsilon=0.2)}
    graph = AttributionGraph.from_batch(net, x, 1, rules=own)
    twin = twin_of(net, x, [1, 1], 1e-6, lambda name: own.get(name, rules.Epsilon()))
    compare(graph, twin, 2)


# What adds up, over random networks ---------------------------------------------------------------

KEEP_SIGN: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.GELU, nn.ELU, nn.SELU, nn.Mish, nn.Hardswish,
    nn.ReLU6, nn.Softsign, nn.Tanhshrink, nn.Hardtanh, nn.Identity, nn.PReLU, nn.Dropout,
    lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.2, inplace=True),
    lambda: nn.SiLU(inplace=True), lambda: nn.Dropout(0.5, inplace=True),
]  # fmt: skip


class Program(nn.Module):
    """Runs steps, functions of the values so far, and returns the last value."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[tuple[Any, tuple[int, ...], int | None]] = []
        self.told: list[str] = []

    def add(self, told: str, function: Any, of: tuple[int, ...], part: Any = None) -> None:
        index = None
        if part is not None:
            known = [each is part for each in self.parts]
            index = known.index(True) if any(known) else len(self.parts)
            if not any(known):
                self.parts.append(part)
        self.told.append(f"{told}{of}")
        self.steps.append((function, of, index))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for function, of, index in self.steps:
            taken = [values[k] for k in of]
            values.append(
                function(*taken) if index is None else function(self.parts[index], *taken)
            )
        return values[-1]

    def __repr__(self) -> str:
        return f"Program({', '.join(self.told)})"


def call(module: nn.Module, *taken: Tensor) -> Tensor:
    return module(*taken)


def _norm(draw: Any, channels: int, spatial: int) -> nn.Module:
    kind = draw(st.sampled_from(["batch", "plain batch", "layer", "group", "instance"]))
    if kind == "instance" and spatial:
        return [nn.InstanceNorm1d, nn.InstanceNorm2d][spatial - 1](channels, affine=True)
    if kind == "group" and spatial:
        return nn.GroupNorm(draw(st.sampled_from([1, channels])), channels)
    if kind == "layer" and not spatial:
        return draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(channels)
    batch = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][spatial]
    return batch(channels, affine=kind == "batch")


def _layer(draw: Any, channels: int, out: int, spatial: int) -> nn.Module:
    if not spatial:
        return L(channels, out, bias=draw(st.booleans()))
    kind = [nn.Conv1d, nn.Conv2d][spatial - 1]
    size = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, 2])) if channels % 2 == out % 2 == 0 else 1
    return kind(
        channels, out, size, padding=size // 2, groups=groups, bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "circular", "reflect"])),
    )  # fmt: skip


def _pool(spatial: int, average: bool) -> nn.Module:
    kinds = ((nn.MaxPool1d, nn.MaxPool2d), (nn.AvgPool1d, nn.AvgPool2d))[average]
    return kinds[spatial - 1](3, 1, 1)


@st.composite
def programs(draw: Any) -> tuple[Program, Tensor]:
    """Return a random network in double precision and inputs for it."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    spatial = draw(st.integers(0, 2))
    width = draw(st.sampled_from([2, 4]))
    samples = draw(st.integers(1, 4))
    shape = (samples, width, *(4,) * spatial)
    program = Program()
    channels = [width]
    reused: dict[int, nn.Module] = {}
    names = st.sampled_from(
        "layer layer activation activation norm pool skip skip projected cat product reuse "
        "functional scale shift gate constant split negative broken".split()
    )
    for _ in range(draw(st.integers(1, 8))):
        last, count = len(channels) - 1, channels[-1]
        name = draw(names)
        alike = [k for k, c in enumerate(channels) if c == count]
        other = draw(st.sampled_from(alike))
        made = count
        if name == "layer":
            made = draw(st.sampled_from([2, 4]))
            program.add("layer", call, (last,), _layer(draw, count, made, spatial))
        elif name == "activation":
            phi = draw(st.sampled_from(KEEP_SIGN))()
            # What is written over must be no one else's.
            place = last if not getattr(phi, "inplace", False) else _copied(program, channels)
            program.add(type(phi).__name__, call, (place,), phi)
        elif name == "norm":
            program.add("norm", call, (last,), _norm(draw, count, spatial))
        elif name == "pool" and spatial:
            program.add("pool", call, (last,), _pool(spatial, draw(st.booleans())))
        elif name == "skip":
            if draw(st.booleans()):
                place = _copied(program, channels)
                program.add("add_", lambda a, b: a.add_(b), (place, other))
            else:
                program.add("add", lambda a, b: a + b, (last, other))
        elif name == "projected":
            place = draw(st.integers(0, last))
            program.add("projection", call, (place,), _layer(draw, channels[place], count, spatial))
            channels.append(count)
            program.add("add", lambda a, b: a - b, (last, len(channels) - 1))
        elif name == "cat":
            if count > 8:
                continue
            place = draw(st.integers(0, last))
            program.add("cat", lambda a, b: torch.cat([a, b], 1), (last, place))
            made = count + channels[place]
        elif name in ("product", "gate"):
            program.add("projection", call, (other,), _layer(draw, count, count, spatial))
            channels.append(count)
            gate = torch.tanh if name == "product" else torch.sigmoid
            program.add(name, lambda a, b, gate=gate: a * gate(b), (last, len(channels) - 1))
        elif name == "reuse":
            shared = reused.setdefault(count, _layer(draw, count, count, spatial))
            program.add("reuse", call, (last,), shared)
        elif name == "functional" and not spatial:
            made = 3
            weight = nn.Parameter(torch.randn(count, 3) * 0.5)
            bias = nn.Parameter(torch.randn(3))
            program.add("functional", lambda p, a: a @ p[0] + p[1], (last,),
                        nn.ParameterList([weight, bias]))  # fmt: skip
        elif name == "scale":
            program.add("scale", lambda a: a * 0.5 / 1.5, (last,))
        elif name == "shift":
            program.add("shift", lambda a: 0.3 + a, (last,))
        elif name == "constant":
            bias = nn.Parameter(torch.randn(count, *(1,) * spatial))
            program.add("constant", lambda p, a: a * p[0] + p[0], (last,), nn.ParameterList([bias]))
        elif name == "split" and count % 2 == 0:
            made = count // 2
            program.add("split", lambda a: torch.add(*a.chunk(2, 1)), (last,))
        elif name == "negative":
            program.add("negative", lambda a: torch.cat([a.relu(), (-a).relu()], 1), (last,))
            made = 2 * count
        elif name == "broken":
            program.add("flip", lambda a: a.flip(1), (last,))
        else:
            continue
        channels.append(made)
    last, count = len(channels) - 1, channels[-1]
    if spatial and draw(st.booleans()):
        program.add("mean", lambda a: a.flatten(2).mean(2), (last,))
    else:
        program.add("flatten", lambda a: a.flatten(1), (last,))
    width = count if program.told[-1].startswith("mean") else count * 4**spatial
    program.add("head", call, (len(channels),), L(width, CLASSES))
    prepared(program)
    return program, random(*shape, seed=draw(st.integers(0, 99)))


def _copied(program: Program, channels: list[int]) -> int:
    program.add("clone", torch.clone, (len(channels) - 1,))
    channels.append(channels[-1])
    return len(channels) - 1


def explained(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    with torch.no_grad():
        out = scores(model(x.clone()))
        return select(out, check_target(target, out.shape[1:], len(x), out.device))


def check_sums(
    model: nn.Module, x: Tensor, target: Any = 1, tolerance: float = 1e-8, **options: Any
) -> AttributionGraph:
    """Assert that all of a graph adds up, and return it."""
    graph = AttributionGraph.from_batch(model, x, target, **options)
    largest = max(float(each.abs().max()) for each in graph.relevance.values()) or 1.0
    assert max(graph.error().values(), default=0.0) <= tolerance
    output = float(explained(model, x, target).mean())
    assert abs(graph.output - output) <= tolerance * max(1.0, abs(output))
    for name in graph.layers[:-1]:
        handed = sum(each.sum(0) for each in graph.outgoing(name).values())
        assert (handed - graph.relevance[name]).abs().max() <= tolerance * largest, name
    if x.is_floating_point():
        found = graph.relevance["input"] - sum(graph.sinks.get("input", {"": 0.0}).values())
        values = attribute(model, x, target, **options).double().mean(0)
        by_unit = (values.flatten(), values.flatten(1).sum(1) if values.ndim > 1 else values,
                   values.flatten(0, -2).sum(0) if values.ndim > 1 else values)  # fmt: skip
        assert any(
            each.shape == found.shape and (each - found).abs().max() <= tolerance * largest
            for each in by_unit
        )
    return graph


@settings(max_examples=EXAMPLES, deadline=None)
@given(programs(), st.sampled_from([1e-6, 1e-3, 0.1, 0.0]))
def test_graphs_of_random_networks_add_up(network: tuple[Program, Tensor], epsilon: float) -> None:
    program, x = network
    target = torch.arange(len(x)) % CLASSES
    check_sums(program, x, target, epsilon=epsilon)


@settings(max_examples=max(10, EXAMPLES // 6), deadline=None)
@given(programs(), st.sampled_from(["z+", "gamma", "alpha-beta", "z+z-", "epsilon-plus"]))
def test_graphs_of_random_networks_add_up_under_rules_of_layers(
    network: tuple[Program, Tensor], rule: str
) -> None:
    program, x = network
    check_sums(program, x, 1, rule=rule, epsilon=1e-3)
