"""How a learner predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastclf.argument_checks import check_count, check_flag
from fastclf.arrays import Array
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.loader import Loader
from fastclf.decision import Decision
from fastclf.learners.stage import Stage
from fastclf.models.freezing import LayerGroups
from fastclf.training.forward import Crit, Objective, scores_of
from fastclf.training.inputs import as_batch
from fastclf.training.memory import explains_gpu_memory


class Predicting:
    """The part of `Learner` that predicts, and what all its parts know of it."""

    model: nn.Module
    groups: LayerGroups
    crit: Crit
    decision: Decision
    seed: int
    _data: ImageClassifierData

    @property
    def _stage(self) -> Stage:
        raise NotImplementedError

    @property
    def data(self) -> ImageClassifierData:
        """What fit, predict and the metrics work on now."""
        return self._stage.data

    @long_call(NOTHING_CHANGED)
    def predict(self, is_test: bool = False) -> Array:
        """Return log-probabilities (probabilities when several labels) ``[N, c]`` of the validation or test set.

        Rows are in the order of the set. NaN in rows whose images cannot be decoded and are skipped.

        Args:
            is_test: the test set instead of the validation set.
        """
        return self.predict_with_targs(is_test)[0]

    @long_call(NOTHING_CHANGED)
    def predict_with_targs(self, is_test: bool = False) -> tuple[Array, Array]:
        """Return what `predict` does, and the targets (zeros for a test set without labels).

        The target of a row without a prediction is -1 (NaN where targets are floats), so that `confusion_matrix`,
        `classification_report` and all metrics leave it out. ``data.val_y`` has the true ones.

        Args:
            is_test: the test set instead of the validation set.
        """
        loader = _set(self.data, is_test, "val_dl", "test_dl")
        return self._predict(self._stage.module, loader)

    @long_call(NOTHING_CHANGED)
    def predict_dl(self, dl: Any) -> Array:
        """Return predictions ``[N, c]`` for every row that a loader of images or of activations serves.

        Args:
            dl: such as ``data.val_dl``. ``data.trn_dl`` shuffles and augments, and its predictions come in that order;
                ``data.fix_dl`` serves the training set as it is, in the order of ``data.trn_y``.
        """
        if not isinstance(dl, Loader):
            raise ValueError(f"predict_dl: dl must be a loader such as data.val_dl, got a {type(dl).__name__}")
        return self._predict(self._module_for_loader(dl), dl)[0]

    @long_call(NOTHING_CHANGED)
    def predict_array(self, x: ArrayLike | Tensor) -> Array:
        """Return predictions ``[B, c]`` for transformed images ``[B, 3, h, w]``, or for activations ``[B, F]``.

        Args:
            x: an array or a tensor.

        Raises:
            ValueError: it is something else: one image, channels last, pixels that are not transformed.
        """
        batch = as_batch(x, self._data.tfms and self._data.tfms[1], self._columns())
        batch = batch.to(self._data.device, copy=True)  # a model may write into what it gets
        objective = Objective(self._module_for(batch.ndim), self.crit)
        objective.module.eval()
        with torch.inference_mode():
            scores = objective.scores(batch)
        return self.decision.outputs(objective, scores, several=self._data.is_multi)

    @long_call(NOTHING_CHANGED)
    def TTA(self, n_aug: int = 4, is_test: bool = False) -> tuple[Array, Array]:  # noqa: N802
        """Return predictions ``[1 + n_aug, N, c]`` for the images as they are and for augmented views, and the targets.

        Average probabilities: ``np.mean(np.exp(log_preds), 0)`` (one label), ``np.mean(preds, 0)`` (several). Rows
        without a prediction: as in `predict` and `predict_with_targs`.

        Args:
            n_aug: how many augmented views.
            is_test: the test set instead of the validation set.
        """
        check_count("TTA", "n_aug", n_aug, least=0)
        if self._data.has_rows:
            raise ValueError("TTA: needs images, and this data holds activations")
        plain = _set(self._data, is_test, "val_dl", "test_dl")
        augmented = _set(self._data, is_test, "aug_dl", "test_aug_dl")
        passes = [self._predict(self.model, plain)]
        passes += [self._predict(self.model, augmented, epoch) for epoch in range(n_aug)]
        # The last pass knows every image that has turned out to be bad meanwhile.
        return np.stack([predictions for predictions, _ in passes]), passes[-1][1]

    @explains_gpu_memory(trains=False)
    def _predict(self, module: nn.Module, dl: Any, epoch: int = 0) -> tuple[Array, Array]:
        objective = Objective(module, self.crit)
        scores, targets = scores_of(objective, dl, epoch)
        return self.decision.outputs(objective, scores, several=self._data.is_multi), targets.cpu().numpy()

    def _need_features(self, call: str) -> None:
        """Raise ValueError where there are no features that a head takes."""
        if not self.data.has_rows:
            first = "Set" if self.groups.frozen_to == len(self.groups) - 1 else "Call learn.freeze() and set"
            raise ValueError(f"{call}: needs cached activations. {first} learn.precompute = True first.")
        if not self._stage.has_features:
            raise ValueError(
                f"{call}: needs pooled features, and precompute holds the feature maps that group 1 trains on. "
                "Call learn.freeze() first."
            )

    def _columns(self) -> int | None:
        """Return how many columns the rows have that `predict_array` takes; None where it takes none."""
        rows = self._data.trn_ds.rows
        return None if rows is None else rows.shape[1]

    def _module_for(self, ndim: int) -> nn.Module:
        """Return the module that takes a batch of ``ndim`` dimensions."""
        return self.model

    def _module_for_loader(self, dl: Any) -> nn.Module:
        return self._module_for(2 if dl.ds.rows is not None else 4)


def _set(data: ImageClassifierData, is_test: bool, valid: str, test: str) -> Any:
    check_flag("predict", "is_test", is_test)
    loader = getattr(data, test if is_test else valid)
    if loader is None:
        raise ValueError("predict: is_test=True needs data with a test set: pass test_name= when making it")
    return loader
