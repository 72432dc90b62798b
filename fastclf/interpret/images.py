"""Images side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.argument_checks import check_count
from fastclf.data.sources.names import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 2.6  # inches of one image


def plots(
    ims: Sequence[NDArray[Any]] | NDArray[Any],
    figsize: tuple[float, float] | None = None,
    rows: int = 1,
    titles: Sequence[str] | None = None,
    maintitle: str | None = None,
) -> Figure:
    """Draw images side by side.

    Args:
        ims: images ``[H, W, 3]`` or ``[H, W]``, uint8 or float in 0..1; of any sizes; or one.
        figsize: width and height in inches; by default it follows the number of images.
        rows: number of rows.
        titles: one per image.
        maintitle: above all of them.

    Returns:
        The figure.

    Raises:
        ValueError: something is no image, or there is not one title per image.
    """
    import matplotlib.pyplot as plt

    from fastclf.interpret.figure import ReturnedFigure

    images = [_image(im, i) for i, im in enumerate([ims] if _is_one(ims) else ims)]
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"plots: titles must be one per image, {len(images)}, got {len(titles)}")
    check_count("plots", "rows", rows)
    if figsize is not None and np.shape(figsize) != (2,):
        raise ValueError(f"plots: figsize must be (width, height) in inches, got {figsize!r}")
    columns = max(math.ceil(len(images) / rows), 1)
    size = figsize or (_SIDE * columns, _SIDE * rows * (1 if titles is None else 1.12) + 0.4 * (maintitle is not None))
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", FigureClass=ReturnedFigure
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        if titles is not None:
            ax.set_title(_lines(titles[i]), fontsize=10, parse_math=False)
    if maintitle is not None:
        figure.suptitle(_lines(maintitle), parse_math=False)
    return figure


def plots_from_files(
    imspaths: Sequence[str | os.PathLike[str]],
    figsize: tuple[float, float] | None = None,
    rows: int = 1,
    titles: Sequence[str] | None = None,
    maintitle: str | None = None,
) -> Figure:
    """Draw image files side by side and return the figure. Arguments as those of `plots`.

    Raises:
        FileNotFoundError: there is no such file.
        BadImageError: it cannot be decoded.
    """
    from fastclf.data.image import open_image

    return plots([open_image(path) for path in imspaths], figsize, rows, titles, maintitle)


def _is_one(ims: Any) -> bool:
    """Return whether that is one image, not several: a list of rows of pixels is none."""
    shape = getattr(ims, "shape", None)
    if shape is None:
        return not isinstance(ims, Iterable)
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))


def _lines(title: str) -> str:
    return "\n".join(map(printable, str(title).split("\n")))


def _image(im: Any, index: int) -> NDArray[Any]:
    image = np.asarray(im)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
        hint = " For a batch of a loader, pass ds.denorm(x)." if image.ndim == 3 and len(image) == 3 else ""
        raise ValueError(f"plots: image {index} must be [H, W, 3] or [H, W], got {list(image.shape)}.{hint}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating) or image.min() < -0.01 or image.max() > 1.01:
        raise ValueError(
            f"plots: image {index} must be uint8, or float in 0..1, got {image.dtype} "
            f"{image.min():g} to {image.max():g}. For a batch of a loader, pass ds.denorm(x)."
        )
    return image.clip(0, 1)
