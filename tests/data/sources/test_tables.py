"""from_csv and from_df: text stays text, and every row that does not fit is named."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import TFMS

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.split import get_cv_idxs
from fastclf.errors import DataError, LabelError

IDS = [f"{i:03}" for i in range(10)]


@pytest.fixture
def path(tmp_path, save_image):
    for name in IDS:
        save_image(tmp_path / "pics" / f"{name}.png")
    return tmp_path


@pytest.fixture
def load(path):
    def load(text, encoding="utf-8", folder="pics", **options):
        content = text if isinstance(text, str) else "\n".join(["id,label", *(",".join(row) for row in text)])
        (path / "labels.csv").write_bytes(content.encode(encoding))
        options = {"suffix": ".png", "val_idxs": [0, 1], **options}
        return ImageClassifierData.from_csv(path, folder, path / "labels.csv", 4, TFMS, **options)

    return load


def rows(labels):
    return list(zip(IDS, labels, strict=True))


AB = ["a", "b"] * 5


def test_one_label(load, capsys):
    data = load(rows(["cat", "dog"] * 5), val_idxs=[7, 2])
    assert data.classes == ["cat", "dog"]
    assert not data.is_multi
    assert list(data.val_ds.fnames) == ["pics/002.png", "pics/007.png"]
    assert data.val_y.tolist() == [0, 1]
    assert list(data.trn_ds.fnames) == [f"pics/{i}.png" for i in IDS if i not in ("002", "007")]
    assert data.trn_y.tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    assert "one label" in capsys.readouterr().out
    x, y = next(data.val_dl.batches(0))
    assert x.shape == (2, 3, 16, 16)
    assert y.tolist() == [0, 1]


def test_several_labels(load, capsys):
    tags = ["b  a", "c", "a a", " c\tb ", "", "a b c", "a", "b", "c", "a"]
    data = load(rows(tags))
    assert data.is_multi
    assert data.classes == ["a", "b", "c"]
    y = np.concatenate([data.val_y, data.trn_y])
    assert y.dtype == np.float32
    expected = [[c in tag.split() for c in "abc"] for tag in tags]
    np.testing.assert_array_equal(y, expected)
    assert "several labels" in capsys.readouterr().out
    assert next(data.trn_dl.batches(0))[1].shape == (4, 3)


def test_another_separator(load):
    data = load(rows(["new york|rome", "rome", "new york", "rome| new york"] + ["rome"] * 6), cat_separator="|")
    assert data.classes == ["new york", "rome"]
    np.testing.assert_array_equal(data.val_y, [[1, 1], [0, 1]])


def test_multi_overrides(load, capsys):
    assert load(rows(AB), multi=True).is_multi
    data = load(rows(["big dog", "cat"] * 5), multi=False)
    assert data.classes == ["big dog", "cat"]
    assert not data.is_multi
    assert "one label per image in column 'label'; 2 classes" in capsys.readouterr().out


def test_text_that_looks_like_something_else_stays_text(load):
    labels = ["NA", "None", "null", "nan", "", "1e3"]
    data = load(rows(["NA", "None", "null", "nan", "1e3"] * 2), val_idxs=[0, 1, 2, 3, 4])
    assert data.classes == sorted(set(labels) - {""})
    assert [data.classes[i] for i in data.val_y] == ["NA", "None", "null", "nan", "1e3"]


def test_numbers_to_predict(load):
    data = load(rows([str(i / 2) for i in range(10)]), continuous=True)
    assert data.is_reg
    assert data.c == 1
    assert data.classes == []
    np.testing.assert_array_equal(data.val_y, np.float32([[0], [0.5]]))
    two = load("id,x,y\n" + "\n".join(f"{name},{i},{-i}" for i, name in enumerate(IDS)), continuous=True)
    assert two.c == 2
    assert two.trn_y.shape == (8, 2)
    assert two.trn_y.dtype == np.float32
    for bad in ("nan", "x", "inf", "", "1_000", "1e300", "-1e39", "0x10"):
        with pytest.raises(LabelError, match="line 11 must have finite numbers"):
            load(rows(["1"] * 9 + [bad]), continuous=True)


def test_default_split_is_stratified(load, capsys):
    data = load(rows(AB), val_idxs=None, val_pct=0.4, seed=3)
    assert np.bincount(data.val_y).tolist() == [2, 2]
    assert "4 of 10 images are for validation" in capsys.readouterr().out
    assert list(load(rows(AB), val_idxs=None, val_pct=0.4, seed=3).val_ds.fnames) == list(data.val_ds.fnames)
    assert load(rows([str(i) for i in range(10)]), val_idxs=None, continuous=True).val_y.shape == (2, 1)


def test_single_rows_stay_in_train(load):
    with (
        pytest.warns(UserWarning, match="single row, which stays in train: rare"),
        pytest.warns(UserWarning, match=r"rows for validation: no image of the class.*'rare'"),
    ):
        data = load(rows(["a"] * 5 + ["b"] * 4 + ["rare"]), val_idxs=None)
    assert "rare" in [data.classes[i] for i in data.trn_y]


def test_a_test_folder(load, path, save_image):
    for name in ("b", "a"):
        save_image(path / "new" / f"{name}.png")
    data = load(rows(["a b", "b"] * 5), test_name="new", multi=True)
    assert list(data.test_ds.fnames) == ["new/a.png", "new/b.png"]
    np.testing.assert_array_equal(data.test_ds.y, np.zeros((2, 2)))


def test_without_header(load):
    text = "\n".join(f"{name},{label}" for name, label in rows(AB))
    for skip_header in (False, True):  # the first line names a file
        data = load(text, skip_header=skip_header)
        assert sorted([*data.trn_ds.fnames, *data.val_ds.fnames]) == [f"pics/{name}.png" for name in IDS]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_forms_of_text(load, newline, encoding):
    text = newline.join(["id,label", *(f'{name},"ä, b{i % 2}"' for i, name in enumerate(IDS))])
    data = load(text, encoding, multi=False)
    assert data.classes == ["ä, b0", "ä, b1"]


def test_another_encoding(load):
    text = "id,label\n" + "\n".join(f"{name},ä{i % 2}" for i, name in enumerate(IDS))
    with pytest.raises(DataError, match=r"labels.csv is not in utf-8-sig.*encoding="):
        load(text, "latin-1")
    (path := load(text, "utf-8")).classes  # noqa: B018
    assert path.classes == ["ä0", "ä1"]


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", r"'\\t'")])
def test_another_delimiter(load, mark, shown):
    text = f"id{mark}label\n" + "\n".join(f"{name}{mark}{label}" for name, label in rows(AB))
    with pytest.raises(
        DataError, match=rf"found 1 column with the delimiter ','. Is the delimiter {shown}\? Pass sep="
    ):
        load(text, sep=",")
    assert load(text, sep=mark).classes == ["a", "b"]
    assert load(text).classes == ["a", "b"]


@pytest.mark.parametrize("line", [2, 7, 11])
@pytest.mark.parametrize(("field", "n"), [("x,a,extra", 3), ("x", 1)])
def test_a_line_with_other_fields(load, line, field, n):
    lines = ["id,label", *(",".join(row) for row in rows(AB))]
    lines[line - 1] = field
    with pytest.raises(DataError, match=rf"labels.csv: line {line} has {n} fields, expected 2"):
        load("\n".join(lines))


@pytest.mark.parametrize("option", [{"sep": ""}, {"sep": ";;"}, {"sep": '"'}, {"sep": "\n"}])
def test_forms_that_there_are_not(load, option):
    with pytest.raises(ValueError, match=f"from_csv: {next(iter(option))} must be"):
        load(rows(AB), **option)


def test_an_encoding_that_there_is_not(load, path):
    load(rows(AB))
    with pytest.raises(ValueError, match="from_csv: encoding must be a text encoding that Python knows, got 'klingon'"):
        ImageClassifierData.from_csv(path, "pics", path / "labels.csv", 4, TFMS, encoding="klingon")


def test_an_empty_separator_of_labels(load):
    with pytest.raises(ValueError, match="cat_separator must not be empty"):
        load(rows(AB), cat_separator="")


@pytest.mark.parametrize("content", [b"\x00\x01\xff\xfe" * 10, b"id,label\n\x80\x81,a\n"])
def test_bytes_that_are_no_text(load, path, content):
    (path / "bytes.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"bytes.csv is not in utf-8-sig"):
        ImageClassifierData.from_csv(path, "pics", path / "bytes.csv", 4, TFMS)


@pytest.mark.parametrize(
    ("content", "reader"),
    [
        (b"PK\x03\x04", "read_excel"),
        (b"\xd0\xcf\x11\xe0", "read_excel"),
        (b"\x1f\x8b", "read_csv"),
        (b"PAR1", "parquet"),
    ],
)
def test_tables_that_are_no_text(tmp_path, content, reader, rng):
    (tmp_path / "img").mkdir()
    (tmp_path / "table.csv").write_bytes(content + rng.bytes(100))
    with pytest.raises(DataError, match=f"table.csv is not text. Read it with pandas .*{reader}"):
        ImageClassifierData.from_csv(tmp_path, "img", "table.csv", 4, TFMS)


RECORDS = pd.DataFrame({"file_name": ["01", "02"], "label": ["cat", "dog"]})


@pytest.mark.parametrize(
    ("content", "reader"),
    [
        (
            RECORDS.to_json(orient="records", lines=True),
            "lines of records: pd.read_json(file, lines=True, dtype=False)",
        ),
        (RECORDS.to_json(orient="records"), "a list of records: pd.read_json(file, dtype=False)"),
        (RECORDS.to_json(orient="records", indent=1), "a list of records: pd.read_json(file, dtype=False)"),
        ('{"01.jpg": "cat", "02.jpg": "dog"}', "an object: make a data frame"),
        ('{\n "01.jpg": {"label": "cat"},\n "02.jpg": {"label": "dog"}\n}', "an object: make a data frame"),
    ],
)
def test_json(tmp_path, content, reader):
    (tmp_path / "img").mkdir()
    file = tmp_path / "metadata.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=f"metadata.jsonl is JSON, {re.escape(reader)}"):
        ImageClassifierData.from_csv(tmp_path, "img", file.name, 4, TFMS)
    if "pd." in reader:
        assert eval(reader.split(": ")[1], {"pd": pd, "file": file}).equals(RECORDS)


def test_utf_16_without_a_mark(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "table.csv").write_bytes("f,y\na,b\nc,d\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"every other byte is 0. Pass e.g. encoding='utf-16-le'"):
        ImageClassifierData.from_csv(tmp_path, "img", "table.csv", 4, TFMS)


def test_a_field_that_never_ends(load):
    with pytest.raises(DataError, match="line 2 is not a proper row: field larger"):
        load("id,label\n000," + "a" * 200_000)


def test_broken_quotes(load):
    with pytest.raises(DataError, match="is not a proper row"):
        load('id,label\n000,"a\n001,b\n')


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("id,label\n", "only a header line"), ("\n\n", "is empty")]
)
def test_empty_tables(load, text, message):
    with pytest.raises(DataError, match=message):
        load(text)


def test_no_table(path):
    with pytest.raises(FileNotFoundError, match=r"no table .*nothing.csv"):
        ImageClassifierData.from_csv(path, "pics", path / "nothing.csv", 4, TFMS)


def test_further_columns_are_not_used_in_silence(load, capsys):
    text = "id,more,label\n" + "\n".join(f"{name},x{name},{label}" for name, label in rows(AB))
    with pytest.raises(LabelError, match="has 3 columns, and none is named as the one of the labels") as error:
        load(text)
    shown = str(error.value).splitlines()
    assert shown[1:4] == [
        "  0: 'id': '000', '001', '002', '003' (names of files)",
        "  1: 'more': 'x000', 'x001', 'x002', 'x003' (10 different)",
        "  2: 'label': 'a', 'b' (2 different)",
    ]
    assert "from_csv(PATH, 'pics', 'labels.csv', tfms=tfms, fn_col='id', label_col='label')" in shown[4]
    for column in ("label", 2):
        assert load(text, label_col=column).classes == ["a", "b"]
        assert "not used: 'more'" in capsys.readouterr().out


@pytest.mark.parametrize("label", ["", "  "])
def test_empty_label(load, label):
    with pytest.raises(LabelError, match="line 6 has no label"):
        load(rows([*AB[:4], label, *AB[5:]]))
    assert load(rows([*AB[:4], label, *AB[5:]]), multi=True).trn_y[2].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "..\\x", "C:\\x", "a\0b"])
def test_names_that_are_refused(load, name):
    table = rows(AB)
    table[3] = (name, "b")
    with pytest.raises(
        LabelError, match="line 5 must name a file inside the folder" if name else "line 5 names no file"
    ):
        load(table)


def test_names_in_folders(load, path, save_image):
    save_image(path / "pics" / "sub" / "x.png")
    data = load([*rows(AB), ("sub/x", "a")])
    assert data.trn_ds.fnames[-1] == "pics/sub/x.png"


@pytest.mark.parametrize("folder", ["pics/", "./pics", "."])
def test_other_spellings_of_a_folder(load, folder):
    table = [(f"pics/{name}", label) for name, label in rows(AB)] if folder == "." else rows(AB)
    assert load(table, folder=folder).val_ds.fnames[0] == "pics/000.png"


def test_missing_files(load):
    table = [*rows(AB), *((f"gone{i}", "a") for i in range(7))]
    with pytest.raises(
        FileNotFoundError, match=r"7 of 17 rows have no file .*gone0.png \(line 12\).*gone4.png"
    ) as error:
        load(table)
    assert "gone5" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"10 of 10 .*suffix='.png'\? It finds 10"):
        load(rows(AB), suffix="")
    full = [(f"{name}.png", label) for name, label in rows(AB)]
    with pytest.raises(FileNotFoundError, match=r"suffix=''\? It finds 10"):
        load(full)
    assert len(load(full, suffix="").trn_ds) == 8
    with pytest.raises(FileNotFoundError, match=r"no folder .*picks"):
        load(rows(AB), folder="picks")


def test_names_in_another_unicode_form(load, path, save_image):
    save_image(path / "pics" / "gro\u0308\u00dfe.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 11 rows .*1 of them are there in another Unicode form"):
        load([*rows(AB), ("gr\u00f6\u00dfe", "a")])
    assert len(load([*rows(AB), ("gro\u0308\u00dfe", "a")]).trn_ds) == 9


def test_a_name_without_suffix_that_two_files_could_have(load, path, save_image):
    """No file is chosen for the user."""
    save_image(path / "pics" / "000.jpg")
    with pytest.raises(FileNotFoundError, match="10 of 10 rows have no file"):
        load(rows(AB), suffix="")


def test_links_out_of_the_data(load, path, save_image, tmp_path_factory):
    outside = save_image(tmp_path_factory.mktemp("outside") / "x.png")
    (path / "pics" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"pics/link.png is a link out of"):
        load([*rows(AB), ("link", "a")])
    assert len(load([*rows(AB), ("link", "a")], allow_outside=True).trn_ds) == 9


def test_a_name_that_several_files_could_have(load, path, save_image):
    """The suffix is part of the name: another format of the same name is another file."""
    save_image(path / "pics" / "000.jpg")
    assert load(rows(AB)).val_ds.fnames[0] == "pics/000.png"


def test_files_without_a_row_are_counted(load, capsys):
    load(rows(AB)[:8])
    assert "2 images in pics have no row" in capsys.readouterr().out


def test_repeated_rows(load):
    table = [*rows(AB), ("000", "a"), ("003", "b")]
    with pytest.warns(UserWarning, match="2 row.* repeat another"):
        data = load(table, val_idxs=[1, 2, 11])
    assert list(data.val_ds.fnames) == ["pics/001.png", "pics/002.png"]
    assert len(data.trn_ds) == 8
    with pytest.raises(
        LabelError,
        match=r"2 rows give another label.*000.png in line 2 and line 12: 'a' and 'b'; .*001.png in line 3",
    ):
        load([*rows(AB), ("000", "b"), ("001", "a")])


def test_class_in_validation_rows_only(load):
    with pytest.raises(LabelError, match="'rare' occur in validation rows only"):
        load(rows(["rare", *AB[1:]]))
    with pytest.raises(LabelError, match="'rare' occur in validation rows only"):
        load(rows(["a rare", *AB[1:]]), multi=True)


def test_class_without_validation_row(load):
    with pytest.warns(UserWarning, match="no image of the class.*'b'"):
        load(rows(AB), val_idxs=[0, 2])


def test_single_class(load):
    with pytest.raises(LabelError, match="at least two classes, got 'a'"):
        load(rows(["a"] * 10))


@pytest.mark.parametrize("val_idxs", [[], [10], [0, 0], list(range(10))])
def test_val_idxs_that_do_not_fit(load, val_idxs):
    with pytest.raises(ValueError, match="val_idxs must"):
        load(rows(AB), val_idxs=val_idxs)


def test_data_frames(path, load):
    df = pd.DataFrame({"id": IDS, "label": AB}, index=range(5, 15))
    data = ImageClassifierData.from_df(path, "pics", df, 4, TFMS, val_idxs=[0, 1], suffix=".png")
    same = load(rows(AB))
    assert list(data.trn_ds.fnames) == list(same.trn_ds.fnames)
    np.testing.assert_array_equal(data.trn_y, same.trn_y)
    df.loc[8, "label"] = None
    with pytest.raises(DataError, match=r"column 'label' has a missing value in row 3.*keep_default_na=False"):
        ImageClassifierData.from_df(path, "pics", df, 4, TFMS, suffix=".png")
    with pytest.raises(DataError, match="found 1 column"):
        ImageClassifierData.from_df(path, "pics", df[["id"]], 4, TFMS, suffix=".png")
    with pytest.raises(DataError, match="only a header"):
        ImageClassifierData.from_df(path, "pics", df[:0], 4, TFMS, suffix=".png")


def test_dogbreeds(dogbreeds):
    data = ImageClassifierData.from_csv(
        dogbreeds, "train", dogbreeds / "labels.csv", 58, TFMS, get_cv_idxs(172), suffix=".jpg"
    )
    assert data.c == 12
    assert (len(data.trn_ds), len(data.val_ds)) == (138, 34)


def test_scenes(scenes):
    data = ImageClassifierData.from_csv(scenes, "train", scenes / "train_tags.csv", 64, TFMS, suffix=".jpg")
    assert data.is_multi
    assert data.classes == ["desert", "mountains", "sea", "sunset", "trees"]
    share = data.val_y.mean(axis=0) / data.trn_y.mean(axis=0)
    assert np.abs(share - 1).max() < 0.15
