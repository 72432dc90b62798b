"""The same images in a folder and in tar archives: ``python -m bench.shards FOLDER`` prints images per second of both.

FOLDER has train/<class>/ and valid/<class>/; nothing is written there. All files are in the page cache, and scanned;
epochs of the two take turns. Memory is what the process has at most while it serves an epoch, above what it had before.
"""

import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS, PER_SHARD, SZ = 5, 200, 224


def write_shards(folder, out):
    """Archives of 200 images and their labels."""
    out.mkdir()
    for part in ("train", "valid"):
        images = sorted(file for file in (folder / part).rglob("*") if file.is_file())
        for k in range(0, len(images), PER_SHARD):
            with tarfile.open(out / f"{part}-{k // PER_SHARD:03d}.tar", "w") as archive:
                for i, image in enumerate(images[k : k + PER_SHARD]):
                    archive.add(image, f"{i:06d}{image.suffix.lower()}")
                    label = out / "label"
                    label.write_text(image.relative_to(folder / part).parts[0])
                    archive.add(label, f"{i:06d}.cls")


def epoch(data):
    """Images per second of CPU and of the clock, and the growth of memory in MB."""

    def memory(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start, cpu = time.perf_counter(), time.process_time()
    n = sum(len(x) for x, _ in data.trn_dl)
    return n / (time.perf_counter() - start), n / (time.process_time() - cpu), memory("VmHWM") - before


def main(folder):
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        import fastclf as fc

        tfms = fc.tfms_from_model(fc.resnet34, SZ, aug_tfms=fc.transforms_side_on, max_zoom=1.1)
        images, shards = Path(place) / "images", Path(place) / "shards"
        shutil.copytree(folder, images)
        write_shards(images, shards)
        made = {
            "folder": fc.ImageClassifierData.from_paths(images, tfms=tfms),
            "shards": fc.ImageClassifierData.from_shards(shards / "train-*.tar", 64, tfms, shards / "valid-*.tar"),
        }
        for data in made.values():
            data.scan()
            epoch(data)
        rates = {kind: [] for kind in made}
        for _ in range(ROUNDS):
            for kind, data in made.items():
                rates[kind].append(epoch(data))
        print("| | images/s | images/CPU second | MB |\n| --- | --- | --- | --- |")
        for kind, found in rates.items():
            print(f"| {kind} | " + " | ".join(f"{value:,.0f}" for value in np.median(found, axis=0)) + " |")
        ratios = [shard[1] / file[1] for shard, file in zip(rates["shards"], rates["folder"], strict=True)]
        print(f"shards / folder, images per CPU second, of each round: {', '.join(f'{one:.2f}' for one in ratios)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
