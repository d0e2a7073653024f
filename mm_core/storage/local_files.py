"""Files of a folder: unfinished ones, which are moved into place at the end, and what shows that one changed."""

from __future__ import annotations

import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
"""Name of the folder of unfinished files in a store, and suffix of hidden unfinished files."""
LEFT_AFTER = 3600
"""Seconds without a write after which a temporary file is regarded as left by a killed process."""


class Drafts:
    """A folder for unfinished files; leftovers of killed processes are removed on first use."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is created when the first file is written."""
        self.folder = folder
        self._swept = False

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Yield a new file of this thread that becomes `path` if the body succeeds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            remove_left_over(self.folder)
            self._swept = True
        # A random name keeps threads and processes apart.
        temporary = self.folder / uuid.uuid4().hex
        try:
            yield temporary
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_left_over(folder: Path, *, temporary_names: bool = False) -> None:
    """Remove files and folders without a write in the last LEFT_AFTER seconds.

    Args:
        folder: A folder that holds temporary files alone, unless `temporary_names` is set.
        temporary_names: Remove only entries that `is_temporary` recognises.
    """
    for entry in os.scandir(folder):
        if temporary_names and not is_temporary(entry.name):
            continue
        with suppress(FileNotFoundError):  # another process may clean up at the same time
            if entry.stat(follow_symlinks=False).st_mtime <= time.time() - LEFT_AFTER:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def is_temporary(name: str) -> bool:
    """Return whether a file name is that of an unfinished file."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def size_and_stamp(file: os.DirEntry[str] | str) -> tuple[int, str]:
    """Return size in bytes and time of the last change of a file, or of a link's target.

    Copies that keep the time of their original (`cp -p`, rsync) change the inode's time only, so the later one counts.
    """
    # The entry of a listing has its own, cheaper call.
    state = os.lstat(file) if isinstance(file, str) else file.stat(follow_symlinks=False)
    size, time_ns = state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)
    if stat.S_ISLNK(state.st_mode):
        with suppress(OSError):  # the link leads nowhere
            target = os.stat(file)
            size, time_ns = target.st_size, max(time_ns, target.st_mtime_ns, target.st_ctime_ns)
    return size, str(time_ns)
