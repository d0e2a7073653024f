"""Serve the workspace's pages over HTTP, read-only: Data Docs, the cycle's report and the reports of past cycles.

Browsers refuse links from Dagster's page to local files. `mm ui` runs this application with uvicorn on 127.0.0.1.
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
"""Pages run no script and load nothing from other servers. Their bars and heat maps are style attributes."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def application() -> Starlette:
    """Return the ASGI application for the workspace in the environment.

    It answers GET and HEAD only. A path that is not a page, or that leaves the pages' folders, gets 404.
    """
    layout = Layout(Settings.from_env())

    async def report(request: Request) -> FileResponse:
        if not layout.html_report.is_file():
            raise HTTPException(404)
        return FileResponse(layout.html_report)

    def pages(folder: str) -> Mount:
        # StaticFiles requires that the folder exists.
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
    """Static files without hidden ones, since Data Docs store results under names with a dot."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        # Starlette itself keeps requests inside the folder.
        if any(part.startswith(".") for part in PurePath(path).parts):
            return "", None
        return super().lookup_path(path)
