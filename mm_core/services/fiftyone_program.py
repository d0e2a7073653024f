"""Program that shows a folder of `mm browse` in the FiftyOne App. It runs in the environment `.tools/fiftyone`.

It imports no module of this project. `FOLDER/samples.jsonl` has a JSON object per photo, `FOLDER/about.json` the saved
views; `mm_core.services.browse` writes both. The program prints `ready` when the App can be opened.

    python fiftyone_program.py FOLDER PORT
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import parse_qs

if TYPE_CHECKING:
    import fiftyone as fo  # pyright: ignore[reportMissingImports]
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = "matting-moments"
"""Name of the dataset."""
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
"""The App's scripts compile code and start workers; nothing is loaded from or sent to another server."""


class View(TypedDict):
    """A saved view; `mm_core.services.browse.SavedView` describes the fields."""

    match: dict[str, list[str]]
    exists: list[str]
    sort: str
    reverse: bool


class Guard:
    """ASGI middleware: this machine's browser only, and files of the browsed folders only.

    Another site's page could otherwise rebind its name to 127.0.0.1 and read any file through the App's media route.
    """

    def __init__(self, app: ASGIApp, port: int, folders: list[Path]) -> None:
        self.app, self.folders = app, folders
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to the App."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        own = headers.get("host") in self.hosts and (origin is None or origin.split("://")[-1] in self.hosts)
        if not own or headers.get("sec-fetch-site") == "cross-site" or not self._may_read(scope):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"refused\n"})

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)

    def _may_read(self, scope: Scope) -> bool:
        """Return whether all files that a request names are below the folders."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        paths = [Path(path).resolve() for name in ("filepath", "path") for path in query.get(name, [])]
        return all(any(path.is_relative_to(folder) for folder in self.folders) for path in paths)


def build(folder: Path) -> None:
    """Make the dataset anew from the folder's files."""
    import fiftyone as fo  # pyright: ignore[reportMissingImports]

    if fo.dataset_exists(NAME):
        fo.delete_dataset(NAME)
    dataset = fo.Dataset(NAME, persistent=True)
    samples = []
    for line in (folder / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        sample = fo.Sample(filepath=row.pop("filepath"), tags=row.pop("tags"))
        # A matte is a heat map over the photo, 0 to 255 like the bytes of its PNG.
        for name, path in row.pop("mattes").items():
            sample[name] = fo.Heatmap(map_path=path, range=[0, 255])
        for name, value in row.items():
            if value is not None:
                sample[name] = value
        samples.append(sample)
    # One call for all samples, because each call is a round trip to the database.
    dataset.add_samples(samples, progress=False)
    about = json.loads((folder / "about.json").read_text())
    for view in about["views"]:
        made = _view(dataset, view)
        if made is not None:
            dataset.save_view(view["name"], made, description=view["about"])
    dataset.info = about["info"]
    dataset.save()


def _view(dataset: fo.Dataset, view: View) -> fo.DatasetView | None:
    """Return a view from its description; None if no photo has one of its fields."""
    from fiftyone import ViewField  # pyright: ignore[reportMissingImports]

    fields = dataset.get_field_schema()
    if not {*view["match"], *view["exists"], *([view["sort"]] if view["sort"] else [])} <= {*fields}:
        return None
    made = dataset
    for name, values in view["match"].items():
        made = made.match(ViewField(name).is_in(values))
    for name in view["exists"]:
        made = made.exists(name)
    if view["sort"]:
        made = made.exists(view["sort"]).sort_by(view["sort"], reverse=view["reverse"])
    return made


def serve(folder: Path, port: int) -> None:
    """Serve the App on 127.0.0.1 until the process is ended."""
    # The App's server connects to the database that `build` has started.
    os.environ["FIFTYONE_SERVER"] = "1"
    from fiftyone.server.app import app  # pyright: ignore[reportMissingImports]
    from fiftyone.server.events import set_port  # pyright: ignore[reportMissingImports]
    from hypercorn.asyncio import serve as run  # pyright: ignore[reportMissingImports]
    from hypercorn.config import Config  # pyright: ignore[reportMissingImports]

    config = Config()
    # Bind to the loopback address only; errors go to stderr, and requests are not logged.
    config.bind, config.errorlog, config.accesslog = [f"127.0.0.1:{port}"], "-", None
    set_port(port)
    allowed = [
        folder.resolve(),
        *(Path(path).resolve() for path in json.loads((folder / "about.json").read_text())["folders"]),
    ]

    async def main() -> None:
        # The server has no signal of its own for being up, so its port is tried.
        async def say_ready() -> None:
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.1)
                    continue
                writer.close()
                print("ready", flush=True)
                return

        await asyncio.gather(run(Guard(app, port, allowed), config), say_ready())

    asyncio.run(main())


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    serve(Path(sys.argv[1]), int(sys.argv[2]))
