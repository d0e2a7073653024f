"""Mattes of people by MediaPipe's selfie segmentation, for `matting_peers.py`; runs in an environment of its own.

    .tools/mediapipe/bin/python benchmarks/mediapipe_mattes.py FOLDER

For each `FOLDER/*.png`, a photo, its mask is written as `FOLDER/<stem>.npy`, float32 (H, W) in [0, 1].
"""

# pyright: reportMissingImports=false
# (they lie in the environment that runs this file)
from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Write the mask of each photo of the folder."""
    import cv2
    import mediapipe
    import numpy as np

    # Model 0 is the general one, for 256 × 256 pixels; the library scales its mask to the photo.
    with mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as model:
        for path in sorted(Path(sys.argv[1]).glob("*.png")):
            stored = cv2.imread(str(path))
            assert stored is not None, path
            photo = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
            np.save(path.with_suffix(".npy"), model.process(photo).segmentation_mask)


if __name__ == "__main__":
    main()
