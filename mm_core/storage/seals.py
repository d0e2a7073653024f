"""Digests of the files that a Delta table is made of, written beside them when they are new.

Delta keeps no checksum of its logs, and parquet's pages carry none: a flipped bit in a value reads as another value.
After each commit the new files of the table's folder are sealed; `mm check` compares. Tables on S3 are not sealed: S3
keeps checksums of its objects itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mm_core.core.records import sha256_file, write_json

FOLDER = "_seals"
"""In the table's folder; Delta's readers pass over names that begin with an underscore."""
_LOGS = (".json", ".parquet")


def seal(table: Path) -> int:
    """Write the digests of a table's log files and data files that have none yet; return how many log files that were.

    Safe to repeat and safe beside other writers: all of them write the same.
    """
    log, seals = table / "_delta_log", table / FOLDER
    if not log.is_dir():
        return 0
    known = {path.name for path in seals.iterdir()} if seals.is_dir() else set()
    fresh = [path for path in log.iterdir() if path.suffix in _LOGS and f"{path.name}.json" not in known]
    for path in fresh:
        try:
            files = [path, *(table / name for name in _added(path) if (table / name).is_file())]
            digests = {file.relative_to(table).as_posix(): sha256_file(file) for file in files}
        except (FileNotFoundError, ValueError):
            continue  # another writer tidied up, or the file is damaged: `mm check` reads it
        write_json(seals / f"{path.name}.json", digests)
    return len(fresh)


def broken_seals(table: Path) -> Iterator[tuple[Path, str]]:
    """Yield each sealed file of a table that is there and is another, with what is wrong."""
    seals = table / FOLDER
    for path in sorted(seals.iterdir()) if seals.is_dir() else ():
        try:
            digests = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            yield path, "not the digests that were written"
            continue
        for name, digest in digests.items():
            file = table / name
            # What compaction and clean-up removed is no fault: a missing file that is needed is found by reading.
            if file.is_file() and sha256_file(file) != digest:
                yield file, "its bytes are not those that were written"


def unsealed(table: Path) -> int:
    """Return how many log files have no seal: written by an older version, or by a process that was killed."""
    log, seals = table / "_delta_log", table / FOLDER
    if not log.is_dir():
        return 0
    known = {path.name for path in seals.iterdir()} if seals.is_dir() else set()
    return sum(path.suffix in _LOGS and f"{path.name}.json" not in known for path in log.iterdir())


def _added(log: Path) -> Iterator[str]:
    """Names of the data files that a commit adds."""
    if log.suffix == ".json":
        for line in log.read_bytes().splitlines():
            action = json.loads(line)
            if "add" in action:
                yield unquote(action["add"]["path"])
