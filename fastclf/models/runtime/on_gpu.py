"""A body that runs on a GPU without gradients: batches of one size, and depthwise convolutions outside cuDNN.

cuDNN compiles its depthwise convolutions when they first run, again for every batch size, at about a quarter of a
second each (cudnn-frontend issue 1066): some seconds for a network that then takes milliseconds. torch's own kernels
are there at once, and 1.2 to 1.3 times slower (PyTorch pull request 91735).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

_SIDE = 5  # of a kernel: torch has code of its own for 3 and 5, and a slow one for all others
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of torch.conv2d


class SteadyBatches:
    """Runs a body on batches that are filled up to the largest one that came before: one size, one plan."""

    def __init__(self) -> None:
        self._largest: dict[tuple[int, ...], int] = {}  # shape of an image -> images

    def __call__(self, body: Callable[[Tensor], Tensor], x: Tensor, modules: Sequence[nn.Module]) -> Tensor:
        """Return features ``[B, F]`` of images ``x [B, 3, h, w]``.

        Args:
            body: in evaluation mode.
            x: images.
            modules: all of the body's.
        """
        shape, n = tuple(x.shape[1:]), len(x)
        largest = self._largest[shape] = max(n, self._largest.get(shape, 0))
        with DepthwiseOutsideCudnn():
            if n == largest or not _is_by_image(modules):
                return body(x)
            return body(torch.cat([x, x.new_zeros(largest - n, *shape)]))[:n]


def _is_by_image(modules: Iterable[nn.Module]) -> bool:
    """Return whether an image's features do not depend on the other images of its batch."""
    return not any(isinstance(module, _NormBase) and module.running_mean is None for module in modules)


class DepthwiseOutsideCudnn(TorchFunctionMode):
    """While active, depthwise convolutions that need no gradients run by torch's own kernels."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is not torch.conv2d or not _is_depthwise(args, kwargs) or not torch.backends.cudnn.enabled:
            return func(*args, **kwargs)
        torch.backends.cudnn.enabled = False
        try:
            return func(*args, **kwargs)
        finally:
            torch.backends.cudnn.enabled = True


def _is_depthwise(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a convolution, with these arguments of ``torch.conv2d``, is depthwise with a small kernel."""
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    groups = given.get("groups", 1)
    return bool(groups > 1 and groups == given["input"].shape[1] and max(given["weight"].shape[2:]) <= _SIDE)
