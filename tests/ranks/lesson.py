"""The lesson, small: what it finds, as JSON. Nothing in it knows of ranks but its own seed and the check of a pass."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, tiny_learner
from torch import nn

from fastclf import ranks
from fastclf.activations import precompute
from fastclf.learners.learner import Learner
from fastclf.training.callbacks import Callback

folder, out = Path(sys.argv[1]), Path(sys.argv[-1])
found, computed = {}, []


def curve(learn):
    return learn.sched.losses + learn.sched.val_losses


class Truncates(Callback):
    """An image goes bad between two epochs."""

    def on_epoch_end(self, metrics):
        ranks.wait()
        if ranks.is_first():
            (folder / "train" / "green" / "002.png").write_bytes(b"gone bad")
        ranks.wait()


def note_computed(original=precompute._features):
    def features(net, images, view, *, behind):
        for values, rows in original(net, images, view, behind=behind):
            computed.extend(f"{images.split} {row}" for row in rows.tolist())
            yield values, rows

    precompute._features = features


data = image_data(folder, bs=8, on_bad="skip")
print("printed by the script")
learn = tiny_learner(data, pretrained=True)
learn.fit(0.1, 2, callbacks=[Truncates()])
found["frozen"] = curve(learn)
learn.unfreeze()
found["metrics"] = learn.fit([0.01, 0.02, 0.05], 2)[1:]
found["unfrozen"] = curve(learn)
learn.bn_freeze(False)
learn.fit([0.01, 0.02, 0.05], 1)
found["batch_norm"] = curve(learn)
first, y = learn.TTA(2)
found["tta"], found["y"] = np.nan_to_num(first).tolist(), y.tolist()
found["valid"] = np.nan_to_num(learn.predict()).tolist()
found["test"] = learn.predict(is_test=True).tolist()
found["train"] = learn.predict_dl(learn.data.trn_dl).tolist()
found["bad"] = sorted(map(int, data.trn_ds.bad.reasons))
learn.lr_find()
found["lr_find"] = learn.sched.losses[:20]
learn.save("m")
found["saved"] = sorted(path.suffix for path in (folder / "models").iterdir())
learn.load("m")

fresh = tiny_learner(data, pretrained=True)
note_computed()
ranks.wait()
fresh.precompute = True
found["computed"], found["rows"] = computed, np.array(fresh.data.trn_ds.rows[np.arange(len(data.trn_ds))]).tolist()
fresh.fit(0.1, 3)
found["head"] = curve(fresh)
later = tiny_learner(data, pretrained=True)
later.freeze_to(1)
later.precompute = True  # feature maps of group 0, on which group 1 and the head train
later.fit([0.01, 0.02, 0.05], 2)
found["maps"] = curve(later)
found["maps valid"] = np.nan_to_num(later.predict()).tolist()


def log_mean_exp(scores, targets):
    """No mean over rows: it cannot be made from the parts of a batch."""
    return nn.functional.cross_entropy(scores, targets, reduction="none").logsumexp(0)


torch.manual_seed(ranks.rank())  # other weights on each rank, until the first's are taken
rows = row_data(folder / "rows", np.random.default_rng(0), n=34, n_valid=2, bs=16)
for name, crit, more in (
    ("own", log_mean_exp, {}),
    ("adam", nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])), {"opt_fn": torch.optim.Adam}),
):
    torch.manual_seed(ranks.rank())
    model = nn.Sequential(nn.Linear(10, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.LogSoftmax(1))
    own = Learner.from_model_data(model, rows, crit=crit, **more)
    own.fit(0.01, 3)
    found[name] = curve(own)
found["two"] = own.predict().tolist()
if ranks.size() > 1:
    with pytest.raises(ValueError, match="fit: all ranks must have the same setting, got differing lrs"):
        own.fit(0.01 * (1 + ranks.rank()), 1)
out.write_text(json.dumps(found))
