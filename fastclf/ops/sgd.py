"""One step of SGD with momentum for all tensors of all groups; each group's rate follows its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastclf.ops.rates import SCHEDULE, rate, record_values
from fastclf.ops.registry import address, current, operation, stream_of
from fastclf.schedules import Schedule, Table

_GRADIENT = 1  # the column of a gradient's address in what `Update.numbers` gives
_PART = 8192  # elements: on a GPU long tensors are split, so that blocks share the work
GROUP = np.dtype(  # csrc/device/schedule.h: SgdGroup
    [
        ("lr", np.float64),
        ("momentum", np.float64),
        ("weight_decay", np.float64),
        ("ema", np.float64),
        ("decoupled", np.int64),
        ("schedule", SCHEDULE),
    ]
)


class SgdGroup(NamedTuple):
    """What a step knows of a group, apart from its step number.

    Attributes:
        lr: the highest rate; the schedule's factor multiplies it.
        schedule: rates and momentum as functions of the step; not a `Function`, but its table.
        momentum: used where the schedule has none of its own.
        weight_decay: added to the gradient, times the weight; or, `decoupled`, shrinks the weight by rate * decay.
        decoupled: see weight_decay.
        ema: what an average keeps of itself.
    """

    lr: float
    schedule: Schedule
    momentum: float
    weight_decay: float
    decoupled: bool
    ema: float = 0.0


class Update(NamedTuple):
    """A parameter and what a step needs of it: float32, all in the same order of memory."""

    parameter: Tensor
    gradient: Tensor
    velocity: Tensor
    average: Tensor | None
    group: int

    def numbers(self, first: int = 0, most: int | None = None) -> tuple[int, ...]:
        """Return addresses from element ``first`` on, at most ``most`` elements, and the group: a `SgdTensor`."""
        tensors = (self.parameter, self.gradient, self.velocity, self.average)
        addresses = (0 if tensor is None else tensor.data_ptr() + 4 * first for tensor in tensors)
        left = self.parameter.numel() - first
        return (*addresses, left if most is None else min(most, left), self.group)


class Updates(NamedTuple):
    """All updates of tensors on one device; all but gradients must stay where they are."""

    device: torch.device
    tensors: Iterable[Update]


class Updater(Protocol):
    """Makes steps for the tensors that it was made for, and keeps their addresses alone."""

    def step(self, groups: Sequence[SgdGroup], steps: Sequence[int]) -> None:
        """Update every tensor; `steps` were taken before, of each group."""

    def move_gradients(self, addresses: Sequence[int]) -> None:
        """Read the gradients, which are laid out as before, at other addresses, one for each update in its order."""

    def steps(self) -> list[int] | None:
        """Return the steps taken where they are counted on the device, which waits for it; else None."""


def update_tensor(p: Tensor, g: Tensor, velocity: Tensor, average: Tensor | None, group: SgdGroup, step: int) -> None:
    """Update one tensor in place, of any dtype and layout: the reference implementation of a step."""
    factor, own = rate(group.schedule, step)
    lr, decay = float(group.lr) * factor, float(group.weight_decay)  # torch takes no whole numbers beyond 64 bits
    if group.decoupled:
        p.mul_(1 - lr * decay)
    elif decay:
        g = g.add(p, alpha=decay)
    velocity.mul_(float(group.momentum) if own is None else own).add_(g)
    p.sub_(velocity, alpha=lr)
    if average is not None:
        average.lerp_(p, 1 - group.ema)


@operation
def make_updater(updates: Updates) -> Updater | None:
    """Return what updates all of these tensors in one call; None where `update_tensor` must, one by one."""
    return None


@make_updater.cpu
def _(native: ModuleType, updates: Updates) -> Updater | None:
    return _CpuUpdater(native, updates)


@make_updater.cuda
def _(native: ModuleType, updates: Updates) -> Updater | None:
    return _CudaUpdater(native, updates)


def group_records(
    groups: Sequence[SgdGroup], places: Mapping[Schedule, tuple[int, int]] | None = None
) -> npt.NDArray[Any]:
    """Return `[G] GROUP`, the groups as native code reads them; `places` says where tables' values are on a GPU."""
    records = np.zeros(len(groups), GROUP)
    for n, g in enumerate(groups):
        schedule = record_values(g.schedule, *(places or {}).get(g.schedule, ()))
        records[n] = (g.lr, g.momentum, g.weight_decay, g.ema, g.decoupled, schedule)
    return records


class _CpuUpdater:
    def __init__(self, native: ModuleType, updates: Updates) -> None:
        self._native = native
        self._tensors = np.array([update.numbers() for update in updates.tensors], dtype=np.uint64).reshape(-1, 6)
        self._groups: list[SgdGroup] = []
        self._arguments: dict[str, int] = {}

    def step(self, groups: Sequence[SgdGroup], steps: Sequence[int]) -> None:
        if groups != self._groups:
            self._groups, self._records = list(groups), group_records(groups)
            self._taken = np.empty(len(groups), np.int64)
            self._arguments = {
                "tensors": address(self._tensors),
                "n_tensors": len(self._tensors),
                "groups": address(self._records),
                "steps": address(self._taken),
                "n_groups": len(groups),
            }
        self._taken[:] = steps
        self._native.sgd_step(**self._arguments, threads=torch.get_num_threads())

    def move_gradients(self, addresses: Sequence[int]) -> None:
        self._tensors[:, _GRADIENT] = addresses

    def steps(self) -> list[int] | None:
        return None


class DeviceGroups:
    """The groups where a GPU's kernels read them: a captured graph does so again at each replay."""

    def __init__(self, groups: Sequence[SgdGroup], steps: Sequence[int], device: torch.device) -> None:
        self.records = torch.empty(len(groups), GROUP.itemsize, dtype=torch.uint8, device=device)
        self.steps = torch.tensor(steps, dtype=torch.int64, device=device)
        self._groups: list[SgdGroup] = []
        self.set(groups)

    def set(self, groups: Sequence[SgdGroup]) -> None:
        """Write what has changed, in the same place."""
        if groups == self._groups:
            return
        device = self.records.device
        self._tables = {  # kept: the records hold their addresses
            g.schedule: _on_device(g.schedule, device) for g in groups if isinstance(g.schedule, Table)
        }
        places: dict[Schedule, tuple[int, int]] = {
            table: (address(values), address(momenta)) for table, (values, momenta) in self._tables.items()
        }
        records = group_records(groups, places)
        self.records.copy_(torch.from_numpy(records.view(np.uint8).reshape(len(groups), -1)))
        self._groups = list(groups)


def _on_device(table: Table, device: torch.device) -> tuple[Tensor, Tensor | None]:
    momenta = None if table.momenta is None else torch.from_numpy(table.momenta).to(device)
    return torch.from_numpy(table.factors).to(device), momenta


class UpdateTable:
    """Which tensors a step updates, as the GPU's kernels read it."""

    def __init__(self, native: ModuleType, updates: Updates) -> None:
        parts = [
            (number, first, update.numbers(first, _PART))
            for number, update in enumerate(updates.tensors)
            for first in range(0, update.parameter.numel(), _PART)
        ]
        rows = [numbers for _, _, numbers in parts]
        self.device, self._native = updates.device, native
        self._rows = np.array(rows, np.int64).reshape(-1, 6)
        self._owners = np.array([number for number, _, _ in parts], np.int64)  # the update that a row is a part of
        self._offsets = np.array([4 * first for _, first, _ in parts], np.int64)  # of its first element, in bytes
        self._table = torch.from_numpy(self._rows.copy()).to(self.device)
        self._partial = torch.empty(max(len(rows), 1), dtype=torch.float64, device=self.device)
        self._block_counter = torch.zeros(1, dtype=torch.int32, device=self.device)

    def move_gradients(self, addresses: Sequence[int]) -> None:
        """See `Updater.move_gradients`; the GPU is not waited for, nor does the table move."""
        self._rows[:, _GRADIENT] = np.array(addresses, np.int64)[self._owners] + self._offsets
        rows = torch.from_numpy(self._rows)
        # A copy in page-locked memory, which torch does not use again before the GPU has read it.
        self._table.copy_(rows.pin_memory() if self.device.type == "cuda" else rows, non_blocking=True)

    def clip_factor(self, clip: float, out: Tensor) -> None:
        """Compute what brings the norm of all gradients down to `clip`, at most 1, into `out [1] float32`."""
        with current(self.device):
            self._native.clip_factor(**self._common(), clip=clip, partial=address(self._partial), factor=address(out))

    def step(self, groups: DeviceGroups, *, scale: Tensor | None = None, step_counter: Tensor | None = None) -> None:
        """Update every tensor, then advance every group's steps and the step counter.

        Args:
            groups: the groups that the updates name.
            scale: `[1] float32`, a factor on all gradients.
            step_counter: `[2] int32`; see `RowBatch`.
        """
        with current(self.device):
            self._native.sgd_step(**self.arguments(groups, scale, step_counter))

    def arguments(self, groups: DeviceGroups, scale: Tensor | None, step_counter: Tensor | None) -> dict[str, int]:
        """Return a step's arguments as launchers take them."""
        return {
            **self._common(),
            "groups": address(groups.records),
            "steps": address(groups.steps),
            "n_groups": len(groups.steps),
            "scale": address(scale),
            "step_counter": address(step_counter),
        }

    def _common(self) -> dict[str, int]:
        return {
            "tensors": address(self._table),
            "n_tensors": len(self._table),
            "block_counter": address(self._block_counter),
            "stream": stream_of(self.device),
        }


class _CudaUpdater:
    def __init__(self, native: ModuleType, updates: Updates) -> None:
        self._table = UpdateTable(native, updates)
        self._groups: DeviceGroups | None = None

    def step(self, groups: Sequence[SgdGroup], steps: Sequence[int]) -> None:
        if self._groups is None or len(groups) != len(self._groups.steps):
            self._groups = DeviceGroups(groups, steps, self._table.device)
        self._groups.set(groups)
        self._table.step(self._groups)

    def move_gradients(self, addresses: Sequence[int]) -> None:
        self._table.move_gradients(addresses)

    def steps(self) -> list[int] | None:
        return None if self._groups is None else self._groups.steps.tolist()
