"""The gallery over HTTP: routes, access control and limits.

The server fetches nothing from other hosts. No name from a client becomes a path. Uploads are limited before they are
read, and decoded before they are kept. Outside of loopback every request needs the token (a cookie after the first
visit).
"""

from __future__ import annotations

import hmac
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.gallery.feedback import Feedback, give
from mm_core.gallery.library import UPLOAD_BYTES, Library
from mm_core.storage.catalog import Catalog

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

HERE = Path(__file__).parent
COOKIE = "mm_token"
# Scripts and connections only from this server; WASM needs its own permission.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The cross-origin headers isolate the page, which WASM threads require.
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
# Free text from a client: short, without control characters and markup.
WORD = re.compile(r"[\w .,()+-]{0,80}")


def application(library: Library, catalog: Catalog, inbox: Path, runtime: Path, token: str | None = None) -> Starlette:
    """Create the ASGI application.

    Args:
        library: The photos and the model.
        catalog: Receives features of the feedback.
        inbox: Folder for feedback drops.
        runtime: Folder of onnxruntime-web's files; if it is absent, the server computes the mattes.
        token: Access token; None admits only requests from this machine.

    Returns:
        The application.
    """
    # Reading: the start data, photos, pieces, skies and model files.

    async def about(request: Request) -> Response:
        return JSONResponse(library.about() | {"runtime": (runtime / "ort.wasm.min.mjs").is_file()})

    async def photo(request: Request) -> Response:
        data = await _found(library.rendition, request.path_params["id"], request.path_params["side"])
        return Response(data, media_type="image/jpeg")

    async def piece(request: Request) -> Response:
        return FileResponse(await _found(library.piece, request.path_params["file"]))

    async def sky(request: Request) -> Response:
        return Response(await _found(library.sky, request.path_params["name"]), media_type="image/jpeg")

    async def model(request: Request) -> Response:
        name = request.path_params["file"]
        # Only files named in the manifest are served.
        if name not in {entry["file"] for entry in library.manifest["decoders"].values()}:
            raise HTTPException(404)
        return FileResponse(library.bundle / name, media_type="application/octet-stream")

    async def golden(request: Request) -> Response:
        data = await _found(library.golden, request.path_params["decoder"])
        return Response(data, media_type="application/octet-stream")

    # Computation on the server, for browsers that cannot run the model.
    async def matte(request: Request) -> Response:
        decoder = request.query_params.get("decoder", "")
        if decoder not in DECODERS:
            raise HTTPException(404)
        return Response(await _found(library.matte, request.path_params["id"], decoder), media_type="image/png")

    async def decoder(request: Request) -> Response:
        return JSONResponse({"decoder": await _found(library.decoder, request.path_params["id"])})

    async def apply(request: Request) -> Response:
        query = request.query_params
        tap = None
        if "x" in query:
            try:
                x, y = float(query["x"]), float(query["y"])
            except (ValueError, KeyError):
                x = y = math.nan
            if not (math.isfinite(x) and math.isfinite(y)):
                raise HTTPException(400, "x and y are shares of width and height, from 0 to 1")
            # Shares slightly outside of the photo come from rounding in the browser.
            tap = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
        suffix, data = await _found(
            library.apply, request.path_params["id"], query.get("function", ""), query.get("choice", ""), tap
        )
        return Response(data, media_type={".png": "image/png", ".jpg": "image/jpeg"}[suffix])

    # Writing: uploads and feedback.
    async def upload(request: Request) -> Response:
        entry = await _found(library.add, await _body(request))
        return JSONResponse({"id": entry.id, "name": entry.name, "category": entry.category}, 201)

    async def say(request: Request) -> Response:
        query, body = request.query_params, await _body(request)
        words = {name: query.get(name, "") for name in ("group", "device")}
        for name, word in words.items():
            if not WORD.fullmatch(word):
                raise HTTPException(400, f"{name}: letters, digits, spaces and . , ( ) + - only, at most 80")
        entry = await _found(library.entry, query.get("photo", ""))

        def write() -> tuple[str, bool]:
            # Runs in a worker thread, because it decodes pictures.
            with tempfile.TemporaryDirectory(prefix="mm-feedback-") as folder:
                matte = None
                if body:
                    matte = Path(folder) / "matte.png"
                    matte.write_bytes(body)
                said = Feedback(query.get("said", ""), query.get("consent") == "yes", matte=matte, **words)
                return give(inbox, catalog, entry, said, model=str(library.manifest["version"]))

        batch, new = await _found(write)
        return JSONResponse({"batch": batch, "new": new}, 201 if new else 200)

    async def page(request: Request) -> Response:
        return FileResponse(HERE / "static" / "index.html")

    routes: list[BaseRoute] = [
        Route("/", page),
        Route("/api/about", about),
        Route("/photo/{id:str}/{side:int}", photo),
        Route("/piece/{file:path}", piece),
        Route("/sky/{name:str}", sky),
        Route("/model/{file:str}", model),
        Route("/golden/{decoder:str}", golden),
        Route("/api/matte/{id:str}", matte, methods=["POST"]),
        Route("/api/decoder/{id:str}", decoder),
        Route("/api/apply/{id:str}", apply, methods=["POST"]),
        Route("/api/photos", upload, methods=["POST"]),
        Route("/api/feedback", say, methods=["POST"]),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    if runtime.is_dir():
        routes.append(Mount("/ort", StaticFiles(directory=runtime)))
    guards = [Middleware(_Guard, token=token)]
    if token is None:
        # DNS rebinding: a foreign host name that resolves to loopback must not read this server.
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]))
    return Starlette(routes=routes, middleware=guards, exception_handlers={HTTPException: _refused})


async def _found(work: Callable[Asked, Found], *arguments: Asked.args, **options: Asked.kwargs) -> Found:
    """Return the result of `work`, run in a thread; 404 for a KeyError, 422 with the reason for bad input."""
    try:
        return await run_in_threadpool(work, *arguments, **options)
    except KeyError:
        raise HTTPException(404) from None
    except InputError as error:
        raise HTTPException(422, str(error)) from None


async def _body(request: Request) -> bytes:
    """Return the body of at most UPLOAD_BYTES; the declared length is not trusted."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > UPLOAD_BYTES:
            raise HTTPException(413, f"more than {UPLOAD_BYTES // 1_000_000} MB")
        parts.append(chunk)
    return b"".join(parts)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


class _Guard:
    """Middleware that checks the token, refuses requests of foreign pages, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.decode().lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        request = Request(scope)
        # The first visit has the token in the address; a cookie carries it afterwards, out of logs and history.
        if self.token is not None and not self._known(request):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if request.url.path == "/" and self._is_token(given):
                reply = RedirectResponse("/", 303)
                reply.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 86_400)
                return await reply(scope, receive, answer)
            return await PlainTextResponse("open the address that mm gallery printed\n", 401)(scope, receive, answer)
        # A foreign page cannot set this header without a CORS preflight, which this server never allows.
        if request.method not in ("GET", "HEAD") and request.headers.get("x-mm") != "1":
            return await PlainTextResponse("not from this page\n", 403)(scope, receive, answer)
        await self.app(scope, receive, answer)

    def _known(self, request: Request) -> bool:
        return self._is_token(request.cookies.get(COOKIE, ""))

    def _is_token(self, given: str) -> bool:
        # Constant time, so that the answer's delay reveals nothing about the token.
        return hmac.compare_digest(given.encode(), (self.token or "").encode())
