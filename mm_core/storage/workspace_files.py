"""List a workspace's files, those of folders on other disks included."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path


def workspace_files(root: Path, left_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the regular files of a workspace, by their paths below `root`.

    Folders and files that were moved out of the workspace and linked are part of it. Other links lead to files that
    have a place of their own in it, or to a folder that holds the workspace: they are left out. So are pipes and
    sockets, because reading a pipe waits for its writer.

    Args:
        root: The workspace.
        left_out: Folders that are not entered, under any name.
    """
    barred = {*left_out, *(path.resolve() for path in left_out)}
    seen: set[Path] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        # Several links may lead to one folder.
        if (real := Path(folder).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        inner = [Path(folder) / name for name in sorted(folders)]
        # Changing `folders` in place keeps os.walk out of the others.
        folders[:] = [
            path.name for path in inner if not {path, path.resolve()} & barred and not _leads_back(path, root)
        ]
        paths = (Path(folder) / name for name in names)
        yield from (path for path in paths if path.is_file() and not _leads_back(path, root))


def _leads_back(path: Path, root: Path) -> bool:
    """Return whether a path is a link to a place in the workspace or to a folder above it."""
    if not path.is_symlink():
        return False
    target, home = path.resolve(), root.resolve()
    return target.is_relative_to(home) or home.is_relative_to(target)
