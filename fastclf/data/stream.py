"""What stands for images, of any number, in files or as pixels, and blocks of them that are served together."""

from __future__ import annotations

import glob
import io
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.bad_images import BadImages
from fastclf.data.dataset import Dataset
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.labels import Labels
from fastclf.data.sources.listing import find_files, images_in
from fastclf.data.sources.source import Source, Version
from fastclf.data.validation.verified import image_suffix, reason
from fastclf.interop import is_missing, numpy_of
from fastclf.interrupts import finaliser
from fastclf.paths import given_path, system_name, temporary_folder, too_long, utf8_name

_BATCHES = 64  # of a block
_PIXELS = 1 << 26  # of a block of images in memory, unless one batch alone has more
_ROWS = 1 << 14  # of activations, of a block
_NO_NAME = "no name of a file"
_ROOT = Path("/")  # files from anywhere make one data set


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: of its file; None for pixels without one.
        pixels: `[H, W, 3]` uint8, or float32 in 0..1; None where they are in the file.
        why: why it cannot be decoded, where that is known; else empty.
        copy: the file that holds it, where the name is that of an archive or a table, and a place in it.
    """

    name: str | None
    pixels: npt.NDArray[Any] | None = None
    why: str = ""
    copy: _Copy | None = None

    @property
    def file(self) -> str:
        """The file to read."""
        return (self.name or "") if self.copy is None else self.copy.path

    @property
    def kind(self) -> str:
        """What a block has one of: files, bytes or floats."""
        return "files" if self.pixels is None else str(self.pixels.dtype)


class _Copy:
    """An encoded image in a file of its own, which goes with this object."""

    def __init__(self, content: bytes, suffix: str) -> None:
        handle, self.path = tempfile.mkstemp(suffix, dir=_folder_of_copies())
        with os.fdopen(handle, "wb") as file:
            file.write(content)

    def _remove(self) -> None:
        with suppress(OSError, AttributeError):
            Path(self.path).unlink()

    __del__ = finaliser(_remove)


@cache
def _folder_of_copies() -> Path:
    return temporary_folder()


def _of_source(source: Source) -> Iterator[Item]:
    """Yield the images of a source; decoders read files, so that others are copied, a block at a time."""
    for row in range(len(source)):
        name = source.name(row)
        if source.has_paths:
            yield Item(source.path(row))
            continue
        try:
            yield Item(name, copy=_Copy(source.read(row), image_suffix(name)))
        except OSError as error:
            yield Item(name, why=reason(error))


def items(x: Any) -> list[Item] | Iterator[Item]:
    """Return the images that ``x`` stands for, see `fastclf.predictor.Classifier.predict`.

    A list where they are files that are known at once, else an iterator.

    Raises:
        FileNotFoundError: there is no such file or folder, or no image in it.
        TypeError: it is nothing that stands for images.
        ValueError: pixels of another shape or range.
    """
    if isinstance(x, str | os.PathLike):
        names = list(_files(os.fsdecode(x)))
        if not os.path.lexists(names[0]):
            advice = "Download it first." if "://" in names[0] else "Check the path."
            raise FileNotFoundError(f"predict: there is no file or folder {names[0]!r}. {advice}")
        return [Item(name) for name in names]
    if isinstance(x, Source) and x.values is None:
        return _of_source(x)
    if isinstance(x, list | tuple) and all(isinstance(one, str | os.PathLike) for one in x):
        return list(_inner(x))
    return _inner(x)


def _inner(x: Any) -> Iterator[Item]:
    from PIL import Image

    if isinstance(x, str | os.PathLike):
        name = str(os.fsdecode(x))  # numpy's text too
        why = _why_no_file(name)
        yield from [Item(name or None, why=why)] if why else map(Item, _files(name))
    elif isinstance(x, Image.Image):
        yield _of_image(x)
    elif isinstance(x, torch.Tensor):
        yield from _of_array(numpy_of(_channels_last(x)))
    elif isinstance(x, np.ndarray) and x.dtype.kind not in "OUS":
        yield from _of_array(numpy_of(x))
    elif isinstance(x, Mapping | bytes) or hasattr(x, "columns") or hasattr(x, "read") or not isinstance(x, Iterable):
        raise TypeError(
            "predict: x must be a folder, file names, a glob, PIL images, arrays, tensors, a column of a data frame, "
            f"or an iterable of them, got {type(x).__name__}.{_remedy(x)}"
        )
    else:
        for one in x:
            yield from [Item(None, why=_NO_NAME)] if is_missing(one) else _inner(one)


def _remedy(x: Any) -> str:
    if isinstance(x, bytes):
        return " Pass PIL.Image.open(io.BytesIO(x))."
    if isinstance(x, io.TextIOBase):
        return " Of a list of file names pass the lines: x.read().splitlines()."
    ways = {
        "columns": "the column of the files, x[NAME]",
        "read": "PIL.Image.open(x)",
        "source": "x.source",
        "as_py": "the column of a table of pyarrow as column.to_pylist()",
    }
    return next((f" Pass {way}." for name, way in ways.items() if hasattr(x, name)), "")


def _why_no_file(name: str) -> str:
    if not name:
        return _NO_NAME
    return "a zero byte in its name" if "\0" in name else too_long(name)


def _files(name: str) -> Iterable[str]:
    """Return the images of a folder, the files that a pattern matches, or the name itself."""
    folder = given_path(name)
    name = os.path.expanduser(system_name(name))  # noqa: PTH111  # what is returned stays as it is written else
    if folder.is_dir():
        found = find_files(folder, ".", allow_outside=True)
        return (str(found.place(inner)) for inner in images_in(found))
    if glob.has_magic(name) and not os.path.lexists(name):
        matches = [path for path in sorted(glob.glob(name, recursive=True)) if Path(path).is_file()]  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(f"predict: no file matches {name!r}. Check the pattern.")
        return matches
    return [name]


def _of_image(image: Any) -> Item:
    from fastclf.data.decode.worker import BadFileError, upright_rgb

    name = getattr(image, "filename", "") or None
    name = None if name is None else os.fsdecode(name)
    try:  # PIL decodes an image when its pixels are asked for
        return Item(name, upright_rgb(image))
    except (BadFileError, OSError, SyntaxError, ValueError) as error:
        return Item(name, why=str(error))


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-3, -1) if x.ndim in (3, 4) and x.shape[-3] in (1, 3, 4) else x


def _of_array(x: npt.NDArray[Any]) -> Iterator[Item]:
    """Yield the images of `[H, W]`, `[H, W, C]` or `[N, H, W, C]`; of C = 1, 3 or 4."""
    images = x[None, :, :, None] if x.ndim == 2 else x[None] if x.ndim == 3 else x
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape[1:]:
        raise ValueError(
            f"predict: images must be [H, W, 3] or [N, H, W, 3], tensors [3, H, W] or [N, 3, H, W], grey [H, W], got "
            f"{list(x.shape)}."
        )
    if images.dtype.kind != "f" and images.dtype != np.uint8:
        raise ValueError(f"predict: images must be uint8, or floats in 0..1, got {images.dtype}. Convert them.")
    for image in images:
        pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
        if pixels.dtype != np.uint8:
            low, high = pixels.min(), pixels.max()
            if not (low >= 0 and high <= 1):  # NaN is neither
                raise ValueError(
                    f"predict: images of floats must be in 0..1, got {low:g}..{high:g}. Pass them as they are, neither "
                    "normalised nor resized; of 0..255, as uint8."
                )
            pixels = pixels.astype(np.float32, copy=False)
        yield Item(None, np.ascontiguousarray(pixels))


class ImageList(list[npt.NDArray[Any]]):
    """Images of several sizes, which say of themselves what an array `[N, H, W, 3]` of them would.

    Attributes:
        ndim: 4.
        shape: as if all were as large as the largest.
        dtype: of all.
    """

    ndim = 4

    def __init__(self, images: Iterable[npt.NDArray[Any]]) -> None:
        super().__init__(images)
        largest = max((image.shape[:2] for image in self), key=math.prod)
        self.shape = (len(self), *largest, 3)
        self.dtype = self[0].dtype


class PixelSource(Source):
    """Images in memory, of several sizes."""

    def __init__(self, images: ImageList) -> None:
        super().__init__(_ROOT, ())
        self.values = images  # type: ignore[assignment]
        self._n = len(images)

    def __len__(self) -> int:
        return self._n

    def stat(self, row: int) -> Version:
        """See `Source.stat`; pixels do not change."""
        return Version(0, 0, 0)

    def read(self, row: int) -> bytes:
        """Raise: there are no encoded images."""
        raise OSError(f"image {row} is not encoded")


@dataclass
class ImageBlock:
    """Some images, one after another, that are served together: of one kind, in whole batches but for the last."""

    items: list[Item] = field(default_factory=list)
    pixels: int = 0

    def takes(self, item: Item, batch_size: int) -> bool:
        """Return whether an image may follow."""
        if not self.items:
            return True
        whole = len(self.items) % batch_size == 0
        full = whole and (len(self.items) >= _BATCHES * batch_size or self.pixels >= _PIXELS)
        return not full and item.kind == self.items[-1].kind

    def add(self, item: Item) -> None:
        """Add an image."""
        self.items.append(item)
        self.pixels += 0 if item.pixels is None else item.pixels.shape[0] * item.pixels.shape[1]

    def dataset(self) -> Dataset:
        """Return the images as a data set, without labels; those that are known to be bad are noted in it."""
        n = len(self.items)
        labels = Labels(np.zeros(n, np.int64), [], known=False)
        images = [item.pixels for item in self.items if item.pixels is not None]
        if images:
            source: Source = PixelSource(ImageList(images))
        else:
            names = [utf8_name(os.path.abspath(item.file)[1:]) for item in self.items]  # noqa: PTH100  # links stay
            source = FileSource(_ROOT, names)
        bad = _Noted(source)
        bad.note({row: item.why for row, item in enumerate(self.items) if item.why})
        return Dataset(source, labels, bad=bad)


class _Noted(BadImages):
    """Bad images of a block: whoever predicts says what becomes of them."""

    def note(self, found: Mapping[int, str]) -> None:
        self.reasons.update(found)


def blocks(found: Iterable[Item], batch_size: int) -> Iterator[ImageBlock]:
    """Yield images in blocks."""
    block = ImageBlock()
    for item in found:
        if not block.takes(item, batch_size):
            yield block
            block = ImageBlock()
        block.add(item)
    if block.items:
        yield block


def row_blocks(x: Any, n_in: int | None) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks ``[n, n_in]`` of rows of activations: of one array or tensor, or of an iterable of rows or blocks.

    Args:
        x: these rows.
        n_in: how many columns they must have; None for any number.

    Raises:
        ValueError: they have another number of columns, or numbers that are not finite.
    """
    if isinstance(x, torch.Tensor):
        x = numpy_of(x)
    if isinstance(x, np.ndarray):
        rows = x[None] if x.ndim == 1 else x
        if rows.ndim != 2 or n_in not in (None, rows.shape[1]) or rows.dtype.kind != "f":
            wanted = "N, F" if n_in is None else f"N, {n_in}"
            raise ValueError(f"predict: x must be activations [{wanted}] of floats, got {list(x.shape)} {x.dtype}.")
        for start in range(0, len(rows), _ROWS):
            block = np.ascontiguousarray(rows[start : start + _ROWS])
            block = block if block.dtype in (np.float16, np.float32) else block.astype(np.float32)
            if not np.isfinite(block).all():
                raise ValueError("predict: activations must be finite numbers, got NaN or infinity.")
            yield block
    elif isinstance(x, str | bytes | Mapping) or not isinstance(x, Iterable):
        raise TypeError(f"predict: the model takes activations [N, {n_in}], got {type(x).__name__}.")
    else:
        for one in x:
            yield from row_blocks(np.asarray(one), n_in)
