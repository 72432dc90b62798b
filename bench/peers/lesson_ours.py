"""The lesson here, with nothing cached."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

import torch

from bench.lesson import LessonResult, LessonSetting
from fastclf import ConvLearner, ImageClassifierData, accuracy, efficientnet_lite0, tfms_from_model


def make(setting: LessonSetting) -> Callable[[int], LessonResult]:
    torch.set_num_threads(setting.threads)

    def run(seed: int) -> LessonResult:
        shutil.rmtree(setting.folder / "tmp", ignore_errors=True)
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # what fastclf remembers of images and runtimes
        result = LessonResult()
        with result.stage("data"):
            tfms = tfms_from_model(efficientnet_lite0, setting.sz)
            options = {"device": "cpu", "num_workers": setting.threads, "seed": seed}
            data = ImageClassifierData.from_paths(setting.folder, setting.bs, tfms, test_name=None, **options)
        with result.stage("learner"):
            learn = ConvLearner.pretrained(efficientnet_lite0, data, metrics=[accuracy])
        with result.stage("activations"):
            learn.precompute = True
        with result.stage("head"):
            result.loss, result.accuracy = learn.fit(1e-2, setting.epochs)
        return result

    return run
