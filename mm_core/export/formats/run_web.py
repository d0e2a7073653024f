"""Run an ONNX file like the gallery's page: with onnxruntime-web in headless Chromium, one page per thread count.

The page is served locally and cross-origin isolated, which WASM threads require.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError, MattingError
from mm_core.core.headless import browser, require_playwright, served
from mm_core.core.settings import Settings
from mm_core.export.formats.measure import RUNS, SECONDS, WARM_UP, RunCost

if TYPE_CHECKING:
    from playwright import sync_api
else:
    sync_api = Deferred("playwright.sync_api")

ISOLATED = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp"}
PATIENCE_MS = 300_000
"""Limit of one page's work in milliseconds."""
MEASURE = """async ([threads, side, runs, warmUp, patience]) => {
  const ort = await import("/ort/ort.wasm.min.mjs");
  Object.assign(ort.env.wasm, {wasmPaths: "/ort/", numThreads: threads});
  const session = await ort.InferenceSession.create("/model", {executionProviders: ["wasm"]});
  const all = new Float32Array(await (await fetch("/inputs")).arrayBuffer()), area = 3 * side * side, alphas = [];
  const run = async (n) => (await session.run(
    {image: new ort.Tensor("float32", all.slice(n * area, (n + 1) * area), [1, 3, side, side])})).alpha.data;
  for (let n = 0; n < all.length / area; n++) alphas.push(...await run(n));
  const times = [];
  for (let n = 0; n < warmUp; n++) await run(0);
  const begun = performance.now();
  while (times.length < runs && (!times.length || performance.now() - begun < patience)) {
    const start = performance.now();
    await run(0);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  return {alphas, ms: times[times.length >> 1], isolated: crossOriginIsolated, version: ort.env.versions.common};
}"""


def run_web(settings: Settings, file: Path, images: np.ndarray, threads: Iterable[int]) -> tuple[np.ndarray, RunCost]:
    """Run a file in the browser; arguments and results as in `run.run_file`.

    The costs are `latency_ms`, `peak_mb` (of the page's process) and `versions`; the others are 0 or empty. Raises
    InputError if Chromium or onnxruntime-web is missing, MattingError if the page fails.
    """
    # Playwright is optional; its absence is reported before its import.
    require_playwright()
    runtime = settings.onnxruntime_web
    if not (runtime / "ort.wasm.min.mjs").is_file():
        raise InputError(f"onnxruntime-web is not in {runtime}: run `make gallery`")
    cost: RunCost = {"versions": {}, "latency_ms": {}, "cpu_ms": {}, "peak_mb": 0.0, "model_mb": 0.0}
    alphas = np.empty(0, np.float32)
    side = images.shape[-1]
    before = _renderers()
    # Renderer processes of other browsers are not measured.
    try:
        with browser() as opened, served(_application(file, images, runtime)) as address:
            version = opened.version
            for count in threads:
                # A fresh context per thread count: WASM threads are fixed when the runtime loads.
                context = opened.new_context()
                page = context.new_page()
                page.set_default_timeout(PATIENCE_MS)
                page.goto(address)
                result = page.evaluate(MEASURE, [count, side, RUNS, WARM_UP, 1e3 * SECONDS])
                if count > 1 and not result["isolated"]:
                    raise MattingError("the page is not cross-origin isolated: it has one thread only")
                alphas = np.array(result["alphas"], np.float32).reshape(-1, side, side)
                cost["latency_ms"][str(count)] = result["ms"]
                # The page's process is the new renderer since the start.
                peaks = [_peak_mb(pid) for pid in _renderers() - before]
                cost["peak_mb"] = max([cost["peak_mb"], *peaks])
                cost["versions"] = {"onnxruntime-web": result["version"], "chromium": version}
                context.close()
    except sync_api.Error as error:
        raise MattingError(f"onnxruntime-web failed: {' '.join(error.message.split())[:400]}") from None
    return alphas, cost


def _application(file: Path, images: np.ndarray, runtime: Path) -> Starlette:
    async def page(request: Request) -> Response:
        return HTMLResponse("<!doctype html><link rel=icon href=data:,><title>bench</title>", headers=ISOLATED)

    async def model(request: Request) -> Response:
        return FileResponse(file)

    async def inputs(request: Request) -> Response:
        return Response(np.ascontiguousarray(images, "<f4").tobytes(), media_type="application/octet-stream")

    async def isolated(scope: Scope, receive: Receive, send: Send) -> None:
        # A worker's script needs the same isolation headers as its page.
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in ISOLATED.items())]
            await send(message)

        await files(scope, receive, answer)

    files = StaticFiles(directory=runtime)
    return Starlette(
        routes=[Route("/", page), Route("/model", model), Route("/inputs", inputs), Mount("/ort", isolated)]
    )


def _renderers() -> set[int]:
    """Return the process ids of page renderers below this process."""
    pids = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "--type=renderer" in child.cmdline():
                pids.add(child.pid)
    return pids


def _peak_mb(pid: int) -> float:
    """Return the peak memory of a process in megabytes (1e6 bytes) on Linux; its present memory on other systems."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    except (OSError, KeyError):
        with suppress(psutil.Error):
            return psutil.Process(pid).memory_info().rss / 1e6
    return 0.0
