from collections.abc import Iterator

import pytest
import torch

from fastclf import ops
from fastclf.ops.backend import native_module


def _instruction_sets() -> list[str]:
    """Native vector code of every instruction set that this processor runs."""
    native, best, found = native_module(), native_module().isa(), []
    for name in ("baseline", "avx2", "avx512"):
        try:
            native.use_isa(name)
        except RuntimeError:
            continue
        found.append(name)
    native.use_isa(best)
    return found


ISAS = _instruction_sets()


@pytest.fixture(params=["reference", *(f"native-{isa}" for isa in ISAS)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each implementation of the operations."""
    name, _, isa = request.param.partition("-")
    native, best = native_module(), native_module().isa()
    with ops.use_backend(name):
        if isa:
            native.use_isa(isa)
        yield request.param
    native.use_isa(best)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small float64 references run many times faster so on a busy machine; tests of threads set their own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
