"""The figure that functions return, which a notebook shows once."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure


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
