"""Attribution graphs that look like real ones, from seeded random numbers: nothing is trained."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from attrain.report.graph_input import (
    ClassGraph,
    Edges,
    Example,
    GraphPage,
    Layer,
    Panel,
    Validation,
)

Array = npt.NDArray[np.float64]
Shape = Sequence[tuple[str, str, int]]
Links = Sequence[tuple[int, int, str]]

CNN: Shape = (
    ("input", "input", 1),
    ("conv1", "conv", 16),
    ("conv2", "conv", 32),
    ("conv3", "conv", 48),
    ("fc1", "linear", 64),
    ("logits", "output", 10),
)


def three_layers(**changes) -> ClassGraph:
    """A graph small enough to count by hand."""
    fields = {
        "name": "cat",
        "samples": 4,
        "output": 2.0,
        "layers": [Layer("in", "input", 3), Layer("fc", "linear", 2), Layer("out", "output", 2)],
        "relevance": [np.array([1.0, 0.5, -0.1]), np.array([1.5, 0.4]), np.array([2.0, 0.0])],
        "edges": [
            Edges(0, 1, np.array([[0.9, 0.5, 0.1], [0.1, 0.0, -0.2]])),
            Edges(1, 2, np.array([[1.5, 0.4], [0.0, 0.0]])),
        ],
    }
    return ClassGraph(**{**fields, **changes})


def digit_examples(count: int = 60) -> list[Example]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return [
        Example(f"test example {k}, a {data.target[k]}", data.images[k][None] / 16)
        for k in range(count)
    ]


def chain(shape: Shape) -> Links:
    return [(k, k + 1, "dense") for k in range(len(shape) - 1)]


def graph(
    seed: int,
    shape: Shape = CNN,
    links: Links | None = None,
    *,
    name: str = "3",
    output: float = 8.0,
    target: int = 3,
    sparse: float = 1.0,
    examples: int = 0,
    labels: bool = True,
    measured: bool = True,
    negative: float = 0.3,
    even: float = 6.0,
) -> ClassGraph:
    """Hand a relevance down at random: what arrives at a unit is what it hands on, but for leaks.

    sparse: the larger, the fewer units and edges hold most of it. even: the larger, the more alike
    are the shares of the layers that lead into one.
    """
    rng = np.random.default_rng(seed)
    links = chain(shape) if links is None else links
    relevance = [np.zeros(units) for _, _, units in shape]
    relevance[-1][target] = output
    sinks: list[dict[str, float]] = [{} for _ in shape]
    edges = []
    for k in range(len(shape) - 1, 0, -1):
        into = [(source, kind) for source, there, kind in links if there == k]
        shares = rng.dirichlet(np.full(len(into), even)) if into else []
        leak = 0.0 if shape[k][1] == "sum" else rng.uniform(0.01, 0.12)
        if leak:
            total = float(relevance[k].sum())
            sinks[k] = {"bias": leak * total, "epsilon": 1e-5 * total}
        for (source, kind), share in zip(into, shares, strict=True):
            units = shape[source][2]
            if kind == "same":
                weights = np.eye(shape[k][2], units)
            else:
                weights = rng.gamma(0.35 / sparse, 1.0, (shape[k][2], units))
                weights *= rng.gamma(0.5 / sparse, 1.0, units) + 1e-6
                weights *= np.where(rng.random(weights.shape) < negative, -0.5, 1.0)
                sums = weights.sum(1, keepdims=True)
                weights /= np.where(
                    np.abs(sums) < 0.2 * np.abs(weights).sum(1, keepdims=True),
                    np.abs(weights).sum(1, keepdims=True),
                    sums,
                )
            messages = weights * relevance[k][:, None] * share * (1 - leak)
            edges.append(Edges(source, k, messages))
            relevance[source] = relevance[source] + messages.sum(0)
    layers = []
    for k, (layer, kind, units) in enumerate(shape):
        last = k == len(shape) - 1 and labels
        layers.append(
            Layer(
                layer, kind, units, sinks[k], [f"digit {u}" for u in range(units)] if last else None
            )
        )
    top = {}
    if examples:
        for layer, _, units in shape[1:]:
            for unit in range(units):
                top[layer, unit] = rng.choice(examples, 5, replace=False).tolist()
    ablation = (
        [-np.abs(r) * rng.uniform(0.5, 1.2, r.shape) for r in relevance] if measured else None
    )
    return ClassGraph(
        name=name,
        samples=178,
        output=output,
        layers=layers,
        relevance=relevance,
        edges=edges,
        ablation=ablation,
        random_ablation=[float(a.mean()) for a in ablation] if ablation else None,
        examples=top,
        validation=Validation(0.8, 0.71 * output, 0.09 * output, 0.02 * output, 5)
        if measured
        else None,
        accuracy=float(rng.uniform(0.9, 0.995)) if measured else None,
    )


def resnet(seed: int, blocks: int = 8, **options) -> ClassGraph:
    shape: list[tuple[str, str, int]] = [("input", "input", 3), ("conv1", "conv", 16)]
    links: list[tuple[int, int, str]] = [(0, 1, "dense")]
    for block in range(blocks):
        before, stage = len(shape) - 1, 1 + block // 3
        units = min(64, 16 * 2 ** (stage - 1))
        name = f"layer{stage}.{block % 3}"
        shape += [(f"{name}.conv1", "conv", units), (f"{name}.conv2", "conv", units)]
        shape += [(f"{name}.sum", "sum", units)]
        links += [(before, before + 1, "dense"), (before + 1, before + 2, "dense")]
        links += [(before + 2, before + 3, "same")]
        links += [(before, before + 3, "same" if shape[before][2] == units else "dense")]
    shape.append(("fc", "output", 10))
    links.append((len(shape) - 2, len(shape) - 1, "dense"))
    return graph(seed, shape, links, **options)


def transformer(seed: int, blocks: int = 4, heads: int = 8, **options) -> ClassGraph:
    """Heads and MLP blocks write into a stream that every later one reads."""
    shape: list[tuple[str, str, int]] = [("tokens", "input", 12)]
    links: list[tuple[int, int, str]] = []
    for block in range(blocks):
        shape += [(f"h.{block}.attn", "heads", heads), (f"h.{block}.mlp", "mlp", 1)]
    shape.append(("logits", "output", 2))
    for target in range(1, len(shape)):
        links += [(source, target, "dense") for source in range(target)]
    return graph(seed, shape, links, target=1, even=0.5, **options)


def cnn_page(classes: int = 10, panels: Sequence[str] = ("SGD", "LFP"), **options) -> GraphPage:
    made = []
    for place, name in enumerate(panels):
        graphs = [
            graph(
                100 * place + k, name=f"digit {k}", target=k, output=8.0 + k / 3,
                sparse=1.0 + 1.6 * place, examples=60, **options,
            )
            for k in range(classes)
        ]  # fmt: skip
        made.append(Panel(name, graphs))
    source = {
        "model": "LeNet, 61,706 parameters",
        "data": "digits, 360 test examples",
        "method": "lrp, mean over the samples of a class",
        "rule": "epsilon, 1e-6",
        "seeds": "0",
        "command": "attrain graph --model runs/digits --data digits",
    }
    return GraphPage("Attribution graphs of LeNet on digits", made, digit_examples(), source)
