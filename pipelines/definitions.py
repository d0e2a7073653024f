"""All definitions that Dagster loads: those in `pipelines/defs`, with the resources. `dg` and `workspace.yaml` name it.

The layout is the one of `dg scaffold`, so `dg scaffold defs` adds files that are loaded without a further change.
"""

from pathlib import Path

import dagster as dg

from pipelines.defs.jobs import one_process_a_step
from pipelines.resources import RetrainPolicy, Workspace

defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    # Both read the environment unless their fields are configured.
    dg.Definitions(
        resources={"workspace": Workspace(), "retrain_policy": RetrainPolicy()}, executor=one_process_a_step
    ),
)
