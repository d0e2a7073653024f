"""Store: five verbs over a folder or an S3 prefix. The only module that knows boto3.

Everything above sees local paths: `fetch` gives one, whatever the backend.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from mm_core.errors import BlobNotFound, InputError, StoreError
from mm_core.records import sha256_bytes, sha256_file, write_bytes


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size: int
    """Bytes."""


class Store(Protocol):
    """What blobs, catalog files and inboxes are read and written through. Keys use `/`, never start with it."""

    url: str

    def put(self, key: str, source: Path | bytes) -> None:
        """Writes an object whole or not at all; replaces what was there."""
        ...

    def fetch(self, key: str) -> Path:
        """A local path with the object's content; raises BlobNotFound."""
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        """Objects under a prefix, by key. With `delimiter`, only the next level: folders end in `/`, size 0."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; no error where there is none."""
        ...


def open_store(url: str, cache: Path) -> Store:
    """A folder path or `s3://bucket/prefix`. `cache` keeps S3 downloads."""
    parsed = urlparse(url)
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise InputError(f"store {url!r} names no bucket: write s3://bucket/prefix")
        return S3Store(parsed.netloc, parsed.path.strip("/"), cache)
    if parsed.scheme and len(parsed.scheme) > 1:
        raise InputError(f"store {url!r} has the unknown scheme {parsed.scheme!r}: use a folder or s3://bucket/prefix")
    return LocalStore(Path(url))


def blob_key(digest: str) -> str:
    """Content-addressed place of a blob."""
    return f"blobs/{digest[:2]}/{digest[2:4]}/{digest}"


def put_blob(store: Store, source: Path | bytes) -> str:
    """Stores content under its own sha256 (once) and returns that."""
    digest = sha256_bytes(source) if isinstance(source, bytes) else sha256_file(source)
    if not store.exists(blob_key(digest)):
        store.put(blob_key(digest), source)
    return digest


def fetch_blob(store: Store, digest: str) -> Path:
    """Local path of a blob; raises BlobNotFound."""
    return store.fetch(blob_key(digest))


class LocalStore:
    """A folder."""

    def __init__(self, root: Path):
        self.root = root
        self.url = str(root)

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self.root / key))
        if not path.is_relative_to(self.root):
            raise StoreError(f"key {key!r} leaves the store")
        return path

    def put(self, key: str, source: Path | bytes) -> None:
        path = self._path(key)
        if isinstance(source, bytes):
            write_bytes(path, source)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with source.open("rb") as reader, temporary.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(path)

    def fetch(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise BlobNotFound(f"{self.url} holds no {key}")
        return path

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        base = self._path(prefix) if prefix else self.root
        if delimiter:
            if base.is_dir():
                for child in sorted(base.iterdir()):
                    key = child.relative_to(self.root).as_posix()
                    yield Entry(f"{key}/", 0) if child.is_dir() else Entry(key, child.stat().st_size)
            return
        for folder, names, files in os.walk(base):
            names.sort()
            for name in sorted(files):
                path = Path(folder) / name
                if not name.endswith(".tmp"):
                    yield Entry(path.relative_to(self.root).as_posix(), path.lstat().st_size)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)


class S3Store:
    """A bucket prefix. Address, region and keys come from the usual AWS variables."""

    def __init__(self, bucket: str, prefix: str, cache: Path):
        self.bucket, self.prefix, self.cache = bucket, prefix, cache / "s3" / bucket / prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client_or_none: Any = None

    @property
    def _client(self) -> Any:
        if self._client_or_none is None:
            import boto3
            from botocore.config import Config

            self._client_or_none = boto3.client(
                "s3",
                config=Config(retries={"mode": "standard", "max_attempts": 6}, connect_timeout=10, read_timeout=60),
            )
        return self._client_or_none

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def put(self, key: str, source: Path | bytes) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if isinstance(source, bytes):
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=source, ChecksumAlgorithm="SHA256")
            else:
                self._client.upload_file(
                    str(source), self.bucket, self._key(key), ExtraArgs={"ChecksumAlgorithm": "SHA256"}
                )
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StoreError(f"writing {self.url}/{key}: {error}") from error

    def fetch(self, key: str) -> Path:
        from botocore.exceptions import BotoCoreError, ClientError

        path = self.cache / key
        try:
            head = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
            stamp = path.with_name(path.name + ".etag")
            if path.is_file() and stamp.is_file() and stamp.read_text() == head["ETag"]:
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            self._client.download_file(self.bucket, self._key(key), str(temporary))
            if temporary.stat().st_size != head["ContentLength"]:
                raise StoreError(f"{self.url}/{key} arrived truncated: run again")
            temporary.replace(path)
            write_bytes(stamp, head["ETag"].encode())
            return path
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NoSuchBucket"):
                raise BlobNotFound(f"{self.url} holds no {key}") from error
            raise StoreError(f"reading {self.url}/{key}: {error}") from error
        except BotoCoreError as error:
            raise StoreError(f"reading {self.url}/{key}: {error}") from error

    def exists(self, key: str) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_object(Bucket=self.bucket, Key=self._key(key))
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return False
            raise StoreError(f"reading {self.url}/{key}: {error}") from error
        except BotoCoreError as error:
            raise StoreError(f"reading {self.url}/{key}: {error}") from error

    def list(self, prefix: str = "", *, delimiter: bool = False) -> Iterator[Entry]:
        from botocore.exceptions import BotoCoreError, ClientError

        full = self._key(prefix) if prefix else (f"{self.prefix}/" if self.prefix else "")
        if prefix and delimiter and not full.endswith("/"):
            full += "/"
        skip = len(self.prefix) + 1 if self.prefix else 0
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=full, **({"Delimiter": "/"} if delimiter else {})
            )
            for page in pages:
                for folder in page.get("CommonPrefixes", ()):
                    yield Entry(folder["Prefix"][skip:], 0)
                for item in page.get("Contents", ()):
                    yield Entry(item["Key"][skip:], item["Size"])
        except (BotoCoreError, ClientError) as error:
            raise StoreError(f"listing {self.url}/{prefix}: {error}") from error

    def delete(self, key: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))
        except (BotoCoreError, ClientError) as error:
            raise StoreError(f"deleting {self.url}/{key}: {error}") from error
