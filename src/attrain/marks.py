"""What the engine remembers about a tensor while a model runs under credit."""

import weakref
from collections.abc import Callable
from enum import Enum, auto

from torch import Tensor


class Kind(Enum):
    """What a marked tensor stands for."""

    ACTIVATION = auto()
    PARAMETER = auto()  # computed from parameters alone: weight_norm, gamma.reshape(...)
    STATISTIC = auto()  # mean(f(z)) over some axes of z: may normalise z
    INVERSE = auto()  # 1 / a statistic of z: may do nothing but normalise
    NORM = auto()  # a statistic that is no linear map of its input: may do nothing but normalise
    CENTRED = auto()  # z - a mean of z
    DECISION = auto()  # boolean, from a comparison of a tensor that carries credit
    OBJECTIVE = auto()  # a loss: what follows is no part of the network


STATISTICS = (Kind.STATISTIC, Kind.INVERSE, Kind.NORM)

NO_ACTIVATIONS = (Kind.INVERSE, Kind.NORM)


class Mark:
    """Kind of a tensor, the stabiliser it still owes, and the tensor it is a function of.

    `epsilon` is the stabiliser (equation 6) of the linear map that made the tensor; the
    consumer applies it, because an activation that follows brings its own. `root` is the tensor
    that this one is an elementwise (or, for statistics, reduced) function of; None is itself;
    `curved` says that the function is no linear one, not even in parts.
    `source` is what a comparison compared. `raw` says that the tensor was made from parameters and
    constants alone, but not by a layer: it may be data that entered, or a weight being made.
    `audit` checks the graph behind the tensor once, when a reward is attached to it.
    """

    __slots__ = (
        "_root",
        "_version",
        "audit",
        "curved",
        "epsilon",
        "kind",
        "raw",
        "source",
    )

    def __init__(
        self,
        kind: Kind = Kind.ACTIVATION,
        epsilon: float = 0.0,
        root: Tensor | None = None,
        audit: Callable[[Tensor], None] | None = None,
        source: Tensor | None = None,
        curved: bool = False,
        raw: bool = False,
    ) -> None:
        self.kind = kind
        self.epsilon = epsilon
        self.audit = audit
        self.source = source
        self.curved = curved
        self.raw = raw
        self._version = 0 if root is None else root._version
        self._root = None if root is None else weakref.ref(root)

    def root(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor that `tensor` is a function of, None if it is gone or changed."""
        if self._root is None:
            return tensor
        root = self._root()
        return root if root is not None and root._version == self._version else None

    def as_raw(self) -> "Mark":
        """Return this mark for a tensor made from parameters and constants alone."""
        root = None if self._root is None else self._root()
        return Mark(self.kind, self.epsilon, root, self.audit, curved=self.curved, raw=True)


PARAMETER = Mark(Kind.PARAMETER)


def get(tensor: Tensor) -> Mark | None:
    """Return the mark of `tensor`, None where it has none."""
    return getattr(tensor, "_attrain", None)


def put(tensor: Tensor, mark: Mark) -> None:
    """Mark `tensor`."""
    tensor._attrain = mark  # type: ignore[attr-defined]


def source(tensor: Tensor) -> Tensor | None:
    """Return what the comparison `tensor` compared, None where it was more than one tensor."""
    mark = get(tensor)
    return None if mark is None else mark.source
