"""Which server counts, and the local one's account, port and process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace

import httpx
import psutil
import pytest

from mm_core import operations, stages
from mm_core.core.errors import InputError, LabelServerError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.labeling.label_studio_format import collected, inbox, outbox
from mm_core.labeling.label_studio_local import LocalServer, connect, free_port, read_account, running_server
from mm_core.pinned_inputs import Run


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(replace(Settings.from_env(tmp_path), label_studio_url=""))


def at(layout: Layout, url: str) -> Layout:
    return Layout(replace(layout.settings, label_studio_url=url))


def test_no_server_is_no_error(layout):
    assert connect(layout) is None


def test_an_address_needs_a_scheme_and_a_key(layout, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(InputError, match="http://host:port"):
        connect(at(layout, "labels.example:8080"))
    with pytest.raises(InputError, match="LABEL_STUDIO_API_KEY"):
        connect(at(layout, "http://labels.example"))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret-key")
    server = connect(at(layout, "http://labels.example/"))
    assert server is not None and server.url == "http://labels.example"
    assert "secret-key" not in repr(server) + repr(vars(server)) + repr(layout.settings)


def test_links_lead_to_the_address_that_people_open(layout, label_studio, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", read_account(label_studio.folder)["token"])
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_HOST", "https://labels.example.com/")
    server = connect(Layout(Settings.from_env(layout.root)))
    assert server is not None and server.url == label_studio.url
    assert server.link(7) == f"https://labels.example.com/projects/{server.project}/data?task=7"


def test_a_local_server_counts_while_its_very_process_runs(layout):
    folder = layout.label_studio
    account = read_account(folder)
    assert stat.S_IMODE((folder / "account.json").stat().st_mode) == 0o600
    assert len(account["token"]) == 40 and len(account["password"]) > 20
    me = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "started": psutil.Process().create_time()}
    (folder / "server.json").write_text(json.dumps(me))
    server = connect(layout)
    assert server is not None and server.url == me["url"]
    # The number went to another process since: the server was killed.
    (folder / "server.json").write_text(json.dumps(me | {"started": 1.0}))
    assert running_server(folder) is None and connect(layout) is None
    (folder / "server.json").write_text("{")
    assert connect(layout) is None


def test_a_busy_port_and_a_missing_program_are_told(layout, label_studio):
    with pytest.raises(InputError, match="make labelstudio"):
        LocalServer(layout.root / "none" / "python", layout.label_studio, free_port()).start()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(InputError, match="--port"):
            LocalServer(label_studio.python, layout.label_studio, busy.getsockname()[1]).start()
    with pytest.raises(InputError, match="runs on"):
        LocalServer(label_studio.python, label_studio.folder, free_port()).start()


def test_the_server_is_closed_to_strangers_and_to_the_network(label_studio):
    process = psutil.Process(label_studio.pid)
    listening = [c.laddr for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", label_studio.port)]
    with httpx.Client(base_url=label_studio.url, follow_redirects=True, timeout=60) as browser:
        page = browser.get("/user/signup/")
        secret = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        form = {"email": "stranger@example.com", "password": "abcdefgh1234"}
        form["csrfmiddlewaretoken"] = secret.group(1) if secret else ""
        answer = browser.post("/user/signup/", data=form, headers={"Referer": f"{label_studio.url}/user/signup/"})
        assert answer.status_code == 403
        assert browser.get("/api/current-user/whoami").status_code == 401
    assert "LABEL_STUDIO_API_KEY" not in process.environ() and "AWS_SECRET_ACCESS_KEY" not in process.environ()
    assert process.environ()["COLLECT_ANALYTICS"] == "false"


def test_without_a_server_tasks_wait_and_the_command_says_so(layout):
    (outbox(layout)).mkdir(parents=True)
    (outbox(layout) / "b.json").write_text("[]")
    report = stages.push(Run(Params(), layout))
    assert report.metrics["push/waiting"] == 1 and "mm label serve" in report.facts["server"]
    assert operations.labelling(Run(Params(), layout)) == {"server": None, "batches_waiting": 1}
    assert operations.finished_work(layout) is None


def test_a_server_that_is_away_does_not_hold_up_the_inbox(layout, monkeypatch):
    monkeypatch.setattr("mm_core.labeling.label_studio_http.TRIES", 1)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "key")
    inbox(layout).mkdir(parents=True)
    (inbox(layout) / "export.json").write_text("[]")
    with pytest.raises(LabelServerError, match="does not answer"):
        stages.collect(Run(Params(), at(layout, "http://127.0.0.1:9")))
    assert not list(inbox(layout).iterdir()) and len(list(collected(layout).iterdir())) == 1


def test_the_command_serves_until_ctrl_c(layout, label_studio):
    port = free_port()
    environment = {**os.environ, "MM_WORKSPACE": str(layout.root), "LABEL_STUDIO_URL": "", "AWS_SECRET_ACCESS_KEY": "s"}
    command = [sys.executable, "-m", "mm_core", "label", "serve", "--port", str(port)]
    # As a shell in the foreground starts it: Ctrl-C is not ignored.
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in ready
        running = running_server(layout.label_studio)
        assert running is not None and running["url"] == f"http://127.0.0.1:{port}"
        assert "AWS_SECRET_ACCESS_KEY" not in psutil.Process(running["pid"]).environ()
        assert operations.labelling(Run(Params(), layout))["project"].startswith(running["url"])
        served = connect(layout)
        assert served is not None
        with pytest.raises(LabelServerError, match="mm label serve --local-hooks"):
            served.hook("http://127.0.0.1:8081/", {})
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not psutil.pid_exists(running["pid"]) and connect(layout) is None
        secrets = read_account(layout.label_studio)
        assert secrets["password"] not in ready + process.stdout.read()
    finally:
        process.kill()
        process.wait()
