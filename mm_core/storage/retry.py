"""Errors of disks and networks as one line with a remedy, and retries of requests that may succeed later."""

from __future__ import annotations

import errno
import os
import random
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from mm_core.core.errors import CatalogError, StoreError
from mm_core.core.servers import NOTICE_AFTER, RemoteServer, notify, public_address
from mm_core.core.settings import s3_timeout

TRIES = 10
"""Attempts of one catalog operation, with growing pauses, before S3's error is reported."""
PATIENCE = 10
"""Timeouts of S3 (`MM_S3_TIMEOUT`) after which a catalog operation is not repeated."""
# Remedies for errors that a person can fix.
_REMEDIES = {
    errno.ENOSPC: "free some space or move the store, then run again",
    errno.EDQUOT: "raise the quota or free some space, then run again",
    errno.EFBIG: "raise the limit on file size (ulimit -f), then run again",
    errno.EACCES: "give this user the right to it, then run again",
    errno.EPERM: "give this user the right to it, then run again",
    errno.EROFS: "make it writable, then run again",
    errno.EISDIR: "a folder is in the place of the file: move it away, then run `mm check`",
    errno.EEXIST: "a file or a link is in the place of a folder: move it away, or name another folder",
    errno.ENOTDIR: "a file is in the place of a folder: move it away, then run `mm check`",
}
_RESTORE = "run `mm check`, or restore it from a backup"
_SQLITE_REMEDIES = {
    "unable to open database file": _REMEDIES[errno.EACCES],
    "attempt to write a readonly database": _REMEDIES[errno.EACCES],
    "database or disk is full": _REMEDIES[errno.ENOSPC],
    "disk I/O error": _RESTORE,
    "database disk image is malformed": _RESTORE,
    "malformed database schema": _RESTORE,
    "file is not a database": _RESTORE,
}
"""Words of sqlite about its file → remedy."""
NO_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, then run again"
"""Remedy where no credentials for S3 are found."""
ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, ValueError, OSError
)  # fmt: skip
"""Errors of zipfile for a damaged archive. A flipped bit in a header may name an unknown compression, an offset outside
of the file or a wrong length, for which zipfile has no error class of its own."""
_UNREADABLE = re.compile(r"(Kernel|Json|Parquet|Arrow|external) error", re.IGNORECASE)
"""delta-rs' words about a file of a table that it cannot read."""
_BACKTRACE = re.compile(r"\s0: (<unknown>|std::|core::).*", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def disk_fault(error: OSError) -> str:
    """Return the system's error text about a file, with a remedy."""
    return f"{error.strerror or error}: {_REMEDIES.get(error.errno or 0, 'run again')}"


@contextmanager
def disk_faults_of(place: Path) -> Iterator[None]:
    """Raise system errors about files of the workspace as StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{_named(error) or place}: {disk_fault(error)}") from error


def _named(error: OSError) -> str:
    """Return the file of an error; for a full disk the target, if the error names two files."""
    # A rename or copy has two file names.
    names = [str(name) for name in (error.filename, error.filename2) if name]
    # Here only the target can be the cause.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        names = names[-1:]
    return " ".join(dict.fromkeys(names))


READERS = ("sqlite3", "sqlalchemy", "mlflow", "pyarrow", "safetensors", "deltalake", "pydantic_core", "json", "zipfile")
"""Packages with errors that usually mean an unreadable file of the workspace."""


def plain_fault(error: BaseException) -> str | None:
    """Return an error of the disk or of a damaged file as one line with its remedy; None for any other error.

    Our own readers raise a MattingError that names the file; this function handles errors of libraries.
    """
    # The error names the file itself.
    if isinstance(error, OSError) and error.errno is not None:
        named = _named(error)
        if error.errno in _REMEDIES:
            return f"{named or 'the disk'}: {disk_fault(error)}"
        return f"{named}: {error.strerror}: run `mm check`" if named else None
    packages = {cls.__module__.split(".")[0].lstrip("_") for cls in type(error).__mro__}
    # The base classes are compared as well, because libraries raise subclasses from other modules.
    if isinstance(error, UnicodeDecodeError) or packages & set(READERS):
        cause: BaseException | None = error
        while cause is not None:  # a library may wrap the system's error
            if isinstance(cause, OSError) and cause.errno in _REMEDIES:
                return plain_fault(cause)
            cause = cause.__cause__ or cause.__context__
        message = " ".join(str(error).split())
        if fault := explain_sqlite(message):
            return fault
        words = f"{type(error).__name__}: {message[:300]}"
        return f"a file of the workspace is damaged or unreadable ({words}): run `mm check`"
    return None


def explain_sqlite(text: str) -> str | None:
    """Return sqlite's own words within an error text of MLflow or sqlalchemy, with a remedy; None for any other error.

    Such a text is long, because it quotes the statement and its values.
    """
    words = next((words for words in _SQLITE_REMEDIES if words in text), None)
    return f"{words}: {_SQLITE_REMEDIES[words]}" if words else None


def s3_server() -> RemoteServer:
    """Return S3 as the variables of the environment name it."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if address:
        return RemoteServer("S3", public_address(address), "is it running, is AWS_ENDPOINT_URL right?")
    return RemoteServer("S3", "AWS", "is there a network, is AWS_REGION right?")


def archive_fault(path: Path) -> str:
    """Return the damage of a file of `torch.save`, found by the CRC-32 of its members; "" for an intact file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except ARCHIVE_ERRORS as error:
        return f"not an archive that can be read: {error}"
    return f"{damaged} is damaged" if damaged else ""


def table_fault(error: Exception) -> str:
    """Return the text of an error of delta-rs or Arrow without its backtrace, with a remedy for an unreadable file."""
    text = " ".join(_BACKTRACE.sub("", _COLOURS.sub("", str(error))).split())
    if _UNREADABLE.search(text) and "S3 error" not in text and "os error" not in text:
        return f"{text}: run `mm check`, which names the damaged file"
    return text


def patient(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """Repeat a catalog operation after failed S3 requests; for idempotent operations only.

    delta-rs repeats refused requests, but neither requests with an interrupted answer nor conditional commits. The last
    error becomes a CatalogError of one line with a remedy.
    """

    @wraps(verb)
    def again(*args: _P.args, **more: _P.kwargs) -> _R:
        begin = time.monotonic()
        for attempt in range(TRIES):
            try:
                return verb(*args, **more)
            except CatalogError as error:
                text = _COLOURS.sub("", str(error))
                seconds = time.monotonic() - begin
                # Only S3 errors can pass; all others are reported immediately.
                if "Generic S3 error" in text and attempt + 1 < TRIES and seconds < PATIENCE * s3_timeout():
                    if seconds > NOTICE_AFTER:
                        notify(s3_server())
                    time.sleep(random.uniform(0, min(5.0, 0.05 * 2**attempt)))
                    continue
                raise type(error)(_one_line(text)) from error
        raise AssertionError("the last attempt returns or raises")

    return again


def _one_line(text: str) -> str:
    """Return delta-rs' error text, a chain of causes over several lines, as one line with a remedy."""
    plain = " ".join(text.replace("↳", ":").split())
    if "client error (Connect)" in plain or "operation timed out" in plain:
        return f"{plain.partition(': Kernel error')[0]}: {s3_server().silence} Then run again"
    if code := re.search(r"\(os error (\d+)\)", plain):
        number = int(code.group(1))
        return f"{plain}: {_REMEDIES.get(number, f'{os.strerror(number)}: run again')}"
    if "error occurred while loading credentials" in plain:
        return f"{plain.partition(' -> ')[0]}: S3 needs credentials: {NO_KEYS}"
    return f"{plain}: run again" if "S3 error" in plain else plain
