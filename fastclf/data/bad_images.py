"""Which pictures of a failed batch are to blame, and why."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastclf.data.samples import Dataset
from fastclf.errors import BackendError, BadImageError, FastclfError

_MAGIC = (
    (b"GIF8", "unsupported format GIF"),
    (b"<svg", "unsupported format SVG"),
    (b"<?xml", "unsupported format SVG or XML"),
    (b"\xff\x0a", "unsupported format JPEG XL"),
    (b"\0\0\0\x0cJXL ", "unsupported format JPEG XL"),
    (b"<", "not a picture but a text or web page"),
    (b"\xff\xd8", "damaged or truncated JPEG"),
    (b"\x89PNG", "damaged or truncated PNG"),
    (b"RIFF", "damaged or truncated WebP"),
)
_ISO_MEDIA = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF"}


def explain(ds: Dataset, rows: npt.NDArray[np.int64], error: Exception) -> FastclfError:
    """Decodes the pictures of a failed batch one by one, since DALI's own message often names no file.

    Returns:
        A BadImageError that names every one that fails, or a BackendError when none does.
    """
    reasons = {}
    if ds.images is None:
        names = [ds.fnames[row] for row in rows]
        found = ((name, reason(ds.path / name)) for name in sorted(set(names)))
        reasons = {name: why for name, why in found if why is not None}
    if not reasons:
        return BackendError(f"DALI failed on a batch whose pictures can each be decoded: {error}")
    listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return BadImageError(
        f"{len(reasons)} of the {len(rows)} pictures of a batch cannot be decoded, in {ds.path}: {listed}. "
        "Replace these files or take them away.",
        reasons,
    )


def reason(file: Path) -> str | None:
    """Says why a file cannot be decoded; None when it can."""
    try:
        with file.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        return "not found; the folder was changed since it was scanned"
    except OSError as error:
        return error.strerror or str(error)
    if not head:
        return "empty file"
    from fastclf.data.pipeline import decode

    try:
        decode(os.fsencode(file))
    except RuntimeError:
        if head[4:8] == b"ftyp" and head[8:12] in _ISO_MEDIA:
            return f"unsupported format {_ISO_MEDIA[head[8:12]]}"
        return next((why for magic, why in _MAGIC if head.startswith(magic)), "damaged, or no known picture format")
    return None
