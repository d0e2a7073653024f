"""Write docs/before-after.jpg: generated photos, a model's mattes, and the subjects over a plain background.

    python benchmarks/before_after.py MODEL

MODEL is what `Matter.load` takes. The photos are generated with seeds that no drop of the demo uses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from mm_core import Matter
from mm_core.eval.compare import over_plain
from samplegen import generate

PAGE = Path(__file__).resolve().parent.parent / "docs" / "before-after.jpg"
CATEGORIES = ("pets", "portrait", "delicacy", "accessories")
SEED, SIZE, TILE = 9001, 512, 256


def main() -> None:
    """Draw a column per photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model = Matter.load(parser.parse_args().model)
    columns = []
    for number, category in enumerate(CATEGORIES):
        sample = generate(category, SEED + number, size=SIZE)
        alpha = model.predict(sample.image, category=category)
        matte = np.repeat(np.rint(255 * alpha).astype(np.uint8)[..., None], 3, axis=2)
        pictures = (sample.image, matte, over_plain(sample.image, alpha))
        columns.append(np.vstack([cv2.resize(p, (TILE, TILE), interpolation=cv2.INTER_AREA) for p in pictures]))
    cv2.imwrite(str(PAGE), cv2.cvtColor(np.hstack(columns), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
