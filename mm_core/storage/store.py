"""Objects in a folder or under an S3 prefix, with one interface. Only this module uses boto3.

Callers work with local paths: `fetch` returns one for either backend. Both backends are in this file, because they
share the checks of keys and sizes and must behave alike.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlparse

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from mm_core.core.deferred import Deferred
from mm_core.core.errors import BlobDamaged, BlobNotFound, BlobTooLarge, InputError, StoreError
from mm_core.core.folders import misplaced
from mm_core.core.records import sha256_bytes, sha256_file
from mm_core.core.servers import report_wait
from mm_core.core.settings import s3_timeout
from mm_core.storage.local_files import TEMPORARY, Drafts, is_temporary, size_and_stamp
from mm_core.storage.retry import NO_KEYS, disk_fault, s3_server
from mm_core.storage.seals import KEY_SEALS, SEALED_KEYS, KeySeals

if TYPE_CHECKING:
    import boto3
    from botocore import config as botocore_config
else:
    boto3 = Deferred("boto3")
    botocore_config = Deferred("botocore.config")

BLOBS = "blobs/"
"""Prefix of content-addressed keys: their objects never change."""
S3_ATTEMPTS = 8
"""Attempts of one request, with growing pauses, before its error is reported."""
REQUESTS = 8
"""Requests to S3 at a time."""
# Drops in the inbox still have the photos and mattes, but not what the engine wrote itself.
_REMEDY_OF = {BLOBS.rstrip("/"): "run `mm check --repair`"} | {
    prefix.rstrip("/"): "restore it from a backup" for prefix in (*SEALED_KEYS, "catalog")
}
"""First part of a key → remedy for a missing file."""


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    """Bytes."""
    stamp: str = ""
    """Changes with every write of the object: modification time of a file, ETag on S3."""


class Store(Protocol):
    """The interface for blobs, catalog files and inboxes. Keys use `/` and never start with it."""

    url: str

    def put(self, key: str, source: Path | bytes, *, sha256: str | None = None) -> None:
        """Write an object atomically; replace an existing one.

        Raises StoreError if the content of the source file does not, or no longer, match `sha256`.
        """
        ...

    def fetch(self, key: str, *, most: int | None = None) -> Path:
        """Return a local path with the object's content.

        Raises BlobNotFound for a missing object, and BlobTooLarge, before reading, for one above `most` bytes.
        """
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        """Yield the objects under a prefix, by key; with `delimiter` one level only: folders end in `/`, size 0."""
        ...

    def stamps(self, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Return size and stamp (`Entry`) of objects by key, without reading them; missing objects are left out."""
        ...

    def written_at(self, key: str) -> float:
        """Return the time of an object's content, in seconds since 1970; 0 for a missing object."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, its local copy, and all its versions in a versioned bucket; ignore a missing object.

        Raises StoreError if versions stay, because they could still be read.
        """
        ...

    def purge(self, prefix: str) -> int:
        """Remove downloads and superseded versions under a prefix, where other writers deleted or replaced objects.

        Returns the number of versions: 0 for a folder, and for a bucket in which `delete` saw no versions.
        """
        ...

    def drop_copy(self, key: str) -> None:
        """Remove a damaged local copy; the object itself stays."""
        ...

    def apart(self, cache: Path) -> Store:
        """Return a store of the same objects with a download folder of its own, removed after its use."""
        ...


def open_store(url: str, cache: Path) -> Store:
    """Open a folder path or `s3://bucket/prefix`; `cache` holds downloads from S3. Raises InputError for other URLs."""
    parsed = urlparse(url)
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise InputError(f"store {url!r} names no bucket: write s3://bucket/prefix")
        return S3Store(parsed.netloc, parsed.path.strip("/"), cache)
    # A scheme of one letter is a drive of Windows.
    if parsed.scheme and len(parsed.scheme) > 1:
        raise InputError(f"store {url!r} has the unknown scheme {parsed.scheme!r}: use a folder or s3://bucket/prefix")
    return LocalStore(Path(url))


def blob_key(digest: str) -> str:
    """Return the content-addressed key of a blob."""
    # Two levels of folders keep the listings of a file system short.
    return f"{BLOBS}{digest[:2]}/{digest[2:4]}/{digest}"


def put_blob(store: Store, source: Path | bytes, digest: str | None = None) -> str:
    """Store content under its sha256 unless it exists, and return the digest; `digest`: the sha256 if it is known."""
    if digest is None:
        digest = sha256_bytes(source) if isinstance(source, bytes) else sha256_file(source)
    if not store.exists(blob_key(digest)):
        store.put(blob_key(digest), source, sha256=digest)
    return digest


def fetch_blob(store: Store, digest: str) -> Path:
    """Return the local path of a blob with verified content.

    Raises BlobNotFound for a missing blob, BlobDamaged for wrong bytes. A damaged download is fetched again.
    """
    key = blob_key(digest)
    path = store.fetch(key)
    if sha256_file(path) != digest:
        # The first copy may be a damaged download; the second one shows the store's own bytes.
        store.drop_copy(key)
        path = store.fetch(key)
        if (actual := sha256_file(path)) != digest:
            store.drop_copy(key)
            raise BlobDamaged(f"{store.url}/{key} is damaged, its sha256 is {actual[:12]}: run `mm check --repair`")
    return path


def _missing(url: str, key: str) -> str:
    """Return the text for a missing file, with the remedy where it is one of ours and no file that a producer names."""
    remedy = _REMEDY_OF.get(key.partition("/")[0])
    return f"{url} holds no {key}" + (f": {remedy}" if remedy else "")


class LocalStore:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = str(self.root)
        self._drafts = Drafts(self.root / TEMPORARY)
        self.seals = KeySeals(self.root)

    def _path(self, key: str) -> Path:
        return self.root / _inside(key)

    def put(self, key: str, source: Path | bytes, *, sha256: str | None = None) -> None:
        path = self._path(key)
        try:
            with self._drafts.replacing(path) as temporary, temporary.open("wb") as writer:
                # Copy and hash in one pass: the file may change between a check and a copy.
                hasher = hashlib.sha256()
                with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as reader:
                    while block := reader.read(1 << 20):
                        writer.write(block)
                        hasher.update(block)
                if sha256 and hasher.hexdigest() != sha256:
                    raise StoreError(f"{source} changed while it was read: run again")
                writer.flush()
                # Without fsync a power failure could leave an empty file under the final name.
                os.fsync(writer.fileno())
                self.seals.write(key, hasher.hexdigest())
        except OSError as error:
            raise StoreError(f"writing {self.url}/{key}: {disk_fault(error)}") from error

    def fetch(self, key: str, *, most: int | None = None) -> Path:
        path = self._path(key)
        if not os.path.isfile(path):  # Path.is_file raises an error for names that no file can have
            # Producers name files of an inbox, where a folder is only another missing file.
            remedy = _REMEDY_OF.get(key.partition("/")[0])
            if remedy and (what := misplaced(path)):
                # Callers go on without a record that is missing, but not without one that they cannot read.
                kind = BlobNotFound if key.startswith(BLOBS) else BlobDamaged
                raise kind(f"{path} is {what}: move it away, then {remedy}")
            raise BlobNotFound(_missing(self.url, key))
        try:
            _no_larger(key, path.stat().st_size, most)
        except FileNotFoundError:  # removed by another process after the check
            raise BlobNotFound(_missing(self.url, key)) from None
        if fault := self.seals.fault(key):
            raise BlobDamaged(f"{path} is damaged, {fault}: bring it back from a backup, or delete it")
        return path

    def exists(self, key: str) -> bool:
        if os.path.isfile(path := self._path(key)):
            return True
        # A record that is there and cannot be read is not a missing one.
        if key.startswith(SEALED_KEYS) and misplaced(path):
            self.fetch(key)
        return False

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        inner = _inside(prefix) if prefix.strip("/") else ""
        yield from self._below(self.root / inner, f"{inner}/" if inner else "", delimiter)

    def _below(self, folder: Path, place: str, delimiter: bool) -> Iterator[Entry]:
        """Yield entries in the order of their keys, like S3; linked folders are listed but not entered.

        A folder that this user must not read is listed as an object, which nobody can fetch.
        """
        if not folder.is_dir():
            return
        children: dict[str, os.DirEntry[str]] = {}
        try:
            # The trailing slash of folders takes part in the order, as it does on S3.
            children = {f"{c.name}/" if _is_folder(c) else c.name: c for c in os.scandir(folder)}
        except PermissionError:
            yield Entry(place.rstrip("/"), 0)
        except FileNotFoundError:  # the folder was removed after the check
            return
        seals = f"{KEY_SEALS}/"
        # Names alone are sorted, because comparing pairs costs more.
        for name in sorted(children):
            child, key = children[name], f"{place}{name}"
            if key == seals or (name[0] == "." and is_temporary(name.rstrip("/"))):
                continue
            if not name.endswith("/"):
                with suppress(FileNotFoundError):
                    yield _entry(key, child)
            elif delimiter:
                yield Entry(key, 0)
            elif self.seals.is_sealed(key.rstrip("/")):  # a folder in the place of a record
                yield Entry(key.rstrip("/"), 0)
            elif not child.is_symlink():
                yield from self._below(folder / child.name, key, delimiter)

    def stamps(self, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for key in keys:
            try:
                # Plain text, because pathlib costs more than the system call.
                found[key] = size_and_stamp(f"{self.url}/{_inside(key)}")
            except OSError:  # no such file
                continue
        return found

    def written_at(self, key: str) -> float:
        try:
            return self._path(key).stat().st_mtime
        except OSError:  # no such file
            return 0.0

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
            self.seals.remove(key)
        except OSError as error:
            raise StoreError(f"deleting {self.url}/{key}: {disk_fault(error)}") from error

    def purge(self, prefix: str) -> int:
        return 0

    def drop_copy(self, key: str) -> None:
        """Do nothing: the files are the objects themselves."""

    def apart(self, cache: Path) -> Store:
        return self


class S3Store:
    """A store under a bucket prefix. Address, region and keys come from the usual AWS variables."""

    def __init__(self, bucket: str, prefix: str, cache: Path) -> None:
        self.bucket, self.prefix, self.cache = bucket, prefix, cache / "s3" / bucket / prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._drafts = Drafts(self.cache / TEMPORARY)
        self._client_or_none: Any = None
        self._lock = threading.Lock()
        self._versioned = False

    @property
    def _client(self) -> Any:
        """The boto3 client, created on first use. Its creation is not thread-safe; its use is."""
        # The lock makes one thread create the client and the others wait.
        with self._lock:
            if self._client_or_none is None:
                timeout = s3_timeout()
                config = botocore_config.Config(
                    retries={"mode": "standard", "max_attempts": S3_ATTEMPTS},
                    connect_timeout=min(10, timeout),
                    read_timeout=timeout,
                )
                self._client_or_none = boto3.Session().client("s3", config=config)
        return self._client_or_none

    def _key(self, key: str) -> str:
        inner = _inside(key)
        return f"{self.prefix}/{inner}" if self.prefix else inner

    def put(self, key: str, source: Path | bytes, *, sha256: str | None = None) -> None:
        name = self._key(key)
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        with self._plain_errors("writing", key, size):
            if sha256 and isinstance(source, Path) and sha256_file(source) != sha256:
                raise StoreError(f"{source} changed while it was read: run again")
            if isinstance(source, bytes):
                self._client.put_object(Bucket=self.bucket, Key=name, Body=source, ChecksumAlgorithm="SHA256")
            else:
                checked = {"ChecksumAlgorithm": "SHA256"}
                self._client.upload_file(str(source), self.bucket, name, ExtraArgs=checked)

    def fetch(self, key: str, *, most: int | None = None) -> Path:
        """Download an object once: blobs never change, and other objects are compared by their ETag."""
        name = self._key(key)
        path = self.cache / "objects" / _inside(key)
        stamp = self.cache / "etags" / _inside(key)
        # Content-addressed: the local copy is current without a request.
        if key.startswith(BLOBS) and path.is_file():
            return path
        with self._plain_errors("reading", key):
            # The size is checked before the download starts.
            head = self._client.head_object(Bucket=self.bucket, Key=name)
            _no_larger(key, head["ContentLength"], most)
            if path.is_file() and stamp.is_file() and stamp.read_text() == head["ETag"]:
                return path
        with self._plain_errors("reading", key, head["ContentLength"]):
            with self._drafts.replacing(path) as temporary:
                self._client.download_file(self.bucket, name, str(temporary))
                # Guard against a truncated download.
                if temporary.stat().st_size != head["ContentLength"]:
                    raise StoreError(f"{self.url}/{key} arrived truncated: run again")
            with self._drafts.replacing(stamp) as temporary:
                temporary.write_text(head["ETag"])
        return path

    def exists(self, key: str) -> bool:
        try:
            with self._plain_errors("reading", key):
                self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except BlobNotFound:
            return False
        return True

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        full = f"{self._key(prefix)}/" if prefix.strip("/") else (f"{self.prefix}/" if self.prefix else "")
        # Keys of entries are relative to the prefix.
        skip = len(self.prefix) + 1 if self.prefix else 0
        with self._plain_errors("listing", prefix):
            pages = iter(
                self._client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.bucket, Prefix=full, **({"Delimiter": "/"} if delimiter else {})
                )
            )
        while True:
            # The time between two pages belongs to the caller, so that only the request is watched.
            with self._plain_errors("listing", prefix):
                page = next(pages, None)
            if page is None:
                return
            folders = [Entry(folder["Prefix"][skip:], 0) for folder in page.get("CommonPrefixes", ())]
            objects = [
                Entry(item["Key"][skip:], item["Size"], item.get("ETag", "")) for item in page.get("Contents", ())
            ]
            # Web consoles create empty objects with folder names; they are skipped.
            entries = folders + [entry for entry in objects if not entry.key.endswith("/") and entry.key]
            yield from sorted(entries, key=lambda entry: entry.key)

    def stamps(self, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        def stamp(key: str) -> tuple[int, str] | None:
            try:
                with self._plain_errors("reading", key):
                    head = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
            except BlobNotFound:
                return None
            return head["ContentLength"], head["ETag"]

        with ThreadPoolExecutor(REQUESTS) as pool:
            return {key: found for key, found in zip(keys, pool.map(stamp, keys), strict=True) if found}

    def written_at(self, key: str) -> float:
        try:
            with self._plain_errors("reading", key):
                return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["LastModified"].timestamp()
        except BlobNotFound:
            return 0.0

    def delete(self, key: str) -> None:
        with self._plain_errors("deleting", key):
            answer = self._client.delete_object(Bucket=self.bucket, Key=self._key(key))
            self.drop_copy(key)
        # The answer of a versioned bucket has a version: the object was only marked as deleted.
        if answer.get("DeleteMarker") or answer.get("VersionId"):
            self._versioned = True
            self._delete_versions(self._key(key), lambda entry: entry["Key"] == self._key(key))

    def purge(self, prefix: str) -> int:
        # A backup downloads the catalog's files; no later request finds out that they are gone from the bucket.
        for folder in ("objects", "etags"):
            shutil.rmtree(self.cache / folder / _inside(prefix), ignore_errors=True)
        if not self._versioned:
            return 0
        return self._delete_versions(f"{self._key(prefix)}/", lambda entry: not entry["IsLatest"])

    def _delete_versions(self, start: str, wanted: Callable[[dict[str, object]], bool]) -> int:
        """Delete versions and deletion markers of keys that begin with `start`; return their number."""
        # A deleted object of a versioned bucket stays readable until each version is removed.
        removed = 0
        try:
            pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=start)
            for page in pages:
                for entry in filter(wanted, [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]):
                    version = {"Key": entry["Key"], "VersionId": entry["VersionId"]}
                    self._client.delete_object(Bucket=self.bucket, **version)
                    removed += 1
        except ClientError as error:
            raise StoreError(
                f"s3://{self.bucket}/{start} is deleted, but its versions stay and can be read ({error}): give the key "
                "s3:ListBucketVersions and s3:DeleteObjectVersion (infra/s3/policy.json), then run again"
            ) from error
        return removed

    def drop_copy(self, key: str) -> None:
        for folder in ("objects", "etags"):
            (self.cache / folder / _inside(key)).unlink(missing_ok=True)

    def apart(self, cache: Path) -> Store:
        return S3Store(self.bucket, self.prefix, cache)

    @contextmanager
    def _plain_errors(self, doing: str, key: str, size: int = 0) -> Iterator[None]:
        """Raise boto's errors as ours: BlobNotFound for a missing object, StoreError otherwise; report a long wait.

        `size` are the bytes that the body sends or receives.
        """
        try:
            with report_wait(s3_server(), size=size):
                yield
        except ClientError as error:
            if doing == "reading" and error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                raise BlobNotFound(_missing(self.url, key)) from error
            # Status 4xx: the request itself is wrong, so a repetition does not help.
            wrong = 400 <= error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < 500
            remedy = "check the address, the bucket and the keys' rights" if wrong else "run again"
            raise StoreError(f"{doing} {self.url}/{key}: {error}: {remedy}") from error
        # Before OSError, because botocore's timeouts are of that class too.
        except (boto3.exceptions.Boto3Error, BotoCoreError) as error:
            absent = isinstance(error, NoCredentialsError | PartialCredentialsError)
            silent = isinstance(error, BotoConnectionError | HTTPClientError)
            remedy = NO_KEYS if absent else f"{s3_server().check} Then run again" if silent else "run again"
            raise StoreError(f"{doing} {self.url}/{key}: {error}: {remedy}") from error
        except OSError as error:
            raise StoreError(f"{doing} {self.url}/{key}: {disk_fault(error)}") from error


def _entry(key: str, child: os.DirEntry[str]) -> Entry:
    try:
        return Entry(key, *size_and_stamp(child))
    except PermissionError:  # the folder may be listed, and its files must not be looked at
        return Entry(key, 0)


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself
        return False


def _inside(key: str) -> str:
    """Return the normalised key; raise StoreError for an empty key or one outside the store."""
    # Most keys are normal, and a look at the inbox asks for thousands.
    if key and key[0] not in "/." and key[-1] != "/" and "//" not in key and "/." not in key:
        return key
    # Normalise first, so that `a/../../b` cannot escape.
    plain = posixpath.normpath(key.strip("/") or "/")
    if plain.startswith(("/", "../")) or plain in ("..", "."):
        raise StoreError(f"key {key!r} leaves the store")
    return plain


def _no_larger(key: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise BlobTooLarge(f"{key}: {size} bytes, at most {most} are read", size)
