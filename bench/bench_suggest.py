"""`suggest` against as many random images: accuracy on others, from 10 random labels (a class each of breeds) on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.bench_choice import learner, of_set
from bench.tuned_regression import log_loss, share_right
from fastclf import HeadLearner
from fastclf.learners.auditing import _SUGGESTING
from fastclf.training.head_runs import HeadTraining, predict_rows
from fastclf.training.linear_heads import linear_heads

SEEDS = range(10)
STAGES = {"catsdogs": (700, 200), "scenes": (1500, 200), "digits": (1297, 200), "dogbreeds": (108, 80)}


@pytest.mark.parametrize("name", STAGES)
def bench_suggest(benchmark: Any, tmp_path: Path, threads: int, quick: bool, name: str) -> None:
    torch.set_num_threads(threads)
    n, most = STAGES[name]
    learn = learner(of_set(name, n).data(tmp_path))
    runs: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: runs.extend(run(learn, most, seed) for seed in SEEDS[: 1 if quick else None]), rounds=1)
    benchmark.extra_info |= {"images": f"{name}, {n:,}", "runs": runs}


def run(learn: Any, most: int, seed: int) -> dict[str, Any]:
    """Accuracy and log loss by way and number of labels."""
    ds, found = learn.data.trn_ds, {}
    stages = [n for n in (10, 20, 50, 100, 200) if n < most] + [most]
    for way in ("random", "suggest"):
        rng = np.random.default_rng(seed)
        labelled = rng.permutation(len(ds))[: stages[0]]
        for now, then in zip(stages, [*stages[1:], 0], strict=True):
            found[f"{way} {now}"] = scores(learn, labelled)
            if then:
                left = np.setdiff1d(np.arange(len(ds)), labelled)
                if way == "random":
                    more = rng.choice(left, then - now, replace=False)
                else:
                    more = left[suggested(learn, labelled, left, then - now)]
                labelled = np.concatenate([labelled, more])
    return found


def suggested(learn: HeadLearner, labelled: Any, left: Any, n: int) -> Any:
    """Places in ``left`` of what `suggest` names, where only ``labelled`` rows have labels."""
    ds = learn.data.trn_ds
    ds.bad.reasons = {row: "no label" for row in range(len(ds)) if row not in {*labelled.tolist()}}
    try:
        return learn.suggest(np.asarray(ds.rows)[left], n).rows
    finally:
        ds.bad.reasons = {}


def scores(learn: HeadLearner, labelled: Any) -> list[float]:
    """Accuracy and log loss on validation rows."""
    ds, val = learn.data.trn_ds, learn.data.val_ds
    training = HeadTraining.usual(learn.data)
    (head,) = linear_heads(ds, np.sort(labelled), [_SUGGESTING], crit=training.crit)
    logits = torch.from_numpy(predict_rows(head, val, np.arange(len(val)))).double()
    probs = (logits.sigmoid() if ds.is_multi else logits.softmax(1)).numpy()
    return [share_right(probs, val.y), log_loss(probs, val.y)]
