"""The columns and keys of the catalog's tables."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

SCHEMAS: Mapping[str, pa.Schema] = {
    # The ledger of batches: one row per (kind, batch, manifest digest), written last, after all rows of the batch.
    "batches": pa.schema(
        [
            ("key", pa.string()),  # sha256 over kind, batch and manifest digest
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("manifest_sha256", pa.string()),
            ("state", pa.string()),  # ingested | held
            ("reason", pa.string()),  # reason for holding a batch
            ("rows", pa.int64()),
            ("accepted", pa.int64()),
            ("quarantined", pa.int64()),
            ("duplicates", pa.int64()),
            ("uri", pa.string()),
            ("ingested_at", pa.string()),  # ISO 8601, UTC; the latest row of a (kind, batch) is its present state
            ("updated", pa.int64()),  # number of accepted rows that changed a known photo
            ("conflicts", pa.int64()),  # rows of photos with contradictory statements in one drop
            ("arrival", pa.string()),  # digest over the key and the previous arrival: a manifest may arrive twice
            ("statement", pa.string()),  # store key of all row values, with the files' sizes and stamps
            ("files", pa.string()),  # digest of the drop's listing
        ]
    ),
    # One row per distinct image; id = sha256 of the file's bytes.
    "samples": pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),  # of the drop that first contained it
            ("batch", pa.string()),
            ("category", pa.string()),  # null: unknown
            ("caption", pa.string()),
            ("group", pa.string()),  # burst, scene or near-duplicates; never split between train and eval
            ("role", pa.string()),  # "" | train | eval, from the manifest
            ("width", pa.int32()),  # pixels, after EXIF orientation
            ("height", pa.int32()),
            ("format", pa.string()),  # JPEG, PNG, …
            ("phash", pa.string()),  # 64-bit perceptual hash, 16 hex digits
            ("landmarks", pa.binary()),  # 64-bit hashes of landmarks, 8 bytes each
            ("near", pa.list_(pa.string())),  # ids of earlier photos that this one shows in edited form
            ("source", pa.string()),
            ("license", pa.string()),
            ("taken_at", pa.string()),
            ("name", pa.string()),  # name in the manifest
            ("accepted_at", pa.string()),
        ]
    ),
    # Every version of every alpha. The newest `version` without a withdrawal is in use.
    "labels": pa.schema(
        [
            ("id", pa.string()),  # sha256 over sample id and alpha digest
            ("sample_id", pa.string()),
            ("alpha_sha256", pa.string()),  # blob: 8- or 16-bit grey PNG of the oriented image's size
            ("version", pa.int32()),  # 1, 2, … per sample
            ("origin", pa.string()),  # drop | label_studio
            ("batch", pa.string()),
            ("annotator", pa.string()),
            ("binary", pa.bool_()),  # only values 0 and 1, therefore without a soft band
            ("created_at", pa.string()),
            ("task", pa.string()),  # for label_studio: address of the task with this result
            ("prediction", pa.string()),  # version of the model that drew the person's initial matte
            ("withdrawn_at", pa.string()),  # start of the withdrawal: deleted, taken back, or in doubt
            ("withdrawn_why", pa.string()),
        ]
    ),
    # Rows of manifests that were not accepted.
    "rejects": pa.schema(
        [
            ("key", pa.string()),  # sha256 over batch key and row number
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("row", pa.int64()),  # 0-based row of the manifest
            ("image", pa.string()),
            ("verdict", pa.string()),  # quarantine | duplicate | conflict
            ("reason", pa.string()),  # one text of a fixed list
            ("detail", pa.string()),  # the measured values
            ("sample_id", pa.string()),  # for a duplicate: the sample that it repeats
            ("where", pa.string()),  # store key of the kept copy, if it exists
            ("rejected_at", pa.string()),
        ]
    ),
    # Every change of a known photo by producers or people: the old value and the new one.
    "corrections": pa.schema(
        [
            ("key", pa.string()),  # sha256 over arrival (or task), row, column and number of earlier changes
            ("arrival", pa.string()),  # of the drop; or address of the task, or digest of the export
            ("sample_id", pa.string()),
            ("verdict", pa.string()),  # update | removed
            ("column", pa.string()),  # of `samples`, or alpha
            ("old", pa.string()),  # null: no earlier value
            ("new", pa.string()),  # null: withdrawn
            ("origin", pa.string()),  # drop | label_studio
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("row", pa.int64()),  # 0-based row of the manifest
            ("image", pa.string()),
            ("stated_at", pa.string()),
        ]
    ),
    # Suspect mattes that a person accepted unchanged; they are not held again.
    "reviews": pa.schema(
        [
            ("id", pa.string()),  # of the label: sha256 over sample id and alpha digest
            ("sample_id", pa.string()),
            ("alpha_sha256", pa.string()),
            ("reason", pa.string()),  # the suspicion
            ("detail", pa.string()),  # the measured values
            ("reviewer", pa.string()),
            ("why", pa.string()),
            ("reviewed_at", pa.string()),
        ]
    ),
    # Photos that must not return; this row is the only remaining data about them.
    "forgotten": pa.schema(
        [
            ("id", pa.string()),
            ("group", pa.string()),
            ("alphas", pa.string()),  # digests of its mattes, separated by spaces
            ("forgotten_at", pa.string()),
        ]
    ),
    # Results of extractors: one row per sample, extractor and extractor version.
    "features": pa.schema(
        [
            ("sample_id", pa.string()),
            ("extractor", pa.string()),  # photo | difficulty | model_difficulty | …
            ("version", pa.string()),
            ("numbers", pa.map_(pa.string(), pa.float64())),
            ("texts", pa.map_(pa.string(), pa.string())),
            ("computed_at", pa.string()),
            ("vector", pa.list_(pa.float32())),  # an embedding; null for extractors without one
        ]
    ),
}
# Keep this list in step with SCHEMAS.
ADDED: Mapping[str, tuple[str, ...]] = {
    "batches": ("updated", "conflicts", "arrival", "statement", "files"),
    "features": ("vector",),
    "samples": ("landmarks", "near"),
    "labels": ("task", "prediction", "withdrawn_at", "withdrawn_why"),
}
"""Columns added after the first catalogs: older versions read as nulls, and the next write adds the columns."""
# The columns that identify a row of each table.
KEYS: Mapping[str, tuple[str, ...]] = {
    "batches": ("key",),
    "samples": ("id",),
    "labels": ("id",),
    "rejects": ("key",),
    "corrections": ("key",),
    "reviews": ("id",),
    "forgotten": ("id",),
    "features": ("sample_id", "extractor", "version"),
}
