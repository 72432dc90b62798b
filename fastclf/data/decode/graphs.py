"""The DALI graph: from files or arrays to normalised batches. This module and its `nodes` alone import DALI.

    file -> read -> decode -> resize (one antialiased resampling of just the part that is seen)
         -> mirrored border -> warp to the window -> light, blur, holes -> normalise, NCHW

Without geometry the border and the warp are left out. The same graph runs on the CPU and on the GPU ('mixed' decoding);
on the CPU a shorter one serves, which ends with the decoder (`drawing`).
Sizes are worked out in whole numbers inside the graph, because only the decoder knows the picture's size.
"""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.calls import is_forked, outlives_fork, starts_threads
from fastclf.data.transforms.augmentations import Cutout, RandomBlur, RandomLighting
from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import Transforms
from fastclf.errors import BackendError

try:
    from nvidia.dali import Pipeline, __version__, fn, math, types

    from fastclf.data.decode.graph_nodes import as_float, lighting, number_input, window
except ImportError as error:
    raise BackendError(
        f"pipeline: NVIDIA DALI cannot be imported ({error}). Install it: pip install nvidia-dali-cuda130"
    ) from error

DECODER = f"dali {__version__}"
"""What decodes: a file that another version could decode is decoded again by a scan."""

_MOST_OPEN = 64  # files: reading is faster than mapping, but DALI then keeps all of a batch open at once

SOURCE = "picture"
"""Name of the graph's input of pictures: file names as bytes, or HWC arrays."""


@dataclass(frozen=True)
class Source:
    """What the graph is fed with.

    Attributes:
        files: whether file names come in; otherwise HWC arrays.
        top: the value of full white, 255 or 1. Files are always 0..255.
        hw_decoder_load: share of JPEG files for a GPU's decoding engine.
    """

    files: bool = True
    top: float = 255.0
    hw_decoder_load: float = 0.65


class _Pipeline(Pipeline):
    """A pipeline that is not shut down at the end of a forked process, where its threads are not there."""

    def _shutdown(self) -> None:
        if not self._pipe:
            return  # DALI shuts all down at the interpreter's end; after that the names below may be gone
        if is_forked():
            Pipeline._pipes.discard(weakref.ref(self))  # else DALI complains
        else:
            super()._shutdown()


class _Graph:
    """One built graph: `run` starts a batch, `wait` waits for the oldest. An error ends its life."""

    def __init__(self, define: Callable[[bool], Any], bs: int, device: torch.device, num_threads: int) -> None:
        starts_threads("decode")
        gpu = device.type == "cuda"
        self._pipe = _Pipeline(
            batch_size=bs,
            num_threads=num_threads,
            device_id=(device.index or 0) if gpu else None,
            prefetch_queue_depth=1,  # running ahead of `wait` is what keeps the threads busy
            exec_dynamic=True,
        )
        with self._pipe:
            outputs = define(gpu)
            self._pipe.set_outputs(*outputs if isinstance(outputs, tuple) else (outputs,))
        self._pipe.build()
        outlives_fork(self._pipe)

    def run(self, inputs: Mapping[str, Any]) -> None:
        starts_threads("decode")
        for name, values in inputs.items():
            self._pipe.feed_input(name, values)
        self._pipe.schedule_run()

    def wait(self) -> Any:
        outputs = self._pipe.share_outputs()
        self._pipe.release_outputs()  # of the queue only: the outputs keep their memory
        return outputs if len(outputs) > 1 else outputs[0]


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


class DecodePipeline:
    """Pictures, decoded on the CPU; `feed` and `take` as in `PicturePipeline`.

    Batches take turns on two graphs: while one reads its files, or waits for its last picture, the other decodes.
    """

    def __init__(self, source: Source, bs: int, num_threads: int) -> None:
        def define(gpu: bool) -> Any:
            return _source(source, gpu, mapped=bs > _MOST_OPEN)

        graphs = [_Graph(define, bs, torch.device("cpu"), num_threads) for _ in range(2)]
        self._next = itertools.cycle(graphs)
        self._running: deque[_Graph] = deque()

    def feed(self, pictures: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> None:
        """Starts one batch, see `PicturePipeline.feed`."""
        graph = next(self._next)
        graph.run({SOURCE: pictures})
        self._running.append(graph)

    def take(self) -> list[npt.NDArray[Any]]:
        """Waits for the oldest batch: each picture `[H, W, 3]`.

        Raises:
            RuntimeError: when a picture of the batch cannot be read or decoded.
        """
        try:
            pictures = self._running.popleft().wait()
        except RuntimeError:
            while self._running:  # a graph must not be torn down beside one that runs
                with suppress(RuntimeError):
                    self._running.popleft().wait()
            raise
        return [np.asarray(pictures[i]) for i in range(len(pictures))]


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


def decode(file: bytes) -> npt.NDArray[np.uint8]:
    """Decodes one file to `[H, W, 3] uint8` RGB, orientation applied.

    Raises:
        RuntimeError: when it cannot be read or decoded.
    """
    graph = _Graph(_decoded_file, 1, torch.device("cpu"), 1)
    graph.run({SOURCE: [np.frombuffer(file, np.uint8)]})
    return np.array(graph.wait().at(0), np.uint8)


def _read(*, mapped: bool = True) -> Any:
    return fn.io.file.read(number_input(SOURCE, 1, types.UINT8), dont_use_mmap=not mapped)


def _decoded_file(gpu: bool, *, mapped: bool = True, **how: Any) -> Any:
    return fn.decoders.image(_read(mapped=mapped), device="mixed" if gpu else "cpu", output_type=types.RGB, **how)


def _shrunk(sz: int, gpu: bool) -> Any:
    picture = _decoded_file(gpu)
    shape = picture.shape(dtype=types.INT64)
    short = math.min(shape[0], shape[1])
    target = math.min(short, sz)
    size = fn.stack(*(as_float(shape[i] * target // short) for i in (0, 1)))
    return fn.resize(picture, size=size, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False)


def _source(source: Source, gpu: bool, *, mapped: bool = True) -> Any:
    if source.files:
        return _decoded_file(gpu, mapped=mapped, **{"hw_decoder_load": source.hw_decoder_load} if gpu else {})
    picture = number_input(SOURCE, 3, types.UINT8 if source.top == 255 else types.FLOAT, "HWC")
    return picture.gpu() if gpu else picture


def _normalised(tfms: Transforms, source: Source, gpu: bool) -> Any:
    picture = window(tfms, _source(source, gpu))
    for i, aug in enumerate(tfms.augs):
        if isinstance(aug, RandomLighting):
            picture = lighting(picture, number_input(f"aug{i}", 1, types.FLOAT), source.top)
        elif isinstance(aug, RandomBlur):
            picture = fn.gaussian_blur(picture, window_size=number_input(f"aug{i}", 0, types.INT32))
        elif isinstance(aug, Cutout):
            corners = number_input(f"aug{i}", 1, types.FLOAT)
            shape = [float(aug.length)] * (2 * aug.n_holes)
            picture = fn.erase(picture, anchor=corners, shape=shape, axes=[0, 1], fill_value=0.0)
    return fn.crop_mirror_normalize(
        picture,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[value * source.top for value in tfms.mean],
        std=[value * source.top for value in tfms.std],
    )
