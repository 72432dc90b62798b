"""Everything that fastclf raises on purpose.

FastclfError
├── DataError (also a ValueError): a folder, table or array that cannot be used as it is
│   ├── BadImageError: images that cannot be decoded, each named with its reason
│   └── LabelError: labels, classes or rows of a table that do not fit
├── WeightsError: pretrained weights that cannot be had or do not fit the architecture
├── ActivationFileError: a file of cached activations that is damaged or does not belong here
├── CheckpointError: a saved model that is damaged or does not fit
├── ExportError: a network that cannot be written as one file, ONNX or pt2
├── GpuMemoryError: a batch is too large for the GPU's memory
├── DivergedError: training ran into numbers that are not finite
└── BackendError: DALI or the native module is missing, or was built for something else

What a caller passes wrongly raises a plain ``ValueError`` or ``TypeError`` that names the argument.
"""

from __future__ import annotations

from collections.abc import Mapping


class FastclfError(Exception):
    """Root of the tree above."""


class DataError(FastclfError, ValueError):
    """A folder, table or array cannot be used as it is."""


class BadImageError(DataError):
    """Images that cannot be decoded.

    Attributes:
        reasons: file name -> why it could not be decoded.
    """

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class LabelError(DataError):
    """Labels, classes or rows of a table do not fit."""


class WeightsError(FastclfError):
    """Pretrained weights cannot be had, or do not fit the architecture."""


class ActivationFileError(FastclfError):
    """A file of cached activations is damaged or does not belong to this data and model."""


class CheckpointError(FastclfError):
    """A saved model is damaged or does not fit."""


class DivergedError(FastclfError):
    """Training ran into numbers that are not finite."""


class ExportError(FastclfError):
    """A network cannot be written as one file that computes the same."""


class GpuMemoryError(FastclfError):
    """A batch is too large for the GPU's memory."""


class BackendError(FastclfError):
    """DALI or the native module is missing, or was built for another machine."""
