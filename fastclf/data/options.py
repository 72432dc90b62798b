"""What every way to make `ImageClassifierData` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch

from fastclf.data.loader import available_threads
from fastclf.data.validation.bad_images import OnBad

SEED = 42
_Make = TypeVar("_Make", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Further arguments of every way to make `ImageClassifierData`.

    Attributes:
        seed: of the split, the order and the augmentations; 42 by default.
        device: where batches are; the GPU when there is one.
        num_workers: threads that decode; as many as processors, at most 8.
        on_bad: what happens when pictures cannot be decoded: "raise" names them all, "skip" goes on without them.
            Then their predictions are NaN, and they are listed in tmp/bad_images.csv.
        max_bad: most pictures that "skip" may leave out, over all sets; any number by default.
        max_pixels: a picture with more counts as one that cannot be decoded; 178,956,970 by default.
    """

    seed: int
    device: str | torch.device | None
    num_workers: int | None
    on_bad: OnBad
    max_bad: int | None
    max_pixels: int


def explains_options(make: _Make) -> _Make:
    """Writes out `Options` in the docstring of a function that takes them, so that `help` shows each."""
    if make.__doc__ and Options.__doc__:  # not under python -OO
        _, _, words = inspect.cleandoc(Options.__doc__).partition("Attributes:\n")
        make.__doc__ = inspect.cleandoc(make.__doc__).replace("    **options: see `Options`.", words)
    return make


def as_threads(num_workers: int | None) -> int:
    """Returns how many threads decode.

    Raises:
        ValueError: when num_workers is no whole number of at least 0, or None.
    """
    if num_workers is None:
        return available_threads()
    if isinstance(num_workers, bool) or not isinstance(num_workers, int | np.integer) or num_workers < 0:
        raise ValueError(f"ImageClassifierData: num_workers must be 0 or more, got {num_workers!r}. Or pass None.")
    return max(1, int(num_workers))


def as_device(device: str | torch.device | None) -> torch.device:
    """Returns where batches are.

    Raises:
        ValueError: when it is none, or a GPU that is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"ImageClassifierData: device must be such as 'cpu' or 'cuda', got {device!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"ImageClassifierData: device must be there, got {device}: torch sees no GPU. Pass 'cpu'.")
    return device
