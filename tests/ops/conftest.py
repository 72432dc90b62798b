import fcntl
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from instruction_sets import instruction_set, instruction_sets

from fastclf import ops

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def emulated_module() -> ModuleType:
    """The GPU's kernels compiled for the processor; built once, and again when a source has changed."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++")
    pybind11 = pytest.importorskip("pybind11")
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DFASTCLF_EMULATE=ON", "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (path,) = folder.glob("_emulated*.so")
    spec = importlib.util.spec_from_file_location("fastclf._emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastclf._emulated"] = module
    return module


@pytest.fixture(params=["reference", *(f"native-{isa}" for isa in instruction_sets()), "emulated"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each implementation of the operations on the processor."""
    name, _, isa = request.param.partition("-")
    if name == "emulated":
        request.getfixturevalue("emulated_module")
    with ops.use_backend(name), instruction_set(isa) if isa else nullcontext():
        yield request.param


@pytest.fixture(params=["reference", "emulated", "cuda"])
def kernel_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Runs the test once for each implementation of the GPU's kernels; where their tensors must be."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if request.param == "emulated":
        request.getfixturevalue("emulated_module")
    with ops.use_backend("native" if request.param == "cuda" else request.param):
        yield torch.device("cuda" if request.param == "cuda" else "cpu")
