"""One image of a file, decoded as the loaders decode it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.bad_images import MAX_PIXELS
from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Source
from fastclf.data.validation.scan_cache import ScanCache, scan_cache
from fastclf.data.validation.verified import CHANGED, VerifiedImages
from fastclf.errors import BackendError, BadImageError
from fastclf.paths import given_path, user_cache, utf8_name


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
    if not isinstance(fn, str | os.PathLike):
        raise ValueError(
            f"open_image: fn must be the name of a file, got a {type(fn).__name__}. Transforms take pixels and PIL "
            "images as they are."
        )
    file = given_path(fn)
    if not file.exists():
        raise FileNotFoundError(f"open_image: there is no file {file}. Check the path.")
    source = FileSource(Path("/"), [utf8_name(os.path.abspath(file)[1:])])  # noqa: PTH100  # links stay
    return decoded(source, 0, str(file), _kept_cache(user_cache()))


@functools.lru_cache(maxsize=1)
def _kept_cache(_folder: Path) -> ScanCache:
    """Keep what is known of all files that `open_image` was given, while the user's cache folder is the same."""
    return scan_cache(Path("/"))


def decoded(source: Source, row: int, what: str = "", cache: ScanCache | None = None) -> npt.NDArray[Any]:
    """Return one image of a source, `[H, W, 3] float32` RGB in 0..1; of arrays as it is.

    Args:
        source: of images.
        row: which image.
        what: its name in messages; by default the one it has in the source.
        cache: of verdicts; by default that of the source's root.

    Raises:
        BadImageError: it cannot be decoded.
    """
    from fastclf.data.decode.graphs import decode

    if source.values is not None:
        image: npt.NDArray[Any] = source.values[row]
        return image
    what, images = what or source.name(row), VerifiedImages(source, 1, cache)
    for anew in (False, True):  # the copy of a file that Pillow has decoded may be lost
        bad = images.bad([row], MAX_PIXELS, anew=anew)
        if bad:
            why = bad[row].removesuffix(CHANGED)
            raise BadImageError(f"{what} cannot be decoded: {why}.", {what: why})
        try:
            return decode(images.encoded(row), by_path=source.has_paths).astype(np.float32) / np.float32(255)
        except DecodeError as error:
            failure = error
    raise BackendError(f"DALI failed on {what}: {failure}") from failure
