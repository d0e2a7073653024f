"""The stages of the flow, in order. Each stage is one function that reads and writes files and returns a Report.

The `mm` command, `dvc.yaml` and the Dagster assets are thin layers over these functions.

    inbox ─► ingest ─► structure ─► route ──► people ──► collect        per arrival
    catalog ─► pin_inputs ─► snapshot ─► split ─► train simple ─► hard ─► semi ─► multimodal
            ─► evaluate ─► gate ─► export ─► promote ─► report             per cycle

`pinned_inputs.py` has the inputs of a cycle (store, pins, verdict), `operations.py` the operations outside the cycle.
Every stage of a cycle holds the workspace's cycle lock (`in_the_cycle`). Stages of an arrival may run at the same time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import ROLES, has_snapshot
from mm_core.core.records import Report, digest_of, sha256_file, timed, write_json
from mm_core.eval.eval_budget import record_use
from mm_core.eval.evaluate import evaluate_models, identity
from mm_core.eval.gate import decide
from mm_core.eval.independence import learnt_photos
from mm_core.eval.ratchet import update_best
from mm_core.eval.report import write_html
from mm_core.eval.shadow import newest_unlabelled, run_shadow
from mm_core.export.bundle import write_bundle
from mm_core.export.lineage import learnt_by, training_labels
from mm_core.export.override import write_override
from mm_core.export.quantise import quantise
from mm_core.export.registry import Registry
from mm_core.export.runtime import OnnxPredictor
from mm_core.ingest.ingest import ingest_ready
from mm_core.ingest.snapshot import build_snapshot, eval_state, read_pool
from mm_core.labeling.apply_annotations import Taken
from mm_core.labeling.collect import collect_labels
from mm_core.labeling.label_studio_local import connect
from mm_core.labeling.pull import pull_labels
from mm_core.labeling.push import push_tasks, undelivered
from mm_core.labeling.review import settle_suspects
from mm_core.labeling.route import route_hard
from mm_core.labeling.value import value_of_labels
from mm_core.model.predict import TorchPredictor
from mm_core.operations import (  # noqa: F401  re-exported
    anchor,
    compact,
    compare_after_cycle,
    finished_work,
    forget,
    label_compare,
    labelling,
    moments,
    plan_forgetting,
    predictor_of,
    reproduce,
    rollback,
    seed_noise,
)
from mm_core.pinned_inputs import (
    Progress,
    catalog_of,
    frozen_inputs,
    in_the_cycle,
    inbox_of,
    inputs_now,
    pin,
    pin_when_idle,  # noqa: F401  re-exported
    quiet,
    read_inputs,
    recorded_verdict,
    require_one_cycle,
    require_promote,
    settle_late_pins,
    store_of,
    warm_start,
)
from mm_core.storage.seals import require_unbroken, seal_folder
from mm_core.storage.store import fetch_blob
from mm_core.structuring.batch_summary import describe_batch
from mm_core.structuring.drift import drift_of_new
from mm_core.structuring.split import split_by_difficulty
from mm_core.structuring.structure import structure_new
from mm_core.training.tracking import Tracker

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor


# ── per arrival ──────────────────────────────────────────────────────────────────────────────────


def ingest(params: Params, layout: Layout, *, batch: str | None = None, progress: Progress = quiet) -> Report:
    """Ingest all ready drops (or one). Each photo is accepted, quarantined with a reason, or a duplicate."""
    with timed(Report("ingest"), layout.root / "reports" / "ingest.json") as report:
        catalog = catalog_of(layout)
        ingest_ready(
            params.ingest,
            catalog,
            store_of(layout),
            inbox_of(layout),
            report,
            batch=batch,
            data_docs=layout.data_docs,
            spool=layout.spool,
            progress=progress,
        )
        taken = [f"{row['kind']}/{row['batch']}" for row in report.tables["batches"]]
        if any(name.startswith("pixel_labeled/") for name in taken):
            state = eval_state(params.snapshot, catalog, taken)
            report.facts["eval"] = state["words"]
            report.tables |= {"eval": state["categories"], "eval_refused": state["refused"]}
        return report


def structure(params: Params, layout: Layout, *, batch: str | None = None, progress: Progress = quiet) -> Report:
    """Compute missing features of all samples: quality, place, time, vector, tags, text, difficulty.

    New batches, and `batch` (kind/batch) again, are then compared with the earlier catalog to detect drift. If `batch`
    is given, the report is about this batch only.
    """
    catalog = catalog_of(layout)
    with timed(Report("structure"), layout.root / "reports" / "structure.json") as report:
        source = structure_new(params, catalog, store_of(layout), layout, report, progress=progress)
        drift_of_new(params.drift, catalog, source, layout.drift, report, batch)
        if batch:
            describe_batch(catalog, batch, report)
    return report


def route(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Select the photos for labelling and write Label Studio tasks with the champion's mattes as a start."""
    with timed(Report("route")) as report:
        return route_hard(
            params.route, catalog_of(layout), store_of(layout), inputs_now(layout), layout, report, progress=progress
        )


def push(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Send the tasks of the outbox to the Label Studio server; without a server they stay in the outbox."""
    with timed(Report("push"), layout.root / "reports" / "push.json") as report:
        server = connect(layout, people=params.label.people)
        if server is None:
            report.metrics["push/waiting"] = undelivered(layout, None)
            report.facts["server"] = "none: set LABEL_STUDIO_URL, or start one with `mm label serve`"
            return report
        return push_tasks(layout, server, report, progress=progress)


def collect(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Collect finished labels as new label versions, from files of the inbox and then from the server.

    Reviewed suspect mattes leave quarantine.
    """
    with timed(Report("collect"), layout.root / "reports" / "collect.json") as report:
        catalog, store, taken = catalog_of(layout), store_of(layout), Taken()
        report.metrics["collect/files"] = collect_labels(params.label, catalog, store, layout, taken, progress=progress)
        try:
            if server := connect(layout, people=params.label.people):
                tasks = pull_labels(params.label, catalog, store, layout, server, taken, progress=progress)
                report.metrics["collect/tasks"] = tasks
                report.facts["project"] = server.link()
        finally:  # keeps the labels collected so far if the server fails
            report.facts |= settle_suspects(params.ingest, catalog, store, inbox_of(layout), layout)
            taken.report(report)
        return report


# ── per cycle ────────────────────────────────────────────────────────────────────────────────────


@in_the_cycle
def pin_inputs(params: Params, layout: Layout, *, again: bool = False) -> Report:
    """Pin the inputs of the next cycle: catalog versions, champion and anchor.

    Without new inputs since the last finished cycle, its pins stay, so that no caller repeats the cycle, and
    `report.facts["nothing_new"]` is set. `again` pins in any case.
    """
    with timed(Report("pin_inputs")) as report:
        report.facts |= pin(params, layout, again=again)
    return report


@in_the_cycle
def snapshot(params: Params, layout: Layout) -> Report:
    """Freeze one catalog version as parquet manifests; eval photos never change pools."""
    settle_late_pins(params, layout)
    with timed(Report("snapshot"), layout.stage_report("snapshot")) as report:
        return build_snapshot(params.snapshot, catalog_of(layout), read_inputs(layout), layout.snapshot, report)


@in_the_cycle
def split(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Split train_labeled into a simple and a hard set by difficulty."""
    with timed(Report("split"), layout.stage_report("split")) as report:
        inputs = frozen_inputs(layout)
        return split_by_difficulty(params.split, catalog_of(layout), inputs, layout.snapshot, layout.split, report)


@in_the_cycle
def train_simple(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Train supervised on the simple set, from the champion or from scratch."""
    return _train("simple", params, layout, progress)


@in_the_cycle
def train_hard(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Train supervised on the hard set, with a share of simple photos against forgetting."""
    return _train("hard", params, layout, progress)


@in_the_cycle
def train_semi(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Train with unlabelled photos by cross-consistency with perturbed auxiliary decoders."""
    return _train("semi", params, layout, progress)


@in_the_cycle
def train_multimodal(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Train with text: consistency of image-only and text-image mattes, and a text-aware contrastive loss."""
    return _train("multimodal", params, layout, progress)


def _train(stage: str, params: Params, layout: Layout, progress: Progress) -> Report:
    from mm_core.training.record import require_start
    from mm_core.training.stage import train_stage

    store = store_of(layout)
    start = require_start(stage, layout) or warm_start(params, layout, frozen_inputs(layout)["champion"])
    with timed(Report(f"train-{stage}"), layout.stage_report(f"train-{stage}")) as report:
        if layout.settings.engine == "ray":
            from mm_core.training.on_ray import train_stage_on_ray

            return train_stage_on_ray(stage, params, layout, report, start=start, progress=progress)
        return train_stage(stage, params, layout, store, report, start=start, progress=progress)


@in_the_cycle
def evaluate(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Evaluate all stages, champion and anchor on the frozen eval set, and the candidate also as int8 files."""
    store, inputs = store_of(layout), frozen_inputs(layout)
    require_one_cycle(layout)
    with timed(Report("evaluate"), layout.stage_report("evaluate")) as report:
        candidate = layout.model(TRAIN_STAGES[-1])
        quantise(params.export, candidate, layout.snapshot, store, layout.quantised, report, progress=progress)
        device = layout.settings.device
        models: dict[tuple[str, str], Predictor] = {}
        models |= {(stage, "float"): TorchPredictor(layout.model(stage), device) for stage in TRAIN_STAGES}
        models[TRAIN_STAGES[-1], "int8"] = OnnxPredictor.of_folder(layout.quantised)
        for role in ROLES:
            pin = inputs[role]
            if pin:
                models[role, "float"] = TorchPredictor(fetch_blob(store, pin["digest"]), device)
                models[role, "int8"] = OnnxPredictor({n: fetch_blob(store, d) for n, d in pin["files"].items()})
        evaluate_models(params.evaluate, models, layout, store, report, progress=progress)
        layout.shadow.unlink(missing_ok=True)
        if inputs["champion"] and params.evaluate.shadow_photos:
            photos = newest_unlabelled(catalog_of(layout), inputs["catalog"], params.evaluate.shadow_photos)
            int8, champion = models[TRAIN_STAGES[-1], "int8"], models["champion", "int8"]
            run_shadow(photos, int8, champion, identity(layout, inputs), layout, store, report, progress=progress)
        seal_folder(layout.evaluation, [path for path in sorted(layout.quantised.iterdir()) if path.is_file()])
    Tracker(layout.settings).log_report(layout, report)
    return report


@in_the_cycle
def gate(params: Params, layout: Layout) -> Report:
    """Decide PROMOTE, REJECT or INCONCLUSIVE on paired per-image differences, and record the verdict.

    Raises InputError, without a verdict, if a model was trained on other data than the present snapshot.
    """
    from mm_core.experiments.seed_noise import recorded_noise

    weights = layout.model(TRAIN_STAGES[-1])
    if not weights.is_file():
        read_inputs(layout)  # without any arrival, its error names the right remedy
        raise InputError(f"{weights} is missing: run `mm train-{TRAIN_STAGES[-1]}`, or `mm run` for a whole cycle")
    require_one_cycle(layout)
    require_unbroken(layout.evaluation, "run `mm evaluate` again")
    store, candidate = store_of(layout), sha256_file(weights)
    with timed(Report("gate"), layout.stage_report("gate")) as report:
        for later in ("export", "promote"):
            # Remove the results of an earlier verdict.
            layout.stage_report(later).unlink(missing_ok=True)
        inputs, frame = frozen_inputs(layout), read_pool(layout.snapshot, "eval")
        judged = [pin["digest"] for role in ROLES if (pin := inputs[role])]
        samples = catalog_of(layout).read(
            "samples", version=inputs["catalog"]["samples"], columns=["id", "group", "phash", "near"]
        )
        learnt = learnt_by(layout.settings, store, judged)
        verdict = decide(
            params.gate,
            layout,
            inputs,
            ratchet=Registry(layout.settings).ratchet(store, inputs["anchor"]),
            noise=recorded_noise(params, layout, store),
            uses=record_use(store, frame["sample_id"], candidate),
            left_out=learnt_photos(frame, samples, learnt, params.snapshot.near_duplicate_bits),
        )
        write_json(layout.verdict, verdict.model_dump())
        report.facts |= {"decision": verdict.decision, "reasons": verdict.reasons, "candidate": verdict.candidate}
        report.facts |= {"inputs": digest_of(inputs), "params": params.cycle_digest()}
        report.tables["cells"] = [cell.model_dump() for cell in verdict.cells]
        counts = {"gate/left_out": len(verdict.left_out), "gate/promote": verdict.decision == "PROMOTE"}
        report.metrics |= {name: float(count) for name, count in counts.items()}
    Tracker(layout.settings).log_report(layout, report)
    return report


@in_the_cycle
def export(params: Params, layout: Layout) -> Report:
    """Write the mobile bundle of a candidate with the recorded verdict PROMOTE."""
    with timed(Report("export"), layout.stage_report("export")) as report:
        verdict, _ = require_promote(layout)
        return write_bundle(params, layout, store_of(layout), verdict, report)


@in_the_cycle
def promote(params: Params, layout: Layout) -> Report:
    """Register the bundled model in MLflow and move the alias `champion`. The function is idempotent."""
    with timed(Report("promote"), layout.stage_report("promote")) as report:
        (verdict, override), registry, store = require_promote(layout), Registry(layout.settings), store_of(layout)
        registry.promote(params, layout, store, verdict, report, override=override)
        if (ratchet := registry.ratchet(store, registry.pin("anchor"))).anchor:
            report.facts["best"] = update_best(params.gate, layout, ratchet, verdict.candidate)
    return report


def label_value(params: Params, layout: Layout) -> Report:
    """Report the effect of labels since the champion on each category: counts by source, MSE before and after."""
    with timed(Report("label-value"), layout.stage_report("label-value")) as report:
        champion = frozen_inputs(layout)["champion"]
        store = store_of(layout)
        learned = training_labels(layout.settings, store, champion["version"]) if champion else {}
        return value_of_labels(catalog_of(layout), layout, learned, report)


@in_the_cycle
def html_report(params: Params, layout: Layout, *, progress: Progress = quiet) -> Report:
    """Write one page about the cycle: verdict, tables with bounds, mattes side by side, labels, quarantine, costs.

    `label_compare` runs first, within the budget of `params.label`. If it is skipped or fails, the page and
    `report.facts["not_compared"]` contain the reason.
    """
    with timed(Report("report")) as report:
        if has_snapshot(layout):
            label_value(params, layout)
            if why_not := compare_after_cycle(params, layout, progress):
                report.facts["not_compared"] = why_not
        write_html(params, layout, catalog_of(layout), store_of(layout), report)
    if has_snapshot(layout):
        Tracker(layout.settings).log_report(layout, report, files=[layout.html_report])
    return report


@in_the_cycle
def override(params: Params, layout: Layout, version: str, *, reason: str, days: int) -> Report:
    """Promote `candidate` or a registered version against the gate. An override is signed, logged and expires."""
    registry = Registry(layout.settings)
    with timed(Report("override"), layout.root / "reports" / "override.json") as report:
        if version == "candidate":
            verdict = recorded_verdict(layout)
            signed = write_override(store_of(layout), verdict.candidate, reason, verdict.decision, days)
            export(params, layout)
            report.facts |= {"override": signed} | promote(params, layout).facts
            return report
        tags = registry.tags(version)
        if tags is None:
            raise InputError(f"the registry has no version {version!r}: name one, or `candidate`")
        signed = write_override(store_of(layout), tags["model_digest"], reason, tags["verdict"], days)
        report.facts["override"] = signed
        return registry.crown(version, signed, report)


TRAIN = {"simple": train_simple, "hard": train_hard, "semi": train_semi, "multimodal": train_multimodal}


RESTARTS = 3
"""Largest number of cycles in one `mm run`, if a person moves the champion during the training."""


def run_cycle(params: Params, layout: Layout, *, again: bool = False, progress: Progress = quiet) -> dict[str, Report]:
    """Run one whole cycle (`mm run`). A refusal by the gate is a result, not an error.

    Without new inputs it ends after `pin_inputs`, unless `again` is set. Arrivals do not wait for a running cycle; the
    rest holds the cycle lock from pins to page. If a person moves the champion during the cycle (`mm rollback`), the
    comparison is not valid any more. The cycle then starts again from the new champion.
    """
    reports = {"ingest": ingest(params, layout, progress=progress)}
    reports["structure"] = structure(params, layout, progress=progress)
    for attempt in range(RESTARTS):
        try:
            return reports | _run(params, layout, again=again, progress=progress)
        except ReleaseRefused as refusal:
            moved = frozen_inputs(layout)["champion"] != inputs_now(layout)["champion"]
            if not moved or attempt + 1 == RESTARTS:
                raise
            logging.getLogger(__name__).warning("the cycle begins again: %s", refusal)
    raise AssertionError("the last attempt returns or raises")


@in_the_cycle
def _run(params: Params, layout: Layout, *, again: bool, progress: Progress) -> dict[str, Report]:
    """Run the stages of `mm run` that need the cycle lock."""
    reports = {"pin_inputs": pin_inputs(params, layout, again=again)}
    if "nothing_new" in reports["pin_inputs"].facts:
        return reports
    reports["snapshot"] = snapshot(params, layout)
    reports["split"] = split(params, layout, progress=progress)
    for stage in TRAIN_STAGES:
        reports[f"train-{stage}"] = TRAIN[stage](params, layout, progress=progress)
    reports["evaluate"] = evaluate(params, layout, progress=progress)
    reports["gate"] = gate(params, layout)
    if reports["gate"].facts["decision"] == "PROMOTE":
        reports["export"] = export(params, layout)
        reports["promote"] = promote(params, layout)
    reports["report"] = html_report(params, layout, progress=progress)
    return reports
