"""Images that tests write themselves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import shared_data


@pytest.fixture(scope="session")
def exif_photos(tmp_path_factory) -> list[Path]:
    """Two photographs, each in all eight EXIF orientations and in none."""
    folder = shutil.copytree(shared_data("exif"), tmp_path_factory.mktemp("photos") / "exif")
    return sorted(Path(folder).glob("*.jpg"))


@pytest.fixture
def save_image(rng):
    """Writes a random image to a file, by default 40 x 30 pixels, in the format of the name."""

    def save(fn: Path, size: tuple[int, int] = (40, 30)) -> Path:
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(fn)
        return fn

    return save


@pytest.fixture
def folders(tmp_path, save_image) -> Path:
    """train and valid with the classes cat and dog, 6 and 4 images of each, and a test folder of 5."""
    for split, n in (("train", 6), ("valid", 4)):
        for name in ("cat", "dog"):
            for i in range(n):
                save_image(tmp_path / split / name / f"{name}{i}.png", (30 + 5 * i, 33))
    for i in range(5):
        save_image(tmp_path / "test" / f"{i}.jpg")
    return tmp_path
