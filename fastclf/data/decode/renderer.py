"""How batches of images are made on this device: by the native renderer where there is one, else by DALI's graph alone.

On the processor DALI's resampling takes longer than its decoder, and on a GPU its augmentations are dozens of small
kernels: the graph only decodes, and the native module does the rest. Augmentations of the user's own follow in torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch

from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.decode.gpu_tuning import Tuning, fastest
from fastclf.data.decode.graphs import DECODER, BatchPipeline, DecodePipeline, GraphInput
from fastclf.data.decode.native_renderer import AHEAD, NativeRenderer
from fastclf.data.decode.parts import Images, Parts
from fastclf.data.transforms.base import PixelAugmentation
from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import TransformSpec
from fastclf.ops.crop_resize import has_crop_resize
from fastclf.ops.registry import to_device
from fastclf.report import log_once

# Images of an epoch. A measurement takes about 5 s, as many as an epoch of this size at 10,000 images/s, and gains a
# fifth where it gains anything.
_WORTH_TUNING = 50_000


class Renderer(Protocol):
    """Images to normalised batches, in the order in which they are fed. After an error it is of no use."""

    @property
    def ahead(self) -> int:
        """How many batches should be in the making while one is used."""

    @property
    def keeps(self) -> bool:
        """Whether images may be `KeptImage`."""

    def feed(self, images: Images, parameters: Parameters, pixels: Sequence[int]) -> None:
        """Start one batch.

        Args:
            images: `[B]` file names as uint8 arrays, images, or `KeptImage`.
            parameters: of `sampling.sample`.
            pixels: of each image: a batch of many is decoded in parts.
        """

    def take(self) -> torch.Tensor:
        """Wait for the oldest batch: `[B, 3, sz, sz] float32`. Its memory is its own and is never written again.

        Raises:
            DecodeError: an image of the batch cannot be read or decoded.
        """


def cpu_renderer(tfms: TransformSpec, source: GraphInput, bs: int, num_threads: int) -> Renderer:
    """Return what makes batches of at most bs images fastest on the processor."""
    return renderer_of(tfms, source, bs, torch.device("cpu"), Tuning(num_threads))


def gpu_renderer(
    tfms: TransformSpec,
    source: GraphInput,
    bs: int,
    device: torch.device,
    num_threads: int,
    images: int,
    work: Callable[[Renderer], object],
) -> Renderer:
    """Return what makes batches of at most bs images fastest on a GPU.

    Args:
        tfms: how an image becomes x.
        source: what the images come from.
        bs: images of a batch, at most.
        device: the GPU.
        num_threads: threads that decode.
        images: of an epoch: a measurement takes seconds, which few images never give back.
        work: makes some batches, for a measurement.
    """

    def build(tuning: Tuning) -> Renderer:
        return renderer_of(tfms, source, bs, device, tuning)

    def work_done(renderer: Renderer) -> None:
        work(renderer)
        torch.cuda.synchronize(device)

    if not source.files:
        return build(Tuning(num_threads))
    situation = {"decoder": DECODER, "card": torch.cuda.get_device_name(device), "sz": tfms.sz}
    return fastest(situation, num_threads, build, work_done, pays=images >= _WORTH_TUNING)


def renderer_of(tfms: TransformSpec, source: GraphInput, bs: int, device: torch.device, tuning: Tuning) -> Renderer:
    """Return what makes batches of at most bs images on a device as a tuning says."""
    source = replace(source, hw_decoder_load=tuning.hw_decoder_load, on_processor=tuning.on_processor)
    if not tfms.in_torch:
        return _first_stage(tfms, source, bs, device, tuning)
    plain = replace(tfms, mean=(0.0,) * 3, std=(1.0,) * 3)  # values 0..1, which `TorchStage` changes and normalises
    return TorchStage(tfms, _first_stage(plain, source, bs, device, tuning), device)


def _first_stage(tfms: TransformSpec, source: GraphInput, bs: int, device: torch.device, tuning: Tuning) -> Renderer:
    if tuning.by_graph or not has_crop_resize(device):
        return GraphRenderer(tfms, source, bs, device, tuning)
    if tfms.in_torch:
        log_once(f"{_names(tfms.in_torch)}: not in the native renderer; run in torch after it, on every batch")
    others = [(i, aug) for i, aug in tfms.rendered if aug.native is None]
    if not others:
        threads, ahead = tuning.num_threads, AHEAD if device.type == "cpu" else tuning.ahead
        return NativeRenderer(tfms, DecodePipeline(source, bs, device, threads), source.white, threads, device, ahead)
    log_once(f"{_names(others)}: not in the native renderer; DALI makes these batches, which takes longer")
    return GraphRenderer(tfms, source, bs, device, tuning)


def _names(augs: Sequence[tuple[int, PixelAugmentation]]) -> str:
    return ", ".join(dict.fromkeys(aug.name for _, aug in augs))


class GraphRenderer:
    """A DALI graph that does everything; also on a GPU."""

    keeps = False

    def __init__(self, tfms: TransformSpec, source: GraphInput, bs: int, device: torch.device, tuning: Tuning) -> None:
        self._graph = BatchPipeline(tfms, source, bs, device, tuning.num_threads)
        self._parts = Parts(self._graph.feed)
        self.feed = self._parts.feed
        self.ahead = tuning.ahead

    def take(self) -> torch.Tensor:
        """See `Renderer.take`."""
        parts = [x for x, _ in self._parts.take(self._graph.take)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class TorchStage:
    """Crops of another renderer with values 0..1, changed by augmentations that run in torch, and normalised."""

    def __init__(self, tfms: TransformSpec, first: Renderer, device: torch.device) -> None:
        self._augs = {f"aug{i}": aug for i, aug in tfms.in_torch}
        self._mean, self._std = (torch.tensor(x, device=device)[:, None, None] for x in (tfms.mean, tfms.std))
        self._first = first
        self._parameters: deque[Parameters] = deque()  # of the batches in the making

    @property
    def ahead(self) -> int:
        """See `Renderer.ahead`."""
        return self._first.ahead

    @property
    def keeps(self) -> bool:
        """See `Renderer.keeps`."""
        return self._first.keeps

    def feed(self, images: Images, parameters: Parameters, pixels: Sequence[int]) -> None:
        """See `Renderer.feed`."""
        self._parameters.append({name: parameters[name] for name in self._augs})
        self._first.feed(images, {name: x for name, x in parameters.items() if name not in self._augs}, pixels)

    def take(self) -> torch.Tensor:
        """See `Renderer.take`."""
        x, parameters = self._first.take(), self._parameters.popleft()
        try:
            for name, aug in self._augs.items():
                x = aug.apply(x, to_device(torch.from_numpy(parameters[name]), self._mean.device))
        except Exception:  # of code that is not ours
            self._finish()
            raise
        return (x - self._mean) / self._std

    def _finish(self) -> None:
        """Wait for what is in the making: DALI's graphs must not be torn down while they run."""
        with suppress(DecodeError):
            for _ in range(len(self._parameters)):
                self._first.take()
