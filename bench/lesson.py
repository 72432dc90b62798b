"""What both sides of the lesson's benchmark get, and what they must tell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LessonSetting:
    """Five epochs of a new head on a frozen body, from a folder of images to the accuracy on valid/."""

    folder: Path
    threads: int
    sz: int = 224
    bs: int = 64
    epochs: int = 5


@dataclass
class LessonResult:
    """Seconds of each stage, and what came out."""

    stages: dict[str, float] = field(default_factory=dict)
    loss: float = float("nan")
    accuracy: float = float("nan")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - start
