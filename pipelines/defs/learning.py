"""Assets of each cycle that freeze the catalog, split by difficulty, and train in four stages."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from mm_core import stages
from mm_core.ingest.placement import COLUMNS, SCHEMA
from pipelines.defs.arrivals import OWNERS, collected_labels, structured_samples
from pipelines.metadata import of_report
from pipelines.provenance import code_version, data_version, table_columns
from pipelines.resources import Workspace, plain_failures
from pipelines.results import describe

RESUME = dg.RetryPolicy(max_retries=2, delay=5)
"""Retries of killed steps; training resumes from its checkpoint. `plain_failures` decides which errors are retried."""
POOL = "training"
"""One training at a time per machine: `infra/dagster.yaml` limits every pool to 1."""


class Pinning(dg.Config):
    """Options of a cycle's first asset."""

    again: bool = Field(default=False, description="Start even if nothing is new since the last cycle.")


@dg.asset(
    code_version=code_version("mm_core.pinned_inputs"),
    group_name="learning",
    deps=[structured_samples, collected_labels],
    output_required=False,
    retry_policy=RESUME,
    kinds={"deltalake", "mlflow"},
    owners=OWNERS,
    tags={"room": "data"},
)
def pinned_inputs(
    context: dg.AssetExecutionContext, workspace: Workspace, config: Pinning
) -> Iterator[dg.MaterializeResult]:
    """Inputs that the cycle is pinned to: catalog versions, champion and anchor.

    If nothing is new since the last cycle, the asset is not materialised, and all following assets are skipped.
    """
    layout = workspace.layout()
    with plain_failures():
        # Pin versions once, so that all stages of the cycle use the same data.
        report = stages.pin_inputs(workspace.run(), again=config.again)
    # Without an output the assets downstream are skipped.
    if nothing_new := report.facts.get("nothing_new"):
        context.log_event(dg.AssetObservation(asset_key=context.asset_key, description=f"nothing new: {nothing_new}"))
    else:
        yield dg.MaterializeResult(
            metadata=of_report(report, paths={"file": layout.inputs}), data_version=data_version(report.facts)
        )


@dg.asset(
    code_version=code_version("mm_core.ingest.snapshot"),
    metadata=table_columns(SCHEMA, COLUMNS),
    group_name="learning",
    deps=[pinned_inputs],
    retry_policy=RESUME,
    kinds={"parquet"},
    owners=OWNERS,
    tags={"room": "data"},
)
def snapshot(workspace: Workspace) -> dg.MaterializeResult:
    """Frozen manifests of one catalog version. The evaluation set is fixed and never part of training."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.snapshot(workspace.run())
    return describe("snapshot", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.structuring.split"),
    group_name="learning",
    deps=[snapshot],
    retry_policy=RESUME,
    kinds={"parquet"},
    owners=OWNERS,
    tags={"room": "structuring"},
)
def split(workspace: Workspace) -> dg.MaterializeResult:
    """Labelled training samples, split into simple and hard by difficulty."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.split(workspace.run())
    return describe("split", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.training.stage"),
    group_name="learning",
    deps=[split],
    pool=POOL,
    retry_policy=RESUME,
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    tags={"room": "training"},
)
def train_simple(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Model after supervised training on the simple set, from the champion or from scratch."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.train_simple(workspace.run(context))
    return describe("train_simple", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.training.stage"),
    group_name="learning",
    deps=[split, train_simple],
    pool=POOL,
    retry_policy=RESUME,
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    tags={"room": "training"},
)
def train_hard(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Model after supervised training on the hard set, with a share of simple samples against forgetting."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.train_hard(workspace.run(context))
    return describe("train_hard", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.training.stage"),
    group_name="learning",
    deps=[train_hard],
    pool=POOL,
    retry_policy=RESUME,
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    tags={"room": "training"},
)
def train_semi(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Model after training with unlabelled photos: perturbed auxiliary decoders must agree with the main one."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.train_semi(workspace.run(context))
    return describe("train_semi", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.training.stage"),
    group_name="learning",
    deps=[train_semi],
    pool=POOL,
    retry_policy=RESUME,
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    tags={"room": "training"},
)
def train_multimodal(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Model after training with text: image-only and text-image mattes must agree, plus a contrastive loss."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.train_multimodal(workspace.run(context))
    return describe("train_multimodal", layout, report).result()
