"""MLflow's own server: its page of the experiment in a browser, and models whose artifacts it keeps."""

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
from mlflow import MlflowClient
from playwright.sync_api import Browser, expect

from mm_core.core import processes
from mm_core.core.layout import Layout
from mm_core.core.records import Report, write_json
from mm_core.core.settings import Settings
from mm_core.training.tracking import Tracker
from tests.tiny import snapshot_facts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]) -> Iterator[Layout]:
    """A workspace on MLflow's server, which keeps the artifacts too, with one logged stage."""
    root = with_tables(tmp_path_factory.mktemp("page"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow' / 'mlflow.db'}", "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    said = root / "server.txt"
    with said.open("w") as stream:
        server = processes.start(command, env=environment, cwd=root, stdout=stream, stderr=stream)
    try:
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, said.read_text()
            time.sleep(0.2)
        layout = Layout(Settings(root / "ws", "", "", f"http://127.0.0.1:{port}", root / "p", "cpu"))
        counts = {"train_labeled": {"pets": 385}, "eval": {"pets": 40}}
        write_json(layout.snapshot / "snapshot.json", snapshot_facts("a1" * 32, counts=counts))
        Tracker(layout.settings).log_report(layout, Report("evaluate", metrics={"multimodal/pets/mse": 0.02}))
        yield layout
    finally:
        processes.end([server], signal.SIGINT, 10)


def is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_experiment_opens_on_its_runs(served: Layout, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(Tracker(served.settings).page(served.settings.mlflow_uri))
    expect(page.get_by_text("385 labelled, 40 to judge").first).to_be_visible(timeout=60_000)
    assert "/experiments/1/runs?" in page.url
    page.close()


def test_a_model_is_logged_and_registered_on_a_server_that_keeps_the_artifacts(served: Layout) -> None:
    def save(folder: Path, run: str) -> None:
        folder.mkdir()
        (folder / "MLmodel").write_text(f"run_id: {run}\n")

    logged = Tracker(served.settings).log_model(served, "c0" * 32, {"pets/mse": 0.02}, save)
    assert logged.artifact_location.startswith("mlflow-artifacts:")
    uri = served.settings.mlflow_uri
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("matting")
    version = client.create_model_version(
        "matting", logged.artifact_location, logged.source_run_id, model_id=logged.model_id
    )
    assert client.get_model_version("matting", version.version).source == logged.artifact_location
    (metric,) = client.get_logged_model(logged.model_id).metrics
    assert (metric.key, metric.value, metric.dataset_name) == ("pets/mse", 0.02, "eval")
    # The same model again is the same entry.
    assert Tracker(served.settings).log_model(served, "c0" * 32, {}, save).model_id == logged.model_id
