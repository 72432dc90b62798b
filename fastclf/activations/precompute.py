"""Runs a frozen body once over a set of pictures and keeps its pooled features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastclf.activations.fingerprint import fingerprint
from fastclf.activations.store import ActivationWriter, open_activations
from fastclf.data.loader import PictureLoader
from fastclf.models.net import Net
from fastclf.models.precision import autocast, compute_dtype
from fastclf.progress import Progress


def activations(net: Net, loader: PictureLoader, folders: Sequence[Path], *, dtype: str, what: str) -> NDArray[Any]:
    """The features ``[N, F]`` of every picture that ``loader`` serves, in its order, mapped read-only from a file.

    Takes the file from the first of ``folders`` that has it; else computes the rows and keeps them in the first of
    ``folders`` that takes them.

    Args:
        net: its body runs in evaluation mode; its head has no part in this.
        loader: pictures in data set order.
        folders: where activation files are kept, best first.
        dtype: of the file, ``float16`` or ``float32``.
        what: the set's name, for messages.
    """
    precision = str(compute_dtype(loader.device))
    key = fingerprint(net.body, loader.ds, loader.tfms.describe(), dtype=dtype, precision=precision)
    shape = (loader.n, 2 * net.body.channels)
    for folder in folders:
        rows = open_activations(folder, key, shape, dtype)
        if rows is not None:
            return rows
    for folder in folders:
        try:
            writer = ActivationWriter(folder, key, shape, dtype)
        except OSError as error:
            warnings.warn(f"activations of {what} are not kept in {folder}: {error}", UserWarning, stacklevel=2)
            continue
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        print(f"{what}: computing activations of {shape[0]:,} pictures, {size / 1e6:.1f} MB, into {folder}")
        with writer:
            for block in _blocks(net, loader, what):
                writer.write(block)
            writer.finish()
        rows = open_activations(folder, key, shape, dtype)
        if rows is not None:
            return rows
    return np.concatenate([block.astype(dtype) for block in _blocks(net, loader, what)])


def _blocks(net: Net, loader: PictureLoader, what: str) -> Iterator[NDArray[np.float32]]:
    net.eval()
    with Progress(loader.n, f"activations of {what}", "pictures") as progress:
        for x, _ in loader.batches(0):
            with torch.inference_mode(), autocast(x.device):
                features = net.features(x).float()
            yield features.cpu().numpy()
            progress.advance(len(x))
