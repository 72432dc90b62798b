"""Tables of predictions, whatever the classes are called."""

import csv

import numpy as np
from helpers import write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclf.cli import main
from fastclf.predictions import Predictions

OWN = [
    "file",
    "label",
    "labels",
    "prob",
    "label_2",
    "prob_2",
    "true_cat",
    "p(cat)",
    "p(label)",
    "p(p(label))",
    "cat",
    "dog",
    "p",
]
NAMES = st.one_of(st.sampled_from(OWN), st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1))
CLASSES = st.lists(NAMES, min_size=2, max_size=6, unique=True)


def read_back(header):
    """The classes of a table by its header alone, and where their columns are."""
    own = 2 if header[1] == "labels" else 3
    while header[1] == "label" and header[own : own + 2] == [f"label_{own // 2 + 1}", f"prob_{own // 2 + 1}"]:
        own += 2
    names = header[own:]
    in_parentheses = all(name.startswith("p(") and name.endswith(")") for name in names)
    return own, [name[2:-1] for name in names] if in_parentheses else names


@settings(max_examples=300, deadline=None)
@given(CLASSES, st.sampled_from(["one", "several"]), st.integers(1, 3))
def test_a_table_is_read_back_whatever_the_classes_are_called(tmp_path_factory, classes, kind, topk):
    rng = np.random.default_rng(len(classes))
    probs = rng.dirichlet(np.ones(len(classes)), 4).astype(np.float32)
    outputs = np.log(probs) if kind == "one" else probs
    found = Predictions(outputs, classes, [f"{i}.jpg" for i in range(4)], kind, min(topk, len(classes)))
    file = found.to_csv(tmp_path_factory.getbasetemp() / "table.csv", all_probs=True)
    with file.open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    assert len(set(header)) == len(header) == found.to_frame(all_probs=True).shape[1]
    own, names = read_back(header)
    assert names == classes
    assert [row[0] for row in rows] == found.files
    np.testing.assert_array_equal([[np.float32(cell) for cell in row[own:]] for row in rows], found.probs)
    if kind == "one":
        assert [row[1] for row in rows] == found.labels


def test_the_table_of_a_run_too(tmp_path):
    names = ["file", "label", "prob"]
    write_images(tmp_path, {f"{part}/{name}": n for part, n in (("train", 4), ("valid", 2)) for name in names})
    run = tmp_path / "run"
    assert main(["train", str(tmp_path), "-o", str(run), "--epochs", "1", "--sz", "32", "--bs", "4"]) == 0
    with (run / "valid.csv").open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["file", "label", "p(file)", "p(label)", "p(prob)"]
    assert [row[1] for row in rows] == [name for name in names for _ in range(2)]
