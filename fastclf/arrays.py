"""Names of array types, each for one kind of content, and maps of files of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Floats32: TypeAlias = NDArray[np.float32]
Flags: TypeAlias = NDArray[np.bool_]
RowNumbers: TypeAlias = NDArray[np.int64]


def mapped(open_map: Callable[[Literal["r", "c"]], Array]) -> Array:
    """Return ``open_map("r")``, a map that is only read; where the file system has no shared maps, a private one."""
    try:
        return open_map("r")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    rows = open_map("c")
    rows.flags.writeable = False
    return rows
