"""Images in files, which all parts share: the photographs of FASTCLF_TEST_DATA, else smooth noise of their size."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bench.gpu.timing import Bench
from fastclf.threads import available_processors

_SIZE = (375, 500)


def written(bench: Bench, folder: Path, n_train: int, n_valid: int) -> Path:
    """Return a folder of train/<class>/ and valid/<class>/; the same files for whoever asks for as many.

    Photographs that are fewer than that are written again and again, each with a comment of its own: else one row of
    activations would do for all copies.
    """
    target = folder / f"images-{n_train}-{n_valid}"
    if not target.is_dir():
        unfinished = folder / f"unfinished-{n_train}-{n_valid}"
        make = _Photographs() if os.environ.get("FASTCLF_TEST_DATA") and not bench.small else _Noise(bench)
        files = [
            (unfinished / part / "ab"[i % 2] / f"{part}{i:05}.jpg", i + first)
            for part, n, first in (("train", n_train, 0), ("valid", n_valid, n_train))
            for i in range(n)
        ]
        for place in {file.parent for file, _ in files}:
            place.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(available_processors()) as pool:
            list(pool.map(lambda file: make(*file), files))
        unfinished.rename(target)
    return target


class _Photographs:
    def __init__(self) -> None:
        root = Path(os.environ["FASTCLF_TEST_DATA"]) / "catsdogs" / "train"
        self._found = [file.read_bytes() for file in sorted(root.glob("*/*.jpg"))]

    def __call__(self, target: Path, number: int) -> None:
        jpeg = self._found[number * 7 % len(self._found)]
        target.write_bytes(jpeg[:2] + b"\xff\xfe\x00\x08%06d" % number + jpeg[2:])


class _Noise:
    """As many bytes as photographs of this size have."""

    def __init__(self, bench: Bench) -> None:
        self._size = (60, 80) if bench.small else _SIZE

    def __call__(self, target: Path, number: int) -> None:
        height, width = self._size
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(target, quality=85)
