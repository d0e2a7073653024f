"""Backup and restore of all that cannot be made again: catalog, photos, registry, run history, reports, bundles.

A backup is one JSON file, `backups/<UTC time>.json`, that names every file with its digest; contents lie beside it by
digest, so that the next backup copies only what is new. The JSON is written last: a killed backup is none, and the next
one goes on from what it copied.

What refers is copied before what it refers to (databases, then the catalog's log, then data and blobs), so a backup
taken while the system works is whole; only `mm forget` and `mm catalog compact` must not run beside it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mm_core.errors import InputError, StoreError
from mm_core.layout import Layout
from mm_core.records import Report, sha256_file, write_bytes, write_json
from mm_core.settings import Settings, secret
from mm_core.store import BLOBS, Entry, Store, blob_key, fetch_blob, open_store

DATABASES = "MM_BACKUP_DATABASES"
"""Environment: postgresql:// URLs of Dagster's and MLflow's databases, separated by spaces; sqlite needs none."""
LEFT_OUT = ("cache", "checkpoints", "locks", "scratch")
"""Folders of the workspace that are made again; the inbox is its producers'."""
_SQLITE = b"SQLite format 3\x00"
Progress = Callable[[str, int, int], None]


def back_up(
    settings: Settings, to: str, report: Report, *, photos: bool = True, keep: int = 0, progress: Progress
) -> Report:
    """Writes a backup to the folder or `s3://bucket/prefix` `to`; facts: `backup` (its time), files, bytes, new_bytes.

    Without `photos`, blobs are left out: for stores that are copied by other means. `keep` newest backups stay, and
    what only older ones hold is deleted; 0 keeps all. Raises StoreError where something cannot be read or written.
    """
    layout = Layout(settings)
    target, store = _open(settings, to), open_store(settings.store, layout.cache)
    files: dict[str, dict[str, Any]] = {}
    new = 0

    def add(name: str, path: Path) -> None:
        nonlocal new
        digest = sha256_file(path)
        if not target.exists(blob_key(digest)):
            target.put(blob_key(digest), path)
            new += path.stat().st_size
        files[name] = {"sha256": digest, "bytes": path.stat().st_size}
        progress("backup", len(files), len(files))

    with tempfile.TemporaryDirectory() as folder:
        for name, url in _databases().items():
            path = Path(folder) / "dump"
            _postgres("pg_dump", url, "--format=custom", f"--file={path}")
            add(f"postgres/{name}", path)
        for name, path in _of_workspace(layout):
            if _is_sqlite(path):
                add(name, _copy_of_database(path, Path(folder)))
            else:
                add(name, path)
    for entry in _in_order(store):
        digest = entry.key.rpartition("/")[2]
        if not entry.key.startswith(BLOBS):
            add(f"store/{entry.key}", store.fetch(entry.key))
        elif photos and target.exists(blob_key(digest)):
            files[f"store/{entry.key}"] = {"sha256": digest, "bytes": entry.size}
        elif photos:
            path = store.fetch(entry.key)
            if sha256_file(path) != digest:
                raise StoreError(f"{store.url}/{entry.key} is damaged: bring it back from an older backup")
            add(f"store/{entry.key}", path)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    manifest = {"workspace": str(layout.root), "photos": photos, "files": files}
    target.put(f"backups/{stamp}.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    report.facts |= {"backup": stamp, "files": len(files), "new_bytes": new}
    if keep:
        report.facts["deleted"] = _prune(target, keep)
    return report


def restore(settings: Settings, source: str, report: Report, *, at: str | None = None, progress: Progress) -> Report:
    """Writes a backup (the newest, or that of time `at`) into an empty workspace and an empty store.

    Each file is checked against its digest before it takes its place. Killed, the next call goes on. Raises InputError
    where there is no such backup or where something lies in its way, StoreError where a file of it is damaged.
    """
    layout = Layout(settings)
    origin, store = _open(settings, source), open_store(settings.store, layout.cache)
    stamp = _chosen(origin, at)
    manifest = json.loads(origin.fetch(f"backups/{stamp}.json").read_text())
    marker = layout.root / "restoring.json"
    begun = json.loads(marker.read_text()) if marker.is_file() else None
    if begun is None:
        _require_empty(layout, store)
        begun = {"backup": stamp, "databases": []}
        write_json(marker, begun)
    elif begun["backup"] != stamp:
        raise InputError(
            f"{marker}: the backup {begun['backup']} is half restored: name it by --at, or empty the folder"
        )
    databases = _databases()
    missing = {n.removeprefix("postgres/") for n in manifest["files"] if n.startswith("postgres/")} - set(databases)
    if missing:
        raise InputError(f"the backup holds the databases {', '.join(sorted(missing))}: give their URLs in {DATABASES}")
    for done, (name, entry) in enumerate(sorted(manifest["files"].items(), key=lambda item: item[0])):
        where, _, key = name.partition("/")
        if where == "postgres" and key in begun["databases"]:
            continue
        path = fetch_blob(origin, entry["sha256"])
        if sha256_file(path) != entry["sha256"]:
            raise StoreError(f"{origin.url}/{blob_key(entry['sha256'])} is damaged: {name} cannot be restored from it")
        if where == "store":
            store.put(key, path)
        elif where == "workspace":
            write_bytes(_inside(layout.root, key), path.read_bytes())
        else:
            _postgres("pg_restore", databases[key], "--single-transaction", "--exit-on-error", "--no-owner", str(path))
            begun["databases"].append(key)
            write_json(marker, begun)
        progress("restore", done + 1, len(manifest["files"]))
    marker.unlink()
    report.facts |= {"backup": stamp, "files": len(manifest["files"])}
    if manifest["workspace"] != str(layout.root):
        report.facts["moved"] = f"MLflow's links to artifacts of old runs still point into {manifest['workspace']}"
    if not manifest["photos"]:
        report.facts["photos"] = "not in this backup: the store needs its blobs/ from elsewhere"
    return report


def backups(target: Store) -> list[str]:
    """Times of the backups, oldest first."""
    return [entry.key.removeprefix("backups/").removesuffix(".json") for entry in target.list("backups")]


def _chosen(origin: Store, at: str | None) -> str:
    known = backups(origin)
    if not known:
        raise InputError(f"{origin.url} holds no backup: `mm backup` writes one")
    if at is not None and at not in known:
        raise InputError(f"{origin.url} holds no backup {at!r}: it has {', '.join(known[-5:])}")
    return at or known[-1]


def _open(settings: Settings, url: str) -> Store:
    absolute = url if "://" in url else str(Path(url).expanduser().absolute())
    if "://" not in absolute and Path(absolute).is_relative_to(settings.workspace):
        raise InputError(f"{url} lies in the workspace that is backed up: choose a place outside of it")
    return open_store(absolute, settings.workspace / "cache" / "backup")


def _of_workspace(layout: Layout) -> Iterator[tuple[str, Path]]:
    """Files with their names in the backup, databases first."""
    left_out = {layout.root / name for name in LEFT_OUT}
    left_out |= {Path(url) for url in (layout.settings.inbox, layout.settings.store) if "://" not in url}
    found = []
    for folder, folders, names in os.walk(layout.root):
        folders[:] = sorted(name for name in folders if Path(folder) / name not in left_out)
        found += [Path(folder) / name for name in names if not name.endswith((".tmp", "-wal", "-shm", "-journal"))]
    for path in sorted(found, key=lambda path: (not _is_sqlite(path), path)):
        if path.is_file() and not path.is_symlink():
            yield f"workspace/{path.relative_to(layout.root).as_posix()}", path


def _in_order(store: Store) -> Iterator[Entry]:
    """Objects of the store: the catalog's logs, what says where to begin in them first of all; then the rest."""
    logs = [entry for entry in store.list("catalog") if "/_delta_log/" in entry.key]
    yield from sorted(logs, key=lambda entry: (not entry.key.endswith("/_last_checkpoint"), entry.key))
    # Listed after the logs, so that what they refer to is there.
    yield from (entry for entry in store.list() if "/_delta_log/" not in entry.key)


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _copy_of_database(path: Path, folder: Path) -> Path:
    """A copy as of one moment, though others write to it."""
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
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


def _prune(target: Store, keep: int) -> int:
    """Deletes all backups but the newest `keep`, and contents that none of those names; returns how many contents."""
    known = backups(target)
    for stamp in known[:-keep]:
        target.delete(f"backups/{stamp}.json")
    kept: set[str] = set()
    for stamp in known[-keep:]:
        kept |= {e["sha256"] for e in json.loads(target.fetch(f"backups/{stamp}.json").read_text())["files"].values()}
    gone = [entry.key for entry in target.list(BLOBS) if entry.key.rpartition("/")[2] not in kept]
    for key in gone:
        target.delete(key)
    return len(gone)
