"""Labels of images in a model's classes: a table is read as `from_csv` reads it, and nothing is lost."""

import re

import numpy as np
import pytest
from helpers import TFMS, write_images

from fastclf import ImageClassifierData, LabelError
from fastclf.data import truth
from fastclf.data.sources.labels import Labels

NAMES = [f"{'abc'[i % 3]}/{i:03d}.png" for i in range(12)]
ONE = Labels(np.zeros((0, 3)), ["a", "b", "c"])
SEVERAL = Labels(np.zeros((0, 3)), ["a", "b", "c"], is_multi=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("truth"), dict.fromkeys("abc", 12))
    for file in root.rglob("*.png"):
        if file.relative_to(root).as_posix() not in NAMES:
            file.unlink()
    return root


def lines(*columns, header=None):
    rows = zip(*columns, strict=True)
    return "\n".join([*([header] if header else []), *(",".join(map(str, row)) for row in rows)])


CLASSES = [name[0] for name in NAMES]
FORMS = {
    "two columns": (lines(NAMES, CLASSES, header="x,y"), {}),
    "no header": (lines(NAMES, CLASSES), {}),
    "no header, labels first": (lines(CLASSES, NAMES), {}),
    "pandas' index": (lines(range(12), NAMES, CLASSES, header=",x,y"), {}),
    "no labels": (lines(NAMES), {}),
    "names without suffix": (lines([name[:-4] for name in NAMES], CLASSES, header="x,y"), {"suffix": ".png"}),
    "another case, other slashes": (lines([n.upper().replace("/", "\\") for n in NAMES], CLASSES, header="x,y"), {}),
    "repeated rows": (lines(NAMES + NAMES[:4], CLASSES + CLASSES[:4], header="x,y"), {}),
    "0 and 1": (lines(NAMES, *([int(c == name) for c in CLASSES] for name in "abc"), header="x,a,b,c"), {}),
    "named columns": (
        lines(CLASSES, NAMES[::-1], NAMES, CLASSES[::-1], header="p,q,r,s"),
        {"fn_col": "r", "label_col": "p"},
    ),
    "Excel's first line": ("sep=,\r\n" + lines(NAMES, CLASSES, header="x,y"), {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*another. left out")
def test_a_table_is_read_as_from_csv_reads_it(folder, form, capsys):
    text, options = FORMS[form]
    (folder / "t.csv").write_text(text)
    data = ImageClassifierData.from_csv(folder, ".", folder / "t.csv", 4, TFMS, val_idxs=[0, 1, 2], **options)
    want = {str(folder / name): y for ds in (data.trn_ds, data.val_ds) for name, y in zip(ds.fnames, ds.y, strict=True)}
    said = capsys.readouterr().out.split(";")[0]
    files, labels = truth.of_table(folder, folder / "t.csv", ONE, **options)
    assert dict(zip(files, labels.y, strict=True)) == want
    assert sorted(files) == sorted(str(folder / name) for name in NAMES)
    assert said in capsys.readouterr().out


def test_rows_without_a_file_are_an_error_with_its_remedy(folder):
    (folder / "t.csv").write_text(lines([name[:-4] for name in NAMES], CLASSES, header="x,y"))
    with pytest.raises(FileNotFoundError, match=r"12 of 12 rows .*a/000 \(line 2\).*suffix='.png'.* finds 12 of them"):
        truth.of_table(folder, folder / "t.csv", ONE)
    (folder / "t.csv").write_text(lines([*NAMES, "none.png"], [*CLASSES, "a"], header="x,y"))
    with pytest.raises(FileNotFoundError, match=r"1 of 13 rows .*none.png \(line 14\)") as error:
        truth.of_table(folder, folder / "t.csv", ONE)
    assert "missing=" not in str(error.value)  # no argument of evaluate


def test_what_does_not_fit_names_the_table(folder):
    for text, words in (
        (lines([*NAMES, NAMES[0]], [*CLASSES, "b"], header="x,y"), "gives another label than an earlier row"),
        (lines(NAMES, [*CLASSES[:-1], "a|b"], header="x,y"), r"'a\|b' in t.csv are not classes of the model"),
        (lines(NAMES, [*CLASSES[:-1], ""], header="x,y"), "line 13 has no label"),
        (lines(NAMES, *([1] * 12 for _ in "abc"), header="x,a,b,c"), "line 2 has 3 columns with a 1"),
    ):
        (folder / "t.csv").write_text(text)
        with pytest.raises(LabelError, match=words):
            truth.of_table(folder, folder / "t.csv", ONE)


def test_an_ambiguous_table_can_be_read_as_the_message_says(folder):
    wrong = [*CLASSES[1:], CLASSES[0]]
    (folder / "t.csv").write_text(lines(wrong, NAMES, CLASSES, ["train"] * 12, header="other,x,label,split"))
    with pytest.raises(LabelError, match=r"Name them, e\.g\. evaluate") as error:
        truth.of_table(folder, folder / "t.csv", ONE)
    call = re.search(r"evaluate(\(.*?\))\.", str(error.value))[1]
    named = eval(f"dict{call}", {"PATH": {}})
    _, labels = truth.of_table(folder, folder / named.pop("csv"), ONE, **named)
    assert [labels.classes[y] for y in labels.y] == CLASSES


def test_several_labels_of_a_table(folder):
    tags = ["a|b", "b", "", "c|a"] * 3
    (folder / "t.csv").write_text(lines(NAMES, tags))
    _, labels = truth.of_table(folder, folder / "t.csv", SEVERAL)
    assert labels.y.tolist() == [[int(name in tag.split("|")) for name in "abc"] for tag in tags]


def test_several_labels_are_lists_of_names_or_0_and_1(rng):
    flags = rng.integers(0, 2, (9, 3))
    names = [["abc"[i] for i in np.flatnonzero(row)] for row in flags]
    for y in (
        flags,
        flags.astype(bool),
        flags.astype(np.float64),
        flags.tolist(),
        names,
        [tuple(row) for row in names],
    ):
        labels = truth.of_list(y, SEVERAL, 9)
        assert labels.is_multi
        assert labels.y.tolist() == flags.tolist()
    assert truth.of_list([[], []], SEVERAL, 2).y.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1, 0, 1], r"y must have 3 number\(s\) per image, got \[4\]"),
        (np.array([0.0, 1, 1, 0]), r"y must have 3 number\(s\) per image, got \[4\]"),
        (np.zeros((4, 2)), r"y must have 3 number\(s\) per image, got \[4, 2\]"),
        (np.zeros((4, 3, 1)), r"y must have 3 number\(s\) per image, got \[4, 3, 1\]"),
        ([[0, 1], [1], [], [2]], r"y must have 3 number\(s\) per image"),
        ([[0, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 2]], r"y \[N, C\] must be 0 or 1, got \[0.0, 0.5, 1.0\] in row 2"),
        ([[0, 1, 1], [0, np.nan, 1], [0, 0, 1], [0, 0, 1]], r"y \[N, C\] must be 0 or 1, .* in row 1"),
        ([[0, 1, 1], [0, 0, -1], [0, 0, 1], [0, 0, 1]], r"y \[N, C\] must be 0 or 1, .* in row 1"),
    ],
)
def test_numbers_that_are_no_labels_are_refused(y, words):
    with pytest.raises(ValueError, match=words):
        truth.of_list(y, SEVERAL, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_a_number_to_predict_is_finite(value):
    like = Labels(np.zeros((0, 1)), [], is_reg=True)
    assert truth.of_list([0.5, -1], like, 2).y.tolist() == [[0.5], [-1]]
    with pytest.raises(ValueError, match=r"y must be finite numbers, got (nan|inf) in row 1"):
        truth.of_list([0.5, value], like, 2)
