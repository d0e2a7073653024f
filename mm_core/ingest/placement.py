"""Assign every sample of the catalog to its pools, in columns.

`mm_core.ingest.snapshot` states the rules. All rows stay in Arrow and NumPy columns. Python objects exist only for the
names of groups with a labelled photo, and for photos of scenes that arrived at several times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.core.errors import MattingError
from mm_core.core.params import SnapshotParams
from mm_core.core.records import decoder_of
from mm_core.ingest.as_arrived import Scenes, SinceArrival, arrivals_of, read_changes
from mm_core.ingest.holdout import LEARNT, hold_out
from mm_core.ingest.learnt import Learnt, read_learnt
from mm_core.ingest.scenes import (
    connect,
    declared_of,
    encoded,
    equals,
    filled,
    known_categories,
    links_of,
    mapped,
    whole_column,
)
from mm_core.storage.catalog import Catalog
from mm_core.storage.schemas import SCHEMAS, Column, schema_of

TRAINING = ("train_labeled", "train_unlabeled", "train_text_image")
POOLS = (*TRAINING, "validation", "eval")
REASONS = ("", LEARNT, "eval without label or category", "near an eval photo", "near a validation photo")
"""Why a sample is in no pool; the first text belongs to samples in a pool."""
COLUMNS: Sequence[Column] = (
    ("sample_id", pa.string(), "id of the photo in the table `samples`"),
    ("category", pa.string(), "category; null: unknown"),
    ("decoder", pa.string(), "decoder of the category"),
    ("group", pa.string(), "smallest declared group of the component, which must not be split"),
    ("caption", pa.string(), "text about the photo, from the manifest"),
    ("alpha_sha256", pa.string(), "digest of the matte; null: unlabelled"),
    ("label_version", pa.int32(), "version of the matte: 1, 2, … per photo"),
    ("label_binary", pa.bool_(), "only values 0 and 1, therefore without a soft band"),
    ("width", pa.int32(), "pixels, after EXIF orientation"),
    ("height", pa.int32(), "pixels, after EXIF orientation"),
    ("kind", pa.string(), "kind of the drop that first contained it"),
    ("batch", pa.string(), "name of the drop that first contained it"),
)
"""Columns of a pool."""
SCHEMA = schema_of(COLUMNS)
SAMPLE_COLUMNS = (
    "id", "kind", "batch", "category", "caption", "group", "role", "width", "height", "phash", "near", "accepted_at",
)  # fmt: skip
LABEL_COLUMNS = ("id", "sample_id", "alpha_sha256", "version", "binary", "created_at", "withdrawn_at")
REPEATED = ("kind", "batch", "category", "role", "accepted_at", "created_at")
"""Columns with few distinct values, kept as codes."""
CHUNK = 1 << 16
"""Rows that `table_digest` renders at a time."""


@dataclass(frozen=True)
class Placement:
    """The pools of all samples, in the order of their ids."""

    samples: pa.Table
    """SAMPLE_COLUMNS."""
    labels: pa.Table
    """The newest label of each sample: alpha_sha256, label_version, label_binary; null without a label."""
    category: pa.DictionaryArray
    """The category; null for unknown ones."""
    group: pa.DictionaryArray
    """The smallest declared group of the sample's component."""
    component: np.ndarray
    """(samples,) int: photos of one scene have the same number."""
    pools: Mapping[str, np.ndarray]
    """Pool → (samples,) bool."""
    dropped: np.ndarray
    """(samples,) int: position in REASONS."""

    def frame(self, pool: str) -> pa.Table:
        """Return the frame of a pool, in the columns of SCHEMA."""
        rows = pa.array(np.flatnonzero(self.pools[pool]))
        category = self.category.take(rows)
        columns = {
            "sample_id": self.samples["id"].take(rows),
            "category": category,
            "decoder": mapped(category, [decoder_of(c) for c in category.dictionary.to_pylist()], decoder_of(None)),
            "group": self.group.take(rows),
        }
        columns |= {name: self.labels[name].take(rows) for name in self.labels.column_names}
        plain = ("caption", "width", "height", "kind", "batch")
        columns |= {name: self.samples[name].take(rows) for name in plain}
        return pa.table({field.name: columns[field.name].cast(field.type) for field in SCHEMA}, schema=SCHEMA)


def read_placement(params: SnapshotParams, catalog: Catalog, versions: Mapping[str, int] | None = None) -> Placement:
    """Place the samples of these catalog versions; of the newest ones by default."""
    versions = versions or {}
    # No name holds the tables here, so that they are freed as soon as they are sorted and joined.
    return place_tables(
        params,
        _read(catalog, "samples", versions.get("samples"), SAMPLE_COLUMNS),
        _read(catalog, "labels", versions.get("labels"), LABEL_COLUMNS),
        read_changes(catalog, versions.get("corrections")),
        read_learnt(catalog, versions.get("learnt")),
    )


def _read(catalog: Catalog, table: str, version: int | None, columns: Sequence[str]) -> pa.Table:
    """Return columns of a table; those of REPEATED are dictionaries, which keeps the table small."""
    batches: list[pa.RecordBatch] = []
    fields = [SCHEMAS[table].field(name) for name in columns]
    schema = pa.schema([f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in REPEATED else f for f in fields])
    for batch in catalog.scan(table, version=version, columns=columns):
        arrays = [batch[n].dictionary_encode() if n in REPEATED else batch[n] for n in columns]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    # Each batch has codes of its own; equal codes must mean equal texts.
    return pa.Table.from_batches(batches, schema).unify_dictionaries()


def place_tables(
    params: SnapshotParams,
    samples: pa.Table,
    labels: pa.Table,
    since: SinceArrival = SinceArrival(),
    learnt: Learnt = Learnt(),
) -> Placement:
    """Assign every sample to its pools.

    Args:
        params: Shares and thresholds.
        samples: SAMPLE_COLUMNS of the catalog.
        labels: LABEL_COLUMNS of the catalog.
        since: The changes of these samples since they arrived.
        learnt: What earlier cycles have learnt from.

    Returns:
        The placement, sorted by sample id.
    """
    samples = samples.take(pc.sort_indices(samples["id"])).combine_chunks()
    ids = whole_column(samples["id"])
    newest, lost_at = _labels_of(ids, labels)
    del labels
    labelled = newest["alpha_sha256"].is_valid().to_numpy()
    category = known_categories(encoded(samples["category"]))
    links = links_of(samples, params.near_duplicate_bits)
    declared = declared_of(samples)
    # Every sample has one declared group, so components of groups are components of samples.
    codes = np.asarray(declared.indices)
    of_group = connect(codes, len(declared.dictionary), links)
    component = of_group[codes]
    arrivals = arrivals_of(samples, category, Scenes(declared, links, of_group), lost_at, since, learnt)
    held = hold_out(params, arrivals, links)
    # A photo that once had the role `train` is never used for evaluation. The role `eval` changes nothing for a photo
    # that was held out on arrival. Any other photo may have been trained on before it got this role.
    role = encoded(samples["role"])
    freed = equals(role, "train") | _at(ids, since.trained)
    judged = held.evaluation & ~freed
    refused = equals(role, "eval") & ~judged

    # One eval photo marks its whole component.
    near_eval = _any_of(component, judged)
    caption = filled(samples["caption"])
    pools = {"eval": judged & labelled & category.is_valid().to_numpy(zero_copy_only=False)}
    free = ~near_eval
    validation = free & held.validation
    pools["validation"] = validation & labelled & ~refused
    # Also without its label a validation photo stays out of training: the label may come back.
    near_validation = _any_of(component, validation)
    learnable = free & ~near_validation & ~refused
    # A labelled photo with a caption stays in the text pool only if it arrived in a text-image drop.
    text = caption & (equals(encoded(samples["kind"]), "text_image") | ~labelled)
    pools["train_labeled"] = learnable & labelled
    pools["train_text_image"] = learnable & text
    pools["train_unlabeled"] = learnable & ~labelled & ~text
    unused = ~np.logical_or.reduce(list(pools.values()))
    # The first matching condition gives the reason.
    dropped = np.select([unused & why for why in (refused, judged, near_eval, near_validation)], [1, 2, 3, 4], 0)
    group = pa.DictionaryArray.from_arrays(_smallest(codes, declared.dictionary, of_group), declared.dictionary)
    return Placement(samples, newest, category, group, component, pools, dropped)


def check_pools(ids: pa.Array, members: Mapping[str, np.ndarray], component: np.ndarray, group: np.ndarray) -> None:
    """Check that no photo of an evaluation or validation scene is in a pool that must not have it.

    Args:
        ids: Sample ids.
        members: Pool → positions of its samples.
        component: (samples,) int: the scene of each sample.
        group: (samples,) int: code of the group column, a second and independent criterion.

    Raises:
        MattingError: A pool leaks; the message names some samples.
    """
    for guarded, others in (("eval", (*TRAINING, "validation")), ("validation", TRAINING)):
        kept = members[guarded]
        for pool in others:
            rows = members[pool]
            leaking = np.isin(component[rows], component[kept]) | np.isin(group[rows], group[kept])
            if leaking.any():
                found = sorted(set(ids.take(pa.array(rows[leaking])).to_pylist()))
                some = ", ".join(found[:5])
                raise MattingError(f"leak: {len(found)} samples of {pool} belong with {guarded} photos ({some})")


def newest_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the newest label of each sample: the highest version that is not withdrawn.

    Two writers may create equal versions. The later one is used, then the greater id.
    """
    labels = labels_in_use(labels)
    return labels.sort_values(["version", "created_at", "id"]).drop_duplicates("sample_id", keep="last")


def labels_in_use(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the labels that are not withdrawn (`withdrawn_at`)."""
    return labels.loc[labels["withdrawn_at"].isna()] if "withdrawn_at" in labels else labels


def stable_share(group: str, salt: str) -> float:
    """Return a hash of the arguments in [0, 1), uniform over groups.

    Args:
        group: Name of a group.
        salt: Purpose of the draw; different salts give independent numbers.
    """
    # 7 bytes are 56 bits, more than the 53 bits of a float.
    return int.from_bytes(hashlib.sha256(f"{salt}:{group}".encode()).digest()[:7]) / 2**56


def table_digest(table: pa.Table, columns: Sequence[str]) -> str:
    """Return the digest of some columns as `snapshot.json` keeps it: that of their CSV by pandas, in parts."""
    digest = hashlib.sha256((",".join(columns) + "\n").encode())
    for batch in table.select(list(columns)).to_batches(max_chunksize=CHUNK):
        texts = [_text(batch[name]) for name in columns]
        special = np.zeros(batch.num_rows, bool)
        for name, text in zip(columns, texts, strict=True):
            if pa.types.is_string(batch.schema.field(name).type):
                special |= np.asarray(pc.match_substring_regex(text, '[,"\\r\\n]').to_numpy(zero_copy_only=False))
        lines = pc.binary_join_element_wise(*texts, ",")
        if special.any():
            # Quoting is left to the writer of CSV that pandas uses.
            odd = pa.Table.from_batches([batch]).filter(pa.array(special)).to_pandas(types_mapper=NULLABLE.get)
            quoted = [
                odd.iloc[[n]].to_csv(index=False, header=False, lineterminator="\n")[:-1] for n in range(len(odd))
            ]
            lines = pc.replace_with_mask(lines, pa.array(special), pa.array(quoted, pa.string()))
        digest.update(("\n".join(lines.to_pylist()) + "\n").encode())
    return digest.hexdigest()


NULLABLE = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_boolean(column.type):
        return pc.fill_null(pc.if_else(column, "True", "False"), "")
    return pc.fill_null(column.cast(pa.string()), "")


def _labels_of(ids: pa.Array, labels: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Return the newest label of each id, and position → time of its last withdrawal where no label remains."""
    position = np.asarray(pc.index_in(labels["sample_id"], ids).fill_null(-1).to_numpy())
    in_use = labels["withdrawn_at"].is_null().to_numpy() & (position >= 0)
    # Sample → row of its label in use; -1 without one.
    row_of = np.full(len(ids), -1)
    used = np.flatnonzero(in_use)
    counts = np.bincount(position[used], minlength=len(ids))
    row_of[position[used]] = used
    # Only samples with several labels need a comparison.
    several = used[counts[position[used]] > 1]
    if len(several):
        columns = ["id", "sample_id", "version", "created_at"]
        some = labels.select(columns).take(pa.array(several)).to_pandas().astype({"created_at": object})
        chosen = several[newest_labels(some).index.to_numpy(int)]
        row_of[position[chosen]] = chosen
    withdrawn = np.flatnonzero((position >= 0) & ~in_use)
    withdrawn = withdrawn[counts[position[withdrawn]] == 0]
    times = labels["withdrawn_at"].take(pa.array(withdrawn)).to_pylist()
    lost_at: dict[int, str] = {}
    for place, when in zip(position[withdrawn].tolist(), times, strict=True):
        lost_at[place] = max(when, lost_at.get(place, ""))
    rows = pa.array(row_of, mask=row_of < 0)
    sources = {"alpha_sha256": "alpha_sha256", "label_version": "version", "label_binary": "binary"}
    return pa.table({name: labels[column].take(rows) for name, column in sources.items()}), lost_at


def _smallest(codes: np.ndarray, names: pa.Array, of_group: np.ndarray) -> np.ndarray:
    """Return for each sample the code of the alphabetically first declared group of its component."""
    least = np.arange(len(names))
    shared = np.flatnonzero(np.bincount(of_group)[of_group] > 1)
    first: dict[int, tuple[str, int]] = {}
    texts = names.take(pa.array(shared)).to_pylist()
    members = list(zip(of_group[shared].tolist(), texts, shared.tolist(), strict=True))
    for number, text, code in members:
        first[number] = min((text, code), first.get(number, (text, code)))
    least[shared] = [first[number][1] for number, _, _ in members]
    return least[codes].astype(np.int32)


def _at(ids: pa.Array, chosen: Collection[str]) -> np.ndarray:
    """Return for each id whether it is among the chosen ones."""
    return np.asarray(pc.is_in(ids, pa.array(list(chosen), pa.string())).to_numpy(zero_copy_only=False))


def _any_of(component: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Return for each sample whether a sample of its component is marked."""
    return (np.bincount(component, weights=marked) > 0)[component]
