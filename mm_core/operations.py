"""Operations outside the cycle: labels, catalog, measurements, moments, rollback.

Each takes a `Run` like a stage. Those that change what a cycle reads hold the cycle lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from mm_core.core.errors import InputError, MattingError
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.locks import removal_lock
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.core.records import Report, digest_of, sha256_file, timed
from mm_core.export.lineage import models_with, starts_with
from mm_core.export.registry import Registry
from mm_core.export.runtime import OnnxPredictor
from mm_core.export.start_weights import withdraw_starts
from mm_core.ingest.erasure import clear_decoded, describe_photos, find_photos, forget_photos
from mm_core.ingest.inbox import MANIFESTS
from mm_core.ingest.learnt import mark_scenes
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.labeling.forget import forget_on_server, forget_tasks
from mm_core.labeling.label_studio_format import inbox
from mm_core.labeling.label_studio_local import connect
from mm_core.labeling.pull import news
from mm_core.labeling.push import undelivered
from mm_core.model.predict import TorchPredictor
from mm_core.moments.gallery_reader import read_gallery
from mm_core.moments.moments import make_moments
from mm_core.pinned_inputs import (
    Run,
    frozen_inputs,
    in_the_cycle,
    pin,
    pin_when_idle,
    read_inputs,
    warm_start,
)
from mm_core.storage.run import store_of
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.store import fetch_blob

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor


class LabellingStatus(TypedDict):
    """The status of labelling; without a server only the outbox is known."""

    server: str | None
    """Address."""
    batches_waiting: int
    """Batches of the outbox that the server lacks."""
    project: NotRequired[str]
    """Address."""
    tasks: NotRequired[int]
    finished: NotRequired[int]
    skipped: NotRequired[int]
    open: NotRequired[int]
    oldest_open_days: NotRequired[float | None]
    """Age of the oldest untouched task; None if every task was touched."""


def labelling(run: Run) -> LabellingStatus:
    """Return the status of labelling."""
    server = connect(run.layout, people=run.params.label.people)
    waiting = undelivered(run.layout, server)
    if server is None:
        return {"server": None, "batches_waiting": waiting}
    return {"server": server.url, "batches_waiting": waiting, "project": server.link(), **server.summary()}


def finished_work(layout: Layout) -> str | None:
    """Return a digest of the finished labels to collect, or None. It makes one small request to the server."""
    server = connect(layout)
    # Both sources count: changes on the server, and export files in the inbox.
    waiting = [news(layout, server) if server else None, *sorted(path.name for path in inbox(layout).glob("*.json"))]
    return digest_of(waiting)[:16] if any(waiting) else None


def plan_forgetting(run: Run, samples: Sequence[str], group: str | None = None) -> Report:
    """Report the photos and models that `forget` would affect, without removing anything.

    Returns:
        A report. Table `goes` has a row per existing photo; `models` and `remaining` are those of `forget`.
        `facts["ids"]` has the full ids.

    Raises:
        InputError: `mm_core.ingest.erasure.find_photos` finds no such photo.
    """
    with timed(Report("forget-plan")) as report:
        catalog = run.catalog
        ids = find_photos(catalog, samples, group)
        report.facts |= {"ids": ids, **_last_cycle_with(run.layout, ids)}
        report.tables["goes"] = describe_photos(catalog, ids)
        report.tables["models"] = models_with(run.layout.settings, set(ids))
        report.tables["remaining"] = _remaining(run, ids)
        report.metrics["forget/photos"] = len(ids)
    return report


def _remaining(run: Run, ids: Sequence[str]) -> list[dict[str, str]]:
    """Return the reports and the drops in the inbox that contain one of the photos; a person has to remove them.

    The drops are found by the rows of the photos, so the call must precede the removal.
    """
    layout, inbox = run.layout, run.inbox
    copies = [f"quarantine/{i}" for i in ids]
    named = (("samples", "id", list(ids)), ("rejects", "sample_id", list(ids)), ("rejects", "where", copies))
    rows = [run.catalog.read(t, columns=["kind", "batch"], filters=[(c, "in", values)]) for t, c, values in named]
    drops = sorted({(row["kind"], row["batch"]) for frame in rows for row in frame.to_dict("records")})
    there = [f"{k}/{b}" for k, b in drops if any(inbox.exists(f"{k}/{b}/{manifest}") for manifest in MANIFESTS)]
    pages = [*layout.reports.rglob("*.html"), layout.html_report, *sorted((layout.root / "reports").glob("*.json"))]
    shown = [str(page) for page in pages if page.is_file() and any(i in page.read_text() for i in ids)]
    # The record of a killed call is written again.
    shown = [page for page in shown if not page.endswith("/forget.json")]
    return [{"what": "page", "where": page} for page in shown] + [
        {"what": "drop", "where": f"{inbox.url}/{drop}"} for drop in there
    ]


def _last_cycle_with(layout: Layout, ids: Sequence[str]) -> dict[str, str]:
    """Return a fact if the snapshot of the last cycle contains some of the photos, otherwise an empty dict."""
    if not has_snapshot(layout):
        return {}
    # The snapshot lists the photos of every pool, used for training or not.
    frozen = {i for pool in POOLS for i in read_pool(layout.snapshot, pool)["sample_id"]}
    held = len(frozen & set(ids))
    return {"last_cycle": f"its snapshot holds {held} of them: no model of it is promoted any more"} if held else {}


@in_the_cycle
def forget(run: Run, samples: Sequence[str]) -> Report:
    """Remove photos permanently from store, catalog and workspace, and list every model trained on them.

    A running cycle ends first, so the list includes its model.

    Args:
        run: Params, workspace, storage and progress.
        samples: Ids or their first digits, photo files, or drops.

    Returns:
        A report with the tables `forgotten` (ids), `models` (registry versions with aliases and pools) and `remaining`
        (pages and drops that a person has to remove).
    """
    layout = run.layout
    with (
        removal_lock(layout, "forget"),
        timed(Report("forget"), layout.root / "reports" / "forget.json") as report,
    ):
        going = find_photos(run.catalog, samples)
        report.tables["remaining"] = _remaining(run, going)
        mark_scenes(run.catalog, going, run.params.snapshot.near_duplicate_bits)
        # Remove the photos first. The other steps only remove copies and references.
        ids = forget_photos(run.catalog, run.store, samples)
        clear_decoded(layout)
        report.tables["forgotten"] = [{"id": i} for i in ids]
        report.tables["models"] = models_with(layout.settings, set(ids))
        # No later cycle starts from weights that learnt from these photos.
        withdraw_starts(run.store, starts_with(run.store, set(ids)))
        report.facts |= _last_cycle_with(layout, ids)
        try:
            server = connect(layout)
            report.metrics["forget/tasks_on_server"] = forget_on_server(server, set(ids)) if server else 0
        except MattingError as error:  # the local photos are removed: report the rest instead of failing
            again = {"what": f"tasks on Label Studio ({error})", "where": "forget again"}
            report.tables["remaining"] = [*report.tables["remaining"], again]
        report.metrics |= {
            "forget/photos": len(ids),
            "forget/tasks": forget_tasks(layout, set(ids)),
            "forget/models": len(report.tables["models"]),
        }
        if has_file(layout.inputs):  # the pinned catalog versions no longer exist
            pin(run)
    return report


@in_the_cycle
def compact(run: Run) -> Report:
    """Merge the catalog's small files and remove the data files of unused versions."""
    layout = run.layout
    with removal_lock(layout, "catalog compact"), timed(Report("compact")) as report:
        catalog = run.catalog
        # Keep the versions that the next cycle and the present one are pinned to.
        pinned = [read_inputs(layout)["catalog"]] if has_file(layout.inputs) else []
        if has_snapshot(layout):
            pinned.append(read_snapshot(layout)["catalog"])
        for table in SCHEMAS:
            report.metrics[f"compact/{table}/merged"] = catalog.compact(table)
            keep = [versions[table] for versions in pinned if table in versions]
            report.metrics[f"compact/{table}/removed"] = catalog.vacuum(table, keep=keep)
    return report


@in_the_cycle
def seed_noise(run: Run, *, seeds: int = 3) -> Report:
    """Train on this cycle's snapshot with other seeds and measure the spread of the scores."""
    from mm_core.experiments.seed_noise import measure_noise

    with timed(Report("gate-noise"), run.layout.root / "reports" / "gate-noise.json") as report:
        start = warm_start(run, frozen_inputs(run.layout))
        return measure_noise(run, report, start=start, seeds=seeds)


@in_the_cycle
def crossfit(run: Run, *, folds: int = 3) -> Report:
    """Judge a first model with too few eval photos by cross-fitting; it never leads to a release."""
    from mm_core.experiments.crossfit import NAME, cross_fit, report_file

    with timed(Report(NAME), report_file(run.layout)) as report:
        return cross_fit(run, report, folds=folds)


def predictor_of(layout: Layout, model: str) -> tuple[Predictor | None, str]:
    """Return a predictor that refines mattes at the photos' edges, and its name.

    Args:
        layout: The workspace with registry and store.
        model: `champion` or a registry version (its int8 files), a bundle's folder, a .safetensors file, or `none`.

    Returns:
        The predictor (None for `none`) and the version, folder or digest that identifies it.

    Raises:
        InputError: The model does not exist.
    """
    if model == "none":
        return None, "none"
    # A file or a folder has priority over a registry name.
    if model.endswith(".safetensors") and Path(model).is_file():
        return TorchPredictor(Path(model), layout.settings.device, guided=True), sha256_file(Path(model))[:12]
    if Path(model).is_dir():
        return OnnxPredictor.of_folder(Path(model), guided=True), Path(model).name
    if model.endswith(".safetensors"):
        raise InputError(f"--model {model}: no such file")
    # The registry names the digests of the int8 files; the store has the files.
    registry = Registry(layout.settings)
    pin = registry.pin(model)
    if pin is None:
        raise InputError(f"--model {model}: no such version or alias: {registry.describe_versions()}")
    store = store_of(layout)
    return OnnxPredictor({n: fetch_blob(store, d) for n, d in pin["files"].items()}, guided=True), pin["version"]


def moments(run: Run, gallery: Path, out: Path, *, model: str = "champion") -> Report:
    """Group a folder of photos into moments, with titles and finished pieces; only new photos are computed.

    Raises:
        InputError: `out` is inside the gallery, where the next run would read the pieces as photos, or inside a folder
            of the system.
    """
    run.layout.require_free(out)
    if out.resolve().is_relative_to(gallery.resolve()):
        raise InputError(f"{out} lies in the gallery {gallery}: choose a folder outside of it with -o")
    with timed(Report("moments"), run.layout.root / "reports" / "moments.json") as report:
        # Without a model (`none`), the pieces use no mattes.
        predictor, name = predictor_of(run.layout, model)
        found = read_gallery(run, gallery)
        return make_moments(run, found, out, report, predictor=predictor, model=name)


def rollback(run: Run, version: str | None = None, *, reason: str = "") -> Report:
    """Make an earlier champion the champion again: the previous one, or a named version.

    It does not wait for a running cycle. The candidate of that cycle is not promoted, because it was compared with the
    former champion.
    """
    with timed(Report("rollback"), run.layout.root / "reports" / "rollback.json") as report:
        # The alias moves first, so that a running cycle detects the change at its promotion.
        run.registry.rollback(version, reason or "no reason given", report)
    pin_when_idle(run)
    return report


def anchor(run: Run, version: str, *, reason: str) -> Report:
    """Make a present or former champion the anchor of the next cycles' gate, and record user and reason."""
    with timed(Report("anchor"), run.layout.root / "reports" / "anchor.json") as report:
        run.registry.move_anchor(version, reason, report)
    pin_when_idle(run)
    return report


def reproduce(run: Run, version: str) -> Report:
    """Rebuild a registered model from its recorded snapshot, params and seeds, and compare the weights."""
    from mm_core.export.reproduce import reproduce as rebuild

    with timed(Report("reproduce"), run.layout.root / "reports" / "reproduce.json") as report:
        return rebuild(run, version, report)
