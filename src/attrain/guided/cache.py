"""Masks of samples that are seen again, kept for some of their visits."""

import torch
from torch import Tensor

from attrain.errors import InputError


class MaskCache:
    """The last mask of each sample, and how often the sample was seen.

    Held on the device of the masks: a byte per feature of every sample.
    """

    def __init__(self, refresh: int) -> None:
        self.refresh = refresh
        self.masks = torch.empty(0, dtype=torch.bool)
        self.visits = torch.empty(0, dtype=torch.long)

    def due(self, index: Tensor, shape: torch.Size) -> Tensor:
        """Return of which samples `index` [N], of features `shape`, the mask is due."""
        self._hold(int(index.max()) + 1, shape, index.device)
        return self.visits[index] % self.refresh == 0

    def see(self, index: Tensor) -> None:
        """Count a visit of samples `index` [N]."""
        self.visits[index] += 1

    def put(self, index: Tensor, masks: Tensor) -> None:
        """Keep the masks [n, ...] of samples `index` [n]."""
        self.masks[index] = masks

    def get(self, index: Tensor) -> Tensor:
        """Return the masks [N, ...] of samples `index` [N]."""
        return self.masks[index]

    def _hold(self, samples: int, shape: torch.Size, device: torch.device) -> None:
        if not len(self.visits):
            self.masks = torch.empty((0, *shape), dtype=torch.bool, device=device)
            self.visits = self.visits.to(device)
        if self.masks.shape[1:] != shape:
            raise InputError(
                f"refresh={self.refresh} keeps masks of shape {list(self.masks.shape[1:])}, and "
                f"these samples have {list(shape)}: give all samples one shape, or refresh=1."
            )
        missing = samples - len(self.visits)
        if missing > 0:
            more = max(missing, len(self.visits))
            self.masks = torch.cat([self.masks, self.masks.new_zeros((more, *shape))])
            self.visits = torch.cat([self.visits, self.visits.new_zeros(more)])
