"""Checks of what a user hands to `predict_array` and `fit`, and of batches that cannot train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.labels import Labels
from fastclf.data.transforms.spec import TransformSpec
from fastclf.report import counted, remedy

_REMEDY = "Pass tfms(open_image(fn))[None] with tfms = data.tfms[1]."
_MARGIN = 4  # times the range of transformed images: other mean and deviation stay below, pixels 0..255 do not


def as_batch(x: ArrayLike | Tensor, tfms: TransformSpec | None, columns: int | None) -> Tensor:
    """Return ``x`` as a float32 batch.

    Args:
        x: transformed images ``[B, 3, h, w]``, or rows of activations ``[B, F]``.
        tfms: the validation transforms; None where no images are taken.
        columns: F; None where no rows are taken.

    Raises:
        ValueError: it is something else, or images that have not been transformed; names the remedy.
    """
    try:
        batch = x if isinstance(x, Tensor) else torch.as_tensor(np.require(x, requirements="W"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise _refusal(tfms, columns, f"a {type(x).__name__}: {error}.") from error
    shape = f"{list(batch.shape)} {batch.dtype}".replace("torch.", "")
    if 0 in batch.shape[1:]:
        raise _refusal(tfms, columns, f"{shape}: there is nothing in them.")
    if batch.is_floating_point() and not batch.isfinite().all():
        raise _refusal(tfms, columns, f"{shape} with NaN or infinite values in it.")
    if batch.ndim == 2 and columns == batch.shape[1]:
        return batch.float()
    if tfms is None or batch.ndim != 4:
        raise _refusal(tfms, columns, f"{shape}.{_batch_hint(batch, tfms, columns)}")
    if batch.shape[1] != 3:
        where = " Channels come first, and images are transformed." if batch.shape[3] == 3 else ""
        raise _refusal(tfms, columns, f"{shape}.{where} {_REMEDY}")
    if not batch.is_floating_point():
        raise _refusal(tfms, columns, f"{shape}: these pixels are not transformed. {_REMEDY}")
    batch = batch.float()
    low, high = _range(tfms)
    if batch.numel() and (batch.min() < _MARGIN * low or batch.max() > _MARGIN * high):
        got = f"values of {float(batch.min()):g} to {float(batch.max()):g} instead of about {low:.1f} to {high:.1f}"
        raise _refusal(tfms, columns, f"{got}: these pixels are not transformed. {_REMEDY}")
    return batch


def _batch_hint(batch: Tensor, tfms: TransformSpec | None, columns: int | None) -> str:
    if tfms is not None and batch.ndim == 3:
        return " For one transformed image pass x[None]." if len(batch) == 3 else f" {_REMEDY}"
    return " For one row pass x[None]." if batch.ndim == 1 and columns == len(batch) else ""


def _range(tfms: TransformSpec) -> tuple[float, float]:
    """The lowest and the highest value of a transformed image."""
    pairs = list(zip(tfms.mean, tfms.std, strict=True))
    return min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)


def _refusal(tfms: TransformSpec | None, columns: int | None, got: str) -> ValueError:
    forms = ["transformed images [B, 3, h, w]"] if tfms is not None else []
    forms += [f"activations [B, {columns}]"] if columns is not None else []
    return ValueError(f"predict_array: x must be {' or '.join(forms)}, got {got}")


def check_data(call: str, data: object) -> None:
    """Raise ValueError unless data are those that a learner takes."""
    if not isinstance(data, ImageClassifierData):
        raise ValueError(f"{call}: data must be an ImageClassifierData, got a {type(data).__name__}")


def check_images(call: str, data: ImageClassifierData) -> None:
    """Raise ValueError where data hold activations, and images are needed."""
    if data.has_rows:
        raise ValueError(
            f"{call}: data holds activations, not images. So does learn.data under precompute: pass the data that the "
            "learner was made with. On activations of your own use HeadLearner(data)."
        )


def check_can_train(call: str, model: nn.Module) -> None:
    """Raise ValueError where a model has no weights yet, or was made inside ``torch.inference_mode()``.

    Torch never gives gradients to what was made there.
    """
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(f"{call}: model has lazy layers without weights. Send a batch through it first.")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(f"{call}: model was made inside torch.inference_mode(), and can never train. Make it outside.")


def check_batch_norm(module: nn.Module, loader: Any) -> None:
    """Raise ValueError where batches of one row meet a BatchNorm over rows that trains; modes are those of training."""
    if loader.bs == 1 and any(isinstance(layer, nn.BatchNorm1d) and layer.training for layer in module.modules()):
        raise ValueError(
            f"fit: bs=1 cannot train BatchNorm, which needs two rows in a batch, got "
            f"{counted(loader.n, 'training row')} in batches of one. "
            + remedy("Make the data with bs=2 or more, or call learn.bn_freeze(True).", "Pass --bs 2 or more.")
        )


def refuse_numbers(call: str, labels: Labels) -> None:
    """Raise ValueError where the labels are numbers, which heads on their own are not trained for."""
    if labels.is_reg:
        raise ValueError(f"{call}: the labels must be classes, got numbers to be predicted (a regression)")
