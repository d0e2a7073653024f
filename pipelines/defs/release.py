"""Assets of each cycle that judge the candidate and ship it. Nothing is shipped without a recorded PROMOTE."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from mm_core import stages
from mm_core.core.records import Report
from mm_core.eval.scoring import COLUMNS, SCHEMA
from pipelines.defs.arrivals import OWNERS, WEEKLY
from pipelines.defs.checks import verdict_result, verdict_spec
from pipelines.defs.learning import POOL, RESUME, snapshot, train_multimodal
from pipelines.metadata import of_report, page
from pipelines.provenance import code_version, table_columns
from pipelines.resources import Workspace, plain_failures
from pipelines.results import describe


@dg.asset(
    code_version=code_version("mm_core.eval.evaluate", "mm_core.export.quantise"),
    metadata=table_columns(SCHEMA, COLUMNS),
    group_name="release",
    deps=[snapshot, train_multimodal],
    kinds={"pytorch", "onnx", "mlflow"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "eval"},
    freshness_policy=WEEKLY,
)
def evaluation(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Errors of all stages, champion and anchor on the frozen eval set, per photo; the candidate also as int8."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.evaluate(workspace.run(context))
    return describe("evaluation", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.eval.gate"),
    group_name="release",
    deps=[evaluation],
    output_required=False,
    check_specs=[verdict_spec("gate")],
    kinds={"mlflow"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "eval"},
)
def gate(workspace: Workspace) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """Permission to ship; it is materialised only if the verdict is PROMOTE.

    The verdict is this asset's check `promote`. If the gate refuses, nothing is materialised and the following assets
    are skipped. The run is still a success, because a refusal is a result.
    """
    layout = workspace.layout()
    with plain_failures():
        report = stages.gate(workspace.run())
    # The check is recorded for both decisions.
    yield verdict_result(report)
    # Without an output the assets downstream are skipped.
    if report.facts["decision"] == "PROMOTE":
        yield describe("gate", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.export.bundle"),
    group_name="release",
    deps=[gate],
    kinds={"onnx"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "export"},
)
def exported_bundle(workspace: Workspace) -> dg.MaterializeResult:
    """Mobile bundle: int8 models, manifest and model card. Fails without a recorded PROMOTE for this model."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.export(workspace.run())
    return describe("exported_bundle", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.export.registry"),
    group_name="release",
    deps=[exported_bundle],
    kinds={"mlflow"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "export"},
)
def promoted_model(workspace: Workspace) -> dg.MaterializeResult:
    """Set the registry's alias `champion` on the bundled model. Fail without a recorded PROMOTE for this model."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.promote(workspace.run())
    return describe("promoted_model", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.experiments.label_ablation"),
    group_name="release",
    deps=[evaluation],
    op_tags={"dagster/priority": "-1"},
    pool=POOL,
    kinds={"pytorch"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "experiments"},
)
def label_comparison(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Training on routed photos against training on random ones; off by default (params: `label.compare_seeds`).

    Its low priority lets gate, bundle and promotion run first in executors that run one step at a time.
    """
    layout = workspace.layout()
    with plain_failures():
        report = stages.label_compare(workspace.run(context))
    return describe("label_comparison", layout, report).result()


@dg.asset(
    code_version=code_version("mm_core.eval.report"),
    group_name="release",
    deps=[evaluation, label_comparison],
    op_tags={"dagster/priority": "-1"},
    kinds={"html"},
    retry_policy=RESUME,
    owners=OWNERS,
    tags={"room": "eval"},
)
def cycle_report(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """One page about the cycle, also after a refusal.

    It does not depend on the gate, because a refusal would skip it. Its low priority lets gate, bundle and promotion
    run first in executors that run one step at a time.
    """
    layout = workspace.layout()
    with plain_failures():
        report: Report = stages.html_report(workspace.run(context))
    # Link to the copy, because the next cycle overwrites the original.
    return dg.MaterializeResult(metadata={"page": page(layout, Path(report.fact("copy", str)))} | of_report(report))
