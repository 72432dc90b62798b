"""What every way to make `ImageClassifierData` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import torch

from fastclf import ranks
from fastclf.argument_checks import check_count
from fastclf.data.bad_images import OnBad
from fastclf.threads import available_threads

SEED = 42
_Make = TypeVar("_Make", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Further arguments of every way to make `ImageClassifierData`.

    Attributes:
        seed: of the split, the order and the augmentations; 42 by default.
        device: where batches are; the GPU when there is one.
        num_workers: threads that decode; as many as processors, at most 8.
        on_bad: what happens when images cannot be decoded: "raise" names them all, "skip" goes on without them.
            Then their predictions are NaN, and they are listed in tmp/bad_images.csv.
        max_bad: most images that "skip" may leave out, over all sets; any number by default.
        max_pixels: an image with more counts as one that cannot be decoded; 178,956,970 by default.
        keep_decoded: whether decoded images stay in a GPU's memory, as long as half of it is free: later epochs and
            passes neither read nor decode them, unless their files have changed; True by default. Of no
            effect on a processor.
    """

    seed: int
    device: str | torch.device | None
    num_workers: int | None
    on_bad: OnBad
    max_bad: int | None
    max_pixels: int
    keep_decoded: bool


def explains_options(make: _Make) -> _Make:
    """Write out `Options` in the docstring of a function that takes them, so that `help` shows each."""
    if make.__doc__ and Options.__doc__:  # not under python -OO
        _, _, words = inspect.cleandoc(Options.__doc__).partition("Attributes:\n")
        make.__doc__ = inspect.cleandoc(make.__doc__).replace("    **options: see `Options`.", words)
    return make


def as_batch_size(bs: int, n: int) -> int:
    """Return the batch size of a training set of n rows, of which a batch holds n at most.

    Raises:
        ValueError: bs is no whole number of at least 1.
    """
    return min(check_count("ImageClassifierData", "bs", bs, fix="Pass e.g. bs=64."), n)


def as_threads(num_workers: int | None) -> int:
    """Return how many threads decode.

    Raises:
        ValueError: num_workers is no whole number of at least 0, or None.
    """
    if num_workers is None:
        return available_threads()
    return max(1, check_count("ImageClassifierData", "num_workers", num_workers, 0, fix="Or pass None."))


def default_device() -> torch.device:
    """Return where batches are unless the user says so: on the GPU where there is one."""
    return ranks.gpu() if torch.cuda.is_available() else torch.device("cpu")


def as_device(device: str | torch.device | None) -> torch.device:
    """Return where batches are.

    Raises:
        ValueError: it is none, a GPU that is not there, or one of a kind that nothing here runs on, such as "mps".
    """
    if device is None:
        return default_device()
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be such as 'cpu' or 'cuda', got {device!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda' (an NVIDIA GPU), got '{device}'. Pass 'cpu'.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be there, got {device}: torch sees no GPU. Pass 'cpu'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be there, got {device}: the last one is cuda:{torch.cuda.device_count() - 1}.")
    return ranks.gpu() if device == torch.device("cuda") else device
