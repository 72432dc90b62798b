"""A body on a GPU: batches of one size where it does not train, and depthwise convolutions outside cuDNN.

cuDNN compiles its depthwise convolutions when they first run, again for every batch size, at about a quarter of a
second each (cudnn-frontend issue 1066): some seconds for a network that then takes milliseconds. torch's own kernels
are there at once, and 1.2 to 1.3 times slower (PyTorch pull request 91735).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

_SIDE = 5  # of a kernel: torch has code of its own for 3 and 5, and a slow one for all others
_TENSORS = ("input", "weight", "bias")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_ARGUMENTS = (*_TENSORS, "stride", "padding", "dilation", "groups")  # of torch.conv2d


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
        largest = max(n, self._largest.pop(shape, 0))
        if n < largest and _is_by_image(modules):
            x = torch.cat([x, x.new_zeros(largest - n, *shape)])
        with DepthwiseOutsideCudnn():
            features = body(x)[:n]
        self._largest[shape] = largest  # only now: what exhausts memory is not tried again
        return features


def _is_by_image(modules: Iterable[nn.Module]) -> bool:
    """Return whether an image's features do not depend on the other images of its batch."""
    return not any(isinstance(module, _NormBase) and module.running_mean is None for module in modules)


class DepthwiseOutsideCudnn(TorchFunctionMode):
    """While active, depthwise convolutions run by torch's own kernels, and so do their gradients afterwards."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is not torch.conv2d or not torch.backends.cudnn.enabled:
            return func(*args, **kwargs)
        given = {**_DEFAULTS, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        if not _is_depthwise(**given):
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and any(given[name] is not None and given[name].requires_grad for name in _TENSORS):
            return _Depthwise.apply(*(given[name] for name in _ARGUMENTS))
        with _outside_cudnn():
            return func(*args, **kwargs)


@contextmanager
def _outside_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _is_depthwise(*, input: Tensor, weight: Tensor, groups: int, padding: Any, **_others: Any) -> bool:
    """Return whether a convolution, with these arguments of ``torch.conv2d``, is depthwise with a small kernel."""
    return bool(
        groups > 1
        and input.ndim == 4
        and groups == input.shape[1]
        and max(weight.shape[2:]) <= _SIDE
        and not isinstance(padding, str)
    )


def has_depthwise(module: nn.Module) -> bool:
    """Return whether a network has depthwise convolutions."""
    return any(
        isinstance(each, nn.Conv2d) and 1 < each.groups == each.in_channels and max(each.kernel_size) <= _SIDE
        for each in module.modules()
    )


class _Depthwise(torch.autograd.Function):
    """``torch.conv2d`` whose gradients are computed outside cuDNN, too; under autocast in its dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        kind = input.device.type
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (input, weight, bias)]
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(input, weight)
        ctx.how = [_pair(stride), _pair(padding), _pair(dilation)], groups
        with _outside_cudnn():
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        how, groups = ctx.how
        wanted = [*ctx.needs_input_grad[:2], False]
        with _outside_cudnn():
            found = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, *how, False, [0, 0], groups, wanted
            )[:2]
        of_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.needs_input_grad[2] else None
        pairs = zip((*found, of_bias), ctx.dtypes, strict=True)
        return (*(None if one is None else one.to(dtype) for one, dtype in pairs), None, None, None, None)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
