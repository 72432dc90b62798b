"""A script in which one rank dies somewhere: ``dies.py FOLDER PLACE RANK HOW``."""

import os
import signal
import sys
import time
from pathlib import Path

from helpers import image_data, packed_data, tiny_learner

from fastclf import checkpoint, ranks
from fastclf.activations import precompute
from fastclf.training import steps

folder, place, rank, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
PLACES = {
    "step": (steps.AutogradSteps, "_update", 9),
    "block": (precompute, "_give_back", 1),
    "write": (checkpoint, "_older", 2),  # new weights are there, and nothing points to them
}


def dying(original, n):
    calls = iter(range(1, 1_000_000))

    def call(*args, **kwargs):
        if next(calls) == n:
            (folder / "died").write_text(repr(time.time()))
            if how == "raises":
                raise RuntimeError("the error to read")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return call


if place in PLACES and ranks.rank() == rank:
    owner, name, n = PLACES[place]
    setattr(owner, name, dying(getattr(owner, name), n))
data = packed_data(folder) if (folder / "val.tar").exists() else image_data(folder)
learn = tiny_learner(data, pretrained=True)
learn.fit(0.1, 3, state_name="state", resume=True)
learn.precompute = True
learn.fit(0.1, 2)
learn.save("m")
