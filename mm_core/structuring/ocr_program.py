"""Reads the text in photos. Runs in the environment `.tools/ocr`, which has rapidocr; imports nothing of ours.

rapidocr brings omegaconf, which breaks Dagster's selections: so it is called as a program.

stdin: photos one after the other, each a line `H W` and H x W x 3 bytes of sRGB. stdout: per photo one JSON line,
`{"texts": [str], "scores": [float], "share": float}`, or `{"error": str}`. Ends with stdin.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, BinaryIO

import cv2
import numpy as np
from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]


def answer(engine: Any, rgb: np.ndarray) -> dict[str, Any]:
    """Lines of text in reading order of the detector, their scores in [0, 1], and the share of the photo they cover."""
    found = engine(np.ascontiguousarray(rgb[..., ::-1]))
    if found.txts is None or found.boxes is None:
        return {"texts": [], "scores": [], "share": 0.0}
    area = sum(cv2.contourArea(np.asarray(box, np.float32)) for box in found.boxes)
    share = min(1.0, area / (rgb.shape[0] * rgb.shape[1]))
    return {"texts": list(found.txts), "scores": [float(score) for score in found.scores], "share": share}


def photos(stream: BinaryIO):
    """Arrays until the stream ends between two of them."""
    while line := stream.readline():
        height, width = map(int, line.split())
        yield np.frombuffer(stream.read(height * width * 3), np.uint8).reshape(height, width, 3)


def main() -> None:
    lines, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like an answer
    logging.disable(logging.WARNING)
    engine = RapidOCR(
        params={
            "EngineConfig.onnxruntime.intra_op_num_threads": int(sys.argv[1]),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
    for rgb in photos(sys.stdin.buffer):
        try:
            line = answer(engine, rgb)
        except (cv2.error, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), file=lines, flush=True)


if __name__ == "__main__":
    main()
