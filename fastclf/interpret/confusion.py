"""Which classes are taken for which: the confusion matrix, its plot, and the report per class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.data.bad_pictures import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Above so many classes, numbers in the cells are too small to read; above the second, zeros only distract.
_MAX_NUMBERS = 40
_MAX_ZEROS = 12
_MAX_NAME = 28


class Report(str):
    """A table as text, which a notebook shows as `print` does."""

    def __repr__(self) -> str:
        return str(self)


def confusion_matrix(
    y: ArrayLike | Tensor, preds: ArrayLike | Tensor, classes: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Count how often each class was taken for each.

    Args:
        y: ``[N]`` class numbers, the right ones.
        preds: ``[N]`` class numbers, the predicted ones.
        classes: names of all classes; their number is the matrix's size even where a class has no rows. Without them
            it is the largest class number plus one.

    Returns:
        ``[c, c] int64``: entry (i, j) counts rows of class i that were predicted as j.

    Raises:
        ValueError: shapes differ, or something is no number of a class.
    """
    true, predicted = _class_numbers("confusion_matrix", y, preds, None if classes is None else len(classes))
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
    """Draw a confusion matrix: a row per class, a column per prediction.

    Args:
        cm: ``[c, c]`` counts, see `confusion_matrix`.
        classes: names of the c classes.
        normalize: show shares of each row in place of counts; a class without rows stays empty.
        title: above the matrix.
        cmap: name of a matplotlib colour map.
        ax: where to draw; by default a new figure whose size follows the number of classes.

    Returns:
        The axes; ``.figure`` is the figure.

    Raises:
        ValueError: the matrix is not ``[c, c]``.
    """
    values = np.asarray(cm)
    c = len(classes)
    if values.shape != (c, c) or c == 0:
        raise ValueError(
            f"plot_confusion_matrix: cm must be [{c}, {c}] for {c} classes, got {list(values.shape)}. "
            "Pass classes to confusion_matrix too."
        )
    if normalize:
        totals = values.sum(1, keepdims=True)
        values = np.divide(values, totals, out=np.full((c, c), np.nan), where=totals > 0)
    ax = _square_axes(c) if ax is None else ax
    _paint(ax, values, normalize, cmap)
    _name_axes(ax, [_shorten(printable(str(name))) for name in classes])
    ax.set(xlabel="predicted", ylabel="true", title=title)
    return ax


def classification_report(y: ArrayLike | Tensor, preds: ArrayLike | Tensor, classes: Sequence[str]) -> Report:
    """Tabulate precision, recall, F1 and number of rows per class; what is undefined reads n/a.

    Averages leave undefined classes out.

    Args:
        y: ``[N]`` class numbers, or ``[N, C]`` zeros and ones where rows have several labels.
        preds: the same, predicted.
        classes: names of all classes.

    Raises:
        ValueError: shapes differ, or something is no number of a class.
    """
    from sklearn import metrics

    names = [printable(str(name)) for name in classes]
    true, predicted = _numpy(y), _numpy(preds)
    if true.ndim == 2:
        _require_indicators(true, predicted, len(names))
    else:
        true, predicted = _class_numbers("classification_report", y, preds, len(names))
    report: str = metrics.classification_report(
        true, predicted, labels=range(len(names)), target_names=names, digits=3, zero_division=np.nan
    )
    # Only right of the names: a class may be called nan.
    width = max(len(name) for name in [*names, "weighted avg"])
    return Report("\n".join(line[:width] + re.sub(r"\bnan\b", "n/a", line[width:]) for line in report.split("\n")))


def _numpy(values: ArrayLike | Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _class_numbers(
    name: str, y: ArrayLike | Tensor, preds: ArrayLike | Tensor, c: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    true, predicted = _numpy(y), _numpy(preds)
    for what, values in (("y", true), ("preds", predicted)):
        if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or not values.size):
            hint = " Take their argmax(1)." if values.ndim == 2 else ""
            raise ValueError(
                f"{name}: {what} must be [N] class numbers, got {list(values.shape)} {values.dtype}.{hint}"
            )
        if values.size and (values.min() < 0 or (c is not None and values.max() >= c)):
            limit = "0 or more" if c is None else f"0 to {c - 1}, one per class"
            raise ValueError(f"{name}: {what} must be {limit}, got {values.min()} to {values.max()}")
    if true.shape != predicted.shape:
        raise ValueError(f"{name}: preds must be as many as y, {len(true)}, got {len(predicted)}")
    return true.astype(np.int64), predicted.astype(np.int64)


def _require_indicators(true: NDArray[Any], predicted: NDArray[Any], c: int) -> None:
    if true.shape != predicted.shape or true.shape[1] != c:
        raise ValueError(
            f"classification_report: y and preds must be [N, {c}], got {list(true.shape)} and {list(predicted.shape)}"
        )
    if not (np.isin(true, (0, 1)).all() and np.isin(predicted, (0, 1)).all()):
        raise ValueError("classification_report: several labels must be zeros and ones. Compare probabilities first.")


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _square_axes(c: int) -> Axes:
    import matplotlib.pyplot as plt

    side = 3 + (0.55 * c if c <= _MAX_ZEROS else 3.6 + 0.28 * c if c <= _MAX_NUMBERS else 10 + 0.12 * c)
    _, ax = plt.subplots(figsize=(side, side), layout="constrained")
    return ax


def _font_size(c: int) -> float:
    return 10 if c <= _MAX_ZEROS else 8 if c <= _MAX_NUMBERS else 7


def _paint(ax: Axes, values: NDArray[Any], normalize: bool, cmap: str) -> None:
    from matplotlib.colors import PowerNorm

    c = len(values)
    top = 1.0 if normalize else max(float(values.max()), 1.0)
    # Where colours stand alone, single confusions must show beside a class's many right answers: their root is drawn.
    image = ax.imshow(values, cmap=cmap, norm=PowerNorm(1 if c <= _MAX_NUMBERS else 0.5, 0, top))
    ax.set_xticks(np.arange(0.5, c - 1), minor=True)
    ax.set_yticks(np.arange(0.5, c - 1), minor=True)
    ax.grid(which="minor", color="0.9", linewidth=0.5)
    if c <= _MAX_NUMBERS:
        _write_numbers(ax, values, normalize, top)
    else:
        ax.figure.colorbar(image, ax=ax, aspect=60, pad=0.01)


def _write_numbers(ax: Axes, values: NDArray[Any], normalize: bool, top: float) -> None:
    c = len(values)
    size = _font_size(c) - (1 if normalize and c > _MAX_ZEROS else 0)
    for row, column in np.ndindex(c, c):
        value = values[row, column]
        if np.isnan(value) or (value == 0 and c > _MAX_ZEROS):
            continue
        text = f"{value:.2f}" if normalize else f"{int(value)}"
        colour = "white" if value > top / 2 else "0.6" if value == 0 else "black"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _name_axes(ax: Axes, names: list[str]) -> None:
    size = _font_size(len(names))
    # Signs such as $ in a name are no formula.
    ax.set_yticks(range(len(names)), names, parse_math=False, fontsize=size)
    # Names stand upright unless they fit beside each other.
    room = ax.bbox.width * 72 / ax.figure.dpi / len(names)
    upright = max(len(name) for name in names) * size * 0.6 > 0.8 * room
    ax.set_xticks(range(len(names)), names, rotation=90 if upright else 0, parse_math=False, fontsize=size)
    ax.tick_params(which="both", length=0)
