"""Time and peak memory of each function on a photo of 12 megapixels, each in a process of its own.

    python benchmarks/aigc_cost.py

Writes benchmarks/aigc_cost.md. The peer of each run is decoding that same photo's JPEG.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
WIDTH, HEIGHT = 4000, 3000
FUNCTIONS = ("decode", "sharpen", "cut out", "new sky", "erase", "splash", "blur", "stylise")


def pair(category: str) -> tuple[np.ndarray, np.ndarray]:
    from samplegen import generate

    g = generate(category, 3, size=1024, aspect=4 / 3)
    photo = cv2.resize(g.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return photo, np.clip(cv2.resize(g.alpha, (WIDTH, HEIGHT)), 0, 1)


def one(name: str) -> None:
    """Runs one function twice in this process and prints the second time and the peak."""
    from mm_core.effects.cutout import lift
    from mm_core.effects.eraser import erase
    from mm_core.effects.sky import replaced
    from mm_core.effects.style import background_blur, colour_splash, stylised
    from mm_core.export.formats.measure import memory_mb
    from mm_core.imaging.images import load_rgb
    from mm_core.model.preprocess import resize
    from mm_core.model.upsample import guided_upsample

    photo, alpha = pair("scenery" if "sky" in name else "pets")
    small = resize(alpha, 320, 320)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        cv2.imwrite(str(path), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        call = {
            "decode": lambda: load_rgb(path),
            "sharpen": lambda: guided_upsample(small, photo),
            "cut out": lambda: lift(photo, alpha),
            "new sky": lambda: replaced(photo, alpha, "sunset"),
            "erase": lambda: erase(photo, alpha),
            "splash": lambda: colour_splash(photo, alpha),
            "blur": lambda: background_blur(photo, alpha),
            "stylise": lambda: stylised(photo, alpha, "golden"),
        }[name]
        before, _ = memory_mb()
        call()
        start, cpu = time.perf_counter(), time.process_time()
        call()
        taken, cpu = time.perf_counter() - start, time.process_time() - cpu
        _, peak = memory_mb()
        print(json.dumps({"seconds": taken, "cpu": cpu, "peak_mb": peak, "above_mb": peak - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=FUNCTIONS)
    args = parser.parse_args()
    if args.one:
        return one(args.one)
    rows = {}
    for name in FUNCTIONS:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        base = rows["decode"]["cpu"]
        lines = [
            "# The functions at 12 megapixels",
            "",
            f"Runner: `benchmarks/aigc_cost.py`. {WIDTH} x {HEIGHT} generated photos, second call of a fresh process;"
            " CPU seconds of all\nits threads, for the machine was shared."
            f" {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end.",
            "",
            "| function | CPU s | over decoding the JPEG | wall clock, s | peak memory, MB | of which the function's |",
            "|---|---|---|---|---|---|",
        ]
        for n, r in rows.items():
            times = f"{r['cpu']:.2f} | {r['cpu'] / base:.1f} | {r['seconds']:.1f}"
            lines.append(f"| {n} | {times} | {r['peak_mb']:.0f} | {r['above_mb']:.0f} |")
        (HERE / "aigc_cost.md").write_text("\n".join(lines) + "\n")
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
