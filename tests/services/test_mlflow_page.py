"""MLflow's own page of the experiment, in a browser."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, expect

from mm_core.core import processes
from mm_core.core.layout import Layout
from mm_core.core.records import Report, write_json
from mm_core.core.settings import Settings
from mm_core.training.tracking import Tracker


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]) -> Iterator[str]:
    """MLflow's server on a workspace with one logged stage, as `mm ui` starts it."""
    root = with_tables(tmp_path_factory.mktemp("page"))
    layout = Layout(Settings(root, "", "", f"sqlite:///{root / 'mlflow' / 'mlflow.db'}", root / "p", "cpu"))
    write_json(layout.snapshot / "snapshot.json", {"digest": "a1" * 32})
    Tracker(layout.settings).log_report(layout, Report("evaluate", metrics={"multimodal/pets/mse": 0.02}))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", layout.settings.mlflow_uri, "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    said = root / "server.txt"
    with said.open("w") as stream:
        server = processes.start(command, env=environment, cwd=root, stdout=stream, stderr=stream)
    try:
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, said.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        processes.end([server], signal.SIGINT, 10)


def is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_experiment_opens_on_its_runs(address: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{address}/#/experiments/1")
    page.wait_for_url("**/experiments/1/runs**", timeout=60_000)
    expect(page.get_by_text(f"cycle {'a1' * 6}").first).to_be_visible(timeout=60_000)
    page.close()
