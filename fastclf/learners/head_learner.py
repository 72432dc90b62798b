"""The learner for activations, and what it shares with the one for images: a new head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.stream import row_blocks
from fastclf.learners.auditing import Auditing
from fastclf.learners.fine_tuning import FineTuning
from fastclf.models.head import FINALS, Head, check_custom_head
from fastclf.settings import own_settings
from fastclf.training.inputs import check_data
from fastclf.training.losses import constant_logits
from fastclf.training.metrics import Metric, accuracy, mean_average_precision


class LearnerWithHead(Auditing, FineTuning):
    """A learner whose last group is a new head.

    Saves and loads whole networks and heads alone under the same tensor names, ``head.*`` for the head's.
    """

    _heads = 1

    def _features(self, call: str, images: Any) -> tuple[list[str], Tensor]:
        columns = self._columns()
        rows = np.concatenate([np.asarray(block) for block in row_blocks(images, columns)])
        return [f"row {i}" for i in range(len(rows))], torch.from_numpy(rows.astype(np.float32))

    def _class_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        if not isinstance(self.head, Head):
            return super()._class_tensors(tensors)
        last = len(self.head.layers) - 1
        return [f"head.layers.{last}.weight", f"head.layers.{last}.bias"]

    def _target_of(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        if all(name.startswith("head.") for name in tensors):
            return self.head, {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
        return super()._target_of(tensors)


class HeadLearner(LearnerWithHead):
    """A head alone, on activations that came from elsewhere.

    Args:
        data: rows ``[N, F]``: see `ImageClassifierData.from_arrays`.
        ps, xtra_fc, custom_head, metrics, seed: see `ConvLearner.pretrained`.
        **kwargs: ``crit``, ``class_weights``, ``opt_fn``, ``clip``, ``precision``, ``models_name``, see `Learner`.
    """

    @own_settings()
    def __init__(
        self,
        data: ImageClassifierData,
        *,
        ps: float | Sequence[float] | None = None,
        xtra_fc: Sequence[int] | None = None,
        custom_head: nn.Module | None = None,
        metrics: Sequence[Metric] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_data("HeadLearner", data)
        rows = data.trn_ds.rows
        if rows is None:
            raise ValueError("HeadLearner: data holds images, not activations [N, F]; use ConvLearner.pretrained")
        head = make_head(data, rows.shape[1], ps, xtra_fc, custom_head, seed)
        super().__init__(data, head, [head], metrics=metrics_for(data, metrics), seed=seed, **kwargs)

    @property
    def head(self) -> nn.Module:
        """What trains: the whole model."""
        return self.model

    def _state(self) -> dict[str, Tensor]:
        return {f"head.{name}": tensor for name, tensor in super()._state().items()}

    def _target_of(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        return super()._target_of({name: t for name, t in tensors.items() if name.startswith("head.")})

    def _info(self) -> dict[str, Any]:
        return super()._info() | describe_head(self.head)


def make_head(
    data: ImageClassifierData,
    n_in: int,
    ps: float | Sequence[float] | None,
    xtra_fc: Sequence[int] | None,
    custom_head: nn.Module | None,
    seed: int | None,
) -> nn.Module:
    """Make the head for a body of ``n_in`` features, or check the user's; arguments as in `ConvLearner.pretrained`."""
    final = FINALS[data.trn_ds.labels.kind]
    if custom_head is None:
        seed = data.seed if seed is None else seed
        bias = constant_logits(data.trn_ds.labels)
        return Head(n_in, data.c, ps=ps, xtra_fc=xtra_fc, final=final, seed=seed, bias=bias)
    if ps is not None or xtra_fc is not None:
        raise ValueError("custom_head replaces the whole head: leave ps and xtra_fc out")
    check_custom_head(custom_head, n_in, data.c, final)
    return custom_head


def metrics_for(data: ImageClassifierData, metrics: Sequence[Metric] | None) -> Sequence[Metric]:
    """Return the metrics of a learner: those given, or the usual one for the labels."""
    if metrics is not None:
        return metrics
    return [] if data.is_reg else [mean_average_precision if data.is_multi else accuracy]


def describe_head(head: nn.Module) -> dict[str, Any]:
    """Return what a saved model says of its head."""
    if not isinstance(head, Head):
        return {"head": type(head).__name__}
    return {"head": {"n_in": head.n_in, "c": head.c, "ps": head.ps, "xtra_fc": head.widths}}
