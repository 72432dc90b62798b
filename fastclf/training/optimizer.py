"""SGD with momentum that computes every group's rate itself, in one call per step for all groups and tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from fastclf.argument_checks import is_number
from fastclf.ops.rates import rate
from fastclf.ops.registry import backend
from fastclf.ops.sgd import SgdGroup, Update, Updater, Updates, make_updater, update_tensor
from fastclf.schedules import Constant, Function, RateFunction, Schedule, Table, as_schedule, from_description

MOMENTUM, AVERAGE = "momentum_buffer", "average"  # what is kept of a parameter
# Below what torch wraps them in for its compiler: the first call would import all of that, which takes 1.4 s.
_add_param_group = inspect.unwrap(Optimizer.add_param_group)
_zero_grad = inspect.unwrap(Optimizer.zero_grad)
_GroupTensor = tuple[int, Tensor, Tensor]  # group number, parameter, gradient


class SGDR(Optimizer):
    """SGD with momentum (no dampening, no Nesterov) whose rates follow a schedule.

    In step t a group's rate is `lr` times the schedule's factor, and its momentum the schedule's, or its own where the
    schedule has none. Weight decay is added to the gradient, or, `decoupled`, shrinks the weight by rate * decay
    (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019). With the same rates it equals
    `torch.optim.SGD`.

    Float32 tensors are updated in one native call, those on a GPU in one kernel; others, and gradients laid out
    otherwise than their parameter, by the same formulas in torch. On a GPU the step numbers live there: `step` may be
    captured into a CUDA graph, after one step with the same gradient tensors, and each replay is the next step.

    Args:
        params: tensors or groups, as for any optimizer; a group may set any of the keywords itself.
        lr: the highest rate.
        momentum: 0 <= momentum < 1.
        weight_decay: see above.
        decoupled: see above.
        schedule: constant when not given; a `fastclf.schedules` object, or any function of the step: it gives the
            factor on the rate, or (factor, momentum). A function is no part of `state_dict`; where steps are captured
            into a CUDA graph, pass its values: `schedules.Table.of(function, steps)`.
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
        schedule: Schedule | RateFunction | None = None,
        ema: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "schedule": Constant() if schedule is None else as_schedule(schedule),
            "ema": ema,
            "steps": 0,
        }
        super().__init__(params, defaults)
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._planned_for: list[object] = []  # what the plan was made for: parameters' addresses, and layouts
        self._gradients: list[int] = []  # addresses
        self._updaters: list[Updater] = []
        self._updated: list[list[int]] = []  # positions of the tensors that each of them updates
        self._others: list[int] = []  # positions of the tensors that are updated one by one

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: its tensors as ``params``, and what differs from the defaults.
        """
        _add_param_group(self, param_group)
        group = self.param_groups[-1]
        group["schedule"] = as_schedule(group["schedule"])
        _check_group(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; see `torch.optim.Optimizer.zero_grad`.

        Args:
            set_to_none: whether they are given back, not filled with zeros.
        """
        _zero_grad(self, set_to_none)

    def rates(self) -> list[float]:
        """Return each group's rate in the next step; waits for the GPU, where the step numbers may be."""
        self._read_steps()
        return [group["lr"] * rate(group["schedule"], group["steps"])[0] for group in self.param_groups]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every tensor that has a gradient.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            What ``closure`` gives; None without one.

        Raises:
            ValueError: a gradient is sparse; a graph is being captured and no such step has been made before, or with
                a schedule that is a function.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = [
            (n, p, g) for n, group in enumerate(self.param_groups) for p in group["params"] if (g := p.grad) is not None
        ]
        self._plan(tensors)
        groups, steps = self._groups(), [group["steps"] for group in self.param_groups]
        for updater in self._updaters:
            updater.step(groups, steps)
        for position in self._others:
            n, p, g = tensors[position]
            average = self._average(p, self.param_groups[n])
            update_tensor(p, g, self._velocity(p), average, groups[n], steps[n])
        if not _capturing():
            for group in self.param_groups:
                group["steps"] += 1
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let every parameter that has an average hold it inside of a `with` block, to evaluate or to save.

        Returns:
            A context manager.
        """
        pairs = [(p, state[AVERAGE]) for p, state in self.state.items() if AVERAGE in state]
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)

    def _velocity(self, p: Tensor) -> Tensor:
        if MOMENTUM not in self.state[p]:
            self.state[p][MOMENTUM] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return self._laid_out(p, MOMENTUM)

    def _average(self, p: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        if not group["ema"]:
            self.state[p].pop(AVERAGE, None)  # it would be of old weights
            return None
        if AVERAGE not in self.state[p]:
            self.state[p][AVERAGE] = p.detach().clone(memory_format=torch.preserve_format)
        return self._laid_out(p, AVERAGE)

    def _laid_out(self, p: Tensor, name: str) -> Tensor:
        """Return what is kept of a parameter, in the parameter's own order of memory."""
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
        """Decide how each tensor is updated, unless that was done before.

        Gradients may lie elsewhere in every step, as after ``zero_grad(set_to_none=True)``.
        """
        if any(g.is_sparse for _, _, g in tensors):
            raise ValueError("SGDR: gradients must be dense, got a sparse one. Use sparse=False in the embedding.")
        now = self._situation(tensors)
        gradients = [g.data_ptr() for _, _, g in tensors]
        if now == self._planned_for and gradients == self._gradients:
            return
        if _capturing():
            raise ValueError(
                "SGDR: a graph is being captured with gradients that have moved since the last step. Make one step "
                "before, and keep the gradients' memory: zero_grad(set_to_none=False)."
            )
        self._gradients = gradients
        if now == self._planned_for:
            for known, positions in zip(self._updaters, self._updated, strict=True):
                known.move_gradients([gradients[position] for position in positions])
            return
        self._read_steps()
        places: dict[torch.device, list[int]] = {}
        self._others = []
        for position, (_, p, g) in enumerate(tensors):
            (places.setdefault(p.device, []) if _same_memory(p, g) else self._others).append(position)
        self._updaters, self._updated = [], []
        for device, positions in places.items():
            updater = make_updater(Updates(device, [self._update(*tensors[position]) for position in positions]))
            if updater is None:
                self._others += positions
            else:
                self._updaters.append(updater)
                self._updated.append(positions)
        self._planned_for = self._situation(tensors)  # with the momenta that it has made

    def _situation(self, tensors: list[_GroupTensor]) -> list[object]:
        """Return all that a plan depends on, also where memory lies: state may be cleared or replaced at any time.

        State is looked at in its own order, as finding that of each parameter takes longer than the rest of a step.
        """
        kept = [state.get(name) for name in (MOMENTUM, AVERAGE) for state in self.state.values()]
        return [
            backend(),
            [bool(group["ema"]) for group in self.param_groups],
            [*map(id, self.state)],
            [None if tensor is None else tensor.data_ptr() for tensor in kept],
            [p.data_ptr() for _, p, _ in tensors],
            [g.stride() for _, _, g in tensors],
            [g.dtype for _, _, g in tensors],
        ]

    def _update(self, n: int, p: Tensor, g: Tensor) -> Update:
        return Update(p, g, self._velocity(p), self._average(p, self.param_groups[n]), n)

    def _read_steps(self) -> None:
        """Read the steps taken from where they are counted."""
        for updater in self._updaters:
            for group, steps in zip(self.param_groups, updater.steps() or (), strict=False):
                group["steps"] = steps

    def _groups(self) -> list[SgdGroup]:
        return [
            SgdGroup(
                group["lr"],
                _as_native(group["schedule"], group["steps"]),
                group["momentum"],
                group["weight_decay"],
                group["decoupled"],
                group["ema"],
            )
            for group in self.param_groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return momenta, averages, steps taken, and the groups' numbers."""
        self._read_steps()
        state = super().state_dict()
        groups = [{**group, "schedule": group["schedule"].describe()} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            ValueError: a number is outside its range, the groups are not those of this optimizer, or a schedule that
                is a function or a table is another one here.
        """
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups) or not all("schedule" in group for group in saved):
            raise ValueError(
                f"SGDR: state_dict must be of an SGDR with {len(self.param_groups)} group(s) of parameters, got "
                f"{len(saved)} with {sorted({*saved[0]} - {'params'}) if saved else 'nothing'}. Load the state of the "
                "same optimizer."
            )
        own = [group["schedule"] for group in self.param_groups]
        groups = [
            {"ema": 0.0, **group, "schedule": _loaded(group["schedule"], schedule)}  # older ones know no averages
            for group, schedule in zip(saved, own, strict=True)
        ]
        for group in groups:
            _check_group(group)
        super().load_state_dict({**state_dict, "param_groups": groups})

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold."""
        self._read_steps()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a copy, a pickle or `load_state_dict` holds: the momenta are other tensors now."""
        super().__setstate__(state)
        self._forget_plan()


def _check_group(group: dict[str, Any]) -> None:
    largest = float(np.finfo(np.float32).max)  # native code computes in float32
    for name, limit in (("lr", largest), ("weight_decay", largest), ("momentum", 1.0), ("ema", 1.0), ("steps", 2**53)):
        value = group[name].item() if isinstance(group[name], Tensor) else group[name]
        if not (is_number(value) and 0 <= value < limit):
            raise ValueError(f"SGDR: {name} must be a number of at least 0 and below {limit:.4g}, got {value!r}.")


def _as_native(schedule: Schedule, step: int) -> Schedule:
    """Return a schedule that native code knows: of a function, its value."""
    if not isinstance(schedule, Function):
        return schedule
    if _capturing():
        raise ValueError(
            "SGDR: a graph is being captured, which cannot call the function of the schedule. Pass its values: "
            "schedule=schedules.Table.of(function, steps)."
        )
    factor, momentum = schedule.at(step)
    return Table(np.array([factor]), None if momentum is None else np.array([momentum]))


def _loaded(saved: Any, own: Schedule) -> Schedule:
    """Return the schedule of a saved group; its own where what it computes was not saved."""
    if not isinstance(saved, str):
        return from_description(saved)
    if saved != own.describe():
        raise ValueError(f"SGDR: schedule must be the {saved} that the state was saved with, got {own.describe()}.")
    return own


def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for a, b in pairs:
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


def _capturing() -> bool:
    """Return whether a CUDA graph is being captured, where nothing runs yet."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def _same_memory(p: Tensor, g: Tensor) -> bool:
    """Return whether p and g are float32 on one device and lie in memory in the same order, without gaps."""
    if p.dtype != torch.float32 or g.dtype != torch.float32 or p.device != g.device:
        return False
    if p.is_contiguous():
        return g.is_contiguous()
    return p.stride() == g.stride() and p.is_contiguous(memory_format=torch.channels_last) if p.ndim == 4 else False
