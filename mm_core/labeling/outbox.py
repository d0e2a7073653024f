"""Write chosen photos to the outbox as Label Studio tasks, and record them in the catalog as sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.records import digest_of, write_bytes
from mm_core.imaging.images import load_rgb
from mm_core.labeling.label_studio_format import LABEL_CONFIG, make_task, outbox
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun

ROUTED = "routed"
"""Extractor name of the rows of `features` that record each sent photo with its batch, queue and reason."""
QUEUES = ("train", "suspect", "eval")
"""Kinds of tasks: a new training label; a review of a drop's suspect matte; a review of an eval photo's label."""


@dataclass(frozen=True)
class Outgoing:
    """One photo to send."""

    sample_id: str
    queue: str
    photo: Path
    why: str
    """Reason in one plain sentence."""
    score: float
    category: str | None = None
    """Category in the catalog, not a guessed one."""
    tags: Sequence[str] = ()
    start: Callable[[np.ndarray], np.ndarray] | None = None
    """Makes the initial matte, uint8 (H, W), of the upright photo; None starts from an empty canvas."""
    start_version: str = "none"
    """Model or label that the initial matte is from."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Factors of the score."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Further texts to record."""


def send(run: StorageRun, outgoing: Sequence[Outgoing], now: datetime) -> Path:
    """Write pictures, tasks under a hidden name and catalog rows, then publish the tasks file; return its path."""
    folder = outbox(run.layout)
    # The name depends on the contents, so a repeated run overwrites its own batch.
    batch = f"{now:%Y-%m-%d}-{digest_of(sorted((o.queue, o.sample_id) for o in outgoing))[:12]}"
    tasks, rows = [], []
    for done, item in enumerate(outgoing):
        rgb = load_rgb(item.photo)
        # Upright sRGB in a format that browsers display, so that the matte has the size of the picture.
        picture = folder / batch / f"{item.sample_id}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(picture, "JPEG", quality=95, subsampling=0)
        shown = {"queue": item.queue, "score": round(item.score, 4), "why": item.why, "batch": batch}
        shown |= {"tags": ", ".join(item.tags)} | ({"category": item.category} if item.category else {})
        url = f"/data/local-files/?d={batch}/{picture.name}"
        alpha = item.start(rgb) if item.start else None
        tasks.append(make_task(item.sample_id, url, shown, alpha, item.category, item.start_version))
        texts = {"batch": batch, "queue": item.queue, "model": item.start_version, "why": item.why}
        texts |= {"category": item.category or ""}
        rows.append(
            {
                "sample_id": item.sample_id,
                "extractor": ROUTED,
                "version": batch,
                "numbers": {**item.numbers, "score": item.score},
                "texts": texts | dict(item.texts),
                "computed_at": now.isoformat(timespec="seconds"),
            }
        )
        run.progress("tasks", done + 1, len(outgoing))
    write_bytes(folder / "label_config.xml", LABEL_CONFIG.encode())
    # The file appears under its real name only after the rows are in the catalog (see `finish_pending`).
    pending, ready = folder / f".{batch}.pending", folder / f"{batch}.json"
    write_bytes(pending, json.dumps(tasks, separators=(",", ":")).encode())
    run.catalog.upsert("features", rows)
    pending.replace(ready)
    return ready


def finish_pending(catalog: Catalog, layout: Layout) -> None:
    """Complete a killed run's batch: publish its tasks if its rows are in the catalog, otherwise delete it."""
    for path in sorted(outbox(layout).glob(".*.pending")):
        batch = path.name[1 : -len(".pending")]
        filters = [("extractor", "=", ROUTED), ("version", "=", batch)]
        if len(catalog.read("features", columns=["sample_id"], filters=filters)):
            path.replace(path.with_name(f"{batch}.json"))
        else:
            # Without rows the photos count as not sent, and may be chosen again.
            shutil.rmtree(path.with_name(batch), ignore_errors=True)
            path.unlink()
