"""A place of backups: names in order, markers of running writers, and deletion of old contents.

Several machines with different clocks may write backups to one place. Each keeps a marker under `running/` while it
runs. Contents are deleted only if no other writer runs, and a writer waits for running deletions before it reads the
list of contents.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict

from mm_core.core.errors import BlobNotFound, InputError, StoreError
from mm_core.core.records import sha256_file
from mm_core.storage.store import BLOBS, Store, blob_key

RUNNING, PRUNING = "running", "pruning"
STORE_FOLDERS = ("catalog/", "ingest/", "quarantine/")
"""Folders that a store of photos has next to its blobs and a place of backups has not."""
FILES = ("postgres", "store", "workspace")
"""First parts of the names of a backup's files."""
REQUIRED = ("store/catalog/", "postgres/", "workspace/inputs.json", "workspace/mlflow/")
"""Prefixes of files without which a restore is useless; it skips any other damaged file and reports it."""
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z.*")
STALE_AFTER = 24 * 3600.0
"""Age in seconds of a marker after which its process counts as dead, if the process is on another machine."""
WAIT = 600.0
"""Seconds that a writer waits for another one's deletions."""


def backups(target: Store) -> list[str]:
    """Return the names of the backups, oldest first."""
    # Sort by name and not by key, since the ending would change the order.
    names = (entry.key.removeprefix("backups/").removesuffix(".json") for entry in target.list("backups"))
    return sorted(filter(_NAME.fullmatch, names))


def require_place(target: Store) -> None:
    """Raise InputError if a place is a store of photos: deleting old backups would delete its photos."""
    folders = [entry.key for entry in target.list(delimiter=True) if entry.key in STORE_FOLDERS]
    if folders:
        raise InputError(f"{target.url} holds {folders[0]}: it is a store of photos, choose another place for backups")


def next_name(target: Store) -> str:
    """Return a name that sorts after all others: the time in UTC, or a numbered name if a clock was ahead."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    newest = max(backups(target), default="")
    # The usual case: the clock is ahead of all earlier backups.
    if stamp > newest:
        return stamp
    base, _, number = newest.partition("+")
    counted = int(number[:6]) if number[:6].isdecimal() else 0
    # Two writers may take the same number; the random part keeps their names distinct.
    return f"{base}+{counted + 1:06d}-{uuid.uuid4().hex[:6]}"


class BackedUp(TypedDict):
    """A file of a backup."""

    sha256: str
    bytes: int
    mode: NotRequired[int]
    """Permissions."""


class BackupManifest(TypedDict):
    """The content of `backups/<name>.json`."""

    workspace: str
    """Where the workspace was."""
    photos: bool
    """Whether the blobs are in the backup."""
    files: dict[str, BackedUp]


def read_manifest(target: Store, name: str) -> BackupManifest:
    """Return the manifest of a backup; raise StoreError if its file is damaged."""
    place = f"backups/{name}.json"
    try:
        manifest = json.loads(target.fetch(place).read_bytes())
        if not isinstance(manifest["workspace"], str) or not isinstance(manifest["photos"], bool):
            raise ValueError(place)
        for key, entry in manifest["files"].items():
            where, _, inner = key.partition("/")
            if where not in FILES or not inner or not isinstance(entry.get("mode", 0), int):
                raise ValueError(key)
            if not is_blob_key(blob_key(entry["sha256"]), entry["sha256"]):
                raise ValueError(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(f"{target.url}/{place} is damaged: choose an older backup by --at") from None
    return manifest


@contextmanager
def at_work(target: Store, what: str) -> Iterator[str]:
    """Keep a marker under `what` while the body runs; yield its key."""
    key = f"{what}/{uuid.uuid4().hex}.json"
    ended = threading.Event()

    def mark() -> None:
        # `alive` is this machine's time; another machine compares it with its own clock.
        marker = {"host": socket.gethostname(), "pid": os.getpid(), "alive": time.time()}
        target.put(key, json.dumps(marker).encode())

    def refresh() -> None:
        # Refresh well before the marker becomes stale.
        while not ended.wait(STALE_AFTER / 24):
            mark()

    mark()
    thread = threading.Thread(target=refresh, name="backup-marker", daemon=True)
    thread.start()
    try:
        yield key
    finally:
        ended.set()
        thread.join()
        target.delete(key)


def others_at_work(target: Store, what: str, own: str = "") -> list[str]:
    """Return the other writers with a marker under `what`, as `host, process N`; remove markers of dead processes."""
    others = []
    for entry in list(target.list(what)):
        if entry.key == own:
            continue
        try:
            marker = json.loads(target.fetch(entry.key).read_bytes())
            host, pid, alive = str(marker["host"]), int(marker["pid"]), float(marker["alive"])
        except BlobNotFound:
            continue
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            host, pid, alive = "unknown", 0, 0.0
        # On this machine the process can be checked; on others the age decides.
        if (host == socket.gethostname() and not _lives(pid)) or time.time() - alive > STALE_AFTER:
            target.delete(entry.key)
        else:
            others.append(f"{host}, process {pid} ({entry.key})")
    return others


def wait_for_deletions(target: Store) -> None:
    """Wait until no other writer deletes contents; raise StoreError after WAIT seconds."""
    until = time.monotonic() + WAIT
    while others := others_at_work(target, PRUNING):
        if time.monotonic() > until:
            raise StoreError(
                f"{target.url}: {others[0]} is still deleting old backups after {WAIT:.0f} s: run again later, or "
                "delete the file in brackets if that process has ended"
            )
        time.sleep(0.2)


def prune(target: Store, keep: int, own: str, marker: str) -> tuple[int, str]:
    """Delete a workspace's backups except the newest `keep` and `own`, and contents without a backup.

    Backups of other workspaces at the same place are kept.

    Returns:
        The number of deleted contents, and the reason if none was deleted because another writer runs. The next backup
        then deletes them.
    """
    with at_work(target, PRUNING) as mine:
        others = others_at_work(target, RUNNING, marker) + others_at_work(target, PRUNING, mine)
        if others:
            return 0, f"nothing was deleted: {others[0]} is writing to {target.url} too"
        try:
            workspace = read_manifest(target, own).get("workspace")
            others_backups = {name for name in backups(target) if not _is_of(target, name, workspace)}
            older = [name for name in backups(target) if name != own and name not in others_backups]
            # The newest `keep` - 1 others; `own` counts as one of them.
            kept = {own, *others_backups, *older[max(0, len(older) - keep + 1) :]}
            if lost := _lost_since(target, own, older):
                return 0, lost
            referenced = {entry["sha256"] for name in kept for entry in read_manifest(target, name)["files"].values()}
        except StoreError as error:  # contents of a damaged manifest would be deleted
            return 0, f"nothing was deleted: {error}"
        # Delete manifests before contents: a kill in between leaves only unused contents.
        for name in older:
            if name not in kept:
                target.delete(f"backups/{name}.json")
        digests = ((entry.key, entry.key.rpartition("/")[2]) for entry in target.list(BLOBS))
        # Files with another kind of name were not written by a backup and are kept.
        gone = [key for key, digest in digests if digest not in referenced and is_blob_key(key, digest)]
        for key in gone:
            target.delete(key)
    return len(gone), ""


def chosen(origin: Store, at: str | None) -> str:
    """Return the name of the backup to restore; raise InputError if it does not exist."""
    names = backups(origin)
    if not names:
        raise InputError(f"{origin.url} has no backup: `mm backup` writes one")
    if at is not None and at not in names:
        raise InputError(f"{origin.url} has no backup {at!r}: it has {', '.join(names[-5:])}")
    return at or names[-1]


def whole(origin: Store, digest: str) -> Path | None:
    """Return the local path of a content that matches its digest; None if it is missing or damaged."""
    try:
        path = origin.fetch(blob_key(digest))
    except BlobNotFound:
        return None
    if sha256_file(path) == digest:
        return path
    # Drop the damaged local copy, so that the next attempt fetches the content again.
    origin.drop_copy(blob_key(digest))
    return None


def _lost_since(target: Store, own: str, older: Sequence[str]) -> str:
    """Return why older backups must stay: the newest of them has files of a kind that this one lacks; else empty.

    A disk that is not mounted looks like an empty folder.
    """
    if not older:
        return ""
    before, now = (
        {prefix for prefix in REQUIRED for file in read_manifest(target, name)["files"] if file.startswith(prefix)}
        for name in (older[-1], own)
    )
    if not (lost := sorted(before - now)):
        return ""
    return (
        f"nothing was deleted: this backup has no {lost[0]}, and {older[-1]} has: is each disk there? "
        f"If it is, delete {target.url}/backups/{older[-1]}.json"
    )


def _is_of(target: Store, name: str, workspace: object) -> bool:
    """Return whether a backup is of this workspace; an unreadable one counts as this workspace's."""
    try:
        return read_manifest(target, name).get("workspace") == workspace
    except StoreError:
        return True


def is_blob_key(key: str, digest: str) -> bool:
    """Return whether a key is that of the content with this digest."""
    return re.fullmatch("[0-9a-f]{64}", digest) is not None and key == blob_key(digest)


def _lives(pid: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    except OverflowError:  # no process has such a number
        return False
    return True
