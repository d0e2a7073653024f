"""Does guided upsampling bring a small matte nearer to the true one than a bilinear resize?

    python benchmarks/upsample.py --real ../shared/data/inbox

Shrinks true mattes to the network's size (also softened, as a network's are), brings them back both ways, and compares
with the truth: mean squared error, guided over bilinear. Writes benchmarks/upsample.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.records import CATEGORIES
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.model import upsample
from mm_core.model.preprocess import finish, resize
from samplegen import render
from samplegen.render import develop

HERE = Path(__file__).parent
Pair = tuple[np.ndarray, np.ndarray]
WINDOWS = (1, 2, 3)
"""Radii tried; the first is what `mm predict` uses."""


def generated() -> list[Pair]:
    pairs = []
    for k, category in enumerate(CATEGORIES):
        for mode in ("easy", "hard"):
            sample = render(category, 900_100 + k, size=640, mode=mode)
            pairs.append((develop(sample, 900_100 + k, 0), sample.alpha))
    return pairs


def real(inbox: Path, soft: bool) -> list[Pair]:
    pairs = []
    files = [f for f in sorted(inbox.glob("pixel_labeled/*/alphas/*.png")) if ("alphamatting" in f.name) == soft]
    for file in files if soft else files[::14]:
        image = next(file.parent.with_name("images").glob(f"{file.stem}.*"))
        pairs.append((load_rgb(image), load_alpha(file)))
    return pairs


def ratio(pairs: list[Pair], size: int, blur: float) -> float:
    errors = np.zeros(2)
    for photo, alpha in pairs:
        small = resize(np.asarray(alpha, np.float32), size, size)
        small = cv2.GaussianBlur(small, (0, 0), blur) if blur else small
        mattes = (upsample.guided_upsample(small, photo), finish(small, (alpha.shape[0], alpha.shape[1])))
        errors += [float(((matte - alpha) ** 2).mean()) for matte in mattes]
    return errors[0] / errors[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="an inbox with labelled photos")
    args = parser.parse_args()
    sets = {"generated samples, 640 px": generated()}
    if args.real and args.real.is_dir():
        sets |= {"real photos, soft mattes": real(args.real, True), "real photos, binary masks": real(args.real, False)}
    lines = [
        "# Guided upsampling against a bilinear resize",
        "",
        "Runner: `benchmarks/upsample.py`. True mattes shrunk and brought back; MSE of the guided one over the",
        "bilinear one's: below 1 it is nearer to the truth. `mm predict` uses windows of 3 × 3.",
        "",
        "| photos | how many | network's size | softened by 1 px | 3 × 3 | 5 × 5 | 7 × 7 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in sets.items():
        for size in (96, 160, 320):
            for blur in (0.0, 1.0):
                cells = []
                for upsample.RADIUS in WINDOWS:
                    cells.append(f"{ratio(pairs, size, blur):.2f}")
                softened = "yes" if blur else "no"
                lines.append(f"| {name} | {len(pairs)} | {size} | {softened} | " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
                (HERE / "upsample.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
