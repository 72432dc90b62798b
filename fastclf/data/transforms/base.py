"""What an augmentation is: how many random numbers it takes, what it makes of them, and what it does to an image."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.arrays import Floats
from fastclf.ops.crop_resize import PixelOp

_NEAR = 1e-3  # of a value 0..1: sums over batches of another size may be rounded in another order
_JSON = (bool, int, float, str, type(None))


class Augmentation:
    """A random change of training images: derive from one of the three kinds below.

    Its random numbers are a function of (seed, epoch, row): runs repeat, interrupted ones go on, and the size of a
    batch changes nothing. Make it a frozen dataclass whose fields are its arguments.

    Attributes:
        n_uniforms: how many uniform numbers one image takes.
        version: of the code of an augmentation outside fastclf, a number or text: change it with the code, and with all
            that the code depends on. Cached views (``views=``) are kept under it; without a version they are refused.
    """

    version: int | str | None = None

    @property
    def n_uniforms(self) -> int:
        """See `Augmentation`; set it as an attribute of the class."""
        return 1

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own, not one of fastclf's."""
        return type(self).__module__.partition(".")[0] != __name__.partition(".")[0]

    def parameters(self, u: Floats, sz: int) -> npt.NDArray[Any]:
        """Return the parameters of N images, ``[N, ...]``.

        Args:
            u: ``[N, n_uniforms]`` uniform numbers, 0 <= u < 1; a row's parameters depend on that row alone.
            sz: side of the crop, in pixels.
        """
        raise NotImplementedError

    def check(self, parameters: npt.NDArray[Any], sz: int) -> None:
        """Raise ValueError unless it does with the `parameters` of some images what its class says."""
        raise ValueError(f"{self.name} must derive from GeometricAugmentation, ZoomAugmentation or PixelAugmentation")

    def describe(self) -> list[Any]:
        """Return name and arguments as JSON values: everything that decides the pixels, for fingerprints.

        Raises:
            ValueError: it is an augmentation outside fastclf without a version, or an argument is not a JSON value.
        """
        cls = type(self)
        arguments = {name: _as_json(self.name, name, value) for name, value in _arguments(self).items()}
        if not self.is_own:
            return [cls.__name__, arguments]
        return [f"{cls.__module__}.{cls.__qualname__}", arguments, checked_version(self.name, self.version)]


class GeometricAugmentation(Augmentation):
    """Moves pixels: a random linear map about the middle of the crop. All of them are composed into one resampling.

    Its `parameters` are matrices ``[N, 2, 2]`` over (x, y), from the crop to the image: where a pixel's value is taken.

    Attributes:
        exact: whether it moves pixels onto pixels, so that nothing beyond the crop is needed.
    """

    exact = False

    def reach(self) -> float:
        """Return the largest sum of absolute values that a row of a matrix can have."""
        return 1.0

    def check(self, parameters: npt.NDArray[Any], sz: int) -> None:
        """See `Augmentation.check`."""
        if parameters.shape[1:] != (2, 2):
            raise ValueError(f"{self.name}.parameters must return matrices [N, 2, 2], got {list(parameters.shape)}")
        reach = np.abs(parameters).sum(axis=2).max()
        if reach > self.reach() + 1e-6:
            raise ValueError(f"{self.name}.reach must be at least {reach:.3f}, as in its matrices, got {self.reach()}")


class ZoomAugmentation(Augmentation):
    """Enlarges before the crop is cut out, as part of the one resize. Its `parameters` are factors ``[N]``."""

    def check(self, parameters: npt.NDArray[Any], sz: int) -> None:
        """See `Augmentation.check`."""
        if parameters.ndim != 1 or parameters.min() < 1:
            raise ValueError(f"{self.name}.parameters must return factors [N] of at least 1")


class PixelAugmentation(Augmentation):
    """Changes the values of the finished crops.

    One outside fastclf needs `pixels` alone, which runs in torch. fastclf's own have nodes in DALI's graph instead.

    Attributes:
        native: which pixel operation of the native renderer does the same, with the same parameters; None for none.
    """

    native: PixelOp | None = None

    @property
    def has_nodes(self) -> bool:
        """Whether DALI's graph can do it."""
        return type(self).nodes is not PixelAugmentation.nodes

    def nodes(self, dali: Any, images: Any, parameters: Any, white: float) -> Any:
        """Add nodes to the graph that is being built.

        Args:
            dali: the module ``nvidia.dali``.
            images: node of images ``[sz, sz, 3] float32``, on the CPU or on a GPU.
            parameters: node of one image's parameters, on the CPU.
            white: the value of full white.

        Returns:
            The node of the changed images.
        """
        raise NotImplementedError

    def pixels(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Change a batch of crops, each by itself.

        Args:
            x: ``[B, 3, sz, sz] float32`` in 0..1, not normalised yet, on the CPU or on a GPU. May be changed in place.
            parameters: ``[B, ...]`` on the same device; floats are float32.

        Returns:
            The same shape and dtype; values beyond 0..1 are clipped.
        """
        raise NotImplementedError

    def apply(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return `pixels`, clipped to 0..1; raise ValueError where they are no batch of the same kind.

        Args:
            x: crops ``[N, 3, sz, sz]`` of 0..1.
            parameters: what `parameters` gave for them.
        """
        with torch.no_grad():
            out = self.pixels(x, parameters)
            if not isinstance(out, torch.Tensor) or out.shape != x.shape or out.dtype != x.dtype:
                got = f"{out.dtype} {list(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
                raise ValueError(f"{self.name} must return {x.dtype} {list(x.shape)}, as it is given, got {got}.")
            return out.clamp(0, 1)

    def check(self, parameters: npt.NDArray[Any], sz: int) -> None:
        """See `Augmentation.check`."""
        if self.has_nodes:
            return
        first = parameters[:4].astype(np.float32) if parameters.dtype == np.float64 else parameters[:4]
        values, x = torch.from_numpy(first), torch.rand(4, 3, sz, sz, generator=torch.Generator().manual_seed(0))
        out, again = (self.apply(x.clone(), values.clone()) for _ in range(2))
        alone = self.apply(x[-1:].clone(), values[-1:].clone())
        if not out.isfinite().all():
            raise ValueError(f"{self.name} must return finite values")
        if not out.allclose(again, atol=_NEAR):
            raise ValueError(f"{self.name} must take its random numbers from what it is given: other pixels came again")
        if not out[-1:].allclose(alone, atol=_NEAR):
            raise ValueError(f"{self.name} must change each image by itself: one became another when it was alone")


def checked_version(name: str, version: object) -> int | str:
    """Return the version of code outside fastclf; raise ValueError where there is none."""
    if isinstance(version, bool) or not isinstance(version, int | str):
        raise ValueError(
            f"describe: {name} must have a version, a number or text that changes with its code and what that depends "
            f"on, got {version!r}: cached views (views=) are found again by it. Set {name}.version = 1."
        )
    return version


def _arguments(aug: Augmentation) -> dict[str, Any]:
    return {field.name: getattr(aug, field.name) for field in fields(aug)} if is_dataclass(aug) else vars(aug)


def _as_json(name: str, argument: str, value: object) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(name, argument, one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, _JSON):
        raise ValueError(
            f"describe: {name}.{argument} must be a number, a text or a list of them, got {value!r}: it is part of the "
            "fingerprint of cached views. Make what else is needed inside pixels() or parameters()."
        )
    return value
