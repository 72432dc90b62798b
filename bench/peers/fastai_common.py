"""The lesson in fastai 2: `vision_learner` on the same body with the same weights."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bench.lesson import LessonResult, LessonSetting
from fastclf.models.weights import lite_weights

LR = 1e-2  # the best of 3e-3, 1e-2 and 2e-2: accuracy .935, .955 and .935 at its best setting


def lesson(setting: LessonSetting, *, workers: int, best: bool) -> Callable[[int], LessonResult]:
    """With `best`: channels last, and no gradients in the body (fastai trains its BatchNorm unless asked not to)."""
    warnings.simplefilter("ignore")
    from fastai.vision import all as fv

    torch.set_num_threads(setting.threads)
    multiprocessing.current_process()._config["daemon"] = False  # daemons may have no workers of their own

    def run(seed: int) -> LessonResult:
        fv.set_seed(seed)
        result = LessonResult()
        with result.stage("data"):
            dls = fv.ImageDataLoaders.from_folder(
                setting.folder,
                train="train",
                valid="valid",
                bs=setting.bs,
                item_tfms=fv.Resize(setting.sz),
                batch_tfms=[fv.Normalize.from_stats([0.5] * 3, [0.5] * 3)],
                num_workers=workers,
                device=torch.device("cpu"),
            )
        with result.stage("learner"):
            learn = fv.vision_learner(
                dls, "tf_efficientnet_lite0", pretrained=False, metrics=fv.accuracy, train_bn=not best
            )
            load_weights(learn.model[0].model)
            learn.freeze()
            if best:
                learn.model.to(memory_format=torch.channels_last)
        with result.stage("epochs"), learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(setting.epochs, LR)
        result.loss, result.accuracy = (float(value) for value in learn.recorder.values[-1][1:3])
        return result

    return run


def load_weights(body: Any) -> None:
    """The package's weights in timm's network without its classifier."""
    import timm

    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    weights, _ = lite_weights("efficientnet_lite0", names)
    body.load_state_dict({name: weights[name] for name in body.state_dict()})
