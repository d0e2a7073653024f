"""Dagster's interface to `mm_core.stages`: assets, checks, jobs, sensors. `mm_core` never imports this package."""

from mm_core.core.processes import end_with_parent

# Called here, because every process of a run imports this package before it does any work.
end_with_parent()
