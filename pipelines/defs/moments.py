"""Asset outside the cycle: moments of the gallery in `MM_GALLERY`, made with the champion."""

import dagster as dg

from mm_core import operations
from mm_core.core.records import sha256_file
from pipelines.defs.arrivals import OWNERS
from pipelines.defs.release import promoted_model
from pipelines.metadata import of_report
from pipelines.provenance import code_version, data_version
from pipelines.resources import Workspace, plain_failures


@dg.asset(
    code_version=code_version("mm_core.moments.moments"),
    group_name="moments",
    deps=[promoted_model],
    kinds={"pillow"},
    owners=OWNERS,
    tags={"room": "aigc"},
)
def moments(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """The gallery's events with titles, best photos and finished pieces. Unchanged events are kept."""
    layout = workspace.layout()
    with plain_failures():
        report = operations.moments(workspace.run(context), layout.settings.gallery, layout.moments)
    listed = layout.moments / "moments.json"
    return dg.MaterializeResult(
        metadata=of_report(report, paths={"moments.json": listed}), data_version=data_version(sha256_file(listed))
    )
