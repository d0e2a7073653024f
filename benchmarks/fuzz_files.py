"""Pictures and manifests as no honest program writes them: mutations of valid ones, and constructed traps."""

from __future__ import annotations

import csv
import io
import random
import struct
import zipfile
import zlib
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FORMULAS = ("=cmd|'/C calc'!A0", '=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(A1:A9)", "\t=1+1")
NAMES = (
    "../../etc/passwd",
    "/etc/hostname",
    "a" * 5000,
    "..\\..\\x",
    "\u202egpj.a",
    "con",
    "\ufeff",
    "a/" * 300,
    "💥.jpg",
    ".",
)


@cache
def valid_pictures() -> dict[str, bytes]:
    """Small valid files of every format and mode, by name."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    rgb = np.dstack([x * 4, y * 5, (x + y) * 2]).astype(np.uint8) // 2 + rng.integers(0, 100, (48, 64, 3), np.uint8)
    colour, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    wide = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    clear = Image.fromarray(np.dstack([rgb, rgb[..., 0]]))
    frames: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (colour, "JPEG", {"quality": 90}),
        "jpeg-progressive": (colour, "JPEG", {"progressive": True, "restart_marker_blocks": 4}),
        "jpeg-cmyk": (colour.convert("CMYK"), "JPEG", {"exif": exif}),
        "jpeg-grey-icc": (grey, "JPEG", {"icc_profile": icc, "exif": exif}),
        "mpo": (colour, "MPO", frames),
        "png": (colour, "PNG", {"exif": exif, "icc_profile": icc}),
        "png-16": (wide, "PNG", {}),
        "png-rgba": (clear, "PNG", {}),
        "png-palette": (colour.convert("P"), "PNG", {"transparency": 3}),
        "png-bits": (grey.convert("1"), "PNG", {}),
        "apng": (colour, "PNG", frames | {"duration": 10}),
        "webp": (clear, "WEBP", {"quality": 80, "exif": exif}),
        "webp-lossless": (clear, "WEBP", {"lossless": True}),
        "webp-animated": (colour, "WEBP", frames | {"duration": 10}),
        "avif": (clear, "AVIF", {"quality": 80}),
        "avif-animated": (colour, "AVIF", frames | {"duration": 10}),
        "heif": (colour, "HEIF", {"quality": 80, "exif": exif}),
        "heif-16": (wide, "HEIF", {"quality": 80}),
        "tiff-lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff-jpeg": (colour, "TIFF", {"compression": "jpeg"}),
        "tiff-packbits": (grey, "TIFF", {"compression": "packbits"}),
        "tiff-fax": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff-float": (Image.fromarray(rgb[..., 0].astype(np.float32) / 255), "TIFF", {}),
        "tiff-16": (wide, "TIFF", {}),
        "tiff-cmyk": (colour.convert("CMYK"), "TIFF", {}),
        "tiff-lab": (colour.convert("LAB"), "TIFF", {}),
        "tiff-pages": (colour, "TIFF", frames),
        "bmp": (colour, "BMP", {}),
        "bmp-palette": (colour.convert("P"), "BMP", {}),
        "gif": (colour, "GIF", {}),
        "gif-animated": (colour, "GIF", frames | {"duration": 10}),
        "jp2": (clear, "JPEG2000", {}),
        "jpeg2000-lossy": (colour, "JPEG2000", {"irreversible": True, "quality_layers": [20], "num_resolutions": 3}),
    }  # fmt: skip
    found = {}
    for name, (image, format, options) in made.items():
        stream = io.BytesIO()
        # Copies: Pillow leaves the settings of one encoder on the picture for the next.
        options |= {"append_images": [frame.copy() for frame in options.get("append_images", ())]}
        image.copy().save(stream, format, **options)
        found[name] = stream.getvalue()
    return found


def fuzzed_picture(seed: int) -> tuple[str, bytes]:
    """What was done to which picture, and the file; the same for the same seed."""
    chance = random.Random(seed)
    files = valid_pictures()
    name = chance.choice(sorted(files))
    data = bytearray(files[name])
    how = chance.choice(sorted(MUTATIONS))
    data = MUTATIONS[how](data, chance)
    if chance.random() < 0.3:
        data = _flip(bytearray(data), chance)
    return f"{name} {how}", bytes(data)


def _flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 2, 8, 32))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _header(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
    return data


def _number(data: bytearray, chance: random.Random) -> bytearray:
    """An extreme value where a size or an offset may stand."""
    for _ in range(chance.randint(1, 3)):
        width, order = chance.choice((2, 4)), chance.choice("<>")
        place = chance.randrange(max(1, min(len(data) - width, chance.choice((40, 200, 10**6)))))
        value = chance.choice(EXTREMES) & (2 ** (8 * width) - 1)
        data[place : place + width] = struct.pack(f"{order}{'H' if width == 2 else 'I'}", value)
    return data


def _truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(1, len(data))]


def _splice(data: bytearray, chance: random.Random) -> bytearray:
    """A piece of another picture, put in or over."""
    other = valid_pictures()[chance.choice(sorted(valid_pictures()))]
    begin, place = chance.randrange(len(other)), chance.randrange(len(data))
    piece = other[begin : begin + chance.choice((8, 64, 1000))]
    data[place : place + chance.choice((0, len(piece)))] = piece
    return data


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    begin = chance.randrange(len(data))
    piece = data[begin : begin + chance.choice((4, 50, 400))]
    data[begin:begin] = piece * chance.choice((1, 3, 200))
    return data


def _cut_out(data: bytearray, chance: random.Random) -> bytearray:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.choice((1, 4, 50, 400))]
    return data


def _polyglot(data: bytearray, chance: random.Random) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../evil.sh", "#!/bin/sh\n")
    first = chance.choice((b"", b"%PDF-1.4\n", b"GIF89a", b"<svg onload=alert(1)>", b"#!/bin/sh\n", b"\x7fELF", b"MZ"))
    last = chance.choice((stream.getvalue(), b"<?php phpinfo(); ?>", valid_pictures()["gif"]))
    return bytearray(first) + data + last


def _png(width: int, height: int, depth: int, colour: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(name, content) for name, content in extra)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def zeros(count: int) -> bytes:
    """So many zeros, compressed a thousand times."""
    return zlib.compress(bytes(count))


def _claim(data: bytearray, chance: random.Random) -> bytearray:
    """A PNG, right to its checksums, that claims a size its data does not have; some just under the limit."""
    width, height = chance.choice(
        ((30_000, 30_000), (10_000, 10_000), (2**31 - 1, 1), (1, 120_000_000), (0, 5), (64, 48))
    )
    depth, colour = chance.choice(((1, 0), (8, 2), (16, 6), (8, 3), (16, 0)))
    body = zeros(chance.choice((0, 100, 3_000_000)))
    words, profile = (b"zTXt", b"k\0\0" + zeros(50_000_000)), (b"iCCP", b"p\0\0" + zeros(20_000_000))
    return bytearray(_png(width, height, depth, colour, body, *chance.choice(((), (words,), (profile,), (words,) * 5))))


def _tiff_loop(data: bytearray, chance: random.Random) -> bytearray:
    """Directories that point at themselves, and entries with absurd counts."""
    entries = [
        (256, 4, 1, chance.choice((64, 2**31))),
        (257, 4, 1, 48),
        (258, 3, chance.choice((1, 2**28)), 8),
        (259, 3, 1, chance.choice((1, 5, 7, 8, 34712, 50000))),
        (262, 3, 1, chance.choice((0, 2, 6))),
        (273, 4, chance.choice((1, 2**30)), 8),
        (277, 3, 1, chance.choice((1, 3, 60_000))),
        (278, 4, 1, chance.choice((0, 48))),
        (279, 4, 1, chance.choice((100, 2**32 - 1))),
        (330, 4, 1, 8),
        (34665, 4, 1, 8),
    ]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return bytearray(b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8) + bytes(200))


def _scans(data: bytearray, chance: random.Random) -> bytearray:
    """A progressive JPEG whose scans are repeated hundreds of times over a large picture."""
    whole = valid_pictures()["jpeg-progressive"]
    frame, scan = whole.index(b"\xff\xc2"), whole.index(b"\xff\xda")
    side = chance.choice((64, 64, 64, 640, 640, 640, 640, 640, 4_000, 10_000))
    head = bytearray(whole[:scan])
    head[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return head + whole[scan:-2] * chance.choice((1, 20, 300)) + b"\xff\xd9"


MUTATIONS = {
    "bits flipped": _flip,
    "header edited": _header,
    "extreme number": _number,
    "truncated": _truncate,
    "spliced": _splice,
    "piece repeated": _repeat,
    "piece cut out": _cut_out,
    "polyglot": _polyglot,
    "png claims": _claim,
    "tiff loop": _tiff_loop,
    "jpeg scans": _scans,
}
"""By name: (file, chance) → another file."""


def fuzzed_manifest(seed: int) -> tuple[str, str, bytes]:
    """What was done, the manifest's file name, and the file."""
    chance = random.Random(seed)
    rows = [
        {
            "image": chance.choice((*NAMES, *FORMULAS, f"{n}.jpg", f"images/{n}.png")),
            "alpha": chance.choice(("", "a.png", "../a.png")),
            "caption": chance.choice((*FORMULAS, "A dog.", "x" * 20_000, "zwei\nZeilen", 'quote " quote', "\u0000")),
            "category": chance.choice(("pets", "Multi Person", "=1+1", "")),
            "role": chance.choice(("train", "eval", "root", "")),
            "sha256": chance.choice(("", "0" * 64, "x")),
        }
        for n in range(chance.choice((1, 5, 60)))
    ]
    if chance.random() < 0.4:
        stream = io.BytesIO()
        if chance.random() < 0.2:
            value = chance.choice((1, 2.5, True, b"\xff", ["a"]))
            rows = [row | {"image": value} for row in rows]
        frame = pd.DataFrame(rows)
        frame.to_parquet(stream, compression=chance.choice(("snappy", "gzip", None)))
        data = bytearray(stream.getvalue())
        how = chance.choice(
            ("as it is", "bits flipped", "extreme number", "truncated", "piece cut out", "piece repeated")
        )
        if how == "extreme number":  # the table of contents stands at the end
            data = bytearray(reversed(_number(bytearray(reversed(data)), chance)))
        elif how != "as it is":
            data = MUTATIONS[how](data, chance)
        return f"parquet {how}", "manifest.parquet", bytes(data)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = bytearray(text.getvalue().encode())
    how = chance.choice(
        (
            "as it is",
            "bits flipped",
            "header edited",
            "truncated",
            "piece cut out",
            "piece repeated",
            "bytes",
            "columns",
            "field",
            "rows",
            "quotes",
            "utf-16",
        )
    )
    if how == "bytes":
        place = chance.randrange(len(data))
        data[place:place] = chance.choice((b"\0", b"\xff\xfe", b"\xc0\x80", b"\x1a", b"\r", b"\xed\xa0\x80"))
    elif how == "columns":
        data = bytearray(b"image," + b",".join(b"c" * chance.choice((0, 1)) for _ in range(10**6)) + b"\na.jpg\n")
    elif how == "field":
        data = bytearray(b'image\n"' + b"y" * chance.choice((100_000, 200_000, 5_000_000)) + b'"\n')
    elif how == "rows":
        data = bytearray(
            b"image\n"
            + chance.choice((b"\n", b"a\n", b",\n", b"a,b\n")) * chance.choice((1000, 1000, 1000, 1000, 300_000))
        )
    elif how == "quotes":
        data = bytearray(data.replace(b",", chance.choice((b'"', b',"', b'""', b";", b"\t"))))
    elif how == "utf-16":
        data = bytearray(text.getvalue().encode("utf-16"))
    elif how != "as it is":
        data = MUTATIONS[how](data, chance)
    return f"csv {how}", "manifest.csv", bytes(data)
