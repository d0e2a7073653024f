"""Asset outside the cycle: moments of the gallery in `MM_GALLERY`, made with the champion."""

import dagster as dg

from mm_core import operations
from pipelines.arrivals import OWNERS
from pipelines.metadata import of_report
from pipelines.release import promoted_model
from pipelines.resources import Workspace, plain_failures


@dg.asset(
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
    return dg.MaterializeResult(metadata=of_report(report, paths={"moments.json": layout.moments / "moments.json"}))
