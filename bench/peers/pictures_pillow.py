"""Pillow decodes, torchvision's transforms follow: what people write."""

from __future__ import annotations

from collections.abc import Callable

from bench.peers.pictures_torchvision import make_loader
from bench.pictures_setting import PicturesSetting


def make(setting: PicturesSetting) -> Callable[[int], list[float]]:
    return make_loader(setting, pillow=True)
