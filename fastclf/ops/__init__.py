"""All native code is called here: each operation with its checks and its reference implementation (`registry`)."""

from fastclf.ops.dropout import dropout_mask
from fastclf.ops.gather import gather_rows
from fastclf.ops.head.engine import HeadEngine, predict, train_together
from fastclf.ops.head.spec import HeadBlock, HeadRates, HeadSpec
from fastclf.ops.rates import rate
from fastclf.ops.registry import Backend, backend, describe, use_backend

__all__ = [
    "Backend",
    "HeadBlock",
    "HeadEngine",
    "HeadRates",
    "HeadSpec",
    "backend",
    "describe",
    "dropout_mask",
    "gather_rows",
    "predict",
    "rate",
    "train_together",
    "use_backend",
]
