"""A module's values, kept to be restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastclf.models.modes import modes_kept


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Run a block that may train ``module``; its tensors, gradients and modes are afterwards what they were before.

    Holds after an error or an interrupt too. Values are restored in place, so that references stay valid.
    """
    tensors = _copies(module)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    try:
        with modes_kept(module):
            yield
    finally:
        _restore(module, tensors)
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name]


@contextmanager
def unchanged_on_error(module: nn.Module) -> Iterator[None]:
    """Run a block that changes the tensors of ``module``; after an error they are what they were before."""
    tensors = _copies(module)
    try:
        yield
    except Exception:
        _restore(module, tensors)
        raise


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


@torch.no_grad()
def _restore(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in _tensors(module).items():
        tensor.copy_(tensors[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class LastGood:
    """The last values of some modules that were all finite; kept in main memory.

    Attributes:
        step: the training step before which the modules held them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.step = 0
        self._tensors = [tensor.detach() for module in modules for tensor in _tensors(module).values()]
        # Page-locked for a GPU: copies then take their turn among what runs there, and nobody waits for them.
        self._copies = [torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda) for tensor in self._tensors]

    def finite(self) -> bool:
        """Return whether all values that the modules hold now are finite."""
        # A sum is finite only if all that it adds is: one pass, and nothing as large as the tensor is made.
        sums = [tensor.sum(dtype=torch.float32) for tensor in self._tensors if tensor.is_floating_point()]
        return not sums or bool(torch.stack(sums).isfinite().all())

    def take(self, step: int) -> None:
        """Keep the values that the modules hold now."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self.step = step

    def restore(self) -> None:
        """Make the modules hold them again."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            tensor.copy_(copy, non_blocking=True)
