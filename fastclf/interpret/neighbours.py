"""The nearest rows of activations by cosine similarity: exact, in blocks, whatever is mapped stays mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclf.argument_checks import check_count
from fastclf.arrays import RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.sources.names import shorten
from fastclf.interpret.tables import Cells, Table
from fastclf.ops import gather_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SHOWN = 40
_AT_ONCE = 2048  # rows of a block


class RowPool:
    """The rows of several data sets, one after another; of several views, the first. Bad rows are left out.

    Args:
        sets: over rows of activations.
        centred: whether directions are taken from the mean of the rows instead of from zero.

    Attributes:
        sets: as given.
        of: ``[M] int64``: which set each row is of.
        row: ``[M] int64``: which row of that set.
    """

    def __init__(self, sets: Sequence[Dataset], *, centred: bool = False) -> None:
        self.sets = sets
        good = [ds.bad.good_rows() for ds in sets]
        self.of = np.repeat(np.arange(len(sets)), [len(rows) for rows in good])
        self.row = np.concatenate(good)
        self._centre = self._mean() if centred else None

    def __len__(self) -> int:
        return len(self.row)

    def features(self, numbers: RowNumbers) -> Tensor:
        """Return rows of the pool, ``[n, F] float32``, as they are."""
        parts = [self._of_set(k, self.row[numbers[self.of[numbers] == k]]) for k in np.unique(self.of[numbers])]
        # Numbers ascend within a set, and sets follow each other, so the parts are in order.
        return torch.cat(parts)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of rows, as they are, and the number of their first."""
        for first in range(0, len(self), _AT_ONCE):
            yield first, self.features(np.arange(first, min(first + _AT_ONCE, len(self))))

    def directions(self, x: Tensor) -> Tensor:
        """Return rows ``[n, F]`` scaled to length 1, from where the pool counts; rows that lie there stay zeros."""
        return torch.nn.functional.normalize(x if self._centre is None else x - self._centre, dim=1)

    def _mean(self) -> Tensor:
        total = torch.stack([block.sum(0, dtype=torch.float64) for _, block in self.blocks()]).sum(0)
        return (total / len(self)).float()

    def _of_set(self, k: int, rows: RowNumbers) -> Tensor:
        matrix = self.sets[k].rows
        assert matrix is not None
        return gather_rows(matrix, rows)


def nearest(
    x: Tensor, pool: RowPool, k: int, leave_out: RowNumbers | None = None
) -> tuple[RowNumbers, NDArray[np.float32]]:
    """Find the nearest rows of a pool by cosine similarity, exactly.

    Args:
        x: ``[Q, F] float32``.
        pool: searched block by block.
        k: how many; fewer where the pool has fewer.
        leave_out: ``[Q]``, a row of the pool that does not count for each.

    Returns:
        Numbers in the pool and similarities, ``[Q, k]``, the nearest first.
    """
    check_count("nearest", "k", k)
    k = min(k, len(pool) - (leave_out is not None))
    x = pool.directions(x)
    best, where = torch.full((len(x), 0), -torch.inf, dtype=torch.float32), torch.empty((len(x), 0), dtype=torch.int64)
    for first, block in pool.blocks():
        found = x @ pool.directions(block).T
        if leave_out is not None:
            inside = np.flatnonzero((leave_out >= first) & (leave_out < first + len(block)))
            found[inside, leave_out[inside] - first] = -torch.inf
        values, columns = found.topk(min(k, len(block)), dim=1)
        best, where = torch.cat([best, values], 1), torch.cat([where, columns + first], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, where = best.gather(1, order), where.gather(1, order)
    return where.numpy(), best.numpy()


def nearest_others(pool: RowPool, k: int) -> Iterator[tuple[int, RowNumbers, NDArray[np.float32]]]:
    """Yield for blocks of a pool's rows their nearest others, see `nearest`, and the number of the first row."""
    for first, block in pool.blocks():
        yield first, *nearest(block, pool, k, leave_out=np.arange(first, first + len(block)))


@dataclass(frozen=True, repr=False)
class Similar(Table):
    """The nearest images of some others. Prints as a table.

    Attributes:
        sets: that were searched.
        queries: names of the images asked about.
        set_names: of the sets, in order.
        of: ``[N, k] int64``: which set each found image is of.
        rows: ``[N, k] int64``: its row in that set.
        similarity: ``[N, k] float32`` cosines, the nearest first.
    """

    sets: Mapping[str, Dataset]
    queries: list[str]
    set_names: list[str]
    of: RowNumbers
    rows: RowNumbers
    similarity: NDArray[np.float32]

    def plot(self, query: int = 0) -> Figure:
        """Draw the images found for one query."""
        from fastclf.data.image import decoded
        from fastclf.interpret.images import plots

        sources = [self.sets[self.set_names[k]].source for k in self.of[query]]
        places = list(zip(sources, self.rows[query].tolist(), strict=True))
        images = [decoded(source, row) for source, row in places]
        names = [shorten(source.name(row).rpartition("/")[2]) for source, row in places]
        titles = [f"{name}\n{value:.3f}" for name, value in zip(names, self.similarity[query], strict=True)]
        return plots(images, titles=titles, maintitle=f"nearest to {shorten(self.queries[query])}")

    def _columns(self) -> list[str]:
        return ["image", "set", "row", "file", "similarity"]

    def _rows(self) -> list[list[Any]]:
        table = []
        for query, sets, rows, values in zip(self.queries, self.of, self.rows, self.similarity, strict=True):
            for k, row, value in zip(sets.tolist(), rows.tolist(), values.tolist(), strict=True):
                name = self.set_names[k]
                table.append([query, name, row, self.sets[name].source.name(row), value])
        return table

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        rows = self._rows()
        cells = [["image", "set", "row", "file", "similarity"]]
        cells += [
            [shorten(image), name, str(row), shorten(file), f"{value:.4f}"]
            for image, name, row, file, value in rows[:_MOST_SHOWN]
        ]
        notes = [f"{_MOST_SHOWN} of {len(rows):,} are shown; to_frame() has all"] if len(rows) > _MOST_SHOWN else []
        return f"nearest images of {len(self.queries):,}", [cells], notes
