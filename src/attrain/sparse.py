"""Weights files that leave the zeros out: safetensors with torch's CSR layout."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attrain.errors import InputError, unknown
from attrain.runs import replacing

FORMAT = "csr-1"
LAYOUTS = ("dense", "csr")
_PARTS = ("values", "columns", "rows")
# Columns are stored in the narrowest of these that holds them.
_INDICES = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Size:
    """Bytes of a weights file, and of the same tensors written out whole."""

    file: int
    dense: int

    @property
    def ratio(self) -> float:
        """How many times smaller the file is."""
        return self.dense / self.file


def save_sparse(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> Size:
    """Write a state dict as safetensors without its zeros, in one step.

    A tensor of two or more axes is taken as a matrix [first axis, the others] and written in CSR
    form, where that is smaller: `NAME.values`, `NAME.columns` and `NAME.rows` hold what
    `torch.sparse_csr_tensor` calls values, col_indices and crow_indices. All others are written as
    they are. The metadata has the shapes. Reading gives back the same bits.

    Raises InputError for an entry that is no tensor, AttrainError when the file cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    dense = 0
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"state dict entry {name!r} is a {type(tensor).__name__}: "
                "a weights file holds tensors only."
            )
        tensor = tensor.detach().cpu().contiguous()
        dense += _bytes(tensor)
        parts = _compressed(tensor)
        if parts is None:
            tensors[name] = tensor.clone()  # safetensors refuses tensors that share memory
        else:
            shapes[name] = list(tensor.shape)
            tensors |= {f"{name}.{part}": parts[part] for part in _PARTS}
    content = save(tensors, {"format": "pt", "sparse": FORMAT, "shapes": json.dumps(shapes)})
    with replacing(path) as file:
        file.write(content)
    return Size(file=len(content), dense=dense)


def load_sparse(
    path: str | os.PathLike[str], layout: Literal["dense", "csr"] = "dense"
) -> dict[str, Tensor]:
    """Return the state dict in a file of `save_sparse`; a file without zeros left out goes too.

    With `layout="csr"` matrices that were compressed come as `torch.sparse_csr` tensors; those of
    convolutions, which have no such kernel, come dense. Raises InputError for an unknown layout and
    for a file that is missing, cut short or inconsistent.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", str(layout), LAYOUTS)
    tensors, shapes = _read(Path(path))
    state = {}
    for name, shape in shapes.items():
        try:
            values, columns, rows = (tensors.pop(f"{name}.{part}") for part in _PARTS)
            matrix = _matrix(rows.long(), columns.long(), values, shape)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{path} is inconsistent: {name} cannot be put together "
                f"({str(error).splitlines()[0]})."
            ) from error
        keep = layout == "csr" and len(shape) == 2
        state[name] = matrix if keep else _scattered(matrix).view(shape)
    return tensors | state


def is_sparse(path: str | os.PathLike[str]) -> bool:
    """Tell whether `path` is a file of `save_sparse`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return "sparse" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Return the tensors of a file, and the shapes of those that are stored in parts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a file of weights.") from None
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}): it may have been cut short."
        ) from error
    form = metadata.get("sparse", FORMAT)
    if form != FORMAT:
        raise InputError(
            f"{path} is in the sparse format {form!r}; this version of attrain reads {FORMAT!r}."
        )
    shapes: dict[str, list[int]] = json.loads(metadata.get("shapes", "{}"))
    return tensors, shapes


def _compressed(tensor: Tensor) -> dict[str, Tensor] | None:
    """Return the parts of a tensor in CSR form, or None where that is no smaller."""
    if tensor.ndim < 2 or not tensor.numel() or not tensor.is_floating_point():
        return None
    matrix = tensor.view(len(tensor), -1)
    # A negative zero is one of the values: otherwise its sign would be lost.
    kept = (matrix != 0) | torch.signbit(matrix)
    rows = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
    columns = kept.nonzero()[:, 1]
    parts = {
        "values": matrix[kept],
        "columns": columns.to(_narrowest(matrix.shape[1] - 1)),
        "rows": rows.to(_narrowest(int(rows[-1]))),
    }
    return parts if sum(map(_bytes, parts.values())) < _bytes(tensor) else None


def _matrix(rows: Tensor, columns: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    size = (shape[0], math.prod(shape[1:]))
    with warnings.catch_warnings():
        # Once per process torch says that the layout is in beta state.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=True)


def _scattered(matrix: Tensor) -> Tensor:
    """Return a CSR matrix written out; torch's own way would add -0.0 to 0.0, which is 0.0."""
    dense = torch.zeros(matrix.shape, dtype=matrix.dtype)
    counts = matrix.crow_indices().diff()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    dense[rows, matrix.col_indices()] = matrix.values()
    return dense


def _narrowest(largest: int) -> torch.dtype:
    return next(kind for kind in (*_INDICES, torch.int64) if largest <= torch.iinfo(kind).max)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
