"""Which classes are taken for which: the confusion matrix, its plot, and the report per class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.data.sources.names import printable, shorten
from fastclf.interop import numpy_of
from fastclf.report import encodable, log
from fastclf.training.metrics import without_prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm

# Above so many classes, not all names fit; above the second, numbers in the cells are too small to read; above the
# third, zeros only distract.
_MAX_NAMES = 200
_MAX_NUMBERS = 40
_MAX_ZEROS = 12
_LABEL_COLUMNS = ["true\npositive", "false\nnegative", "false\npositive", "true\nnegative"]


class Report(str):
    """A table as text, which a notebook shows as `print` does."""

    def __repr__(self) -> str:
        return str(self)


def confusion_matrix(
    y: ArrayLike | Tensor, preds: ArrayLike | Tensor, classes: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Count how often each class was taken for each; with several labels, how often each was predicted and right.

    Args:
        y: ``[N]`` class numbers, the right ones; or ``[N, C]`` zeros and ones where rows have several labels. Rows of
            -1 (NaN), as `predict_with_targs` and `TTA` give them for images that have no prediction, are left out,
            and their number is logged.
        preds: the same, predicted: ``probs.argmax(1)``, or ``probs > 0.5`` where rows have several labels.
        classes: names of all classes; their number is the matrix's size even where a class has no rows. Without them
            it is the largest class number plus one.

    Returns:
        ``[c, c] int64``: entry (i, j) counts rows of class i that were predicted as j. With several labels
        ``[c, 2, 2] int64``, a matrix per label: entry (k, i, j) counts rows that have label k (i = 1) or lack it (0),
        and for which it was predicted (j = 1) or not (0); as scikit-learn's ``multilabel_confusion_matrix``.

    Raises:
        ValueError: shapes differ, or something is no number of a class, or neither zero nor one.
    """
    true, predicted = _with_predictions("confusion_matrix", numpy_of(y), numpy_of(preds))
    if true.ndim == 2:
        return _label_matrices(true, predicted, None if classes is None else len(classes))
    true, predicted = _class_numbers("confusion_matrix", true, predicted, None if classes is None else len(classes))
    c = max(true.max(initial=-1), predicted.max(initial=-1)) + 1 if classes is None else len(classes)
    return np.bincount(true * c + predicted, minlength=c * c).astype(np.int64).reshape(c, c)


def plot_confusion_matrix(
    cm: ArrayLike,
    classes: Sequence[str],
    normalize: bool = False,
    title: str = "Confusion matrix",
    cmap: str = "Blues",
    ax: Axes | None = None,
) -> Axes:
    """Draw a confusion matrix: a row per class, a column per prediction; several labels: a row per label.

    Args:
        cm: ``[c, c]`` counts, or ``[c, 2, 2]`` for several labels, see `confusion_matrix`; or shares that were made of
            them, which two decimals show.
        classes: names of the c classes.
        normalize: show shares of each class's rows in place of counts (several labels: of the rows that have the label,
            and of those that lack it); a class without rows stays empty.
        title: above the matrix.
        cmap: name of a matplotlib colour map.
        ax: where to draw; by default a new figure whose size follows the number of classes, up to 200. Of more, every
            second, third and so on is named.

    Returns:
        The axes; ``.figure`` is the figure.

    Raises:
        ValueError: the matrix is neither ``[c, c]`` nor ``[c, 2, 2]``.
    """
    values = numpy_of(cm)
    c = len(classes)
    if values.shape not in ((c, c), (c, 2, 2)) or c == 0:
        raise ValueError(
            f"plot_confusion_matrix: cm must be [{c}, {c}] for {c} classes, or [{c}, 2, 2] for {c} labels, got "
            f"{list(values.shape)}. Pass classes to confusion_matrix too."
        )
    if normalize:
        totals = values.sum(-1, keepdims=True)
        values = np.divide(values, totals, out=np.full(values.shape, np.nan), where=totals > 0)
    names = [shorten(str(name)) for name in classes]
    several = values.ndim == 3
    if several:  # those who have the label first
        values = values[:, ::-1, ::-1].reshape(c, 4)
    ax = _sized_axes(values.shape[1], c) if ax is None else ax
    _paint(ax, values, normalize or bool((values[~np.isnan(values)] % 1 > 0).any()), cmap)
    _name_axes(ax, _LABEL_COLUMNS if several else names, names)
    ax.set(title=title and printable(title), **({} if several else {"xlabel": "predicted", "ylabel": "true"}))
    return ax


def classification_report(y: ArrayLike | Tensor, preds: ArrayLike | Tensor, classes: Sequence[str]) -> Report:
    """Tabulate precision, recall, F1 and number of rows per class; what is undefined reads n/a.

    Averages leave undefined classes out.

    Args:
        y: ``[N]`` class numbers, or ``[N, C]`` zeros and ones where rows have several labels. Rows without a
            prediction, see `confusion_matrix` (NaN where rows have several labels), are left out.
        preds: the same, predicted.
        classes: names of all classes.

    Returns:
        The report, which prints as a table.

    Raises:
        ValueError: shapes differ, or something is no number of a class.
    """
    from sklearn import metrics

    names = [printable(str(name)) for name in classes]
    true, predicted = _with_predictions("classification_report", numpy_of(y), numpy_of(preds))
    if true.ndim == 2:
        _require_indicators("classification_report", true, predicted, len(names))
    else:
        true, predicted = _class_numbers("classification_report", true, predicted, len(names))
    report: str = metrics.classification_report(
        true, predicted, labels=range(len(names)), target_names=names, digits=3, zero_division=np.nan
    )
    # Only right of the names: a class may be called nan.
    width = max(len(name) for name in [*names, "weighted avg"])
    lines = (line[:width] + re.sub(r"\bnan\b", "n/a", line[width:]) for line in report.split("\n"))
    return Report(encodable("\n".join(lines)))


def _label_matrices(true: NDArray[Any], predicted: NDArray[Any], c: int | None) -> NDArray[np.int64]:
    _require_indicators("confusion_matrix", true, predicted, true.shape[1] if c is None else c)
    true, predicted = true > 0, predicted > 0
    cells = [(t & p).sum(0) for t in (~true, true) for p in (~predicted, predicted)]
    return np.stack(cells, 1).astype(np.int64).reshape(-1, 2, 2)


def _with_predictions(name: str, true: NDArray[Any], predicted: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows that have a prediction; log how many have none."""
    if true.shape[:1] != predicted.shape[:1] or true.dtype.kind not in "biuf" or predicted.dtype.kind not in "biuf":
        return true, predicted  # an error, which the caller's checks raise
    missing = without_prediction(true) | without_prediction(predicted)
    if not missing.any():
        return true, predicted
    log(f"{name}: {missing.sum():,} of {len(true):,} rows have no prediction and are left out")
    return true[~missing], predicted[~missing]


def _class_numbers(
    name: str, y: ArrayLike | Tensor, preds: ArrayLike | Tensor, c: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    true, predicted = numpy_of(y), numpy_of(preds)
    for what, values in (("y", true), ("preds", predicted)):
        if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or not values.size):
            hint = " Take their argmax(1)." if what == "preds" and values.ndim == 2 else ""
            raise ValueError(
                f"{name}: {what} must be [N] class numbers, got {list(values.shape)} {values.dtype}.{hint}"
            )
        if values.size and (values.min() < 0 or (c is not None and values.max() >= c)):
            limit = "0 or more" if c is None else f"0 to {c - 1}, one per class"
            raise ValueError(f"{name}: {what} must be {limit}, got {values.min()} to {values.max()}")
    if true.shape != predicted.shape:
        raise ValueError(f"{name}: preds must be as many as y, {len(true)}, got {len(predicted)}")
    return true.astype(np.int64), predicted.astype(np.int64)


def _require_indicators(name: str, true: NDArray[Any], predicted: NDArray[Any], c: int) -> None:
    if true.shape != predicted.shape or true.shape[1] != c:
        hint = " Several labels are compared as preds = probs > 0.5, not by argmax." if predicted.ndim == 1 else ""
        raise ValueError(
            f"{name}: y and preds must be [N, {c}], got {list(true.shape)} and {list(predicted.shape)}.{hint}"
        )
    if not (np.isin(true, (0, 1)).all() and np.isin(predicted, (0, 1)).all()):
        raise ValueError(f"{name}: several labels must be zeros and ones. Compare probabilities first: probs > 0.5.")


def _sized_axes(columns: int, rows: int) -> Axes:
    import matplotlib.pyplot as plt

    height = 3 + _side(rows)
    _, ax = plt.subplots(figsize=(height if columns == rows else 3 + 0.9 * columns, height), layout="constrained")
    return ax


def _side(c: int) -> float:
    """Return the length of c cells in inches: bounded, as pixels take memory with its square."""
    c = min(c, _MAX_NAMES)
    return 0.55 * c if c <= _MAX_ZEROS else 3.6 + 0.28 * c if c <= _MAX_NUMBERS else 10 + 0.12 * c


def _font_size(c: int) -> float:
    return 10 if c <= _MAX_ZEROS else 8 if c <= _MAX_NUMBERS else 7


def _paint(ax: Axes, values: NDArray[Any], shares: bool, cmap: str) -> None:
    from matplotlib.colors import PowerNorm

    c, columns = values.shape
    top = max(float(np.nanmax(values, initial=0)), 1.0)
    # Where colours stand alone, single confusions must show beside a class's many right answers, and so must a rare
    # label's few rows beside the many without it: so colours follow the root.
    norm = PowerNorm(1 if c <= _MAX_NUMBERS and c == columns else 0.5, 0, top)
    image = ax.imshow(values, cmap=cmap, norm=norm, aspect="equal" if c == columns else "auto")
    if c <= _MAX_NAMES:  # lines between smaller cells would hide them
        ax.set_xticks(np.arange(0.5, columns - 1), minor=True)
        ax.set_yticks(np.arange(0.5, c - 1), minor=True)
        ax.grid(which="minor", color="0.9", linewidth=0.5)
    if c <= _MAX_NUMBERS:
        _write_numbers(ax, values, shares, norm)
    else:
        ax.figure.colorbar(image, ax=ax, aspect=60, pad=0.01)


def _write_numbers(ax: Axes, values: NDArray[Any], shares: bool, norm: PowerNorm) -> None:
    c = len(values)
    size = _font_size(c) - (1 if shares and c > _MAX_ZEROS else 0)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isnan(value) or (value == 0 and c > _MAX_ZEROS):
            continue
        text = f"{value:.2f}" if shares else f"{value:.0f}"
        colour = "white" if norm(value) > 0.5 else "0.6" if value == 0 else "black"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _name_axes(ax: Axes, columns: list[str], rows: list[str]) -> None:
    size = _font_size(len(rows))
    each_row, each_column = (range(0, len(names), -(-len(names) // _MAX_NAMES)) for names in (rows, columns))
    rows, columns = [rows[i] for i in each_row], [columns[i] for i in each_column]
    # Signs such as $ in a name are no formula.
    ax.set_yticks(each_row, rows, parse_math=False, fontsize=size)
    # Names stand upright unless they fit beside each other.
    space = ax.bbox.width * 72 / ax.figure.dpi / len(columns)
    upright = max(len(line) for name in columns for line in name.split("\n")) * size * 0.6 > 0.8 * space
    ax.set_xticks(each_column, columns, rotation=90 if upright else 0, parse_math=False, fontsize=size)
    ax.tick_params(which="both", length=0)
