"""fastai's `fine_tune` as its tutorials call it: one epoch of the head, then all layers; the same body and weights."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable

import torch

from bench.fine_tune_sets import FineTuneSetting
from bench.peers.fastai_common import load_weights

EPOCHS = 6  # beside the one of the head


def make(setting: FineTuneSetting) -> Callable[[int], tuple[float, float]]:
    warnings.simplefilter("ignore")
    import pandas as pd
    from fastai.vision import all as fv

    torch.set_num_threads(setting.threads)
    multiprocessing.current_process()._config["daemon"] = False  # daemons may have no workers of their own
    images = setting.images

    def run(seed: int) -> tuple[float, float]:
        """Accuracy and log loss on the images that are held out."""
        fv.set_seed(seed)
        table = pd.read_csv(images.table(setting.folder, seed))
        table["held_out"] = table.index >= images.train
        dls = fv.ImageDataLoaders.from_df(
            table,
            setting.folder,
            folder="images",
            valid_col="held_out",
            item_tfms=fv.Resize(images.sz),
            batch_tfms=[*fv.aug_transforms(), fv.Normalize.from_stats([0.5] * 3, [0.5] * 3)],
            num_workers=setting.threads,
            device=torch.device("cpu"),
        )
        learn = fv.vision_learner(dls, "tf_efficientnet_lite0", pretrained=False, metrics=fv.accuracy)
        load_weights(learn.model[0].model)
        learn.freeze()
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(EPOCHS)
        loss, accuracy = (float(value) for value in learn.recorder.values[-1][1:3])
        return accuracy, loss

    return run
