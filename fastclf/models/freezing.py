"""Layer groups: which of them train, at which rate, and in which mode their layers run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class LayerGroups:
    """The groups of one network, first layers first; the last is the head.

    Making this object changes no parameter: what was frozen before stays so until `freeze_to`.

    Attributes:
        frozen_to: groups before this index are frozen: no gradients, and evaluation mode (BatchNorm uses and keeps
            its running statistics).
        bn_frozen: BatchNorm of trainable groups uses and keeps its running statistics too.
    """

    def __init__(self, groups: Sequence[nn.Module]) -> None:
        self.groups = list(groups)
        self.frozen_to = 0
        self.bn_frozen = False

    def __len__(self) -> int:
        return len(self.groups)

    def freeze_to(self, n: int) -> None:
        """Freezes groups before index ``n`` (negative: from the end) and makes the others trainable."""
        if not -len(self) <= n < len(self):
            raise ValueError(f"freeze_to: n must be a group's index, {-len(self)} to {len(self) - 1}, got {n}")
        self.frozen_to = n % len(self)
        for index, group in enumerate(self.groups):
            group.requires_grad_(index >= self.frozen_to)

    def set_modes(self) -> None:
        """Puts every layer into its mode for training; called again each epoch, since evaluation changes it."""
        for index, group in enumerate(self.groups):
            group.train(index >= self.frozen_to)
        if self.bn_frozen:
            for layer in chain.from_iterable(group.modules() for group in self.groups):
                if isinstance(layer, _NormBase):
                    layer.eval()

    def trainable(self) -> list[tuple[int, list[nn.Parameter]]]:
        """``(group index, its parameters)`` of every group that trains and has parameters."""
        pairs = [(index, list(group.parameters())) for index, group in enumerate(self.groups)]
        return [(index, parameters) for index, parameters in pairs if index >= self.frozen_to and parameters]

    def per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        """One value per group: a scalar serves all, an array must have as many values as there are groups."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0:
            array = np.full(len(self), float(array))
        if array.shape != (len(self),):
            raise ValueError(
                f"{name} must be one number or one per layer group ({len(self)} groups), got shape {array.shape}"
            )
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise ValueError(f"{name} must be finite and not negative, got {array.tolist()}")
        return array
