"""Names of array types, each for one kind of content."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Floats32: TypeAlias = NDArray[np.float32]
Flags: TypeAlias = NDArray[np.bool_]
RowNumbers: TypeAlias = NDArray[np.int64]
