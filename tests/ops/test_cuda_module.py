"""The GPU's module on a machine with nvcc but perhaps without a GPU: what it says, and what its kernels need.

`python tests/ops/test_cuda_module.py` writes the table anew after a deliberate change.
"""

import copy
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from processes import PATIENCE

from fastclf import ops
from fastclf.errors import BackendError
from fastclf.ops.registry import cuda_module

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "csrc" / "cuda" / "resources.json"
Resources = dict[str, dict[str, dict[str, int]]]  # architecture -> kernel -> registers, stack, shared


def cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one that comes with torch's compiler."""
    found = shutil.which("cuobjdump")
    if found is None:
        spec = importlib.util.find_spec("triton")
        beside = [] if spec is None else Path(str(spec.origin)).parent.glob("backends/nvidia/bin/cuobjdump")
        found = next((str(path) for path in beside), None)
    return found


def module_file() -> Path:
    return Path(str(importlib.import_module("fastclf._cuda").__file__))


def dumped(*options: str) -> str:
    tool = Path(str(cuobjdump()))
    environment = os.environ | {"PATH": f"{tool.parent}:{os.environ['PATH']}"}  # it calls nvdisasm
    command = [tool, *options, module_file()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment).stdout


def found_resources() -> Resources:
    found: Resources = {}
    architecture = kernel = ""
    for line in dumped("--dump-resource-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif match := re.match(r" *Function (\S+):", line):
            kernel = match.group(1)
        elif match := re.match(r" *REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            numbers = dict(zip(("registers", "stack", "shared"), map(int, match.groups()), strict=True))
            found.setdefault(architecture, {})[kernel] = numbers
    return found


def differences(table: Resources, found: Resources) -> list[str]:
    """What is new, gone, or needs more than the table says, in words. Stack is where spilled registers go."""
    said = []
    for architecture, kernels in found.items():
        known = table.get(architecture, {})
        said += [f"{architecture}: new kernel {name}" for name in kernels.keys() - known.keys()]
        said += [f"{architecture}: no kernel {name} any more" for name in known.keys() - kernels.keys()]
        for name in kernels.keys() & known.keys():
            said += [
                f"{architecture} {name}: {what} {known[name][what]} -> {n}"
                for what, n in kernels[name].items()
                if n > known[name][what]
            ]
    return sorted(said)


@pytest.fixture
def found() -> Resources:
    pytest.importorskip("fastclf._cuda", exc_type=ImportError)
    if cuobjdump() is None:
        pytest.skip("needs cuobjdump")
    return found_resources()


def test_resources_are_those_of_the_table(found: Resources) -> None:
    table = json.loads(TABLE.read_text())
    known = {architecture: kernels for architecture, kernels in found.items() if architecture in table}
    if not known:
        pytest.skip(f"built for {', '.join(found)} alone, which the table does not have")
    said = differences(table, known)
    assert not said, "\n".join([*said, "If this is meant: python tests/ops/test_cuda_module.py"])


def test_table_notices_changes() -> None:
    table = json.loads(TABLE.read_text())
    kernel = next(iter(table["sm_90"]))
    spilled = copy.deepcopy(table)
    spilled["sm_90"][kernel]["stack"] += 8
    spilled["sm_80"]["unheard_of"] = spilled["sm_80"].pop(kernel)
    stack = table["sm_90"][kernel]["stack"]
    assert differences(table, spilled) == [
        "sm_80: new kernel unheard_of",
        f"sm_80: no kernel {kernel} any more",
        f"sm_90 {kernel}: stack {stack} -> {stack + 8}",
    ]
    assert differences(table, table) == []


def test_every_kernel_is_built_for_every_architecture(found: Resources) -> None:
    assert found  # the three of the table, or those that the build was asked for
    assert len({frozenset(kernels) for kernels in found.values()}) == 1


def test_sgd_moves_20_bytes_per_parameter_in_128_bit_accesses(found: Resources) -> None:
    if "sm_90" not in found:
        pytest.skip("not built for sm_90")
    (kernel,) = (name for name in found["sm_90"] if "sgd_kernel" in name)
    code = dumped("-sass", "-arch", "sm_90", "-fun", kernel)
    loads, stores = (len(re.findall(rf"\b{name}\.E\.128 ", code)) for name in ("LDG", "STG"))
    # of 16 bytes for every four parameters: parameter, gradient, momentum; and parameter and momentum again. Two loops:
    # the second is for tensors with an average, which is one more of both.
    assert (loads, stores) == (3 + 4, 2 + 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_spilled_registers_fail_the_build(tmp_path: Path) -> None:
    flags = re.findall(r"-Werror=all-warnings|-Xptxas=\S+(?=\))", (ROOT / "CMakeLists.txt").read_text())
    assert len(flags) == 2
    command = ["nvcc", "-std=c++17", "-arch=sm_90", *flags, f"-I{ROOT / 'csrc'}", "-c", ROOT / "csrc/cuda/sgd.cu"]
    command += ["-o", tmp_path / "sgd.o", "-maxrregcount=24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert "Registers are spilled" in done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_module_says_what_is_missing() -> None:
    cuda = pytest.importorskip("fastclf._cuda", exc_type=ImportError)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU with a driver for CUDA 13; none was found"):
        cuda.add_bias(z=0, bias=0, rows=1, cols=1, relu=False, stream=0)


def test_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastclf._cuda", None)
    with (
        ops.use_backend("native"),
        pytest.raises(BackendError, match=r"_cuda, did not load .* where nvcc is on the PATH"),
    ):
        cuda_module(torch.device("cuda"))


def test_arguments_are_named(emulated_module: ModuleType) -> None:
    arguments = {"z": 0, "bias": 0, "rows": 0, "cols": 0, "relu": False, "stream": 0}
    emulated_module.add_bias(**arguments)
    with pytest.raises(TypeError, match="missing keyword argument: bias"):
        emulated_module.add_bias(**{"bais" if name == "bias" else name: value for name, value in arguments.items()})
    with pytest.raises(TypeError, match="add_bias: unexpected arguments"):
        emulated_module.add_bias(**arguments, more=1)


if __name__ == "__main__":
    text = json.dumps(found_resources(), indent=1, sort_keys=True)
    TABLE.write_text(re.sub(r"\{\s+(\"registers[^}]*\d)\s+\}", lambda m: f"{{{' '.join(m[1].split())}}}", text) + "\n")
