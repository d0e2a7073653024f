"""Servers that a command asks, and a notice on stderr where one of them lets it wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

NOTICE_AFTER = 3.0
"""Seconds without an answer after which a wait is reported."""
NOTICE_EVERY = 60.0
"""Seconds between two notices about the same server in one process."""
BYTES_PER_SECOND = 1e6
"""Speed that a transfer is expected to have at least; a slower one is reported."""
_log = logging.getLogger(__name__)
_reported: dict[str, float] = {}


@dataclass(frozen=True)
class RemoteServer:
    """A server that commands ask; its address never contains a password."""

    name: str
    """Name of the product, such as MLflow."""
    address: str
    check: str
    """The question that leads to the remedy, such as "is it running, is MLFLOW_TRACKING_URI right?"."""

    @property
    def silence(self) -> str:
        """Return the sentence that the server does not answer, with the remedy."""
        return f"{self.name} at {self.address} does not answer: {self.check}"


def public_address(url: str) -> str:
    """Return scheme, host and port of a URL, without user, password and path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else url


@contextmanager
def report_wait(server: RemoteServer, *, size: int = 0) -> Iterator[None]:
    """Report on stderr that the body waits for a server, if it takes longer than expected.

    Args:
        server: The server that the body asks.
        size: Bytes that the body sends or receives; they extend the time until the notice.
    """
    notice = threading.Timer(NOTICE_AFTER + size / BYTES_PER_SECOND, notify, (server,))
    # The process may end while a notice is still due.
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def notify(server: RemoteServer) -> None:
    """Report that a command waits for a server; once per NOTICE_EVERY seconds."""
    now = time.monotonic()
    last = _reported.get(server.address)
    if last is None or now - last >= NOTICE_EVERY:
        _reported[server.address] = now
        _log.warning("still waiting: %s (Ctrl-C ends the wait)", server.silence)
