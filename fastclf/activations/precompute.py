"""Run a frozen body once over a set of images and keep its pooled features."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastclf.activations.fill import Blocks, Job, StaleError, stored
from fastclf.activations.fingerprint import fingerprint
from fastclf.data.dataset import Dataset
from fastclf.data.image_loader import ImageLoader
from fastclf.data.loader import Rows
from fastclf.data.validation.verified import DatasetImages
from fastclf.models.net import Net
from fastclf.models.precision import autocast, compute_dtype
from fastclf.report import Progress, log

_BATCH = 32  # images at once on a processor, at most
_TRIES = 3  # when images are changed while they are read
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library


def activations(
    net: Net, loader: ImageLoader, folders: Sequence[Path], *, dtype: str, what: str, views: int = 1
) -> NDArray[Any]:
    """Return the features ``[views * N, F]`` of every image of a loader's data set, in its order, mapped from a file.

    Row ``k * N + i`` is image ``i`` as the loader serves it in epoch ``k``. Images that cannot be decoded, and are
    skipped, have zeros. Takes the file from the first of ``folders`` that has it; else computes the rows, going on
    where an interrupted pass has stopped, and keeps them in the first of ``folders`` that takes them.

    Args:
        net: its body runs in evaluation mode; its head has no part in this.
        loader: of images; its order does not matter.
        folders: where activation files are kept, best first.
        dtype: of the file, ``float16`` or ``float32``.
        what: the set's name, for messages.
        views: epochs of the loader that are kept; more than one for transforms that augment.

    Raises:
        ActivationFileError: a feature is not finite, there is no place for the rows, or the images keep changing.
        BadImageError: images cannot be decoded, and ``on_bad`` makes that an error.
    """
    for _ in range(_TRIES):
        try:
            return _once(net, loader, folders, dtype, what, views)
        except StaleError as error:
            log(f"{error}; computing them again")
            stale = error
    raise stale


def _once(net: Net, loader: ImageLoader, folders: Sequence[Path], dtype: str, what: str, views: int) -> NDArray[Any]:
    key = _key(net, loader, dtype, views)
    rows = f"{loader.n:,} images" + (f", {views} augmented views of each" if views > 1 else "")
    shape = (views * loader.n, net.body.n_features)
    return stored(
        Job(key, shape, dtype, what, rows, partial(_still_bad, loader.ds, loader.images)),
        folders,
        lambda done: _blocks(net, loader, done, views, what),
        lambda: key == _key(net, loader, dtype, views),
    )


def _key(net: Net, loader: ImageLoader, dtype: str, views: int) -> str:
    sampled = None
    if loader.tfms.augments:
        sampled = {"n": views, "seed": loader._options.seed, "split": loader.split.name}
    precision = str(compute_dtype(loader.device))
    tfms = loader.tfms.describe()
    return fingerprint(net.body, loader.ds, tfms, dtype=dtype, precision=precision, views=sampled)


def _still_bad(ds: Dataset, images: DatasetImages, bad: Mapping[int, str]) -> bool:
    """Note rows that an earlier pass could not compute; return False when one of their images can be decoded now."""
    new = {row % len(ds): why for row, why in bad.items() if row % len(ds) not in ds.bad.reasons}
    if len(images.bad(np.array([*new], np.int64))) < len(new):
        return False
    ds.bad.note(new)
    return True


class _InOrder(ImageLoader):
    """Serves the images of another loader in data set order, from a given row on; y are the rows ``[B] int64``."""

    def __init__(self, other: ImageLoader, done: int) -> None:
        options = other._options
        if options.device.type == "cpu":  # larger batches take more memory, and no less time
            options = replace(options, bs=min(options.bs, _BATCH))
        super().__init__(other.ds, other.tfms, options, other.split)
        self.targets = torch.arange(self.n)
        self._done = done

    def order(self, epoch: int) -> Rows:
        """See `Loader.order`; row ``i`` of epoch ``k`` counts as the ``k * n + i``-th."""
        rows = super().order(epoch)
        return rows[rows >= self._done - epoch * self.n]


def _blocks(net: Net, loader: ImageLoader, done: int, views: int, what: str) -> Blocks:
    """Yield the rows from ``done`` on, batch by batch, with zeros for images that are skipped."""
    net.eval()
    images, n = _InOrder(loader, done), loader.n
    with Progress(views * n, f"activations of {what}", "images", done=done) as progress:
        for view in range(done // n if n else views, views):
            for features, rows in _features(net, images, view, behind=int(loader.device.type == "cuda")):
                last = view * n + int(rows[-1]) + 1
                yield _block(features, view * n + rows, done, last, loader.ds)
                _give_back()
                progress.advance(last - done)
                done = last
            if done < (view + 1) * n:  # the last images are bad
                nothing = np.empty((0, net.body.n_features), np.float32)
                yield _block(nothing, np.empty(0, np.int64), done, (view + 1) * n, loader.ds)
                done = (view + 1) * n
    line = images.input_stall.line(f"activations of {what}")
    if line is not None:
        log(line)


def _give_back() -> None:
    """Return freed memory to the system.

    The sizes of decoded images differ, so that the heap fragments, and would grow with the number of images.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


class _Returning:
    """Features on their way to the processor: from a GPU, while other work goes on there."""

    def __init__(self, features: torch.Tensor) -> None:
        self._host, self._done = features, None
        if features.is_cuda:
            self._host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            self._host.copy_(features, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> NDArray[np.float32]:
        if self._done is not None:
            self._done.synchronize()
        return self._host.numpy()


def _features(net: Net, images: ImageLoader, view: int, *, behind: int) -> Iterator[tuple[NDArray[np.float32], Rows]]:
    """Features and rows of each batch, given when ``behind`` more batches have been started."""
    started: deque[tuple[_Returning, Rows]] = deque()
    for x, y in images.batches(view):
        rows = y.cpu().numpy()  # before the body, which it would wait for
        with torch.inference_mode(), autocast(x.device):
            started.append((_Returning(net.features(x).float()), rows))
        if len(started) > behind:
            features, rows = started.popleft()
            yield features.wait(), rows
    for features, rows in started:
        yield features.wait(), rows


def _block(
    features: NDArray[np.float32], rows: Rows, first: int, last: int, ds: Dataset
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Return features of ``rows`` at their places among rows ``first`` to ``last``, and why the others have none."""
    if len(rows) == last - first:
        return features, {}
    block = np.zeros((last - first, features.shape[1]), np.float32)
    block[rows - first] = features
    missing = np.setdiff1d(np.arange(first, last), rows)
    return block, {int(row): ds.bad.reasons[int(row) % len(ds)] for row in missing}
