"""The tables of the catalog: their columns and keys."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

SCHEMAS: Mapping[str, pa.Schema] = {
    # The ledger: one row per (kind, batch, manifest digest), written last, when all its rows are in.
    "batches": pa.schema(
        [
            ("key", pa.string()),  # sha256 over kind, batch and manifest digest
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("manifest_sha256", pa.string()),
            ("state", pa.string()),  # ingested | held
            ("reason", pa.string()),  # why a batch is held
            ("rows", pa.int64()),
            ("accepted", pa.int64()),
            ("quarantined", pa.int64()),
            ("duplicates", pa.int64()),
            ("uri", pa.string()),
            ("ingested_at", pa.string()),  # ISO 8601, UTC; the latest row of a (kind, batch) says what it holds now
            ("updated", pa.int64()),  # of the accepted rows: those that changed a known photo
            ("conflicts", pa.int64()),  # rows of photos about which the drop says two things
            ("arrival", pa.string()),  # digest over the key and the arrival before: a manifest may come back
            ("statement", pa.string()),  # store key: what each row said, and its files' sizes and stamps
            ("files", pa.string()),  # digest of the drop's listing
        ]
    ),
    # One row per distinct image; id = sha256 of the file's bytes.
    "samples": pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),  # of the drop that brought it first
            ("batch", pa.string()),
            ("category", pa.string()),  # null: unknown
            ("caption", pa.string()),
            ("group", pa.string()),  # burst, scene, near-duplicates: never split over train and eval
            ("role", pa.string()),  # "" | train | eval, as the manifest asks
            ("width", pa.int32()),  # pixels, after EXIF orientation
            ("height", pa.int32()),
            ("format", pa.string()),  # JPEG, PNG, …
            ("phash", pa.string()),  # 64-bit perceptual hash, 16 hex digits
            ("landmarks", pa.binary()),  # 64-bit hashes of landmarks, 8 bytes each
            ("near", pa.list_(pa.string())),  # ids of earlier photos that this one shows again, edited
            ("source", pa.string()),
            ("license", pa.string()),
            ("taken_at", pa.string()),
            ("name", pa.string()),  # as the manifest called it
            ("accepted_at", pa.string()),
        ]
    ),
    # Every version of every alpha; the newest by (version) that is not withdrawn counts.
    "labels": pa.schema(
        [
            ("id", pa.string()),  # sha256 over sample id and alpha digest
            ("sample_id", pa.string()),
            ("alpha_sha256", pa.string()),  # blob: 8- or 16-bit grey PNG of the oriented image's size
            ("version", pa.int32()),  # 1, 2, … per sample
            ("origin", pa.string()),  # drop | label_studio
            ("batch", pa.string()),
            ("annotator", pa.string()),
            ("binary", pa.bool_()),  # a mask of 0 and 1 only: carries no soft band
            ("created_at", pa.string()),
            ("task", pa.string()),  # of label_studio: address of the task that it is the outcome of
            ("prediction", pa.string()),  # version of the model whose matte the person began with
            ("withdrawn_at", pa.string()),  # out of use since then: deleted, taken back, or in doubt
            ("withdrawn_why", pa.string()),
        ]
    ),
    "rejects": pa.schema(
        [
            ("key", pa.string()),  # sha256 over batch key and row number
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("row", pa.int64()),  # 0-based row of the manifest
            ("image", pa.string()),
            ("verdict", pa.string()),  # quarantine | duplicate | conflict
            ("reason", pa.string()),  # plain words, from a fixed list
            ("detail", pa.string()),  # what was measured
            ("sample_id", pa.string()),  # of a duplicate: the sample it repeats
            ("where", pa.string()),  # store key of the kept copy, if any
            ("rejected_at", pa.string()),
        ]
    ),
    # Every change of mind about a known photo, by producers and people: what counted before and what counts since.
    "corrections": pa.schema(
        [
            ("key", pa.string()),  # sha256 over arrival (or task), row, column and how often it changed before
            ("arrival", pa.string()),  # of the drop; address of the task or digest of the export
            ("sample_id", pa.string()),
            ("verdict", pa.string()),  # update | removed
            ("column", pa.string()),  # of `samples`, or alpha
            ("old", pa.string()),  # null: nothing was known
            ("new", pa.string()),  # null: withdrawn
            ("origin", pa.string()),  # drop | label_studio
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("row", pa.int64()),  # 0-based row of the manifest
            ("image", pa.string()),
            ("stated_at", pa.string()),
        ]
    ),
    # Suspect mattes that a person looked at and took as they are: none of them is held again.
    "reviews": pa.schema(
        [
            ("id", pa.string()),  # of the label: sha256 over sample id and alpha digest
            ("sample_id", pa.string()),
            ("alpha_sha256", pa.string()),
            ("reason", pa.string()),  # what was suspected
            ("detail", pa.string()),  # what was measured
            ("reviewer", pa.string()),
            ("why", pa.string()),
            ("reviewed_at", pa.string()),
        ]
    ),
    # Photos that must not come back: all that is kept of them.
    "forgotten": pa.schema(
        [
            ("id", pa.string()),
            ("group", pa.string()),
            ("alphas", pa.string()),  # digests of its mattes, by spaces
            ("forgotten_at", pa.string()),
        ]
    ),
    # What extractors found, one row per sample, extractor and its version.
    "features": pa.schema(
        [
            ("sample_id", pa.string()),
            ("extractor", pa.string()),  # photo | difficulty | model_difficulty | …
            ("version", pa.string()),
            ("numbers", pa.map_(pa.string(), pa.float64())),
            ("texts", pa.map_(pa.string(), pa.string())),
            ("computed_at", pa.string()),
            ("vector", pa.list_(pa.float32())),  # an embedding; null of extractors that make none
        ]
    ),
}
ADDED: Mapping[str, tuple[str, ...]] = {
    "batches": ("updated", "conflicts", "arrival", "statement", "files"),
    "features": ("vector",),
    "samples": ("landmarks", "near"),
    "labels": ("task", "prediction", "withdrawn_at", "withdrawn_why"),
}
"""Columns younger than the first catalogs: versions without them read as nulls, and the next write adds them."""
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
