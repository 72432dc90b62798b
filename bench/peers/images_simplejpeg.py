"""The limit without DALI: libjpeg-turbo, called by one Python thread per processor; it lets go of the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg

from bench.images_setting import ImagesSetting


def make(setting: ImagesSetting) -> Callable[[int], list[float]]:
    files, pool = [Path(file) for file in setting.files()], ThreadPoolExecutor(setting.threads)

    def decode(chunk: list[Path]) -> int:
        return sum(simplejpeg.decode_jpeg(file.read_bytes(), "RGB").ndim == 3 for file in chunk)

    def run(_: int) -> list[float]:
        chunks = [files[first : first + setting.batch] for first in range(0, len(files), setting.batch)]
        return [float(sum(pool.map(decode, chunks)))]

    return run
