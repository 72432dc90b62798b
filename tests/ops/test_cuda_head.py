"""The training step made of the GPU's kernels, against float64 and the processor's engine, with shared masks."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kinks import away_from_kinks
from torch import Tensor, nn

from fastclf import ops, schedules
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.ops.arguments import IndexedRows, RowSource, as_row_source
from fastclf.ops.head import cuda, cuda_rows, reference
from fastclf.ops.head.cuda import CudaHead
from fastclf.ops.head.cuda_rows import Staged
from fastclf.ops.head.reference import ReferenceHead
from fastclf.ops.head.spec import HeadTraining, Precision, steps_in
from fastclf.ops.registry import cuda_module

RATES = HeadRates(0.02, schedules.Cosine(100), weight_decay=1e-3)


@pytest.fixture
def device(kernel_device: torch.device, request: pytest.FixtureRequest) -> torch.device:
    if "reference" in request.node.name:
        pytest.skip("the reference implementation has no kernels")
    return kernel_device


class Lesson:
    """A head with rows to learn from, on the CPU."""

    def __init__(self, *widths: int, n: int = 500, kind: str = "nll") -> None:
        self.rows = (torch.randn(n, widths[0]).abs() * torch.rand(widths[0]) * 3).half()
        self.classes, self.n = widths[-1], n
        many = torch.randint(2, (n, self.classes)).float()
        self.targets = torch.randint(self.classes, (n,)) if kind == "nll" else many
        self.loss = NLL() if kind == "nll" else BCE()
        self.head = Head(widths[0], self.classes, ps=[0.25] * (len(widths) - 2) + [0.5], xtra_fc=widths[1:-1])

    def spec(self, device: torch.device | str = "cpu") -> HeadSpec:
        spec = HeadSpec.from_layers(copy.deepcopy(self.head).to(device).layers)
        assert spec is not None
        return spec

    def engine(self, spec: HeadSpec, rates: HeadRates = RATES) -> HeadEngine:
        return HeadEngine(spec, self.rows, self.targets, loss=self.loss, rates=rates, max_batch=64, seed=7)

    def training(self, spec: HeadSpec, precision: Precision = "float32") -> HeadTraining:
        return HeadTraining(spec, RowSource(self.rows), self.targets, self.loss, RATES, 7, 64, precision)

    def kernels(
        self,
        spec: HeadSpec,
        precision: Precision = "float32",
        resident_bytes: int | None = None,
        rows: RowSource | None = None,
        max_batch: int = 64,
    ) -> CudaHead:
        module = cuda_module(spec.device)
        assert module is not None
        return CudaHead(
            module,
            replace(self.training(spec, precision), rows=rows or RowSource(self.rows), max_batch=max_batch),
            resident_bytes=resident_bytes,
        )

    def float64(self) -> ReferenceHead:
        blocks = copy.deepcopy(self.spec()).blocks
        for block in blocks:
            block.bn.double()
            block.linear.double()
        return ReferenceHead(self.training(HeadSpec(blocks)))

    def away_from_kinks(
        self, rows: int, batch_size: int, before: ReferenceHead, first_step: int = 0
    ) -> tuple[ReferenceHead, Tensor, Tensor]:
        """`before` trained on an order of rows `[rows]` that is drawn for it, that order, and the losses."""

        def draw() -> tuple[ReferenceHead, Tensor, Tensor]:
            plain, order = copy.deepcopy(before), torch.randint(self.n, (rows,))
            return plain, order, plain.train(order, batch_size, first_step, frozen_bn=False)

        return away_from_kinks(draw)


def tensors(spec: HeadSpec) -> list[Tensor]:
    return [t.detach() for block in spec.blocks for t in block.tensors()]


def distance(spec: HeadSpec, other: HeadSpec) -> float:
    """The largest difference of any tensor, in units of its largest value (or 1)."""
    pairs = zip(tensors(spec), tensors(other), strict=True)
    return max(float((a.cpu().double() - b.cpu().double()).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize(("kind", "steps"), [("nll", 300), ("bce", 60)])
def test_steps_are_those_of_the_processor(device: torch.device, kind: str, steps: int) -> None:
    lesson = Lesson(70, 33, 5, kind=kind)
    plain, parts = lesson.float64(), []
    for first_step in range(0, steps, 10):
        plain, *part = lesson.away_from_kinks(320, 32, plain, first_step)
        parts.append(part)
    exact, order, want = plain.spec, *(torch.cat(each) for each in zip(*parts, strict=True))
    native = lesson.spec()
    with ops.use_backend("native"):
        losses = lesson.engine(native).train(order, 32, 0)
    ours = lesson.spec(device)
    engine = lesson.engine(ours)
    assert type(engine._trainer) is CudaHead
    got = engine.train(order, 32, 0)
    assert got.device == ours.device
    # twice the error of the processor's own float32, and a few roundings more
    assert distance(ours, exact) <= 2 * distance(native, exact) + 2e-6
    errors = [float((x.cpu().double() - want).abs().max()) for x in (got, losses)]
    assert errors[0] <= 2 * errors[1] + 2e-6


@pytest.mark.parametrize("frozen", [False, True])
def test_rows_that_do_not_fit_are_staged(device: torch.device, frozen: bool) -> None:
    lesson, results = Lesson(40, 20, 3), []
    order, index = torch.randint(lesson.n, (10 * 33 + 9,)), torch.randperm(lesson.n).numpy()
    elsewhere = IndexedRows(lesson.rows.numpy()[np.argsort(index)], index)  # the same rows
    for limit, rows in itertools.product((None, 0), (RowSource(lesson.rows), as_row_source("", elsewhere))):
        spec = lesson.spec(device)
        head = lesson.kernels(spec, resident_bytes=limit, rows=rows)
        assert isinstance(head.rows, Staged) == (limit == 0)
        losses = [head.train(order, 33, 0, frozen_bn=frozen), head.train(order[:99], 33, 11, frozen_bn=frozen)]
        results.append([*losses, *tensors(spec)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_batches_of_every_size(device: torch.device) -> None:
    lesson = Lesson(20, 9, 4)
    ours, plain = lesson.spec(device), lesson.float64()
    head, step = lesson.kernels(ours), 0
    for batch, rows in ((64, 64), (11, 108), (64, 9), (8, 24), (64, 300)):
        plain, order, _ = lesson.away_from_kinks(rows, batch, plain, step)
        head.train(order, batch, step, frozen_bn=False)
        step += -(-len(order) // batch)
    assert distance(ours, plain.spec) < 2e-6


@pytest.mark.parametrize("max_batch", [64, 129, 1025])  # less and less is made by our kernels
@pytest.mark.parametrize(
    ("widths", "clip"), [((20, 9, 4), None), ((20, 9, 7, 4), None), ((21, 4), None), ((20, 9, 4), 0.1)]
)
def test_every_form_of_the_step(
    device: torch.device, max_batch: int, widths: tuple[int, ...], clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "RATES", replace(RATES, clip=clip))
    lesson = Lesson(*widths)
    # a last batch of two rows would not do: where they hardly differ, BatchNorm divides by that
    plain, order, want = lesson.away_from_kinks(6 * 33 + 9, 33, lesson.float64())
    ours = lesson.spec(device)
    got = lesson.kernels(ours, max_batch=max_batch).train(order, 33, 0, frozen_bn=False)
    assert distance(ours, plain.spec) < 2e-6
    torch.testing.assert_close(got.cpu().double(), want, rtol=2e-6, atol=2e-6)


def test_bfloat16_products(device: torch.device) -> None:
    lesson = Lesson(96, 64, 5)
    order = torch.randint(lesson.n, (20 * 64,))
    ours, plain = lesson.spec(device), lesson.float64()
    got = lesson.kernels(ours, precision="bf16").train(order, 64, 0, frozen_bn=False)
    want = plain.train(order, 64, 0, frozen_bn=False)
    torch.testing.assert_close(got.cpu().double(), want, rtol=0.02, atol=0.02)
    assert 1e-6 < distance(ours, plain.spec) < 0.02  # an operand has 8 bits


def test_predict(device: torch.device) -> None:
    lesson = Lesson(70, 33, 17, 5, n=130)
    spec = lesson.spec(device)
    for block in spec.blocks:
        block.bn.running_mean.normal_()  # type: ignore[union-attr]
        block.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    index = torch.randint(130, (77,))
    got = ops.predict(spec, lesson.rows, index)
    assert got.device.type == "cpu"
    blocks = copy.deepcopy(spec.blocks)
    for block in blocks:
        block.bn.to("cpu", torch.float64)
        block.linear.to("cpu", torch.float64)
    want = reference.predict(HeadSpec(blocks), RowSource(lesson.rows), index)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert ops.predict(spec, lesson.rows, index[:0]).shape == (0, 5)


def test_same_bits_every_time(device: torch.device) -> None:
    lesson, results = Lesson(50, 40, 3), []
    order = torch.randint(lesson.n, (5 * 64 + 3,))
    for _ in range(3):  # emulation runs blocks in rising and in falling order by turns
        spec = lesson.spec(device)
        results.append([lesson.kernels(spec).train(order, 64, 0, frozen_bn=False), *tensors(spec)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_precision_needs_a_gpu() -> None:
    lesson = Lesson(8, 4, 2)
    with pytest.raises(ValueError, match="precision must be 'float32' for a head on cpu, got 'tf32'"):
        HeadEngine(
            lesson.spec(), lesson.rows, lesson.targets, loss=lesson.loss, rates=RATES, max_batch=8, precision="tf32"
        )


def test_head_on_a_device_without_kernels_is_not_known() -> None:
    layers = Head(6, 2, xtra_fc=[4]).layers
    assert HeadSpec.from_layers(layers) is not None
    assert HeadSpec.from_layers(layers.to("meta")) is None
    mixed: list[nn.Module] = list(Head(6, 2, xtra_fc=[4]).layers)
    mixed[-1] = nn.Linear(4, 2, device="meta")
    assert HeadSpec.from_layers(nn.Sequential(*mixed)) is None


def test_each_form_of_step_is_made_once(device: torch.device) -> None:
    lesson = Lesson(12, 6, 2)
    head = lesson.kernels(lesson.spec(device))
    head.train(torch.arange(100), 32, 0, frozen_bn=False)
    assert len(head._steps) == 2  # whole batches, and the last
    head.train(torch.arange(100), 32, 4, frozen_bn=False)
    head.train(torch.arange(64), 32, 8, frozen_bn=False)
    assert len(head._steps) == 2
    head.train(torch.arange(100), 32, 10, frozen_bn=True)
    assert len(head._steps) == 4
    head.train(torch.arange(200), 64, 14, frozen_bn=False)
    assert len(head._steps) == 2  # the order has moved: the others would read old memory


def test_calls_are_as_long_as_the_device_is_fast() -> None:
    steps = [steps_in(0.2, torch.device(kind), flop) for kind in ("cpu", "cuda") for flop in (2e8, 1e13)]
    assert steps == [59, 1, 6666, 1]  # of 64 rows and 1024 x 512 weights


def test_many_steps_at_once_are_the_same_steps(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson, results = Lesson(12, 6, 2), []
    order, sizes = torch.randint(lesson.n, (60 * 16 + 5,)), []
    for worth in (1024, 20):
        monkeypatch.setattr(cuda, "_WORTH_MANY", worth)
        spec = lesson.spec(device)
        head = lesson.kernels(spec)
        losses = [head.train(part, 16, first, frozen_bn=False) for part, first in ((order[:256], 0), (order[256:], 16))]
        results.append([*losses, *tensors(spec)])
        sizes.append([sorted(steps._graphs) for steps in head._steps.values()])
        assert head.step_counter.tolist() == [61, 45]
    assert sizes == [[[1], [1]], [[1, 32], [1]]]  # whole batches, and the last
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_that_nobody_can_write_are_copied_once(device: torch.device) -> None:
    lesson = Lesson(12, 6, 2)
    files = lesson.rows.numpy()[::-1].copy()
    rows = IndexedRows(files, np.arange(lesson.n)[::-1].copy())
    index, before = torch.arange(lesson.n), len(cuda_rows._kept)

    def places(of: IndexedRows) -> set[int]:
        heads = [lesson.kernels(lesson.spec(device), rows=as_row_source("", of)) for _ in range(2)]
        return {head.rows.batch(0, index, 8, 8).src.data_ptr() for head in heads}

    assert len(places(rows)) == 2  # somebody could write to the array between two fits
    assert len(cuda_rows._kept) == before
    files.setflags(write=False)
    kept = places(rows)
    assert len(kept) == 1
    spec = lesson.spec(device)
    got = ops.predict(spec, rows)
    assert torch.equal(got, ops.predict(spec, lesson.rows))
    assert places(rows) == kept
    assert len(cuda_rows._kept) == before + 1
    del rows
    assert len(cuda_rows._kept) == before


LAUNCHES = {  # of our kernels, and products by torch: for batches of at most 64 rows, and of more
    (12, 6, 2): ((5, 1), (5, 2)),
    (12, 6, 65): ((6, 4), (6, 5)),
    (12, 9, 6, 2): ((7, 4), (7, 5)),
    (12, 2): ((4, 0), (4, 1)),
}


@pytest.mark.parametrize("widths", LAUNCHES)
def test_launches_of_a_step(
    widths: tuple[int, ...], emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ops.use_backend("emulated"):
        lesson, launches = Lesson(*widths), Counter[str]()
        heads = lesson.kernels(lesson.spec()), lesson.kernels(lesson.spec(), max_batch=129)
        for name in vars(emulated_module):
            function = getattr(emulated_module, name)
            if callable(function):
                monkeypatch.setattr(emulated_module, name, counted(launches, "kernels", function))
        monkeypatch.setattr(cuda, "_product", counted(launches, "products", cuda._product))
        for head, (kernels, products) in zip(heads, LAUNCHES[widths], strict=True):
            launches.clear()
            head.train(torch.arange(64), 32, 0, frozen_bn=False)
            assert (launches["kernels"], launches["products"]) == (2 * kernels, 2 * products)


def counted(launches: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        launches[name] += 1
        return function(*args, **options)

    return call
