"""Tables as they come: the forms of public data sets, made small, and what people's own tables look like."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import TFMS

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.tables.labels import recombine, split_tags
from fastclf.data.sources.tables.reading import read_csv
from fastclf.data.sources.tables.resolve import named_files
from fastclf.data.sources.tables.rules import TableRules
from fastclf.errors import DataError, LabelError

N = 24
IDS = [f"{i:04}" for i in range(N)]
PETS = [("cat", "dog", "cow")[i % 3] for i in range(N)]


def below(name):
    return f"{int(name) % 3}/in_{name}"


@pytest.fixture
def root(tmp_path):
    """Files of no content: nothing is decoded here."""
    for name in IDS:
        (tmp_path / "img" / below(name)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "img" / f"{name}.jpg").touch()
        (tmp_path / "img" / f"{below(name)}.jpg").touch()
    return tmp_path


@pytest.fixture
def load(root):
    def load(table, encoding="utf-8", folder="img", name="table.txt", **options):
        options = {"device": "cpu"} | options
        if not isinstance(table, str):
            return ImageClassifierData.from_df(root, folder, table, 4, TFMS, **options)
        (root / name).write_bytes(table.encode(encoding))
        return ImageClassifierData.from_csv(root, folder, name, 4, TFMS, **options)

    return load


def lines(line, *header):
    """A table with ``line(i)`` for each image."""
    return "\n".join([*header, *map(line, range(N))]) + "\n"


def said_by(data, *sets):
    """File name -> label, or the set of labels, or the numbers."""
    found = {}
    for ds in sets or (data.trn_ds, data.val_ds):
        for name, y in zip(ds.fnames, ds.y, strict=True):
            assert name not in found
            tags = {data.classes[i] for i in np.flatnonzero(y)} if data.is_multi else None
            found[name] = tags if data.is_multi else y.tolist() if data.is_reg else data.classes[y]
    return found


def images(labels):
    return {f"img/{name}.jpg": label for name, label in zip(IDS, labels, strict=True)}


TAGS = "haze primary/agriculture clear primary water/clear primary/cloudy/clear primary water/haze primary water"
TAGS = [*TAGS.split("/"), "agriculture clear primary", "agriculture haze primary"]
SCABS = ["healthy", "scab frog_eye complex", "scab", "complex", "rust", "frog_eye", "rust frog_eye", "mildew"]
ONE = {
    "Dog Breed, Cassava": (lambda i: f"{IDS[i]},{PETS[i]}", "id,breed", {"suffix": ".jpg"}),
    "HAM10000": (
        lambda i: f"HAM_{i // 2},{IDS[i]},{PETS[i]},histo,{i}.0,male,back",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        {"suffix": ".jpg", "label_col": "dx"},
    ),
    "ISIC 2018": (
        lambda i: ",".join([IDS[i], *(f"{float(PETS[i] == pet)}" for pet in ("cow", "cat", "dog"))]),
        "image,cow,cat,dog",
        {"suffix": ".jpg"},
    ),
    "Plant Pathology 2020, booleans": (
        lambda i: ",".join([f"{IDS[i]}.jpg", *(str(PETS[i] == pet) for pet in ("dog", "cat", "cow"))]),
        "image_id,dog,cat,cow",
        {},
    ),
    "Open Images": (
        lambda i: f"{IDS[i]},verification,{PETS[i]},1",
        "ImageID,Source,LabelName,Confidence",
        {"suffix": ".jpg", "label_col": 2},
    ),
    "VOC": (lambda i: f"{IDS[i]}  {PETS[i]:>5} ", None, {"suffix": ".jpg"}),
    "label of a blank": (lambda i: f"{IDS[i]} {PETS[i]}" + " " * (i % 3), None, {"suffix": ".jpg"}),
    "Caltech, tabs": (lambda i: f"{IDS[i]}.jpg\t{PETS[i]}", None, {}),
    "ImageNet val.txt": (lambda i: f"img/{IDS[i]}.jpg {PETS[i]}", None, {}),
    "path,label": (lambda i: f"img/{IDS[i]}.jpg,{PETS[i]}", None, {}),
    "Stanford Cars": (lambda i: f"{IDS[i]}.jpg,39,116,569,375,{PETS[i]}", None, {"label_col": 5}),
    "pandas' index": (lambda i: f"{i},{IDS[i]}.jpg,{PETS[i]}", ",file,label", {}),
    "pandas' index, read and written": (lambda i: f"{9 * i},{IDS[i]}.jpg,{PETS[i]}", "Unnamed: 0,file,label", {}),
    "label first": (lambda i: f"{PETS[i]},{IDS[i]}.jpg", "label,file", {}),
    "Excel": (lambda i: f"{IDS[i]}.jpg;{PETS[i]}\r", "sep=;\r\nf;y\r", {}),
    "Windows": (lambda i: f"img\\{IDS[i]}.jpg,{PETS[i]}", "f,y", {}),
    "folder twice": (lambda i: f"img/{IDS[i]},{PETS[i]}", "f,y", {"suffix": ".jpg"}),
    "other case": (lambda i: f"{IDS[i]}.JPG,{PETS[i]}", "f,y", {}),
    "blanks": (lambda i: f"{IDS[i]}.jpg , {PETS[i]} ", "f , y", {"label_col": "y"}),
    "blanks and quotes": (lambda i: f'"{IDS[i]}.jpg", "{PETS[i]}"', '"f", "y"', {}),
}


@pytest.mark.parametrize(("line", "header", "options"), ONE.values(), ids=ONE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_one_label(load, capsys, line, header, options, encoding):
    table = lines(line, *([] if header is None else [header]))
    data = load(table, encoding, **options)
    assert said_by(data) == images(PETS)
    assert data.classes == ["cat", "cow", "dog"]
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"table.txt: {N} rows, files in column ")
    assert "; one label per image in column" in first
    assert "3 classes" in first


SEVERAL = {
    "Planet": (lambda i: f"{IDS[i]},{TAGS[i % 8]}", "image_name,tags", {"suffix": ".jpg"}, TAGS, " "),
    "Plant Pathology 2021": (lambda i: f"{IDS[i]}.jpg,{SCABS[i % 8]}", "image,labels", {}, SCABS, " "),
    "film posters": (
        lambda i: f"{IDS[i]},{['Animation|Sci Fi', 'Drama', 'Sci Fi|Drama'][i % 3]}",
        "imdb_id,genre",
        {"suffix": ".jpg"},
        ["Animation|Sci Fi", "Drama", "Sci Fi|Drama"],
        "|",
    ),
    "lists written as text": (
        lambda i: f"{IDS[i]}.jpg,\"{[['red', 'big one'], ['red'], []][i % 3]}\"",
        "f,y",
        {},
        ["red|big one", "red", ""],
        "|",
    ),
    "JSON": (lambda i: f"{IDS[i]}.jpg\t{['[2]', '[1, 3]'][i % 2]}", "f\ty", {}, ["2", "1|3"], "|"),
    "said": (
        lambda i: f"{IDS[i]}.jpg,{['a b', 'b'][i % 2]}",
        "f,y",
        {"label_delim": " "},
        ["a b", "b"],
        " ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "header", "options", "labels", "mark"), SEVERAL.values(), ids=SEVERAL)
def test_several_labels(load, capsys, line, header, options, labels, mark):
    data = load(lines(line, header), **options)
    assert data.is_multi
    assert said_by(data) == images([{tag for tag in labels[i % len(labels)].split(mark) if tag} for i in range(N)])
    assert "several labels per image in column" in capsys.readouterr().out


@pytest.mark.parametrize("off", ["0", "-1"])
def test_celeba(load, capsys, off):
    """The first line is the number of rows, the second names all columns but the first."""
    signs = [[(i >> bit) & 1 for bit in range(3)] for i in range(N)]
    body = lines(lambda i: f"{IDS[i]}.jpg  {'  '.join('1' if sign else off for sign in signs[i])}", "Hat Smiling Male")
    data = load(f"{N}\n{body}")
    assert said_by(data) == images(
        [{name for name, sign in zip(("Hat", "Smiling", "Male"), row, strict=True) if sign} for row in signs]
    )
    assert "'Hat', 'Smiling', 'Male': line 3 has 0 columns with a 1" in capsys.readouterr().out
    with pytest.raises(LabelError, match="line 3 has 0 columns with a 1, and multi=False wants one"):
        load(f"{N}\n{body}", multi=False)


def test_a_list_of_label_columns(load):
    df = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "age": range(N), "a": 1, "b": [i % 2 for i in range(N)]})
    assert said_by(load(df, label_col=["a", "b"])) == images([{"a", "b"} if i % 2 else {"a"} for i in range(N)])
    numbers = said_by(load(df, label_col=["b", "age"], continuous=True))
    assert numbers == images([[float(i % 2), float(i)] for i in range(N)])
    with pytest.raises(LabelError, match="row 2 has '2' in the label column 'age'"):
        load(df, label_col=["a", "age"])
    with pytest.raises(ValueError, match="label_col must name a column"):
        load(df, label_col=[])
    with pytest.raises(TypeError, match="label_col must be the name of a column or its number, got None"):
        load(df, label_col=["a", None])


def test_chexpert(load):
    """-1 and blank besides 0 and 1: the user must say what they mean."""
    table = lines(lambda i: f"{IDS[i]}.jpg,{i},{['1.0', ''][i % 2]},{['-1.0', '', '0.0'][i % 3]}", "Path,Age,Edema,Flu")
    with pytest.raises(LabelError, match=r"line 2 has '-1.0' in the label column 'Flu'.*fillna"):
        load(table, label_col=["Edema", "Flu"])


def test_a_column_without_a_single_1(load):
    with pytest.warns(UserWarning, match="no row has a 1 in 'UNK'"):
        data = load(lines(lambda i: f"{IDS[i]},{i % 2},{1 - i % 2},0", "image,MEL,NV,UNK"), suffix=".jpg")
    assert data.classes == ["MEL", "NV"]
    assert not data.is_multi


@pytest.mark.parametrize("numbered", [False, True], ids=["Food-101", "CUB-200"])
def test_folders_for_labels(load, root, capsys, numbered):
    names = [*map(below, IDS)]
    data = load(lines(lambda i: (f"{i + 1} " if numbered else "") + names[i]), suffix=".jpg")
    assert said_by(data) == {f"img/{name}.jpg": name[0] for name in names}
    assert "no column of labels: the folder of a file is its class" in capsys.readouterr().out
    with pytest.raises(DataError, match="neither labels nor folders"):
        load(lines(lambda i: IDS[i]), suffix=".jpg")


@pytest.mark.parametrize("form", ["lists", "split_col"])
def test_a_test_set_with_labels(load, root, form):
    """One list for each set, or a column that says which."""
    part = [("train", "train", "valid", "test")[i % 4] for i in range(N)]
    if form == "lists":
        for name in ("train", "valid", "test"):
            rows = (f"img/{IDS[i]}.jpg {PETS[i]}\n" for i in range(N) if part[i] == name)
            (root / f"{name}.txt").write_text("".join(rows))
        data = ImageClassifierData.from_csv(
            root, "img", "train.txt", 4, TFMS, val_csv="valid.txt", test_csv="test.txt", device="cpu"
        )
    else:
        spelt = {"train": "Train", "valid": " val", "test": "TEST"}
        data = load(lines(lambda i: f"{IDS[i]}.jpg,{spelt[part[i]]},{PETS[i]}", "f,set,y"), split_col="set")
    for name, ds in (("train", data.trn_ds), ("valid", data.val_ds), ("test", data.test_ds)):
        said = {file: label for (file, label), p in zip(images(PETS).items(), part, strict=True) if p == name}
        assert said_by(data, ds) == said


FLAGS = {
    "is_valid": ("0", "1"), "Is Train": ("1", "0"), "is_training_image": ("1", "0"), "validation": ("False", "True"),
    "train": ("true", "false"),
}  # fmt: skip


@pytest.mark.parametrize(("title", "values"), FLAGS.items(), ids=FLAGS)
def test_flags_for_validation(load, title, values):
    data = load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{values[i % 5 == 0]}", f"f,y,{title}"), split_col=title)
    assert list(data.val_ds.fnames) == [f"img/{name}.jpg" for name in IDS[::5]]
    assert data.test_ds is None


def test_flags_for_test(load, capsys):
    data = load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{int(i % 4 == 0)}", "f,y,is_test"), split_col="is_test")
    assert list(data.test_ds.fnames) == [f"img/{name}.jpg" for name in IDS[::4]]
    assert len(data.val_ds) == round(18 * 0.2)
    assert "4 of 18 images are for validation" in capsys.readouterr().out
    celeba = load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{i % 3}", "f,y,partition"), label_col=2, fn_col=0)
    assert celeba.classes == ["0", "1", "2"]
    split = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i // 3]},{i % 3}", "f,y,partition")
    celeba = load(split, split_col="partition")
    assert [ds.fnames[1] for ds in (celeba.trn_ds, celeba.val_ds, celeba.test_ds)] == [
        "img/0003.jpg",
        "img/0004.jpg",
        "img/0005.jpg",
    ]


def test_test_rows_without_labels(load):
    labels = [*PETS[:18], *[None] * 6]
    df = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "y": labels, "split": ["train"] * 18 + ["test"] * 6})
    data = load(df, split_col="split")
    assert list(data.test_ds.fnames) == [f"img/{name}.jpg" for name in IDS[18:]]
    assert data.test_ds.y.tolist() == [0] * 6
    labels[20] = "cat"  # some have one: then the others are missing
    with pytest.raises(DataError, match="column 'y' has a missing value in row 18"):
        load(df.assign(y=labels), split_col="split")


@pytest.mark.parametrize(
    ("title", "values", "message"),
    [
        ("fold", "01234", r"line 2 has '0' in the split column 'fold', .*df\['fold'\].astype\(str\) == '0'"),
        ("group", "01", "line 2 has '0' in the split column 'group'.*named is_valid or is_train"),
        ("set", ["train", "holdout"], "line 3 has 'holdout' in the split column 'set'"),
        ("set", ["train", ""], "line 3 has '' in the split column"),
        ("set", ["valid", "test"], "'set' has no row for training"),
        ("is_valid", "2", "line 2 has '2' in the split column"),
    ],
)
def test_split_columns_that_are_not_understood(load, title, values, message):
    with pytest.raises(LabelError, match=message):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{values[i % len(values)]}", f"f,y,{title}"), split_col=title)


def test_what_says_the_sets_twice(load, root):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{['train', 'test'][i % 2]}", "f,y,set")
    with pytest.raises(ValueError, match="exclude each other, got val_idxs and split_col"):
        load(table, split_col="set", val_idxs=[1])
    with pytest.raises(ValueError, match="the table has rows for test, and test_name='img' too"):
        load(table, split_col="set", test_name="img")
    (root / "other.csv").write_text("f,z\n0001.jpg,cat\n")
    with pytest.raises(
        DataError, match=r"other.csv must have the columns of table.txt: \['f', 'y'\], got \['f', 'z'\]"
    ):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y"), val_csv="other.csv")


def test_columns_of_several_tables_belong_together_by_name(load, root, rng):
    columns = {"id": IDS, "breed": PETS, "who": ["x"] * N, "age": [str(i) for i in range(N)]}
    others = [list(rng.permutation([*columns])) for _ in range(2)]
    for name, order, rows in zip(("val.csv", "test.csv"), others, (slice(8, 16), slice(16, N)), strict=True):
        pd.DataFrame(columns)[order][rows].to_csv(root / name, index=False)
    table = pd.DataFrame(columns)[:8].to_csv(index=False)
    named = {"fn_col": "id", "label_col": "breed", "suffix": ".jpg", "val_csv": "val.csv"}
    data = load(table, test_csv="test.csv", **named)
    assert said_by(data, data.trn_ds, data.val_ds, data.test_ds) == images(PETS)
    assert (len(data.trn_ds), len(data.val_ds)) == (8, 8)
    pd.DataFrame(columns)[16:][["age", "id"]].to_csv(root / "test.csv", index=False)  # without labels
    data = load(table, test_csv="test.csv", **named)
    assert [*data.test_ds.fnames] == [f"img/{name}.jpg" for name in IDS[16:]]
    assert not data.test_ds.labels.known
    with pytest.raises(DataError, match=r"test.csv must have the columns of table.txt: \['id', .*got \['age', 'id'\]"):
        load(table, **named | {"val_csv": "test.csv"})


def test_flags_of_several_tables_belong_together_by_name(load, root, rng):
    flags = pd.DataFrame({"id": IDS} | {pet: [int(one == pet) for one in PETS] for pet in ("cat", "cow", "dog")})
    flags[["dog", "id", "cow", "cat"]][12:].to_csv(root / "val.csv", index=False)
    flags[["id"]][12:].to_csv(root / "test.csv", index=False)
    data = load(flags[:12].to_csv(index=False), val_csv="val.csv", suffix=".jpg")
    assert said_by(data) == images(PETS)
    data = load(flags[:12].to_csv(index=False), test_csv="test.csv", suffix=".jpg", val_pct=0.5)
    assert [*data.test_ds.fnames] == [f"img/{name}.jpg" for name in IDS[12:]]
    assert not data.test_ds.labels.known


def test_flags_with_blanks_around_them(load, rng):
    """As Roboflow writes them."""
    flags = [", ".join(str(int(one == pet)) + " " * rng.integers(3) for pet in ("cat", "cow", "dog")) for one in PETS]
    data = load(lines(lambda i: f"{IDS[i]}.jpg, {flags[i]}", "filename, cat, cow, dog"))
    assert said_by(data) == images(PETS)


@pytest.mark.parametrize("written", ["['cat', 'big']", '{"choices": ["cat", "big"]}', '["cat"]', "{'cat', 'big'}"])
def test_lists_and_objects_among_labels(load, written, rng):
    """Label Studio writes one choice as it is, and several as an object."""
    rows = rng.permutation(N)[: rng.integers(4, 12)]
    cells = [written if i in rows else "cow" for i in range(N)]
    table = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "y": cells})
    with pytest.raises(LabelError, match=f"row {min(rows)} has .* in column 'y', and not all of its cells are lists"):
        load(table)
    assert said_by(load(table, multi=False)) == images(cells)


def test_a_number_that_only_a_name_can_be(load):
    frame = pd.DataFrame({7: range(N), 5: IDS, 6: PETS})
    assert said_by(load(frame, fn_col=5, label_col=6, suffix=".jpg")) == images(PETS)
    with pytest.raises(DataError, match="columns 0 to 2, got fn_col=8"):
        load(frame, fn_col=8, label_col=6, suffix=".jpg")


def test_tables_of_other_packages(load):
    class Frame:
        columns = ("f", "y")

        def to_pandas(self):
            return pd.DataFrame({"f": IDS, "y": PETS})

    with pytest.raises(TypeError, match=r"must be a pandas data frame, got .*Frame. Pass df.to_pandas\(\)"):
        ImageClassifierData.from_df(".", "img", Frame(), 4, TFMS)
    with pytest.raises(TypeError, match=r"got list. Pass pd.DataFrame\(df\)"):
        ImageClassifierData.from_df(".", "img", [*zip(IDS, PETS, strict=True)], 4, TFMS)
    with pytest.raises(ValueError, match=r"suffix must be text such as '.jpg', got \['.jpg'\]"):
        load(pd.DataFrame({"f": IDS, "y": PETS}), suffix=[".jpg"])


REMARKS = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", "#", "# all images with a capital are cats"]


@pytest.mark.parametrize("sep", [" ", ",", "\t"])
@pytest.mark.parametrize("header", [[], ["f{}y{}z"], ["#f{}y{}z"]])
def test_remarks_above_a_table(load, sep, header, capsys):
    """As in the list of Oxford's pets."""
    above = [*REMARKS, *(title.format(sep, sep) for title in header)]
    table = lines(lambda i: f"{IDS[i]}{sep}{PETS[i]}{sep}1", *above)
    data = load(table, suffix=".jpg", label_col=1, fn_col=0)
    assert said_by(data) == images(PETS)
    assert "4 lines of remarks, which begin with '#', above the table are left out" in capsys.readouterr().out


def test_rows_that_begin_with_a_hash_are_no_remarks(load, root):
    for name in ("#1", "#2"):
        (root / "img" / f"{name}.jpg").touch()
    data = load("#1.jpg,cat\n#2.jpg,dog\n" + lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}"))
    assert said_by(data) == {"img/#1.jpg": "cat", "img/#2.jpg": "dog"} | images(PETS)


def test_a_line_below_remarks_is_named_by_its_number(load):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}" + ",x" * (i == 2), "# made by hand", "f,y")
    with pytest.raises(DataError, match="line 5 has 3 fields, expected 2"):
        load(table)


def test_classes_of_test_rows_only(load):
    table = lines(lambda i: f"{IDS[i]}.jpg,{'rare' if i == 7 else PETS[i]},{'test' if i == 7 else 'train'}", "f,y,set")
    with pytest.raises(LabelError, match="'rare' occur in test rows only"):
        load(table, split_col="set")


def test_columns_that_are_named(load):
    table = lines(lambda i: f"{i % 2},{IDS[i]}.jpg,{PETS[i]},{IDS[-i - 1]}.jpg", "who,image,label,image")
    assert said_by(load(table, fn_col=3, label_col="label")) == images(PETS[::-1])
    assert said_by(load(table, fn_col=1, label_col="label")) == images(PETS)
    with pytest.raises(DataError, match=r"2 columns are called 'image'. Pass fn_col= as a number, e.g. 1"):
        load(table, fn_col="image", label_col="label")
    with pytest.raises(DataError, match=r"no column 'Label' \(label_col\), but 'who', .*Did you mean 'label'\?"):
        load(table, fn_col=1, label_col="Label")
    with pytest.raises(DataError, match="columns 0 to 3, got label_col=4"):
        load(table, fn_col=1, label_col=4)
    with pytest.raises(LabelError, match="must name different columns"):
        load(table, fn_col=1, label_col=1)
    with pytest.raises(DataError, match=r"no names of columns. Pass label_col= as a number"):
        load(lines(lambda i: f"{IDS[i]}.jpg {PETS[i]}"), label_col="label")
    with pytest.raises(DataError, match="label_col=1 could be the position or the name"):
        load(pd.DataFrame([[f"{name}.jpg", "a", "b"] for name in IDS], columns=[0, 2, 1]), label_col=1)


@pytest.mark.parametrize("extra", ["is_valid", "split", "kids", "Sender"])
def test_a_column_too_many(load, extra):
    """0 and 1 beside a label, or beside what says the set, are no classes of their own."""
    with pytest.raises(LabelError, match=rf"has 3 columns.*\n.*\n.*\n  2: '{extra}'.*\nName them.*label_col='label'"):
        load(lines(lambda i: f"{IDS[i]}.jpg,{i % 2},{i % 3 % 2}", f"file,label,{extra}"))


@pytest.mark.parametrize(
    ("titles", "label"),
    [
        (["Finding Labels", "Patient Age", "is_old"], "Finding Labels"),
        (["wear", "age", "kids"], "wear"),
        (["mark", "age", "class"], "class"),
    ],
)
def test_the_column_that_is_advised(load, titles, label):
    """One whose name says so, or else one of words before one of few numbers."""
    cells = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}{i % 4},{i % 3},{i % 2 > 0}", ",".join(["file", *titles]))
    with pytest.raises(LabelError, match=f"label_col='{label}'"):
        load(cells)


def test_data_frames(load, capsys):
    files = [f"{name}.jpg" for name in IDS]
    forms = {
        "category": pd.Categorical(PETS, categories=["dog", "cow", "cat", "unused"]),
        "string": pd.array(PETS, dtype="string"),
        "object": np.array(PETS, dtype=object),
    }
    for column in forms.values():
        assert said_by(load(pd.DataFrame({"f": files, "y": column}, index=range(50, 50 + N)))) == images(PETS)
    for numbers in (pd.array([i % 3 for i in range(N)], dtype="Int64"), np.array([float(i % 3) for i in range(N)])):
        assert said_by(load(pd.DataFrame({"f": files, "y": numbers}))) == images([str(i % 3) for i in range(N)])
    assert load(pd.DataFrame({"f": files, "y": [i % 2 == 0 for i in range(N)]})).classes == ["False", "True"]
    df = pd.DataFrame({"y": PETS}, index=files)
    with pytest.raises(DataError, match=r"index holds the names of the files.*df.reset_index\(\)"):
        load(df)
    assert said_by(load(df.reset_index())) == images(PETS)
    with pytest.raises(TypeError, match=r"df must be a pandas data frame, got pandas.*Series. Pass df.reset_index\(\)"):
        load(df["y"])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_missing_values_of_a_data_frame(load, missing):
    df = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "y": PETS, "z": 1}, dtype=object)
    df.loc[3, "z"] = missing  # in a column that is not used
    assert said_by(load(df, label_col="y")) == images(PETS)
    df.loc[5, "y"] = missing
    with pytest.raises(DataError, match=r"column 'y' has a missing value in row 5.*dropna\(subset=\['y'\]\)"):
        load(df, label_col="y")


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, np.array])
def test_lists_in_cells(load, kind):
    tags = [["red", "warm"] if i % 3 == 0 else ["not red"] for i in range(N)]
    df = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "y": [kind(t) for t in tags]})
    assert said_by(load(df)) == images([set(t) for t in tags])
    with pytest.raises(LabelError, match="holds lists, and multi=False wants one label"):
        load(df, multi=False)


@pytest.mark.parametrize("written", [str, lambda t: str(np.array(t)), lambda t: str(set(t)), lambda t: str(tuple(t))])
@pytest.mark.parametrize("tags", [["red", "warm"], [3, 10], [0, 1, 2]])
def test_lists_as_text(load, written, tags):
    table = lines(lambda i: f'{IDS[i]}.jpg,"{written(tags if i % 3 else tags[:1])}"', "f,y")
    assert said_by(load(table)) == images([{*map(str, tags if i % 3 else tags[:1])} for i in range(N)])


@pytest.mark.parametrize("multi", [None, False])
@pytest.mark.parametrize(
    "form", ["({}, {}]", "[{}, {})", "({}.0, {}.0]", "({}.5, {}.5]", "({} {})", "({}., {}.)", "[{}-{}]"]
)
def test_intervals_are_names(load, form, multi):
    """As pandas.cut and others write bins of numbers."""
    names = [form.format(i % 3, i % 3 + 1) for i in range(N)]
    assert said_by(load(lines(lambda i: f'{IDS[i]}.jpg,"{names[i]}"', "f,y"), multi=multi)) == images(names)


@pytest.mark.parametrize("form", ["({}, {})", "[{} {}]", "{{{}, {}}}"])
def test_what_looks_like_lists_is_one_label_if_asked(load, form, capsys):
    names = [form.format(i % 3, i % 3 + 1) for i in range(N)]
    table = lines(lambda i: f'{IDS[i]}.jpg,"{names[i]}"', "f,y")
    assert load(table).is_multi
    assert "multi=False" in capsys.readouterr().out
    assert said_by(load(table, multi=False)) == images(names)


VECTORS = [
    list,
    np.array,
    np.float32,
    lambda row: str(np.float32(row)),
    str,
    lambda row: str([*map(float, row)]),
    lambda row: " ".join(map(str, row)),
    lambda row: "|".join(map(str, row)),
]


@pytest.mark.parametrize("written", VECTORS)
@pytest.mark.parametrize("several", [False, True])
def test_lists_of_a_0_or_1_for_each_class_are_no_labels(load, rng, written, several):
    ones = rng.integers(0, 2, (N, 3)) if several else np.eye(3, dtype=int)[rng.integers(0, 3, N)]
    ones[:6] = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    df = pd.DataFrame({"f": [f"{name}.jpg" for name in IDS], "y": [written(row) for row in ones.tolist()]})
    with pytest.raises(LabelError, match=r"column 'y' holds lists of 3 zeros and ones") as said:
        load(df)
    exec(re.search(r"df\[NAMES\] = .*tolist\(\)", str(said.value))[0], {"df": df, "NAMES": ["a", "b", "c"]})
    found = said_by(load(df, fn_col="f", label_col=["a", "b", "c"], multi=True, val_idxs=[0, 1, 2]))
    assert found == images([{"abc"[i] for i in np.flatnonzero(row)} for row in ones])


def test_bytes_in_cells(load):
    files, pets = [f"{name}.jpg".encode() for name in IDS], [pet.encode() for pet in PETS]
    assert said_by(load(pd.DataFrame({"f": files, "y": pets}))) == images(PETS)
    assert said_by(load(pd.DataFrame({"f": files, "y": [[pet] for pet in pets]}))) == images([{pet} for pet in PETS])


@pytest.mark.parametrize(
    ("header", "end", "more"),
    [
        ("f,y", "", ",\n , \n\n   \n"),
        ("f,y,,", ",,", ",,,\n"),
        ("f,y", ",", ""),
        ("f,y, ,", ", ,", ""),
        ("f,y", ",,,", ",,,,,,\n"),
        (None, ",", ",,\n"),
    ],
)
def test_what_spreadsheets_write_beside_and_below_a_table(load, header, end, more):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}{end}", *filter(None, [header])) + more
    assert said_by(load(table)) == images(PETS)
    assert said_by(load(table.replace(",", ";"))) == images(PETS)


@pytest.mark.parametrize("first", [",\n", ",,\n\n , \n"])
def test_empty_rows_above_a_table(load, first):
    assert said_by(load(first + lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y"))) == images(PETS)


def test_an_empty_row_amid_a_table_is_named(load):
    """pandas counts it: rows of val_idxs would be others."""
    with pytest.raises(LabelError, match=r"line 5 names no file\. Fill it in, or remove the row"):
        load(lines(lambda i: "," if i == 3 else f"{IDS[i]}.jpg,{PETS[i]}", "f,y"))


def test_columns_at_the_end_that_are_not_empty(load):
    with pytest.raises(DataError, match="line 5 has 3 fields, expected 2"):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}{',x' if i == 3 else ''}", "f,y"))
    with pytest.raises(LabelError, match="has 3 columns"):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]},{'x' if i == 3 else ''}", "f,y,"))
    with pytest.raises(LabelError, match="line 2 has no label"):
        load(lines(lambda i: f"{IDS[i]}.jpg,,", "f,y,"))


@pytest.mark.parametrize(
    ("names", "several"),
    [
        ("Not sure/T-Shirt/Shoes", False),
        ("red apple/green apple/blueberry", False),
        ("hot dog/dog", False),
        ("black cat/white cat/cat", False),
        ("red apple/red pear/green apple/green pear", False),
        ("golden retriever/labrador retriever/border terrier/norfolk terrier/boxer", False),
        ("sea/sunset/sea sunset", True),
        ("haze primary/clear primary/cloudy", False),
        ("/".join(TAGS), True),
        ("/".join(SCABS), True),
        ("a b/b a", True),
        ("/".join(f"{a} {b}" for a in ("red", "blue", "green") for b in ("shirt", "dress", "shoe")), True),
    ],
)
def test_words_that_recombine_are_labels(names, several):
    assert recombine([split_tags(name, " ") for name in names.split("/")]) == several


def test_names_of_two_words(load, capsys):
    labels = [("Not sure", "T-Shirt", "Shoes")[i % 3] for i in range(N)]
    assert said_by(load(lines(lambda i: f"{IDS[i]}.jpg,{labels[i]}", "image,label"))) == images(labels)
    assert "'Not sure' is one name" in capsys.readouterr().out


def test_numbered_classes_are_in_the_order_of_numbers(load):
    data = load(lines(lambda i: f"{IDS[i]}.jpg,{i % 12}", "f,y"), val_idxs=range(12))
    assert data.classes == [str(i) for i in range(12)]
    assert data.val_y.tolist() == list(range(12))
    with_zeros = load(lines(lambda i: f"{IDS[i]}.jpg,{i % 12:02}", "f,y"), val_idxs=range(12))
    assert with_zeros.classes == [f"{i:02}" for i in range(12)]


def test_an_id_for_a_label(load):
    with pytest.raises(LabelError, match=r"column 'y' has 24 different labels in 24 rows: an id .*label_col="):
        load(lines(lambda i: f"{IDS[i]}.jpg,u{i}", "f,y"))
    with pytest.raises(LabelError, match=r"an id rather than a class.*continuous=True"):
        load(lines(lambda i: f"{IDS[i]}.jpg,{i / 7:.4f}", "f,y"))
    with (
        pytest.warns(UserWarning, match="column 'y' has 13 different labels in 24 rows: an id"),
        pytest.warns(UserWarning, match="no image of the class.*'u11', 'u12'"),
    ):
        load(lines(lambda i: f"{IDS[i]}.jpg,u{i % 13}", "f,y"), val_idxs=range(13, 24))


def test_decimal_commas(load):
    with pytest.raises(LabelError, match=r"line 2 must have finite numbers, got \['0,5'\].*decimal=','"):
        load(lines(lambda i: f"{IDS[i]}.jpg;{i},5", "f;y"), continuous=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/{}.jpg", "line 2 has the URL 'https://example.org/0000.jpg'. Download"),
        (
            "/kaggle/input/{}.jpg",
            r"line 2 must name a file inside the folder.*'0000.jpg' is in the folder: keep the last",
        ),
        ("C:\\data\\{}.jpg", "line 2 must name a file inside the folder.*'0000.jpg' is in the folder"),
        ("{}.jpg;x", r"Is the delimiter ';'\? Pass sep=';'"),
        ("{}.png", "24 of them are there as '.jpg': change the suffix"),
        ("{}", r"Did you mean suffix='.jpg'\? It finds 24"),
        ("x/{}.jpg", "24 of them are there in another folder"),
        ("{:d}", "24 of them are there with zeros in front, such as 'img/0000'. Spreadsheets"),
        ("{:d}.jpg", "24 of them are there with zeros in front, such as 'img/0000.jpg'"),
        ("{:.1f}", "24 of them are there with zeros in front"),
    ],
)
def test_names_that_nearly_fit(load, name, message):
    with pytest.raises((LabelError, FileNotFoundError), match=message):
        load(lines(lambda i: f"{name.format(i if '{:' in name else IDS[i])},{PETS[i]}", "f,y"), sep=",")


def test_absolute_names_and_names_in_folders_below(load, root, capsys):
    data = load(lines(lambda i: f"{root}/img/{IDS[i]}.jpg,{PETS[i]}", "f,y"))
    assert said_by(data) == images(PETS)
    assert "24 names are paths from the root of the data" in capsys.readouterr().out
    found = load(lines(lambda i: f"in_{IDS[i]}.jpg,{PETS[i]}", "f,y"))
    assert said_by(found) == {f"img/{below(name)}.jpg": pet for name, pet in zip(IDS, PETS, strict=True)}
    assert "24 names lie in folders below" in capsys.readouterr().out


def test_names_that_two_files_could_have(load, root):
    """No file is chosen for the user."""
    (root / "img" / "x.JPG").touch()
    (root / "img" / "X.jpg").touch()
    (root / "img" / "0" / "y.jpg").touch()
    (root / "img" / "1" / "y.jpg").touch()
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y")
    with pytest.raises(FileNotFoundError, match="1 of them are there in several spellings that differ in case"):
        load(table + "x.jpg,cat\n")
    with pytest.raises(FileNotFoundError, match="1 of them are there in another folder"):
        load(table + "y.jpg,cat\n")


def test_files_that_are_in_another_folder(load, root):
    (root / "test").mkdir()
    for name in IDS[20:]:
        (root / "img" / f"{name}.jpg").rename(root / "test" / f"{name}.jpg")
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y")
    with pytest.raises(FileNotFoundError, match=r"4 of 24 rows .*0020.jpg is in the folder 'test': with folder='.'"):
        load(table)
    data = load(table, folder=".")
    assert {name.rpartition("/")[2]: pet for name, pet in said_by(data).items()} == {
        f"{name}.jpg": pet for name, pet in zip(IDS, PETS, strict=True)
    }


def test_rows_without_a_file(load, root, capsys):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y").replace("0003.jpg", "gone1.jpg").replace("0008", "gone2")
    with pytest.raises(FileNotFoundError, match=r"2 of 24 rows have no file.*Or pass missing='skip'"):
        load(table)
    data = load(table, missing="skip", val_idxs=[0, 8, 9, 10, 11])
    kept = [i for i in range(N) if i not in (3, 8)]
    assert said_by(data) == {f"img/{IDS[i]}.jpg": PETS[i] for i in kept}
    assert list(data.val_ds.fnames) == [
        f"img/{IDS[i]}.jpg" for i in (0, 9, 10, 11)
    ]  # counted before rows were left out
    out = capsys.readouterr().out
    assert re.search(
        r"2 of 24 rows have no file in .*gone1.jpg \(line 5\), gone2.jpg \(line 10\). They are left out", out
    )
    listed = (root / "tmp" / "missing_images.csv").read_text().splitlines()
    assert listed == ["name,where", "gone1.jpg,line 5", "gone2.jpg,line 10"]
    with pytest.raises(FileNotFoundError, match="24 of 24 rows have no file"):
        load(lines(lambda i: f"no{i}.jpg,{PETS[i]}", "f,y"), missing="skip")
    with pytest.raises(ValueError, match="missing must be 'raise' or 'skip', got 'ignore'"):
        load(table, missing="ignore")


def test_a_table_beside_the_images_and_in_the_working_folder(load, root, tmp_path_factory, monkeypatch):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert said_by(load(table, name="labels.csv")) == images(PETS)
    with open("labels.csv", "w") as file:  # noqa: PTH123
        file.write(table)
    with pytest.raises(ValueError, match=r"a table must be one file, got .*elsewhere.*labels.csv and"):
        load(table, name="labels.csv")
    monkeypatch.chdir(root)
    assert said_by(load(table, name="labels.csv")) == images(PETS)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_advice_on_encodings(load, encoding):
    table = lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}ä", "f,y")
    wide = encoding.removesuffix("-le")
    if encoding == "utf-16-le":  # without a mark
        with pytest.raises(DataError):
            load(table, encoding)
    else:
        with pytest.raises(DataError, match=f"begins with the mark of {wide}. Pass encoding='{wide}'"):
            ImageClassifierData.from_csv(*_written(load, table, encoding), encoding="latin-1")


def _written(load, table, encoding):
    data = load(table, encoding)
    return data.path, "img", "table.txt", 4, TFMS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_delim": ""}, "label_delim must not be empty"),
        ({"label_delim": "|", "cat_separator": ";"}, "are one thing"),
        ({"label_delim": "|", "multi": False}, "label_delim means several labels, multi=False does not"),
        ({"label_delim": "|", "continuous": True}, "label_delim means several labels, continuous=True does not"),
    ],
)
def test_arguments_that_contradict_each_other(load, options, message):
    with pytest.raises(ValueError, match=message):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}", "f,y"), **options)


PLANES = ["Boeing 707-320", "A300B4", "C-47", "Falcon 900"]


@pytest.mark.parametrize("quiet_lines", [0, 120], ids=["mixed", "only words first"])
def test_labels_of_several_words_after_a_blank(root, quiet_lines):
    """FGVC aircraft: a name, a blank, and a label that may hold blanks, as many as it likes."""
    names = [f"{34309 + i:07d}" for i in range(quiet_lines + N)]
    for name in names:
        (root / "img" / f"{name}.jpg").touch()
    labels = [PLANES[1 + i % 2] if i < quiet_lines else PLANES[i % 4] for i in range(len(names))]
    (root / "list.txt").write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))
    data = ImageClassifierData.from_csv(root, "img", "list.txt", 4, TFMS, suffix=".jpg", device="cpu")
    assert said_by(data) == {f"img/{name}.jpg": label for name, label in zip(names, labels, strict=True)}


def test_lists_of_labels_after_a_blank(load):
    """DTD's joint annotations end in a blank."""
    tags = [["banded"], ["banded", "lined"], ["lined", "dotted"], ["dotted"]]
    data = load(lines(lambda i: f"{IDS[i]}.jpg {' '.join(tags[i % 4])} "))
    assert data.is_multi
    assert said_by(data) == images([set(tags[i % 4]) for i in range(N)])


def test_names_with_blanks_alone_are_names(root):
    names = [f"{pet}/my {'photo' if i % 2 else 'old photo'} {i}.jpg" for i in range(4) for pet in ("cat", "dog")]
    for name in names:
        (root / "img" / name).parent.mkdir(exist_ok=True)
        (root / "img" / name).touch()
    (root / "list.txt").write_text("\n".join(names))
    data = ImageClassifierData.from_csv(root, "img", "list.txt", 4, TFMS, device="cpu")
    assert said_by(data) == {f"img/{name}": name[:3] for name in names}


@pytest.mark.parametrize("form", ["FER2013", "MNIST"])
def test_pixels_instead_of_files(load, form):
    if form == "MNIST":
        table = lines(
            lambda i: ",".join(map(str, [i % 3, *range(64)])), ",".join(["label", *map(str, range(100, 164))])
        )
    else:
        table = lines(lambda i: f"{i % 3},{' '.join(['70'] * 64)},Training", "emotion,pixels,Usage")
    with pytest.raises(DataError, match=r"it seems to hold pixels, 6[45] numbers a row.*from_arrays"):
        load(table)


def test_a_listing_of_many_columns_is_short(load):
    table = lines(lambda i: ",".join([f"{IDS[i]}.jpg", *("x" * (1 + i % 3) for _ in range(60)), PETS[i]]),
                  ",".join(["file", *(f"c{k}" for k in range(60)), "species"]))  # fmt: skip
    with pytest.raises(LabelError, match="label_col='species'") as error:
        load(table)
    assert "and 48 more" in str(error.value)
    assert "'species': 'cat'" in str(error.value)
    assert len(str(error.value).splitlines()) < 20


def test_lines_with_other_fields_can_be_left_out(load):
    with pytest.raises(DataError, match=r"line 4 has 3 fields, expected 2.*on_bad_lines"):
        load(lines(lambda i: f"{IDS[i]}.jpg,{PETS[i]}{',more' if i == 2 else ''}", "f,y"))


@pytest.mark.parametrize("short", [0, 5])
def test_a_short_line_of_a_table_of_several_columns_is_a_fault(load, short):
    with pytest.raises(DataError):
        load(lines(lambda i: f"{IDS[i]}.jpg {'' if i == short else 'train '}{PETS[i]}"))


def test_names_with_blanks_and_without_extension(root):
    (root / "img/my cat one.jpg").touch()
    (root / "img/my cat.jpg").touch()
    (root / "t.csv").write_text("my cat one\nmy cat\n")
    rules = TableRules("predict", ".jpg")
    names = named_files(read_csv("t.csv", root, None, "utf-8"), root, "img", rules)
    assert names == ["img/my cat one.jpg", "img/my cat.jpg"]
