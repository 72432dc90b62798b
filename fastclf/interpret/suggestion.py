"""Which images to label next: those that a head is unsure of, and that differ from each other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Floats, RowNumbers
from fastclf.interpret.tables import Cells, Table
from fastclf.report import counted

_AXES = 100  # along which clusters are looked for
_LEAST = 1e-6  # weight of an image that the head is sure of
_SHOWN = 40


@dataclass(frozen=True, repr=False)
class Suggestion(Table):
    """Images to label next. Prints as a table, the one that the head is most unsure of first.

    Attributes:
        rows: ``[n] int64``, their places among the images that were given.
        names: theirs.
        labels: what the head takes each for; several labels with spaces between.
        doubt: ``[n]``, how unsure it is, see `doubts`.
        given: how many images there were to choose from.
    """

    rows: RowNumbers
    names: list[str]
    labels: list[str]
    doubt: Floats
    given: int

    def __len__(self) -> int:
        return len(self.rows)

    def _columns(self) -> list[str]:
        return ["row", "image", "prediction", "doubt"]

    def _rows(self) -> list[list[Any]]:
        columns = self.rows.tolist(), self.names, self.labels, self.doubt.tolist()
        return [list(row) for row in zip(*columns, strict=True)]

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        from fastclf.data.sources.names import shorten

        cells: Cells = [self._columns()]
        for row, name, label, doubt in self._rows()[:_SHOWN]:
            cells.append([f"{row}", shorten(name), shorten(label), f"{doubt:.3f}"])
        notes = [f"{_SHOWN} are shown; to_frame() has all"] if len(self) > _SHOWN else []
        return f"{counted(len(self), 'image')} to label next, of {self.given:,}", [cells], notes


def doubts(logits: NDArray[np.float32], *, several: bool) -> Floats:
    """Return how unsure a head is of each row, 0 to 1: 1 less the lead of the likeliest class over the next.

    Of several labels, 1 less twice the distance of the most doubtful label's probability from a half.

    Args:
        logits: ``[N, C]``, C of at least 2 unless rows may have several labels.
        several: whether a row may have several labels.
    """
    from scipy.special import expit, softmax

    if several:
        return np.asarray(1 - 2 * np.abs(expit(logits.astype(np.float64)) - 0.5).min(1))
    ordered = np.sort(softmax(logits.astype(np.float64), axis=1), 1)
    return np.asarray(1 - (ordered[:, -1] - ordered[:, -2]))


def diverse(features: NDArray[np.float32], doubt: Floats, n: int, seed: int) -> RowNumbers:
    """Choose the row nearest to the centre of each of ``n`` clusters, in which rows weigh what the head doubts them.

    Weighted k-means is that of Zhdanov, "Diverse mini-batch Active Learning", 2019, here over all rows. Features are
    centred, divided by the square root of their deviation, scaled to length 1, and turned into 100 main axes.

    Args:
        features: ``[N, F]``.
        doubt: ``[N]``, see `doubts`.
        n: of N rows or fewer.
        seed: of the clusters.

    Returns:
        Numbers of rows, ``[n] int64``, the most doubtful first.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    axes = _axes(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows fill fewer clusters
        clusters = KMeans(n, n_init=1, random_state=seed % 2**32).fit(axes, sample_weight=doubt + _LEAST)
    distance = np.square(axes - clusters.cluster_centers_[clusters.labels_]).sum(1)
    order = np.lexsort((distance, clusters.labels_))
    chosen = order[np.unique(clusters.labels_[order], return_index=True)[1]]
    left = np.setdiff1d(np.argsort(-doubt, kind="stable"), chosen, assume_unique=True)[: n - len(chosen)]
    chosen = np.concatenate([chosen, left])
    return np.asarray(chosen[np.argsort(-doubt[chosen], kind="stable")], np.int64)


def _axes(features: NDArray[np.float32]) -> Floats:
    """Return the rows ``[N, F]`` along the axes in which they differ most, ``[N, A]``."""
    x = features - features.mean(0, dtype=np.float64)
    x /= np.sqrt(x.std(0) + 1e-5)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    wide = len(x) > x.shape[1]
    values, vectors = np.linalg.eigh(x.T @ x if wide else x @ x.T)
    values, vectors = values[::-1][:_AXES].clip(0), vectors[:, ::-1][:, :_AXES]
    return np.asarray(x @ vectors if wide else vectors * np.sqrt(values))
