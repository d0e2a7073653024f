"""Asset outside the cycle: moments of the gallery in `MM_GALLERY`, made with the champion."""

import dagster as dg

from mm_core import stages
from mm_core.core.records import sha256_file
from pipelines.defs.arrivals import OWNERS
from pipelines.defs.release import promoted_model
from pipelines.metadata import Observations, of_report
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
        report = stages.moments(
            workspace.params(), layout, layout.settings.gallery, layout.moments, progress=Observations(context)
        )
    listed = layout.moments / "moments.json"
    return dg.MaterializeResult(
        metadata=of_report(report, paths={"moments.json": listed}), data_version=data_version(sha256_file(listed))
    )
