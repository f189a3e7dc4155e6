"""What a paired difference over seeds says of a claim, and how it is written."""

from collections.abc import Mapping
from typing import Any, Literal

Verdict = bool | Literal["unclear"]


def verdict(gap: Mapping[str, Any], sign: int = 1) -> Verdict:
    """Return whether a difference has this sign; "unclear" where its interval covers zero.

    gap: what `attrain.metrics.statistics.paired_difference` returns.
    """
    return gap["mean"] * sign > 0 if gap["clear"] else "unclear"


def no_worse(gap: Mapping[str, Any], margin: float, *, higher_is_better: bool = True) -> Verdict:
    """Return whether a difference is worse by less than a margin, in its own units.

    True where the whole interval is better than the margin, False where it is worse, else
    "unclear". gap: as in `verdict`.
    """
    if gap["low"] is None:
        return "unclear"
    ends = (gap["low"], gap["high"]) if higher_is_better else (-gap["high"], -gap["low"])
    if ends[0] > -margin:
        return True
    return False if ends[1] < -margin else "unclear"


def told(
    gap: Mapping[str, Any], *, scale: float = 1.0, digits: int = 2, unit: str = "",
    of: str = "seeds",
) -> str:  # fmt: skip
    """Return a difference with its 95% interval, as "+2.1 points (+1.0 to +3.2, 5 seeds)"."""
    if gap["mean"] is None:
        return f"undefined in one of {gap['n']} {of}"
    mean, *ends = (
        None if gap[key] is None else f"{scale * gap[key]:+.{digits}f}"
        for key in ("mean", "low", "high")
    )
    unit = f" {unit}" if unit else ""
    if ends[0] is None:
        return f"{mean}{unit}, one {of.removesuffix('s')}"
    return f"{mean}{unit} ({ends[0]} to {ends[1]}, {gap['n']} {of})"
