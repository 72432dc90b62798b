"""One SGD step for all tensors of all groups on a GPU: what the kernel reads from device memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastclf.ops.backend import kernel_module
from fastclf.ops.kernel_checks import current, stream_of

_PART = 8192  # elements: long tensors are split, so that blocks share the work


class Update(NamedTuple):
    """A parameter and what a step needs of it: float32, all in the same order of memory."""

    parameter: Tensor
    gradient: Tensor
    velocity: Tensor
    average: Tensor | None
    group: int

    def numbers(self, first: int = 0, most: int | None = None) -> tuple[int, ...]:
        """Addresses from element ``first`` on, at most ``most`` elements, and the group: a line of the native table."""
        tensors = (self.parameter, self.gradient, self.velocity, self.average)
        addresses = (0 if tensor is None else tensor.data_ptr() + 4 * first for tensor in tensors)
        left = self.parameter.numel() - first
        return (*addresses, left if most is None else min(most, left), self.group)


class UpdateTable:
    """Which tensors a step updates, as the kernels read it.

    Args:
        updates: the tensors, which must stay where they are.
        device: where all of them are, and kernels run (`kernel_module`).
    """

    def __init__(self, updates: Iterable[Update], device: torch.device) -> None:
        rows = [
            update.numbers(first, _PART) for update in updates for first in range(0, update.parameter.numel(), _PART)
        ]
        module = kernel_module(device)
        assert module is not None
        self.device, self._module = device, module
        self._table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 6).to(device)
        self._partial = torch.empty(max(len(rows), 1), dtype=torch.float64, device=device)
        self._ticket = torch.zeros(1, dtype=torch.int32, device=device)

    def clip_factor(self, clip: float, out: Tensor) -> None:
        """Computes what brings the norm of all gradients down to `clip`, at most 1, into `out [1] float32`."""
        with current(self.device):
            self._module.clip_factor(
                **self._common(), clip=clip, partial=self._partial.data_ptr(), factor=out.data_ptr()
            )

    def step(self, groups: Tensor, *, scale: Tensor | None = None, clock: Tensor | None = None) -> None:
        """Updates every tensor, then advances every group's step number and the clock.

        Args:
            groups: `[G, 14] float64`: highest rate, momentum, weight decay, decoupled (0 or 1), steps taken, the
                schedule's table of 8, and what an average keeps of itself.
            scale: `[1] float32`, a factor on all gradients.
            clock: `[2] int32`; see `RowBatch`.
        """
        if groups.ndim != 2 or groups.shape[1] != 14 or groups.dtype != torch.float64 or not groups.is_contiguous():
            raise ValueError(f"UpdateTable.step: groups must be [G, 14] float64, got {list(groups.shape)}.")
        with current(self.device):
            self._module.sgdr_update(
                **self._common(),
                groups=groups.data_ptr(),
                n_groups=len(groups),
                scale=0 if scale is None else scale.data_ptr(),
                clock=0 if clock is None else clock.data_ptr(),
            )

    def _common(self) -> dict[str, int]:
        return {
            "tensors": self._table.data_ptr(),
            "n_tensors": len(self._table),
            "ticket": self._ticket.data_ptr(),
            "stream": stream_of(self.device),
        }
