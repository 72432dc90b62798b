"""One image of a file, decoded as the loaders decode it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.validation.bad_images import MAX_PIXELS
from fastclf.data.validation.verified import CHANGED, VerifiedFiles
from fastclf.errors import BackendError, BadImageError
from fastclf.files import user_cache


def open_image(fn: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Decode one image.

    Args:
        fn: the file.

    Returns:
        `[H, W, 3] float32` RGB in 0..1, EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        BadImageError: it cannot be decoded.
    """
    from fastclf.data.decode.graphs import decode

    if not isinstance(fn, str | os.PathLike):
        raise ValueError(
            f"open_image: fn must be the name of a file, got a {type(fn).__name__}. Transforms take pixels and PIL "
            "images as they are."
        )
    file = Path(fn)
    if not file.exists():
        raise FileNotFoundError(f"open_image: there is no file {file}. Check the path.")
    name = os.path.abspath(file)[1:]  # noqa: PTH100  # links stay
    files = _opened(user_cache())
    for anew in (False, True):  # the copy of a file that Pillow has decoded may be lost
        bad = files.bad([name], MAX_PIXELS, anew=anew)
        if bad:
            why = bad[name].removesuffix(CHANGED)
            raise BadImageError(f"open_image: {file} cannot be decoded: {why}.", {str(file): why})
        try:
            return decode(files.file_of(name)).astype(np.float32) / np.float32(255)
        except DecodeError as error:
            failure = error
    raise BackendError(f"open_image: DALI failed on {file}: {failure}") from failure


@functools.lru_cache(maxsize=1)
def _opened(_cache: Path) -> VerifiedFiles:
    """All files that `open_image` has been asked for, while the user's cache folder is the same."""
    return VerifiedFiles(Path("/"), 1)
