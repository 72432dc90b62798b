"""The native module's vector code, compiled for several instruction sets."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastclf.errors import BackendError
from fastclf.ops.registry import native_module


def instruction_sets() -> list[str]:
    """Those that this processor runs."""
    found = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            with instruction_set(name):
                found.append(name)
        except BackendError:
            continue
    return found


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Runs the native module with the code for one of them."""
    native, best = native_module(), native_module().isa()
    try:
        native.use_isa(name)
        yield
    finally:
        native.use_isa(best)
