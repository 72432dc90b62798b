"""torchvision's v2 transforms in a DataLoader with worker processes: Pillow's decoder, or torchvision's own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from bench.images_setting import DEGREES, LIGHT, MAX_ZOOM, MEAN, STD, ImagesSetting, sampled_mean


class Images(Dataset[torch.Tensor]):
    def __init__(self, setting: ImagesSetting, pillow: bool) -> None:
        self.files, self.transform, self.pillow = setting.files(), transforms(setting, pillow), pillow

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.pillow:
            return self.transform(Image.open(self.files[i]).convert("RGB"))
        return self.transform(decode_jpeg(read_file(self.files[i]), ImageReadMode.RGB))


def transforms(setting: ImagesSetting, pillow: bool) -> v2.Compose:
    """As the documentation shows; turned after the crop, which is less work than before."""
    sz, bilinear = setting.sz, v2.InterpolationMode.BILINEAR
    steps = [v2.Resize(sz, bilinear, antialias=True), v2.CenterCrop(sz)]
    if setting.augment:
        steps = [
            v2.RandomResize(sz, int(sz * MAX_ZOOM) + 1, bilinear, antialias=True),
            v2.RandomCrop(sz),
            v2.RandomApply([v2.RandomRotation(DEGREES, bilinear)], 0.75),
            v2.ColorJitter(brightness=LIGHT, contrast=LIGHT),
            v2.RandomHorizontalFlip(),
        ]
    start = [v2.ToImage()] if pillow else []
    return v2.Compose([*steps, *start, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def make_loader(setting: ImagesSetting, pillow: bool) -> Callable[[int], list[float]]:
    torch.set_num_threads(1)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined] # may have workers
    loader = DataLoader(
        Images(setting, pillow),
        setting.batch,
        num_workers=setting.threads,
        persistent_workers=True,
        prefetch_factor=2,
    )
    return lambda _: sampled_mean(loader)
