import csv

import numpy as np
import pytest
from helpers import assert_same, image_data, row_data, state_of, three_colours, tiny_learner

from fastclf import HeadLearner, ImageClassifierData, ImageModelResults
from fastclf.training import folds


@pytest.fixture
def data(tmp_path, rng):
    return row_data(tmp_path, rng, n=120, n_valid=60)


def planted(tmp_path, rng):
    """Rows whose labels are wrong in rows 3 and 10 of train and 5 of valid; row 7 of valid is row 20 of train.

    Wrong labels stand on the plainest rows of their class: confident learning lists what it is surer of than usual.
    """
    x, vx = (rng.standard_normal((n, 10)) for n in (300, 60))
    y, vy = np.arange(300) % 3, np.arange(60) % 3
    for rows, labels in ((x, y), (vx, vy)):
        rows[np.arange(len(rows)), labels] += 8
    for rows, labels, wrong in ((x, y, [3, 10]), (vx, vy, [5])):
        rows[wrong, labels[wrong]] += 8
    y[[3, 10]], vy[5] = (y[[3, 10]] + 1) % 3, (vy[5] + 1) % 3
    vx[7] = x[20]
    sets = (x.astype(np.float32), y), (vx.astype(np.float32), vy)
    return ImageClassifierData.from_arrays(tmp_path, *sets, bs=16, classes=["a", "b", "c"])


def test_audit_finds_planted_errors_and_a_leak(tmp_path, rng):
    found = HeadLearner(planted(tmp_path, rng)).audit()
    labels = found.of("label")
    assert {(f.set, f.row) for f in labels} >= {("train", 3), ("train", 10), ("valid", 5)}
    assert {f.suggested for f in labels if (f.set, f.row) == ("train", 3)} == {"a"}
    pairs = [(f.set, f.row, f.other) for f in found.of("near duplicate") if f.confidence > 0.9999]
    assert pairs == [("valid", 7, "train 20")]
    confidences = [f.confidence for f in labels]
    assert confidences == sorted(confidences)


def test_audit_as_text_html_frame_and_csv(tmp_path, rng):
    found = HeadLearner(planted(tmp_path, rng)).audit()
    assert "suggested" in repr(found)
    assert "<table>" in found._repr_html_()
    frame = found.to_frame()
    assert len(frame) == len(found)
    with found.to_csv(tmp_path / "audit.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert [line["finding"] for line in lines] == frame["finding"].tolist()
    with pytest.raises(ValueError, match="train, valid"):
        found.results("other")


def test_audit_changes_nothing_and_repeats(data):
    learn = HeadLearner(data)
    before = state_of(learn)
    first, second = learn.audit(), learn.audit()
    assert first.findings == second.findings
    assert_same(before, state_of(learn))


def test_audit_of_images_needs_cached_rows_and_leaves_bad_ones_out(tmp_path):
    three_colours(tmp_path, n=20)
    (tmp_path / "train/red/000.png").write_bytes(b"no image")
    learn = tiny_learner(image_data(tmp_path, augs=(), on_bad="skip"))
    for call in (learn.audit, learn.learning_curve, lambda: learn.similar([])):
        with pytest.raises(ValueError, match=r"learn\.precompute = True"):
            call()
    learn.precompute = True
    bad = learn.data.trn_ds.fnames.index("train/red/000.png")
    found = learn.audit(3)
    assert (("train", bad)) not in {(f.set, f.row) for f in found.findings}
    assert np.isnan(found.preds["train"][bad]).all()
    assert isinstance(found.results("train"), ImageModelResults)
    found.plot("near duplicate", 2)


def test_several_labels_are_audited_one_by_one(tmp_path, rng):
    y = (rng.random((200, 3)) < 0.4).astype(np.float32)
    x = (rng.standard_normal((200, 8)) + 0).astype(np.float32)
    x[:, :3] += 8 * y
    x[4, 1] = 10 if y[4, 1] else -2  # beyond doubt: the method leaves out what is less sure than usual
    y[4, 1] = 1 - y[4, 1]
    data = ImageClassifierData.from_arrays(tmp_path, (x[:150], y[:150]), (x[150:], y[150:]), bs=16, classes=list("abc"))
    labels = HeadLearner(data).audit().of("label")
    sign = "+-" if y[4, 1] else "-+"
    assert (f"{sign[0]}b", f"{sign[1]}b") in {(f.label, f.suggested) for f in labels if (f.set, f.row) == ("train", 4)}


def test_regressions_have_no_labels_to_audit(tmp_path, rng):
    x = rng.standard_normal((40, 4)).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, x[:, 0]), (x, x[:, 0]), bs=8, continuous=True)
    with pytest.raises(ValueError, match="regression"):
        HeadLearner(data).audit()


def test_learning_curve_grows_with_the_images(tmp_path, rng):
    x = rng.standard_normal((600, 12)).astype(np.float32)
    y = np.arange(600) % 3
    x[np.arange(600), y] += 1.5
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x[:30], y[:30]), bs=32, classes=["a", "b", "c"])
    curve = HeadLearner(data).learning_curve(3)
    assert curve.overall.n[-1] == 400
    assert curve.overall.accuracy[-1] > curve.overall.accuracy[0]
    value, low, high = curve.accuracy(800)
    assert low <= value <= high
    assert curve.gain("b", 100) == curve.gain(1, 100)
    with pytest.raises(ValueError, match="'a', 'b', 'c'"):
        curve.gain("d", 100)
    assert "expected" in repr(curve)
    assert len(curve.to_frame()) == 4 * 9
    curve.plot()


def test_learning_curve_of_few_rows_is_refused(tmp_path, rng):
    with pytest.raises(ValueError, match="too few"):
        HeadLearner(row_data(tmp_path, rng)).learning_curve()


def test_similar_finds_the_row_itself(data):
    learn = HeadLearner(data)
    found = learn.similar(data.val_ds.rows[[4, 11]], k=3)
    assert found.rows[:, 0].tolist() == [4, 11]
    assert [found.set_names[k] for k in found.of[:, 0]] == ["valid", "valid"]
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-5)
    assert found.to_frame().shape == (6, 5)
    with pytest.raises(ValueError, match="10"):
        learn.similar(np.zeros((2, 7), np.float32))


def test_similar_takes_images(tmp_path):
    data = image_data(three_colours(tmp_path), augs=())
    learn = tiny_learner(data, precompute=True)
    files = [str(tmp_path / "valid/red/002.png"), str(tmp_path / "train/blue/001.png")]
    found = learn.similar(files, k=2)
    names = [data.sets[found.set_names[k]].fnames[row] for k, row in zip(found.of[:, 0], found.rows[:, 0], strict=True)]
    assert names == ["valid/red/002.png", "train/blue/001.png"]
    found.queries[:] = ["one name"] * 2
    shown = [axes.get_title() for axes in found.plot(1).axes]
    assert [title.split("\n") for title in shown] == [
        [data.sets[found.set_names[k]].fnames[row].rpartition("/")[2], f"{value:.3f}"]
        for k, row, value in zip(found.of[1], found.rows[1], found.similarity[1], strict=True)
    ]


def test_a_curve_of_many_rows_takes_three_folds(data, monkeypatch):
    monkeypatch.setattr(folds, "_MANY", 200)
    learn = HeadLearner(row_data(data.path / "more", np.random.default_rng(3), n=300))
    few, five = learn.learning_curve(), learn.learning_curve(5)
    assert few.to_dict() == learn.learning_curve(3).to_dict()
    assert few.overall.n[-1] == 200
    assert five.overall.n[-1] == 240
