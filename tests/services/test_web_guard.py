"""The guard before our servers: names, origins, methods; and Dagster's own server behind it."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from mm_core.core.errors import InputError
from mm_core.services.web_guard import WebGuard, allowed_hosts

HOST = "127.0.0.1:3000"
OWN = {"host": HOST}


@pytest.fixture
def client() -> TestClient:
    async def done(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    routes: list[Any] = [
        Route("/{path:path}", done, methods=["GET", "POST", "DELETE"]),
        WebSocketRoute("/graphql", talk),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(WebGuard, hosts=("127.0.0.1", "mm.example", "[::1]"), open_paths=("/server_info",))
    return TestClient(app, base_url=f"http://{HOST}")


@pytest.mark.parametrize("host", [HOST, "127.0.0.1", "127.0.0.1:", "mm.example", "MM.example:8443", "[::1]:3000"])
def test_its_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


FOREIGN_HOSTS = ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "[", "a:b:c", "mm.example.",
                 "127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1#x", "127.0.0.1?x", "::1", "[::2]", "127.1"]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_foreign_names_are_refused_but_for_the_probe(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400
    assert client.get("/server_info", headers={"host": host}).status_code == 200
    assert client.post("/server_info", headers={"host": host}).status_code == 400


def test_a_request_without_a_host_or_with_two_is_refused() -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    guard = WebGuard(nothing)
    for names in ([], [b"127.0.0.1", b"127.0.0.1"], [b"evil.example", b"127.0.0.1"]):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", name) for name in names]}
        assert guard.fault(scope)[0] == 400
    assert guard.fault(scope | {"headers": [(b"host", b"127.0.0.1")]}) == (0, "")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": f"http://{HOST}"},
        {"host": "[::1]:3000", "origin": "http://[::1]:3000"},
        {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"},
        {"host": "mm.example", "origin": "https://mm.example"},
        {"host": "mm.example:8443", "origin": "https://mm.example:8443"},
        {"host": "mm.example:443", "origin": "https://mm.example"},
    ],
)
def test_programs_and_own_pages_may_change_things(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/graphql", headers=OWN | headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8080"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://mm.example:3000"},
        {"origin": "http://127.0.0.1:3000@evil.example"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": f"ftp://{HOST}"},
        {"origin": f"//{HOST}"},
        {"origin": f"{HOST}"},
        {"origin": f"http://{HOST}x"},
        {"host": "[::1]:3000", "origin": "http://[::2]:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_foreign_pages_may_not(client: TestClient, method: str, headers: dict[str, str]) -> None:
    assert client.request(method, "/graphql", headers=OWN | headers).status_code == 403


@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "/prefix/graphql"])
@pytest.mark.parametrize("query", ["query=mutation{launchRun}", "query=", "a=1&query={version}", "qu%65ry=mutation"])
def test_no_graphql_by_get(client: TestClient, path: str, query: str) -> None:
    assert client.get(f"{path}?{query}").status_code == 405
    assert client.head(f"{path}?{query}").status_code == 405
    assert client.get(path).status_code == 200


def test_a_foreign_page_may_not_open_a_web_socket(client: TestClient) -> None:
    with client.websocket_connect("/graphql", headers=OWN | {"origin": f"http://{HOST}"}) as socket:
        assert socket.receive_text() == "hello"
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/graphql", headers=OWN | headers):
            pass
        assert caught.value.code == 1008


def test_names_of_a_proxy_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_ALLOWED_HOSTS", "mm.example, Two.example")
    assert allowed_hosts()[-2:] == ("mm.example", "two.example")
    monkeypatch.setenv("MM_ALLOWED_HOSTS", "[2001:db8::1]")
    assert allowed_hosts()[-1] == "[2001:db8::1]"
    for wrong in ("*", "https://mm.example", "mm.example:443", "a@b", "2001:db8::1", "mm.example?x"):
        monkeypatch.setenv("MM_ALLOWED_HOSTS", wrong)
        with pytest.raises(InputError, match="MM_ALLOWED_HOSTS"):
            allowed_hosts()
