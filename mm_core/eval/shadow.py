"""Shadow run: candidate against champion on the newest unlabelled photos, to find visible changes.

It needs no true mattes. A large disagreement is a reason for a review, not a proof of a loss. It uses the int8 files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict, cast

import numpy as np
import pandas as pd

from mm_core.core.errors import BlobDamaged, BlobNotFound
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.records import Report, parse_record, write_json
from mm_core.eval.examples import small, write_png
from mm_core.eval.rows import PhotoRow, ShadowRow
from mm_core.imaging.images import UnreadableImage, load_rgb
from mm_core.model.predict import Predictor, decoders_for
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import fetch_blob

SIDE = 512
"""Long side, in pixels, at which mattes are compared."""
SHOWN = 6
"""Number of photos in the report, those of largest difference."""
AT_ONCE = 8
"""Photos per batch."""


def newest_unlabelled(catalog: Catalog, versions: Mapping[str, int], count: int) -> pd.DataFrame:
    """Return the newest samples without a label.

    Args:
        catalog: The catalog.
        versions: Table → pinned version of the catalog.
        count: Largest number of samples.

    Returns:
        Columns id, category and accepted_at, newest first.
    """
    # Withdrawn labels do not count as labels. The engine keeps only the newest rows while it sorts.
    newest = catalog.query(
        "SELECT id, category, accepted_at FROM samples"
        " WHERE NOT EXISTS (SELECT 1 FROM labels WHERE labels.sample_id = samples.id AND labels.withdrawn_at IS NULL)"
        f" ORDER BY accepted_at DESC NULLS LAST, id DESC LIMIT {int(count)}",
        versions,
    )
    return newest if len(newest) else pd.DataFrame(columns=["id", "category", "accepted_at"])


def run_shadow(
    run: StorageRun,
    photos: pd.DataFrame,
    candidate: Predictor,
    champion: Predictor,
    about: Mapping[str, object],
    report: Report,
) -> None:
    """Write the mean absolute difference of both mattes per photo, in [0, 1], to `layout.shadow`.

    The photos of largest difference become strips (photo, champion, candidate, difference) in `report.pictures`.
    `report.tables["shadow"]` lists them. Unreadable photos are skipped and counted.

    Args:
        run: Params, workspace, storage and progress.
        photos: Rows of `newest_unlabelled`.
        candidate: The int8 candidate.
        champion: The int8 champion.
        about: Identity of the judged files, written with the result.
        report: Receives pictures, tables and metrics.
    """
    rows = cast(list[PhotoRow], list(photos.itertuples(index=False)))
    done: list[ShadowRow] = []
    kept: list[tuple[float, str, np.ndarray, np.ndarray, np.ndarray]] = []
    folder = run.layout.evaluation / "shadow"
    # Remove the strips of the previous run.
    shutil.rmtree(folder, ignore_errors=True)

    def read(row: PhotoRow) -> np.ndarray | None:
        try:
            return load_rgb(fetch_blob(run.store, row.id), SIDE)
        except (UnreadableImage, BlobDamaged, BlobNotFound):
            return None

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(rows), AT_ONCE):
            # Read, predict and compare one batch at a time, which bounds the memory.
            these = rows[start : start + AT_ONCE]
            part = [(row, photo) for row, photo in zip(these, pool.map(read, these), strict=True) if photo is not None]
            images, categories = [photo for _, photo in part], [row.category for row, _ in part]
            older, newer = (
                model.predict(images, decoders_for(model, images, categories)) for model in (champion, candidate)
            )
            for (row, photo), before, after in zip(part, older, newer, strict=True):
                difference = float(np.abs(after - before).mean())
                done.append({"sample_id": row.id, "category": row.category, "difference": difference})
                kept.append((difference, row.id, photo, before, after))
            # Keep the pictures of the largest differences only.
            kept = sorted(kept, key=lambda item: (-item[0], item[1]))[:SHOWN]
            run.progress("shadow", min(start + AT_ONCE, len(rows)), len(rows))
    for place, (difference, _, photo, before, after) in enumerate(kept):
        # Each strip is photo, champion, candidate and their absolute difference.
        pictures = [photo, *(grey(matte) for matte in (before, after, np.abs(after - before)))]
        strip = np.concatenate([np.pad(small(p), ((0, 0), (0, 4), (0, 0)), constant_values=255) for p in pictures], 1)
        path = folder / f"{place}.png"
        write_png(path, strip)
        report.pictures[f"shadow {place + 1}: champion, candidate, difference {difference:.3f}"] = str(path)
    write_json(run.layout.shadow, {"about": dict(about), "photos": done, "unreadable": len(rows) - len(done)})
    report.tables["shadow"] = sorted(done, key=lambda row: -row["difference"])[:SHOWN]
    report.metrics["shadow/photos"] = float(len(done))
    if done:
        report.metrics["shadow/mean_difference"] = float(np.mean([row["difference"] for row in done]))


class _Shadow(TypedDict):
    """The record of a run over shadow photos."""

    about: object
    """Identity of the judged files."""
    photos: list[dict[str, float]]


def disagreement(layout: Layout, about: Mapping[str, object], difference: float) -> tuple[float, int] | None:
    """Return the share of shadow photos with a large difference of the mattes, and the number of photos.

    Args:
        layout: The workspace.
        about: Identity of the judged files.
        difference: Mean absolute difference above which a photo counts, in [0, 1].

    Returns:
        (share in [0, 1], photos); None without a shadow run of the same files.
    """
    if not has_file(layout.shadow):
        return None
    content, remedy = layout.shadow.read_bytes(), "run `mm evaluate` again"
    found = parse_record(content, _Shadow, layout.shadow, remedy, ("about", "photos"))
    # The JSON round trip turns tuples into lists, as in the stored identity.
    if found["about"] != json.loads(json.dumps(dict(about))) or not found["photos"]:
        return None
    values = np.array([row["difference"] for row in found["photos"]])
    return float((values > difference).mean()), len(values)


def grey(matte: np.ndarray) -> np.ndarray:
    """Convert a matte (H, W) in [0, 1] to uint8 (H, W, 3)."""
    return np.repeat(np.rint(np.clip(matte, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
