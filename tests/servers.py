"""Servers that tests and benchmarks start for themselves."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


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


class Receiver(HTTPServer):
    """A webhook on loopback: keeps the messages that it takes, answers 503 to more."""

    def __init__(self, path: str = "/services/T0/sEcReT", takes: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.url = f"http://127.0.0.1:{self.server_port}{path}"
        self.takes = takes
        self.got: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def __exit__(self, *_: Any) -> None:
        self.stop()


class _Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        taken = len(self.server.got) < self.server.takes
        if taken:
            assert self.headers["Content-Type"] == "application/json"
            self.server.got.append(json.loads(body))
        self.send_response(200 if taken else 503)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...
