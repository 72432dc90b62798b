"""The engine's own C++ driver under the sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_driver_is_clean(sanitizer: str, tmp_path: Path) -> None:
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, f"-DFASTCLF_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=None"]
    for command in (configure, ["cmake", "--build", tmp_path, "--parallel", "2"], [tmp_path / "driver"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "baseline" in done.stdout
