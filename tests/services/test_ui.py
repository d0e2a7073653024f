"""`mm ui` for real: where its servers listen, and that all of them leave with it, whatever ends it."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mm_core.services.ui import provide_instance, shown

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = ("pipelines/dev.py", "code-server start", "api grpc", "pipelines.webserver", "dagster._daemon",
            "mlflow.server", "mm_core.services.pages")  # fmt: skip
"""What the family must be seen to consist of, or its end shows nothing."""


def test_an_existing_dagster_yaml_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provide_instance(tmp_path)
    file = tmp_path / "dagster.yaml"
    assert file.read_text() == (PROJECT / "infra" / "dagster.yaml").read_text()
    provide_instance(tmp_path)
    assert capsys.readouterr().out == ""
    file.write_text("telemetry: {enabled: false}\n")
    provide_instance(tmp_path)
    assert file.read_text() == "telemetry: {enabled: false}\n"
    assert "stays as it is" in capsys.readouterr().out


@contextmanager
def started(workspace: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[int, set[str]]]]:
    """The command, once its three servers answer, and on which addresses its family listens, by port."""
    ports = free_ports(3)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "MLFLOW_"))}
    environment |= {"MM_WORKSPACE": str(workspace), "MM_TICK_SECONDS": "600"}
    program = [sys.executable, "-m", "mm_core", "ui", "--port", str(ports[0])]
    log = workspace / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(program, cwd=PROJECT, env=environment, stdout=out, stderr=out)
    try:
        seen: dict[int, set[str]] = {}
        for _ in range(400):
            seen |= listening(family(process.pid))
            if set(ports) <= set(seen):
                break
            time.sleep(0.5)
        assert set(ports) <= set(seen), f"{sorted(seen)} answer, {ports} should\n{log.read_text()[-3000:]}"
        yield process, seen
    finally:
        process.kill()
        process.wait()


def foreign_pages_are_refused(port: int) -> None:
    """Dagster's server, asked as a page of somebody else's would ask it; its own page is answered."""
    own, mutation = f"127.0.0.1:{port}", "mutation { setConcurrencyLimit(concurrencyKey: %22training%22, limit: 9) }"
    by_get = f"/graphql?query={mutation.replace(' ', '%20')}"
    version = b'{"query": "{ version }"}'
    assert answer(port, "GET", "/", own)[0] == 200
    assert answer(port, "GET", "/", "rebound.example")[0] == 400
    assert answer(port, "GET", by_get, own)[0] == 405
    assert answer(port, "POST", by_get, own, {"origin": "https://evil.example"})[0] == 403
    assert answer(port, "POST", by_get, own, {"origin": "null", "content-type": "text/plain"})[0] == 403
    asked = {"origin": f"http://{own}", "content-type": "application/json"}
    assert answer(port, "POST", "/graphql", own, asked, version) == (200, b'{"data":{"version":"1.13.27"}}')


def answer(
    port: int, method: str, path: str, host: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Host": host, **(headers or {})})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def listening(processes: list[psutil.Process]) -> dict[int, set[str]]:
    """Addresses on which these processes listen, by port."""
    found: dict[int, set[str]] = {}
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                found.setdefault(one.laddr.port, set()).add(one.laddr.ip)
    return found


def wait_for_text(file: Path, text: str) -> str:
    """Return the file's content once it has this text."""
    for _ in range(100):
        if text in (content := file.read_text()):
            return content
        time.sleep(0.2)
    raise AssertionError(f"{text!r} is not in {content!r}")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_every_server_listens_on_loopback_alone_and_leaves_with_the_command(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Dagster's servers, daemon and code location, MLflow's, and the pages."""
    with started(tmp_path) as (process, seen):
        assert {address for addresses in seen.values() for address in addresses} <= {"127.0.0.1", "::1"}, seen
        members = family(process.pid)
        assert all(member.environ()["MLFLOW_DISABLE_TELEMETRY"] == "true" for member in members[1:])
        words = "\n".join(" ".join(member.cmdline()) for member in members)
        assert all(program in words for program in PROGRAMS), words
        assert "dagster_webserver" not in words, "Dagster's own server has no guard"
        if how is signal.SIGTERM:
            terminal = wait_for_text(tmp_path / "log.txt", "Ctrl-C ends all")
            # The addresses stay in sight: what the servers and their packages report is in a file.
            assert len(terminal.splitlines()) <= 8 and "Warning" not in terminal, terminal
            assert "Uvicorn running" in (tmp_path / "ui.log").read_text()
            foreign_pages_are_refused(int(members[0].cmdline()[-1]))
        process.send_signal(how)
        left = psutil.wait_procs(members, timeout=20 if how is signal.SIGKILL else 90)[1]
        said = {member.pid: " ".join(member.cmdline()) for member in left}
        for member in left:
            member.kill()
        assert not said
        assert members[0].returncode == (-how if how is signal.SIGKILL else 0)  # type: ignore[attr-defined]


def test_the_demo_is_shown_where_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MM_WORKSPACE", "MM_INBOX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    data, demo = tmp_path / "data", tmp_path / "data" / "demo"
    assert shown(False).workspace == data and shown(True).workspace == demo
    demo.mkdir(parents=True)
    (demo / "inputs.json").write_text("{}")
    assert shown(False).workspace == demo
    (data / "inbox").mkdir()  # a drop is to be taken in
    assert shown(False).workspace == data
    (data / "inbox").rmdir()
    (data / "inputs.json").write_text("{}")
    assert shown(False).workspace == data and shown(True).workspace == demo


def free_ports(count: int) -> list[int]:
    """Neighbouring ports, as `mm ui` takes them."""
    for _ in range(50):
        # Below the ports that the system gives to connections, of which one could be taken at any moment.
        first = random.SystemRandom().randrange(20_000, 32_000)
        ports = [first + n for n in range(count)]
        if all(_is_free(port) for port in ports):
            return ports
    raise AssertionError("no neighbouring free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
