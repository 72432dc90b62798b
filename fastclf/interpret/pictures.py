"""Pictures side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 2.6  # inches of one picture


def plots(
    ims: Sequence[NDArray[Any]] | NDArray[Any],
    figsize: tuple[float, float] | None = None,
    rows: int = 1,
    titles: Sequence[str] | None = None,
    maintitle: str | None = None,
) -> Figure:
    """Draw pictures side by side.

    Args:
        ims: pictures ``[H, W, 3]`` or ``[H, W]``, uint8 or float in 0..1; of any sizes.
        figsize: width and height in inches; by default it follows the number of pictures.
        rows: number of rows.
        titles: one per picture.
        maintitle: above all of them.

    Returns:
        The figure.

    Raises:
        ValueError: something is no picture, or there is not one title per picture.
    """
    import matplotlib.pyplot as plt

    from fastclf.interpret.figure import ReturnedFigure

    pictures = [_picture(im, i) for i, im in enumerate(ims)]
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"plots: titles must be one per picture, {len(pictures)}, got {len(titles)}")
    if rows < 1:
        raise ValueError(f"plots: rows must be 1 or more, got {rows}")
    columns = max(math.ceil(len(pictures) / rows), 1)
    size = figsize or (_SIDE * columns, _SIDE * rows * (1 if titles is None else 1.12) + 0.4 * (maintitle is not None))
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", FigureClass=ReturnedFigure
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (ax, picture) in enumerate(zip(axes.flat, pictures, strict=False)):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255 if picture.dtype == np.uint8 else 1)
        if titles is not None:
            ax.set_title(titles[i], fontsize=10, parse_math=False)
    if maintitle is not None:
        figure.suptitle(maintitle, parse_math=False)
    return figure


def plots_from_files(
    imspaths: Sequence[str | os.PathLike[str]],
    figsize: tuple[float, float] | None = None,
    rows: int = 1,
    titles: Sequence[str] | None = None,
    maintitle: str | None = None,
) -> Figure:
    """Draw picture files side by side; see `plots`.

    Raises:
        FileNotFoundError: there is no such file.
        BadImageError: it cannot be decoded.
    """
    from fastclf.data.image import open_image

    return plots([open_image(path) for path in imspaths], figsize, rows, titles, maintitle)


def _picture(im: Any, index: int) -> NDArray[Any]:
    picture = np.asarray(im)
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 3)) or 0 in picture.shape:
        hint = " For a batch of a loader, pass ds.denorm(x)." if picture.ndim == 3 and len(picture) == 3 else ""
        raise ValueError(f"plots: picture {index} must be [H, W, 3] or [H, W], got {list(picture.shape)}.{hint}")
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating) or picture.min() < -0.01 or picture.max() > 1.01:
        raise ValueError(
            f"plots: picture {index} must be uint8, or float in 0..1, got {picture.dtype} "
            f"{picture.min():g} to {picture.max():g}. For a batch of a loader, pass ds.denorm(x)."
        )
    return picture.clip(0, 1)
