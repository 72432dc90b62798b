"""What loaders hold: threads, memory, processes. Each count is taken after a first loader, which loads libraries."""

import gc
import json
from pathlib import Path

import pytest
from processes import lines_of, wait_until

from fastclf import tfms_from_stats, transforms_side_on
from fastclf.data.classifier_data import ImageClassifierData

TFMS = tfms_from_stats(([0.5] * 3, [0.5] * 3), 24, transforms_side_on, 1.1)


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


def use(folders):
    data = ImageClassifierData.from_paths(folders, 4, TFMS, num_workers=3)
    for dl in (data.trn_dl, data.val_dl):
        assert sum(len(x) for x, _ in dl) == dl.n
    return data


@pytest.mark.parametrize("how", ["closed", "collected", "left"])
def test_threads_are_given_back(folders, how):
    del_me = use(folders)
    del del_me
    gc.collect()
    before = threads()
    data = use(folders)
    batches = iter(data.aug_dl)
    next(batches)
    assert threads() >= before + 3 * 3  # three graphs
    if how == "left":
        batches.close()
        assert sum(len(x) for x, _ in data.aug_dl) == 8
    if how == "collected":
        del data, batches
    else:
        del batches
        for dl in (data.trn_dl, data.val_dl, data.aug_dl):
            dl.close()
    gc.collect()
    wait_until(lambda: threads() == before)
    assert threads() == before
    if how == "closed":
        assert sum(len(x) for x, _ in data.val_dl) == 8  # it can still be used


EPOCHS = """
import json, os, re, sys
from pathlib import Path
from tests.data.test_resources import TFMS, ImageClassifierData

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

shared = sorted(os.listdir("/dev/shm"))
data = ImageClassifierData.from_paths(sys.argv[1], 4, TFMS, num_workers=2)
found = []
for epoch in range(20):
    for dl in (data.trn_dl, data.val_dl):
        for x, y in dl:
            pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found.append((resident(), children, sorted(os.listdir("/dev/shm")) == shared))
print(json.dumps(found))
"""


def test_memory_stays_and_nothing_is_left_in_shared_memory(folders):
    pytest.importorskip("nvidia.dali")
    found = json.loads(lines_of(EPOCHS, folders)[-1])
    resident = [kilobytes for kilobytes, _, _ in found]
    assert max(resident[5:]) < resident[4] + 8_000  # an epoch's batches are 140 kB of pixels and 240 kB of results
    # One child process, the one that decodes new files, and it is never started again.
    assert all(children == found[0][1] and len(children) == 1 and shared for _, children, shared in found)


FORK = """
import os, sys
from fastclf.errors import BackendError
from tests.data.test_resources import TFMS, ImageClassifierData

data, anew = (ImageClassifierData.from_paths(sys.argv[1], 4, TFMS, num_workers=2, device="cpu") for _ in range(2))
next(iter(data.val_dl))
if os.fork() == 0:
    for one in (data, anew):
        try:
            next(iter(one.val_dl))
        except BackendError as error:
            print(error, flush=True)
    os._exit(0)
print(os.wait()[1], sum(len(x) for x, _ in data.val_dl))
"""


def test_a_forked_process_raises(folders):
    """It would wait for ever for threads that only its parent has."""
    pytest.importorskip("nvidia.dali")
    told, told_anew, parent = lines_of(FORK, folders)
    assert "'spawn'" in told
    assert "'spawn'" in told_anew
    assert parent == "0 8"
