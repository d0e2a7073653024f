"""Where backups lie: their names in order, who is writing to it now, and what may be deleted from it.

Several backups may be written to one place at once, from machines whose clocks differ. Each leaves a marker under
`running/` while it is at work. Contents are deleted only where nobody else is at work, and a writer looks at its
contents once more after nobody deletes any longer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mm_core.core.errors import BlobNotFound, InputError, StoreError
from mm_core.core.records import sha256_file
from mm_core.storage.store import BLOBS, Store, blob_key

RUNNING, PRUNING = "running", "pruning"
STORE_FOLDERS = ("catalog/", "ingest/", "quarantine/")
"""What a store of photos has beside its blobs, and a place of backups has not."""
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z.*")
STALE_AFTER = 24 * 3600.0
"""Seconds after which the marker of a process that cannot be asked is taken for one that died."""
WAIT = 600.0
"""Seconds that a writer waits for somebody else's deletions."""


def backups(target: Store) -> list[str]:
    """Return the names of the backups, oldest first."""
    # By name and not by key: the ending would change the order.
    names = (entry.key.removeprefix("backups/").removesuffix(".json") for entry in target.list("backups"))
    return sorted(filter(_NAME.fullmatch, names))


def require_place(target: Store) -> None:
    """Raise InputError where a place is a store of photos: deleting old backups would delete its photos."""
    found = [entry.key for entry in target.list(delimiter=True) if entry.key in STORE_FOLDERS]
    if found:
        raise InputError(f"{target.url} holds {found[0]}: it is a store of photos, choose another place for backups")


def next_name(target: Store) -> str:
    """Return a name that comes after all that are there: the time in UTC; behind a clock that was ahead, a number."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    newest = max(backups(target), default="")
    if stamp > newest:
        return stamp
    base, _, number = newest.partition("+")
    counted = int(number[:6]) if number[:6].isdecimal() else 0
    # Two writers may take the same number: the rest keeps their names apart.
    return f"{base}+{counted + 1:06d}-{uuid.uuid4().hex[:6]}"


def read_manifest(target: Store, name: str) -> dict[str, Any]:
    """Return what a backup holds; raises StoreError where its file is damaged."""
    place = f"backups/{name}.json"
    try:
        manifest = json.loads(target.fetch(place).read_bytes())
        for key, entry in manifest["files"].items():
            if not isinstance(key, str) or len(bytes.fromhex(entry["sha256"])) != 32:
                raise ValueError(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(f"{target.url}/{place} is damaged: name an older backup by --at") from None
    return manifest


@contextmanager
def at_work(target: Store, what: str) -> Iterator[str]:
    """Leave a marker under `what` while the body runs; yields its key."""
    key = f"{what}/{uuid.uuid4().hex}.json"
    ended = threading.Event()

    def mark() -> None:
        # `alive` is this machine's clock: compared with ours only where the process cannot be asked.
        about = {"host": socket.gethostname(), "pid": os.getpid(), "alive": time.time()}
        target.put(key, json.dumps(about).encode())

    def refresh() -> None:
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
    """Return who else has a marker under `what`, as `host, process N`; markers of the dead are removed."""
    found = []
    for entry in list(target.list(what)):
        if entry.key == own:
            continue
        try:
            about = json.loads(target.fetch(entry.key).read_bytes())
            host, pid, alive = str(about["host"]), int(about["pid"]), float(about["alive"])
        except BlobNotFound:
            continue
        except (ValueError, KeyError, TypeError):
            host, pid, alive = "unknown", 0, 0.0
        if (host == socket.gethostname() and not _lives(pid)) or time.time() - alive > STALE_AFTER:
            target.delete(entry.key)
        else:
            found.append(f"{host}, process {pid}")
    return found


def wait_for_deletions(target: Store) -> None:
    """Wait until nobody deletes contents; raises StoreError after WAIT seconds."""
    until = time.monotonic() + WAIT
    while others := others_at_work(target, PRUNING):
        if time.monotonic() > until:
            raise StoreError(f"{target.url}: {others[0]} deletes old backups for {WAIT:.0f} s: run again later")
        time.sleep(0.2)


def prune(target: Store, keep: int, own: str, marker: str) -> tuple[int, str]:
    """Delete a workspace's backups but the newest `keep` and `own`, and contents that no backup names any more.

    Backups of other workspaces at the same place stay.

    Returns:
        How many contents went, and why none did: somebody else is at work. The next backup then does it.
    """
    with at_work(target, PRUNING) as mine:
        others = others_at_work(target, RUNNING, marker) + others_at_work(target, PRUNING, mine)
        if others:
            return 0, f"nothing was deleted: {others[0]} is at work on {target.url} too"
        try:
            workspace = read_manifest(target, own).get("workspace")
            others_backups = {name for name in backups(target) if not _is_of(target, name, workspace)}
            older = [name for name in backups(target) if name != own and name not in others_backups]
            kept = {own, *others_backups, *older[max(0, len(older) - keep + 1) :]}
            named = {entry["sha256"] for name in kept for entry in read_manifest(target, name)["files"].values()}
        except StoreError as error:  # what it names would be taken for garbage
            return 0, f"nothing was deleted: {error}"
        for name in older:
            if name not in kept:
                target.delete(f"backups/{name}.json")
        digests = ((entry.key, entry.key.rpartition("/")[2]) for entry in target.list(BLOBS))
        # Files of somebody else's, whose names are no digests in our places, are not ours to delete.
        gone = [key for key, digest in digests if digest not in named and is_blob_key(key, digest)]
        for key in gone:
            target.delete(key)
    return len(gone), ""


def chosen(origin: Store, at: str | None) -> str:
    """Return the backup to restore; raises InputError where there is none."""
    known = backups(origin)
    if not known:
        raise InputError(f"{origin.url} holds no backup: `mm backup` writes one")
    if at is not None and at not in known:
        raise InputError(f"{origin.url} holds no backup {at!r}: it has {', '.join(known[-5:])}")
    return at or known[-1]


def whole(origin: Store, digest: str) -> Path | None:
    """Return the local path of a content that is what its name says; None where it is missing or damaged."""
    try:
        path = origin.fetch(blob_key(digest))
    except BlobNotFound:
        return None
    if sha256_file(path) == digest:
        return path
    origin.drop_copy(blob_key(digest))
    return None


def _is_of(target: Store, name: str, workspace: Any) -> bool:
    """Whether a backup is of this workspace; one that cannot be read is taken for it."""
    try:
        return read_manifest(target, name).get("workspace") == workspace
    except StoreError:
        return True


def is_blob_key(key: str, digest: str) -> bool:
    """Whether a key is that of the content with this digest."""
    return re.fullmatch("[0-9a-f]{64}", digest) is not None and key == blob_key(digest)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
