"""Run Dagster's web server behind the guard of this project's pages, with the same options as `dagster-webserver`.

Dagster's own server accepts any `Host` and runs GraphQL mutations by GET. Any web page open on the machine could send
it both.
"""

from __future__ import annotations

import sys

from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster_webserver import cli
from dagster_webserver.app import create_app_from_workspace_process_context as create_app
from starlette.applications import Starlette

from mm_core.core.errors import InputError
from mm_core.services.web_guard import WebGuard, allowed_hosts

PROBED = ("/server_info",)
"""Path that the probes of Dagster's Helm chart request by a pod's address; it returns versions only."""
HEADERS = {"x-frame-options": "DENY", "cross-origin-opener-policy": "same-origin"}


def guarded_app(
    context: IWorkspaceProcessContext, prefix: str = "", poll_rate: int | None = None, **options: object
) -> Starlette:
    """Return Dagster's ASGI application with the guard before all of its own middleware."""
    app = create_app(context, prefix, poll_rate, **options)
    # Middleware added last runs first.
    app.add_middleware(WebGuard, hosts=allowed_hosts(), headers=HEADERS, open_paths=PROBED)
    return app


def main() -> None:
    """Run Dagster's command with the guarded application in place of its own."""
    try:
        # Check the variable first, so that an error is one line and no traceback.
        allowed_hosts()
    except InputError as error:
        sys.exit(f"mm: {error}")
    cli.create_app_from_workspace_process_context = guarded_app  # pyright: ignore[reportPrivateImportUsage]
    cli.main()


if __name__ == "__main__":
    main()
