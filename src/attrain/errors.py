"""What attrain raises when something a user can mend went wrong."""

from collections.abc import Iterable
from difflib import get_close_matches


class AttrainError(Exception):
    """Base of every error that attrain raises on purpose."""


class CreditError(AttrainError, RuntimeError):
    """Credit cannot be propagated through what the model does."""


class InputError(AttrainError, ValueError):
    """An argument, a tensor or a file is not what was wanted."""


class CreditWarning(UserWarning):
    """Credit flows, but probably not as the user expects."""


class AttributionWarning(UserWarning):
    """An attribution was computed, but probably does not mean what it seems to."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is no known `kind`, with the nearest known names."""
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(options)}.")
