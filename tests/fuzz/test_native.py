"""The processor's launchers on random sizes, under AddressSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest
from fuzzing import EXAMPLES, SEED

ROOT = Path(__file__).parents[2]
BUILD = ["-DFASTCLF_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=None"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++")
def test_launchers(tmp_path):
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, *BUILD]
    build = ["cmake", "--build", tmp_path, "--parallel", "2", "--target", "fuzz_driver"]
    for command in (configure, build, [tmp_path / "fuzz_driver", str(EXAMPLES), str(SEED)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    print(f"seed {SEED}\n{done.stdout}")
    assert done.stdout.count(f": {EXAMPLES} inputs") == 6
