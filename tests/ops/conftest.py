from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from instruction_sets import instruction_set, instruction_sets

from fastclf import ops


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
