"""Native teams where memory ends: a call gives what it gives with enough of it, or raises MemoryError."""

import sys

import pytest
from processes import lines_of

# Each call runs on one thread, then in forked processes that may each have some more megabytes than before, on four.
SCRIPT = """
import os, resource, sys
import numpy as np, torch
from fastclf import _native
from fastclf.losses import NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.ops.arguments import RowSource
from fastclf.ops.crop_resize import CropFormat, Crops, crop_resize
from fastclf.ops.head.cpu import predict
from fastclf.schedules import Constant

F = 100_000
rows, targets = torch.randn(130, F).half(), torch.arange(130) % 2
spec = HeadSpec.from_layers(Head(F, 2, ps=[0.1], xtra_fc=[], seed=0).layers)
torch.set_num_threads(1)

def predicted(threads):
    torch.set_num_threads(threads)
    return predict(_native, spec, RowSource(rows), torch.arange(130))

def trained(threads):
    torch.set_num_threads(threads)
    losses = engine.train(torch.arange(128), 64, 0)
    return torch.cat([losses, *(p.detach().flatten() for p in spec.parameters())])

def rendered(threads):
    out = torch.empty(4, 3, 64, 64)
    part = np.array([[0, 0, 1500, 1500]] * 4, np.float32)
    matrix = np.array([[[18, 1, 0], [-1, 18, 0]]] * 4, np.float32)
    crops = Crops(part, np.full((4, 2), 1200), matrix, [])
    crop_resize([image] * 4, crops, CropFormat(64, 255.0, (0.0,) * 3, (1.0,) * 3), out, threads=threads)
    return out

image = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3)).astype(np.uint8)
engine = HeadEngine(spec, rows, targets, loss=NLL(), rates=HeadRates(0.1, Constant()), max_batch=64, seed=0)
call = {"predict": predicted, "train": trained, "crop_resize": rendered}[sys.argv[1]]

def outcome(megabytes):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20), -1))
    try:
        found = call(4)
    except MemoryError:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        return 1 if torch.equal(call(4), expected) else 3
    return 0 if torch.equal(found, expected) else 2

def forked(work):
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def one_thread():
    torch.save(call(1), sys.argv[2])
    return 0

assert forked(one_thread) == 0
expected = torch.load(sys.argv[2])
print(*(forked(lambda: outcome(megabytes)) for megabytes in range(0, 320, 20)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("call", ["predict", "train", "crop_resize"])
def test_a_call_is_right_or_raises_memory_error(call, tmp_path):
    (line,) = lines_of(SCRIPT, call, tmp_path / "expected")
    assert set(line.split()) == {"0", "1"}, line  # negative: a signal
