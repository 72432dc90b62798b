"""The folders where activation files may lie: below the data, else in the user's cache."""

from __future__ import annotations

from pathlib import Path

from fastclf.files import user_cache


def places_for(folder: Path) -> list[Path]:
    """Return where activation files of data below ``folder`` are kept, best first."""
    return [folder / "activations", user_cache() / "activations"]
