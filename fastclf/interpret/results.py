"""The images that a classifier is most sure of, most wrong about, and least sure of."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.argument_checks import check_count
from fastclf.arrays import RowNumbers
from fastclf.data.sources.labels import class_number
from fastclf.data.sources.names import printable
from fastclf.interop import numpy_of
from fastclf.interpret.images import plots
from fastclf.report import counted
from fastclf.training.metrics import NO_PREDICTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastclf.data.dataset import Dataset

_TITLE_WIDTH = 32  # characters above an image
_COLUMNS = 3  # of images with the top losses
_LEAST_LOG = -100.0  # of a probability of 0, as in torch.nn.functional.binary_cross_entropy


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
        values = numpy_of(log_preds)
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
        self.preds: RowNumbers = preds.astype(np.int64)
        self.preds[~self._known] = NO_PREDICTION
        self._losses = self._loss(values)

    def __repr__(self) -> str:
        """Return how many images and classes, and how many images were predicted right."""
        right = (self.preds == self.ds.y).reshape(len(self.preds), -1).all(1).sum()
        return f"ImageModelResults: {counted(len(self.preds), 'image')}, {self.ds.c} classes; {right:,} predicted right"

    def most_correct(self, cls: int | str, n: int = 4) -> RowNumbers:
        """Find the rows of a class that were predicted right, the surest first.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = class_number(cls, self.ds.classes, "cls")
        return self._rows(self._has(number) & self._predicted(number), -self.probs[:, number], n)

    def most_incorrect(self, cls: int | str, n: int = 4) -> RowNumbers:
        """Find the rows of a class that were taken for another, those with the least of its probability first.

        With several labels also those that lack it and were predicted to have it; the surest mistakes first.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = class_number(cls, self.ds.classes, "cls")
        has = self._has(number)
        wrong = has != self._predicted(number)
        return self._rows(wrong if self.ds.is_multi else wrong & has, -np.abs(has - self.probs[:, number]), n)

    def most_uncertain(self, cls: int | str, n: int = 4) -> RowNumbers:
        """Find the rows of a class whose probability of it is nearest to 1/C, nearest first.

        With several labels, of all rows those nearest to .5.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        number = class_number(cls, self.ds.classes, "cls")
        undecided = 0.5 if self.ds.is_multi else 1 / self.probs.shape[1]
        wanted = np.ones(len(self.preds), bool) if self.ds.is_multi else self._has(number)
        return self._rows(wanted, np.abs(self.probs[:, number] - undecided), n)

    def top_losses(self, n: int = 9) -> RowNumbers:
        """Find the rows of all classes with the highest loss, the highest first.

        The loss of an image is minus the logarithm of the probability of its class; with several labels the mean over
        labels of minus the logarithm of the probability of what is true, each at most 100.

        Args:
            n: how many at most.

        Returns:
            ``[n or fewer] int64`` rows of the dataset.
        """
        return self._rows(np.ones(len(self._losses), bool), -self._losses, n)

    def plot_most_correct(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_correct` finds.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            The figure.
        """
        return self._plot("Most correct", cls, self.most_correct(cls, n))

    def plot_most_incorrect(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_incorrect` finds.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            The figure.
        """
        return self._plot("Most incorrect", cls, self.most_incorrect(cls, n))

    def plot_most_uncertain(self, cls: int | str, n: int = 4) -> Figure:
        """Draw what `most_uncertain` finds.

        Args:
            cls: the number or the name of a class.
            n: how many at most.

        Returns:
            The figure.
        """
        return self._plot("Most uncertain", cls, self.most_uncertain(cls, n))

    def plot_top_losses(self, n: int = 9) -> Figure:
        """Draw what `top_losses` finds, with the true and the predicted class, their probabilities, and the loss.

        With several labels, with all true and all predicted ones, and the label that adds most to the loss.

        Args:
            n: how many at most.

        Returns:
            The figure.
        """
        rows = self.top_losses(n)
        return plots(
            [self._open(row) for row in rows],
            rows=max(math.ceil(len(rows) / _COLUMNS), 1),
            titles=[self._loss_title(row) for row in rows],
            maintitle="Top losses, with probabilities" + ("" if len(rows) else " (none)"),
        )

    def _has(self, number: int) -> NDArray[np.bool_]:
        """Return which rows have a label."""
        return np.asarray(self.ds.y[:, number] > 0 if self.ds.is_multi else self.ds.y == number)

    def _predicted(self, number: int) -> NDArray[np.bool_]:
        """Return which rows were predicted to have it."""
        return np.asarray(self.preds[:, number] > 0 if self.ds.is_multi else self.preds == number)

    def _loss(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the loss of each row, NaN where there is no prediction."""
        if not self.ds.is_multi:
            return 0.0 - values[np.arange(len(values)), np.where(self._known, self.ds.y, 0)]
        with np.errstate(divide="ignore"):
            logs = np.log(np.where(self.ds.y > 0, values, 1 - values))
        losses: NDArray[np.float64] = -np.maximum(logs, _LEAST_LOG).mean(1)
        return losses

    def _rows(self, wanted: NDArray[np.bool_], order: NDArray[np.float64], n: int) -> RowNumbers:
        check_count("ImageModelResults", "n", n, 0)
        rows = np.flatnonzero(wanted & self._known)
        return rows[np.argsort(order[rows], kind="stable")][:n]

    def _plot(self, what: str, cls: int | str, rows: RowNumbers) -> Figure:
        number = class_number(cls, self.ds.classes, "cls")
        title = f"{what}: {printable(self.ds.classes[number])}" + ("" if len(rows) else " (none)")
        return plots(
            [self._open(row) for row in rows], titles=[self._title(row, number) for row in rows], maintitle=title
        )

    def _title(self, row: int, number: int) -> str:
        """The true label or labels, what else was predicted, their probabilities, and the file."""
        file = _shortened(self.ds.source.name(row))
        if self.ds.is_multi:
            probability = f"probability of {printable(self.ds.classes[number])}: {self.probs[row, number]:.3f}"
            return "\n".join([self._names("true", self.ds.y[row]), probability, file])
        guess = self.preds[row]
        lines = [f"true: {self._shown(row, number)}"]
        if guess != number:
            lines.append(f"predicted: {self._shown(row, guess)}")
        return "\n".join([*lines, file])

    def _loss_title(self, row: int) -> str:
        """Both answers, whether they agree or not, the loss, and the file."""
        if self.ds.is_multi:
            worst = int(np.argmax(np.abs((self.ds.y[row] > 0) - self.probs[row])))
            lines = [self._names("true", self.ds.y[row]), self._names("predicted", self.preds[row])]
            lines.append(f"probability of {printable(self.ds.classes[worst])}: {self.probs[row, worst]:.3f}")
        else:
            lines = [
                f"true: {self._shown(row, int(self.ds.y[row]))}",
                f"predicted: {self._shown(row, self.preds[row])}",
            ]
        return "\n".join([*lines, f"loss: {self._losses[row]:.3f}", _shortened(self.ds.source.name(row))])

    def _names(self, what: str, has: NDArray[Any]) -> str:
        names = [printable(self.ds.classes[k]) for k in np.flatnonzero(has > 0)]
        return "\n".join(textwrap.wrap(f"{what}: {', '.join(names) or 'none'}", _TITLE_WIDTH))

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
