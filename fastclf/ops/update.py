"""One SGD step for all tensors of all groups on a GPU: what the kernel reads from device memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastclf.ops.backend import kernel_module
from fastclf.ops.kernel_checks import current, stream_of

_PART = 8192  # elements: long tensors are split, so that blocks share the work


class UpdateTable:
    """Which tensors a step updates, as the kernels read it.

    Args:
        tensors: parameter, gradient, momentum and group number; float32, each parameter's three in the same order of
            memory. They must stay where they are.
        device: where all of them are, and kernels run (`kernel_module`).
    """

    def __init__(self, tensors: Iterable[tuple[Tensor, Tensor, Tensor, int]], device: torch.device) -> None:
        rows = [
            (*(t.data_ptr() + 4 * first for t in (p, g, v)), min(_PART, p.numel() - first), group)
            for p, g, v, group in tensors
            for first in range(0, p.numel(), _PART)
        ]
        module = kernel_module(device)
        assert module is not None
        self.device, self._module = device, module
        self._table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5).to(device)
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
            groups: `[G, 13] float64`: highest rate, momentum, weight decay, decoupled (0 or 1), steps taken, and the
                schedule's table of 8.
            scale: `[1] float32`, a factor on all gradients.
            clock: `[2] int32`; see `RowBatch`.
        """
        if groups.ndim != 2 or groups.shape[1] != 13 or groups.dtype != torch.float64 or not groups.is_contiguous():
            raise ValueError(f"UpdateTable.step: groups must be [G, 13] float64, got {list(groups.shape)}.")
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
