"""Servers that tests and benchmarks start for themselves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


def postgres_programs() -> Path | None:
    """The newest PostgreSQL of Debian's packages."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL, without a database name, of a new PostgreSQL on loopback that takes any password; it goes afterwards."""
    programs = postgres_programs()
    assert programs, "apt-get install postgresql"
    # It refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="mm-postgres-"))  # a socket's path must be short, and `postgres` must get in
    if user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = partial(subprocess.run, check=True, capture_output=True, cwd="/")
    run([*user, programs / "initdb", "-D", folder / "data", "-U", "mm", "-A", "trust", "-N", "--no-instructions"])
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -F -c max_connections=200"
    control = [*user, programs / "pg_ctl", "-D", folder / "data"]
    run([*control, "-w", "-l", folder / "log", "-o", options, "start"])
    try:
        yield f"postgresql://mm:unused@127.0.0.1:{port}"
    finally:
        run([*control, "-m", "immediate", "stop"])
        shutil.rmtree(folder, ignore_errors=True)
