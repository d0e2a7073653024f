"""Export, registry and provenance of released models."""
