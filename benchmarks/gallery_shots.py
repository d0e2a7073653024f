"""Screenshots of `mm gallery` in headless Chromium, phone and desktop, light and dark; and in-browser latency.

    python benchmarks/gallery_shots.py BUNDLE

Generated photos alone. Writes docs/gallery-*.png and benchmarks/gallery.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from playwright.sync_api import expect

from mm_core import operations, stages
from mm_core.core.headless import browser, served
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.export.runtime import OnnxPredictor
from mm_core.gallery.application import application
from mm_core.gallery.library import Library
from mm_core.pinned_inputs import Run
from mm_core.storage.run import catalog_of
from samplegen.gallery import PlantedEvent, write_gallery

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOON = datetime(2026, 5, 2, 12)
EVENTS = [
    PlantedEvent(NOON, 2, (48.2, 16.37), ("portrait", "pets"), 5),
    PlantedEvent(NOON + timedelta(hours=4), 2, (47.07, 15.44), ("scenery",), 4),
    PlantedEvent(NOON + timedelta(days=1, hours=7), 2, (48.2, 16.37), ("delicacy", "multi_person"), 5),
]
RUNS = 9
FUNCTIONS = """async () => {
  const {resize} = await import("/static/matting.js"), {guidedUpsample} = await import("/static/guided.js");
  const effects = await import("/static/effects.js"), {erase} = await import("/static/eraser.js");
  const {newSky} = await import("/static/sky.js"), {image} = moments.state(), [w, h] = [2048, 1536];
  const pixels = resize(image.data, image.width, image.height, 4, w, h, true);
  const photo = new ImageData(new Uint8ClampedArray(pixels), w, h);
  const side = 320, small = Float32Array.from({length: side * side}, (_, n) => Math.min(1, Math.max(0,
    6 - 20 * Math.hypot((n % side) / side - 0.5, Math.floor(n / side) / side - 0.5))));
  const out = {}, timed = (name, work) => { const start = performance.now(), made = work();
    out[name] = performance.now() - start; return made; };
  const alpha = timed("matte to the photo's edges", () => guidedUpsample(small, side, photo));
  timed("cut out", () => effects.cutout(photo, alpha));
  timed("splash", () => effects.splash(photo, alpha));
  timed("blur", () => effects.blur(photo, alpha));
  timed("erase", () => erase(photo, alpha, new Float32Array(w * h)));
  timed("new sky", () => newSky(photo, alpha.map((a, n) => 1 - Math.floor(n / w) / h > 0.5 ? 1 : 0), photo));
  return out;
}"""
"""Milliseconds of each function of the page on a photo of 3 megapixels, the size that the page works on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        layout = Layout(Settings.from_env(root / "workspace"))
        write_gallery(root / "gallery", EVENTS, size=640, seed=3)
        params = Params().with_values(**{"structure.ocr": []})
        # Without labelled photos there is nothing to guess categories from: the workspace gets a few.
        from mm_core.core.records import ALL_CATEGORIES
        from samplegen import write_drop

        inbox = Path(layout.settings.inbox)
        write_drop(inbox, "pixel_labeled", "known", dict.fromkeys(ALL_CATEGORIES, 24), seed=1, size=160, burst_share=0)
        stages.ingest(Run(params, layout))
        stages.structure(Run(params, layout))
        operations.moments(Run(params, layout), root / "gallery", root / "moments", model=str(bundle))
        library = Library(root / "gallery", root / "moments", bundle, root / "uploads", 10**8)
        app = application(library, catalog_of(layout), inbox, layout.settings.onnxruntime_web)
        with served(app) as address:
            found = shoot(address)
        functions = found.pop("functions")
        predictor = OnnxPredictor.of_folder(bundle, threads=1)
        image = np.zeros((3, *library.manifest["input"]["shape"][2:]), np.float32)
        native = {}
        for decoder in library.manifest["decoders"]:
            predictor.alpha(image, decoder)
            times = []
            for _ in range(RUNS):
                start = time.perf_counter()
                predictor.alpha(image, decoder)
                times.append(1e3 * (time.perf_counter() - start))
            native[decoder] = float(np.median(times))
    side = library.manifest["input"]["shape"][-1]
    lines = [
        "# In the browser",
        "",
        f"Runner: `benchmarks/gallery_shots.py`. The network alone, {side} x {side}, median of {RUNS} runs:"
        f" onnxruntime-web (WASM, one thread, headless Chromium) beside onnxruntime on one thread, same machine."
        f" {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.",
        "",
        "| decoder | browser, ms | native, ms | browser / native | golden pair: mse | max |",
        "|---|---|---|---|---|---|",
        *(
            f"| {d} | {r['ms']:.0f} | {native[d]:.0f} | {r['ms'] / native[d]:.1f} | {r['mse']:.1e} | {r['max']:.3f} |"
            for d, r in found.items()
        ),
    ]
    lines += [
        "",
        "The page's functions on 2048 x 1536 pixels, the most that it works on; once each, JavaScript, one thread.",
        "",
    ]
    lines += ["| function | ms |", "|---|---|", *(f"| {name} | {ms:.0f} |" for name, ms in functions.items())]
    (ROOT / "benchmarks" / "gallery.md").write_text("\n".join(lines) + "\n")


def shoot(address: str) -> dict[str, dict[str, float]]:
    """Takes the pictures; gives decoder → median ms and the distance from the golden matte."""
    found: dict[str, dict[str, float]] = {}
    with browser() as opened:
        for name, size, scheme in (
            ("desktop", {"width": 1180, "height": 860}, "light"),
            ("phone", {"width": 390, "height": 844}, "dark"),
        ):
            context = opened.new_context(viewport=size, color_scheme=scheme, has_touch=name == "phone")  # pyright: ignore[reportArgumentType]
            context.set_default_timeout(90_000)
            page = context.new_page()
            page.goto(address)
            page.locator("#engine[data-where]").wait_for()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=DOCS / f"gallery-{name}.png")
            tiles = page.locator("#moments [data-photo]")
            tiles.nth(1).click()
            said = page.locator("#said")
            expect(said).to_contain_text("Tap a subject", timeout=90_000)
            box = page.locator("#canvas").bounding_box()
            assert box
            page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.6 * box["height"])
            expect(said).to_contain_text("Lifted", timeout=90_000)
            page.screenshot(path=DOCS / f"gallery-{name}-lift.png")
            for effect, words in (("splash", "Colour splash"), ("eraser", "Erased")):
                page.click(f"[data-do={effect}]")
                expect(said).to_contain_text(words, timeout=90_000)
                page.locator("#slider").fill("50")
                page.screenshot(path=DOCS / f"gallery-{name}-{effect}.png")
            page.click("#close")
            page.locator("#moments [data-photo][aria-label^='Open scenery']").first.click()
            expect(said).to_contain_text("Tap a subject", timeout=90_000)
            page.click("[data-do=sky]")
            expect(said).to_contain_text("New sky", timeout=90_000)
            page.locator("#slider").fill("50")
            page.screenshot(path=DOCS / f"gallery-{name}-sky.png")
            if name == "desktop":
                found = page.evaluate(
                    "async (runs) => { const out = {}; for (const d of Object.keys(moments.engine.checks)) {"
                    " const all = []; for (let n = 0; n < runs; n++) all.push(await moments.engine.check(d));"
                    " all.sort((a, b) => a.ms - b.ms); out[d] = {...all[0], ms: all[runs >> 1].ms}; } return out; }",
                    RUNS,
                )
                found["functions"] = page.evaluate(FUNCTIONS)
            context.close()
    return found


if __name__ == "__main__":
    main()
