"""Operations on any arguments: a result that the reference implementation confirms, or an error; never a memory fault.

What is refused is refused in Python: the native code trusts what it is given. The launchers themselves run under the
sanitizers, see test_native.py.
"""

import itertools

import numpy as np
import pytest
import torch
from fuzzing import fuzzed
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fastclf import ops
from fastclf.losses import BCE, NLL
from fastclf.ops.crop_resize import CropFormat, Crops, PixelOp, crop_resize
from fastclf.ops.registry import native_module
from fastclf.schedules import Constant, Triangle, from_description
from fastclf.training.optimizer import SGDR

REFUSED = (ValueError, TypeError, IndexError)
DTYPES = [np.float16, np.float32] * 24 + [np.float64, np.int64, np.uint8, np.bool_, np.complex64, ">f4", "U3", object]
sizes = st.integers(0, 70) | st.integers(0, 3)


def mostly(usual, odd):
    """One of ``odd`` in an eighth of the draws."""
    return st.integers(0, 7).flatmap(lambda k: usual if k < 7 else odd)


numbers = st.floats() | st.integers(-3, 3) | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 1e300, None, "1"])


def outcome(tally, call, memory=False):
    """What a call gives on both backends; its class where it refuses; the two must agree on that."""
    results = []
    for backend in ("reference", "native"):
        with ops.use_backend(backend):
            try:
                results.append(call())
            except REFUSED:
                results.append(None)
            except (RuntimeError, MemoryError):
                if not memory:
                    raise
                results.append(None)
    plain, native = results
    if memory and native is None and plain is not None:  # the reference implementation takes no memory beforehand
        plain = None
    assert (native is None) == (plain is None)
    tally.count("refused" if native is None else "result")
    return native, plain


def laid_out(draw, values):
    """The same values, in one of the ways in which they can lie in memory."""
    ways = ["reversed", "every other", "fortran", "unaligned", "read-only", "repeated"]
    how = draw(mostly(st.just("plain"), st.sampled_from(ways)))
    if values.ndim == 0 or values.dtype == object:
        return values
    if how == "reversed":
        return values[::-1].copy()[::-1]
    if how == "every other":
        return np.repeat(values, 2, axis=-1)[..., ::2]
    if how == "fortran":
        return np.asfortranarray(values)
    if how == "unaligned":
        return np.frombuffer(b"x" + values.tobytes(), values.dtype, offset=1).reshape(values.shape)
    if how == "repeated":
        return np.broadcast_to(values[:1], values.shape)
    values = values.copy()
    values.flags.writeable = how != "read-only"
    return values


@st.composite
def arrays(draw, shape, dtypes=DTYPES, tensors=True):
    """An array or a tensor of about this shape, of any type, however it lies in memory."""
    shape = list(shape)
    if draw(st.integers(0, 14)) == 0:
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values = rng.standard_normal(shape) * draw(st.sampled_from([1, 1, 1, 1e4, np.inf, np.nan]))
    with np.errstate(all="ignore"):
        values = laid_out(draw, np.asarray(values).astype(draw(st.sampled_from(dtypes))))
    tensor = tensors and values.dtype.kind in "fiubc" and values.dtype.isnative and draw(st.booleans())
    if not tensor:
        return values
    made = torch.tensor(values.copy())
    how = draw(mostly(st.just("plain"), st.sampled_from(["t", "meta", "grad", "sparse", "expanded", "offset"])))
    if how == "t" and made.ndim == 2:
        return made.t().contiguous().t()
    if how == "meta":
        return made.to("meta")
    if how == "grad" and made.is_floating_point():
        return made.requires_grad_()
    if how == "sparse" and made.ndim == 2:
        return made.to_sparse()
    if how == "expanded" and made.ndim == 2 and len(made):
        return made[:1].expand(5, -1)
    if how == "offset" and made.ndim == 2:
        return torch.cat([made[:1], made])[1 if len(made) else 0 :]
    return made


@st.composite
def indices(draw, n, size=None):
    """Row numbers, of which one may lie outside 0..n-1."""
    inside = st.integers(0, max(n - 1, 0))
    values = draw(st.lists(inside, min_size=size or 0, max_size=size or 20)) if n else []
    if draw(mostly(st.just(False), st.just(True))):
        at = draw(st.integers(0, len(values)))
        values.insert(at, draw(st.sampled_from([-1, n, n + 1, 2**31, 2**62, -(2**63), 2**63 - 1])))
    forms = ["list", "tensor", "int32", "float", "2d", "other"]
    form = draw(mostly(st.just("array"), st.sampled_from(forms)))
    if form == "list":
        return values
    array = laid_out(draw, np.array(values, np.int64))
    if form == "tensor":
        return torch.tensor(array.tolist(), dtype=torch.int64)
    if form == "int32":
        return np.zeros(len(values), np.int32)
    if form == "float":
        return array.astype(np.float64)
    if form == "2d":
        return array[None]
    return draw(arrays([3])) if form == "other" else array


def as_tensor(x):
    return x if isinstance(x, torch.Tensor) else torch.tensor(x.copy())


def as_array(x):
    return x.detach().float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32)


@fuzzed
@given(st.data())
def test_gather_rows(tally, data):
    n, f = data.draw(sizes), data.draw(sizes)
    src = data.draw(arrays([n, f]))
    index = data.draw(indices(n))
    out = None
    if data.draw(st.integers(0, 3)) == 0:
        out = data.draw(arrays([len(index) if np.ndim(index) else 1, f], [np.float32]))
        assume(isinstance(out, torch.Tensor))
    native, plain = outcome(tally, lambda: ops.gather_rows(src, index, None if out is None else out.detach().clone()))
    if native is not None:
        np.testing.assert_array_equal(native, as_array(src)[np.asarray(index)])
        assert torch.equal(native.nan_to_num(), plain.nan_to_num())


@fuzzed
@given(
    seed=mostly(st.integers(0, 2**64 - 1), numbers),
    step=mostly(st.integers(0, 2**32 - 1), numbers),
    layer=mostly(st.integers(0, 3), numbers),
    rows=mostly(sizes, st.integers(-2, 1) | st.sampled_from([2**32, 2**64, 1.0, None])),
    cols=mostly(sizes, st.integers(-2, 1) | st.sampled_from([2**40, 2**62, 2**63, 2**64, 1.0, None])),
    p=mostly(st.floats(0, 1), numbers),
)
def test_dropout_mask(tally, **arguments):
    native, plain = outcome(tally, lambda: ops.dropout_mask(**arguments))
    if native is not None:
        assert torch.equal(native, plain)


@st.composite
def heads(draw):
    """Layers that the engine knows, or nearly: of all the ways in which one may differ, one or none."""
    widths = draw(st.lists(st.integers(1, 70), min_size=2, max_size=4))
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [
            nn.BatchNorm1d(n_in),
            nn.Dropout(draw(st.sampled_from([0.0, 0.25, 0.5, 0.99]))),
            nn.Linear(n_in, n_out),
        ]
        layers.append(nn.ReLU())
    layers = layers[:-1]
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(layers) - 1))
        other = draw(st.sampled_from([nn.Linear(3, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(1.0), nn.Tanh(), None]))
        layers[at : at + 1] = [] if other is None else [other]
    return nn.Sequential(*layers)


def spoil(draw, layers):
    """Changes a tensor of a head whose layers are of the right kinds."""
    layer = draw(st.sampled_from([layer for layer in layers if isinstance(layer, nn.BatchNorm1d | nn.Linear)]))
    name = draw(st.sampled_from([name for name, _ in layer.named_parameters()]))
    tensor = getattr(layer, name).data
    how = draw(st.sampled_from(["double", "half", "meta", "shorter", "longer", "strided", "none"]))
    if how in ("double", "half"):
        new = getattr(tensor, how)()
    elif how == "meta":
        new = tensor.to("meta")
    elif how == "shorter":
        new = tensor[: len(tensor) // 2].clone()
    elif how == "longer":
        new = torch.cat([tensor, tensor])
    else:
        new = torch.stack([tensor, tensor], -1)[..., 0]
    setattr(layer, name, None if how == "none" else nn.Parameter(new))


def varied(order, batch):
    """Whether no batch is one row again and again: BatchNorms then make what rounding leaves 300 times larger each."""
    chosen = np.asarray(order)
    return all(len(np.unique(chosen[first : first + batch])) > 1 for first in range(0, len(chosen), batch))


@fuzzed
@given(st.data())
def test_a_head_is_trained(tally, data):
    draw = data.draw
    layers = draw(heads())
    spec = ops.HeadSpec.from_layers(layers)
    if spec is None:
        return tally.count("another head")
    n, f = draw(st.integers(0, 40)), spec.n_in if draw(st.integers(0, 9)) else draw(sizes)
    rows = draw(arrays([n, f]))
    n = len(rows) if np.ndim(rows) else 0
    kind = draw(st.sampled_from(["nll", "bce"]))
    targets = torch.tensor(np.random.default_rng(n).integers(0, spec.n_out, n))
    if kind == "bce":
        targets = torch.rand(n, spec.n_out)
    elif n and draw(st.integers(0, 3)) == 0:
        targets[draw(st.integers(0, n - 1))] = draw(st.sampled_from([-1, spec.n_out, 2**62]))
    if draw(st.integers(0, 5)) == 0:
        targets = as_tensor(draw(arrays([n, spec.n_out], [np.float32])))
    weight = draw(st.none() | st.sampled_from([spec.n_out, 1, 0]).map(torch.rand))
    loss = (NLL if kind == "nll" else BCE)(weight, draw(st.sampled_from([0, 0.1, 1])))
    spoilt = draw(st.integers(0, 3)) == 0
    max_batch = draw(mostly(st.integers(20, 40), st.sampled_from([0, -1, 2**31, 2**58, 2**61, 2**63, 2**64])))
    order, batch = draw(indices(n)), draw(mostly(st.integers(2, 20), st.integers(-1, 41) | st.just(2**40)))
    first_step = draw(mostly(st.integers(0, 5), st.sampled_from([-1, 2**32 - 1, 2**32, 2**64, 0.5])))
    frozen_bn, clip = draw(st.booleans()), draw(st.sampled_from([None, 0.5]))
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    if spoilt:
        spoil(draw, layers)

    def train():
        if not spoilt:
            layers.load_state_dict(before)
        rates = ops.HeadRates(0.01, draw(st.just(Constant())), clip=clip)
        engine = ops.HeadEngine(spec, rows, targets, loss=loss, rates=rates, max_batch=max_batch)
        return engine.train(order, batch, first_step, frozen_bn=frozen_bn)

    native, plain = outcome(tally, train, memory=isinstance(max_batch, int) and max_batch >= 2**31)
    moderate = native is not None and all(np.abs(as_array(x)).max(initial=0) < 10 for x in (rows, targets))  # not NaN
    if moderate and (frozen_bn or varied(order, batch)):
        torch.testing.assert_close(native, plain, rtol=2e-3, atol=2e-3)
    return None


@fuzzed
@given(st.data())
def test_a_head_predicts(tally, data):
    layers = data.draw(heads())
    spec = ops.HeadSpec.from_layers(layers)
    if spec is None:
        return tally.count("another head")
    n = data.draw(st.integers(0, 40))
    rows = data.draw(arrays([n, spec.n_in]))
    index = data.draw(st.none() | indices(n))
    if data.draw(st.integers(0, 3)) == 0:
        spoil(data.draw, layers)
    native, plain = outcome(tally, lambda: ops.predict(spec, rows, index))
    if native is not None and plain.isfinite().all():
        largest = float(plain.abs().max()) if plain.numel() else 0.0
        torch.testing.assert_close(native, plain, rtol=2e-3, atol=2e-3 * (1 + largest))
    return None


@fuzzed
@given(st.data())
def test_crops_are_made(tally, data):
    """test_crop_resize.py compares pixels; here nothing else may be written."""
    draw = data.draw
    n, sz, dtype = draw(st.integers(0, 3)), draw(st.integers(1, 20)), draw(st.sampled_from([np.uint8, np.float32]))
    shapes = [(draw(st.integers(1, 30)), draw(st.integers(1, 30))) for _ in range(n)]
    whole = np.array([[0, 0, *shape] for shape in shapes], np.float32).reshape(n, 4)
    images = [
        draw(mostly(st.just(np.ones((*shape, 3), dtype)), arrays([*shape, 3], tensors=False))) for shape in shapes
    ]
    part = draw(mostly(st.just(whole), arrays([n, 4], [np.float32, np.float32, np.float64], tensors=False)))
    size = draw(mostly(st.just(np.full((n, 2), sz)), st.integers(-1, 2**40).map(lambda side: np.full((n, 2), side))))
    eye = np.tile(np.eye(2, 3, dtype=np.float32), (n, 1, 1))
    matrix = draw(st.none() | st.just(eye) | arrays([n, 2, 3], [np.float32], tensors=False))
    numbers = draw(mostly(st.just(np.ones((n, 2), np.float32)), arrays([n, 2], [np.float32], tensors=False)))
    pixel_ops = [(PixelOp.BRIGHTNESS_CONTRAST, numbers)] * draw(st.integers(0, 2))
    out = torch.empty(n, 3, sz, sz)
    if draw(st.integers(0, 7)) == 0:
        out = as_tensor(draw(arrays([n, 3, sz, sz], [np.float32, np.float64])))
    try:
        crop_resize(images, Crops(part, size, matrix, pixel_ops), CropFormat(sz, 255.0, (0, 0, 0), (1, 1, 1)), out, 2)
    except REFUSED as error:
        return tally.refused(error, "crop_resize: ")
    return tally.count("result")


@fuzzed
@given(st.data())
def test_a_schedule_from_any_file(tally, data):
    """Eight numbers from a file are a schedule that gives a rate in every step, or refused."""
    length = data.draw(mostly(st.just(8), st.integers(0, 12)))
    kind = data.draw(mostly(st.integers(0, 4).map(float), st.floats()))
    numbers = [kind, *data.draw(st.lists(st.floats() | st.floats(1, 100), min_size=7, max_size=12))][:length]
    try:
        schedule = from_description(numbers)
    except (ValueError, OverflowError):
        return tally.count("refused")
    native, plain = outcome(tally, lambda: ops.rate(schedule, data.draw(st.just(7))))
    np.testing.assert_allclose(np.array(native, float), np.array(plain, float), rtol=1e-9)
    return None


@st.composite
def parameters(draw):
    """Tensors with gradients, of any type and layout."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    p = nn.Parameter(torch.rand(shape).to(draw(st.sampled_from([torch.float32] * 5 + [torch.float64, torch.float16]))))
    if p.ndim == 4 and draw(st.booleans()):
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    if p.ndim == 2 and draw(st.integers(0, 3)) == 0:
        p.data = p.data.t().contiguous().t()
    if draw(st.integers(0, 5)):
        p.grad = torch.rand_like(p)
        if p.ndim == 4 and draw(st.integers(0, 2)) == 0:
            p.grad = p.grad.contiguous()
        if p.ndim >= 1 and draw(st.integers(0, 5)) == 0:
            p.grad = p.grad[:1].expand(p.shape) if len(p) else p.grad
    return p


@fuzzed
@given(st.data())
def test_the_optimizer_steps(tally, data):
    draw = data.draw
    params = draw(st.lists(parameters(), min_size=1, max_size=3))
    schedule = draw(st.sampled_from([None, Triangle(10, 3, 2)]))
    lr, momentum, decay = (draw(mostly(st.floats(0, 0.9), numbers)) for _ in range(3))
    spoilt = draw(st.sampled_from([None] * 3 + ["momentum_buffer", "schedule", "lr", "steps"]))
    value = draw(st.lists(numbers, max_size=9) | numbers) if spoilt not in (None, "momentum_buffer") else None
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    start = [p.detach().clone() for p in params]

    def step():
        for p, before in zip(params, start, strict=True):
            p.data.copy_(before)
        opt = SGDR(params, lr, momentum=momentum, weight_decay=decay, schedule=schedule)
        opt.step()
        if spoilt:
            state = opt.state_dict()
            if spoilt == "momentum_buffer":
                for entry in state["state"].values():
                    entry[spoilt] = torch.zeros(shape)
            else:
                state["param_groups"][0][spoilt] = value
            opt.load_state_dict(state)
        opt.step()
        return [p.detach().clone() for p in params]

    def refused_by_torch():
        try:
            return step()
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise ValueError("torch refuses numbers that are beyond the parameter's type") from error

    native, plain = outcome(tally, refused_by_torch)
    if spoilt or not all(isinstance(number, float) and number <= 0.9 for number in (lr, momentum, decay)):
        return  # steps that grow without bound enlarge any rounding
    for a, b in zip(native or [], plain or [], strict=True):
        if a.isfinite().all() and b.isfinite().all():
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


NAMES = {
    "gather_rows": ("src", "dtype", "index", "out", "rows", "width", "threads"),
    "dropout_mask": ("seed", "step", "layer", "p", "out", "rows", "cols", "threads"),
    "head_train": ("engine", "order", "sources", "rows", "batch", "first_step", "frozen_bn", "losses", "threads"),
    "head_predict": ("layers", "n_layers", "rows", "dtype", "index", "count", "out", "threads"),
    "sgd_step": ("tensors", "n_tensors", "groups", "steps", "n_groups", "threads"),
    "head_destroy": ("engine",),
}
wrong = st.sampled_from([None, "x", "", b"x", -1, 2**64, 2**70, 1.5, [], (), {}, [(1, 2)], [()], object(), np.zeros(3)])


@fuzzed
@given(st.data())
def test_the_native_module_checks_types(tally, data):
    """An address can be anything; what is no number of its type never gets as far as being one."""
    name = data.draw(st.sampled_from(sorted(NAMES)))
    arguments = dict.fromkeys(NAMES[name], 0)
    spoilt = data.draw(st.lists(st.sampled_from(NAMES[name]), min_size=1, unique=True))
    arguments |= {key: data.draw(wrong) for key in spoilt}
    may = {"dtype", "frozen_bn", "p", "threads"}  # of another type, or where -1 has a meaning
    assume(not may >= set(spoilt))
    with pytest.raises((TypeError, RuntimeError)):
        if name == "head_destroy":
            getattr(native_module(), name)(*arguments.values())
        else:
            getattr(native_module(), name)(**arguments)
    tally.count("refused")
