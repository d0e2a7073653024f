"""Writes chosen photos to the outbox as Label Studio tasks, and to the catalog as sent."""

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

ROUTED = "routed"
"""Extractor of the rows of `features` that say which photo was sent, in which batch and queue, and why."""
QUEUES = ("train", "suspect", "eval")
"""What a task is for: a new training label; a look at a drop's suspect matte; a look at an eval photo's label."""


@dataclass(frozen=True)
class Outgoing:
    """One photo on its way to people."""

    sample_id: str
    queue: str
    photo: Path
    why: str
    """One plain sentence."""
    score: float
    category: str | None = None
    """As the catalog has it, not as guessed."""
    tags: Sequence[str] = ()
    start: Callable[[np.ndarray], np.ndarray] | None = None
    """Makes the matte to begin with, uint8 (H, W), of the upright photo; None: an empty canvas."""
    start_version: str = "none"
    """Whose matte that is."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The parts of the score."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """More to remember."""


def send(
    outgoing: Sequence[Outgoing],
    catalog: Catalog,
    layout: Layout,
    now: datetime,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Pictures, then the tasks under a hidden name, then the rows, then the tasks' real name; returns their file."""
    folder = outbox(layout)
    batch = f"{now:%Y-%m-%d}-{digest_of(sorted((o.queue, o.sample_id) for o in outgoing))[:12]}"
    tasks, rows = [], []
    for done, one in enumerate(outgoing):
        rgb = load_rgb(one.photo)
        # Upright, sRGB and in a format that browsers show: the matte's size is then the picture's.
        picture = folder / batch / f"{one.sample_id}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(picture, "JPEG", quality=95, subsampling=0)
        shown = {"queue": one.queue, "score": round(one.score, 4), "why": one.why, "batch": batch}
        shown |= {"tags": ", ".join(one.tags)} | ({"category": one.category} if one.category else {})
        url = f"/data/local-files/?d={batch}/{picture.name}"
        alpha = one.start(rgb) if one.start else None
        tasks.append(make_task(one.sample_id, url, shown, alpha, one.category, one.start_version))
        texts = {"batch": batch, "queue": one.queue, "model": one.start_version, "why": one.why}
        texts |= {"category": one.category or ""}
        rows.append(
            {
                "sample_id": one.sample_id,
                "extractor": ROUTED,
                "version": batch,
                "numbers": {**one.numbers, "score": one.score},
                "texts": texts | dict(one.texts),
                "computed_at": now.isoformat(timespec="seconds"),
            }
        )
        progress("tasks", done + 1, len(outgoing))
    write_bytes(folder / "label_config.xml", LABEL_CONFIG.encode())
    pending, ready = folder / f".{batch}.pending", folder / f"{batch}.json"
    write_bytes(pending, json.dumps(tasks, separators=(",", ":")).encode())
    catalog.upsert("features", rows)
    pending.replace(ready)
    return ready


def finish_pending(catalog: Catalog, layout: Layout) -> None:
    """A killed run's batch: where its rows are in, its tasks get their name; where not, it never was."""
    for path in sorted(outbox(layout).glob(".*.pending")):
        batch = path.name[1 : -len(".pending")]
        filters = [("extractor", "=", ROUTED), ("version", "=", batch)]
        if len(catalog.read("features", columns=["sample_id"], filters=filters)):
            path.replace(path.with_name(f"{batch}.json"))
        else:
            shutil.rmtree(path.with_name(batch), ignore_errors=True)
            path.unlink()
