"""The GPU's kernels: one test for reference implementation, emulation and GPU, on fresh random sizes, against float64.

FASTCLF_KERNEL_CASES says how many sizes each test samples. A result may be twice as far from float64 as the reference
implementation is in float32, and a few roundings more.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import pytest
import torch
from torch import Tensor

from fastclf import ops
from fastclf.losses import BCE, NLL
from fastclf.ops.cuda import backward, forward
from fastclf.ops.cuda.arguments import (
    MOST_CLASSES,
    MOST_PRODUCT_ROWS,
    DeviceLoss,
    Dropout,
    FirstLayer,
    LastLayer,
    Moments,
    RowBatch,
    Scratch,
)
from fastclf.ops.cuda.checks import OPERAND
from fastclf.ops.cuda.first_layer import first_gradient, first_step
from fastclf.ops.registry import Operation, cuda_module
from fastclf.ops.sgd import DeviceGroups, SgdGroup, Update, Updates, UpdateTable
from fastclf.schedules import Constant, Cosine

CASES = int(os.environ.get("FASTCLF_KERNEL_CASES", "12"))
DTYPES = (torch.float16, torch.float32)
ROUNDINGS = 4 * torch.finfo(torch.float32).eps
worst: dict[str, float] = {}


class Sample:
    """Random sizes and tensors of one case."""

    def __init__(self, rng: np.random.Generator, device: torch.device) -> None:
        self.rng, self.device = rng, device
        self.rows = int(rng.choice([1, 2, 3, 31, 32, 33, 63, 65, 100, rng.integers(2, 140)]))
        self.cols = int(rng.choice([1, 2, 4, 7, 31, 32, 36, 64, 65, 128, rng.integers(1, 300), 1100]))
        self.dtype = DTYPES[rng.integers(2)]
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.scratch = Scratch(self.rows, device)

    def normal(self, *shape: int, mean: float = 0, deviation: float = 1) -> Tensor:
        return torch.randn(shape, generator=self.generator).mul_(deviation).add_(mean).to(self.device)

    def column(self, mean: float = 0) -> Tensor:
        return self.normal(self.cols, mean=mean, deviation=0.3)

    def positive(self) -> Tensor:
        return self.normal(self.cols).abs_().add_(0.3)

    def batch(self, n: int = 200) -> RowBatch:
        """Rows of activations, the second batch of an order, or rows as they lie."""
        batch = int(self.rng.integers(3))
        step_counter = torch.tensor(
            [int(self.rng.integers(-(2**31), 2**31)), batch], dtype=torch.int32, device=self.device
        )
        src = (self.normal(max(n, self.rows), self.cols).abs() * self.positive() * 3).to(self.dtype)
        if self.rng.random() < 0.3:
            return RowBatch(src, self.rows, step_counter)
        order = torch.randint(len(src), (4 * self.rows + 5,), generator=self.generator).to(self.device)
        return RowBatch(src, self.rows, step_counter, order, self.rows + 1)

    def hidden(self, *, relu: bool) -> RowBatch:
        """A hidden layer, or the product that becomes one."""
        x = self.normal(self.rows, self.cols)
        step_counter = torch.tensor([int(self.rng.integers(2**31)), 0], dtype=torch.int32, device=self.device)
        return RowBatch(x.relu_() if relu else x, self.rows, step_counter)

    def dropout(self) -> Dropout:
        p = float(self.rng.choice([0, 0.25, 0.5, self.rng.random()]))
        return Dropout(int(self.rng.integers(2**63)), int(self.rng.integers(5)), p)

    def moments(self) -> Moments:
        empty = torch.full((2, self.cols), torch.nan, device=self.device)
        return Moments(*empty, self.column(), self.positive(), 0.1, 1e-3)


@pytest.fixture
def samples(kernel_device: torch.device, rng: np.random.Generator) -> Iterator[Sample]:
    return (Sample(rng, kernel_device) for _ in range(CASES))


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    yield
    print({name: f"{error:.2f} of the reference implementation's error" for name, error in worst.items()})


def tensors_of(value: object) -> list[Tensor]:
    """All tensors of arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Moments):
        return [value.mean, value.rstd, value.running_mean, value.running_var]
    if isinstance(value, LastLayer | FirstLayer):
        return [t for t in vars(value).values() if isinstance(t, Tensor)]
    return [value.src] if _is_hidden(value) else []


def _is_hidden(value: object) -> TypeGuard[RowBatch]:
    return isinstance(value, RowBatch) and value.order is None and value.src.dtype != torch.float16


def copied(value: object, dtype: torch.dtype | None = None) -> object:
    """An argument of its own for each run; floating tensors, but rows of activations, as `dtype`."""
    if isinstance(value, Tensor):
        return value.clone() if dtype is None or value.dtype != torch.float32 else value.to(dtype, copy=True)
    if isinstance(value, Moments):
        four = [copied(t, dtype) for t in tensors_of(value)]
        return Moments(*four, value.momentum, value.eps)  # type: ignore[arg-type]
    if isinstance(value, LastLayer | FirstLayer):
        return type(value)(*(copied(field, dtype) for field in vars(value).values()))  # type: ignore[arg-type]
    return replace(value, src=copied(value.src, dtype)) if _is_hidden(value) else value


def compare(
    operation: Operation[..., None],
    *arguments: object,
    results: int = 1,
    unit: float = 0,
    matrix_unit: float = 0,
    **options: object,
) -> None:
    """Run the operation, its reference in float32, and in float64, and compare all tensors that change: `results`.

    Sums may come near zero, where their roundings do not shrink with them: `unit` says what size they are of, and
    `matrix_unit` the same of what is no column.
    """
    theirs, exact, ours = ([copied(a, d) for a in arguments] for d in (None, torch.float64, None))
    operation.reference(*theirs, **options)
    operation.reference(*exact, **options)
    operation(*ours, **options)
    name = operation.__name__
    before = [t for a in arguments for t in tensors_of(a)]
    flat = [[t for a in run for t in tensors_of(a)] for run in (ours, theirs, exact)]
    changed = 0
    for old, got, low, want in zip(before, *flat, strict=True):
        if all(torch.equal(old.double().nan_to_num(7), x.double().nan_to_num(7)) for x in (got, want)):
            continue
        changed += 1
        scale = max(float(want.abs().max()), unit, matrix_unit if want.ndim == 2 else 0, 1e-30)
        error, allowed = (float((x.double() - want.double()).abs().max()) / scale for x in (got, low))
        rounding = ROUNDINGS if got.dtype == torch.float32 else 2**-7  # the distance of two numbers of bfloat16
        assert error <= 2 * allowed + rounding, f"{name}: error {error:.2e}, the reference's {allowed:.2e}"
        worst[name] = max(worst.get(name, 0), error / (allowed + rounding + 1e-30))
    assert changed >= results, f"{name} changed {changed} tensors"


def size_of_sums(terms: Tensor) -> float:
    """The size of a column's sum of terms whose signs are random."""
    return float(terms.norm(dim=0).max())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("operand", OPERAND)
def test_normalise(samples: Iterator[Sample], operand: torch.dtype, frozen: bool) -> None:
    for sample in samples:
        if sample.rows == 1 and not frozen:
            continue
        dropout, hidden = sample.dropout(), sample.rng.random() < 0.5
        x = sample.hidden(relu=False) if hidden else sample.batch()
        empty = torch.full((sample.rows, sample.cols), torch.nan, device=sample.device, dtype=operand)
        factors = torch.cat([empty] * int(sample.rng.choice([1, 2])), 1) if sample.rng.random() < 0.6 else None
        bias, columns = sample.column() if hidden else None, (sample.column(1), sample.column())
        moments = sample.moments()
        arguments = (x, moments, *columns, dropout, empty, factors, bias)
        rows = x.gathered().float() if bias is None else (x.src + bias).relu()
        # The mean's rounding is as large as the mean, and comes out as many deviations as that is.
        size = columns[0].abs().clamp(min=1) * rows.mean(0) / (rows.var(0, correction=0) + 1e-3).sqrt()
        units = {
            "matrix_unit": float(size.max()) / (1 - dropout.p),
            "unit": moments.momentum * float(rows.mean(0).abs().max()),  # what is added to a running mean
        }
        compare(normalise_with_factors, *arguments, results=3 if frozen else 5, **units, frozen=frozen)


class WithFactors:
    """`normalise` with its optional tensors among those that are compared."""

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run

    def __call__(self, *arguments: Any, frozen: bool) -> None:
        *first, factors, bias = arguments
        self.run(*first, bias=bias, factors=factors, frozen=frozen)


normalise_with_factors: Any = WithFactors(forward.normalise)
normalise_with_factors.reference = WithFactors(forward.normalise.reference)
normalise_with_factors.__name__ = "normalise"


def test_moments_far_from_zero(kernel_device: torch.device) -> None:
    # 1000 +- 0.1: the sum of squares minus the square of the sum would have nothing left
    x = torch.randn(100, 40, device=kernel_device) * 0.1 + 1000
    moments = Moments(*torch.zeros(4, 40, device=kernel_device), 0.1, 1e-9)
    step_counter = torch.zeros(2, dtype=torch.int32, device=kernel_device)
    columns, out = torch.ones(2, 40, device=kernel_device), torch.empty_like(x)
    forward.normalise(RowBatch(x, 100, step_counter), moments, *columns, Dropout(0, 0, 0), out, frozen=False)
    torch.testing.assert_close(moments.rstd.double(), 1 / x.double().std(0, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["nll", "bce"])
def test_loss_gradient(samples: Iterator[Sample], kind: str) -> None:
    for sample in samples:
        rng, n = sample.rng, 60
        classes = int(rng.choice([2, 3, 31, 32, 33, 120, 1000]))
        weight = sample.normal(classes).abs().add(0.2) if rng.random() < 0.5 else None
        if weight is not None and rng.random() < 0.3:
            weight[1:] = 0  # then a batch may weigh nothing
        loss = (NLL if kind == "nll" else BCE)(weight, float(rng.choice([0, 0.1])))
        step_counter = torch.tensor([3, 1], dtype=torch.int32, device=sample.device)
        order = torch.randint(n, (3 * sample.rows,), generator=sample.generator).to(sample.device)
        if kind == "nll":
            targets = torch.randint(classes, (n,), generator=sample.generator).to(sample.device)
        else:
            targets = (sample.normal(n, classes) > 0).float()
        z, bias = sample.normal(sample.rows, classes, deviation=4), sample.normal(classes)
        batch = RowBatch(targets, sample.rows, step_counter, order, sample.rows)
        losses = torch.full((3,), torch.nan, device=sample.device)
        copy = torch.zeros(sample.rows, classes, dtype=torch.bfloat16, device=sample.device)
        narrow = None if rng.random() < 0.5 else copy
        product = None
        if rng.random() < 0.6:
            left, right = sample.normal(sample.rows, sample.cols), sample.normal(classes, sample.cols, deviation=0.2)
            product, z = (left.to(OPERAND[rng.integers(2)]), right), torch.full_like(z, torch.nan)
        of = DeviceLoss.of(loss, classes, sample.device)
        compare_losses(of, z, bias, batch, losses, sample.scratch, narrow, product)


def compare_losses(
    loss: DeviceLoss,
    z: Tensor,
    bias: Tensor,
    batch: RowBatch,
    losses: Tensor,
    scratch: Scratch,
    copy: Tensor | None,
    product: tuple[Tensor, Tensor] | None,
) -> None:
    runs = []
    for dtype in (torch.float32, torch.float64):
        zs, many = z.to(dtype, copy=True), losses.to(dtype, copy=True)
        backward.loss_gradient.reference(zs, bias.to(dtype), loss, batch, many, scratch, product=product)
        runs.append((zs, many[1:2]))
    logits = z if product is None else product[0].float() @ product[1].t()
    units = (1 / len(z) if isinstance(loss.loss, NLL) else 1 / z.numel(), float(logits.abs().max()))  # of its terms
    backward.loss_gradient(z, bias, loss, batch, losses, scratch, copy, product)
    assert losses.isnan().tolist() == [True, False, True]
    for name, unit, got, low, want in zip(("gradient", "loss"), units, (z, losses[1:2]), *runs, strict=True):
        scale = max(float(want.abs().max()), unit)
        error, allowed = (float((x.double() - want).abs().max()) / scale for x in (got, low))
        assert error <= 2 * allowed + ROUNDINGS, f"{name}: {error:.2e}, the reference's {allowed:.2e}"
        key = f"{type(loss.loss).__name__} {name}"
        worst[key] = max(worst.get(key, 0), error / (allowed + ROUNDINGS))
    if copy is not None:
        assert torch.equal(copy, z.bfloat16())


def test_column_sums(samples: Iterator[Sample]) -> None:
    for sample in samples:
        x, out = sample.normal(sample.rows, sample.cols), torch.full_like(sample.column(), torch.nan)
        compare(backward.column_sums, x, out, unit=size_of_sums(x))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_hidden_gradient(samples: Iterator[Sample], fused: bool, frozen: bool) -> None:
    for sample in samples:
        d, h, dropout, moments = (
            sample.normal(sample.rows, sample.cols),
            sample.hidden(relu=True),
            sample.dropout(),
            sample.moments(),
        )
        moments.mean.copy_(sample.column())
        moments.rstd.copy_(sample.positive())
        gamma, sums = sample.column(1), torch.full((3, sample.cols), torch.nan, device=sample.device)
        last = None
        if fused:
            classes = int(sample.rng.choice([1, 2, 10, 31, MOST_CLASSES, sample.rng.integers(1, MOST_CLASSES)]))
            logits, weight = sample.normal(sample.rows, classes), sample.normal(classes, sample.cols, deviation=0.2)
            operand = sample.normal(sample.rows, sample.cols).to(OPERAND[sample.rng.integers(2)])
            empty = torch.full((classes, sample.cols + 1), torch.nan, device=sample.device)
            last = LastLayer(logits, weight, operand, empty[:, 1:].contiguous(), empty[:, 0].contiguous())
            d.copy_(logits @ weight)
        copy = torch.zeros_like(d, dtype=torch.bfloat16) if sample.rng.random() < 0.5 else None
        xhat = ((h.src - moments.mean) * moments.rstd).abs().clamp(min=1)
        unit = size_of_sums(d * xhat) / (1 - dropout.p) * max(1, float((gamma * moments.rstd).abs().max()))
        if last is not None:
            unit = max(unit, size_of_sums(last.logits) * float(last.operand.abs().max()))
            d.fill_(torch.nan)
        arguments = (d, h, moments, gamma, dropout, *sums, copy, last)
        compare(backward.hidden_gradient, *arguments, unit=unit, results=6 if fused else 4, frozen=frozen)


def first_layer_of(sample: Sample) -> FirstLayer:
    n_out, dropout = sample.rows, sample.dropout()
    width = sample.cols * (1 if dropout.p == 0 else 2)
    return FirstLayer(
        sample.normal(n_out, width),
        sample.normal(n_out, sample.cols),
        sample.column(1),
        sample.column(),
        dropout,
        sample.normal(n_out),
    )


def test_first_gradient(samples: Iterator[Sample]) -> None:
    for sample in samples:
        layer, sums = first_layer_of(sample), torch.full((2, sample.cols), torch.nan, device=sample.device)
        unit = size_of_sums(layer.weight) * 4 / (1 - layer.dropout.p)
        compare(first_gradient, layer, torch.full_like(layer.weight, torch.nan), *sums, results=3, unit=unit)


def test_first_step(samples: Iterator[Sample]) -> None:
    """The same as the gradients, then a step for all tensors."""
    for sample in samples:
        module = cuda_module(sample.device)
        if module is None:
            pytest.skip("the reference implementation has no kernel")
        results = []
        layer, others = first_layer_of(sample), sample.normal(2, 9001)
        assert layer.products is not None
        group = SgdGroup(0.1, Cosine(20), 0.9, 1e-2, bool(sample.rng.integers(2)))
        scale = torch.full((1,), 0.5, device=sample.device)
        for fused in (False, True):
            mine: Any = copied(layer)
            parameters = [mine.weight, mine.gamma, mine.beta, others[0].clone()]
            gradients = [*(torch.full_like(p, torch.nan) for p in parameters[:3]), others[1].clone()]
            velocities = [torch.linspace(-1, 1, p.numel(), device=p.device).view(p.shape) for p in parameters]
            updates = [Update(p, g, v, None, 0) for p, g, v in zip(parameters, gradients, velocities, strict=True)]
            table = UpdateTable(module, Updates(sample.device, updates[3:] if fused else updates))
            groups, counter = DeviceGroups([group], [3], sample.device), torch.tensor([3, 1], dtype=torch.int32)
            counter = counter.to(sample.device)
            if fused:
                first_step(module, mine, velocities[:3], table, groups, scale=scale, step_counter=counter)
            else:
                first_gradient(mine, *gradients[:3])
                table.step(groups, scale=scale, step_counter=counter)
            assert counter.tolist() == [4, 2]
            assert groups.steps.tolist() == [4]
            results.append([*parameters, *velocities])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", OPERAND)
def test_first_step_makes_its_products(samples: Iterator[Sample], dtype: torch.dtype) -> None:
    for sample in samples:
        module = cuda_module(sample.device)
        if module is None:
            pytest.skip("the reference implementation has no kernel")
        layer, rows = first_layer_of(sample), int(sample.rng.choice([1, 2, 31, 64, MOST_PRODUCT_ROWS]))
        assert layer.products is not None
        d, factors = sample.normal(rows, sample.rows), sample.normal(rows, layer.products.shape[1]).to(dtype)
        parameters = (layer.weight, layer.gamma, layer.beta)
        exact = [p.double() for p in parameters]
        products = d.double().t() @ factors.double()
        of_layer = FirstLayer(products, *exact, layer.dropout, layer.dbias.double())
        wanted = [torch.empty_like(p) for p in exact]
        first_gradient.reference(of_layer, *wanted)
        group = SgdGroup(1.0, Constant(), 0.0, 0.0, False)
        table, ones = UpdateTable(module, Updates(sample.device, [])), torch.ones(1, device=sample.device)
        groups = DeviceGroups([group], [0], sample.device)
        counter = torch.zeros(2, dtype=torch.int32, device=sample.device)
        velocities = [torch.full_like(p, 7.0) for p in parameters]  # without momentum they become the gradients
        mine = replace(layer, products=None)
        first_step(module, mine, velocities, table, groups, scale=ones, step_counter=counter, made_from=(d, factors))
        units = [1.0, float(layer.weight.norm(dim=0).max()), float(layer.weight.norm(dim=0).max())]
        size = float(factors.double().norm(dim=0).max()) * 4 / (1 - layer.dropout.p)
        for got, want, unit in zip(velocities, wanted, units, strict=True):
            scale = max(size * unit, float(want.abs().max())) * max(1, rows**0.5 / 4)  # one after another is added up
            assert float((got.double() - want).abs().max()) <= ROUNDINGS * scale


def test_fold(samples: Iterator[Sample]) -> None:
    for sample in samples:
        weight, bias = sample.normal(sample.rows, sample.cols), sample.normal(sample.rows)
        gamma, beta, mean, var = sample.column(1), sample.column(), sample.column(), sample.positive()
        unit = size_of_sums((weight * (beta.abs() + (gamma * mean).abs() / var.sqrt())).t())
        out = torch.zeros_like(weight), torch.zeros_like(bias)
        compare(forward.fold, weight, bias, gamma, beta, mean, var, 1e-5, *out, results=2, unit=unit)


@pytest.mark.parametrize("relu", [True, False])
def test_add_bias(samples: Iterator[Sample], relu: bool) -> None:
    for sample in samples:
        compare(forward.add_bias, sample.normal(sample.rows, sample.cols), sample.column(), relu=relu)


def test_masks_are_those_of_the_processor(kernel_device: torch.device, rng: np.random.Generator) -> None:
    rows, cols, step = 37, 71, int(rng.integers(2**31))
    step_counter = torch.tensor([step, 0], dtype=torch.int32, device=kernel_device)
    x = RowBatch(torch.ones(rows, cols, device=kernel_device), rows, step_counter)
    zeros, ones = torch.zeros(cols, device=kernel_device), torch.ones(cols, device=kernel_device)
    out = torch.empty(rows, cols, device=kernel_device)
    moments = Moments(zeros.clone(), zeros.clone(), zeros, ones, 0.1, 0)
    forward.normalise(x, moments, ones, zeros, Dropout(99, 2, 0.4), out, frozen=True)
    assert torch.equal(out.cpu(), ops.dropout_mask(99, step, 2, rows, cols, 0.4))


def test_same_bits_every_time(kernel_device: torch.device) -> None:
    x = torch.randn(300, 70, device=kernel_device)
    sums = [torch.empty(70, device=kernel_device) for _ in range(3)]
    for out in sums:  # emulation runs blocks in rising and in falling order by turns
        backward.column_sums(x, out)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_do(kernel_device: torch.device, shape: tuple[int, int]) -> None:
    z = torch.empty(shape, device=kernel_device)
    forward.add_bias(z, torch.zeros(shape[1], device=kernel_device), relu=True)
    step_counter = torch.zeros(2, dtype=torch.int32, device=kernel_device)
    columns = torch.ones(4, shape[1], device=kernel_device)
    moments, empty = Moments(*columns, 0.1, 1e-5), torch.empty_like(z)
    forward.normalise(RowBatch(z, shape[0], step_counter), moments, *columns[:2], Dropout(0, 0, 0), empty, frozen=True)


def test_misuse(kernel_device: torch.device) -> None:
    z, bias = torch.zeros(3, 4, device=kernel_device), torch.zeros(4, device=kernel_device)
    with pytest.raises(ValueError, match=r"add_bias: bias must be contiguous \[4\] float32, got \[3\] float32"):
        forward.add_bias(z, bias[:3], relu=False)
    with pytest.raises(ValueError, match=r"add_bias: z must be contiguous \[3, 2\] float32, got .* not contiguous"):
        forward.add_bias(z[:, ::2], bias[:2], relu=False)
    with pytest.raises(ValueError, match=r"add_bias: bias must be on .*, as the others are, got meta"):
        forward.add_bias(z, bias.to("meta"), relu=False)
    with pytest.raises(ValueError, match=r"column_sums: x must be .* float32, got \[3, 4\] float64"):
        backward.column_sums(z.double(), bias)
    counter, order = torch.zeros(2, dtype=torch.int32, device=kernel_device), torch.zeros(3, dtype=torch.int64)
    targets = RowBatch(torch.zeros(3, dtype=torch.int64, device=kernel_device), 3, counter, order.to(kernel_device))
    loss = DeviceLoss.of(NLL(), 4, kernel_device)
    with pytest.raises(ValueError, match="loss_gradient: scratch must be for at least 3 rows, got one for 2"):
        backward.loss_gradient(z, bias, loss, targets, bias.clone(), Scratch(2, kernel_device))
    moments, last = Moments(*torch.ones(4, 4, device=kernel_device), 0.1, 1e-5), torch.zeros(3, 65)
    layer = LastLayer(last, last, last, last, last)
    with pytest.raises(ValueError, match="hidden_gradient: last must have at most 64 classes, got 65"):
        backward.hidden_gradient(
            z, RowBatch(z, 3, counter), moments, bias, Dropout(0, 0, 0), bias, bias, bias, last=layer, frozen=False
        )
