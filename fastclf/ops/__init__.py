"""Native operations with their checks; each has a plain twin in `reference` that serves where no native module runs."""

from fastclf.ops.backend import Backend, backend, describe, use_backend
from fastclf.ops.head import HeadEngine, predict
from fastclf.ops.head_spec import HeadBlock, HeadLoss, HeadRates, HeadSpec
from fastclf.ops.rows import dropout_mask, gather_rows

__all__ = [
    "Backend",
    "HeadBlock",
    "HeadEngine",
    "HeadLoss",
    "HeadRates",
    "HeadSpec",
    "backend",
    "describe",
    "dropout_mask",
    "gather_rows",
    "predict",
    "use_backend",
]
