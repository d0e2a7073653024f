"""A browser without a window, and a page of ours for it to open: what runs on a phone is measured in what phones run.

Chromium is the system's own, driven by Playwright; nothing is downloaded.
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
from typing import TYPE_CHECKING, Any

from mm_core.core.errors import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def chromium() -> str:
    """The path of `MM_CHROMIUM`, or of this machine's Chromium. Raises InputError where there is none."""
    names = (os.environ.get("MM_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        raise InputError("no Chromium here: install Debian's `chromium`, or set MM_CHROMIUM to a browser's path")
    return found


def require_playwright() -> None:
    """Raise InputError where Playwright, which only some need, is not installed."""
    if importlib.util.find_spec("playwright") is None:
        raise InputError("Playwright is not installed here: run `make browser` in the project")


@contextmanager
def browser() -> Iterator[Browser]:
    """An open browser. Raises InputError as `chromium` and `require_playwright`."""
    require_playwright()
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as play:
        # Chromium's own sandbox refuses to start for root.
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an ASGI application that a thread serves on a free port of this machine."""
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
