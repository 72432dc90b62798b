"""A test for every row of the table "Not like the original": where fast.ai's library 0.7 had a trap."""

import os
import warnings

import numpy as np
import pytest
import torch
from helpers import COLOURS, image_data, three_colours, tiny_learner, write_images
from sklearn.metrics import f1_score

from fastclf import CropType, ImageClassifierData, LabelError, accuracy, accuracy_np, tfms_from_stats
from fastclf.schedules import Constant, Cosine
from fastclf.training.recorder import Recorder

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "data")


def rows_of(folder):
    """How many rows are kept."""
    return sum(file.stat().st_size // 32 for file in folder.rglob("keys.bin"))


def body_of(learn):
    return torch.cat([p.detach().flatten().clone() for p in learn.model.body.parameters()])


def test_cached_activations_are_keyed_by_all_that_they_depend_on(folder):
    """Weights, the body's state, the image pipeline, the contents of files, and the dtype."""
    tiny_learner(image_data(folder), precompute=True)
    known = rows_of(folder)
    assert known == 36 + 18 + 5  # train, valid, test

    def new_rows(learn):
        learn.precompute = True
        nonlocal known
        added, known = rows_of(folder) - known, rows_of(folder)
        return added

    assert new_rows(tiny_learner(image_data(folder))) == 0
    assert new_rows(tiny_learner(image_data(folder), seed=5)) == 0  # another head is none of the body's business
    assert new_rows(tiny_learner(image_data(folder, sz=20))) == 59
    assert new_rows(tiny_learner(image_data(folder), act_dtype="float32")) == 59
    other_weights = tiny_learner(image_data(folder))
    with torch.no_grad():
        other_weights.model.body.first[0].weight[0, 0, 0, 0] += 1e-3
    assert new_rows(other_weights) == 59
    other_statistics = tiny_learner(image_data(folder))
    other_statistics.model.body.first[1].running_mean += 1e-3
    assert new_rows(other_statistics) == 59
    other_mean = ImageClassifierData.from_paths(folder, bs=8, tfms=tfms_from_stats(((0.4,) * 3, (0.5,) * 3), 16))
    assert new_rows(tiny_learner(other_mean)) == 59
    write_images(folder, {"valid/red": 1}, seed=9)  # other bytes under the same name
    assert new_rows(tiny_learner(image_data(folder))) == 1
    image = folder / "train" / "red" / "000.png"
    os.utime(image, ns=(1, 1))
    assert new_rows(tiny_learner(image_data(folder))) == 0
    image.rename(image.with_name("zzz.png"))
    assert new_rows(tiny_learner(image_data(folder))) == 0


def test_unfreeze_under_precompute_really_unfreezes(folder):
    learn = tiny_learner(image_data(folder), precompute=True)
    learn.unfreeze()
    assert not learn.precompute
    before = body_of(learn)
    learn.fit(0.05, 1)
    assert not torch.equal(before, body_of(learn))


def test_set_data_under_precompute_takes_the_new_rows(folder, tmp_path):
    learn = tiny_learner(image_data(folder), precompute=True)
    other = image_data(three_colours(tmp_path / "other", n=7, n_valid=4))
    learn.set_data(other)
    assert learn.precompute
    assert learn.data.trn_ds.rows.shape == (21, 12)
    learn.precompute, cached = False, learn.predict()
    np.testing.assert_allclose(learn.predict(), cached, atol=2e-2)


def test_three_rates_under_precompute_use_the_last_with_one_warning(folder):
    learn = tiny_learner(image_data(folder), precompute=True)
    with pytest.warns(UserWarning, match="its 0.03 is used") as caught:
        learn.fit([0.01, 0.02, 0.03], 1)
    assert len(caught) == 1
    assert learn.sched.lrs == [0.03] * len(learn.data.trn_dl)


def test_precompute_may_be_turned_on_later(folder):
    learn = tiny_learner(image_data(folder))
    learn.fit(0.01, 1)
    learn.precompute = True
    assert learn.data.trn_ds.rows.shape == (36, 12)
    learn.fit(0.01, 1)


def test_a_tuned_body_is_computed_again(folder):
    learn = tiny_learner(image_data(folder), precompute=True)
    old = np.array(learn.data.trn_ds.rows)
    learn.unfreeze()
    learn.fit(0.1, 1)
    learn.freeze()
    learn.precompute = True
    assert not np.array_equal(old, learn.data.trn_ds.rows)


def test_save_under_precompute_stores_the_whole_model_and_load_takes_a_head_alone(folder):
    from fastclf import HeadLearner

    learn = tiny_learner(image_data(folder), precompute=True)
    learn.fit(0.05, 1)
    before = learn.predict()
    learn.save("whole")
    with torch.no_grad():
        learn.model.body.first[0].weight.zero_()
    learn.load("whole")
    np.testing.assert_array_equal(learn.predict(), before)

    head = HeadLearner(learn.data, ps=0.2, xtra_fc=[8])
    head.fit(0.05, 1)
    head.save("head")
    body = body_of(learn)
    learn.load("head")
    np.testing.assert_array_equal(learn.predict(), head.predict())
    assert torch.equal(body, body_of(learn))


def test_a_class_missing_in_valid_shifts_no_label(tmp_path):
    folder = write_images(tmp_path, {f"train/{name}": 6 for name in COLOURS} | {"valid/green": 3, "valid/red": 3})
    with pytest.warns(UserWarning, match="blue"):
        data = image_data(folder)
    assert data.val_y.tolist() == [1, 1, 1, 2, 2, 2]
    write_images(folder, {"valid/violet": 1})
    with pytest.raises(LabelError, match="violet"):
        image_data(folder)


def test_file_order_is_by_code_point(tmp_path):
    folder = three_colours(tmp_path)
    for place in ("train/red", "test"):
        for name in ("a10.png", "a9.png", "B.png", "é.png"):
            (folder / place / name).hardlink_to(folder / place / "000.png")
    data = image_data(folder)
    for ds in (data.trn_ds, data.val_ds, data.test_ds):
        assert list(ds.fnames) == sorted(ds.fnames)
    assert data.test_ds.fnames[-4:] == ["test/B.png", "test/a10.png", "test/a9.png", "test/é.png"]


def test_one_batch_per_epoch_restarts_and_cycles_are_saved_after_their_last_batch(folder):
    data = image_data(folder, bs=36)
    learn = tiny_learner(data, precompute=True)
    learn.fit(0.1, 3, cycle_len=1, cycle_save_name="c")
    assert learn.sched.lrs == pytest.approx([0.001, 0.1, 0.1])
    learn.fit(0.1, 2, cycle_len=2, cycle_save_name="d")
    final = learn.predict()
    learn.load("d_cyc_1")
    np.testing.assert_array_equal(learn.predict(), final)
    assert [step for step in range(4) if Cosine(2).ends_cycle(step)] == [1, 3]


@pytest.mark.parametrize("precompute", [True, False])
def test_lr_find_leaves_no_trace_also_when_interrupted(folder, precompute, monkeypatch):
    learn = tiny_learner(image_data(folder, bs=2), precompute=precompute)
    if not precompute:
        learn.unfreeze()
    learn.fit(0.01, 1)
    state = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    modes = [module.training for module in learn.model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    files = sorted(folder.rglob("*"))

    def same():
        assert all(torch.equal(state[name], tensor) for name, tensor in learn.model.state_dict().items())
        assert modes == [module.training for module in learn.model.modules()]
        assert torch.equal(torch_state, torch.get_rng_state())
        assert (numpy_state == np.random.get_state()[1]).all()
        assert files == sorted(folder.rglob("*"))

    learn.lr_find()
    same()
    assert learn.sched.lrs[0] == pytest.approx(1e-5)
    from fastclf.training.recorder import Recorder

    def interrupt(self, loss, step):
        if len(self.lrs) == 5:
            raise KeyboardInterrupt
        return original(self, loss, step)

    original = Recorder.batch
    monkeypatch.setattr(Recorder, "batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find()
    same()


def test_rate_searches_on_few_rows_and_short_fits_have_a_plot(folder):
    learn = tiny_learner(image_data(folder), precompute=True)
    learn.lr_find()
    assert 50 < len(learn.sched.lrs) <= 100
    assert len(learn.sched.plot().lines[0].get_xdata()) == len(learn.sched.lrs) - 15
    short = Recorder(Constant(), 1.0)
    for step in range(5):
        short.batch(1.0, step)
    assert len(short.plot().lines[0].get_xdata()) == 5


def test_several_labels_are_decided_from_the_whole_table_and_logged(tmp_path, capsys):
    folder = write_images(tmp_path, {"train": 12})
    rows = [f"{i:03d},{'red' if i % 2 else 'blue'}" for i in range(10)]
    rows += ["010,red blue", "011,red blue"]
    (folder / "labels.csv").write_text("name,tags\n" + "\n".join(rows))
    arguments = (folder, "train", folder / "labels.csv", 4, tfms_from_stats(HALF, 16))
    data = ImageClassifierData.from_csv(*arguments, suffix=".png", val_idxs=[0, 1, 2])
    assert (data.is_multi, data.classes) == (True, ["blue", "red"])
    assert "several labels" in capsys.readouterr().out
    single = ImageClassifierData.from_csv(*arguments, suffix=".png", val_idxs=[0, 1, 11], multi=False)
    assert single.classes == ["blue", "red", "red blue"]


def test_tta_under_precompute_gives_different_views(folder):
    learn = tiny_learner(image_data(folder), precompute=True)
    preds, y = learn.TTA(n_aug=3)
    assert preds.shape == (4, 18, 3)
    assert not np.array_equal(preds[1], preds[2])
    np.testing.assert_array_equal(y, learn.data.val_y)
    np.testing.assert_allclose(preds[0], learn.predict(), atol=2e-2)


def test_augmentations_are_a_function_of_seed_epoch_and_row(folder):
    def batches(seed, epoch, threads):
        data = image_data(folder, seed=seed, num_workers=threads)
        return torch.cat([x for x, _ in data.aug_dl.batches(epoch)])

    first = batches(1, 0, 1)
    assert torch.equal(first, batches(1, 0, 2))
    assert not torch.equal(first, batches(1, 1, 1))
    assert not torch.equal(first, batches(2, 0, 1))


def test_metrics_may_be_torch_or_numpy_functions(folder):
    def torch_metric(log_probs, _y):
        return log_probs.exp().max(1).values.mean()

    def macro_f1(log_probs, y):
        return f1_score(np.asarray(y), np.argmax(np.asarray(log_probs), axis=1), average="macro", zero_division=0)

    learn = tiny_learner(image_data(folder), precompute=True, metrics=[accuracy, accuracy_np, torch_metric, macro_f1])
    values = learn.fit(0.05, 1)
    log_probs, y = learn.predict_with_targs()
    expected = [accuracy_np(log_probs, y)] * 2 + [np.exp(log_probs).max(1).mean(), macro_f1(log_probs, y)]
    assert values[1:] == pytest.approx(expected, rel=1e-5)


def test_precompute_says_once_that_augmentation_has_no_effect(folder, capsys):
    learn = tiny_learner(image_data(folder), precompute=True)
    learn.precompute = False
    learn.precompute = True
    assert capsys.readouterr().out.count("augmentation have no effect") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_learner(image_data(folder, augs=(), crop_type=CropType.NO), precompute=True)
    assert "augmentation" not in capsys.readouterr().out
