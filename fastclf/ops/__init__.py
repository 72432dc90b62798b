"""Native operations with their checks; each has a plain twin in `reference` that serves where no native module runs."""

from fastclf.ops.backend import Backend, backend, native_description, use_backend
from fastclf.ops.rows import dropout_mask, gather_rows

__all__ = ["Backend", "backend", "dropout_mask", "gather_rows", "native_description", "use_backend"]
