"""A headless browser and a local page for it: code for phones is measured in the engine that phones use.

Playwright drives the Chromium of the system. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError

if TYPE_CHECKING:
    from playwright import sync_api
    from playwright.sync_api import Browser
    from starlette.types import ASGIApp
else:
    sync_api = Deferred("playwright.sync_api")


def chromium() -> str:
    """Return the path of `MM_CHROMIUM` or of the system's Chromium; raise InputError if none is found."""
    # The environment variable wins; the other names are those of common packages.
    names = (os.environ.get("MM_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if path is None:
        raise InputError("no Chromium here: install Debian's `chromium`, or set MM_CHROMIUM to a browser's path")
    return path


def require_playwright() -> None:
    """Raise InputError if Playwright, an optional package, is not installed."""
    if importlib.util.find_spec("playwright") is None:
        raise InputError("Playwright is not installed here: run `make browser` in the project")


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield an open browser; raise InputError like `chromium` and `require_playwright`."""
    require_playwright()
    path = chromium()
    with sync_api.sync_playwright() as play:
        # Chromium's own sandbox refuses to start for root.
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Yield the address of an ASGI application that a thread serves on a free local port."""
    # Port 0 makes the system choose a free port; uvicorn then binds to the same number.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    # The page may only be opened once the server accepts connections.
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
