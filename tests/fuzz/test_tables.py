"""Tables of any content: either the labels that they say, or an error that names the table; nothing else, no hang."""

import csv
import io
import re
import warnings
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pytest
from fuzzing import fuzzed
from helpers import TFMS
from hypothesis import assume, given
from hypothesis import strategies as st

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import DataError

NAMES = ["000", "1e3", "NA", "a b", "ä", "-x", "=1+1", "x,y", "x;y", 'q"q', "new\nline", "sub/x", "sub/deep/000", "😀"]
ARGUMENT = r"^(from_csv: (sep|encoding|cat_separator)|val_idxs must|stratified_idxs|a folder)"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of files that tables may name, beside one that they must not reach."""
    root = tmp_path_factory.mktemp("tables") / "data"
    for name in ["pics/" + name for name in NAMES] + ["../outside/x", "secret"]:
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def read(root, content, **options):
    """from_csv without its warnings; nothing but the table itself is written."""
    table = root.parent / "labels.csv"
    table.write_bytes(content)
    before = files_of(root.parent)
    options = {"suffix": ".png", "val_idxs": [0], **options}
    folder = options.pop("folder", "pics")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ImageClassifierData.from_csv(root, folder, table, 4, TFMS, **options)
    finally:
        assert files_of(root.parent) == before


def files_of(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def labels_of(data):
    """File name -> label, or the set of labels, of both sets together."""
    found = {}
    for ds in (data.trn_ds, data.val_ds):
        for name, y in zip(ds.fnames, ds.y, strict=True):
            assert name not in found
            found[name] = {data.classes[i] for i in np.flatnonzero(y)} if data.is_multi else data.classes[int(y)]
    return found


def file_of(text, suffix=".png"):
    return (PurePosixPath("pics") / f"{text}{suffix}").as_posix()


letters = st.characters(codec="utf-8")
label_texts = st.text(letters, min_size=1, max_size=6).filter(str.strip) | st.sampled_from(["NA", "nan", "1e3", "None"])


@st.composite
def whole_tables(draw):
    """Rows of (name, label) such that every class has a row for training, and row ``val`` is for validation."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=3, unique=True))
    pool = draw(st.lists(label_texts, min_size=2, max_size=4, unique_by=str.strip))
    rows = [(name, draw(st.sampled_from(pool))) for name in names]
    counts = Counter(label for _, label in rows)
    may = [i for i, (_, label) in enumerate(rows) if counts[label] > 1]
    assume(len(counts) > 1 and may)
    return rows, draw(st.sampled_from(may))


@fuzzed
@given(
    table=whole_tables(),
    header=st.tuples(st.text(letters, max_size=4), st.text(letters, max_size=4)),
    sep=st.sampled_from([",", ";", "\t", "|", " ", "ä", "^"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "gb18030"]),
    newline=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
def test_what_a_table_says_is_what_the_data_has(root, tally, table, header, sep, encoding, newline):
    rows, val = table
    text = io.StringIO()
    csv.writer(text, delimiter=sep, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    try:
        content = text.getvalue().encode(encoding)
    except UnicodeEncodeError:
        return tally.count("not to be encoded")
    assume(not any(cell.strip() in NAMES for cell in header))  # a first line that names a file is a row
    reading = "utf-8-sig" if encoding == "utf-8" else encoding
    data = read(root, content, sep=sep, encoding=reading, multi=False, val_idxs=[val])
    assert labels_of(data) == {file_of(name): label.strip() for name, label in rows}
    assert sorted(data.classes) == sorted({label.strip() for _, label in rows})
    assert list(data.val_ds.fnames) == [file_of(rows[val][0])]
    return tally.count("round trip")


@fuzzed
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(["a", "bc", "NA", "0", "ä"]), max_size=4)),
        min_size=3,
        unique_by=lambda row: row[0],
    ),
    mark=st.sampled_from([" ", "  ", "\t", "|", "; "]),
)
def test_several_labels(root, tally, rows, mark):
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("id", "tags"), *((n, mark.join(tags)) for n, tags in rows)])
    cat_separator = " " if not mark.strip() else mark.strip()
    try:
        data = read(root, text.getvalue().encode(), multi=True, cat_separator=cat_separator)
    except DataError as error:
        trained = {tag for _, tags in rows[1:] for tag in tags}
        assert len(trained) < 2 or not set(rows[0][1]) <= trained
        return tally.refused(error, "labels.csv")
    assert labels_of(data) == {file_of(name): set(tags) for name, tags in rows}
    return tally.count("round trip")


PIECES = [
    *NAMES,
    *("gone", "../outside/x", "sub/../000", "./000", "sub//x", "000/", "/etc/passwd", "a\\b", "..", "\0", "x" * 300),
    *(
        "cat",
        "dog",
        "",
        " ",
        "a b",
        "1.5",
        "-inf",
        "1e999",
        "0x1",
        "١",
        "=cmd()",
        "\ufeff",
        "\u2028",
        "\x1b[2J",
        "\x85",
    ),
]
SEPARATORS = [",", ";", "\t", "|", "\n", '"', "'"]
fields = st.sampled_from(PIECES) | st.text(max_size=5)
encodings = st.sampled_from(
    ["utf-8-sig"] * 8
    + ["utf-8", "utf-16", "utf-16-le", "utf-32", "latin-1", "ascii", "utf-7", "cp1252", "shift_jis", "iso2022_jp", "hz"]
    + ["idna", "punycode", "unicode_escape", "rot13", "hex", "zlib", "undefined", "no-such", ""]
)


@st.composite
def contents(draw):
    """Bytes: noise, or fields, separators and line ends in any order, most of them two fields to a line."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=200))
    if draw(st.booleans()):
        lines = draw(st.lists(st.tuples(fields, fields), max_size=8))
        quoted = draw(st.booleans())
        lines = [[f'"{f}"' if quoted else f for f in line] for line in lines]
        text = "\n".join(",".join(line) for line in lines)
    else:
        text = "".join(
            draw(st.lists(fields | st.sampled_from([*SEPARATORS, ",", ",", "\n", "\r\n", "\r"]), max_size=30))
        )
    return text.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32"])), "surrogatepass")


@pytest.mark.filterwarnings("ignore:.*invalid (octal )?escape sequence:DeprecationWarning")  # of a codec
@fuzzed
@given(
    content=contents(),
    sep=st.sampled_from([None] * 9 + [","] * 9 + [*SEPARATORS, "", "ab", "\r", "\0", "ä"]),
    encoding=encodings,
    skip_header=st.booleans(),
    continuous=st.sampled_from([False, False, True]),
    multi=st.sampled_from([None, True, False]),
    cat_separator=st.sampled_from([" ", " ", "|", "", "ab", "\n"]),
    suffix=st.sampled_from([".png"] * 6 + ["", "\0", "/../x.png", "\n"]),
    folder=st.sampled_from(["pics"] * 6 + ["pics/sub", ".", "", "..", "../outside", "nope", "/etc", "pics\0"]),
    val_idxs=st.sampled_from([None, [0], [0], [0], [1, 2], [-1], [10**30], [0, 0], [], "0", [0.5], [True]]),
)
def test_any_table(root, tally, content, folder, **options):
    try:
        data = read(root, content, folder=folder, **options)
    except FileNotFoundError as error:
        return tally.refused(error, r"labels\.csv|no folder")
    except DataError as error:
        return tally.refused(error, r"labels\.csv|link")
    except (ValueError, TypeError) as error:  # an argument that never fits
        return tally.refused(error, ARGUMENT)
    there = {file.relative_to(root).as_posix() for file in root.rglob("*.png")}
    names = [*data.trn_ds.fnames, *data.val_ds.fnames]
    assert set(names) <= there
    assert len(set(names)) == len(names)
    assert np.isfinite(data.trn_y).all()
    text = content.decode(options["encoding"])
    if '"' not in text and not data.is_multi and not data.is_reg:
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line]
        for name, label in labels_of(data).items():  # one line says so
            stem = PurePosixPath(name).name.removesuffix(".png").casefold()
            assert any(label in line and stem in line.casefold() for line in lines) or label == name.split("/")[-2]
    return tally.count("data")


SPELLINGS = [str, str, str, "{} ".format, "pics/{}".format, str.upper, lambda name: name.replace("/", "\\")]
KINDS = {"label": ["a", "a", "b", "b c"], "split": ["train", "train", "Valid", "test"], "noise": ["x", "y", ""]}
KINDS |= {"is_valid": ["0", "0", "1"], "flag": ["0", "1"], "fold": ["0", "1", "2"]}


@st.composite
def columns(draw):
    """Columns of any kind, in any order: {title: cells}, the first of which name files, and how to ask for them."""
    names = draw(st.lists(st.sampled_from([name for name in NAMES if "\n" not in name]), min_size=7, unique=True))
    found = {"file": [draw(st.sampled_from(SPELLINGS))(name) for name in names]}
    if draw(st.integers(0, 4)) == 0:
        found["file"][1] = "gone"
    for title in ["label", *draw(st.lists(st.sampled_from([*KINDS][1:]), unique=True, max_size=2))]:
        found[title] = [draw(st.sampled_from(KINDS[title])) for _ in names]
    order, headed, options = draw(st.permutations([*found])), draw(st.sampled_from([True, True, False])), {}
    for option, title in (("fn_col", "file"), ("label_col", "label"), ("split_col", draw(st.sampled_from(order)))):
        often = None if option == "split_col" and title not in ("split", "is_valid") else title
        wanted = draw(st.sampled_from([often] * 60 + [*KINDS, None, None, 7]))
        by_number = wanted in order and draw(st.sampled_from([True, headed]))
        if wanted is not None:
            options[option] = order.index(wanted) if by_number else wanted
    return names, found, order, headed, options


@fuzzed
@given(
    table=columns(),
    sep=st.sampled_from([",", ";", "\t", "|"]),
    missing=st.sampled_from(["raise", "skip"]),
)
def test_any_columns(root, tally, table, sep, missing):
    """Whatever columns there are and are asked for: the labels of the one that was asked for, or an error."""
    names, found, order, headed, options = table
    text = io.StringIO()
    csv.writer(text, delimiter=sep).writerows(
        [order] * headed + [*zip(*(found[title] for title in order), strict=True)]
    )
    content, file = text.getvalue().encode(), root.parent / "labels.csv"
    file.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data = ImageClassifierData.from_csv(
                root, "pics", file, 4, TFMS, suffix=".png", missing=missing, multi=False, device="cpu", **options
            )
    except (DataError, FileNotFoundError) as error:
        return tally.refused(error, r"labels\.csv")
    except ValueError as error:
        return tally.refused(error, ARGUMENT)
    if "label_col" in options:
        asked = options["label_col"]
        labels = found[asked if isinstance(asked, str) else order[asked]]
        rows = zip(names, found["file"], labels, strict=True)
        said = labels_of(data)
        if data.test_ds is not None:
            said |= {name: data.classes[y] for name, y in zip(data.test_ds.fnames, data.test_ds.y, strict=True)}
        assert said == {file_of(name): label for name, spelt, label in rows if spelt != "gone"}
    return tally.count("data")


cells = st.one_of(
    fields,
    st.none(),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.binary(max_size=4),
    st.tuples(st.text(max_size=2)),
    st.just(pd.NaT),
    st.datetimes(),
)


@fuzzed
@given(
    rows=st.integers(0, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6)),
    names=st.lists(st.text(max_size=3) | st.integers() | st.none(), min_size=4, max_size=4),
    multi=st.sampled_from([None, True, False]),
    continuous=st.booleans(),
)
def test_any_data_frame(root, tally, rows, names, multi, continuous):
    width = len(rows[0]) if rows else 2
    df = pd.DataFrame(rows, columns=names[:width], dtype=object)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data = ImageClassifierData.from_df(
                root, "pics", df, 4, TFMS, [0], ".png", multi=multi, continuous=continuous
            )
    except (DataError, FileNotFoundError) as error:
        return tally.refused(error, "data frame|from_df")
    except ValueError as error:
        return tally.refused(error, "^val_idxs must")
    assert {*data.trn_ds.fnames, *data.val_ds.fnames} == {file_of(row[0]) for row in rows}
    return tally.count("data")
