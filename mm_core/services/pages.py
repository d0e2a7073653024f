"""The workspace's pages over HTTP, read-only: Data Docs, the cycle's report, the reports of past cycles.

Browsers refuse to follow a link from Dagster's page to a file. `mm ui` serves this with uvicorn on 127.0.0.1.
"""

from __future__ import annotations

import os
from pathlib import PurePath

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.services.web_guard import WebGuard, allowed_hosts

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Pages run no script and load nothing from elsewhere. Their bars and heat maps are style attributes."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def application() -> Starlette:
    """The server's ASGI application on the workspace that the environment names.

    GET and HEAD only; a path that is no page, or that leads out of the pages' folders, is 404.
    """
    layout = Layout(Settings.from_env())

    async def report(request: Request) -> FileResponse:
        if not layout.html_report.is_file():
            raise HTTPException(404)
        return FileResponse(layout.html_report)

    def pages(folder: str) -> Mount:
        (layout.root / folder).mkdir(parents=True, exist_ok=True)
        return Mount(f"/{folder}", _Pages(directory=layout.root / folder, html=True))

    return Starlette(
        routes=[
            Route(f"/{layout.html_report.relative_to(layout.root).as_posix()}", report),
            *(pages(folder.name) for folder in (layout.data_docs, layout.reports)),
        ],
        middleware=[Middleware(WebGuard, hosts=allowed_hosts(), headers=HEADERS)],
    )


class _Pages(StaticFiles):
    """Starlette keeps requests inside the folder; what begins with a dot is no page: Data Docs keep results so."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        if any(part.startswith(".") for part in PurePath(path).parts):
            return "", None
        return super().lookup_path(path)
