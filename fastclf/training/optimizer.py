"""SGD with momentum that computes every group's rate itself, in one call per step for all groups and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from fastclf.ops.backend import Backend, backend, kernel_module, native_module
from fastclf.ops.update import Update, UpdateTable
from fastclf.training import schedule as schedules
from fastclf.training.schedule import Schedule

_MOMENTUM, _AVERAGE = "momentum_buffer", "average"
_GroupTensor = tuple[int, Tensor, Tensor]  # group number, parameter, gradient
_NUMBERS = 14  # of a group


class SGDR(Optimizer):
    """SGD with momentum (no dampening, no Nesterov) whose rates follow a schedule.

    In step t a group's rate is `lr * schedule.factor(t)` and its momentum the schedule's, or its own where the schedule
    has none. Weight decay is added to the gradient, or, `decoupled`, shrinks the weight by rate * decay (Loshchilov and
    Hutter, "Decoupled weight decay regularization", 2019). With the same rates it equals `torch.optim.SGD`.

    Float32 tensors are updated in one native call, those on a GPU in one kernel; others, and gradients laid out
    otherwise than their parameter, by the same formulas in torch. On a GPU the step numbers live there: `step` may be
    captured into a CUDA graph, after one step with the same gradient tensors, and each replay is the next step.

    Args:
        params: tensors or groups, as for any optimizer; a group may set any of the keywords itself.
        lr: the highest rate.
        momentum: 0 <= momentum < 1.
        weight_decay: see above.
        decoupled: see above.
        schedule: a `fastclf.training.schedule` object; constant when not given. A group stores its table.
        ema: 0 <= ema < 1: after each step, a running average of every parameter keeps this share of itself and takes
            the rest from the parameter (Polyak and Juditsky, "Acceleration of stochastic approximation by averaging",
            1992, with exponential weights). It starts as the parameter is before its first step. 0 keeps none. See
            `averaged`.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        schedule: Schedule | None = None,
        ema: float = 0.0,
    ) -> None:
        table = (schedules.Constant() if schedule is None else schedule).table().tolist()
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "schedule": table,
            "ema": ema,
            "steps": 0,
        }
        super().__init__(params, defaults)
        self._planned_for: list[object] = []  # what the plan was made for: addresses and layouts
        self._tensors = np.empty((0, 6), dtype=np.uint64)  # native: see `Update.numbers`
        self._on_device: dict[torch.device, _DeviceStep] = {}
        self._plain: list[int] = []  # positions of the others

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; see `torch.optim.Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not isinstance(group["schedule"], list):
            group["schedule"] = group["schedule"].table().tolist()
        _check_group(group)

    def rates(self) -> list[float]:
        """Each group's rate in the next step; waits for the GPU, where the step numbers may be."""
        self._read_steps()
        return [
            group["lr"] * schedule_from_table(group["schedule"]).factor(group["steps"]) for group in self.param_groups
        ]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every tensor that has a gradient.

        Raises:
            ValueError: a gradient is sparse; a graph is being captured and no such step has been made before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = [
            (n, p, g) for n, group in enumerate(self.param_groups) for p in group["params"] if (g := p.grad) is not None
        ]
        self._plan(tensors)
        if len(self._tensors):
            self._step_native()
        for on_device in self._on_device.values():
            on_device.run(self._group_numbers())
        for position in self._plain:
            number, p, g = tensors[position]
            self._step_plain(self.param_groups[number], p, g)
        if not _capturing():
            for group in self.param_groups:
                group["steps"] += 1
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Lets every parameter that has an average hold it inside of a `with` block, to evaluate or to save."""
        pairs = [(p, state[_AVERAGE]) for p, state in self.state.items() if _AVERAGE in state]
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)

    def _velocity(self, p: Tensor) -> Tensor:
        if _MOMENTUM not in self.state[p]:
            self.state[p][_MOMENTUM] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return self._laid_out(p, _MOMENTUM)

    def _average(self, p: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        if not group["ema"]:
            self.state[p].pop(_AVERAGE, None)  # it would be of old weights
            return None
        if _AVERAGE not in self.state[p]:
            self.state[p][_AVERAGE] = p.detach().clone(memory_format=torch.preserve_format)
        return self._laid_out(p, _AVERAGE)

    def _laid_out(self, p: Tensor, name: str) -> Tensor:
        """What is kept of a parameter, in the parameter's own order of memory."""
        kept: Tensor = self.state[p][name]
        if kept.shape != p.shape:
            raise ValueError(
                f"SGDR: {name} must have its parameter's shape {list(p.shape)}, got {list(kept.shape)}. "
                "Load the state of the same model."
            )
        if kept.stride() != p.stride():  # loaded from a file, or the parameter has moved to channels_last
            kept = self.state[p][name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(kept)
        return kept

    def _plan(self, tensors: list[_GroupTensor]) -> None:
        """Decides how each tensor is updated, unless all lie where they lay in the last step."""
        if any(g.is_sparse for _, _, g in tensors):
            raise ValueError("SGDR: gradients must be dense, got a sparse one. Use sparse=False in the embedding.")
        now: list[object] = [backend(), *(bool(group["ema"]) for group in self.param_groups)]
        now += [(p.data_ptr(), g.data_ptr(), g.stride()) for _, p, g in tensors]
        if now == self._planned_for:
            return
        if _capturing():
            raise ValueError(
                "SGDR: a graph is being captured with gradients that have moved since the last step. Make one step "
                "before, and keep the gradients' memory: zero_grad(set_to_none=False)."
            )
        self._read_steps()
        native: list[tuple[int, ...]] = []
        kernel: dict[torch.device, list[Update]] = {}
        self._plain = []
        for position, (n, p, g) in enumerate(tensors):
            kernels = kernel_module(p.device) is not None
            if not _same_memory(p, g) or not (kernels or (backend() is Backend.NATIVE and p.device.type == "cpu")):
                self._plain.append(position)
                continue
            update = Update(p, g, self._velocity(p), self._average(p, self.param_groups[n]), n)
            if kernels:
                kernel.setdefault(p.device, []).append(update)
            else:
                native.append(update.numbers())
        self._tensors = np.array(native, dtype=np.uint64).reshape(-1, 6)
        self._on_device = {device: _DeviceStep(updates, device) for device, updates in kernel.items()}
        self._planned_for = now

    def _read_steps(self) -> None:
        """Steps taken, from where they are counted."""
        for on_device in self._on_device.values():
            for group, steps in zip(self.param_groups, on_device.steps(), strict=False):
                group["steps"] = steps

    def _group_numbers(self) -> npt.NDArray[np.float64]:
        """`[G, 14]`: each group as native code reads it."""
        names = ("lr", "momentum", "weight_decay", "decoupled", "steps")
        return np.array(
            [[*(group[name] for name in names), *group["schedule"], group["ema"]] for group in self.param_groups],
            dtype=np.float64,
        )

    def _step_native(self) -> None:
        groups = self._group_numbers()
        native_module().sgdr_step(
            tensors=self._tensors.ctypes.data,
            n_tensors=len(self._tensors),
            groups=groups.ctypes.data,
            n_groups=len(groups),
            threads=torch.get_num_threads(),
        )

    def _step_plain(self, group: dict[str, Any], p: Tensor, g: Tensor) -> None:
        schedule = schedule_from_table(group["schedule"])
        rate, own = float(group["lr"]) * schedule.factor(group["steps"]), schedule.momentum(group["steps"])
        velocity, average = self._velocity(p), self._average(p, group)
        decay = float(group["weight_decay"])  # torch takes no whole numbers beyond 64 bits
        if group["decoupled"]:
            p.mul_(1 - rate * decay)
        elif decay:
            g = g.add(p, alpha=decay)
        velocity.mul_(float(group["momentum"]) if own is None else own).add_(g)
        p.sub_(velocity, alpha=rate)
        if average is not None:
            average.lerp_(p, 1 - group["ema"])

    def state_dict(self) -> dict[str, Any]:
        """Momenta, averages, steps taken, and the groups' numbers."""
        self._read_steps()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave.

        Raises:
            ValueError: a number is outside its range, or the groups are not those of this optimizer.
        """
        groups = [{"ema": 0.0, **group} for group in state_dict["param_groups"]]  # older ones know no averages
        for group in groups:
            _check_group(group)
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._planned_for, self._on_device = [], {}  # the momenta are other tensors now


class _DeviceStep:
    """The update of all tensors on one device by its kernel, which keeps the groups' numbers there."""

    def __init__(self, updates: list[Update], device: torch.device) -> None:
        self._table = UpdateTable(updates, device)
        self._told = np.empty((0, _NUMBERS))  # what the device knows, but for the steps, which it counts itself
        self._groups = torch.empty(0, _NUMBERS, dtype=torch.float64, device=device)

    def run(self, groups: npt.NDArray[np.float64]) -> None:
        """Updates; tells the device first what has changed in the groups."""
        if not np.array_equal(np.delete(groups, 4, 1), np.delete(self._told, 4, 1)):
            if len(groups) == len(self._told):
                groups[:, 4] = self.steps()
            else:
                self._groups = self._groups.new_empty(groups.shape)
            self._told = groups
            self._groups.copy_(torch.from_numpy(groups))  # where it was: a captured graph reads it there
        self._table.step(self._groups)

    def steps(self) -> list[int]:
        """Steps taken, of each group."""
        return [int(n) for n in self._groups[:, 4].tolist()]


def _check_group(group: dict[str, Any]) -> None:
    largest = float(np.finfo(np.float32).max)  # native code computes in float32
    for name, limit in (("lr", largest), ("weight_decay", largest), ("momentum", 1.0), ("ema", 1.0), ("steps", 2**53)):
        if not 0 <= group[name] < limit:
            raise ValueError(f"SGDR: {name} must be at least 0 and below {limit:.4g}, got {group[name]}.")
    if len(group["schedule"]) != 8:  # native code reads as many
        raise ValueError(f"SGDR: schedule must be a table of 8 numbers, got {len(group['schedule'])}.")
    schedule_from_table(group["schedule"])


def schedule_from_table(table: list[float]) -> Schedule:
    """The schedule that `Schedule.table` describes.

    Raises:
        ValueError: its kind is unknown.
    """
    kind, nb, *rest = table
    if kind == schedules.Constant.kind:
        return schedules.Constant()
    if kind == schedules.SGDR.kind:
        return schedules.SGDR(int(nb), rest[0])
    if kind == schedules.CLR.kind:
        return schedules.CLR(int(nb), *rest[:3])
    if kind == schedules.CLRBeta.kind:
        momenta = rest[4:6] if rest[3] else (None, None)
        return schedules.CLRBeta(int(nb), *rest[:3], *momenta)
    if kind == schedules.Finder.kind:
        return schedules.Finder(int(nb), rest[0], bool(rest[1]))
    raise ValueError(f"SGDR: schedule must be a table of fastclf.training.schedule, got kind {kind}.")


def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for a, b in pairs:
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


def _capturing() -> bool:
    """Whether a CUDA graph is being captured, where nothing runs yet."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def _same_memory(p: Tensor, g: Tensor) -> bool:
    """Whether p and g are float32 on one device and lie in memory in the same order, without gaps."""
    if p.dtype != torch.float32 or g.dtype != torch.float32 or p.device != g.device:
        return False
    if p.is_contiguous():
        return g.is_contiguous()
    return p.stride() == g.stride() and p.is_contiguous(memory_format=torch.channels_last) if p.ndim == 4 else False
