"""from_arrays: layouts, types, values and labels that do not fit are named."""

import numpy as np
import pandas as pd
import pytest
import torch

from fastclf import HeadLearner, tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import DataError, LabelError

TFMS = tfms_from_stats(([0.5] * 3, [0.5] * 3), 8)
IMAGES = np.zeros((6, 10, 12, 3), np.uint8)
ROWS = np.zeros((6, 4), np.float32)
Y = [0, 1, 0, 1, 0, 1]


def load(x=IMAGES, y=Y, vx=None, vy=None, **options):
    val = (x if vx is None else vx, y if vy is None else vy)
    return ImageClassifierData.from_arrays("somewhere", (x, y), val, 3, TFMS, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((6, 3, 10, 12), np.uint8), r"3 channels \(or 1\) on the last axis, got \[6, 3, 10, 12\].*transpose"),
        (np.zeros((6, 10, 12, 4), np.uint8), r"Drop an alpha channel"),
        (np.zeros((6, 10, 12), np.uint8), r"x\[..., None\]"),
        (np.zeros((0, 10, 12, 3), np.uint8), "none of them 0"),
        (np.zeros((6, 10, 12, 3), np.int32), "must be uint8, or float in 0..1, got int32"),
        (np.full((6, 10, 12, 3), 255.0), r"must be in 0..1, got 255.0 in row 0. Divide by 255"),
        (np.zeros(6), r"got \[6\]"),
        (
            pd.Series([*IMAGES]),
            r"an array of numbers, got a Series of 6. .* pass np.stack\(",
        ),
        ((image for image in IMAGES), "an array of numbers, got a generator"),
        ([f"{i}.jpg" for i in range(6)], "got a list of 6. .* names of files belong into from_df"),
        (np.ma.array(IMAGES, mask=True), r"masked, .* fill them, x.filled\(0\)"),
    ],
)
def test_other_layouts_and_types(x, message):
    with pytest.raises(ValueError, match=message):
        load(x)


def test_labels_that_are_masked_are_missing():
    with pytest.raises(ValueError, match="masked, which are missing ones: leave these rows out"):
        load(y=np.ma.array(Y, mask=[0, 0, 1, 0, 0, 0]))
    assert len(load(y=np.ma.array(Y, mask=False)).trn_ds) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
@pytest.mark.parametrize("row", [0, 4])
def test_values_of_images(value, row):
    x = np.zeros((6, 10, 12, 3))
    x[row, 3, 4, 1] = value
    with pytest.raises(ValueError, match=rf"trn x of float images must be in 0..1, got {value} in row {row}"):
        load(x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_of_rows(dtype, value, monkeypatch):
    monkeypatch.setattr("fastclf.data.sources.array_checks._BLOCK_BYTES", 64)  # several blocks
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(dtype)
    load(x, np.arange(50) % 2)
    bad = x.copy()
    bad[37, 2] = value
    with pytest.raises(ValueError, match=rf"val x of rows must be finite and within \+-1e\+16, got {value} in row 37"):
        load(x, np.arange(50) % 2, vx=bad)


def test_rows_of_other_types_and_layouts(tmp_path):
    assert load(ROWS.astype(np.float64)).trn_ds.rows.dtype == np.float32
    assert load(np.arange(24).reshape(6, 4)).trn_ds.rows.dtype == np.float32
    assert load(np.asfortranarray(ROWS)).trn_ds.rows.flags.c_contiguous
    np.save(tmp_path / "x.npy", ROWS.astype(np.float64))
    with pytest.raises(ValueError, match="must be float16 or float32 in a file, got float64"):
        load(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", ROWS)
    assert isinstance(load(str(tmp_path / "x.npy")).trn_ds.rows, np.memmap)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.npy")


def test_images_in_a_mapped_file(tmp_path, rng):
    x = rng.integers(0, 256, IMAGES.shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped, plain = load(tmp_path / "x.npy"), load(x)
    np.testing.assert_array_equal(next(mapped.trn_dl.batches(0))[0], next(plain.trn_dl.batches(0))[0])


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr': ", b"PK\x03\x04"])
def test_files_that_hold_no_array(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"trn x: .*x.npy is not a .npy file"):
        load(tmp_path / "x.npy")


def test_a_file_that_was_cut_short(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"trn x: .*x.npy is not a .npy file"):
        load(tmp_path / "x.npy")


def test_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"x.npy is not a .npy file of numbers"):
        load(tmp_path / "x.npy")


@pytest.mark.parametrize("x", [[[1.0], [1.0, 2.0]], np.full((6, 4), None), np.ones((6, 4), complex)])
def test_rows_that_are_no_numbers(x):
    with pytest.raises(ValueError, match=r"trn x (of rows must be numbers|must be an array)"):
        load(x)


def test_values_too_large_for_their_type():
    with pytest.raises(ValueError, match=r"x of rows must be finite .* got inf in row 2"):
        load(np.where(np.arange(6)[:, None] == 2, 1e300, np.ones((6, 4))))
    with pytest.raises(ValueError, match=r"x of rows must be .* within .* got -.*e\+16 in row 2\. .*divide all rows"):
        load(np.where(np.arange(6)[:, None] == 2, np.float32(-1e17), np.ones((6, 4), np.float32)))
    with pytest.raises(ValueError, match="y must be finite numbers, got inf in row 1"):
        load(y=[0, 1e300, 0, 0, 0, 0], continuous=True)


@pytest.mark.parametrize("y", [["a"] * 6, [None] * 6])
def test_numbers_to_predict_that_are_none(y):
    with pytest.raises(ValueError, match="trn y must be numbers"):
        load(y=y, continuous=True)


def test_sets_of_different_kinds():
    for other in (ROWS, IMAGES.astype(float), IMAGES[..., :1]):
        with pytest.raises(ValueError, match="must be of one kind"):
            load(vx=other)
    with pytest.raises(ValueError, match="must be of one kind"):
        load(ROWS, vx=ROWS[:, :3])
    load(vx=np.zeros((6, 20, 9, 3), np.uint8))  # images of another size are no trouble


@pytest.mark.parametrize("name", ["trn", "val"])
def test_lengths(name):
    short = {"y": Y[:5], "vy": Y} if name == "trn" else {"vy": Y[:5]}
    with pytest.raises(ValueError, match=rf"{name} x and y must be equally long, got x \[6, 10, 12, 3\] and y \[5\]"):
        load(**short)


def test_numbered_classes():
    data = load()
    assert data.classes == ["0", "1"]
    assert load(classes=["cat", "dog"]).classes == ["cat", "dog"]
    with pytest.raises(LabelError, match=r"trn y must be one of the 2 classes, row 3 is not \(2\)"):
        load(y=[0, 1, 0, 2, 0, 1], vy=Y, classes=["cat", "dog"])
    with pytest.raises(LabelError, match=r"val y must be one of the 2 classes, row 0 is not \(2\)"):
        load(vy=[2] * 6)
    with pytest.raises(LabelError, match=r"trn y must be classes 0, 1, ..., got -1 in row"):
        load(y=[-1, 0, 1, 0, 1, 0])
    with pytest.raises(LabelError, match="every class must have a training row, got none of '1'"):
        load(y=[0, 2, 0, 2, 0, 2])
    with pytest.raises(LabelError, match="at least two classes"):
        load(y=[0] * 6)
    with pytest.warns(UserWarning, match="val: no image of the class.*'1'"):
        load(vy=[0] * 6)


def test_named_classes():
    data = load(y=["dog", "cat"] * 3, vy=["cat"] * 3 + ["dog"] * 3)
    assert data.classes == ["cat", "dog"]
    assert data.trn_y.tolist() == [1, 0] * 3
    assert data.val_y.tolist() == [0] * 3 + [1] * 3
    assert load(y=["dog", "cat"] * 3, classes=["dog", "cat"]).trn_y.tolist() == [0, 1] * 3
    with pytest.raises(LabelError, match="val y must be one of the 2 classes, row 2 is not"):
        load(y=["dog", "cat"] * 3, vy=["dog", "cat", "cow", "dog", "cat", "dog"])


def test_several_labels():
    y = np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]
    data = load(y=y)
    assert data.is_multi
    assert data.classes == ["0", "1", "2"]
    assert data.trn_y.dtype == np.float32
    assert next(data.val_dl.batches(0))[1].shape == (3, 3)
    with pytest.raises(LabelError, match="classes must name the 3 columns of y, got 2 names"):
        load(y=y, classes=["a", "b"])
    with pytest.raises(LabelError, match=r"must be 0 or 1, got \[0, 0, 2\] in row 2"):
        load(y=y * [1, 1, 2])
    with pytest.raises(ValueError, match="the same for trn and val"):
        load(y=y, vy=y[:, :2])


def test_numbers_to_predict():
    data = load(y=np.linspace(0, 1, 6), continuous=True)
    assert (data.is_reg, data.c, data.classes) == (True, 1, [])
    assert data.trn_y.dtype == np.float32
    assert load(y=np.zeros((6, 2)), continuous=True).c == 2
    with pytest.raises(ValueError, match="must be finite numbers, got nan in row 2"):
        load(y=[0, 1, np.nan, 3, 4, 5], continuous=True)
    with pytest.raises(LabelError, match="continuous=True"):
        load(y=np.linspace(0, 1, 6))


@pytest.mark.parametrize(
    ("test", "y"),
    [(IMAGES[:4], [0] * 4), ((IMAGES[:4], None), [0] * 4), ((IMAGES[:4], [1, 0, 1, 1]), [1, 0, 1, 1])],
)
def test_a_test_set(test, y):
    data = load(test=test)
    assert data.test_ds.y.tolist() == y
    assert torch.cat([served for _, served in data.test_dl]).tolist() == y


def test_labels_of_a_test_set_are_checked_like_the_others():
    names = ["dog", "cat"] * 3
    assert load(y=names, test=(IMAGES, names)).test_ds.y.tolist() == [1, 0] * 3
    several = np.array([[1, 1], [0, 1], [1, 0]] * 2)
    np.testing.assert_array_equal(load(y=several, test=(IMAGES, several[::-1])).test_ds.y, several[::-1])
    numbers = np.linspace(0, 1, 6, dtype=np.float32)
    served = load(y=numbers, test=(IMAGES, -numbers), continuous=True).test_ds.y
    np.testing.assert_array_equal(served.ravel(), -numbers)
    with pytest.raises(LabelError, match="test y must be one of the 2 classes, row 1 is not"):
        load(test=(IMAGES[:2], [0, 2]))
    with pytest.raises(ValueError, match="test x and y must be equally long"):
        load(test=(IMAGES[:2], [0]))
    with pytest.raises(ValueError, match="the same for trn and test"):
        load(test=(IMAGES, several))


def test_one_hot_labels_are_logged_as_several(capsys):
    """Keras' to_categorical."""
    one_hot = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    assert load(y=one_hot).is_multi
    assert "every row has exactly one 1: y.argmax(1)" in capsys.readouterr().out
    load(y=np.vstack([one_hot[:5], [1, 1, 0]]))
    assert capsys.readouterr().out == ""


def test_labels_in_a_column():
    """Keras' CIFAR-10."""
    with pytest.raises(ValueError, match=r"must be \[N\], got \[6, 1\]. Pass y.ravel\(\)"):
        load(y=np.array(Y)[:, None])
    assert load(y=np.array(Y)[:, None], continuous=True).is_reg


def test_images_need_transforms():
    with pytest.raises(ValueError, match="ImageClassifierData: tfms must"):
        ImageClassifierData.from_arrays("x", (IMAGES, Y), (IMAGES, Y), 3)


def _layouts(x):
    yield x[..., ::-1]  # OpenCV's BGR
    yield x[::-1, ::-1, ::-1]
    yield np.asfortranarray(x)
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 3, 1)), 1, 3)
    yield np.repeat(x, 2, 2)[:, :, ::2]


@pytest.mark.parametrize("as_type", [np.uint8, np.float32])
def test_images_of_any_strides(as_type, rng):
    x = rng.integers(0, 2, (6, 8, 9, 3)).astype(as_type)
    for given in _layouts(x):
        served, expected = (next(load(values).val_dl.batches(0))[0] for values in (given, given.copy(order="C")))
        assert torch.equal(served, expected)
        one, plain = TFMS[1](given[0]), TFMS[1](given[0].copy(order="C"))
        np.testing.assert_array_equal(one, plain)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, r"trn y must be \[N\] or \[N, C\], got a NoneType"),
        ([-1, 0] * 3, "classes 0, 1, ..., got -1 in row 0. Number them"),
        ([0.0, 1.0] * 3, r"got float64. For classes pass y.astype\(int\)"),
        (np.array([b"a", 1] * 3, object), "whole numbers or names, got object. For numbers"),
        (["a", 1] * 3, "whole numbers or names, got object. For numbers"),
        ((1.5, "a") * 3, "whole numbers or names, got object. For numbers"),
        (np.array(["a", None] * 3, object), "whole numbers or names, got object. For numbers"),
        (np.array([0, 1.5] * 3, object), "whole numbers or names, got float64"),
    ],
)
def test_labels_that_are_none(y, message):
    with pytest.raises(ValueError, match=message):
        load(y=y)


def test_advice_on_pixels_of_16_bits():
    with pytest.raises(ValueError, match=r"got uint16. Pass x / np.float32\(65535\)"):
        load(IMAGES.astype(np.uint16))
    with pytest.raises(ValueError, match=r"got int64. Pass e.g. x.astype\(np.uint8\)"):
        TFMS[1](IMAGES[0].astype(np.int64))


@pytest.mark.parametrize("as_type", [np.array, lambda y: np.array(y, object), list])
def test_names_that_are_bytes(as_type):
    names = ["cat", "dögs"] * 3
    data = load(ROWS, as_type([name.encode() for name in names]))
    assert data.classes == ["cat", "dögs"]
    assert data.trn_y.tolist() == [0, 1] * 3


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64, bool])
def test_numbers_that_are_objects(kind):
    y = np.array([kind(i % 2) for i in range(6)], object)
    assert load(y=y).trn_y.tolist() == [0, 1] * 3
    assert load(y=y, continuous=True).trn_y.tolist() == [[0.0], [1.0]] * 3
    both = np.stack([y, y], 1)
    assert load(y=both, vy=both).trn_y.tolist() == [[0, 0], [1, 1]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_that_numpy_does_not_take(dtype):
    x = torch.arange(18.0).reshape(6, 3).to(dtype).requires_grad_()
    data = load(x, torch.tensor([0, 1] * 3))
    assert np.array_equal(data.trn_ds.source.values, np.arange(18).reshape(6, 3))


@pytest.mark.filterwarnings("error")
def test_the_largest_rows_train_as_others_do(tmp_path, rng):
    y = np.arange(300) % 3
    x = (rng.standard_normal((300, 12)) + 6 * np.eye(3, 12)[y]).astype(np.float32)
    x *= np.float32(1e16 / 2 / np.abs(x).max())
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y))
    for train in (lambda learn: learn.fit(0.1, 5), lambda learn: learn.fine_tune()):
        learn = HeadLearner(data)
        train(learn)
        assert (learn.predict().argmax(1) == y).mean() > 0.95
