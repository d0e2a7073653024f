"""Read from the table `corrections` how photos have changed since they arrived.

The replay of `mm_core.ingest.holdout` decides with the values that a photo had when it arrived. It would otherwise hold
out photos that earlier cycles were free to train on, because a later correction changes the draw of their arrival.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.ingest.holdout_growing import NEVER, Arrivals
from mm_core.ingest.learnt import Learnt
from mm_core.ingest.scenes import connect, declared_of, encoded, equals, known_categories, whole_column
from mm_core.storage.catalog import Catalog

REPLAYED = ("category", "group", "role")
"""Columns that the replay uses and that a correction can change."""
READ = ("sample_id", "column", "verdict", "old", "new", "origin", "stated_at")


@dataclass(frozen=True)
class SinceArrival:
    """The changes of some photos; all of them by sample id."""

    first: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Column of REPLAYED → sample id → value on arrival; empty: none."""
    moves: Collection[tuple[str, str, str]] = ()
    """Sample id, new group (empty: a group of its own) and time of every change of a group."""
    trained: Mapping[str, str] = field(default_factory=dict)
    """Sample id → first time when a drop gave it the role `train`."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Sample id → first time from which it no longer counts for the category of its arrival.

    Its drop took the matte back, a drop changed the category, or a drop gave it the role `train`. A matte that comes
    back does not count again: arrivals in between were decided without it.
    """


def read_changes(catalog: Catalog, version: int | None = None) -> SinceArrival:
    """Return the changes in a version of `corrections`: the newest by default; -1 is before its first row."""
    if version == -1:
        return SinceArrival()
    columns = (*REPLAYED, "alpha")
    return changes_since(
        catalog.read("corrections", version=version, columns=READ, filters=[("column", "in", list(columns))])
    )


def changes_since(corrections: pd.DataFrame) -> SinceArrival:
    """Return the changes that these rows record.

    Args:
        corrections: Columns READ of the table `corrections`.
    """
    if corrections.empty:
        return SinceArrival()
    rows = corrections.sort_values("stated_at", kind="stable").fillna("")
    oldest = rows.drop_duplicates(["sample_id", "column"])
    first = {}
    for column in REPLAYED:
        of_column = oldest.loc[oldest["column"] == column]
        first[column] = dict(zip(of_column["sample_id"], of_column["old"], strict=True))
    moved = rows.loc[rows["column"] == "group", ["sample_id", "new", "stated_at"]]
    trained = rows.loc[(rows["column"] == "role") & (rows["new"] == "train")]
    taken_back = (rows["column"] == "alpha") & (rows["verdict"] == "removed") & (rows["old"] != "")
    # The time of a person's answer may lie before arrivals that were decided without it.
    other_category = (rows["column"] == "category") & (rows["origin"] == "drop")
    lost = rows.loc[taken_back | other_category | rows.index.isin(trained.index)]
    return SinceArrival(first, list(moved.itertuples(index=False, name=None)), _earliest(trained), _earliest(lost))


def _earliest(rows: pd.DataFrame) -> dict[str, str]:
    """Return sample id → time of its first row; the rows are sorted by time."""
    rows = rows.drop_duplicates("sample_id")
    return dict(zip(rows["sample_id"], rows["stated_at"], strict=True))


def given_by(catalog: Catalog, batches: Collection[str]) -> set[str]:
    """Return the ids of the photos whose role one of the batches (kind/batch) changed."""
    changes = catalog.read("corrections", columns=["sample_id", "kind", "batch"], filters=[("column", "=", "role")])
    return set(changes.loc[(changes["kind"] + "/" + changes["batch"]).isin(list(batches)), "sample_id"])


@dataclass(frozen=True)
class Scenes:
    """The scenes of the samples."""

    declared: pa.DictionaryArray
    """The declared group of each sample."""
    links: tuple[np.ndarray, np.ndarray]
    """Positions of samples with the same content."""
    component: np.ndarray
    """(groups,) int: the component of each declared group."""


def arrivals_of(
    samples: pa.Table,
    category: pa.DictionaryArray,
    scenes: Scenes,
    lost_at: Mapping[int, str],
    since: SinceArrival,
    learnt: Learnt,
) -> Arrivals:
    """Return the columns for `hold_out`, with the values that the samples arrived with.

    Args:
        samples: SAMPLE_COLUMNS of the catalog, sorted by id.
        category: Their present category; null for unknown ones.
        scenes: Their present scenes.
        lost_at: Position → time of the last withdrawal of a sample without a label.
        since: The changes since the samples arrived.
        learnt: What earlier cycles have learnt from.
    """
    ids = whole_column(samples["id"])
    time, times = _ranked(encoded(samples["accepted_at"]))

    def from_then(when: str) -> int:
        # A change takes effect before the first arrival that follows it.
        return bisect_left(times, when)

    if since.first.get("category"):
        category = known_categories(encoded(_first_values(samples, "category", since)))
    role = encoded(_first_values(samples, "role", since))
    names, codes, of_group = scenes.declared.dictionary, np.asarray(scenes.declared.indices), scenes.component
    joins: list[tuple[int, int, int]] = []
    if since.moves:
        groups_then = _first_values(samples, "group", since)
        declared = declared_of(samples.set_column(samples.schema.get_field_index("group"), "group", groups_then))
        moves = [(place, new or ids[place].as_py(), from_then(when)) for place, new, when in _present(ids, since.moves)]
        moved_to = pa.array([new for _, new, _ in moves], pa.string())
        # A photo may have been moved to a group that no photo arrived with.
        names = pc.unique(pa.concat_arrays([declared.dictionary, moved_to]))
        codes, targets = np.asarray(declared.indices), pc.index_in(moved_to, names).to_pylist()
        joins = [(when, int(codes[place]), target) for (place, _, when), target in zip(moves, targets, strict=True)]
        of_group = connect(codes, len(names), scenes.links, [(one, other) for _, one, other in joins])
    codes, groups = codes.astype(np.int64), len(names)

    def is_learnt(known: pa.Array, forgotten: Collection[str]) -> np.ndarray:
        of_forgotten = np.asarray(pc.is_in(names, pa.array(list(forgotten), pa.string())).to_numpy(False))
        return np.asarray(pc.is_in(ids, known).to_numpy(False)) | of_forgotten[codes]

    freed = [(from_then(when), int(codes[place])) for place, when in _present(ids, since.trained.items())]
    changed = {group for _, *both in joins for group in both} | {group for _, group in freed}
    losses = {place: from_then(when) for place, when in lost_at.items()}
    for place, when in _present(ids, since.lost.items()):
        losses[place] = min(from_then(when), losses.get(place, NEVER))
    labelled = equals(encoded(samples["kind"]), "pixel_labeled")
    edited = pc.fill_null(pc.greater(pc.list_value_length(whole_column(samples["near"])), 0), False)
    # The draws use only the names and hashes of groups that arrived with a label.
    drawn = np.unique(codes[labelled])
    drawn_names = names.take(pa.array(drawn))
    order = np.full(groups, -1)
    order[drawn[np.asarray(pc.sort_indices(drawn_names))]] = np.arange(len(drawn))
    shares = {salt: np.ones(groups) for salt in ("eval", "validation")}
    for salt, share in shares.items():
        share[drawn] = _stable_shares(drawn_names.to_pylist(), salt)
    return Arrivals(
        time=time,
        group=codes,
        component=of_group[codes].astype(np.int64),
        # Unknown categories are one category of their own.
        category=np.asarray(category.indices.fill_null(len(category.dictionary))).astype(np.int64),
        labelled=labelled,
        asked=equals(role, "eval"),
        drawable=labelled & (equals(role, "") | np.asarray(role.is_null())) & ~np.asarray(edited),
        changed=np.isin(of_group, of_group[sorted(changed)])[codes],
        order=order,
        trained=is_learnt(learnt.training, learnt.training_groups),
        validated=is_learnt(learnt.validation, learnt.validation_groups),
        lost=_lost_groups(groups, codes, time, losses),
        eval_share=shares["eval"],
        validation_share=shares["validation"],
        joins=joins,
        freed=freed,
    )


def _first_values(samples: pa.Table, column: str, since: SinceArrival) -> pa.Array:
    """Return a column with the values that the samples arrived with."""
    whole, first = whole_column(samples[column]), since.first.get(column)
    if not first:
        return whole
    changed = pc.is_in(whole_column(samples["id"]), pa.array(list(first), pa.string()))
    values = pa.array([first[i] for i in samples["id"].filter(changed).to_pylist()], pa.string())
    return pc.replace_with_mask(whole.cast(pa.string()), changed, values)


def _present(ids: pa.Array, rows: Iterable[tuple[str, *tuple[str, ...]]]) -> list[tuple[int, *tuple[str, ...]]]:
    """Return the rows of present samples, with the sample's position in place of its id."""
    rows = list(rows)
    places = pc.index_in(pa.array([row[0] for row in rows], pa.string()), ids).to_pylist()
    return [(place, *row[1:]) for place, row in zip(places, rows, strict=True) if place is not None]


def _lost_groups(groups: int, codes: np.ndarray, time: np.ndarray, losses: Mapping[int, int]) -> np.ndarray:
    """Return for each group the first arrival at which all its photos so far are lost, int (groups,); or NEVER.

    Args:
        groups: Number of groups.
        codes: (samples,) int: group of each sample.
        time: (samples,) int: arrival of each sample.
        losses: Position → arrival from which a sample is lost.
    """
    lost = np.full(groups, NEVER)
    if not losses:
        return lost
    losing = np.zeros(groups, bool)
    losing[codes[list(losses)]] = True
    rows = np.flatnonzero(losing[codes])
    rows = rows[np.lexsort((time[rows], codes[rows]))]
    since, open_group = 0, -1
    # The photos of a group follow each other, in order of their arrivals; the last one is followed by none.
    following = [*zip(codes[rows[1:]].tolist(), time[rows[1:]].tolist(), strict=True), (-1, NEVER)]
    own = zip(rows.tolist(), codes[rows].tolist(), time[rows].tolist(), strict=True)
    for (row, group, arrived), (next_group, arrives) in zip(own, following, strict=True):
        # A photo of the same arrival counts too, even if the label was withdrawn before.
        since = max(losses.get(row, NEVER), arrived, since if group == open_group else 0)
        open_group = group
        # A later photo with a label cannot undo that the group was without one before.
        if since < (arrives if next_group == group else NEVER):
            lost[group] = min(lost[group], since)
    return lost


def _stable_shares(groups: Sequence[str], salt: str) -> np.ndarray:
    """Return `stable_share` of many groups."""
    prefix = f"{salt}:".encode()
    digests = b"".join([hashlib.sha256(prefix + name.encode()).digest()[:8] for name in groups])
    # The first 7 of the 8 bytes, as in `stable_share`.
    return (np.frombuffer(digests, ">u8") >> np.uint64(8)).astype(float) / 2**56


def _ranked(column: pa.DictionaryArray) -> tuple[np.ndarray, list[str]]:
    """Return the place of each text in the sorted texts, and these; null counts as the empty text."""
    texts = [text or "" for text in [*column.dictionary.to_pylist(), None]]
    ordered = sorted(set(texts))
    places = {text: place for place, text in enumerate(ordered)}
    ranks = np.array([places[text] for text in texts])
    return ranks[np.asarray(column.indices.fill_null(len(texts) - 1))], ordered
