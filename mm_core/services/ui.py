"""`mm ui`: run Dagster's web server and daemon, MLflow's server and the workspace's pages on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mm_core.core import processes
from mm_core.core.errors import InputError, MattingError
from mm_core.core.layout import Layout
from mm_core.core.locks import try_cycle_lock
from mm_core.core.ports import has_server, require_free_port
from mm_core.core.settings import Settings
from mm_core.training.tracking import Tracker

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds that servers may take to end."""


def shown(demo: bool) -> Settings:
    """Return the environment's settings, or the demo's if it is requested or the only workspace in `data/`."""
    settings, of_demo = Settings.from_env(), Settings.of_demo()
    # Fresh: default settings and neither inputs nor drops.
    own = (Layout(settings).inputs, Path(settings.inbox))
    fresh = settings == Settings.from_env("data", "data/inbox") and not any(path.exists() for path in own)
    return of_demo if demo or (fresh and Layout(of_demo).inputs.exists()) else settings


def serve(settings: Settings, port: int) -> None:
    """Run until Ctrl-C: Dagster at `port`, MLflow and the pages at the next two ports.

    The addresses are printed once all three answer. What the servers report goes to `ui.log` of the workspace.

    Raises:
        InputError: A port is in use.
        MattingError: A server ended.
    """
    for number in range(port, port + 3):
        require_free_port(number, "--port, which Dagster takes; MLflow and the pages take the next two")
    layout, tracker = Layout(settings), Tracker(settings)
    home = layout.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    (settings.workspace / "mlflow").mkdir(exist_ok=True)
    with try_cycle_lock(layout, "ui") as free:
        # No cycle is at work, so that runs which are still open belong to a killed process.
        if free:
            tracker.close_runs(layout, "KILLED")
    provide_instance(home)
    # The servers find the same workspace as this command.
    environment = os.environ | {
        "MM_WORKSPACE": str(settings.workspace),
        "MM_INBOX": settings.inbox,
        "MM_STORE": settings.store,
        "MM_PARAMS": str(_params_file(settings)),
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "DAGSTER_HOME": str(home),
        # A person who publishes them by a proxy sets the addresses for links.
        "MM_DAGSTER_URL": os.environ.get("MM_DAGSTER_URL") or f"http://127.0.0.1:{port}",
        "MM_PAGES_URL": os.environ.get("MM_PAGES_URL") or f"http://127.0.0.1:{port + 2}",
        # Runs failed while they started on a machine with busy cores; Dagster's default is 60 seconds.
        "DAGSTER_GRPC_TIMEOUT_SECONDS": os.environ.get("DAGSTER_GRPC_TIMEOUT_SECONDS", "300"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes for evaluating language models
    }
    scripts = Path(sys.executable).parent
    # pipelines/dev.py is `dagster dev` with its web server behind `mm_core.services.web_guard`.
    dagster = [PROJECT / "pipelines" / "dev.py", "-w", PROJECT / "workspace.yaml", "-h", "127.0.0.1", "-p", port]
    mlflow = [scripts / "mlflow", "server", "--backend-store-uri", settings.mlflow_uri, "--host", "127.0.0.1"]
    mlflow += ["--port", port + 1, "--workers", 1]
    # SIGTERM must run the `finally` below, which ends the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # MLflow makes the tables of a new database here, before its server could do the same at the same time.
    mlflow_page = tracker.page(f"http://127.0.0.1:{port + 1}")
    servers, log = [], settings.workspace / "ui.log"
    try:
        # The servers report each tick and each package's deprecations, which would push the addresses out of sight.
        with log.open("wb") as out:
            for command in (dagster, mlflow, pages_command(port + 2)):
                servers.append(
                    processes.start(
                        map(str, command), env=environment, cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT
                    )
                )
        print(f"starting; what the servers report goes to {log}", flush=True)
        waiting = {port, port + 1, port + 2}
        # One server that ends stops the others too.
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
            if waiting and not (waiting := {number for number in waiting if not has_server(number)}):
                print(f"Dagster  http://127.0.0.1:{port}\nMLflow   {mlflow_page}")
                pages = environment["MM_PAGES_URL"]
                print(f"Pages    {pages}/data_docs/ and /cycle/report.html\nCtrl-C ends all", flush=True)
        raise MattingError(f"one of the servers ended, and the others with it: the end of {log} says why")
    except KeyboardInterrupt:
        pass
    finally:
        processes.end(servers, signal.SIGINT, PATIENCE)


def provide_instance(home: Path) -> None:
    """Copy `infra/dagster.yaml` to Dagster's home, unless a file of an earlier start or of a person lies there.

    Raises:
        InputError: The project's own file is missing.
    """
    own, instance = PROJECT / "infra" / "dagster.yaml", home / "dagster.yaml"
    if not own.exists():
        raise InputError(f"{own} is missing: run `mm ui` from the project's checkout")
    if not instance.exists():
        instance.write_text(own.read_text())
    elif instance.read_text() != own.read_text():
        print(f"{instance} differs from {own} and stays as it is", flush=True)


def pages_command(port: int) -> list[str]:
    """Return the command that serves `mm_core.services.pages` for the environment's workspace on loopback."""
    program = [Path(sys.executable).parent / "uvicorn", "mm_core.services.pages:application", "--factory"]
    where = ["--host", "127.0.0.1", "--port", port, "--log-level", "warning", "--no-proxy-headers"]
    return [str(part) for part in (*program, *where)]


def _params_file(settings: Settings) -> Path:
    """Return the workspace's own params file if it exists (the demo's does), otherwise the project's."""
    own = settings.workspace / "params.yaml"
    return own if own.exists() else settings.params_file
