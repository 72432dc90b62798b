"""The pictures that a classifier is most sure of, most wrong about, and least sure of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.data.bad_pictures import printable
from fastclf.interpret.pictures import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastclf.data.samples import Dataset

Indices = NDArray[np.int64]


_MAX_NAME = 30


class ImageModelResults:
    """Predictions beside the pictures they were made for.

    A class is given by its number or its name. Rows without a prediction (NaN) are left out everywhere.

    Args:
        ds: the pictures with their labels, such as ``data.val_ds``.
        log_preds: ``[N, C]`` log-probabilities in the same order, such as ``learn.predict()``.

    Attributes:
        ds: as above.
        probs: ``[N, C] float64`` probabilities.
        preds: ``[N] int64`` predicted classes.

    Raises:
        ValueError: the predictions do not belong to these pictures, or are no log-probabilities of one label.
    """

    def __init__(self, ds: Dataset, log_preds: ArrayLike | Tensor) -> None:
        values = log_preds.detach().cpu().float().numpy() if isinstance(log_preds, Tensor) else np.asarray(log_preds)
        if ds.is_multi or ds.is_reg:
            raise ValueError("ImageModelResults: ds must have one label per picture, got several, or numbers")
        if not ds.labels.known:
            raise ValueError("ImageModelResults: ds has no labels. Make the data with test_with_labels=True.")
        if values.shape != (len(ds), ds.c):
            hint = " Average the views first: np.log(np.exp(log_preds).mean(0))." if values.ndim == 3 else ""
            raise ValueError(
                f"ImageModelResults: log_preds must be [{len(ds)}, {ds.c}], one row per picture and one column per "
                f"class, got {list(values.shape)}.{hint}"
            )
        self.ds = ds
        self.probs: NDArray[np.float64] = np.exp(values.astype(np.float64))
        self._known = ~np.isnan(self.probs).any(1)
        if not np.allclose(self.probs[self._known].sum(1), 1, atol=0.02):
            raise ValueError("ImageModelResults: log_preds must be log-probabilities; of probabilities, take np.log")
        self.preds: Indices = self.probs.argmax(1).astype(np.int64)

    def most_correct(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class that were predicted right, the surest first.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        return self._rows(number, self.preds == number, -self.probs[:, number], n)

    def most_incorrect(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class that were taken for another, those with the least of its probability first.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        return self._rows(number, self.preds != number, self.probs[:, number], n)

    def most_uncertain(self, cls: int | str, n: int = 4) -> Indices:
        """Find the rows of a class whose probability of it is nearest to 1/C, nearest first.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = self._number(cls)
        distance = np.abs(self.probs[:, number] - 1 / self.probs.shape[1])
        return self._rows(number, np.ones(len(self.preds), bool), distance, n)

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
        if not isinstance(cls, str) and 0 <= cls < len(classes):
            return int(cls)
        raise ValueError(f"cls must be one of {', '.join(classes)}, or 0 to {len(classes) - 1}, got {cls!r}")

    def _rows(self, number: int, wanted: NDArray[np.bool_], order: NDArray[np.float64], n: int) -> Indices:
        rows = np.flatnonzero((self.ds.y == number) & wanted & self._known)
        return rows[np.argsort(order[rows], kind="stable")][:n]

    def _plot(self, what: str, cls: int | str, rows: Indices) -> Figure:
        number = self._number(cls)
        title = f"{what}: {printable(self.ds.classes[number])}" + ("" if len(rows) else " (none)")
        return plots(
            [self._open(row) for row in rows], titles=[self._title(row, number) for row in rows], maintitle=title
        )

    def _title(self, row: int, number: int) -> str:
        """The label, the prediction where it is another, their probabilities, and the file."""
        guess = self.preds[row]
        lines = [f"true: {self._shown(row, number)}"]
        if guess != number:
            lines.append(f"predicted: {self._shown(row, guess)}")
        return "\n".join([*lines, _shortened(self.ds.fnames[row]) if self.ds.fnames else f"row {row}"])

    def _shown(self, row: int, number: int) -> str:
        return f"{printable(self.ds.classes[number])} {self.probs[row, number]:.3f}"

    def _open(self, row: int) -> NDArray[Any]:
        if self.ds.images is not None:
            picture: NDArray[Any] = self.ds.images[row]
            return picture
        if not len(self.ds.fnames):
            raise ValueError("ImageModelResults: ds must hold pictures to draw them, got rows of activations")
        from fastclf.data.image import open_image

        return open_image(self.ds.path / self.ds.fnames[row])


def _shortened(fname: str) -> str:
    """The name of a file without its folders, as wide as an image at most."""
    name = printable(fname.rpartition("/")[2])
    return name if len(name) <= _MAX_NAME else f"...{name[3 - _MAX_NAME :]}"
