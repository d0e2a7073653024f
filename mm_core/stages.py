"""The stages of the flow, in order. Each stage is one function that reads and writes files and returns a Report.

The `mm` command, `dvc.yaml` and the Dagster assets are thin layers over these functions. They are in one file, so that
a reader sees the whole flow from top to bottom.

    inbox ─► ingest ─► structure ─► route ──► people ──► collect        per arrival
    catalog ─► pin_inputs ─► snapshot ─► split ─► train simple ─► hard ─► semi ─► multimodal
            ─► evaluate ─► gate ─► export ─► promote ─► label_compare ─► report    per cycle

Each takes a `Run`. `pinned_inputs.py` has it and the inputs of a cycle (pins, verdict), `operations.py` the operations
outside the cycle.
Every stage of a cycle holds the workspace's cycle lock (`in_the_cycle`). Stages of an arrival may run at the same time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.pins import ROLES, has_snapshot, missing, read_snapshot
from mm_core.core.records import Report, digest_of, sha256_file, timed, write_json
from mm_core.eval.eval_budget import record_use
from mm_core.eval.evaluate import evaluate_models, identity
from mm_core.eval.gate import History, decide
from mm_core.eval.independence import learnt_photos
from mm_core.eval.ratchet import best_models, update_best
from mm_core.eval.report import write_html
from mm_core.eval.shadow import newest_unlabelled, run_shadow
from mm_core.export.bundle import write_bundle
from mm_core.export.lineage import learnt_by, training_labels
from mm_core.export.override import write_override
from mm_core.export.quantise import quantise
from mm_core.export.runtime import OnnxPredictor, files_digest, int8_files
from mm_core.export.start_weights import keep_start
from mm_core.ingest.ingest import ingest_ready
from mm_core.ingest.learnt import record_learnt
from mm_core.ingest.snapshot import build_snapshot, eval_state, read_pool
from mm_core.labeling.apply_annotations import Taken
from mm_core.labeling.collect import collect_labels
from mm_core.labeling.label_studio_local import connect
from mm_core.labeling.pull import pull_labels
from mm_core.labeling.push import push_tasks, undelivered
from mm_core.labeling.review import settle_suspects
from mm_core.labeling.route import route_hard
from mm_core.labeling.value import value_of_labels
from mm_core.model.meta import weights_digest
from mm_core.model.predict import TorchPredictor, pick_device
from mm_core.pinned_inputs import (
    Run,
    frozen_inputs,
    in_the_cycle,
    inputs_now,
    pin,
    read_inputs,
    recorded_verdict,
    require_one_cycle,
    require_photos,
    require_promote,
    settle_late_pins,
    warm_start,
)
from mm_core.storage.seals import require_unbroken, seal_folder
from mm_core.storage.store import fetch_blob
from mm_core.structuring.batch_summary import describe_batch
from mm_core.structuring.drift import drift_of_new
from mm_core.structuring.split import split_by_difficulty
from mm_core.structuring.structure import structure_new
from mm_core.training.record import require_start
from mm_core.training.stage_data import read_data

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor


# ── per arrival ──────────────────────────────────────────────────────────────────────────────────


def ingest(run: Run, *, batch: str | None = None) -> Report:
    """Ingest all ready drops (or one). Each photo is accepted, quarantined with a reason, or a duplicate."""
    with timed(Report("ingest"), run.layout.root / "reports" / "ingest.json") as report:
        ingest_ready(run, report, batch=batch)
        taken = [f"{row['kind']}/{row['batch']}" for row in report.tables["batches"]]
        if any(name.startswith("pixel_labeled/") for name in taken):
            state = eval_state(run.params.snapshot, run.catalog, taken)
            report.facts["eval"] = state["words"]
            report.tables |= {"eval": state["categories"], "eval_refused": state["refused"]}
        return report


def structure(run: Run, *, batch: str | None = None) -> Report:
    """Compute missing features of all samples: quality, place, time, vector, tags, text, difficulty.

    New batches, and `batch` (kind/batch) again, are then compared with the earlier catalog to detect drift. If `batch`
    is given, the report is about this batch only.
    """
    with timed(Report("structure"), run.layout.root / "reports" / "structure.json") as report:
        source = structure_new(run, report)
        drift_of_new(run.params.drift, run.catalog, source, run.layout.drift, report, batch)
        if batch:
            describe_batch(run.catalog, batch, report)
    return report


def route(run: Run) -> Report:
    """Select the photos for labelling and write Label Studio tasks with the champion's mattes as a start."""
    with timed(Report("route")) as report:
        return route_hard(run, inputs_now(run.layout), report)


def push(run: Run) -> Report:
    """Send the tasks of the outbox to the Label Studio server; without a server they stay in the outbox."""
    with timed(Report("push"), run.layout.root / "reports" / "push.json") as report:
        server = connect(run.layout, people=run.params.label.people)
        if server is None:
            report.metrics["push/waiting"] = undelivered(run.layout, None)
            report.facts["server"] = "none: set LABEL_STUDIO_URL, or start one with `mm label serve`"
            return report
        return push_tasks(run.layout, server, report, progress=run.progress)


def collect(run: Run) -> Report:
    """Collect finished labels as new label versions, from files of the inbox and then from the server.

    Reviewed suspect mattes leave quarantine.
    """
    layout = run.layout
    with timed(Report("collect"), layout.root / "reports" / "collect.json") as report:
        taken = Taken()
        # Label files come first, because they need no server.
        report.metrics["collect/files"] = collect_labels(run, taken)
        try:
            if server := connect(layout, people=run.params.label.people):
                tasks = pull_labels(run, server, taken)
                report.metrics["collect/tasks"] = tasks
                report.facts["project"] = server.link()
        finally:  # keeps the labels collected so far if the server fails
            report.facts |= settle_suspects(run)
            taken.report(report)
        return report


# ── per cycle ────────────────────────────────────────────────────────────────────────────────────


@in_the_cycle
def pin_inputs(run: Run, *, again: bool = False) -> Report:
    """Pin the inputs of the next cycle: catalog versions, champion and anchor.

    Without new inputs since the last finished cycle, its pins stay, so that no caller repeats the cycle, and
    `report.facts["nothing_new"]` is set. `again` pins in any case.

    Raises InputError if the catalog is empty.
    """
    require_photos(run.layout)
    with timed(Report("pin_inputs")) as report:
        report.facts |= {**pin(run, again=again)}
    return report


@in_the_cycle
def snapshot(run: Run) -> Report:
    """Freeze one catalog version as parquet manifests; eval photos never change pools."""
    settle_late_pins(run)
    with timed(Report("snapshot"), run.layout.stage_report("snapshot")) as report:
        return build_snapshot(run.params.snapshot, run.catalog, read_inputs(run.layout), run.layout.snapshot, report)


@in_the_cycle
def split(run: Run) -> Report:
    """Split train_labeled into a simple and a hard set by difficulty."""
    with timed(Report("split"), run.layout.stage_report("split")) as report:
        inputs = frozen_inputs(run.layout)
        return split_by_difficulty(run.params.split, run.catalog, inputs, run.layout.snapshot, run.layout.split, report)


@in_the_cycle
def train_simple(run: Run) -> Report:
    """Train supervised on the simple set, from the champion or from scratch."""
    return _train("simple", run)


@in_the_cycle
def train_hard(run: Run) -> Report:
    """Train supervised on the hard set, with a share of simple photos against forgetting."""
    return _train("hard", run)


@in_the_cycle
def train_semi(run: Run) -> Report:
    """Train with unlabelled photos by cross-consistency with perturbed auxiliary decoders."""
    return _train("semi", run)


@in_the_cycle
def train_multimodal(run: Run) -> Report:
    """Train with text: consistency of image-only and text-image mattes, and a text-aware contrastive loss."""
    return _train("multimodal", run)


def _train(stage: str, run: Run) -> Report:
    from mm_core.training.stage import train_stage

    # The first stage gets None from `require_start`, and starts from the champion or from scratch.
    start = require_start(stage, run.layout) or warm_start(run, frozen_inputs(run.layout))
    with timed(Report(f"train-{stage}"), run.layout.stage_report(f"train-{stage}")) as report:
        # Recorded before the first step, so that a killed training is remembered too.
        data = read_data(stage, run.layout)
        trained = [data.labeled, data.replay, data.unlabeled, data.text_image]
        record_learnt(run.catalog, [frame for frame in trained if frame is not None], data.validation)
        if run.layout.settings.engine == "ray":
            from mm_core.training.on_ray import train_stage_on_ray

            return train_stage_on_ray(stage, run, report, start=start)
        return train_stage(stage, run, report, start=start)


@in_the_cycle
def evaluate(run: Run) -> Report:
    """Evaluate all stages, champion and anchor on the frozen eval set, and the candidate also as int8 files."""
    layout = run.layout
    store, inputs = run.store, frozen_inputs(layout)
    require_one_cycle(layout)
    with timed(Report("evaluate"), layout.stage_report("evaluate")) as report:
        candidate = layout.model(TRAIN_STAGES[-1])
        # The int8 files are what phones run, so they are judged and not only the float weights.
        quantise(run, candidate, layout.quantised, report)
        device = pick_device(layout.settings.device)
        weights = {stage: layout.model(stage) for stage in TRAIN_STAGES}
        files = {TRAIN_STAGES[-1]: int8_files(layout.quantised)}
        # Champion and anchor are read as pinned: the aliases may have moved since.
        for role in ROLES:
            if pin := inputs[role]:
                weights[role] = fetch_blob(store, pin["digest"])
                files[role] = {name: fetch_blob(store, digest) for name, digest in pin["files"].items()}
        models: dict[tuple[str, str], Predictor] = {}
        models |= {(name, "float"): TorchPredictor(path, device) for name, path in weights.items()}
        models |= {(name, "int8"): OnnxPredictor(of_model) for name, of_model in files.items()}
        # The device changes the last digits of a float model's scores, so it is part of the key.
        digests = {(name, "float"): digest_of([weights_digest(path), device]) for name, path in weights.items()}
        digests |= {(name, "int8"): files_digest(of_model) for name, of_model in files.items()}
        evaluate_models(run, models, report, digests)
        # An earlier cycle may have left a comparison that does not belong to this one.
        layout.shadow.unlink(missing_ok=True)
        if inputs["champion"] and run.params.evaluate.shadow_photos:
            photos = newest_unlabelled(run.catalog, inputs["catalog"], run.params.evaluate.shadow_photos)
            candidate_int8, champion_int8 = models[TRAIN_STAGES[-1], "int8"], models["champion", "int8"]
            run_shadow(run, photos, candidate_int8, champion_int8, identity(layout, inputs), report)
        # The gate compares the files with this seal before it judges.
        seal_folder(layout.evaluation, [path for path in sorted(layout.quantised.iterdir()) if path.is_file()])
    return report


@in_the_cycle
def gate(run: Run) -> Report:
    """Decide PROMOTE, REJECT or INCONCLUSIVE on paired per-image differences, and record the verdict.

    Raises InputError, without a verdict, if a model was trained on other data than the present snapshot.
    """
    from mm_core.experiments.seed_noise import recorded_noise

    layout = run.layout
    weights = layout.model(TRAIN_STAGES[-1])
    if not has_file(weights):
        raise missing(layout, weights, f"run `mm train-{TRAIN_STAGES[-1]}`, or `mm run` for a whole cycle")
    require_one_cycle(layout)
    require_unbroken(layout.evaluation, "run `mm evaluate` again")
    store, candidate = run.store, sha256_file(weights)
    with timed(Report("gate"), layout.stage_report("gate")) as report:
        inputs, frame = frozen_inputs(layout), read_pool(layout.snapshot, "eval")
        judged = [pin["digest"] for role in ROLES if (pin := inputs[role])]
        # Without a champion the candidate may descend from an earlier one, and has learnt what that one had learnt.
        if start := inputs.get("start"):
            judged.append(start["digest"])
        # The best models so far are compared by their recorded scores; not all of them need be ancestors of a champion.
        ratchet = run.registry.ratchet(store, inputs["anchor"])
        judged += best_models(ratchet) if inputs["champion"] else []
        samples = run.catalog.read(
            "samples", version=inputs["catalog"]["samples"], columns=["id", "group", "phash", "near"]
        )
        learnt = learnt_by(layout.settings, store, judged)
        verdict = decide(
            run.params.gate,
            layout,
            inputs,
            History(
                ratchet=ratchet,
                noise=recorded_noise(run),
                uses=record_use(store, frame["sample_id"], candidate),
                left_out=learnt_photos(frame, samples, learnt, run.params.snapshot.near_duplicate_bits),
            ),
        )
        # What an earlier verdict led to does not hold any more, unless it is this one and the champion already moved.
        moved = (run.registry.pin("champion") or {}).get("digest") == candidate
        if not (moved and verdict.decision == "PROMOTE"):
            for later in ("export", "promote"):
                layout.stage_report(later).unlink(missing_ok=True)
        write_json(layout.verdict, verdict.model_dump())
        if not inputs["champion"]:
            reason = keep_start(run, verdict)
            report.facts["start_of_next_cycle"] = reason or "this candidate, while there is no champion"
        report.facts |= {"decision": verdict.decision, "reasons": verdict.reasons, "candidate": verdict.candidate}
        report.facts |= {"inputs": digest_of(inputs), "params": run.params.cycle_digest()}
        report.tables["cells"] = [cell.model_dump() for cell in verdict.cells]
        counts = {"gate/left_out": len(verdict.left_out), "gate/promote": verdict.decision == "PROMOTE"}
        report.metrics |= {name: float(count) for name, count in counts.items()}
    return report


@in_the_cycle
def export(run: Run) -> Report:
    """Write the mobile bundle of a candidate with the recorded verdict PROMOTE."""
    with timed(Report("export"), run.layout.stage_report("export")) as report:
        verdict, _ = require_promote(run.layout)
        return write_bundle(run, verdict, report)


@in_the_cycle
def promote(run: Run) -> Report:
    """Register the bundled model in MLflow and move the alias `champion`. The function is idempotent."""
    with timed(Report("promote"), run.layout.stage_report("promote")) as report:
        (verdict, override), registry = require_promote(run.layout), run.registry
        registry.promote(run, verdict, report, override=override)
        if (ratchet := registry.ratchet(run.store, registry.pin("anchor"))).anchor:
            best = update_best(run.params.gate, run.layout, ratchet, verdict.candidate, verdict.left_out)
            report.facts["best"] = best
    return report


def label_value(run: Run) -> Report:
    """Report the effect of labels since the champion on each category: counts by source, MSE before and after."""
    with timed(Report("label-value"), run.layout.stage_report("label-value")) as report:
        champion = frozen_inputs(run.layout)["champion"]
        store = run.store
        learned = training_labels(run.layout.settings, store, champion["version"]) if champion else {}
        return value_of_labels(run.catalog, run.layout, learned, report)


@in_the_cycle
def compare_labels(run: Run, *, seeds: int = 1, fewest: int = 1) -> Report:
    """Compare training on routed photos with training on as many random new photos, with all steps of the stage.

    Args:
        run: Params, workspace, storage and progress.
        seeds: Trainings per side.
        fewest: Smallest number of photos per arm.

    Raises:
        InputError: The registry has no training labels of the champion, or an arm has too few photos.
    """
    from mm_core.experiments import label_ablation

    # Use the snapshot's champion. The pinned champion may have been trained on this snapshot.
    champion = read_snapshot(run.layout)["champion"]
    store = run.store
    learned = training_labels(run.layout.settings, store, champion["version"]) if champion else {}
    if champion and not learned:
        raise InputError(f"the registry does not say what champion {champion['version']} learned from: nothing is new")
    with timed(Report("label-compare"), run.layout.stage_report("label-compare")) as report:
        start = warm_start(run, frozen_inputs(run.layout))
        return label_ablation.compare_labels(run, learned, report, start=start, seeds=seeds, fewest=fewest)


@in_the_cycle
def label_compare(run: Run) -> Report:
    """Compare training on routed photos with training on as many random ones; off by default (`label.compare_seeds`).

    It takes few steps (`label.compare_share`) and never stops a cycle: `facts["not_compared"]` has the reason if it is
    off, impossible or failed. A comparison of this snapshot with as many seeds and steps is kept.
    """
    from mm_core.experiments import label_ablation

    seeds, path = run.params.label.compare_seeds, run.layout.stage_report("label-compare")
    digest = read_snapshot(run.layout)["digest"]
    kept = Report.read(path) if has_file(path) else None
    # A report without these facts is of a comparison that was skipped.
    if kept and (kept.facts.get("snapshot") != digest or not {"seeds", "steps"} <= set(kept.facts)):
        kept = None
    steps = label_ablation.affordable(run.params)
    if kept and kept.fact("seeds", int) >= seeds and (not seeds or kept.fact("steps", int) >= steps):
        return kept
    why = "label.compare_seeds is 0"
    try:
        if seeds:
            few = run.params.with_values(**{"train.simple.steps": steps})
            return compare_labels(Run(few, run.layout, run.progress), seeds=seeds, fewest=label_ablation.FEWEST)
    except InputError as error:
        why = str(error)
    # The comparison is optional and the verdict is already recorded, so no error here may prevent the page.
    # The log has the traceback, the page has the error, and `mm label compare --seeds` raises it.
    except Exception as error:  # noqa: BLE001
        logging.getLogger(__name__).exception("comparing routed with random labels failed; the cycle goes on")
        why = f"failed: {type(error).__name__}: {error}"
    # The page shows the reason only where the comparison was asked for.
    report = Report("label-compare", facts={"snapshot": digest if seeds else "", "not_compared": why})
    report.write(path)
    return report


@in_the_cycle
def html_report(run: Run) -> Report:
    """Write one page about the cycle: verdict, tables with bounds, mattes side by side, labels, quarantine, costs."""
    with timed(Report("report")) as report:
        if has_snapshot(run.layout):
            label_value(run)
        write_html(run, report)
    return report


@in_the_cycle
def override(run: Run, version: str, *, reason: str, days: int) -> Report:
    """Promote `candidate` or a registered version against the gate. An override is signed, logged and expires."""
    registry = run.registry
    with timed(Report("override"), run.layout.root / "reports" / "override.json") as report:
        if version == "candidate":
            verdict = recorded_verdict(run.layout)
            # An override permits one candidate; export and promotion check it like a verdict.
            signed = write_override(run.store, verdict.candidate, reason, verdict.decision, days)
            export(run)
            report.facts |= {"override": signed} | promote(run).facts
            return report
        tags = registry.tags(version)
        if tags is None:
            raise InputError(f"the registry has no version {version!r}: name one, or `candidate`")
        signed = write_override(run.store, tags["model_digest"], reason, tags["verdict"], days)
        report.facts["override"] = signed
        return registry.crown(version, signed, report)


TRAIN = {"simple": train_simple, "hard": train_hard, "semi": train_semi, "multimodal": train_multimodal}


RESTARTS = 3
"""Largest number of cycles in one `mm run`, if a person moves the champion during the training."""


def run_cycle(run: Run, *, again: bool = False) -> dict[str, Report]:
    """Run one whole cycle (`mm run`). A refusal by the gate is a result, not an error.

    Without new inputs it ends after `pin_inputs`, unless `again` is set. Arrivals do not wait for a running cycle; the
    rest holds the cycle lock from pins to page. If a person moves the champion during the cycle (`mm rollback`), the
    comparison is not valid any more. The cycle then starts again from the new champion.
    """
    reports = {"ingest": ingest(run)}
    reports["structure"] = structure(run)
    for attempt in range(RESTARTS):
        try:
            return reports | _run(run, again=again)
        except ReleaseRefused as refusal:
            moved = frozen_inputs(run.layout)["champion"] != inputs_now(run.layout)["champion"]
            if not moved or attempt + 1 == RESTARTS:
                raise
            logging.getLogger(__name__).warning("the cycle begins again: %s", refusal)
    raise AssertionError("the last attempt returns or raises")


@in_the_cycle
def _run(run: Run, *, again: bool) -> dict[str, Report]:
    """Run the stages of `mm run` that need the cycle lock."""
    reports = {"pin_inputs": pin_inputs(run, again=again)}
    # The last cycle had the same inputs, so its results still hold.
    if "nothing_new" in reports["pin_inputs"].facts:
        return reports
    reports["snapshot"] = snapshot(run)
    reports["split"] = split(run)
    for stage in TRAIN_STAGES:
        reports[f"train-{stage}"] = TRAIN[stage](run)
    reports["evaluate"] = evaluate(run)
    reports["gate"] = gate(run)
    if reports["gate"].facts["decision"] == "PROMOTE":
        reports["export"] = export(run)
        reports["promote"] = promote(run)
    if run.params.label.compare_seeds:
        reports["label-compare"] = label_compare(run)
    reports["report"] = html_report(run)
    return reports
