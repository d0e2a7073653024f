"""Record results of other commands on this workspace (`mm run`, `mm demo`, `dvc repro`) in Dagster's history."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from mm_core.core.errors import MattingError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import Report
from mm_core.core.settings import tick_seconds
from mm_core.pinned_inputs import read_inputs
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.run import catalog_of
from mm_core.structuring.batch_summary import report_of_batch
from pipelines.defs.checks import counts_of, is_refused, verdict_result
from pipelines.defs.jobs import arrivals
from pipelines.defs.sensors import UNFINISHED, asked_for
from pipelines.metadata import data_docs, of_report, page
from pipelines.partitions import batches, partition_of
from pipelines.provenance import data_version, row_count
from pipelines.resources import Workspace
from pipelines.results import Metadata, Shown, describe

REPORTED = {
    "snapshot": "snapshot",
    "split": "split",
    **{f"train_{stage}": f"train-{stage}" for stage in TRAIN_STAGES},
    "evaluation": "evaluate",
    "label_comparison": "label-compare",
}
"""Assets and the stages whose reports describe them, in the order of the flow."""
REFUSED = ("image", "verdict", "reason", "detail")
"""Columns of refused rows that are shown."""
MOST = 20
"""Maximum number of batches reported per tick; the others follow in the next ticks."""

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation


@dg.sensor(
    job=arrivals,
    minimum_interval_seconds=2 * tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports to Dagster what `mm run`, `mm demo` or `dvc repro` made on this workspace.",
)
def made_elsewhere(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """Report files that are newer than Dagster's last materialization of their asset.

    Runs of Dagster end after they have written their files, so a newer file is from another command. While a run of
    Dagster is unfinished, nothing is reported, since the run reports its own files.
    """
    # A running stage has written some of its files already.
    if context.instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED)):
        return dg.SkipReason("runs of Dagster are unfinished")
    try:
        layout = workspace.layout()
        arrived, refused = unknown_batches(context.instance, layout)
        events = [*of_batches(arrived, layout), *of_cycle(context.instance, layout)]
    except MattingError as error:
        return dg.SkipReason(str(error))
    if not events and not refused:
        return dg.SkipReason("nothing new: Dagster has recorded everything in the workspace")
    # A partition must exist before an asset can be materialised for it.
    names = [partition_of(row["kind"], row["batch"]) for row in (*arrived, *refused)]
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=[batches.build_add_request(names)] if names else [],
        run_requests=[
            asked_for(f"refused-{row['key']}", partition=partition_of(row["kind"], row["batch"])) for row in refused
        ],
    )


def unknown_batches(instance: dg.DagsterInstance, layout: Layout) -> tuple[list[dict], list[dict]]:
    """Return the present ledger rows of batches that Dagster has not recorded, the earliest first.

    Returns:
        The batches in the catalog that no run has ingested, and the refused batches that no run of Dagster has seen. A
        refused batch is not materialised: a run of its own fails with the reason.
    """
    recorded = instance.get_materialized_partitions(dg.AssetKey("ingested_batch"))
    ledger = catalog_of(layout).read("batches").sort_values("ingested_at")
    # The latest row of a batch is its present state.
    rows = ledger.drop_duplicates(["kind", "batch"], keep="last").to_dict("records")
    refused = [row for row in rows if is_refused(row) and not _was_run(instance, row)]
    taken = [r for r in rows if not is_refused(r) and partition_of(r["kind"], r["batch"]) not in recorded]
    return taken[:MOST], refused[:MOST]


def _was_run(instance: dg.DagsterInstance, row: dict) -> bool:
    """Return whether a run of the batch's partition ended or changed after the ledger row was written."""
    written = datetime.fromisoformat(row["ingested_at"])
    tags = {"dagster/partition": partition_of(row["kind"], row["batch"])}
    # The run that wrote the row was created before it and updated after it.
    return instance.get_runs_count(dg.RunsFilter(tags=tags, updated_after=written)) > 0


def of_batches(rows: list[dict], layout: Layout) -> Iterator[Event]:
    """Yield materializations of batches from their rows in the ledger, the catalog and their comparisons."""
    catalog = catalog_of(layout)
    for row in rows:
        partition = partition_of(row["kind"], row["batch"])
        yield ingested(catalog, row, layout)
        # A comparison with the catalog shows that the batch was structured.
        if (layout.drift / f"{partition}.json").is_file():
            report = report_of_batch(catalog, layout.drift, partition)
            metadata = {**of_report(report), **row_count(report.metrics["structure/rows"])}
            shown = Shown(metadata, data_version(report.facts["features"]))
            yield shown.event("structured_samples", partition=partition)


def ingested(catalog: Catalog, row: dict, layout: Layout) -> dg.AssetMaterialization:
    """Return the materialization of a batch from its row in the ledger, with its Data Docs and its refused rows."""
    partition = partition_of(row["kind"], row["batch"])
    report = Report("ingest", metrics={f"ingest/{name}": float(count) for name, count in counts_of(row).items()})
    own: list[Filter] = [("kind", "=", row["kind"]), ("batch", "=", row["batch"])]
    report.tables["rejects"] = catalog.read("rejects", columns=REFUSED, filters=own).to_dict("records")
    metadata = {**data_docs(layout, partition), **of_report(report), **row_count(float(row["accepted"]))}
    more: Metadata = {"ingested at": str(row["ingested_at"]), "drop": str(row["uri"])}
    return Shown(metadata, data_version(row["arrival"] or row["key"])).event(
        "ingested_batch", partition=partition, more=more
    )


def of_cycle(instance: dg.DagsterInstance, layout: Layout) -> Iterator[Event]:
    """Yield events for new files of `cycle/` and new pages of past cycles, in the order of the flow."""
    # The pinned inputs have no report of their own.
    if made := younger(instance, "pinned_inputs", [layout.inputs]):
        report = Report("pin_inputs", facts={**read_inputs(layout)})
        metadata: Metadata = {**of_report(report, paths={"file": layout.inputs}), **when(made[0])}
        yield Shown(metadata, data_version(report.facts)).event("pinned_inputs")
    for asset, stage in REPORTED.items():
        file = layout.stage_report(stage)
        if younger(instance, asset, [file]):
            yield describe(asset, layout, read_report(file)).event(asset, more=when(file))
    yield from of_verdict(instance, layout)
    yield from of_release(instance, layout)
    for copy in younger(instance, "cycle_report", sorted(layout.reports.glob("*.html"), key=written_at)):
        yield dg.AssetMaterialization("cycle_report", metadata={"page": page(layout, copy)} | when(copy))


def read_report(file: Path) -> Report:
    """Return a stage's report without the pictures that were overwritten after it was written."""
    report, end = Report.read(file), written_at(file)
    pictures = {title: png for title, png in report.pictures.items() if _is_from_before(Path(png), end)}
    return replace(report, pictures=pictures)


def _is_from_before(png: Path, end: float) -> bool:
    return png.is_file() and written_at(png) <= end


def of_verdict(instance: dg.DagsterInstance, layout: Layout) -> Iterator[Event]:
    """Yield the verdict as the gate's check, and the gate's materialization if it passed."""
    file = layout.stage_report("gate")
    key = dg.AssetCheckKey(dg.AssetKey("gate"), "promote")
    record = instance.get_latest_asset_check_evaluation_record(key)
    recorded_at = record.event.timestamp if record and record.event else 0.0
    if not file.is_file() or written_at(file) <= recorded_at:
        return
    report = read_report(file)
    result = verdict_result(report)
    yield dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )
    if result.passed and younger(instance, "gate", [file]):
        yield describe("gate", layout, report).event("gate", more=when(file))


def of_release(instance: dg.DagsterInstance, layout: Layout) -> Iterator[Event]:
    """Yield new bundles, and the champion: the one just promoted, or the one that the last cycle was pinned to."""
    exported, promoted = layout.stage_report("export"), layout.stage_report("promote")
    report = read_report(exported) if exported.is_file() else None
    manifests = sorted(layout.bundles.glob("*/manifest.json"), key=written_at)
    for manifest in younger(instance, "exported_bundle", manifests):
        # The report is about the last bundle; bundles of earlier cycles have none.
        if report and Path(str(report.facts.get("bundle"))) == manifest.parent:
            yield describe("exported_bundle", layout, report).event("exported_bundle", more=when(manifest))
        else:
            yield dg.AssetMaterialization("exported_bundle", metadata={"bundle": str(manifest.parent)} | when(manifest))
    # The report exists if this cycle has promoted a model.
    report = read_report(promoted) if promoted.is_file() else None
    if report:
        version = report.facts.get("version")
    else:
        version = (read_inputs(layout)["champion"] or {}).get("version") if layout.inputs.is_file() else None
    # The version is compared, since a champion has no file of its own.
    last = instance.get_latest_materialization_event(dg.AssetKey("promoted_model"))
    materialization = last.asset_materialization if last else None
    if version and (materialization is None or materialization.metadata["version"].value != str(version)):
        more: Metadata = {"version": str(version)}
        yield (
            describe("promoted_model", layout, report).event("promoted_model", more=more)
            if report
            else (dg.AssetMaterialization("promoted_model", metadata=more))
        )


def younger(instance: dg.DagsterInstance, asset: str, files: list[Path]) -> list[Path]:
    """Return the existing files that were written after the asset's last materialization."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    return [file for file in files if file.is_file() and (event is None or written_at(file) > event.timestamp)]


def written_at(file: Path) -> float:
    """Return the time of a file's last change in UNIX seconds."""
    return file.stat().st_mtime


def when(file: Path) -> Metadata:
    """Return metadata with the time of a file's last change."""
    return {"made at": dg.MetadataValue.timestamp(datetime.fromtimestamp(written_at(file), UTC))}
