"""Leaving a module exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Runs a block that may train ``module``; its tensors, gradients and modes are afterwards what they were before.

    Holds after an error or an interrupt too. Values are restored in place, so that references stay valid.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}
    gradients = {name: p.grad for name, p in module.named_parameters()}
    modes = {name: child.training for name, child in module.named_modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(module).items():
                tensor.copy_(tensors[name])
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name]
        for name, child in module.named_modules():
            child.training = modes[name]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
