"""Digests of the files of a Delta table, stored in the table's folder.

Delta keeps no checksum of its logs, and parquet pages have none: a flipped bit in a value is read as another value.
Each commit seals its new files, and `mm check` compares them. Tables on S3 are not sealed, because S3 keeps checksums
of its objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mm_core.core.records import sha256_file, write_json

FOLDER = "_seals"
"""Subfolder of the table; Delta's readers skip names that begin with an underscore."""
_LOGS = (".json", ".parquet")


def seal(table: Path) -> int:
    """Write missing digests of a table's log files and data files; return the number of newly sealed log files.

    Safe to repeat and safe with concurrent writers: all of them write the same content.
    """
    log, seals = table / "_delta_log", table / FOLDER
    if not log.is_dir():
        return 0
    sealed = {path.name for path in seals.iterdir()} if seals.is_dir() else set()
    # Log files never change, so an existing seal stays valid.
    fresh = [path for path in log.iterdir() if path.suffix in _LOGS and f"{path.name}.json" not in sealed]
    for path in fresh:
        try:
            # A seal covers the log file of a commit and the data files that the commit added.
            files = [path, *(table / name for name in _added(path) if (table / name).is_file())]
            digests = {file.relative_to(table).as_posix(): sha256_file(file) for file in files}
        except (FileNotFoundError, ValueError):
            continue  # another writer removed the file, or it is damaged: `mm check` reports that
        write_json(seals / f"{path.name}.json", digests)
    return len(fresh)


def broken_seals(table: Path) -> Iterator[tuple[Path, str]]:
    """Yield each existing sealed file with a wrong digest, with a text about the fault."""
    seals = table / FOLDER
    for path in sorted(seals.iterdir()) if seals.is_dir() else ():
        try:
            digests = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            yield path, "not the digests that were written"
            continue
        for name, digest in digests.items():
            file = table / name
            # Compaction and vacuum remove files on purpose. Reading the table finds a missing file that is needed.
            if file.is_file() and sha256_file(file) != digest:
                yield file, "its bytes are not those that were written"


def unsealed(table: Path) -> int:
    """Return the number of log files without a seal, from an older version or from a killed process."""
    log, seals = table / "_delta_log", table / FOLDER
    if not log.is_dir():
        return 0
    sealed = {path.name for path in seals.iterdir()} if seals.is_dir() else set()
    return sum(path.suffix in _LOGS and f"{path.name}.json" not in sealed for path in log.iterdir())


def _added(log: Path) -> Iterator[str]:
    """Yield the names of the data files that a commit adds."""
    # A log file has one JSON action per line; paths are percent-encoded.
    if log.suffix == ".json":
        for line in log.read_bytes().splitlines():
            action = json.loads(line)
            if "add" in action:
                yield unquote(action["add"]["path"])
