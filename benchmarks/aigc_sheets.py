"""Before/after sheets of the four functions, on generated photos with their true mattes.

    python benchmarks/aigc_sheets.py

Writes docs/aigc-cutout.jpg, aigc-sky.jpg, aigc-eraser.jpg, aigc-style.jpg.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from aigc_quality import FILLS

from mm_core.effects.cutout import lift, placed
from mm_core.effects.eraser import erase
from mm_core.effects.sky import replaced
from mm_core.effects.style import background_blur, colour_splash, stylised
from mm_core.effects.subjects import Subjects
from samplegen import generate

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIZE, TILE = 1024, 300


def sheet(name: str, rows: list[list[tuple[str, np.ndarray]]]) -> None:
    """Rows of titled pictures, each shrunk to a square's side at most."""
    lines = []
    for row in rows:
        tiles = []
        for title, picture in row:
            scale = TILE / max(picture.shape[:2])
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            tile = np.full((TILE + 24, TILE + 8, 3), 255, np.uint8)
            y, x = 20 + (TILE - small.shape[0]) // 2, 4 + (TILE - small.shape[1]) // 2
            tile[y : y + small.shape[0], x : x + small.shape[1]] = small
            cv2.putText(tile, title, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
            tiles.append(tile)
        lines.append(np.hstack(tiles))
    path = DOCS / f"aigc-{name}.jpg"
    cv2.imwrite(str(path), np.vstack(lines)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(path)


def main() -> None:
    portraits = [generate("portrait", seed, size=SIZE) for seed in (3, 8)]
    pets = generate("pets", 5, size=SIZE)
    scenes = [generate("scenery", seed, size=SIZE, aspect=4 / 3) for seed in (1, 6, 12)]
    rows = []
    for photo, other in zip([*portraits, pets], [scenes[0], scenes[1], portraits[0]], strict=True):
        lifted = lift(photo.image, photo.alpha)
        assert lifted is not None
        naive = np.full_like(photo.image, 255)
        naive = np.rint(photo.image * photo.alpha[..., None] + naive * (1 - photo.alpha[..., None])).astype(np.uint8)
        white = placed(lifted, np.full_like(photo.image, 255), _middle(lifted.box, photo.image))
        moved = placed(lifted, other.image, (0.5, 0.68), 0.64)
        rows.append([("photo", photo.image), ("naive cut-out", naive), ("cut-out", white), ("on another photo", moved)])
    sheet("cutout", rows)
    sheet(
        "sky",
        [
            [("photo", s.image), *((name, replaced(s.image, s.alpha, name)) for name in ("clouds", "sunset", "night"))]
            for s in scenes
        ],
    )  # fmt: skip
    rows = []
    for seed in (2, 4, 9):
        group = generate("multi_person", seed, size=SIZE, aspect=4 / 3)
        subjects = Subjects(group.alpha)
        gone = subjects.all[-1]
        matte = subjects.of(gone)
        keep = subjects.of(*subjects.all[:-1]) if len(subjects.all) > 1 else None
        marked = np.rint(
            group.image * (1 - 0.6 * matte[..., None]) + 0.6 * matte[..., None] * np.array([230, 40, 60], np.float32)
        )
        fills = [(m, erase(group.image, matte, keep=keep, fill=FILLS[m])) for m in ("blend", "telea", "harmonic")]
        rows.append([("photo", group.image), ("taken out", marked.astype(np.uint8)), *fills])
    sheet("eraser", rows)
    rows = []
    for photo in (*portraits, pets):
        image, alpha = photo.image, photo.alpha
        rows.append(
            [("photo", image), ("colour splash", colour_splash(image, alpha)), ("blur", background_blur(image, alpha)),
             ("noir", stylised(image, alpha, "noir")), ("golden", stylised(image, alpha, "golden")),
             ("from a photo", stylised(image, alpha, scenes[1].image))]
        )  # fmt: skip
    sheet("style", rows)


def _middle(box: tuple[int, int, int, int], photo: np.ndarray) -> tuple[float, float]:
    return (box[0] + box[2]) / 2 / photo.shape[1], (box[1] + box[3]) / 2 / photo.shape[0]


if __name__ == "__main__":
    main()
