"""Digests of files without one in their names, stored next to new files.

Delta keeps no checksum of its logs, and parquet pages have none: a flipped bit in a value is read as another value.
Each commit seals its new files, and `mm check` compares them. Tables on S3 are not sealed, because S3 keeps checksums
of its objects.

Snapshot, split and an evaluation's scores are sealed as folders, and so are the records of a store on a disk
(`KeySeals`). Databases change in place, also by other programs: their seal is valid for one size and modification time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file, misplaced
from mm_core.core.records import sha256_file, unseal, write_json, write_sealed_json
from mm_core.storage.local_files import is_temporary, remove_left_over
from mm_core.storage.workspace_files import workspace_files

FOLDER = "_seals"
"""Subfolder of the table; Delta's readers skip names that begin with an underscore."""
_LOGS = (".json", ".parquet")
DIGESTS = "digests.json"
"""Name of the file in a sealed folder: path of each file → its digest."""
SEALED_KEYS = ("ingest/", "quarantine/", "gate/")
"""Prefixes of the store's keys with one seal each: records that are rewritten under the same key."""
KEY_SEALS = ".seals"
DATABASES = "databases.json"
"""Name of the file in the workspace: path of each sqlite file → size, modification time in ns, digest."""
_read_seals: dict[str, tuple[int, int, int]] = {}
"""Path of a seal that this process has read → inode, size and modification time in ns."""
_known_digests: dict[str, str] = {}
"""Path of a table's file → its digest, from these seals."""
_intact_files: dict[str, tuple[str, int, int, int]] = {}
"""Path of a file that this process has compared → its digest, inode, size and modification time in ns."""
DatabaseSeals = dict[str, list[int | str]]
"""The content of `DATABASES`."""
_TICK = 0.05
"""Resolution of a file system's clock in seconds, at worst."""
_LAST = 8
"""Digests kept per key: two writers may replace it concurrently, and a killed one may not finish."""


# Seals of Delta tables.
def seal(table: Path) -> int:
    """Write missing digests of a table's log files and data files; return the number of newly sealed log files.

    Safe to repeat and safe with concurrent writers: all of them write the same content.
    """
    log, seals = table / "_delta_log", table / FOLDER
    if not log.is_dir():
        return 0
    sealed = set(os.listdir(seals)) if seals.is_dir() else set()
    if any(map(is_temporary, sealed)):
        remove_left_over(seals, temporary_names=True)
    # Log files never change, so an existing seal stays valid.
    fresh = [path for path in log.iterdir() if path.suffix in _LOGS and f"{path.name}.json" not in sealed]
    for path in fresh:
        try:
            # A seal covers the log file of a commit and the data files that the commit added.
            files = [path, *(table / name for name in _added(path) if (table / name).is_file())]
            digests = {file.relative_to(table).as_posix(): sha256_file(file) for file in files}
        except (FileNotFoundError, ValueError):
            continue  # another writer removed the file, or it is damaged: `mm check` reports that
        write_sealed_json(seals / f"{path.name}.json", digests)
    return len(fresh)


def broken_seals(table: Path) -> Iterator[tuple[Path, str]]:
    """Yield each existing sealed file with a wrong digest, with a text about the fault."""
    seals = table / FOLDER
    for path in sorted(seals.iterdir()) if seals.is_dir() else ():
        if is_temporary(path.name):  # of a killed process, or of one that is writing it
            continue
        digests = _read_digests(path)
        if not digests or not all(name.endswith(_LOGS) for name in digests):
            yield path, "not the digests that were written"
            continue
        for name, digest in digests.items():
            file = table / name
            # Compaction and vacuum remove files on purpose. Reading the table finds a missing file that is needed.
            if file.is_file() and sha256_file(file) != digest:
                yield file, "its bytes are not those that were written"


def log_fault(table: Path) -> str:
    """Return which log file of a table differs from its seal; empty if none does.

    delta-rs reads an emptied commit as one without changes, and a flipped bit in a name or number as another one. Each
    file is read once per process: commits never change.
    """
    log, seals = table / "_delta_log", table / FOLDER
    if not seals.is_dir() or not log.is_dir():
        return ""
    # The seals are listed first: another process may commit now, and it writes the log before the seal.
    newest = max((name for name in os.listdir(seals) if name.endswith(".json.json")), default="").removesuffix(".json")
    entries = {entry.name: entry for entry in os.scandir(log) if entry.name.endswith(_LOGS)}
    # delta-rs waits without end for the writer of a pipe, and ignores a folder.
    if fault := misplaced_among(Path(entry.path) for entry in entries.values()):
        return fault
    # Old commits are removed on purpose; without the newest one, the table would be read as it was before.
    if newest > max((name for name in entries if name.endswith(".json")), default=""):
        return f"{log / newest} is missing"
    for name, entry in entries.items():
        path = seals / f"{name}.json"
        # A commit is sealed directly after it is written.
        if has_file(path) and _read_seals.get(str(path)) != (identity := _identity(path)):
            _read_seals[str(path)] = identity
            _known_digests.update({str(table / file): digest for file, digest in _read_digests(path).items()})
        if fault := data_fault([Path(entry.path)]):
            return fault
    return ""


def data_fault(files: Iterable[Path]) -> str:
    """Return which path of a table holds no file, or one unlike the seals that `log_fault` read; empty if none does.

    A file is read once per process, and again if it was replaced or changed.
    """
    paths = list(files)
    if fault := misplaced_among(paths):
        return fault
    for path in paths:
        digest = _known_digests.get(str(path))
        if digest is None or not path.is_file():
            continue
        # Another process may remove an old file at any time.
        with suppress(FileNotFoundError):
            state = (digest, *_identity(path))
            if _intact_files.get(str(path)) != state and sha256_file(path) != digest:
                return f"{path} is damaged, its bytes are not those that were written"
            _intact_files[str(path)] = state
    return ""


def misplaced_among(paths: Iterable[Path]) -> str:
    """Return which path holds a folder, a pipe or a broken link in the place of a file; empty if none does."""
    return next((f"{path} is {what}, not a file: move it away" for path in paths if (what := misplaced(path))), "")


def forget_comparisons() -> None:
    """Compare every file of a table again: a flipped bit changes neither size nor time."""
    _intact_files.clear()


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


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


# Seals of folders, and of databases in a workspace.
def seal_folder(folder: Path, others: Sequence[Path] = ()) -> None:
    """Write the digests of a folder's files, and of `others` outside of it, into its `digests.json`."""
    # Paths are relative to the folder, so that a moved workspace stays sealed.
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS]
    digests = {os.path.relpath(path, folder): sha256_file(path) for path in (*files, *others)}
    write_sealed_json(folder / DIGESTS, digests)


def broken_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each missing or changed file of a folder's seal; nothing for a folder without a seal."""
    seals = folder / DIGESTS
    if what := misplaced(seals):
        yield seals, what
    if not seals.is_file():
        return
    digests = _read_digests(seals)
    if not digests:
        yield seals, "not the digests that were written"
        return
    for name, digest in digests.items():
        file = Path(os.path.normpath(folder / name))  # a seal may name files outside of its folder
        if not file.is_file() or sha256_file(file) != digest:
            yield file, "its bytes are not those that were written"


def _read_digests(path: Path) -> dict[str, str]:
    """Return path → digest from a seal; empty for a damaged one, as no seal is written without a file."""
    try:
        return cast(dict[str, str], unseal(dict(json.loads(path.read_bytes()))) or {})
    except (ValueError, TypeError, RecursionError):
        return {}


def require_sealed(path: Path, remedy: str, folder: Path | None = None) -> None:
    """Raise InputError with the remedy if a file differs from its seal, or if the seal is damaged.

    Args:
        path: The file.
        remedy: The action for the user.
        folder: The folder whose seal covers the file; its own folder by default.
    """
    for broken, what in broken_files(folder or path.parent):
        if broken == Path(os.path.normpath(path)) or broken.name == DIGESTS:
            raise InputError(f"{broken} is damaged, {what}: {remedy}")


def read_sealed_table(path: Path, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file of a sealed folder.

    Args:
        path: The file.
        remedy: The action for the user.
        columns: Names of the columns; all by default.

    Raises:
        InputError: The file differs from its seal, cannot be read, or lacks a column.
    """
    # A flipped bit in a parquet page is read as another value.
    require_sealed(path, remedy)
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): {remedy}") from None


def require_unbroken(folder: Path, remedy: str) -> None:
    """Raise InputError with the first missing or changed file of a sealed folder, and with the remedy."""
    for path, what in broken_files(folder):
        raise InputError(f"{path} is damaged, {what}: {remedy}")


def databases_of(root: Path, left_out: Path) -> list[Path]:
    """Return the sqlite files of a workspace outside of the folder `left_out`."""
    return sorted(path for path in workspace_files(root, [left_out]) if path.suffix == ".db")


def seal_databases(root: Path, left_out: Path) -> None:
    """Write size, time and digest of a workspace's databases; skip databases during a write."""
    try:
        seals = database_seals(root)
    except InputError:  # damaged: all databases are sealed again
        seals = {}
    for path in databases_of(root, left_out):
        name, before = path.relative_to(root).as_posix(), _size_and_time(path)
        if seals.get(name, [])[:2] == before:
            # Unchanged since the last seal: no need to read the file.
            continue
        if (age := time.time() - before[1] / 1e9) < _TICK:
            # A later write in the same tick of the file system's clock would not change the time.
            time.sleep(min(_TICK, _TICK - age))
            before = _size_and_time(path)
        digest = sha256_file(path)
        seals.pop(name, None)
        # A database that changed while it was read gets no seal.
        if _size_and_time(path) == before:
            seals[name] = [*before, digest]
    if seals:
        write_sealed_json(root / DATABASES, seals)


def database_fault(root: Path, path: Path) -> str:
    """Return a text if a database changed without a change of its size and time; empty otherwise."""
    try:
        seals = database_seals(root)
    except InputError:  # `mm check` reports the damaged seals
        return ""
    *state, digest = seals.get(path.relative_to(root).as_posix(), ["", "", ""])
    # A new size or time is a normal write, not damage.
    if state != _size_and_time(path) or sha256_file(path) == digest:
        return ""
    return "its bytes changed and its time did not"


def lost_database(root: Path, path: Path) -> str:
    """Return a text if a sealed database is missing, empty or a folder; empty otherwise.

    Sqlite takes a missing or empty file for a new database: its models and runs would be gone without a word.
    """
    if path.is_dir():
        return "is a folder"
    if path.is_file() and path.stat().st_size:
        return ""
    try:
        sealed = database_seals(root)
    except InputError:  # `mm check` reports the damaged seals
        return ""
    if not path.is_relative_to(root) or path.relative_to(root).as_posix() not in sealed:
        return ""
    return f"is {'empty' if path.is_file() else 'missing'}, but {root / DATABASES} has its digest"


def database_seals(root: Path) -> DatabaseSeals:
    """Return path → size, modification time in ns and digest; empty without seals.

    Raises:
        InputError: The file is damaged.
    """
    path = root / DATABASES
    if not has_file(path):
        return {}
    seals = cast(DatabaseSeals, _read_digests(path))
    if not seals or not all(isinstance(seal, list) for seal in seals.values()):
        raise InputError(f"{path} is damaged: delete it; the next cycle seals the databases again")
    return seals


def _size_and_time(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class KeySeals:
    """Digests of a folder store's records, by key, in a hidden folder of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, key: str) -> Path | None:
        """Return the path of a key's seal; None for keys without one."""
        return self.root / KEY_SEALS / f"{key}.json" if key.startswith(SEALED_KEYS) else None

    def is_sealed(self, key: str) -> bool:
        """Return whether a key has a seal."""
        return (path := self.path_of(key)) is not None and path.is_file()

    def write(self, key: str, digest: str) -> None:
        """Record a digest before the content is moved into place."""
        # Seal first: after a kill in between, an older digest of the list still fits.
        if path := self.path_of(key):
            write_json(path, [digest, *self._read(path)][:_LAST])

    def remove(self, key: str) -> None:
        """Remove the seal of a key."""
        if path := self.path_of(key):
            path.unlink(missing_ok=True)

    def fault(self, key: str) -> str:
        """Return a text if the content of a key differs from its seal; empty if it fits or has no seal."""
        path = self.path_of(key)
        if path is None or not (path.is_file() or misplaced(path)):
            return ""
        digests = self._read(path)
        if not digests:
            return f"its seal {path} is damaged"
        if what := misplaced(self.root / key):
            return f"it is {what}"
        return "" if sha256_file(self.root / key) in digests else "its bytes are not those that were written"

    def _read(self, path: Path) -> list[str]:
        try:
            return [str(digest) for digest in json.loads(path.read_bytes())] if path.is_file() else []
        except (OSError, ValueError, TypeError):
            return []
