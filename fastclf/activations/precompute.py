"""Run a frozen body, or its first layer group, once over a set of images and keep what it gives."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastclf import ranks
from fastclf.activations.fill import Job, stored
from fastclf.activations.fingerprint import describe, sha256_of, view_key
from fastclf.activations.segment import KEY, NO_KEY, Keys, Kind
from fastclf.arrays import RowNumbers
from fastclf.data import transfer
from fastclf.data.image_loader import ImageLoader
from fastclf.data.transfer import Returning
from fastclf.data.validation.verified import ChangedError
from fastclf.errors import ActivationFileError
from fastclf.models.net import Net
from fastclf.models.precision import autocast, compute_dtype
from fastclf.ops.arguments import IndexedRows
from fastclf.report import Progress, log

Versions: TypeAlias = NDArray[np.int64]

_BATCH = 32  # images at once on a processor, at most
_TRIES = 3  # when images are changed while they are read
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library


def activations(
    net: Net,
    loader: ImageLoader,
    folders: Sequence[Path],
    *,
    dtype: str,
    what: str,
    views: int = 1,
    weights: str | None = None,
) -> IndexedRows:
    """Return the features ``[views * N, F]`` of every image of a loader's data set, in its order, from a mapped store.

    Row ``k * N + i`` is image ``i`` as the loader serves it in epoch ``k``. Images that cannot be decoded, and are
    skipped, have zeros. An image's row is found by its contents, whatever its name, set or label; an augmented view's
    by contents, seed, set, epoch and row number, which its random numbers follow from. What none of ``folders`` has is
    computed, and kept in the first that takes it.

    Args:
        net: its body runs in evaluation mode; its head has no part in this.
        loader: of images; its order does not matter.
        folders: where activations are kept, best first.
        dtype: of the rows, ``float16`` or ``float32``.
        what: the set's name, for messages.
        views: epochs of the loader that are kept; more than one for transforms that augment.
        weights: the body's hash, `Body.state_sha256`, where the caller has it.

    Raises:
        ActivationFileError: a feature is not finite, there is no place for the rows, or the images keep changing.
        BadImageError: images cannot be decoded, and ``on_bad`` makes that an error.
    """
    precision = str(compute_dtype(loader.device))
    about = describe(net.body, loader.tfms.describe(), dtype=dtype, precision=precision, weights=weights)
    kind = Kind(sha256_of(about), net.body.n_features, dtype)
    unit = "images" if views == 1 else "augmented views of images"
    for _ in range(_TRIES):
        error = ""
        try:
            keys, versions = _keys(loader, views)
            job, compute = Job(kind, about, keys, what, unit), partial(_blocks, net, loader, what, versions)
            rows = stored(job, folders, compute, in_flight=transfer.in_flight(loader.device))
            loader.images.check_unchanged(loader.served, versions[loader.served])
        except ChangedError as changed:
            error = str(changed)
        error = next(filter(None, ranks.gather(error)), "") if ranks.size() > 1 else error
        if not error:
            return rows
        message = f"{what}: images were changed while their activations were computed: {error}"
        log(f"{message}; computing them again")
    raise ActivationFileError(message)


def _keys(loader: ImageLoader, views: int) -> tuple[Keys, Versions]:
    """Return the keys of all rows, and the versions ``[N, 3]`` of the images that were read for them.

    Raises:
        BadImageError: see `activations`.
        ChangedError: an image cannot be read any more.
    """
    ds, images, n = loader.ds, loader.images, loader.n
    ds.bad.note(images.bad(loader.served))
    good = loader.served
    digests, versions = images.contents(good)
    keys, of_all = np.full(views * n, NO_KEY, KEY), np.zeros((n, 3), np.int64)
    of_all[good] = versions
    if not loader.tfms.augments:
        keys[(np.arange(views)[:, None] * n + good).ravel()] = np.tile(np.array(digests, KEY), views)
        return keys, of_all
    for view in range(views):
        seed, split = loader.options.seed, int(loader.split)
        named = zip(digests, good.tolist(), strict=True)
        keys[view * n + good] = [view_key(digest, seed, split, view, row) for digest, row in named]
    return keys, of_all


class InOrder(ImageLoader):
    """Serves some images of another loader in a given order; y are their rows ``[B] int64``, in main memory."""

    def __init__(self, other: ImageLoader, most: int | None = None) -> None:
        options = other.options
        if most is None and options.device.type == "cpu":  # larger batches take more memory, and no less time
            most = _BATCH
        options = replace(options, bs=min(options.bs, most or options.bs))
        super().__init__(other.ds, other.tfms, options, other.split)
        self.rows = self.served
        if options.device.type == "cuda" and options.bs == other.bs:  # a graph takes .2 s to build there
            self.shares_renderers(other)

    def order(self, epoch: int) -> RowNumbers:
        """See `Loader.order`."""
        return self.rows

    def _targets(self, rows: RowNumbers) -> torch.Tensor:
        return torch.from_numpy(rows)


def _blocks(
    net: Net, loader: ImageLoader, what: str, versions: Versions, numbers: RowNumbers
) -> Generator[tuple[RowNumbers, NDArray[np.float32], int], None, None]:
    """Yield rows batch by batch, see `stored`; those of images that are skipped are passed over.

    Raises:
        ChangedError: an image has changed since it was read for its key.
    """
    net.eval()
    images, n, done = InOrder(loader), loader.n, 0
    with Progress(len(numbers), f"activations of {what}", "images") as progress:
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers // n)) + 1):  # the rows of one view
            view, images.rows, begin = int(run[0]) // n, run % n, done
            for features, rows in _features(net, images, view, behind=transfer.in_flight(loader.device)):
                loader.images.check_unchanged(rows, versions[rows])
                before, done = done, begin + int(np.flatnonzero(images.rows == rows[-1])[0]) + 1
                yield view * n + rows, features, done
                if loader.device.type == "cpu":  # elsewhere images are not decoded into the heap
                    _give_back()
                progress.advance(done - before)
            done = begin + len(run)
    line = images.input_stall.line(f"activations of {what}")
    if line is not None:
        log(line)


def _give_back() -> None:
    """Return freed memory to the system.

    The sizes of decoded images differ, so that the heap fragments, and would grow with the number of images.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _features(
    net: Net, images: ImageLoader, view: int, *, behind: int
) -> Iterator[tuple[NDArray[np.float32], RowNumbers]]:
    """Features and rows of each batch, given when ``behind`` more batches have been started."""
    started: deque[Returning] = deque()
    for x, rows in images.batches(view):
        with torch.inference_mode(), autocast(x.device):
            started.append(Returning(net.features(x).float(), rows))
        if len(started) > behind:
            yield _arrived(started.popleft())
    yield from map(_arrived, started)


def _arrived(batch: Returning) -> tuple[NDArray[np.float32], RowNumbers]:
    features, rows = batch.wait()
    return features.numpy(), rows.numpy()
