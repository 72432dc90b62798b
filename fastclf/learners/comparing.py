"""Which pretrained body suits some images best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.names import printable, shorten
from fastclf.errors import DivergedError
from fastclf.interpret.intervals import Interval, of_share
from fastclf.interpret.tables import Cells, Table
from fastclf.learners.conv_learner import ConvLearner
from fastclf.models.archs import Architecture, as_list, stats_of
from fastclf.training.folds import make_folds
from fastclf.training.head_choice import choose_usual, splits_of
from fastclf.training.head_runs import HeadTraining
from fastclf.training.inputs import check_data, check_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIMED = 3  # batches


@dataclass(frozen=True)
class Compared:
    """One body, or several side by side.

    Attributes:
        arch: which.
        accuracy: cross-validated; of several labels, the share of right answers, each label of a row being a question.
        interval: Wilson's 95 % interval of it, as far as rows, not bodies, vary.
        log_loss: cross-validated, the mean over rows (and labels).
        seconds: of an image through the body, here and now, without decoding.
        megabytes: of the weights in float32.
    """

    arch: str
    accuracy: float
    interval: Interval
    log_loss: float
    seconds: float
    megabytes: float


@dataclass(frozen=True, repr=False)
class Comparison(Table):
    """Bodies, the best first. Prints as a table; ``comparison[0].arch`` is the best."""

    bodies: list[Compared]
    n: int

    def __getitem__(self, place: int) -> Compared:
        """Return one, 0 the best."""
        return self.bodies[place]

    def __len__(self) -> int:
        return len(self.bodies)

    def plot(self) -> Axes:
        """Draw accuracy over the time that an image takes."""
        import matplotlib.pyplot as plt

        from fastclf.interpret.figure import ReturnedFigure

        ax: Axes = plt.figure(figsize=(6, 4), layout="constrained", FigureClass=ReturnedFigure).add_subplot()
        for body in self.bodies:
            low, high = body.interval
            errors = [[body.accuracy - low], [high - body.accuracy]]
            ax.errorbar([1000 * body.seconds], [body.accuracy], yerr=errors, marker="o", label=shorten(body.arch))
        ax.set(xscale="log", xlabel="ms per image", ylabel="cross-validated accuracy")
        ax.legend()
        return ax

    def _columns(self) -> list[str]:
        return ["arch", "accuracy", "low", "high", "log_loss", "seconds", "megabytes"]

    def _rows(self) -> list[list[Any]]:
        return [[b.arch, b.accuracy, *b.interval, b.log_loss, b.seconds, b.megabytes] for b in self.bodies]

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        cells: Cells = [["", "accuracy", "95 % interval", "log loss", "ms per image", "MB"]]
        for b in self.bodies:
            low, high = b.interval
            numbers = [f"{b.log_loss:.4f}", f"{1000 * b.seconds:.2f}", f"{b.megabytes:.0f}"]
            cells.append([printable(b.arch), f"{b.accuracy:.4f}", f"{low:.4f} to {high:.4f}", *numbers])
        notes = [] if len(self) == 1 else ["the best of several looks a little better here than on other images"]
        return f"bodies by cross-validated accuracy, {self.n:,} training images", [cells], notes


@long_call(NOTHING_CHANGED)
def compare(
    data: ImageClassifierData,
    archs: Architecture | Sequence[Architecture | Sequence[Architecture]],
    k: int = 5,
    **kwargs: Any,
) -> Comparison:
    """Compare pretrained bodies by the cross-validated accuracy of a head on their cached activations.

    The head's setting is chosen for each fold by the loss on others. Only training images count; the validation set
    stays untouched for the model that is chosen. The activations are kept, so a learner with a body that was compared
    starts at once. Images are normalised for each body.

    Args:
        data: images with classes.
        archs: one or several architectures as `ConvLearner.pretrained` takes them; a list among them means several
            side by side.
        k: folds, the same for all.
        **kwargs: see `ConvLearner.pretrained`.

    Returns:
        The comparison, the most accurate first; printed, a table.

    Raises:
        ValueError: data holds rows or numbers to be predicted; there is no architecture.
        WeightsError: weights cannot be had.
        DivergedError: a head does not end with finite values.
    """
    check_data("compare", data)
    check_images("compare", data)
    if data.is_reg:
        raise ValueError("compare: data must hold images with classes, got numbers to be predicted")
    given = as_list(archs)
    if not given:
        raise ValueError("compare: archs must be a list of one architecture or more")
    folds = make_folds(data.trn_ds.labels, k, groups=data.trn_ds.groups, seed=data.seed)
    bodies = [_measured(data.normalised(*stats_of(as_list(arch)[0])), arch, folds, kwargs) for arch in given]
    order = sorted(bodies, key=lambda body: (-body.accuracy, body.seconds))
    return Comparison(order, len(data.trn_ds.bad.good_rows()))


def _measured(
    data: ImageClassifierData, arch: Architecture | Sequence[Architecture], folds: Any, kwargs: dict[str, Any]
) -> Compared:
    learn = ConvLearner.pretrained(arch, data, precompute=True, **kwargs)
    ds = learn.data.trn_ds
    training = HeadTraining.usual(data)
    splits = splits_of(ds, folds, learn.seed)
    logits = choose_usual(ds, splits, training).all_logits(splits, ds)
    good = ds.bad.good_rows()
    if not np.isfinite(logits[good]).all():
        raise DivergedError(
            f"compare: a head on {learn.model.body.arch} does not end with finite weights. Leave it out."
        )
    z, y = torch.from_numpy(logits[good]).double(), torch.from_numpy(ds.y[good])
    right = (z > 0) == (y > 0) if data.is_multi else z.argmax(1) == y
    share = float(right.double().mean())
    loss = float(training.crit.from_logits(z, y.double() if data.is_multi else y))
    interval = of_share(round(share * len(good)), len(good))
    size = sum(p.numel() * p.element_size() for p in learn.model.body.parameters()) / 1e6
    return Compared(learn.model.body.arch, share, interval, loss, _seconds(learn), size)


def _seconds(learn: ConvLearner) -> float:
    """Return the seconds of one image through the frozen body: of a few batches, the fastest."""
    assert learn._data.tfms is not None
    sz = learn._data.tfms[1].sz
    x = torch.zeros(32, 3, sz, sz, dtype=torch.float32, device=learn._data.device)
    found = []
    learn.model.eval()
    with torch.inference_mode():
        learn.model.features(x)
        for _ in range(_TIMED):
            start = time.perf_counter()
            learn.model.features(x).sum().item()
            found.append((time.perf_counter() - start) / len(x))
    return min(found)
