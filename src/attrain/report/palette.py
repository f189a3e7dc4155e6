"""One colour, one dash and one label per method, wherever it is drawn.

Okabe and Ito's palette is distinguishable with every common colour blindness; the dash
tells methods apart without any colour.
"""

from collections.abc import Sequence

# Black comes first and turns white on a dark page; yellow and sky blue, the palest, come last.
LIGHT = ("#1a1a1a", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#d9c800")
DARK = ("#f2f2f2", "#f07d2a", "#3f9fdf", "#12b98b", "#dd8fb9", "#e69f00", "#7cc6f0", "#f0e442")
DASHES = ("", "9 4", "2 3", "9 3 2 3", "5 2 1 2", "14 3", "1 4", "9 3 2 3 2 3")

# Paul Tol's light scheme, for classes: never mistaken for a method's colour.
CLASSES = (
    "#77aadd", "#ee8866", "#44bb99", "#eedd88", "#ffaabb",
    "#99ddff", "#bbcc33", "#aaaa00", "#dddddd",
)  # fmt: skip

# How many pictures stand beside each other in one card, the input among them.
MOST_TILES = 6

_ACRONYMS = {"sgd": "SGD", "lfp": "LFP", "lrp": "LRP", "l1": "L1", "l2": "L2", "adam": "Adam"}


def label(name: str) -> str:
    """Return the name of a method as it is written in print: `sgd-l1` becomes SGD-L1."""
    return "-".join(_ACRONYMS.get(part, part) for part in name.split("-"))


def css(methods: int) -> str:
    """Return the style rules of the first `methods` methods, for light, dark and print."""
    return "\n".join(
        [
            f":root {{--tiles: {min(methods, MOST_TILES - 1) + 1};{_variables(LIGHT, methods)}}}",
            "@media screen and (prefers-color-scheme: dark) {:root {"
            + _variables(DARK, methods)
            + "}}",
            *(_rules(index) for index in range(methods)),
        ]
    )


def _variables(colours: Sequence[str], methods: int) -> str:
    return "".join(f"--m{i}: {colours[i % len(colours)]};" for i in range(methods))


def _rules(index: int) -> str:
    # After eight methods the colours come round again, each with another dash.
    turn = index // len(LIGHT)
    dash = DASHES[(index + turn) % len(DASHES)] or "none"
    return (
        f".m{index} {{--c: var(--m{index}); --dash: {dash};}}\n"
        f".hide-m{index} .toggled.m{index} {{display: none;}}"
    )
