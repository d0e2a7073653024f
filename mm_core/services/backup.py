"""Backup and restore of all that cannot be made again: catalog, photos, registry, run history, reports, bundles.

A backup is one JSON file, `backups/<UTC time>.json`, that names every file with its digest; contents lie beside it by
digest, so that the next backup copies only what is new. The JSON is written last: a killed backup is none, and the next
one goes on from what it copied.

What refers is copied before what it refers to (databases, then the catalog's log, then data and blobs), so a backup
taken while the system works is whole. `mm forget` and `mm catalog compact`, which remove what it copies, wait for it,
and so does a second backup.
A file that grows meanwhile is copied first, and named by the digest of the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mm_core.core.errors import BlobNotFound, InputError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.locks import removal_lock
from mm_core.core.records import Report, sha256_file, write_json
from mm_core.core.settings import Settings, secret
from mm_core.services.backup_target import (
    RUNNING,
    at_work,
    chosen,
    next_name,
    prune,
    read_manifest,
    require_place,
    wait_for_deletions,
    whole,
)
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.store import BLOBS, Entry, LocalStore, Store, blob_key, open_store
from mm_core.training.rehome import rehome

DATABASES = "MM_BACKUP_DATABASES"
"""Environment: postgresql:// URLs of Dagster's and MLflow's databases, separated by spaces; sqlite needs none."""
LEFT_OUT = ("cache", "checkpoints", "scratch")
"""Folders of the workspace that are made again; the inbox is its producers'."""
REQUIRED = ("store/catalog/", "postgres/", "workspace/inputs.json", "workspace/mlflow/")
"""Beginnings of names without which a restore is of no use; it goes on past any other file and says so."""
_SQLITE = b"SQLite format 3\x00"
Progress = Callable[[str, int, int], None]


class _Writer:
    """Copies files to a place of backups, each content once, and keeps what the manifest will say."""

    def __init__(self, target: Store, spool: Path, progress: Progress):
        self.target, self.spool, self.progress = target, spool, progress
        self.files: dict[str, dict[str, Any]] = {}
        self.new_bytes = 0
        self.vanished: list[str] = []
        self._sizes = {entry.key.rpartition("/")[2]: entry.size for entry in target.list(BLOBS)}

    def holds(self, digest: str, size: int) -> bool:
        """Whether the place has this content, in its whole length."""
        return self._sizes.get(digest) == size

    def add(self, name: str, path: Path, *, mode: int | None = None) -> None:
        """Copy a file under its digest; one that is no longer there is left out."""
        try:
            digest, size = sha256_file(path), path.stat().st_size
            if not self.holds(digest, size):
                digest, size = self._copy(path)
        except FileNotFoundError:
            self.vanished.append(name)
            return
        self.note(name, digest, size, mode)

    def note(self, name: str, digest: str, size: int, mode: int | None = None) -> None:
        """Write a content that the place has into the manifest."""
        self.files[name] = {"sha256": digest, "bytes": size} | ({} if mode is None else {"mode": mode})
        self.progress("backup", len(self.files), len(self.files))

    def _copy(self, path: Path) -> tuple[str, int]:
        """Copy what the file holds now, though others write to it; return digest and bytes of the copy."""
        copy = self.spool / "copy"
        shutil.copyfile(path, copy)
        digest, size = sha256_file(copy), copy.stat().st_size
        if not self.holds(digest, size):
            self.target.put(blob_key(digest), copy, sha256=digest)
            # S3 compared checksums itself.
            if isinstance(self.target, LocalStore) and whole(self.target, digest) is None:
                raise StoreError(f"{self.target.url}/{blob_key(digest)}: read back, it is not what was written: {path}")
            self._sizes[digest] = size
            self.new_bytes += size
        copy.unlink()
        return digest, size


def back_up(
    settings: Settings, to: str, report: Report, *, photos: bool = True, keep: int = 0, progress: Progress
) -> Report:
    """Write a backup to the folder or `s3://bucket/prefix` `to`; facts: `backup` (its name), files, new_bytes.

    Without `photos`, blobs are left out: for stores that are copied by other means. The `keep` newest backups stay,
    this one among them, and what only older ones hold is deleted; 0 keeps all. Nothing is deleted while another backup
    is written to the same place. Raises StoreError where something cannot be read or written.
    """
    with removal_lock(Layout(settings), "backup"):
        return _back_up(settings, to, report, photos=photos, keep=keep, progress=progress)


def _back_up(settings: Settings, to: str, report: Report, *, photos: bool, keep: int, progress: Progress) -> Report:
    layout = Layout(settings)
    target, store = _open(settings, to), open_store(settings.store, layout.cache)
    if isinstance(target, LocalStore):
        with disk_faults_of(target.root):
            # Secrets of the workspace lie in it under their digests.
            target.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_place(target)
    with at_work(target, RUNNING) as marker:
        wait_for_deletions(target)
        with tempfile.TemporaryDirectory() as folder, disk_faults_of(Path(folder)):
            writer = _Writer(target, Path(folder), progress)
            _copy_databases(writer, Path(folder))
            _copy_workspace(writer, layout, Path(folder))
            _copy_store(writer, store, photos)
        name = next_name(target)
        manifest = {"workspace": str(layout.root), "photos": photos, "files": writer.files}
        target.put(f"backups/{name}.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
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
    for name, url in _databases().items():
        path = folder / "dump"
        _postgres("pg_dump", url, "--format=custom", f"--file={path}")
        writer.add(f"postgres/{name}", path)


def _copy_workspace(writer: _Writer, layout: Layout, folder: Path) -> None:
    for name, path in _of_workspace(layout):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        writer.add(name, _copy_of_database(path, folder) if is_sqlite(path) else path, mode=mode)


def _copy_store(writer: _Writer, store: Store, photos: bool) -> None:
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
        if blob and sha256_file(path) != digest:
            store.drop_copy(entry.key)
            raise StoreError(f"{store.url}/{entry.key} is damaged: run `mm check --repair`")
        writer.add(name, path)


def restore(settings: Settings, source: str, report: Report, *, at: str | None = None, progress: Progress) -> Report:
    """Write a backup (the newest, or that of name `at`) into an empty workspace and an empty store.

    Each file is checked against its digest before it takes its place, and gets the mode that it had. A damaged file is
    left out and listed in `report.tables["left_out"]`, but for REQUIRED ones. Killed, the next call goes on.

    Raises InputError where there is no such backup or where something lies in its way, StoreError where a file of it
    that is required is damaged.
    """
    layout = Layout(settings)
    origin, store = _open(settings, source), open_store(settings.store, layout.cache)
    name = chosen(origin, at)
    manifest = read_manifest(origin, name)
    databases = _databases()
    missing = {n.removeprefix("postgres/") for n in manifest["files"] if n.startswith("postgres/")} - set(databases)
    if missing:
        raise InputError(f"the backup holds the databases {', '.join(sorted(missing))}: give their URLs in {DATABASES}")
    marker, begun = _begin(layout, store, name)
    left_out = []
    for done, (file, entry) in enumerate(sorted(manifest["files"].items(), key=lambda item: item[0])):
        where, _, key = file.partition("/")
        if where == "workspace":
            _inside(layout.root, key)
        if where == "postgres" and key in begun["databases"]:
            continue
        path = whole(origin, entry["sha256"])
        if path is None and file.startswith(REQUIRED):
            raise StoreError(
                f"{origin.url}/{blob_key(entry['sha256'])} is damaged: {file} cannot be restored from it: "
                "name an older backup by --at"
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
    if manifest["workspace"] != str(layout.root):
        report.facts["moved"] = f"from {manifest['workspace']}; MLflow's artifact addresses changed: {rehome(settings)}"
    if not manifest["photos"]:
        report.facts["photos"] = "not in this backup: the store needs its blobs/ from elsewhere"
    return report


def _begin(layout: Layout, store: Store, name: str) -> tuple[Path, dict[str, Any]]:
    """The file that says which restore was begun here, and what it says."""
    marker = layout.root / "restoring.json"
    if not marker.is_file():
        _require_empty(layout, store)
        begun: dict[str, Any] = {"backup": name, "databases": []}
        write_json(marker, begun)
        return marker, begun
    try:
        begun = json.loads(marker.read_bytes())
        same = begun["backup"] == name and isinstance(begun["databases"], list)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{marker} is damaged: empty the folder and restore again") from None
    if not same:
        raise InputError(
            f"{marker}: the backup {begun['backup']} is half restored: name it by --at, or empty the folder"
        )
    return marker, begun


def _place(path: Path, source: Path, mode: int | None) -> None:
    """Copy a file to its place whole; nobody else can read it before it has its mode."""
    with disk_faults_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, writer)
            os.fchmod(writer.fileno(), 0o644 if mode is None else mode & 0o777)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(path)


def _open(settings: Settings, url: str) -> Store:
    absolute = url if "://" in url else str(Path(url).expanduser().absolute())
    if "://" not in absolute and Path(absolute).is_relative_to(settings.workspace):
        raise InputError(f"{url} lies in the workspace that is backed up: choose a place outside of it")
    for name, own in (("store", settings.store), ("inbox", settings.inbox)):
        if f"{absolute.rstrip('/')}/".startswith(f"{own.rstrip('/')}/"):
            raise InputError(f"{url} lies in the {name} {own} that is backed up: choose a place outside of it")
    return open_store(absolute, settings.workspace / "cache" / "backup")


def _of_workspace(layout: Layout) -> Iterator[tuple[str, Path]]:
    """Files with their names in the backup, databases first."""
    left_out = {layout.root / name for name in LEFT_OUT}
    left_out |= {Path(url) for url in (layout.settings.inbox, layout.settings.store) if "://" not in url}
    found = []
    for folder, folders, names in os.walk(layout.root):
        folders[:] = sorted(name for name in folders if Path(folder) / name not in left_out)
        found += [Path(folder) / name for name in names if not name.endswith((".tmp", "-wal", "-shm", "-journal"))]
    for path in sorted(found, key=lambda path: (not is_sqlite(path), path)):
        if path.is_file() and not path.is_symlink():
            yield f"workspace/{path.relative_to(layout.root).as_posix()}", path


def _in_order(store: Store) -> Iterator[Entry]:
    """Objects of the store: the catalog's logs, what says where to begin in them first of all; then the rest."""
    logs = [entry for entry in store.list("catalog") if "/_delta_log/" in entry.key]
    yield from sorted(logs, key=lambda entry: (not entry.key.endswith("/_last_checkpoint"), entry.key))
    # Listed after the logs, so that what they refer to is there.
    yield from (entry for entry in store.list() if "/_delta_log/" not in entry.key)


def is_sqlite(path: Path) -> bool:
    """Whether a file begins as sqlite's databases do."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _copy_of_database(path: Path, folder: Path) -> Path:
    """A copy as of one moment, though others write to it; raises StoreError where the database is damaged."""
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            (said,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        raise StoreError(
            f"{path} is a damaged database ({' '.join(said.split())}): run `mm check`, or bring it back from a backup"
        )
    return copy


def _require_empty(layout: Layout, store: Store) -> None:
    if entry := next(iter(store.list()), None):
        raise InputError(f"{store.url} holds {entry.key}: restore into an empty store (MM_STORE)")
    inbox = {Path(layout.settings.inbox)} if "://" not in layout.settings.inbox else set()
    there = [p for p in layout.root.glob("*") if p.name not in LEFT_OUT and p not in inbox and p.is_dir()]
    lying = [file for folder in there for file in folder.rglob("*") if file.is_file()]
    if lying:
        raise InputError(f"{lying[0]} lies in the way: restore into an empty workspace (MM_WORKSPACE)")


def _inside(root: Path, name: str) -> Path:
    path = Path(os.path.abspath(root / name))
    if not path.is_relative_to(root):
        raise StoreError(f"the backup names {name!r}, outside of the workspace: it was not written by `mm backup`")
    return path


def _databases() -> dict[str, str]:
    """URL by database name."""
    urls = secret(DATABASES).split()
    for url in urls:
        if urlsplit(url).scheme.partition("+")[0] not in ("postgresql", "postgres") or len(urlsplit(url).path) < 2:
            raise InputError(f"{DATABASES}: each must read postgresql://user:password@host:port/name")
    return {urlsplit(url).path.lstrip("/"): url for url in urls}


def _postgres(program: str, url: str, *arguments: str) -> None:
    """Runs PostgreSQL's own client; the password goes by environment, where `ps` does not show it."""
    parts = urlsplit(url)
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
