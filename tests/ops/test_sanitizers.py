"""The C++ drivers under the sanitizers: the processor's engine, and the emulation of CUDA with its planted faults."""

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import PATIENCE

ROOT = Path(__file__).parents[2]
FAULTS = {
    ("address,undefined", "array"): ("heap-buffer-overflow", "in read_past_array"),
    ("address,undefined", "shared"): ("heap-buffer-overflow", "in read_past_shared"),
    ("thread", "barrier"): ("data race", "block_sum_kernel"),
    ("thread", "blocks"): ("data race", "write_from_all_blocks"),
    ("address,undefined", "branch"): ("waits at __syncthreads for threads that never come", "divergent branch"),
    ("address,undefined", "aligned"): ("an access of 16 bytes is not aligned",),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++"),
]


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def drivers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The drivers, built with a sanitizer."""
    folder = tmp_path_factory.mktemp("drivers")
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DFASTCLF_SANITIZE={request.param}", "-DCMAKE_BUILD_TYPE=None"]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return request.param, folder


def run(*command: Path | str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def test_engine_is_clean(drivers: tuple[str, Path]) -> None:
    status, said = run(drivers[1] / "driver")
    assert status == 0, said[-6000:]
    assert "baseline" in said


def test_emulated_kernels_are_clean(drivers: tuple[str, Path]) -> None:
    status, said = run(drivers[1] / "emulated_driver")
    assert status == 0, said[-6000:]
    assert said == "finished\n"


def test_planted_faults_are_caught(drivers: tuple[str, Path]) -> None:
    sanitizer, folder = drivers
    for (where, fault), expected in FAULTS.items():
        if where == sanitizer:
            status, said = run(folder / "emulated_driver", fault)
            assert status != 0, f"{fault} was not noticed: {said}"
            assert all(words in said for words in expected), said
