"""Near-duplicates: recall per transformation and false merges, beside imagehash's pHash at its usual threshold.

Copies of the real photos (MM_SHARED_DATA, as the tests use it) and of generated ones are made in memory; a table of
shares is all that is kept. Each copy is looked for among all photos, as ingest does: `saved again` (refused as a
near-duplicate), or `joined` (accepted into the group of the photo that it is of). A false merge is an unordered pair
of photos of different declared groups that would be refused or joined.

    python benchmarks/near_duplicates.py [--peer PYTHON]     PYTHON: of an environment that holds imagehash
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import samplegen
from mm_core.core.params import Params
from mm_core.core.records import CATEGORIES
from mm_core.imaging.hash_index import Hashed, find_candidates
from mm_core.imaging.images import load_rgb
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance, landmarks, perceptual_hash, same_picture, same_scene
from mm_core.ingest.row_decisions import MAX_LOOKS, SAME_ASPECT

HERE = Path(__file__).parent
PEER_BITS = 8
"""Differing bits of a 64-bit pHash up to which duplicate finders built on imagehash commonly take photos for one."""
PEER = """
import sys, imagehash, PIL.Image
for line in sys.stdin:
    print(imagehash.phash(PIL.Image.open(line.rstrip("\\n"))))
"""


def saved(picture: np.ndarray, format: str = "JPEG", **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format, **options)
    return stream.getvalue()


def scaled(picture: np.ndarray, by: float) -> np.ndarray:
    size = max(1, round(picture.shape[1] * by)), max(1, round(picture.shape[0] * by))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def cut(picture: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    height, width = picture.shape[:2]
    return picture[round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)]


def toned(picture: np.ndarray, gain: float, lift: float = 0) -> np.ndarray:
    return np.clip(picture * gain + lift, 0, 255).astype(np.uint8)


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1 + 0.03 * degrees)
    return cv2.warpAffine(picture, turn, (width, height))


def written_on(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(picture.copy(), "SALE 2026", (width // 10, height // 2), font, width / 250, (255, 255, 255), 4)


def framed(picture: np.ndarray, share: float) -> np.ndarray:
    y, x = (round(share * side) for side in picture.shape[:2])
    return cv2.copyMakeBorder(picture, 2 * y, y, x, x, cv2.BORDER_CONSTANT, value=(24, 24, 28))


SAVED_AGAIN: dict[str, Callable[[np.ndarray], bytes]] = {
    **{f"JPEG quality {q}": lambda p, q=q: saved(p, quality=q) for q in (95, 75, 50, 30)},
    "WebP quality 75": lambda p: saved(p, "WEBP", quality=75),
    "PNG": lambda p: saved(p, "PNG", compress_level=1),
    **{f"resized × {s}, JPEG 85": lambda p, s=s: saved(scaled(p, s), quality=85) for s in (0.9, 0.5, 0.25)},
    "resized × 0.5, JPEG 40": lambda p: saved(scaled(p, 0.5), quality=40),
    "resized × 0.25, WebP 50": lambda p: saved(scaled(p, 0.25), "WEBP", quality=50),
}
EDITED: dict[str, Callable[[np.ndarray], bytes]] = {
    **{f"cropped {c:.0%}, around": lambda p, c=c: saved(cut(p, *[c / 2] * 4), quality=85) for c in (0.01, 0.05, 0.1)},
    **{f"cropped {c:.0%}, one side": lambda p, c=c: saved(cut(p, 0, 0, c, 0), quality=85) for c in (0.05, 0.1)},
    "cropped 10%, corner, resized × 0.5": lambda p: saved(scaled(cut(p, 0.1, 0.1, 0, 0), 0.5), quality=85),
    **{f"brightness {g - 1:+.0%}": lambda p, g=g: saved(toned(p, g), quality=85) for g in (0.7, 0.9, 1.1, 1.3)},
    **{f"contrast {g - 1:+.0%}": lambda p, g=g: saved(toned(p, g, 128 * (1 - g)), quality=85) for g in (0.7, 1.3)},
    **{f"turned {d}°": lambda p, d=d: saved(turned(p, d), quality=85) for d in (1, 3)},
    "text across": lambda p: saved(written_on(p), quality=85),
    "framed 5% (screenshot)": lambda p: saved(framed(p, 0.05), "PNG", compress_level=1),
    "mirrored": lambda p: saved(np.ascontiguousarray(p[:, ::-1]), quality=85),
}  # fmt: skip


class Photos:
    """What ingest knows of photos: hashes and glances."""

    def __init__(self, pictures: list[np.ndarray]):
        self.aspects = [p.shape[1] / p.shape[0] for p in pictures]
        self.glances = [glance(p) for p in pictures]
        marks = [landmarks(seen).astype(">u8").tobytes() for seen in self.glances]
        self.hashed = Hashed.of(list(range(len(pictures))), [perceptual_hash(p) for p in pictures], marks)


def verdict(photos: Photos, a: int, known: Photos, b: int, copies: list[int], edits: list[int]) -> str:
    """What ingest would say of photo `a` against the known photo `b`."""
    seen = photos.glances[a], known.glances[b]
    if b in copies and abs(known.aspects[b] / photos.aspects[a] - 1) < SAME_ASPECT and same_picture(*seen):
        return "saved again"
    return "joined" if b in [*edits, *copies][:MAX_LOOKS] and same_scene(*seen) else ""


def looked(files: list[Path]) -> Photos:
    return Photos([load_rgb(path, LOOK_SIDE) for path in files])


def peer_hashes(python: str, files: list[Path]) -> np.ndarray:
    names = "\n".join(map(str, files))
    done = subprocess.run([python, "-c", PEER], input=names, capture_output=True, text=True, check=True)
    return np.array([int(line, 16) for line in done.stdout.split()], np.uint64)


def measure(
    title: str, originals: list[Path], groups: list[str], every: int, peer: str | None, work: Path
) -> list[str]:
    bits = Params().ingest.near_duplicate_bits
    known = looked(originals)
    theirs = peer_hashes(peer, originals) if peer else None
    pairs = [(i, j) for j in range(len(originals)) for i in range(j) if groups[i] != groups[j]]
    found = find_candidates(known.hashed, [known.hashed], bits)
    said = [verdict(known, j, known, i, found[j].copies, found[j].edits) for i, j in pairs]
    refused, joined = said.count("saved again"), said.count("joined")
    copied = len(originals[::every])
    merges = f"{refused} refused ({refused / len(pairs):.4%}), {joined} joined ({joined / len(pairs):.4%})"
    if theirs is not None:
        near = sum(int(theirs[i] ^ theirs[j]).bit_count() <= PEER_BITS for i, j in pairs)
        merges += f"; imagehash {near} ({near / len(pairs):.4%})"
    lines = [
        f"## {title}",
        "",
        f"{len(originals)} photos, copies of {copied} of them."
        f" False merges among {len(pairs):,} pairs of different groups: {merges}.",
        "",
        "| transformation | saved again | joined | found | imagehash |",
        "|---|---|---|---|---|",
    ]
    for family in (SAVED_AGAIN, EDITED):
        totals = []
        for name, change in family.items():
            files = []
            for number, path in enumerate(originals[::every]):
                files.append(work / f"copy-{number}")
                files[-1].write_bytes(change(np.asarray(Image.open(path).convert("RGB"))))
            copies = looked(files)
            candidates = find_candidates(copies.hashed, [known.hashed], bits)
            each = [verdict(copies, n, known, n * every, c.copies, c.edits) for n, c in enumerate(candidates)]
            shares = [each.count(kind) / len(each) for kind in ("saved again", "joined")]
            shares.append(sum(shares))
            if theirs is not None and peer:
                shares.append(float(np.mean(np.bitwise_count(theirs[::every] ^ peer_hashes(peer, files)) <= PEER_BITS)))
            totals.append(shares)
            lines.append(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
            print(lines[-1], flush=True)
        label = "**all re-encoded or resized**" if family is SAVED_AGAIN else "**all edited**"
        lines.append(f"| {label} | " + " | ".join(f"{share:.2%}" for share in np.mean(totals, axis=0)) + " |")
    return [*lines, ""]


def real_photos(folder: Path) -> tuple[list[Path], list[str]]:
    files, groups = [], []
    for manifest in sorted(folder.glob("inbox/*/*/manifest.csv")):
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                files.append(manifest.parent / row["image"])
                groups.append(row.get("group") or row["image"])
    return files, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment that holds imagehash")
    parser.add_argument("--generated", type=int, default=120)
    parser.add_argument("--every", type=int, default=1, help="copies are made of every so many of the real photos")
    args = parser.parse_args()
    shared = Path(os.environ.get("MM_SHARED_DATA") or HERE.parents[1] / "shared" / "data")
    lines = [
        "# Near-duplicates: recall per transformation, and false merges",
        "",
        "Runner: `benchmarks/near_duplicates.py`. Shares of photos whose copy is found as theirs among all of them;"
        f" imagehash: pHash (8×8) within {PEER_BITS} bits. Params: {Params().ingest.near_duplicate_bits} bits."
        f" {platform.machine()}, {os.cpu_count()} cores.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files, groups = real_photos(shared)
        if files:
            lines += measure("Real photos", files, groups, args.every, args.peer, work)
        made = []
        for seed in range(args.generated):
            made.append(work / f"made-{seed}.png")
            sample = samplegen.generate(CATEGORIES[seed % len(CATEGORIES)], seed, size=512, aspect=4 / 3)
            Image.fromarray(sample.image).save(made[-1], compress_level=1)
        lines += measure("Generated photos", made, [path.name for path in made], 1, args.peer, work)
    (HERE / "near_duplicates.md").write_text("\n".join(lines).rstrip() + "\n")
    print(HERE / "near_duplicates.md")


if __name__ == "__main__":
    main()
