"""Activations of several bodies as one matrix."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf import files
from fastclf.arrays import mapped
from fastclf.errors import ActivationFileError
from fastclf.report import warn

_AT_ONCE = 4096  # rows


def side_by_side(parts: Sequence[Any], folders: Sequence[Path]) -> NDArray[Any]:
    """Put rows of several bodies beside each other, ``[N, F_1 + F_2 + ...]``, mapped from a file without a name.

    The file takes no memory that the system could not take back, and is gone when the last user of the rows is. The
    rows themselves are kept by body, so copying them again is all that another process has to do.

    Args:
        parts: rows ``[N, F_k]`` of one type.
        folders: where the file is written, the first that takes it.

    Raises:
        ActivationFileError: none takes it.
    """
    shape = len(parts[0]), sum(part.shape[1] for part in parts)
    for folder in folders:
        try:
            files.on_disk(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            # Written, not mapped for writing: a full disk is then an error, and no fatal signal.
            with tempfile.TemporaryFile(dir=folder) as file:
                for first in range(0, shape[0], _AT_ONCE):
                    block = slice(first, min(first + _AT_ONCE, shape[0]))
                    file.write(np.concatenate([part[block] for part in parts], 1).data)
                file.flush()
                return mapped(lambda mode: np.memmap(file, parts[0].dtype, mode, shape=shape))
        except OSError as error:
            warn(f"activations of several bodies are not kept in {folder}: {error.strerror or error}")
    size = shape[0] * shape[1] * parts[0].dtype.itemsize
    raise ActivationFileError(
        f"activations of several bodies need {size:,} bytes, and no folder takes them (see the warnings). Free disk "
        "space, or keep the data on a larger disk."
    )
