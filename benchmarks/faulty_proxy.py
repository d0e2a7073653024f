"""An HTTP proxy in front of an S3 server that spoils a share of the requests, as networks and busy servers do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

FAULTS = ("500", "503 SlowDown", "reset before it arrives", "reset after it was done", "silence", "half an answer")
ERRORS = {"500": (500, "InternalError"), "503 SlowDown": (503, "SlowDown")}


class FaultyProxy:
    """Listens on a port of its own, forwards to `target` (http://host:port).

    `share`: of the requests that end in a fault, drawn evenly from FAULTS; `silence`: seconds without an answer
    before such a connection is closed. `requests` and `faults` count.
    """

    def __init__(self, target: str, share: float, *, seed: int = 0, silence: float = 5.0):
        self.target, self.share, self.silence = urlparse(target).netloc, share, silence
        self.requests, self.faults = 0, Counter[str]()
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str:
        """The fault of the next request; mostly none."""
        with self._lock:
            self.requests += 1
            fault = self._chance.choice(FAULTS) if self._chance.random() < self.share else ""
            if fault:
                self.faults[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def _any(self) -> None:
        body, proxy = self._body(), self.server.proxy
        fault = proxy.draw()
        if fault in ERRORS:
            status, code = ERRORS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            return self._answer(status, [("Content-Type", "application/xml")], text)
        if fault == "silence":
            time.sleep(proxy.silence)
        if fault in ("silence", "reset before it arrives"):
            return self._reset()
        status, headers, data = self._forward(body)
        if fault == "reset after it was done":
            return self._reset()
        self._answer(status, headers, data, half=fault == "half an answer")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.target, timeout=60)
        dropped = ("connection", "transfer-encoding", "content-length", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, half: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD: what a GET would send
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        if half and not data:
            self.wfile.write(b"HTTP/1.1 2")
            return self._reset()
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
