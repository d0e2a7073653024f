"""The flow, in order. Each box of the architecture is one function: plain files in, plain files out, a Report back.

The `mm` command, `dvc.yaml` and the Dagster assets are three thin doors to these functions.

    inbox ─► ingest ─► structure ─► route ──► people ──► collect        per arrival
    catalog ─► pin_inputs ─► snapshot ─► split ─► train simple ─► hard ─► semi ─► multimodal
            ─► evaluate ─► gate ─► export ─► promote ─► report             per cycle
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.catalog import Catalog
from mm_core.errors import InputError, MattingError, ReleaseRefused
from mm_core.layout import TRAIN_STAGES, Layout
from mm_core.params import Params
from mm_core.records import Report, Verdict, digest_of, timed, write_json
from mm_core.store import Store, open_store

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total): the CLI draws bars, Dagster logs observations."""


def quiet(what: str, done: int, total: int) -> None:
    """The Progress of someone who does not look."""


def store_of(layout: Layout) -> Store:
    return open_store(layout.settings.store, layout.cache)


def inbox_of(layout: Layout) -> Store:
    return open_store(layout.settings.inbox, layout.cache / "inbox")


def catalog_of(layout: Layout) -> Catalog:
    return Catalog(layout.settings.store)


# ── per arrival ──────────────────────────────────────────────────────────────────────────────────


def ingest(params: Params, layout: Layout, *, batch: str | None = None, progress: Progress = quiet) -> Report:
    """Takes every ready drop of the inbox (or one): accepted, quarantined with reasons, or duplicate."""
    from mm_core.data.ingest import ingest_ready

    with timed(Report("ingest"), layout.root / "reports" / "ingest.json") as report:
        return ingest_ready(
            params.ingest,
            catalog_of(layout),
            store_of(layout),
            inbox_of(layout),
            report,
            batch=batch,
            data_docs=layout.data_docs,
            spool=layout.spool,
            progress=progress,
        )


def structure(params: Params, layout: Layout, *, batch: str | None = None, progress: Progress = quiet) -> Report:
    """Computes what is missing of every sample's features: quality, place, time, vector, tags, text, difficulty.

    Then compares new batches (and `batch`, as kind/batch, anew) with the catalog before them.
    """
    from mm_core.structuring.drift import drift_of_new
    from mm_core.structuring.structure import structure_new

    catalog = catalog_of(layout)
    with timed(Report("structure"), layout.root / "reports" / "structure.json") as report:
        source = structure_new(params, catalog, store_of(layout), layout, report, progress=progress)
        drift_of_new(params.drift, catalog, source, layout.drift, report, batch)
    return report


def route(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Chooses the photos that people should label; Label Studio tasks start from the champion's matte."""
    from mm_core.labeling.route import route_hard

    with timed(Report("route")) as report:
        return route_hard(
            params.route, catalog_of(layout), store_of(layout), inputs_now(layout), layout, report, progress=progress
        )


def push(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Delivers the tasks that wait in the outbox to the Label Studio server; without one they go on waiting."""
    from mm_core.labeling.local import connect
    from mm_core.labeling.push import push_tasks, undelivered

    with timed(Report("push"), layout.root / "reports" / "push.json") as report:
        server = connect(layout, people=params.label.people)
        if server is None:
            report.metrics["push/waiting"] = undelivered(layout, None)
            report.facts["server"] = "none: set LABEL_STUDIO_URL, or start one with `mm label serve`"
            return report
        return push_tasks(layout, server, report, progress=progress)


def collect(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Takes finished work back as new label versions: files of the inbox, then what changed on the server.

    Reviewed suspect mattes leave quarantine.
    """
    from mm_core.labeling.collect import collect_labels
    from mm_core.labeling.finished import Taken
    from mm_core.labeling.local import connect
    from mm_core.labeling.pull import pull_labels
    from mm_core.labeling.review import settle_suspects

    with timed(Report("collect"), layout.root / "reports" / "collect.json") as report:
        catalog, store, taken = catalog_of(layout), store_of(layout), Taken()
        files = collect_labels(params.label, catalog, store, layout, taken, progress=progress)
        report.metrics["collect/files"] = files
        try:
            if server := connect(layout, people=params.label.people):
                tasks = pull_labels(params.label, catalog, store, layout, server, taken, progress=progress)
                report.metrics["collect/tasks"] = tasks
                report.facts["project"] = server.link()
        finally:  # what has come counts, also where the server goes away in between
            report.facts |= settle_suspects(params.ingest, catalog, store, inbox_of(layout), layout)
            taken.report(report)
        return report


def labelling(params: Params, layout: Layout) -> dict[str, Any]:
    """How labelling stands: `server` and `project` (addresses, None without a server), `batches_waiting` in the outbox,
    counts of `tasks`, `finished`, `skipped`, `open`, and `oldest_open_days`."""
    from mm_core.labeling.local import connect
    from mm_core.labeling.push import undelivered

    server = connect(layout, people=params.label.people)
    about: dict[str, Any] = {"server": None, "batches_waiting": undelivered(layout, server)}
    return about | {"server": server.url, "project": server.link(), **server.summary()} if server else about


def finished_work(layout: Layout) -> str | None:
    """A digest of the work that waits to be collected; None where there is none. One small request to the server."""
    from mm_core.labeling.label_studio import inbox
    from mm_core.labeling.local import connect
    from mm_core.labeling.pull import news
    from mm_core.records import digest_of

    server = connect(layout)
    waiting = [news(layout, server) if server else None, *sorted(path.name for path in inbox(layout).glob("*.json"))]
    return digest_of(waiting)[:16] if any(waiting) else None


def forget(params: Params, layout: Layout, samples: Sequence[str], group: str | None = None) -> Report:
    """Removes photos from store, catalog and workspace for good, and names every model that learned from them.

    `report.tables`: `forgotten` (ids), `models` (registry versions with aliases and pools), `remaining` (what a person
    has to remove: pages that show a photo, and drops that the producer keeps).
    """
    from mm_core.data.dataset import PixelCache
    from mm_core.data.forget import forget_photos
    from mm_core.export.lineage import models_with
    from mm_core.labeling.forget import forget_on_server, forget_tasks
    from mm_core.labeling.local import connect

    with timed(Report("forget"), layout.root / "reports" / "forget.json") as report:
        catalog, store = catalog_of(layout), store_of(layout)
        ids = forget_photos(catalog, store, samples, group)
        # A killed measurement or rebuild keeps what it decoded in folders of its own.
        for cache in (layout.cache, *(layout.root / "scratch").rglob("cache")):
            PixelCache.clear(cache)
        report.tables["forgotten"] = [{"id": i} for i in ids]
        report.tables["models"] = models_with(layout.settings, set(ids))
        pages = [*layout.reports.rglob("*.html"), layout.html_report]
        shown = [str(page) for page in pages if page.is_file() and any(i in page.read_text() for i in ids)]
        report.tables["remaining"] = [{"what": "page", "where": page} for page in shown]
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
            pin_inputs(params, layout)
    return report


def compact(params: Params, layout: Layout) -> Report:
    """Puts the catalog's small files together and removes data files of versions that nobody reads any more."""
    from mm_core.tables import SCHEMAS

    with timed(Report("compact")) as report:
        catalog = catalog_of(layout)
        pinned = read_inputs(layout)["catalog"] if layout.inputs.exists() else {}
        for table in SCHEMAS:
            report.metrics[f"compact/{table}/merged"] = catalog.compact(table)
            keep = [pinned[table]] if table in pinned else []
            report.metrics[f"compact/{table}/removed"] = catalog.vacuum(table, keep=keep)
    return report


# ── per cycle ────────────────────────────────────────────────────────────────────────────────────


def pin_inputs(params: Params, layout: Layout, *, again: bool = False) -> Report:
    """Writes what the next cycle starts from: catalog versions, champion and anchor (design: explicit inputs).

    Where nothing is new since the cycle that was finished last, its pins stay, so that no door runs it once more, and
    `report.facts["nothing_new"]` says so; `again` pins nevertheless.
    """
    with timed(Report("pin_inputs")) as report:
        inputs = inputs_now(layout)
        if not again and _is_done(params, layout, inputs):
            inputs = read_inputs(layout)
            report.facts["nothing_new"] = f"the last cycle saw all of it: {recorded_verdict(layout).decision}"
        elif not layout.inputs.exists() or read_inputs(layout) != inputs:
            write_json(layout.inputs, inputs)
        report.facts |= inputs
    return report


def inputs_now(layout: Layout) -> dict:
    """Catalog versions, champion and anchor of this moment, as `read_inputs` returns them."""
    from mm_core.export.registry import Registry

    registry, catalog = Registry(layout.settings), catalog_of(layout)
    return {
        "catalog": {table: catalog.version(table) for table in ("samples", "labels", "features")},
        "champion": registry.pin("champion"),
        "anchor": registry.pin("anchor"),
    }


def _is_done(params: Params, layout: Layout, inputs: dict) -> bool:
    """Whether the last cycle came to its end with these params, this catalog, and this champion or one of its own."""
    judged = layout.stage_report("gate")
    if not (layout.inputs.is_file() and layout.verdict.is_file() and judged.is_file()):
        return False
    pinned, verdict = read_inputs(layout), recorded_verdict(layout)
    about = {"inputs": digest_of(pinned), "params": params.cycle_digest()}
    facts = Report.read(judged).facts
    if {name: facts.get(name) for name in about} != about or pinned["catalog"] != inputs["catalog"]:
        return False
    if verdict.decision == "PROMOTE" and not layout.stage_report("promote").is_file():
        return False
    if (inputs["champion"] or {}).get("digest") == verdict.candidate:
        # The first champion ever is the anchor too.
        return inputs["anchor"] == (pinned["anchor"] or inputs["champion"])
    return all(inputs[role] == pinned[role] for role in ("champion", "anchor"))


def read_inputs(layout: Layout) -> dict:
    """The pinned inputs: `{"catalog": {table: version}, "champion": pin | None, "anchor": pin | None}`.

    A pin is `{"version": str, "digest": str, "files": {file name: blob digest}}`; the weights are the
    blob of that digest, `files` are the int8 files that shipped.
    """
    if not layout.inputs.exists():
        raise InputError(f"{layout.inputs} is missing: run `mm ingest` first, so that there is a catalog to learn from")
    return json.loads(layout.inputs.read_text())


def snapshot(params: Params, layout: Layout) -> Report:
    """Freezes one catalog version into parquet manifests; eval never moves and never leaks."""
    from mm_core.data.snapshot import build_snapshot

    with timed(Report("snapshot"), layout.stage_report("snapshot")) as report:
        return build_snapshot(params.snapshot, catalog_of(layout), read_inputs(layout), layout.snapshot, report)


def split(params: Params, layout: Layout) -> Report:
    """Divides train_labeled into simple and hard by difficulty."""
    from mm_core.structuring.split import split_by_difficulty

    with timed(Report("split"), layout.stage_report("split")) as report:
        return split_by_difficulty(
            params.split, catalog_of(layout), read_inputs(layout), layout.snapshot, layout.split, report
        )


def train_simple(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Supervised on the simple set, from the champion or from scratch."""
    return _train("simple", params, layout, progress)


def train_hard(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Supervised on the hard set, with a share of simple ones against forgetting."""
    return _train("hard", params, layout, progress)


def train_semi(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Adds unlabelled photos by cross-consistency with perturbed auxiliary decoders."""
    return _train("semi", params, layout, progress)


def train_multimodal(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Adds text: consistency of image-only and text-image mattes, and text-aware contrast."""
    return _train("multimodal", params, layout, progress)


def _train(stage: str, params: Params, layout: Layout, progress: Progress) -> Report:
    from mm_core.training.train import train_stage

    store, inputs = store_of(layout), read_inputs(layout)
    index = TRAIN_STAGES.index(stage)
    if index:
        start = layout.model(TRAIN_STAGES[index - 1])
        if not start.is_file():
            raise InputError(f"{start} is missing: run `mm train-{TRAIN_STAGES[index - 1]}` before `mm train-{stage}`")
    else:
        start = _warm_start(params, layout, inputs)
    with timed(Report(f"train-{stage}"), layout.stage_report(f"train-{stage}")) as report:
        return train_stage(stage, params, layout, store, report, start=start, progress=progress)


def _warm_start(params: Params, layout: Layout, inputs: dict) -> Path | None:
    """The weights that the first stage starts from; None: from scratch."""
    from mm_core.store import fetch_blob

    champion = inputs["champion"]
    if params.train.common.warm_start != "champion" or not champion:
        return None
    return fetch_blob(store_of(layout), champion["digest"])


def evaluate(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Every stage, champion and anchor on the frozen eval set; the candidate also as the int8 files that would ship."""
    from mm_core.eval.evaluate import evaluate_models, identity
    from mm_core.eval.shadow import newest_unlabelled, run_shadow
    from mm_core.export.quantise import quantise
    from mm_core.export.runtime import OnnxPredictor
    from mm_core.model.predict import TorchPredictor
    from mm_core.store import fetch_blob
    from mm_core.training.tracking import Tracker

    store, inputs = store_of(layout), read_inputs(layout)
    with timed(Report("evaluate"), layout.stage_report("evaluate")) as report:
        candidate = layout.model(TRAIN_STAGES[-1])
        quantise(params.export, candidate, layout.snapshot, store, layout.quantised, report, progress=progress)
        device = layout.settings.device
        models: dict[tuple[str, str], Predictor] = {}
        models |= {(stage, "float"): TorchPredictor(layout.model(stage), device) for stage in TRAIN_STAGES}
        models[TRAIN_STAGES[-1], "int8"] = OnnxPredictor.of_folder(layout.quantised)
        for role in ("champion", "anchor"):
            pin = inputs[role]
            if pin:
                models[role, "float"] = TorchPredictor(fetch_blob(store, pin["digest"]), device)
                models[role, "int8"] = OnnxPredictor({n: fetch_blob(store, d) for n, d in pin["files"].items()})
        evaluate_models(params.evaluate, models, layout, store, report, progress=progress)
        layout.shadow.unlink(missing_ok=True)
        if inputs["champion"] and params.evaluate.shadow_photos:
            photos = newest_unlabelled(catalog_of(layout), inputs["catalog"], params.evaluate.shadow_photos)
            int8, champion = models[TRAIN_STAGES[-1], "int8"], models["champion", "int8"]
            about = identity(layout, inputs)
            run_shadow(photos, int8, champion, about, layout, store, report, progress=progress)
    Tracker(layout.settings).log_report(layout, report)
    return report


def gate(params: Params, layout: Layout) -> Report:
    """Decides PROMOTE, REJECT or INCONCLUSIVE on paired per-image differences and records it."""
    from mm_core.data.snapshot import read_pool
    from mm_core.eval.gate import decide
    from mm_core.eval.uses import record_use
    from mm_core.records import sha256_file
    from mm_core.training.noise import recorded_noise
    from mm_core.training.tracking import Tracker

    store, candidate = store_of(layout), sha256_file(layout.model(TRAIN_STAGES[-1]))
    with timed(Report("gate"), layout.stage_report("gate")) as report:
        for later in ("export", "promote"):
            # What an earlier verdict led to is not this one's.
            layout.stage_report(later).unlink(missing_ok=True)
        inputs = read_inputs(layout)
        verdict = decide(
            params.gate,
            layout,
            inputs,
            noise=recorded_noise(store, params.gate.primary),
            uses=record_use(store, read_pool(layout.snapshot, "eval")["sample_id"], candidate),
        )
        write_json(layout.verdict, verdict.model_dump())
        report.facts |= {"decision": verdict.decision, "reasons": verdict.reasons, "candidate": verdict.candidate}
        report.facts |= {"inputs": digest_of(inputs), "params": params.cycle_digest()}
        report.tables["cells"] = [cell.model_dump() for cell in verdict.cells]
        report.metrics["gate/promote"] = float(verdict.decision == "PROMOTE")
    Tracker(layout.settings).log_report(layout, report)
    return report


def recorded_verdict(layout: Layout) -> Verdict:
    """The verdict on record; raises InputError where the gate has not spoken."""
    if not layout.verdict.is_file():
        raise InputError(f"{layout.verdict} is missing: run `mm gate` first")
    return Verdict.model_validate_json(layout.verdict.read_text())


def require_promote(layout: Layout) -> tuple[Verdict, dict | None]:
    """The recorded PROMOTE (or a standing override) for exactly the workspace's candidate; else ReleaseRefused."""
    from mm_core.records import sha256_file

    verdict = recorded_verdict(layout)
    candidate = sha256_file(layout.model(TRAIN_STAGES[-1]))
    if verdict.candidate != candidate:
        raise ReleaseRefused(
            f"the recorded verdict is about {verdict.candidate[:12]}, the candidate is {candidate[:12]}: run `mm gate`"
        )
    if verdict.decision == "PROMOTE":
        return verdict, None
    override = standing_override(layout, verdict)
    if override is None:
        raise ReleaseRefused(f"the gate said {verdict.decision}: " + "; ".join(verdict.reasons[:3]))
    return verdict, override


def standing_override(layout: Layout, verdict: Verdict) -> dict | None:
    """A person's signed word that the judged candidate may leave all the same, where it stands and has not expired."""
    from mm_core.export.override import valid_override

    return valid_override(store_of(layout), verdict.candidate)


def export(params: Params, layout: Layout) -> Report:
    """Assembles the mobile bundle of a candidate whose recorded verdict is PROMOTE."""
    from mm_core.export.bundle import write_bundle

    with timed(Report("export"), layout.stage_report("export")) as report:
        verdict, _ = require_promote(layout)
        return write_bundle(params, layout, store_of(layout), verdict, report)


def promote(params: Params, layout: Layout) -> Report:
    """Registers the bundled model in MLflow and moves the alias `champion`; repeating it changes nothing."""
    from mm_core.export.registry import Registry

    with timed(Report("promote"), layout.stage_report("promote")) as report:
        verdict, override = require_promote(layout)
        Registry(layout.settings).promote(params, layout, store_of(layout), verdict, report, override=override)
    return report


def label_value(params: Params, layout: Layout) -> Report:
    """What the labels that came since the champion did to each category: counts by source, MSE before and after."""
    from mm_core.export.lineage import training_labels
    from mm_core.labeling.value import value_of_labels

    with timed(Report("label-value"), layout.stage_report("label-value")) as report:
        champion = read_inputs(layout)["champion"]
        store = store_of(layout)
        learned = training_labels(layout.settings, store, champion["version"]) if champion else {}
        return value_of_labels(catalog_of(layout), layout, learned, report)


def html_report(params: Params, layout: Layout) -> Report:
    """One page about the cycle: verdict, tables with bounds, mattes side by side, labels, quarantine, costs."""
    from mm_core.eval.report import write_html
    from mm_core.training.tracking import Tracker

    if (layout.snapshot / "snapshot.json").is_file():
        label_value(params, layout)
    with timed(Report("report")) as report:
        write_html(params, layout, catalog_of(layout), store_of(layout), report)
    if (layout.snapshot / "snapshot.json").is_file():
        Tracker(layout.settings).log_report(layout, report, files=[layout.html_report])
    return report


# ── beside the cycle ─────────────────────────────────────────────────────────────────────────────


def seed_noise(params: Params, layout: Layout, *, seeds: int = 3, progress: Progress = quiet) -> Report:
    """Trains this cycle's snapshot with other seeds: how far their scores spread is no gain to the gate."""
    from mm_core.training.noise import measure_noise

    with timed(Report("gate-noise"), layout.root / "reports" / "gate-noise.json") as report:
        start = _warm_start(params, layout, read_inputs(layout))
        return measure_noise(params, layout, store_of(layout), report, start=start, seeds=seeds, progress=progress)


def label_compare(params: Params, layout: Layout, *, seeds: int = 1, progress: Progress = quiet) -> Report:
    """Trains on routed and on as many random photos that came since the snapshot's champion: what choosing is worth."""
    from mm_core.export.lineage import training_labels
    from mm_core.training.compare import compare_labels

    about = layout.snapshot / "snapshot.json"
    if not about.is_file():
        raise InputError(f"{about} is missing: run `mm ingest`, then `mm snapshot`")
    # The snapshot's champion and not the pinned one, which may have learned from this very snapshot.
    champion = json.loads(about.read_text())["champion"]
    store = store_of(layout)
    learned = training_labels(layout.settings, store, champion["version"]) if champion else {}
    if champion and not learned:
        raise InputError(f"the registry does not say what champion {champion['version']} learned from: nothing is new")
    with timed(Report("label-compare"), layout.stage_report("label-compare")) as report:
        start = _warm_start(params, layout, {"champion": champion})
        return compare_labels(
            params, catalog_of(layout), layout, store, learned, report, start=start, seeds=seeds, progress=progress
        )


def override(params: Params, layout: Layout, version: str, *, reason: str, days: int) -> Report:
    """Promotes against the gate: `candidate` (the workspace's) or a registered version. Signed, logged, expiring."""
    from mm_core.export.override import write_override
    from mm_core.export.registry import Registry

    registry = Registry(layout.settings)
    with timed(Report("override"), layout.root / "reports" / "override.json") as report:
        if version == "candidate":
            verdict = recorded_verdict(layout)
            report.facts["override"] = write_override(
                store_of(layout), verdict.candidate, reason, verdict.decision, days
            )
            export(params, layout)
            report.facts |= promote(params, layout).facts
            return report
        tags = registry.tags(version)
        if tags is None:
            raise InputError(f"the registry has no version {version!r}: name one, or `candidate`")
        said = write_override(store_of(layout), tags["model_digest"], reason, tags["verdict"], days)
        report.facts["override"] = said
        return registry.crown(version, said, report)


def predictor_of(layout: Layout, model: str) -> tuple[Predictor | None, str]:
    """Who makes mattes, and a name for it: `champion` or a registry version (its int8 files), a bundle's folder, a
    .safetensors file, or `none`. Raises InputError where there is no such model."""
    from mm_core.export.registry import Registry
    from mm_core.export.runtime import OnnxPredictor
    from mm_core.model.predict import TorchPredictor
    from mm_core.records import sha256_file
    from mm_core.store import fetch_blob

    if model == "none":
        return None, "none"
    if model.endswith(".safetensors") and Path(model).is_file():
        return TorchPredictor(Path(model), layout.settings.device), sha256_file(Path(model))[:12]
    if Path(model).is_dir():
        return OnnxPredictor.of_folder(Path(model)), Path(model).name
    pin = Registry(layout.settings).pin(model)
    if pin is None:
        raise InputError(
            f"--model {model}: the registry has no such version or alias; run a cycle first (`mm run`), or say `none`"
        )
    store = store_of(layout)
    return OnnxPredictor({n: fetch_blob(store, d) for n, d in pin["files"].items()}), pin["version"]


def moments(
    params: Params, layout: Layout, gallery: Path, out: Path, *, model: str = "champion", progress: Progress = quiet
) -> Report:
    """Groups a folder of photos into moments, with titles and finished pieces; new photos cost what is new."""
    from mm_core.aigc.gallery import read_gallery
    from mm_core.aigc.moments import make_moments

    with timed(Report("moments"), layout.root / "reports" / "moments.json") as report:
        predictor, name = predictor_of(layout, model)
        found = read_gallery(gallery, params, layout, catalog_of(layout), progress=progress)
        bits = params.ingest.near_duplicate_bits
        return make_moments(
            found, out, params.moments, bits, report, predictor=predictor, model=name, progress=progress
        )


def rollback(params: Params, layout: Layout, version: str | None = None, *, reason: str = "") -> Report:
    """Makes an earlier champion champion again: the one before, or a named version."""
    from mm_core.export.registry import Registry

    with timed(Report("rollback"), layout.root / "reports" / "rollback.json") as report:
        Registry(layout.settings).rollback(version, reason or "no reason given", report)
    pin_inputs(params, layout)
    return report


def anchor(params: Params, layout: Layout, version: str, *, reason: str) -> Report:
    """Makes a champion, present or former, the anchor of the next cycles' gate; on record with who and why."""
    from mm_core.export.registry import Registry

    with timed(Report("anchor"), layout.root / "reports" / "anchor.json") as report:
        Registry(layout.settings).move_anchor(version, reason, report)
    pin_inputs(params, layout)
    return report


def reproduce(params: Params, layout: Layout, version: str, *, progress: Progress = quiet) -> Report:
    """Rebuilds a registered model from its recorded snapshot, params and seeds, and compares the weights."""
    from mm_core.export.reproduce import reproduce as rebuild

    with timed(Report("reproduce"), layout.root / "reports" / "reproduce.json") as report:
        return rebuild(layout, store_of(layout), version, report, progress=progress)


ARRIVAL = (ingest, structure)
TRAIN = {"simple": train_simple, "hard": train_hard, "semi": train_semi, "multimodal": train_multimodal}


def run_cycle(params: Params, layout: Layout, *, again: bool = False, progress: Progress = quiet) -> dict[str, Report]:
    """`mm run`: one whole cycle. A refusal by the gate is a result, not an error.

    Where nothing is new since the last one it ends after `pin_inputs`, unless it shall run `again`.
    """
    reports = {"ingest": ingest(params, layout, progress=progress)}
    reports["structure"] = structure(params, layout, progress=progress)
    reports["pin_inputs"] = pin_inputs(params, layout, again=again)
    if "nothing_new" in reports["pin_inputs"].facts:
        return reports
    reports["snapshot"] = snapshot(params, layout)
    reports["split"] = split(params, layout)
    for stage in TRAIN_STAGES:
        reports[f"train-{stage}"] = TRAIN[stage](params, layout, progress=progress)
    reports["evaluate"] = evaluate(params, layout, progress=progress)
    reports["gate"] = gate(params, layout)
    if reports["gate"].facts["decision"] == "PROMOTE":
        reports["export"] = export(params, layout)
        reports["promote"] = promote(params, layout)
    reports["report"] = html_report(params, layout)
    return reports
