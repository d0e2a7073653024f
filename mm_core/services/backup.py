"""Back up and restore all that cannot be computed again: catalog, photos, registry, run history, reports, bundles.

A backup is one JSON file, `backups/<UTC time>.json`, that lists every file with its digest. Contents are stored by
digest next to it, so the next backup copies only new ones. The JSON is written last: a killed backup does not exist,
and the next one reuses its contents.

Files that refer to others are copied before those (databases, the catalog's log, then data and blobs). A backup that is
taken during operation is therefore complete. `mm forget` and `mm catalog compact` delete files that a backup copies,
so they wait for it; a second backup waits too. A file that grows meanwhile is copied first and recorded by the copy's
digest.

Backing up and restoring share this module, because both depend on the form of the JSON file and on the order of copies.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TypedDict
from urllib.parse import unquote, urlsplit

from mm_core.core.errors import BlobNotFound, InputError, StoreError
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.locks import removal_lock
from mm_core.core.progress import Progress
from mm_core.core.records import Report, sha256_file, write_json
from mm_core.core.settings import Settings, secret
from mm_core.services.backup_target import (
    REQUIRED,
    RUNNING,
    BackedUp,
    BackupManifest,
    at_work,
    chosen,
    next_name,
    prune,
    read_manifest,
    require_place,
    wait_for_deletions,
    whole,
)
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.run import store_of
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.seals import FOLDER as SEALS
from mm_core.storage.seals import seal_databases
from mm_core.storage.store import BLOBS, Entry, LocalStore, Store, blob_key, open_store
from mm_core.storage.workspace_files import workspace_files
from mm_core.training.rehome import rehome

DATABASES = "MM_BACKUP_DATABASES"
"""Environment variable: postgresql:// URLs of Dagster's and MLflow's databases, separated by spaces."""
LEFT_OUT = ("cache", "checkpoints", "locks", "scratch")
"""Folders that can be computed again, or that belong to this machine. The inbox belongs to its producers."""
_SQLITE = b"SQLite format 3\x00"


class Begun(TypedDict):
    """The marker of a restore that is not finished."""

    backup: str
    databases: list[str]
    """Restored ones."""


class _Writer:
    """Copies files to a place of backups, each content once, and collects the manifest."""

    def __init__(self, target: Store, spool: Path, progress: Progress) -> None:
        self.target, self.spool, self.progress = target, spool, progress
        self.files: dict[str, BackedUp] = {}
        self.new_bytes = 0
        self.vanished: list[str] = []
        # Contents that the place already has, by digest.
        self._sizes = {entry.key.rpartition("/")[2]: entry.size for entry in target.list(BLOBS)}

    def holds(self, digest: str, size: int) -> bool:
        """Return whether the place has this content at its full length."""
        return self._sizes.get(digest) == size

    def add(self, name: str, path: Path, *, mode: int | None = None) -> None:
        """Copy a file under its digest; a file that has disappeared is left out."""
        try:
            digest, size = sha256_file(path), path.stat().st_size
            if not self.holds(digest, size):
                # The file may have changed since, so the copy's digest counts.
                digest, size = self._copy(path)
        except FileNotFoundError:
            self.vanished.append(name)
            return
        self.note(name, digest, size, mode)

    def note(self, name: str, digest: str, size: int, mode: int | None = None) -> None:
        """Add a content that the place has to the manifest."""
        self.files[name] = {"sha256": digest, "bytes": size}
        if mode is not None:
            self.files[name]["mode"] = mode
        self.progress("backup", len(self.files), len(self.files))

    def _copy(self, path: Path) -> tuple[str, int]:
        """Copy the current content of a file that others may write to; return digest and size of the copy."""
        copy = self.spool / "copy"
        shutil.copyfile(path, copy)
        digest, size = sha256_file(copy), copy.stat().st_size
        if not self.holds(digest, size):
            self.target.put(blob_key(digest), copy, sha256=digest)
            # S3 compares checksums itself; a folder is read back.
            if isinstance(self.target, LocalStore) and whole(self.target, digest) is None:
                raise StoreError(f"{self.target.url}/{blob_key(digest)}: the copy differs from the original: {path}")
            self._sizes[digest] = size
            self.new_bytes += size
        copy.unlink()
        return digest, size


def back_up(
    settings: Settings, to: str, report: Report, *, photos: bool = True, keep: int = 0, progress: Progress
) -> Report:
    """Write a backup to the folder or `s3://bucket/prefix` `to`.

    Args:
        settings: Workspace and store to back up.
        to: Place of the backups.
        report: Filled with the facts `backup` (its name), `files` and `new_bytes`.
        photos: Include blobs; off for stores that are copied by other means.
        keep: Number of newest backups to keep, this one included; contents of older ones are deleted. 0 keeps all.
            Nothing is deleted while another backup is written to the same place.
        progress: Called with a label, the files done and the total.

    Raises:
        StoreError: A file cannot be read or written.
    """
    with removal_lock(Layout(settings), "backup"):
        return _back_up(settings, to, report, photos=photos, keep=keep, progress=progress)


def _back_up(settings: Settings, to: str, report: Report, *, photos: bool, keep: int, progress: Progress) -> Report:
    """Write a backup while holding the removal lock."""
    layout = Layout(settings)
    target, store = _open(settings, to), store_of(layout)
    if isinstance(target, LocalStore):
        with disk_faults_of(target.root):
            # The place contains the workspace's secrets, so other users get no access.
            target.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_place(target)
    # The marker shows other writers that this one is running.
    with at_work(target, RUNNING) as marker:
        wait_for_deletions(target)
        with tempfile.TemporaryDirectory() as folder, disk_faults_of(Path(folder)):
            writer = _Writer(target, Path(folder), progress)
            _copy_databases(writer, Path(folder))
            _copy_workspace(writer, layout, Path(folder))
            # A backup without a table's file could not be used, and it would replace those that are whole.
            catalog = Catalog(settings.store)
            for table in SCHEMAS:
                catalog.require_whole(table)
            _copy_store(writer, store, photos)
        # With an unmounted disk, the backup would be empty, and it would replace those that are whole.
        if not any(name.startswith(REQUIRED) for name in writer.files):
            raise InputError(f"{layout.root} and {store.url} hold nothing to back up: is each disk there?")
        name = next_name(target)
        manifest = {"workspace": str(layout.root), "photos": photos, "files": writer.files}
        target.put(f"backups/{name}.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
        # Read the manifest back before older backups are deleted.
        read_manifest(target, name)
        report.facts |= {"backup": name, "files": len(writer.files), "new_bytes": writer.new_bytes}
        if writer.vanished:
            report.facts["vanished_meanwhile"] = sorted(writer.vanished)[:20]
        if keep:
            report.facts["deleted"], why = prune(target, keep, name, marker)
            if why:
                report.facts["not_deleted"] = why
    return report


def _copy_databases(writer: _Writer, folder: Path) -> None:
    """Dump the PostgreSQL databases."""
    for name, url in _databases().items():
        path = folder / "dump"
        _postgres("pg_dump", url, "--format=custom", f"--file={path}")
        writer.add(f"postgres/{name}", path)


def _copy_workspace(writer: _Writer, layout: Layout, folder: Path) -> None:
    """Copy the workspace's files, databases as of one moment."""
    for name, path in _of_workspace(layout):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        writer.add(name, _copy_of_database(path, folder) if is_sqlite(path) else path, mode=mode)


def _copy_store(writer: _Writer, store: Store, photos: bool) -> None:
    """Copy the store's objects; intact blobs that the place has are only recorded."""
    for entry in _in_order(store):
        name, digest = f"store/{entry.key}", entry.key.rpartition("/")[2]
        blob = entry.key.startswith(BLOBS)
        if blob and not photos:
            continue
        if blob and writer.holds(digest, entry.size):
            writer.note(name, digest, entry.size)
            continue
        try:
            path = store.fetch(entry.key)
        except BlobNotFound:
            writer.vanished.append(name)
            continue
        # Never replace a good copy by a damaged one.
        if blob and sha256_file(path) != digest:
            store.drop_copy(entry.key)
            raise StoreError(f"{store.url}/{entry.key} is damaged: run `mm check --repair`")
        writer.add(name, path)


def restore(settings: Settings, source: str, report: Report, *, at: str | None = None, progress: Progress) -> Report:
    """Restore a backup into an empty workspace and an empty store.

    Each file is checked against its digest before it is written, and gets its former mode. A damaged file is left out
    and listed in `report.tables["left_out"]`, except REQUIRED ones. After a kill the next call continues.

    Args:
        settings: Workspace and store to restore to.
        source: Place of the backups.
        report: Filled with facts.
        at: Name of the backup; by default the newest.
        progress: Called with a label, the files done and the total.

    Raises:
        InputError: The backup does not exist, or the workspace or store is not empty.
        StoreError: A required file of the backup is damaged.
    """
    # Two restores would write the same files, and the marker of the first would end with the second.
    with removal_lock(Layout(settings), "restore"):
        return _restore(settings, source, report, at=at, progress=progress)


def _restore(settings: Settings, source: str, report: Report, *, at: str | None, progress: Progress) -> Report:
    """Restore a backup while holding the removal lock."""
    layout = Layout(settings)
    origin, store = _open(settings, source), open_store(settings.store, layout.cache)
    name = chosen(origin, at)
    manifest = read_manifest(origin, name)
    databases = _databases()
    # Without these URLs the restore would stop half-way.
    missing = {n.removeprefix("postgres/") for n in manifest["files"] if n.startswith("postgres/")} - set(databases)
    if missing:
        raise InputError(f"the backup holds the databases {', '.join(sorted(missing))}: give their URLs in {DATABASES}")
    # Sorted by name, so that a repeated call restores the files in the same order.
    marker, begun = _begin(layout, store, name, manifest)
    left_out = []
    for done, (file, entry) in enumerate(sorted(manifest["files"].items(), key=lambda item: item[0])):
        where, _, key = file.partition("/")
        if where == "workspace":
            _inside(layout.root, key)
        # A database must not be restored twice.
        if where == "postgres" and key in begun["databases"]:
            continue
        path = whole(origin, entry["sha256"])
        if path is None and file.startswith(REQUIRED):
            raise StoreError(
                f"{origin.url}/{blob_key(entry['sha256'])} is damaged: {file} cannot be restored from it: "
                "choose an older backup by --at"
            )
        if path is None:
            left_out.append({"file": file, "sha256": entry["sha256"], "why": "damaged or missing in the backup"})
        elif where == "store":
            store.put(key, path, sha256=entry["sha256"])
        elif where == "workspace":
            _place(_inside(layout.root, key), path, entry.get("mode"))
        else:
            _postgres("pg_restore", databases[key], "--single-transaction", "--exit-on-error", "--no-owner", str(path))
            begun["databases"].append(key)
            write_json(marker, begun)
        progress("restore", done + 1, len(manifest["files"]))
    marker.unlink()
    report.facts |= {"backup": name, "files": len(manifest["files"]) - len(left_out)}
    if left_out:
        report.facts["left_out"] = f"{len(left_out)} files, first {left_out[0]['file']}: run `mm check --repair`"
        report.tables["left_out"] = left_out
    # MLflow stores absolute addresses, which must follow the move.
    if manifest["workspace"] != str(layout.root):
        report.facts["moved"] = f"from {manifest['workspace']}; MLflow's artifact addresses changed: {rehome(settings)}"
    # A seal holds for one modification time, and restored files have a new one. Their digests were compared above.
    seal_databases(layout.root, layout.cache)
    if not manifest["photos"]:
        report.facts["photos"] = "not in this backup: the store needs its blobs/ from elsewhere"
    return report


def _begin(layout: Layout, store: Store, name: str, manifest: BackupManifest) -> tuple[Path, Begun]:
    """Return the marker file of the restore in this workspace and its contents; create it if necessary."""
    marker = layout.restoring
    if not has_file(marker):
        _require_empty(layout, store, manifest)
        begun: Begun = {"backup": name, "databases": []}
        write_json(marker, begun)
        return marker, begun
    try:
        begun = json.loads(marker.read_bytes())
        same = begun["backup"] == name and isinstance(begun["databases"], list)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{marker} is damaged: empty the folder and restore again") from None
    # Two backups must never be mixed.
    if not same:
        raise InputError(
            f"{marker}: the backup {begun['backup']} is half restored: choose it by --at, or empty the folder"
        )
    return marker, begun


def _place(path: Path, source: Path, mode: int | None) -> None:
    """Write a file under a temporary name with its final mode, then rename it."""
    with disk_faults_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        # Mode 0600 from the start: other users must not read it before it has its own mode.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, writer)
            os.fchmod(writer.fileno(), 0o644 if mode is None else mode & 0o777)
            writer.flush()
            # The data must be on the disk before the rename.
            os.fsync(writer.fileno())
        temporary.replace(path)


def _open(settings: Settings, url: str) -> Store:
    """Open a place of backups; raise InputError if it is within the data that are backed up."""
    if not url.strip():
        raise InputError("the place of the backups is empty: name a folder or s3://bucket/prefix")
    absolute = url if "://" in url else str(Path(url).expanduser().absolute())
    # A link may lead into the workspace.
    places = (Path(absolute), Path(absolute).resolve()) if "://" not in absolute else ()
    homes = (settings.workspace, settings.workspace.resolve())
    if any(place.is_relative_to(home) for place in places for home in homes):
        raise InputError(f"{url} is within the workspace that is backed up: choose a place outside of it")
    for name, own in (("store", settings.store), ("inbox", settings.inbox)):
        if f"{absolute.rstrip('/')}/".startswith(f"{own.rstrip('/')}/"):
            raise InputError(f"{url} is within the {name} {own} that is backed up: choose a place outside of it")
    return open_store(absolute, settings.workspace / "cache" / "backup")


def _of_workspace(layout: Layout) -> Iterator[tuple[str, Path]]:
    """Yield the workspace's files with their names in the backup, databases first."""
    left_out = {layout.root / name for name in LEFT_OUT}
    left_out |= {Path(url) for url in (layout.settings.inbox, layout.settings.store) if "://" not in url}
    unfinished = (".tmp", "-wal", "-shm", "-journal")
    paths = [path for path in workspace_files(layout.root, left_out) if not path.name.endswith(unfinished)]
    for path in sorted(paths, key=lambda path: (not is_sqlite(path), path)):
        yield f"workspace/{path.relative_to(layout.root).as_posix()}", path


def _in_order(store: Store) -> Iterator[Entry]:
    """Yield the store's objects: first the catalog's logs, with their `_last_checkpoint` files first, then the rest."""
    logs = [entry for entry in _listed(store, "catalog") if "/_delta_log/" in entry.key]
    yield from sorted(logs, key=lambda entry: (not entry.key.endswith("/_last_checkpoint"), entry.key))
    newest: dict[str, str] = {}
    for entry in logs:
        table, _, name = entry.key.partition("/_delta_log/")
        newest[table] = max(newest.get(table, ""), name)
    # The other objects are listed after the logs, so that the files the logs refer to exist.
    for entry in _listed(store):
        table, _, seal = entry.key.partition(f"/{SEALS}/")
        # With the seal of a later commit, that commit would be missing from the backup.
        if "/_delta_log/" not in entry.key and (not seal or seal <= f"{newest.get(table, '')}.json"):
            yield entry


def _listed(store: Store, prefix: str = "", above: tuple[Path, ...] = ()) -> Iterator[Entry]:
    """Yield a store's objects under a prefix, also those in linked folders, which a listing does not enter."""
    if not isinstance(store, LocalStore):
        yield from store.list(prefix)
        return
    # A link to a folder above would never end.
    if (real := (store.root / prefix).resolve()) in above:
        return
    for entry in store.list(prefix, delimiter=True):
        if entry.key.endswith("/"):
            yield from _listed(store, entry.key, (*above, real))
        else:
            yield entry


def is_sqlite(path: Path) -> bool:
    """Return whether a file starts like a sqlite database."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _copy_of_database(path: Path, folder: Path) -> Path:
    """Copy a database as of one moment while others may write to it; raise StoreError if it is damaged."""
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            (status,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        status = str(error)
    if status != "ok":
        raise StoreError(
            f"{path} is a damaged database ({' '.join(status.split())}): run `mm check`, or restore it from a backup"
        )
    return copy


def _require_empty(layout: Layout, store: Store, manifest: BackupManifest) -> None:
    """Raise InputError if the store has files, or if the workspace has folders with files or files of the backup."""
    if entry := next(iter(store.list()), None):
        raise InputError(f"{store.url} holds {entry.key}: restore into an empty store (MM_STORE)")
    inbox = {Path(layout.settings.inbox)} if "://" not in layout.settings.inbox else set()
    folders = [p for p in layout.root.glob("*") if p.name not in LEFT_OUT and p not in inbox and p.is_dir()]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [path for path in layout.root.glob("*") if f"workspace/{path.name}" in manifest["files"]]
    if files:
        raise InputError(f"{files[0]} lies in the way: restore into an empty workspace (MM_WORKSPACE)")


def _inside(root: Path, name: str) -> Path:
    """Return a path below `root`; raise StoreError if the name leads out of it."""
    path = Path(os.path.abspath(root / name))
    if not path.is_relative_to(root):
        raise StoreError(f"the backup names {name!r}, outside of the workspace: it was not written by `mm backup`")
    return path


def _databases() -> dict[str, str]:
    """Return URLs by database name; raise InputError for a malformed one."""
    urls = secret(DATABASES).split()
    for url in urls:
        if urlsplit(url).scheme.partition("+")[0] not in ("postgresql", "postgres") or len(urlsplit(url).path) < 2:
            raise InputError(f"{DATABASES}: each must read postgresql://user:password@host:port/name")
    return {urlsplit(url).path.lstrip("/"): url for url in urls}


def _postgres(program: str, url: str, *arguments: str) -> None:
    """Run a PostgreSQL client program. The password is passed by environment, since `ps` shows arguments."""
    parts = urlsplit(url)
    # The standard environment variables of PostgreSQL's programs.
    given = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port or 5432),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": parts.path.lstrip("/"),
    }
    target = [f"--dbname={given['PGDATABASE']}"] if program == "pg_restore" else []
    try:
        done = subprocess.run([program, *target, *arguments], env=os.environ | given, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError(f"{program} is missing: install PostgreSQL's client programs") from None
    if done.returncode:
        raise StoreError(f"{program} of {given['PGDATABASE']}: {' '.join(done.stderr.split())[:500]}")
