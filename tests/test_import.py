"""Importing is free: no GPU, no DALI, no timm, nothing that is not needed yet."""

import json
import subprocess
import sys

from processes import lines_of

import fastclf

PROBE = """
import json, sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from fastclf import *
end = time.perf_counter()
loaded = sorted({name.split('.')[0] for name in sys.modules})
print(json.dumps([middle - start, end - middle, torch.cuda.is_initialized(), loaded]))
"""


def test_importing_is_free():
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    torch_seconds, own_seconds, gpu, loaded = json.loads(probe.stdout)
    print(f"import torch {torch_seconds:.2f} s, import fastclf then {own_seconds:.2f} s more")
    assert not gpu
    assert not {"nvidia", "timm", "torchvision", "scipy", "sklearn", "pandas", "matplotlib", "PIL"} & set(loaded)


LATE = """
import sys
import fastclf
from fastclf import errors, report
from fastclf.cli import _parser
_parser()  # with the options of all commands
print("torch" in sys.modules, *(hasattr(fastclf, name) for name in ("no_such_name", "__wrapped__", "resnet50.tag")))
own = {name for name in dir(fastclf) if not name.startswith("__")}
print(fastclf.losses.NLL is fastclf.NLL, own == set(fastclf.__all__) - {"__version__"}, "torch" in sys.modules)
print("__version__" in dir(fastclf))
"""


def test_torch_is_imported_when_a_public_name_is_asked_for():
    assert lines_of(LATE) == ["False False False False", "True True True", "True"]


def test_every_public_name_is_there_and_documented():
    for name in fastclf.__all__:
        value = getattr(fastclf, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name
