"""What a command may write into a folder that the user names: nothing given, nothing twice, nothing foreign."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mm_core.core.errors import InputError


def check_outputs(
    outputs: Sequence[Path],
    inputs: Iterable[Path],
    *,
    is_ours: Callable[[Path], bool] = lambda _: False,
    remedy: str = "choose another folder with -o",
) -> None:
    """Check every path that a command is going to write, before it writes the first.

    Args:
        outputs: The files and folders to be written, in the order of the work.
        inputs: The files that the command reads; links to them count as them.
        is_ours: Whether something that lies at an output's path was made by an earlier run and may be replaced.
        remedy: What the user can do, for the message.

    Raises:
        InputError: An output is one of the inputs or a folder above one, two outputs are one file, something lies there
            that no earlier run made, or a file lies where a folder is needed.
    """
    given = {path.resolve() for path in inputs}
    places = {_place(path) for path in given if path.exists()}
    above = {folder for path in given for folder in path.parents}
    taken: dict[Path, Path] = {}
    for output in outputs:
        target = output.resolve()
        if target in given or (target.exists() and _place(target) in places):
            raise InputError(f"{output} is one of the files given and would be replaced: {remedy}")
        if target in taken:
            raise InputError(f"{output} would be written twice: {remedy}, or give the files apart")
        taken[target] = output
        blocking = next((folder for folder in target.parents if folder.exists()), None)
        if blocking is not None and not blocking.is_dir():
            raise InputError(f"{blocking} is a file and no folder: {remedy}")
        if not target.exists():
            continue
        if target in above:
            raise InputError(f"{output} holds files that were given and would be replaced: {remedy}")
        if not is_ours(output):
            raise InputError(f"{output} is there already and was not made by this command: {remedy}")


def _place(path: Path) -> tuple[int, int]:
    """What a file is, whatever its name: hard links share it."""
    status = path.stat()
    return status.st_dev, status.st_ino
