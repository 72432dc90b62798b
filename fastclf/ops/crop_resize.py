"""Crops of images, resized, turned, changed in brightness and contrast, and normalised by the native modules."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fastclf.arrays import Floats32
from fastclf.errors import BackendError
from fastclf.ops.registry import (
    Backend,
    address,
    backend,
    current,
    has_cuda_kernels,
    operation,
    stream_of,
    to_device,
)

Image: TypeAlias = npt.NDArray[Any] | torch.Tensor
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_MOST = 1 << 14  # rows and columns
_BYTES = {np.dtype(np.uint8): True, torch.uint8: True, np.dtype(np.float32): False, torch.float32: False}
_FARTHEST = 1 << 29  # positions are whole numbers of 32 bits


class PixelOp(enum.IntEnum):
    """What can be done to the values of a finished crop, before it is normalised.

    BRIGHTNESS_CONTRAST takes two numbers b and c: clip((x - m) * c + m + b, 0, 1), m the mean of the crop.

    The same names and values stand in csrc/api.h.
    """

    BRIGHTNESS_CONTRAST = 0


_NUMBERS: dict[PixelOp, int | None] = {PixelOp.BRIGHTNESS_CONTRAST: 2}  # that each takes; None for any


@dataclass(frozen=True)
class Crops:
    """What is cut out of N images.

    Attributes:
        part: `[N, 4] float32`, top, left, bottom and right of what the crop covers, in the image's own pixels.
        size: `[N, 2] int64`, the rows and columns that the part is resized to.
        matrix: `[N, 2, 3] float32`, from positions (x, y) in the crop to positions in the resized part, where pixel
            0 reaches from 0 to 1; beyond the part it is mirrored. None where the resized part is the crop.
        pixel_ops: what is done to the values, in order, each with the numbers that it takes, `[N, k] float32`.
    """

    part: Floats32
    size: npt.NDArray[np.int64]
    matrix: Floats32 | None
    pixel_ops: Sequence[tuple[PixelOp, Floats32]] = ()


@dataclass(frozen=True)
class CropFormat:
    """What all crops of a batch share.

    Attributes:
        sz: side of the crop in pixels.
        white: the value of full white in the images.
        mean: what is subtracted, per channel, of values 0..1.
        std: what is divided by, per channel.
    """

    sz: int
    white: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def has_crop_resize(device: torch.device) -> bool:
    """Tell whether `crop_resize` runs on a device. It has no reference implementation, since DALI does the same."""
    return (device.type == "cpu" and backend() is Backend.NATIVE) or has_cuda_kernels(device)


def crop_resize(images: Sequence[Image], crops: Crops, form: CropFormat, out: torch.Tensor, threads: int) -> None:
    """Make crops: one antialiased resampling of the part, with a matrix one bilinear resampling more, then pixel ops.

    A value of the resized part is the mean of the image under a triangle as wide as the step from one value to the
    next, at least two pixels; the outermost pixels go on outside. Every number of threads gives the same. A GPU gives
    the same to rounding: it makes each sum in the same order, but for the mean of a crop.

    Args:
        images: `[H, W, 3] uint8 | float32`, one dtype, contiguous; where `out` is. Arrays are on the CPU.
        crops: what is cut out of each.
        form: what the crops share.
        out: `[N, 3, sz, sz] float32`, contiguous.
        threads: how many work; of no effect on a GPU.

    Raises:
        ValueError: a shape, dtype, layout, device or value is not as above.
    """
    n, sz = len(images), form.sz
    part = _checked("part", crops.part, np.float32, (n, 4))
    size = _checked("size", crops.size, np.int64, (n, 2))
    matrix = None if crops.matrix is None else _checked("matrix", crops.matrix, np.float32, (n, 2, 3))
    pixel_ops = np.array([op for op, _ in crops.pixel_ops], np.int64)
    numbers = _numbers(crops.pixel_ops, n)
    if (part[:, 2:] <= part[:, :2]).any() or (size < 1).any() or (size > _MOST).any():
        raise ValueError(f"crop_resize: part must not be empty, size from 1 to {_MOST}. Check where they come from.")
    if matrix is None and (size != sz).any():
        raise ValueError(f"crop_resize: size must be {sz} without a matrix, got {size.tolist()}. Pass a matrix.")
    if out.shape != (n, 3, sz, sz) or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"crop_resize: out must be contiguous float32 [{n}, 3, {sz}, {sz}], got {list(out.shape)}.")
    as_bytes = _are_bytes(images, out.device)
    shape = np.array([image.shape[:2] for image in images], np.int64).reshape(n, 2)
    if (part[:, :2] < -shape).any() or (part[:, 2:] > 2 * shape).any():
        raise ValueError("crop_resize: part must lie within an image's size of the image. Check how it was placed.")
    if matrix is not None and np.abs(matrix).max(initial=0) * (2 * sz + 1) > _FARTHEST:
        raise ValueError(f"crop_resize: matrix must keep positions below {_FARTHEST}. Check how it was made.")
    arrays = {
        "src": np.array([address(image) for image in images], np.uint64),
        "shape": shape,
        "crop": part,
        "size": size,
        "pixel_ops": pixel_ops,
        "numbers": numbers,
    }
    if matrix is not None:
        arrays["matrix"] = matrix
    values = {
        "matrix": 0,  # unless there is one
        "bytes": as_bytes,
        "n": n,
        "n_ops": numbers.shape[1],
        "width": numbers.shape[2],
        "sz": sz,
        "top": form.white,
        "mean": form.mean,
        "std": form.std,
    }
    _render(out, arrays, values, threads)


@operation
def _render(out: torch.Tensor, arrays: Arrays, values: dict[str, Any], threads: int) -> None:
    raise BackendError("crop_resize: there is no reference implementation, since DALI does the same. Use a DALI graph.")


@_render.cpu
def _(native: ModuleType, out: torch.Tensor, arrays: Arrays, values: dict[str, Any], threads: int) -> None:
    places = {name: address(array) for name, array in arrays.items()}
    native.crop_resize(**values | places, out=out.data_ptr(), threads=threads)


@_render.cuda
def _(native: ModuleType, out: torch.Tensor, arrays: Arrays, values: dict[str, Any], threads: int) -> None:
    packed, places = _on_device(arrays, out.device)
    width = _scratch_width(arrays["crop"], arrays["size"], moved="matrix" in arrays)
    scratch = torch.empty(values["n"], width, dtype=torch.float32, device=out.device)
    with current(out.device):
        native.crop_resize(
            **values | places,
            out=out.data_ptr(),
            scratch=scratch.data_ptr(),
            scratch_width=width,
            stream=stream_of(out.device),
        )
    del packed, scratch  # used again, like all memory of this stream, by what is launched later


def _on_device(arrays: Arrays, device: torch.device) -> tuple[torch.Tensor, dict[str, int]]:
    """Copy arrays to a device, all at once; return the memory that holds them, and the address of each."""
    starts = [0, *itertools.accumulate(-(-array.nbytes // 8) * 8 for array in arrays.values())]
    packed = np.zeros(starts.pop(), np.uint8)
    for start, array in zip(starts, arrays.values(), strict=True):
        packed[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    held = to_device(torch.from_numpy(packed), device)
    return held, {name: held.data_ptr() + start for name, start in zip(arrays, starts, strict=True)}


def _scratch_width(part: Floats32, size: npt.NDArray[np.int64], *, moved: bool) -> int:
    """Return how many floats csrc/cuda/launchers.h asks for, for each image."""
    extent = part[:, 2:].astype(np.float64) - part[:, :2]
    weights = size * np.ceil(2 * np.maximum(1, extent / size))
    floats = weights.sum(1) + 2 * size.sum(1) + moved * 4 * size.prod(1)
    return -(-int(floats.max(initial=0)) // 4) * 4


def _are_bytes(images: Sequence[Image], device: torch.device) -> bool:
    """Return whether images are bytes, not floats; raise ValueError where they are not as `crop_resize` says."""
    kinds = {_BYTES.get(image.dtype) for image in images}
    if len(kinds) > 1 or None in kinds:
        dtypes = {image.dtype for image in images}
        raise ValueError(f"crop_resize: images must all be uint8 or all float32, got {dtypes}. Convert them.")
    if any(image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or not _fits(image, device) for image in images):
        raise ValueError(
            f"crop_resize: images must be contiguous [H, W, 3] on {device}, where out is. Copy those that are not."
        )
    return True in kinds


def _fits(image: Image, device: torch.device) -> bool:
    """Return whether the native module on a device can read an image."""
    if isinstance(image, torch.Tensor):
        return image.device == device and image.is_contiguous()
    return device.type == "cpu" and image.flags.c_contiguous


def _numbers(pixel_ops: Sequence[tuple[PixelOp, Floats32]], n: int) -> Floats32:
    """Return the numbers of all operations side by side, `[n, n_ops, width]`, zeros behind those of each."""
    checked = [_checked("pixel_ops", numbers, np.float32, (n, _NUMBERS[op])) for op, numbers in pixel_ops]
    out = np.zeros((n, len(checked), max((x.shape[1] for x in checked), default=0)), np.float32)
    for k, numbers in enumerate(checked):
        out[:, k, : numbers.shape[1]] = numbers
    return out


def _checked(name: str, values: npt.NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    fits = values.ndim == len(shape) and all(want in (None, got) for got, want in zip(values.shape, shape, strict=True))
    if values.dtype != dtype or not fits or not np.isfinite(values).all():
        raise ValueError(
            f"crop_resize: {name} must be finite {np.dtype(dtype)} {list(shape)}, got {values.dtype} "
            f"{list(values.shape)}. Pass one entry per image."
        )
    return np.ascontiguousarray(values)
