"""`dagster dev` with the guarded web server; `mm ui` runs it as `python -m pipelines.dev`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagster._cli import dev

OWN = "dagster_webserver"
_open = dev.open_ipc_subprocess  # pyright: ignore[reportPrivateImportUsage]


def open_guarded(command: Sequence[str], **options: Any) -> Any:
    """Start one of the programs of `dagster dev`, with the guarded web server in place of Dagster's."""
    return _open(["pipelines.webserver" if word == OWN else word for word in command], **options)


def main() -> None:
    """Run Dagster's command. Tests of `mm ui` check that the server that responds is the guarded one."""
    # `dagster dev` has no option for another web server.
    dev.open_ipc_subprocess = open_guarded  # pyright: ignore[reportPrivateImportUsage]
    dev.dev_command()


if __name__ == "__main__":
    main()
