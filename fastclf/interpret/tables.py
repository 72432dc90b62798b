"""Tables of measures, as text and for a notebook."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

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
