"""A server that refuses connections, or accepts them and never answers, is named with its remedy, never a traceback."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mm_core.cli import main
from mm_core.core import servers
from mm_core.core.errors import TrackingServerError
from mm_core.core.servers import RemoteServer, notify, public_address, report_wait
from mm_core.core.settings import Settings
from mm_core.export.registry import Registry
from tests.servers import Receiver


@pytest.fixture(params=["closed", "silent"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a port that nobody listens on, or of one that accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@dataclass
class Told:
    """What a command wrote to stderr, and the notices about servers among its log."""

    capsys: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture

    def __call__(self) -> str:
        return self.capsys.readouterr().err

    def notices(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records if record.name == servers.__name__]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Told:
    return Told(capsys, caplog)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The workspace is empty, notices come at once, and requests fail after half a second."""
    for name, value in {
        "MM_WORKSPACE": str(tmp_path / "data"),
        "MM_S3_TIMEOUT": "0.5",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LABEL_STUDIO_API_KEY": "key",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(servers, "NOTICE_AFTER", 0.02)
    monkeypatch.setattr("mm_core.storage.retry.NOTICE_AFTER", 0.02)
    monkeypatch.setattr(servers, "_reported", {})
    monkeypatch.setattr("mm_core.storage.retry.TRIES", 2)
    monkeypatch.setattr("mm_core.storage.store.S3_ATTEMPTS", 2)
    monkeypatch.setattr("mm_core.labeling.label_studio_http.TIMEOUT", 0.5)
    monkeypatch.setattr("mm_core.labeling.label_studio_http.TRIES", 2)


def run(words: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["mm", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "variables", "name"),
    [
        ("lineage 1", ["MLFLOW_TRACKING_URI"], "MLflow"),
        ("label status", ["LABEL_STUDIO_URL"], "Label Studio"),
        ("ingest --inbox s3://bucket/inbox", ["AWS_ENDPOINT_URL"], "S3"),
        ("status", ["AWS_ENDPOINT_URL", "MM_STORE"], "S3"),
    ],
)
def test_a_command_names_the_server_that_it_waits_for_and_the_remedy(
    address: str,
    words: str,
    variables: list[str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    told: Told,
) -> None:
    for variable in variables:
        monkeypatch.setenv(variable, "s3://bucket/store" if variable == "MM_STORE" else address)
    remedy = f"is {variables[0]} right?"
    assert run(words, monkeypatch) == 1
    (line,) = [line for line in told().splitlines() if line.startswith("mm: ")]
    assert address in line and remedy in line and "mm check" not in line
    # A closed port may end the command before the first notice; there is never a second one.
    notices = told.notices()
    assert len(notices) <= 1
    assert all(f"{name} at {address} does not answer" in notice and remedy in notice for notice in notices)


def test_status_tells_the_rest_where_the_registry_does_not_answer(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert run("status", monkeypatch) == 0
    told = capsys.readouterr().out
    assert f"unknown, because MLflow at {address} does not answer" in told and "labelled photos: 0" in told


def test_a_server_that_is_no_mlflow_is_named(tmp_path: Path) -> None:
    receiver = Receiver(takes=0)
    uri = receiver.url.removesuffix("/services/T0/sEcReT")
    try:
        with pytest.raises(TrackingServerError, match=f"MLflow at {uri} does not answer: .*MLFLOW_TRACKING_URI"):
            Registry(Settings(tmp_path, "", "", uri, tmp_path / "params.yaml", "cpu")).versions()
    finally:
        receiver.stop()


def test_a_missing_driver_of_a_database_is_named(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "", "", "postgresql+pg8000://user:secret@db/x", tmp_path / "params.yaml", "cpu")
    with pytest.raises(TrackingServerError, match="package pg8000: run `make postgres`"):
        Registry(settings).versions()


def test_a_silent_server_is_reported_while_the_command_waits(caplog: pytest.LogCaptureFixture) -> None:
    server = RemoteServer("MLflow", "http://silent", "is it running?")
    reported = threading.Event()
    caplog.handler.addFilter(lambda record: reported.set() or True)
    with report_wait(server):
        assert reported.wait(30), "the notice comes before the body ends"
    notify(server)
    assert [record.getMessage() for record in caplog.records] == [
        "still waiting: MLflow at http://silent does not answer: is it running? (Ctrl-C ends the wait)"
    ], "one notice per server and minute"


def test_a_quick_answer_and_a_large_transfer_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    server = RemoteServer("S3", "AWS", "is there a network?")
    with report_wait(server, size=10**12):
        time.sleep(0.1)
    assert not caplog.records


def test_the_address_of_a_server_shows_no_password() -> None:
    assert public_address("postgresql+psycopg2://user:secret@db:5432/mlflow") == "postgresql+psycopg2://db:5432"
    assert public_address("databricks") == "databricks"
