"""The folders where activation files may lie: below the data, else in the user's cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import platformdirs

_OTHERS_MAY_WRITE = 0o022


def places_for(folder: Path) -> list[Path]:
    """Where activation files of data below ``folder`` are kept, best first."""
    return [folder / "activations", Path(platformdirs.user_cache_dir("fastclf")) / "activations"]


def check_private(folder: Path) -> None:
    """Checks that only this user can have put something into ``folder``; one that does not exist is private.

    Raises:
        PermissionError: it is somebody else's, or others may write into it; says which.
    """
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return
    if stat.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {stat.st_uid})", str(folder))
    if stat.st_mode & _OTHERS_MAY_WRITE:
        raise PermissionError(errno.EPERM, "others may write into it (chmod go-w would make it safe)", str(folder))
