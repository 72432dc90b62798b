import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Watches, row_data
from kinks import linear_relus
from torch import nn

from fastclf import BCE, NLL, Callback, CheckpointError, DivergedError, HeadLearner, ImageClassifierData, Learner
from fastclf.ops import rate


@pytest.fixture
def data(tmp_path, rng):
    return row_data(tmp_path, rng)


def parameters_of(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_learns_and_returns_the_last_epoch(data, capsys):
    learn = HeadLearner(data, ps=0, xtra_fc=[16])
    values = learn.fit(0.1, 10, cycle_len=1)
    assert values == [learn.sched.val_losses[-1], *learn.sched.rec_metrics[-1]]
    assert values[1] > 0.8
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "trn_loss", "val_loss", "accuracy"]
    assert len(lines) == 11
    assert float(lines[10].split()[2]) == pytest.approx(values[0], abs=1e-6)


def test_activations_from_an_npy_file_are_mapped(tmp_path, rng):
    x, vx = rng.standard_normal((40, 6)).astype(np.float16), rng.standard_normal((10, 6)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    data = ImageClassifierData.from_arrays(
        tmp_path, (tmp_path / "x.npy", np.arange(40) % 2), (vx, np.arange(10) % 2), bs=8
    )
    assert isinstance(data.trn_ds.rows, np.memmap)
    HeadLearner(data, xtra_fc=[4]).fit(1e-2, 1)


def test_validation_is_exact_not_a_mean_of_batches(data):
    learn = HeadLearner(data, xtra_fc=[16])
    loss, acc = learn.fit(0.05, 1)
    log_probs, y = learn.predict_with_targs()
    assert loss == pytest.approx(-log_probs[np.arange(len(y)), y].astype(np.float64).mean(), rel=1e-5)
    assert acc == pytest.approx((log_probs.argmax(1) == y).mean())


def test_same_seed_same_losses_other_seed_others(tmp_path, rng):
    data = row_data(tmp_path, rng)

    def losses(seed):
        learn = HeadLearner(data, xtra_fc=[16], seed=seed)
        torch.manual_seed(np.random.SeedSequence().entropy % 2**32)  # the global generator has no part in it
        learn.fit(0.05, 2, cycle_len=1)
        learn.fit(0.05, 1)
        return learn.sched.losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_two_fits_do_not_repeat_their_masks_and_order(data):
    learn = HeadLearner(data, xtra_fc=[16])
    learn.fit(0, 1)
    first = learn.sched.losses
    learn.fit(0, 1)
    assert first != learn.sched.losses


def test_every_fit_starts_a_new_optimizer(data):
    makes = []
    learn = HeadLearner(data, opt_fn=lambda groups, lr: makes.append(torch.optim.SGD(groups, lr)) or makes[-1])
    learn.fit(1e-2, 1)
    learn.fit(1e-2, 1)
    assert len(makes) == 2


def test_matches_plain_torch(data):
    """One fit with SGDR, momentum and weight decay, step by step against torch in float64."""
    learn = HeadLearner(data, ps=0, xtra_fc=[16])
    linear_relus(learn.head.layers)
    ours = nn.Sequential(*[type(m)(*_shape(m)) for m in learn.head.layers]).double()
    ours.load_state_dict({k: v.double() for k, v in learn.head.layers.state_dict().items()})
    learn.fit(0.1, 2, wds=1e-2, cycle_len=1)
    optimizer = torch.optim.SGD(ours.parameters(), lr=1, momentum=0.9, weight_decay=1e-2)
    step = 0
    for epoch in range(2):
        for x, y in data.trn_dl.batches(epoch):
            optimizer.param_groups[0]["lr"] = 0.1 * rate(learn.sched.schedule, step)[0]
            loss = nn.functional.cross_entropy(ours(x.double()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    expected = torch.cat([p.detach().flatten() for p in ours.parameters()])
    torch.testing.assert_close(parameters_of(learn).double(), expected, rtol=1e-3, atol=1e-4)


def _shape(m):
    if isinstance(m, nn.Linear):
        return m.in_features, m.out_features
    return (m.num_features,) if isinstance(m, nn.BatchNorm1d) else ()


def test_the_engine_and_autograd_train_alike(data, capsys):
    """Same masks, same order, same schedule: the two ways differ by rounding only."""
    engine = HeadLearner(data, xtra_fc=[16, 8])
    autograd = HeadLearner(data, xtra_fc=[16, 8], opt_fn=partial(torch.optim.SGD, momentum=0.9))
    for learn in (engine, autograd):
        linear_relus(learn.head.layers)
        learn.crit = NLL(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
        learn.clip = 0.5
        learn.fit(0.05, 2, wds=1e-2, cycle_len=1, use_wd_sched=True)
    out = capsys.readouterr().out
    assert out.count("the native engine does not know this optimizer") == 1
    np.testing.assert_allclose(engine.sched.losses, autograd.sched.losses, rtol=1e-4)
    for (name, ours), theirs in zip(
        engine.model.state_dict().items(), autograd.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
    np.testing.assert_allclose(engine.predict(), autograd.predict(), rtol=1e-3, atol=1e-3)


def test_batchnorm_frozen_in_the_engine_keeps_its_statistics(data):
    learn = HeadLearner(data, xtra_fc=[16])
    learn.bn_freeze(True)
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    learn.fit(0.05, 1)
    same = {name for name, t in learn.model.state_dict().items() if torch.equal(t, before[name])}
    assert same == {name for name in before if "running" in name or "num_batches" in name}


def test_decoupled_weight_decay_shrinks_weights_by_rate_times_decay(data):
    learn = HeadLearner(data, ps=0, xtra_fc=[], opt_fn=lambda groups, lr: torch.optim.SGD(groups, lr), metrics=[])
    plain = HeadLearner(data, ps=0, xtra_fc=[], opt_fn=lambda groups, lr: torch.optim.SGD(groups, lr), metrics=[])
    data.trn_dl.bs = len(data.trn_ds)
    start = parameters_of(learn)
    learn.fit(0.5, 1, wds=0.1, use_wd_sched=True)
    plain.fit(0.5, 1)
    torch.testing.assert_close(parameters_of(learn), parameters_of(plain) - 0.05 * start, rtol=1e-4, atol=1e-5)


def test_clip_bounds_the_step(data):
    learn = HeadLearner(data, ps=0, xtra_fc=[], opt_fn=lambda groups, lr: torch.optim.SGD(groups, lr), clip=1e-3)
    data.trn_dl.bs = len(data.trn_ds)
    before = parameters_of(learn)
    learn.fit(1.0, 1)
    assert (parameters_of(learn) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_clr_beta_moves_momentum(data):
    seen = []

    class Watch(Callback):
        def on_batch_begin(self):
            seen.append(None)

    learn = HeadLearner(data, opt_fn=torch.optim.Adam)
    learn.fit(1e-3, 1, cycle_len=2, use_clr_beta=(10, 20, 0.95, 0.85), callbacks=[Watch()])
    assert len(seen) == len(learn.sched.momentums) == 8
    assert min(learn.sched.momentums) == pytest.approx(0.85, abs=0.03)
    learn.opt_fn = torch.optim.Adagrad
    with pytest.raises(ValueError, match="Adagrad has no momentum"):
        learn.fit(1e-3, 1, cycle_len=2, use_clr_beta=(10, 20, 0.95, 0.85))


def test_several_labels(tmp_path, rng):
    x, y = rng.standard_normal((80, 6)).astype(np.float32), rng.integers(0, 2, (80, 3)).astype(np.float32)
    x[:, :3] += 3 * y
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=16, classes=list("abc"))
    learn = HeadLearner(data, ps=0, xtra_fc=[12])
    assert isinstance(learn.crit, BCE)
    learn.fit(0.3, 10)
    probs = learn.predict()
    assert ((probs >= 0) & (probs <= 1)).all()
    assert ((probs > 0.5) == y).mean() > 0.8


def test_regression(tmp_path, rng):
    x = rng.standard_normal((80, 4)).astype(np.float32)
    y = (x[:, 0] * 2 + 1).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=16, continuous=True)
    learn = HeadLearner(data, ps=0, xtra_fc=[])
    baseline = np.abs(y - np.median(y)).mean()
    assert learn.fit(0.05, 20, cycle_len=1)[0] < 0.8 * baseline
    assert learn.predict().shape == (80, 1)


def test_class_weights_may_be_assigned(tmp_path, rng):
    """Rows of weight 0 count nothing in training, whatever their labels; the loss on valid has no weights."""
    x, y = rng.standard_normal((60, 10)).astype(np.float32), np.arange(60) % 3
    found = []
    for labels in (y, np.array([0, 2, 1])[y]):
        learn = HeadLearner(ImageClassifierData.from_arrays(tmp_path, (x, labels), (x, y), bs=16), ps=0, xtra_fc=[])
        learn.crit = NLL(weight=torch.tensor([1.0, 0.0, 0.0]))
        loss, _ = learn.fit(0.05, 3)
        log_probs, _ = learn.predict_with_targs()
        assert loss == pytest.approx(-log_probs[np.arange(60), y].astype(np.float64).mean(), rel=1e-4)
        found.append(parameters_of(learn))
    torch.testing.assert_close(*found)
    learn.crit = NLL()
    learn.fit(0.05, 3)
    assert not torch.allclose(found[1], parameters_of(learn), atol=1e-3)


def test_class_weights_auto(tmp_path, rng):
    y = np.repeat([0, 1], [996, 4])
    x = rng.standard_normal((1000, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="'0' has 996 training rows, '1' 4"):
        data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=100)
    learn = HeadLearner(data, class_weights="auto")
    roots = torch.tensor([996.0, 4.0]).sqrt()
    torch.testing.assert_close(learn.crit.weight, 1000 / roots.sum() / roots)
    learn.fit(0.01, 1)
    torch.testing.assert_close(HeadLearner(data, class_weights=[1, 3]).crit.weight, torch.tensor([1.0, 3.0]))
    with pytest.raises(ValueError, match="crit replaces the default loss"):
        HeadLearner(data, class_weights="auto", crit=NLL())
    numbers = ImageClassifierData.from_arrays(tmp_path, (x, x[:, 0]), (x, x[:, 0]), continuous=True)
    with pytest.raises(ValueError, match="numbers to be predicted"):
        HeadLearner(numbers, class_weights="auto")


def test_the_input_stall_is_logged_once_after_a_fit(data, capsys, monkeypatch):
    learn = HeadLearner(data)
    monkeypatch.setattr(type(data.trn_dl.input_stall), "line", lambda self, what: f"{what}: waited")
    learn.fit(0.1, 3)
    assert capsys.readouterr().out.splitlines()[-1] == "train: waited"


def test_a_loss_that_is_not_finite_stops_the_fit(data):
    learn = HeadLearner(data, crit=lambda out, y: out.sum() * float("nan"))
    with pytest.raises(DivergedError, match=r"batch 0 is nan at learning rate 0\.1"):
        learn.fit(0.1, 1)


def test_callbacks_stop_and_save(data):
    class Stop(Callback):
        def on_epoch_end(self, metrics):
            assert len(metrics) == 2
            return True

    learn = HeadLearner(data, xtra_fc=[4])
    learn.fit(1e-2, 3, cycle_len=1, cycle_mult=2, cycle_save_name="c", best_save_name="best")
    names = {p.name.split(".")[0] for p in (data.path / "models").iterdir()}
    assert names == {"c_cyc_0", "c_cyc_1", "c_cyc_2", "best"}
    best = min(learn.sched.val_losses)
    learn.load("best")
    learn.fit(1e-2, 5, callbacks=[Stop()])
    assert len(learn.sched.val_losses) == 1
    learn.load("best")
    log_probs, y = learn.predict_with_targs()
    assert -log_probs[np.arange(len(y)), y].mean() == pytest.approx(best, rel=1e-4)


def test_a_callback_that_cannot_write_may_have_no_hash(data):
    @dataclass
    class Diary(Callback):
        name: str

        def on_epoch_end(self, metrics):
            raise OSError(28, "No space left on device")

    learn = HeadLearner(data, xtra_fc=[4])
    with pytest.warns(UserWarning, match="Diary could not be written") as told:
        learn.fit(1e-2, 3, callbacks=[Diary("one"), Diary("one")])  # equal, but two
    assert len(learn.sched.val_losses) == 3
    assert len([w for w in told if "could not be written" in str(w.message)]) == 2


def test_save_and_load(data, tmp_path, rng):
    learn = HeadLearner(data, xtra_fc=[4])
    learn.fit(1e-2, 1)
    before = learn.predict()
    learn.save("one")
    info = json.loads((data.path / "models" / "one.json").read_text())
    assert info["classes"] == data.classes
    assert str(tmp_path) not in json.dumps(info)
    learn.fit(1e-1, 1)
    learn.load("one")
    np.testing.assert_array_equal(learn.predict(), before)
    other = HeadLearner(data, xtra_fc=[5])
    with pytest.raises(CheckpointError, match="does not fit this model"):
        other.load("one")
    with pytest.raises(FileNotFoundError, match="saved models: one"):
        learn.load("two")
    with pytest.raises(ValueError, match="plain file name"):
        learn.save("../one")


def test_a_damaged_model_is_refused(data):
    learn = HeadLearner(data, xtra_fc=[4])
    learn.save("one")
    (file,) = (data.path / "models").glob("one.*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        learn.load("one")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        learn.load("one")
    (data.path / "models" / "one.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a description"):
        learn.load("one")


def test_saving_again_leaves_one_file(data):
    learn = HeadLearner(data, xtra_fc=[4])
    learn.save("one")
    learn.save("one.more")
    learn.fit(1e-2, 1)
    learn.save("one")
    assert len(list((data.path / "models").iterdir())) == 4
    learn.load("one.more")


def test_classes_in_another_order_are_matched_by_name(tmp_path, rng):
    x, y = rng.standard_normal((60, 5)).astype(np.float32), np.arange(60) % 3
    x[np.arange(60), y] += 3
    names, order = np.array(["ant", "bee", "cat"]), np.array([2, 0, 1])
    first = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=list(names), bs=16)
    place = np.argsort(order)
    second = ImageClassifierData.from_arrays(tmp_path, (x, place[y]), (x, place[y]), classes=list(names[order]), bs=16)
    learn = HeadLearner(first, xtra_fc=[4])
    learn.fit(0.05, 2)
    learn.save("m")
    again = HeadLearner(second, xtra_fc=[4])
    with pytest.warns(UserWarning, match="its classes are in another order"):
        again.load("m")
    np.testing.assert_allclose(again.predict(), learn.predict()[:, order], atol=1e-6)
    third = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=["ant", "bee", "dog"], bs=16)
    with pytest.raises(CheckpointError, match=r"'cat'.*'dog'"):
        HeadLearner(third, xtra_fc=[4]).load("m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.1, 0.2), 1), "lrs must be one number or one per layer group"),
        ((-0.1, 1), "finite and not negative"),
        ((0.1, 0), "n_cycle must be a whole number of at least 1, got 0"),
        ((0.1, 1, (1, 2)), "wds must be"),
    ],
)
def test_wrong_arguments_of_fit(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadLearner(data).fit(*arguments)


def test_weight_decay_needs_an_optimizer_that_has_it(data):
    learn = HeadLearner(data, opt_fn=torch.optim.Rprop)
    with pytest.raises(ValueError, match="Rprop has no weight decay"):
        learn.fit(0.1, 1, wds=0.1)


def test_a_model_of_ones_own(data):
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(1))
    learn = Learner.from_model_data(model, data, groups=[model[:2], model[2:]])
    learn.fit([0.01, 0.1], 5)
    assert (learn.predict().argmax(1) == data.val_y).mean() > 0.7
    assert learn.predict_array(data.val_ds.rows[:4]).shape == (4, 3)
    with pytest.raises(ValueError, match="holds activations"):
        learn.TTA()


def test_summary_shows_shapes_and_what_trains(data, capsys):
    HeadLearner(data, xtra_fc=[4]).summary()
    out = capsys.readouterr().out
    assert "[-1, 4]" in out
    assert out.splitlines()[-1] == "87 parameters, 87 trainable"


def test_set_data_needs_the_same_classes(data, tmp_path, rng):
    learn = HeadLearner(data)
    learn.set_data(row_data(tmp_path, rng, n=20))
    assert len(learn.data.trn_ds) == 20
    with pytest.raises(ValueError, match="set_data: data must have the classes"):
        learn.set_data(row_data(tmp_path, rng, c=4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(10, 3), r"model must end in nn\.LogSoftmax\(1\)"),
        (nn.Sequential(nn.Linear(10, 5), nn.LogSoftmax(1)), r"model must give \[B, 3\], .* got \(2, 5\)"),
        (nn.Sequential(nn.Linear(9, 3), nn.LogSoftmax(1)), r"model must take batches \[B, 10\]"),
        (nn.LSTM(10, 3), "model must give .* got a tuple"),
    ],
)
def test_a_network_that_does_not_give_what_the_loss_takes(data, model, message):
    """Of logits, it would train; and predictions be no log-probabilities."""
    learn = Learner.from_model_data(model, data)
    for call in (lambda: learn.fit(0.1, 1), learn.lr_find):
        with pytest.raises(ValueError, match=message):
            call()
    assert all(module.training for module in model.modules())


def test_a_network_of_logits_with_a_loss_of_logits(data):
    model = nn.Linear(10, 3, dtype=torch.float64)  # of any precision
    learn = Learner.from_model_data(model, data)
    learn.crit = nn.CrossEntropyLoss()
    assert learn.fit(0.1, 2)[0] < 1


@pytest.mark.parametrize("opt_fn", [None, torch.optim.Adam])
def test_a_callback_may_predict(data, opt_fn):
    fits = []
    for watches in (False, True):
        learn = HeadLearner(data, xtra_fc=[4], opt_fn=opt_fn)
        learn.fit(0.1, 2, callbacks=[Watches(learn.predict if watches else lambda: None)])
        fits.append(learn.predict())
    np.testing.assert_array_equal(*fits)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("opt_fn", [None, torch.optim.Adam])
def test_gradients_may_be_off(data, off, opt_fn):
    plain, other = (HeadLearner(data, xtra_fc=[4], opt_fn=opt_fn) for _ in range(2))
    with off():
        other.fit(0.1, 2)
        other.lr_find()
    plain.fit(0.1, 2)
    np.testing.assert_array_equal(other.predict(), plain.predict())
    assert torch.is_grad_enabled()
