"""The images that a classifier is most sure of, most wrong about, and least sure of."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.data.sources.names import printable
from fastclf.interpret.images import plots
from fastclf.report import counted
from fastclf.training.metrics import NO_PREDICTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastclf.data.dataset import Dataset

Indices = NDArray[np.int64]
_TITLE_WIDTH = 32  # characters above an image


class ImageModelResults:
    """Predictions beside the images that they were made for.

    A class is given by its number or its name. Rows without a prediction (NaN) are left out everywhere.

    Where images have several labels, each label is a question of its own: an image is wrong where it has the label
    and was not predicted to (a probability of at most .5), or lacks it and was.

    Args:
        ds: the images with their labels, such as ``data.val_ds``.
        log_preds: ``[N, C]`` log-probabilities (probabilities when several labels) in the same order, such as
            ``learn.predict()``.

    Attributes:
        ds: as above.
        probs: ``[N, C] float64`` probabilities.
        preds: ``[N] int64`` predicted classes; with several labels ``[N, C] int64`` zeros and ones. -1 in rows without
            a prediction.

    Raises:
        ValueError: the predictions do not belong to these images, or are no (log-)probabilities.
    """

    def __init__(self, ds: Dataset, log_preds: ArrayLike | Tensor) -> None:
        values = log_preds.detach().cpu().float().numpy() if isinstance(log_preds, Tensor) else np.asarray(log_preds)
        if ds.is_reg:
            raise ValueError("ImageModelResults: ds must have classes, got numbers to be predicted")
        if not ds.labels.known:
            raise ValueError("ImageModelResults: ds has no labels. Make the data with test_with_labels=True.")
        if values.shape != (len(ds), ds.c):
            average = "preds.mean(0)" if ds.is_multi else "np.log(np.exp(log_preds).mean(0))"
            hint = f" Average the views first: {average}." if values.ndim == 3 else ""
            raise ValueError(
                f"ImageModelResults: log_preds must be [{len(ds)}, {ds.c}], one row per image and one column per "
                f"class, got {list(values.shape)}.{hint}"
            )
        self.ds = ds
        values = values.astype(np.float64)
        self.probs: NDArray[np.float64] = values if ds.is_multi else np.exp(values)
        self._known = ~np.isnan(self.probs).any(1)
        known = self.probs[self._known]
        if ds.is_multi and not ((known >= 0) & (known <= 1)).all():
            raise ValueError("ImageModelResults: several labels need probabilities, got values outside of 0..1")
        if not ds.is_multi and not np.allclose(known.sum(1), 1, atol=0.02):
            raise ValueError(
                "ImageModelResults: log_preds must be log-probabilities, whose exp adds up to 1 in each row. Of "
                "probabilities, take np.log; of the views of TTA, np.log(np.exp(log_preds).mean(0))."
            )
        preds = self.probs > 0.5 if ds.is_multi else self.probs.argmax(1)
        self.preds: Indices = preds.astype(np.int64)
        self.preds[~self._known] = NO_PREDICTION

    def __repr__(self) -> str:
        """Return how many images and classes, and how many images were predicted right."""
        right = (self.preds == self.ds.y).reshape(len(self.preds), -1).all(1).sum()
        return f"ImageModelResults: {counted(len(self.preds), 'image')}, {self.ds.c} classes; {right:,} predicted right"

    def most_correct(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class that were predicted right, the surest first.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        return self._rows(self._has(number) & self._predicted(number), -self.probs[:, number], n)

    def most_incorrect(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class that were taken for another, those with the least of its probability first.

        With several labels also those that lack it and were predicted to have it; the surest mistakes first.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        has = self._has(number)
        wrong = has != self._predicted(number)
        return self._rows(wrong if self.ds.is_multi else wrong & has, -np.abs(has - self.probs[:, number]), n)

    def most_uncertain(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class whose probability of it is nearest to 1/C, nearest first.

        With several labels, of all rows those nearest to .5.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        undecided = 0.5 if self.ds.is_multi else 1 / self.probs.shape[1]
        wanted = np.ones(len(self.preds), bool) if self.ds.is_multi else self._has(number)
        return self._rows(wanted, np.abs(self.probs[:, number] - undecided), n)

    def plot_most_correct(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_correct` finds."""
        return self._plot("Most correct", cls, self.most_correct(cls, n))

    def plot_most_incorrect(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_incorrect` finds."""
        return self._plot("Most incorrect", cls, self.most_incorrect(cls, n))

    def plot_most_uncertain(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_uncertain` finds."""
        return self._plot("Most uncertain", cls, self.most_uncertain(cls, n))

    def _number(self, cls: int | str) -> int:
        classes = self.ds.classes
        if isinstance(cls, str) and cls in classes:
            return classes.index(cls)
        if not isinstance(cls, str) and cls in range(len(classes)):
            return int(cls)
        raise ValueError(f"cls must be one of {', '.join(classes)}, or 0 to {len(classes) - 1}, got {cls!r}")

    def _has(self, number: int) -> NDArray[np.bool_]:
        """Return which rows have a label."""
        return np.asarray(self.ds.y[:, number] > 0 if self.ds.is_multi else self.ds.y == number)

    def _predicted(self, number: int) -> NDArray[np.bool_]:
        """Return which rows were predicted to have it."""
        return np.asarray(self.preds[:, number] > 0 if self.ds.is_multi else self.preds == number)

    def _rows(self, wanted: NDArray[np.bool_], order: NDArray[np.float64], n: int) -> Indices:
        rows = np.flatnonzero(wanted & self._known)
        return rows[np.argsort(order[rows], kind="stable")][:n]

    def _plot(self, what: str, cls: int | str, rows: Indices) -> Figure:
        number = self._number(cls)
        title = f"{what}: {printable(self.ds.classes[number])}" + ("" if len(rows) else " (none)")
        return plots(
            [self._open(row) for row in rows], titles=[self._title(row, number) for row in rows], maintitle=title
        )

    def _title(self, row: int, number: int) -> str:
        """The true label or labels, what else was predicted, their probabilities, and the file."""
        file = _shortened(self.ds.source.name(row))
        if self.ds.is_multi:
            true = [printable(self.ds.classes[k]) for k in np.flatnonzero(self.ds.y[row])]
            lines = textwrap.wrap(f"true: {', '.join(true) or 'none'}", _TITLE_WIDTH)
            return "\n".join(
                [*lines, f"probability of {printable(self.ds.classes[number])}: {self.probs[row, number]:.3f}", file]
            )
        guess = self.preds[row]
        lines = [f"true: {self._shown(row, number)}"]
        if guess != number:
            lines.append(f"predicted: {self._shown(row, guess)}")
        return "\n".join([*lines, file])

    def _shown(self, row: int, number: int) -> str:
        return f"{printable(self.ds.classes[number])} {self.probs[row, number]:.3f}"

    def _open(self, row: int) -> NDArray[Any]:
        from fastclf.data.image import decoded

        if self.ds.source.holds_rows:
            raise ValueError("ImageModelResults: ds must hold images to draw them, got rows of activations")
        return decoded(self.ds.source, row)


def _shortened(fname: str) -> str:
    """Return the name of a file without its folders, as wide as an image at most."""
    name = printable(fname.rpartition("/")[2])
    return name if len(name) <= _TITLE_WIDTH else f"...{name[3 - _TITLE_WIDTH :]}"
