"""What is done beside the cycle: looking after labels and the catalog, measuring, making moments, going back.

Part of the interface of `mm_core.stages`, where callers find it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.core.errors import InputError, MattingError
from mm_core.core.layout import Layout
from mm_core.core.locks import removal_lock
from mm_core.core.params import Params
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.core.records import Report, digest_of, sha256_file, timed
from mm_core.export.lineage import models_with, training_labels
from mm_core.export.registry import Registry
from mm_core.export.runtime import OnnxPredictor
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.ingest.erasure import describe_photos, find_photos, forget_photos
from mm_core.ingest.snapshot import POOLS, read_pool
from mm_core.labeling.forget import forget_on_server, forget_tasks
from mm_core.labeling.label_studio_format import inbox
from mm_core.labeling.label_studio_local import connect
from mm_core.labeling.pull import news
from mm_core.labeling.push import undelivered
from mm_core.model.predict import TorchPredictor
from mm_core.moments.gallery_reader import read_gallery
from mm_core.moments.moments import make_moments
from mm_core.pinned_inputs import (
    Progress,
    catalog_of,
    frozen_inputs,
    in_the_cycle,
    pin,
    pin_when_idle,
    quiet,
    read_inputs,
    store_of,
    warm_start,
)
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.store import fetch_blob

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor


def labelling(params: Params, layout: Layout) -> dict[str, Any]:
    """How labelling stands: `server` and `project` (addresses, None without a server), `batches_waiting` in the outbox,
    counts of `tasks`, `finished`, `skipped`, `open`, and `oldest_open_days`."""
    server = connect(layout, people=params.label.people)
    about: dict[str, Any] = {"server": None, "batches_waiting": undelivered(layout, server)}
    return about | {"server": server.url, "project": server.link(), **server.summary()} if server else about


def finished_work(layout: Layout) -> str | None:
    """A digest of the work that waits to be collected; None where there is none. One small request to the server."""
    server = connect(layout)
    waiting = [news(layout, server) if server else None, *sorted(path.name for path in inbox(layout).glob("*.json"))]
    return digest_of(waiting)[:16] if any(waiting) else None


def plan_forgetting(layout: Layout, samples: Sequence[str], group: str | None = None) -> Report:
    """What `forget` would remove, without removing it.

    `report.tables`: `goes` (a row per photo that is still there), `models` and `remaining` as of `forget`.
    `report.facts["ids"]`: the ids, whole. Raises InputError as `mm_core.ingest.erasure.find_photos`.
    """
    with timed(Report("forget-plan")) as report:
        catalog = catalog_of(layout)
        ids = find_photos(catalog, samples, group)
        report.facts |= {"ids": ids, **_last_cycle_with(layout, ids)}
        report.tables["goes"] = describe_photos(catalog, ids)
        report.tables["models"] = models_with(layout.settings, set(ids))
        report.tables["remaining"] = _pages_with(layout, ids)
        report.metrics["forget/photos"] = len(ids)
    return report


def _pages_with(layout: Layout, ids: Sequence[str]) -> list[dict[str, str]]:
    """Reports that show one of the photos, which a person has to remove."""
    pages = [*layout.reports.rglob("*.html"), layout.html_report]
    shown = [str(page) for page in pages if page.is_file() and any(i in page.read_text() for i in ids)]
    return [{"what": "page", "where": page} for page in shown]


def _last_cycle_with(layout: Layout, ids: Sequence[str]) -> dict[str, str]:
    """A fact where snapshot and models of the last cycle, promoted or not, still hold some of the photos."""
    if not has_snapshot(layout):
        return {}
    frozen = {i for pool in POOLS for i in read_pool(layout.snapshot, pool)["sample_id"]}
    held = len(frozen & set(ids))
    return {"last_cycle": f"its snapshot holds {held} of them: no model of it is promoted any more"} if held else {}


@in_the_cycle
def forget(params: Params, layout: Layout, samples: Sequence[str], group: str | None = None) -> Report:
    """Removes photos from store, catalog and workspace for good, and names every model that learned from them.

    A cycle at work ends first: what it trains and promotes is then among the models. `samples`: ids or their
    beginnings, photo files, drops. `report.tables`: `forgotten` (ids), `models` (registry versions with aliases and
    pools), `remaining` (what a person has to remove: pages that show a photo, and drops that the producer keeps).
    """
    with (
        removal_lock(layout, "forget"),
        timed(Report("forget"), layout.root / "reports" / "forget.json") as report,
    ):
        ids = forget_photos(catalog_of(layout), store_of(layout), samples, group)
        # A killed measurement or rebuild keeps what it decoded in folders of its own.
        for cache in (layout.cache, *(layout.root / "scratch").rglob("cache")):
            PixelCache.clear(cache)
        report.tables["forgotten"] = [{"id": i} for i in ids]
        report.tables["models"] = models_with(layout.settings, set(ids))
        report.tables["remaining"] = _pages_with(layout, ids)
        report.facts |= _last_cycle_with(layout, ids)
        try:
            server = connect(layout)
            report.metrics["forget/tasks_on_server"] = forget_on_server(server, set(ids)) if server else 0
        except MattingError as error:  # the photos are gone from here: what is left must be told, not lost
            report.tables["remaining"].append({"what": f"tasks on Label Studio ({error})", "where": "forget again"})
        report.metrics |= {
            "forget/photos": len(ids),
            "forget/tasks": forget_tasks(layout, set(ids)),
            "forget/models": len(report.tables["models"]),
        }
        if layout.inputs.exists():  # the catalog versions that it named are gone
            pin(params, layout)
    return report


@in_the_cycle
def compact(params: Params, layout: Layout) -> Report:
    """Puts the catalog's small files together and removes data files of versions that nobody reads any more."""
    with removal_lock(layout, "catalog compact"), timed(Report("compact")) as report:
        catalog = catalog_of(layout)
        pinned = [read_inputs(layout)["catalog"]] if layout.inputs.exists() else []
        if has_snapshot(layout):
            pinned.append(frozen_inputs(layout)["catalog"])
        for table in SCHEMAS:
            report.metrics[f"compact/{table}/merged"] = catalog.compact(table)
            keep = [versions[table] for versions in pinned if table in versions]
            report.metrics[f"compact/{table}/removed"] = catalog.vacuum(table, keep=keep)
    return report


@in_the_cycle
def seed_noise(params: Params, layout: Layout, *, seeds: int = 3, progress: Progress = quiet) -> Report:
    """Trains this cycle's snapshot with other seeds: how far their scores spread is no gain to the gate."""
    from mm_core.experiments.seed_noise import measure_noise

    with timed(Report("gate-noise"), layout.root / "reports" / "gate-noise.json") as report:
        start = warm_start(params, layout, frozen_inputs(layout)["champion"])
        return measure_noise(params, layout, store_of(layout), report, start=start, seeds=seeds, progress=progress)


@in_the_cycle
def crossfit(params: Params, layout: Layout, *, folds: int = 3, progress: Progress = quiet) -> Report:
    """Judges a first model that has too few evaluation photos by cross-fitting; nothing ships by it."""
    from mm_core.experiments.crossfit import NAME, cross_fit, report_file

    with timed(Report(NAME), report_file(layout)) as report:
        return cross_fit(params, layout, store_of(layout), report, folds=folds, progress=progress)


@in_the_cycle
def label_compare(
    params: Params, layout: Layout, *, seeds: int = 1, fewest: int = 1, progress: Progress = quiet
) -> Report:
    """Trains on routed and on as many random photos that came since the snapshot's champion: what choosing is worth."""
    from mm_core.experiments.label_ablation import compare_labels

    # The snapshot's champion and not the pinned one, which may have learned from this very snapshot.
    champion = read_snapshot(layout)["champion"]
    store = store_of(layout)
    learned = training_labels(layout.settings, store, champion["version"]) if champion else {}
    if champion and not learned:
        raise InputError(f"the registry does not say what champion {champion['version']} learned from: nothing is new")
    with timed(Report("label-compare"), layout.stage_report("label-compare")) as report:
        start = warm_start(params, layout, champion)
        return compare_labels(
            params, catalog_of(layout), layout, store, learned, report,
            start=start, seeds=seeds, fewest=fewest, progress=progress,
        )  # fmt: skip


def compare_after_cycle(params: Params, layout: Layout, progress: Progress) -> str:
    """`label_compare` with few steps; returns why it was not done, else nothing. What was done before stays."""
    from mm_core.experiments.label_ablation import FEWEST, affordable

    seeds, path = params.label.compare_seeds, layout.stage_report("label-compare")
    if not seeds:
        return "label.compare_seeds is 0"
    steps = affordable(params)
    digest = read_snapshot(layout)["digest"]
    done = Report.read(path).facts if path.is_file() else {}
    if done.get("snapshot") == digest and done.get("seeds", 0) >= seeds and done["steps"] >= steps:
        return ""
    try:
        few = params.with_values(**{"train.simple.steps": steps})
        label_compare(few, layout, seeds=seeds, fewest=FEWEST, progress=progress)
        return ""
    except InputError as error:
        why = str(error)
    # Last and least of a cycle whose verdict stands: torch, pandas or a disk that fails here must not cost the page.
    # Nothing is hidden: the log has the traceback, the page the error, and `mm label compare` raises it.
    except Exception as error:  # noqa: BLE001
        logging.getLogger(__name__).exception("comparing routed with random labels failed; the cycle goes on")
        why = f"failed: {type(error).__name__}: {error}"
    Report("label-compare", facts={"snapshot": digest, "not_compared": why}).write(path)
    return why


def predictor_of(layout: Layout, model: str) -> tuple[Predictor | None, str]:
    """Who makes mattes along the photos' edges, and a name for it: `champion` or a registry version (its int8 files), a
    bundle's folder, a .safetensors file, or `none`. Raises InputError where there is no such model."""
    if model == "none":
        return None, "none"
    if model.endswith(".safetensors") and Path(model).is_file():
        return TorchPredictor(Path(model), layout.settings.device, guided=True), sha256_file(Path(model))[:12]
    if Path(model).is_dir():
        return OnnxPredictor.of_folder(Path(model), guided=True), Path(model).name
    pin = Registry(layout.settings).pin(model)
    if pin is None:
        raise InputError(
            f"--model {model}: the registry has no such version or alias; run a cycle first (`mm run`), or say `none`"
        )
    store = store_of(layout)
    return OnnxPredictor({n: fetch_blob(store, d) for n, d in pin["files"].items()}, guided=True), pin["version"]


def moments(
    params: Params, layout: Layout, gallery: Path, out: Path, *, model: str = "champion", progress: Progress = quiet
) -> Report:
    """Groups a folder of photos into moments, with titles and finished pieces; new photos cost what is new.

    Raises InputError where `out` lies in the gallery: the pieces would be its photos at the next run.
    """
    if out.resolve().is_relative_to(gallery.resolve()):
        raise InputError(f"{out} lies in the gallery {gallery}: choose a folder outside of it with -o")
    with timed(Report("moments"), layout.root / "reports" / "moments.json") as report:
        predictor, name = predictor_of(layout, model)
        found = read_gallery(gallery, params, layout, catalog_of(layout), progress=progress)
        bits = params.ingest.near_duplicate_bits
        return make_moments(
            found, out, params.moments, bits, report, predictor=predictor, model=name, progress=progress
        )


def rollback(params: Params, layout: Layout, version: str | None = None, *, reason: str = "") -> Report:
    """Makes an earlier champion champion again: the one before, or a named version.

    It waits for no cycle. A cycle at work, whose candidate was compared with the champion that falls, is not promoted.
    """
    with timed(Report("rollback"), layout.root / "reports" / "rollback.json") as report:
        Registry(layout.settings).rollback(version, reason or "no reason given", report)
    pin_when_idle(params, layout)
    return report


def anchor(params: Params, layout: Layout, version: str, *, reason: str) -> Report:
    """Makes a champion, present or former, the anchor of the next cycles' gate; on record with who and why."""
    with timed(Report("anchor"), layout.root / "reports" / "anchor.json") as report:
        Registry(layout.settings).move_anchor(version, reason, report)
    pin_when_idle(params, layout)
    return report


def reproduce(params: Params, layout: Layout, version: str, *, progress: Progress = quiet) -> Report:
    """Rebuilds a registered model from its recorded snapshot, params and seeds, and compares the weights."""
    from mm_core.export.reproduce import reproduce as rebuild

    with timed(Report("reproduce"), layout.root / "reports" / "reproduce.json") as report:
        return rebuild(layout, store_of(layout), version, report, progress=progress)
