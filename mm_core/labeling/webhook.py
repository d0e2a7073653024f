"""Label Studio's calls when work is handed in: a hint to pull soon. Polling is the truth, a lost call loses nothing.

The server sends no signature, waits one second and never repeats a call: so the receiver believes nothing but a
header that only the two know, reads no body, and only touches a file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mm_core.core.layout import Layout

HEADER = "X-Matting-Moments"


def hint(layout: Layout) -> Path:
    """Touched when the server called."""
    return layout.labels / "hint"


def hinted_at(layout: Layout) -> float:
    """When the server called last, seconds since 1970; 0 where it never did."""
    try:
        return hint(layout).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def webhook_token(layout: Layout) -> str:
    """`MM_WEBHOOK_TOKEN`, else a random one that is kept in `labels/webhook.token` (0600)."""
    if given := os.environ.get("MM_WEBHOOK_TOKEN"):
        return given
    path = layout.labels / "webhook.token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".webhook.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(24))
        draft.replace(path)
    return path.read_text()


def application(layout: Layout, token: str) -> Any:
    """The ASGI application: POST / with the header → 204 and a touched hint; without it → 403."""

    def called(request: Request) -> Response:
        if not secrets.compare_digest(request.headers.get(HEADER, "").encode(), token.encode()):
            return Response(status_code=403)
        hint(layout).parent.mkdir(parents=True, exist_ok=True)
        hint(layout).touch()
        return Response(status_code=204)

    return Starlette(routes=[Route("/", called, methods=["POST"])])


def receive(layout: Layout, port: int, token: str) -> None:
    """Serves on 127.0.0.1 until Ctrl-C."""
    import uvicorn

    print(f"receiving Label Studio's calls at http://127.0.0.1:{port}/  (Ctrl-C ends)", flush=True)
    uvicorn.run(application(layout, token), host="127.0.0.1", port=port, log_level="warning", proxy_headers=False)
