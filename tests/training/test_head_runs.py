"""Heads trained on rows of one data set: against a loop of torch in float64, and alone against together."""

import gc
import math
import signal
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kinks import away_from_kinks
from processes import send_when_caught

from fastclf.data.dataset import Dataset
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.labels import Labels
from fastclf.losses import BCE, L1, NLL
from fastclf.models.head import Head
from fastclf.philox import permutation
from fastclf.training import head_runs
from fastclf.training.head_runs import HeadRun, HeadSetting, HeadTraining, each_trained, predict_rows, train_heads

FAST = HeadSetting(lr=0.05, wd=1e-2, epochs=2, ps=(0.1, 0.3), xtra_fc=(7,))


def rows_of(rng, n=50, f=9, c=3, views=1, several=False, dtype=np.float32):
    """Rows ``[views * n, f]`` that tell their labels."""
    y = (rng.random((n, c)) < 0.4).astype(np.float32) if several else rng.integers(c, size=n)
    x = rng.standard_normal((views, n, f))
    x[..., :c] += 2 * (y if several else np.eye(c)[y])
    labels = Labels(y, [f"class{i}" for i in range(c)], is_multi=several)
    source = ArraySource(Path(), x[0].astype(dtype))
    return Dataset(source, labels, activations=x.reshape(views * n, f).astype(dtype))


def float64_loop(ds, run, crit, bs):
    """What `train_heads` says that it does, in float64, with torch's modules and optimizer."""
    n = len(ds)
    good = np.setdiff1d(run.train, [*ds.bad.reasons])
    x, views = torch.from_numpy(ds.rows).double(), len(ds.rows) // n
    y = torch.from_numpy(ds.y)
    setting, several = run.setting, ds.is_multi
    head = Head(x.shape[1], ds.c, ps=setting.ps, xtra_fc=setting.xtra_fc, seed=run.seed).double()
    counts = ds.y[good].sum(0, dtype=np.float64) if several else np.bincount(ds.y[good], minlength=ds.c)
    bias = np.log((counts + 0.5) / (len(good) - counts + 0.5)) if several else np.log(counts + 0.5)
    head.layers[-1].bias.data = torch.from_numpy(bias - (0 if several else bias.mean()))
    optimizer = torch.optim.SGD(head.parameters(), lr=1, momentum=0.9, weight_decay=setting.wd)
    batches = len(good) // bs + (len(good) % bs > 1)
    total, step = batches * setting.epochs, 0
    for epoch in range(setting.epochs):
        order = [row for row in permutation(run.seed, epoch, n) if row in good]
        for i in range(batches):
            rows = np.array(order[i * bs : (i + 1) * bs])
            factor = 0.01 if step < total / 20 else (1 + math.cos(math.pi * step / total)) / 2
            optimizer.param_groups[0]["lr"] = setting.lr * factor
            head.counter.step = step
            at = rows if views == 1 else rows + n * view_of(ds, run.seed, epoch)[rows]
            logits = head.layers(x[at])
            if several:
                s = crit.label_smoothing
                terms = F.binary_cross_entropy_with_logits(logits, y[rows].double() * (1 - s) + s / 2, reduction="none")
                weight = 1 if crit.weight is None else crit.weight.double()
                loss = (terms * weight).sum(1).mean()
            else:
                weight = None if crit.weight is None else crit.weight.double()
                loss = F.cross_entropy(logits, y[rows], weight, label_smoothing=crit.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return head.eval()


def view_of(ds, seed, epoch):
    """The view of each row in an epoch, as a loader of all rows takes it."""
    from fastclf.data.loader import LoaderOptions, RowLoader

    order = RowLoader(ds, LoaderOptions(8, seed, torch.device("cpu"), 1), shuffle=True).order(epoch)
    views = np.zeros(len(ds), int)
    views[order % len(ds)] = order // len(ds)
    return views


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_heads_are_those_of_a_float64_loop(rng, several, views, weighted):
    weight = torch.tensor([0.5, 2, 1], dtype=torch.float32) if weighted else None
    crit = (BCE if several else NLL)(weight, 0.1 if weighted else 0.0)

    def draw():
        ds, train = rows_of(rng, views=views, several=several), rng.permutation(50)[:37]
        ds.bad.reasons = {3: "broken", 11: "broken"}
        runs = [HeadRun(FAST, train, 5), HeadRun(replace(FAST, lr=0.1, ps=0.0, xtra_fc=(), epochs=3), train[:33], 6)]
        return ds, runs, [float64_loop(ds, run, crit, 16) for run in runs]

    ds, runs, expected = away_from_kinks(draw)
    for head, exact in zip(train_heads(ds, runs, HeadTraining(crit, 16)), expected, strict=True):
        for (name, a), b in zip(head.state_dict().items(), exact.state_dict().values(), strict=True):
            size = float(b.abs().max())  # what is near zero has the roundings of the others
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 + 2e-4 * size, err_msg=name)
        with torch.no_grad():
            logits = exact.logits(torch.from_numpy(ds.rows[:50]).double())
        np.testing.assert_allclose(predict_rows(head, ds, np.arange(50)), logits, rtol=1e-3, atol=1e-4)
        assert not head.training


def test_a_head_does_not_depend_on_the_others_or_on_the_order_of_its_rows(rng):
    ds = rows_of(rng, dtype=np.float16)
    train = rng.permutation(50)[:40]
    runs = [HeadRun(replace(FAST, lr=lr), train, seed) for lr, seed in [(0.1, 1), (0.01, 1), (0.1, 2)]]
    together = train_heads(ds, runs, HeadTraining(NLL(), 16))
    for head, run in zip(together, runs, strict=True):
        (alone,) = train_heads(ds, [replace(run, train=np.sort(train))], HeadTraining(NLL(), 16))
        assert same(head, alone)
    assert not same(together[0], together[2])
    assert train_heads(ds, [], HeadTraining(NLL(), 16)) == []


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_the_number_of_threads_changes_no_bit(rng, threads, monkeypatch):
    ds = rows_of(rng, f=130)
    runs = [
        HeadRun(replace(FAST, lr=0.01 * (k + 1), xtra_fc=(70,) * (k % 3), ps=None), np.arange(50), k) for k in range(5)
    ]
    together = train_heads(ds, runs, HeadTraining(NLL(), 16))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert all(map(same, together, train_heads(ds, runs, HeadTraining(NLL(), 16))))


@pytest.mark.parametrize("together", [1, 3, 8])
def test_heads_that_share_their_input_are_those_that_train_alone(rng, together, monkeypatch):
    f, views = int(rng.integers(3, 200)), int(rng.integers(1, 3))
    ds = rows_of(rng, f=f, views=views, dtype=[np.float16, np.float32][together % 2])
    crit = NLL(torch.tensor([0.5, 2, 1], dtype=torch.float32), 0.1)
    trains = [rng.permutation(50)[:40], rng.permutation(50)[:33]]
    runs = []
    for k in range(14):
        widths = tuple(rng.integers(1, 140, size=rng.integers(0, 3)).tolist())
        ps = (float(rng.choice([0, 0.4])), *rng.uniform(0, 0.5, len(widths)).tolist())
        lr = 1e30 if k == 5 else float(rng.uniform(0.01, 0.2))
        setting = HeadSetting(lr, float(rng.uniform(0, 0.01)), int(rng.integers(2, 4)), ps, widths)
        runs.append(HeadRun(setting, trains[k % 2], int(rng.integers(2))))
    runs.append(replace(runs[5], setting=replace(runs[5].setting, lr=0.05)))  # beside one that diverges
    alone = [train_heads(ds, [run], HeadTraining(crit, 16))[0] for run in runs]
    monkeypatch.setattr(head_runs, "_MOST_TOGETHER", together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for a, b in zip(train_heads(ds, runs, HeadTraining(crit, 16)), alone, strict=True):
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_heads(rng, number):
    ds = rows_of(rng)
    runs = [HeadRun(replace(FAST, epochs=1_000_000), np.arange(50), k) for k in range(4)]
    send_when_caught(number, 0.5)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stopped:
        train_heads(ds, runs, HeadTraining(NLL(), 16))
    assert number == signal.SIGINT or stopped.value.code == 128 + number
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastclf-head")]
    assert same(*(train_heads(ds, [replace(runs[0], setting=FAST)], HeadTraining(NLL(), 16))[0] for _ in range(2)))


def test_an_error_in_a_head_ends_all(rng, monkeypatch):
    ds = rows_of(rng)
    real = head_runs.run_together

    def run(steps, n):
        if steps[0]._loader.options.seed == 2:
            raise RuntimeError("planted")
        return real(steps, n)

    monkeypatch.setattr(head_runs, "run_together", run)
    runs = [HeadRun(replace(FAST, epochs=1_000_000), np.arange(50), k) for k in range(3)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(RuntimeError, match="planted"):
        train_heads(ds, runs, HeadTraining(NLL(), 16))


def test_a_head_is_made_when_its_training_begins_and_let_go_when_it_is_used(rng, monkeypatch):
    ds, alive = rows_of(rng), []

    class Counted(Head):
        def __init__(self, *args, **kwargs):
            assert sum(other() is not None for other in alive) < 2
            super().__init__(*args, **kwargs)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(head_runs, "Head", Counted)
    monkeypatch.setattr(head_runs, "_MOST_TOGETHER", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    runs = [HeadRun(replace(FAST, lr=0.01 * (k + 1)), np.arange(50), 0) for k in range(6)]
    gc.disable()
    try:
        found = each_trained(ds, runs, HeadTraining(NLL(), 16), lambda run, head: (run, head.training))
    finally:
        gc.enable()
    assert found == [(run, False) for run in runs]
    assert len(alive) == 6


def test_the_size_of_a_head_is_known_before_it_is_made(rng):
    ds = rows_of(rng)
    for xtra_fc in (None, (), (7,), (5, 130)):
        run = HeadRun(replace(FAST, ps=None, xtra_fc=xtra_fc), np.arange(50), 0)
        (loader,) = head_runs._loaders(ds, [run], 16, torch.device("cpu"))
        work = head_runs._HeadWork(run, loader)
        head = work.new_head()
        assert work.nbytes == 3 * sum(p.nbytes for p in head.parameters())
        assert work.input_key()[-1] == head.ps[0]


def test_a_head_knows_nothing_of_other_rows(rng):
    ds = rows_of(rng)
    run = HeadRun(FAST, np.arange(0, 50, 2), 0)
    (head,) = train_heads(ds, [run], HeadTraining(NLL(), 8))
    ds.rows[1::2] = np.nan
    ds.y[1::2] = 0
    assert same(head, *train_heads(ds, [run], HeadTraining(NLL(), 8)))


class DerivedNLL(NLL):
    """What it computes is known only to itself."""


def test_arguments_are_checked(rng):
    ds = rows_of(rng)
    run, by_8 = HeadRun(FAST, np.arange(50), 0), HeadTraining(NLL(), 8)
    numbers = Dataset(ds.source, Labels(np.zeros((50, 1), np.float32), [], is_reg=True))
    images = Dataset(ArraySource(ds.source.root, np.zeros((50, 8, 8, 3), np.uint8)), ds.labels)
    for what, message in [
        (lambda: train_heads(numbers, [run], by_8), "must be classes, got numbers to be predicted"),
        (lambda: train_heads(images, [run], by_8), "holds images; heads train on rows"),
        (lambda: train_heads(ds, [run], HeadTraining(BCE(), 8)), "crit must be NLL for these labels, got BCE"),
        (lambda: train_heads(ds, [run], HeadTraining(L1(), 8)), "crit must be NLL"),
        (
            lambda: train_heads(ds, [run], HeadTraining(DerivedNLL(), 8)),
            "crit must be NLL for these labels",
        ),
        (lambda: train_heads(ds, [run], HeadTraining(NLL(), 1)), "bs must be a whole number of at least 2, got 1"),
        (lambda: train_heads(ds, [replace(run, train=np.array([1]))], by_8), "two rows or more"),
        (lambda: train_heads(ds, [replace(run, train=np.array([1, 50]))], by_8), "0 to 49, got 50"),
        (
            lambda: train_heads(ds, [replace(run, train=np.array([1, 1]))], by_8),
            "must not repeat a row",
        ),
        (lambda: train_heads(ds, [replace(run, train=np.ones(50, bool))], by_8), "got bool"),
        (lambda: train_heads(ds, [replace(run, seed=-1)], by_8), "HeadRun: seed must be"),
        (lambda: HeadSetting(lr=0.0), "lr must be above 0"),
        (lambda: HeadSetting(wd=float("nan")), "wd must be a number"),
        (lambda: HeadSetting(epochs=0), "epochs must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            what()
