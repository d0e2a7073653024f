"""One partition per arrived batch, named `<kind>/<batch>`; never one per sample."""

import dagster as dg

batches = dg.DynamicPartitionsDefinition(name="batches")


def partition_of(kind: str, batch: str) -> str:
    """Return the partition of a batch."""
    return f"{kind}/{batch}"
