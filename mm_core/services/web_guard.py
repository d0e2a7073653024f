"""Guard of the local web servers: it restricts host names and requests from foreign pages.

Every page open in a browser on this machine can reach a server on loopback. It can do so under any name whose owner
lets it resolve to 127.0.0.1 (DNS rebinding). The guard is an ASGI middleware and works with any application.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_core.core.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HOSTS = "MM_ALLOWED_HOSTS"
"""Environment variable: further names, separated by spaces or commas, under which a proxy publishes the servers."""
SAFE_METHODS = ("GET", "HEAD")
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def allowed_hosts() -> tuple[str, ...]:
    """Return loopback's names and those of `MM_ALLOWED_HOSTS`; raise InputError if one is not a plain host name."""
    names = os.environ.get(HOSTS, "").replace(",", " ").lower().split()
    for name in names:
        # A name that `Host` cannot have, such as one with a port or a bare IPv6 address, would never match.
        if "*" in name or _split(name) != (name, None):
            raise InputError(
                f"{HOSTS}: {name!r}: write host names without scheme, port or wildcard, IPv6 addresses in brackets"
            )
    return (*LOOPBACK, *names)


class WebGuard:
    """Refuse requests to foreign names, from foreign pages, and GraphQL by GET; add headers to every response.

    Args:
        app: The application behind the guard.
        hosts: Allowed names in the `Host` header, without port.
        headers: Headers to add to responses that lack them.
        open_paths: Paths that answer GET under any name, for a cluster's health probe, which uses a pod's address.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] = LOOPBACK,
        headers: Mapping[str, str] | None = None,
        open_paths: Sequence[str] = (),
    ) -> None:
        self.app, self.hosts = app, frozenset(hosts)
        self.headers, self.open_paths = dict(headers or {}), frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a foreign or unsafe request with 403; pass every other one on."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
            # Only the start message of an HTTP response has headers.
            if message["type"] == "http.response.start":
                present = {name.decode("latin-1").lower() for name, _ in message.get("headers", ())}
                added = [(n.encode(), v.encode()) for n, v in self.headers.items() if n not in present]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        status, reason = self.fault(scope)
        if not status:
            await self.app(scope, receive, answer)
        elif scope["type"] == "websocket":
            # The protocol requires receiving the connect message before closing.
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(f"{reason}\n", status)(scope, receive, answer)

    def fault(self, scope: Scope) -> tuple[int, str]:
        """Return HTTP status and reason of a refusal; (0, "") if the request may pass."""
        headers, reads = Headers(scope=scope), scope.get("method") in SAFE_METHODS
        given = headers.getlist("host")
        # Several Host headers are treated like a missing one.
        host = given[0].lower() if len(given) == 1 else ""
        if _split(host)[0] not in self.hosts and not (reads and scope["path"] in self.open_paths):
            return 400, f"this server does not answer to that name: set the names of a proxy in {HOSTS}"
        if reads:
            return _graphql_fault(scope)
        # Browsers send these two headers with every request that can change data; programs send neither.
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "not from this server's own page"
        if not all(_is_own(origin, host) for origin in headers.getlist("origin")):
            return 403, "not from this server's own page"
        return 0, ""


def _graphql_fault(scope: Scope) -> tuple[int, str]:
    """Refuse GraphQL by GET: a link or picture with that address on any page would run mutations."""
    if scope["path"].rstrip("/").endswith("/graphql"):
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if "query" in query:
            return 405, "GraphQL is answered to POST only"
    return 0, ""


def _split(netloc: str) -> tuple[str, int | None]:
    """Return name and port of `name[:port]`; an empty name if it is malformed."""
    if "@" in netloc or "/" in netloc or "\\" in netloc:
        return "", None
    try:
        parts = urlsplit(f"//{netloc}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    # `urlsplit` drops tabs and cuts at `?` and `#`.
    if parts.netloc != netloc:
        return "", None
    return (f"[{name}]" if ":" in name else name), port


def _is_own(origin: str, host: str) -> bool:
    """Return whether an `Origin` header names this server, which was addressed as `host`; False for malformed ones."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    usual = _PORTS.get(parts.scheme)
    (name, port), (own, own_port) = _split(parts.netloc), _split(host)
    ports = [usual if number is None else number for number in (port, own_port)]
    return bool(name) and usual is not None and name == own and ports[0] == ports[1]
