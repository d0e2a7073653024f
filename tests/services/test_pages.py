"""The pages over HTTP, by the program that `mm ui` starts: they are there, and nothing else of the workspace is."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mm_core.services.ui import pages_command

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Served:
    """A workspace and the port of its pages."""

    root: Path
    port: int

    def headers(self, path: str) -> dict[str, str]:
        """Headers of the answer, their names in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return {name.lower(): value for name, value in connection.getresponse().getheaders()}
        finally:
            connection.close()

    def get(self, path: str, *, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str, bytes]:
        """Status, content type and body; the path goes out as it is, where other clients would tidy it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.headers.get("content-type", ""), answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("pages") / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MM_WORKSPACE": str(root), "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(pages_command(port), env=environment, cwd=PROJECT)
    try:
        made = Served(root, port)
        for _ in range(300):
            try:
                made.get("/")
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                time.sleep(0.1)
        for name, text in {
            "data_docs/index.html": "<p>drops",
            "data_docs/validations/a b/run.html": "<p>run",
            "data_docs/static/page.css": "p {}",
            "data_docs/static/photo.png": "PNG",
            "data_docs/.results/run.json": "{}",
            "reports/week.html": "<p>week",
            "reports/notes/picture.svg": "<svg/>",
            "cycle/verdict.json": "{}",
            "store/blobs/photo.jpg": "photo",
            "inputs.json": "{}",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (root / "data_docs" / "out").symlink_to(root / "store")
        yield made
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/data_docs/", "text/html; charset=utf-8", b"<p>drops"),
        ("/data_docs/index.html", "text/html; charset=utf-8", b"<p>drops"),
        ("/data_docs/validations/a%20b/run.html", "text/html; charset=utf-8", b"<p>run"),
        ("/data_docs/static/page.css", "text/css; charset=utf-8", b"p {}"),
        ("/data_docs/static/photo.png", "image/png", b"PNG"),
        ("/reports/week.html", "text/html; charset=utf-8", b"<p>week"),
        ("/reports/notes/picture.svg", "image/svg+xml", b"<svg/>"),
    ],
)
def test_a_page_is_served(served: Served, path: str, kind: str, body: bytes) -> None:
    assert served.get(path) == (200, kind, body)


def test_the_cycle_s_report_is_served_once_it_is_there(served: Served) -> None:
    assert served.get("/cycle/report.html")[0] == 404
    (served.root / "cycle" / "report.html").write_text("<p>cycle")
    assert served.get("/cycle/report.html") == (200, "text/html; charset=utf-8", b"<p>cycle")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/inputs.json",
        "/cycle/",
        "/cycle/verdict.json",
        "/store/blobs/photo.jpg",
        "/data_docs/validations/",
        "/reports/",
        "/data_docs/.results/run.json",
        "/data_docs/static/../.results/run.json",
        "/data_docs/../data_docs/.results/run.json",
        "/data_docs/../store/blobs/photo.jpg",
        "/data_docs/%2e%2e/store/blobs/photo.jpg",
        "/data_docs/..%2fstore/blobs/photo.jpg",
        "/data_docs/..%5cstore%5cblobs%5cphoto.jpg",
        "/data_docs/out/blobs/photo.jpg",
        "/reports/../../../../../../../../etc/passwd",
        "/data_docs//etc/passwd",
        "/data_docs/%2fetc/passwd",
        "//etc/passwd",
        "/../etc/passwd",
        "/data_docs/a%00b",
        "/data_docs/" + "a" * 5000,
    ],
)
def test_nothing_else_is(served: Served, path: str) -> None:
    assert served.get(path)[0] == 404


def test_pages_are_only_read_and_only_under_loopback_s_names(served: Served) -> None:
    assert served.get("/data_docs/index.html", method="POST")[0] == 405
    assert served.get("/data_docs/index.html", method="HEAD")[0] == 200
    assert served.get("/data_docs/index.html", host=f"localhost:{served.port}")[0] == 200
    assert served.get("/data_docs/index.html", host="elsewhere.example")[0] == 400
    assert "--host 127.0.0.1" in " ".join(pages_command(1))


@pytest.mark.parametrize("path", ["/data_docs/index.html", "/reports/notes/picture.svg", "/nothing-here"])
def test_a_page_runs_no_script_and_loads_nothing_from_elsewhere(served: Served, path: str) -> None:
    headers = served.headers(path)
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and "script-src" not in policy and "connect-src" not in policy
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
