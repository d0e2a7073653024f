"""What disks and networks say when they fail: in one line with the remedy, and tried again where that may help."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from mm_core.errors import CatalogError, StoreError

TRIES = 10
"""Of one verb of the catalog, with growing pauses, before S3's error is reported."""
_REMEDIES = {
    errno.ENOSPC: "free some space or move the store, then run again",
    errno.EDQUOT: "raise the quota or free some space, then run again",
    errno.EFBIG: "raise the limit on file size (ulimit -f), then run again",
    errno.EACCES: "give this user the right to it, then run again",
    errno.EPERM: "give this user the right to it, then run again",
    errno.EROFS: "make it writable, then run again",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def disk_fault(error: OSError) -> str:
    """What the system said about a file, and the remedy."""
    return f"{error.strerror or error}: {_REMEDIES.get(error.errno or 0, 'run again')}"


@contextmanager
def disk_faults_of(place: Path) -> Iterator[None]:
    """The system's errors about files of the workspace as StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or place}: {disk_fault(error)}") from error


def patient(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """For verbs of the catalog that may be done twice to no effect: tries again where S3 let a request down.

    delta-rs repeats requests that were refused, but not those whose answer broke off, nor a conditional commit. An
    error that stays is a CatalogError of one line with its remedy.
    """

    @wraps(verb)
    def again(*args: _P.args, **more: _P.kwargs) -> _R:
        for attempt in range(TRIES):
            try:
                return verb(*args, **more)
            except CatalogError as error:
                text = _COLOURS.sub("", str(error))
                if "Generic S3 error" in text and attempt + 1 < TRIES:
                    time.sleep(random.uniform(0, min(5.0, 0.05 * 2**attempt)))
                    continue
                raise type(error)(_one_line(text)) from error
        raise AssertionError("the last attempt returns or raises")

    return again


def _one_line(text: str) -> str:
    """delta-rs tells a chain of causes, a line each."""
    plain = " ".join(text.replace("↳", ":").split())
    if code := re.search(r"\(os error (\d+)\)", plain):
        number = int(code.group(1))
        return f"{plain}: {_REMEDIES.get(number, f'{os.strerror(number)}: run again')}"
    return f"{plain}: run again" if "S3 error" in plain else plain
