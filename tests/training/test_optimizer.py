import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastclf import ops, schedules
from fastclf.ops import rate
from fastclf.training.optimizer import AVERAGE, MOMENTUM, SGDR


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Any:
    with ops.use_backend(request.param):
        yield request.param


def tensors(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


SHAPES: list[tuple[int, ...]] = [(1,), (3, 5), (70000,), (64, 3, 7, 7), (0,), (129, 257)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Constant(),
        schedules.Cosine(20, 2),
        schedules.OneCycle(50, 1, 10, 10, 0.95, 0.85),
        schedules.Table.of(lambda step: (0.97**step, (1 + step) / 60), 40),
        schedules.as_schedule(lambda step: 1 / (1 + step)),
    ],
)
def test_equals_torch_sgd_over_100_steps(schedule: schedules.Schedule, weight_decay: float) -> None:
    ours, theirs = tensors(SHAPES), tensors(SHAPES)
    lrs = (0.01, 0.003)
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    groups = [{"params": ours[:2], "lr": lrs[0]}, {"params": ours[2:], "lr": lrs[1]}]
    optimizer = SGDR(groups, 0.1, weight_decay=weight_decay, schedule=schedule)
    peer_groups = [{"params": theirs[:2], "lr": lrs[0]}, {"params": theirs[2:], "lr": lrs[1]}]
    peer = torch.optim.SGD(peer_groups, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    for step in range(100):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        factor, own = rate(schedule, step)
        for lr, group in zip(lrs, peer.param_groups, strict=True):
            group["lr"] = lr * factor
            group["momentum"] = 0.9 if own is None else own
        optimizer.step()
        peer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("backend")
def test_decoupled_decay_against_float64() -> None:
    (p,) = tensors([(50, 7)])
    w, v = p.detach().double().clone(), torch.zeros(50, 7, dtype=torch.float64)
    schedule = schedules.Cosine(10)
    optimizer = SGDR([p], 0.1, weight_decay=0.1, decoupled=True, schedule=schedule)
    for step in range(25):
        p.grad = torch.randn_like(p)
        lr = 0.1 * rate(schedule, step)[0]
        v = 0.9 * v + p.grad.double()
        w = w * (1 - lr * 0.1) - lr * v
        assert optimizer.rates() == [lr]
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_backends_agree() -> None:
    results: list[list[Tensor]] = []
    start, gradients = tensors(SHAPES), [[torch.randn(s) for s in SHAPES] for _ in range(10)]
    for name in ("reference", "native"):
        ours = copy.deepcopy(start)
        optimizer = SGDR(ours, 0.1, weight_decay=0.01, schedule=schedules.Cosine(4))
        with ops.use_backend(name):
            for step in gradients:
                for p, g in zip(ours, step, strict=True):
                    p.grad = g.clone()
                optimizer.step()
        results.append([p.detach() for p in ours])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("backend")
class TestTensors:
    def test_without_gradient_stays(self) -> None:
        p, q = tensors([(3,), (3,)])
        before = q.detach().clone()
        p.grad = torch.ones(3)
        SGDR([p, q], 0.1).step()
        assert torch.equal(q, before)
        assert not torch.equal(p, before)

    def test_sparse_gradient_is_refused(self) -> None:
        table = nn.Embedding(5, 3, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(ValueError, match="gradients must be dense"):
            SGDR(table.parameters(), 0.1).step()

    @pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded gradient", "float64", "bfloat16"])
    def test_layouts_and_dtypes(self, layout: str) -> None:
        p, g = torch.randn(6, 4, 3, 5), torch.randn(6, 4, 3, 5)
        if layout == "channels_last":
            p, g = p.to(memory_format=torch.channels_last), g.to(memory_format=torch.channels_last)
        elif layout == "transposed":
            p, g = p.transpose(0, 3), g.permute(3, 1, 2, 0)
        elif layout == "expanded gradient":
            g = torch.randn(1, 4, 1, 5).expand(6, 4, 3, 5)
        else:
            dtype = torch.float64 if layout == "float64" else torch.bfloat16
            p, g = p.to(dtype), g.to(dtype)
        ours, theirs = nn.Parameter(p.clone()), nn.Parameter(p.clone())
        optimizer, peer = SGDR([ours], 0.1), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
        for _ in range(3):
            ours.grad = theirs.grad = g
            optimizer.step()
            peer.step()
        torch.testing.assert_close(ours, theirs)

    def test_mixed_layout_of_gradient(self) -> None:
        ours = nn.Parameter(torch.randn(6, 4, 3, 5).to(memory_format=torch.channels_last))
        theirs = nn.Parameter(ours.detach().clone())
        optimizer, peer = SGDR([ours], 0.1), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
        for contiguous in (True, False, True):
            g = torch.randn(6, 4, 3, 5)
            ours.grad = theirs.grad = g if contiguous else g.to(memory_format=torch.channels_last)
            optimizer.step()
            peer.step()
        torch.testing.assert_close(ours, theirs)

    def test_moved_parameters(self) -> None:
        ours, theirs = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        theirs.load_state_dict(ours.state_dict())
        optimizer = SGDR(ours.parameters(), 0.1)
        peer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if step == 2:
                ours.to(memory_format=torch.channels_last)
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            optimizer.step()
            peer.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("how", ["cleared", "replaced", "one entry"])
    def test_state_that_is_changed(self, how: str) -> None:
        """Native code would go on with memory that is given back."""
        (ours,), (peer,) = tensors([(301, 40)]), tensors([(301, 40)])
        peer.data.copy_(ours.data)
        optimizers = SGDR([ours], 0.1, momentum=0.9), torch.optim.SGD([peer], 0.1, momentum=0.9)
        for step in range(6):
            gradient = torch.randn(301, 40)
            for p, optimizer in zip((ours, peer), optimizers, strict=True):
                p.grad = gradient.clone()
                if step == 3 and how == "cleared":
                    optimizer.state.clear()
                elif step == 3:
                    optimizer.state[p] = {} if how == "one entry" else {"momentum_buffer": torch.ones(301, 40)}
                optimizer.step()
            torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("how", ["other data", "swapped values", "swapped keys", "handed on", "renamed"])
    def test_state_that_is_moved_between_parameters(self, how: str) -> None:
        """With the same tensors in it, or the same dictionaries, at the same addresses."""
        start, results = torch.randn(2, 30), []
        for make in (SGDR, torch.optim.SGD):
            ours = [nn.Parameter(row.clone()) for row in start]
            optimizer = make(ours, lr=0.1, momentum=0.9)
            for step in range(6):
                for n, p in enumerate(ours):
                    p.grad = torch.sin(torch.arange(30.0) + step + n)
                state, (a, b) = optimizer.state, ours
                if step == 3 and how == "other data":
                    state[a][MOMENTUM].data = torch.ones(30)
                elif step == 3 and how == "swapped values":
                    state[a], state[b] = state[b], state[a]
                elif step == 3 and how == "swapped keys":
                    kept = [state.pop(p) for p in ours]
                    state.update(zip((b, a), kept, strict=True))
                elif step == 3 and how == "handed on":
                    state[b] = {MOMENTUM: state[a].pop(MOMENTUM).clone()}
                    state[a][MOMENTUM] = state[b][MOMENTUM].clone()
                elif step == 3:
                    state[a][AVERAGE] = state[a][MOMENTUM]
                    state[a][MOMENTUM] = torch.zeros(30)
                optimizer.step()
            results.append(torch.stack([p.detach() for p in ours]))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)

    def test_closure(self) -> None:
        (p,) = tensors([(3,)])

        def closure() -> float:
            p.grad = 2 * p.detach()
            return float((p.detach() ** 2).sum())

        before = float((p.detach() ** 2).sum())
        assert SGDR([p], 0.1).step(closure) == pytest.approx(before)
        assert float((p.detach() ** 2).sum()) < before

    def test_state_dict_goes_on_exactly(self) -> None:
        through, resumed = tensors([(40, 3), (5, 2, 3, 3)]), tensors([(40, 3), (5, 2, 3, 3)])
        gradients = [[torch.randn_like(p) for p in through] for _ in range(6)]
        for a, b in zip(through, resumed, strict=True):
            b.data.copy_(a.data)
        first = SGDR(through, 0.1, schedule=schedules.Cosine(4))
        second = SGDR(resumed, 0.1, schedule=schedules.Cosine(4))
        for step, gs in enumerate(gradients):
            if step == 3:
                state = copy.deepcopy(second.state_dict())
                second = SGDR(resumed, 0.7, schedule=schedules.Constant())
                second.load_state_dict(state)
            for ps, optimizer in ((through, first), (resumed, second)):
                for p, g in zip(ps, gs, strict=True):
                    p.grad = g.clone()
                optimizer.step()
        for a, b in zip(through, resumed, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("backend")
class TestAverages:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("ema", [0.5, 0.99])
    def test_against_float64(self, ema: float, dtype: torch.dtype) -> None:
        ours = [nn.Parameter(p.detach().to(dtype)) for p in tensors([*SHAPES, (8, 3, 5, 5)])]
        ours[-1].data = ours[-1].data.to(memory_format=torch.channels_last)
        groups = [{"params": ours[:2]}, {"params": ours[2:], "ema": 0.0}]
        optimizer = SGDR(groups, 0.1, weight_decay=0.1, decoupled=True, ema=ema)
        averages = [p.detach().double().clone() for p in ours[:2]]
        for _ in range(20):
            for p in ours:
                p.grad = torch.randn_like(p)
            optimizer.step()
            averages = [ema * a + (1 - ema) * p.detach().double() for a, p in zip(averages, ours[:2], strict=True)]
        before = [p.detach().clone() for p in ours]
        with optimizer.averaged():
            for p, average in zip(ours, averages, strict=False):
                torch.testing.assert_close(p.detach().double(), average, rtol=1e-5, atol=1e-6)
            assert all(torch.equal(p, b) for p, b in zip(ours[2:], before[2:], strict=True))
        assert all(torch.equal(p, b) for p, b in zip(ours, before, strict=True))

    def test_layout_that_changes(self) -> None:
        ours, peer = (nn.Parameter(torch.randn(6, 4, 3, 5)) for _ in range(2))
        peer.data.copy_(ours.data)
        optimizers = SGDR([ours], 0.1, ema=0.7), SGDR([peer], 0.1, ema=0.7)
        for step in range(4):
            if step == 2:
                ours.data = ours.data.to(memory_format=torch.channels_last)
            gradient = torch.randn(6, 4, 3, 5)
            ours.grad, peer.grad = gradient.clone(memory_format=torch.contiguous_format), gradient.clone()
            if step >= 2:
                ours.grad = gradient.to(memory_format=torch.channels_last)
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(optimizers[0].state[ours]["average"], optimizers[1].state[peer]["average"])

    def test_state_goes_on_exactly(self) -> None:
        through, resumed = tensors([(40, 3)])[0], tensors([(40, 3)])[0]
        resumed.data.copy_(through.data)
        first, second = SGDR([through], 0.1, ema=0.9), SGDR([resumed], 0.1, ema=0.9)
        for step in range(6):
            if step == 3:
                state = copy.deepcopy(second.state_dict())
                second = SGDR([resumed], 0.1)
                second.load_state_dict(state)
            through.grad = torch.randn_like(through)
            resumed.grad = through.grad.clone()
            first.step()
            second.step()
        assert torch.equal(first.state[through]["average"], second.state[resumed]["average"])

    def test_switched_off_and_on(self) -> None:
        """An average of weights that are long gone is not taken up again."""
        (p,) = tensors([(5,)])
        optimizer = SGDR([p], 0.1, ema=0.9)
        for ema in (0.9, 0.0, 0.9):
            optimizer.param_groups[0]["ema"] = ema
            start = p.detach().clone()
            p.grad = torch.randn(5)
            optimizer.step()
            assert ("average" in optimizer.state[p]) == bool(ema)
        torch.testing.assert_close(optimizer.state[p]["average"], 0.9 * start + 0.1 * p.detach())

    def test_without_any(self) -> None:
        (p,) = tensors([(5,)])
        p.grad = torch.ones(5)
        optimizer = SGDR([p], 0.1)
        optimizer.step()
        before = p.detach().clone()
        with optimizer.averaged():
            assert torch.equal(p, before)

    def test_an_error_inside_brings_the_weights_back(self) -> None:
        (p,) = tensors([(5,)])
        p.grad = torch.ones(5)
        optimizer = SGDR([p], 0.1, ema=0.9)
        optimizer.step()
        before = p.detach().clone()
        with pytest.raises(KeyError), optimizer.averaged():
            assert not torch.equal(p, before)
            raise KeyError
        assert torch.equal(p, before)


def test_torchs_compiler_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the wrappers around these two would at their first call, which takes a second and more."""

    def imports(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.optim.Optimizer, "add_param_group", imports)
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", imports)
    p, q = tensors([(5,), (2,)])
    optimizer = SGDR([p], 0.1)
    optimizer.add_param_group({"params": [q], "lr": 0.2})
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None
    assert not p.grad.any()
    optimizer.zero_grad()
    assert p.grad is None
    assert q.grad is None


def test_older_state_is_loaded() -> None:
    (p,) = tensors([(5,)])
    p.grad = torch.ones(5)
    optimizer = SGDR([p], 0.1)
    optimizer.step()
    state = optimizer.state_dict()
    del state["param_groups"][0]["ema"]
    SGDR([p], 0.1).load_state_dict(state)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_as_the_original_does(copied: Any) -> None:
    params = tensors([(50, 7), (3,)])
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.3}]
    optimizer = SGDR(groups, 0.1, schedule=schedules.Cosine(7), ema=0.9)

    def steps(optimizer: SGDR, seed: int) -> None:
        torch.manual_seed(seed)
        for _ in range(3):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn_like(p)
            optimizer.step()

    steps(optimizer, 0)
    others, other = copied((params, optimizer))
    before = [p.detach().clone() for p in params]
    steps(other, 1)
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    steps(optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    with optimizer.averaged(), other.averaged():
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_the_state_of_other_groups_or_of_another_optimizer_is_refused() -> None:
    p, q = tensors([(5,), (3,)])
    two = SGDR([{"params": [p]}, {"params": [q]}], 0.1)
    one = SGDR([p], 0.1)
    for optimizer, state in ((one, two), (two, one), (one, torch.optim.SGD([p], 0.1))):
        with pytest.raises(ValueError, match=r"SGDR: state_dict must be of an SGDR with [12] group\(s\)"):
            optimizer.load_state_dict(state.state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1), ("lr", "1e-3"), ("lr", None), ("momentum", 1.0), ("weight_decay", float("nan")), ("ema", 1.0)],
)
def test_misuse_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"SGDR: {name} must be"):
        SGDR(tensors([(1,)]), **({"lr": 0.1} | {name: value}))


def test_threads_do_not_change_a_bit() -> None:
    start, gradient = torch.randn(200_001), torch.randn(200_001)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            p = nn.Parameter(start.clone())
            p.grad = gradient.clone()
            SGDR([p], 0.1).step()
            results.append(p.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
