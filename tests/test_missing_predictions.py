"""A prediction that does not exist counts nowhere: with the lesson's own lines, for labels of every kind."""

import numpy as np
import pytest
import torch
from helpers import image_data, three_colours, tiny_learner

from fastclf import (
    ImageClassifierData,
    ImageModelResults,
    RandomFlip,
    accuracy,
    accuracy_np,
    accuracy_thresh,
    classification_report,
    confusion_matrix,
    f1,
    fbeta,
    log_loss,
    precision,
    recall,
    tfms_from_stats,
)
from fastclf.training.metrics import mark_without_prediction, without_prediction

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path, rng):
    three_colours(tmp_path)
    files = sorted((tmp_path / "valid").rglob("*.png"))
    for k in rng.choice(len(files), 4, replace=False):
        files[k].write_bytes(b"broken")
    return tmp_path


@pytest.mark.parametrize("precompute", [False, True])
def test_the_lessons_own_lines(folder, precompute, capsys):
    data = image_data(folder, on_bad="skip")
    learn = tiny_learner(data, precompute=precompute)
    learn.fit(0.1, 2)
    log_preds, y = learn.TTA()
    probs = np.exp(log_preds).mean(0)
    bad = np.array(sorted(data.val_ds.bad.reasons))
    assert len(bad) == 4
    assert (np.flatnonzero(y == -1) == bad).all()
    assert np.isnan(probs[bad]).all()
    good = np.setdiff1d(np.arange(len(y)), bad)
    capsys.readouterr()
    cm = confusion_matrix(y, probs.argmax(1), data.classes)
    assert capsys.readouterr().out == "confusion_matrix: 4 of 18 rows have no prediction and are left out\n"
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (data.val_y[good], probs[good].argmax(1)), 1)
    np.testing.assert_array_equal(cm, expected)
    right = np.mean(probs[good].argmax(1) == data.val_y[good])
    assert accuracy_np(probs, y) == pytest.approx(right)
    report = classification_report(y, probs.argmax(1), data.classes)
    assert report == classification_report(data.val_y[good], probs[good].argmax(1), data.classes)
    _, plain_y = learn.predict_with_targs()
    np.testing.assert_array_equal(plain_y, y)
    results = ImageModelResults(data.val_ds, np.log(probs))
    assert (results.preds[bad] == -1).all()
    np.testing.assert_array_equal(confusion_matrix(data.val_y, results.preds, data.classes), expected)
    shown = [row for cls in data.classes for row in results.most_uncertain(cls, 99)]
    assert sorted(shown) == good.tolist()
    assert learn.sched.rec_metrics[-1][0] == pytest.approx(
        accuracy(learn.predict(), plain_y)
    )  # as the table of the fit has it


@pytest.mark.parametrize("views", [1, 3])
def test_an_image_that_turns_bad_during_tta(folder, views):
    """The first passes have a prediction of it, the last has none: their mean has none."""
    data = image_data(folder, on_bad="skip")
    learn = tiny_learner(data)
    good = data.val_ds.bad
    original, calls = learn._predict, []

    def predict(module, dl, epoch=0):
        calls.append(epoch)
        if len(calls) == views + 1:
            row = int(np.setdiff1d(np.arange(18), [*good.reasons])[0])
            good.note({row: "changed since the scan"})
        return original(module, dl, epoch)

    data.scan()
    before = len(good.reasons)
    learn._predict = predict
    log_preds, y = learn.TTA(n_aug=views)
    missing = np.isnan(np.exp(log_preds).mean(0)).any(1)
    assert missing.sum() == before + 1
    np.testing.assert_array_equal(y == -1, missing)


def test_test_sets_too(folder):
    (folder / "test" / "001.png").write_bytes(b"broken")
    learn = tiny_learner(image_data(folder, on_bad="skip"))
    preds, y = learn.predict_with_targs(is_test=True)
    assert np.isnan(preds[1]).all()
    np.testing.assert_array_equal(y, [0, -1, 0, 0, 0])


@pytest.mark.parametrize("kind", ["several", "numbers", "several numbers"])
def test_labels_that_are_floats(tmp_path, kind, rng):
    pytest.importorskip("pandas")
    import pandas as pd

    three_colours(tmp_path / "p", n=20, n_valid=0, n_test=0)
    files = sorted(p.relative_to(tmp_path / "p/train").as_posix() for p in (tmp_path / "p/train").rglob("*.png"))
    tags = {"several": ["a b", "b", "a c"], "numbers": [1.5, 2.0, 3.25]}
    table = pd.DataFrame({"file": files, "label": np.resize(tags.get(kind, [1.0, 2.0, 3.0]), len(files))})
    if kind == "several numbers":
        table["second"] = 0.5
    bad = 7
    (tmp_path / "p/train" / files[bad]).write_bytes(b"broken")
    data = ImageClassifierData.from_df(
        tmp_path / "p", "train", table, 8, tfms_from_stats(HALF, 16, aug_tfms=[RandomFlip()]),
        val_idxs=range(0, 20), continuous=kind != "several", multi=kind == "several" or None, on_bad="skip",
    )  # fmt: skip
    learn = tiny_learner(data, metrics=[])
    preds, y = learn.TTA(n_aug=1)
    assert np.isnan(y[bad]).all()
    assert not np.isnan(np.delete(y, bad, 0)).any()
    assert np.isnan(preds[:, bad]).all()
    if kind == "several":
        mean = preds.mean(0)
        metric = accuracy_thresh(0.5)
        assert metric(mean, y) == metric(np.delete(mean, bad, 0), np.delete(y, bad, 0))
        said = classification_report(y, mean > 0.5, data.classes)
        assert said == classification_report(np.delete(y, bad, 0), np.delete(mean > 0.5, bad, 0), data.classes)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("metric", [accuracy_thresh(0.4), precision, recall, f1, fbeta(2), log_loss, accuracy_np])
def test_metrics_leave_marked_rows_out(rng, metric, several):
    if several and metric is accuracy_np:
        pytest.skip("a metric of one label")
    n, c = int(rng.integers(5, 40)), int(rng.integers(2, 5))
    p = rng.dirichlet(np.ones(c), n)
    y = rng.integers(0, 2, (n, c)).astype(np.float32) if several else rng.integers(0, c, n)
    marked = rng.random(n) < 0.3
    given = mark_without_prediction(torch.from_numpy(y), torch.from_numpy(marked))
    np.testing.assert_array_equal(without_prediction(given), marked)
    expected = metric(p[~marked], y[~marked])
    p[marked] = rng.choice([np.nan, 0.5])
    assert metric(p, given.numpy()) == pytest.approx(expected, nan_ok=True)
    assert metric(torch.from_numpy(p), given) == pytest.approx(expected, nan_ok=True)
    p[~marked] = np.nan
    assert np.isnan(metric(p, given.numpy()))  # what should be there and is not is never left out


def test_other_negative_numbers_are_errors(rng):
    y = np.array([0, 1, -2])
    with pytest.raises(ValueError, match="got -2"):
        accuracy(rng.random((3, 2)), y)
    with pytest.raises(ValueError, match="got -2"):
        confusion_matrix(y, np.zeros(3, int), ["a", "b"])


def test_nothing_at_all_has_a_prediction():
    assert np.isnan(accuracy(np.full((2, 3), np.nan), np.full(2, -1)))
    assert confusion_matrix(np.full(2, -1), np.zeros(2, int), ["a", "b"]).sum() == 0
