"""fastai 2 as its tutorials write it."""

from __future__ import annotations

from collections.abc import Callable

from bench.lesson import LessonResult, LessonSetting
from bench.peers.fastai_common import lesson


def make(setting: LessonSetting) -> Callable[[int], LessonResult]:
    return lesson(setting, workers=setting.threads, best=False)
