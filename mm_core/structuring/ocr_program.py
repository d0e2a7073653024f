"""Program that reads the text in photos. It imports no module of this project.

A photo on which the engine crashes or hangs ends this process and not the one that structures the photos.

stdin: photos one after the other, each a line `H W` and H × W × 3 bytes of sRGB. stdout: one JSON line per photo,
`{"texts": [str], "scores": [float], "share": float}` or `{"error": str}`. The program ends with stdin.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

import cv2
import numpy as np
from rapidocr import RapidOCR

if TYPE_CHECKING:
    from rapidocr.utils.output import RapidOCROutput


def answer(engine: RapidOCR, rgb: np.ndarray) -> dict[str, object]:
    """Return lines of text in reading order, their scores in [0, 1], and the covered share of the photo."""
    # The engine expects BGR. Its other types of result are those of a single step, such as detection alone.
    result = cast("RapidOCROutput", engine(np.ascontiguousarray(rgb[..., ::-1])))
    if result.txts is None or result.boxes is None or result.scores is None:
        return {"texts": [], "scores": [], "share": 0.0}
    area = sum(cv2.contourArea(np.asarray(box, np.float32)) for box in result.boxes)
    share = min(1.0, area / (rgb.shape[0] * rgb.shape[1]))
    return {"texts": list(result.txts), "scores": [float(score) for score in result.scores], "share": share}


def photos(stream: BinaryIO) -> Iterator[np.ndarray]:
    """Yield arrays (H, W, 3) uint8 until the stream ends between two of them."""
    while line := stream.readline():
        height, width = map(int, line.split())
        yield np.frombuffer(stream.read(height * width * 3), np.uint8).reshape(height, width, 3)


def main() -> None:
    """Answer photos from stdin until it ends."""
    lines, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not mix with the answers
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
            # An error concerns one photo only, so the program continues.
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), file=lines, flush=True)


if __name__ == "__main__":
    main()
