"""What processes that train together agree on, and what they send: ``python -m bench.ranks [BODY]`` prints a table.

Nothing is timed: on a machine with few cores processes share what one has. Counted are the bytes that each process
hands to torch.distributed in a training step, and the images that each decodes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SZ, BS, CLASSES, ROWS = 64, 8, 4, 38
MOST = 4  # processes
PRETRAINED = ("efficientnet_lite0",)  # bodies whose weights a package holds
sent: Counter[str] = Counter()


def write_images(folder):
    """Noise around a colour for each class: 38 images to train on, 22 to validate."""
    rng = np.random.default_rng(0)
    for place, n in (("train", ROWS), ("valid", 22)):
        for i in range(n):
            target = folder / place / f"class{i % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            colour = np.eye(4)[i % CLASSES, :3] * 150 + 50
            pixels = np.clip(colour + rng.normal(0, 60, (80, 90, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(target / f"{i}.png")


def count_bytes():
    """Count the payload of every collective, by the kind of number."""
    import torch.distributed as dist

    def counting(name, at):
        original = getattr(dist, name)

        def call(*args, **kwargs):
            tensor = args[at]
            sent[name] += tensor.numel() * tensor.element_size()
            sent[f"{name} calls"] += 1
            return original(*args, **kwargs)

        setattr(dist, name, call)

    for name, at in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
        counting(name, at)


def worker(folder, arch, out):
    """Train, predict, and write what was found."""
    import torch

    import fastclf as fc
    from fastclf import ranks
    from fastclf.data.image_loader import ImageLoader
    from fastclf.training.callbacks import Callback

    if ranks.size() > 1:
        count_bytes()
    decoded: Counter[str] = Counter()
    feed = ImageLoader.feed

    def counted(self, renderer, rows, epoch):
        decoded["images"] += len(rows)
        return feed(self, renderer, rows, epoch)

    ImageLoader.feed = counted
    steps: list[int] = []

    class PerStep(Callback):
        def on_batch_begin(self):
            sent.clear()

        def on_batch_end(self, loss):
            steps.append(sent["all_reduce"] + sent["all_gather"])

    tfms = fc.tfms_from_model(getattr(fc, arch), SZ, aug_tfms=fc.transforms_side_on, max_zoom=1.1)
    data = fc.ImageClassifierData.from_paths(folder, tfms=tfms, bs=BS)
    torch.manual_seed(0)  # of a body without weights
    learn = fc.ConvLearner.pretrained(getattr(fc, arch), data, pretrained=arch in PRETRAINED, ps=0.5)
    found = {}
    learn.fit(1e-2, 1, callbacks=[PerStep()])
    found["head alone"] = learn.sched.losses + learn.sched.val_losses
    found["bytes, head alone"], steps[:] = steps[1], []
    decoded.clear()
    learn.unfreeze()
    learn.fit([1e-4, 1e-3, 1e-2], 1, callbacks=[PerStep()])
    found["whole network"] = learn.sched.losses + learn.sched.val_losses
    found["bytes, whole network"] = steps[1]
    found["decoded"] = decoded["images"]
    found["parameters"] = sum(p.numel() for p in learn.model.parameters())
    found["head"] = sum(p.numel() for p in learn.model.head.parameters())
    predictions, y = learn.TTA(2)
    found["TTA"] = predictions.tolist()
    found["accuracy"] = [fc.accuracy(np.exp(predictions).mean(0), y)]
    learn.freeze()
    learn.precompute = True
    learn.fit(1e-2, 2)
    found["cached"] = learn.sched.losses + learn.sched.val_losses
    Path(f"{out}.{ranks.rank()}").write_text(json.dumps(found))


def run(arch, n):
    """Run the worker in n processes; what each has found."""
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place) / "images")
        arguments = ["-m", "bench.ranks", str(Path(place) / "images"), arch, str(Path(place) / "out")]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"] if n > 1 else []
        env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{place}/cache", "FASTCLF_QUIET": "1"}
        subprocess.run([sys.executable, *torchrun, *arguments], check=True, env=env)
        return [json.loads((Path(place) / f"out.{rank}").read_text()) for rank in range(n)]


def main(arch="efficientnet_lite0"):
    """Print the table of one body."""
    found = {n: run(arch, n) for n in range(1, MOST + 1)}
    one = found[1][0]
    print(f"\n{arch}: {one['parameters'] * 4 / 1e6:.1f} MB of parameters, {one['head'] * 4 / 1e6:.1f} MB the head")
    kinds = ("head alone", "whole network", "cached", "TTA", "accuracy")
    print(f"| processes | {' | '.join(kinds)} | decoded by each | MB a step, head | MB a step, whole |")
    print("|" + " --- |" * (len(kinds) + 4))
    for n, each in found.items():
        worst = [max(np.abs(np.subtract(other[kind], one[kind])).max() for other in each) for kind in kinds]
        decoded = ", ".join(str(other["decoded"]) for other in each)
        sizes = [each[0][f"bytes, {kind}"] / 1e6 for kind in kinds[:2]]
        print(f"| {n} | {' | '.join(f'{w:.1e}' for w in worst)} | {decoded} | {sizes[0]:.2f} | {sizes[1]:.2f} |")


if __name__ == "__main__":
    worker(*sys.argv[1:]) if len(sys.argv) > 2 else main(*sys.argv[1:])
