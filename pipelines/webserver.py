"""Dagster's web server behind the guard of our pages: the same options, `python -m pipelines.webserver --help`.

Dagster's own server answers to any `Host` and runs GraphQL mutations by GET, and any web page that is open on the
machine can send it both.
"""

from __future__ import annotations

import sys
from typing import Any

from dagster_webserver import cli
from dagster_webserver.app import create_app_from_workspace_process_context as create_app
from starlette.applications import Starlette

from mm_core.core.errors import InputError
from mm_core.services.web_guard import WebGuard, allowed_hosts

PROBED = ("/server_info",)
"""What the probes of Dagster's Helm chart ask for by a pod's address; it tells versions."""
HEADERS = {"x-frame-options": "DENY", "cross-origin-opener-policy": "same-origin"}


def guarded_app(*arguments: Any, **options: Any) -> Starlette:
    """Return Dagster's ASGI application with the guard before all of its own middleware."""
    app = create_app(*arguments, **options)
    app.add_middleware(WebGuard, hosts=allowed_hosts(), headers=HEADERS, open_paths=PROBED)
    return app


def main() -> None:
    """Run Dagster's command with the guarded application in place of its own."""
    try:
        allowed_hosts()
    except InputError as error:
        sys.exit(f"mm: {error}")
    cli.create_app_from_workspace_process_context = guarded_app  # pyright: ignore[reportPrivateImportUsage]
    cli.main()


if __name__ == "__main__":
    main()
