"""The receiver of Label Studio's calls, and the real server calling it."""

from __future__ import annotations

import socket
import stat
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import uvicorn
from annotator import SimulatedAnnotator
from label_house import LabelHouse, server_of
from starlette.testclient import TestClient

from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.labeling.label_studio_local import free_port
from mm_core.labeling.webhook import HEADER, application, hint, hinted_at, webhook_token


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Layout:
    monkeypatch.delenv("MM_WEBHOOK_TOKEN", raising=False)
    return Layout(Settings.from_env(tmp_path))


def test_only_the_token_opens_and_nothing_else_is_there(layout):
    client = TestClient(application(layout, "sesame"))
    assert client.post("/").status_code == 403
    assert client.post("/", headers={HEADER: "Sesame"}).status_code == 403
    assert client.get("/", headers={HEADER: "sesame"}).status_code == 405
    assert client.get("/labels").status_code == 404
    assert hinted_at(layout) == 0
    assert client.post("/", headers={HEADER: "sesame"}, content=b"x" * 100_000).status_code == 204
    assert hinted_at(layout) > 0


def test_the_token_is_random_kept_and_private(layout, monkeypatch):
    token = webhook_token(layout)
    assert len(token) > 24 and webhook_token(layout) == token
    assert stat.S_IMODE((layout.labels / "webhook.token").stat().st_mode) == 0o600
    monkeypatch.setenv("MM_WEBHOOK_TOKEN", "given")
    assert webhook_token(layout) == "given"


@pytest.fixture
def receiver(layout) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(application(layout, "sesame"), host="127.0.0.1", port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


def test_the_server_calls_when_work_is_handed_in(tmp_path, layout, receiver, label_studio, title):
    house = LabelHouse(tmp_path / "house", 1)
    house.route(1)
    server = server_of(label_studio, title)
    house.push(server)
    server.hook(receiver, {HEADER: "sesame"})
    server.hook(receiver, {HEADER: "sesame"})
    assert len(server._call("GET", "/api/webhooks/", params={"project": server.project})) == 1
    assert not hint(layout).exists()
    SimulatedAnnotator(server, house.truth).work(list(house.truth))
    assert np.isfinite(hinted_at(layout)) and hinted_at(layout) > 0


def test_no_body_is_waited_for(layout, receiver):
    """However much the caller says will come."""
    where = httpx.URL(receiver)
    with socket.create_connection((where.host, where.port), timeout=20) as caller:
        claim = f"POST / HTTP/1.1\r\nHost: x\r\n{HEADER}: sesame\r\nContent-Length: 100000000000\r\n\r\nthe first bytes"
        caller.sendall(claim.encode())
        assert caller.recv(1000).startswith(b"HTTP/1.1 204")
    assert hinted_at(layout) > 0
