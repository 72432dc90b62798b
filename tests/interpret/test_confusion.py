from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from fastclf.interpret.confusion import classification_report, confusion_matrix, plot_confusion_matrix


@pytest.mark.parametrize(("n", "c"), [(0, 3), (1, 2), (50, 2), (700, 120)])
def test_confusion_matrix_matches_scikit_learn(rng, n, c):
    y, preds = rng.integers(0, max(c - 1, 1), n), rng.integers(0, c, n)
    names = [f"class {i}" for i in range(c)]
    expected = reference.confusion_matrix(y, preds, labels=range(c)) if n else np.zeros((c, c))
    for a, b in ((y, preds), (torch.tensor(y), torch.tensor(preds)), (list(y), list(preds))):
        found = confusion_matrix(a, b, names)
        assert found.shape == (c, c)
        assert found.dtype == np.int64
        assert (found == expected).all()


def test_without_names_the_largest_number_gives_the_size():
    assert confusion_matrix([0, 1], [0, 4]).shape == (5, 5)
    assert confusion_matrix([], []).shape == (0, 0)


def test_misuse_of_the_confusion_matrix_names_the_argument(rng):
    with pytest.raises(
        ValueError, match=r"preds must be \[N\] class numbers, got \[4, 3\] float64\. Take their argmax"
    ):
        confusion_matrix([0, 1, 2, 0], rng.uniform(size=(4, 3)))
    with pytest.raises(ValueError, match="y must be 0 to 1, one per class, got 0 to 2"):
        confusion_matrix([0, 2], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="preds must be 0 or more, got -2 to 1"):
        confusion_matrix([0, 1], [-2, 1])
    with pytest.raises(ValueError, match="preds must be as many as y, 2, got 3"):
        confusion_matrix([0, 1], [0, 1, 1])


def shown(ax):
    """The matrix of cell texts; empty cells are ''."""
    c = len(ax.get_xticks())
    cells = np.full((c, c), "", object)
    for text in ax.texts:
        x, y = text.get_position()
        cells[y, x] = text.get_text()
    return cells


def test_the_plot_shows_counts_names_and_axes():
    ax = plot_confusion_matrix(np.array([[8, 1], [0, 3]]), ["cats", "dogs"])
    assert (shown(ax) == [["8", "1"], ["0", "3"]]).all()
    assert [t.get_text() for t in ax.get_xticklabels()] == [t.get_text() for t in ax.get_yticklabels()]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cats", "dogs"]
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title()) == ("true", "predicted", "Confusion matrix")


def test_normalised_rows_are_shares_and_rows_without_images_stay_empty():
    ax = plot_confusion_matrix([[3, 1, 0], [0, 0, 0], [1, 1, 2]], ["a", "b", "c"], normalize=True)
    assert (shown(ax) == [["0.75", "0.25", "0.00"], [""] * 3, ["0.25", "0.25", "0.50"]]).all()


def test_plots_in_given_axes():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2)
    assert plot_confusion_matrix([[1]], ["only"], ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("shape", [(4, 4), (14, 14), (4, 2, 2)])
def test_shares_that_were_made_of_counts_are_shown_as_shares(rng, shape):
    counts = rng.integers(0, 9, shape)
    counts.reshape(-1, shape[-1])[0] = 1, *[3] * (shape[-1] - 1)  # whose shares are not whole
    names = [f"{i}" for i in range(shape[0])]
    totals = counts.sum(-1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(shape, np.nan), where=totals > 0)
    for given in (shares, shares.tolist(), torch.tensor(shares)):
        made, wanted = plot_confusion_matrix(given, names), plot_confusion_matrix(counts, names, normalize=True)
        assert [text.get_text() for text in made.texts] == [text.get_text() for text in wanted.texts]
        assert made.images[0].norm.vmax == wanted.images[0].norm.vmax == 1
    whole = plot_confusion_matrix(counts.astype(float), names)
    assert [text.get_text() for text in whole.texts] == [
        text.get_text() for text in plot_confusion_matrix(counts, names).texts
    ]


@pytest.mark.parametrize("c", [2, 12, 13, 40, 41, 120, 200, 201, 1000])
@pytest.mark.parametrize("normalize", [False, True])
def test_labels_of_many_classes_neither_overlap_nor_leave_the_figure(rng, c, normalize):
    y = rng.integers(0, c, 20 * c)
    preds = np.where(rng.uniform(size=y.size) < 0.8, y, rng.integers(0, c, y.size))
    names = [f"german shorthaired pointer of kind {i}" if i % 9 == 0 else f"breed {i}" for i in range(c)]
    ax = plot_confusion_matrix(confusion_matrix(y, preds, names), names, normalize)
    figure = ax.figure
    figure.canvas.draw()
    for labels, axis in ((ax.get_xticklabels(), "x"), (ax.get_yticklabels(), "y")):
        boxes = [label.get_window_extent() for label in labels]
        spans = sorted((box.x0, box.x1) if axis == "x" else (box.y0, box.y1) for box in boxes)
        assert all(end <= start + 0.5 for (_, end), (start, _) in pairwise(spans))
        assert all(figure.bbox.x0 <= box.x0 and figure.bbox.y0 <= box.y0 for box in boxes)
    cell = ax.bbox.width / c
    assert all(text.get_window_extent().width <= cell for text in ax.texts)


@pytest.mark.parametrize("several", [False, True])
def test_a_figure_of_thousands_of_classes_stays_one_that_fits_in_memory(several):
    c = 3000
    names = [f"class {i}" for i in range(c)]
    ax = plot_confusion_matrix(np.zeros((c, 2, 2) if several else (c, c), np.int64), names)
    assert ax.figure.get_size_inches().max() < 50  # at 100 pixels an inch, 100 MB
    named = {int(tick): label.get_text() for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert len(named) == 200
    assert all(name == names[i] for i, name in named.items())


def test_signs_in_names_are_no_formulas():
    ax = plot_confusion_matrix(np.eye(2, dtype=int), ["cost $5_x$", "a$b^{$"])
    ax.figure.canvas.draw()


def test_an_empty_matrix_of_counts_is_drawn():
    plot_confusion_matrix(np.zeros((3, 3), int), list("abc")).figure.canvas.draw()
    plot_confusion_matrix(np.zeros((3, 3), int), list("abc"), normalize=True).figure.canvas.draw()


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"cm must be \[3, 3\] for 3 classes, or \[3, 2, 2\] for 3 labels, got \[2, 2\]"
    ):
        plot_confusion_matrix(np.eye(2), ["a", "b", "c"])


def test_report_has_every_class_and_no_zero_for_what_is_undefined():
    report = classification_report(torch.tensor([0, 0, 1]), np.array([0, 1, 0]), ["nan", "b", "no rows"])
    lines = [line.split() for line in report.splitlines() if line]
    assert lines[1] == ["nan", "0.500", "0.500", "0.500", "2"]
    assert lines[2] == ["b", "0.000", "0.000", "0.000", "1"]
    assert lines[3] == ["no", "rows", "n/a", "n/a", "n/a", "0"]
    assert lines[4][0] == "accuracy"


def test_report_of_several_labels(rng):
    y, preds = (rng.uniform(size=(2, 30, 3)) < 0.4).astype(np.float32)
    expected = reference.classification_report(y, preds, target_names=list("abc"), digits=3, zero_division=np.nan)
    assert classification_report(y, preds, list("abc")) == expected
    with pytest.raises(ValueError, match="zeros and ones"):
        classification_report(y, rng.uniform(size=(30, 3)), list("abc"))
    with pytest.raises(ValueError, match=r"must be \[N, 2\], got \[30, 3\]"):
        classification_report(y, preds, ["a", "b"])


def test_report_refuses_numbers_of_no_class():
    with pytest.raises(ValueError, match="classification_report: y must be 0 to 1"):
        classification_report([0, 2], [0, 1], ["a", "b"])


def test_a_notebook_shows_the_report_as_print_does():
    report = classification_report([0, 1, 1], [0, 1, 0], ["cat", "dog"])
    assert isinstance(report, str)
    assert repr(report) == str(report)
    assert repr(report).splitlines()[0].split() == ["precision", "recall", "f1-score", "support"]


@pytest.mark.parametrize(("n", "c"), [(0, 3), (1, 2), (60, 5), (300, 70)])
def test_matrices_of_several_labels_match_scikit_learn(rng, n, c):
    y, preds = (rng.integers(0, 2, (n, c)) for _ in range(2))
    names = [f"label {i}" for i in range(c)]
    expected = reference.multilabel_confusion_matrix(y, preds) if n else np.zeros((c, 2, 2))
    for a, b in ((y, preds), (torch.tensor(y).float(), preds > 0)):
        found = confusion_matrix(a, b, names)
        assert found.dtype == np.int64
        assert found.shape == (c, 2, 2)
        assert (found == expected).all()
    assert confusion_matrix(y, preds).shape == (c, 2, 2)


def test_several_labels_that_are_no_zeros_and_ones_are_refused(rng):
    y = rng.integers(0, 2, (6, 3))
    with pytest.raises(ValueError, match=r"Compare probabilities first: probs > 0\.5"):
        confusion_matrix(y, rng.uniform(0.1, 0.9, (6, 3)))
    with pytest.raises(ValueError, match=r"must be \[N, 3\], got \[6, 3\] and \[6\]\..* probs > 0\.5, not by argmax"):
        confusion_matrix(y, y.argmax(1))
    with pytest.raises(ValueError, match=r"must be \[N, 2\]"):
        confusion_matrix(y, y, ["a", "b"])


@pytest.mark.parametrize("c", [2, 5, 23, 60])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_plot_of_several_labels_has_a_row_per_label(rng, c, normalize):
    cm = rng.integers(0, 50, (c, 2, 2))
    cm[0, 1] = 0
    ax = plot_confusion_matrix(cm, [f"label ${i}" for i in range(c)], normalize=normalize)
    ax.figure.canvas.draw()
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    (tn, fp), (fn, tp) = np.moveaxis(cm, 0, -1)
    with np.errstate(invalid="ignore"):
        positive, negative = (tp + fn, fp + tn) if normalize else (1, 1)
        expected = np.stack([tp / positive, fn / positive, fp / negative, tn / negative], 1)
    np.testing.assert_allclose(drawn, expected)
    assert [tick.get_text() for tick in ax.get_yticklabels()][1] == "label $1"
    assert [tick.get_text() for tick in ax.get_xticklabels()[:2]] == ["true\npositive", "false\nnegative"]
