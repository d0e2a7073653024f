"""Chooses the photos that people should label, and writes them out as Label Studio tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from mm_core.catalog import Catalog
from mm_core.data.images import load_rgb
from mm_core.data.snapshot import place, stable_share
from mm_core.labeling.label_studio import LABEL_CONFIG, make_task, outbox
from mm_core.layout import Layout
from mm_core.params import RouteParams, SnapshotParams
from mm_core.records import Report, decoder_of, digest_of, write_bytes
from mm_core.store import Store, fetch_blob

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor

ROUTED = "routed"
"""Extractor of the rows of `features` that say which photo was sent, in which batch, and why."""
LOOKED_AT = 20
"""The champion looks at this many times the budget of photos: what one run costs does not grow with the catalog."""
LOOK_SIDE = 512
"""Long side, in pixels, at which the champion's uncertainty is measured."""
SOFT = (0.05, 0.95)


def route_hard(
    params: RouteParams,
    catalog: Catalog,
    store: Store,
    inputs: Mapping[str, Any],
    layout: Layout,
    report: Report,
    *,
    progress: Callable[[str, int, int], None],
) -> Report:
    """Writes up to `params.budget` photos as tasks to `labels/outbox/<batch>.json`, its pictures to `<batch>/`.

    A candidate is a photo without a label that was not sent before and is neither an eval photo nor near one. Each
    group sends one at most, groups nobody has seen first. The score is the mean of two percentile ranks over the
    candidates: with a champion, of the entropy of its matte's soft band and of the difference that mirroring the photo
    makes; without one, of sharpness and of light (few clipped pixels). The score's parts go to `features`.
    Killed at any point, the next run finishes or forgets the unfinished batch, so that no photo is sent twice.
    """
    _finish_pending(catalog, layout)
    found = candidates(catalog, _snapshot_params(layout))
    champion = inputs.get("champion")
    looked = _draw(found, LOOKED_AT * params.budget)
    predictor = _predictor(champion, store, layout) if champion and len(looked) else None
    parts = _uncertainty(looked, store, predictor, progress) if predictor else _quality(looked, catalog)
    chosen = choose(looked, parts, params.budget)
    report.metrics |= {"route/candidates": len(found), "route/looked_at": len(looked), "route/chosen": len(chosen)}
    shown = chosen[["sample_id", "group", "category", "score", *parts.columns]].astype(object)
    report.tables["routed"] = shown.where(shown.notna(), None).to_dict("records")
    if len(chosen):
        version = f"{champion['version']}:{champion['digest'][:12]}" if champion else "none"
        tasks = _send(chosen, list(parts), version, predictor, catalog, store, layout, progress)
        report.facts |= {"tasks": str(tasks), "model": version}
    return report


def candidates(catalog: Catalog, params: SnapshotParams) -> Any:
    """DataFrame of the photos that may be sent, with sample_id, category, group, kind and `seen`: whether one of the
    group is labelled or was sent. In order of sample ids."""
    samples = catalog.read("samples")
    if samples.empty:
        return pd.DataFrame(columns=["sample_id", "category", "group", "kind", "seen"])
    table: Any = place(params, samples, catalog.read("labels"))
    features = catalog.read("features", columns=["sample_id", "extractor"])
    sent = table["sample_id"].isin(features.loc[features["extractor"] == ROUTED, "sample_id"])
    labelled = table["alpha_sha256"].notna()
    table["seen"] = (sent | labelled).groupby(table["group"]).transform("any")
    free = (table["train_unlabeled"] | table["train_text_image"]) & ~labelled & ~sent
    return table.loc[free, ["sample_id", "category", "group", "kind", "seen"]].reset_index(drop=True)


def choose(looked: Any, parts: pd.DataFrame, budget: int) -> Any:
    """The `budget` rows of highest score, one per group, unseen groups first; with the columns of `parts` and `score`.

    `parts` has one column per signal, higher = rather sent, in the rows' order. Ties go by sample id.
    """
    table = looked.assign(**{name: parts[name].to_numpy() for name in parts})
    table["score"] = parts.rank(pct=True).mean(axis=1).to_numpy() if len(table) else np.zeros(0)
    table = table.sort_values(["seen", "score", "sample_id"], ascending=[True, False, True])
    return table.drop_duplicates("group").head(budget).reset_index(drop=True)


def band_entropy(alpha: np.ndarray) -> float:
    """Binary entropy in bits of the soft band (0.05, 0.95) of a matte (H, W), averaged over the whole picture."""
    soft = alpha[(alpha > SOFT[0]) & (alpha < SOFT[1])].astype(np.float64)
    return float(-(soft * np.log2(soft) + (1 - soft) * np.log2(1 - soft)).sum() / alpha.size)


def _draw(found: Any, limit: int) -> Any:
    """At most `limit` rows: one of each group before a second of any, unseen groups first, then by a stable hash."""
    if not len(found):
        return found
    table = found.assign(order=[stable_share(i, "route") for i in found["sample_id"]]).sort_values("order")
    table["turn"] = table.groupby("group").cumcount()
    return table.sort_values(["turn", "seen", "order"]).head(limit).sort_values("sample_id", ignore_index=True)


def _uncertainty(
    looked: Any, store: Store, predictor: Predictor, progress: Callable[[str, int, int], None]
) -> pd.DataFrame:
    rows = []
    for done, (sample, category) in enumerate(zip(looked["sample_id"], looked["category"], strict=True)):
        rgb = load_rgb(fetch_blob(store, sample), LOOK_SIDE)
        decoder = decoder_of(category)
        alpha, mirrored = predictor.predict([rgb, np.ascontiguousarray(rgb[:, ::-1])], [decoder, decoder])
        difference = float(np.square(alpha - mirrored[:, ::-1], dtype=np.float64).mean()) / 2
        rows.append({"entropy": band_entropy(alpha), "flip_variance": difference})
        progress("uncertainty", done + 1, len(looked))
    return pd.DataFrame(rows, columns=["entropy", "flip_variance"])


def _quality(looked: Any, catalog: Catalog) -> pd.DataFrame:
    """Without a model: good photos first. A photo that has not been structured yet counts as the worst."""
    features = catalog.read("features", columns=["sample_id", "extractor", "numbers"])
    photo = features[features["extractor"] == "photo"]
    numbers = {sample: dict(found) for sample, found in zip(photo["sample_id"], photo["numbers"], strict=True)}
    rows = [numbers.get(sample, {}) for sample in looked["sample_id"]]
    return pd.DataFrame(
        {
            "sharpness": [row.get("sharpness", 0.0) for row in rows],
            "light": [1 - row.get("dark_share", 1.0) - row.get("bright_share", 0.0) for row in rows],
        }
    )


def _send(
    chosen: Any,
    parts: Sequence[str],
    version: str,
    predictor: Predictor | None,
    catalog: Catalog,
    store: Store,
    layout: Layout,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Pictures, then the tasks under a hidden name, then the rows, then the tasks' real name."""
    folder = outbox(layout)
    batch = f"{datetime.now(UTC):%Y-%m-%d}-{digest_of(sorted(chosen['sample_id']))[:12]}"
    tasks, rows = [], []
    for done, row in enumerate(chosen.to_dict("records")):
        category = row["category"] if isinstance(row["category"], str) else None
        rgb = load_rgb(fetch_blob(store, row["sample_id"]))
        # Upright, sRGB and in a format that browsers show: the matte's size is then the picture's.
        picture = folder / batch / f"{row['sample_id']}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(picture, "JPEG", quality=95, subsampling=0)
        alpha = None
        if predictor:
            alpha = np.rint(predictor.predict([rgb], [decoder_of(category)])[0] * 255).astype(np.uint8)
        shown = {"score": round(float(row["score"]), 4), "batch": batch} | ({"category": category} if category else {})
        url = f"/data/local-files/?d={batch}/{picture.name}"
        tasks.append(make_task(row["sample_id"], url, shown, alpha, category, version))
        rows.append(
            {
                "sample_id": row["sample_id"],
                "extractor": ROUTED,
                "version": batch,
                "numbers": {name: float(row[name]) for name in (*parts, "score")},
                "texts": {"batch": batch, "model": version},
                "computed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        progress("tasks", done + 1, len(chosen))
    write_bytes(folder / "label_config.xml", LABEL_CONFIG.encode())
    pending, ready = folder / f".{batch}.pending", folder / f"{batch}.json"
    write_bytes(pending, json.dumps(tasks, separators=(",", ":")).encode())
    catalog.upsert("features", rows)
    pending.replace(ready)
    return ready


def _finish_pending(catalog: Catalog, layout: Layout) -> None:
    """A killed run's batch: where its rows are in, its tasks get their name; where not, it never was."""
    pending = sorted(outbox(layout).glob(".*.pending"))
    if not pending:
        return
    features = catalog.read("features", columns=["extractor", "version"])
    recorded = set(features.loc[features["extractor"] == ROUTED, "version"])
    for path in pending:
        batch = path.name[1 : -len(".pending")]
        if batch in recorded:
            path.replace(path.with_name(f"{batch}.json"))
        else:
            shutil.rmtree(path.with_name(batch), ignore_errors=True)
            path.unlink()


def _predictor(champion: Mapping[str, Any], store: Store, layout: Layout) -> Predictor:
    from mm_core.model.predict import TorchPredictor

    return TorchPredictor(fetch_blob(store, champion["digest"]), layout.settings.device)


def _snapshot_params(layout: Layout) -> SnapshotParams:
    """Those of the last snapshot, so that its eval photos are known; the defaults before the first."""
    path = layout.snapshot / "snapshot.json"
    return SnapshotParams.model_validate(json.loads(path.read_text())["params"] if path.is_file() else {})
