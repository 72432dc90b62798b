"""What a learner trains and applies now."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.models.freezing import LayerGroups
from fastclf.models.net import Net
from fastclf.report import counted


@dataclass(frozen=True)
class Stage:
    """A module, its layer groups, and the data that it is fed.

    That is the whole network on images, the head on pooled features, or all layers after group 0 on feature maps.
    """

    module: nn.Module
    groups: LayerGroups
    data: ImageClassifierData

    @property
    def has_features(self) -> bool:
        """Whether the data are features, which a head takes."""
        return self.data.has_rows and not isinstance(self.module, Net)

    @property
    def batches(self) -> int:
        """Training batches of an epoch."""
        n = len(self.data.trn_dl)
        if n == 0:
            raise ValueError(f"fit: no training batch: {counted(self.data.trn_dl.n, 'training row')}, too few")
        return n
