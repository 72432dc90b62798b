"""The figure that functions return, which a notebook shows once, and how one is saved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastclf.files import publish_once
from fastclf.report import log_once

_LACKS = r"Glyph .* missing from (?:font\(s\) )?(.*)\."


class ReturnedFigure(Figure):
    """A figure of pyplot that may be the value of a notebook's cell.

    A notebook shows such a value, and Matplotlib's inline backend shows at the cell's end every figure that is still
    open: twice the same one.
    """

    def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Called before the figure is shown: closes it for the inline backend, and leaves the format to others."""
        import matplotlib.pyplot as plt

        if plt.get_backend().endswith("inline"):
            plt.close(self)
        return {}


@contextmanager
def named_glyphs() -> Iterator[None]:
    """Say once that the font lacks characters of names, instead of Matplotlib's warning for each of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _LACKS)
        yield
    for one in caught:
        lacks = re.match(_LACKS, str(one.message))
        if lacks is None:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        else:
            log_once(
                f"plots: {lacks[1]} lacks characters of some names, which stand as boxes. Name an installed font that "
                "has them as font.family in a file matplotlibrc.",
                _LACKS,
            )


def save_figure(plot: Any, file: Path) -> None:
    """Write a figure, or the figure of axes, as PNG, and close it; of processes that train together the first does."""
    import matplotlib.pyplot as plt

    figure = getattr(plot, "figure", plot)
    with named_glyphs():
        publish_once(file, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
    plt.close(figure)
