"""The lesson on archives, parquet files and a Hugging Face data set: what it finds, and what this process reads."""

import json
import sys
from pathlib import Path

import numpy as np
from helpers import HALF, tiny_learner

from fastclf import ranks, tfms_from_stats
from fastclf.activations import precompute
from fastclf.data.classifier_data import ImageClassifierData as Data
from fastclf.data.sources import tar_index
from fastclf.data.sources.hf import HfSource
from fastclf.data.sources.parquet import ParquetSource
from fastclf.data.sources.shards import ShardSource
from fastclf.training.callbacks import Callback

place, out = Path(sys.argv[1]), Path(sys.argv[-1])
TFMS = tfms_from_stats(HALF, 16)
reads, headers, computed = [], [], []
found = {}


def counted(owner, name, note):
    original = getattr(owner, name)

    def call(*args, **kwargs):
        note(*args)
        return original(*args, **kwargs)

    setattr(owner, name, call)


for source in (ShardSource, ParquetSource, HfSource):
    counted(source, "read", lambda self, row: reads.append(self.name(row)))
counted(tar_index, "_read_headers", lambda file, stamp: headers.append(file.name))
original = precompute._features


def features(net, images, view, *, behind):
    for values, rows in original(net, images, view, behind=behind):
        computed.extend(f"{images.split} {row}" for row in rows.tolist())
        yield values, rows


precompute._features = features


class AfterScan(Callback):
    """Separates what the scan reads from what training reads."""

    def on_train_begin(self):
        done("scan")


def done(what):
    found[f"{kind} {what}"] = sorted(reads)
    reads.clear()


makers = {
    "shards": lambda path: Data.from_shards(place / "train-{0..2}.tar", 8, TFMS, place / "val.tar", path=path),
    "parquet": lambda path: Data.from_parquet(place / "train.parquet", 8, TFMS, place / "val.parquet", path=path),
    "hf": lambda path: Data.from_hf(place / "hf", 8, TFMS, path=path),
}
for kind in sys.argv[2].split(","):
    path = place / f"kept-{kind}"
    if ranks.is_first():
        path.mkdir()
    ranks.wait()
    data = makers[kind](path)
    reads.clear()
    learn = tiny_learner(data, pretrained=True)
    learn.fit(0.1, 1, callbacks=[AfterScan()])
    done("fit")
    found[f"{kind} losses"] = learn.sched.losses + learn.sched.val_losses
    found[f"{kind} predictions"] = np.exp(learn.predict()).tolist()
    done("predict")
    computed.clear()
    fresh = tiny_learner(data, pretrained=True)
    ranks.wait()
    fresh.precompute = True
    done("precompute")
    found[f"{kind} computed"] = sorted(computed)
    fresh.fit(0.1, 2)
    found[f"{kind} head"] = fresh.sched.losses + fresh.sched.val_losses
found["headers"] = sorted(headers)
out.write_text(json.dumps(found))
