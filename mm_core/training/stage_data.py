"""The photos that a training stage learns from and is validated on, read from the frozen snapshot and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.params import CommonTrainParams
from mm_core.core.records import digest_of
from mm_core.storage.seals import require_unbroken

_FRAME_COLUMNS = ["sample_id", "category", "decoder", "caption", "alpha_sha256", "label_binary"]


@dataclass(frozen=True)
class Data:
    """Frames that a stage trains and validates on, one row per photo."""

    labeled: pd.DataFrame
    replay: pd.DataFrame | None
    """The simple set in the hard stage; None in the others."""
    unlabeled: pd.DataFrame
    text_image: pd.DataFrame
    validation: pd.DataFrame

    def used(self) -> list[pd.DataFrame]:
        """Return the frames that are present."""
        every = (self.labeled, self.replay, self.unlabeled, self.text_image, self.validation)
        return [frame for frame in every if frame is not None]

    def digest(self) -> str:
        """Return a digest of the rows and their labels; it does not depend on how the files were written."""
        # Missing values become None: NaN has several encodings and would change the digest.
        rows = [frame[_FRAME_COLUMNS].astype(object) for frame in self.used()]
        return digest_of([frame.where(frame.notna(), None).to_numpy().tolist() for frame in rows])


def read_data(stage: str, layout: Layout) -> Data:
    """Read the frames of a stage.

    Raises:
        InputError: The snapshot or the split is missing or damaged.
        NothingToTrainOn: The snapshot has no labelled sample.
    """

    def frame(path: Path) -> pd.DataFrame:
        if not has_file(path):
            raise InputError(f"{path} is missing: run `mm {path.parent.name}` before `mm train-{stage}`")
        return pd.read_parquet(path)

    snapshot, split = layout.snapshot, layout.split
    # A flipped bit in a parquet page is read as another value.
    require_unbroken(snapshot, "run `mm snapshot` again")
    require_unbroken(split, "run `mm split` again")
    validation = frame(snapshot / "validation.parquet")
    none = validation.iloc[:0]
    # The first two stages learn from the split's halves, the later ones from the whole labelled pool.
    unlabeled, text_image, replay = none, none, None
    if stage in ("simple", "hard"):
        labeled = frame(split / f"{stage}.parquet")
        replay = frame(split / "simple.parquet") if stage == "hard" else None
    else:
        labeled = frame(snapshot / "train_labeled.parquet")
        unlabeled = frame(snapshot / "train_unlabeled.parquet")
        text_image = frame(snapshot / "train_text_image.parquet") if stage == "multimodal" else none
    if labeled.empty and (replay is None or replay.empty):
        raise NothingToTrainOn(
            f"train-{stage}: the snapshot holds no labelled training sample: drop photos with mattes as kind "
            "pixel_labeled, then run ingest, snapshot and split"
        )
    # A photo without a caption teaches nothing in the text pool.
    text_image = text_image.loc[text_image["caption"].fillna("").str.strip() != "", :]
    return Data(labeled, replay, unlabeled, text_image, validation)


def epochs(common: CommonTrainParams, data: Data, step: int) -> float:
    """Return how often the stage has drawn each of its labelled photos after `step` steps."""
    replayed = 0 if data.replay is None or data.replay.empty else round(common.batch * common.replay_share)
    return step * (common.batch - replayed) / len(data.labeled) if len(data.labeled) else 0.0
