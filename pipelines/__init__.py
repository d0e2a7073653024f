"""Dagster's door to `mm_core.stages`: assets, checks, jobs, sensors. `mm_core` never imports this package."""
