"""What each extractor costs per photo, beside the one decode that all share. Generated photos, one thread.

    python -m benchmarks.structuring

Writes benchmarks/structuring.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import psutil
import torch

from benchmarks.catalog_scale import processor
from mm_core.core.params import StructureParams
from mm_core.core.records import ALL_CATEGORIES
from mm_core.imaging.images import load_rgb
from mm_core.model.packaged import load_packaged_classifier
from mm_core.model.preprocess import prepare
from mm_core.structuring.classifier import ClassifierTags
from mm_core.structuring.classifier_graph import SIDE as CLASSIFIER_SIDE
from mm_core.structuring.composition import composition
from mm_core.structuring.decode import DECODE_SIDE, decode, shrunk
from mm_core.structuring.difficulty import measure
from mm_core.structuring.embedding import embedding
from mm_core.structuring.ocr import OcrProgram
from mm_core.structuring.photo_features import SIDE, photo_features
from mm_core.structuring.rows import Photo
from samplegen import generate

HERE = Path(__file__).parent


def seconds(work: Callable[[Any], Any], items: list[Any]) -> np.ndarray:
    """Processor seconds of each call, of this process and its children, after one call that is not counted."""
    work(items[0])
    taken = []
    for item in items:
        start = processor_seconds()
        work(item)
        taken.append(processor_seconds() - start)
    return np.array(taken)


def processor_seconds() -> float:
    """Other programs hardly change these seconds; wall-clock time includes their turns. Children count in 10 ms."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=21)
    parser.add_argument("--size", type=int, default=1024, help="long side in pixels")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, OcrProgram() as program:
        items = []
        for number in range(args.photos):
            made = generate(ALL_CATEGORIES[number % 7], number, size=args.size)
            path = Path(folder) / f"{number}.jpg"
            cv2.imwrite(str(path), made.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            rgb = decode(path)
            items.append((path, rgb, shrunk(rgb, SIDE), made.alpha))
        encoder = StructureParams().classifier
        tagger, network = ClassifierTags(encoder, 5, Path(folder)), load_packaged_classifier(encoder)

        def in_torch(item: Any) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(prepare(item[2], CLASSIFIER_SIDE))[None])

        parts: dict[str, Callable[[Any], Any]] = {
            "decode at full size (the physical limit)": lambda item: load_rgb(item[0]),
            f"the one decode, long side {DECODE_SIDE}": lambda item: shrunk(decode(item[0]), SIDE),
            "photo: header, EXIF, quality, composition, aesthetic": lambda item: photo_features(item[0], item[2]),
            "of which composition": lambda item: composition(item[2]),
            "embedding (classical)": lambda item: embedding(item[2]),
            "classifier: tags and vector (onnxruntime)": lambda item: tagger.run([Photo("", None, *item[:3])]),
            "the same network in torch": in_torch,
            "difficulty (labelled photos)": lambda item: measure(item[2], item[3]),
            "ocr (rapidocr, own process, one thread)": lambda item: program.read(item[1]),
        }
        found = {name: seconds(work, items) for name, work in parts.items()}
    base = found["decode at full size (the physical limit)"].mean()
    lines = [
        "# Structuring: processor seconds per photo (generated samples)",
        "",
        f"Runner: `python -m benchmarks.structuring`. {args.photos} JPEGs, long side {args.size} px, one thread,"
        " warm, while other programs ran."
        f" {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end."
        " CLIP is not in the table: its time is the network's, and no pretrained weights were at hand.",
        "",
        "| part | mean, ms | 90th percentile, ms | over the full decode |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {1e3 * taken.mean():.1f} | {1e3 * np.quantile(taken, 0.9):.1f} | {taken.mean() / base:.2f} |"
        for name, taken in found.items()
    ]
    (HERE / "structuring.md").write_text("\n".join(lines) + "\n")
    print(HERE / "structuring.md")


if __name__ == "__main__":
    main()
