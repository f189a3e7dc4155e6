"""Attribution graphs against slow twins, what adds up, what is refused, and mistakes."""

import copy
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


# What is supported, and what is refused -----------------------------------------------------------


def of(function: Callable[..., Any], **parts: Any) -> nn.Module:
    return prepared(Forward(function, **parts))


def two() -> dict[str, Any]:
    return {"a": L(5, 6), "b": L(5, 6), "c": L(6, CLASSES)}


def _writes(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    h[:, 1:3] = self.b(x)[:, :2]
    return self.c(h)


def _fills_zeros(self: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 2, 6)
    h[:, 1] = self.a(x)
    return self.c(h.flatten(1))


def _unused(self: Any, x: Tensor) -> Tensor:
    out = self.c(self.a(x))
    self.b(out)
    return out


def rows(*names: str) -> dict[str, Any]:
    sizes = {"a": (5, 6), "b": (5, 6), "c": (6, CLASSES), "d": (6, CLASSES)}
    return {name: L(*sizes[name]) for name in names}


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "several heads": (lambda s, x: (s.c(h := s.a(x).relu()), s.d(h)), rows("a", "c", "d")),
    "joined heads": (
        lambda s, x: torch.cat([s.c(h := s.a(x).tanh()), s.d(h)], 1), rows("a", "c", "d")
    ),
    "inputs among the outputs": (lambda s, x: torch.cat([x, s.a(x)], 1), rows("a")),
    "layers behind the output": (_unused, rows("a", "c") | {"b": L(CLASSES, 2)}),
    "written": (_writes, rows("a", "b", "c")),
    "written into zeros": (_fills_zeros, {"a": L(5, 6), "c": L(12, CLASSES)}),
    "alpha": (lambda s, x: s.c(torch.sub(s.a(x), s.b(x), alpha=0.3)), rows("a", "b", "c")),
    "rsub": (lambda s, x: s.c(torch.rsub(s.a(x), s.b(x), alpha=0.3)), rows("a", "b", "c")),
    "lerp": (lambda s, x: s.c(torch.lerp(s.a(x), s.b(x), 0.3)), rows("a", "b", "c")),
    "lerp to a constant": (
        lambda s, x: s.c(torch.lerp(torch.ones_like(x[:, :1]), s.a(x), 0.3)), rows("a", "c")
    ),
    "where": (lambda s, x: s.c(torch.where(s.a(x) > 0, s.a(x), s.b(x))), rows("a", "b", "c")),
    "where a constant": (lambda s, x: s.c(torch.where(s.a(x) > 0, s.a(x), 0.5)), rows("a", "c")),
    "filled": (
        lambda s, x: s.c(s.a(x).masked_fill(torch.arange(6) % 2 == 0, 0.5)), rows("a", "c")
    ),
    "larger": (lambda s, x: s.c(torch.maximum(h := s.a(x), 0.1 * h)), rows("a", "c")),
    "larger than a constant": (
        lambda s, x: s.c(torch.maximum(s.a(x), torch.full_like(x[:, :1], 0.2))), rows("a", "c")
    ),
    "joined with constants": (
        lambda s, x: s.c(torch.cat([s.a(x)[:, :4], torch.ones_like(x[:, :2])], 1)), rows("a", "c")
    ),
    "padded features": (
        lambda s, x: s.c(F.pad(s.a(x)[:, :4], (0, 2), value=1.0)), rows("a", "c")
    ),
    "one sum twice": (lambda s, x: s.c((h := s.a(x)) + h), rows("a", "c")),
    "both rectified": (
        lambda s, x: s.c(torch.cat([(h := s.a(x)).relu(), (-h).relu()], 1)[:, 3:9]),
        rows("a", "c"),
    ),
    "twice in a join": (
        lambda s, x: s.e(torch.cat([h := s.a(x), h, s.f(h)], 1).tanh()) + s.c(h),
        rows("a", "c") | {"e": L(18, CLASSES), "f": L(6, 6)},
    ),
    "swish by hand": (lambda s, x: s.c((h := s.a(x)) * torch.sigmoid(h)), rows("a", "c")),
    "curve of a product": (
        lambda s, x: s.c(1 + torch.tanh(s.a(x) * s.b(x))), rows("a", "b", "c")
    ),
    "gate": (lambda s, x: s.c(s.a(x) * torch.sigmoid(s.b(x))), rows("a", "b", "c")),
    "softmax at no unit": (lambda s, x: s.c(s.a(x)).sigmoid(), rows("a", "c")),
    "rms norm by hand": (
        lambda s, x: s.c((h := s.a(x)) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
        rows("a", "c"),
    ),
    "repeated": (lambda s, x: s.c(s.a(x)[:, :3].repeat(1, 2)), rows("a", "c")),
    "picked": (lambda s, x: s.c(s.a(x)[:, [0, 2, 2, 4, 5, 1]]), rows("a", "c")),
    "half detached": (lambda s, x: s.c(s.a(x) + s.b(x).detach()), rows("a", "b", "c")),
    "dropout": (lambda s, x: s.c(F.dropout(s.a(x), 0.5, False).tanh()), rows("a", "c")),
    "no change": (lambda s, x: s.c(s.a(x).contiguous().double().tanh()), rows("a", "c")),
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"epsilon": 0.1}, {"rule": "z+"}, {"epsilon": 0.0}], ids=str
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_graphs_of_what_models_do_add_up(name: str, options: dict[str, Any]) -> None:
    function, parts = FUNCTIONS[name]
    torch.manual_seed(0)
    check_sums(
        of(function, **copy.deepcopy(parts)), random(3, 5), torch.tensor([1, 0, 2]), **options
    )


def test_outputs_of_several_layers_have_a_layer_of_their_own() -> None:
    function, parts = FUNCTIONS["joined heads"]
    graph = check_sums(of(function, **parts), random(3, 5), torch.tensor([1, 4, 0]))
    assert graph.layers == ("input", "a", "c", "d", "output")
    assert graph.kinds["output"] == "output"
    assert graph.sources["output"] == ("c", "d")
    kept = graph.prune(1.0, 1.0)
    assert {name for name in kept.layers if kept.kept(name).any()} == {*graph.layers}


def test_layers_that_lead_to_no_output_are_left_out() -> None:
    for name, layers in (
        ("several heads", ("input", "a", "c")),
        ("layers behind the output", ("input", "a", "c")),
    ):
        function, parts = FUNCTIONS[name]
        assert check_sums(of(function, **parts), random(2, 5)).layers == layers


IMAGES: dict[str, Callable[[], nn.Module]] = {
    name: lambda modules=modules: nn.Sequential(*[each() for each in modules])
    for name, modules in {
        "norm first": (lambda: nn.BatchNorm2d(2), lambda: nn.Conv2d(2, 4, 3)),
        "pool first": (lambda: nn.AvgPool2d(3, 1), lambda: nn.Conv2d(2, 4, 1)),
        "zero padding": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.ZeroPad2d(1),
                         lambda: nn.Conv2d(4, 4, 3)),
        "padding": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.ConstantPad2d(1, 0.7),
                    lambda: nn.Conv2d(4, 4, 3)),
        "reflection": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.ReflectionPad2d(1),
                       lambda: nn.Conv2d(4, 4, 3)),
        "circular": (lambda: nn.Conv2d(2, 4, 3, padding_mode="circular"),),
        "group norm": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.GroupNorm(2, 4)),
        "instance norm": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True)),
        "running instance norm": (
            lambda: nn.Conv2d(2, 4, 3), lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
        "norm of the batch": (
            lambda: nn.Conv2d(2, 4, 3), lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        "local response": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.LocalResponseNorm(2)),
        "interpolated": (lambda: nn.Conv2d(2, 4, 3),
                         lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
                         lambda: nn.AvgPool2d(2)),
        "shuffled": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.ChannelShuffle(2),
                     lambda: nn.Conv2d(4, 4, 1, groups=2)),
        "unfolded": (lambda: nn.Conv2d(2, 4, 3), lambda: nn.Unfold(3)),
        "adaptive maxima": (lambda: nn.Conv2d(2, 4, 1), lambda: nn.AdaptiveMaxPool2d(4)),
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"rule": "z+"}], ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_graphs_of_images_add_up(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    body = IMAGES[name]()
    with torch.no_grad():
        width = body(torch.zeros(2, 2, 6, 6)).flatten(1).shape[1]
    model = prepared(nn.Sequential(body, nn.ReLU(), nn.Flatten(), L(width, CLASSES)))
    check_sums(model, random(3, 2, 6, 6), 1, **options)


def in_time(function: Callable[..., Any], **parts: Any) -> nn.Module:
    return of(function, a=nn.Conv1d(2, 4, 3), **parts)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "attention": (
        lambda: of(lambda s, x: s.c(s.m(x, x, x)[0].mean(1)),
                   m=nn.MultiheadAttention(4, 2, batch_first=True), c=L(4, 3)),
        (6, 4), "bmm|scaled_dot_product_attention|sample",
    ),
    "lstm": (lambda: of(lambda s, x: s.c(s.r(x)[0][:, -1]), r=nn.LSTM(4, 5, batch_first=True),
                        c=L(5, 3)), (6, 4), "torch.lstm at .*test_graph.py"),
    "gru": (lambda: of(lambda s, x: s.c(s.r(x)[0][:, -1]), r=nn.GRU(4, 5, batch_first=True),
                       c=L(5, 3)), (6, 4), "torch.gru at .*test_graph.py"),
    "cell": (lambda: of(lambda s, x: s.c(s.r(x[:, 0])[0]), r=nn.LSTMCell(4, 5), c=L(5, 3)),
             (6, 4), "torch.lstm_cell at"),
    "einsum": (lambda: of(lambda s, x: s.c(torch.einsum("ni,nj->nij", s.a(x), s.b(x)).flatten(1)),
                          a=L(5, 2), b=L(5, 3), c=L(6, 3)), (5,), "torch.einsum at"),
    "bilinear": (lambda: of(lambda s, x: s.c(s.a(x), s.b(x)), a=L(5, 2), b=L(5, 3),
                            c=nn.Bilinear(2, 3, 3)), (5,), "bilinear at"),
    "sort": (lambda: of(lambda s, x: s.c(s.a(x).sort(1)[0]), **two()), (5,), "sort at"),
    "topk": (lambda: of(lambda s, x: s.d(s.a(x).topk(3, 1)[0]), d=L(3, 3), **two()), (5,), "topk"),
    "cumsum": (lambda: of(lambda s, x: s.c(s.a(x).cumsum(1)), **two()), (5,), "cumsum at"),
    "softmax": (lambda: of(lambda s, x: s.c(s.a(x).softmax(1)), **two()), (5,), "softmax at"),
    "glu": (lambda: of(lambda s, x: s.d(F.glu(s.a(x))), d=L(3, 3), **two()), (5,), "glu at"),
    "maximum": (lambda: of(lambda s, x: s.c(torch.maximum(s.a(x), s.b(x))), **two()), (5,),
                "torch.maximum at"),
    "mean of units": (lambda: of(lambda s, x: s.a(x).mean(1), **two()), (5,), "mean at"),
    "centred by hand": (lambda: of(lambda s, x: s.c((h := s.a(x)) - h.mean(1, True)), **two()),
                        (5,), "mean at"),
    "mean of samples": (lambda: of(lambda s, x: s.c((h := s.a(x)) - h.mean(0, True)), **two()),
                        (5,), "mean at"),
    "flipped samples": (lambda: of(lambda s, x: s.c(s.a(x).flip(0).tanh()), **two()), (5,),
                        "samples have no axis of their own"),
    "pool of units": (lambda: of(lambda s, x: s.c(F.avg_pool1d(s.a(x), 3, 1, 1)), **two()), (5,),
                      "avg_pool1d at"),
    "maxima of units": (lambda: of(lambda s, x: s.c(F.max_pool1d(s.a(x), 3, 1, 1)), **two()), (5,),
                        "max_pool1d at"),
    "mean of as many channels as places": (
        lambda: in_time(lambda s, x: s.c(s.a(x).mean(1)), c=L(4, 3)), (2, 6), "mean at"),
    "pixel shuffle": (lambda: of(lambda s, x: s.c(s.b(F.pixel_shuffle(s.a(x), 2)).mean((2, 3))),
                                 a=nn.Conv2d(2, 8, 1), b=nn.Conv2d(2, 3, 1), c=L(3, 3)),
                      (2, 4, 4), "conv2d at .*does not tell its units apart"),
    "unpooled": (lambda: of(lambda s, x: s.c(F.max_unpool2d(
        *F.max_pool2d(s.a(x), 2, return_indices=True), 2).tanh().flatten(1)),
        a=nn.Conv2d(2, 3, 1), c=L(48, 3)), (2, 4, 4), "max_unpool2d at"),
    "mixer": (lambda: of(lambda s, x: s.c(s.b(s.a(x).transpose(1, 2)).mean(2)), a=L(4, 5),
                         b=L(6, 7), c=L(5, 3)), (6, 4), "does not tell its units apart"),
    "no inputs": (lambda: of(lambda s, x: s.c(s.a(x).detach()), **two()), (5,),
                  "does not depend on its inputs"),
    "scores of every place": (lambda: nn.Sequential(L(4, 5), L(5, 3)).double(), (6, 4),
                              r"the shape \[N, 6, 3\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph_is_refused_by_name_and_place(name: str) -> None:
    build, shape, told = REFUSED[name]
    target = (1, 1) if name == "scores of every place" else None if name == "mean of units" else 1
    with pytest.raises(InputError, match=told):
        AttributionGraph.from_batch(build(), random(2, *shape), target)


def _adds_into_a_part(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    h[:, :2] += self.b(x)[:, :2]
    return self.c(h)


def _copies_into_a_part(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    h[:, :6].copy_(self.b(x))
    return self.c(h)


@pytest.mark.parametrize("function", [_adds_into_a_part, _copies_into_a_part])
def test_writes_into_a_part_of_a_tensor_are_refused(function: Any) -> None:
    with pytest.raises(InputError, match="which writes into a part of a tensor"):
        AttributionGraph.from_batch(of(function, **two()), random(2, 5), 1)


def test_inputs_of_a_layer_that_are_overwritten_are_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        g = self.d(h)
        h.mul_(2.0)
        return g + self.c(h)

    with pytest.raises(CreditError, match="inputs of layer 'd' are overwritten after it took them"):
        AttributionGraph.from_batch(of(forward, d=L(6, CLASSES), **two()), random(2, 5), 1)


def test_numbers_that_a_model_looks_at_are_no_part_of_its_graph() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if h.abs().max().item() == 0 or h.sum().item() == 0:
                raise AssertionError
            return self.last(torch.relu(h))

    model, x = Looks(), torch.randn(6, 4)
    plain = nn.Sequential(model.first, nn.ReLU(), model.last)
    found = AttributionGraph.from_batch(model, x, 1)
    same = AttributionGraph.from_batch(plain, x, 1)
    assert torch.equal(found.edges["first"], same.edges["0"])
    assert torch.equal(found.edges["last"], same.edges["2"])


def test_models_that_change_their_calls_are_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(h.tanh() if float(x.detach()[0, 0]) > 0 else h)

    x = random(4, 5)
    x[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    with pytest.raises(InputError, match="makes the same calls|make the same calls for all"):
        AttributionGraph.from_batch(of(forward, **two()), x, 1, batch_size=2)


@pytest.mark.parametrize("name", ZOO)
def test_graphs_of_the_zoo_add_up_or_are_refused(name: str) -> None:
    case = ZOO[name]()
    if len(case.args) != 1 or case.kwargs or case.args[0].ndim < 2:
        pytest.skip("has several inputs, or one sample without a batch")
    model, x = case.model.double().eval(), case.args[0]
    x = x.double() if x.is_floating_point() else x
    try:
        out = scores(model(x))
    except (InputError, RuntimeError, TypeError) as error:
        pytest.skip(f"cannot be run so: {error}")
    if len(out) != len(x) or name in ("weight_with_noise", "learned_queries"):
        pytest.skip("samples are not first, or it computes each time something else")
    target = None if out.ndim == 1 or out[0].numel() == 1 else (0,) * (out.ndim - 1)
    try:
        graph = AttributionGraph.from_batch(model, x, target)
    except (InputError, CreditError) as error:
        assert len(str(error)) > 40 and "\n" not in str(error)
        return
    # Some of them compute a part in single precision.
    assert max(graph.error().values(), default=0.0) <= 1e-7
    assert abs(graph.output - float(explained(model, x, target).mean())) <= 1e-6


# Inputs of all kinds ------------------------------------------------------------------------------


def test_targets_of_every_form_and_models_of_every_output() -> None:
    mlp = prepared(nn.Sequential(L(5, 6), nn.Tanh(), L(6, CLASSES)))
    x = random(3, 5)
    for target in (1, (2,), torch.tensor([0, 1, 2]), [0, 1, 2], torch.tensor(1)):
        check_sums(mlp, x, target)
    one = prepared(nn.Sequential(L(5, 6), nn.Tanh(), L(6, 1)))
    check_sums(one, x, None)
    check_sums(of(lambda s, x: s.m(x)[:, 0], m=one), x, None)
    for wrapped in (lambda out: (out, 1), lambda out: {"logits": out}, lambda out: [out]):
        check_sums(of(lambda s, x, wrapped=wrapped: wrapped(s.m(x)), m=mlp), x, 1)


def test_one_sample_and_samples_that_are_not_contiguous() -> None:
    mlp = prepared(nn.Sequential(L(5, 6), nn.Tanh(), L(6, CLASSES)))
    check_sums(mlp, random(1, 5), 2)
    check_sums(mlp, random(5, 3).t(), 2)
    cnn = prepared(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), L(48, CLASSES)))
    check_sums(cnn, random(3, 6, 6, 2).permute(0, 3, 1, 2), 2)
    check_sums(cnn, random(3, 2, 6, 6).contiguous(memory_format=torch.channels_last), 2)
    check_sums(cnn.float(), random(3, 2, 6, 6).float(), 2, tolerance=1e-5)


def test_tokens_are_explained_at_their_embedding() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 1, 0], [2, 0, 3]])
    for function in (
        lambda s, x: s.c(s.b(s.e(x)).relu().mean(1)),
        lambda s, x: s.c(s.b(s.e(x) + s.p(torch.arange(3))).relu().mean(1)),
        lambda s, x: s.c(s.b(s.e(x) + s.p(torch.arange(3))[None]).relu().mean(1)),
    ):
        parts = {"e": nn.Embedding(9, 4), "p": nn.Embedding(3, 4), "b": L(4, 5), "c": L(5, CLASSES)}
        graph = check_sums(of(function, **parts), ids, 1)
        assert graph.layers == ("e", "b", "c") and graph.kinds["e"] == "embedding"
    tied = {"e": nn.Embedding(9, 6), "b": L(6, 6), "c": L(6, 9, bias=False)}
    tied["c"].weight = tied["e"].weight
    graph = check_sums(of(lambda s, x: s.c(s.b(s.e(x)).tanh().mean(1)), **tied), ids, 1)
    assert graph.layers == ("e", "b", "c")


def test_weights_that_are_computed_and_layers_that_are_used_again() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(L(5, 6)), nn.Tanh(), L(6, CLASSES)).double().eval()
    check_sums(model, random(3, 5), 1)
    shared = L(5, 5)
    again = prepared(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared))
    graph = check_sums(again, random(3, 5), 1)
    assert graph.layers == ("input", "0", "0@2", "0@3")


def test_further_arguments_go_with_their_samples() -> None:
    model = of(lambda s, x, m, k: s.c(s.a(x) * m * k), **two())
    x, mask = random(4, 5), random(4, 6, seed=2)
    graph = AttributionGraph.from_batch(
        model, x, 1, additional_forward_args=(mask, 2.0), batch_size=3
    )
    assert max(graph.error().values()) <= 1e-12
    with torch.no_grad():
        assert abs(graph.output - float(model(x, mask, 2.0)[:, 1].mean())) <= 1e-12


# Symmetries ---------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    return prepared(nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), L(24, CLASSES),
    ))  # fmt: skip


def same(a: AttributionGraph, b: AttributionGraph, tolerance: float = 1e-12) -> bool:
    return a.layers == b.layers and all(
        bool((x - y).abs().max() <= tolerance)
        for x, y in [
            *((a.relevance[name], b.relevance[name]) for name in a.layers),
            *((a.edges[name], b.edges[name]) for name in a.edges),
            *((a.sinks[name][sink], b.sinks[name][sink]) for name in a.sinks
              for sink in a.sinks[name]),
        ]
    )  # fmt: skip


def test_how_a_batch_is_cut_and_ordered_changes_nothing() -> None:
    model, x = cnn(), random(7, 2, 8, 8)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    whole = AttributionGraph.from_batch(model, x, y)
    for size in (1, 2, 5):
        assert same(whole, AttributionGraph.from_batch(model, x, y, batch_size=size))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    assert same(whole, AttributionGraph.from_batch(model, x[order], y[order]))
    mean = [AttributionGraph.from_batch(model, x[k : k + 1], y[k : k + 1]) for k in range(7)]
    for name in whole.edges:
        found = torch.stack([each.edges[name] for each in mean]).mean(0)
        assert (found - whole.edges[name]).abs().max() <= 1e-12


def test_units_in_another_order_make_the_same_graph_in_that_order() -> None:
    model = prepared(nn.Sequential(L(5, 6), nn.SiLU(), L(6, 7), nn.ReLU(), L(7, CLASSES)))
    x, order = random(4, 5), torch.tensor([3, 0, 5, 1, 4, 2])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    before, after = (AttributionGraph.from_batch(each, x, 1) for each in (model, other))
    assert (after.relevance["0"] - before.relevance["0"][order]).abs().max() <= 1e-12
    assert (after.edges["0"] - before.edges["0"][order]).abs().max() <= 1e-12
    assert (after.edges["2"] - before.edges["2"][:, order]).abs().max() <= 1e-12


def state(model: nn.Module) -> list[Any]:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [(each.requires_grad, each.grad) for each in model.parameters()],
        [each.training for each in model.modules()],
        [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()],
    ]


def test_the_model_stays_as_it_was_also_after_an_exception() -> None:
    model = cnn().train()
    model[0].weight.requires_grad_(False)
    model[4].eval()
    broken = of(lambda s, x: s.c(torch.logcumsumexp(s.a(x), 1)), **two()).train()
    mixed = of(lambda s, x: s.c(s.a(x).sort(1)[0]), **two()).train()
    for each, x, error in (
        (model, random(3, 2, 8, 8), None), (broken, random(3, 5), CreditError),
        (mixed, random(3, 5), InputError),
    ):  # fmt: skip
        before, kept = state(each), x.clone()
        if error is None:
            AttributionGraph.from_batch(each, x, 1)
        else:
            with pytest.raises(error):
                AttributionGraph.from_batch(each, x, 1)
        after = state(each)
        assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        assert before[1:] == after[1:]
        assert torch.equal(x, kept) and not x.requires_grad
    with pytest.raises(InputError):
        AttributionGraph.from_batch(model, random(3, 2, 8, 8), CLASSES)
    assert model.training and not model[4].training


# Pruning ------------------------------------------------------------------------------------------


def smallest(sizes: list[float], share: float) -> int:
    total, held = sum(sizes), 0.0
    for count, size in enumerate(sorted(sizes, reverse=True), 1):
        held += size
        if held >= share * total * (1 - 1e-12):
            return count
    return len(sizes)


@pytest.mark.parametrize("nodes", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("edges", [0.5, 0.98, 1.0])
def test_pruning_keeps_the_smallest_sets_and_names_the_rest(nodes: float, edges: float) -> None:
    graph = AttributionGraph.from_batch(cnn(), random(5, 2, 8, 8), 1)
    pruned = graph.prune(nodes, edges)
    for name in graph.layers:
        sizes = graph.relevance[name].abs().tolist()
        kept = pruned.kept(name)
        assert 1 <= int(kept.sum()) <= smallest(sizes, nodes)
        order = graph.relevance[name].abs().argsort(descending=True)[: smallest(sizes, nodes)]
        assert {*kept.nonzero()[:, 0].tolist()} <= {*order.tolist()}
        assert torch.equal(pruned.relevance[name], graph.relevance[name])
        if name != graph.layers[-1]:
            on = sum((each[pruned.kept(above)] != 0).any(0)
                     for above, each in pruned.outgoing(name).items())  # fmt: skip
            assert torch.equal(on > 0, kept)
        if name in graph.edges:
            assert torch.equal((pruned.edges[name] != 0).any(1), kept)
            total = pruned.edges[name].sum(1) + sum(pruned.sinks[name].values())
            assert (total - graph.relevance[name]).abs().max() <= 1e-12
            alike = (pruned.edges[name] == graph.edges[name]) | (pruned.edges[name] == 0)
            assert bool(alike.all())
    assert max(pruned.error().values()) <= 1e-10
    if nodes == edges == 1.0:
        assert all(torch.equal(pruned.edges[name], graph.edges[name]) for name in graph.edges)
    again = pruned.prune(0.5, 0.5)
    assert all(bool((pruned.kept(name) | ~again.kept(name)).all()) for name in graph.layers)
    assert max(again.error().values()) <= 1e-10


@pytest.mark.parametrize("share", [0, -0.1, 1.5, True, "most", float("nan")])
def test_shares_out_of_range_are_refused(share: Any) -> None:
    graph = AttributionGraph.from_batch(nn.Linear(3, 2), torch.randn(2, 3), 1)
    with pytest.raises(InputError, match=r"nodes is a share in \(0, 1\], got"):
        graph.prune(nodes=share)
    with pytest.raises(InputError, match=r"edges is a share in \(0, 1\], got"):
        graph.prune(edges=share)


# Mistakes -----------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_sentence() -> None:
    model, x = nn.Sequential(L(4, 5), nn.ReLU(), L(5, CLASSES)), torch.randn(3, 4)
    for arguments, options, told in (
        ((model, x), {}, "target=None is for a model that returns one number per sample"),
        ((model, x, CLASSES), {}, "target 3 is out of range"),
        ((model, x, "1"), {}, "target='1' is no class"),
        ((model, x, [0, 1]), {}, "target has 2 entries, and x 3 samples"),
        ((copy.deepcopy(model).half(), x, 1), {}, "the model is in half precision"),
        ((model, x.half(), 1), {}, "x is in half precision"),
        ((model, x[:0], 1), {}, "x is an empty batch"),
        (("model", x, 1), {}, "model must be a torch.nn.Module, got str"),
        ((copy.deepcopy(model).to("meta"), x, 1), {}, "of the model is on the meta device"),
        ((model, x.to("meta"), 1), {}, "x is on the meta device"),
        ((model, x.to_sparse(), 1), {}, "x has the layout torch.sparse_coo: give x.to_dense()."),
        ((nn.LazyLinear(2), x, 1), {}, "'weight' of the model has no shape yet: run the lazy"),
        ((model, x * float("nan"), 1), {}, "the explained output '1' is not finite: the inputs or"),
        ((model, x, 1), {"method": "ablation", "hwo": "zero"}, "Did you mean 'how'?"),
        ((model, x, 1), {"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ((model, x, 1), {"method": "lpr"}, "unknown method of graphs 'lpr'. Did you mean 'lrp'?"),
        ((model, x, 1), {"epsilom": 1.0}, "Did you mean 'epsilon'?"),
        ((model, x, 1), {"rule": "gama"}, "Did you mean 'gamma'?"),
        ((model, x, 1), {"method": "gradient", "epsilon": 0.1}, "gradient has no options, got"),
    ):
        with pytest.raises(InputError) as caught:
            AttributionGraph.from_batch(*arguments, **options)
        assert told in str(caught.value)


def test_layers_and_units_that_are_not_there_are_told() -> None:
    model = prepared(nn.Sequential(L(4, 5), nn.ReLU(), L(5, CLASSES)))
    graph = AttributionGraph.from_batch(model, random(3, 4), 1)
    for function in (graph.kept, graph.columns, graph.outgoing, graph.check_layer):
        with pytest.raises(InputError, match="unknown layer of the graph 'inputs'. Did you mean"):
            function("inputs")
    for unit in (5, -1, True, 1.0):
        with pytest.raises(InputError, match="layer '0' has units 0 to 4, got"):
            graph.check_unit("0", unit)
    with pytest.raises(InputError, match="no edges lead from 'input' to '2', which '0' feeds"):
        graph.between("input", "2")
    assert "AttributionGraph(3 layers, 12 nodes" in repr(graph)


# Models of torchvision ----------------------------------------------------------------------------

QUICK: dict[str, tuple[Callable[[Any], nn.Module], int]] = {
    "resnet18": (lambda tv: tv.resnet18(num_classes=5), 32),
    "squeezenet": (lambda tv: tv.squeezenet1_1(num_classes=5), 64),
    "densenet": (lambda tv: tv.DenseNet(8, (2, 2, 2), 16, num_classes=5), 32),
}
SLOW: dict[str, tuple[Callable[[Any], nn.Module], int]] = {
    "shufflenet": (lambda tv: tv.shufflenet_v2_x0_5(num_classes=5), 64),
    "mobilenet_v2": (lambda tv: tv.mobilenet_v2(num_classes=5), 64),
    "mobilenet_v3": (lambda tv: tv.mobilenet_v3_small(num_classes=5), 64),
    "googlenet": (lambda tv: tv.googlenet(num_classes=5, init_weights=False), 64),
    "efficientnet": (lambda tv: tv.efficientnet_b0(num_classes=5), 32),
    "convnext": (lambda tv: tv.convnext_tiny(num_classes=5), 32),
    "regnet": (lambda tv: tv.regnet_y_400mf(num_classes=5), 32),
    "vgg": (lambda tv: tv.vgg11(num_classes=5), 32),
}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_graphs_of_torchvision_add_up(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    build, size = {**QUICK, **SLOW}[name]
    torch.manual_seed(0)
    check_sums(prepared(build(models)), random(2, 3, size, size), 1)
