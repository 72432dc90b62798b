"""Windows of pictures, drawn by the native module on the processor: resized, turned, lit and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.errors import BackendError
from fastclf.ops.registry import Backend, address, backend, operation

_MOST = 1 << 14  # rows and columns
_FARTHEST = 1 << 29  # positions are whole numbers of 32 bits


@dataclass(frozen=True)
class Windows:
    """What is drawn of N pictures.

    Attributes:
        part: `[N, 4] float32`, top, left, bottom and right of what is seen, in the picture's own pixels.
        size: `[N, 2] int64`, the rows and columns that the part is resized to.
        matrix: `[N, 2, 3] float32`, from positions (x, y) in the window to positions in the resized part, where pixel
            0 reaches from 0 to 1; beyond the part it is mirrored. None where the resized part is the window.
        light: `[N, L, 2] float32`, L changes of light, each a brightness and a contrast, see `RandomLighting`.
    """

    part: npt.NDArray[np.float32]
    size: npt.NDArray[np.int64]
    matrix: npt.NDArray[np.float32] | None
    light: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """What all windows share.

    Attributes:
        sz: side of the window in pixels.
        top: the value of full white.
        mean: what is subtracted, per channel, of values 0..1.
        std: what is divided by, per channel.
    """

    sz: int
    top: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def can_draw() -> bool:
    """Tells whether `draw_windows` runs here: it has no plain twin, since DALI does the same."""
    return backend() is Backend.NATIVE


def draw_windows(
    pictures: Sequence[npt.NDArray[Any]], windows: Windows, canvas: Canvas, out: torch.Tensor, threads: int
) -> None:
    """Draws windows: one antialiased resampling of the part, with a matrix one bilinear resampling more, then light.

    A value of the resized part is the mean of the picture under a triangle as wide as the step from one value to the
    next, at least two pixels; the outermost pixels go on outside the picture. Every number of threads gives the same.

    Args:
        pictures: `[H, W, 3] uint8 | float32`, one dtype, contiguous.
        windows: what is drawn of each.
        canvas: what they share.
        out: `[N, 3, sz, sz] float32`, contiguous, on the CPU.
        threads: how many draw.

    Raises:
        ValueError: a shape, dtype, layout or value is not as above.
    """
    n, sz = len(pictures), canvas.sz
    light = _checked("light", windows.light, np.float32, (n, None, 2))
    part = _checked("part", windows.part, np.float32, (n, 4))
    size = _checked("size", windows.size, np.int64, (n, 2))
    matrix = None if windows.matrix is None else _checked("matrix", windows.matrix, np.float32, (n, 2, 3))
    if (part[:, 2:] <= part[:, :2]).any() or (size < 1).any() or (size > _MOST).any():
        raise ValueError(f"draw_windows: part must not be empty, size from 1 to {_MOST}. Check where they come from.")
    if matrix is None and (size != sz).any():
        raise ValueError(f"draw_windows: size must be {sz} without a matrix, got {size.tolist()}. Pass a matrix.")
    if out.shape != (n, 3, sz, sz) or out.dtype != torch.float32 or not out.is_contiguous() or out.device.type != "cpu":
        raise ValueError(f"draw_windows: out must be contiguous float32 [{n}, 3, {sz}, {sz}], got {list(out.shape)}.")
    dtypes = {picture.dtype for picture in pictures}
    if len(dtypes) > 1 or not dtypes <= {np.dtype(np.uint8), np.dtype(np.float32)}:
        raise ValueError(f"draw_windows: pictures must all be uint8 or all float32, got {dtypes}. Convert them.")
    if any(p.ndim != 3 or p.shape[2] != 3 or 0 in p.shape or not p.flags.c_contiguous for p in pictures):
        raise ValueError("draw_windows: pictures must be contiguous [H, W, 3]. Pass np.ascontiguousarray(picture).")
    src = np.array([picture.ctypes.data for picture in pictures], np.uint64)
    shape = np.array([picture.shape[:2] for picture in pictures], np.int64).reshape(n, 2)
    if (part[:, :2] < -shape).any() or (part[:, 2:] > 2 * shape).any():
        raise ValueError("draw_windows: part must lie within a picture's size of the picture. Check how it was placed.")
    if matrix is not None and np.abs(matrix).max(initial=0) * (2 * sz + 1) > _FARTHEST:
        raise ValueError(f"draw_windows: matrix must keep positions below {_FARTHEST}. Check how it was made.")
    _render(
        out,
        {
            "src": address(src),
            "shape": address(shape),
            "bytes": np.dtype(np.uint8) in dtypes,
            "crop": address(part),
            "size": address(size),
            "matrix": address(matrix),
            "lighting": address(light),
            "n": n,
            "lightings": light.shape[1],
            "sz": sz,
            "top": canvas.top,
            "mean": canvas.mean,
            "std": canvas.std,
        },
        threads,
    )


@operation
def _render(out: torch.Tensor, fields: dict[str, Any], threads: int) -> None:
    raise BackendError("crop_resize: there is no reference implementation, since DALI does the same. Use a DALI graph.")


@_render.cpu
def _(native: ModuleType, out: torch.Tensor, fields: dict[str, Any], threads: int) -> None:
    native.crop_resize(**fields, out=out.data_ptr(), threads=threads)


def _checked(name: str, values: npt.NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    fits = values.ndim == len(shape) and all(want in (None, got) for got, want in zip(values.shape, shape, strict=True))
    if values.dtype != dtype or not fits or not np.isfinite(values).all():
        raise ValueError(
            f"draw_windows: {name} must be finite {np.dtype(dtype)} {list(shape)}, got {values.dtype} "
            f"{list(values.shape)}. Pass one entry per picture."
        )
    return np.ascontiguousarray(values)
