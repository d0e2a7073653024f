"""Compare `mm_core/effects` and `mm_core/moments` with a simple baseline for each, on data with known truth.

    python benchmarks/aigc_quality.py [--photos FOLDER]

Generated photos; with FOLDER, the eraser also on real photos (numbers only). Writes benchmarks/aigc_quality.md.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from perceptual import gradients, texture_and_structure
from skimage.restoration import inpaint_biharmonic

from mm_core.core.records import ALL_CATEGORIES
from mm_core.effects.eraser import SEARCH_SIDE, Fill, _clone, blend, erase
from mm_core.effects.foreground import foreground, over
from mm_core.effects.fullsize import WORK_SIDE, enlarged, harmonic, shrunk, touched
from mm_core.imaging.images import load_rgb
from mm_core.ingest.drop import PHOTOS
from samplegen import generate, render

HERE = Path(__file__).parent
SIDE = 384
CUT = ("portrait", "multi_person", "pets", "accessories", "delicacy")


def _small(fill: Fill, side: int = WORK_SIDE) -> Fill:
    """The fill at reduced size."""

    def run(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
        small = shrunk(photo, side)
        return enlarged(fill(small, touched(hole, small), touched(avoid, small)), photo)

    return run


def _biharmonic(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    result = inpaint_biharmonic(photo / 255.0, hole > 0, channel_axis=-1)
    return np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)


FILLS: dict[str, Fill] = {
    "blend": blend,
    "clone": _clone,
    "harmonic": lambda photo, hole, avoid: harmonic(photo, hole),
    "telea": _small(lambda photo, hole, avoid: cv2.inpaint(photo, hole, 5, cv2.INPAINT_TELEA)),
    "ns": _small(lambda photo, hole, avoid: cv2.inpaint(photo, hole, 5, cv2.INPAINT_NS)),
    "biharmonic": _small(_biharmonic, SEARCH_SIDE),
}


def photo_of(light: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(light, 0, 255)).astype(np.uint8)


def cutout_row(category: str, scenes: int) -> str:
    """Mean absolute colour error (of 255) in the soft band, on a new background whose true composite is rendered."""
    ours, naive = [], []
    for seed in range(scenes):
        r = render(category, 7000 + seed, size=SIDE * 2)
        for wall in (20.0, 235.0):
            truth = render(category, 7000 + seed, size=SIDE * 2, backdrop=wall).light
            back = np.full(truth.shape, round(wall), np.uint8)
            band = (r.alpha > 0.02) & (r.alpha < 0.98)
            photo = photo_of(r.light)
            ours.append(np.abs(over(foreground(photo, r.alpha), r.alpha, back) - truth)[band].mean())
            naive.append(np.abs(over(photo, r.alpha, back) - truth)[band].mean())
    return f"| {category} | {np.mean(ours):.2f} | {np.mean(naive):.2f} | {np.mean(naive) / np.mean(ours):.1f} |"


def sky_row(scenes: int) -> str:
    """Mean distance (of 255) of the land's colours in the soft band from those of the firm land beside it."""
    ours, naive = [], []
    for seed in range(scenes):
        r = render("scenery", 2000 + seed, size=SIDE * 2, aspect=4 / 3)
        photo, sky = photo_of(r.light), r.alpha
        band = (sky > 0.05) & (sky < 0.95)
        if band.sum() < 50:
            continue
        firm = cv2.erode((sky < 0.02).astype(np.uint8), np.ones((3, 3))) > 0
        near = cv2.dilate(band.astype(np.uint8), np.ones((9, 9))) > 0
        land = photo[firm & near].mean(0)
        front = foreground(photo, 1 - sky)
        ours.append(np.abs(front[band].astype(float) - land).mean())
        naive.append(np.abs(photo[band].astype(float) - land).mean())
    return f"| {len(ours)} scenes | {np.mean(ours):.1f} | {np.mean(naive):.1f} | {np.mean(naive) / np.mean(ours):.2f} |"


def generated(each: int) -> list[np.ndarray]:
    """Photos of other seeds than those that the blend was chosen on."""
    return [generate(c, 5000 + s, size=SIDE).image for s in range(each) for c in ALL_CATEGORIES]


def real(folder: Path) -> list[np.ndarray]:
    """Other photos than those that the blend was chosen on, which were every so many from the first."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTOS and "alpha" not in p.as_posix())
    photos = [shrunk(load_rgb(p, 2 * SIDE), SIDE) for p in files[7 :: max(1, len(files) // 48)]]
    return [photo for photo in photos if min(photo.shape[:2]) > 128]


def eraser_scores(photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A figure of 1/7 by 1/3 of each photo is put over it and erased: method → (photos, 4) PSNR, look, texture,
    gradients."""
    found: dict[str, list[list[float]]] = {method: [] for method in FILLS}
    rng = np.random.default_rng(0)
    for photo in photos:
        height, width = photo.shape[:2]
        alpha = np.zeros((height, width), np.float32)
        centre = int(rng.uniform(0.3, 0.7) * width), int(rng.uniform(0.3, 0.7) * height)
        cv2.ellipse(alpha, centre, (width // 14, height // 6), rng.uniform(-15, 15), 0, 360, 1.0, -1)
        alpha = cv2.GaussianBlur(alpha, (0, 0), 1.0)
        figure = np.array([220, 30, 200], np.float32)
        seen = photo_of(photo * (1 - alpha[..., None]) + figure * alpha[..., None])
        x, y, wide, tall = cv2.boundingRect((alpha > 0.5).astype(np.uint8))
        window = slice(max(0, y - 24), y + tall + 24), slice(max(0, x - 24), x + wide + 24)
        for method, fill in FILLS.items():
            done, truth, hole = erase(seen, alpha, fill=fill)[window], photo[window], alpha[window] > 0.5
            error = np.mean((done[hole].astype(float) - truth[hole]) ** 2)
            psnr = float(10 * np.log10(255**2 / max(error, 1e-6)))
            found[method].append([psnr, *texture_and_structure(done, truth, hole)[::-1], gradients(done, truth, hole)])
    return {method: np.array(values) for method, values in found.items()}


def eraser_rows(name: str, parts: list[dict[str, np.ndarray]]) -> list[str]:
    """A row per method; `±`: standard error of the paired difference from OpenCV's better one by that measure."""
    table = {method: np.concatenate([part[method] for part in parts]) for method in FILLS}
    count = len(table["telea"])
    rows = []
    for method, values in table.items():
        cells = []
        for column, better in enumerate((max, min, min, min)):
            peer = better(("telea", "ns"), key=lambda m: table[m][:, column].mean())
            off = (values - table[peer])[:, column].std() / count**0.5
            shown = f"{values[:, column].mean():.2f}" if column == 0 else f"{values[:, column].mean():.3f}"
            cells.append(shown if method == peer else f"{shown} ± {off:.2f}" if column == 0 else f"{shown} ± {off:.3f}")
        rows.append(f"| {name} ({count}) | {method} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--erased", type=int, default=9, help="photos of each category for the eraser")
    args = parser.parse_args()
    lines = [
        "# The functions where the truth is known",
        "",
        "Runner: `benchmarks/aigc_quality.py`. True mattes, so that no model is judged.",
    ]

    def add(title: str, about: str, columns: str, rows: list[str]) -> None:
        """A section, written at once: what is done stays when the runner is killed."""
        count = columns.count("|") - 1
        lines.extend(["", f"## {title}", "", about, "", columns, "|" + "---|" * count, *rows])
        (HERE / "aigc_quality.md").write_text("\n".join(lines) + "\n")
        print(title, flush=True)

    with ProcessPoolExecutor(5) as pool:
        cuts = [pool.submit(cutout_row, category, args.scenes) for category in CUT]
        sky = pool.submit(sky_row, args.scenes)
        halves = [pool.submit(eraser_scores, generated(args.erased)[n::2]) for n in range(2)]
        reals = [pool.submit(eraser_scores, real(args.photos)[n::2]) for n in range(2)] if args.photos else []
        add(
            "Cut-out: colour error in the soft band on a new background",
            f"Mean absolute error of 255 over {args.scenes} generated scenes on a dark and a light wall; the truth is"
            " the same scene rendered\nbefore that wall. Naive: the photo's own colours under the matte.",
            "| category | estimated colours | naive | naive / ours |",
            [cut.result() for cut in cuts],
        )
        add(
            "Sky: how far the land's colours at the sky's edge are from the land beside it",
            "Mean absolute error of 255 in the band. Naive: the photo's pixels, in which the old sky still shines.",
            "| | ours | naive | naive / ours |",
            [sky.result()],
        )
        rows = eraser_rows("generated", [half.result() for half in halves])
        if reals:
            rows += eraser_rows("real", [half.result() for half in reals])
    add(
        "Eraser: held-out pixels under a figure",
        f"Photos at long side {SIDE}, others than those that the blend was chosen on. Look: DISTS on fixed filters"
        " (`benchmarks/perceptual.py`), texture\nand structure; texture: its first part alone; gradients: 1 - GMS. 0 is"
        " the hidden picture's own. LPIPS itself needs pretrained weights: not at hand.\n± is the standard error of the"
        " paired difference from OpenCV's better method. A smooth fill has the best PSNR and the worst look.",
        "| photos | method | PSNR, dB | look | texture | gradients |",
        rows,
    )


if __name__ == "__main__":
    main()
