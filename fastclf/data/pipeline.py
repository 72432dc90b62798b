"""The DALI graph: from files or arrays to normalised batches. The only module that imports DALI.

    file -> read -> decode -> resize (one antialiased resampling of just the part that is seen)
         -> mirrored border -> warp to the window -> light, blur, holes -> normalise, NCHW

Without geometry the border and the warp are left out. The same graph runs on the CPU and on the GPU ('mixed' decoding).
Sizes are worked out in whole numbers inside the graph, because only the decoder knows the picture's size.
"""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.augmentations import Cutout, RandomBlur, RandomLighting
from fastclf.data.draws import Parameters
from fastclf.data.transforms import CropType, Transforms
from fastclf.errors import BackendError

try:
    from nvidia.dali import Pipeline, fn, math, types
except ImportError as error:
    raise BackendError(
        f"pipeline: NVIDIA DALI cannot be imported ({error}). Install it: pip install nvidia-dali-cuda130"
    ) from error

SOURCE = "picture"
"""Name of the graph's input of pictures: file names as bytes, or HWC arrays."""


@dataclass(frozen=True)
class Source:
    """What the graph is fed with.

    Attributes:
        files: whether file names come in; otherwise HWC arrays.
        top: the value of full white, 255 or 1. Files are always 0..255.
    """

    files: bool = True
    top: float = 255.0


class _Graph:
    """One built graph: `run` starts a batch, `wait` waits for the oldest. An error ends its life."""

    def __init__(self, define: Callable[[bool], Any], bs: int, device: torch.device, num_threads: int) -> None:
        gpu = device.type == "cuda"
        self._pipe = Pipeline(
            batch_size=bs,
            num_threads=num_threads,
            device_id=(device.index or 0) if gpu else None,
            prefetch_queue_depth=1,  # running ahead of `wait` is what keeps the threads busy
            exec_dynamic=True,
        )
        with self._pipe:
            self._pipe.set_outputs(define(gpu))
        self._pipe.build()

    def run(self, inputs: Mapping[str, Any]) -> None:
        for name, values in inputs.items():
            self._pipe.feed_input(name, values)
        self._pipe.schedule_run()

    def wait(self) -> Any:
        (output,) = self._pipe.share_outputs()
        self._pipe.release_outputs()  # of the queue only: the output keeps its memory
        return output


class PicturePipeline:
    """Pictures to normalised batches.

    `feed` starts a batch and returns at once; `take` waits for the oldest one. After an error the object is of no use.
    """

    def __init__(self, tfms: Transforms, source: Source, bs: int, device: torch.device, num_threads: int) -> None:
        self._graph = _Graph(lambda gpu: _normalised(tfms, source, gpu), bs, device, num_threads)

    def feed(self, pictures: Sequence[npt.NDArray[Any]] | npt.NDArray[Any], parameters: Parameters) -> None:
        """Starts one batch: `[B]` file names as uint8 arrays or pictures, and the parameters of `draws.draw`."""
        self._graph.run({SOURCE: pictures, **parameters})

    def take(self) -> torch.Tensor:
        """Waits for the oldest batch: `[B, 3, sz, sz] float32`. Its memory is its own and is never written again.

        Raises:
            RuntimeError: when a picture of the batch cannot be read or decoded.
        """
        return torch.from_dlpack(self._graph.wait().as_tensor())


class ShrinkPipeline:
    """Files to uint8 pictures whose shorter side is at most sz.

    Args:
        sz: in pixels. Smaller pictures stay as they are.
        bs: most files at once.
        num_threads: threads that decode.
    """

    def __init__(self, sz: int, bs: int, num_threads: int) -> None:
        self._graph = _Graph(lambda gpu: _shrunk(sz, gpu), bs, torch.device("cpu"), num_threads)

    def __call__(self, files: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
        """Decodes files: a list of `[H, W, 3] uint8` RGB, orientation applied.

        Raises:
            RuntimeError: when one cannot be read or decoded.
        """
        self._graph.run({SOURCE: [np.frombuffer(file, np.uint8) for file in files]})
        pictures = self._graph.wait()
        return [np.array(pictures.at(i)) for i in range(len(files))]


class ScanPipeline:
    """Files to their shapes, by their headers alone or by decoding them whole.

    `feed` starts a batch and returns at once; `take` waits for the oldest one. After an error the object is of no use.

    Args:
        bs: most files at once.
        num_threads: threads that read and decode.
        decode: whether to decode; only the shapes are kept.
    """

    def __init__(self, bs: int, num_threads: int, *, decode: bool) -> None:
        self._graph = _Graph(_decoded_file if decode else _header, bs, torch.device("cpu"), num_threads)

    def feed(self, files: Sequence[bytes]) -> None:
        """Starts one batch of file names."""
        self._graph.run({SOURCE: [np.frombuffer(file, np.uint8) for file in files]})

    def take(self) -> npt.NDArray[np.int64]:
        """Waits for the oldest batch: `[B, 3]` height, width and channels; with `decode`, after it was decoded.

        Raises:
            RuntimeError: when a file of the batch cannot be read, or has no header or no pixels that are known.
        """
        output = self._graph.wait()
        return np.array(output.as_array() if output.dtype == types.INT64 else output.shape(), np.int64)


def decode(file: bytes) -> npt.NDArray[np.uint8]:
    """Decodes one file to `[H, W, 3] uint8` RGB, orientation applied.

    Raises:
        RuntimeError: when it cannot be read or decoded.
    """
    graph = _Graph(_decoded_file, 1, torch.device("cpu"), 1)
    graph.run({SOURCE: [np.frombuffer(file, np.uint8)]})
    return np.array(graph.wait().at(0), np.uint8)


def _input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, device="cpu")


def _decoded(file: Any, gpu: bool) -> Any:
    encoded = fn.io.file.read(file)
    return fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB)


def _decoded_file(gpu: bool) -> Any:
    return _decoded(_input(SOURCE, 1, types.UINT8), gpu)


def _header(_gpu: bool) -> Any:
    encoded = fn.io.file.read(_input(SOURCE, 1, types.UINT8))
    return fn.peek_image_shape(encoded, image_type=types.ANY_DATA, dtype=types.INT64)


def _shrunk(sz: int, gpu: bool) -> Any:
    picture = _decoded_file(gpu)
    shape = picture.shape(dtype=types.INT64)
    short = math.min(shape[0], shape[1])
    target = math.min(short, sz)
    size = fn.stack(*(_float(shape[i] * target // short) for i in (0, 1)))
    return fn.resize(picture, size=size, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False)


def _normalised(tfms: Transforms, source: Source, gpu: bool) -> Any:
    if source.files:
        picture = _decoded_file(gpu)
    else:
        picture = _input(SOURCE, 3, types.UINT8 if source.top == 255 else types.FLOAT, "HWC")
        picture = picture.gpu() if gpu else picture
    picture = _window(tfms, picture)
    for i, aug in enumerate(tfms.augs):
        if isinstance(aug, RandomLighting):
            picture = _lighting(picture, _input(f"aug{i}", 1, types.FLOAT), source.top)
        elif isinstance(aug, RandomBlur):
            picture = fn.gaussian_blur(picture, window_size=_input(f"aug{i}", 0, types.INT32))
        elif isinstance(aug, Cutout):
            corners = _input(f"aug{i}", 1, types.FLOAT)
            shape = [float(aug.length)] * (2 * aug.n_holes)
            picture = fn.erase(picture, anchor=corners, shape=shape, axes=[0, 1], fill_value=0.0)
    return fn.crop_mirror_normalize(
        picture,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[value * source.top for value in tfms.mean],
        std=[value * source.top for value in tfms.std],
    )


def _window(tfms: Transforms, picture: Any) -> Any:
    """Draws the sz x sz window: scale, place, border and geometry, in one or two resamplings."""
    shape = picture.shape(dtype=types.INT64)
    spread = tfms.margin + tfms.pad
    place = _input("place", 1, types.FLOAT) if tfms.places else None
    axes = _rectangle(tfms, shape) if tfms.crop_type is CropType.GOOGLENET else _scaled(tfms, shape)
    seen = [_seen(axis, tfms, None if place is None else place[i]) for i, axis in enumerate(axes)]
    picture = fn.resize(
        picture,
        roi_start=fn.stack(*(axis.source(part.low) for axis, part in zip(axes, seen, strict=True))),
        roi_end=fn.stack(*(axis.source(part.high) for axis, part in zip(axes, seen, strict=True))),
        size=fn.stack(*(_float(part.high - part.low) for part in seen)),
        dtype=types.FLOAT,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        subpixel_scale=False,
    )
    if spread:
        picture = _mirrored(picture, spread)
    if tfms.geometry:
        return fn.warp_affine(picture, matrix=_matrix(tfms, seen, spread), size=[float(tfms.sz)] * 2)
    if spread:
        start = fn.stack(*(fn.cast(part.start - part.low + spread, dtype=types.INT32) for part in seen))
        return fn.slice(picture, start=start, shape=[tfms.sz] * 2, axes=[0, 1])
    return picture


@dataclass(frozen=True)
class _Axis:
    """One axis of the scaled picture.

    Attributes:
        n: how many scaled pixels the window may be placed in.
        first: first scaled pixel that the picture has; negative when it goes on before pixel 0.
        last: end of the scaled pixels that the picture has.
        origin: where scaled pixel 0 lies in the picture, in its own pixels.
        step: the picture's pixels per scaled pixel.
    """

    n: Any
    first: Any
    last: Any
    origin: Any
    step: Any

    def source(self, position: Any) -> Any:
        """Maps a position in the scaled picture to the picture's own pixels."""
        return self.origin + _float(position) * self.step


@dataclass(frozen=True)
class _Seen:
    """What one axis of the window needs: it begins at `start`, and `low`..`high` is resized; all in scaled pixels."""

    start: Any
    low: Any
    high: Any


def _float(node: Any) -> Any:
    return fn.cast(node, dtype=types.FLOAT)


def _scaled(tfms: Transforms, shape: Any) -> list[_Axis]:
    """Scales the shorter side, or for NO both sides, to `scaled`; the longer side is rounded down."""
    target = _input("scaled", 0, types.INT64)
    short = math.min(shape[0], shape[1])
    axes = []
    for n in (shape[0], shape[1]):
        scaled = target if tfms.crop_type is CropType.NO else n * target // short
        axes.append(_Axis(scaled, 0, scaled, 0.0, _float(n) / _float(scaled)))
    return axes


def _rectangle(tfms: Transforms, shape: Any) -> list[_Axis]:
    """Scales a rectangle of a drawn area and aspect, shrunk where it does not fit, to the window."""
    corner, sides = _input("corner", 1, types.FLOAT), [_float(shape[0]), _float(shape[1])]
    area = _input("area", 0, types.FLOAT) * sides[0] * sides[1]
    aspect = _input("aspect", 0, types.FLOAT)
    wanted = [math.sqrt(area / aspect), math.sqrt(area * aspect)]
    fit = math.min(1.0, math.min(sides[0] / wanted[0], sides[1] / wanted[1]))
    axes = []
    for i, side in enumerate(sides):
        extent = wanted[i] * fit
        step, origin = extent / float(tfms.sz), corner[i] * (side - extent)
        first = -fn.cast(math.floor(origin / step), dtype=types.INT64)
        last = fn.cast(math.floor((side - origin) / step + 1e-3), dtype=types.INT64)
        axes.append(_Axis(tfms.sz, first, last, origin, step))
    return axes


def _seen(axis: _Axis, tfms: Transforms, place: Any | None) -> _Seen:
    room = axis.n - tfms.sz
    if place is None:  # the middle; an odd pixel goes to the even side, as in torchvision's CenterCrop
        start = (room + ((room // 2) & 1)) // 2
    else:
        start = fn.cast(math.floor(place * _float(room + 2 * tfms.pad + 1)), dtype=types.INT64) - tfms.pad
    if tfms.margin + tfms.pad == 0:
        return _Seen(start, start, start + tfms.sz)
    low = math.max(axis.first, start - tfms.margin)
    return _Seen(start, low, math.min(axis.last, start + tfms.sz + tfms.margin))


def _mirrored(picture: Any, width: int) -> Any:
    """Mirrors the outermost pixels outwards; DALI's warp would repeat the last one."""
    shape = picture.shape(dtype=types.INT32)
    top = fn.flip(picture[:width], horizontal=0, vertical=1)
    bottom = fn.flip(picture[shape[0] - width :], horizontal=0, vertical=1)
    tall = fn.cat(top, picture, bottom, axis=0)
    left = fn.flip(tall[:, :width], horizontal=1, vertical=0)
    right = fn.flip(tall[:, shape[1] - width :], horizontal=1, vertical=0)
    return fn.cat(left, tall, right, axis=1)


def _matrix(tfms: Transforms, seen: list[_Seen], spread: int) -> Any:
    """Builds the `[2, 3]` map from window to resized picture, over (x, y), that keeps the window's middle in place."""
    linear = _input("linear", 2, types.FLOAT)
    middle = fn.stack(*(_float(part.start - part.low) + (spread + tfms.sz / 2) for part in reversed(seen)))
    shift = fn.reshape(middle - _input("middle", 1, types.FLOAT), shape=[2, 1])
    return fn.cat(linear, shift, axis=1)


def _lighting(picture: Any, values: Any, top: float) -> Any:
    values = values.gpu() if picture.device == "gpu" else values
    brightness, contrast = values[0] * top, values[1]
    mean = fn.reductions.mean(picture)
    return math.clamp(picture * contrast + (mean * (1.0 - contrast) + brightness), 0.0, top)
