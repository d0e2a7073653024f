"""Dagster's door to `mm_core.stages`: assets, checks, jobs, sensors. `mm_core` never imports this package."""

from mm_core.core.processes import end_with_parent

# Here, as every process of a run imports this before it does anything of ours.
end_with_parent()
