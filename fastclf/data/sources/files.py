"""Images in files below one folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import ClassVar

from fastclf.data.sources.source import Source, Version
from fastclf.paths import system_name


class FileSource(Source):
    """Images in files; DALI reads them by path."""

    has_paths: ClassVar[bool] = True

    def stat(self, row: int) -> Version:
        """See `Source.stat`."""
        status = os.stat(self.path(row))  # noqa: PTH116  # some times faster
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            raise OSError(errno.EINVAL, "Is a directory" if is_folder else "a pipe, socket or device")
        return Version.of(status)

    def read(self, row: int) -> bytes:
        """See `Source.read`."""
        return Path(self.path(row)).read_bytes()

    def path(self, row: int) -> str:
        """See `Source.path`."""
        return f"{self.root}/{system_name(self.names[row])}"
