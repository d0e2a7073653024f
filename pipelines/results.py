"""Build the metadata that Dagster shows for each asset of a cycle, made by Dagster or by another command."""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import Report, sha256_file
from mm_core.eval.scoring import COLUMNS as SCORE_COLUMNS
from mm_core.ingest.placement import COLUMNS as POOL_COLUMNS
from mm_core.structuring.split import COLUMNS as SPLIT_COLUMNS
from pipelines.metadata import of_report
from pipelines.provenance import data_version, parquet_rows

Metadata = dict[str, dg.MetadataValue | str | int | dg.TableSchema]


@dataclass(frozen=True)
class Shown:
    """Metadata and data version of a materialization."""

    metadata: Metadata
    version: dg.DataVersion | None

    def result(self) -> dg.MaterializeResult:
        """Return the result of a run's step."""
        return dg.MaterializeResult(metadata=self.metadata, data_version=self.version)

    def event(
        self, asset: str, *, partition: str | None = None, more: Metadata | None = None
    ) -> dg.AssetMaterialization:
        """Return the event of a result that another command made, with further metadata."""
        tags = None
        if self.version:
            tags = {DATA_VERSION: self.version.value, f"{DATA_VERSION}_is_user_provided": "true"}
        return dg.AssetMaterialization(asset, partition=partition, metadata=self.metadata | (more or {}), tags=tags)


DATA_VERSION = "dagster/data_version"
"""Dagster's tag of a materialization; a run's step sets it from its result."""
TRAINED = {f"train_{stage}": stage for stage in TRAIN_STAGES}


def describe(asset: str, layout: Layout, report: Report) -> Shown:
    """Return metadata and data version of an asset of the cycle from its stage's report and files.

    Args:
        asset: Name of the asset.
        layout: The workspace that holds the files.
        report: The report of the stage that made them.
    """
    if asset in TRAINED:
        shown = of_report(report, paths={"weights": layout.model(TRAINED[asset])})
        return Shown({**shown}, data_version(report.facts["digest"]))
    match asset:
        case "snapshot":
            rows = parquet_rows(layout.snapshot.glob("*.parquet"), POOL_COLUMNS)
            shown = of_report(report, paths={"folder": layout.snapshot})
            return Shown({**shown, **rows}, data_version(report.facts["digest"]))
        case "split":
            files = sorted(layout.split.glob("*.parquet"))
            shown = of_report(report, paths={"folder": layout.split})
            version = data_version([sha256_file(file) for file in files])
            return Shown({**shown, **parquet_rows(files, SPLIT_COLUMNS)}, version)
        case "evaluation":
            rows = parquet_rows([layout.per_image], SCORE_COLUMNS)
            shown = of_report(report, paths={"per photo": layout.per_image})
            return Shown({**shown, **rows}, data_version(sha256_file(layout.per_image)))
        case "gate":
            facts = report.facts
            shown = of_report(report, paths={"verdict": layout.verdict})
            return Shown({**shown}, data_version(facts["candidate"], facts["inputs"], facts["params"]))
        case "exported_bundle":
            manifest = Path(str(report.facts["bundle"])) / "manifest.json"
            return Shown({**of_report(report)}, data_version(sha256_file(manifest)))
        case "promoted_model":
            return Shown({**of_report(report)}, data_version(report.facts["digest"]))
    return Shown({**of_report(report)}, None)
