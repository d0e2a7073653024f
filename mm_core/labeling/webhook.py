"""Receive Label Studio's webhook calls, which only trigger an early pull. Polling finds all work without them.

The server signs nothing, waits one second and never repeats a call. The receiver therefore checks a header with a
shared secret, reads no body, and only touches a file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mm_core.core.layout import Layout

HEADER = "X-Matting-Moments"
"""HTTP header with the shared secret."""


def hint(layout: Layout) -> Path:
    """Return the path of the file that is touched when the server calls."""
    return layout.labels / "hint"


def hinted_at(layout: Layout) -> float:
    """Return the time of the server's last call in seconds since 1970; 0 without any call."""
    try:
        return hint(layout).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def webhook_token(layout: Layout) -> str:
    """Return `MM_WEBHOOK_TOKEN`, or a random token that is stored in `labels/webhook.token` (mode 0600)."""
    if given := os.environ.get("MM_WEBHOOK_TOKEN"):
        return given
    path = layout.labels / "webhook.token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file is complete and private before it gets its name.
        draft = path.with_name(f".webhook.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(24))
        draft.replace(path)
    return path.read_text()


def application(layout: Layout, token: str) -> Starlette:
    """Return the ASGI application: POST / with the header touches the hint file and returns 204, otherwise 403."""

    def called(request: Request) -> Response:
        # Constant-time comparison: response times must not reveal the secret.
        if not secrets.compare_digest(request.headers.get(HEADER, "").encode(), token.encode()):
            return Response(status_code=403)
        hint(layout).parent.mkdir(parents=True, exist_ok=True)
        # The sensor that polls the server reads the file's time.
        hint(layout).touch()
        return Response(status_code=204)

    return Starlette(routes=[Route("/", called, methods=["POST"])])


def receive(layout: Layout, port: int, token: str) -> None:
    """Serve on 127.0.0.1 until Ctrl-C."""
    print(f"receiving Label Studio's calls at http://127.0.0.1:{port}/  (Ctrl-C ends)", flush=True)
    uvicorn.run(application(layout, token), host="127.0.0.1", port=port, log_level="warning", proxy_headers=False)
