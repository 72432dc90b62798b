"""One picture at a time, through the same graph as the loaders."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.arrays import pixels_hint
from fastclf.data.transforms.sampling import Split, draw
from fastclf.data.transforms.spec import Transforms
from fastclf.data.validation.bad_images import MAX_PIXELS
from fastclf.data.validation.verified import CHANGED, VerifiedFiles
from fastclf.errors import BackendError, BadImageError
from fastclf.files import user_cache

if TYPE_CHECKING:
    from PIL import Image

    from fastclf.data.decode.renderer import BatchMaker


def open_image(fn: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Decodes one picture.

    Args:
        fn: the file.

    Returns:
        `[H, W, 3] float32` RGB in 0..1, EXIF orientation applied.

    Raises:
        FileNotFoundError: when there is no such file.
        BadImageError: when it cannot be decoded.
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
        except RuntimeError as error:
            failure = error
    raise BackendError(f"open_image: DALI failed on {file}: {failure}") from failure


@functools.lru_cache(maxsize=1)
def _opened(_cache: Path) -> VerifiedFiles:
    """All files that `open_image` has been asked for, while the user's cache folder is the same."""
    return VerifiedFiles(Path("/"), 1)


def transform_image(
    tfms: Transforms, picture: npt.NDArray[Any] | Image.Image, *, seed: int, epoch: int, row: int
) -> npt.NDArray[np.float32]:
    """Transforms one picture, see `Transforms.__call__`."""
    from PIL import Image

    if isinstance(picture, str | os.PathLike):
        raise ValueError(f"Transforms: picture must be pixels, got the file name {picture!r}. Pass open_image(fn).")
    picture = _pixels(picture) if isinstance(picture, Image.Image) else np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"Transforms: picture must be [H, W, 3], got {list(picture.shape)}. Pass one picture, as from open_image."
        )
    if picture.dtype != np.uint8 and picture.dtype.kind not in "fb":
        raise ValueError(
            f"Transforms: picture must be uint8, or float in 0..1, got {picture.dtype}. " + pixels_hint(picture.dtype)
        )
    if picture.dtype != np.uint8:
        picture = np.ascontiguousarray(picture, np.float32)
        low, high = picture.min(), picture.max()
        if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1):
            raise ValueError(f"Transforms: picture of floats must be in 0..1, got {low:g}..{high:g}. Divide by 255.")
    maker = _maker(tfms, picture.dtype == np.uint8)
    maker.feed(
        [np.ascontiguousarray(picture)],
        draw(tfms, seed, epoch, Split.TRAIN, np.array([row])),
        [picture.shape[0] * picture.shape[1]],
    )
    return maker.take()[0].numpy()


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of a PIL image, as `open_image` reads them from a file."""
    from fastclf.data.decode.worker import BadFileError, upright_rgb

    try:
        return upright_rgb(image)
    except BadFileError as error:
        raise ValueError(f"Transforms: a PIL image of mode {image.mode} has {error}. Convert it to RGB.") from error


@functools.lru_cache(maxsize=8)
def _maker(tfms: Transforms, as_bytes: bool) -> BatchMaker:
    from fastclf.data.decode.graphs import Source
    from fastclf.data.decode.renderer import batch_maker

    source = Source(files=False, top=255.0 if as_bytes else 1.0)
    return batch_maker(tfms, source, 1, 1)
