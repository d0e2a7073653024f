"""`dagster dev` with the guarded web server: `python -m pipelines.dev`, what `mm ui` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagster._cli import dev

OWN = "dagster_webserver"
_open = dev.open_ipc_subprocess  # pyright: ignore[reportPrivateImportUsage]


def open_guarded(command: Sequence[str], **options: Any) -> Any:
    """Start one of `dagster dev`'s programs; in place of Dagster's web server, ours."""
    return _open(["pipelines.webserver" if word == OWN else word for word in command], **options)


def main() -> None:
    """Run Dagster's command. Tests of `mm ui` hold that the server which answers is the guarded one."""
    dev.open_ipc_subprocess = open_guarded  # pyright: ignore[reportPrivateImportUsage]
    dev.dev_command()


if __name__ == "__main__":
    main()
