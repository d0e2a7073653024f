"""Small pictures of photos and predicted mattes: the best and the worst photo of each category."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mm_core.core.records import ALL_CATEGORIES, Report, write_bytes

SIDE = 256
"""Long side of a picture in pixels."""


@dataclass(frozen=True)
class Example:
    """A photo of the eval set with its true matte and all predicted mattes."""

    category: str
    rank: str
    """`best` or `worst` by the candidate's MSE; `regression` for the largest increase in MSE over the champion."""
    sample_id: str
    mse: float
    photo: np.ndarray
    """uint8 (H, W, 3)."""
    mattes: Mapping[str, np.ndarray]
    """Title (`truth`, then models) → float (H, W), [0, 1]."""


def choose(per_image: pd.DataFrame) -> list[tuple[str, str, str, float]]:
    """Return the photos of smallest and largest MSE in each category.

    Args:
        per_image: Rows of one model with the columns category, sample_id and mse.

    Returns:
        (category, rank, sample id, MSE) per photo. A category of one photo has only a `worst`.
    """
    found = []
    for category in ALL_CATEGORIES:
        part = per_image.loc[per_image["category"] == category].sort_values(["mse", "sample_id"])
        # A single photo is shown once, as the worst.
        places = {"best": 0, "worst": -1} if len(part) > 1 else {"worst": -1} if len(part) else {}
        for rank, place in places.items():
            found.append((category, rank, str(part["sample_id"].iloc[place]), float(part["mse"].iloc[place])))
    return found


def choose_regressions(candidate: pd.DataFrame, champion: pd.DataFrame) -> list[tuple[str, str, str, float]]:
    """Return the photo of each category with the largest increase in MSE over the champion.

    Args:
        candidate: Per-image rows of the candidate.
        champion: Per-image rows of the champion.

    Returns:
        (category, "regression", sample id, MSE) per photo; categories without an increase are missing.
    """
    # Pair the rows of both models by photo.
    both = candidate.merge(champion, on="sample_id", suffixes=("", "_before"))
    both["loss"] = both["mse"] - both["mse_before"]
    found = []
    for category in ALL_CATEGORIES:
        part = both.loc[(both["category"] == category) & (both["loss"] > 0)]
        if len(part):
            worst = part.sort_values(["loss", "sample_id"], ascending=[False, True]).iloc[0]
            found.append((category, "regression", str(worst["sample_id"]), float(worst["mse"])))
    return found


def write_examples(examples: Iterable[Example], folder: Path, report: Report) -> None:
    """Write one PNG per picture, `<category>-<rank>-<title>.png`, and one strip of all pictures per example.

    The title is `photo`, `truth` or a model. `report.tables["mattes"]` gets one row per example with its file names.
    `report.pictures` gets the strips.
    """
    # Remove the pictures of the previous evaluation, which may have other categories.
    shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for example in examples:
        stem = f"{example.category}-{example.rank}"
        pictures = {"photo": small(example.photo)}
        pictures |= {title: _grey(matte) for title, matte in example.mattes.items()}
        files = {title: f"{stem}-{title}.png" for title in pictures}
        for title, picture in pictures.items():
            write_png(folder / files[title], picture)
        # A white gap of 4 pixels separates the pictures of a strip.
        strip = np.concatenate([np.pad(p, ((0, 0), (0, 4), (0, 0)), constant_values=255) for p in pictures.values()], 1)
        write_png(folder / f"{stem}.png", strip)
        report.pictures[f"{example.category}, {example.rank}"] = str(folder / f"{stem}.png")
        about = {"category": example.category, "rank": example.rank, "sample_id": example.sample_id}
        rows.append(about | {"mse": example.mse, "files": files})
    report.tables["mattes"] = rows


def small(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return the picture, uint8 (H, W, …), scaled down to a long side of at most `side` pixels."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) RGB array as a PNG, atomically."""
    write_bytes(path, cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())


def _grey(matte: np.ndarray) -> np.ndarray:
    # NaN becomes black, so that a broken matte still gets a picture.
    grey = np.rint(np.nan_to_num(np.clip(matte, 0, 1)) * 255).astype(np.uint8)
    return np.repeat(small(grey)[..., None], 3, axis=2)
