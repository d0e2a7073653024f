"""The columns and keys of the catalog's tables, and what the columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

Column = tuple[str, pa.DataType, str]
"""Name, type and meaning of a column; Dagster's pages show the meaning."""

COLUMNS: Mapping[str, Sequence[Column]] = {
    # The ledger of batches: one row per (kind, batch, manifest digest), written last, after all rows of the batch.
    "batches": (
        ("key", pa.string(), "sha256 over kind, batch and manifest digest"),
        ("kind", pa.string(), "kind of the drop: pixel_labeled | unlabeled | text_image"),
        ("batch", pa.string(), "name of the drop"),
        ("manifest_sha256", pa.string(), "digest of the manifest's bytes"),
        ("state", pa.string(), "state: ingested | held"),
        ("reason", pa.string(), "reason for holding a batch"),
        ("rows", pa.int64(), "rows of the manifest"),
        ("accepted", pa.int64(), "rows that became samples, or that changed one"),
        ("quarantined", pa.int64(), "rows that were refused"),
        ("duplicates", pa.int64(), "rows whose photo is in the catalog already"),
        ("uri", pa.string(), "folder or address of the drop"),
        ("ingested_at", pa.string(), "ISO 8601, UTC; the latest row of a (kind, batch) is its present state"),
        ("updated", pa.int64(), "number of accepted rows that changed a known photo"),
        ("conflicts", pa.int64(), "rows of photos with contradictory statements in one drop"),
        ("arrival", pa.string(), "digest over the key and the previous arrival: a manifest may arrive twice"),
        ("statement", pa.string(), "store key of all row values, with the files' sizes and stamps"),
        ("files", pa.string(), "digest of the drop's listing"),
    ),
    # One row per distinct image; id = sha256 of the file's bytes.
    "samples": (
        ("id", pa.string(), "sha256 of the file's bytes"),
        ("kind", pa.string(), "kind of the drop that first contained it"),
        ("batch", pa.string(), "name of the drop that first contained it"),
        ("category", pa.string(), "category; null: unknown"),
        ("caption", pa.string(), "text about the photo, from the manifest"),
        ("group", pa.string(), "burst, scene or near-duplicates; never split between train and eval"),
        ("role", pa.string(), "use from the manifest: train | eval; empty: the engine chooses"),
        ("width", pa.int32(), "pixels, after EXIF orientation"),
        ("height", pa.int32(), "pixels, after EXIF orientation"),
        ("format", pa.string(), "format of the file: JPEG, PNG, …"),
        ("phash", pa.string(), "64-bit perceptual hash, 16 hex digits"),
        ("landmarks", pa.binary(), "64-bit hashes of landmarks, 8 bytes each"),
        ("near", pa.list_(pa.string()), "ids of earlier photos that this one shows in edited form"),
        ("source", pa.string(), "origin of the photo, from the manifest"),
        ("license", pa.string(), "licence of the photo, from the manifest"),
        ("taken_at", pa.string(), "when the photo was taken, from the manifest"),
        ("name", pa.string(), "name in the manifest"),
        ("accepted_at", pa.string(), "time, ISO 8601, UTC"),
    ),
    # Every version of every alpha. The newest `version` without a withdrawal is in use.
    "labels": (
        ("id", pa.string(), "sha256 over sample id and alpha digest"),
        ("sample_id", pa.string(), "id of the photo in the table `samples`"),
        ("alpha_sha256", pa.string(), "blob: 8- or 16-bit grey PNG of the oriented image's size"),
        ("version", pa.int32(), "1, 2, … per photo"),
        ("origin", pa.string(), "who brought it: drop | label_studio"),
        ("batch", pa.string(), "drop, or batch of tasks, that brought it"),
        ("annotator", pa.string(), "who drew it"),
        ("binary", pa.bool_(), "only values 0 and 1, therefore without a soft band"),
        ("created_at", pa.string(), "time, ISO 8601, UTC"),
        ("task", pa.string(), "for label_studio: address of the task with this result"),
        ("prediction", pa.string(), "version of the model that drew the person's initial matte"),
        ("withdrawn_at", pa.string(), "start of the withdrawal: deleted, taken back, or in doubt"),
        ("withdrawn_why", pa.string(), "reason for the withdrawal"),
    ),
    # Rows of manifests that were not accepted.
    "rejects": (
        ("key", pa.string(), "sha256 over batch key and row number"),
        ("kind", pa.string(), "kind of the drop: pixel_labeled | unlabeled | text_image"),
        ("batch", pa.string(), "name of the drop"),
        ("row", pa.int64(), "0-based row of the manifest"),
        ("image", pa.string(), "name in the manifest"),
        ("verdict", pa.string(), "quarantine | duplicate | conflict"),
        ("reason", pa.string(), "reason, one text of a fixed list"),
        ("detail", pa.string(), "the measured values"),
        ("sample_id", pa.string(), "for a duplicate: the sample that it repeats"),
        ("where", pa.string(), "store key of the kept copy; null: none"),
        ("rejected_at", pa.string(), "time, ISO 8601, UTC"),
    ),
    # Every change of a known photo by producers or people: the old value and the new one.
    "corrections": (
        ("key", pa.string(), "sha256 over arrival (or task), row, column and number of earlier changes"),
        ("arrival", pa.string(), "arrival of the drop; or address of the task, or digest of the export"),
        ("sample_id", pa.string(), "id of the photo in the table `samples`"),
        ("verdict", pa.string(), "update | removed"),
        ("column", pa.string(), "column of `samples`, or alpha"),
        ("old", pa.string(), "value before; null: none"),
        ("new", pa.string(), "value after; null: withdrawn"),
        ("origin", pa.string(), "who brought it: drop | label_studio"),
        ("kind", pa.string(), "kind of the drop: pixel_labeled | unlabeled | text_image"),
        ("batch", pa.string(), "name of the drop"),
        ("row", pa.int64(), "0-based row of the manifest"),
        ("image", pa.string(), "name in the manifest"),
        ("stated_at", pa.string(), "time, ISO 8601, UTC"),
    ),
    # Suspect mattes that a person accepted unchanged; they are not held again.
    "reviews": (
        ("id", pa.string(), "id of the label: sha256 over sample id and alpha digest"),
        ("sample_id", pa.string(), "id of the photo in the table `samples`"),
        ("alpha_sha256", pa.string(), "digest of the accepted matte"),
        ("reason", pa.string(), "the suspicion"),
        ("detail", pa.string(), "the measured values"),
        ("reviewer", pa.string(), "who accepted it"),
        ("why", pa.string(), "that person's reason"),
        ("reviewed_at", pa.string(), "time, ISO 8601, UTC"),
    ),
    # Photos that must not return; this row is the only remaining data about them.
    "forgotten": (
        ("id", pa.string(), "sha256 of the file's bytes"),
        ("group", pa.string(), "declared group of the photo"),
        ("alphas", pa.string(), "digests of its mattes, separated by spaces"),
        ("forgotten_at", pa.string(), "time, ISO 8601, UTC"),
        ("learnt", pa.string(), "use by training: training | validation; null: none"),
    ),
    # Photos that earlier cycles have learnt from. They never become eval photos again.
    "learnt": (
        ("sample_id", pa.string(), "id of the photo in the table `samples`"),
        ("use", pa.string(), "training: trained on | validation: chose a checkpoint"),
        ("learnt_at", pa.string(), "start of the first such training, ISO 8601, UTC"),
    ),
    # Results of extractors: one row per sample, extractor and extractor version.
    "features": (
        ("sample_id", pa.string(), "id of the photo in the table `samples`"),
        ("extractor", pa.string(), "name of the extractor: photo | difficulty | model_difficulty | …"),
        ("version", pa.string(), "version of the extractor"),
        ("numbers", pa.map_(pa.string(), pa.float64()), "numeric results by name"),
        ("texts", pa.map_(pa.string(), pa.string()), "textual results by name"),
        ("computed_at", pa.string(), "time, ISO 8601, UTC"),
        ("vector", pa.list_(pa.float32()), "an embedding; null for extractors without one"),
    ),
}
"""Table → columns."""


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of described columns."""
    return pa.schema([(name, kind) for name, kind, _ in columns])


SCHEMAS: Mapping[str, pa.Schema] = {table: schema_of(columns) for table, columns in COLUMNS.items()}
# Keep this list in step with SCHEMAS.
ADDED: Mapping[str, tuple[str, ...]] = {
    "batches": ("updated", "conflicts", "arrival", "statement", "files"),
    "features": ("vector",),
    "forgotten": ("learnt",),
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
    "learnt": ("sample_id", "use"),
    "features": ("sample_id", "extractor", "version"),
}
RETENTION_DAYS = 90
"""Days for which old versions of a table stay readable; `inputs.json` names younger versions."""


def table_properties(table: str) -> dict[str, str | None]:
    """Return the properties of a new table; statistics cover columns used in filters, not texts about people."""
    text = {"caption", "name", "image", "detail", "source", "license", "taken_at", "numbers", "texts", "vector"}
    text |= {"landmarks", "near", "old", "new"}
    return {
        "delta.logRetentionDuration": f"interval {RETENTION_DAYS} days",
        "delta.deletedFileRetentionDuration": f"interval {RETENTION_DAYS} days",
        "delta.dataSkippingStatsColumns": ",".join(f"`{n}`" for n in SCHEMAS[table].names if n not in text),
    }
