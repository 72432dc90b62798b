"""Tables of results, as text, for a notebook and as files."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastclf.files import publish_table
from fastclf.paths import given_path
from fastclf.report import encodable

if TYPE_CHECKING:
    from pandas import DataFrame

Cells = list[list[str]]


def number(value: Any) -> str:
    """Return a measure as tables show it."""
    if isinstance(value, np.integer):
        return f"{value:,}"
    if np.isnan(value):
        return "n/a"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def plain(value: Any) -> Any:
    """Return a Python int or float; None for NaN, which JSON lacks."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value != value else value


def aligned(cells: Cells) -> list[str]:
    """Return the lines of a table; the first row is its head, and the first column is text."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *values in cells:
        right = (f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join([f"{name:{widths[0]}}", *right]).rstrip())
    return lines


def html_table(cells: Cells) -> str:
    """Return a table for a notebook."""
    head, *rows = ([html.escape(cell) for cell in row] for row in cells)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


class Shown:
    """A result that prints as a title, tables and notes."""

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        """Return title, tables and notes."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return title, tables and notes as text."""
        title, tables, notes = self._parts()
        texts = ["\n".join(aligned(cells)) for cells in tables if len(cells) > 1]
        return encodable("\n\n".join(filter(None, [title, *texts, "\n".join(f"note: {note}" for note in notes)])))

    def _repr_html_(self) -> str:
        """Return them as a notebook shows them."""
        title, tables, notes = self._parts()
        shown = "".join(html_table(cells) for cells in tables if len(cells) > 1)
        return (
            f"<p><b>{html.escape(title)}</b></p>{shown}{''.join(f'<p>note: {html.escape(note)}</p>' for note in notes)}"
        )


class Measured(Shown):
    """A result that is measures by name: ``result["accuracy"]`` is one number.

    Attributes:
        overall: the measures.
    """

    overall: dict[str, float]

    def __getitem__(self, name: str) -> float:
        """Return one measure."""
        try:
            return self.overall[name]
        except KeyError:
            raise KeyError(f"there is no measure {name!r}; there are {', '.join(self.overall)}") from None


class Table(Shown):
    """A result that has, beside what it prints, a table of everything for files and pandas."""

    def _columns(self) -> list[str]:
        raise NotImplementedError

    def _rows(self) -> list[list[Any]]:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python types, for JSON: title, rows and notes; None for what is undefined."""
        title, _, notes = self._parts()
        rows = [dict(zip(self._columns(), map(plain, row), strict=True)) for row in self._rows()]
        return {"title": title, "rows": rows, "notes": notes}

    def to_frame(self) -> DataFrame:
        """Return everything as a pandas frame."""
        from pandas import DataFrame

        return DataFrame(self._rows(), columns=self._columns())

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as a CSV file, whole or not at all; return its path.

        Names of files stand in it as they are. Who opens it in a spreadsheet may meet one that begins like a formula.
        """
        file = given_path(path)
        publish_table(file, self._columns(), self._rows())
        return file
