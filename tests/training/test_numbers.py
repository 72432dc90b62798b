"""Numbers that are not finite, overflow, memory that is exhausted: the error says why, and nothing good is lost."""

import gc
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_same, image_data, row_data, state_of, three_colours, tiny_learner
from torch import nn

from fastclf import Callback, DivergedError, GpuMemoryError, HeadLearner, Learner, recall
from fastclf.models.net import Net
from fastclf.ops import rate
from fastclf.training import steps

SGD = partial(torch.optim.SGD, momentum=0.9)


class SpoilAt(Callback):
    """Makes a weight infinite after some batch."""

    def __init__(self, module, at):
        self.module, self.at, self.seen = module, at, 0

    def on_batch_end(self, loss):
        self.seen += 1
        if self.seen == self.at:
            with torch.no_grad():
                list(self.module.parameters())[-1].fill_(torch.inf)


def after_one_epoch(make):
    learn = make()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(0.05, 3, callbacks=[InterruptAfterEpoch()])
    return state_of(learn)


class InterruptAfterEpoch(Callback):
    def on_epoch_end(self, metrics):
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["engine", "autograd"])
def test_predictions_that_overflow_are_no_result(tmp_path, rng, kind):
    data = row_data(tmp_path, rng)
    data.val_ds.rows[:7] = 3e38  # finite, and not after the first layer
    learn = HeadLearner(data, xtra_fc=[8], opt_fn=SGD if kind == "autograd" else None)
    expected = state_of(learn)
    with pytest.raises(DivergedError, match="fit: predictions of 7 of 30 validation rows are NaN after 4 steps"):
        learn.fit(0.01, 1)
    assert_same(state_of(learn), expected)


@pytest.mark.parametrize("kind", ["engine", "autograd", "images"])
@pytest.mark.parametrize("where", ["within an epoch", "in its last batch"])
def test_the_last_good_weights_are_kept(tmp_path, rng, kind, where):
    data = image_data(three_colours(tmp_path / "data")) if kind == "images" else row_data(tmp_path, rng)

    def make():
        if kind == "images":
            learn = tiny_learner(data)
            learn.unfreeze()
            return learn
        return HeadLearner(data, xtra_fc=[8], opt_fn=SGD if kind == "autograd" else None)

    nb = len(data.trn_dl)
    expected = after_one_epoch(make)
    learn = make()
    at = 2 * nb if where == "in its last batch" else nb + 2
    with pytest.raises(DivergedError) as caught:
        learn.fit(0.05, 3, callbacks=[SpoilAt(learn.model, at)])
    assert_same(expected, state_of(learn))
    message = str(caught.value)
    if where == "within an epoch":
        assert f"the training loss of batch {nb + 2} is nan at learning rate 0.05 in float32" in message
        assert len(learn.sched.losses) == nb + 2
    else:
        assert f"the weights are not finite after {2 * nb} steps at learning rate 0.05 in float32" in message
        assert len(learn.sched.val_losses) == 1
    assert f"The model holds the weights that it had after {nb} steps" in message
    assert "lower rate (see lr_find)" in message
    assert np.isfinite(learn.fit(1e-3, 1)[0])


@pytest.mark.parametrize("fails_at", [None, 5])
def test_losses_that_are_read_some_steps_later_change_nothing(tmp_path, rng, monkeypatch, fails_at):
    """As on a GPU, which is not waited for after each step."""
    data, found = row_data(tmp_path, rng), []
    for chunk in (1, 3):
        monkeypatch.setattr(steps.AutogradSteps, "chunk", chunk)
        seen = iter(range(100))

        def crit(out, y, seen=seen):
            return nn.functional.nll_loss(out, y) * (torch.nan if out.requires_grad and next(seen) == fails_at else 1)

        learn, message = HeadLearner(data, xtra_fc=[8], crit=crit), ""
        try:
            learn.fit(0.05, 3)
        except DivergedError as error:
            message = str(error)
        assert ("the training loss of batch 5 is nan" in message) == (fails_at is not None)
        found.append((learn.sched.losses, learn.sched.lrs, message, state_of(learn)))
    *first, state = found[0]
    *second, other = found[1]
    assert first == second
    assert_same(state, other)


def test_a_rate_that_is_much_too_high(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng), xtra_fc=[8])
    with pytest.raises(DivergedError, match=r"nan at learning rate 1e\+30|not finite .* at learning rate 1e\+30"):
        learn.fit(1e30, 5)
    assert all(torch.isfinite(tensor).all() for tensor in learn.model.state_dict().values())


def test_weights_that_are_not_finite_at_the_start_are_reported_at_once(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    with torch.no_grad():
        learn.head.layers[2].bias[0] = torch.nan
    with pytest.raises(DivergedError, match="the model holds values that are not finite"):
        learn.fit(0.1, 1)
    assert learn.sched.losses == []


def test_a_first_batch_that_is_nan_is_not_blamed_on_the_rate(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng), crit=lambda out, y: out.sum() * torch.nan)
    with pytest.raises(DivergedError, match="inputs, the targets or the loss function are the cause, not the rate"):
        learn.fit(0.1, 1)


def test_best_is_never_nan_and_undefined_metrics_are_not_available(tmp_path, rng, capsys):
    learn = HeadLearner(row_data(tmp_path, rng), metrics=[lambda preds, targs: math.nan])
    learn.crit = lambda out, y: nn.functional.nll_loss(out, y) * (1 if learn.head.training else torch.nan)
    values = learn.fit(0.1, 2, best_save_name="best")
    assert all(math.isnan(value) for value in values)
    assert not (tmp_path / "models").exists()
    assert capsys.readouterr().out.splitlines()[-1].split()[2:] == ["n/a", "n/a"]


def test_a_metric_of_one_class_alone_is_not_available(tmp_path, rng, capsys):
    data = row_data(tmp_path, rng, c=2)
    data.val_ds.y[:] = 0
    data.val_dl.targets[:] = 0
    assert math.isnan(HeadLearner(data, metrics=[recall]).fit(0.1, 1)[1])
    assert capsys.readouterr().out.splitlines()[1].split()[3] == "n/a"


# Memory


def exhausted(at, refs):
    """A loss that keeps memory, and finds none when called for the ``at``-th time."""
    calls = 0

    def crit(out, y):
        nonlocal calls
        calls += 1
        refs.append(weakref.ref(out))
        if calls == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return nn.functional.nll_loss(out, y)

    return crit


@pytest.mark.parametrize("call", ["fit", "lr_find"])
def test_exhausted_memory_is_reported_and_given_back(tmp_path, call):
    refs = []
    data = image_data(three_colours(tmp_path / "data"))
    learn = tiny_learner(data, crit=exhausted(3, refs))
    before = state_of(learn)
    gc.disable()
    try:
        with pytest.raises(GpuMemoryError) as caught:
            learn.fit(0.01, 2) if call == "fit" else learn.lr_find()
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()
    assert str(caught.value).startswith(
        f"{call}: the GPU's memory does not hold a batch of 8 of 16 x 16 pixels (CUDA out of memory). Make the data "
        "with bs=7, then learn.set_data(data)"
    )
    assert caught.value.__context__ is None
    assert all(parameter.grad is None for parameter in learn.model.parameters())
    if call == "lr_find":
        assert_same(before, state_of(learn))
    learn.set_data(image_data(tmp_path / "data", bs=4))
    learn.fit(0.01, 1)


@pytest.mark.parametrize(
    ("call", "most", "advised"),
    [
        ("fit", 31, 30),
        ("fit", 12, 12),
        ("fit", 11, 11),
        ("fit", 3, 3),
        ("fit", 2, 2),
        ("fit", 1, None),
        ("lr_find", 17, 16),
        ("predict", 31, 30),
        ("predict", 1, 1),
        ("predict", 0, None),
    ],
)
def test_the_batch_that_would_fit(tmp_path, monkeypatch, call, most, advised):
    """Found by trying, in the way that failed, and nothing is left of it; here for a model of limited width."""
    learn = tiny_learner(image_data(three_colours(tmp_path / "data", n_valid=12), bs=32))
    learn.unfreeze()
    features, seen = Net.features, set()

    def limited(self, x):
        seen.add((self.body.groups[0].training, torch.is_grad_enabled()))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried ...")
        return features(self, x)

    monkeypatch.setattr(Net, "features", limited)
    before, generator = state_of(learn), torch.get_rng_state()
    with pytest.raises(GpuMemoryError) as caught:
        learn.fit(0.01, 1) if call == "fit" else getattr(learn, call)()
    assert f"bs={advised}, then" in str(caught.value) if advised else "Use smaller images" in str(caught.value)
    assert seen == {(call != "predict", call != "predict")}
    assert_same(before, state_of(learn))
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in learn.model.parameters())


def test_exhausted_memory_in_prediction(tmp_path, monkeypatch):
    learn = tiny_learner(image_data(three_colours(tmp_path / "data"), bs=1))

    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried ...")

    monkeypatch.setattr(Net, "features", forward)
    with pytest.raises(GpuMemoryError, match=r"does not hold a batch of 1 .* Use smaller images"):
        learn.predict()
    monkeypatch.undo()
    assert np.isfinite(learn.predict()).all()


# fp16


class Overflow(nn.Module):
    """A layer whose gradient overflows in chosen batches."""

    def __init__(self, at):
        super().__init__()
        self.linear, self.at, self.seen = nn.Linear(10, 3), at, 0

    def forward(self, x):
        out = self.linear(x)
        if self.training:
            self.seen += 1
            if self.seen in self.at:
                out.register_hook(lambda gradient: gradient * torch.inf)
        return out.log_softmax(1)


@pytest.mark.parametrize("opt_fn", [None, SGD])
def test_steps_that_overflow_do_not_count(tmp_path, rng, monkeypatch, opt_fn):
    monkeypatch.setattr(steps, "compute_dtype", lambda device: torch.float16)
    data = row_data(tmp_path, rng)
    nb = len(data.trn_dl)
    learn = Learner.from_model_data(Overflow({1, 2, 6}), data, opt_fn=opt_fn)
    plan = {"cycle_len": 2, "wds": 0.1, "use_wd_sched": True}
    before, changed = state_of(learn), []

    class Watch(Callback):
        def on_batch_end(self, loss):
            nonlocal before
            changed.append(not torch.equal(before["linear.weight"], learn.model.linear.weight))
            before = state_of(learn)

    learn.fit(0.1, 1, callbacks=[Watch()], **plan)
    assert changed == [batch not in (1, 2, 6) for batch in range(1, 2 * nb + 1)]
    schedule = learn.sched.schedule
    counted = [0, 0, 0, 1, 2, 3, 3, 4]
    assert learn.sched.lrs == pytest.approx([0.1 * rate(schedule, step)[0] for step in counted])


def test_many_overflows_in_a_row_are_warned_of_once(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(steps, "compute_dtype", lambda device: torch.float16)
    learn = Learner.from_model_data(Overflow(set(range(3, 40))), row_data(tmp_path, rng))
    with pytest.warns(UserWarning, match="10 steps in a row overflowed in fp16") as caught:
        learn.fit(0.1, 6)
    assert len(caught) == 1


# Callbacks that write


@pytest.mark.parametrize("hook", ["on_train_begin", "on_batch_begin", "on_batch_end", "on_epoch_end", "on_train_end"])
def test_a_callback_that_cannot_write_does_not_end_the_fit(tmp_path, rng, hook):
    class Log(Callback):
        pass

    def lost(*_):
        raise ConnectionError("the server is gone")

    setattr(Log, hook, lost)
    learn = HeadLearner(row_data(tmp_path, rng))
    with pytest.warns(UserWarning, match=r"fit: Log could not be written \(the server is gone\)") as caught:
        learn.fit(0.1, 2, callbacks=[Log()])
    assert len(caught) == 1
    assert len(learn.sched.val_losses) == 2


def test_any_other_error_of_a_callback_ends_it(tmp_path, rng):
    class Wrong(Callback):
        def on_epoch_end(self, metrics):
            raise KeyError("typo")

    with pytest.raises(KeyError, match="typo"):
        HeadLearner(row_data(tmp_path, rng)).fit(0.1, 2, callbacks=[Wrong()])


def test_a_loader_that_serves_fewer_batches_than_before_ends_the_epoch_early(tmp_path, rng):
    """As when images turn out to be bad and are skipped."""
    data = row_data(tmp_path, rng)
    learn = HeadLearner(data, opt_fn=SGD)
    original = data.trn_dl.batches
    data.trn_dl.batches = lambda epoch: list(original(epoch))[: 3 if epoch else 4].__iter__()
    learn.fit(0.1, 3, cycle_len=1)
    assert len(learn.sched.losses) == 4 + 3 + 3
