"""DALI by itself: the graph that its documentation shows for training on the processor, with the lesson's numbers.

It decodes the first batches of a round before the round begins, as its iterator does: about a tenth, in its favour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from bench.images_setting import DEGREES, LIGHT, MAX_ZOOM, MEAN, STD, ImagesSetting, sampled_mean


def graph(setting: ImagesSetting, files: list[str]) -> Any:
    sz = setting.sz
    encoded, _ = fn.readers.file(files=files, name="images")
    image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    wanted = {"interp_type": types.INTERP_LINEAR, "antialias": True}
    place: dict[str, Any] = {}
    if setting.augment:
        image = fn.resize(image, resize_shorter=fn.random.uniform(range=(sz, sz * MAX_ZOOM)), **wanted)
        angle = fn.random.uniform(range=(-DEGREES, DEGREES)) * fn.random.coin_flip(probability=0.75)
        image = fn.rotate(image, angle=angle, keep_size=True, interp_type=types.INTERP_LINEAR, fill_value=0)
        light = {name: fn.random.uniform(range=(1 - LIGHT, 1 + LIGHT)) for name in ("brightness", "contrast")}
        image = fn.brightness_contrast(image, **light)
        place = {f"crop_pos_{axis}": fn.random.uniform(range=(0, 1)) for axis in "xy"}
        place["mirror"] = fn.random.coin_flip()
    else:
        image = fn.resize(image, resize_shorter=sz, **wanted)
    numbers = {"mean": [255 * m for m in MEAN], "std": [255 * s for s in STD]}
    return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", crop=(sz, sz), **numbers, **place)


def make(setting: ImagesSetting) -> Callable[[int], list[float]]:
    torch.set_num_threads(1)
    built = pipeline_def(graph)(
        setting, setting.files(), batch_size=setting.batch, num_threads=setting.threads, device_id=None
    )
    batches = DALIGenericIterator(
        [built], ["x"], reader_name="images", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )
    return lambda _: sampled_mean(found[0]["x"] for found in batches)
