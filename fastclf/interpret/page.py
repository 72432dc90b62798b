"""A report as one HTML page that needs no network: what `learn.report` writes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastclf.arrays import Array
from fastclf.data.sources.names import printable, shorten
from fastclf.interpret.confusion import confusion_matrix
from fastclf.interpret.evaluation import Evaluation
from fastclf.interpret.intervals import of_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastclf.training.recorder import Recorder


_MOST_WHOLE = 120  # classes of a matrix that is shown whole
_MOST_ROWS = 1000  # of a table of classes
_BINS = 10
_SIDE = 256  # pixels of an image, at most
_INK = "#010203"  # stands for the page's own colour of text
_PLOTS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def render(**values: Any) -> str:
    """Return the page; every text among the values is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("page.html").render(values)


def curves(sched: Recorder) -> list[tuple[str, str]]:
    """Return the plots of the last fit or rate search, with their captions."""
    if not sched.lrs:
        return []
    if sched.suggestions is not None:
        return [(_svg(lambda ax: sched.plot(ax=ax)), "The training loss over the rate, in a search for the rate.")]
    return [
        (_svg(lambda ax: _losses(sched, ax)), "The loss in training, batch by batch, and on validation (dots)."),
        (_svg(lambda ax: sched.plot_lr(ax=ax)), "The learning rate."),
    ]


def calibration_plot(confidences: Array, right: Array) -> str:
    """Return how often answers are right, by the probability that they were given with."""
    bins = np.clip((confidences * _BINS).astype(int), 0, _BINS - 1)

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=_INK, alpha=0.3)
        for k in np.unique(bins):
            inside = bins == k
            n, hits = int(inside.sum()), int(right[inside].sum())
            x, (low, high) = float(confidences[inside].mean()), of_share(hits, n)
            ax.plot([x, x], [low, high], color="C0", alpha=0.6)
            ax.plot([x], [hits / n], "o", color="C0")
            ax.annotate(f"{n:,}", (x, hits / n), (5, -9), textcoords="offset points", fontsize=8)
        ax.set(xlabel="probability given", ylabel="share that is right", xlim=(0, 1.03), ylim=(0, 1.03))

    return _svg(draw)


def confusion(y: Array, guess: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Return the matrix as the page draws it, and the pairs that are most often confused."""
    counts = confusion_matrix(y, guess, classes)
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong.ravel(), kind="stable")[:12]
    pairs = [(*divmod(int(k), len(classes)), int(wrong.ravel()[k])) for k in order if wrong.ravel()[k]]
    shown = np.arange(len(classes))
    if len(classes) > _MOST_WHOLE:
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_WHOLE])
    part = counts[np.ix_(shown, shown)]
    shares = np.sqrt(part / np.maximum(counts.sum(1)[shown, None], 1))  # the root, so that single mistakes show
    full = [printable(classes[k]) for k in shown.tolist()]
    names = [shorten(name) for name in full]
    few = len(shown) <= 40
    font = 12 if few else 10
    return {
        "matrix": {
            "names": names,
            "full": full,
            "cell": 30 if few else 14,
            "font": font,
            "room": 14 + 0.68 * font * max(map(len, names)),
            "cells": [(int(i), int(j), int(part[i, j]), f"{shares[i, j]:.2f}") for i, j in np.argwhere(part)],
            "note": f"Of {len(classes):,} classes the {len(shown)} with most mistakes."
            if len(shown) < len(classes)
            else "",
        },
        "confused": [(printable(classes[i]), printable(classes[j]), n) for i, j, n in pairs],
    }


def label_counts(y: Array, chosen: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Return right and wrong answers of each label, as the page lists them."""
    cells = confusion_matrix(y, chosen, classes)[:_MOST_ROWS].tolist()
    rows = [(printable(name), tp, fn, fp, tn) for name, ((tn, fp), (fn, tp)) in zip(classes, cells, strict=False)]
    return {"matrix": None, "labels": rows}


def tables(found: Evaluation) -> dict[str, Any]:
    """Return the measures as the page lists them."""
    each = found.each_cells(np.argsort(found.each["f1"], kind="stable")[:_MOST_ROWS].tolist())
    note = f"Of {len(found.names):,} classes the worst {_MOST_ROWS:,}." if len(found.names) > _MOST_ROWS else ""
    return {"overall": found.overall_cells()[1:], "each": each, "classes_note": note, "notes": found.notes}


def as_jpeg(image: Array) -> str:
    """Return an image ``[h, w, 3]`` of 0..1 as the address of a JPEG that stands in the page."""
    from PIL import Image

    small = Image.fromarray((image * 255).round().astype(np.uint8))
    small.thumbnail((_SIDE, _SIDE))
    return _address(small, "JPEG", quality=82)


def as_overlay(painted: Array) -> str:
    """Return ``[h, w, 4]`` of 0..1 as the address of a PNG that stands in the page."""
    from PIL import Image

    return _address(Image.fromarray((painted * 255).round().astype(np.uint8)), "PNG")


def _address(image: Any, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _losses(sched: Recorder, ax: Axes) -> None:
    sched.plot_loss(ax)
    ends = np.linspace(0, len(sched.losses), len(sched.val_losses) + 1)[1:]
    ax.plot(ends, sched.val_losses, "o", color="C1", markersize=4)
    ax.set_ylabel("loss")


def _svg(draw: Callable[[Axes], object]) -> str:
    """Return a plot in the page's colours, light or dark."""
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fastclf.interpret.figure import named_glyphs

    data = io.StringIO()
    with mpl.rc_context(_PLOTS), named_glyphs():
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    text = data.getvalue()
    return Markup(text[text.index("<svg") :].replace(_INK, "currentColor"))
