"""Real activations: scikit-learn's handwritten digits through a pretrained EfficientNet-Lite0, as in the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastclf as fc
from fastclf.demo import write_digits

COLUMNS, CLASSES = 2560, 10
LEARNT, HELD_OUT = 1_297, 400


def digit_rows(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """`[1697, 2560] float16`, mapped, and `[1697] int64`; the last 400 rows are for validation."""
    rows_file, targets_file = folder / "digits_rows.npy", folder / "digits_targets.npy"
    if not targets_file.exists():
        tfms = fc.tfms_from_model(fc.efficientnet_lite0, 64)
        data = fc.ImageClassifierData.from_paths(write_digits(folder / "digits"), tfms=tfms)
        cached = fc.ConvLearner.pretrained(fc.efficientnet_lite0, data, precompute=True).data
        np.save(rows_file, np.concatenate([cached.trn_ds.rows, cached.val_ds.rows]))
        np.save(targets_file, np.concatenate([cached.trn_ds.y, cached.val_ds.y]))
    return np.load(rows_file, mmap_mode="r"), np.load(targets_file)
