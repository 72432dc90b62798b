"""From a folder of images to a classifier, the way of fast.ai's first lesson, natively fast.

The public names are those of `fastclf.public`. They are imported, and torch with them, when one is asked for: the
command line answers at once, and can be stopped without a traceback.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastclf.public import *  # noqa: F403

__version__ = "0.1.0"


def _import_public() -> list[str]:
    public = import_module("fastclf.public")
    globals().update({name: getattr(public, name) for name in public.__all__}, __all__=public.__all__)
    return list(public.__all__)


if not TYPE_CHECKING:  # to a type checker, any name would be known

    def __getattr__(name: str) -> Any:
        """Import a module of this package, or the public names, of which the star's list is one."""
        if name != "__all__":
            if name.startswith("__") or not name.isidentifier():  # 'resnet50.tv_in1k' would be a module of a module
                raise AttributeError(f"module 'fastclf' has no attribute '{name}'")
            if find_spec(f"fastclf.{name}") is not None:
                return import_module(f"fastclf.{name}")
        if name in {*_import_public(), "__all__"}:
            return globals()[name]
        raise AttributeError(f"module 'fastclf' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*_import_public(), *(name for name in globals() if name.startswith("__"))})
