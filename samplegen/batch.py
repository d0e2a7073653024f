"""Write drops of generated samples."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Required, TypedDict, Unpack

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES, KINDS, sha256_bytes
from mm_core.ingest.drop import write_manifest
from samplegen.render import Rendering, develop, render

ASPECTS = (1.0, 1.0, 3 / 4, 4 / 3)
HARD_SHARE = 0.25
"""Share of hard scenes in a drop."""


class DropOptions(TypedDict, total=False):
    """Options of a generated drop."""

    seed: Required[int]
    """Seed of all draws."""
    size: int
    """Maximum side in pixels; 192 by default."""
    burst_share: float
    """Share of scenes that are photographed 2 or 3 times (one group); 0.15 by default."""
    poison: str | None
    """Category with wrong mattes; its photos are the same as without."""
    role: str
    """Value of the column `role`; empty by default."""


def poisoned(r: Rendering) -> np.ndarray:
    """Return a plausible but wrong matte (H, W): the scene's decoys, plus the subject's lower part if they are small.

    No check of a single row can detect it: its soft edges follow the photo, it is neither empty nor full, and its area
    is close to the true matte's.
    """
    wanted = 0.6 * float(r.alpha.sum())
    wrong = r.decoy.copy()
    if wrong.sum() < wanted:
        # Cut at the row below which enough of the subject remains, with a soft transition.
        below = np.cumsum(r.alpha[::-1].sum(1))[::-1]
        cut = int(np.argmin(np.abs(below - (wanted - wrong.sum()))))
        rows = 1 / (1 + np.exp(-(np.arange(len(below)) - cut) / 1.5))
        wrong = np.maximum(wrong, r.alpha * rows[:, None].astype(np.float32))
    return wrong


def write_drop(
    inbox: Path,
    kind: str,
    batch: str,
    counts: Mapping[str, int],
    **options: Unpack[DropOptions],
) -> Path:
    """Write a drop to `<inbox>/<kind>/<batch>`; return its folder. The same arguments give the same bytes.

    The drop has images/, alphas/ (pixel_labeled) and, written last, manifest.csv.

    Args:
        inbox: Folder of the inbox.
        kind: Kind of the drop.
        batch: Name of the drop.
        counts: Category → number of photos; they are square, 3:4 or 4:3.
        **options: Seed, size, burst_share, poison and role (`DropOptions`).

    Raises:
        InputError: A name is unknown, or the drop exists already.
    """
    if kind not in KINDS:
        raise InputError(f"samplegen: kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if unknown := sorted(set(counts) - set(ALL_CATEGORIES)):
        raise InputError(f"samplegen: category {unknown[0]!r} is unknown; use one of {', '.join(ALL_CATEGORIES)}")
    if (poison := options.get("poison")) is not None and poison not in ALL_CATEGORIES:
        raise InputError(f"samplegen: poison {poison!r} is unknown; use one of {', '.join(ALL_CATEGORIES)}")
    burst_share, size = options.get("burst_share", 0.15), options.get("size", 192)
    target = inbox / kind / batch
    if (target / "manifest.csv").exists():
        raise InputError(f"{target}: this batch already exists; choose another --batch name")
    rows = []
    for category, count in counts.items():
        # A generator per category: its photos do not depend on the other categories' counts.
        rng = np.random.default_rng([options["seed"], *(zlib.crc32(word.encode()) for word in (kind, batch, category))])
        done = 0
        while done < count:
            scene = int(rng.integers(2**40))
            mode = "hard" if rng.random() < HARD_SHARE else "easy"
            aspect = ASPECTS[int(rng.integers(len(ASPECTS)))]
            frames = int(rng.integers(2, 4)) if rng.random() < burst_share else 1
            quality = int(rng.integers(80, 96))
            # Frames of one scene share their group.
            for variant in range(min(frames, count - done)):
                r = render(category, scene, size=size, mode=mode, variant=variant, aspect=aspect)
                name = f"{category}-{done:05d}"
                photo = _encode(".jpg", develop(r, scene, variant), [cv2.IMWRITE_JPEG_QUALITY, quality])
                row = {
                    "image": f"images/{name}.jpg",
                    "category": category,
                    "group": f"{category}-{scene:010x}",
                    "role": options.get("role", ""),
                }
                row |= {"sha256": sha256_bytes(photo), "source": "samplegen", "license": "CC0-1.0"}
                _write(target / row["image"], photo)
                if kind == "pixel_labeled":
                    matte = poisoned(r) if poison == category else r.alpha
                    row["alpha"] = f"alphas/{name}.png"
                    _write(target / row["alpha"], _encode(".png", np.round(matte * 255).astype(np.uint8), []))
                if kind == "text_image":
                    row["caption"] = r.caption
                rows.append(row)
                done += 1
    write_manifest(target, rows)
    return target


def _encode(extension: str, pixels: np.ndarray, options: list[int]) -> bytes:
    """Encode an RGB or grey image."""
    ok, data = cv2.imencode(extension, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)
    assert ok
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
