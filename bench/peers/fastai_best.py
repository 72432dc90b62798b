"""fastai 2 at its best on a processor: channels last, the body without gradients, images by worker processes."""

from __future__ import annotations

from collections.abc import Callable

from bench.lesson import LessonResult, LessonSetting
from bench.peers.fastai_common import lesson


def make(setting: LessonSetting) -> Callable[[int], LessonResult]:
    return lesson(setting, workers=setting.threads, best=True)
