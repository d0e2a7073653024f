"""Check the output paths of a command: it overwrites no input, no other output and no foreign file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from mm_core.core.errors import InputError
from mm_core.core.folders import misplaced

MAX_NAME = 255
"""Longest name of a file on common file systems, in bytes."""


def check_outputs(
    outputs: Sequence[Path],
    inputs: Iterable[Path],
    *,
    is_ours: Callable[[Path], bool] = lambda _: False,
    remedy: str = "choose another folder with -o",
) -> None:
    """Check all paths that a command will write, before it writes the first one.

    Args:
        outputs: The files and folders to be written, in order.
        inputs: The files that the command reads; a link to an input counts as the input.
        is_ours: Returns whether an existing file was made by an earlier run and may be replaced.
        remedy: The action for the user, for the message.

    Raises:
        InputError: An output is an input or a folder above one, two outputs are the same file (also because their
            file system ignores case), an existing file was not made by this command, a file blocks a needed folder,
            or a name is too long for a file.
    """
    input_paths = {path.resolve() for path in inputs}
    # Inputs are compared by resolved path and by inode, because a hard link has a different path.
    places = {_place(path) for path in input_paths if path.exists()}
    above = {folder for path in input_paths for folder in path.parents}
    taken: dict[Path, Path] = {}
    alike: dict[str, Path] = {}
    for output in outputs:
        if (size := len(os.fsencode(output.name))) > MAX_NAME:
            raise InputError(f"{output.name[:40]}…: a name of {size} bytes, at most {MAX_NAME} are possible: rename it")
        target = output.resolve()
        if target in input_paths or (target.exists() and _place(target) in places):
            raise InputError(f"{output} is one of the files given and would be replaced: {remedy}")
        if target in taken:
            raise InputError(f"{output} would be written twice: {remedy}, or give the files apart")
        taken[target] = output
        # `mkdir` fails at such a link, and a file would replace it.
        if lost := next((path for path in (output, *output.parents) if misplaced(path).startswith("a link")), None):
            raise InputError(f"{lost} is {misplaced(lost)}: {remedy}")
        # A file in the middle of the path would make `mkdir` fail halfway through the work.
        blocking = next((folder for folder in target.parents if folder.exists()), None)
        if blocking is not None and not blocking.is_dir():
            raise InputError(f"{blocking} is a file and no folder: {remedy}")
        other = alike.setdefault(unicodedata.normalize("NFC", str(target)).casefold(), output)
        if other != output and blocking is not None and ignores_case(blocking):
            raise InputError(f"{other} and {output} are one file there, which ignores case: give the files apart")
        if not target.exists():
            continue
        # An existing folder above an input would be replaced together with the input.
        if target in above:
            raise InputError(f"{output} holds files that were given and would be replaced: {remedy}")
        if not is_ours(output):
            raise InputError(f"{output} is there already and was not made by this command: {remedy}")


def ignores_case(folder: Path) -> bool:
    """Return whether the file system of a folder takes `a` and `A` for one name; False where nothing can be written."""
    try:
        with NamedTemporaryFile(prefix="mm-", dir=folder) as probe:
            return Path(probe.name).with_name(Path(probe.name).name.swapcase()).exists()
    except OSError:
        return False


def _place(path: Path) -> tuple[int, int]:
    """Return device and inode of a file; hard links share both."""
    status = path.stat()
    return status.st_dev, status.st_ino
