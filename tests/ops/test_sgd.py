"""`fastclf.SGDR` where the GPU's kernel makes its steps: against torch in float64."""

import copy
import os

import numpy as np
import pytest
import torch
from cycles import MULTIPLIERS, exact_starts
from torch import Tensor, nn

from fastclf import schedules
from fastclf.ops.registry import cuda_module
from fastclf.ops.sgd import DeviceGroups, SgdGroup, Update, Updater, Updates, UpdateTable, make_updater
from fastclf.training import optimizer as optimizer_module
from fastclf.training.optimizer import SGDR

CASES = int(os.environ.get("FASTCLF_KERNEL_CASES", "12"))
SCHEDULES = [
    schedules.Constant(),
    schedules.Cosine(5, 2),
    schedules.Triangle(6, 1, 8, 3),
    schedules.OneCycle(7, 1, 10, 10, 0.95, 0.85),
    schedules.RangeTest(9, 10.0),
    schedules.Table.of(lambda step: (1 / (1 + step), 0.5 + step / 20), 6),
    schedules.as_schedule(lambda step: 0.9**step),
]


def pairs(shapes: list[tuple[int, ...]], device: torch.device) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same parameters in float32 on the device, and in float64."""
    ours = [nn.Parameter(torch.randn(shape).to(device)) for shape in shapes]
    return ours, [nn.Parameter(p.detach().double()) for p in ours]


def set_gradients(ours: list[nn.Parameter], exact: list[nn.Parameter], *, move: bool = False) -> None:
    """Set new gradients: in the same memory, or, ``move``, elsewhere, as after `zero_grad(set_to_none=True)`."""
    for a, b in zip(ours, exact, strict=True):
        a.grad = torch.randn_like(a) if a.grad is None or move else a.grad.copy_(torch.randn_like(a))
        b.grad = a.grad.double()


def largest_error(ours: list[nn.Parameter], exact: list[nn.Parameter]) -> float:
    pairs = [(a, b) for a, b in zip(ours, exact, strict=True) if a.numel()]
    return max(float(((a.double() - b).abs() / (1 + b.abs().max())).max().detach()) for a, b in pairs)


def test_equals_float64(kernel_device: torch.device, rng: np.random.Generator) -> None:
    for _ in range(CASES):
        sizes = [1, 3, 4, 31, 257, 4096, 8191, 8192, 8195, 20_001]
        shapes = [(int(rng.choice(sizes)),) for _ in range(int(rng.integers(1, 6)))] + [(0,), (3, 5)]
        ours, exact = pairs(shapes, kernel_device)
        decay, decoupled, ema = float(rng.choice([0, 0.01])), bool(rng.integers(2)), float(rng.choice([0, 0.6, 0.99]))
        schedule, cut = SCHEDULES[rng.integers(len(SCHEDULES))], int(rng.integers(len(shapes)))
        optimizers = []
        for parameters in (ours, exact):
            groups = [
                {"params": parameters[:cut], "lr": 0.1},
                {"params": parameters[cut:], "lr": 0.03, "momentum": 0.7},
            ]
            groups = [group for group in groups if group["params"]]
            optimizers.append(SGDR(groups, 0.1, weight_decay=decay, decoupled=decoupled, schedule=schedule, ema=ema))
        for _ in range(8):
            set_gradients(ours, exact, move=bool(rng.integers(2)))
            for optimizer in optimizers:
                optimizer.step()
        assert largest_error(ours, exact) < 2e-6
        if ema:
            averages = [[of.state[p]["average"] for p in ps] for of, ps in zip(optimizers, (ours, exact), strict=True)]
            assert largest_error(*averages) < 2e-6
        assert optimizers[0].rates() == optimizers[1].rates()


def test_gradients_that_move_need_no_new_plan(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in every step after `zero_grad(set_to_none=True)`; one that appears, or is laid out otherwise, does."""
    plans: list[int] = []

    def counted(updates: Updates) -> Updater | None:
        plans.append(len([*updates.tensors]))
        return make_updater(updates)

    monkeypatch.setattr(optimizer_module, "make_updater", counted)
    ours, exact = pairs([(20_001,), (6, 4, 3, 5), (7,), (0,)], kernel_device)
    late, late_exact = ours.pop(2), exact.pop(2)
    first, second = SGDR([*ours, late], 0.1), SGDR([*exact, late_exact], 0.1)
    kept = []  # so that no gradient comes to lie where one has lain before
    for step in range(9):
        if step == 3:
            ours, exact = [*ours, late], [*exact, late_exact]
        set_gradients(ours, exact, move=True)
        kept += [p.grad for p in ours]
        if step == 6:
            p = ours[1]
            assert p.grad is not None
            p.grad = p.grad.transpose(0, 1).contiguous().transpose(0, 1)
        first.step()
        second.step()
    assert largest_error(ours, exact) < 2e-6
    assert plans == [3, 4, 3, 4]


def test_memory_that_is_not_aligned(kernel_device: torch.device) -> None:
    whole = torch.randn(2, 1003, device=kernel_device)
    before = whole.clone()
    ours = [nn.Parameter(whole[0][1:]), nn.Parameter(whole[1][:-3])]
    exact = [nn.Parameter(p.detach().double()) for p in ours]
    optimizers = SGDR(ours, 0.1), SGDR(exact, 0.1)
    for _ in range(3):
        set_gradients(ours, exact)
        for optimizer in optimizers:
            optimizer.step()
    assert largest_error(ours, exact) < 1e-6
    assert torch.equal(whole[0][:1], before[0][:1])
    assert torch.equal(whole[1][-3:], before[1][-3:])


def test_changed_groups_and_saved_state(kernel_device: torch.device) -> None:
    ours, exact = pairs([(33,), (8, 8, 3, 3)], kernel_device)
    optimizers = [SGDR(ps, 0.1, schedule=schedules.Cosine(4)) for ps in (ours, exact)]
    for step in range(9):
        set_gradients(ours, exact)
        if step == 3:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 0.02
        if step == 6:
            state = copy.deepcopy(optimizers[0].state_dict())
            assert state["param_groups"][0]["steps"] == 6
            optimizers[0] = SGDR(ours, 0.7)
            optimizers[0].load_state_dict(state)
        for optimizer in optimizers:
            optimizer.step()
    assert largest_error(ours, exact) < 1e-6


def test_many_groups(kernel_device: torch.device) -> None:
    ours, exact = pairs([(5,)] * 70, kernel_device)
    for parameters in (ours, exact):
        groups = [{"params": [p], "lr": 0.001 * (i + 1)} for i, p in enumerate(parameters)]
        if parameters is ours:
            set_gradients(ours, exact)
        SGDR(groups, 0.1).step()
    assert largest_error(ours, exact) < 1e-6


class TestTable:
    """What only the kernels have, without a reference implementation: the table itself."""

    @pytest.fixture(autouse=True)
    def _kernels(self, kernel_device: torch.device, request: pytest.FixtureRequest) -> None:
        if "reference" in request.node.name:
            pytest.skip("the reference implementation has no table")

    def make(self, sizes: list[int], device: torch.device) -> tuple[list[Tensor], UpdateTable]:
        gradients = [torch.randn(n, device=device) for n in sizes]
        updates = [Update(torch.zeros_like(g), g, torch.zeros_like(g), None, 0) for g in gradients]
        module = cuda_module(device)
        assert module is not None
        return gradients, UpdateTable(module, Updates(device, updates))

    def test_cycles_start_where_exact_arithmetic_has_them(self, kernel_device: torch.device) -> None:
        starts = [(n, by, at) for by in MULTIPLIERS for n in range(1, 51, 7) for at in exact_starts(n, by, 3)]
        groups = [SgdGroup(1.0, schedules.Cosine(n, float(by)), 0.0, 0.0, False) for n, by, _ in starts]
        parameters = [torch.zeros(1, device=kernel_device) for _ in starts]
        updates = [Update(p, torch.ones_like(p), torch.zeros_like(p), None, i) for i, p in enumerate(parameters)]
        module = cuda_module(kernel_device)
        assert module is not None
        table = UpdateTable(module, Updates(kernel_device, updates))
        table.step(DeviceGroups(groups, [at for _, _, at in starts], kernel_device))
        assert torch.cat(parameters).tolist() == [-1] * len(starts)

    def test_clip_factor(self, kernel_device: torch.device, rng: np.random.Generator) -> None:
        for _ in range(CASES):
            sizes = [int(n) for n in rng.choice([1, 5, 300, 8192, 20_001], int(rng.integers(1, 5)))]
            gradients, table = self.make(sizes, kernel_device)
            norm = float(torch.cat(gradients).double().norm())
            out = torch.empty(1, device=kernel_device)
            for clip in (0.5 * norm, 2 * norm):
                table.clip_factor(clip, out)
                assert float(out) == pytest.approx(min(1, clip / (norm + 1e-6)), rel=1e-6)

    def test_step_counter_and_scale(self, kernel_device: torch.device) -> None:
        p, g, v = torch.zeros(3, 10, device=kernel_device)
        g += 1
        module = cuda_module(kernel_device)
        assert module is not None
        groups = DeviceGroups([SgdGroup(0.5, schedules.Constant(), 0.0, 0.0, False)], [6], kernel_device)
        step_counter = torch.tensor([6, 2], dtype=torch.int32, device=kernel_device)
        table = UpdateTable(module, Updates(kernel_device, [Update(p, g, v, None, 0)]))
        table.step(groups, scale=torch.full((1,), 0.25, device=kernel_device), step_counter=step_counter)
        assert torch.equal(p, torch.full_like(p, -0.125))
        assert step_counter.tolist() == [7, 3]
        assert groups.steps.tolist() == [7]
