"""HTTP for a Label Studio server: authentication, repetition of requests, and errors with a remedy.

Both the SDK's client and the bulk requests of `label_studio_client` are sent by `PatientClient`, so an outage or a
wrong key has the same consequence everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, cast

import httpx

from mm_core.core.errors import LabelServerError
from mm_core.core.servers import RemoteServer, public_address, report_wait

TIMEOUT = 120.0
"""Seconds without a response after which a request fails."""
TRIES = 5
"""Attempts of a repeatable request, with growing pauses, before its error is raised."""
TRANSIENT = (429, 500, 502, 503, 504)
"""Status codes of faults that may pass by themselves."""


class PatientClient(httpx.Client):
    """An HTTP client of one server. Every failure is a LabelServerError that says what to do."""

    def __init__(self, url: str, auth: httpx.Auth | None = None) -> None:
        """Create a client of the server at `url`; the SDK adds its own authentication."""
        # A proxy of the environment must not be used for a server on this machine.
        network = not url.startswith(("http://127.0.0.1", "http://localhost"))
        super().__init__(base_url=url, auth=auth, timeout=TIMEOUT, follow_redirects=True, trust_env=network)
        self._url = url
        self._server = RemoteServer("Label Studio", public_address(url), "is it running, is LABEL_STUDIO_URL right?")

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request and return its response; repeat repeatable requests through outages of seconds.

        Raises:
            LabelServerError: The server does not answer, or it refuses the request.
        """
        with report_wait(self._server, size=int(request.headers.get("Content-Length", 0))):
            return self._send_patiently(request, **options)

    def _send_patiently(self, request: httpx.Request, **options: Any) -> httpx.Response:
        method, path = request.method, request.url.path
        # Repeat with growing pauses while the fault may pass by itself and a repetition does no harm.
        fault: Exception = LabelServerError("")
        for attempt in range(TRIES):
            patient = attempt + 1 < TRIES
            try:
                response = super().send(request, **options)
            except httpx.ConnectError as error:
                fault = error  # no data were sent, so any method may be repeated
            except httpx.TransportError as error:
                # A POST may have been executed before the connection failed.
                fault, patient = error, patient and method != "POST"
            else:
                # Already deleted, for example by an earlier attempt.
                if method == "DELETE" and response.status_code == 404:
                    return httpx.Response(204, request=request)
                if response.is_success:
                    return _checked(response)
                fault = LabelServerError(_refusal(self._url, method, path, response))
                patient = patient and method != "POST" and response.status_code in TRANSIENT
            if not patient:
                break
            time.sleep(0.5 * 2**attempt)
        if isinstance(fault, LabelServerError):
            raise fault
        raise LabelServerError(f"{self._server.silence} ({type(fault).__name__} at {method} {path})") from fault


def _checked(response: httpx.Response) -> httpx.Response:
    """Return the response; raise LabelServerError if the interface answered with a page."""
    kind = response.headers.get("content-type")
    if "/api/" in response.request.url.path and response.content and "json" not in (kind or ""):
        raise LabelServerError(_not_json(response))
    return response


def read_json(response: httpx.Response) -> Any:
    """Return the JSON of a response, None if it is empty; raise LabelServerError for anything else."""
    if not response.content:
        return None
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise LabelServerError(_not_json(response)) from None


def _not_json(response: httpx.Response) -> str:
    """Return the error message for a response that no Label Studio sends."""
    text = f"{response.request.url.path} responded with {response.headers.get('content-type', 'something')}"
    return f"{text}, not JSON: is LABEL_STUDIO_URL the address of a Label Studio?"


def authentication(url: str, key: str) -> httpx.Auth:
    """Return the authentication for either kind of key; a personal access token is a JWT that is valid for 300 s."""

    class Auth(httpx.Auth):
        requires_response_body = True

        def __init__(self) -> None:
            self._access, self._until = "", 0.0

        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            # A JWT has two dots; a legacy token has none.
            if key.count(".") != 2:
                request.headers["Authorization"] = f"Token {key}"
                yield request
                return
            # Exchange the token for a new access token before the old one expires.
            if time.monotonic() > self._until:
                answer = yield httpx.Request("POST", f"{url}/api/token/refresh/", json={"refresh": key})
                if not answer.is_success:
                    # Send the request without a key: its refusal becomes the error message.
                    yield request
                    return
                self._access, self._until = answer.json()["access"], time.monotonic() + 240
            request.headers["Authorization"] = f"Bearer {self._access}"
            yield request

        def __repr__(self) -> str:
            return "Auth(…)"

    return cast("httpx.Auth", Auth())


def _refusal(url: str, method: str, path: str, response: httpx.Response) -> str:
    """Return the error message for a refused request."""
    code = response.status_code
    if code in (401, 403):
        return f"Label Studio at {url} refuses the key (HTTP {code}): check LABEL_STUDIO_API_KEY"
    detail = " ".join(response.text.split())[:200]
    return f"Label Studio at {url} refuses {method} {path} (HTTP {code}): {detail}"
