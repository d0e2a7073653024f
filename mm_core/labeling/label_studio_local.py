"""Run a local Label Studio on 127.0.0.1 in its own environment and data folder; find the server to use."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from mm_core.core import processes
from mm_core.core.errors import InputError, LabelServerError
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.ports import require_free_port
from mm_core.core.records import parse_record, write_json
from mm_core.labeling.label_studio_client import Server

START = 300.0
"""Seconds that a server may take until it responds; the first start creates a database."""
STOP = 20.0
"""Seconds between SIGTERM and SIGKILL."""
EMAIL = "matting-moments@localhost.example"


def connect(layout: Layout, *, people: int = 1) -> Server | None:
    """Return the server of `LABEL_STUDIO_URL`, or the one that `mm label serve` runs on this workspace, or None.

    Args:
        layout: The workspace.
        people: Number of people who label each photo in a new project.

    Raises:
        InputError: The address or the key is missing or malformed.
    """
    settings = layout.settings
    if url := settings.label_studio_url:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"LABEL_STUDIO_URL={url!r} is no address: write http://host:port or https://host")
        key = os.environ.get("LABEL_STUDIO_API_KEY", "").strip()
        # A key with a space or line break would fail later with a less clear error.
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            what = "is no key: copy it again" if key else "is not set"
            raise InputError(f"LABEL_STUDIO_API_KEY {what}: LABEL_STUDIO_URL needs the key of an account there")
        page = settings.label_studio_host
        return Server(url, key, settings.label_studio_project, people=people, page=page)
    if running := running_server(layout.label_studio):
        token = read_account(layout.label_studio)["token"]
        return Server(running["url"], token, settings.label_studio_project, people=people)
    return None


def running_server(folder: Path) -> dict | None:
    """Return `url` and `pid` of the server that runs on this folder, or None."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        info = json.loads((folder / "server.json").read_text())
        # The start time guards against a process number that was reused.
        if _started(info["pid"]) == info["started"]:
            return info
    return None


def read_account(folder: Path) -> dict[str, str]:
    """Return `email`, `password` and `token` of a local server's only account; create it at random if it is missing."""
    path = folder / "account.json"
    if not has_file(path):
        folder.mkdir(parents=True, exist_ok=True)
        account = {"email": EMAIL, "password": secrets.token_urlsafe(18), "token": secrets.token_hex(20)}
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(account, stream)
        draft.replace(path)
    remedy = "restore it from a backup; the server knows no other account"
    return parse_record(path.read_bytes(), dict[str, str], path, remedy, ("email", "password", "token"))


@dataclass
class LocalServer:
    """A Label Studio process. `start` returns once it responds; it ends with `stop` or with this program."""

    python: Path
    """Python of the environment that has Label Studio installed."""
    folder: Path
    """Contains `data/`, `account.json` (mode 0600), `log.txt` and, while the server runs, `server.json`."""
    port: int
    local_hooks: bool = False
    """Allow calls to addresses of this machine, which the protection against forged requests forbids by default. Every
    account of the server can then make it request such addresses."""
    _process: subprocess.Popen | None = None
    _log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it responds.

        Raises:
            InputError: Label Studio is not installed, or the port or the folder is in use.
            LabelServerError: The server does not start.
        """
        if not self.program.is_file():
            raise InputError(f"{self.program} is missing: run `make labelstudio`")
        if running := running_server(self.folder):
            raise InputError(f"a server runs on {self.folder} already: {running['url']}, process {running['pid']}")
        # Check the port before anything is written.
        require_free_port(self.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The folder contains the account's password.
        self.folder.chmod(0o700)
        account = read_account(self.folder)
        self._prepare()
        self._log = (self.folder / "log.txt").open("ab")
        command = [str(self.program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(self.port)]
        # The server gets no variables of this process: it reads names as common as HOST, PORT and DEBUG.
        self._process = processes.start(
            command,
            python=str(self.python),
            env=self._environment(account),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._await_health()
        except BaseException:
            self.stop()
            raise
        info = {"url": self.url, "pid": self.pid, "started": _started(self.pid)}
        write_json(self.folder / "server.json", info)

    def stop(self) -> None:
        """End the process that `start` created, and wait for it."""
        if self._process is not None:
            processes.end([self._process], signal.SIGTERM, STOP)
            self._process = None
            (self.folder / "server.json").unlink(missing_ok=True)
        if self._log is not None:
            self._log.close()

    @property
    def program(self) -> Path:
        """The server's program."""
        return self.python.with_name("label-studio")

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is not running."""
        return self._process is None or self._process.poll() is not None

    def _prepare(self) -> None:
        """Start a new folder from the empty database that `make labelstudio` created: seconds instead of a minute."""
        data, ready = self.folder / "data", self.python.parent.parent / "prepared"
        (self.folder / "home").mkdir(exist_ok=True)
        # Copy under a hidden name first, so that a killed copy is not taken for the folder.
        if not data.exists() and (ready / "label_studio.sqlite3").is_file():
            draft = self.folder / f".data.{os.getpid()}"
            # `.env` is left out: each folder gets its own secret.
            shutil.copytree(ready, draft, ignore=shutil.ignore_patterns(".env"))
            draft.replace(data)
        database = data / "label_studio.sqlite3"
        if database.is_file():
            # By default a commit blocks all readers. A page whose read of its task fails shows an empty canvas.
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")

    def _environment(self, account: Mapping[str, str]) -> dict[str, str]:
        """Return the complete environment of the server process."""
        return {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder / "data"),
            "LABEL_STUDIO_USERNAME": account["email"],
            "LABEL_STUDIO_PASSWORD": account["password"],
            "LABEL_STUDIO_USER_TOKEN": account["token"],
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "LATEST_VERSION_CHECK": "false",
            "SSRF_PROTECTION_ENABLED": "false" if self.local_hooks else "true",
        }

    def _await_health(self) -> None:
        """Wait until the server responds on its own port; raise LabelServerError otherwise."""
        until = time.monotonic() + START
        while time.monotonic() < until:
            if self.ended:
                raise LabelServerError(f"Label Studio ended while starting: the reason is in {self.folder / 'log.txt'}")
            if _healthy(self.url):
                # Label Studio takes the next port if its own is busy, and then another server responds here.
                if not _listens(self.pid, self.port):
                    raise LabelServerError(f"port {self.port} was taken by another process: choose another --port")
                return
            time.sleep(0.3)
        raise LabelServerError(f"Label Studio did not answer within {START:.0f} s: see {self.folder / 'log.txt'}")


def _healthy(url: str) -> bool:
    """Return whether the server's health page reports that it is up."""
    # A proxy of the environment must not be used for 127.0.0.1.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/health/", timeout=5) as answer:
            return json.loads(answer.read()).get("status") == "UP"
    except (OSError, ValueError, urllib.error.URLError):
        return False


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(pid: int, port: int) -> bool:
    """Return whether the process or one of its children listens on the port."""
    process = psutil.Process(pid)
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for member in (process, *process.children(recursive=True))
        for connection in member.net_connections(kind="inet")
    )


def _started(pid: int) -> float | None:
    """Return the start time of a process, or None; a process number alone may have been reused."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
