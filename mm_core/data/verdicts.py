"""What becomes of each row of a drop: accepted, quarantined, or a duplicate of what is known.

Deciding is a pure function of the rows, their probes and the catalog as read at one version, so that a
worker whose catalog moved in the meantime decides again, and one that was killed decides the same.

- The same bytes again are a duplicate, unless they bring what the catalog lacks: a new matte becomes a
  new label version; a caption or category fills an empty one.
- The same photo saved again is a near-duplicate, unless both rows declare the same `group`: a burst is kept
  whole, and the group keeps it on one side of train and eval.
- A row that brought a sample itself (an earlier, interrupted or partial run) is accepted again, to no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.catalog import Catalog, Filter
from mm_core.data.duplicates import Entry, NearIndex, same_photo
from mm_core.data.expectations import Fault
from mm_core.data.manifest import ManifestRow
from mm_core.data.probe import Probe
from mm_core.faults import patient
from mm_core.records import sha256_bytes

SAMPLE_COLUMNS = ("id", "kind", "batch", "name", "category", "caption", "group", "width", "height", "phash")
LABEL_COLUMNS = ("id", "sample_id", "version", "batch", "alpha_sha256")

Thumbnails = Callable[[Entry], np.ndarray]
"""The second look at a photo, read when it is needed."""


@dataclass(frozen=True)
class Decision:
    """The verdict on one row."""

    row: int
    verdict: Literal["accept", "quarantine", "duplicate"]
    reason: str = ""
    detail: str = ""
    sample_id: str = ""
    label_version: int = 0
    """Version of the label that the row brings; 0 where it brings none."""
    fills: bool = False
    """The row brings a caption or category that a known sample lacked."""


def label_id(sample_id: str, alpha_sha256: str) -> str:
    """Key of a label: the same matte of the same photo is one label, whoever brings it."""
    return sha256_bytes(f"{sample_id}:{alpha_sha256}".encode())


@dataclass
class Known:
    """The catalog as one batch sees it, at one version of each table."""

    samples_version: int
    labels_version: int
    samples: dict[str, Mapping[str, Any]]
    """By id: those that this batch brings again or resembles."""
    labels: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """By sample id."""
    index: NearIndex = field(default_factory=lambda: NearIndex(0))

    @staticmethod
    @patient
    def read(catalog: Catalog, probes: Iterable[Probe], near_bits: int) -> Known:
        """Reads what may matter for these probes; the rest of a large catalog is not kept."""
        versions = catalog.version("samples"), catalog.version("labels")
        mine = {p.sha256: int(p.phash, 16) for p in probes if p.sha256 and p.phash}
        index, ids = NearIndex(near_bits), pa.array(list(mine), pa.string())
        near: list[str] = []
        for batch in catalog.scan("samples", version=versions[0], columns=("id", "phash")):
            hashes = np.array([int(text, 16) for text in batch["phash"].to_pylist()], np.uint64)
            close = index.sharing_a_band(hashes, mine.values()) | pc.is_in(batch["id"], ids).to_numpy(False)
            near += batch["id"].filter(pa.array(close)).to_pylist()
        chosen: list[Filter] = [("id", "in", near)]
        frame = catalog.read("samples", version=versions[0], columns=SAMPLE_COLUMNS, filters=chosen)
        clean: pd.DataFrame = frame.astype(object).where(frame.notna(), None)
        samples: dict[str, Mapping[str, Any]] = {str(row["id"]): row for row in clean.to_dict("records")}
        for row in samples.values():
            index.add(
                Entry(int(row["phash"], 16), row["id"], row["name"], row["group"] or "", row["width"] / row["height"])
            )
        labels: dict[str, list[Mapping[str, Any]]] = {}
        of_mine: list[Filter] = [("sample_id", "in", sorted(mine))]
        rows: pd.DataFrame = catalog.read("labels", version=versions[1], columns=LABEL_COLUMNS, filters=of_mine)
        for row in rows.to_dict("records"):
            labels.setdefault(row["sample_id"], []).append(row)
        return Known(*versions, samples, labels, index)


def decide(
    kind: str,
    batch: str,
    rows: Sequence[ManifestRow],
    probes: Sequence[Probe],
    faults: Mapping[int, Fault],
    known: Known,
    thumbnails: Thumbnails,
    filled_before: frozenset[int] = frozenset(),
) -> list[Decision]:
    """Verdicts in the order of the rows; the first of several copies is the one that stays.

    `filled_before`: rows that an interrupted run of this batch meant to fill captions or categories with.
    """
    listed: dict[str, str] = {}
    taken: dict[str, ManifestRow] = {}
    index = NearIndex(known.index.bits)
    decisions = []

    def verdict_on(row: ManifestRow, probe: Probe) -> Decision:
        if fault := faults.get(row.row):
            return Decision(row.row, "quarantine", fault.reason, fault.detail)
        identity, name = probe.sha256 or "", row.image
        assert probe.phash and probe.width and probe.height, "accepted rows are measured whole"
        if name in listed:
            return Decision(row.row, "duplicate", "listed twice", f"{name} is in the manifest already", listed[name])
        listed[name] = identity
        if identity in taken:
            return Decision(row.row, "duplicate", "duplicate", f"same bytes as {taken[identity].image}", identity)
        sample = known.samples.get(identity)
        if sample is not None:
            decision = _again(kind, batch, row, probe, sample, known.labels.get(identity, []), filled_before)
            if decision.verdict == "accept":
                taken[identity] = row
            return decision
        entry = Entry(int(probe.phash, 16), identity, name, row.group, probe.width / probe.height)
        for other in (*index.near(entry.phash, entry.aspect), *known.index.near(entry.phash, entry.aspect)):
            if (not row.group or other.group != row.group) and same_photo(thumbnails(entry), thumbnails(other)):
                return Decision(row.row, "duplicate", "near-duplicate", f"the photo of {other.name}", other.identity)
        taken[identity] = row
        index.add(entry)
        version = _label_version(batch, probe, known.labels.get(identity, []))
        return Decision(row.row, "accept", sample_id=identity, label_version=version)

    for row, probe in zip(rows, probes, strict=True):
        decisions.append(verdict_on(row, probe))
    return decisions


def _again(
    kind: str,
    batch: str,
    row: ManifestRow,
    probe: Probe,
    sample: Mapping[str, Any],
    labels: Sequence[Mapping[str, Any]],
    filled_before: frozenset[int],
) -> Decision:
    """The verdict on bytes that the catalog holds."""
    own = (sample["kind"], sample["batch"], sample["name"]) == (kind, batch, row.image)
    fills = any(
        value and (sample[name] is None or (row.row in filled_before and sample[name] == value))
        for name, value in (("caption", row.caption), ("category", probe.category))
    )
    version = _label_version(batch, probe, labels)
    if own or fills or version:
        return Decision(row.row, "accept", sample_id=probe.sha256 or "", label_version=version, fills=fills)
    place = f"{sample['kind']}/{sample['batch']}/{sample['name']}"
    return Decision(row.row, "duplicate", "duplicate", f"same bytes as {place}", probe.sha256 or "")


def _label_version(batch: str, probe: Probe, labels: Sequence[Mapping[str, Any]]) -> int:
    """The version of the label that the row brings, or brought before; 0 where it brings nothing new."""
    if not probe.alpha_sha256:
        return 0
    for label in labels:
        if label["alpha_sha256"] == probe.alpha_sha256:
            return int(label["version"]) if label["batch"] == batch else 0
    return 1 + max((int(label["version"]) for label in labels), default=0)
