"""What the choices of rows leave behind: a line for each, and a line that a person reads."""

from typing import Any

from torch.optim import Optimizer

from attrain.targeted.module import Refresh, Targeted

BLOCKS = " ▁▂▃▄▅▆▇█"
_PLACES, _LAYERS = 12, 3


def line_of(refresh: Refresh, targeted: Targeted, optimizer: Optimizer) -> dict[str, Any]:
    """Return what a choice was, as JSON can hold it.

    Of each layer: its units, those that learn, the share of them that learned before, too, and the
    share of all scores that they have (None where scores are chance, negative or all 0).
    """
    layers = {}
    for name, rows in refresh.rows.items():
        scores = refresh.scores[name].double()
        total = float(scores.sum())
        tells = not targeted.draws and bool((scores >= 0).all()) and total > 0
        layers[name] = {
            "units": len(scores),
            "rows": rows.tolist(),
            "kept": refresh.kept[name],
            "concentration": float(scores[rows].sum()) / total if tells else None,
        }
    return {
        "step": refresh.step,
        "trained_share": targeted.trained_share(),
        "optimizer_bytes": targeted.optimizer_bytes(optimizer),
        "layers": layers,
    }


def told(line: dict[str, Any] | None) -> str:
    """Return which units learn, layer by layer: blocks as high as the share that does there."""
    if line is None:
        return "all learn"
    layers = list(line["layers"].items())
    shown = [f"{name} {_blocks(each['rows'], each['units'])}" for name, each in layers[:_LAYERS]]
    more = len(layers) - _LAYERS
    return " ".join(shown) + (f" +{more}" if more > 0 else "")


def _blocks(rows: list[int], units: int) -> str:
    places = min(_PLACES, units)
    learning, all_of = [0] * places, [0] * places
    for unit in range(units):
        all_of[unit * places // units] += 1
    for unit in rows:
        learning[unit * places // units] += 1
    highest = len(BLOCKS) - 1
    return "".join(
        BLOCKS[-(-part * highest // whole)] for part, whole in zip(learning, all_of, strict=True)
    )
