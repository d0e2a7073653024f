"""A drop with every planted defect: each row ends as it must, with the reason in plain words."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm_core.core.records import ALL_CATEGORIES


def ends(shop: Any, rows: list[dict[str, str]], batch: str) -> list[tuple[str, str, str]]:
    """(image, verdict, reason) of each row of a batch, in the order of the manifest."""
    rejects = shop.catalog.read("rejects", filters=[("batch", "=", batch)]).set_index("row")
    return [
        (row["image"], rejects.loc[n, "verdict"], rejects.loc[n, "reason"])
        if n in rejects.index
        else (row["image"], "accept", "")
        for n, row in enumerate(rows)
    ]


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))


def test_the_planted_drop(shared_data: Path, workshop_at: Callable[..., Any]) -> None:
    """Two of its rows repeat a photo of the drop of 2026-10-01, which came before."""
    first = workshop_at(inbox=shared_data / "inbox")
    first.ingest(batch="2026-10-01")
    shop = workshop_at(inbox=shared_data / "faulty")
    shop.ingest()
    expected = [(row["image"], row["verdict"], row["reason"]) for row in read(shared_data / "faulty" / "expected.csv")]
    assert ends(shop, read(*shared_data.glob("faulty/*/*/manifest.csv")), "2026-11-15-faulty") == expected
    assert len(expected) == 27


def bomb() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def turned(pixels: np.ndarray) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_a_generated_drop_with_the_same_defects(workshop: Any, make: Any) -> None:
    photo, matte, encoded = make.photo, make.matte, make.encoded
    workshop.drop("pixel_labeled", "earlier", [make.row(90), make.row(91)])
    workshop.ingest()
    half = {seed: make.row(seed)["image_bytes"] for seed in range(60)}
    grey = Image.fromarray(photo(12)).convert("L")
    cmyk, palette = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo(13)).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(photo(14)).convert("P", palette=Image.Palette.ADAPTIVE).save(palette, "PNG")
    sixteen = encoded(matte(15).astype(np.uint16) * 257, "PNG")
    rgba = encoded(np.dstack([photo(16), matte(16)]), "PNG")
    noisy = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    cases: list[tuple[dict[str, Any], str, str]] = [
        (make.row(10), "accept", ""),
        (make.row(11, image="images/with spaces ünï.jpg", alpha="alphas/with spaces ünï.png"), "accept", ""),
        (make.row(12, image_bytes=encoded(np.asarray(grey))), "accept", ""),
        (make.row(13, image_bytes=cmyk.getvalue()), "accept", ""),
        (make.row(14, image_bytes=palette.getvalue()), "accept", ""),
        (make.row(15, alpha_bytes=sixteen), "accept", ""),
        (make.row(16, alpha_bytes=rgba), "accept", ""),
        (make.row(17, image_bytes=turned(photo(17)), alpha_bytes=encoded(matte(17, 48, 64), "PNG")), "accept", ""),
        (make.row(18, category=""), "accept", ""),
        (make.row(20, image_bytes=half[20][: len(half[20]) // 2]), "quarantine", "truncated or corrupt image"),
        (make.row(21, image_bytes=b""), "quarantine", "empty file"),
        (make.row(22, image_bytes=b"<html>404</html>"), "quarantine", "not an image"),
        (make.row(23, image_bytes=bomb()), "quarantine", "too many pixels"),
        (make.row(24, alpha_bytes=encoded(noisy, "PNG")[:600]), "quarantine", "corrupt alpha"),
        (make.row(25, alpha_bytes=encoded(matte(25, 32, 32), "PNG")), "quarantine", "size mismatch"),
        ({"image": "images/10b.jpg", "image_bytes": half[26], "alpha": "none.png"}, "quarantine", "missing alpha"),
        ({"image": "images/none.jpg", "alpha": "alphas/10.png"}, "quarantine", "missing image"),
        (make.row(28, alpha_bytes=encoded(matte(1) * 0, "PNG")), "quarantine", "empty alpha (no foreground)"),
        (make.row(29, alpha_bytes=encoded(matte(1) * 0 + 255, "PNG")), "quarantine", "full alpha (no background)"),
        (make.row(30, category="dinosaur"), "quarantine", "unknown category"),
        (make.row(31, image_bytes=encoded(photo(31, 16, 12))), "quarantine", "too small"),
        ({"image": "../outside.jpg", "alpha": "alphas/10.png"}, "quarantine", "path outside the batch"),
        ({"image": "/etc/hostname", "alpha": "alphas/10.png"}, "quarantine", "path outside the batch"),
        (make.row(34, image_bytes=b"../../outside.jpg"), "quarantine", "path outside the batch"),
        (make.row(35, sha256="0" * 64), "quarantine", "checksum mismatch"),
        (make.row(36, role="test"), "quarantine", "unknown role"),
        (make.row(90, image="images/dup.jpg"), "duplicate", "duplicate"),
        (make.row(91, image_bytes=encoded(photo(91), quality=50)), "duplicate", "near-duplicate"),
        (make.row(10), "duplicate", "listed twice"),
    ]
    (workshop.inbox.root / "pixel_labeled" / "outside.jpg").write_bytes(half[50])
    workshop.drop("pixel_labeled", "faulty", [row for row, _, _ in cases])
    report = workshop.ingest()
    rows = [row for row, _, _ in cases]
    assert ends(workshop, rows, "faulty") == [(row["image"], verdict, reason) for row, verdict, reason in cases]
    assert report.metrics["ingest/accepted"] == 9 and report.metrics["ingest/quarantined"] == 17
    samples = workshop.catalog.read("samples", filters=[("batch", "=", "faulty")]).set_index("name")
    assert tuple(samples.loc["images/17.jpg", ["width", "height"]]) == (48, 64)
    assert set(samples["category"].dropna()) <= set(ALL_CATEGORIES)
    secret = half[50]
    kept = [e.key for e in workshop.store.list() if "catalog" not in e.key]
    assert all(workshop.store.fetch(key).read_bytes() != secret for key in kept), "nothing from outside was copied"
