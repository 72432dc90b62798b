"""BatchNorm whose statistics are those of a whole batch that several processes share.

`torch.nn.SyncBatchNorm` does this on GPUs alone, and takes the places of layers; this one meets every
`torch.nn.functional.batch_norm` in a block, of whichever layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastclf import rank_tensors


class WholeBatchNorm(TorchFunctionMode):
    """While active, BatchNorm normalises with the statistics of the rows of all processes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch."""
        function = _batch_norm if func is functional.batch_norm else func
        return function(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does, on ``x [B, C, ...]`` of all processes."""
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    over, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        count = float(rank_tensors.total(torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64)))
        mean = rank_tensors.total(values.sum(over)) / count
        centred = values - mean.view(shape)
        variance = rank_tensors.total(centred.square().sum(over)) / count
        out = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            out = out * weight.view(shape)
        if bias is not None:
            out = out + bias.view(shape)
        with torch.no_grad():
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
    return out.to(x.dtype)
