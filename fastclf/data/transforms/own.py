"""Augmentations of the user's own: functions become augmentations, and each is tried once before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from fastclf.arrays import Floats
from fastclf.data.transforms.base import (
    Augmentation,
    PixelAugmentation,
    checked_version,
)
from fastclf.philox import uniforms
from fastclf.settings import own_settings

PixelFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1
_TRIED = 256  # images whose parameters are tried
_SIDE = 256  # pixels, of the crops that are changed, at most


@dataclass(frozen=True)
class FunctionAugmentation(PixelAugmentation):
    """A function ``f(x, u)`` of the user's own as an augmentation.

    Attributes:
        function: takes crops ``[B, 3, sz, sz] float32`` in 0..1, not normalised yet, and for each of them 16 uniform
            numbers of its own, ``u [B, 16] float32``, 0 <= u < 1; returns the changed crops, see
            `PixelAugmentation.pixels`. Its attribute ``version`` is `Augmentation.version`.
    """

    function: PixelFunction
    n_uniforms = 16

    @property
    def name(self) -> str:
        """See `Augmentation.name`."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def is_own(self) -> bool:
        """See `Augmentation.is_own`."""
        return True

    def parameters(self, u: Floats, sz: int) -> Floats:
        """Return u, ``[N, 16]``."""
        return np.minimum(u, _BELOW_ONE)

    def pixels(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """See `PixelAugmentation.pixels`."""
        return self.function(x, parameters)

    def describe(self) -> list[Any]:
        """See `Augmentation.describe`."""
        name = getattr(self.function, "__qualname__", None)
        if name is None:
            raise ValueError(
                f"describe: {self.name} has no name of its own, by which cached views (views=) could be found again. "
                "Make it a function, or a class derived from PixelAugmentation."
            )
        return [
            f"{self.function.__module__}.{name}",
            {},
            checked_version(self.name, getattr(self.function, "version", None)),
        ]


def as_augmentations(given: object, sz: int) -> tuple[Augmentation, ...]:
    """Return what a user passes as augmentations of crops of sz x sz pixels.

    Raises:
        ValueError: one is neither an augmentation nor a function, or does not do what `Augmentation` asks of it.
    """
    if given is None:
        return ()
    augs = tuple(_as_augmentation(one) for one in (given if isinstance(given, Iterable) else [given]))
    for aug in augs:
        if aug.is_own:
            try:
                _try(aug, sz)
            except Exception as error:  # of code that is not ours
                raise ValueError(f"tfms_from_stats: aug_tfms: {_text(error)}; tried on random numbers.") from error
    return augs


def _as_augmentation(given: object) -> Augmentation:
    if isinstance(given, Augmentation):
        return given
    if callable(given) and not isinstance(given, type):
        return FunctionAugmentation(given)
    raise ValueError(
        "tfms_from_stats: aug_tfms must hold augmentations such as RandomFlip(), or functions f(x, u) of images and "
        f"random numbers, got {given!r}. Pass one of the lists, e.g. transforms_side_on."
    )


@own_settings()
def _try(aug: Augmentation, sz: int) -> None:
    if type(aug).__hash__ is None:
        raise ValueError(f"{aug.name} must be hashable, as renderers are kept by it: make it @dataclass(frozen=True)")
    u = uniforms(0, 0, np.arange(_TRIED), 0, aug.n_uniforms)
    parameters = np.asarray(aug.parameters(u, sz))
    if len(parameters) != len(u) or not np.isfinite(parameters).all():
        raise ValueError(f"{aug.name}.parameters must return finite values [N, ...], one entry for each row of u")
    if not np.allclose(aug.parameters(u[-1:], sz), parameters[-1:]):
        raise ValueError(f"{aug.name}.parameters must take each row of u by itself, and random numbers from u alone")
    aug.check(parameters, min(sz, _SIDE))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
