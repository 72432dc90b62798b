"""The DALI graphs: from files or arrays to normalised batches. This module and `graph_nodes` alone import DALI.

    file -> read -> decode -> resize (one antialiased resampling of just what the crop covers)
         -> mirrored border -> warp to the crop -> augmentations of values -> normalise, NCHW

Without geometry the border and the warp are left out. The same graph runs on the CPU and on the GPU ('mixed' decoding);
where the native module makes the crops a shorter one serves, which ends with the decoder (`native_renderer`).
Sizes are worked out in whole numbers inside the graph, because only the decoder knows the image's size.
"""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

import itertools
import sys
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
from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.decode.parts import Images
from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import TransformSpec
from fastclf.errors import BackendError
from fastclf.interrupts import postponed
from fastclf.ops.crop_resize import Image

try:
    from nvidia import dali
    from nvidia.dali import Pipeline, __version__, fn, math, types

    from fastclf.data.decode.graph_nodes import Nodes, as_float, crop, number_input
except Exception as error:  # not of imports alone: under -OO its docstrings are missing
    fix = "Install it: pip install nvidia-dali-cuda130"
    if sys.flags.optimize == 2:
        fix = "Start Python without -OO (PYTHONOPTIMIZE=2)"
    raise BackendError(f"NVIDIA DALI cannot be imported ({error}). {fix}") from error

DECODER = f"dali {__version__}"
"""What decodes: a file that another version could decode is decoded again by a scan."""

_MOST_OPEN = 64  # files: reading is faster than mapping, but DALI then keeps all of a batch open at once

SOURCE = "image"
"""Name of the graph's input of images: file names as bytes, or HWC arrays."""


@dataclass(frozen=True)
class GraphInput:
    """What the graph is fed with.

    Attributes:
        files: whether encoded images come in; otherwise HWC arrays.
        by_path: whether encoded images come as paths of files; otherwise as their bytes.
        white: the value of full white, 255 or 1. Files are always 0..255.
        hw_decoder_load: share of JPEG files for a GPU's decoding engine.
        on_processor: whether the processor decodes what goes to a GPU.
    """

    files: bool = True
    by_path: bool = True
    white: float = 255.0
    hw_decoder_load: float = 0.65
    on_processor: bool = False


class _Pipeline(Pipeline):
    """A pipeline that is not shut down at the end of a forked process, where its threads are not there."""

    def _shutdown(self) -> None:
        if not self._pipe:
            return  # DALI shuts all down at the interpreter's end; after that the names below may be gone
        if is_forked():
            Pipeline._pipes.discard(weakref.ref(self))  # else DALI complains
        else:
            with postponed():  # mostly called by __del__
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
        try:
            outputs = self._pipe.share_outputs()
        except RuntimeError as error:
            raise DecodeError(str(error)) from error
        self._pipe.release_outputs()  # of the queue only: the outputs keep their memory
        return outputs if len(outputs) > 1 else outputs[0]


class BatchPipeline:
    """Images to normalised batches.

    `feed` starts a batch and returns at once; `take` waits for the oldest one. After an error the object is of no use.
    """

    def __init__(
        self, tfms: TransformSpec, source: GraphInput, bs: int, device: torch.device, num_threads: int
    ) -> None:
        self._graph = _Graph(lambda gpu: _normalised(tfms, source, gpu), bs, device, num_threads)

    def feed(self, images: Images, parameters: Parameters) -> None:
        """Start one batch: `[B]` file names as uint8 arrays or images, and the parameters of `sampling.sample`."""
        self._graph.run({SOURCE: images, **parameters})

    def take(self) -> torch.Tensor:
        """Wait for the oldest batch: `[B, 3, sz, sz] float32`. Its memory is its own and is never written again.

        On a GPU it may be dropped while work on it has only been launched: DALI uses the memory again when the device
        has done all that came before (`DLTensorGraveyard` in its `dltensor.cc`).

        Raises:
            DecodeError: an image of the batch cannot be read or decoded.
        """
        return torch.from_dlpack(self._graph.wait().as_tensor())


class DecodePipeline:
    """Images, decoded; `feed` and `take` as in `BatchPipeline`.

    Where the processor decodes, batches take turns on two graphs: while one reads its files, or waits for its last
    image, the other decodes.
    """

    def __init__(self, source: GraphInput, bs: int, device: torch.device, num_threads: int) -> None:
        def define(gpu: bool) -> Any:
            return _source(source, gpu, mapped=bs > _MOST_OPEN)

        self._on_gpu = device.type == "cuda"
        n = 1 if self._on_gpu and not source.on_processor else 2
        graphs = [_Graph(define, bs, device, num_threads) for _ in range(n)]
        self._next = itertools.cycle(graphs)
        self._running: deque[_Graph] = deque()

    def feed(self, images: Images) -> None:
        """Start one batch, see `BatchPipeline.feed`."""
        graph = next(self._next)
        graph.run({SOURCE: images})
        self._running.append(graph)

    def take(self) -> list[Image]:
        """Wait for the oldest batch: each image `[H, W, 3]`, an array, or a tensor on a GPU.

        A tensor may be dropped while work on it has only been launched, see `BatchPipeline.take`.

        Raises:
            DecodeError: an image of the batch cannot be read or decoded.
        """
        try:
            images = self._running.popleft().wait()
        except DecodeError:
            while self._running:  # a graph must not be torn down beside one that runs
                with suppress(DecodeError):
                    self._running.popleft().wait()
            raise
        as_image = torch.from_dlpack if self._on_gpu else np.asarray
        return [as_image(images[i]) for i in range(len(images))]


class ShrinkPipeline:
    """Files to uint8 images whose shorter side is at most sz.

    Args:
        sz: in pixels. Smaller images stay as they are.
        bs: most files at once.
        num_threads: threads that decode.
    """

    def __init__(self, sz: int, bs: int, num_threads: int, *, by_path: bool) -> None:
        self._graph = _Graph(lambda gpu: _shrunk(sz, gpu, by_path), bs, torch.device("cpu"), num_threads)

    def __call__(self, files: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        """Decode files: a list of `[H, W, 3] uint8` RGB, orientation applied.

        Raises:
            DecodeError: one cannot be read or decoded.
        """
        self._graph.run({SOURCE: files})
        images = self._graph.wait()
        return [np.array(images.at(i)) for i in range(len(files))]


def decode(file: npt.NDArray[np.uint8], *, by_path: bool) -> npt.NDArray[np.uint8]:
    """Decode one file to `[H, W, 3] uint8` RGB, orientation applied.

    Raises:
        DecodeError: it cannot be read or decoded.
    """
    graph = _Graph(lambda gpu: _decoded_file(gpu, by_path=by_path), 1, torch.device("cpu"), 1)
    graph.run({SOURCE: [file]})
    return np.array(graph.wait().at(0), np.uint8)


def _encoded(*, by_path: bool, mapped: bool = True) -> Any:
    node = number_input(SOURCE, 1, types.UINT8)
    return fn.io.file.read(node, dont_use_mmap=not mapped) if by_path else node


def _decoded_file(gpu: bool, *, by_path: bool, mapped: bool = True, **how: Any) -> Any:
    encoded = _encoded(by_path=by_path, mapped=mapped)
    return fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, **how)


def _shrunk(sz: int, gpu: bool, by_path: bool) -> Any:
    image = _decoded_file(gpu, by_path=by_path)
    shape = image.shape(dtype=types.INT64)
    short = math.min(shape[0], shape[1])
    target = math.min(short, sz)
    size = fn.stack(*(as_float(shape[i] * target // short) for i in (0, 1)))
    return fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False)


def _source(source: GraphInput, gpu: bool, *, mapped: bool = True) -> Any:
    if source.files:
        mixed = gpu and not source.on_processor
        how = {"hw_decoder_load": source.hw_decoder_load} if mixed else {}
        image = _decoded_file(mixed, by_path=source.by_path, mapped=mapped, **how)
        return image.gpu() if gpu and not mixed else image
    image = number_input(SOURCE, 3, types.UINT8 if source.white == 255 else types.FLOAT, "HWC")
    return image.gpu() if gpu else image


def _normalised(tfms: TransformSpec, source: GraphInput, gpu: bool) -> Any:
    of = Nodes(tfms)
    image = crop(tfms, _source(source, gpu), of)
    for i, aug in tfms.rendered:
        image = aug.nodes(dali, image, of.parameter(f"aug{i}"), source.white)
    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[value * source.white for value in tfms.mean],
        std=[value * source.white for value in tfms.std],
    )
